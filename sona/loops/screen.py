"""The screen: does a candidate predict fresh rewards plainly worse than the incumbent? It needs no traffic; it never accepts."""

import math

import numpy as np
import numpy.typing as npt

from sona.loops.ruling import FloatArray, Ruling, at_least, between, columns

FOLDS = 5
CLIP = 1e-6  # probabilities are kept this far from 0 and 1
PRIOR = 1.0  # precision of the normal prior of (intercept, slope) around (0, 1): finite where the rewards separate
STEPS = 50
TINY = 1e-9  # a step that changes nothing


def calibrate(probability: npt.ArrayLike, reward: npt.ArrayLike) -> tuple[float, float]:
    """
    The two parameters (intercept, slope) of reward ~ Bernoulli(sigmoid(intercept + slope logit(probability))), slope >= 0.

    Penalised maximum likelihood by Newton's method (Platt scaling). A model whose probabilities point the wrong way gets slope 0: turning
    them round would make a poisoned model look informed.

    Parameters
    ----------
    probability, reward : (n,) float in [0, 1]
    """
    p, r = columns(probability=probability, reward=reward)
    x = _logit(p)
    ones = np.ones(len(x))
    intercept, slope = _newton(np.stack([ones, x], axis=1), r, np.array([0.0, 1.0]))
    if slope < 0:
        (intercept,), slope = _newton(ones[:, None], r, np.zeros(1)), 0.0
    return float(intercept), float(slope)


def screen(
    candidate: npt.ArrayLike,
    incumbent: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    z_reject: float = 1.645,
    min_rows: int = 100,
) -> Ruling:
    """
    Paired, calibrated log-likelihood of the rewards under two models.

    Each model's probabilities are calibrated on four fifths of the rows and scored on the rest, five times; z is the mean of the paired
    differences over its standard error. Likelihood is not value: acceptances by it are wrong the more often the more rows there are, so a
    passed screen is only not a rejection.

    Parameters
    ----------
    candidate, incumbent : (n,) float in [0, 1]
        Probability that each model gives to the arm that was shown.
    reward : (n,) float in [0, 1]
        Of decisions that neither model has trained on. On rows that the incumbent has learned it wins by memory.
    z_reject : float
        Reject when z < -z_reject.
    min_rows : int
        With fewer, undecided.

    Returns
    -------
    Ruling
        "reject" or "undecided". evidence: n, z, gain (mean difference in nats per row), candidate and incumbent (intercept, slope) over
        all rows.

    Raises
    ------
    SonaValueError, SonaTypeError
        Shapes that do not match, or numbers outside [0, 1].
    """
    ours, theirs, r = columns(candidate=candidate, incumbent=incumbent, reward=reward)
    at_least("min_rows", min_rows, 2 * FOLDS)
    between("z_reject", z_reject, 0, math.inf)
    n = len(r)
    if n < min_rows:
        return Ruling("undecided", f"too few rows to screen: {n}, {min_rows} needed", {"n": n})
    difference = _held_out(ours, r) - _held_out(theirs, r)
    gain, spread = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(n)
    z = gain / spread if spread > 0 else 0.0
    evidence = {"n": n, "z": z, "gain": gain, "candidate": list(calibrate(ours, r)), "incumbent": list(calibrate(theirs, r))}
    said = f"calibrated likelihood of {n} fresh rewards, candidate against incumbent: z = {z:+.2f}, {gain:+.4f} nats a row"
    if z < -z_reject:
        return Ruling("reject", f"predicts worse than the incumbent ({said})", evidence)
    return Ruling("undecided", f"passed the screen ({said})", evidence)


def _held_out(probability: FloatArray, reward: FloatArray) -> FloatArray:
    """Log-likelihood of each row (n,) under the calibration of the other folds' rows."""
    fold, x, found = np.arange(len(reward)) % FOLDS, _logit(probability), np.empty(len(reward))
    for k in range(FOLDS):
        held = fold == k
        intercept, slope = calibrate(probability[~held], reward[~held])
        logit = intercept + slope * x[held]
        found[held] = reward[held] * logit - np.logaddexp(0.0, logit)
    return found


def _logit(probability: FloatArray) -> FloatArray:
    p = np.clip(probability, CLIP, 1 - CLIP)
    return np.asarray(np.log(p) - np.log1p(-p), np.float64)


def _newton(design: FloatArray, reward: FloatArray, prior: FloatArray) -> FloatArray:
    """Penalised logistic regression, (k,): Newton's method from the mean of the prior, steps halved until the loss falls."""

    def loss(at: FloatArray) -> float:
        logit = design @ at
        return float(np.sum(np.logaddexp(0.0, logit) - reward * logit) + PRIOR / 2 * np.sum((at - prior) ** 2))

    at = prior
    for _ in range(STEPS):
        p = (1 + np.tanh(design @ at / 2)) / 2
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + PRIOR * np.eye(len(at))
        step = np.linalg.solve(curvature, design.T @ (p - reward) + PRIOR * (at - prior))
        while np.abs(step).max() > TINY and loss(at - step) > loss(at):
            step = step / 2
        if np.abs(step).max() <= TINY:
            break
        at = at - step
    return at
