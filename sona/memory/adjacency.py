"""The edges of a graph that changes, as rows of arrays: whoever was given a `Csr` keeps what he saw."""

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.memory._walk import cumulate
from sona.memory.checks import Kinds
from sona.memory.csr import Csr, Ints, Longs, ranges
from sona.memory.kinds import EdgeKind

LEAST_WEIGHT = 1e-4  # what weakens below is gone
_KINDS = len(EdgeKind)
_FIRST = 64  # entries and rows allocated at first


class Adjacency:
    """
    Weighted edges of three kinds between positions 0 to n - 1. An edge of one kind is an entry in the rows of both its ends: 13 bytes each.

    A changed row is written behind all others, or in its place when no `Csr` has it. Rows are sorted by column and kind, so that they
    depend on the edges alone and not on how these came about.

    Parameters
    ----------
    max_degree : int
        Most edges of a node; half of them may be similarities, so that there is room for what is learned. An edge stays where it is among
        the heaviest of both its ends.
    """

    def __init__(self, max_degree: int) -> None:
        self.max_degree = max_degree
        self.n = 0
        self._start, self._stop, self._end = (np.zeros(_FIRST, np.int64) for _ in range(3))  # _end: of the room for the row
        self._column: Ints = np.empty(_FIRST, np.int32)
        self._kind: Kinds = np.empty(_FIRST, np.uint8)
        self._weight: Floats = np.empty(_FIRST, np.float32)
        self._cumulative: Floats = np.empty(_FIRST, np.float32)
        self._used = 0  # entries written so far
        self._seen = 0  # entries that a Csr may have
        self._csr: Csr | None = None

    # ---- looking ----

    def csr(self, version: int) -> Csr:
        """The graph as it is now; the same object until it changes."""
        if self._csr is None:
            start, stop = self._start[: self.n].copy(), self._stop[: self.n].copy()
            used = slice(self._used)
            column, weight, cumulative = self._column[used], self._weight[used], self._cumulative[used]
            for array in (start, stop, column, weight, cumulative):
                array.flags.writeable = False
            self._csr = Csr(start, stop, column, weight, cumulative, version)
            self._seen = self._used
        return self._csr

    def kinds(self) -> Kinds:
        """Kind of each entry of the last `csr`; read-only."""
        kinds = self._kind[: self._seen]
        kinds.flags.writeable = False
        return kinds

    def row(self, i: int) -> tuple[Ints, Kinds, Floats]:
        """Columns, kinds and weights of one row."""
        at = slice(self._start[i], self._stop[i])
        return self._column[at], self._kind[at], self._weight[at]

    def rows(self, rows: Longs) -> tuple[Longs, Ints, Kinds, Floats]:
        """Row, column, kind and weight of the entries of these rows, copied."""
        start, stop = self._start[rows], self._stop[rows]
        at = ranges(start, stop)
        return np.repeat(rows, stop - start), self._column[at], self._kind[at], self._weight[at]

    def edges(self) -> tuple[Longs, Ints, Kinds, Floats]:
        """Row, column, kind and weight of every edge once, row < column, in the order of both."""
        row, column, kind, weight = self.rows(np.arange(self.n))
        once = row < column
        return row[once], column[once], kind[once], weight[once]

    def weights(self, u: Longs, v: Longs, kind: EdgeKind) -> Floats:
        """Weight of the edge of this kind between each u and v, 0 where there is none."""
        row, column, kinds, weight = self.rows(np.unique(u))
        own = kinds == kind
        key, weight = row[own] * self.n + column[own], weight[own]
        wanted = u * self.n + v
        at = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
        result: Floats = np.where(key[at] == wanted, weight[at], np.float32(0)) if len(key) else np.zeros(len(u), np.float32)
        return result

    def degree(self) -> Longs:
        return self._stop[: self.n] - self._start[: self.n]

    @property
    def nbytes(self) -> int:
        arrays = self._start, self._stop, self._end, self._column, self._kind, self._weight, self._cumulative
        return sum(array.nbytes for array in arrays)

    # ---- changing ----

    def grow(self, count: int) -> None:
        """`count` more positions without edges."""
        self._csr = None
        n = self.n + count
        if n > len(self._start):
            room = max(n, 2 * len(self._start))
            self._start, self._stop, self._end = (_resized(array, self.n, room) for array in (self._start, self._stop, self._end))
        for array in (self._start, self._stop, self._end):
            array[self.n : n] = self._used
        self.n = n

    def edit(self, u: Longs, v: Longs, kind: Kinds, weight: Floats) -> None:
        """
        Put edges in, in place of those of the same ends and kind; weight 0 takes them out. Of edges that are given twice the last counts.

        Arrays of one length: positions u != v, kinds, weights in [0, 1]; unchecked.
        """
        if not len(u):
            return
        low: Longs = np.minimum(u, v)
        high: Longs = np.maximum(u, v)
        key: Longs = (low * self.n + high) * _KINDS + kind
        at = _last(key)  # the same one at both ends
        low, high, kind, weight = low[at], high[at], np.tile(kind[at], 2), np.tile(weight[at], 2)
        row, column = np.concatenate([low, high]), np.concatenate([high, low]).astype(np.int32)
        row, column, kind, weight = self._with(row, column, kind, weight)
        dropped = self._too_many(row, kind, weight)
        if dropped.any():  # at both ends
            u, v, gone = row[dropped], column[dropped].astype(np.int64), kind[dropped]
            self._write(row, column, kind, weight)
            nothing = np.zeros(2 * len(u), np.float32)
            row, column, kind, weight = self._with(
                np.concatenate([u, v]), np.concatenate([v, u]).astype(np.int32), np.concatenate([gone, gone]), nothing
            )
        self._write(row, column, kind, weight)

    def _with(self, row: Longs, column: Ints, kind: Kinds, weight: Floats) -> tuple[Longs, Ints, Kinds, Floats]:
        """All entries of the rows named, with these in place of their own; rows that have none left are there with weight 0."""
        touched = np.unique(row)
        own_row, own_column, own_kind, own_weight = self.rows(touched)
        row, column = np.concatenate([own_row, row]), np.concatenate([own_column, column])
        kind, weight = np.concatenate([own_kind, kind]), np.concatenate([own_weight, weight])
        key: Longs = (row * self.n + column) * _KINDS + kind
        order = _last(key)  # new ones stand behind old ones
        return row[order], column[order], kind[order], weight[order]

    def _too_many(self, row: Longs, kind: Kinds, weight: Floats) -> npt.NDArray[np.bool_]:
        """Which entries of these rows are not among the heaviest; of equal ones those of smaller columns stay."""
        dropped = np.zeros(len(row), np.bool_)
        alike = np.flatnonzero((kind == EdgeKind.SIMILARITY) & (weight > 0))
        dropped[alike] = _rank(row[alike], weight[alike]) >= max(1, self.max_degree // 2)
        left = np.flatnonzero(~dropped & (weight > 0))
        dropped[left] = _rank(row[left], weight[left]) >= self.max_degree
        return dropped

    def _write(self, row: Longs, column: Ints, kind: Kinds, weight: Floats) -> None:
        """Put these rows in place of their own; entries of weight 0 are left out."""
        self._csr = None
        touched = np.unique(row)
        kept = weight > 0
        row, column, kind, weight = row[kept], column[kept], kind[kept], weight[kept]
        length = np.bincount(np.searchsorted(touched, row), minlength=len(touched)).astype(np.int64)
        self._stop[touched] = self._start[touched]  # nobody needs their old entries any more
        moved, room = self._homeless(touched, length)
        if self._used + int(room.sum()) > len(self._column):
            self._compact(int(_room(length).sum()))
            moved, room = self._homeless(touched, length)
        start = self._used + np.cumsum(room) - room
        self._start[moved], self._end[moved] = start, start + room
        self._used += int(room.sum())
        self._stop[touched] = self._start[touched] + length
        at = ranges(self._start[touched], self._stop[touched])
        self._column[at], self._kind[at], self._weight[at] = column, kind, weight
        cumulate(self._start[touched], self._stop[touched], self._weight, self._cumulative)

    def _homeless(self, rows: Longs, length: Longs) -> tuple[Longs, Longs]:
        """Which of these rows do not fit where they are, or must not be written to there, and the room that each needs."""
        fits = (self._start[rows] >= self._seen) & (self._start[rows] + length <= self._end[rows])
        return rows[~fits], _room(length[~fits])

    def _compact(self, wanted: int) -> None:
        """New arrays with room for so many more entries: the rows one behind the other, each with some room of its own."""
        n = self.n
        length = self._stop[:n] - self._start[:n]
        old = ranges(self._start[:n], self._stop[:n])
        room = np.minimum(_room(length), np.maximum(self._end[:n] - self._start[:n], length))
        start = np.cumsum(room) - room
        at = ranges(start, start + length)
        size = int(room.sum()) + wanted
        size += max(_FIRST, size // 4)
        for name in ("_column", "_kind", "_weight", "_cumulative"):
            array = getattr(self, name)
            fresh = np.zeros(size, array.dtype)
            fresh[at] = array[old]
            setattr(self, name, fresh)
        self._start[:n], self._stop[:n], self._end[:n] = start, start + length, start + room
        self._used, self._seen = int(room.sum()), 0

    def decay(self, factor: Floats) -> None:
        """Multiply the weights of each kind by its factor, (3,); an edge below `LEAST_WEIGHT` goes."""
        row, column, kind, weight = self.rows(np.arange(self.n))
        weight = weight * factor[kind]
        weight[weight < LEAST_WEIGHT] = 0
        if len(row):
            self._write(row, column, kind, weight)

    def take_out(self, gone: Longs) -> Longs:
        """
        Remove positions; the last ones move into the gaps.

        Returns
        -------
        (m,) int64
            Where what stands now at positions `gone[: m]`, ascending, came from: only as many as there are gaps below the new n.
        """
        gone = np.unique(gone)
        n = self.n - len(gone)
        gaps = gone[gone < n]
        movers = np.setdiff1d(np.arange(n, self.n), gone)
        touched = np.concatenate([gone, movers])
        row, column, kind, weight = self.rows(touched)
        there = column.astype(np.int64)
        self.edit(row, there, kind, np.zeros(len(row), np.float32))
        place = np.arange(self.n)
        place[gone] = -1
        place[movers] = gaps
        row, there = place[row], place[there]
        kept = (row >= 0) & (there >= 0)
        self._csr = None
        self._start[gaps], self._stop[gaps], self._end[gaps] = (self._start[movers], self._start[movers], self._end[movers])
        self.n = n
        self.edit(row[kept], there[kept], kind[kept], weight[kept])
        return movers


def _last(key: Longs) -> Longs:
    """Where each key stands last, by ascending key."""
    order: Longs = np.argsort(key, kind="stable")
    own = key[order]
    last: Longs = order[np.append(own[1:] != own[:-1], True)]
    return last


def _room(length: Longs) -> Longs:
    """Entries to keep for a row: a quarter more, at least two."""
    return np.where(length > 0, length + np.maximum(length // 4, 2), 0)


def _rank(row: Longs, weight: Floats) -> Longs:
    """Place of each entry among those of its row by weight, from 0, the heaviest first; equal ones in the order given."""
    order = np.lexsort((-weight, row))
    first = np.concatenate([[True], row[order][1:] != row[order][:-1]]) if len(row) else np.empty(0, np.bool_)
    begin = np.flatnonzero(first)
    rank = np.empty(len(row), np.int64)
    rank[order] = np.arange(len(row)) - np.repeat(begin, np.diff(np.append(begin, len(row))))
    return rank


def _resized(array: Longs, used: int, room: int) -> Longs:
    result = np.zeros(room, array.dtype)
    result[:used] = array[:used]
    return result
