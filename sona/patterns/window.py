"""The trajectories that a bank keeps: the newest, bounded in number and in bytes."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.errors import SonaValueError

# Of each trajectory, beside its vector. arm, source: -1 for none. reward counts where `rewarded` is true.
OUTCOME = np.dtype(
    [
        ("quality", np.float64),
        ("weight", np.float64),
        ("reward", np.float64),
        ("source", np.int64),
        ("arm", np.int32),
        ("rewarded", np.bool_),
        ("pattern_type", np.int8),
    ]
)
_FIRST = 64  # rows allocated at first

Outcomes = npt.NDArray[Any]  # of dtype OUTCOME


class TrajectoryWindow:
    """
    Unit vectors (n, d) and their outcomes (n,) in two arrays that grow up to `capacity` rows; then the newest takes the oldest one's place.

    Parameters
    ----------
    dim : int
    max_count : int
    max_bytes : int

    Raises
    ------
    SonaValueError
        max_bytes below the size of one row.
    """

    def __init__(self, dim: int, max_count: int, max_bytes: int) -> None:
        row = 4 * dim + OUTCOME.itemsize
        if max_bytes < row:
            raise SonaValueError(f"max_bytes: expected at least {row}, one trajectory of {dim} floats, got {max_bytes}")
        self.capacity = min(max_count, max_bytes // row)
        self._count = 0
        self._oldest = 0
        self._x: Floats = np.empty((min(_FIRST, self.capacity), dim), np.float32)
        self._outcome: Outcomes = np.empty(len(self._x), OUTCOME)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory allocated."""
        return self._x.nbytes + self._outcome.nbytes

    def append(self, x: Floats, outcome: tuple[float, float, float, int, int, bool, int]) -> None:
        """One row: x (d,), and the fields of OUTCOME in their order."""
        if self._count == self.capacity:
            at, self._oldest = self._oldest, (self._oldest + 1) % self.capacity
        else:
            if self._count == len(self._x):
                self._allocate(min(2 * len(self._x), self.capacity))
            at, self._count = self._count, self._count + 1
        self._x[at], self._outcome[at] = x, outcome

    def _allocate(self, rows: int) -> None:
        """A longer array; only while nothing has wrapped around."""
        x, outcome = np.empty((rows, self._x.shape[1]), np.float32), np.empty(rows, OUTCOME)
        x[: self._count], outcome[: self._count] = self._x[: self._count], self._outcome[: self._count]
        self._x, self._outcome = x, outcome

    def view(self) -> tuple[Floats, Outcomes]:
        """Vectors and outcomes as they lie in memory, in no order of time; valid until the next change."""
        return self._x[: self._count], self._outcome[: self._count]

    def copy(self) -> tuple[Floats, Outcomes]:
        """Vectors and outcomes, oldest first."""
        x, outcome = self.view()
        at = self._oldest
        return np.concatenate([x[at:], x[:at]]), np.concatenate([outcome[at:], outcome[:at]])

    def replace(self, x: Floats, outcome: Outcomes) -> None:
        """These rows instead, oldest first; the newest of them where there are more than `capacity`."""
        kept = slice(max(0, len(x) - self.capacity), None)
        x, outcome = x[kept], outcome[kept]
        rows = max(len(x), min(_FIRST, self.capacity))
        self._count = self._oldest = 0
        self._x, self._outcome = np.empty((rows, self._x.shape[1]), np.float32), np.empty(rows, OUTCOME)
        self._x[: len(x)], self._outcome[: len(x)] = x, outcome
        self._count = len(x)
