"""Promises of the promotion gate: each judge equals a slow oracle, wrong candidates pass rarely, and a trial survives a restart."""

import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import SonaError, SonaTypeError, SonaValueError
from sona.loops.duel import BETS, Bets, Duel, Wealth
from sona.loops.gate import Gate, GateConfig, remembered
from sona.loops.logged import logged_duel
from sona.loops.screen import PRIOR, calibrate, screen
from sona.loops.veto import MAX_SOURCES, SourceVeto, trimmed_bound

Rows = list[tuple[str, float]]  # whose arm was played, its reward

PLAYED = st.sampled_from(["both", "both", "both", "candidate", "incumbent"])
REWARDS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
ROWS = st.lists(st.tuples(PLAYED, REWARDS), max_size=120)


def traffic(rng: np.random.Generator, n: int, gain: float, *, differ: float = 0.2, level: float = 0.5, q: float = 0.5) -> Rows:
    """Decisions whose candidate gains `gain` on average: yes/no rewards around `level`, where the models differ."""
    apart, ours = rng.random(n) < differ, rng.random(n) < q
    success = level + np.where(ours, 0.5, -0.5) * gain / differ
    reward = rng.random(n) < np.where(apart, success, level)
    sides = np.where(apart, np.where(ours, "candidate", "incumbent"), "both")
    return list(zip(sides.tolist(), reward.astype(float).tolist(), strict=True))


def play(duel: Duel | Gate, rows: Rows) -> int:
    """Number of the row that decided, from 1 on; 0 for none."""
    for number, (played, reward) in enumerate(rows, 1):
        duel.record(played, reward)  # type: ignore[arg-type]
        if duel.verdict != "undecided":
            return number
    return 0


# ---- wealth ----


@given(st.lists(st.tuples(st.floats(-1, 5), st.floats(1, 8)), max_size=60))
def test_wealth_is_the_product_of_the_bets(steps: list[tuple[float, float]]) -> None:
    wealth, owned = Wealth(), [Fraction(1)] * len(BETS)
    for gain, worst in steps:
        wealth.bet(gain, worst)
        owned = [o * (1 + Fraction(share) * Fraction(gain) / Fraction(worst)) for o, share in zip(owned, BETS, strict=True)]
    assert min(owned) > 0
    assert wealth.log == pytest.approx(math.log(sum(owned) / len(owned)), abs=1e-9)


def test_wealth_outlives_what_a_product_does_not() -> None:
    wealth = Wealth()
    for _ in range(5000):
        wealth.bet(3.0, 1.0)
    assert wealth.log == pytest.approx(5000 * math.log(1 + 3 * BETS[0]) - math.log(len(BETS)))
    for _ in range(20_000):
        wealth.bet(-1.0, 1.0)
    assert wealth.log < -200


def test_a_loss_beyond_the_announced_one_is_refused() -> None:
    wealth = Wealth()
    wealth.bet(-0.5, 0.5)
    before = list(wealth.logs)
    with pytest.raises(SonaValueError, match=r"at least -0\.5"):
        wealth.bet(-0.51, 0.5)
    with pytest.raises(SonaValueError):
        wealth.bet(math.nan, 0.5)
    assert wealth.logs == before


# ---- the duel, against its definition ----


def definition(rows: Rows, q: float, tolerance: float, margin: float) -> tuple[list[float], list[float], list[float]]:
    """(z, accept wealth, reject wealth) after each row, as plain products; the baseline is computed anew for each row."""
    z: list[float] = []
    sides: tuple[list[float], list[float]] = [], []
    up, down = np.ones(len(BETS)), np.ones(len(BETS))
    for number, (played, reward) in enumerate(rows):
        earlier = [r for p, r in rows[:number] if p != "both"]
        b = (0.5 + sum(earlier)) / (1 + len(earlier))
        z.append({"both": 0.0, "candidate": (reward - b) / q, "incumbent": -(reward - b) / (1 - q)}[played])
        least, most = max(b / q, (1 - b) / (1 - q)), max((1 - b) / q, b / (1 - q))
        up = up * (1 + np.array(BETS) * (z[-1] + tolerance) / least)
        down = down * (1 + np.array(BETS) * (margin - z[-1]) / most)
        assert min(up) > 0
        assert min(down) > 0
        sides[0].append(float(up.mean()))
        sides[1].append(float(down.mean()))
    return z, *sides


@given(rows=ROWS, q=st.sampled_from([0.05, 0.2, 0.5, 0.9]))
def test_a_duel_is_its_definition(rows: Rows, q: float) -> None:
    z, up, down = definition(rows, q, 0.002, 0.005)
    duel = Duel(q=q, n_min=10**6, n_max=10**6)
    for number, (played, reward) in enumerate(rows):
        assert duel.record(played, reward) == pytest.approx(z[number], abs=1e-12)  # type: ignore[arg-type]
        found = duel.evidence
        assert found["accept_wealth"] == pytest.approx(up[number], rel=1e-9)
        assert found["reject_wealth"] == pytest.approx(down[number], rel=1e-9)
    found = duel.evidence
    assert found["n"] == len(rows)
    assert found["differing"] == sum(p != "both" for p, _ in rows)
    if len(rows) > 1:
        assert found["gain"] == pytest.approx(np.mean(z), abs=1e-12)
        assert found["gain_standard_error"] == pytest.approx(np.std(z, ddof=1) / len(z) ** 0.5, abs=1e-9)
    for side in ("candidate", "incumbent"):
        rewards = [r for p, r in rows if p == side]
        assert found[f"{side}_reward"] == (pytest.approx(np.mean(rewards), abs=1e-9) if rewards else None)


@pytest.mark.parametrize("gain", [0.05, -0.05, 0.0])
def test_the_verdict_comes_at_the_first_row_that_suffices(gain: float) -> None:
    rows = traffic(np.random.default_rng(3), 1500, gain)
    _, up, down = definition(rows, 0.5, 0.002, 0.005)
    suffices = [n for n, (u, d) in enumerate(zip(up, down, strict=True), 1) if n >= 300 and max(u, d) >= 20]
    duel = Duel(n_min=300)
    assert play(duel, rows) == (suffices[0] if suffices else 0)
    if suffices:
        assert duel.verdict == ("reject" if down[suffices[0] - 1] >= 20 else "accept")
    assert gain == 0 or suffices


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("played", ["candidate", "incumbent"])
def test_the_worst_rows_leave_some_wealth(played: Any, reward: float) -> None:
    duel = Duel(q=0.01, n_min=10**6, n_max=10**6)
    for _ in range(3000):
        duel.record(played, reward)
    duel.record(played, 1 - reward)  # furthest from the baseline
    assert all(math.isfinite(log) for log in [*duel.state()["accept"], *duel.state()["reject"]])


def test_models_that_never_differ_are_not_worth_a_change() -> None:
    duel = Duel()
    assert 1000 <= play(duel, [("both", 1.0)] * 3000) < 1500
    assert duel.verdict == "reject"
    assert "does not gain 0.5 points" in duel.ruling.reason
    late = Duel(n_min=5000)
    assert play(late, [("both", 1.0)] * 5000) == 5000
    assert min(late.evidence["accept_wealth"] or 0, late.evidence["reject_wealth"] or 0) > 20  # neither a loss nor worth it
    assert late.verdict == "reject"


def test_nothing_is_decided_before_n_min_and_something_is_at_n_max() -> None:
    clear: Rows = [("candidate", 1.0), ("incumbent", 0.0)] * 400
    duel = Duel(n_min=800, n_max=900)
    assert play(duel, clear[:799]) == 0
    assert "too early" in duel.ruling.reason
    assert play(duel, clear[:1]) == 1
    assert duel.verdict == "accept"
    close = Duel(n_min=100, n_max=200)
    assert play(close, traffic(np.random.default_rng(0), 300, 0.0)) == 200
    assert close.verdict == "expired"
    assert "without a decision" in close.ruling.reason


def test_a_decided_duel_stays_decided_and_draws_no_more() -> None:
    for side, other, verdict in (("candidate", "incumbent", "accept"), ("incumbent", "candidate", "reject")):
        duel = Duel(n_min=50)
        play(duel, [(side, 1.0), (other, 0.0)] * 100)
        assert duel.verdict == verdict
        before = duel.state()
        for _ in range(500):
            assert duel.record(side, 0.0) == 0  # type: ignore[arg-type]
            assert duel.record(other, 1.0) == 0  # type: ignore[arg-type]
        assert duel.state() == before
        assert duel.choose(random.Random(0)) == ("candidate" if verdict == "accept" else "incumbent", 1.0)


@pytest.mark.parametrize("rng", [random.Random(4), np.random.default_rng(4)], ids=["random", "numpy"])
def test_sides_are_drawn_with_the_propensity_that_is_returned(rng: Any) -> None:
    duel = Duel(q=0.2)
    drawn = [duel.choose(rng) for _ in range(20_000)]
    assert set(drawn) == {("candidate", 0.2), ("incumbent", 0.8)}
    assert np.mean([side == "candidate" for side, _ in drawn]) == pytest.approx(0.2, abs=4 * (0.16 / 20_000) ** 0.5)


def test_tolerances_shrink_with_rewards_below_a_fifth() -> None:
    assert (Duel(level=0.9).tolerance, Duel(level=0.2).margin) == (0.002, 0.005)
    assert Duel(level=0.05).tolerance == pytest.approx(0.0005)
    assert Duel(level=0.05).margin == pytest.approx(0.00125)
    lower, upper = Duel(level=0.05, n_min=100), Duel(n_min=100)
    rows: Rows = [("both", 0.0)] * 3000  # the narrower hypothesis needs more decisions
    assert play(upper, rows) < play(lower, rows) or lower.verdict == "undecided"


def test_a_veto_only_holds_back() -> None:
    rows = traffic(np.random.default_rng(1), 3000, 0.1)
    free, held = Duel(), Duel(veto=lambda: True)
    first = play(free, rows)
    assert free.verdict == "accept"
    assert play(held, rows) == 0
    assert held.evidence["n"] == len(rows) > first
    lifted = Duel(veto=lambda: bool(lifted.evidence["n"] < 2000))
    assert play(lifted, rows) == 2000
    bad = Duel(veto=lambda: True)
    play(bad, traffic(np.random.default_rng(1), 3000, -0.1))
    assert bad.verdict == "reject"


@given(rows=ROWS, cut=st.integers(0, 120), q=st.sampled_from([0.2, 0.5]))
def test_a_duel_survives_a_restart(rows: Rows, cut: int, q: float) -> None:
    whole = Duel(q=q, n_min=30, n_max=60, level=0.1)
    play(whole, rows)
    half = Duel(q=q, n_min=30, n_max=60, level=0.1)
    decided = play(half, rows[:cut])
    again = Duel.restore(json.loads(json.dumps(half.state(), allow_nan=False)))
    if not decided:
        play(again, rows[cut:])
    assert again.state() == whole.state()
    assert again.ruling == whole.ruling


BAD_STATES: list[tuple[str, Any]] = [
    ("q", 1.5),
    ("n", -1),
    ("n", 1.5),
    ("differing", 99),
    ("played", 4),
    ("reward", math.nan),
    ("reward", 7.0),
    ("accept", [0.0]),
    ("reject", [math.inf] * 10),
    ("accept", None),
    ("verdict", "maybe"),
    ("n_min", None),
    ("tolerance", "wide"),
]


@pytest.mark.parametrize(("name", "value"), BAD_STATES, ids=str)
def test_a_state_that_no_duel_wrote_is_refused(name: str, value: Any) -> None:
    duel = Duel()
    for played in ("candidate", "incumbent", "both"):
        duel.record(played, 1.0)  # type: ignore[arg-type]
    state = duel.state()
    assert Duel.restore(state).state() == state
    with pytest.raises(SonaValueError):
        Duel.restore(state | {name: value})
    del state[name]
    with pytest.raises(SonaValueError, match="state of a duel"):
        Duel.restore(state)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -0.1, 1.1, "1", None])
@pytest.mark.parametrize("judge", [Duel(), Gate()], ids=["duel", "gate"])
def test_a_bad_reward_changes_nothing(judge: Any, reward: Any) -> None:
    before = judge.state()
    for played in ("both", "candidate"):
        with pytest.raises((SonaValueError, SonaTypeError), match="reward: expected a number"):
            judge.record(played, reward)
    with pytest.raises(SonaValueError, match="played: expected"):
        judge.record("neither", 1.0)
    assert judge.state() == before


@pytest.mark.parametrize(
    "bad",
    [
        {"q": 0},
        {"q": 1},
        {"tolerance": 0},
        {"margin": -1},
        {"alpha": 0},
        {"n_min": 0},
        {"n_min": 10, "n_max": 9},
        {"level": 0},
        {"level": 2},
    ],
    ids=str,
)
def test_settings_of_a_duel_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError, match=f"{list(bad)[-1]}: expected"):
        Duel(**bad)


# ---- error rates, on the code itself (asv_benchmarks/gate_table.py has more trials and settings) ----


def share(verdict: str, trials: int, rows: Callable[[np.random.Generator], Rows], **settings: Any) -> float:
    found = 0
    for seed in range(trials):
        duel = Duel(**settings)
        play(duel, rows(np.random.default_rng(seed)))
        found += duel.verdict == verdict
    return found / trials


def test_a_loss_of_the_tolerance_is_rarely_accepted() -> None:
    assert share("accept", 24, lambda rng: traffic(rng, 5000, -0.002)) <= 0.05 + 2 * (0.05 * 0.95 / 24) ** 0.5


def test_a_gain_is_found_and_a_loss_is_found() -> None:
    assert share("accept", 20, lambda rng: traffic(rng, 6000, 0.03)) >= 0.9
    assert share("reject", 20, lambda rng: traffic(rng, 6000, -0.03)) >= 0.9


def test_a_burst_of_inverted_rewards_decides_nothing() -> None:
    def burst(rng: np.random.Generator) -> Rows:
        return [(p, 1 - r if n < 500 else r) for n, (p, r) in enumerate(traffic(rng, 4000, -0.05))]

    assert share("accept", 20, burst) == 0
    assert share("accept", 20, burst, n_min=1) > 0.2  # what the minimum is for


@pytest.mark.slow
def test_type_one_error_at_any_stopping_time() -> None:
    for level, differ in ((0.5, 0.2), (0.9, 0.1)):
        accepted = share("accept", 300, lambda rng, a=level, d=differ: traffic(rng, 32_000, -0.002, level=a, differ=d))
        assert accepted <= 0.05, (level, differ, accepted)


# ---- logged decisions ----


def log_of(rng: np.random.Generator, n: int, gain: float, *, arms: int = 4, least: float = 0.1) -> dict[str, np.ndarray]:
    """Arms drawn by skewed propensities; the candidate differs from the incumbent on a third of the rows."""
    incumbent = rng.integers(0, arms, n)
    candidate = np.where(rng.random(n) < 1 / 3, (incumbent + 1) % arms, incumbent)
    chances = (1 - arms * least) * rng.dirichlet(np.ones(arms), n) + least
    shown = (rng.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1).clip(0, arms - 1)
    success = 0.5 + 1.5 * gain * ((shown == candidate) * 1.0 - (shown == incumbent))
    return {
        "candidate": candidate,
        "incumbent": incumbent,
        "shown": shown,
        "reward": (rng.random(n) < success).astype(float),
        "propensity": chances[np.arange(n), shown],
    }


def test_a_log_decides_as_its_definition_says(rng: np.random.Generator) -> None:
    log = log_of(rng, 1500, 0.1)
    found = logged_duel(**log, least_propensity=0.1, n_min=1500)  # type: ignore[arg-type]
    up = down = np.ones(10)
    seen: list[float] = []
    for c, i, a, r, p in zip(*log.values(), strict=True):
        b = (0.5 + sum(seen)) / (1 + len(seen))
        z = 0.0 if c == i else (r - b) * (int(a == c) - int(a == i)) / p
        worst = max(b, 1 - b) / 0.1
        up = up * (1 + np.array(BETS) * (z + 0.002) / worst)
        down = down * (1 + np.array(BETS) * (0.005 - z) / worst)
        if c != i:
            seen.append(r)
    assert found.evidence["accept_wealth"] == pytest.approx(up.mean(), rel=1e-9)
    assert found.evidence["reject_wealth"] == pytest.approx(down.mean(), rel=1e-9)
    assert found.verdict == ("reject" if down.mean() >= 20 else "accept" if up.mean() >= 20 else "undecided")


def test_a_log_with_draws_tells_good_from_bad() -> None:
    for gain, verdict in ((0.15, "accept"), (-0.15, "reject")):
        found = [logged_duel(**log_of(np.random.default_rng(s), 8000, gain), least_propensity=0.1).verdict for s in range(10)]  # type: ignore[arg-type]
        assert found.count(verdict) >= 9
    assert [logged_duel(**log_of(np.random.default_rng(s), 4000, -0.002), least_propensity=0.1).verdict for s in range(30)].count(  # type: ignore[arg-type]
        "accept"
    ) <= 4


def changed(log: dict[str, Any], name: str, value: Any, where: Any = slice(None)) -> dict[str, Any]:
    column = np.array(log[name])
    column[where] = value
    return log | {name: column}


@pytest.mark.parametrize(("propensity", "message"), [(1.0, "have propensity 1"), (np.nan, "no propensity"), (0.0, "no propensity")])
def test_a_log_without_draws_cannot_decide(rng: np.random.Generator, propensity: float, message: str) -> None:
    log = log_of(rng, 6000, 0.2)
    for where in (slice(None), slice(0, 6000, 20)):
        found = logged_duel(**changed(log, "propensity", propensity, where), least_propensity=0.1)  # type: ignore[arg-type]
        assert found.verdict == "undecided"
        assert "cannot tell" in found.reason
        assert message in found.reason
    agreed = log["candidate"] == log["incumbent"]
    assert logged_duel(**changed(log, "propensity", propensity, agreed), least_propensity=0.1).verdict == "accept"  # type: ignore[arg-type]


def test_a_few_rows_without_a_draw_count_at_their_worst(rng: np.random.Generator) -> None:
    log = log_of(rng, 3000, 0.1)
    differ = np.flatnonzero(log["candidate"] != log["incumbent"])[:9]
    few = logged_duel(**changed(log, "propensity", np.nan, differ), least_propensity=0.1, n_min=3000)  # type: ignore[arg-type]
    all_known = logged_duel(**log, least_propensity=0.1, n_min=3000)  # type: ignore[arg-type]
    assert (few.evidence["blind"], few.evidence["n"]) == (9, 3000)
    assert few.evidence["differing"] == all_known.evidence["differing"] - 9
    assert few.evidence["accept_wealth"] < all_known.evidence["accept_wealth"]
    bets = Bets(0.002, 0.005)
    bets.blind((10.0, 10.0))
    assert bets.accept.logs == pytest.approx([math.log(1 - f * 0.998 / 5) for f in BETS])
    assert bets.reject.logs == pytest.approx([math.log(1 - f * 0.995 / 5) for f in BETS])


def test_a_log_that_never_showed_the_candidates_arm_cannot_decide(rng: np.random.Generator) -> None:
    log = log_of(rng, 6000, 0.2)
    never = changed(log, "shown", 9, log["shown"] == log["candidate"])
    found = logged_duel(**never, least_propensity=0.1)  # type: ignore[arg-type]
    assert found.verdict == "undecided"
    assert "candidate's arm average 0" in found.reason
    same = logged_duel(**(log | {"candidate": log["incumbent"]}), least_propensity=0.1)  # type: ignore[arg-type]
    assert same.verdict == "undecided"
    assert "never differ" in same.reason
    short = logged_duel(**{k: v[:500] for k, v in log.items()}, least_propensity=0.1)  # type: ignore[arg-type]
    assert short.verdict == "undecided"
    assert "too early" in short.reason


def test_an_unusable_log_is_refused(rng: np.random.Generator) -> None:
    log: dict[str, Any] = log_of(rng, 200, 0.2)
    for bad, message in [
        (log | {"shown": log["shown"][:-1]}, "shown: expected 200 arms"),
        (log | {"propensity": log["propensity"][:-1]}, r"expected shape"),
        (changed(log, "reward", 2.0), r"reward: expected numbers in \[0, 1\], got 2"),
        (changed(log, "propensity", 1.5), r"propensity: expected numbers in \[0, 1\]"),
        (changed(log, "propensity", 0.01), "least_propensity=0.1, got 0.01"),
        (log | {"least_propensity": 0.9}, "least_propensity: expected"),
    ]:
        with pytest.raises(SonaValueError, match=message):
            logged_duel(**({"least_propensity": 0.1} | bad))


# ---- the screen ----


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def predictions(rng: np.random.Generator, n: int, *, noise: float, success: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(probability that the shown arm is right, as a model with noisy logits says it, reward)."""
    logit = rng.normal(1, 1.5, n)
    right = rng.random(n) < sigmoid(logit)
    reward = rng.random(n) < np.where(right, *success)
    return sigmoid(logit + noise * rng.normal(size=n)), reward.astype(float)


@pytest.mark.parametrize("graded", [False, True])
def test_calibration_is_the_penalised_maximum_of_the_likelihood(graded: bool) -> None:
    from scipy.optimize import minimize

    for seed in range(5):
        rng = np.random.default_rng(seed)
        p, r = predictions(rng, 300, noise=0.5, success=(0.6, 0.2))
        r = 0.5 * r + 0.3 * rng.random(300) if graded else r

        def loss(at: np.ndarray, x: np.ndarray, r: np.ndarray = r) -> float:
            logit = at[0] + at[1] * x
            return float(np.sum(np.logaddexp(0, logit) - r * logit) + PRIOR / 2 * (at[0] ** 2 + (at[1] - 1) ** 2))

        best = minimize(loss, np.array([0.0, 1.0]), args=(np.log(p / (1 - p)),), tol=1e-10)
        assert calibrate(p, r) == pytest.approx(best.x, abs=1e-4)


def test_calibration_never_turns_a_model_round() -> None:
    rng = np.random.default_rng(0)
    p, r = predictions(rng, 400, noise=0, success=(1.0, 0.0))
    intercept, slope = calibrate(1 - p, r)
    assert slope == 0
    assert intercept == pytest.approx(math.log(r.mean() / (1 - r.mean())), abs=0.02)
    assert screen(1 - p, np.full(400, 0.5), r).verdict == "undecided"  # no worse than knowing nothing
    assert screen(1 - p, p, r).verdict == "reject"


@pytest.mark.parametrize(
    ("p", "r"),
    [
        (np.full(200, 0.3), np.tile([0.0, 1.0], 100)),
        (np.tile([0.0, 1.0], 100), np.tile([0.0, 1.0], 100)),
        (np.tile([1.0, 0.0], 100), np.tile([0.0, 1.0], 100)),
        (np.zeros(200), np.ones(200)),
        (np.ones(200), np.zeros(200)),
    ],
    ids=["constant", "perfect", "wrong", "surprised up", "surprised down"],
)
def test_calibration_is_finite_where_rewards_separate(p: np.ndarray, r: np.ndarray) -> None:
    assert all(math.isfinite(value) for value in calibrate(p, r))
    found = screen(p, p, r)
    assert (found.verdict, found.evidence["z"]) == ("undecided", 0.0)


def test_the_screen_is_the_paired_cross_fitted_likelihood(rng: np.random.Generator) -> None:
    ours, r = predictions(rng, 250, noise=2.0, success=(0.8, 0.2))
    theirs = sigmoid(np.log(ours / (1 - ours)) + rng.normal(size=250))
    total = np.zeros(250)
    for p, sign in ((ours, 1), (theirs, -1)):
        for row in range(250):
            others = [k for k in range(250) if k % 5 != row % 5]
            a, s = calibrate(p[others], r[others])
            q = 1 / (1 + math.exp(-(a + s * math.log(p[row] / (1 - p[row])))))
            total[row] += sign * (r[row] * math.log(q) + (1 - r[row]) * math.log(1 - q))
    found = screen(ours, theirs, r)
    assert found.evidence["gain"] == pytest.approx(total.mean(), abs=1e-9)
    assert found.evidence["z"] == pytest.approx(total.mean() / (total.std(ddof=1) / 250**0.5), rel=1e-6)
    assert screen(theirs, ours, r).evidence["z"] == pytest.approx(-found.evidence["z"])


@pytest.mark.parametrize("success", [(1.0, 0.0), (0.5, 0.2)])
def test_the_screen_rejects_worse_predictions_only(success: tuple[float, float]) -> None:
    worse = better = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        good, r = predictions(rng, 2000, noise=0.2, success=success)
        noisy = sigmoid(3 * rng.normal(size=2000))
        worse += screen(noisy, good, r).verdict == "reject"
        better += screen(good, noisy, r).verdict == "reject"
    assert worse == 20
    assert better == 0


def test_few_rows_are_not_screened(rng: np.random.Generator) -> None:
    p, r = predictions(rng, 99, noise=0, success=(1.0, 0.0))
    found = screen(1 - p, p, r)
    assert found.verdict == "undecided"
    assert "99, 100 needed" in found.reason
    assert screen(1 - p, p, r, min_rows=99).verdict == "reject"


def test_unusable_rows_are_refused() -> None:
    p = np.full(200, 0.5)
    for bad, message in [
        ((p[:-1], p, p), r"incumbent: expected shape \(199,\)"),
        ((p, p + 1, p), r"incumbent: expected numbers in \[0, 1\], got 1.5 in row 0"),
        ((p, p, np.where(np.arange(200) == 7, np.nan, p)), "reward: expected numbers .* got nan in row 7"),
        ((p[:, None], p, p), r"candidate: expected shape \(n,\)"),
    ]:
        with pytest.raises(SonaValueError, match=message):
            screen(*bad)
    with pytest.raises(SonaTypeError, match="reward: expected numbers"):
        screen(p, p, ["a"] * 200)


# ---- sources ----


@given(st.lists(st.floats(-2, 2), min_size=10, max_size=45))
def test_the_trimmed_bound_is_yuens(values: list[float]) -> None:
    from scipy import stats

    mean, bound = trimmed_bound(values)
    m, cut = len(values), len(values) // 10
    assert mean == pytest.approx(stats.trim_mean(values, 0.1), abs=1e-12)
    ordered = sorted(values)
    low, high = ordered[cut], ordered[m - cut - 1]
    winsorised = np.array([min(max(v, low), high) for v in values])
    error = winsorised.std(ddof=1) * (m - 1) ** 0.5 / ((m - 2 * cut) * (m - 2 * cut - 1)) ** 0.5
    assert bound == pytest.approx(mean - stats.t.ppf(0.95, m - 2 * cut - 1) * error, abs=1e-9)


def test_two_of_twenty_are_dropped_at_either_end() -> None:
    usual = [0.01] * 16
    for wild in ([5.0, 5.0, -5.0, -5.0], [5.0, 5.0, 0.01, 0.01]):
        assert trimmed_bound(usual + wild) == pytest.approx((0.01, 0.01))
    assert trimmed_bound([*usual, 5.0, 5.0, 5.0, 0.01])[0] > 0.1


def heard(veto: SourceVeto, opinions: dict[str, float], rows: int = 20) -> SourceVeto:
    for source, z in opinions.items():
        for _ in range(rows):
            veto.record(source, z)
    return veto


def test_a_minority_of_sources_does_not_carry_an_acceptance() -> None:
    against = {f"s{k}": -0.01 for k in range(19)} | {"loud": 2.0}
    assert heard(SourceVeto(), against).vetoes()
    assert not heard(SourceVeto(), {f"s{k}": 0.01 for k in range(20)} | {"loud": -2.0}).vetoes()
    assert not heard(SourceVeto(), {f"s{k}": -1.0 for k in range(9)}).vetoes()  # too few sources for an opinion
    assert not heard(SourceVeto(), {f"s{k}": -1.0 for k in range(30)}, rows=19).vetoes()  # too few rows each
    assert heard(SourceVeto(min_rows=19), {f"s{k}": -1.0 for k in range(30)}, rows=19).vetoes()


def test_the_bound_is_held_against_the_tolerance_at_a_fifth_of_the_level(rng: np.random.Generator) -> None:
    assert not heard(SourceVeto(), {f"s{k}": -0.001 for k in range(20)}).vetoes()
    assert heard(SourceVeto(tolerance=0.0009), {f"s{k}": -0.001 for k in range(20)}).vetoes()
    means = dict(zip((f"s{k}" for k in range(20)), rng.normal(size=20).tolist(), strict=True))
    found = heard(SourceVeto(), means).evidence
    assert (found["mean"], found["bound"]) == pytest.approx(trimmed_bound(list(means.values()), 0.01))


def test_a_veto_is_reconsidered_with_a_quarter_more_rows() -> None:
    veto = heard(SourceVeto(), {f"s{k}": -0.1 for k in range(20)})  # 400 rows
    assert veto.vetoes()
    heard(veto, {f"s{k}": 5.0 for k in range(20)}, rows=4)  # 480: all of them have changed their minds
    assert veto.vetoes()
    heard(veto, {f"s{k}": 5.0 for k in range(20)}, rows=1)  # 500
    assert not veto.vetoes()


def test_a_source_veto_survives_a_restart_and_refuses_what_it_did_not_write() -> None:
    veto = heard(SourceVeto(tolerance=0.001), {f"s{k}": -0.1 for k in range(20)})
    veto.vetoes()
    state = json.loads(json.dumps(veto.state(), allow_nan=False))
    again = SourceVeto.restore(state)
    assert again.state() == veto.state()
    assert again.vetoes()
    assert again.evidence == veto.evidence
    for name, value in [("sources", {"a": [0, 1.0]}), ("sources", {"a": 1}), ("sources", []), ("look_at", -1), ("min_sources", 2)]:
        with pytest.raises(SonaValueError):
            SourceVeto.restore(state | {name: value})
    for bad in (("a", math.nan), ("a", math.inf)):
        with pytest.raises(SonaValueError, match="z: expected"):
            veto.record(*bad)
    with pytest.raises(SonaTypeError, match="source: expected a str"):
        veto.record(7, 0.0)  # type: ignore[arg-type]
    assert veto.state() == state


def test_the_memory_of_sources_is_bounded() -> None:
    veto = SourceVeto(min_rows=1)
    for k in range(MAX_SOURCES + 10):
        veto.record(f"s{k}", 0.0)
    assert veto.evidence["sources"] == len(veto.state()["sources"]) == MAX_SOURCES
    veto.record("s0", 1.0)
    assert veto.state()["sources"]["s0"] == [2, 1.0]


# ---- tasks ----


def test_a_task_that_falls_by_more_than_its_tolerance_is_a_rejection() -> None:
    incumbent = np.tile([1.0, 1.0, 1.0, 0.0], 50)
    candidate = incumbent.copy()
    candidate[:20] = 0.0  # 15 right answers of 200 gone
    assert remembered("digits", candidate, incumbent, 0.08).verdict == "undecided"
    found = remembered("digits", candidate, incumbent, 0.07)
    assert found.verdict == "reject"
    assert found.evidence["loss"] == pytest.approx(0.075)
    assert found.evidence["standard_error"] == pytest.approx(np.std(incumbent - candidate, ddof=1) / 200**0.5)
    assert "'digits'" in found.reason
    assert remembered("digits", incumbent, candidate, 0.01).verdict == "undecided"
    assert remembered("one", [1.0], [1.0]).evidence["standard_error"] is None
    with pytest.raises(SonaValueError, match="at least one row"):
        remembered("none", [], [])
    with pytest.raises(SonaValueError, match="expected shape"):
        remembered("uneven", [1.0], [1.0, 0.0])


# ---- the gate ----


def test_the_gate_alone_is_the_duel(rng: np.random.Generator) -> None:
    for gain in (0.05, -0.05):
        rows = traffic(rng, 4000, gain)
        gate, duel = Gate(), Duel()
        assert play(gate, rows) == play(duel, rows) > 0
        assert gate.verdict == duel.verdict
        assert gate.ruling.reason == duel.ruling.reason
        assert gate.ruling.evidence["duel"] == duel.evidence
        before = gate.state()
        assert gate.record("candidate", 0.5, "late") == 0
        assert gate.state() == before


def test_screen_and_tasks_reject_and_nothing_moves_after() -> None:
    p, r = predictions(np.random.default_rng(0), 500, noise=0, success=(1.0, 0.0))
    for name, refuse in {
        "screen": lambda gate: gate.screen(1 - p, p, r),
        "task old": lambda gate: gate.remembered("old", np.zeros(100), np.ones(100)),
    }.items():
        gate = Gate()
        assert gate.screen(p, p, r).verdict == "undecided"
        assert gate.remembered("kept", np.ones(100), np.ones(100)).verdict == "undecided"
        assert gate.verdict == "undecided"
        refused = refuse(gate)
        assert refused.verdict == gate.verdict == gate.ruling.verdict == "reject"
        assert gate.ruling.reason == refused.reason
        assert set(gate.ruling.evidence) == {"screen", "task kept", name, "duel"}
        before = gate.state()
        assert gate.choose(random.Random(0)) == ("incumbent", 1.0)
        assert gate.record("candidate", 1.0, "a") == 0
        gate.remembered("late", np.ones(10), np.ones(10))
        assert gate.state() == before
    strict = Gate(GateConfig(task_tolerance=0.2))
    assert strict.remembered("loose", np.zeros(10), np.full(10, 0.15)).verdict == "undecided"
    assert strict.remembered("strict", np.zeros(10), np.full(10, 0.15), tolerance=0.1).verdict == "reject"


def test_a_gate_that_rejects_is_not_moved_by_bad_input() -> None:
    gate = Gate()
    before = gate.state()
    for call in (
        lambda: gate.screen([0.5] * 200, [2.0] * 200, [1.0] * 200),
        lambda: gate.remembered("t", [], []),
        lambda: gate.record("candidate", 1.0, 7),  # type: ignore[arg-type]
    ):
        with pytest.raises(SonaError):
            call()
    assert gate.state() == before


def sourced(rng: np.random.Generator, n: int, gain: float, hostile: float) -> list[tuple[str, float, str]]:
    """20 sources, the first with a share `hostile` of the traffic: it rewards the candidate always and the incumbent never."""
    shares = np.array([hostile] + [(1 - hostile) / 19] * 19)
    who = rng.choice(20, n, p=shares)
    rows = traffic(rng, n, gain)
    return [(p, r if s or p == "both" else float(p == "candidate"), f"s{s}") for (p, r), s in zip(rows, who.tolist(), strict=True)]


@pytest.mark.parametrize("hostile", [0.05, 0.2, 0.4])
def test_one_colluding_source_of_twenty_is_vetoed(hostile: float) -> None:
    accepted = [0, 0]
    for seed in range(8):
        rows = sourced(np.random.default_rng(seed), 6000, -0.02, hostile)
        for k, gate in enumerate((Gate(), Gate(GateConfig(min_sources=21)))):
            for played, reward, source in rows:
                gate.record(played, reward, source)  # type: ignore[arg-type]
            accepted[k] += gate.verdict == "accept"
            assert k or gate.verdict == "reject" or "do not agree" in gate.ruling.reason
    assert accepted[0] == 0
    assert accepted[1] == 8 or hostile < 0.4  # without the veto


def test_honest_sources_let_a_gain_through() -> None:
    for seed in range(5):
        gate, rng = Gate(), np.random.default_rng(seed)
        for played, reward in traffic(rng, 12_000, 0.03):
            gate.record(played, reward, f"s{rng.integers(20)}")  # type: ignore[arg-type]
        assert gate.verdict == "accept"
        assert "they agree" in gate.ruling.reason


@given(rows=ROWS, cut=st.integers(0, 120), refuse=st.booleans())
def test_a_gate_survives_a_restart(rows: Rows, cut: int, refuse: bool) -> None:
    config = GateConfig(n_min=30, n_max=60, min_sources=5, source_rows=2, q=0.3)

    def record(gate: Gate, part: Rows, first: int) -> None:
        for number, (played, reward) in enumerate(part, first):
            gate.record(played, reward, f"s{number % 6}" if number % 7 else None)  # type: ignore[arg-type]

    whole, half = Gate(config, level=0.1), Gate(config, level=0.1)
    for gate in (whole, half):
        gate.remembered("t", np.zeros(10), np.full(10, 0.9 if refuse else 0.0))
    record(whole, rows, 0)
    record(half, rows[:cut], 0)
    again = Gate.restore(json.loads(json.dumps(half.state(), allow_nan=False)))
    record(again, rows[cut:], cut)
    assert again.state() == whole.state()
    assert again.ruling == whole.ruling
    json.dumps(again.ruling.evidence, allow_nan=False)


def test_a_state_that_no_gate_wrote_is_refused() -> None:
    state = Gate().state()
    for name, value in [("config", {"p": 1}), ("config", {"q": 3}), ("duel", {}), ("sources", None), ("offline", [])]:
        with pytest.raises(SonaValueError):
            Gate.restore(state | {name: value})
    for name in state:
        with pytest.raises(SonaValueError, match="state of a gate"):
            Gate.restore({k: v for k, v in state.items() if k != name})


@pytest.mark.parametrize(
    "bad",
    [{"q": 1.0}, {"tolerance": 0.0}, {"screen_z": -1.0}, {"n_min": 10, "n_max": 9}, {"min_sources": 3}, {"screen_rows": 5}, {"alpha": "x"}],
    ids=str,
)
def test_the_configuration_is_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError, match=f"{list(bad)[-1]}: expected"):
        GateConfig(**bad)
