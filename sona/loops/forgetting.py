"""Learning again without a source: nothing can be taken out of the weights, so they are made anew from what the others reported."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.adapters import Adapter
from sona.loops._instant import Instant
from sona.loops._policy import Policy
from sona.loops.drift import Drift
from sona.loops.journal import Journal
from sona.loops.limits import SourceLimits, Sources


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
    A learner from the start, with the arms of one that serves meanwhile.

    Parameters
    ----------
    policy : Policy
        The one that serves.
    adapter, instant : Adapter, Instant
        Made as the policy's own were.
    limits : SourceLimits or None
    drift : bool
        Whether alarms are raised on the way, as they were.

    Attributes
    ----------
    drift : Drift or None
    learned, missed : int
        Rewards that it has learned or found to count for nothing, and those whose decision or arm is gone.
    """

    def __init__(self, policy: Policy, adapter: Adapter, instant: Instant, limits: SourceLimits | None, *, drift: bool = False) -> None:
        self.policy = Policy(
            adapter, instant, tau=policy.tau, explore=policy.explore, guard=policy.guarded, pending=policy.capacity
        )  # as a Router makes its own
        self.policy.take_arms(policy)
        self.drift = Drift(self.policy) if drift else None
        self.sources = Sources(limits)
        self.learned = self.missed = 0
        self.last: dict[int, float] = {}  # reward of each decision that has been learned

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

    def arrays(self, serving: Policy) -> dict[str, npt.NDArray[Any]]:
        """The policy's part of a state, with the random stream and the requests of the policy that serves."""
        kept, ours = serving.state(), self.policy.state()
        return ours | {"random": kept["random"], "requests": np.array([kept["requests"][0], ours["requests"][1]], np.uint64)}
