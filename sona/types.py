"""What flows from a request to the learners: steps, trajectories and the learning signal of a trajectory."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from sona._arrays import Floats
from sona._fields import finite, set_step, set_trajectory

_MIN_NORM = 1e-6  # a gradient shorter than this has no direction worth keeping and stays as it is


@dataclass(frozen=True, slots=True, eq=False, init=False)
class TrajectoryStep:
    """
    One decision on the way from a request to its outcome. Arrays are copied and read-only.

    Attributes
    ----------
    activations : float32 array of shape (d,)
        The score direction d log pi(action) / d y in the adapter's output space.
    attention_weights : float32 array of any length, or None
        Kept with the step; not learned from. An empty one counts as None.
    reward : float or None
        None: not known yet.
    timestamp : float
        Seconds on the recorder's monotonic clock; only differences mean something.
    expected : float or None
        The reward that the policy expected.
    layer : int
        Which adapter acted.
    x : float32 array of shape (d,), or None
        Input of that layer; None: the trajectory's query_embedding.

    Raises
    ------
    SonaValueError, SonaTypeError
        NaN or infinity anywhere, an array that is not one-dimensional, x and activations of different length, a negative layer.
    """

    activations: Floats
    attention_weights: Floats | None
    reward: float | None
    timestamp: float
    expected: float | None = None
    layer: int = 0
    x: Floats | None = None

    def __init__(
        self,
        activations: Any,
        attention_weights: Any,
        reward: float | None,
        timestamp: float,
        expected: float | None = None,
        layer: int = 0,
        x: Any = None,
    ) -> None:
        set_step(self, activations, attention_weights, reward, timestamp, expected, layer, x)


@dataclass(frozen=True, slots=True, eq=False, init=False)
class QueryTrajectory:
    """
    A request, its steps and its outcome.

    Attributes
    ----------
    id : int
        Unsigned, 64 bits.
    query_embedding : float32 array of shape (d,)
    steps : tuple of TrajectoryStep
        Activations of shape (d,). May be empty.
    final_quality : float or None
        None: not known yet.
    latency_us : int
        Microseconds from the start of the request to its end.

    Raises
    ------
    SonaValueError, SonaTypeError
        As for TrajectoryStep; also activations of another length than query_embedding.
    """

    id: int
    query_embedding: Floats
    steps: tuple[TrajectoryStep, ...]
    final_quality: float | None
    latency_us: int

    def __init__(
        self, id: int, query_embedding: Any, steps: Iterable[TrajectoryStep], final_quality: float | None, latency_us: int
    ) -> None:
        set_trajectory(self, TrajectoryStep, id, query_embedding, steps, final_quality, latency_us)

    def rewarded(self, reward: float) -> Self:
        """The same trajectory with `reward` in each step that has none."""
        reward = finite(reward, "reward")
        steps = [s if s.reward is not None else replace(s, reward=reward) for s in self.steps]
        return replace(self, steps=tuple(steps))


@dataclass(frozen=True, slots=True)
class SignalMetadata:
    """Where a learning signal came from."""

    trajectory_id: int
    step_count: int


@dataclass(frozen=True, slots=True, eq=False)
class LearningSignal:
    """
    What a trajectory teaches.

    Attributes
    ----------
    query_embedding : float32 array of shape (d,)
    gradient_estimate : float32 array of shape (d,)
        The direction in the adapter's output space that makes what was rewarded more likely: of norm 1, or shorter than 1e-6.
    quality_score : float or None
        The trajectory's final quality.
    timestamp : float
        Seconds on the monotonic clock, when the signal was made.
    metadata : SignalMetadata
    """

    query_embedding: Floats
    gradient_estimate: Floats
    quality_score: float | None
    timestamp: float
    metadata: SignalMetadata

    @classmethod
    def from_trajectory(cls, trajectory: QueryTrajectory, baseline: float | None = None, *, timestamp: float | None = None) -> Self:
        """
        REINFORCE with a baseline: the sum over steps of (reward - baseline_t) activations_t, scaled to norm 1.

        Parameters
        ----------
        trajectory : QueryTrajectory
            Steps without a reward contribute nothing; with none left the gradient is zero.
        baseline : float, optional
            Running mean of earlier rewards (`sona.trajectory.RunningBaseline`), for steps that have no `expected` of their own. Without it
            the mean of the trajectory's own rewards stands in, and then a trajectory of one step, or of equal rewards, teaches nothing:
            its gradient is zero. Learning loops therefore pass one.
        timestamp : float, optional
            Default: now.
        """
        return cls(
            trajectory.query_embedding,
            _estimate_gradient(trajectory, None if baseline is None else finite(baseline, "baseline")),
            trajectory.final_quality,
            time.monotonic() if timestamp is None else finite(timestamp, "timestamp"),
            SignalMetadata(trajectory.id, len(trajectory.steps)),
        )


def _estimate_gradient(trajectory: QueryTrajectory, baseline: float | None) -> Floats:
    """Shape (d,). Summed in double precision: no product or square of numbers within float32 overflows there."""
    rewarded = [(step, step.reward) for step in trajectory.steps if step.reward is not None]
    gradient = np.zeros(len(trajectory.query_embedding))
    if rewarded:
        fallback = math.fsum(reward for _, reward in rewarded) / len(rewarded) if baseline is None else baseline
        for step, reward in rewarded:
            advantage = reward - (fallback if step.expected is None else step.expected)
            gradient += advantage * step.activations.astype(np.float64)
        norm = math.sqrt(gradient @ gradient)
        if norm > _MIN_NORM:
            gradient /= norm
    result: Floats = gradient.astype(np.float32)
    result.flags.writeable = False
    return result
