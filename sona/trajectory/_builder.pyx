"""Records the steps of one request while it runs."""

from cpython.type cimport PyType_GenericNew

from sona._fields cimport natural, set_step, set_trajectory
from sona._vector cimport frozen

import time

from sona.errors import SonaClosedError, SonaValueError
from sona.types import QueryTrajectory, TrajectoryStep


cdef class TrajectoryBuilder:
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

    def __init__(self, id, query_embedding, *, clock=time.monotonic):
        self.id = natural(id, 64, "id")
        self.query = frozen(query_embedding, None, "query_embedding")
        self.steps = []
        self.built = False
        self.clock = clock
        self.start = clock()

    def __len__(self):
        return len(self.steps)

    def add_step(self, activations, attention_weights=None, reward=None, *, expected=None, layer=0, x=None):
        """
        Record a step now; see `TrajectoryStep` for what is copied and what is refused.

        Raises
        ------
        SonaValueError, SonaTypeError
            The step is not recorded.
        SonaClosedError
            After `build`.
        """
        if self.built:
            raise SonaClosedError(f"trajectory {self.id} is built and takes no further step")
        step = PyType_GenericNew(TrajectoryStep, None, None)
        set_step(step, activations, attention_weights, reward, self.clock(), expected, layer, x)
        if len(step.activations) != len(self.query):
            raise SonaValueError(f"activations: expected shape {self.query.shape} like query_embedding, got {step.activations.shape}")
        self.steps.append(step)

    def build(self, final_quality=None, *, default_reward=None):
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
        if self.built:
            raise SonaClosedError(f"trajectory {self.id} is built already")
        latency_us = round((self.clock() - self.start) * 1e6)
        result = PyType_GenericNew(QueryTrajectory, None, None)
        set_trajectory(result, TrajectoryStep, self.id, self.query, self.steps, final_quality, latency_us)
        if default_reward is not None:
            result = result.rewarded(default_reward)
        self.built = True
        return result
