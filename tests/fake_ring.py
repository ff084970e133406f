"""A shared ring in one process: what is committed outlives its consumers, who see what was not released again."""

import struct
from typing import Any

import numpy as np

from sona.trajectory import TrajectoryBuilder

Array = np.ndarray[Any, Any]


class FakeRing:
    """Both sides; `reopen` is what a new consumer finds."""

    capacity = 1 << 20

    def __init__(self, identity: bytes = bytes(range(16))) -> None:
        self.identity = identity
        self.waiting: list[tuple[bytes, int]] = []
        self.sequence = self.released = self._at = 0
        self.dropped = self.damaged = 0

    def push(self, data: bytes) -> int:
        self.sequence += 1
        self.waiting.append((data, self.sequence))
        return self.sequence

    def skip(self) -> None:
        """A producer that died between taking a number and publishing the record."""
        self.sequence += 1

    def next(self) -> tuple[bytes, int] | None:
        if self._at == len(self.waiting):
            return None
        self._at += 1
        return self.waiting[self._at - 1]

    def mark(self) -> int:
        return self.released + self._at

    def release(self, mark: int) -> None:
        count = mark - self.released
        del self.waiting[:count]
        self.released += count
        self._at -= count

    def reopen(self) -> "FakeRing":
        self._at = 0
        return self

    @property
    def used(self) -> int:
        return sum(len(data) for data, _ in self.waiting)

    def close(self) -> None:
        pass


def trajectory(rng: np.random.Generator, dim: int, *, steps: int = 1, rewarded: bool = True, layers: int = 1) -> bytes:
    """As a C program writes it: id 0, and no checksum."""
    builder = TrajectoryBuilder(0, rng.normal(size=dim).astype(np.float32))
    for _ in range(steps):
        reward = float(np.float32(rng.random())) if rewarded else None
        builder.add_step(rng.normal(size=dim), None, reward, expected=0.5, layer=int(rng.integers(layers)))
    data = bytearray(builder.end())
    data[8:12] = bytes(4)
    return bytes(data)


def feedback(sequence: int, reward: float) -> bytes:
    return struct.pack("<4sIQd", b"SFBK", 24, sequence, reward)
