"""Off-policy estimates: what a policy would have earned, from logged decisions. numpy in, plain values out.

The estimates refuse, with the reason, where a number would mislead: absent or zero propensities, fewer than 30 effective rewards, a log
that never drew the arms that the policy wants. With few effective rewards an interval from the sample variance is far too narrow
(measured coverage .83-.93 for a nominal .95), so every interval here is one that small counts do not fool; coverage is at least .93 over
the simulated logs of ``tests/test_metrics.py``, skewed weights and policies that learn while the log is read included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError
from sona.metrics._checks import FloatArray, vector

Method = Literal["replay", "ips", "snips", "dr"]

MIN_EFFECTIVE = 30.0  # fewer, and the variance itself is not estimated
MAX_UNSUPPORTED = 0.01  # a share s of rows without support shifts the value by up to s
WEIGHT_Z = 4.0  # the importance weights of a true log average 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Value of a policy in reward units, with its confidence interval.

    Attributes
    ----------
    value, low, high : float
        Point estimate and interval, inside the declared reward range.
    n_effective : float
        Matched rewards (replay), or the effective number of them (sum w)^2 / sum w^2.
    method : {"replay", "ips", "snips", "dr"}
    confidence : float
        Nominal coverage of [low, high].
    """

    value: float
    low: float
    high: float
    n_effective: float
    method: Method
    confidence: float = 0.95


def replay_estimate(
    match: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    propensity_logged: npt.ArrayLike | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Estimate:
    """Mean reward of the rows whose logged arm is the one that the policy picks (Li et al., WSDM 2011).

    Unbiased only where the log drew its arms uniformly at random from sets of one size: pass ``propensity_logged`` to have that checked;
    without it the caller vouches for it. The interval is Clopper-Pearson with the (possibly fractional) sum of rewards as the count: exact
    for yes/no rewards, wider than needed for graded ones.

    Parameters
    ----------
    match : (n,) bool
    reward : (n,) float
        Reward of the logged arm.

    Raises
    ------
    SonaValueError
        Fewer than 30 matched rewards, unequal propensities, or unusable input.
    """
    low, high = _range(reward_range)
    rewards = _unit_rewards(reward, low, high)
    matched = _match(match, len(rewards))
    if propensity_logged is not None:
        propensity = _propensity(propensity_logged, len(rewards))
        if not np.allclose(propensity, propensity[:1], rtol=1e-3):
            raise SonaValueError(
                "replay needs arms drawn uniformly at random (one propensity for all rows), "
                f"got propensities from {propensity.min():.4g} to {propensity.max():.4g}; use IPS or SNIPS"
            )
        _check_support(matched.astype(np.float64), propensity)
    count = int(matched.sum())
    _check_effective(float(count), "matched rewards")
    if propensity_logged is not None:
        _check_average(matched / propensity)
    total = float(rewards[matched].sum())
    interval = _binomial_interval(total, float(count), confidence)
    return _estimate(total / count, interval, float(count), "replay", low, high, confidence)


def ips(
    reward: npt.ArrayLike,
    propensity_logged: npt.ArrayLike,
    probability_target: npt.ArrayLike,
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Estimate:
    """Inverse propensity score: mean of w r with w = probability_target / propensity_logged.

    Unbiased where every arm that the policy picks could be drawn. The interval is that of Fay & Feuer (Statistics in Medicine, 1997) for
    weighted sums of counts: gamma quantiles, with the largest weight that the log allows added to the upper end.

    Parameters
    ----------
    reward : (n,) float
    propensity_logged : (n,) float in (0, 1]
        Probability with which the log drew the arm that it shows.
    probability_target : (n,) float in [0, 1]
        Probability with which the policy picks that same arm; 1 or 0 for a greedy one.

    Raises
    ------
    SonaValueError
        Zero, missing or inconsistent propensities, fewer than 30 effective rewards, or unusable input.
    """
    low, high = _range(reward_range)
    rewards, weights, largest = _weights(reward, propensity_logged, probability_target, low, high)
    effective = _check_effective(_kish(weights), "effective rewards")
    _check_average(weights)
    value = float(np.mean(weights * rewards))
    interval = _weighted_sum_interval(weights * rewards, largest, confidence)
    return _estimate(value, interval, effective, "ips", low, high, confidence)


def snips(
    reward: npt.ArrayLike,
    propensity_logged: npt.ArrayLike,
    probability_target: npt.ArrayLike,
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Estimate:
    """Self-normalised IPS, sum w r / sum w (Swaminathan & Joachims, 2015): slightly biased, far less noisy than IPS at high rewards.

    The interval is that of Korn & Graubard (Survey Methodology, 1998) for weighted proportions: Clopper-Pearson on the number of equally
    weighted rewards that would be as informative. Parameters and errors as for :func:`ips`.
    """
    low, high = _range(reward_range)
    rewards, weights, _ = _weights(reward, propensity_logged, probability_target, low, high)
    effective = _check_effective(_kish(weights), "effective rewards")
    _check_average(weights)
    total = float(weights.sum())
    value = float(weights @ rewards) / total
    variance = float(np.sum((weights * (rewards - value)) ** 2)) / total**2
    informative = min(effective, value * (1 - value) / variance) if variance > 0 else effective
    informative *= _t_shrinkage(effective, confidence)
    interval = _binomial_interval(value * informative, informative, confidence)
    return _estimate(value, interval, effective, "snips", low, high, confidence)


def doubly_robust(
    reward: npt.ArrayLike,
    propensity_logged: npt.ArrayLike,
    probability_target: npt.ArrayLike,
    predicted_logged: npt.ArrayLike,
    predicted_target: npt.ArrayLike,
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Estimate:
    """Mean of m + w (r - p): a model's promise, corrected by IPS on what it got wrong (Dudik, Langford & Li, ICML 2011).

    Unbiased for the same logs as IPS whatever the model, as long as no prediction has seen its own row's reward; the better the model,
    the narrower the interval. That is Student's t with as many degrees of freedom as there are effective rewards, and at either end, as in
    Fay & Feuer's, one more row with the largest weight and residual that the log allows.

    Parameters
    ----------
    reward, propensity_logged, probability_target :
        As for :func:`ips`.
    predicted_logged : (n,) float
        p, the reward that the model predicts for the arm that the log shows; in the reward range.
    predicted_target : (n,) float
        m = sum_a probability_target(a) predicted(a), the model's prediction for the policy: for a greedy one that of the arm it picks.

    Raises
    ------
    SonaValueError
        As for :func:`ips`; also predictions that are absent or outside the reward range.
    """
    low, high = _range(reward_range)
    rewards, weights, largest = _weights(reward, propensity_logged, probability_target, low, high)
    predicted = _predictions("predicted_logged", predicted_logged, len(rewards), low, high)
    promised = _predictions("predicted_target", predicted_target, len(rewards), low, high)
    effective = _check_effective(_kish(weights), "effective rewards")
    _check_average(weights)
    n, terms = len(rewards), promised + weights * (rewards - predicted)
    value, variance = float(terms.mean()), float(terms.var(ddof=1)) / len(terms)
    over, under = largest * float((1 - predicted).max()) / n, largest * float(predicted.max()) / n
    quantile = _t_quantile(effective, confidence)
    interval = value - under - quantile * (variance + under**2) ** 0.5, value + over + quantile * (variance + over**2) ** 0.5
    return _estimate(value, interval, effective, "dr", low, high, confidence)


def _predictions(name: str, values: npt.ArrayLike, n: int, low: float, high: float) -> FloatArray:
    array = vector(name, values)
    if len(array) != n:
        raise SonaValueError(f"expected {n} rewards in {name}, got {len(array)}")
    if array.min() < low or array.max() > high:
        raise SonaValueError(f"expected {name} in [{low:g}, {high:g}], got {array.min():g} to {array.max():g}")
    return (array - low) / (high - low)


def _weights(
    reward: npt.ArrayLike, propensity_logged: npt.ArrayLike, probability_target: npt.ArrayLike, low: float, high: float
) -> tuple[FloatArray, FloatArray, float]:
    """Rewards mapped to [0, 1], importance weights, and the largest weight that any row of the log could have had."""
    rewards = _unit_rewards(reward, low, high)
    propensity = _propensity(propensity_logged, len(rewards))
    target = vector("probability_target", probability_target)
    if len(target) != len(rewards):
        raise SonaValueError(f"expected {len(rewards)} target probabilities, got {len(target)}")
    if target.min() < 0 or target.max() > 1:
        raise SonaValueError(f"expected target probabilities in [0, 1], got {target.min():.4g} to {target.max():.4g}")
    _check_support(target, propensity)
    return rewards, target / propensity, float(target.max() / propensity.min())


def _check_support(target: FloatArray, propensity: FloatArray) -> None:
    certain = (propensity > 1 - 1e-9) & (target < 1e-9)
    if certain.mean() > MAX_UNSUPPORTED:
        raise SonaValueError(
            f"in {int(certain.sum())} of {len(target)} rows the log chose with certainty an arm that the policy would not pick: "
            "nothing is known about the arms that it would pick"
        )


def _check_average(weights: FloatArray) -> None:
    spread = float(weights.std()) / len(weights) ** 0.5
    if abs(float(weights.mean()) - 1) > max(WEIGHT_Z * spread, MAX_UNSUPPORTED):
        raise SonaValueError(
            f"the importance weights average {weights.mean():.3g} where a log that could draw every arm gives 1: "
            "arms that the policy wants were never drawn, or the propensities are not those of the log"
        )


def _kish(weights: FloatArray) -> float:
    square = float(weights @ weights)
    return float(weights.sum()) ** 2 / square if square > 0 else 0.0


def _check_effective(effective: float, what: str) -> float:
    if effective < MIN_EFFECTIVE:
        raise SonaValueError(f"expected at least {MIN_EFFECTIVE:.0f} {what}, got {effective:.1f}: an interval would be too narrow")
    return effective


def _t_quantile(effective: float, confidence: float) -> float:
    from scipy import special

    return float(special.stdtrit(effective - 1, 0.5 + confidence / 2))


def _t_shrinkage(effective: float, confidence: float) -> float:
    """Squared ratio of the normal to the Student quantile: what estimating the variance from few rewards costs."""
    from scipy import special

    return float((special.ndtri(0.5 + confidence / 2) / _t_quantile(effective, confidence)) ** 2)


def _binomial_interval(successes: float, trials: float, confidence: float) -> tuple[float, float]:
    from scipy import special

    tail = (1 - confidence) / 2
    failures = max(trials - successes, 0.0)
    low = float(special.betaincinv(successes, failures + 1, tail)) if successes > 0 else 0.0
    high = float(special.betaincinv(successes + 1, failures, 1 - tail)) if failures > 0 else 1.0
    return low, high


def _weighted_sum_interval(terms: FloatArray, largest: float, confidence: float) -> tuple[float, float]:
    from scipy import special

    tail, n = (1 - confidence) / 2, len(terms)
    mean, variance = float(terms.mean()), float(terms @ terms) / n**2
    low = variance / mean * float(special.gammaincinv(mean**2 / variance, tail)) if mean > 0 else 0.0
    mean, variance = mean + largest / n, variance + (largest / n) ** 2
    high = variance / mean * float(special.gammaincinv(mean**2 / variance, 1 - tail))
    return low, high


def _estimate(
    value: float, interval: tuple[float, float], effective: float, method: Method, low: float, high: float, confidence: float
) -> Estimate:
    clipped = np.clip([value, min(value, interval[0]), max(value, interval[1])], 0.0, 1.0) * (high - low) + low
    return Estimate(float(clipped[0]), float(clipped[1]), float(clipped[2]), effective, method, confidence)


def _range(reward_range: tuple[float, float]) -> tuple[float, float]:
    low, high = float(reward_range[0]), float(reward_range[1])
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SonaValueError(f"expected a finite reward range (low, high) with low < high, got ({low}, {high})")
    return low, high


def _unit_rewards(reward: npt.ArrayLike, low: float, high: float) -> FloatArray:
    rewards = vector("reward", reward)
    if rewards.min() < low or rewards.max() > high:
        raise SonaValueError(f"expected rewards in [{low:g}, {high:g}], got {rewards.min():g} to {rewards.max():g}")
    return (rewards - low) / (high - low)


def _propensity(values: npt.ArrayLike, n: int) -> FloatArray:
    array = np.asarray(values, np.float64)
    if array.shape != (n,):
        raise SonaValueError(f"expected {n} propensities, got shape {array.shape}")
    absent = int(np.isnan(array).sum())
    if absent:
        raise SonaValueError(f"{absent} of {n} rows have no propensity: an estimate without them is biased")
    if not (array.min() > 0 and array.max() <= 1 + 1e-6):
        raise SonaValueError(f"expected propensities in (0, 1], got {array.min():g} to {array.max():g}")
    return np.minimum(array, 1.0)


def _match(values: npt.ArrayLike, n: int) -> npt.NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype != np.bool_:
        raise SonaTypeError(f"expected match as booleans, got {array.dtype}")
    if array.shape != (n,):
        raise SonaValueError(f"expected {n} matches, got shape {array.shape}")
    return array
