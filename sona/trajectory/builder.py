"""Records the steps of one request while it runs."""

import time
from collections.abc import Callable
from typing import Any

from sona._fields import natural
from sona._vector import frozen
from sona.errors import SonaClosedError, SonaValueError
from sona.types import QueryTrajectory, TrajectoryStep


class TrajectoryBuilder:
    """
    Collects steps and becomes a QueryTrajectory.

    Parameters
    ----------
    id : int
        Unsigned, 64 bits.
    query_embedding : array of shape (d,)
    clock : callable
        Seconds, never going back; the latency is counted from here.

    Thread-safety
    -------------
    One builder per request, one thread at a time.
    """

    def __init__(self, id: int, query_embedding: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._steps: list[TrajectoryStep] = []
        self._built = False
        self._id = natural(id, 64, "id")
        self._query = frozen(query_embedding, None, "query_embedding")

    def __len__(self) -> int:
        return len(self._steps)

    def add_step(
        self,
        activations: Any,
        attention_weights: Any = None,
        reward: float | None = None,
        *,
        expected: float | None = None,
        layer: int = 0,
        x: Any = None,
    ) -> None:
        """
        Record a step now; see `TrajectoryStep` for what is copied and what is refused.

        Raises
        ------
        SonaValueError, SonaTypeError
            The step is not recorded.
        SonaClosedError
            After `build`.
        """
        if self._built:
            raise SonaClosedError(f"trajectory {self._id} is built and takes no further step")
        step = TrajectoryStep(activations, attention_weights, reward, self._clock(), expected, layer, x)
        if len(step.activations) != len(self._query):
            raise SonaValueError(f"activations: expected shape {self._query.shape} like query_embedding, got {step.activations.shape}")
        self._steps.append(step)

    def build(self, final_quality: float | None = None, *, default_reward: float | None = None) -> QueryTrajectory:
        """
        End the trajectory.

        Parameters
        ----------
        final_quality : float, optional
            How good the outcome was; None: not known yet.
        default_reward : float, optional
            For the steps that were recorded without a reward.

        Raises
        ------
        SonaValueError, SonaTypeError
            A number is not finite; the trajectory goes on.
        SonaClosedError
            The second time.
        """
        if self._built:
            raise SonaClosedError(f"trajectory {self._id} is built already")
        latency_us = round((self._clock() - self._start) * 1e6)
        result = QueryTrajectory(self._id, self._query, self._steps, final_quality, latency_us)
        if default_reward is not None:
            result = result.rewarded(default_reward)
        self._built = True
        return result
