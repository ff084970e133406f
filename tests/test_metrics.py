"""Promises of sona.metrics: estimates equal their textbook formulas, intervals cover, and what cannot be estimated is refused."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sona.errors import SonaTypeError, SonaValueError
from sona.metrics import Estimate, cumulative_regret, doubly_robust, ips, regret, replay_estimate, rolling_mean, snips


class Log(NamedTuple):
    reward: np.ndarray
    propensity: np.ndarray
    match: np.ndarray  # the policy picks the logged arm
    value: float  # true value of the policy
    logged: np.ndarray  # expected reward of the logged arm
    picked: np.ndarray  # of the policy's arm


def simulated_log(
    rng: np.random.Generator,
    n: int,
    *,
    arms: int,
    skew: float | None,
    success: tuple[float, float],
    graded: bool = False,
    learning: bool = False,
    contexts: int = 6,
) -> Log:
    """A log over a few contexts, each with one right arm. ``skew``: Dirichlet concentration of the propensities, None = uniform."""
    right = rng.integers(0, arms, contexts)
    context = rng.integers(0, contexts, n)
    chances = np.full((n, arms), 1 / arms) if skew is None else 0.9 * rng.dirichlet(np.full(arms, skew), n) + 0.1 / arms
    arm = (rng.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1).clip(0, arms - 1)
    expected = np.where(arm == right[context], *success)
    reward = rng.beta(2 * expected, 2 * (1 - expected)) if graded else (rng.random(n) < expected).astype(float)
    if learning:  # the arm with the best mean so far, predicted before each row is learned
        total, count, target = np.full((contexts, arms), 0.5), np.ones((contexts, arms)), np.empty(n, np.int64)
        for row in range(n):
            target[row] = np.argmax(total[context[row]] / count[context[row]])
            total[context[row], arm[row]] += reward[row]
            count[context[row], arm[row]] += 1
    else:
        target = np.where(rng.random(n) < 0.3, rng.integers(0, arms, n), right[context])
    picked = np.where(target == right[context], *success)
    return Log(reward, chances[np.arange(n), arm], arm == target, float(picked.mean()), expected, picked)


def methods(log: Log) -> dict[str, Callable[[], Estimate]]:
    reward, propensity, match = log[:3]
    target = match.astype(float)
    return {
        "replay": lambda: replay_estimate(match, reward, propensity_logged=propensity),
        "ips": lambda: ips(reward, propensity, target),
        "snips": lambda: snips(reward, propensity, target),
        **{name: lambda model=model: doubly_robust(reward, propensity, target, *model) for name, model in models(log).items()},
    }


def models(log: Log) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions for the logged and the policy's arm of a model that knows, one that knows nothing and one that is wrong."""
    both = log.logged, log.picked
    return {
        "dr, right": (both[0], both[1]),
        "dr, constant": (np.full(len(both[0]), 0.5), np.full(len(both[0]), 0.5)),
        "dr, wrong": (1 - both[0], 1 - both[1]),
    }


DR = {"dr, right", "dr, constant", "dr, wrong"}


SUCCESSES = [(0.95, 0.3), (0.1, 0.02), (1.0, 0.0)]


@pytest.mark.parametrize("learning", [False, True], ids=["fixed", "learning"])
@pytest.mark.parametrize("success", SUCCESSES, ids=str)
@pytest.mark.parametrize(("arms", "skew"), [(3, None), (10, None), (3, 1.0), (3, 0.2), (10, 1.0)])
def test_intervals_cover_the_true_value(arms: int, skew: float | None, success: tuple[float, float], learning: bool) -> None:
    rng = np.random.default_rng((arms, int(10 * (skew or 0)), int(100 * success[0]), learning))
    hits: dict[str, list[bool]] = {}
    for _ in range(80 if learning else 200):
        log = simulated_log(rng, 1200, arms=arms, skew=skew, success=success, learning=learning)
        for name, estimate in methods(log).items():
            try:
                found = estimate()
            except SonaValueError:
                continue
            hits.setdefault(name, []).append(found.low <= log[3] <= found.high)
    assert hits.keys() == {"ips", "snips"} | DR | ({"replay"} if skew is None else set())
    for name, covered in hits.items():
        # 0.93 less two standard errors of the simulation itself
        assert np.mean(covered) >= 0.93 - 2 * (0.93 * 0.07 / len(covered)) ** 0.5, (name, np.mean(covered), len(covered))


def test_few_rewards_are_covered_and_graded_ones_too() -> None:
    rng = np.random.default_rng(7)
    covered: dict[str, list[bool]] = {}
    for graded, n in [(False, 150), (True, 150)]:
        for _ in range(400):
            log = simulated_log(rng, n, arms=3, skew=None, success=(0.9, 0.2), graded=graded)
            for name, estimate in methods(log).items():
                found = estimate()
                covered.setdefault(f"{name} {graded}", []).append(found.low <= log[3] <= found.high)
    assert all(np.mean(hits) >= 0.93 for hits in covered.values()), {name: np.mean(hits) for name, hits in covered.items()}


def test_dr_is_the_papers_formula_over_all_arms(rng: np.random.Generator) -> None:
    n, arms = 800, 4
    chances = 0.6 * rng.dirichlet(np.ones(arms), n) + 0.1
    policy = rng.dirichlet(np.ones(arms), n)
    model = rng.random((n, arms))
    arm = np.array([rng.choice(arms, p=row) for row in chances])
    reward = rng.random(n)
    rows = np.arange(n)
    by_hand = 0.0
    for i in range(n):
        promised = sum(policy[i, a] * model[i, a] for a in range(arms))
        by_hand += (reward[i] - model[i, arm[i]]) * policy[i, arm[i]] / chances[i, arm[i]] + promised
    found = doubly_robust(reward, chances[rows, arm], policy[rows, arm], model[rows, arm], (policy * model).sum(axis=1))
    assert found.value == pytest.approx(by_hand / n)
    assert found.method == "dr"
    weights = policy[rows, arm] / chances[rows, arm]
    assert found.n_effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


@pytest.mark.parametrize("model", sorted(DR))
def test_dr_is_unbiased_whatever_the_model(model: str) -> None:
    rng = np.random.default_rng(11)
    logs = [simulated_log(rng, 1500, arms=3, skew=1.0, success=(0.7, 0.2)) for _ in range(150)]
    error = np.array([methods(log)[model]().value - log.value for log in logs])
    assert abs(error.mean()) < 4 * error.std() / len(error) ** 0.5
    if model == "dr, wrong":
        promise = np.array([models(log)[model][1].mean() - log.value for log in logs])
        assert abs(promise.mean()) > 0.1


def test_dr_is_unbiased_with_a_right_model_and_wrong_propensities(rng: np.random.Generator) -> None:
    """Arm 0 succeeds in .9 and .3 of two contexts and was shown in .8 and .2 of them; the log claims .5 everywhere."""
    n = 40_000
    context = rng.integers(0, 2, n)
    expected = np.where(context == 0, 0.9, 0.3)
    shown = rng.random(n) < np.where(context == 0, 0.8, 0.2)
    reward = (rng.random(n) < np.where(shown, expected, 0.5)).astype(float)
    claimed, target, half = np.full(n, 0.5), shown.astype(float), np.full(n, 0.5)
    assert doubly_robust(reward, claimed, target, np.where(shown, expected, 0.5), expected).value == pytest.approx(0.6, abs=0.02)
    assert doubly_robust(reward, claimed, target, half, half).value == pytest.approx(0.78, abs=0.02)
    assert ips(reward, claimed, target).value == pytest.approx(0.78, abs=0.02)


def test_a_good_model_narrows_the_interval() -> None:
    rng = np.random.default_rng(2)
    for success in ((0.95, 0.3), (1.0, 0.0)):
        log = simulated_log(rng, 2000, arms=5, skew=1.0, success=success)
        width = {
            name: found.high - found.low for name, found in ((name, make()) for name, make in methods(log).items() if name != "replay")
        }
        assert width["dr, right"] < 0.7 * width["ips"]
        assert width["dr, right"] < width["dr, constant"] < width["dr, wrong"]


def test_intervals_narrow_with_the_log() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for n in (500, 2000, 8000):
        found = methods(simulated_log(rng, n, arms=4, skew=None, success=(0.8, 0.3)))
        widths.append([estimate().high - estimate().low for estimate in found.values()])
    shrunk = np.array(widths[:-1]) / np.array(widths[1:])
    np.testing.assert_allclose(shrunk, 2, rtol=0.25)  # four times the rows


def test_ips_is_unbiased_where_the_naive_mean_is_not() -> None:
    rng = np.random.default_rng(5)
    logs = [simulated_log(rng, 1500, arms=3, skew=1.0, success=(0.9, 0.1)) for _ in range(150)]
    error = np.array([ips(reward, propensity, match.astype(float)).value - value for reward, propensity, match, value, *_ in logs])
    naive = np.array([reward.mean() - value for reward, _, _, value, *_ in logs])
    assert abs(error.mean()) < 4 * error.std() / len(error) ** 0.5
    assert abs(naive.mean()) > 0.2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), low=st.floats(-5, 5), span=st.floats(0.5, 5))
def test_values_are_the_textbook_formulas_in_any_reward_range(seed: int, low: float, span: float) -> None:
    unit, propensity, match, _, logged, picked = simulated_log(
        np.random.default_rng(seed), 600, arms=3, skew=None, success=(0.8, 0.2), graded=True
    )
    reward = low + span * unit
    reward_range = (low, low + span)
    reward = reward.clip(*reward_range)
    weights = match / propensity
    try:
        by_ips = ips(reward, propensity, match.astype(float), reward_range=reward_range)
        by_snips = snips(reward, propensity, match.astype(float), reward_range=reward_range)
        by_replay = replay_estimate(match, reward, reward_range=reward_range)
        by_dr = doubly_robust(
            reward, propensity, match.astype(float), low + span * logged, low + span * picked, reward_range=(low - 1e-9, low + span + 1e-9)
        )
    except SonaValueError:
        reject()
    assert by_ips.value == pytest.approx(low + span * min(1.0, float(np.mean(weights * unit))), abs=1e-9)
    assert by_snips.value == pytest.approx(float(np.sum(weights * reward) / np.sum(weights)), abs=1e-9)
    assert by_replay.value == pytest.approx(float(reward[match].mean()), abs=1e-9)
    assert by_replay.n_effective == match.sum()
    assert by_snips.n_effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert by_dr.value == pytest.approx(low + span * float(np.mean(picked + weights * (unit - logged))), abs=1e-6)
    for found in (by_ips, by_snips, by_replay):
        assert low - 1e-9 <= found.low <= found.value <= found.high <= low + span + 1e-9
        assert found.confidence == 0.95


def test_no_reward_and_only_rewards_still_leave_doubt() -> None:
    match, propensity = np.tile([True, False], 50), np.full(100, 0.5)
    for reward, low, high in [(np.zeros(100), 0.0, 0.15), (np.ones(100), 0.85, 1.0)]:
        for found in (replay_estimate(match, reward), snips(reward, propensity, match.astype(float))):
            assert low <= found.low < found.high <= high
    assert ips(np.zeros(100), propensity, match.astype(float)).low == 0
    assert 0 < ips(np.zeros(100), propensity, match.astype(float)).high < 0.25


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    reward, propensity, match, *_ = simulated_log(np.random.default_rng(1), 1000, arms=3, skew=None, success=(0.8, 0.2))
    narrow, wide = (snips(reward, propensity, match.astype(float), confidence=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def dr(reward: np.ndarray, propensity: np.ndarray, target: np.ndarray, **settings: tuple[float, float]) -> Estimate:
    """Doubly robust with a model that always predicts .5."""
    half = np.full(np.shape(reward), 0.5)
    return doubly_robust(reward, propensity, target, half, half, **settings)


def uniform(n: int, arms: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(n), np.full(n, 1 / arms), rng.random(n) < 1 / arms


def test_fewer_than_thirty_effective_rewards_are_refused() -> None:
    reward, propensity, match = uniform(40)
    with pytest.raises(SonaValueError, match="at least 30 matched rewards"):
        replay_estimate(match, reward)
    for method in (ips, snips, dr):
        with pytest.raises(SonaValueError, match="at least 30 effective rewards"):
            method(reward, propensity, match.astype(float))
    # 400 matched rows, and a handful that weigh as much as all of them
    propensity = np.where(np.arange(400) < 5, 0.001, 0.5)
    with pytest.raises(SonaValueError, match=r"effective rewards, got \d"):
        snips(np.ones(400), propensity, np.ones(400))


def test_no_matched_row_is_refused() -> None:
    with pytest.raises(SonaValueError, match=r"got 0\.0"):
        snips(np.ones(50), np.full(50, 0.5), np.zeros(50))


@pytest.mark.parametrize(
    ("propensity", "message"),
    [
        (np.zeros(200), r"\(0, 1\], got 0 to 0"),
        (np.full(200, np.nan), "200 of 200 rows have no propensity"),
        (np.where(np.arange(200) < 3, np.nan, 0.5), "3 of 200 rows have no propensity"),
        (np.full(200, -0.1), r"\(0, 1\]"),
        (np.full(200, 1.5), r"\(0, 1\]"),
        (np.full(200, np.inf), r"\(0, 1\]"),
        (np.full(199, 0.5), "200 propensities, got shape"),
    ],
)
def test_unusable_propensities_are_refused(propensity: np.ndarray, message: str) -> None:
    reward, _, match = uniform(200)
    for method in (ips, snips, dr):
        with pytest.raises(SonaValueError, match=message):
            method(reward, propensity, match.astype(float))
    with pytest.raises(SonaValueError, match=message):
        replay_estimate(match, reward, propensity_logged=propensity)


def test_a_greedy_log_says_nothing_about_other_arms() -> None:
    reward, _, match = uniform(500)
    for method in (ips, snips, dr):
        with pytest.raises(SonaValueError, match="chose with certainty"):
            method(reward, np.ones(500), match.astype(float))
    with pytest.raises(SonaValueError, match="chose with certainty"):
        replay_estimate(match, reward, propensity_logged=np.ones(500))


def test_propensities_that_contradict_the_log_are_refused() -> None:
    reward, _, match = uniform(2000, arms=2)
    for claimed in (0.1, 0.9):  # truly 0.5
        for method in (ips, snips, dr):
            with pytest.raises(SonaValueError, match="weights average"):
                method(reward, np.full(2000, claimed), match.astype(float))
    with pytest.raises(SonaValueError, match="weights average"):
        ips(reward, np.full(2000, 0.5), np.ones(2000))  # no spread at all, and still impossible


def test_replay_refuses_a_log_that_was_not_uniform() -> None:
    reward, propensity, match = uniform(400)
    propensity[:10] = 0.4
    with pytest.raises(SonaValueError, match="uniformly at random"):
        replay_estimate(match, reward, propensity_logged=propensity)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -0.5])
def test_unusable_rewards_are_refused(bad: float) -> None:
    reward, propensity, match = uniform(200)
    reward[7] = bad
    for call in (
        lambda: ips(reward, propensity, match.astype(float)),
        lambda: dr(reward, propensity, match.astype(float)),
        lambda: replay_estimate(match, reward),
    ):
        with pytest.raises(SonaValueError, match="reward"):
            call()


def test_unusable_shapes_and_types_are_refused() -> None:
    reward, propensity, match = uniform(200)
    with pytest.raises(SonaTypeError, match="match as booleans"):
        replay_estimate(match.astype(float), reward)
    with pytest.raises(SonaValueError, match="200 matches"):
        replay_estimate(match[:-1], reward)
    with pytest.raises(SonaValueError, match="200 target probabilities"):
        ips(reward, propensity, match[:-1].astype(float))
    with pytest.raises(SonaValueError, match=r"target probabilities in \[0, 1\]"):
        ips(reward, propensity, 2.0 * match)
    with pytest.raises(SonaValueError, match=r"shape \(n,\)"):
        ips(reward[None], propensity, match)
    with pytest.raises(SonaValueError, match=r"shape \(n,\)"):
        ips([], [], [])
    with pytest.raises(SonaTypeError, match="as numbers"):
        ips(["a"], [0.5], [1.0])
    for reward_range in ((1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(SonaValueError, match="reward range"):
            ips(reward, propensity, match.astype(float), reward_range=reward_range)


@pytest.mark.parametrize("column", [0, 1], ids=["logged", "target"])
@pytest.mark.parametrize(
    ("change", "message"),
    [(np.nan, "finite predicted"), (1.5, r"in \[0, 1\], got 0.5 to 1.5"), (-0.1, r"in \[0, 1\], got -0.1")],
)
def test_unusable_predictions_are_refused(column: int, change: float, message: str) -> None:
    reward, propensity, match = uniform(200)
    model = [np.full(200, 0.5), np.full(200, 0.5)]
    model[column][3] = change
    with pytest.raises(SonaValueError, match=message):
        doubly_robust(reward, propensity, match.astype(float), *model)
    model[column] = np.full(199, 0.5)
    with pytest.raises(SonaValueError, match="expected 200 rewards in predicted"):
        doubly_robust(reward, propensity, match.astype(float), *model)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 70))
def test_rolling_mean_is_the_mean_of_each_window(values: list[float], window: int) -> None:
    expected = [np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    np.testing.assert_allclose(rolling_mean(values, window), expected, atol=1e-12)


def test_rolling_mean_refuses_an_empty_window() -> None:
    with pytest.raises(SonaValueError, match="window >= 1"):
        rolling_mean([1.0], 0)


def test_regret_is_the_running_sum_of_what_the_best_arm_would_have_added() -> None:
    np.testing.assert_allclose(cumulative_regret([1, 0, 0.5]), [0, 1, 1.5])
    np.testing.assert_allclose(cumulative_regret([0.2, 0.1], best=[0.5, 0.1]), [0.3, 0.3])
    assert regret([1, 0, 0.5]) == 1.5
    assert regret([0.2, 0.1], best=[0.5, 0.1]) == pytest.approx(0.3)


def test_regret_refuses_a_best_that_does_not_fit() -> None:
    for best, message in [
        ([1.0, 1.0], r"one for each of 3 rewards, got shape \(2,\)"),
        (np.nan, "finite best"),
        ([1, np.inf, 1], "finite best"),
    ]:
        with pytest.raises(SonaValueError, match=message):
            cumulative_regret([1, 0, 1], best)
    with pytest.raises(SonaTypeError, match="best as numbers"):
        regret([1, 0, 1], "all")
