"""Loop C: once a week the memory takes in what has been learned, dreams, and keeps what is worth keeping."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np

from sona._arrays import Floats
from sona._locks import lock
from sona.errors import SonaValueError
from sona.loops.episodes import Episodes
from sona.loops.memory import Memory
from sona.loops.patterns import RequestPatterns
from sona.loops.ruling import at_least, between
from sona.memory import (
    ConsolidationConfig,
    Dream,
    DreamConfig,
    DreamEngine,
    DreamEvaluator,
    DreamGate,
    EdgeKind,
    EdgeWeights,
    GraphChange,
    MemoryConsolidator,
    MemoryGraph,
    NodeKind,
    proposals,
)
from sona.memory.checks import unit_rows
from sona.memory.edges import ACTIVATED

STAGES = ("patterns and decisions", "what was active together", "dreams", "proposed edges", "consolidation", "tasks", "store")
LEAST_ACTIVATION = 0.1  # cosine of a node that a request activates: the roadmap's
DREAMS = 500  # dreamed between two looks at the clock
PAIRS = ACTIVATED * (ACTIVATED - 1) // 2  # of nodes that a request activates
ROWS = 32  # requests compared with the memory at a time: 25 MB at 50,000 nodes


class TaskMemory(Protocol):
    """A `sona.EwcPlusPlus` or `sona.LowRankEwc`."""

    def consolidate_all_tasks(self) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLoopConfig:
    """
    How large a memory may grow, and how a deep cycle dreams.

    Attributes
    ----------
    deep_interval : float
        Seconds between cycles, for `LoopCoordinator`.
    dreams_per_cycle : int
    consolidation_threshold : float
        A node of this value or more grows stronger, the others weaker; in [0, 1].
    phi_threshold : float or None
        Least Phi of a dream that may propose edges, in bits. The roadmap's 0.3 passes between 9 and 82 % of dreams, depending on how long
        they are and how many edges a node has, and they are no better ones: docs/dreams.md.
    max_cycle_duration : float
        Seconds. A cycle that reaches it leaves out what is left and keeps what it has.
    max_nodes : int
        Of the memory.
    episodes : int
        The newest rewarded decisions that are in the memory beside patterns and what users put there.
    edge_update_scale : float
        What a request with reward 1 adds to the edges between the nodes that it activates, of what is left to 1.
    proposals : int
        Nodes whose best missing edges the closed form proposes in a cycle; 0: only dreams propose.
    dreams : DreamConfig, optional
    gate : DreamGate, optional
        Default: the denser half of the dreams, and `phi_threshold`.
    consolidation : ConsolidationConfig, optional
    seed : int
    """

    deep_interval: float = 7 * 86400.0
    dreams_per_cycle: int = 50
    consolidation_threshold: float = 0.7
    phi_threshold: float | None = None
    max_cycle_duration: float = 600.0
    max_nodes: int = 50_000
    episodes: int = 1000
    edge_update_scale: float = 0.01
    proposals: int = 50
    dreams: DreamConfig | None = None
    gate: DreamGate | None = None
    consolidation: ConsolidationConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        between("deep_interval", self.deep_interval, 0, math.inf)
        between("max_cycle_duration", self.max_cycle_duration, 0, math.inf)
        between("consolidation_threshold", self.consolidation_threshold, 0, 1 + 1e-9)
        between("edge_update_scale", self.edge_update_scale, 0, 1 + 1e-9)
        if self.phi_threshold is not None:
            between("phi_threshold", self.phi_threshold, 0, math.inf)
        for name, least in (("dreams_per_cycle", 0), ("max_nodes", 1), ("episodes", 0), ("proposals", 0), ("seed", 0)):
            at_least(name, getattr(self, name), least)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepResult:
    """
    What one deep cycle did.

    Attributes
    ----------
    dreams_generated, dreams_integrated : int
        The second: those that passed the gate.
    patterns_strengthened, patterns_pruned : int
        Nodes of the memory: patterns, what users put in, and decisions. Pruned are those removed or taken in by another one.
    elapsed : float
        Seconds.
    status : str
        "completed", "cut: " and at which stage the time was over, or "skipped: " and why.
    nodes, edges : int
        Of the memory afterwards.
    edges_added, edges_pruned : int
    dreams : tuple of Dream
        All of them, with their quality.
    """

    dreams_generated: int = 0
    dreams_integrated: int = 0
    patterns_strengthened: int = 0
    patterns_pruned: int = 0
    elapsed: float = 0.0
    status: str
    nodes: int = 0
    edges: int = 0
    edges_added: int = 0
    edges_pruned: int = 0
    dreams: tuple[Dream, ...] = field(default=(), repr=False)

    @classmethod
    def skipped(cls, reason: str) -> Self:
        """Nothing was done."""
        return cls(status=f"skipped: {reason}")


class DeepLoop:
    """
    The deep cycle of an engine's memory.

    Parameters
    ----------
    config : DeepLoopConfig
    memory : Memory
    patterns : RequestPatterns
        Whose patterns are nodes.
    episodes : callable
        Takes a number, returns that many of the newest rewarded decisions, oldest first.
    clock : callable
        Monotonic seconds.

    Notes
    -----
    What the store has of the memory changes once, at the end. A process that is killed before leaves the memory of before. Every step
    changes the graph as a whole or not at all, so a cycle that fails or runs out of time leaves one that is valid, and what users do
    meanwhile is not lost: what was used since a step looked is not removed by it.

    It serves nobody's decision: neither the adapter nor the policy is touched.
    """

    def __init__(
        self,
        config: DeepLoopConfig,
        memory: Memory,
        patterns: RequestPatterns,
        episodes: Callable[[int], Episodes],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.memory = config, memory
        self._patterns, self._episodes, self._clock = patterns, episodes, clock
        self._running = lock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No cycle is under way inside; waits for one that is."""
        with self._running:
            yield

    def due_in(self) -> float:
        """Seconds until `deep_interval` has passed since the last cycle, whichever process ran it; from 0 to `deep_interval`."""
        left = self.memory.deep_at + self.config.deep_interval - self.memory.now()
        return min(max(left, 0.0), self.config.deep_interval)  # more: the clock was set back

    def run_cycle(
        self,
        *,
        duration: float | None = None,
        ewc: TaskMemory | None = None,
        progress: Callable[[int, str], object] | None = None,
    ) -> DeepResult:
        """
        One cycle; a second call while one is under way is skipped.

        Parameters
        ----------
        duration : float, optional
            Seconds; default `max_cycle_duration`.
        ewc : EwcPlusPlus or LowRankEwc, optional
            A memory of tasks of the caller's, whose tasks become one.
        progress : callable
            Takes how many of the `STAGES` are done, and which is next.

        Raises
        ------
        SonaStoreError
            The memory cannot be written; the cycle is in effect until the process ends, and `flush` tries again.
        """
        if not self._running.acquire(blocking=False):
            return DeepResult.skipped("another cycle is under way")
        try:
            seconds = self.config.max_cycle_duration if duration is None else duration
            if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
                raise SonaValueError(f"duration: expected a finite number of seconds of at least 0, got {seconds!r}")
            return _Cycle(self, self._clock() + seconds, progress or (lambda done, stage: None)).run(ewc)
        finally:
            self._running.release()


class _Cycle:
    """One run, with the time that it has."""

    def __init__(self, loop: DeepLoop, deadline: float, progress: Callable[[int, str], object]) -> None:
        self._loop, self._deadline, self._progress = loop, deadline, progress
        self._config, self._memory = loop.config, loop.memory
        self._graph = loop.memory.graph
        self._cut = ""  # stage at which the time was over
        self._stage = 0
        self._added = self._pruned = 0  # edges

    def run(self, ewc: TaskMemory | None) -> DeepResult:
        config, graph = self._config, self._graph
        began = time.perf_counter()
        dreams: list[Dream] = []
        passed: list[Dream] = []
        strengthened = pruned = 0
        if self._next():
            self._take_in()
        if self._next():
            self._activate()
        if self._next():
            now = graph.snapshot()  # users may forget meanwhile what is dreamed of
            engine = DreamEngine(now, config.dreams or DreamConfig(), seed=config.seed)
            dreams = self._dream(engine, DreamEvaluator(now))
            passed = self._gate().select(dreams)
            self._apply(engine.integrate_dreams(passed))
        if self._next():
            self._propose()
        if self._next():
            done = MemoryConsolidator(config.consolidation, clock=self._loop._clock).consolidate(
                graph.snapshot(), config.consolidation_threshold, self._deadline
            )
            self._cut = "" if done.complete else STAGES[self._stage - 1]
            self._apply(done.change)
            strengthened, pruned = done.strengthened, done.removed + done.merged
            self._pruned += done.pruned
        if self._next() and ewc is not None:
            ewc.consolidate_all_tasks()
        self._stage = len(STAGES)
        self._progress(self._stage - 1, STAGES[-1])
        edges = int(graph.degree.sum()) // 2
        self._memory.ended(dreams, len(passed), edges)
        self._progress(self._stage, "")
        return DeepResult(
            dreams_generated=len(dreams),
            dreams_integrated=len(passed),
            patterns_strengthened=strengthened,
            patterns_pruned=pruned,
            elapsed=time.perf_counter() - began,
            status=f"cut: {self._cut}" if self._cut else "completed",
            nodes=len(graph),
            edges=edges,
            edges_added=self._added,
            edges_pruned=self._pruned,
            dreams=tuple(dreams),
        )

    def _next(self) -> bool:
        """Whether there is time for the next stage."""
        self._progress(self._stage, STAGES[self._stage])
        self._stage += 1
        return not self._late()

    def _dream(self, engine: DreamEngine, evaluator: DreamEvaluator) -> list[Dream]:
        """Dreams with their quality, as many as there is time for, but one batch at least."""
        dreams: list[Dream] = []
        while len(dreams) < self._config.dreams_per_cycle:
            batch = engine.generate_dreams(min(self._config.dreams_per_cycle - len(dreams), DREAMS))
            dreams += evaluator.evaluate(batch)
            if not batch or (len(dreams) < self._config.dreams_per_cycle and self._late()):
                break
        return dreams

    def _late(self) -> bool:
        """Whether the time is over, of which this stage is then the end."""
        if not self._cut and self._loop._clock() >= self._deadline:
            self._cut = STAGES[self._stage - 1]
        return bool(self._cut)

    def _apply(self, change: GraphChange) -> None:
        counts = self._graph.apply(change)
        self._added += counts["linked"]

    def _gate(self) -> DreamGate:
        gate = self._config.gate or DreamGate()
        return gate if self._config.phi_threshold is None else replace(gate, phi_threshold=self._config.phi_threshold)

    # ---- what has been learned since ----

    def _take_in(self) -> None:
        """Patterns as the bank has them now, at most half of the memory, and the rewarded decisions that are not known yet."""
        graph, memory = self._graph, self._memory
        heaviest = sorted(self._loop._patterns.current(), key=lambda pattern: (-pattern.total_weight, pattern.id))
        patterns = heaviest[: max(self._config.max_nodes // 2, 1)]
        keys = {pattern.id for pattern in patterns}
        graph.remove([id for id, key in zip(*map(np.ndarray.tolist, graph.of_kind(NodeKind.PATTERN)[:2]), strict=True) if key not in keys])
        known = [(pattern, graph.find(pattern.id, NodeKind.PATTERN)) for pattern in patterns]
        old = [(pattern, id) for pattern, id in known if id is not None]
        if old:
            graph.update(
                [id for _, id in old],
                vectors=np.stack([pattern.centroid for pattern, _ in old]),
                quality=[pattern.avg_quality for pattern, _ in old],
            )
        new = [pattern for pattern, id in known if id is None]
        if new:
            graph.add_many(
                np.stack([pattern.centroid for pattern in new]),
                kind=NodeKind.PATTERN,
                quality=[pattern.avg_quality for pattern in new],
                keys=[pattern.id for pattern in new],
            )
        memory.take_in(self._loop._episodes(self._config.episodes))

    def _activate(self) -> None:
        """Join what each new request activates, in proportion to its reward."""
        x, reward = self._memory.activations()
        if not len(x):
            return
        graph, edges = self._graph, EdgeWeights(max(len(x) * PAIRS, 2))
        found = activated(graph, x)
        for nodes, quality in zip(found, reward.tolist(), strict=True):
            edges.update_from_signal(nodes, quality, self._config.edge_update_scale)
        self._added += edges.commit(graph)
        patterns = set(graph.of_kind(NodeKind.PATTERN)[0].tolist())
        graph.touch([nodes[0] for nodes in found if nodes and nodes[0] in patterns])  # a request is a use of its pattern

    # ---- what nothing has shown yet ----

    def _propose(self) -> None:
        """Creative edges where the two-step walks from the nodes of most worth say that one is missing."""
        config, now = self._config, self._graph.snapshot()
        worth = now.strength * now.quality
        linked = np.flatnonzero(now.degree > 0)
        starts = np.sort(linked[np.argsort(-worth[linked], kind="stable")][: config.proposals])
        if not len(starts):
            return
        u, v, _ = proposals(now.csr(), starts, 1)
        weight = np.full(len(u), (config.dreams or DreamConfig()).creative_weight, np.float32)
        kind = np.full(len(u), EdgeKind.CREATIVE, np.uint8)
        self._apply(GraphChange(based_on=now.version, link=(now.ids[u], now.ids[v], kind, weight)))


def activated(graph: MemoryGraph, x: Floats) -> list[list[int]]:
    """For each row of x (n, dim) the ids of at most 5 patterns and memories whose cosine to it is 0.1 or more, most similar first."""
    now, x = graph.snapshot(), unit_rows(x, (None, graph.dim), "x")
    lasting = now.kinds != NodeKind.EPISODE
    most = min(ACTIVATED, int(lasting.sum()))
    if not most:
        return [[] for _ in x]
    found = []
    for first in range(0, len(x), ROWS):
        cosine = x[first : first + ROWS] @ now.vectors.T
        cosine[:, ~lasting] = -2
        best = np.argpartition(cosine, -most, axis=1)[:, -most:]
        for row, columns in zip(cosine, best, strict=True):
            ordered = columns[np.lexsort((columns, -row[columns]))]
            found.append(now.ids[ordered[row[ordered] >= LEAST_ACTIVATION]].tolist())
    return found
