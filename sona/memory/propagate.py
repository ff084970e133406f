"""Message passing over a graph in closed form, and the steps that all message passing takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sona._arrays import Floats, coerce
from sona.errors import SonaTypeError, SonaValueError
from sona.memory.csr import Csr, Doubles, Longs

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MAX_HOPS = 64


def propagate(csr: Any, seed: Any, hops: int = 3, alpha: float = 0.85) -> Floats:
    """
    Message passing in closed form: p = seed, then `hops` times p <- (1 - alpha) seed + alpha D^-1/2 A D^-1/2 p.

    Personalised PageRank in its symmetric form, cut off after some hops (APPNP: Gasteiger, Bojchevski and Guennemann 2019). A node without
    edges keeps its seed.

    Parameters
    ----------
    csr : Csr, or array or scipy sparse matrix (n, n)
        Symmetric weights >= 0; the diagonal is ignored.
    seed : array (n,) or (n, c)
        What is known, in any unit; each column by itself.
    hops : int
        0 to 64. 0 gives the seed back.
    alpha : float
        In [0, 1): the share that comes from the neighbours.

    Returns
    -------
    float32 array like seed

    Raises
    ------
    SonaValueError, SonaTypeError
        A matrix that is not square and symmetric or has a negative weight, another shape, NaN or infinity, hops or alpha out of range.
    """
    step = Step(matrix_of(csr), np.float32)
    s = coerce(seed, (len(step),) if np.ndim(seed) == 1 else (len(step), None), "seed")
    if not (isinstance(alpha, int | float) and 0 <= alpha < 1):
        raise SonaValueError(f"alpha: expected a number in [0, 1), got {alpha!r}")
    p, rate = s, np.float32(alpha)
    for _ in range(check_hops(hops, 0)):
        p = (1 - rate) * s + rate * (step @ p)
    return p.copy() if p is s else p


class Step:
    """p -> D^-1/2 A D^-1/2 p of one graph; a node without edges keeps its value."""

    def __init__(self, matrix: csr_matrix, dtype: Any) -> None:
        degree = sums(matrix)
        root = power(degree, -0.5)
        self.matrix, self.alone = scaled(matrix, root, root).astype(dtype), np.flatnonzero(degree == 0)

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def __matmul__(self, p: Any) -> Any:
        q = self.matrix @ p
        q[self.alone] = p[self.alone]
        return q


def matrix_of(csr: Any) -> csr_matrix:
    """Compact float32 matrix without diagonal, of a `Csr` or of a matrix that `Csr.of` takes."""
    from scipy.sparse import issparse

    if not isinstance(csr, Csr | np.ndarray) and not issparse(csr):
        raise SonaTypeError(f"csr: expected a Csr, an array or a scipy sparse matrix, got {type(csr).__name__}")
    return (csr if isinstance(csr, Csr) else Csr.of(csr)).matrix()


def sums(matrix: csr_matrix) -> Doubles:
    """Sum of the weights of each node, (n,) float64."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def power(degree: Doubles, exponent: float) -> Doubles:
    """degree^exponent, 0 where there is no edge."""
    return np.power(degree, exponent, where=degree > 0, out=np.zeros(len(degree)))


def scaled(matrix: csr_matrix, left: Doubles, right: Doubles) -> csr_matrix:
    """diag(left) matrix diag(right)."""
    from scipy.sparse import csr_matrix

    data = matrix.data * np.repeat(left, np.diff(matrix.indptr)) * right[matrix.indices]
    return csr_matrix((data.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)


def check_hops(hops: Any, least: int) -> int:
    if type(hops) is not int or not least <= hops <= MAX_HOPS:
        raise SonaValueError(f"hops: expected an int from {least} to {MAX_HOPS}, got {hops!r}")
    return hops


def positions_of(value: Any, n: int, name: str) -> Longs:
    array = np.asarray(value)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise SonaTypeError(f"{name}: expected an array of ints (m,), got {array.dtype} {array.shape}")
    if len(array) and not 0 <= array.min() <= array.max() < n:
        raise SonaValueError(f"{name}: expected positions in [0, {n}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)
