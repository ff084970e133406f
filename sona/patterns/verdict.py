"""Verdicts: which arm does better or worse than the others on a pattern, said only where the rewards show it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sona.errors import SonaValueError
from sona.patterns.clusters import Doubles
from sona.patterns.pattern import unit_interval
from sona.patterns.statistics import PatternStatistics


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    One arm of one pattern against the pattern's other arms together.

    Attributes
    ----------
    pattern : int
    arm : int
        Its number; its name where `SonaEngine.find_patterns` gives the verdict.
    count : int
        Rewards of the arm.
    mean, rest_mean : float
        Weighted mean reward of the arm and of the others.
    improvement : float
        mean - rest_mean: negative for an arm that does worse.
    statistic, df : float
        Of Welch's t-test, and its degrees of freedom.
    p_value : float
        Two-sided, adjusted by Holm's method for the pattern's arms.
    consistency : float
        1 - 2 s with s the standard deviation of the arm's rewards: 1 where all are equal, 0 (or a little less) where half are 0 and half 1.
    """

    pattern: int
    arm: Any
    count: int
    mean: float
    rest_mean: float
    improvement: float
    statistic: float
    df: float
    p_value: float
    consistency: float


def verdicts(statistics: PatternStatistics, *, level: float = 0.05) -> list[Verdict]:
    """
    The arms that differ from the rest of their pattern's arms, best improvement first within a pattern.

    Welch's t-test (unequal variances) of the arm's rewards against those of the other arms pooled. Where an arm has few rewards that happen
    to be alike, its variance says nothing and Welch's p-value is far too small; therefore the p-value of the permutation test, in its
    normal form (difference over s sqrt(1/n + 1/m), s of all rewards together), counts where it is larger. Holm's method keeps the
    probability of any false verdict on a pattern below `level`; over P patterns expect up to level * P patterns with one.

    What this assumes: rewards of a pattern are independent, and within the pattern the choice of the arm has nothing to do with what else
    drives the reward. Logged choices of a policy that looks at x meet the second only as far as the pattern's members are alike; a verdict
    is then a lead to test with the gate, not proof. The level holds for one look at a given amount of data, not for looking until something
    shows. Weights are those of reliability: the effective number of rewards is (sum w)^2 / sum w^2.

    Parameters
    ----------
    statistics : PatternStatistics
    level : float
        In (0, 1).

    Raises
    ------
    SonaValueError
        level outside (0, 1).
    """
    if not 0 < unit_interval(level, "level") < 1:
        raise SonaValueError(f"level: expected a number in (0, 1), got {level:g}")
    result = []
    for row in np.flatnonzero((statistics.arm_count > 0).sum(axis=1) > 1):
        found = _of_pattern(statistics, int(row), level)
        result += sorted(found, key=lambda v: (-v.improvement, v.arm))
    return result


def _of_pattern(statistics: PatternStatistics, row: int, level: float) -> list[Verdict]:
    from scipy.special import stdtr  # distribution function of Student's t: (df, t)

    arm = np.flatnonzero(statistics.arm_count[row])
    weight, weight2, mean, squares = (
        getattr(statistics, name)[row, arm] for name in ("arm_weight", "arm_weight2", "arm_mean", "arm_squares")
    )
    # all rewards of the pattern, and from them those of the others: sums of squared deviations, around the common mean
    W, W2 = weight.sum(), weight2.sum()
    centre = weight @ mean / W
    off = mean - centre
    total = squares.sum() + weight @ off**2
    others, others2 = W - weight, W2 - weight2
    rest = -weight * off / others  # mean of the others, from the centre
    rest_squares = np.maximum(total - squares - weight * off**2 - others * rest**2, 0)

    with np.errstate(divide="ignore", invalid="ignore"):
        n, m = weight**2 / weight2, others**2 / others2  # effective numbers
        own, other = squares / (weight - weight2 / weight) / n, rest_squares / (others - others2 / others) / m  # variances of the means
        difference = off - rest
        statistic = difference / np.sqrt(own + other)
        df = (own + other) ** 2 / (own**2 / (n - 1) + other**2 / (m - 1))
        welch = 2 * stdtr(df, -np.abs(statistic))
        permuted = difference / np.sqrt(total / (W - W2 / W) * (1 / n + 1 / m))
        permutation = 2 * stdtr(W**2 / W2 - 1, -np.abs(permuted))
    welch = np.where(own + other == 0, 0.0, welch)  # no variance in either: the permutation decides
    p_value = np.maximum(welch, permutation)
    p_value[(n < 1.5) | (m < 1.5) | ~np.isfinite(p_value)] = 1  # one reward has no variance; all rewards equal
    p_value = _holm(p_value) if len(arm) > 2 else p_value  # of two arms, one against the other is one question
    return [
        Verdict(
            pattern=int(statistics.ids[row]),
            arm=int(arm[i]),
            count=int(statistics.arm_count[row, arm[i]]),
            mean=float(mean[i]),
            rest_mean=float(centre + rest[i]),
            improvement=float(difference[i]),
            statistic=float(statistic[i]),
            df=float(df[i]),
            p_value=float(p_value[i]),
            consistency=float(1 - 2 * np.sqrt(max(0.0, own[i] * n[i]))),
        )
        for i in np.flatnonzero(p_value <= level)
    ]


def _holm(p: Doubles) -> Doubles:
    """Adjusted p-values (Holm 1979): the i-th smallest of n times n - i, made monotone, at most 1."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted
