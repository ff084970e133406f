"""The retrieval prior: what the most similar requests earned, blended with what the policy thinks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce, unit_rows
from sona._kernels import Kernels
from sona.errors import SonaTypeError, SonaValueError
from sona.patterns.clusters import Doubles

_NORM_TOLERANCE = 1e-3


def retrieval_prior(
    x: Any, rows: Floats, arms: npt.NDArray[np.integer[Any]], rewards: Doubles, policy: Any, *, neighbours: int = 10, kappa: float = 1.0
) -> Doubles:
    """
    score_a = (kappa pi_a + sum w_i r_i [a_i = a]) / (kappa + sum w_i [a_i = a]) over the nearest rows i, w_i = max(cos(x, row_i), 0)^2.

    An arm without a neighbour keeps pi_a. On digits this took 22 to 24 % off the adapter's regret over 1500 requests, on TREC questions
    3 %, which is within the noise of five seeds.

    Parameters
    ----------
    x : array (d,) or (m, d)
        Requests, of any norm; to a zero vector nothing is near.
    rows : float32 array (n, d)
        Past requests, of norm 1 or 0. n may be 0.
    arms : int array (n,)
        The arm that each was given; -1 for a row that does not count.
    rewards : float array (n,)
        What that earned, in the same units as `policy`.
    policy : array (K,) or (m, K)
        pi: the probability that the policy gives each arm.
    neighbours : int
        Rows looked at.
    kappa : float
        Weight of the policy: the number of perfectly similar rows that it counts as; above 0.

    Returns
    -------
    float64 array (K,) or (m, K)

    Raises
    ------
    SonaValueError, SonaTypeError
        Shapes that do not fit, NaN or infinity, an arm beyond K, neighbours below 1, kappa not above 0, a neighbour that is no unit vector.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2:
        raise SonaTypeError("rows: expected a float32 array (n, d)")
    single = np.ndim(x) == 1
    queries = unit_rows(np.atleast_2d(coerce(x, (rows.shape[1],) if single else (None, rows.shape[1]), "x")))
    pi = np.atleast_2d(coerce(policy, (None,) if single else (len(queries), None), "policy")).astype(np.float64)
    arms, rewards = np.asarray(arms), np.asarray(rewards, np.float64)
    if arms.shape != rows.shape[:1] or rewards.shape != rows.shape[:1]:
        raise SonaValueError(f"arms, rewards: expected shape ({len(rows)},) like rows, got {arms.shape} and {rewards.shape}")
    if len(rows) and (arms.dtype.kind not in "iu" or not -1 <= arms.min() <= arms.max() < pi.shape[1]):
        raise SonaValueError(f"arms: expected ints in [-1, {pi.shape[1]})")
    if type(neighbours) is not int or neighbours < 1:
        raise SonaValueError(f"neighbours: expected an int of at least 1, got {neighbours!r}")
    if not 0 < kappa < np.inf:
        raise SonaValueError(f"kappa: expected a positive finite number, got {kappa!r}")
    if (arms < 0).any():
        rows, rewards, arms = rows[arms >= 0], rewards[arms >= 0], arms[arms >= 0]
    rows, kernels = np.ascontiguousarray(rows), Kernels()
    near = [kernels.top_k(rows, query, neighbours) for query in queries]
    row = np.concatenate([index for index, _ in near])
    cos = np.concatenate([score for _, score in near])
    norms = np.einsum("ij,ij->i", rows[row], rows[row])
    if not (np.isfinite(rewards[row]).all() and (np.abs(norms * (norms - 1)) <= _NORM_TOLERANCE).all()):
        raise SonaValueError("rows, rewards: expected vectors of norm 1 or 0 and finite rewards")
    weight = np.maximum(cos, 0).astype(np.float64) ** 2
    cell = np.repeat(np.arange(len(near)), [len(index) for index, _ in near]) * pi.shape[1] + arms[row]
    earned = np.bincount(cell, weights=weight * rewards[row], minlength=pi.size).reshape(pi.shape)
    seen = np.bincount(cell, weights=weight, minlength=pi.size).reshape(pi.shape)
    score: Doubles = (kappa * pi + earned) / (kappa + seen)
    return score[0] if single else score
