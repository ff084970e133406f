"""Trajectories that have ended: learned from, remembered for the rewards that come later, and found again in the store."""

import logging
import time
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sona.errors import SonaCorruptError, SonaVersionError
from sona.loops.instant import InstantLoop
from sona.loops.journal import Journal
from sona.loops.taught import Taught
from sona.store import FeedbackRow, TrajectoryRow
from sona.trajectory import decode
from sona.trajectory._record import measure_record

RING = "ring-"  # a reward of this source was learned, and the state with it written, before it came into the store

log = logging.getLogger(__name__)

Learned = list[float | None]


class Ended:
    """
    What an engine's ended trajectories are learned through, each with the reward that was learned from each of its steps.

    Parameters
    ----------
    loop : InstantLoop
    taught : Taught
        Of the same learners.
    journal : Journal or None
        Of the same learners, not yet opened.
    most, most_bytes : int
        Of the trajectories that are remembered; of others the rewards are found in the store, where there is one.

    Attributes
    ----------
    mutex : context manager
        That of the journal. Held while something is learned, marked as learned and queued: a captured state has all of it or nothing.
    held : Held
        What a ring brought that is not in the store yet.
    """

    def __init__(self, loop: InstantLoop, taught: Taught, journal: Journal | None, *, most: int, most_bytes: int) -> None:
        self._loop, self._taught, self._journal = loop, taught, journal
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[int, tuple[bytes, Learned | None]] = OrderedDict()  # None: the store says what was learned
        self._bytes = 0  # of their records
        self._restores = 0  # of the journal, when they were learned
        self.held = Held()
        self.mutex: AbstractContextManager[Any] = nullcontext() if journal is None else journal.mutex
        if journal is not None:
            journal.late = self._late

    def learn(self, id: int, record: bytes, *, learn: bool) -> None:
        """Learn from the steps that have a reward, if so, and remember the trajectory; with `mutex` held."""
        self._follow()
        if learn:
            learned = self._loop.on_record(record)
            self._mark(id)
        else:
            learned = [None] * measure_record(record)[1]
        self.keep(id, record, learned)

    def revise(self, id: int, record: bytes, learned: Learned, reward: float) -> None:
        """Another reward in [0, 1] for every step, of which `learned` is learned: what changes is the difference; with `mutex` held."""
        learned = self._loop.revise_record(record, learned, reward)
        self._mark(id)
        self.keep(id, record, learned)

    def _mark(self, id: int) -> None:
        if self._journal is not None and id not in self._taught:  # without a store an id is nobody's but this object's
            self._taught.add(id)

    def keep(self, id: int, record: bytes, learned: Learned) -> None:
        """Remember a trajectory and what has been learned from it."""
        before = self._kept.pop(id, None)
        self._bytes += len(record) - (0 if before is None else len(before[0]))
        self._kept[id] = (record, learned)
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1][0])

    def known(self, id: int) -> bool:
        """Whether it has been recorded here, as far as that can be told without the store."""
        return id in self._kept or id in self._taught

    def seek(self, id: int) -> None:
        """
        Make sure that `find` finds it if anything does; without `mutex`.

        Raises
        ------
        SonaStoreError
            The store cannot be read.
        """
        journal = self._journal
        if journal is None or id in self.held.last:
            return
        if self._kept.get(id, (b"", None))[1] is None or journal.restores != self._restores:
            journal.write_queued()  # it may be on its way
            if journal.leading:
                journal.poll()  # from now on everything up to `applied` is learned

    def find(self, id: int) -> tuple[bytes, Learned] | None:
        """
        A trajectory, and the reward that is learned from each step; None for one that is unknown or expired. With `mutex` held, after
        `seek`.

        Raises
        ------
        SonaStoreError
            It is in the store if anywhere, and that cannot be read.
        """
        self._follow()
        record, learned = self._kept.get(id, (None, None))
        if record is not None and learned is not None:
            return record, learned
        journal = self._journal
        if journal is None or not 0 <= id < 1 << 63:
            return None
        if record is None:
            row = self.held.trajectories.get(id) or journal.store.trajectory(id)
            if row is None or not self._fits(row):
                return None
            record = row.payload
        if id in self.held.last:
            return record, [self.held.last[id]] * measure_record(record)[1]
        return record, self._learned(id, record, journal.applied + 1)

    def _follow(self) -> None:
        """Forget what was learned into a learner that has been replaced by a stored one; its records may not be in the store yet."""
        if self._journal is not None and self._journal.restores != self._restores:
            self._restores = self._journal.restores
            for id, (record, _) in self._kept.items():
                self._kept[id] = record, None

    def _fits(self, row: TrajectoryRow) -> bool:
        try:
            d, _ = measure_record(row.payload)
        except (SonaCorruptError, SonaVersionError) as error:
            log.warning("trajectory %d: %s", row.id, error, extra={"event": "trajectory.unreadable", "error": str(error)})
            return False
        return d == self._loop.adapters[0].dim

    def _learned(self, id: int, record: bytes, before: int) -> Learned:
        """Of a trajectory that is not remembered, where rewards of the store with numbers below `before` are learned."""
        assert self._journal is not None
        last = self._journal.store.reward(id, before)
        if last is None and id in self._taught:
            return [step.reward for step in decode(record).steps]
        return [last] * measure_record(record)[1]

    def _late(self, number: int, row: FeedbackRow) -> bool:
        """Learn a reward that the store has and the learner has not; the journal calls it, with `mutex` held."""
        assert self._journal is not None
        if row.source is not None and row.source.startswith(RING):
            return False
        self._follow()
        record, learned = self._kept.get(row.id, (None, None))
        if record is None:
            kept = self._journal.store.trajectory(row.id)
            if kept is None or not self._fits(kept):
                return False
            record = kept.payload
        self.revise(row.id, record, self._learned(row.id, record, number) if learned is None else learned, row.reward)
        return True


class Held:
    """
    Rows that come into the store only after a state that has learned them: what is in the store is then learned, whenever a process dies.

    Attributes
    ----------
    trajectories : dict
        Rows by id.
    rewards : list
        Rows, in their order.
    last : dict
        The last reward of each id among them.
    """

    def __init__(self) -> None:
        self.trajectories: dict[int, TrajectoryRow] = {}
        self.rewards: list[FeedbackRow] = []
        self.last: dict[int, float] = {}

    def trajectory(self, id: int, record: bytes, quality: float | None) -> None:
        self.trajectories[id] = TrajectoryRow(id, time.time(), record, quality)

    def reward(self, id: int, reward: float, source: str) -> None:
        self.rewards.append(FeedbackRow(id, reward, time.time(), source))
        self.last[id] = reward

    def written(self, trajectories: list[TrajectoryRow], rewards: list[FeedbackRow]) -> None:
        """These are in the store: the oldest ones, as they were."""
        for row in trajectories:
            if self.trajectories.get(row.id) is row:
                del self.trajectories[row.id]
        del self.rewards[: len(rewards)]
        left = {row.id for row in self.rewards}
        for one in rewards:
            if one.id not in left:
                self.last.pop(one.id, None)
