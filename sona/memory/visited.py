"""The parts of the memory graph that a batch of dreams visited, as arrays padded to one shape."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona.memory.csr import Csr, Doubles, Longs, ranges

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Visited:
    """
    B induced subgraphs of at most m nodes.

    Attributes
    ----------
    nodes : int64 array (B, m)
        Positions of the distinct nodes of each, in the order of the first visit; -1 behind the last.
    path : int64 array (B, length)
        For each step the column of `nodes` that it is at; -1 behind the last step.
    weight : float64 array (B, m, m)
        Total weight of the edge between two nodes of a subgraph, 0 where there is none. Symmetric.
    """

    nodes: Longs
    path: Longs
    weight: Doubles

    @classmethod
    def of(cls, csr: Csr, paths: npt.NDArray[Any]) -> Self:
        """The subgraphs under paths (B, length) of positions, -1 behind the last step of a path."""
        paths = np.asarray(paths, np.int64)
        same = paths[:, :, None] == paths[:, None, :]
        first = same.argmax(axis=2)  # step at which the node of this step came first
        fresh = (first == np.arange(paths.shape[1])) & (paths >= 0)
        rank = np.cumsum(fresh, axis=1) - 1
        path = np.where(paths >= 0, np.take_along_axis(rank, first, axis=1), -1) if paths.size else paths
        nodes = np.full((len(paths), int(fresh.sum(axis=1).max(initial=0))), -1, np.int64)
        batch, step = np.nonzero(fresh)
        nodes[batch, rank[batch, step]] = paths[batch, step]
        return cls(nodes, path, _weights(csr, nodes))

    @property
    def mask(self) -> Mask:
        """(B, m): where there is a node."""
        found: Mask = self.nodes >= 0
        return found

    @property
    def size(self) -> Longs:
        """(B,) number of distinct nodes."""
        size: Longs = self.mask.sum(axis=1)
        return size

    def near(self, reach: int) -> Mask:
        """(B, m, m): pairs i < j that some two steps of the path at most `reach` apart are at."""
        pairs = np.zeros(self.weight.shape, np.bool_)
        for apart in range(1, min(reach, self.path.shape[1] - 1) + 1):
            a, b = self.path[:, :-apart], self.path[:, apart:]
            batch, step = np.nonzero((a >= 0) & (b >= 0) & (a != b))
            a, b = a[batch, step], b[batch, step]
            pairs[batch, np.minimum(a, b), np.maximum(a, b)] = True
        return pairs

    def locate(self, batch: Longs, position: Longs) -> Longs:
        """(q,) columns of `nodes` at which subgraphs `batch` (q,) hold the nodes at `position` (q,); -1 where they do not."""
        found = self.nodes[batch] == position[:, None]
        return np.where(found.any(axis=1), found.argmax(axis=1), -1)


def incident(csr: Csr, rows: Longs) -> tuple[Longs, Longs]:
    """(which, at): entry `at` of the csr is in the row rows[which], for all entries of `rows` (q,) in turn."""
    start, stop = csr.start[rows], csr.stop[rows]
    return np.repeat(np.arange(len(rows)), stop - start), ranges(start, stop)


def _weights(csr: Csr, nodes: Longs) -> Doubles:
    many, m = nodes.shape
    batch, own = np.nonzero(nodes >= 0)
    if not len(batch):
        return np.zeros((many, m, m))
    which, at = incident(csr, nodes[batch, own])
    # (subgraph, node) as one number: which of the neighbours are in the same subgraph?
    held = batch * len(csr) + nodes[batch, own]
    order = np.argsort(held)
    held = held[order]
    wanted = batch[which] * len(csr) + csr.column[at]
    place = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    inside = held[place] == wanted
    which, at, other = which[inside], at[inside], own[order[place[inside]]]
    cell = (batch[which] * m + own[which]) * m + other
    total = np.zeros(many * m * m)
    np.add.at(total, cell, csr.weight[at])
    return total.reshape(many, m, m)
