"""Verdicts say what Welch's test says, and on rewards that hold nothing they say nothing more often than promised."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from sona.errors import SonaValueError
from sona.patterns import PatternConfig, PatternStatistics, ReasoningBank, Verdict, verdicts
from sona.patterns.window import OUTCOME


def statistics_of(arms: Any, rewards: Any, labels: Any = 0, weights: Any = 1.0) -> PatternStatistics:
    n = len(arms)
    outcome = np.zeros(n, OUTCOME)
    outcome["arm"], outcome["reward"], outcome["weight"], outcome["rewarded"] = arms, rewards, weights, True
    labels = np.broadcast_to(labels, n)
    return PatternStatistics.of(np.arange(int(labels.max(initial=0)) + 1), labels, np.zeros((n, 1), np.float32), outcome)


def of_arm(found: list[Verdict], arm: int) -> Verdict:
    return next(v for v in found if v.arm == arm)


def test_statistic_and_degrees_of_freedom_are_those_of_scipy(rng: np.random.Generator) -> None:
    checked = 0
    for _ in range(50):
        arms = rng.integers(4, size=rng.integers(40, 200))
        rewards = np.clip(rng.normal(0.3 + 0.15 * arms, 0.1 + 0.05 * arms), 0, 1)
        for v in verdicts(statistics_of(arms, rewards), level=0.5):
            own, rest = rewards[arms == v.arm], rewards[arms != v.arm]
            peer = ttest_ind(own, rest, equal_var=False)
            assert (v.statistic, v.df) == (pytest.approx(peer.statistic), pytest.approx(peer.df))
            assert v.p_value >= peer.pvalue * (1 - 1e-9)
            assert v.count == len(own)
            assert (v.mean, v.rest_mean) == (pytest.approx(own.mean()), pytest.approx(rest.mean()))
            assert v.improvement == pytest.approx(own.mean() - rest.mean())
            assert v.consistency == pytest.approx(1 - 2 * own.std(ddof=1))
            checked += 1
    assert checked > 100


def test_holm_over_the_arms_of_a_pattern(rng: np.random.Generator) -> None:
    """The p-values are those of the two tests, the larger of them, in Holm's order."""
    from scipy.stats import t

    arms = np.repeat(np.arange(4), 100)
    rewards = np.clip(rng.normal(0.4 + 0.03 * arms, 0.1), 0, 1)
    found = verdicts(statistics_of(arms, rewards), level=0.999)
    raw = []
    for arm in range(4):
        own, rest = rewards[arms == arm], rewards[arms != arm]
        z = (own.mean() - rest.mean()) / (rewards.std(ddof=1) * np.sqrt(1 / len(own) + 1 / len(rest)))
        raw.append(max(ttest_ind(own, rest, equal_var=False).pvalue, 2 * t.sf(abs(z), len(rewards) - 1)))
    worst = 0.0
    for rank, arm in enumerate(np.argsort(raw)):
        worst = min(1.0, max(worst, raw[arm] * (4 - rank)))
        if worst <= 0.999:
            assert of_arm(found, int(arm)).p_value == pytest.approx(worst)


def test_a_better_arm_is_found_and_ranked_first() -> None:
    rng = np.random.default_rng(1)
    arms = rng.integers(3, size=600)
    found = verdicts(statistics_of(arms, rng.uniform(size=600) < np.array([0.5, 0.9, 0.2])[arms]))
    assert (found[0].arm, found[0].improvement > 0) == (1, True)
    assert (found[-1].arm, found[-1].improvement < 0) == (2, True)
    assert found[0].p_value < 1e-6


def test_patterns_are_judged_apart() -> None:
    """Arm 0 is right on one pattern and wrong on the other: together they would show nothing."""
    rng = np.random.default_rng(2)
    arms, labels = rng.integers(2, size=800), rng.integers(2, size=800)
    rewards = rng.uniform(size=800) < np.where(arms == labels, 0.8, 0.3)
    found = verdicts(statistics_of(arms, rewards, labels))
    assert [(v.pattern, v.arm, v.improvement > 0) for v in found] == [(0, 0, True), (0, 1, False), (1, 1, True), (1, 0, False)]
    assert not verdicts(statistics_of(arms, rewards))


@pytest.mark.parametrize("success", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(("arms", "n"), [(2, 12), (2, 100), (5, 40), (5, 400)])
def test_without_a_difference_few_patterns_have_a_verdict(success: float, arms: int, n: int) -> None:
    """2000 patterns whose arms are equal, chosen very unequally often: at most 5 % have one, and 1.3 % for the chance of the draw."""
    rng = np.random.default_rng([int(100 * success), arms, n])
    patterns = 2000
    labels = np.repeat(np.arange(patterns), n)
    choice = rng.choice(arms, size=len(labels), p=np.arange(1, arms + 1) / np.arange(1, arms + 1).sum())
    found = verdicts(statistics_of(choice, rng.uniform(size=len(labels)) < success, labels))
    assert len({v.pattern for v in found}) / patterns <= 0.05 + 0.013


def test_welch_alone_would_say_too_much() -> None:
    """Why the permutation test is asked too: few rewards that happen to be alike look certain to Welch."""
    arms = np.repeat([0, 1], [4, 100])
    rewards = np.concatenate([[1.0, 1.0, 1.0, 0.999], np.tile([1.0, 1.0, 0.0, 1.0], 25)])
    assert ttest_ind(rewards[:4], rewards[4:], equal_var=False).pvalue < 1e-6
    assert not verdicts(statistics_of(arms, rewards))


def test_rewards_without_any_variance() -> None:
    assert not verdicts(statistics_of(np.repeat([0, 1], 50), np.ones(100)))
    found = verdicts(statistics_of(np.repeat([0, 1], 50), np.repeat([1.0, 0.0], 50)))
    assert [(v.arm, v.improvement, v.consistency) for v in found] == [(0, 1.0, 1.0), (1, -1.0, 1.0)]
    assert all(v.p_value < 1e-6 for v in found)
    assert not verdicts(statistics_of([0, 1], [1.0, 0.0]))  # one reward each shows nothing
    assert not verdicts(statistics_of([0] * 10, np.tile([1.0, 0.0], 5)))  # nor does one arm


def test_weights_count_as_that_much_less_evidence(rng: np.random.Generator) -> None:
    arms, rewards = rng.integers(2, size=60), rng.uniform(size=60)
    rewards[arms == 1] *= 0.6
    once = of_arm(verdicts(statistics_of(arms, rewards), level=0.99), 0)
    scaled = of_arm(verdicts(statistics_of(arms, rewards, weights=0.25), level=0.99), 0)
    assert (scaled.statistic, scaled.df) == (pytest.approx(once.statistic), pytest.approx(once.df))
    capped = np.where(np.arange(60) < 30, 1.0, 0.0)
    half = of_arm(verdicts(statistics_of(arms, rewards, weights=capped), level=0.99), 0)
    peer = ttest_ind(rewards[:30][arms[:30] == 0], rewards[:30][arms[:30] == 1], equal_var=False)
    assert (half.statistic, half.df) == (pytest.approx(peer.statistic), pytest.approx(peer.df))


def test_a_bank_judges_what_it_keeps(rng: np.random.Generator) -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=4, k_clusters=2))
    for i in range(400):
        side, arm = i % 2, int(rng.integers(2))
        reward = float(rng.uniform() < (0.9 if side == arm else 0.3))
        bank.add(np.eye(4)[side] + 0.1 * rng.normal(size=4), 1.0, arm=arm, reward=reward)
    assert bank.verdicts() == []
    bank.extract_patterns()
    of_side = [bank.find_patterns(np.eye(4)[side], 1)[0].id for side in (0, 1)]
    assert {(v.pattern, v.arm) for v in bank.verdicts() if v.improvement > 0} == {(of_side[0], 0), (of_side[1], 1)}


@pytest.mark.parametrize("level", [0, 1, -0.5, float("nan")])
def test_the_level_is_checked(level: float) -> None:
    with pytest.raises(SonaValueError, match="level: expected a"):
        verdicts(statistics_of([0, 1], [1.0, 0.0]), level=level)
