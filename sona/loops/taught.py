"""Which trajectories a learner has learned from, and how far it has read in which ring: kept with what it learned, in one write."""

from bisect import bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

SPANS = 4096  # of ids; then the two lowest become one
RINGS = 1024  # the newest are remembered
SEQUENCES = 1 << 38  # of a ring: its ids are base + sequence, and base is a multiple of it

Arrays = dict[str, npt.NDArray[Any]]


class Taught:
    """
    A set of trajectory ids, kept as spans because they are given in order, and the position in each ring.

    Whatever is not above the position in its ring is in the set.

    Attributes
    ----------
    owed : dict
        (reward in [0, 1], sequence of the first record that is owed) by id: read from a ring and not learned yet, because the
        trajectory is in a store that cannot be read at the moment.
    """

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        self._bases: dict[bytes, int] = {}  # by identity of the ring
        self._read: dict[int, int] = {}  # base -> sequence
        self.owed: dict[int, tuple[float, int]] = {}

    def __contains__(self, id: int) -> bool:
        sequence = id % SEQUENCES
        if 0 < sequence <= self._read.get(id - sequence, 0):
            return True
        at = bisect_right(self._first, id) - 1
        return at >= 0 and id <= self._last[at]

    def add(self, id: int) -> None:
        """Learned from; a second time changes nothing."""
        first, last = self._first, self._last
        at = bisect_right(first, id)
        below, above = at > 0 and id <= last[at - 1] + 1, at < len(first) and first[at] == id + 1
        if below and above:
            last[at - 1] = last[at]
            del first[at], last[at]
        elif below:
            last[at - 1] = max(last[at - 1], id)
        elif above:
            first[at] = id
        else:
            first.insert(at, id)
            last.insert(at, id)
            if len(first) > SPANS:
                del first[1], last[0]

    def ring(self, identity: bytes, base: int) -> tuple[int, int]:
        """(base of its ids, sequence up to which it has been read); at the first sight of a ring `base` and 0."""
        if identity not in self._bases:
            self._bases[identity] = base
            self._read[base] = 0
            while len(self._bases) > RINGS:
                del self._read[self._bases.pop(next(iter(self._bases)))]
        base = self._bases[identity]
        return base, self._read[base]

    def read(self, identity: bytes, sequence: int) -> None:
        """Everything in that ring up to `sequence` is learned, owed, or was of no use."""
        self._read[self._bases[identity]] = sequence

    def state(self) -> Arrays:
        """Arrays that `restore` takes; none where there is nothing to say."""
        arrays: Arrays = {}
        if self._first:
            arrays["ids"] = np.array([self._first, self._last], np.uint64)
        if self._bases:
            arrays["rings"] = np.frombuffer(b"".join(self._bases), np.uint8).reshape(-1, 16)
            arrays["read"] = np.array([(base, self._read[base]) for base in self._bases.values()], np.uint64)
        if self.owed:
            arrays["owed"] = np.array([(id, since) for id, (_, since) in self.owed.items()], np.uint64)
            arrays["rewards"] = np.array([reward for reward, _ in self.owed.values()], np.float64)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Put back what `state` returned."""
        self._first, self._last = arrays["ids"].tolist() if "ids" in arrays else ([], [])
        identities = [row.tobytes() for row in arrays["rings"]] if "rings" in arrays else []
        self._read = dict(arrays["read"].tolist()) if identities else {}
        self._bases = dict(zip(identities, self._read, strict=True))
        owed = zip(arrays["owed"].tolist(), arrays["rewards"].tolist(), strict=True) if "owed" in arrays else ()
        self.owed = {id: (reward, since) for (id, since), reward in owed}
