"""Learning signals from drained trajectories."""

from collections.abc import Iterable

from sona._fields import finite
from sona.errors import SonaValueError
from sona.types import LearningSignal, QueryTrajectory


class RunningBaseline:
    """
    Exponential moving average of rewards: what a reward is compared with where the policy named no expectation.

    Parameters
    ----------
    initial : float
        Before the first reward; the middle of rewards in [0, 1].
    momentum : float
        Share of a new reward, in (0, 1]. At 0.02 the last 50 rewards weigh 64 %.

    Attributes
    ----------
    value : float
    """

    def __init__(self, initial: float = 0.5, *, momentum: float = 0.02) -> None:
        if not 0 < momentum <= 1:
            raise SonaValueError(f"momentum: expected a number in (0, 1], got {momentum}")
        self.value = finite(initial, "initial")
        self.momentum = momentum

    def update(self, reward: float) -> None:
        """Take a reward into account."""
        self.value += self.momentum * (finite(reward, "reward") - self.value)


def extract_signals(trajectories: Iterable[QueryTrajectory], baseline: RunningBaseline) -> list[LearningSignal]:
    """
    One signal per trajectory, in order. Each is compared with the baseline before its own rewards enter it: a reward that helped to set
    its own mark would teach less.
    """
    signals = []
    for trajectory in trajectories:
        signals.append(LearningSignal.from_trajectory(trajectory, baseline.value))
        for step in trajectory.steps:
            if step.reward is not None:
                baseline.update(step.reward)
    return signals
