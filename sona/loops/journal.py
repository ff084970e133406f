"""The journal: what was decided, learned and rewarded reaches the store, and comes back after a restart or from another process."""

import json
import logging
import math
import os
import struct
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sona._locks import lock, rlock
from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaValueError, SonaVersionError
from sona.loops._policy import Policy
from sona.loops.limits import Sources
from sona.store import DecisionRow, FeedbackRow, GroupWriter, Store, TrajectoryRow
from sona.store.arguments import NAME
from sona.store.rows import SEQUENCE_BITS
from sona.store.writer import log_failure

Arrays = dict[str, npt.NDArray[Any]]
_Kept = tuple[DecisionRow, float | None]  # with its last reward

log = logging.getLogger(__name__)

STATE_FORMAT = 1
POLL_SECONDS = 1.0
QUIET_SECONDS = 30.0  # between two warnings of one kind
KNOWN_SETS = 256  # names of arms of earlier times that are remembered, for late rewards
TASKS = ".tasks-"  # in the name of a state that belongs to a learner: what its reservoirs hold
PATTERNS = ".patterns-"  # the same: what its background loop knows of the requests
MEMORY = ".memory-"  # the same: its memory graph
LAYERS = ".layers"  # the same, at the end: which layers of a model it stands beside
FORKED = (
    "belongs to the parent of this forked process: make a Router(...) or Ranker(...) in each worker "
    "(gunicorn: post_worker_init; ASGI: lifespan)"
)
_PROPOSALS = struct.Struct("<fffBBBBB")  # chance of current, frozen, anchor; own; agreed; trial; rival; partner
_PROPOSAL_COLUMNS = np.dtype([("chance", "<f4", 3), ("own", "u1"), ("agreed", "u1"), ("trial", "u1"), ("rival", "u1"), ("partner", "u1")])


class Learner(Protocol):
    """What a journal keeps and restores."""

    policy: Policy | None
    sources: Sources

    def learn(self, id: int, reward: float, source: str | None) -> bool: ...
    def state(self) -> Arrays: ...
    def restore(self, arrays: Arrays) -> None: ...


class Keeper(Protocol):
    """
    A journal, or whatever else knows the store of a learner, its name there, and whether this process leads; and since when: `term` is
    another number once somebody else may have led in between.
    """

    store: Store
    name: str
    leading: bool
    term: int


@dataclass(frozen=True, slots=True)
class _OwnReward(FeedbackRow):
    """A reward of this process on its way to the store: the how-manieth, from 1 on, and whether the learner has it already."""

    ordinal: int = 0
    learned: bool = True


@dataclass(frozen=True, slots=True)
class _Span:
    """Rewards of this process in the store, numbers first to last, that the learner has; `ordinal` is that of the first."""

    first: int
    last: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class _Capture:
    """The learner as it was when it had every own reward up to `ordinal` and every reward of the store up to number `applied`."""

    arrays: Arrays
    ordinal: int
    applied: int
    epoch: int
    term: int


_one_at_a_time = lock(brief=True)
_open: "weakref.WeakSet[Journal]" = weakref.WeakSet()
_holders: weakref.WeakKeyDictionary[Store, weakref.ref["Journal"]] = weakref.WeakKeyDictionary()  # who has the lease of a store


def encode_state(arrays: Arrays, meta: dict[str, Any]) -> bytes:
    """One safetensors blob with JSON metadata."""
    from safetensors.numpy import save

    blob: bytes = save({name: np.asarray(a, order="C") for name, a in arrays.items()}, {"sona": json.dumps(meta)})
    return blob


def decode_state(blob: bytes) -> tuple[Arrays, dict[str, Any]]:
    """What `encode_state` was given; SonaCorruptError for anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        length = int.from_bytes(blob[:8], "little")
        meta = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["sona"])
        return load(blob), meta
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SonaCorruptError(f"state: expected what sona wrote, got: {error}") from error


def proposals(row: DecisionRow) -> tuple[Any, ...]:
    """
    chance of current, frozen and older copy to serve what was served, own, agreed: what the guard learns from; trial, rival: what counts
    for a candidate on trial; partner: what its step is.
    """
    return _PROPOSALS.unpack(row.proposals.ljust(_PROPOSALS.size, b"\0"))  # shorter: from before there were trials


def proposal_columns(packed: Iterable[bytes]) -> npt.NDArray[Any]:
    """The same of many decisions: a structured array with chance (3,), own, agreed, trial, rival, partner."""
    return np.frombuffer(b"".join(each[: _PROPOSALS.size].ljust(_PROPOSALS.size, b"\0") for each in packed), _PROPOSAL_COLUMNS)


def learners(store: Store) -> list[str]:
    """Names of the learners whose state a namespace keeps, sorted."""
    names = store.state_names()
    return [name for name in names if not name.endswith(LAYERS) and not any(part in name for part in (TASKS, PATTERNS, MEMORY))]


class Journal:
    """
    Moves decisions and rewards to a store in groups, saves the learner's state with the number of the last reward that is in it, and
    replays the rewards that are not.

    Parameters
    ----------
    store : Store
    learner : Learner
    name : str
        Under which the state is kept.
    fingerprint : str or None
        Of the frozen model; a state of another one is refused.
    session : int, optional
        The upper bits of the learner's decision ids; default `store.session`.
    save_every : int
        Rewards between saved states. A crash loses none of them: they are learned again from the store.
    clock : callable
        Monotonic seconds.
    start : bool
        Whether a thread writes; otherwise `flush` does.

    Notes
    -----
    A reward of something else than a decision of the policy goes to `late`, which its owner may set: called with (number, row) and with
    `mutex` held, for rewards that no process has learned yet.

    The process that holds the store's learning lease learns and saves. The others answer from the state they loaded, queue their rewards
    in the store, and reload when `poll` finds a newer state; the holder learns from the queued rewards at its own polls. A store that
    tells of changes has them looked at when it does, the others once a second.

    A lease may be lost, where it belongs to a connection. What was learned since goes on if nobody else led before it is taken again;
    otherwise the learner begins anew from the state that it finds, and rewards that are not in it are learned from the store.
    """

    def __init__(
        self,
        store: Store,
        learner: Learner,
        *,
        name: str,
        fingerprint: str | None = None,
        session: int | None = None,
        save_every: int = 2000,
        clock: Callable[[], float] = time.monotonic,
        start: bool = True,
    ) -> None:
        if not NAME.fullmatch(name):
            raise SonaValueError(f"name: expected 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit, got {name!r}")
        self.store = store
        self.name = name
        self.leading = self._take_lease()
        self.term = store.term if self.leading else -1
        self._learner = learner
        self._fingerprint = fingerprint
        self._save_every = save_every
        self._clock = clock
        self._session = store.session if session is None else session
        self._next_poll = clock() + POLL_SECONDS
        self._feedback: list[_OwnReward] = []
        self._trajectories: list[TrajectoryRow] = []
        self._arm_sets: dict[int, int] = {}  # policy version -> version in the store, of decisions that may still have to be written
        self._drained = 0  # policy version at the last drain
        self._arms_saved = True
        self._known_sets: dict[int, tuple[str, ...]] = {}
        self._applied = 0  # every reward up to this number is learned
        self._restored = 0  # checksum of the state that was restored or written last: a trial may have ended at the same reward
        self._own: list[_Span] = []  # own rewards above it, also learned
        self._own_ids: Counter[int] = Counter()  # decisions of own rewards above it, also those not yet in the store
        self._queued = self._written = 0  # ordinals of the last own reward that was queued, and of the last that is durable
        self._before = 0  # own rewards up to this ordinal were learned by a learner that has been replaced since, if at all
        self._learned = False  # whether the learner has had rewards since it was restored
        self._capture: _Capture | None = None
        self._save_at = save_every
        self.replayed = self.restores = 0
        self.late: Callable[[int, FeedbackRow], bool] | None = None
        self.asked: int | None = None
        """Number of the version that somebody asked for in the store, as of the last poll; for the process that leads."""
        self.writer: GroupWriter | None = None
        self._start = start
        self._following = True
        self._ending = False
        self._closed_because = "is closed"
        self._epoch = 0  # counts replacements of the learner by one that never had some rewards
        self._quiet_until: dict[str, float] = {}  # by event
        self._saving = lock()  # held while a state is written; before mutex
        self._polling = rlock()
        self.intake = lock(brief=True)
        """Held while a reward comes in; before everything else."""
        self.mutex = lock(brief=True)
        """Held while a reward is learned and queued, and while the state is captured: a captured state has a reward or has it not."""
        _open.add(self)

    def _take_lease(self) -> bool:
        """Whether this journal has the store's lease now; on one store object one journal has it, as of several objects one has."""
        with _one_at_a_time:
            holder = _holders.get(self.store)
            other = None if holder is None else holder()
            if other not in (None, self) or not self.store.try_lease():
                return False
            _holders[self.store] = weakref.ref(self)
            return True

    def _give_lease(self) -> None:
        """Let others lead, on the same store object as well; what is learned here from now on is none of what they go on from."""
        if self.leading:
            log.info("%r: another process may lead now", self.name, extra={"event": "lease.released", "learner": self.name})
        with _one_at_a_time:
            self.leading, self.term = False, -1
            holder = _holders.get(self.store)
            if holder is not None and holder() is self:
                del _holders[self.store]
                if not self.store.closed:
                    self.store.release_lease()

    def open(self) -> None:
        """Restore the saved state, learn what came after it, and start to write."""
        self._restore()
        if self.leading:
            self._replay()
            self._log_leading()
        if self.restores or self.replayed:
            log.info(
                "%r: goes on from the store, with %d rewards after its state",
                self.name,
                self.replayed,
                extra={"event": "journal.recovered", "learner": self.name, "replayed": self.replayed, "applied": self._applied},
            )
        self.writer = GroupWriter(_Sink(self), self._drain, on_error=self._log_failure, start=self._start)
        if self._start:
            self.store.watch(self._told)

    def open_disabled(self) -> None:
        """Write decisions and rewards only: nothing is restored, learned or saved. Another process may lead."""
        if self.leading:
            self._give_lease()
        self._following = False
        self.writer = GroupWriter(_Sink(self), self._drain, on_error=self._log_failure, start=self._start)

    def pause(self) -> None:
        """Rewards are written and nothing is learned, from here or from the store, until `resume`."""
        self._following = False

    def resume(self) -> None:
        """The next `tick` learns what was rewarded meanwhile."""
        self._following = True
        self._next_poll = self._clock()

    # ---- recording: called on the hot path ----

    def feedback(self, id: int, reward: float, source: str | None, *, learn: bool) -> bool:
        """
        Learn a reward in [0, 1] and queue it for the store; False when its decision or arm is gone.

        A process without the lease queues only: the holder learns from it.
        """
        policy = self._learner.policy
        assert policy is not None
        now = time.time()
        own, known = id >> SEQUENCE_BITS == self._session, policy.knows(id)
        if own and not known:
            self.write_queued()  # the decision, or the reward that it had, may be on its way
        kept = None if known else self._kept_decision(id)  # before others have to wait for this one
        with self.intake:
            if own and known and not policy.knows(id):  # the learner has been replaced since
                self.write_queued()
                kept = self._kept_decision(id)
            return self._feedback_taken(policy, id, reward, now, source, kept, learn=learn)

    def _feedback_taken(
        self, policy: Policy, id: int, reward: float, now: float, source: str | None, kept: _Kept | None, *, learn: bool
    ) -> bool:
        with self.mutex:
            self.check_open()
            learned = learn and self.leading
            row = _OwnReward(id, reward, now, source, self._queued + 1, learned)  # raises for a bad source before anything changes
            if not policy.knows(id) and (kept is None or not self.recall_row(policy, *kept)):
                policy.count_unknown()
                return False
            if not learned:
                self._queue(row)
            elif not self._learn_own(policy, row):
                return False
        self.notify()
        return True

    def _learn_own(self, policy: Policy, row: _OwnReward) -> bool:
        """Queue and learn a reward: both or, where it cannot be learned or Ctrl-C comes before it is, neither."""
        before, done = self._own_ids[row.id], False
        self._learned = True
        try:
            self._queue(row)
            self._own_ids[row.id] = before + 1
            done = self._learner.learn(row.id, row.reward, row.source)
        finally:
            if not done and not ((known := policy.recorded(row.id)) and known["reward"] == np.float32(row.reward)):
                if self._feedback and self._feedback[-1] is row:
                    self._feedback.pop()
                self._queued = row.ordinal - 1
                self._own_ids[row.id] = before
                if not before:
                    del self._own_ids[row.id]
        return done

    @property
    def policy(self) -> Policy | None:
        """Whose decisions are kept."""
        return self._learner.policy

    def check_open(self) -> None:
        """SonaClosedError when rewards and trajectories can be recorded no more."""
        if self._ending:
            raise SonaClosedError(f"the router {self._closed_because}")

    def _disown(self) -> None:
        """Runs in a forked child: what the parent recorded is the parent's, and nothing can be recorded here."""
        self._ending, self._closed_because = True, FORKED
        self.leading = self._following = False
        self._feedback, self._trajectories, self._capture = [], [], None

    def write_queued(self) -> None:
        """`flush`, where a store that cannot be written is no error."""
        try:
            self.flush()
        except SonaStoreError as error:
            self._log_failure(error)

    def _queue(self, row: _OwnReward) -> None:
        self._feedback.append(row)
        self._queued = row.ordinal

    def reward(self, id: int, reward: float, *, learned: bool) -> None:
        """Queue a reward in [0, 1] of a trajectory, and whether this learner has it; with `mutex` held, and `notify` to follow."""
        self._queue(_OwnReward(id, reward, time.time(), None, self._queued + 1, learned))
        if learned:
            self._learned = True
            self._own_ids[id] += 1

    def trajectory(self, id: int, payload: bytes, quality: float | None) -> None:
        """Queue an ended trajectory; with `mutex` held, and `notify` to follow."""
        self._trajectories.append(TrajectoryRow(id, time.time(), payload, quality))

    def notify(self) -> None:
        """Tell the writer that there is something to write."""
        if self.writer is not None:
            self.writer.notify()

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything recorded before the call is durable."""
        assert self.writer is not None
        self.writer.flush(timeout)

    def when_durable(self, told: Callable[[Exception | None], object]) -> None:
        """The same without waiting: see `GroupWriter.when_durable`."""
        assert self.writer is not None
        self.writer.when_durable(told)

    def close(self) -> None:
        """Save the state, write what is left, end the thread and let another process lead."""
        if self.writer is None:  # what the store has could not be taken up
            self._give_lease()
            return
        if self.writer.closed:
            return
        with self.mutex:  # what was accepted until now is written below, what comes now is refused
            self._ending = True
        if not self.store.closed:
            self.store.watch(None)
        try:
            with self._polling:  # a poll that is under way ends, and there is none after it
                leads = not self.store.closed and ((self.leading and self._still_leading()) or self._lead_on())
            if leads:
                self.save()
            else:
                self.writer.flush()
        finally:
            try:
                self.writer.close()
            finally:
                self._give_lease()

    def save(self, *, publish: int | None = None) -> None:
        """
        Write everything recorded so far and then the learner's state; both are durable on return. For the holder of the lease.

        With `publish`, the version of that number becomes the published one together with the state.
        """
        assert self.writer is not None
        while True:
            with self.mutex:
                capture = self._captured()
            self.writer.flush()
            if self._put_state(capture, publish):
                break  # else rewards of other processes were learned meanwhile, or some forgotten

    # ---- writing: called by the writer ----

    def _drain(self) -> tuple[list[DecisionRow], list[FeedbackRow], list[TrajectoryRow]]:
        policy = self._learner.policy
        with self.mutex:
            if not self._arms_saved:
                self.arms_changed()
            decisions = [] if policy is None else policy.drain()
            before, self._drained = self._drained, 0 if policy is None else policy.version
            feedback, self._feedback = self._feedback, []
            trajectories, self._trajectories = self._trajectories, []
            if self.leading and self._capture is None and self._queued >= self._save_at:
                self._capture = self._captured()
                self._save_at = self._queued + self._save_every
        rows = [self._decision_row(*fields) for fields in decisions]
        with self.mutex:
            for version in [version for version in self._arm_sets if version < before]:
                del self._arm_sets[version]
        return rows, list(feedback), trajectories

    def _decision_row(
        self,
        id: int,
        when: float,
        x: bytes,
        arm: int,
        version: int,
        candidates: bytes | None,
        propensity: float,
        chance: tuple[float, float, float],
        own: bool,
        agreed: bool,
        trial: int,
        rival: int,
        partner: int,
    ) -> DecisionRow:
        known = 0.0 if math.isnan(propensity) else propensity
        proposals = _PROPOSALS.pack(*chance, own, agreed, trial, rival, partner)
        return DecisionRow(id, when, x, arm, self._arm_sets[version], candidates, known, proposals)

    def arms_changed(self) -> None:
        """
        Keep the policy's arms in the store under a version that its next decisions name.

        A store that cannot be written gets them before a later group; the decisions until then name the arms that it has. Call it with
        `mutex` held, together with the change itself, once decisions are being made.

        Raises
        ------
        SonaStoreError
            The store has no arms at all and could not be written.
        """
        policy = self._learner.policy
        assert policy is not None
        listed = [json.dumps(None if name is None else str(name)) for name in policy.names_by_row()]
        try:
            number = self.store.put_arms(listed, policy.vectors().tobytes(), policy.costs().tobytes())
        except SonaStoreError as error:
            if not self._arm_sets:
                raise
            if self._seldom("arms.not_saved"):
                log.warning("arms: %s", error, extra={"event": "arms.not_saved", "error": str(error)})
            self._arm_sets[policy.version] = max(self._arm_sets.values())
            self._arms_saved = False
            return
        self._arm_sets[policy.version] = number
        self._arms_saved = True

    def _appended(self, last: int, rows: list[FeedbackRow]) -> None:
        """Own rewards are durable, with the numbers up to `last`."""
        with self.mutex:
            for number, row in enumerate(rows, last - len(rows) + 1):
                assert isinstance(row, _OwnReward)
                self._written = row.ordinal
                if not row.learned or row.ordinal <= self._before:
                    continue
                if number <= self._applied:  # another thread has come past it already
                    self._came_past(row.id)
                    continue
                span = self._own[-1] if self._own else None
                if span is not None and (span.last, span.ordinal + number - span.first) == (number - 1, row.ordinal):
                    self._own[-1] = replace(span, last=number)
                else:
                    self._own.append(_Span(number, number, row.ordinal))
        capture = self._capture
        if capture is not None and self._written >= capture.ordinal:
            self._capture = None
            if not self._put_state(capture):
                self._save_at = 0  # rewards of other processes were learned since, or some forgotten: take a new one
        self.tick()

    def _captured(self) -> _Capture:
        return _Capture(self._learner.state(), self._queued, self._applied, self._epoch, self.term)

    def _put_state(self, capture: _Capture, publish: int | None = None) -> bool:
        """False, and nothing is written, when the learner has been replaced since, or has learned from rewards of others."""
        with self._saving:
            blob = self._blob(capture)
            if blob is None:
                return False
            self.store.put_state(self.name, blob, capture.applied, publish=publish, term=capture.term)
            self._restored = zlib.crc32(blob)  # nothing new to who lost the lease
        log.debug(
            "%r: the state is saved, %d bytes",
            self.name,
            len(blob),
            extra={"event": "state.saved", "learner": self.name, "bytes": len(blob), "applied": capture.applied},
        )
        return True

    def _blob(self, capture: _Capture) -> bytes | None:
        with self.mutex:
            if (capture.epoch, capture.applied) != (self._epoch, self._applied):
                return None
            spans = [(span.first, min(span.last, span.first + capture.ordinal - span.ordinal)) for span in self._own]
        included = [(first, last) for first, last in spans if first <= last]
        meta = {"format": STATE_FORMAT, "fingerprint": self._fingerprint, "included": included}
        return encode_state(capture.arrays, meta)

    def replace_learner(
        self, arrays: Arrays, applied: int, put: Callable[[], None], *, without: str, versions_since: float, keep: Collection[str]
    ) -> tuple[int, int] | None:
        """
        Put another learner in the place of this one: it has every reward up to feedback number `applied` but those of a source, which are
        deleted with everything that has been learned from them. For the holder of the lease, with `intake` held and after a flush.

        Parameters
        ----------
        put : callable
            Puts `arrays` in service.
        versions_since, keep
            See `Store.replace_without`, also for what is returned and raised.
        """
        with self._saving, self.mutex:
            meta: dict[str, Any] = {"format": STATE_FORMAT, "fingerprint": self._fingerprint, "included": []}
            blob = encode_state(arrays, meta)
            done = self.store.replace_without(without, self.name, blob, applied, versions_since=versions_since, keep=keep, term=self.term)
            if done is None:
                return None
            put()
            self._restored = zlib.crc32(blob)
            self._epoch += 1
            self._capture = None
            self._save_at = self._queued + self._save_every
            self._applied, self._own = applied + 1, []
            self._own_ids.clear()
        return done

    def _log_failure(self, error: Exception) -> None:
        if self.writer is not None and self._seldom("store.write_failed"):
            log_failure(error, self.writer.spooled, self.writer.dropped)

    def _seldom(self, event: str) -> bool:
        """Whether a warning of that kind may be given: the last is long enough ago."""
        now = self._clock()
        if now < self._quiet_until.get(event, now):
            return False
        self._quiet_until[event] = now + QUIET_SECONDS
        return True

    # ---- following ----

    def _restore(self, *, lead: bool = False) -> None:
        """Go on from the state that the store keeps, as the one who leads from now on if `lead` says so."""
        kept = self._kept_state()
        with self._saving, self.mutex:  # what was queued until now is learned from the store, what comes now at once
            if kept is not None:
                blob, applied, arrays, included = kept
                self._learner.restore(arrays)
                if self._learned and self._learner.policy is not None:  # what it remembers as rewarded may not be in this state
                    self._learner.policy.forget_decisions()
                self._learned = False
                self.restores += 1
                self._epoch += 1
                self._capture = None
                self._restored = zlib.crc32(blob)
                self._applied = applied
                self._own = [_Span(int(first), int(last), int(first) - int(last)) for first, last in included]  # ordinals up to 0
                self._own_ids.clear()
                self._before = self._queued
                self._save_at = self._queued + self._save_every
            if lead:
                self.term = self.store.term
                self.leading = True

    def _kept_state(self) -> tuple[bytes, int, Arrays, list[Any]] | None:
        """The saved state, the number of the last reward in it, what is in it, and which own rewards are; None before the first."""
        kept = self.store.get_state(self.name)
        if kept is None:
            if others := learners(self.store):  # their rewards would be learned here
                raise SonaStoreError(
                    f"name: expected {others[0]!r}, whose state namespace {self.store.namespace!r} of {self.store.path} holds, "
                    f"got {self.name!r}; another learner needs a namespace of its own: open_store(where, namespace=...)"
                )
            return None
        blob, applied = kept
        arrays, meta = decode_state(blob)
        if meta.get("format", 0) > STATE_FORMAT:
            raise SonaVersionError(f"state {self.name!r}: expected format {STATE_FORMAT} or older, got {meta['format']}")
        if None not in (self._fingerprint, meta.get("fingerprint")) and meta["fingerprint"] != self._fingerprint:
            raise SonaVersionError(f"state {self.name!r}: expected the model {self._fingerprint!r}, got one of {meta['fingerprint']!r}")
        return blob, applied, arrays, list(meta["included"])

    def tick(self) -> None:
        """Poll when a second has passed since the last time. A store that cannot be read is looked at again a second later."""
        if self._clock() >= self._next_poll and self._polling.acquire(blocking=False):  # else another thread is at it
            try:
                self.poll()
            except SonaStoreError as error:
                if self._seldom("store.unreadable"):
                    log.warning("store: %s", error, extra={"event": "store.unreadable", "error": str(error)})
            finally:
                self._polling.release()

    def _told(self) -> None:
        """The store tells of a change: called by a thread of its own."""
        if not self._ending:
            self.poll()

    @property
    def applied(self) -> int:
        """Every reward of the store up to this number is learned, as far as it can be."""
        return self._applied

    def stats(self) -> dict[str, int | bool]:
        """Counters of the writer; whether this process holds the lease; rewards learned from the store."""
        counters = self.writer.counters() if self.writer is not None else {}
        return {**counters, "leading": self.leading, "replayed": self.replayed}

    def poll(self) -> None:
        """Holder: learn from rewards that others queued. Follower: take a free lease, or reload a newer state."""
        self._next_poll = self._clock() + POLL_SECONDS
        if not self._following:
            return
        with self._polling:
            if self._ending:
                return
            if not (self.leading and self._still_leading()) and not self._lead_or_follow():
                return
            self.asked = self.store.asked(self.name)
            self._replay()

    def _still_leading(self) -> bool:
        """Whether the lease has not been lost; asks the store."""
        kept = self.store.keep_lease() and self.store.term == self.term
        if not kept:
            with self.mutex:  # rewards are queued from now on, and learned by whoever leads
                self.leading = False
            log.warning(
                "%r: this process does not lead any more, the learning lease was lost",
                self.name,
                extra={"event": "lease.lost", "learner": self.name},
            )
        return kept

    def _lead_on(self) -> bool:
        """Lead again if the lease was lost, is free, and nobody has led since."""
        if self.term < 0 or not self._take_lease() or self.store.term != self.term:
            return False
        with self.mutex:
            self.leading = True
        self._log_leading()
        return True

    def _log_leading(self) -> None:
        log.info("%r: this process leads", self.name, extra={"event": "lease.taken", "learner": self.name, "term": self.term})

    def _lead_or_follow(self) -> bool:
        """Take a free lease; True when this process leads now, else a newer state has been loaded if there was one."""
        if self._lead_on():
            return True
        if self._take_lease():
            try:
                self._restore(lead=True)
            except BaseException:
                self._give_lease()
                raise
            self._log_leading()
            return True
        kept = self.store.get_state(self.name)
        if kept is not None and kept[1] >= self._applied and zlib.crc32(kept[0]) != self._restored:
            self._restore()
            log.debug("%r: a newer state is served", self.name, extra={"event": "state.followed", "learner": self.name, "applied": kept[1]})
        return False

    def _replay(self) -> None:
        """Learn every reward in the store that is not in the learner yet, in the order of their numbers."""
        while rows := self.store.feedback_after(self._applied):
            kept = self._kept_decisions(rows)  # before rewards have to wait for these
            with self.mutex:
                for number, row in rows:
                    if number <= self._applied:  # another thread was faster
                        continue
                    if not any(span.first <= number <= span.last for span in self._own):
                        self._learn(row, number, kept)
                    else:
                        self._came_past(row.id)
                    self._applied = number
                self._own = [span for span in self._own if span.last > self._applied]

    def _came_past(self, id: int) -> None:
        """An own reward of that decision is no longer ahead in the store."""
        if self._own_ids[id] > 1:
            self._own_ids[id] -= 1
        else:
            del self._own_ids[id]

    def _learn(self, row: FeedbackRow, number: int, kept: dict[int, _Kept | None]) -> None:
        if row.id in self._own_ids:  # the last reward counts, and ours is or will be a later one
            return
        policy = self._learner.policy
        if policy is not None and (policy.knows(row.id) or self._recalled(policy, row.id, number, kept)):
            self._learned = True
            self._learner.learn(row.id, row.reward, row.source)
            self.replayed += 1
        elif self.late is not None and self.late(number, row):
            self._learned = True
            self.replayed += 1

    def _recalled(self, policy: Policy, id: int, number: int, kept: dict[int, _Kept | None]) -> bool:
        found = kept[id] if id in kept else self._kept_decision(id, number)
        return found is not None and self.recall_row(policy, *found)

    def _kept_decisions(self, rows: list[tuple[int, FeedbackRow]]) -> dict[int, _Kept | None]:
        """What the store has of the decisions of these rewards that the policy does not know, as of the first reward of each."""
        policy = self._learner.policy
        if policy is None:
            return {}
        with self.mutex:  # own ones are learned, and may have left its memory
            wanted = {row.id for _, row in rows if row.id not in self._own_ids and not policy.knows(row.id)}
        found = self.store.rewarded(wanted, rows[0][0], without=self._learner.sources.quarantined())
        for decision, _ in found.values():
            self.rows_of_set(policy, decision.arm_set)
        return {id: found.get(id) for id in wanted}

    def _kept_decision(self, id: int, before: int | None = None) -> _Kept | None:
        """A decision in the store, with the reward that it had before feedback number `before`."""
        return self.store.rewarded([id], before, without=self._learner.sources.quarantined()).get(id)

    def last_reward(self, id: int, before: int | None = None) -> float | None:
        """Of a decision in the store, without the rewards of sources that count for nothing."""
        return self.store.reward(id, before, without=self._learner.sources.quarantined())

    def last_rewards(self, newest: int) -> Iterator[tuple[DecisionRow, float | None]]:
        """The newest decisions in the store, oldest first, with the same."""
        return self.store.decisions(newest, without=self._learner.sources.quarantined())

    def recall_row(self, policy: Policy, row: DecisionRow, reward: float | None) -> bool:
        """The same with a row and its reward that have been read, for any policy with the same arms."""
        if len(row.x) != 4 * policy.dim:
            return False
        rows = self.rows_of_set(policy, row.arm_set)
        served = rows.get(row.arm)
        named = list(rows) if row.candidates is None else np.frombuffer(row.candidates, "<i4").tolist()
        if served is None or any(candidate not in rows for candidate in named):
            return False
        everything = row.candidates is None and len(named) == len(policy.arms)
        *chance, own, agreed, trial, rival, partner = proposals(row)
        policy.recall(
            row.id,
            np.frombuffer(row.x, "<f4"),
            served,
            row.propensity,
            candidates=None if everything else [rows[candidate] for candidate in named],
            chance=tuple(chance),
            own=bool(own),
            agreed=bool(agreed),
            trial=trial,
            rival=rival,
            partner=partner,
            reward=reward,
        )
        return True

    def rows_of_set(self, policy: Policy, version: int) -> dict[int, int]:
        """Row numbers of an arm set in the store -> today's rows, for the arms that are still there."""
        names = self._known_sets.get(version)
        if names is None:
            kept = self.store.arms(version)
            names = kept[0] if kept is not None else ()
            if len(self._known_sets) >= KNOWN_SETS:
                self._known_sets.clear()
            self._known_sets[version] = names
        today = {json.dumps(str(name)): policy.row(name) for name in policy.arms}
        return {row: today[listed] for row, listed in enumerate(names) if listed in today}


def _after_fork_in_child() -> None:
    for journal in list(_open):
        journal._disown()
    _holders.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Sink:
    """What the writer appends to: the store, with the numbers that it hands out."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def append(self, decisions: list[DecisionRow], feedback: list[FeedbackRow], trajectories: list[TrajectoryRow], /) -> int:
        rewards = [FeedbackRow(row.id, row.reward, row.time, row.source) for row in feedback]
        last = self._journal.store.append(decisions, rewards, trajectories)
        try:
            self._journal._appended(last, feedback)
        except Exception as error:  # the rows are durable, and the writer would write them again
            log.warning("state: %s", error, extra={"event": "state.not_saved", "error": str(error)})
        return last
