"""The memory of an engine: what its user put in, the patterns and the newest rewarded decisions, as one graph that the store keeps."""

import hashlib
import logging
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from sona._arrays import Floats, coerce
from sona._locks import lock, rlock
from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaValueError, SonaVersionError, SonaWarning
from sona.loops.episodes import Episodes
from sona.loops.journal import MEMORY, POLL_SECONDS, Keeper, decode_state, encode_state
from sona.memory import Dream, EdgeKind, GraphChange, MemoryGraph, NodeKind, Propagation, Recalled
from sona.store import DecisionRow, Store
from sona.store.outcomes import LeaseLost
from sona.trajectory import decode

FORMAT = 1
HISTORY = 100  # deep cycles that are remembered
DREAMS = 8  # of the last deep cycle, those with the most proposals, that are remembered
NOTED = 1000  # outcomes that wait for the next one: the roadmap's max_pending_signals
CHUNK = 1024  # decisions read at a time
VERSION, NEXT = 2, 3  # of the graph, and the id of its next node: where they are in its state
ROUNDING = 5e-4  # of the length of a vector: less than a graph lets pass
LEARNED = "propagation."  # arrays of the learned message passing
MEASURED = ("density", "coherence", "novelty", "utility", "phi")

log = logging.getLogger(__name__)


class Memory:
    """
    A `MemoryGraph` for an engine.

    Parameters
    ----------
    dim : int
    keeper : Keeper or None
        The process that leads keeps the memory in the store: with `flush` and `close` of its engine, and after each deep cycle. The others
        follow within a second of a lookup, and cannot change it.
    max_nodes : int
        Bound; what is worth least goes first.
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    deep_at : float
        Seconds since the epoch at which the last deep cycle ended; before the first, at which the memory began.
    history : list of dict
        What came of the newest 100 deep cycles: cycle, at (seconds since the epoch), nodes by kind, edges, dreams, how many of them passed
        the gate, mean strength of the nodes, and the dreams' mean density, coherence, novelty, utility and Phi, None without dreams.
    dreams : list of dict
        Of the last deep cycle: nodes, the ids in the order visited; proposals, pairs of ids; generator; density and phi.

    Warns
    -----
    SonaWarning
        What the store keeps is damaged, or of another dim: the memory starts empty.

    Raises
    ------
    SonaVersionError
        A newer sona wrote it.

    Notes
    -----
    What is kept has no request in it: of a decision the graph keeps id, strength and edges, and takes the vector from the decision's own
    row when it is read again. Whatever the store forgets is gone from the memory as well.

    Thread-safety
    -------------
    Any thread, also during a deep cycle.
    """

    def __init__(
        self,
        dim: int,
        keeper: Keeper | None,
        *,
        max_nodes: int = 50_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dim, self._keeper, self._max_nodes, self._clock = dim, keeper, max_nodes, clock
        self._graph = MemoryGraph(dim, max_nodes=max_nodes)
        self.deep_at = self.now()
        self.history: list[dict[str, Any]] = []
        self.dreams: list[dict[str, Any]] = []
        self._propagation: Propagation | None = None
        self._noted: dict[int, tuple[Floats | bytes, float]] = {}  # by id of the trajectory or decision, the oldest first
        self._noting = lock(brief=True)
        self._taken: dict[int, float] = {}  # rewards of the decisions that were among the newest at the last deep cycle
        self._digest = b""  # of the state that was last read or written
        self._saved = -1  # version of the graph that the store has
        self._kept: dict[int, int] | None = None  # checksum of each vector that the store has, by id; None: unknown
        self._next_look = -np.inf
        self._led: int | None = None  # term of the lease under which all that others have kept has been read; None: followed
        self._closed = False
        self._storing = rlock()  # held while the store is read or written, before the store's own
        if keeper is not None:
            self._state_name = state_name(keeper.name)
            self.follow(now=True)

    @property
    def graph(self) -> MemoryGraph:
        """
        The graph; to be changed where this process leads.

        Raises
        ------
        SonaStoreError, SonaVersionError
            This process leads since a moment ago, and what the one before has kept cannot be read.
        """
        self._lead()
        return self._graph

    def _lead(self) -> None:
        """Go on from what the process that led before has kept, where this one has come to lead."""
        keeper = self._keeper
        if keeper is not None and keeper.leading and self._led != keeper.term and not self._closed:
            self.follow(now=True)

    # ---- what users do ----

    def add(self, x: Any, data: Any = None, *, quality: float = 0.5) -> int:
        """
        Remember something; durable once `engine.flush` has returned.

        Parameters
        ----------
        x : array (hidden_dim,)
            Where it belongs: a request like those for which it is to come back.
        data : whatever JSON can hold, optional
        quality : float
            In [0, 1].

        Returns
        -------
        int
            Its id, which no other memory ever gets.

        Raises
        ------
        SonaValueError, SonaTypeError
            x of another shape, zero or not finite; quality outside [0, 1]; data that JSON cannot hold.
        SonaStoreError
            Another process learns for this store.
        SonaClosedError
            The engine is closed.
        """
        self._check()
        x = coerce(x, (self._dim,), "x")
        if not x.any():
            raise SonaValueError("x: expected a vector other than zero, which is similar to nothing")
        return self.graph.add(x, kind=NodeKind.MEMORY, quality=quality, data=data)

    def recall(self, x: Any, k: int = 5, *, hops: int = 0) -> list[Recalled]:
        """
        The k memories, patterns and decisions nearest to x (hidden_dim,), best first; see `MemoryGraph.recall`.

        Parameters
        ----------
        hops : int
            0: by similarity alone. Else also what is within that many edges of it.
        """
        self.follow()
        return self.graph.recall(x, k, hops=hops, mark=self._may_change)

    def used(self, ids: Iterable[int], retrieved: Iterable[int] = ()) -> int:
        """
        These of the recalled ids were of use, the other `retrieved` ones were not: see `MemoryGraph.used`.

        Returns how many of the used ones are still there; the others, and those that never were, are left out.
        """
        self._check()
        return self.graph.used(list(ids), list(retrieved), missing=True)

    def forget(self, ids: Iterable[int]) -> int:
        """
        Remove memories, and overwrite their bytes in the store and its log; how many there were.

        Raises
        ------
        SonaStoreError
            Another process learns for this store, or it cannot be written, or a reader kept the log in use: they are gone from memory, and
            their bytes may still be in the file; call again.
        """
        self._check()
        gone = self.graph.remove(list(ids))
        keeper = self._keeper
        if keeper is not None:
            self._write_twice(keeper)
            keeper.store.scrub_log()
        return gone

    @property
    def _may_change(self) -> bool:
        return self._keeper is None or self._keeper.leading

    def _check(self) -> None:
        if self._closed:
            raise SonaClosedError("the engine is closed")
        if not self._may_change:
            raise SonaStoreError("memory: another process learns for this store; change it there")

    @property
    def propagation(self) -> Propagation | None:
        """Learned message passing of the caller's, which is kept with the memory; nothing here uses it."""
        return self._propagation

    @propagation.setter
    def propagation(self, learned: Propagation | None) -> None:
        self._check()
        with self._storing:
            self._lead()
            self._propagation, self._saved = learned, -1

    def __len__(self) -> int:
        return len(self.graph)

    # ---- what the engine does ----

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def note(self, id: int, record: bytes, reward: float) -> None:
        """
        A trajectory has a reward, maybe another one: what its query activates is joined in the next deep cycle. Of those that wait the
        newest 1000 are kept.
        """
        if self._may_change:
            self._note([(id, record, reward)])

    def _note(self, noted: Iterable[tuple[int, Floats | bytes, float]]) -> None:
        with self._noting:
            for id, x, reward in noted:
                self._noted.pop(id, None)
                self._noted[id] = (x, reward)
            for id in list(self._noted)[: max(len(self._noted) - NOTED, 0)]:
                del self._noted[id]

    def take_in(self, episodes: Episodes) -> None:
        """Make nodes of the decisions that are not known yet; those that have another reward now begin anew, forgotten ones go."""
        graph, rewards = self.graph, dict(zip(episodes.id.tolist(), episodes.reward.tolist(), strict=True))
        known = list(zip(*(column.tolist() for column in graph.of_kind(NodeKind.EPISODE)), strict=True))
        then = self._taken | {key: quality for _, key, quality in known}  # near-duplicates have no node of their own
        new = np.array([then.get(key) != reward for key, reward in rewards.items()], np.bool_)
        forgotten = self._forgotten([key for _, key, _ in known if key not in rewards])
        gone = forgotten.union(episodes.id[new].tolist())
        graph.remove([id for id, key, _ in known if key in gone])
        with self._noting:
            for key in forgotten:
                self._noted.pop(key, None)
        self._taken = rewards
        room = max(self._max_nodes - int((graph.kinds != NodeKind.EPISODE).sum()), 0)
        new[np.flatnonzero(new)[: max(int(new.sum()) - room, 0)]] = False  # they do not push out what users put in
        if new.any():
            about = [{"arm": episodes.arm[at], "reward": float(episodes.reward[at])} for at in np.flatnonzero(new).tolist()]
            graph.add_many(episodes.x[new], kind=NodeKind.EPISODE, quality=episodes.reward[new], keys=episodes.id[new], data=about)
            self._note(zip(episodes.id[new].tolist(), episodes.x[new], episodes.reward[new].tolist(), strict=True))

    def _forgotten(self, keys: list[int]) -> set[int]:
        """Which of these decisions the store does not have any more."""
        if self._keeper is None:
            return set()
        return set(keys).difference(row.id for row in _stored(self._keeper.store, keys))

    def activations(self) -> tuple[Floats, Floats]:
        """Requests (n, dim) whose outcome has come since the last deep cycle, and their rewards (n,); they are told once."""
        with self._noting:
            noted = list(self._noted.values())
            self._noted.clear()
        if not noted:
            return np.empty((0, self._dim), np.float32), np.empty(0, np.float32)
        x = np.stack([decode(each).query_embedding if isinstance(each, bytes) else each for each, _ in noted])
        return x, np.array([reward for _, reward in noted], np.float32)

    def ended(self, dreams: Sequence[Dream], passed: int, edges: int) -> None:
        """A deep cycle has done its work: count it, remember how it went, and keep the memory in the store."""
        graph = self.graph
        graph.cycle += 1
        self.deep_at = self.now()
        count, strength = np.bincount(graph.kinds, minlength=len(NodeKind)), graph.strength
        qualities = [dream.quality for dream in dreams if dream.quality is not None]
        measured = {name: [getattr(quality, name) for quality in qualities] for name in MEASURED}
        self.history = [
            *self.history[1 - HISTORY :],
            {
                "cycle": graph.cycle,
                "at": self.deep_at,
                "nodes": {kind.name.lower(): int(count[kind]) for kind in NodeKind},
                "edges": edges,
                "dreams": len(dreams),
                "passed": passed,
                "strength": float(strength.mean()) if len(strength) else None,
                **{name: float(np.mean(values)) if values else None for name, values in measured.items()},
            },
        ]
        measured_dreams = sorted((dream for dream in dreams if dream.quality is not None), key=lambda dream: -len(dream.proposals))
        self.dreams = [_about(dream) for dream in measured_dreams[:DREAMS]]
        with self._storing:
            self._saved = -1
            self.save()

    def forget_rewards(self) -> None:
        """Drop whatever was made of rewards: patterns, decisions, and what they taught the edges; what users put in stays."""
        graph = self.graph
        for kind in (NodeKind.PATTERN, NodeKind.EPISODE):
            graph.remove(graph.of_kind(kind)[0])
        graph.apply(GraphChange(based_on=graph.version, decay={EdgeKind.COACTIVATION: 0.0}))
        with self._noting:
            self._noted.clear()
        self._taken, self.dreams = {}, []
        if self._keeper is not None and self._keeper.leading:
            self._write_twice(self._keeper)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state in the store."""
        return () if self._keeper is None else (self._state_name,)

    def save(self) -> None:
        """
        Keep the memory in the store if it has changed, and if this process leads; SonaStoreError when that cannot be written,
        SonaClosedError when the engine is closed.
        """
        keeper = self._keeper
        if keeper is None:
            return
        with self._storing:
            if self._closed:
                raise SonaClosedError("the engine is closed")
            if keeper.leading and self._graph.version != self._saved:
                self._lead()
                if self._graph.version != self._saved:
                    self._write(keeper)

    def close(self) -> None:
        """Keep the memory a last time, as it is then; a cycle that is still under way keeps nothing more."""
        with self._storing:
            try:
                if not self._closed:
                    self.save()
            except LeaseLost as error:  # whoever leads now keeps a memory of its own
                log.warning("memory: %s", error, extra={"event": "memory.not_saved", "error": str(error)})
            finally:
                self._closed = True

    def _write(self, keeper: Keeper) -> None:
        """The state, and beside it the vectors that the store does not have yet. A request is in the store in one place only."""
        arrays = self._graph.state()
        vectors, ids, version = arrays.pop("vectors"), arrays["ids"].tolist(), int(arrays["graph"][VERSION])
        lasting = np.flatnonzero(arrays["kinds"] != NodeKind.EPISODE).tolist()
        now = {ids[at]: zlib.crc32(vectors[at]) for at in lasting}
        before = {} if self._kept is None else self._kept
        new = [(ids[at], at) for at in lasting if before.get(ids[at]) != now[ids[at]]]
        taken = dict(sorted(self._taken.items()))
        arrays |= {"taken": np.array(list(taken), np.int64), "taken_reward": np.array(list(taken.values()), np.float32)}
        if self._propagation is not None:
            arrays |= {f"{LEARNED}{name}": array for name, array in self._propagation.state().items()}
        about = {"format": FORMAT, "dim": self._dim, "deep_at": self.deep_at, "history": self.history, "dreams": self.dreams}
        blob = encode_state(arrays, about)
        keeper.store.put_state(
            self._state_name,
            blob,
            0,
            vectors=((id, vectors[at].tobytes()) for id, at in new),
            drop=None if self._kept is None else before.keys() - now.keys(),
            term=self._led,
        )
        self._kept, self._saved, self._digest = now, version, hashlib.sha256(blob).digest()

    def _write_twice(self, keeper: Keeper) -> None:
        """The store keeps the state before the last as well: after this neither has anything that the memory does not have."""
        with self._storing:
            if self._state_name in keeper.store.state_names():
                self._write(keeper)
                self._write(keeper)

    def follow(self, *, now: bool = False) -> None:
        """Read what the process that leads has kept since. The leader itself looks only `now`, as long as it leads no longer than that."""
        keeper = self._keeper
        if keeper is None or not (now or (not keeper.leading and self._clock() >= self._next_look)):
            return
        with self._storing:
            leading, term = keeper.leading, keeper.term  # nobody else writes what is read from now on, if this one leads
            if self._closed or (leading and self._led == term):
                return
            self._next_look = self._clock() + POLL_SECONDS
            try:
                while not self._up_to_date(keeper.store):
                    pass
            except SonaCorruptError as error:
                self._kept, self._saved = None, self._graph.version  # it stays there until there is something else to keep
                warnings.warn(f"memory {self._state_name!r}: {error}; it starts empty", SonaWarning, stacklevel=3)
            except SonaClosedError:  # by a fork: what was known then is known here
                if now:
                    raise
                return
            except SonaStoreError as error:
                if now:
                    raise
                log.warning("memory: %s", error, extra={"event": "memory.unreadable", "error": str(error)})
                return
            self._led = term if leading else None

    def _up_to_date(self, store: Store) -> bool:
        """Read the state if it is another one than the last; False when others wrote meanwhile."""
        kept = store.get_state(self._state_name)
        digest = b"" if kept is None else hashlib.sha256(kept[0]).digest()
        if kept is None or digest == self._digest:
            return True
        try:
            done = self._read(kept[0], store)
        except SonaCorruptError:
            self._digest = digest
            raise
        if done:
            self._digest = digest
        return done

    def _read(self, blob: bytes, store: Store) -> bool:
        arrays, meta = decode_state(blob)
        if meta.get("format", 0) > FORMAT:
            raise SonaVersionError(f"memory: expected format {FORMAT} or older, got {meta['format']}")
        try:
            if meta["dim"] != self._dim:
                raise SonaCorruptError(f"expected vectors of dim {self._dim}, got {meta['dim']}")
            deep_at, history = float(meta["deep_at"]), list(meta["history"])
            dreams = list(meta.get("dreams", []))  # absent: from before they were kept
            taken = dict(zip(arrays.pop("taken").tolist(), arrays.pop("taken_reward").tolist(), strict=True))
            ids, keys, kinds = (arrays[name].tolist() for name in ("ids", "keys", "kinds"))
            learned = {name.removeprefix(LEARNED): arrays.pop(name) for name in list(arrays) if name.startswith(LEARNED)}
            propagation = Propagation.from_state(learned) if learned else None
            episodes = {key: at for at, (key, kind) in enumerate(zip(keys, kinds, strict=True)) if kind == NodeKind.EPISODE}
            others = {id: at for at, (id, kind) in enumerate(zip(ids, kinds, strict=True)) if kind != NodeKind.EPISODE}
            counts = arrays["graph"].copy()
        except (KeyError, TypeError, ValueError) as error:
            raise SonaCorruptError(f"expected what sona wrote, got: {error}") from error
        vectors = np.zeros((len(ids), self._dim), np.float32)
        crc = {}
        for id, vector in store.vectors_of(self._state_name):
            crc[id] = zlib.crc32(vector)
            if id in others and len(vector) == 4 * self._dim:
                vectors[others.pop(id)] = np.frombuffer(vector, "<f4")
        for row in _stored(store, list(episodes)):
            if row.id in episodes and (x := _direction(row, self._dim)) is not None:  # a damaged index may lead to another row
                vectors[episodes.pop(row.id)] = x
        if others:
            again = store.get_state(self._state_name)
            if again is not None and again[0] != blob:
                return False
            warnings.warn(
                f"memory {self._state_name!r}: {len(others)} of {len(ids)} vectors are missing or damaged", SonaWarning, stacklevel=5
            )
        if counts.shape == (NEXT + 1,):  # in an older state the number of ids that were given out by then: none comes twice
            counts[NEXT] = max([int(counts[NEXT]), *(id + 1 for id in crc)])
        graph = MemoryGraph.from_state({**arrays, "graph": counts, "vectors": vectors}, max_nodes=max(self._max_nodes, len(ids), 1))
        saved, now = graph.version, self.now()
        graph.remove(graph.ids[[*episodes.values(), *others.values()]])
        graph.remove(graph.of_kind(NodeKind.PATTERN)[0][self._max_nodes :])  # the next cycle takes in those that there is room for
        graph.shrink(self._max_nodes)
        if not deep_at <= now:  # the clock was set back, and this is to be kept
            deep_at, saved = now, -1
        self._graph, self._saved, self._kept = graph, saved, None if others else crc
        self.deep_at, self.history, self._taken, self._propagation = deep_at, history, taken, propagation
        self.dreams = dreams
        return True


def _stored(store: Store, ids: list[int]) -> Iterator[DecisionRow]:
    """Those of these decisions that the store still has; damaged ones are left out."""
    for first in range(0, len(ids), CHUNK):
        some = ids[first : first + CHUNK]
        try:
            yield from store.decisions_of(some).values()
        except SonaCorruptError:
            for id in some:
                with suppress(SonaCorruptError):
                    yield from store.decisions_of([id]).values()


def _direction(row: DecisionRow, dim: int) -> Floats | None:
    """x of a decision, (dim,), whose length is 1 or 0 where it is not damaged: None."""
    if len(row.x) != 4 * dim:
        return None
    x: Floats = np.frombuffer(row.x, "<f4")
    length = float(np.linalg.norm(x.astype(np.float64)))
    return x if length == 0 or abs(length - 1) < ROUNDING else None


def _about(dream: Dream) -> dict[str, Any]:
    """What is remembered of a dream; it has been evaluated."""
    assert dream.quality is not None
    return {
        "nodes": list(dream.nodes),
        "proposals": [list(pair) for pair in dream.proposals],
        "generator": dream.generator,
        "density": float(dream.quality.density),
        "phi": float(dream.quality.phi),
    }


def state_name(name: str) -> str:
    """Under which the memory of a learner of that name is kept in a store."""
    return f"{name[:40]}{MEMORY}{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def kept_nodes(store: Store, name: str) -> int:
    """Nodes of the memory that a store keeps for the learner of that name. SonaCorruptError when they are damaged."""
    kept = store.get_state(state_name(name))
    return 0 if kept is None else len(decode_state(kept[0])[0].get("kinds", ()))
