"""Learning again without a source: nothing can be taken out of the weights, so they are made anew from what the others reported."""

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._locks import lock
from sona.adapters import MemoryVersions
from sona.errors import SonaStoreError
from sona.loops._policy import Policy
from sona.loops.background import BackgroundLoop
from sona.loops.drift import Drift
from sona.loops.journal import Journal
from sona.loops.learner import new_adapter, new_instant, rows_of
from sona.loops.learners import Learners
from sona.loops.limits import Sources
from sona.loops.memory import Memory

_CUT = "rewards have been learned that are no longer kept"
# parts of a state that another learner brings or ends
_REPLACED = ("layer0.", "policy.", "trial.", "sources.", "drift.", "unlogged", "taught.ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetReport:
    """
    What became of the rewards of a source.

    Attributes
    ----------
    source : str
    rewards_removed : int
        Deleted.
    rewards_replayed : int
        Of the others, learned again from the start.
    versions_dropped : int
        Kept versions that may have held what the source taught.
    complete : bool
        Whether everything that had been learned and was not the source's has been learned again.
    reason : str
        What has not, where something has not.
    """

    source: str
    rewards_removed: int = 0
    rewards_replayed: int = 0
    versions_dropped: int = 0
    complete: bool = True
    reason: str = ""


class Relearner:
    """
    A learner from the start, with the arms of the policy that serves meanwhile.

    Parameters
    ----------
    learners : Learners
        With that policy. Its options are taken from it, and alarms are raised on the way where they were.

    Attributes
    ----------
    policy : Policy
    sources : Sources
    drift : Drift or None
    learned, missed : int
        Rewards that it has learned or found to count for nothing, and those whose decision or arm is gone.
    last : dict
        Reward of each decision that it has learned.
    """

    def __init__(self, learners: Learners) -> None:
        serving = learners.policy
        assert serving is not None
        self.policy = Policy(
            new_adapter(learners.config),
            new_instant(learners.config),
            tau=serving.tau,
            explore=serving.explore,
            guard=serving.guarded,
            pending=serving.capacity,
        )  # as a Router makes its own
        self.policy.take_arms(serving)
        self.policy.next_id = serving.next_id
        self.drift = None if learners.drift is None else Drift(self.policy)
        self.sources = Sources(learners.sources.limits)
        self.learned = self.missed = 0
        self.last: dict[int, float] = {}

    def learn(self, id: int, reward: float, source: str | None, requests: int) -> None:
        """A reward of a decision that the policy knows, when that many decisions had been made."""
        self.policy.requests = requests
        if self.sources.learn(self.policy, id, reward, source):
            self.learned += 1
            self.last[id] = reward
        else:
            self.missed += 1

    def follow(self, journal: Journal, without: str, numbers: tuple[int, int], times: npt.NDArray[np.float64], requests: int) -> None:
        """
        Learn what a store has with numbers from the first on, to below the second, in order.

        Parameters
        ----------
        without : str
            Source whose rewards are left out.
        times : (n,) float64, ascending
            Of the decisions in the store, `requests` being their number with those that are no longer there.
        """
        after, end = numbers[0] - 1, numbers[1]
        while after < end - 1 and (rows := journal.store.feedback_after(after)):
            after = rows[-1][0]
            decisions = journal.store.decisions_of({row.id for _, row in rows})
            for number, row in rows:
                if row.source == without or number >= end:
                    continue
                if not self.policy.knows(row.id):
                    decision = decisions.get(row.id)
                    if decision is None or not journal.recall_row(self.policy, decision, self.last.get(row.id)):
                        self.missed += 1
                        continue
                made = int(np.searchsorted(times, row.time, side="right"))
                self.learn(row.id, row.reward, row.source, max(requests - len(times) + made, 0))

    def arrays(self, learners: Learners) -> dict[str, npt.NDArray[Any]]:
        """The state of all learners with this one in its place, but for the random stream and the requests of the policy that serves."""
        before = learners.state()
        arrays = {key: value for key, value in before.items() if not key.startswith(_REPLACED)}
        layer = rows_of(self.policy.adapter) | self.policy.instant.state()
        arrays |= {f"layer0.{key}": value for key, value in layer.items()}
        arrays |= {f"policy.{key}": value for key, value in self.policy.state().items()}
        arrays["policy.random"] = before["policy.random"]
        arrays["policy.requests"] = np.array([before["policy.requests"][0], arrays["policy.requests"][1]], np.uint64)
        if self.drift is not None:
            arrays |= {f"drift.{key}": value for key, value in self.drift.state().items()}
        return arrays | {f"sources.{key}": value for key, value in self.sources.state().items()}

    def report(self, source: str, removed: int, versions: int, *, whole: bool, unlogged: int) -> ForgetReport:
        """
        What became of the rewards of a source once this one serves.

        Parameters
        ----------
        removed, versions : int
            Rewards and versions that were deleted.
        whole : bool
            Whether every reward that had been learned was still kept.
        unlogged : int
            Rewards that had been learned and were never kept.
        """
        lost = [] if whole else [_CUT]
        if self.missed:
            lost.append(f"{self.missed} rewards are of decisions or arms that are gone")
        if unlogged:
            lost.append(f"{unlogged} rewards of trajectories or of a warm start were never kept")
        return ForgetReport(
            source=source,
            rewards_removed=removed,
            rewards_replayed=self.learned,
            versions_dropped=versions,
            complete=not lost,
            reason="; ".join(lost),
        )


class MemoryRewards:
    """
    Learned rewards without a store: the newest, as many as the policy remembers decisions.

    Parameters
    ----------
    learners : Learners
    versions : MemoryVersions
    background : BackgroundLoop
    memory : Memory
        With no cycle of either under way while something is forgotten.
    """

    def __init__(self, learners: Learners, versions: MemoryVersions, background: BackgroundLoop, memory: Memory) -> None:
        self._learners, self._versions, self._background, self._memory = learners, versions, background, memory
        capacity = None if learners.policy is None else learners.policy.capacity
        self._kept: deque[tuple[int, float, str | None, int, float]] = deque(maxlen=capacity)  # id, reward, source, requests, time
        self.mutex = lock(brief=True)
        """Held while a reward is learned, and while the state is captured."""

    def learn(self, id: int, reward: float, source: str | None) -> bool:
        """See `Learners.learn`."""
        policy = self._learners.policy
        assert policy is not None
        with self.mutex:
            learned = self._learners.learn(id, reward, source)
            if learned:
                self._kept.append((id, reward, source, policy.requests, time.time()))
        return learned

    def forget(self, source: str) -> ForgetReport:
        """Learn again without a source; rewards wait meanwhile."""
        policy = self._learners.policy
        assert policy is not None
        with self.mutex:
            gone = [each for each in self._kept if each[2] == source]
            whole = len(self._kept) < policy.capacity
            if not gone and (whole or not self._learners.sources.knows(source)):
                return ForgetReport(source=source, complete=whole, reason="" if whole else _CUT)
            learner = Relearner(self._learners)
            for id, reward, who, requests, _ in self._kept:
                if who == source:
                    continue
                known = policy.recorded(id)
                if known is None:
                    learner.missed += 1
                    continue
                if not learner.policy.knows(id):
                    learner.policy.recall(id, **known | {"reward": learner.last.get(id)})
                learner.learn(id, reward, who, requests)
            unlogged = self._learners.unlogged
            self._learners.put(learner.arrays(self._learners))
            for id in range(max(policy.first_id, policy.next_id - policy.capacity), policy.next_id):
                known = learner.policy.recorded(id)
                policy.settle(id, None if known is None else known["reward"])
            self._kept = deque((each for each in self._kept if each[2] != source), policy.capacity)
            dropped = self._versions.drop(gone[0][4] if gone and whole else -math.inf)
            self._background.forget({each[0] for each in gone})
            self._memory.forget_rewards()
        return learner.report(source, len(gone), dropped, whole=whole, unlogged=unlogged)


class StoredRewards:
    """
    Learned rewards in a store.

    Parameters
    ----------
    learners : Learners
    journal : Journal
        Of the same learners, opened.
    background : BackgroundLoop
    memory : Memory
        With no cycle of either under way while something is forgotten.
    """

    def __init__(self, learners: Learners, journal: Journal, background: BackgroundLoop, memory: Memory) -> None:
        self._learners, self._journal, self._background, self._memory = learners, journal, background, memory

    def forget(self, source: str) -> ForgetReport:
        """Learn again without a source, most of it while rewards come in and the rest while they wait; errors as in `forget_source`."""
        learners, journal, store = self._learners, self._journal, self._journal.store
        policy = learners.policy
        assert policy is not None
        if not journal.leading:
            raise SonaStoreError("forget_source: another process learns for this store; call it there")
        journal.flush()
        whole, known = store.whole(), store.sources().get(source)
        if known is None and (whole or not learners.sources.knows(source)):
            return ForgetReport(source=source, complete=whole, reason="" if whole else _CUT)
        since = known[1] if known is not None and whole else -math.inf
        learner = Relearner(learners)
        self._memory.forget_rewards()  # before: a kill may leave a memory without patterns, which the next deep cycle brings back
        last = 0
        for _ in range(2):
            last = self._catch_up(learner, policy, source, last)
        with journal.intake:
            done = None
            while done is None:  # another process may write meanwhile
                if learner.policy.version != policy.version:
                    learner, last = Relearner(learners), 0
                last = self._catch_up(learner, policy, source, last)
                unlogged = learners.unlogged
                done = self._replace(learner, policy, source, last, since)
        store.scrub_log()
        return learner.report(source, done[0], done[1], whole=whole, unlogged=unlogged)

    def _catch_up(self, learner: Relearner, policy: Policy, source: str, after: int) -> int:
        """Let it learn what is in the store by now; the number up to which it has everything."""
        self._journal.flush()
        newest = self._journal.store.last_seq()
        times = np.array(self._journal.store.decision_times())
        learner.follow(self._journal, source, (after + 1, newest + 1), times, policy.requests)
        return newest

    def _replace(self, learner: Relearner, policy: Policy, source: str, last: int, since: float) -> tuple[int, int] | None:
        """Put it in service; rewards and versions that were deleted, or None where there are rewards after number `last`."""
        assert self._background.window is not None
        arrays = learner.arrays(self._learners)

        def put() -> None:
            self._learners.put(arrays)
            policy.forget_decisions()
            self._background.forget(())

        keep = (*self._background.window.state_names, *self._memory.state_names)
        return self._journal.replace_learner(arrays, last, put, without=source, versions_since=since, keep=keep)
