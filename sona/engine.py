"""SonaEngine: request -> adapters -> outcome -> learning -> store, on one page."""

import logging
import math
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce, output
from sona._fields import finite
from sona._vector import checked
from sona.adapters import Adapter, Factors, MemoryVersions, Version
from sona.adapters.versions import find, keep_served
from sona.config import SonaConfig
from sona.errors import SonaClosedError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError
from sona.loops._instant import Instant
from sona.loops._policy import Policy
from sona.loops.background import BackgroundLoop, BackgroundLoopConfig, BackgroundResult, Proposal
from sona.loops.drift import Drift
from sona.loops.forgetting import ForgetReport, Relearner
from sona.loops.gate import GateConfig
from sona.loops.instant import InstantLoop, InstantLoopConfig
from sona.loops.journal import Journal
from sona.loops.learner import learned, part, put_learned, put_rows, rows_of
from sona.loops.limits import SourceLimits, Sources
from sona.loops.patterns import PatternMatch, RequestPatterns
from sona.loops.ruling import Ruling
from sona.loops.trial import Trial
from sona.loops.versions import StoredVersions
from sona.store import SqliteStore, load_snapshot, save_snapshot
from sona.store.rows import check_source
from sona.trajectory import TrajectoryBuilder

Store = str | os.PathLike[str] | SqliteStore | None

_TRAJECTORY_IDS = 1 << 39  # decisions of a router take the lower half of a session's ids
_OPEN_TRAJECTORIES = 4096
RETRY_SECONDS = 1.0

log = logging.getLogger("sona")


class SonaEngine:
    """
    Adapters beside a frozen model that learn from each outcome, and the store that keeps what they learned.

    Parameters
    ----------
    config : SonaConfig, optional
    store : path or SqliteStore, optional
        A SQLite file, made when absent; None keeps everything in memory, bounded.
    name : str
        Under which the state is kept in the store.
    model_fingerprint : str, optional
        Identifies the frozen model; a stored state of another model is refused.
    policy : callable, optional
        Makes a router's policy over the engine's first layer, before the stored state is read.
    background : BackgroundLoopConfig, optional
    sources : SourceLimits, optional
        What a source of a router's rewards may do; None: anything.
    drift : bool
        Whether a policy's rewards are watched for a change of the world.

    Attributes
    ----------
    config : SonaConfig
    adapters, instants : tuple
        One of each per layer.
    loop_a : InstantLoop
    loop_b : BackgroundLoop
    drift : Drift or None

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
        sources: SourceLimits | None = None,
        drift: bool = False,
    ) -> None:
        c = self.config = config or SonaConfig()
        self.name = name
        self.fingerprint = model_fingerprint
        self._enabled = os.environ.get("SONA_DISABLE") != "1"
        self.adapters = tuple(self._make_adapter() for _ in range(c.num_layers))
        self.instants = tuple(self._make_instant() for _ in range(c.num_layers))
        pending = InstantLoopConfig(
            micro_lora_rank=c.micro_lora_rank, max_pending_signals=c.trajectory_capacity, max_pending_bytes=c.trajectory_bytes
        )
        self.loop_a = InstantLoop(c.hidden_dim, pending, adapters=self.adapters, instants=self.instants)
        self._open: OrderedDict[int, TrajectoryBuilder] = OrderedDict()
        self._ended: OrderedDict[int, tuple[bytes, list[float | None]]] = OrderedDict()
        self._ended_bytes = 0  # of their records
        self._counts = {"unknown_feedback": 0, "abandoned": 0, "clipped": 0, "rejected": 0}
        self._closed = False
        self._trial: Trial | None = None
        self._outcome: Version | None = None  # of a decided trial, kept and not in service yet
        self._deciding = threading.Lock()
        self._decide_at = 0.0  # after a failure, monotonic seconds
        self._taught = False  # by trajectories, since the state was last written
        self._owns_store = not isinstance(store, SqliteStore)
        self.store = SqliteStore(store) if isinstance(store, str | os.PathLike) else store
        self.session = self.store.session if self.store is not None else 0
        self._next_id = self.session << 40 | _TRAJECTORY_IDS
        self.policy: Policy | None = None
        self.sources = Sources(sources)
        self.unlogged = 0  # rewards learned that no log has: of trajectories, and of a warm start
        self._rewards: deque[tuple[int, float, str | None, int, float]] = deque()  # without a store: id, reward, source, requests, time
        self._learning = threading.Lock()  # without a store: held while a reward is learned
        self.drift: Drift | None = None
        self.journal: Journal | None = None
        try:
            if policy is not None:
                self.policy = policy(self)
                self._rewards = deque(maxlen=self.policy.capacity)
                self.drift = Drift(self.policy) if drift else None
            if self.store is not None:
                self.journal = Journal(self.store, self, name=name, fingerprint=model_fingerprint)
                if self.policy is not None:
                    self.journal.arms_changed()
                if self.enabled:
                    self.journal.open()
                else:
                    self.journal.open_disabled()
            self._versions = MemoryVersions() if self.store is None else StoredVersions(self.store, name)
            self.loop_b = BackgroundLoop(
                background or BackgroundLoopConfig(),
                c.hidden_dim,
                policy=self.policy,
                journal=self.journal,
                drift=self.drift,
                max_discard=c.max_discard,
            )
        except BaseException:
            self.close()  # else the store would stay open, and its lease taken, for as long as somebody holds the exception
            raise

    def _make_adapter(self) -> Adapter:
        """A new adapter of the shape that this engine's have."""
        c = self.config
        return Adapter(
            c.hidden_dim, rank=c.base_lora_rank, rank_max=c.base_lora_rank_max, micro=c.micro_lora_rank, max_discard=c.max_discard
        )

    def _make_instant(self) -> Instant:
        c = self.config
        return Instant(c.hidden_dim, c.p0, c.bias_input, c.precondition)

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
        self._enabled = value
        if self.policy is not None:
            self.policy.enabled = value

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
        y, x = _start(x, out)
        if self._enabled:
            adapter.forward_batch(x, y)
        return y

    def _layer(self, layer: int) -> Adapter:
        if self._closed:
            raise SonaClosedError("the engine is closed")
        if not 0 <= layer < len(self.adapters):
            raise SonaValueError(f"layer: expected 0 to {len(self.adapters) - 1}, got {layer}")
        return self.adapters[layer]

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
        self._builder(tid).add_step(activations, attention_weights, unit, expected=expected, layer=layer, x=x)

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
        builder = self._builder(tid)
        unit = None if quality is None else self._unit(quality)
        record = builder.end(unit, default_reward=unit)
        del self._open[tid]
        learned: list[float | None]
        if self._enabled:
            learned = self.loop_a.on_record(record)
            self._taught = True
            self.unlogged += 1
        else:
            learned = [None] * len(builder)
        self._ended[tid] = (record, learned)
        self._ended_bytes += len(record)
        while len(self._ended) > self.config.trajectory_capacity or self._ended_bytes > self.config.trajectory_bytes:
            self._ended_bytes -= len(self._ended.popitem(last=False)[1][0])
        if self.journal is not None:
            self.journal.trajectory(tid, record, unit)

    def feedback(self, tid: int, reward: float) -> bool:
        """
        The reward of an ended trajectory, now or later; a repeated one replaces the one before.

        Returns False, and counts, when the id is unknown or expired.

        Raises
        ------
        SonaValueError
            The trajectory has not ended, or the reward is outside the declared range.
        """
        self._layer(0)
        unit = self._unit(reward)
        if tid in self._open:
            raise SonaValueError(f"feedback: expected an ended trajectory, got id {tid}, which is still open")
        ended = self._ended.get(tid)
        if ended is None:
            self._counts["unknown_feedback"] += 1
            return False
        record, learned = ended
        if self.enabled:
            learned = self.loop_a.revise_record(record, learned, unit)
            self._taught = True
        self._ended[tid] = (record, learned)
        if self.journal is not None:
            self.journal.reward(tid, unit, None)
        return True

    def learn(self, id: int, reward: float, source: str | None) -> bool:
        """The reward in [0, 1] of a decision of the policy, for what its source counts; see `Sources.learn`."""
        assert self.policy is not None
        if self.journal is not None:
            return self.sources.learn(self.policy, id, reward, source)
        with self._learning:
            learned = self.sources.learn(self.policy, id, reward, source)
            if learned:
                self._rewards.append((id, reward, source, self.policy.requests, time.time()))
        return learned

    def forget_source(self, source: str) -> ForgetReport:
        """
        Forget what a source reported: its rewards are deleted, and everything is learned again without them.

        The rewards of the others are learned from the start, in their order, by a learner beside the one that serves, which it then
        replaces; a kill at any moment leaves one or the other, each with its rewards. What patterns, reservoirs and older copies held goes
        as well, a trial ends, and versions made since the first reward of the source are dropped. Decisions keep their ids. Rewards of the
        source that come later are learned.

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
        with self._deciding, self.loop_b.paused():
            return self._forget_in_memory(self.policy, source) if self.journal is None else self._forget_in_store(self.policy, source)

    def _relearner(self, policy: Policy) -> Relearner:
        return Relearner(policy, self._make_adapter(), self._make_instant(), self.sources.limits, drift=self.drift is not None)

    def _without(self, learner: Relearner, policy: Policy) -> dict[str, npt.NDArray[Any]]:
        """The state with that learner in the place of the policy's own."""
        kept = {
            key: value
            for key, value in self.state().items()
            if not key.startswith(("layer0.", "policy.", "trial.", "sources.", "drift.", "unlogged"))
        }
        layer = rows_of(learner.policy.adapter) | learner.policy.instant.state()
        kept |= {f"layer0.{key}": value for key, value in layer.items()}
        kept |= {f"policy.{key}": value for key, value in learner.arrays(policy).items()}
        if learner.drift is not None:
            kept |= {f"drift.{key}": value for key, value in learner.drift.state().items()}
        return kept | {f"sources.{key}": value for key, value in learner.sources.state().items()}

    def _forget_in_memory(self, policy: Policy, source: str) -> ForgetReport:
        assert isinstance(self._versions, MemoryVersions)
        with self._learning:
            gone = [each for each in self._rewards if each[2] == source]
            whole = len(self._rewards) < policy.capacity
            if not gone and (whole or not self.sources.knows(source)):
                return ForgetReport(source=source, complete=whole, reason="" if whole else _CUT)
            learner = self._relearner(policy)
            for id, reward, who, requests, _ in self._rewards:
                if who == source:
                    continue
                known = policy.recorded(id)
                if known is None:
                    learner.missed += 1
                    continue
                if not learner.policy.knows(id):
                    learner.policy.recall(id, **known | {"reward": learner.last.get(id)})
                learner.learn(id, reward, who, requests)
            unlogged = self.unlogged
            self._put(self._without(learner, policy))
            for id in range(max(policy.first_id, policy.next_id - policy.capacity), policy.next_id):
                known = learner.policy.recorded(id)
                policy.settle(id, None if known is None else known["reward"])
            self._rewards = deque((each for each in self._rewards if each[2] != source), policy.capacity)
            dropped = self._versions.drop(gone[0][4] if gone and whole else -math.inf)
            self.loop_b.forget({each[0] for each in gone})
        return _report(source, len(gone), learner, dropped, whole, unlogged)

    def _forget_in_store(self, policy: Policy, source: str) -> ForgetReport:
        journal, store = self.journal, self.store
        assert journal is not None
        assert store is not None
        if not journal.leading:
            raise SonaStoreError("forget_source: another process learns for this store; call it there")
        journal.flush()
        whole, known = store.whole(), store.sources().get(source)
        if known is None and (whole or not self.sources.knows(source)):
            return ForgetReport(source=source, complete=whole, reason="" if whole else _CUT)
        since = known[1] if known is not None and whole else -math.inf
        learner = self._relearner(policy)
        last = 0
        for _ in range(2):  # most of it while rewards come in, and the rest while they wait
            last = self._catch_up(learner, source, last)
        with journal.intake:
            done = None
            while done is None:  # another process may write meanwhile
                if learner.policy.version != policy.version:
                    learner, last = self._relearner(policy), 0
                last = self._catch_up(learner, source, last)
                unlogged = self.unlogged
                done = self._replace(learner, last, source, since)
        store.scrub_log()
        return _report(source, done[0], learner, done[1], whole, unlogged)

    def _catch_up(self, learner: Relearner, source: str, after: int) -> int:
        """Let it learn what is in the store by now; the number up to which it has everything."""
        assert self.journal is not None
        assert self.store is not None
        assert self.policy is not None
        self.journal.flush()
        newest = self.store.last_seq()
        times = np.array(self.store.decision_times())
        learner.follow(self.journal, source, (after + 1, newest + 1), times, self.policy.requests)
        return newest

    def _replace(self, learner: Relearner, last: int, source: str, since: float) -> tuple[int, int] | None:
        assert self.journal is not None
        assert self.policy is not None
        assert self.loop_b.window is not None
        policy, arrays = self.policy, self._without(learner, self.policy)

        def put() -> None:
            self._put(arrays)
            policy.forget_decisions()
            self.loop_b.forget(())

        keep = self.loop_b.window.state_names
        return self.journal.replace_learner(arrays, last, put, without=source, versions_since=since, keep=keep)

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
        if not self.enabled:
            return BackgroundResult.skipped("learning is switched off")
        if self.journal is not None and not self.journal.leading:
            return BackgroundResult.skipped("another process learns for this store")
        trial = self._trial
        hold = None if trial is None else f"version {trial.version} is on trial, {trial.ruling.reason}"
        return self.loop_b.run_cycle(self._keep, hold=hold)

    def _keep(self, proposal: Proposal) -> Version:
        kept = self._versions.add(
            Version(
                name=self.name,
                parent=self._published(),
                created=time.time(),
                verdict=proposal.ruling.verdict,
                reason=proposal.ruling.reason,
                metrics=proposal.metrics,
                window=proposal.window,
                factors=proposal.factors,
            )
        )
        if kept.verdict == "accept":
            return self._serve(kept)
        config = self.loop_b.config
        if kept.verdict == "undecided" and config.trial and config.serve == "accepted" and self._tries():
            self._begin_trial(kept, proposal.level)
        return kept

    # ---- a candidate on trial ----

    @property
    def trial(self) -> Ruling | None:
        """
        What the gate says so far about the candidate that is on trial, with the number of its version as evidence "version"; else None.

        A candidate on trial is served half of the decisions on which it and the learner choose different arms, and learns every reward that
        the learner learns. The reward that decides the trial makes a version of what the candidate has become, and serves it if it was
        accepted.
        """
        if self._trial is None:
            return None
        found = self._trial.ruling
        return replace(found, evidence={**found.evidence, "version": self._trial.version})

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
        chosen = find(self._versions.all(), version)
        if not self._tries():
            raise SonaValueError(f"trial of {chosen.id}: expected a router with explore='greedy' and pool=False")
        if self.journal is not None and not self.journal.leading:
            raise SonaStoreError(f"trial of {chosen.id}: another process learns for this store")
        chosen.factors.check(self.config.hidden_dim, f"version {chosen.id}")
        self._begin_trial(chosen, min(max(self.instants[0].mean_reward, 0.01), 1.0))
        ruling = self.trial
        assert ruling is not None
        return ruling

    def _tries(self) -> bool:
        """Whether there may be trials."""
        return self.policy is not None and self.policy.explore == "greedy" and self.policy.partner is None

    def stop_trial(self) -> None:
        """End a trial without a verdict: nothing is made of the candidate, whose version stays as it is."""
        self._layer(0)
        with self.journal.mutex if self.journal is not None else nullcontext():
            self._end_trial()
        if self.journal is not None and self.journal.leading:
            self.journal.save()

    def _begin_trial(self, candidate: Version, level: float) -> None:
        assert self.policy is not None
        config = self.loop_b.config.gate or GateConfig()
        with self.journal.mutex if self.journal is not None else nullcontext():
            self._end_trial()
            self._trial = Trial.of(
                self.policy,
                self._make_adapter(),
                self._make_instant(),
                candidate.factors,
                gate=config,
                level=level,
                version=candidate.number,
            )
            self._trial.begin()
        if self.journal is not None:
            self.journal.save()

    def _rewarded(self) -> None:
        """After each reward of a policy: whatever has become due by it."""
        self.loop_b.note()
        trial = self._trial
        if trial is None or trial.gate.verdict == "undecided" or time.monotonic() < self._decide_at:
            return
        if self._deciding.acquire(blocking=False):
            try:
                if self._trial is trial and (self.journal is None or self.journal.leading):
                    self._decide(trial)
            except SonaStoreError as error:
                log.warning("trial of version %d: %s", trial.version, error)
                self._decide_at = time.monotonic() + RETRY_SECONDS
            finally:
                self._deciding.release()

    def _decide(self, trial: Trial) -> None:
        """Keep what came of a trial as a version, and serve it if it was accepted; SonaStoreError leaves it to be done later."""
        found = trial.ruling
        outcome = self._outcome or self._versions.add(
            Version(
                name=self.name,
                parent=self._published(),
                created=time.time(),
                verdict=found.verdict,
                reason=found.reason,
                metrics={name: dict(about) for name, about in found.evidence.items()},
                window={"candidate": trial.version},
                factors=Factors.of(trial.candidate.adapter),
            )
        )
        if found.verdict == "accept":
            try:
                self._serve(outcome, trial)
            except SonaStoreError:
                self._outcome = outcome
                raise
            return
        self._end_trial()
        if self.journal is not None:
            self.journal.save()

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.end()
            self._trial = self._outcome = None

    # ---- versions ----

    def versions(self) -> list[Version]:
        """What was served and what was proposed, oldest first: the newest 20 and the published one."""
        self._layer(0)
        return self._versions.all()

    def _published(self) -> int | None:
        return next((version.number for version in self._versions.all() if version.published), None)

    def publish(self, version: Version | str | int) -> Version:
        """
        Serve a version from now on: its correction takes the place of the first layer's, and the instant loop goes on from there.

        What has been learned until now is kept as a version of its own, so that `rollback` can bring it back. Readers that are in the
        middle of a request finish it with what they began with.

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
        return self._serve(find(self._versions.all(), version))

    def rollback(self, version: Version | str | int) -> Version:
        """`publish`, by the name under which one looks for it when a version has to go; any version that is kept will do."""
        return self.publish(version)

    def _serve(self, version: Version, trial: Trial | None = None) -> Version:
        """Put a version in service; with `trial`, whose candidate it is, everything else that the candidate has learned as well."""
        if self.journal is not None and not self.journal.leading:
            raise SonaStoreError(f"version {version.id}: another process learns for this store")
        version.factors.check(self.config.hidden_dim, f"version {version.id}")
        with self.journal.mutex if self.journal is not None else nullcontext():
            before = self.state()
            served = Factors.of(self.adapters[0])
        keep_served(self._versions, served, version, time.time())
        with self.journal.mutex if self.journal is not None else nullcontext():
            if trial is None:
                version.factors.put(self.adapters[0])
            else:
                trial.take_over()
            self._end_trial()
        try:
            if isinstance(self._versions, MemoryVersions):
                self._versions.publish(version.number)
            elif self.journal is not None:
                self.journal.save(publish=version.number)
        except BaseException:
            with self.journal.mutex if self.journal is not None else nullcontext():
                self._put(before)
            raise
        self.loop_b.replaced()
        return replace(version, published=True)

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
        """Do what is due: fold, follow the store. Cheap enough to call per request."""
        self._layer(0)
        if self.journal is not None and self.enabled:
            self.journal.tick()

    def flush(self) -> None:
        """
        Fold micro into base, and return when everything recorded and learned so far is durable.

        What a router learned is learned again from the stored feedback; what trajectories taught is in the state alone, so the state is
        written here when there is any.
        """
        self._layer(0)
        self.loop_a.flush_updates()
        if self.journal is None:
            return
        if self._taught and self.journal.leading:
            self._taught = False
            self.journal.save()
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
        """Everything learned, as named arrays."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for layer, (adapter, instant) in enumerate(zip(self.adapters, self.instants, strict=True)):
            arrays |= {f"layer{layer}.{key}": value for key, value in (rows_of(adapter) | instant.state()).items()}
        if self.policy is not None:
            arrays |= {f"policy.{key}": value for key, value in self.policy.state().items()}
            if self.policy.partner is not None:
                arrays |= {f"partner.{key}": value for key, value in learned(self.policy.partner).items()}
        if self._trial is not None:
            arrays |= {f"trial.{key}": value for key, value in self._trial.state().items()}
        if self.drift is not None:
            arrays |= {f"drift.{key}": value for key, value in self.drift.state().items()}
        if self.unlogged:
            arrays["unlogged"] = np.array([self.unlogged])
        return arrays | {f"sources.{key}": value for key, value in self.sources.state().items()}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `state` returned, for the same config; nothing changes when it does not fit."""
        parts = [part(arrays, f"layer{layer}.") for layer in range(len(self.adapters))]
        if any(kept.get("down", np.empty(0)).shape[1:] != (self.config.hidden_dim,) for kept in parts):
            raise SonaVersionError(f"state: expected {len(parts)} layers of dim {self.config.hidden_dim}, got one of another shape")
        before = self.state()
        try:
            self._put(arrays)
        except (SonaValueError, SonaTypeError, KeyError, IndexError) as error:
            self._put(before)
            raise SonaVersionError(f"state: expected what an engine of this configuration keeps, got one where {error}") from error

    def _put(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        for layer, (adapter, instant) in enumerate(zip(self.adapters, self.instants, strict=True)):
            kept = part(arrays, f"layer{layer}.")
            instant.restore(kept)
            put_rows(adapter, kept)
        policy, partner, trial = part(arrays, "policy."), part(arrays, "partner."), part(arrays, "trial.")
        if self.policy is not None and policy:
            self.policy.restore(policy)
            if self.policy.partner is not None and partner:
                put_learned(self.policy.partner, partner)
        self.sources.restore(part(arrays, "sources."))
        self.unlogged = int(arrays["unlogged"][0]) if "unlogged" in arrays else 0
        self._end_trial()
        if self.policy is not None and trial:
            self._trial = Trial.restore(self.policy, self._make_adapter(), self._make_instant(), trial)
            self._trial.begin()
        if self.drift is not None:
            self.drift.restore(part(arrays, "drift."))

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
        values = dict(meta["config"])
        values["reward_range"] = tuple(values["reward_range"])
        engine = cls(SonaConfig(**values), store=store, name=meta["name"], model_fingerprint=model_fingerprint)
        engine.restore(arrays)
        return engine

    # ---- end ----

    def close(self) -> None:
        """Write what is left, save the state and release the store; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.journal is not None:
                self.journal.close()
        finally:
            if self.store is not None and self._owns_store:
                self.store.close()

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


def _start(x: Floats, out: Floats | None) -> tuple[Floats, Floats]:
    """(y, x): a y equal to x, in `out` where one is given, and an x that writing to y does not change, unless they are the same rows."""
    if out is None:
        return x.copy(), x
    y = output(out, x.shape, "out")
    if y is not x and np.may_share_memory(x, y):
        x = x.copy()
    np.copyto(y, x)
    return y, x


_CUT = "rewards have been learned that are no longer kept"


def _report(source: str, removed: int, learner: Relearner, versions: int, whole: bool, unlogged: int) -> ForgetReport:
    lost = [] if whole else [_CUT]
    if learner.missed:
        lost.append(f"{learner.missed} rewards are of decisions or arms that are gone")
    if unlogged:
        lost.append(f"{unlogged} rewards of trajectories or of a warm start were never kept")
    return ForgetReport(
        source=source,
        rewards_removed=removed,
        rewards_replayed=learner.learned,
        versions_dropped=versions,
        complete=not lost,
        reason="; ".join(lost),
    )
