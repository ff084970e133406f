"""A correction as plain arrays, and as bytes."""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from sona._arrays import Floats
from sona.adapters._lora import Adapter
from sona.errors import SonaCorruptError, SonaValueError, SonaVersionError

_HEAD = struct.Struct("<8sII")  # magic, rank, dim
_MAGIC = b"sonafac1"
_LARGEST = 1e18  # of the output: its square is within float32


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """
    The correction delta(x) = up^T (down x + offset).

    Attributes
    ----------
    down, up : (rank, dim) float32
    offset : (rank,) float32

    Raises
    ------
    SonaValueError
        Other shapes or types, or numbers that are not finite.
    """

    down: Floats
    up: Floats
    offset: Floats

    def __post_init__(self) -> None:
        rank = len(self.down)
        if np.ndim(self.down) != 2 or np.shape(self.up) != np.shape(self.down) or np.shape(self.offset) != (rank,):
            raise SonaValueError(
                f"factors: expected down and up of one shape (rank, dim) and offset (rank,), got {np.shape(self.down)}, "
                f"{np.shape(self.up)} and {np.shape(self.offset)}"
            )
        for name in ("down", "up", "offset"):
            if getattr(self, name).dtype != np.float32 or not np.isfinite(getattr(self, name)).all():
                raise SonaValueError(f"factors: expected finite float32, got {name} of {getattr(self, name).dtype} that is not")

    @classmethod
    def of(cls, adapter: Adapter) -> Self:
        """All rows of an adapter, its scale in `up`."""
        down, up, offset = adapter.rows()
        return cls(down, up * np.float32(adapter.scale), offset)

    def put(self, adapter: Adapter) -> None:
        """Replace all rows of an adapter in one publication: a reader sees the old rows or the new ones, and goes on with those it has."""
        adapter.assign(self.down, self.up / np.float32(adapter.scale), self.offset)

    def check(self, dim: int, what: str) -> None:
        """SonaVersionError, naming `what`, unless the width is `dim` and the output is finite for every x of norm 1."""
        if self.down.shape[1] != dim:
            raise SonaVersionError(f"{what}: expected rows of {dim} numbers, got {self.down.shape[1]}")
        down, up = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (self.down, self.up))
        if not float(np.sum((down + np.abs(self.offset)) * up)) < _LARGEST:
            raise SonaVersionError(f"{what}: expected a correction whose output is finite")

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads; equal factors have equal bytes."""
        parts = (np.ascontiguousarray(part, "<f4").tobytes() for part in (self.down, self.up, self.offset))
        return _HEAD.pack(_MAGIC, *self.down.shape) + b"".join(parts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """SonaCorruptError for anything that `to_bytes` did not make."""
        try:
            magic, rank, dim = _HEAD.unpack_from(blob)
            numbers = np.frombuffer(blob, "<f4", offset=_HEAD.size).astype(np.float32)
            if magic != _MAGIC or len(numbers) != rank * (2 * dim + 1):
                raise SonaValueError(f"{rank} rows of {dim} in {len(blob)} bytes")
            down, up, offset = np.split(numbers, [rank * dim, 2 * rank * dim])
            return cls(down.reshape(rank, dim), up.reshape(rank, dim), offset)
        except (struct.error, ValueError) as error:
            raise SonaCorruptError(f"factors: expected the bytes of a correction, got: {error}") from error

    @property
    def digest(self) -> str:
        """First 8 hexadecimal digits of the SHA-256 of the bytes."""
        return digest((self,))


def join(layers: Iterable[Factors]) -> bytes:
    """Corrections of several layers as bytes, one after the other."""
    return b"".join(factors.to_bytes() for factors in layers)


def split(blob: bytes) -> tuple[Factors, ...]:
    """What `join` was given, at least one; SonaCorruptError for anything else."""
    layers: list[Factors] = []
    at = 0
    while at < len(blob) or not layers:
        _, rank, dim = _HEAD.unpack_from(blob, at) if len(blob) - at >= _HEAD.size else (b"", 0, 0)
        end = at + _HEAD.size + 4 * rank * (2 * dim + 1)
        layers.append(Factors.from_bytes(blob[at:end]))
        at = end
    return tuple(layers)


def digest(layers: Iterable[Factors]) -> str:
    """First 8 hexadecimal digits of the SHA-256 of the bytes."""
    return hashlib.sha256(join(layers)).hexdigest()[:8]
