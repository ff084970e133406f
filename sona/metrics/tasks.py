"""What is learned and what is forgotten over a sequence of tasks, from one matrix: accuracy[i, j] on task j after training on task i.

Backward transfer alone can be gamed by not learning: who learns nothing forgets nothing. Read it beside the average and the own-task
accuracy, as :func:`task_summary` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.metrics._checks import FloatArray, numbers, vector


def average_accuracy(accuracy: npt.ArrayLike) -> float:
    """Mean over all tasks after the last one: (1/T) sum_j R[T, j] (Lopez-Paz & Ranzato, NeurIPS 2017)."""
    return float(_matrix(accuracy)[-1].mean())


def own_task_accuracy(accuracy: npt.ArrayLike) -> float:
    """Mean accuracy on each task right after training on it: (1/T) sum_i R[i, i]. What the learner can learn at all."""
    return float(np.diag(_matrix(accuracy)).mean())


def backward_transfer(accuracy: npt.ArrayLike) -> float:
    """What later tasks did to earlier ones: (1/(T-1)) sum_{j<T} (R[T, j] - R[j, j]) (Lopez-Paz & Ranzato). Negative: forgotten."""
    matrix = _matrix(accuracy, least=2)
    return float((matrix[-1] - np.diag(matrix))[:-1].mean())


def forgetting(accuracy: npt.ArrayLike) -> float:
    """Fall from the best accuracy before: (1/(T-1)) sum_{j<T} (max_{i<T} R[i, j] - R[T, j]) (Chaudhry et al., ECCV 2018).

    The maximum is over the measured rows; NaN above the diagonal is passed over.
    """
    matrix = _matrix(accuracy, least=2)
    return float((np.nanmax(matrix[:-1, :-1], axis=0) - matrix[-1, :-1]).mean())


def forward_transfer(accuracy: npt.ArrayLike, before: npt.ArrayLike) -> float:
    """What earlier tasks did for later ones: (1/(T-1)) sum_{j>1} (R[j-1, j] - before[j]) (Lopez-Paz & Ranzato).

    Parameters
    ----------
    accuracy : (T, T) float
        Measured just above the diagonal too.
    before : (T,) float
        Accuracy on each task before any training: the frozen model's.
    """
    matrix = _matrix(accuracy, least=2)
    start = vector("before", before)
    if len(start) != len(matrix):
        raise SonaValueError(f"expected before with one accuracy for each of {len(matrix)} tasks, got {len(start)}")
    ahead = np.diag(matrix, 1)
    if np.isnan(ahead).any():
        raise SonaValueError("forward transfer needs each task's accuracy after the task before it: accuracy[j - 1, j] is NaN for some j")
    return float((ahead - start[1:]).mean())


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """Five numbers in units of accuracy, printed together. `forward` is None where it was not measured."""

    average: float
    own_task: float
    backward: float
    forgetting: float
    forward: float | None

    def __str__(self) -> str:
        ahead = "" if self.forward is None else f", forward transfer {self.forward:+.3f}"
        return (
            f"average accuracy {self.average:.3f}, own-task accuracy {self.own_task:.3f}, backward transfer {self.backward:+.3f}, "
            f"forgetting {self.forgetting:.3f}{ahead}"
        )


def task_summary(accuracy: npt.ArrayLike, before: npt.ArrayLike | None = None) -> TaskSummary:
    """All of the above.

    Parameters
    ----------
    accuracy : (T, T) float, T >= 2
        Accuracy, or mean reward, on task j (column) after training on task i (row). NaN where it was not measured, above the diagonal only.
    before : (T,) float, optional
        Accuracy before any training; without it there is no forward transfer.

    Raises
    ------
    SonaValueError, SonaTypeError
        Not a square of at least two tasks, or a hole in what is needed.
    """
    matrix = _matrix(accuracy, least=2)
    return TaskSummary(
        average_accuracy(matrix),
        own_task_accuracy(matrix),
        backward_transfer(matrix),
        forgetting(matrix),
        None if before is None else forward_transfer(matrix, before),
    )


def _matrix(accuracy: npt.ArrayLike, least: int = 1) -> FloatArray:
    matrix = numbers("accuracy", accuracy)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < least:
        raise SonaValueError(f"expected accuracy of shape (T, T) with T >= {least}, got {matrix.shape}")
    if np.isinf(matrix).any() or np.isnan(matrix[np.tril_indices(len(matrix))]).any():
        raise SonaValueError("expected finite accuracies on and below the diagonal, and no infinite ones above it")
    return matrix
