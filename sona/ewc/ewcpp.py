"""EWC++ on a vector of parameters: per-sample Fisher information, anchors at the optima, and steps that are stable for any lambda."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona.errors import SonaValueError
from sona.ewc.rule import TINY, Arrays, EwcConfig, TaskRing, cut, read


@dataclass(frozen=True, slots=True, eq=False)
class TaskFisher:
    """
    What is remembered of a task, or of several merged ones. Arrays are read-only.

    Attributes
    ----------
    task_id : int
        Counted from 0; of merged tasks the last.
    fisher : float32 array of shape (n,)
        In [0, 1].
    optimal_weights : float32 array of shape (n,)
        The anchor.
    importance : float
        Factor of its penalty: 1 for a task, the sum for merged ones.
    """

    task_id: int
    fisher: Floats
    optimal_weights: Floats
    importance: float = 1.0

    def __post_init__(self) -> None:
        self.fisher.flags.writeable = self.optimal_weights.flags.writeable = False


def normalised(fisher: Floats) -> Floats:
    """
    Min-max normalisation to [0, 1] (Chaudhry et al., "Riemannian walk", ECCV 2018), outliers cut first.

    All zero stays zero: nothing is known to matter. Equal positive values become 1: all matter alike.
    """
    values = cut(fisher)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.full(len(values), float(high > 0), np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


class EwcPlusPlus(TaskRing[TaskFisher]):
    """
    Elastic weight consolidation with an online Fisher, in the style of EWC++.

    The penalty of weights w is lambda / 2 sum_t importance_t sum_i F_ti (w_i - w*_ti)^2 over the remembered tasks t. F is the mean of
    squared gradients of single samples: the square of a mean gradient is another quantity, and near an optimum close to zero. A task
    that ends is normalised to [0, 1] and anchored at its weights (Chaudhry et al., ECCV 2018); tasks are kept apart, up to a number, and
    then merged, where the paper keeps one running Fisher and one anchor.

    A sum of such penalties is one of the same form, with the sum of the F and the F-weighted mean of the anchors, but for a constant.
    So any number of tasks costs a step no more than one does, and merging changes neither gradients nor minimisers.

    Parameters
    ----------
    param_count : int
        Parameters, n.
    config : EwcConfig, optional
    isa : str, optional
        Kernel table; None is the best of this machine or the environment's SONA_ISA.

    Attributes
    ----------
    param_count : int

    Thread-safety
    -------------
    One thread at a time.
    """

    def __init__(self, param_count: int = 1000, config: EwcConfig | None = None, *, isa: str | None = None) -> None:
        if type(param_count) is not int or param_count < 1:
            raise SonaValueError(f"param_count: expected an int of at least 1, got {param_count!r}")
        super().__init__(config, isa)
        self.param_count = param_count
        self._fisher: Floats = np.zeros(param_count, np.float32)

    @property
    def fisher(self) -> Floats:
        """Fisher estimate of the task that is going on, (n,): a copy, not normalised."""
        return self._fisher.copy()

    def update_fisher(self, gradients: npt.ArrayLike) -> None:
        """
        Take per-sample gradients of the log-likelihood into account: F <- (1 - a) F + a g^2 for one after the other.

        a is 1 / samples until that is less than 1 - fisher_ema_decay: a plain mean that turns into an exponential one, without the bias
        of a start at zero. The gradients are those before any constraint.

        Parameters
        ----------
        gradients : array of shape (n,) or (samples, n)
            One sample, or one a row; never a mean over samples. A batch does what its rows do one by one.

        Raises
        ------
        SonaValueError, SonaTypeError
            Another length, NaN, infinity, or a square beyond float32. The estimate is as it was.
        """
        n = self.param_count
        rows = coerce(gradients, (None, n) if np.ndim(gradients) == 2 else (n,), "gradients").reshape(-1, n)
        if not all(np.isfinite(self._kernels.dot(row, row)) for row in rows):
            raise SonaValueError("gradients: expected a squared norm within float32, got one beyond 3.4e38")
        for row in rows:
            self._kernels.fisher_update(self._fisher, row, self._next_rate())
            self.samples += 1

    def start_new_task(self, weights: npt.ArrayLike) -> TaskFisher:
        """
        End the task that is going on: remember it, and begin an empty Fisher estimate and a new watch for boundaries.

        Parameters
        ----------
        weights : array of shape (n,)
            What the task has learned: the anchor.

        Returns
        -------
        TaskFisher
            As remembered; where the ring was full, the oldest two have merged to make room.

        Raises
        ------
        SonaValueError, SonaTypeError
            Another length, NaN or infinity, or no sample since the last task. Nothing has changed.
        """
        anchor = coerce(weights, (self.param_count,), "weights")
        self._check_samples()
        task = TaskFisher(self.ended, normalised(self._fisher), anchor.copy())
        self._end_task(task)
        self._fisher = np.zeros(self.param_count, np.float32)
        return task

    def apply_constraints(self, gradients: npt.ArrayLike, weights: npt.ArrayLike | None = None, rate: float = 1.0) -> Floats:
        """
        The step that the penalty leaves of a step in the direction of `gradients`.

        With weights w it is (g - lambda F (w - w*)) / (1 + rate lambda F): w + rate times it is the proximal step of `proximal_step`
        from w + rate g, which lies between w + rate g and the anchor for any lambda.

        Without weights it is the roadmap's g / (1 + lambda F), which knows no anchor: it only lowers the learning rate of important
        parameters and never takes back what has drifted, so that it forgets little where it learns little.

        Parameters
        ----------
        gradients : array of shape (n,)
            A direction in which the caller would move its weights.
        weights : array of shape (n,), optional
            Where the caller is.
        rate : float
            What the caller multiplies the result by, positive.

        Returns
        -------
        float32 array of shape (n,)
            New; the gradients themselves where no task is remembered.

        Raises
        ------
        SonaValueError, SonaTypeError
            Another length, NaN, infinity, or weights so far from the anchors that the result is not finite.
        """
        out = coerce(gradients, (self.param_count,), "gradients").copy()
        at = None if weights is None else coerce(weights, (self.param_count,), "weights")
        strength = self._strength(self._sum.importance if self._tasks else 0.0, rate)
        if not self._tasks:
            return out
        if at is not None:
            self._kernels.ewc_pull(out, self._sum.fisher, at, self._sum.optimal_weights, strength)
        self._kernels.ewc_scale(out, self._sum.fisher, strength * rate)
        return _in_range(out)

    def proximal_step(self, weights: npt.ArrayLike, rate: float = 1.0) -> Floats:
        """
        (w + rate lambda F w*) / (1 + rate lambda F): the pull towards the anchors, never past them.

        This is the minimiser of ``|u - w|^2`` / 2 + rate * penalty(u), and the way to apply EWC after steps that are not the caller's own.
        A gradient step on the penalty diverges where rate lambda F > 2; this one is stable for any lambda.

        Parameters
        ----------
        weights : array of shape (n,)
        rate : float
            Positive; the learning rate that the steps before were taken with.

        Returns
        -------
        float32 array of shape (n,)
            New; parameters whose F is 0 keep every bit.

        Raises
        ------
        SonaValueError, SonaTypeError
            As `apply_constraints`.
        """
        at = coerce(weights, (self.param_count,), "weights")
        step = self.apply_constraints(np.zeros(self.param_count, np.float32), at, rate)
        step *= np.float32(rate)
        step += at
        return _in_range(step)

    def regularization_loss(self, weights: npt.ArrayLike) -> float:
        """lambda / 2 sum over tasks of importance F (w - w*)^2, of the remembered tasks; merged ones lack the constant between them."""
        at = coerce(weights, (self.param_count,), "weights").astype(np.float64)
        total = 0.0
        for task in self._tasks:
            away = at - task.optimal_weights
            away *= away
            away *= task.fisher
            total += task.importance * float(away.sum())
        return 0.5 * self._lambda * total

    def regularization_gradient(self, weights: npt.ArrayLike) -> Floats:
        """Gradient of `regularization_loss`, (n,): lambda sum over tasks of importance F (w - w*)."""
        at = coerce(weights, (self.param_count,), "weights")
        out = np.zeros(self.param_count, np.float32)
        if self._tasks:
            self._kernels.ewc_pull(out, self._sum.fisher, at, self._sum.optimal_weights, -self._lambda * self._sum.importance)
        return _in_range(out)

    def _set_tasks(self, tasks: tuple[TaskFisher, ...]) -> None:
        super()._set_tasks(tasks)
        if tasks:
            self._sum = tasks[0] if len(tasks) == 1 else self._merge(tasks)

    def _estimates(self) -> tuple[Floats, ...]:
        return (self._fisher,)

    def _merge(self, tasks: Sequence[TaskFisher]) -> TaskFisher:
        """The task whose penalty has the same gradient everywhere."""
        importance = sum(task.importance for task in tasks)
        fisher, pulled = np.zeros((2, self.param_count))
        for task in tasks:
            share = task.importance / importance
            fisher += share * task.fisher
            pulled += share * task.fisher.astype(np.float64) * task.optimal_weights
        anchor = np.divide(pulled, fisher, out=pulled, where=fisher > 0)  # 0 where nothing matters
        return TaskFisher(tasks[-1].task_id, fisher.astype(np.float32), anchor.astype(np.float32), importance)

    def state(self) -> Arrays:
        """Everything but the configuration, as numpy arrays that safetensors can hold."""
        n, tasks = self.param_count, self._tasks
        return self._rule_state() | {
            "fisher": self._fisher.copy(),
            "tasks.id": np.array([task.task_id for task in tasks], np.int64),
            "tasks.importance": np.array([task.importance for task in tasks], np.float64),
            "tasks.fisher": np.array([task.fisher for task in tasks], np.float32).reshape(-1, n),
            "tasks.optimal_weights": np.array([task.optimal_weights for task in tasks], np.float32).reshape(-1, n),
        }

    def restore(self, state: Arrays) -> None:
        """
        Go on where `state` was taken, from as many parameters; where the configuration has less room for tasks, the oldest merge.

        Raises
        ------
        SonaValueError
            What is missing, of another shape, not finite, or out of range; the state of another boundary detector. Nothing has changed.
        """
        n = self.param_count
        fisher = read(state, "fisher", (n,), low=0).astype(np.float32)
        ids = read(state, "tasks.id", (None,), low=0)
        importance = read(state, "tasks.importance", (len(ids),), low=TINY)
        fishers = read(state, "tasks.fisher", (len(ids), n), low=0, high=1)
        anchors = read(state, "tasks.optimal_weights", (len(ids), n))
        self._restore_rule(state)
        self._fisher = fisher
        tasks = zip(ids, fishers, anchors, importance, strict=True)
        self._set_tasks(
            self._fitting(tuple(TaskFisher(int(i), f.astype(np.float32), w.astype(np.float32), float(size)) for i, f, w, size in tasks))
        )


def _in_range(out: Floats) -> Floats:
    if not np.isfinite(out).all():
        raise SonaValueError("weights: expected a distance from the anchors whose pull is within float32, got one beyond 3.4e38")
    return out
