"""Vectors by id, searched by inner product: exactly, or approximately where there are very many."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona._kernels import Kernels
from sona.errors import MissingExtraError, SonaTypeError, SonaValueError

Ids = npt.NDArray[np.int64]
_FIRST = 16  # rows allocated at first


class Index(Protocol):
    """What `ExactIndex` and `UsearchIndex` have in common."""

    def __len__(self) -> int: ...
    def __contains__(self, id: int) -> bool: ...
    def add(self, id: int, x: Any) -> None: ...
    def remove(self, id: int) -> bool: ...
    def search(self, x: Any, k: int) -> tuple[Ids, Floats]: ...


def _id(value: Any) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise SonaTypeError(f"id: expected an int, got {type(value).__name__}")
    if not 0 <= value < 1 << 63:
        raise SonaValueError(f"id: expected an int in [0, 2**63), got {value}")
    return int(value)


def _count(value: Any) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise SonaTypeError(f"k: expected an int, got {type(value).__name__}")
    if value < 0:
        raise SonaValueError(f"k: expected at least 0, got {value}")
    return int(value)


class ExactIndex:
    """
    A scan over float32 rows: nothing is missed, nothing has to be built, and removing is free.

    Parameters
    ----------
    dim : int
        Length of the vectors. They are used as they are: for cosines, add unit vectors.
    isa : str, optional
        Kernel table.

    Thread-safety
    -------------
    One thread at a time; `search` alone may run in many.
    """

    def __init__(self, dim: int, *, isa: str | None = None) -> None:
        if type(dim) is not int or dim < 1:
            raise SonaValueError(f"dim: expected an int of at least 1, got {dim!r}")
        self.dim = dim
        self._kernels = Kernels(isa)
        self._row_of: dict[int, int] = {}
        self._ids: Ids = np.empty(_FIRST, np.int64)
        self._rows: Floats = np.empty((_FIRST, dim), np.float32)

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, id: int) -> bool:
        return id in self._row_of

    def add(self, id: int, x: Any) -> None:
        """Put x of shape (dim,) in, in place of the one with that id if there is one."""
        id, x = _id(id), coerce(x, (self.dim,), "x")
        row = self._row_of.get(id, len(self))
        if row == len(self._rows):
            self._resize(2 * row)
        self._row_of[id] = row
        self._ids[row], self._rows[row] = id, x

    def remove(self, id: int) -> bool:
        """Take a vector out; False where there is none. The last row moves into the gap, and half of the memory goes when 3/4 is unused."""
        row = self._row_of.pop(id, None)
        if row is None:
            return False
        last = len(self)
        if row != last:
            moved = int(self._ids[last])
            self._ids[row], self._rows[row] = moved, self._rows[last]
            self._row_of[moved] = row
        if len(self._rows) > max(_FIRST, 4 * last):
            self._resize(len(self._rows) // 2)
        return True

    def _resize(self, rows: int) -> None:
        used = len(self)
        ids, old = self._ids, self._rows
        self._ids, self._rows = np.empty(rows, np.int64), np.empty((rows, self.dim), np.float32)
        self._ids[:used], self._rows[:used] = ids[:used], old[:used]

    def search(self, x: Any, k: int) -> tuple[Ids, Floats]:
        """
        The k vectors of largest inner product with x of shape (dim,), largest first.

        Returns
        -------
        (ids, scores)
            min(k, len(self)) of each.
        """
        x = coerce(x, (self.dim,), "x")
        rows, scores = self._kernels.top_k(self._rows[: len(self)], x, min(_count(k), len(self)))
        return self._ids[rows], scores

    @property
    def nbytes(self) -> int:
        """Memory of ids and rows."""
        return self._ids.nbytes + self._rows.nbytes


class UsearchIndex:
    """
    Approximate search in a graph (HNSW), for more than about 100,000 vectors; needs ``pip install sona[ann]``.

    Below that the scan is as fast, exact, and needs no build. Recall depends on the data: compare with `ExactIndex` on your own.

    Parameters
    ----------
    dim : int
    expansion : int
        Candidates that a search looks at: more is slower and finds more.

    Raises
    ------
    MissingExtraError
        usearch is not installed.
    """

    def __init__(self, dim: int, *, expansion: int = 128) -> None:
        if type(dim) is not int or dim < 1:
            raise SonaValueError(f"dim: expected an int of at least 1, got {dim!r}")
        try:
            from usearch.index import Index as Graph
        except ImportError as error:
            raise MissingExtraError("UsearchIndex needs usearch: pip install 'sona[ann]'; ExactIndex needs nothing") from error
        self.dim = dim
        self._graph = Graph(ndim=dim, metric="ip", dtype="f32", expansion_search=expansion)

    def __len__(self) -> int:
        return len(self._graph)

    def __contains__(self, id: int) -> bool:
        return id in self._graph

    def add(self, id: int, x: Any) -> None:
        """Put x of shape (dim,) in, in place of the one with that id if there is one."""
        id, x = _id(id), coerce(x, (self.dim,), "x")  # checked here: a NaN would be stored and found
        if id in self._graph:
            self._graph.remove(id)
        self._graph.add(id, x)

    def remove(self, id: int) -> bool:
        """Take a vector out; False where there is none."""
        return id in self._graph and bool(self._graph.remove(id))

    def search(self, x: Any, k: int) -> tuple[Ids, Floats]:
        """About the k vectors of largest inner product with x of shape (dim,), largest first; see `ExactIndex.search`."""
        x, k = coerce(x, (self.dim,), "x"), min(_count(k), len(self))
        if k == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        found = self._graph.search(x, k)
        return found.keys.astype(np.int64), (1 - found.distances).astype(np.float32)
