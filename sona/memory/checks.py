"""Checks of what a caller of the memory graph passes: columns of one length, or a clear error."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from sona import _arrays
from sona._arrays import Floats, coerce
from sona.errors import SonaTypeError, SonaValueError
from sona.memory.csr import Longs
from sona.memory.kinds import EdgeKind, NodeKind

Kinds = npt.NDArray[np.uint8]


def ids_of(value: Any, name: str) -> Longs:
    """One id or many as (n,) int64."""
    given = np.asarray(value)
    if given.size == 0 and given.dtype.kind == "f":
        given = given.astype(np.int64)
    if given.dtype.kind not in "iu" or given.ndim > 1:
        raise SonaTypeError(f"{name}: expected ints of shape (n,), got {given.dtype} of shape {given.shape}")
    if given.size and not (given.min() >= 0 and given.max() < 1 << 63):
        raise SonaValueError(f"{name}: expected ints in [0, 2**63), got {given.min()} to {given.max()}")
    return np.atleast_1d(given).astype(np.int64)


def within(value: Any, count: int, name: str, *, above: bool = False) -> Floats:
    """A number or one a row as (count,) float32 in [0, 1]; `above` leaves 0 out."""
    given = np.asarray(value)
    if given.dtype.kind not in "fiu" or (isinstance(value, np.ndarray) and type(value) is not np.ndarray and np.ma.is_masked(value)):
        raise SonaTypeError(f"{name}: expected numbers, got {given.dtype if given.dtype.kind not in 'fiu' else 'masked ones'}")
    if given.shape not in ((), (count,)):
        raise SonaValueError(f"{name}: expected a number or shape ({count},), got {given.shape}")
    with np.errstate(over="ignore"):
        result = np.broadcast_to(given, (count,)).astype(np.float32)
    if not ((result > 0 if above else result >= 0) & (result <= 1)).all():
        raise SonaValueError(f"{name}: expected numbers in {'(' if above else '['}0, 1], got {given.min()} to {given.max()}")
    return result


def kinds_of(value: Any, count: int, kind: type[NodeKind] | type[EdgeKind]) -> Kinds:
    """A kind or one a row as (count,) uint8."""
    given = np.asarray(value)
    if given.dtype.kind not in "iu":
        raise SonaTypeError(f"kind: expected {kind.__name__}, got {given.dtype}")
    if given.shape not in ((), (count,)):
        raise SonaValueError(f"kind: expected one or shape ({count},), got {given.shape}")
    if given.size and not (given.min() >= 0 and given.max() < len(kind)):
        raise SonaValueError(f"kind: expected a {kind.__name__} in [0, {len(kind)}), got {given.min()} to {given.max()}")
    return np.broadcast_to(given, (count,)).astype(np.uint8)


def whole(value: Any, least: int, name: str) -> int:
    """An int of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise SonaTypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise SonaValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)


def text_of(data: Any) -> str | None:
    """What json writes for it; None for None."""
    if data is None:
        return None
    try:
        return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise SonaValueError(f"data: expected what JSON can write ({error})") from None
    except TypeError as error:
        raise SonaTypeError(f"data: expected what JSON can write ({error})") from None


def unit_rows(value: Any, shape: tuple[int | None, ...], name: str) -> Floats:
    """What a caller passes as rows of unit norm; zero rows stay zero."""
    return _arrays.unit_rows(coerce(value, shape, name))
