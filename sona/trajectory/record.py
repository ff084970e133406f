"""
Trajectories as bytes: what the ring carries and the store keeps.

Little-endian, in this order::

    offset  type     prelude, the same in every version
    0       4 bytes  b"STRJ"
    4       uint32   size of the whole record in bytes
    8       uint32   CRC-32 of everything from offset 12
    12      uint16   version, 1
    14      uint16   0
    16      uint64   id
    24      uint64   latency_us
    32      float64  final_quality; NaN: None
    40      uint32   d, length of query_embedding
    44      uint32   number of steps
    48      float32  query_embedding (d)
    then for each step
    0       float64  timestamp
    8       float64  reward; NaN: None
    16      float64  expected; NaN: None
    24      uint32   layer
    28      uint32   a, length of attention_weights; 0: None
    32      uint32   1 when x follows, else 0
    36      uint32   0
    40      float32  activations (d), attention_weights (a), x (d or none)
"""

import math
import struct
import zlib

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError, SonaVersionError
from sona.trajectory._record import VERSION
from sona.types import QueryTrajectory, TrajectoryStep

_MAGIC = b"STRJ"
_PRELUDE = struct.Struct("<4sII")
_HEAD = struct.Struct("<HHQQdII")
_STEP = struct.Struct("<dddIIII")
_FLOAT = np.dtype("<f4")


def decode(data: bytes | bytearray | memoryview) -> QueryTrajectory:
    """
    The trajectory in `data`, which may come from anywhere: nothing outside it is read, and no more memory is taken than its size.

    Raises
    ------
    SonaCorruptError
        The bytes are truncated, changed, followed by others, or not a trajectory.
    SonaVersionError
        They are intact and of a newer version.
    """
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise SonaTypeError(f"trajectory: expected contiguous bytes, got {type(data).__name__}") from None
    if len(view) < _PRELUDE.size:
        raise SonaCorruptError(f"trajectory: expected at least {_PRELUDE.size} bytes, got {len(view)}")
    magic, size, checksum = _PRELUDE.unpack_from(view)
    if magic != _MAGIC:
        raise SonaCorruptError(f"trajectory: expected the bytes {_MAGIC!r} at the start, got {magic!r}")
    if size != len(view):
        raise SonaCorruptError(f"trajectory: expected {size} bytes as its head says, got {len(view)}")
    body = view[_PRELUDE.size :]
    if zlib.crc32(body) != checksum:
        raise SonaCorruptError(f"trajectory: expected CRC-32 {checksum:08x}, got {zlib.crc32(body):08x}")
    try:
        return _parse(body)
    except (SonaValueError, SonaTypeError) as error:
        raise SonaCorruptError(f"trajectory: {error}") from None


def _parse(body: memoryview) -> QueryTrajectory:
    """The trajectory behind an intact prelude. The checksum protects against accidents only, so every length is checked."""
    read = _Reader(body)
    version = int.from_bytes(read.take(2), "little")
    if version > VERSION:
        raise SonaVersionError(f"trajectory: expected version {VERSION} or older, got {version}")
    read.at = 0
    version, zero, id, latency_us, quality, d, count = _HEAD.unpack(read.take(_HEAD.size))
    if version != VERSION or zero:
        raise SonaCorruptError(f"trajectory: expected version {VERSION} and a zero, got {version} and {zero}")
    query = read.floats(d)
    steps: list[TrajectoryStep] = []
    for _ in range(count):  # ends with the bytes, whatever count says
        timestamp, reward, expected, layer, attention, has_x, zero = _STEP.unpack(read.take(_STEP.size))
        if has_x > 1 or zero:
            raise SonaCorruptError(f"trajectory: expected 0 or 1 and a zero in step {len(steps)}, got {has_x} and {zero}")
        activations = read.floats(d)
        weights = read.floats(attention) if attention else None
        x = read.floats(d) if has_x else None
        steps.append(TrajectoryStep(activations, weights, _or_none(reward), timestamp, _or_none(expected), layer, x))
    if read.at != len(body):
        raise SonaCorruptError(f"trajectory: expected its end after {read.at} bytes, got {len(body)}")
    return QueryTrajectory(id, query, tuple(steps), _or_none(quality), latency_us)


class _Reader:
    """Hands out consecutive parts of a buffer and never more than it has."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self.at = 0

    def take(self, size: int) -> memoryview:
        end = self.at + size
        if end > len(self._buffer):
            raise SonaCorruptError(f"trajectory: expected {size} bytes from {self.at}, got {len(self._buffer) - self.at}")
        part, self.at = self._buffer[self.at : end], end
        return part

    def floats(self, count: int) -> Floats:
        """A view; what is made of it copies."""
        return np.frombuffer(self.take(count * _FLOAT.itemsize), _FLOAT)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
