"""The drift alarm: when rewards fall behind what was expected, the learner doubts all that it has learned."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.loops._drift import Watch
from sona.loops._policy import Policy

# Chosen on seeds 0 to 19 of the streams of asv_benchmarks/drift_table.py, see docs/drift.md
DELTA = 1e-3  # bound on false alarms
LEAST = 0.1  # of the correction and of trust is left after an alarm
KEEP = 0.2  # what is left of P
KNOWN = 32  # alarms whose times are remembered
SETTLE = 64  # own choices after an alarm in which a further fall is the same change


class Drift:
    """
    Watches the surprises of a policy and raises an alarm where they fall.

    The surprise r - p of an own choice is zero on average while the policy is calibrated, whatever its success rate is. Adwin compares
    older with newer ones. Where they have fallen by f, to -f, the correction and trust are multiplied by (1 - f)^2, at least 0.1. That
    changes no first choice but makes the policy unsure of it, so that the next rewards count in full: a policy that is certain takes small
    steps. P is widened as well, P <- .2 P + .8 p0 I. The same is done to a candidate on trial and to the partner in a pool, and what came
    before the change is not rehearsed.

    Parameters
    ----------
    policy : Policy
        The first rewards of its own choices are watched from now on, in the order in which they are learned.

    Attributes
    ----------
    alarms : int
    time : float
        Of the last alarm, when the reward was learned, in seconds since the epoch; 0 before the first.
    times : list of float
        The same of the newest 32 alarms, oldest first.
    since : int
        Id of the first decision after the last change, not above the next one of this process; 0 before the first alarm.

    Thread-safety
    -------------
    That of the policy's `learn`, which calls it.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._watch = Watch(DELTA)
        self.alarms, self.time, self.since = 0, 0.0, 0
        self.times: list[float] = []
        self._alarmed = 0  # own choices until the last alarm
        policy.watch, policy.on_alarm = self._watch, self._alarm

    def _alarm(self) -> None:
        if self.alarms and self._watch.added - self._alarmed <= SETTLE:
            return
        self.alarms += 1
        self._alarmed = self._watch.added
        self.since = min(self._watch.changed, self._policy.next_id)  # of a process that began later: it says nothing of our own ids
        self.time = time.time()
        self.times = [*self.times, self.time][-KNOWN:]
        self._policy.since = self.since
        share = min(max((1 + self._watch.level) ** 2, LEAST), 1.0)
        for learner in (self._policy, self._policy.rival, self._policy.partner):
            if learner is not None:
                learner.doubt(share)
                learner.instant.soften(KEEP)

    def stats(self) -> dict[str, Any]:
        """alarms, time and since as above; width: own choices in the window; surprise: their mean."""
        return {
            "alarms": self.alarms,
            "time": self.time,
            "since": self.since,
            "width": self._watch.width,
            "surprise": self._watch.mean,
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `restore` takes."""
        alarms = {"alarms": np.array([self.alarms, self.since, self._alarmed], np.uint64), "time": np.array([self.time], np.float64)}
        if self.times:
            alarms["times"] = np.array(self.times, np.float64)
        return self._watch.state() | alarms

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """
        Go on where `state` was taken; from before the first reward where there is nothing, as in states of older versions.

        Raises
        ------
        SonaValueError, KeyError
            Anything else. Nothing has changed.
        """
        arrays = arrays or {**Watch(DELTA).state(), "alarms": np.zeros(3, np.uint64), "time": np.zeros(1)}
        alarms, when = np.asarray(arrays["alarms"]), np.asarray(arrays["time"])
        if alarms.shape != (3,) or when.shape != (1,) or not np.isfinite(when).all():
            raise SonaValueError(f"drift: expected alarms (3,) and a finite time (1,), got shapes {alarms.shape} and {when.shape}")
        times = np.asarray(arrays.get("times", when[when > 0]), np.float64)  # absent: from before they were kept, or no alarm yet
        if times.ndim != 1 or not np.isfinite(times).all():
            raise SonaValueError(f"drift: expected finite times (n,), got shape {times.shape}")
        self._watch.restore(arrays)
        self.alarms, since, self._alarmed = alarms.tolist()
        self.since = min(since, self._policy.next_id)
        self.time, self.times = float(when[0]), times[-KNOWN:].tolist()
        self._policy.since = self.since
