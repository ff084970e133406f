"""EWC++ on a low-rank correction W = down^T up: everything is defined on the product, and the product is never formed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona.errors import SonaValueError
from sona.ewc.rule import TINY, Arrays, EwcConfig, TaskRing, cut, read

Doubles = npt.NDArray[np.float64]
Pairs = tuple[Floats, Floats]

ANCHOR_RANK = 64  # of merged anchors, at most: what an adapter's base grows to by default
BLOCK = 256  # rows of a product that are in memory at a time
OVERSAMPLE = 8  # columns of the random basis beyond the rank that is wanted (Halko, Martinsson & Tropp, SIAM Review 2011)
ITERATIONS = 3  # of that basis: the error of the truncation is then within 0.1 % of the least


@dataclass(frozen=True, slots=True, eq=False)
class TaskFactors:
    """
    What is remembered of a task, or of several merged ones. Arrays are read-only.

    Attributes
    ----------
    task_id : int
        Counted from 0; of merged tasks the last.
    inputs : float32 array of shape (dim_in,)
        Factor a of the Fisher F_ij = a_i b_j, largest value 1.
    outputs : float32 array of shape (dim_out,)
        Factor b, largest value 1.
    down, up : float32 arrays of shape (r, dim_in) and (r, dim_out)
        The anchor down^T up.
    importance : float
        Factor of its penalty: 1 for a task.
    """

    task_id: int
    inputs: Floats
    outputs: Floats
    down: Floats
    up: Floats
    importance: float = 1.0

    def __post_init__(self) -> None:
        for array in (self.inputs, self.outputs, self.down, self.up):
            array.flags.writeable = False

    def rows(self, part: slice) -> tuple[Doubles, Doubles]:
        """Rows of importance F and of the anchor."""
        fisher = self.importance * np.outer(self.inputs[part].astype(np.float64), self.outputs)
        return fisher, self.down[:, part].T.astype(np.float64) @ self.up


class Pull(NamedTuple):
    """
    Result of a proximal step.

    Attributes
    ----------
    down, up : float32 arrays of shape (rank, dim_in) and (rank, dim_out)
    discarded : float
        Share of the squared Frobenius norm of the exact result that the rank cannot hold.
    """

    down: Floats
    up: Floats
    discarded: float


class LowRankEwc(TaskRing[TaskFactors]):
    """
    EWC++ of one layer's correction: y += x W with W = down^T up, W (dim_in, dim_out).

    A penalty on down and up apart would punish changes of the factors that leave W as it is, and miss changes of W that leave either
    factor near its anchor. So Fisher, anchors and steps are those of W (as EWC-LoRA has it, arXiv 2602.17559): the gradient of a sample
    is the outer product of its input x and of the gradient g by y, and the Fisher diagonal E[x_i^2 g_j^2] is kept as a_i b_j with
    a = E[x^2] and b = E[g^2], dim_in + dim_out numbers. That is exact where the squares are uncorrelated.

    With it the penalty takes r x r matrices: for D = W - W* = P^T U, P and U of the stacked pairs, sum_ij a_i b_j D_ij^2 is the sum of
    the entries of (P diag(a) P^T) * (U diag(b) U^T).

    A scale of the adapter belongs into up, a constant input into x and as a column into down; `asv_benchmarks/five_tasks.py` shows it
    beside an adapter that learns, and prints what is kept of old tasks for it: the pull of every 16 requests has rate * lambda = 0.1.

    Parameters
    ----------
    dim_in, dim_out : int
        Lengths of x and of y.
    config : EwcConfig, optional
    isa : str, optional
        Kernel table; None is the best of this machine or the environment's SONA_ISA.

    Attributes
    ----------
    dim_in, dim_out : int

    Thread-safety
    -------------
    One thread at a time.
    """

    def __init__(self, dim_in: int, dim_out: int, config: EwcConfig | None = None, *, isa: str | None = None) -> None:
        for name, dim in (("dim_in", dim_in), ("dim_out", dim_out)):
            if type(dim) is not int or dim < 1:
                raise SonaValueError(f"{name}: expected an int of at least 1, got {dim!r}")
        super().__init__(config, isa)
        self.dim_in, self.dim_out = dim_in, dim_out
        self._inputs: Floats = np.zeros(dim_in, np.float32)
        self._outputs: Floats = np.zeros(dim_out, np.float32)

    @property
    def inputs(self) -> Floats:
        """E[x^2] of the task that is going on, (dim_in,): a copy, not normalised."""
        return self._inputs.copy()

    @property
    def outputs(self) -> Floats:
        """E[g^2] of the task that is going on, (dim_out,): a copy, not normalised."""
        return self._outputs.copy()

    def update_fisher(self, x: npt.ArrayLike, g: npt.ArrayLike) -> None:
        """
        Take samples into account; the means are those of `EwcPlusPlus.update_fisher`.

        Parameters
        ----------
        x : array of shape (dim_in,) or (samples, dim_in)
            Input of the layer, one sample or one a row.
        g : array of shape (dim_out,) or (samples, dim_out)
            Gradient of that sample's log-likelihood by y; never a mean over samples.

        Raises
        ------
        SonaValueError, SonaTypeError
            Other shapes, NaN, infinity, or a square beyond float32. The estimate is as it was.
        """
        many = np.ndim(x) == 2
        inputs = coerce(x, (None, self.dim_in) if many else (self.dim_in,), "x").reshape(-1, self.dim_in)
        outputs = coerce(g, (len(inputs), self.dim_out) if many else (self.dim_out,), "g").reshape(-1, self.dim_out)
        dot, update = self._kernels.dot, self._kernels.fisher_update
        for name, rows in (("x", inputs), ("g", outputs)):
            if not all(np.isfinite(dot(row, row)) for row in rows):
                raise SonaValueError(f"{name}: expected a squared norm within float32, got one beyond 3.4e38")
        for row_in, row_out in zip(inputs, outputs, strict=True):
            rate = self._next_rate()
            update(self._inputs, row_in, rate)
            update(self._outputs, row_out, rate)
            self.samples += 1

    def start_new_task(self, down: npt.ArrayLike, up: npt.ArrayLike) -> TaskFactors:
        """
        End the task that is going on: remember it, and begin an empty Fisher estimate and a new watch for boundaries.

        Each factor is divided by its largest value, outliers cut first. The least value of a product of factors is no such product, so it
        is taken for 0: of min-max normalisation this is the part that keeps the form.

        Parameters
        ----------
        down, up : arrays of shape (r, dim_in) and (r, dim_out)
            What the task has learned: the anchor. r may be 0.

        Returns
        -------
        TaskFactors
            As remembered; where the ring was full, the oldest two have merged to make room.

        Raises
        ------
        SonaValueError, SonaTypeError
            Other shapes, NaN or infinity, or no sample since the last task. Nothing has changed.
        """
        down, up = self._pairs(down, up)
        self._check_samples()
        task = TaskFactors(self.ended, _to_one(cut(self._inputs)), _to_one(cut(self._outputs)), down.copy(), up.copy())
        self._end_task(task)
        self._inputs, self._outputs = np.zeros(self.dim_in, np.float32), np.zeros(self.dim_out, np.float32)
        return task

    def regularization_loss(self, down: npt.ArrayLike, up: npt.ArrayLike) -> float:
        """lambda / 2 sum over tasks of importance sum_ij a_i b_j (W - W*)_ij^2 at W = down^T up, in O((r + r*)^2 (dim_in + dim_out))."""
        at = self._pairs(down, up)
        total = 0.0
        for task in self._tasks:
            P, U = _difference(at, task)
            total += task.importance * float((((P * task.inputs) @ P.T) * ((U * task.outputs) @ U.T)).sum())
        return 0.5 * self._lambda * max(total, 0.0)

    def regularization_gradient(self, down: npt.ArrayLike, up: npt.ArrayLike) -> Pairs:
        """
        Gradient of `regularization_loss` by W, as pairs: lambda sum over tasks of importance diag(a) (W - W*) diag(b).

        Returns
        -------
        (down, up)
            float32 arrays of shape (R, dim_in) and (R, dim_out), R = sum over tasks of r + r*; the gradient is down^T up.
        """
        at = self._pairs(down, up)
        downs, ups = [np.zeros((0, self.dim_in))], [np.zeros((0, self.dim_out))]
        for task in self._tasks:
            P, U = _difference(at, task)
            downs.append(self._lambda * task.importance * P * task.inputs)
            ups.append(U * task.outputs)
        return _narrow(np.vstack(downs), np.vstack(ups))

    def proximal_step(self, down: npt.ArrayLike, up: npt.ArrayLike, *, rank: int, rate: float = 1.0) -> Pull:
        """
        The pull towards the anchors, never past them: (W + rate lambda sum F_t W*_t) / (1 + rate lambda sum F_t), entry by entry.

        That quotient has full rank. The result is its best approximation of the rank that is asked for, found by random subspace
        iteration with a fixed seed over blocks of rows: time O(dim_in dim_out (rank + tasks)), memory for 256 rows. Exact where rank is
        min(dim_in, dim_out); elsewhere `discarded` says what is missing.

        Parameters
        ----------
        down, up : arrays of shape (r, dim_in) and (r, dim_out)
            W = down^T up; r may be 0.
        rank : int
            Rows of the result, 1 to min(dim_in, dim_out).
        rate : float
            Positive; the learning rate that the steps before were taken with.

        Raises
        ------
        SonaValueError, SonaTypeError
            Other shapes, NaN, infinity, or a rank that cannot be.
        """
        at_down, at_up = self._pairs(down, up)
        if type(rank) is not int or not 1 <= rank <= min(self.dim_in, self.dim_out):
            raise SonaValueError(f"rank: expected an int from 1 to {min(self.dim_in, self.dim_out)}, got {rank!r}")
        strength = self._strength(1.0, rate) * rate

        def rows(part: slice) -> Doubles:
            at = at_down[:, part].T.astype(np.float64) @ at_up
            pull, weight = np.zeros_like(at), np.ones_like(at)
            for task in self._tasks:
                fisher, anchor = task.rows(part)
                fisher *= strength
                weight += fisher
                fisher *= anchor - at
                pull += fisher
            return at + pull / weight

        return _truncated(rows, self.dim_in, self.dim_out, rank)

    def _pairs(self, down: npt.ArrayLike, up: npt.ArrayLike) -> Pairs:
        rank = len(down) if isinstance(down, np.ndarray) and down.ndim == 2 else None
        if rank == 0 and np.shape(down) == (0, self.dim_in) and np.shape(up) == (0, self.dim_out):
            return np.zeros((0, self.dim_in), np.float32), np.zeros((0, self.dim_out), np.float32)
        checked = coerce(down, (None, self.dim_in), "down")
        return checked, coerce(up, (len(checked), self.dim_out), "up")

    def _estimates(self) -> tuple[Floats, ...]:
        return self._inputs, self._outputs

    def _merge(self, tasks: Sequence[TaskFactors]) -> TaskFactors:
        """
        One task with, of the sum of the Fishers, the sums over rows and over columns, and with the minimiser of the sum of the penalties.

        The sum of products a_i b_j is one itself where the tasks share a factor; elsewhere the product of its sums is the one of
        least Kullback-Leibler divergence from it. The minimiser, the F-weighted mean of the anchors, is exact but for the rank.
        """
        a, b, total = np.zeros(self.dim_in), np.zeros(self.dim_out), 0.0
        for task in tasks:
            inputs, outputs = task.inputs.astype(np.float64), task.outputs.astype(np.float64)
            a += task.importance * outputs.sum() * inputs
            b += task.importance * inputs.sum() * outputs
            total += task.importance * inputs.sum() * outputs.sum()
        importance = float(a.max() * b.max() / total) if total > 0 else sum(task.importance for task in tasks)

        def rows(part: slice) -> Doubles:
            fisher, pulled = np.zeros((2, len(range(self.dim_in)[part]), self.dim_out))
            for task in tasks:
                own, anchor = task.rows(part)
                fisher += own
                pulled += own * anchor
            return np.divide(pulled, fisher, out=pulled, where=fisher > 0)  # 0 where nothing matters

        ranks = [len(task.down) for task in tasks]
        rank = min(max(1, sum(ranks)), max(ANCHOR_RANK, *ranks), self.dim_in, self.dim_out)
        anchor = _truncated(rows, self.dim_in, self.dim_out, rank)
        return TaskFactors(tasks[-1].task_id, _to_one(a), _to_one(b), anchor.down, anchor.up, importance)

    def state(self) -> Arrays:
        """Everything but the configuration, as numpy arrays that safetensors can hold."""
        state = self._rule_state() | {
            "inputs": self._inputs.copy(),
            "outputs": self._outputs.copy(),
            "tasks.id": np.array([task.task_id for task in self._tasks], np.int64),
            "tasks.importance": np.array([task.importance for task in self._tasks], np.float64),
        }
        for i, task in enumerate(self._tasks):
            arrays = {"inputs": task.inputs, "outputs": task.outputs, "down": task.down, "up": task.up}
            state |= {f"tasks.{i}.{name}": array.copy() for name, array in arrays.items()}
        return state

    def restore(self, state: Arrays) -> None:
        """
        Go on where `state` was taken, from the same dims; where the configuration has less room for tasks, the oldest merge.

        Raises
        ------
        SonaValueError
            What is missing, of another shape, not finite, or out of range; the state of another boundary detector. Nothing has changed.
        """
        inputs = read(state, "inputs", (self.dim_in,), low=0).astype(np.float32)
        outputs = read(state, "outputs", (self.dim_out,), low=0).astype(np.float32)
        ids = read(state, "tasks.id", (None,), low=0)
        importance = read(state, "tasks.importance", (len(ids),), low=TINY)
        tasks = []
        for i, (number, size) in enumerate(zip(ids, importance, strict=True)):
            a = read(state, f"tasks.{i}.inputs", (self.dim_in,), low=0, high=1)
            b = read(state, f"tasks.{i}.outputs", (self.dim_out,), low=0, high=1)
            down = read(state, f"tasks.{i}.down", (None, self.dim_in))
            up = read(state, f"tasks.{i}.up", (len(down), self.dim_out))
            a, b, down, up = (array.astype(np.float32) for array in (a, b, down, up))
            tasks.append(TaskFactors(int(number), a, b, down, up, float(size)))
        self._restore_rule(state)
        self._inputs, self._outputs = inputs, outputs
        self._set_tasks(self._fitting(tuple(tasks)))


def _to_one(factor: Doubles) -> Floats:
    """Divided by its largest value; all zero stays zero."""
    top = float(factor.max())
    return (factor / top if top > 0 else factor).astype(np.float32)


def _difference(at: Pairs, task: TaskFactors) -> tuple[Doubles, Doubles]:
    """P and U with P^T U = W - W*, in float64."""
    return np.vstack([at[0], -task.down]).astype(np.float64), np.vstack([at[1], task.up]).astype(np.float64)


def _narrow(down: Doubles, up: Doubles) -> Pairs:
    with np.errstate(over="ignore"):
        pairs = down.astype(np.float32), up.astype(np.float32)
    if not all(np.isfinite(array).all() for array in pairs):
        raise SonaValueError("down, up: expected a distance from the anchors whose pull is within float32, got one beyond 3.4e38")
    return pairs


def _truncated(rows: Callable[[slice], Doubles], dim_in: int, dim_out: int, rank: int) -> Pull:
    """
    Best pairs of that rank for a matrix (dim_in, dim_out) of which rows(slice) gives any rows; sqrt(S) goes to both sides.

    Random subspace iteration: span the columns, then the rows, then again, and decompose what the span holds.
    """
    blocks = [slice(start, start + BLOCK) for start in range(0, dim_in, BLOCK)]
    basis = np.random.default_rng(0).normal(size=(dim_out, min(rank + OVERSAMPLE, dim_in, dim_out)))
    for _ in range(ITERATIONS):
        columns = np.linalg.qr(np.vstack([rows(part) @ basis for part in blocks])).Q
        inside, energy = np.zeros((basis.shape[1], dim_out)), 0.0
        for part in blocks:
            block = rows(part)
            inside += columns[part].T @ block
            energy += float((block * block).sum())
        basis = np.linalg.qr(inside.T).Q
    left, values, right = np.linalg.svd(inside, full_matrices=False)
    root = np.sqrt(values[:rank])
    down, up = _narrow((columns @ left[:, :rank] * root).T, root[:, None] * right[:rank])
    kept = float((values[:rank] ** 2).sum())
    return Pull(np.ascontiguousarray(down), up, max(0.0, 1 - kept / energy) if energy > 0 else 0.0)
