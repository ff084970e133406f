"""The memory of an engine: what its user put in, the patterns and the newest rewarded decisions, as one graph that the store keeps."""

import hashlib
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaCorruptError, SonaStoreError, SonaVersionError, SonaWarning
from sona.loops.episodes import Episodes
from sona.loops.journal import MEMORY, POLL_SECONDS, Keeper, decode_state, encode_state, log
from sona.memory import Dream, EdgeKind, GraphChange, MemoryGraph, NodeKind, Propagation, Recalled
from sona.store import SqliteStore
from sona.trajectory import decode

FORMAT = 1
HISTORY = 100  # deep cycles that are remembered
NOTED = 1000  # outcomes that wait for the next one: the roadmap's max_pending_signals
CHUNK = 1024  # decisions read at a time
VERSION = 2  # of the graph, in its state
LEARNED = "propagation."  # arrays of the learned message passing
MEASURED = ("density", "coherence", "novelty", "utility", "phi")


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
    graph : MemoryGraph
    deep_at : float
        Seconds since the epoch at which the last deep cycle ended; before the first, at which the memory began.
    history : list of dict
        What came of the newest 100 deep cycles: cycle, at (seconds since the epoch), nodes by kind, edges, dreams, how many of them passed
        the gate, mean strength of the nodes, and the dreams' mean density, coherence, novelty, utility and Phi, None without dreams.

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
        self.graph = MemoryGraph(dim, max_nodes=max_nodes)
        self.deep_at = self.now()
        self.history: list[dict[str, Any]] = []
        self._propagation: Propagation | None = None
        self._noted: deque[tuple[Floats | bytes, float]] = deque(maxlen=NOTED)
        self._taken: set[int] = set()  # decisions that were among the newest at the last deep cycle
        self._digest = b""  # of the state that was last read
        self._saved = -1  # version of the graph that the store has
        self._kept: dict[int, int] = {}  # checksum of each vector that the store has, by id
        self._next_look = -np.inf
        self._looking = threading.Lock()
        if keeper is not None:
            self._state_name = state_name(keeper.name)
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
        """
        self._check()
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
        there = [[id for id in some if self.graph.resolve(id) is not None] for some in (ids, retrieved)]
        self.graph.used(*there)
        return len(there[0])

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
        if not self._may_change:
            raise SonaStoreError("memory: another process learns for this store; change it there")

    @property
    def propagation(self) -> Propagation | None:
        """Learned message passing of the caller's, which is kept with the memory; nothing here uses it."""
        return self._propagation

    @propagation.setter
    def propagation(self, learned: Propagation | None) -> None:
        self._check()
        self._propagation, self._saved = learned, -1

    def __len__(self) -> int:
        return len(self.graph)

    # ---- what the engine does ----

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def note(self, record: bytes, reward: float) -> None:
        """A trajectory ended: what its query activates is joined in the next deep cycle. Of those that wait the newest 1000 are kept."""
        if self._may_change:
            self._noted.append((record, reward))

    def take_in(self, episodes: Episodes) -> None:
        """Make nodes of the decisions that are not known yet; those that have another reward now begin anew, forgotten ones go."""
        graph, rewards = self.graph, dict(zip(episodes.id.tolist(), episodes.reward.tolist(), strict=True))
        own = graph.kinds == NodeKind.EPISODE
        known = list(zip(graph.ids[own].tolist(), graph.keys[own].tolist(), graph.quality[own].tolist(), strict=True))
        changed = {key for _, key, quality in known if key in rewards and rewards[key] != quality}
        gone = changed | self._forgotten([key for _, key, _ in known if key not in rewards])
        graph.remove([id for id, key, _ in known if key in gone])
        new = np.array([key in changed or key not in self._taken for key in rewards], np.bool_)
        self._taken = set(rewards)
        room = max(self._max_nodes - int((graph.kinds != NodeKind.EPISODE).sum()), 0)
        new[np.flatnonzero(new)[: max(int(new.sum()) - room, 0)]] = False  # they do not push out what users put in
        if new.any():
            about = [{"arm": episodes.arm[at], "reward": float(episodes.reward[at])} for at in np.flatnonzero(new).tolist()]
            graph.add_many(episodes.x[new], kind=NodeKind.EPISODE, quality=episodes.reward[new], keys=episodes.id[new], data=about)
            self._noted.extend(zip(episodes.x[new], episodes.reward[new].tolist(), strict=True))

    def _forgotten(self, keys: list[int]) -> set[int]:
        """Which of these decisions the store does not have any more."""
        if self._keeper is None:
            return set()
        return set(keys).difference(*(found.id.tolist() for found in _stored(self._keeper.store, self._dim, keys)))

    def activations(self) -> tuple[Floats, Floats]:
        """Requests (n, dim) whose outcome has come since the last deep cycle, and their rewards (n,); they are told once."""
        noted = [self._noted.popleft() for _ in range(len(self._noted))]
        if not noted:
            return np.empty((0, self._dim), np.float32), np.empty(0, np.float32)
        x = np.stack([decode(each).query_embedding if isinstance(each, bytes) else each for each, _ in noted])
        return x, np.array([reward for _, reward in noted], np.float32)

    def ended(self, dreams: Sequence[Dream], passed: int, edges: int) -> None:
        """A deep cycle has done its work: count it, remember how it went, and keep the memory in the store."""
        graph = self.graph
        graph.cycle += 1
        self.deep_at = self.now()
        count = np.bincount(graph.kinds, minlength=len(NodeKind))
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
                "strength": float(graph.strength.mean()) if len(graph) else None,
                **{name: float(np.mean(values)) if values else None for name, values in measured.items()},
            },
        ]
        self._saved = -1
        self.save()

    def forget_rewards(self) -> None:
        """Drop whatever was made of rewards: patterns, decisions, and what they taught the edges; what users put in stays."""
        graph = self.graph
        graph.remove(graph.ids[graph.kinds != NodeKind.MEMORY])
        graph.apply(GraphChange(based_on=graph.version, decay={EdgeKind.COACTIVATION: 0.0}))
        self._noted.clear()
        self._taken = set()
        if self._keeper is not None and self._keeper.leading:
            self._write_twice(self._keeper)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state in the store."""
        return () if self._keeper is None else (self._state_name,)

    def save(self) -> None:
        """Keep the memory in the store if it has changed, and if this process leads; SonaStoreError when that cannot be written."""
        keeper = self._keeper
        if keeper is not None and keeper.leading and self.graph.version != self._saved:
            self._write(keeper)

    def _write(self, keeper: Keeper) -> None:
        """The state, and beside it the vectors that the store does not have yet. A request is in the store in one place only."""
        arrays = self.graph.state()
        vectors, ids, version = arrays.pop("vectors"), arrays["ids"].tolist(), int(arrays["graph"][VERSION])
        lasting = np.flatnonzero(arrays["kinds"] != NodeKind.EPISODE).tolist()
        now = {ids[at]: zlib.crc32(vectors[at]) for at in lasting}
        new = [(ids[at], at) for at in lasting if self._kept.get(ids[at]) != now[ids[at]]]
        arrays["taken"] = np.array(sorted(self._taken), np.int64)
        if self._propagation is not None:
            arrays |= {f"{LEARNED}{name}": array for name, array in self._propagation.state().items()}
        keeper.store.put_state(
            self._state_name,
            encode_state(arrays, {"format": FORMAT, "dim": self._dim, "deep_at": self.deep_at, "history": self.history}),
            0,
            vectors=((id, vectors[at].tobytes()) for id, at in new),
            drop=self._kept.keys() - now.keys(),
        )
        self._kept, self._saved = now, version

    def _write_twice(self, keeper: Keeper) -> None:
        """The store keeps the state before the last as well: after this neither has anything that the memory does not have."""
        if keeper.store.get_state(self._state_name) is not None:
            self._write(keeper)
            self._write(keeper)

    def follow(self, *, now: bool = False) -> None:
        """Read what the process that leads has kept since; the leader itself looks only `now`."""
        keeper = self._keeper
        if keeper is None or not (now or (not keeper.leading and self._clock() >= self._next_look)):
            return
        with self._looking:
            self._next_look = self._clock() + POLL_SECONDS
            try:
                kept = keeper.store.get_state(self._state_name)
                digest = b"" if kept is None else hashlib.sha256(kept[0]).digest()
                if kept is None or digest == self._digest:
                    return
                self._digest = digest
                self._read(kept[0], keeper.store)
                self._saved = self.graph.version
            except SonaCorruptError as error:
                warnings.warn(f"memory {self._state_name!r}: {error}; it starts empty", SonaWarning, stacklevel=3)
            except SonaStoreError as error:
                if now:
                    raise
                log.warning("memory: %s", error)

    def _read(self, blob: bytes, store: SqliteStore) -> None:
        arrays, meta = decode_state(blob)
        if meta.get("format", 0) > FORMAT:
            raise SonaVersionError(f"memory: expected format {FORMAT} or older, got {meta['format']}")
        try:
            if meta["dim"] != self._dim:
                raise SonaCorruptError(f"expected vectors of dim {self._dim}, got {meta['dim']}")
            deep_at, history, taken = float(meta["deep_at"]), list(meta["history"]), set(arrays.pop("taken").tolist())
            ids, keys, kinds = (arrays[name].tolist() for name in ("ids", "keys", "kinds"))
            learned = {name.removeprefix(LEARNED): arrays.pop(name) for name in list(arrays) if name.startswith(LEARNED)}
            propagation = Propagation.from_state(learned) if learned else None
            episodes = {key: at for at, (key, kind) in enumerate(zip(keys, kinds, strict=True)) if kind == NodeKind.EPISODE}
            others = {id: at for at, (id, kind) in enumerate(zip(ids, kinds, strict=True)) if kind != NodeKind.EPISODE}
        except (KeyError, TypeError, ValueError) as error:
            raise SonaCorruptError(f"expected what sona wrote, got: {error}") from error
        vectors = np.zeros((len(ids), self._dim), np.float32)
        kept = {}
        for id, vector in store.vectors_of(self._state_name):
            kept[id] = zlib.crc32(vector)
            if id in others and len(vector) == 4 * self._dim:
                vectors[others.pop(id)] = np.frombuffer(vector, "<f4")
        for found in _stored(store, self._dim, list(episodes)):
            vectors[[episodes.pop(id) for id in found.id.tolist()]] = found.x
        graph = MemoryGraph.from_state({**arrays, "vectors": vectors}, max_nodes=self._max_nodes)
        if others:
            warnings.warn(
                f"memory {self._state_name!r}: {len(others)} of {len(ids)} vectors are missing or damaged", SonaWarning, stacklevel=4
            )
        graph.remove(graph.ids[[*episodes.values(), *others.values()]])
        self.graph, self.deep_at, self.history, self._taken, self._kept = graph, deep_at, history, taken, kept
        self._propagation = propagation


def _stored(store: SqliteStore, dim: int, ids: list[int]) -> Iterator[Episodes]:
    """Those of these decisions that the store still has, in pieces."""
    for first in range(0, len(ids), CHUNK):
        yield Episodes.stored(store, dim, ids[first : first + CHUNK])


def state_name(name: str) -> str:
    """Under which the memory of a learner of that name is kept in a store."""
    return f"{name[:40]}{MEMORY}{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def kept_nodes(store: SqliteStore, name: str) -> int:
    """Nodes of the memory that a store keeps for the learner of that name. SonaCorruptError when they are damaged."""
    kept = store.get_state(state_name(name))
    return 0 if kept is None else len(decode_state(kept[0])[0].get("kinds", ()))
