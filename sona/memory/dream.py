"""Dreams: walks through the memory that propose links between what had none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sona.errors import SonaValueError
from sona.memory._walk import walks
from sona.memory.change import GraphChange
from sona.memory.csr import Longs
from sona.memory.evaluate import DreamQuality, frozen
from sona.memory.kinds import EdgeKind
from sona.memory.quantum import quantum_walks
from sona.memory.visited import Visited, incident

if TYPE_CHECKING:
    from sona.memory.graph import MemoryGraph
    from sona.memory.snapshot import GraphSnapshot

Generator = Literal["walk", "quantum", "mixed"]


@dataclass(frozen=True, slots=True)
class Dream:
    """
    One path through the memory.

    Attributes
    ----------
    nodes : tuple of int
        Ids in the order visited; a node may come again, but not twice in a row.
    proposals : tuple of (int, int)
        Pairs of visited nodes without an edge that could be linked, each once, those of the largest cosine first.
    generator : str
        "walk" or "quantum".
    seed : int
        Of the batch that it was made in.
    quality : DreamQuality or None
        None until it has been evaluated.
    """

    nodes: tuple[int, ...]
    proposals: tuple[tuple[int, int], ...]
    generator: Literal["walk", "quantum"]
    seed: int
    quality: DreamQuality | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamConfig:
    """
    How the memory dreams.

    Attributes
    ----------
    dreams_per_cycle : int
    length : int
        Nodes of a dream, at most; 2 to 64.
    generator : "walk", "quantum" or "mixed"
        Walk: from node to neighbour with probability proportional to weight ** (1 / temperature). Quantum: nodes measured after a
        continuous-time quantum walk, see `sona.memory.quantum`. Mixed: every other dream is a quantum one.
    temperature : float
        Above 0. Small follows the heaviest edges, large all alike.
    revisit : float
        Factor on the chance of a node that the walk has been at, in (0, 1].
    restart, jump : float
        Chances at each step of a return to the start, and of a leap to any node; together below 1.
    reach : int
        Nodes at most so many steps apart in a dream are proposed as a pair.
    creative_weight : float
        Of a new edge, in (0, 1]; one that n dreams of a cycle propose gets 1 - (1 - creative_weight) ** n.
    proposals_per_dream : int
        At most; those of the largest cosine are kept. Bounds what a cycle adds.
    quantum_nodes : int
        Size of the neighbourhood that a quantum walk lives in, 2 to 64.
    quantum_time : float
        Time until the measurement, drawn from half of it to one and a half times: about so many edges away.
    """

    dreams_per_cycle: int = 50
    length: int = 15
    generator: Generator = "walk"
    temperature: float = 1.0
    revisit: float = 0.3
    restart: float = 0.05
    jump: float = 0.05
    reach: int = 4
    creative_weight: float = 0.1
    proposals_per_dream: int = 8
    quantum_nodes: int = 64
    quantum_time: float = 2.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("dreams_per_cycle", 0, math.inf),
            ("length", 2, 64),
            ("reach", 1, math.inf),
            ("proposals_per_dream", 0, math.inf),
            ("quantum_nodes", 2, 64),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                up_to = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
                raise SonaValueError(f"{name}: expected an int {up_to}, got {value!r}")
        if self.generator not in ("walk", "quantum", "mixed"):
            raise SonaValueError(f"generator: expected walk, quantum or mixed, got {self.generator!r}")
        for name in ("temperature", "quantum_time"):
            if not 0 < getattr(self, name) < math.inf:
                raise SonaValueError(f"{name}: expected a finite number above 0, got {getattr(self, name)!r}")
        for name in ("revisit", "creative_weight"):
            if not 0 < getattr(self, name) <= 1:
                raise SonaValueError(f"{name}: expected a number in (0, 1], got {getattr(self, name)!r}")
        if not (self.restart >= 0 and self.jump >= 0 and self.restart + self.jump < 1):
            raise SonaValueError(f"restart, jump: expected numbers of at least 0 and below 1 together, got {self.restart!r}, {self.jump!r}")


class DreamEngine:
    """
    Dreams of one memory; it changes nothing by itself.

    Parameters
    ----------
    memory : MemoryGraph or GraphSnapshot
        A graph is read as it is at each call.
    config : DreamConfig
    seed : int
        The same memory in the same deep cycle gives the same dreams, batch after batch.
    """

    def __init__(self, memory: MemoryGraph | GraphSnapshot, config: DreamConfig | None = None, *, seed: int = 0) -> None:
        if type(seed) is not int or seed < 0:
            raise SonaValueError(f"seed: expected an int of at least 0, got {seed!r}")
        self.config = config or DreamConfig()
        self._memory, self._seed = memory, seed
        self._cycle, self._batch = -1, 0

    def generate_dream(self) -> Dream:
        """
        One dream.

        Raises
        ------
        SonaValueError
            An empty memory.
        """
        dreams = self.generate_dreams(1)
        if not dreams:
            raise SonaValueError("memory: expected at least one node to dream of, got none")
        return dreams[0]

    def generate_dreams(self, count: int | None = None) -> list[Dream]:
        """
        `count` dreams, dreams_per_cycle by default; none of an empty memory.

        Each starts at a node drawn in proportion to quality x strength, among those that have edges if any has. A node without edges
        makes a dream of one node, but for leaps.
        """
        if count is None:
            count = self.config.dreams_per_cycle
        if type(count) is not int or count < 0:
            raise SonaValueError(f"count: expected an int of at least 0, got {count!r}")
        snapshot = frozen(self._memory)
        if snapshot.cycle != self._cycle:
            self._cycle, self._batch = snapshot.cycle, 0
        seed = int(np.random.SeedSequence((self._seed, self._cycle, self._batch)).generate_state(1, np.uint64)[0] >> 1)
        self._batch += 1
        if not count or not len(snapshot.csr()):
            return []
        rng = np.random.default_rng(seed)
        starts = _starts(snapshot, count, rng)
        quantum = {"walk": 0, "quantum": count, "mixed": count // 2}[self.config.generator]
        paths = np.full((count, self.config.length), -1, np.int64)
        paths[: count - quantum] = self._walks(snapshot, starts[: count - quantum], seed)
        size, time = self.config.quantum_nodes, self.config.quantum_time
        paths[count - quantum :] = quantum_walks(snapshot.csr(), starts[count - quantum :], self.config.length, rng, size=size, time=time)
        return self._dreams(snapshot, _moving(paths), count - quantum, seed)

    def integrate_dream(self, dream: Dream) -> GraphChange:
        """What one dream would change: `integrate_dreams` of it alone."""
        return self.integrate_dreams([dream])

    def integrate_dreams(self, dreams: Sequence[Dream]) -> GraphChange:
        """
        Weak creative edges for the pairs that the dreams propose, for `MemoryGraph.apply`.

        Pairs that have an edge by now, and those with a node that is gone, are left out.
        """
        snapshot = frozen(self._memory)
        pairs = np.array([pair for dream in dreams for pair in dream.proposals], np.int64).reshape(-1, 2)
        pairs, count = np.unique(np.sort(pairs[np.isin(pairs, snapshot.ids).all(axis=1)], axis=1), axis=0, return_counts=True)
        which, at = incident(snapshot.csr(), snapshot.positions(pairs[:, 0]))
        linked = np.zeros(len(pairs), np.bool_)
        linked[which[snapshot.csr().column[at] == snapshot.positions(pairs[:, 1])[which]]] = True
        u, v = pairs[~linked].T
        weight = (1 - (1 - self.config.creative_weight) ** count[~linked]).astype(np.float32)
        return GraphChange(based_on=snapshot.version, link=(u, v, np.full(len(u), EdgeKind.CREATIVE, np.uint8), weight))

    def _walks(self, snapshot: GraphSnapshot, starts: Longs, seed: int) -> Longs:
        config = self.config
        return walks(
            snapshot.csr(),
            starts,
            config.length,
            seed=seed,
            temperature=config.temperature,
            revisit=config.revisit,
            restart=config.restart,
            jump=config.jump,
        ).astype(np.int64)

    def _dreams(self, snapshot: GraphSnapshot, paths: Longs, walked: int, seed: int) -> list[Dream]:
        """Dreams from paths of positions, the first `walked` of them by the walker."""
        visited = Visited.of(snapshot.csr(), paths)
        batch, u, v = np.nonzero(visited.near(self.config.reach) & (visited.weight == 0))
        u, v = visited.nodes[batch, u], visited.nodes[batch, v]
        x = snapshot.vectors
        cosine = np.einsum("ij,ij->i", x[u], x[v])
        order = np.lexsort((v, u, -cosine, batch))
        first = np.searchsorted(batch, np.arange(len(paths)))
        pairs = np.stack([snapshot.ids[u[order]], snapshot.ids[v[order]]], axis=1).tolist()
        count = np.bincount(batch, minlength=len(paths)).clip(max=self.config.proposals_per_dream)
        ids = np.where(paths >= 0, snapshot.ids[paths], -1)
        dreams = []
        for row in range(len(paths)):
            nodes = ids[row][ids[row] >= 0].tolist()
            proposals = tuple((a, b) for a, b in pairs[first[row] : first[row] + count[row]])
            dreams.append(Dream(tuple(nodes), proposals, "walk" if row < walked else "quantum", seed))
        return dreams


def _moving(paths: Longs) -> Longs:
    """The same paths without steps that stay where they are."""
    moves = (np.diff(paths, axis=1, prepend=-1) != 0) & (paths >= 0)
    order = np.argsort(~moves, axis=1, kind="stable")
    return np.take_along_axis(np.where(moves, paths, -1), order, axis=1)


def _starts(snapshot: GraphSnapshot, count: int, rng: np.random.Generator) -> Longs:
    """Positions (count,), drawn in proportion to quality x strength among the nodes with edges, or all if none has."""
    linked = snapshot.degree > 0
    allowed = linked if linked.any() else np.ones_like(linked)
    chance = snapshot.quality.astype(np.float64) * snapshot.strength * allowed
    total = np.cumsum(chance if chance.any() else allowed, dtype=np.float64)
    return np.searchsorted(total, rng.uniform(0, total[-1], size=count), side="right").clip(max=len(total) - 1)
