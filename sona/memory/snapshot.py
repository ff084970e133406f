"""A memory graph as it was at one moment, for readers who take their time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaValueError
from sona.memory.checks import Kinds, ids_of
from sona.memory.csr import Csr, Longs
from sona.memory.kinds import EdgeKind


@dataclass(frozen=True, slots=True, eq=False)
class GraphSnapshot:
    """
    Columns and edges of a `MemoryGraph`, read-only; row i of each column is the node at position i.

    Attributes
    ----------
    version, cycle : int
        Of the graph, then.
    ids : (n,) int64
    vectors : (n, dim) float32
        Unit norm, or zero.
    kinds : (n,) uint8
        `NodeKind`.
    quality, strength : (n,) float32
        In [0, 1] and (0, 1].
    uses : (n,) int64
    last_used : (n,) int64
        Cycle of the last use; -1 for none.
    born : (n,) int64
        Cycle in which it was added.
    keys : (n,) int64
        What the caller knows it by; -1 for none.
    data : tuple
        JSON text or None, by position.
    edge_kinds : (m,) uint8
        `EdgeKind` of each entry of `csr()`.
    """

    version: int
    cycle: int
    ids: Longs
    vectors: Floats
    kinds: Kinds
    quality: Floats
    strength: Floats
    uses: Longs
    last_used: Longs
    born: Longs
    keys: Longs
    data: tuple[str | None, ...]
    edge_kinds: Kinds
    _csr: Csr
    _order: Longs = field(init=False)  # positions by ascending id

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", np.argsort(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def degree(self) -> Longs:
        """Edges of each node, (n,) int64."""
        return self._csr.stop - self._csr.start

    def csr(self) -> Csr:
        """Every edge with its weight, whatever its kind."""
        return self._csr

    def positions(self, ids: Any) -> Longs:
        """Where these ids stand; SonaValueError for one that is not there."""
        wanted = ids_of(ids, "ids")
        at = np.minimum(np.searchsorted(self.ids, wanted, sorter=self._order), max(len(self) - 1, 0))
        if len(wanted) and (not len(self) or (self.ids[self._order[at]] != wanted).any()):
            known = self.ids[self._order[at]] == wanted if len(self) else np.zeros(1, np.bool_)
            raise SonaValueError(f"ids: expected nodes of the graph, got {wanted[np.argmin(known)]}")
        return self._order[at] if len(self) else wanted

    def position(self, id: int) -> int:
        """Where this id stands; SonaValueError where it is not there."""
        return int(self.positions(id)[0])

    def edges(self, kind: EdgeKind | None = None) -> tuple[Longs, Longs, Floats]:
        """Ends, as ids, and weight of every edge, each once; with `kind`, of those of one kind."""
        entries, row = self._csr.entries, self._csr.row
        column = self._csr.column[entries]
        once = row < column
        if kind is not None:
            once &= self.edge_kinds[entries] == kind
        return self.ids[row[once]], self.ids[column[once]], self._csr.weight[entries[once]]
