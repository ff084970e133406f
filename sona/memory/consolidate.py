"""What a memory strengthens, lets fade, merges and gives up once a week."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaValueError
from sona.memory.change import GraphChange
from sona.memory.checks import Kinds
from sona.memory.csr import Doubles, Longs
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.visited import Mask

if TYPE_CHECKING:
    from sona.memory.snapshot import GraphSnapshot

CHUNK = 1 << 13  # pairs of vectors compared at a time: 25 MB at 384 numbers each
LINES = 4  # random directions along which near-duplicates are looked for
LEAST = 1e-6  # strength never reaches 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsolidationConfig:
    """
    What a memory is worth, and what becomes of it.

    The value of a node is quality x its share + use x its share + connectivity x its share, in [0, 1]. Use is
    1 - exp(-uses x 2^(-age / use_half_life)), age the deep cycles since the last use. Connectivity is s / (s + median of s), s the total
    weight of the edges of the node.

    Attributes
    ----------
    quality, use, connectivity : float
        Shares; they sum to 1.
    use_half_life : float
        In deep cycles.
    gain : float
        A node of value at the threshold or above: strength += gain x (1 - strength).
    loss : float
        One below: strength x= 1 - loss x (threshold - value) / threshold.
    floor : float
        An episode whose strength falls below is removed.
    max_nodes : int or None
        Beyond so many, what is worth least goes: episodes first, then what users put in. Patterns never go. None: the graph sees to
        its size by itself.
    merge_similarity : float
        Cosine from which two nodes of one kind with equal data become one; above 1 none do.
    creative_decay, coactivation_decay : float
        Factors on the weights of such edges.
    prune : float
        Such an edge is taken out when its weight falls below.
    """

    quality: float = 0.5
    use: float = 0.35
    connectivity: float = 0.15
    use_half_life: float = 4.0
    gain: float = 0.2
    loss: float = 0.15
    floor: float = 0.05
    max_nodes: int | None = None
    merge_similarity: float = 0.98
    creative_decay: float = 0.8
    coactivation_decay: float = 0.95
    prune: float = 0.02

    def __post_init__(self) -> None:
        for name in ("quality", "use", "connectivity", "gain", "loss", "floor", "creative_decay", "coactivation_decay", "prune"):
            if not 0 <= getattr(self, name) <= 1:
                raise SonaValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)!r}")
        if abs(self.quality + self.use + self.connectivity - 1) > 1e-6:
            raise SonaValueError(
                f"quality + use + connectivity: expected a sum of 1, got {self.quality} + {self.use} + {self.connectivity}"
            )
        if not 0 < self.use_half_life < math.inf:
            raise SonaValueError(f"use_half_life: expected a finite number above 0, got {self.use_half_life!r}")
        if not 0 < self.merge_similarity < math.inf:
            raise SonaValueError(f"merge_similarity: expected a number above 0, got {self.merge_similarity!r}")
        if self.max_nodes is not None and (type(self.max_nodes) is not int or self.max_nodes < 1):
            raise SonaValueError(f"max_nodes: expected None or an int of at least 1, got {self.max_nodes!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Consolidation:
    """
    A change that a consolidation asks for, and what is in it.

    Attributes
    ----------
    change : GraphChange
        For `MemoryGraph.apply`; valid also where the deadline cut it short.
    strengthened, decayed : int
        Nodes that stay, of value at the threshold or above, and below.
    removed : int
        Nodes.
    pruned : int
        Creative and co-activation edges.
    merged : int
        Nodes that another one takes in.
    complete : bool
        False if the deadline passed before everything had been looked at.
    """

    change: GraphChange
    strengthened: int = 0
    decayed: int = 0
    removed: int = 0
    pruned: int = 0
    merged: int = 0
    complete: bool = True


class MemoryConsolidator:
    """
    Decides what a memory keeps; it reads a snapshot and changes nothing.

    The same snapshot gives the same consolidation, unless a deadline cuts it short.

    Parameters
    ----------
    config : ConsolidationConfig
    clock : callable
        Seconds, on the scale of `deadline`.
    """

    def __init__(self, config: ConsolidationConfig | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config or ConsolidationConfig()
        self._clock = clock

    def values(self, snapshot: GraphSnapshot) -> Doubles:
        """What each node is worth, (n,) in [0, 1]; see `ConsolidationConfig`."""
        config = self.config
        age = np.maximum(snapshot.cycle - snapshot.last_used, 0)
        use = 1 - np.exp(-snapshot.uses * np.exp2(-age / config.use_half_life))
        csr = snapshot.csr()
        total = np.zeros(len(csr))
        np.add.at(total, csr.row, csr.weight[csr.entries])
        middle = float(np.median(total)) if len(total) else 0.0
        connected = np.divide(total, total + middle, out=np.zeros_like(total), where=total > 0)
        value: Doubles = config.quality * snapshot.quality.astype(np.float64) + config.use * use + config.connectivity * connected
        return value

    def consolidate(self, snapshot: GraphSnapshot, threshold: float = 0.7, deadline: float | None = None) -> Consolidation:
        """
        What to strengthen, let fade, merge, remove and prune.

        Parameters
        ----------
        snapshot : GraphSnapshot
        threshold : float
            In [0, 1]: nodes of this value or more grow stronger, the others weaker.
        deadline : float or None
            By the clock. What has been decided by then is in the change, the rest is left for the next time.

        Notes
        -----
        What was used in this deep cycle or the one before is never removed, and neither is a pattern. What a user put in is removed
        only beyond max_nodes. A merged node is not lost: its id leads to the one that took it in. A user's memory with a key is not merged
        into another.
        """
        if not 0 <= threshold <= 1:
            raise SonaValueError(f"threshold: expected a number in [0, 1], got {threshold!r}")
        if not len(snapshot.ids):
            return Consolidation(GraphChange(based_on=snapshot.version))
        stop = math.inf if deadline is None else deadline
        value = self.values(snapshot)
        strength = self._strength(snapshot, value, threshold)
        gone = self._faded(snapshot, strength)
        into, complete = self._absorbed(snapshot, value, ~gone & (snapshot.kinds != NodeKind.PATTERN), stop)
        absorbed = into != np.arange(len(into))
        gone |= self._excess(snapshot, value, ~gone & ~absorbed, spared=into[absorbed])
        u, v, kind = self._worn(snapshot, gone)
        stays = ~gone & ~absorbed
        grown = stays & (value >= threshold)
        ids = snapshot.ids
        change = GraphChange(
            based_on=snapshot.version,
            strengthen=(ids[~gone], strength[~gone] / snapshot.strength[~gone]),
            remove=ids[gone],
            merge=(ids[absorbed], ids[into[absorbed]]),
            unlink=(u, v, kind),
            decay={EdgeKind.CREATIVE: self.config.creative_decay, EdgeKind.COACTIVATION: self.config.coactivation_decay},
        )
        return Consolidation(
            change,
            strengthened=int(grown.sum()),
            decayed=int((stays & ~grown).sum()),
            removed=int(gone.sum()),
            pruned=len(u),
            merged=int(absorbed.sum()),
            complete=complete,
        )

    def _strength(self, snapshot: GraphSnapshot, value: Doubles, threshold: float) -> Floats:
        """The strength of each node after this cycle, (n,)."""
        old = snapshot.strength.astype(np.float64)
        short = np.maximum(threshold - value, 0) / max(threshold, 1e-12)
        new = np.where(value >= threshold, old + self.config.gain * (1 - old), old * (1 - self.config.loss * short))
        strength: Floats = new.clip(LEAST, 1).astype(np.float32)
        return strength

    def _faded(self, snapshot: GraphSnapshot, strength: Floats) -> Mask:
        """Episodes that are too weak to stay."""
        young = snapshot.born >= snapshot.cycle - 1
        faded: Mask = (snapshot.kinds == NodeKind.EPISODE) & (strength < self.config.floor) & ~_in_use(snapshot) & ~young
        return faded

    def _excess(self, snapshot: GraphSnapshot, value: Doubles, stays: Mask, spared: Longs) -> Mask:
        """What goes because there is no room: episodes before the memories of users, the least value first, of equals the oldest."""
        gone = np.zeros(len(value), np.bool_)
        limit = self.config.max_nodes
        if limit is None or (many := int(stays.sum()) - limit) <= 0:
            return gone
        free = stays & (snapshot.kinds != NodeKind.PATTERN) & ~_in_use(snapshot)
        free[spared] = False
        at = np.flatnonzero(free)
        order = np.lexsort((snapshot.born[at], value[at], snapshot.kinds[at] != NodeKind.EPISODE))
        gone[at[order[:many]]] = True
        return gone

    def _absorbed(self, snapshot: GraphSnapshot, value: Doubles, free: Mask, stop: float) -> tuple[Longs, bool]:
        """
        For each node the one that it becomes a part of, itself for most (n,), and whether all candidates have been compared.

        Candidates are similarity edges, which lead to the nearest neighbours, and what is side by side along a few random directions, where
        nodes of the same neighbours are; each cycle has other directions. Of two near-duplicates the one of more value takes in the other,
        but a memory with a key stays; then what is left is compared anew, the edges of the absorbed ones gone over, until there is nothing
        to merge.
        """
        n = len(value)
        into = np.arange(n)
        if self.config.merge_similarity > 1:
            return into, True
        known = (snapshot.kinds == NodeKind.MEMORY) & (snapshot.keys >= 0)  # the user's key would be lost
        rank = np.empty(n, np.int64)
        rank[np.lexsort((into, -value, ~known))] = into  # 0 for the one that takes in first
        group = _groups(snapshot, free)
        csr = snapshot.csr()
        once = (snapshot.edge_kinds[csr.entries] == EdgeKind.SIMILARITY) & (csr.row < csr.column[csr.entries])
        edges = np.stack([csr.row[once], csr.column[csr.entries[once]]], axis=1).astype(np.int64)
        edges = edges[(group[edges[:, 0]] >= 0) & (group[edges[:, 0]] == group[edges[:, 1]])]
        line = snapshot.vectors @ np.random.default_rng(snapshot.cycle).standard_normal((snapshot.dim, LINES)).astype(np.float32)
        seen = np.empty(0, np.int64)
        while True:
            left = np.flatnonzero((group >= 0) & (into == np.arange(n)))
            pairs = np.sort(np.concatenate([edges, *(_side_by_side(left, group, along) for along in line.T)]), axis=1)
            new = np.setdiff1d(pairs[:, 0] * n + pairs[:, 1], seen)
            seen = np.union1d(seen, new)
            pairs = np.stack(np.divmod(new, n), axis=1)
            alike, complete = self._alike(snapshot, pairs, stop)
            joined = _join(pairs[alike], rank, known)
            into = joined[into]
            if not complete or not alike.any():
                return into, complete
            edges = into[edges]
            edges = edges[edges[:, 0] != edges[:, 1]]

    def _alike(self, snapshot: GraphSnapshot, pairs: Longs, stop: float) -> tuple[Mask, bool]:
        """Which pairs (p, 2) of positions are near-duplicates, and whether all were compared before the clock reached `stop`."""
        alike = np.zeros(len(pairs), np.bool_)
        for first in range(0, len(pairs), CHUNK):
            if self._clock() >= stop:
                return alike, False
            u, v = pairs[first : first + CHUNK].T
            cosine = np.einsum("ij,ij->i", snapshot.vectors[u], snapshot.vectors[v])
            alike[first : first + CHUNK] = cosine >= self.config.merge_similarity
        return alike, True

    def _worn(self, snapshot: GraphSnapshot, gone: Mask) -> tuple[Longs, Longs, Kinds]:
        """Creative and co-activation edges too weak to stay, (u, v, kind) by id; those of removed nodes go with them and are not named."""
        found = []
        for kind, decay in ((EdgeKind.CREATIVE, self.config.creative_decay), (EdgeKind.COACTIVATION, self.config.coactivation_decay)):
            u, v, weight = snapshot.edges(kind)
            worn = (weight * decay < self.config.prune) & ~gone[snapshot.positions(u)] & ~gone[snapshot.positions(v)]
            found.append((u[worn], v[worn], np.full(int(worn.sum()), kind, np.uint8)))
        u, v, kinds = (np.concatenate(column) for column in zip(*found, strict=True))
        return u, v, kinds


def _in_use(snapshot: GraphSnapshot) -> Mask:
    """Used in this deep cycle or in the one before."""
    used: Mask = (snapshot.uses > 0) & (snapshot.last_used >= snapshot.cycle - 1)
    return used


def _groups(snapshot: GraphSnapshot, free: Mask) -> Longs:
    """The same number (n,) for nodes of one kind with equal data; -1 for those that are not free to be merged."""
    numbers: dict[tuple[int, str | None], int] = {}
    named = zip(snapshot.kinds.tolist(), snapshot.data, strict=True)
    group = np.fromiter((numbers.setdefault(each, len(numbers)) for each in named), np.int64, len(free))
    group[~free] = -1
    return group


def _side_by_side(left: Longs, group: Longs, along: Floats) -> Longs:
    """Pairs (p, 2) of the nodes `left` that come one or two after another in their group when it is sorted by `along`."""
    order = left[np.lexsort((along[left], group[left]))]
    pairs = np.concatenate([np.stack([order[:-far], order[far:]], axis=1) for far in (1, 2)])
    found: Longs = pairs[group[pairs[:, 0]] == group[pairs[:, 1]]]
    return found


def _join(pairs: Longs, rank: Longs, known: Mask) -> Longs:
    """
    For each node the one that takes it in, itself for most, given near-duplicate `pairs` (p, 2).

    In the order of `rank`, each node that is still free takes in all its free near-duplicates that are not `known` (n,), so that none goes
    to one it is not alike.
    """
    near: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    into = np.arange(len(rank))
    taken: set[int] = set()
    for node in sorted(near, key=rank.__getitem__):
        if node in taken:
            continue
        taken.add(node)
        for other in near[node]:
            if other not in taken and not known[other]:
                taken.add(other)
                into[other] = node
    return into
