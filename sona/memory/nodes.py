"""The nodes of a memory graph: columns by position, and who stands where."""

from typing import Any

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaValueError
from sona.memory.checks import Kinds, ids_of
from sona.memory.columns import Columns
from sona.memory.csr import Longs
from sona.memory.kinds import NodeKind

START = 0.5  # strength of a new node
LEAST_STRENGTH = 0.01

COLUMNS: dict[str, Any] = {
    "ids": np.int64,
    "kinds": np.uint8,
    "quality": np.float32,
    "strength": np.float32,
    "uses": np.int64,
    "last_used": np.int64,
    "born": np.int64,
    "keys": np.int64,
}


class Nodes:
    """
    Columns, data and keys of nodes, found by id. Nothing is checked here but what only the nodes know; the graph holds its lock.

    Attributes
    ----------
    columns : Columns
        Those of `COLUMNS`, vectors (n, dim) float32, and touched: the version of the graph at which a node was added, used or changed last.
    data : list
        JSON text or None, by position.
    merged : dict
        Which id an id that is gone stands for, the oldest first.
    next : int
        Id of the next node.
    """

    def __init__(self, dim: int) -> None:
        spec = {name: (dtype, ()) for name, dtype in COLUMNS.items()}
        self.columns = Columns({**spec, "touched": (np.int64, ()), "vectors": (np.float32, (dim,))})
        self.data: list[str | None] = []
        self.merged: dict[int, int] = {}
        self.next = 0
        self._place: dict[int, int] = {}
        self._by_key: dict[tuple[int, int], int] = {}  # id by kind and key

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, id: Any) -> bool:
        return id in self._place or id in self.merged

    def resolve(self, id: int) -> int | None:
        """The id of the node that an id stands for."""
        id = self.merged.get(id, id)
        return id if id in self._place else None

    def find(self, kind: int, key: int) -> int | None:
        return self._by_key.get((kind, key))

    def places(self, ids: Longs) -> Longs:
        """Where the nodes with these ids stand, -1 where there is none."""
        merged, place = self.merged, self._place
        return np.fromiter((place.get(merged.get(id, id), -1) for id in ids.tolist()), np.int64, len(ids))

    def positions(self, ids: Any, name: str = "ids") -> Longs:
        """Where the nodes with these ids stand. SonaValueError where there is none."""
        wanted = ids_of(ids, name)
        places = self.places(wanted)
        if len(places) and places.min() < 0:
            raise SonaValueError(f"{name}: expected nodes of the graph, got {wanted[np.argmin(places)]}")
        return places

    def check_keys(self, kinds: Kinds, keys: Longs) -> None:
        """SonaValueError where a key is given twice or is another node's; -1 is none."""
        named = [pair for pair in zip(kinds.tolist(), keys.tolist(), strict=True) if pair[1] >= 0]
        seen = set(self._by_key)
        for kind, key in named:
            if (kind, key) in seen:
                raise SonaValueError(f"key: expected one that no other {NodeKind(kind).name} has, got {key}")
            seen.add((kind, key))

    def add(self, vectors: Floats, **columns: Any) -> None:
        """More nodes behind the others; columns as in `COLUMNS`, and data."""
        data = columns.pop("data")
        first, count = len(self), len(vectors)
        self.columns.append(count, vectors=vectors, **columns)
        self.data += data
        self.index(first)
        self.next = max(self.next, int(self.columns["ids"][first:].max(initial=-1)) + 1)

    def index(self, first: int) -> None:
        """Find nodes at positions `first` and behind by id and key."""
        ids = self.columns["ids"][first:].tolist()
        self._place.update(zip(ids, range(first, first + len(ids)), strict=True))
        pairs = zip(self.columns["kinds"][first:].tolist(), self.columns["keys"][first:].tolist(), strict=True)
        self._by_key.update((pair, id) for pair, id in zip(pairs, ids, strict=True) if pair[1] >= 0)

    def take_out(self, places: Longs, movers: Longs) -> None:
        """Remove positions, ascending; `movers` go into the gaps. Keys, and what was merged into the nodes, go with them."""
        columns = self.columns
        gone = columns["ids"][places].tolist()
        for id, kind, key in zip(gone, columns["kinds"][places].tolist(), columns["keys"][places].tolist(), strict=True):
            del self._place[id]
            self._by_key.pop((kind, key), None)
        if self.merged:
            lost = set(gone)
            self.merged = {old: new for old, new in self.merged.items() if new not in lost}
        n = columns.n - len(places)
        gaps = places[places < n]
        columns.take_out(gaps, movers, n)
        for gap, mover, id in zip(gaps.tolist(), movers.tolist(), columns["ids"][gaps].tolist(), strict=True):
            self.data[gap] = self.data[mover]
            self._place[id] = gap
        del self.data[n:]

    def stands_for(self, old: list[int], new: list[int], most: int) -> None:
        """Ids that go, and those merged into them before, stand for the new ones; beyond `most` the oldest are forgotten."""
        goes = dict(zip(old, new, strict=True))
        self.merged = {id: goes.get(to, to) for id, to in self.merged.items()} | goes
        for id in list(self.merged)[: max(len(self.merged) - most, 0)]:
            del self.merged[id]

    def least_worth(self, count: int, since: int) -> Longs:
        """
        Positions of the nodes that go first: episodes, then memories; of each first those that were not used in cycle `since` or later,
        then those of the smallest strength times quality, then the oldest. Never patterns: there may be fewer than `count`.
        """
        columns = self.columns
        free = np.flatnonzero(columns["kinds"] != NodeKind.PATTERN)
        worth = columns["strength"][free] * columns["quality"][free]
        last = columns["last_used"][free] >= since, columns["kinds"][free] == NodeKind.MEMORY
        return np.sort(free[np.lexsort((columns["ids"][free], worth, *last))[:count]])
