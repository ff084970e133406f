"""Columns of one length that grow, shrink and are written to, while whoever was given a view of them keeps what he saw."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sona.memory.csr import Longs

Array = npt.NDArray[Any]
_FIRST = 16  # rows allocated at first


class Columns:
    """
    Arrays (n, ...) by name, of a type and tail shape each. A column that somebody has a view of is copied before one of the rows that he
    sees is written to; appended rows need no copy.
    """

    def __init__(self, spec: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
        self.n = 0
        self._array: dict[str, Array] = {name: np.zeros((_FIRST, *tail), dtype) for name, (dtype, tail) in spec.items()}
        self._seen = dict.fromkeys(spec, 0)  # rows that somebody may have a view of

    def __getitem__(self, name: str) -> Array:
        """The rows of a column, to be read before the next change and not kept."""
        return self._array[name][: self.n]

    def view(self, name: str) -> Array:
        """The rows of a column as they are now, read-only, to keep."""
        self._seen[name] = max(self._seen[name], self.n)
        view = self._array[name][: self.n]
        view.flags.writeable = False
        return view

    def own(self, name: str) -> Array:
        """The rows of a column, to be written to."""
        if self._seen[name]:
            self._array[name] = self._array[name].copy()
            self._seen[name] = 0
        return self._array[name][: self.n]

    def append(self, count: int, **values: Any) -> None:
        """`count` more rows of every column."""
        n = self.n + count
        for name, value in values.items():
            array = self._array[name]
            if n > len(array) or self._seen[name] > self.n:
                fresh = np.zeros((max(n, 2 * self.n) if n > len(array) else len(array), *array.shape[1:]), array.dtype)
                fresh[: self.n] = array[: self.n]
                self._array[name], self._seen[name] = fresh, 0
            self._array[name][self.n : n] = value
        self.n = n

    def take_out(self, gaps: Longs, movers: Longs, n: int) -> None:
        """The rows `movers`, which stand at n or behind, move into the gaps; n are left."""
        for name in self._array:
            if len(gaps):
                self.own(name)[gaps] = self._array[name][movers]
        self.n = n

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._array.values())
