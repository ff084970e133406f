"""SonaEngine: request -> adapters -> outcome -> learning -> store, on one page."""

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy.typing as npt

from sona._arrays import Floats, coerce, copied
from sona._fields import finite, whole
from sona._vector import checked
from sona.adapters import Adapter, MemoryVersions, Version
from sona.config import SonaConfig
from sona.errors import SonaClosedError, SonaTypeError, SonaValueError, SonaVersionError
from sona.loops._policy import Policy
from sona.loops.background import BackgroundLoop, BackgroundLoopConfig, BackgroundResult
from sona.loops.deep import DeepLoop, DeepLoopConfig, DeepResult, TaskMemory
from sona.loops.drift import Drift
from sona.loops.ended import Ended
from sona.loops.episodes import Episodes
from sona.loops.forgetting import ForgetReport, MemoryRewards, StoredRewards
from sona.loops.instant import Beside, InstantLoop, InstantLoopConfig
from sona.loops.journal import FORKED, Journal
from sona.loops.learners import Learners
from sona.loops.limits import SourceLimits
from sona.loops.memory import Memory
from sona.loops.observed import Observed
from sona.loops.patterns import PatternMatch, RequestPatterns
from sona.loops.ruling import Ruling
from sona.loops.service import Service
from sona.loops.taught import Taught
from sona.loops.versions import StoredVersions
from sona.store import Store as AnyStore
from sona.store import load_snapshot, open_store, save_snapshot
from sona.store.rows import check_source
from sona.trajectory import TrajectoryBuilder
from sona.trajectory._admit import admitted

Store = str | os.PathLike[str] | AnyStore | None

log = logging.getLogger(__name__)

_TRAJECTORY_IDS = 1 << 39  # decisions of a router take the lower half of a session's ids
_OPEN_TRAJECTORIES = 4096

_deciding: "weakref.WeakSet[SonaEngine]" = weakref.WeakSet()  # those of routers and rankers with a store


class SonaEngine:
    """
    Adapters beside a frozen model that learn from each outcome, and the store that keeps what they learned.

    Parameters
    ----------
    config : SonaConfig, optional
    store : path, URL or store, optional
        A SQLite file, made when absent, a database ``postgresql://...``, or a `SqliteStore` or `PostgresStore`; None keeps everything in
        memory, bounded.
    name : str
        Under which the state is kept in the store.
    model_fingerprint : str, optional
        Identifies the frozen model; a stored state of another model is refused.
    policy : callable, optional
        Makes a router's policy over the engine's first layer, before the stored state is read.
    background : BackgroundLoopConfig, optional
    deep : DeepLoopConfig, optional
    sources : SourceLimits, optional
        What a source of a router's rewards may do; None: anything.
    drift : bool
        Whether a policy's rewards are watched for a change of the world.
    beside : Beside, optional
        Learns from the same trajectories, in the words of its owner, and is kept with the adapters.

    Attributes
    ----------
    config : SonaConfig
    adapters, instants : tuple
        One of each per layer.
    ended : Ended
    loop_a : InstantLoop
    loop_b : BackgroundLoop
    loop_c : DeepLoop
    drift : Drift or None
    observed : Observed
        Counts cycles, decisions of trials and publications, and tells those who watch.

    Thread-safety
    -------------
    `apply` methods: any thread, at any time. Everything else: one thread at a time; two processes may share a store.
    """

    def __init__(
        self,
        config: SonaConfig | None = None,
        *,
        store: Store = None,
        name: str = "default",
        model_fingerprint: str | None = None,
        policy: Callable[["SonaEngine"], Policy] | None = None,
        background: BackgroundLoopConfig | None = None,
        deep: DeepLoopConfig | None = None,
        sources: SourceLimits | None = None,
        drift: bool = False,
        beside: Beside | None = None,
    ) -> None:
        c = self.config = config or SonaConfig()
        self.name = name
        self.fingerprint = model_fingerprint
        self._enabled = os.environ.get("SONA_DISABLE") != "1"
        self._learners = Learners(c, sources)
        self.adapters, self.instants, self.sources = self._learners.adapters, self._learners.instants, self._learners.sources
        pending = InstantLoopConfig(
            micro_lora_rank=c.micro_lora_rank, max_pending_signals=c.trajectory_capacity, max_pending_bytes=c.trajectory_bytes
        )
        self.loop_a = InstantLoop(c.hidden_dim, pending, adapters=self.adapters, instants=self.instants, beside=beside)
        self._learners.beside = beside
        self._open: OrderedDict[int, TrajectoryBuilder] = OrderedDict()
        self._counts = {"unknown_feedback": 0, "abandoned": 0, "clipped": 0, "rejected": 0}
        self.observed = Observed()
        self._closed = False
        self._closed_because = "is closed"
        self._unsaved = False  # trajectories have taught something since the state was last written
        self._owns_store = isinstance(store, str | os.PathLike)
        self.store: AnyStore | None = open_store(store) if isinstance(store, str | os.PathLike) else store
        self.session = 0 if self.store is None else self.store.session if self._owns_store else self.store.new_session()
        self._next_id = self.session << 40 | _TRAJECTORY_IDS
        self.policy: Policy | None = None
        self.drift: Drift | None = None
        self.journal: Journal | None = None
        self._memory: Memory | None = None
        try:
            if policy is not None:
                self.policy = self._learners.policy = policy(self)
                self.drift = self._learners.drift = Drift(self.policy) if drift else None
            if self.store is not None:
                self.journal = Journal(self.store, self._learners, name=name, fingerprint=model_fingerprint, session=self.session)
                if self.policy is not None:
                    self.journal.arms_changed()
            self.ended = Ended(self.loop_a, self._learners.taught, self.journal, most=c.trajectory_capacity, most_bytes=c.trajectory_bytes)
            if self.journal is not None:
                if self.enabled:
                    self.journal.open()
                else:
                    self.journal.open_disabled()
            self.loop_b = BackgroundLoop(
                background or BackgroundLoopConfig(),
                c.hidden_dim,
                policy=self.policy,
                journal=self.journal,
                drift=self.drift,
                max_discard=c.max_discard,
            )
            deep = deep or DeepLoopConfig()
            self._memory = Memory(c.hidden_dim, self.journal, max_nodes=deep.max_nodes)
            self.loop_c = DeepLoop(deep, self._memory, self.loop_b.patterns, self._episodes)
            versions: MemoryVersions | StoredVersions
            if self.journal is None:
                versions = MemoryVersions()
                self._rewards: MemoryRewards | StoredRewards = MemoryRewards(self._learners, versions, self.loop_b, self._memory)
                self._mutex = self._rewards.mutex
            else:
                versions = StoredVersions(self.journal.store, name)
                self._mutex = self.journal.mutex
                self._rewards = StoredRewards(self._learners, self.journal, self.loop_b, self._memory)
            self._service = Service(name, self._learners, versions, self.journal, self.loop_b, self._mutex, self.observed)
            if (self.policy is not None or beside is not None) and self.journal is not None:
                _deciding.add(self)
        except BaseException:
            self.close()  # else the store would stay open, and its lease taken, for as long as somebody holds the exception
            raise

    @property
    def enabled(self) -> bool:
        """
        False: outputs are inputs, a router serves the frozen model's first choice, and nothing is learned.

        SONA_DISABLE=1 in the environment starts an engine so; it may be switched at any time.
        """
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._layer(0)
        if self.journal is not None:
            if value:
                self.journal.resume()
            else:
                self.journal.pause()
        changed, self._enabled = self._enabled != bool(value), value
        if self.policy is not None:
            self.policy.enabled = value
        if changed:
            about = {"learner": self.name, "enabled": bool(value)}
            log.info("%r: learning is switched %s", self.name, "on" if value else "off", extra={"event": "learning.switched", **about})

    # ---- requests ----

    def apply(self, x: Any, out: Floats | None = None, layer: int = 0) -> Floats:
        """
        x + delta(x) of one layer, shape (hidden_dim,): base and micro tier.

        With `out`, a float32 array of the same shape, which may be x, the result is written there. Nothing is allocated where x is a
        C-contiguous float32 array that `out` does not overlap. Disabled, the result is x bit for bit.
        """
        return self._layer(layer).apply(x, out, "both" if self._enabled else None)

    def apply_micro_lora(self, x: Any, out: Floats | None = None, layer: int = 0) -> Floats:
        """x + what the micro tier adds."""
        return self._layer(layer).apply(x, out, "micro" if self._enabled else None)

    def apply_base_lora(self, x: Any, out: Floats | None = None, layer: int = 0) -> Floats:
        """x + what the base tier adds."""
        return self._layer(layer).apply(x, out, "base" if self._enabled else None)

    def apply_batch(self, x: Any, out: Floats | None = None, layer: int = 0) -> Floats:
        """x + delta(x) row by row, shape (n, hidden_dim). Releases the GIL."""
        adapter = self._layer(layer)
        x = coerce(x, (None, self.config.hidden_dim), "x")
        y, x = copied(x, out)
        if self._enabled:
            adapter.forward_batch(x, y)
        return y

    def _layer(self, layer: int) -> Adapter:
        if self._closed:
            raise SonaClosedError(f"the engine {self._closed_because}")
        if not 0 <= (number := layer if type(layer) is int else whole(layer, "layer")) < len(self.adapters):
            raise SonaValueError(f"layer: expected 0 to {len(self.adapters) - 1}, got {layer}")
        return self.adapters[number]

    # ---- outcomes ----

    def begin_trajectory(self, x: Any) -> int:
        """Start to record one request; x is the query, (hidden_dim,). Returns the id that the other calls take."""
        self._layer(0)
        tid = self._next_id
        self._open[tid] = TrajectoryBuilder(tid, checked(x, self.config.hidden_dim, "x"))
        self._next_id = tid + 1
        if len(self._open) > _OPEN_TRAJECTORIES:  # begun and never ended
            self._open.popitem(last=False)
            self._counts["abandoned"] += 1
        return tid

    def add_step(
        self,
        tid: int,
        *,
        activations: Any,
        attention_weights: Any = None,
        reward: float | None = None,
        expected: float | None = None,
        layer: int = 0,
        x: Any = None,
    ) -> None:
        """
        Record one step.

        Parameters
        ----------
        tid : int
        activations : array of shape (hidden_dim,)
            The score direction d log pi(action) / d y in the adapter's output space.
        attention_weights : array, optional
            Kept with the trajectory; not learned from.
        reward : float, optional
            In the declared range; None when it comes with the end of the trajectory or later.
        expected : float, optional
            pi of the action. Without it a running mean of rewards stands in, which learns noticeably slower.
        layer : int
        x : array of shape (hidden_dim,), optional
            Input of the layer; default the query.
        """
        self._layer(layer)
        unit = None if reward is None else self._unit(reward)
        if expected is not None and not 0 <= finite(expected, "expected") <= 1:
            raise SonaValueError(f"expected: expected a number in [0, 1], got {expected}")
        self._builder(whole(tid, "trajectory")).add_step(activations, attention_weights, unit, expected=expected, layer=layer, x=x)

    def _builder(self, tid: int) -> TrajectoryBuilder:
        builder = self._open.get(tid)
        if builder is None:
            raise SonaValueError(f"trajectory: expected one that was begun and not ended, got id {tid}")
        return builder

    def _unit(self, reward: float) -> float:
        try:
            unit = self.config.to_unit(reward)
        except (SonaValueError, SonaTypeError):
            self._counts["rejected"] += 1
            raise
        low, high = self.config.reward_range
        if not low <= reward <= high:
            self._counts["clipped"] += 1
        return unit

    def end_trajectory(self, tid: int, quality: float | None = None) -> None:
        """
        End a trajectory: it is recorded and learned from.

        quality, in the declared range, is the reward of every step that has none of its own; steps still without one wait for `feedback`.
        """
        self._layer(0)
        tid = whole(tid, "trajectory")
        if self.journal is not None:
            self.journal.check_open()
        builder = self._builder(tid)
        unit = None if quality is None else self._unit(quality)
        record = builder.end(unit, default_reward=unit)
        del self._open[tid]
        self._end(tid, record, unit)

    def _end(self, tid: int, record: bytes, unit: float | None) -> None:
        with self.ended.mutex:
            self.ended.learn(tid, record, learn=self._enabled)
            if self._enabled:
                self._unsaved = True
                self.unlogged += 1
            if self.journal is not None:
                self.journal.trajectory(tid, record, unit)
        if self._enabled and unit is not None:
            self.memory.note(tid, record, unit)
        if self.journal is not None:
            self.journal.notify()

    def record(self, data: bytes, id: int | None = None) -> bool:
        """
        A trajectory that was recorded elsewhere, in the format of `sona.trajectory.encode`: what `end_trajectory` does with one of its own.

        Parameters
        ----------
        data : bytes-like
            Its rewards are in the declared range. A checksum of 0 is not looked at.
        id : int, optional
            Under which `feedback` finds it, below 2**63; default the one inside.

        Returns
        -------
        bool
            False, and nothing is learned, when the id has been recorded already.

        Raises
        ------
        SonaCorruptError, SonaVersionError
            Not a trajectory, or of a newer version.
        SonaValueError
            One of another width, with a layer that is not here, or with numbers that are not finite or outside their range.
        """
        self._layer(0)
        if self.journal is not None:
            self.journal.check_open()
        tid, record, unit = self.admit(data, id)
        if tid in self._open or self.ended.known(tid):
            return False
        self._end(tid, record, unit)
        return True

    def admit(self, data: bytes, id: int | None = None) -> tuple[int, bytes, float | None]:
        """A trajectory of elsewhere as one of this engine: id, record and final quality in [0, 1]; raises what `record` does."""
        return admitted(data, id, self.config.hidden_dim, self.config.num_layers, self._unit)

    @property
    def taught(self) -> Taught:
        """Which trajectories, and what of which rings, are in what is learned."""
        return self._learners.taught

    def feedback(self, tid: int, reward: float) -> bool:
        """
        The reward of an ended trajectory, now or later; a repeated one replaces the one before.

        With a store it may be long ago, before a restart, or of another process: then the one that learns for the store takes it up.
        Returns False, and counts, when the id is unknown or expired.

        Raises
        ------
        SonaValueError
            The trajectory has not ended, or the reward is outside the declared range.
        SonaStoreError
            It is in the store if anywhere, and that cannot be read.
        """
        self._layer(0)
        tid, unit = whole(tid, "trajectory"), self._unit(reward)
        if self.journal is not None:
            self.journal.check_open()
        if tid in self._open:
            raise SonaValueError(f"feedback: expected an ended trajectory, got id {tid}, which is still open")
        self.ended.seek(tid)
        with self.ended.mutex:
            found = self.ended.find(tid)
            if found is None:
                self._counts["unknown_feedback"] += 1
                return False
            learn = self.enabled and (self.journal is None or self.journal.leading)
            if learn:
                self.ended.revise(tid, *found, unit)
                self._unsaved = True
            if self.journal is not None:
                self.journal.reward(tid, unit, learned=learn)
        if learn:
            self.memory.note(tid, found[0], unit)
        if self.journal is not None:
            self.journal.notify()
        return True

    def learn(self, id: int, reward: float, source: str | None) -> bool:
        """The reward in [0, 1] of a decision of the policy, for what its source counts; see `Sources.learn`."""
        learner = self._rewards if isinstance(self._rewards, MemoryRewards) else self._learners
        return learner.learn(id, reward, source)

    @property
    def unlogged(self) -> int:
        """Rewards learned that no log has: of trajectories, and of a warm start."""
        return self._learners.unlogged

    @unlogged.setter
    def unlogged(self, value: int) -> None:
        self._learners.unlogged = value

    def forget_source(self, source: str) -> ForgetReport:
        """
        Forget what a source reported: its rewards are deleted, and everything is learned again without them.

        The rewards of the others are learned from the start, in their order, by a learner beside the one that serves, which it then
        replaces; a kill at any moment leaves one or the other, each with its rewards. What patterns, memory, reservoirs and older copies
        had of rewards goes as well, a trial ends, and versions made since the first reward of the source are dropped. Decisions keep their
        ids. Rewards of the source that come later are learned.

        Raises
        ------
        SonaTypeError, SonaValueError
            Not a source, or there is no policy whose rewards could have one.
        SonaStoreError
            Another process learns for this store, or it cannot be written: nothing has changed; or a reader kept the log in use, which may
            still hold bytes of deleted rows: call again.
        """
        self._layer(0)
        check_source(source)
        if source is None or self.policy is None:
            raise SonaValueError(f"forget_source: expected a source of a router's rewards, got {source!r}")
        if self.policy.partner is not None:
            raise SonaValueError("forget_source: expected a router with pool=False; the rehearsal of a pool cannot be repeated")
        with self._service.deciding, self.loop_b.paused(), self.loop_c.paused():
            report = self._rewards.forget(source)
        about = {"learner": self.name, "rewards": report.rewards_removed, "versions": report.versions_dropped, "complete": report.complete}
        log.info("a source was forgotten, %d rewards", report.rewards_removed, extra={"event": "source.forgotten", **about})
        return report

    # ---- the background loop ----

    def background_learn(self) -> BackgroundResult:
        """
        One cycle of the background loop: patterns of the requests, and a candidate by replay of rewarded decisions.

        The candidate is kept as a version. An accepted one is in service when this returns, with what it replaced kept as a version; an
        undecided one goes on trial, unless the policy explores or the configuration says otherwise: see `trial`. While a trial is on, no
        other candidate is made. Where there is nothing to learn from, or another process holds the store, the result says "skipped".

        Raises
        ------
        SonaError
            The store cannot be read or written; what is served, and what the loop knows, is as it was.
        """
        self._layer(0)
        result = self.observed.run("background_cycle", self._background_cycle)
        about = {
            "learner": self.name,
            "status": result.status,
            "processed": result.trajectories_processed,
            "patterns": result.patterns_extracted,
            "verdict": result.verdict,
            "version": None if result.version is None else result.version.id,
            "elapsed": round(result.elapsed, 6),
        }
        log.info("background cycle: %s", result.status, extra={"event": "background.cycle", **about})
        return result

    def _background_cycle(self) -> BackgroundResult:
        if not self.enabled:
            return BackgroundResult.skipped("learning is switched off")
        if self.journal is not None and not self.journal.leading:
            return BackgroundResult.skipped("another process learns for this store")
        trial = self._learners.trial
        hold = None if trial is None else f"version {trial.version} is on trial, {trial.ruling.reason}"
        return self.loop_b.run_cycle(self._service.keep, hold=hold)

    # ---- the deep loop ----

    @property
    def memory(self) -> Memory:
        """What its user puts in, the patterns and the newest rewarded decisions, as a graph that the deep loop tends."""
        self._layer(0)
        assert self._memory is not None
        return self._memory

    def deep_learn(
        self,
        *,
        duration: float | None = None,
        ewc: TaskMemory | None = None,
        progress: Callable[[int, str], object] | None = None,
    ) -> DeepResult:
        """
        One cycle of the deep loop: the memory takes in patterns and decisions, dreams, and keeps what is worth keeping.

        What is served does not change. See `DeepLoop.run_cycle` for the parameters. Where another process holds the store, the result says
        "skipped".

        Raises
        ------
        SonaError
            The store cannot be read or written.
        """
        self._layer(0)
        result = self.observed.run("deep_cycle", lambda: self._deep_cycle(duration, ewc, progress))
        about = {
            "learner": self.name,
            "status": result.status,
            "dreams": result.dreams_generated,
            "integrated": result.dreams_integrated,
            "nodes": result.nodes,
            "edges": result.edges,
            "elapsed": round(result.elapsed, 6),
        }
        log.info("deep cycle: %s", result.status, extra={"event": "deep.cycle", **about})
        return result

    def _deep_cycle(self, duration: float | None, ewc: TaskMemory | None, progress: Callable[[int, str], object] | None) -> DeepResult:
        if not self.enabled:
            return DeepResult.skipped("learning is switched off")
        if self.journal is not None and not self.journal.leading:
            return DeepResult.skipped("another process learns for this store")
        return self.loop_c.run_cycle(duration=duration, ewc=ewc, progress=progress)

    def _episodes(self, newest: int) -> Episodes:
        """The newest rewarded decisions of the policy."""
        if self.policy is None:
            return Episodes.none(self.config.hidden_dim)
        if self.journal is None:
            return Episodes.of_policy(self.policy, newest)
        self.journal.flush()
        quarantined = self._learners.sources.quarantined()
        return Episodes.of_store(self.journal.store, self.config.hidden_dim, newest, without=quarantined)

    # ---- a candidate on trial ----

    @property
    def trial(self) -> Ruling | None:
        """
        What the gate says so far about the candidate that is on trial, with the number of its version as evidence "version"; else None.

        A candidate on trial is served half of the decisions on which it and the learner choose different arms, and learns every reward that
        the learner learns. The reward that decides the trial makes a version of what the candidate has become, and serves it if it was
        accepted.
        """
        return self._service.ruling

    def start_trial(self, version: Version | str | int) -> Ruling:
        """
        Put a version on trial in the place of the one that is, whatever was said of it when it was made.

        Parameters
        ----------
        version : Version, int or str
            Or its number, or its id.

        Raises
        ------
        SonaValueError
            There is no such version, or no greedy policy to try it in.
        SonaVersionError
            It does not fit this engine.
        SonaStoreError
            Another process learns for this store, or it cannot be written; then the trial goes on in memory.
        """
        self._layer(0)
        return self._service.start_trial(version)

    def stop_trial(self) -> None:
        """End a trial without a verdict: nothing is made of the candidate, whose version stays as it is."""
        self._layer(0)
        self._service.stop_trial()

    def _rewarded(self) -> None:
        """After each reward of a policy: whatever has become due by it."""
        self.loop_b.note()
        self._service.decide()
        self._service.grant()

    # ---- versions ----

    def versions(self) -> list[Version]:
        """What was served and what was proposed, oldest first: the newest 20 and the published one."""
        self._layer(0)
        return self._service.versions.all()

    def keep_version(self, reason: str = "kept on request") -> Version:
        """
        Keep what every layer serves now as a version that `rollback` can bring back; the one that is kept already where nothing changed.

        Raises
        ------
        SonaStoreError
            Another process learns for this store, or it cannot be written.
        """
        self._layer(0)
        if not isinstance(reason, str):
            raise SonaTypeError(f"reason: expected a str, got {reason!r}")
        return self._service.keep_served(reason)

    def publish(self, version: Version | str | int) -> Version:
        """
        Serve a version from now on: its corrections take the place of those served, and the instant loop goes on from there.

        What has been learned until now is kept as a version of its own, so that `rollback` can bring it back. Readers that are in the
        middle of a layer finish it with what they began with. A candidate of the background loop is of the first layer; others stay.

        Parameters
        ----------
        version : Version, int or str
            Or its number, or its id.

        Raises
        ------
        SonaValueError
            There is no such version.
        SonaVersionError
            It does not fit this engine, or its output would not be finite.
        SonaStoreError
            Another process learns for this store, or it cannot be written; the old correction is served.
        """
        self._layer(0)
        return self.observed.run("publish", lambda: self._service.publish(version, cause="publish"))

    def rollback(self, version: Version | str | int) -> Version:
        """`publish`, by the name under which one looks for it when a version has to go; any version that is kept will do."""
        self._layer(0)
        return self.observed.run("publish", lambda: self._service.publish(version, cause="rollback"))

    # ---- patterns ----

    @property
    def patterns(self) -> RequestPatterns:
        """What the background loop knows of the requests: the patterns' bank and hierarchy, and which follows which."""
        self._layer(0)
        return self.loop_b.patterns

    def find_patterns(self, x: Any, k: int = 5) -> list[PatternMatch]:
        """
        The k patterns most similar to x of shape (hidden_dim,), most similar first, as of the last background cycle.

        Each comes with the verdicts on the router's arms that were significant then; those on arms that have been removed since are left
        out. Fewer where there are fewer patterns, and none before the first cycle or without a router.

        Raises
        ------
        SonaValueError, SonaTypeError
            x of another shape or not finite, k not an int of at least 0.
        """
        return self.patterns.find(x, k)

    def next_patterns(self, x: Any, k: int = 5) -> list[tuple[int, float]]:
        """
        The patterns that may come after a request like x (hidden_dim,): the k most probable (id, probability), most probable first.

        Empty before the first cycle. Where requests are independent these are the patterns' frequencies: `patterns.transitions.helps`
        says whether the request tells more than that.
        """
        return self.patterns.next(x, k)

    # ---- time ----

    def tick(self) -> None:
        """Do what is due: follow the store, serve a version that somebody asked for there. Cheap enough to call per request."""
        self._layer(0)
        if self.journal is not None and self.enabled:
            self.journal.tick()
            self._service.grant()

    def flush(self) -> None:
        """
        Fold micro into base, and return when everything recorded and learned so far is durable.

        What a router learned is learned again from the stored feedback; what trajectories taught is in the state alone, so the state is
        written here when there is any.
        """
        self._layer(0)
        if self.journal is not None:
            self.journal.check_open()
        self.loop_a.flush_updates()
        if self.journal is None:
            return
        self.memory.save()
        if self._unsaved and self.journal.leading:
            self._unsaved = False
            try:
                self.journal.save()
            except BaseException:
                self._unsaved = True
                raise
        else:
            self.journal.flush()

    def stats(self) -> dict[str, Any]:
        """Counters of every station, as plain numbers by name."""
        metrics = self.loop_a.metrics
        result: dict[str, Any] = {
            "enabled": self.enabled,
            "isa": self.adapters[0].isa,
            "precondition": self.instants[0].precondition,
            "loop_a": {field: getattr(metrics, field) for field in metrics.__slots__},
            "layers": [adapter.info() for adapter in self.adapters],
            "confidence": [instant.confidence for instant in self.instants],
            "open_trajectories": len(self._open),
            "work": self.observed.stats(),
            **self._counts,
        }
        trial = self.trial
        result["trial"] = None if trial is None else {"verdict": trial.verdict, **trial.evidence}
        if self.journal is not None:
            result["store"] = self.journal.stats()
        return result

    @property
    def state_bytes(self) -> int:
        """Bytes of everything learned: adapters and their preconditioners."""
        return sum(int(a.info()["bytes"]) for a in self.adapters) + sum(int(i.bytes) for i in self.instants)

    # ---- state ----

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything learned, as named arrays; of one moment, also while other threads give rewards to a router."""
        with self._mutex:
            arrays = self._learners.state()
        return {key: value for key, value in arrays.items() if not key.startswith("taught.")}  # ids of this store

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `state` returned, for the same config; nothing changes when it does not fit."""
        with self._mutex:
            self._learners.restore(arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write config and everything learned to a snapshot directory; the one before is kept beside it."""
        self._layer(0)
        save_snapshot(path, self.state(), {"config": self.config.as_dict(), "name": self.name}, fingerprint=self.fingerprint)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, store: Store = None, model_fingerprint: str | None = None) -> Self:
        """
        An engine from a snapshot directory.

        Raises
        ------
        SonaCorruptError, SonaVersionError
            The files are damaged, of a newer format, or of another model than `model_fingerprint`.
        """
        arrays, meta = load_snapshot(path, fingerprint=model_fingerprint)
        try:
            config, name = SonaConfig(**meta["config"]), str(meta["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise SonaVersionError(f"{os.fspath(path)}: expected the snapshot of an engine of this version, got: {error}") from error
        engine = cls(config, store=store, name=name, model_fingerprint=model_fingerprint)
        try:
            engine.restore(arrays)
        except BaseException:
            engine.close()
            raise
        return engine

    # ---- end ----

    def close(self) -> None:
        """Write what is left, save the state and release the store; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.journal is not None:
                try:
                    if self._memory is not None:
                        self._memory.close()
                finally:
                    self.journal.close()
            elif self._memory is not None:
                self._memory.close()
        finally:
            if self.store is not None and self._owns_store:
                self.store.close()

    def _disown(self) -> None:
        """Runs in a forked child: decisions of this router could neither be kept nor rewarded here, so there are none."""
        if not self._closed:
            self._closed, self._closed_because = True, FORKED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise SonaTypeError(
            f"{self!r}: expected save(path) and load(path), or a store, for a copy of what is learned; it cannot be pickled"
        )

    def __repr__(self) -> str:
        where = "memory" if self.store is None else self.store.path
        return f"<SonaEngine dim={self.config.hidden_dim} layers={self.config.num_layers} store={where}>"


def _after_fork_in_child() -> None:
    for engine in list(_deciding):
        engine._disown()


os.register_at_fork(after_in_child=_after_fork_in_child)
