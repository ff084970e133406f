"""The decisions that a replay sees: the newest rewarded ones and a reservoir of each task, from memory and from the store."""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable

import numpy as np

from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError
from sona.loops._policy import Policy
from sona.loops.journal import TASKS, Journal, proposals
from sona.loops.reservoir import Tasks
from sona.loops.rows import Rows
from sona.store import DecisionRow
from sona.store.rows import SEQUENCE_BITS

log = logging.getLogger(__name__)


class Window:
    """
    Parameters
    ----------
    policy : Policy
    journal : Journal or None
        Of the same learner; None where nothing is stored.
    newest : int
        Rewarded decisions.
    tasks : Tasks
        Their rows are read from the store, so that what is forgotten there is not replayed; without a store they are kept in memory,
        4 dim + 40 bytes or so each.
    """

    def __init__(self, policy: Policy, journal: Journal | None, newest: int, tasks: Tasks) -> None:
        self._policy, self._journal, self._newest = policy, journal, newest
        self.tasks = tasks
        self.offered = 0  # ids of this process below it have been offered to the reservoirs
        self._kept = Rows.empty(policy.dim)  # without a store: of the reservoirs
        self._arms = policy.names_by_row()  # that the rows in memory refer to
        if journal is not None:
            self._state_name = f"{journal.name[:40]}{TASKS}{hashlib.sha256(journal.name.encode()).hexdigest()[:8]}"
            kept = journal.store.get_state(self._state_name)
            if kept is not None:
                try:
                    self.tasks = Tasks.restore(json.loads(kept[0]), tasks.seed)
                except (SonaValueError, ValueError, KeyError, TypeError) as error:
                    raise SonaCorruptError(f"reservoirs {self._state_name!r}: expected what sona wrote, got: {error}") from error

    def newest(self, since: int = 0) -> Rows:
        """
        The newest rewarded decisions with an id of at least `since`, oldest first: those that the policy remembers, and before them what
        the store has.
        """
        own = Rows.remembered(self._policy, self._newest, since)
        if self._journal is None or len(own) == self._newest:
            return own
        self._journal.flush()
        known = set(own.id.tolist())
        stored = ((row, reward) for row, reward in self._journal.last_rewards(self._newest) if row.id >= since)
        found = ((row, reward) for row, reward in stored if reward is not None and row.id not in known)
        both = self._stored(found).joined(own)
        return both.take(np.arange(max(len(both) - self._newest, 0), len(both)))

    def reservoir(self, since: int = 0) -> Rows:
        """The rows of every task's reservoir that are still to be had; of the task that began last those with an id of at least `since`."""
        if self._journal is not None:
            self._journal.flush()
            store = self._journal.store
            found = ((store.decision(id), self._journal.last_reward(id)) for id in self.tasks.since(since))
            return self._stored((row, reward) for row, reward in found if row is not None and reward is not None)
        self._kept = self._kept.renumbered(self._names(self._arms), self._names(self._policy.names_by_row()))
        self._arms = self._policy.names_by_row()
        return self._kept.take(np.isin(self._kept.id, np.array(self.tasks.since(since), np.uint64)))

    def offer(self, rows: Rows) -> None:
        """Put decisions of this process that have not been offered before to the reservoir of the task that began last."""
        fresh = rows.take((rows.id >= self.offered) & (rows.id >> np.uint64(SEQUENCE_BITS) == self._policy.first_id >> SEQUENCE_BITS))
        if not len(fresh):
            return
        self.tasks.offer(fresh.id.tolist())
        self.offered = int(fresh.id[-1]) + 1
        if self._journal is None:
            both = self.reservoir().joined(fresh)
            self._kept = both.take(np.isin(both.id, np.array(self.tasks.ids, np.uint64)))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of states in the store that hold which decisions are in the reservoirs, and nothing of their rewards."""
        return () if self._journal is None else (self._state_name,)

    def forget(self, ids: Collection[int]) -> None:
        """The rewards of these decisions are not replayed any more; those in a store are deleted there."""
        self._kept = self._kept.take(~np.isin(self._kept.id, np.array(list(ids), np.uint64)))

    def save(self) -> None:
        """Keep which decisions the reservoirs hold, where there is a store; tried again after the next cycle when it cannot be written."""
        if self._journal is None or not self._journal.leading:
            return
        try:
            self._journal.store.put_state(self._state_name, json.dumps(self.tasks.state()).encode(), 0, term=self._journal.term)
        except SonaStoreError as error:
            log.warning("reservoirs: %s", error, extra={"event": "reservoirs.not_saved", "error": str(error)})

    @staticmethod
    def _names(arms: tuple[object, ...]) -> list[str | None]:
        return [None if name is None else str(name) for name in arms]

    def _stored(self, found: Iterable[tuple[DecisionRow, float]]) -> Rows:
        assert self._journal is not None
        policy, journal = self._policy, self._journal
        ids, x, arms, rewards, own, propensity, candidates = [], [], [], [], [], [], []
        for row, reward in found:
            rows = journal.rows_of_set(policy, row.arm_set)
            if row.arm not in rows or len(row.x) != 4 * policy.dim or not 0 <= reward <= 1:
                continue
            named = list(rows) if row.candidates is None else np.frombuffer(row.candidates, "<i4").tolist()
            today = [rows[each] for each in named if each in rows]
            ids.append(row.id)
            x.append(np.frombuffer(row.x, "<f4"))
            arms.append(rows[row.arm])
            rewards.append(reward)
            own.append(bool(proposals(row)[3]))
            propensity.append(row.propensity)
            candidates.append(None if row.candidates is None and len(today) == len(policy.arms) else today)
        if not ids:
            return Rows.empty(policy.dim)
        made = Rows.of(np.stack(x), arms, rewards, candidates=candidates, own=own, propensity=propensity)
        return Rows(np.array(ids, np.uint64), made.x, made.arm, made.reward, made.own, made.propensity, made.start, made.candidates)
