"""Which links are most likely missing in a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaValueError
from sona.memory.csr import Longs
from sona.memory.propagate import matrix_of, positions_of, power, scaled, sums

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BLOCK = 1 << 22  # two-step walks counted at a time: some 200 MB
HALF = 0.25  # exponent of the degrees, half of the symmetric normalisation: the sweep is in docs/links.md


def proposals(csr: Any, starts: Any, k: int = 8, *, limit: int | None = None) -> tuple[Longs, Longs, Floats]:
    """
    The links that are most likely missing, by the two-step walks between nodes that are not joined.

    score(u, v) = sum_z A_uz A_zv / d_z, over (d_u d_v)^1/4, d the sums of weights. This is resource allocation (Zhou, Lu and Zhang 2009)
    with weights, half way to the symmetric walk D^-1/2 A D^-1 A D^-1/2: it finds hidden links of most graphs better than either, than
    longer walks and than dreams (docs/links.md).

    Parameters
    ----------
    csr : Csr, or array or scipy sparse matrix (n, n)
        Symmetric weights >= 0; the diagonal is ignored.
    starts : int array (w,)
        Positions from which links are proposed, each once.
    k : int
        Proposals for each start, at most: nodes at a distance of two, the best.
    limit : int, optional
        Proposals in all, at most, the best.

    Returns
    -------
    u, v : int64 arrays (m,)
        Pairs of positions, u < v, each once, best first; equal scores in the order of u, then of v.
    score : float32 array (m,)
        > 0, in units of the square root of a weight.

    Raises
    ------
    SonaValueError, SonaTypeError
        As `propagate`; starts that are no ints in [0, n) or come twice; k or limit below 1.

    Notes
    -----
    Time and memory grow with the two-step walks from the starts, with a degree of at most g less than w g^2; memory is bounded by blocks.
    """
    matrix = matrix_of(csr)
    n = matrix.shape[0]
    start = positions_of(starts, n, "starts")
    if len(np.unique(start)) != len(start):
        raise SonaValueError("starts: expected each position once")
    for name, value in (("k", k), ("limit", limit)):
        if not (value is None and name == "limit") and (type(value) is not int or value < 1):
            raise SonaValueError(f"{name}: expected an int of at least 1, got {value!r}")
    degree = sums(matrix)
    first = scaled(matrix, power(degree, -HALF), np.ones(n))  # A_uz / d_u^1/4
    second = scaled(matrix, power(degree, -1.0), power(degree, -HALF))  # A_zv / (d_z d_v^1/4)
    found = [_best(first[start[block]], second, start[block], k) for block in _blocks(matrix, start)]
    u, v, score = (np.concatenate(part) for part in zip(*found, strict=True)) if found else _nothing()
    pair, at = np.unique(np.minimum(u, v) * n + np.maximum(u, v), return_index=True)
    order = np.lexsort((pair, -score[at]))[:limit]
    return pair[order] // n, pair[order] % n, score[at][order]


def _nothing() -> tuple[Longs, Longs, Floats]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)


def _blocks(matrix: csr_matrix, start: Longs) -> list[slice]:
    """Consecutive starts with about BLOCK two-step walks together, at least one start each."""
    lengths = np.diff(matrix.indptr).astype(np.int64)
    reach = np.concatenate([[0], np.cumsum(lengths[matrix.indices])])
    walks = np.cumsum(reach[matrix.indptr[start + 1]] - reach[matrix.indptr[start]])
    cuts = np.flatnonzero(np.diff(walks // BLOCK)) + 1
    return [slice(a, b) for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(start)], strict=True) if a < b]


def _best(first: csr_matrix, second: csr_matrix, start: Longs, k: int) -> tuple[Longs, Longs, Floats]:
    """The k best of each start, whose rows `first` holds: nodes two steps away that are neither itself nor joined to it."""
    n = second.shape[0]
    walks = first @ second
    row, column = _cells(walks)
    if not len(row):
        return _nothing()
    (near, neighbour), pair = _cells(first), row * n + column
    joined = near * n + neighbour  # ascending
    place = np.searchsorted(joined, pair).clip(max=len(joined) - 1)
    new = (column != start[row]) & (joined[place] != pair) & (walks.data > 0)  # not what float32 rounds to 0
    row, column, score = row[new], column[new], walks.data[new]
    order = np.lexsort((column, -score, row))
    row, column, score = row[order], column[order], score[order]
    top = np.arange(len(row)) - np.searchsorted(row, np.arange(len(start)))[row] < k
    return start[row[top]], column[top], score[top]


def _cells(matrix: csr_matrix) -> tuple[Longs, Longs]:
    """Row and column of each entry, int64."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices.astype(np.int64)
