"""The k most similar rows of each row, block by block: the n x n similarities are never there as a whole."""

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.memory.csr import Longs

_BLOCK = 1024  # rows of a block: its similarities are 4 MB
_MANY = 4  # candidates over k above which a row's k largest are looked for first


class _Best:
    """The k largest similarities so far of each of n rows, and whose they are; at least those above 0."""

    def __init__(self, n: int, k: int) -> None:
        self.k = k
        self.value: Floats = np.zeros((n, k), np.float32)
        self.other: npt.NDArray[np.int32] = np.full((n, k), -1, np.int32)

    def take(self, first: int, similarity: Floats, others: int) -> None:
        """Rows first, first + 1, ... of similarity to columns others, others + 1, ..."""
        count = len(similarity)
        least = self.value[first : first + count, -1][:, None]
        mask = similarity > least
        if np.count_nonzero(mask) > _MANY * self.k * count and similarity.shape[1] > self.k:
            mask &= similarity >= np.partition(similarity, -self.k, axis=1)[:, -self.k :][:, :1]
        row, column = np.divmod(np.flatnonzero(mask), similarity.shape[1])
        self._merge(first, row, others + column, similarity[row, column])

    def take_columns(self, first: int, similarity: Floats, others: int) -> None:
        """The same with the transposed similarities; not transposing them is faster."""
        count = similarity.shape[1]
        mask = similarity > self.value[first : first + count, -1]
        if np.count_nonzero(mask) > _MANY * self.k * count:
            self.take(first, np.ascontiguousarray(similarity.T), others)
            return
        column, row = np.divmod(np.flatnonzero(mask), count)
        self._merge(first, row, others + column, similarity[column, row])

    def _merge(self, first: int, row: Longs, other: Longs, value: Floats) -> None:
        if not len(row):
            return
        touched, row = np.unique(row, return_inverse=True)
        at = first + touched
        row = np.concatenate([np.repeat(np.arange(len(touched)), self.k), row])
        value = np.concatenate([self.value[at].ravel(), value])
        other = np.concatenate([self.other[at].ravel(), other])
        order = np.lexsort((other, -value, row))
        begin = np.searchsorted(row[order], np.arange(len(touched)))
        best = order[begin[:, None] + np.arange(self.k)]
        self.value[at], self.other[at] = value[best], other[best]


def nearest(vectors: Floats, k: int, rows: Longs | None = None) -> tuple[Longs, Longs, Floats]:
    """
    Pairs of each row and the k others of the largest inner product, where it is above 0.

    Parameters
    ----------
    vectors : (n, dim) float32
    k : int
    rows : (m,) int64, optional
        Ascending. All by default, in half the time of n single ones.

    Returns
    -------
    (row, other, similarity)
        Ascending by row, the most similar first.
    """
    n = len(vectors)
    k = min(k, n - 1)
    if rows is not None and len(rows) == n:
        rows = None
    wanted = np.arange(n) if rows is None else rows
    if k < 1 or not len(wanted):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    best = _Best(len(wanted), k)
    for i in range(0, len(wanted), _BLOCK):
        own = vectors[wanted[i : i + _BLOCK]]
        for j in range(i if rows is None else 0, n, _BLOCK):
            similarity = own @ vectors[j : j + _BLOCK].T
            itself = wanted[i : i + _BLOCK] - j
            inside = np.flatnonzero((itself >= 0) & (itself < similarity.shape[1]))
            similarity[inside, itself[inside]] = -1
            best.take(i, similarity, j)
            if rows is None and j > i:
                best.take_columns(j, similarity, i)
    found = best.value > 0
    row = np.repeat(wanted, found.sum(axis=1))
    return row, best.other[found].astype(np.int64), np.minimum(best.value[found], np.float32(1))
