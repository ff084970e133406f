"""Which nodes were active together, gathered request by request and brought to the graph now and then."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sona.errors import SonaValueError
from sona.memory.checks import ids_of, whole, within

if TYPE_CHECKING:
    from sona.memory.graph import MemoryGraph

ACTIVATED = 5  # nodes of a signal that count


class EdgeWeights:
    """
    What co-activation edges are to gain: each signal moves the pairs of its nodes by scale times quality of what is missing to 1.

    Gains compose, so that `commit` moves an edge by as much as if every signal had moved it at once; all of them are below 1 and only pairs
    with one are kept.

    Parameters
    ----------
    capacity : int
        Most pairs; beyond, the half with the smallest gains goes.

    Thread-safety
    -------------
    One thread at a time; the graph may go on meanwhile.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = whole(capacity, 2, "capacity")
        self._gain: dict[tuple[int, int], float] = {}

    def __len__(self) -> int:
        """Pairs that wait for `commit`."""
        return len(self._gain)

    def gain(self, u: int, v: int) -> float:
        """What waits for the edge between u and v, in [0, 1)."""
        return self._gain.get((min(u, v), max(u, v)), 0.0)

    def update_from_signal(self, nodes: Any, quality: float, scale: float = 0.01) -> None:
        """
        Take a signal into account.

        Parameters
        ----------
        nodes : (m,) ints
            Ids of the activated nodes, the most active first; the first five count.
        quality : float in [0, 1]
        scale : float in [0, 1]
            Learning rate, the roadmap's `edge_update_scale`.
        """
        active = sorted(set(ids_of(nodes, "nodes")[:ACTIVATED].tolist()))
        share = float(within(quality, 1, "quality")[0]) * float(within(scale, 1, "scale")[0])
        if share == 0:
            return
        for i, u in enumerate(active):
            for v in active[i + 1 :]:
                known = self._gain.get((u, v), 0.0)
                self._gain[u, v] = known + share * (1 - known)
        if len(self._gain) > self.capacity:
            heaviest = sorted(self._gain.items(), key=lambda item: (-item[1], item[0]))
            self._gain = dict(heaviest[: self.capacity // 2])

    def commit(self, graph: "MemoryGraph") -> int:
        """Bring what was gathered to the graph's co-activation edges, and start anew. Returns how many edges moved; others lost a node."""
        if not hasattr(graph, "coactivate"):
            raise SonaValueError(f"graph: expected a MemoryGraph, got {type(graph).__name__}")
        if not self._gain:
            return 0
        pairs = np.array(list(self._gain), np.int64)
        moved = graph.coactivate(pairs[:, 0], pairs[:, 1], np.minimum(np.array(list(self._gain.values())), 1))
        self._gain.clear()
        return moved
