"""A weighted undirected graph as arrays: compressed sparse rows, which may have gaps between them."""

from dataclasses import dataclass
from itertools import chain, compress
from operator import itemgetter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.errors import SonaTypeError, SonaValueError
from sona.memory._walk import cumulate

Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]


def ranges(start: Longs, stop: Longs) -> Longs:
    """start[0], ..., stop[0] - 1, start[1], ..., stop[1] - 1, ...: which entries the rows have, row by row."""
    length = stop - start
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()))


@dataclass(frozen=True, slots=True, eq=False)
class Csr:
    """
    The edges of n nodes, each in the rows of both its ends. Nothing changes the arrays: a graph that goes on makes another Csr.

    Rows may stand in any order and with gaps between them, and two nodes may be joined by several entries side by side, whose weights
    add up.

    Attributes
    ----------
    start, stop : (n,) int64
        The entries of row i are start[i] : stop[i].
    column : (m,) int32
        Positions of neighbours; within a row they ascend.
    weight : (m,) float32
        Above 0.
    cumulative : (m,) float32
        Running sum of the weights within the row.
    version : int
        Of the graph that it was made from.
    """

    start: Longs
    stop: Longs
    column: Ints
    weight: Floats
    cumulative: Floats
    version: int = 0

    def __len__(self) -> int:
        return len(self.start)

    @property
    def entries(self) -> Longs:
        """Where the entries are, row by row: column[entries] and weight[entries] have no gaps."""
        return ranges(self.start, self.stop)

    @property
    def row(self) -> Ints:
        """The row of each of `entries`."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.stop - self.start)

    def matrix(self) -> Any:
        """The same as a scipy.sparse.csr_matrix (n, n) float32 without gaps, each pair of nodes once."""
        from scipy.sparse import csr_matrix

        entries, n = self.entries, len(self)
        offsets = np.concatenate([[0], np.cumsum(self.stop - self.start)])
        matrix = csr_matrix((self.weight[entries], self.column[entries], offsets), shape=(n, n))
        matrix.sum_duplicates()
        return matrix

    @classmethod
    def of(cls, matrix: Any, version: int = 0) -> Self:
        """
        From a symmetric matrix of weights.

        Parameters
        ----------
        matrix : (n, n) array_like or scipy sparse
            At least 0 and finite as float32; 0 is no edge. The diagonal is ignored.

        Raises
        ------
        SonaTypeError
            For anything but real numbers.
        SonaValueError
            For another shape, and for numbers that are negative, not finite or not symmetric.
        """
        from scipy.sparse import coo_matrix, issparse

        try:
            given = matrix if issparse(matrix) else np.asarray(matrix)
        except ValueError as error:
            raise SonaTypeError(f"matrix: expected an array of numbers, got {type(matrix).__name__} ({error})") from None
        if given.dtype.kind not in "fiub":
            raise SonaTypeError(f"matrix: expected real numbers, got dtype {given.dtype}")
        if len(given.shape) != 2 or given.shape[0] != given.shape[1]:
            raise SonaValueError(f"matrix: expected shape (n, n), got {given.shape}")
        if not issparse(given) and (given.dtype == np.float16 or not given.dtype.isnative):  # scipy takes neither
            given = given.astype(np.float64)
        found = coo_matrix(given)
        found.sum_duplicates()
        with np.errstate(over="ignore"):
            weight = found.data.astype(np.float32)
        if not (np.isfinite(weight) & (weight >= 0)).all():
            raise SonaValueError("matrix: expected finite float32 weights of at least 0, got a negative one, NaN or infinity")
        kept = (found.row != found.col) & (weight > 0)
        row, column, weight = found.row[kept], found.col[kept], weight[kept]
        order, mirrored = np.lexsort((column, row)), np.lexsort((row, column))
        same = (row[order] == column[mirrored]) & (column[order] == row[mirrored]) & (weight[order] == weight[mirrored])
        if not same.all():
            i, j = (int(ends[order][np.argmin(same)]) for ends in (row, column))
            raise SonaValueError(f"matrix: expected a symmetric one, got something else at {j, i} than at {i, j}")
        return cls.sorted(np.bincount(row, minlength=given.shape[0]), column[order], weight[order], version)

    @classmethod
    def from_networkx(cls, graph: Any, *, weight: str = "weight", default: float = 1.0) -> Self:
        """
        From an undirected networkx graph, nodes in its order, as `of` takes a matrix; faster than by way of one.

        Parameters
        ----------
        graph : networkx.Graph
        weight : str
            Edge attribute, a number of at least 0; `default` where an edge has none. 0 is no edge, and so is an edge from a node to itself.

        Raises
        ------
        SonaTypeError
            For a directed or a multigraph, and for weights that are no numbers.
        SonaValueError
            For weights that are negative, NaN or infinite as float32.
        """
        undirected(graph)
        rows = _dicts(graph)
        position = {node: i for i, node in enumerate(rows)}
        n, m = len(position), sum(map(len, rows.values()))
        row = np.repeat(np.arange(n), np.fromiter(map(len, rows.values()), np.int64, n))
        column = np.fromiter(map(position.__getitem__, chain.from_iterable(rows.values())), np.int64, m)
        once = row < column  # the attributes of an edge are one dict, far from all others: to look at it once halves the time
        u, v = row[once], column[once]
        attributes = compress(chain.from_iterable(map(dict.values, rows.values())), once.tolist())
        try:
            try:
                weights = np.fromiter(map(itemgetter(weight), attributes), np.float64, len(u))
            except KeyError:  # some edges have none
                attributes = compress(chain.from_iterable(map(dict.values, rows.values())), once.tolist())
                weights = np.fromiter((about.get(weight, default) for about in attributes), np.float64, len(u))
        except (TypeError, ValueError, OverflowError) as error:
            raise SonaTypeError(f"graph: expected numbers as edge attribute {weight!r} ({error})") from None
        with np.errstate(over="ignore"):
            single = weights.astype(np.float32)
        if not (np.isfinite(single) & (single >= 0)).all():
            raise SonaValueError(f"graph: expected finite weights of at least 0, got {weights.min()} to {weights.max()}")
        kept = single > 0
        u, v, single = u[kept], v[kept], single[kept]
        row, column, single = np.concatenate([u, v]), np.concatenate([v, u]), np.concatenate([single, single])
        order = np.argsort(row * n + column)
        return cls.sorted(np.bincount(row, minlength=n), column[order], single[order])

    @classmethod
    def sorted(cls, degree: Longs, column: npt.NDArray[np.integer[Any]], weight: Floats, version: int = 0) -> Self:
        """From rows of these lengths, one behind the other, whose columns ascend; of that nothing is checked but that their lengths fit."""
        stop = np.cumsum(degree, dtype=np.int64)
        start = stop - degree
        cumulative = np.empty(len(weight), np.float32)
        cumulate(start, stop, weight, cumulative)
        return cls(start, stop, np.ascontiguousarray(column, np.int32), np.ascontiguousarray(weight), cumulative, version)


def _dicts(graph: Any) -> dict[Any, dict[Any, Any]]:
    """The neighbours of each node and the attributes of the edges to them: the graph's own dicts, or copies where a view has none."""
    rows = getattr(graph, "_adj", None)
    if type(rows) is dict and all(type(row) is dict for row in rows.values()):
        return rows
    return {node: dict(row.items()) for node, row in graph.adj.items()}


def undirected(graph: Any) -> None:
    """SonaTypeError for anything but an undirected networkx graph with at most one edge between two nodes."""
    if not hasattr(graph, "is_multigraph") or not hasattr(graph, "adj"):
        raise SonaTypeError(f"graph: expected a networkx.Graph, got {type(graph).__name__}")
    if graph.is_directed():
        raise SonaTypeError("graph: expected an undirected graph, got a directed one; graph.to_undirected() makes one")
    if graph.is_multigraph():
        raise SonaTypeError("graph: expected one edge between two nodes, got a multigraph; networkx.Graph(graph) makes a simple one")
