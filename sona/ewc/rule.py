"""What EWC++ does whatever form the Fisher information has: settings, adaptive lambda, boundary detection, the ring of tasks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np

from sona._arrays import Floats
from sona._fields import finite
from sona._kernels import Kernels
from sona.errors import SonaValueError
from sona.ewc.boundary import Adwin, Detector, PageHinkley

Boundary = Literal["adwin", "page-hinkley"]
Arrays = dict[str, np.ndarray[Any, Any]]

FISHER_RANGE = 1e4  # a Fisher value counts as at most this many medians of the positive ones: one outlier must not free all others
STRENGTH_MAX = 1e20  # lambda * importance * rate beyond this changes no float32 result, and could overflow one
TINY = float(np.finfo(np.float32).tiny)  # what is called positive
CALM = 0.9  # lambda falls to at least this share of itself after one measurement without forgetting
ALARMED = 2.0  # and rises to at most this multiple after one with much

_DETECTORS: dict[Boundary, type[Adwin] | type[PageHinkley]] = {"adwin": Adwin, "page-hinkley": PageHinkley}


@dataclass(frozen=True, kw_only=True, slots=True)
class EwcConfig:
    """
    Settings of EWC++.

    Attributes
    ----------
    max_tasks : int
        Tasks remembered apart. A further one merges the oldest two: nothing is dropped.
    initial_lambda, min_lambda, max_lambda : float
        Weight of the penalty at the start and the ends between which measured forgetting moves it. It stands beside a Fisher normalised
        to [0, 1].
    fisher_ema_decay : float
        Share of itself that the Fisher estimate keeps at each sample, in [0, 1). The first 1 / (1 - decay) samples are averaged plainly.
    forgetting_target : float
        Fall of accuracy on earlier tasks that is tolerated; see `adapt_lambda`.
    boundary : {"adwin", "page-hinkley"}
        Detector behind `detect_task_boundary`. Page-Hinkley is sooner and cheaper and finds falls only; where rewards are about as likely
        as not it raises false alarms, which Adwin does not.
    """

    max_tasks: int = 10
    initial_lambda: float = 2000.0
    min_lambda: float = 100.0
    max_lambda: float = 15000.0
    fisher_ema_decay: float = 0.999
    forgetting_target: float = 0.02
    boundary: Boundary = "adwin"

    def __post_init__(self) -> None:
        if type(self.max_tasks) is not int or self.max_tasks < 1:
            raise SonaValueError(f"max_tasks: expected an int of at least 1, got {self.max_tasks!r}")
        for name in ("initial_lambda", "min_lambda", "max_lambda"):
            if finite(getattr(self, name), name) <= 0:
                raise SonaValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if not self.min_lambda <= self.initial_lambda <= self.max_lambda:
            raise SonaValueError(
                f"initial_lambda: expected a number in [{self.min_lambda:g}, {self.max_lambda:g}], got {self.initial_lambda:g}"
            )
        if not 0 <= finite(self.fisher_ema_decay, "fisher_ema_decay") < 1:
            raise SonaValueError(f"fisher_ema_decay: expected a number in [0, 1), got {self.fisher_ema_decay!r}")
        if not 0 < finite(self.forgetting_target, "forgetting_target") <= 1:
            raise SonaValueError(f"forgetting_target: expected a number in (0, 1], got {self.forgetting_target!r}")
        if self.boundary not in _DETECTORS:
            raise SonaValueError(f"boundary: expected 'adwin' or 'page-hinkley', got {self.boundary!r}")


Task = TypeVar("Task")


class TaskRing(ABC, Generic[Task]):
    """
    The tasks of an EWC++ form, the lambda of its penalty and the detector of its boundaries.

    Attributes
    ----------
    config : EwcConfig
    samples : int
        Per-sample gradients in the Fisher estimate of the task that is going on.
    ended : int
        Tasks that have ended.
    """

    def __init__(self, config: EwcConfig | None, isa: str | None) -> None:
        self.config = EwcConfig() if config is None else config
        self.samples = 0
        self.ended = 0
        self._lambda = float(self.config.initial_lambda)
        self._kernels = Kernels(isa)
        self._tasks: tuple[Task, ...] = ()
        self._detector: Detector = _DETECTORS[self.config.boundary]()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Remembered tasks, oldest first, at most `config.max_tasks`."""
        return self._tasks

    @property
    def lambda_(self) -> float:
        """Weight of the penalty."""
        return self._lambda

    def adapt_lambda(self, forgetting: float) -> float:
        """
        Move lambda by what was measured, and return it.

        With f the forgetting and t the target, lambda is multiplied by 0.9 + 0.1 f / t where f < t (0.9 at f <= 0) and by f / t, at most
        2, where f > t; then kept within [min_lambda, max_lambda]. It rises faster than it falls, because what was forgotten has to be
        learned again while slow learning only takes longer. The result never falls as f rises.

        Parameters
        ----------
        forgetting : float
            Accuracy on earlier tasks at their ends less accuracy now, in [-1, 1], for instance on a reservoir. Negative: they improved.

        Raises
        ------
        SonaValueError, SonaTypeError
            Anything else than a number in [-1, 1]. Lambda is as it was.
        """
        if not -1 <= finite(forgetting, "forgetting") <= 1:
            raise SonaValueError(f"forgetting: expected a fall of accuracy in [-1, 1], got {forgetting:g}")
        excess = max(float(forgetting), 0.0) / self.config.forgetting_target
        factor = CALM + (1 - CALM) * excess if excess < 1 else min(excess, ALARMED)
        self._lambda = float(min(max(self._lambda * factor, self.config.min_lambda), self.config.max_lambda))
        return self._lambda

    def detect_task_boundary(self, surprise: float) -> bool:
        """
        True where the surprises so far say that the world has changed.

        It takes the surprise, which is zero on average while the policy is calibrated whatever its accuracy is. Gradients, which the
        roadmap takes, change as the policy learns. The caller decides what follows, for instance `start_new_task`.

        Parameters
        ----------
        surprise : float
            reward - expected reward of one decision, in [-1, 1].
        """
        return self._detector.update(surprise)

    def consolidate_all_tasks(self) -> None:
        """Merge all remembered tasks into one."""
        if len(self._tasks) > 1:
            self._set_tasks((self._merge(self._tasks),))

    def merge_fisher(self, other: Self) -> None:
        """
        Take the samples of another shard of the task that is going on into account, as if they had come here.

        The two estimates are averaged in proportion to their samples. That is what one pass over all samples gives, to float32, as long as
        they are together no more than 1 / (1 - fisher_ema_decay), 1000 by default: so far the estimate is a plain mean. An exponential
        mean depends on the order, which shards do not have, and there every sample counts alike. `other` is not changed.

        Raises
        ------
        SonaValueError
            Another shape.
        """
        mine, theirs = self._estimates(), other._estimates()
        if [each.shape for each in mine] != [each.shape for each in theirs]:
            raise SonaValueError(
                f"merge_fisher: expected estimates of shapes {[each.shape for each in mine]}, got {[each.shape for each in theirs]}"
            )
        total = self.samples + other.samples
        if other.samples:
            share = np.float32(other.samples / total)
            for into, each in zip(mine, theirs, strict=True):
                into += share * (each - into)
        self.samples = total

    @abstractmethod
    def _estimates(self) -> tuple[Floats, ...]:
        """Fisher estimate of the task that is going on; the arrays themselves."""

    @abstractmethod
    def _merge(self, tasks: Sequence[Task]) -> Task:
        """One task that stands for all."""

    def _set_tasks(self, tasks: tuple[Task, ...]) -> None:
        self._tasks = tasks

    def _fitting(self, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        """At most max_tasks: the oldest merge."""
        excess = len(tasks) - self.config.max_tasks
        return (self._merge(tasks[: excess + 1]), *tasks[excess + 1 :]) if excess > 0 else tasks

    def _end_task(self, task: Task) -> None:
        self._set_tasks(self._fitting((*self._tasks, task)))
        self.ended += 1
        self.samples = 0
        self._detector.reset()

    def _check_samples(self) -> None:
        if not self.samples:
            raise SonaValueError("start_new_task: expected at least one sample in update_fisher since the last task ended, got none")

    def _next_rate(self) -> float:
        """Weight of the next sample in the Fisher estimate: a plain mean first, exponential once that forgets less."""
        return max(1 / (self.samples + 1), 1 - self.config.fisher_ema_decay)

    def _strength(self, importance: float, rate: float) -> float:
        if finite(rate, "rate") <= 0:
            raise SonaValueError(f"rate: expected a positive number, got {rate!r}")
        return min(self._lambda * importance, STRENGTH_MAX, STRENGTH_MAX / rate)

    def _rule_state(self) -> Arrays:
        state: Arrays = {"lambda": np.array([self._lambda]), "samples": np.array([self.samples]), "ended": np.array([self.ended])}
        return state | {f"{self.config.boundary}.{name}": np.atleast_1d(value) for name, value in self._detector.state().items()}

    def _restore_rule(self, state: Arrays) -> None:
        """Nothing changes when it does not fit."""
        value = float(read(state, "lambda", (1,), low=TINY)[0])
        samples, ended = (int(read(state, name, (1,), low=0)[0]) for name in ("samples", "ended"))
        prefix, fresh = f"{self.config.boundary}.", self._detector.state()
        lists = {name.removeprefix(prefix): read(state, name, (None,)).tolist() for name in state if name.startswith(prefix)}
        plain = {name: values if isinstance(fresh.get(name), list) or len(values) != 1 else values[0] for name, values in lists.items()}
        self._detector.restore(plain)
        self._lambda = min(max(value, self.config.min_lambda), self.config.max_lambda)
        self.samples, self.ended = samples, ended


def read(
    state: Arrays, name: str, shape: tuple[int | None, ...], *, low: float = -math.inf, high: float = math.inf
) -> np.ndarray[Any, Any]:
    """
    An array of a state: finite numbers in [low, high] of this shape, None for any length.

    Raises
    ------
    SonaValueError
        It is missing or something else.
    """
    array = state.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise SonaValueError(f"state: expected an array of numbers as {name}, got {type(array).__name__}")
    if array.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, array.shape, strict=True)):
        raise SonaValueError(f"state: expected {name} of shape {shape}, got {array.shape}")
    if array.size and not (np.isfinite(array).all() and array.min() >= low and array.max() <= high):
        raise SonaValueError(f"state: expected {name} in [{low:g}, {high:g}], got {array.min():g} to {array.max():g}")
    return array


def cut(fisher: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A Fisher estimate in float64 without outliers; see FISHER_RANGE."""
    wide = np.asarray(fisher, np.float64)
    positive = wide[wide > 0]
    return np.minimum(wide, FISHER_RANGE * np.median(positive)) if len(positive) else wide
