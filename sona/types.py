"""What flows from a request to the learners: steps, trajectories and the learning signal of a trajectory."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from sona._arrays import Floats
from sona._vector import frozen
from sona.errors import SonaTypeError, SonaValueError

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MIN_NORM = 1e-6  # a gradient shorter than this has no direction worth keeping and stays as it is


def finite(value: Any, name: str) -> float:
    """
    A number as a float.

    Raises
    ------
    SonaTypeError
        Not a number.
    SonaValueError
        NaN, infinity or beyond the range of float32.
    """
    if type(value) is float and -_FLOAT32_MAX <= value <= _FLOAT32_MAX:  # the usual case, several times a step
        return value
    try:
        result = float(value.__float__())
    except (AttributeError, TypeError):
        raise SonaTypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    except OverflowError:
        result = math.inf
    if not -_FLOAT32_MAX <= result <= _FLOAT32_MAX:
        raise SonaValueError(f"{name}: expected a finite number up to 3.4e38, got {result}")
    return result


def _natural(value: Any, bits: int, name: str) -> int:
    """An int in [0, 2**bits)."""
    if type(value) is int and 0 <= value < 1 << bits:
        return value
    try:
        result = value.__index__()
    except AttributeError:
        raise SonaTypeError(f"{name}: expected an int, got {type(value).__name__}") from None
    if not 0 <= result < 1 << bits:
        raise SonaValueError(f"{name}: expected an int in [0, 2**{bits}), got {result}")
    return int(result)


def _weights(value: Any) -> Floats | None:
    """Attention weights; some callers say "none" with an empty list."""
    try:
        empty = len(value) == 0
    except TypeError:  # no sequence: frozen says so
        empty = False
    return None if empty else frozen(value, None, "attention_weights")


@dataclass(frozen=True, slots=True, eq=False)
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

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen for everyone else
        put(self, "activations", frozen(self.activations, None, "activations"))
        if self.attention_weights is not None:
            put(self, "attention_weights", _weights(self.attention_weights))
        if self.reward is not None:
            put(self, "reward", finite(self.reward, "reward"))
        put(self, "timestamp", finite(self.timestamp, "timestamp"))
        if self.expected is not None:
            put(self, "expected", finite(self.expected, "expected"))
        put(self, "layer", _natural(self.layer, 32, "layer"))
        if self.x is not None:
            put(self, "x", frozen(self.x, len(self.activations), "x"))


@dataclass(frozen=True, slots=True, eq=False)
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

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "id", _natural(self.id, 64, "id"))
        put(self, "query_embedding", frozen(self.query_embedding, None, "query_embedding"))
        put(self, "steps", tuple(self.steps))
        for number, step in enumerate(self.steps):
            if not isinstance(step, TrajectoryStep):
                raise SonaTypeError(f"steps[{number}]: expected a TrajectoryStep, got {type(step).__name__}")
            if len(step.activations) != len(self.query_embedding):
                raise SonaValueError(
                    f"steps[{number}].activations: expected shape ({len(self.query_embedding)},) like query_embedding, "
                    f"got {step.activations.shape}"
                )
        if self.final_quality is not None:
            put(self, "final_quality", finite(self.final_quality, "final_quality"))
        put(self, "latency_us", _natural(self.latency_us, 64, "latency_us"))

    def rewarded(self, reward: float) -> Self:
        """The same trajectory with `reward` in each step that has none."""
        reward = finite(reward, "reward")
        return replace(self, steps=tuple(replace(step, reward=reward) if step.reward is None else step for step in self.steps))


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
