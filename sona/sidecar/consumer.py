"""What a ring brings is learned from at once, and kept so that each record counts once, whenever the process dies."""

import logging
import struct
import time
from collections import Counter
from typing import Protocol

from sona.engine import SonaEngine
from sona.errors import SonaClosedError, SonaCorruptError, SonaError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError
from sona.loops.ended import RING
from sona.loops.taught import SEQUENCES
from sona.store.outcomes import LeaseLost
from sona.trajectory._record import measure_record

log = logging.getLogger(__name__)

RING_IDS = 1 << 39 | SEQUENCES  # of a session's ids, the half of trajectories begins with those that an engine gives itself
QUIET = 10.0  # s between warnings of a kind

_FEEDBACK = struct.Struct("<4sIQd")  # b"SFBK", its size, sequence number of the trajectory, reward
_MAGIC = b"SFBK"


class LearnerReplaced(SonaError):
    """Another process led in between, and the learner is what that one saved: what was read of the ring is to be read again."""


class RingLike(Protocol):
    """The consumer's side of a shared ring."""

    @property
    def identity(self) -> bytes: ...
    def next(self) -> tuple[bytes, int] | None: ...
    def mark(self) -> int: ...
    def release(self, mark: int) -> None: ...


class Consumer:
    """
    Learns each record of a ring exactly once.

    The ring is the log: a record is learned when it is read, and stays in the ring until it is in the store, as a row and in the
    learner's state, which says in the same write how far into which ring it goes. After a crash the ring offers again what was not
    released; what the state has is not learned a second time. The state is written before the rows, so that every reward in the store
    that came through a ring is one that the state has.

    Parameters
    ----------
    engine : SonaEngine
        With a store, for which this process learns.
    ring : SharedRing
        The consumer's side.

    Attributes
    ----------
    trajectories, feedback : int
        Learned from; feedback that came before a crash and is offered again is not counted.
    again : int
        Records that were learned before this process began.
    bad : Counter
        Records that taught nothing, by reason: "corrupt", "version", "dimension", "value" (not finite, or outside the declared range),
        "unknown" (feedback for a trajectory that nobody knows).

    Thread-safety
    -------------
    `take` and `settle`: one thread. `save`: another one, at the same time.
    """

    def __init__(self, engine: SonaEngine, ring: RingLike) -> None:
        if engine.journal is None:
            raise SonaValueError("consumer: expected an engine with a store, got one without")
        if not engine.journal.leading:
            raise SonaStoreError(f"{engine.journal.store.path}: expected to learn for this store, but another process does")
        self._engine, self._journal, self._ended, self._ring = engine, engine.journal, engine.ended, ring
        self._identity = bytes(ring.identity)
        self._source = RING + self._identity.hex()
        self._restores = self._journal.restores
        self._taught = engine.taught
        self._base, self._old = self._taught.ring(self._identity, engine.session << 40 | RING_IDS)
        self._quiet: dict[str, float] = {}
        self.trajectories = self.feedback = self.again = 0
        self.bad: Counter[str] = Counter()

    def id_of(self, sequence: int) -> int:
        """Of a trajectory: the id under which engine and store know it."""
        return self._base + sequence

    def check(self) -> None:
        """LearnerReplaced when the learner is another one since; it is safe to go on then with a new consumer of a ring opened anew."""
        if self._journal.restores != self._restores:
            raise LearnerReplaced(f"{self._journal.store.path}: another process led in between, the learner was replaced by what it saved")

    def take(self, most: int) -> int:
        """Learn from at most so many records that wait; how many there were. Raises what `check` raises."""
        self.check()
        for n in range(most):
            found = self._ring.next()
            if found is None:
                return n
            data, sequence = found
            if not 0 < sequence < SEQUENCES:
                raise SonaError(f"ring: expected sequence numbers below {SEQUENCES}, got {sequence}: begin a new file")
            try:
                if data[:4] == _MAGIC:
                    self._take_feedback(data, sequence)
                else:
                    self._take_trajectory(data, sequence)
            except SonaClosedError:
                raise
            except (SonaCorruptError, SonaVersionError, SonaValueError, SonaTypeError) as error:
                self._refuse(self._reason(error, data), f"record {sequence}: {error}")
            with self._ended.mutex:
                self.check()
                if sequence > self._old:
                    self._taught.read(self._identity, sequence)
        return most

    def _take_trajectory(self, data: bytes, sequence: int) -> None:
        id, record, quality = self._engine.admit(data, self.id_of(sequence))
        if sequence <= self._old:
            self.again += 1
            self._ended.held.trajectory(id, record, quality)
            return
        with self._ended.mutex:
            self.check()
            self._taught.read(self._identity, sequence)
            self._ended.learn(id, record, learn=True)
            self._ended.held.trajectory(id, record, quality)
        if quality is not None:
            self._engine.memory.note(id, record, quality)
        self.trajectories += 1

    def _take_feedback(self, data: bytes, sequence: int) -> None:
        if len(data) != _FEEDBACK.size or _FEEDBACK.unpack(data)[1] != len(data):
            raise SonaCorruptError(f"feedback: expected {_FEEDBACK.size} bytes, got {len(data)}")
        _, _, named, reward = _FEEDBACK.unpack(data)
        unit = self._engine.config.to_unit(reward)
        id = self.id_of(named)
        if sequence <= self._old:
            self.again += 1
            self._write_again(id, unit, sequence)
        elif not 0 < named < sequence:
            self._refuse("unknown", f"record {sequence}: feedback for record {named}, which does not come before it")
        elif id in self._taught.owed or not self._learn(id, unit, sequence):
            with self._ended.mutex:
                self.check()
                _, since = self._taught.owed.get(id, (0.0, sequence))
                self._taught.owed[id] = unit, since
                self._taught.read(self._identity, sequence)

    def _learn(self, id: int, unit: float, sequence: int | None = None) -> bool:
        """Learn a reward, or find that it is of no use; False when the store is needed for it and cannot be read."""
        ended = self._ended
        try:
            ended.seek(id)
            with ended.mutex:
                self.check()
                found = ended.find(id)
                if found is not None:
                    ended.revise(id, *found, unit)
                    ended.held.reward(id, unit, self._source)
                self._taught.owed.pop(id, None)
                if sequence is not None:
                    self._taught.read(self._identity, sequence)
        except SonaStoreError as error:
            self._say("store", f"feedback waits for its trajectory: {error}")
            return False
        if found is None:
            self._refuse("unknown", f"feedback for trajectory {id}, which is not in the store")
        else:
            self.feedback += 1
            self._engine.memory.note(id, found[0], unit)
        return True

    def _write_again(self, id: int, unit: float, sequence: int) -> None:
        """A learned reward, whose row may be in the store or not; once more does no harm."""
        held = self._ended.held
        if id in self._taught.owed and sequence >= self._taught.owed[id][1]:  # not learned yet
            return
        try:
            last = held.last[id] if id in held.last else self._journal.store.reward(id)
            known = id in held.trajectories or self._journal.store.trajectory(id) is not None
        except SonaStoreError:
            last, known = None, True
        if known and last != unit:
            held.reward(id, unit, self._source)

    def settle(self) -> bool:
        """Learn the rewards whose trajectories could not be read before; whether none is left."""
        return all(self._learn(id, unit) for id, (unit, _) in list(self._taught.owed.items()))

    @property
    def owed(self) -> int:
        """Rewards whose trajectories could not be read."""
        return len(self._taught.owed)

    def save(self) -> None:
        """
        Everything that `take` has read is durable on return: the state, which has it, and then the rows.

        Raises
        ------
        SonaStoreError
            The store cannot be written; what is missing comes with the next call.
        LearnerReplaced
            See `check`.
        """
        held = self._ended.held
        with self._ended.mutex:
            self.check()
            trajectories, rewards = list(held.trajectories.values()), list(held.rewards)
        try:
            self._journal.save()
        except LeaseLost:
            self._journal.poll()  # nobody else may have led
            self.check()
            if not self._journal.leading:
                raise
            self._journal.save()
        self.check()  # else what was saved has not learned these rows
        if trajectories or rewards:
            self._journal.store.append((), rewards, trajectories)
        with self._ended.mutex:
            held.written(trajectories, rewards)

    # ---- what teaches nothing ----

    def _reason(self, error: SonaError, data: bytes) -> str:
        if isinstance(error, SonaCorruptError):
            return "corrupt"
        if isinstance(error, SonaVersionError):
            return "version"
        if data[:4] != _MAGIC and measure_record(bytes(data))[0] != self._engine.config.hidden_dim:
            return "dimension"
        return "value"

    def _refuse(self, reason: str, text: str) -> None:
        self.bad[reason] += 1
        self._say(reason, f"{text} ({self.bad[reason]} {reason} so far)")

    def _say(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now >= self._quiet.get(kind, 0.0):
            self._quiet[kind] = now + QUIET
            log.warning("%s", text, extra={"event": "ring.record_refused", "kind": kind})
