"""From the score directions of a request's tokens to the few rank-one pairs that an engine learns from."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

PAIRS = 2  # the micro tier's rank


@dataclass(frozen=True, slots=True)
class Pair:
    """s u v^T, one term of a gradient: unit vectors u (in,) and v (out,), s > 0."""

    size: float
    u: Doubles
    v: Doubles


def pairs_of(x: Doubles, v: Doubles) -> tuple[list[Pair], float]:
    """
    The best approximation of rank at most 2 of G = sum_t outer(x_t, v_t), x (tokens, in) and v (tokens, out), and |G|_F^2.

    Exact: QR of both sides and an SVD that is as small as there are tokens.
    """
    left, a = np.linalg.qr(x.T)
    right, b = np.linalg.qr(v.T)
    u, s, w = np.linalg.svd(a @ b.T)
    most = [n for n in range(min(PAIRS, len(s))) if s[n] > 1e-6 * s[0] and s[n] > 0]
    return [Pair(float(s[n]), left @ u[:, n], right @ w[n]) for n in most], float(np.sum(s**2))


def shared_step(wanted: float, total: float, curvature: float, p0: float) -> float:
    """
    The length k of a pair whose own instant step moves as far as its share of the step of all layers together.

    One step of an engine moves by p0 k / (1 + h p0 k^2). All layers explain one outcome together: each pair is to move by
    p0 wanted / (1 + h p0 total). The smaller root of the quadratic; the most that one step can move where there is none.
    """
    z = curvature * p0
    target = wanted / (1 + z * total)
    root = 1 - 4 * z * target * target
    return 1 / math.sqrt(z) if root < 0 else 2 * target / (1 + math.sqrt(root))
