"""What is to become of a memory graph, made from a snapshot and applied as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sona._arrays import Floats
from sona.memory.checks import Kinds
from sona.memory.csr import Longs
from sona.memory.kinds import EdgeKind


def _ids() -> Longs:
    return np.empty(0, np.int64)


def _pair() -> tuple[Longs, Longs]:
    return _ids(), _ids()


@dataclass(frozen=True, eq=False, kw_only=True)
class GraphChange:
    """
    Changes of a graph in ids. `MemoryGraph.apply` does all of them or, where one is not possible at all, none.

    The graph may have gone on since `based_on`: what is said of a node that is gone is left out, and a node that was used, added to or
    moved since then is neither removed nor merged into another. In this order:

    Attributes
    ----------
    based_on : int
        `version` of the graph or snapshot it was made from.
    unlink : (u, v, kind)
        (m,) int64, int64, uint8: edges that go.
    decay : mapping of EdgeKind to float
        Factor in [0, 1] on every edge of the kind.
    link : (u, v, kind, weight)
        (m,) int64, int64, uint8, float32: weights in (0, 1], in place of those that such edges had.
    strengthen : (ids, factors)
        (m,) int64, float32: factors above 0 on the strength; below 1 they weaken.
    merge : (old, into)
        (m,) int64 each, of one kind and with equal data: edges and uses of `old` go over, its id then stands for `into`.
    remove : (m,) int64
    """

    based_on: int
    unlink: tuple[Longs, Longs, Kinds] = field(default_factory=lambda: (_ids(), _ids(), np.empty(0, np.uint8)))
    decay: Mapping[EdgeKind, float] = field(default_factory=dict)
    link: tuple[Longs, Longs, Kinds, Floats] = field(
        default_factory=lambda: (_ids(), _ids(), np.empty(0, np.uint8), np.empty(0, np.float32))
    )
    strengthen: tuple[Longs, Floats] = field(default_factory=lambda: (_ids(), np.empty(0, np.float32)))
    merge: tuple[Longs, Longs] = field(default_factory=_pair)
    remove: Longs = field(default_factory=_ids)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        columns: tuple[Any, ...] = (self.unlink[0], self.link[0], self.strengthen[0], self.merge[0], self.remove)
        return bool(self.decay) or any(map(len, columns))
