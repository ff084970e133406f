"""Checks at the door: whatever a caller passes becomes a C-contiguous float32 array, or a clear error with the state unchanged."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError

Floats = npt.NDArray[np.float32]


def coerce(value: Any, shape: tuple[int | None, ...], name: str) -> Floats:
    """
    Convert to C-contiguous native float32.

    Parameters
    ----------
    value : array_like
        Real numbers of any float or integer type, any layout and byte order.
    shape : tuple
        Expected length of each axis; None accepts any length of at least 1.
    name : str
        What the caller calls the argument, for the message.

    Raises
    ------
    SonaTypeError
        For objects, strings, complex numbers and booleans.
    SonaValueError
        For another shape, an empty array, NaN or infinity, or a float64 beyond the range of float32.
    """
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray and np.ma.is_masked(value):  # numpy would use what is under the mask
        raise SonaTypeError(f"{name}: expected an array without masked elements, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise SonaTypeError(f"{name}: expected an array of numbers, got {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "fiu":
        raise SonaTypeError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    if array.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, array.shape, strict=True)):
        expected = "(" + ", ".join("n" if want is None else str(want) for want in shape) + ("," if len(shape) == 1 else "") + ")"
        raise SonaValueError(f"{name}: expected shape {expected}, got {array.shape}")
    if array.size == 0:
        raise SonaValueError(f"{name}: expected at least one row, got shape {array.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        result: Floats = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(result).all():
        raise SonaValueError(f"{name}: expected finite float32 values, got NaN, infinity or a number beyond 3.4e38")
    return result


def unit_rows(x: Floats) -> Floats:
    """Rows (..., d) divided by their norms; zero rows stay zero. Norms in double precision: no square of a float32 overflows there."""
    norm = np.sqrt(np.einsum("...i,...i->...", x, x, dtype=np.float64))
    result: Floats = (x / np.where(norm == 0, 1, norm)[..., None]).astype(np.float32)
    return result


def output(value: Any, shape: tuple[int, ...], name: str) -> Floats:
    """Check an array that will be written to: float32, C-contiguous, aligned, writeable, of this shape. No copy is made."""
    if not isinstance(value, np.ndarray):
        raise SonaTypeError(f"{name}: expected a float32 array to write to, got {type(value).__name__}")
    if value.dtype != np.float32 or not value.dtype.isnative:
        raise SonaTypeError(f"{name}: expected dtype float32, got {value.dtype}")
    if value.shape != shape:
        raise SonaValueError(f"{name}: expected shape {shape}, got {value.shape}")
    if not value.flags.c_contiguous or not value.flags.aligned:
        raise SonaValueError(f"{name}: expected a C-contiguous aligned array, got strides {value.strides}")
    if not value.flags.writeable:
        raise SonaValueError(f"{name}: expected a writeable array, got a read-only one")
    return value


def copied(x: Floats, out: Floats | None) -> tuple[Floats, Floats]:
    """(y, x): a y equal to x, in `out` where one is given, and an x that writing to y does not change, unless they are the same rows."""
    if out is None:
        return x.copy(), x
    y = output(out, x.shape, "out")
    if y is not x and np.may_share_memory(x, y):
        x = x.copy()
    np.copyto(y, x)
    return y, x
