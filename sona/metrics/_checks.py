"""Arrays as the metrics take them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError

FloatArray = npt.NDArray[np.float64]


def numbers(name: str, values: npt.ArrayLike) -> FloatArray:
    """Doubles of any shape; SonaTypeError for what is no number."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise SonaTypeError(f"expected {name} as numbers: {error}") from None


def vector(name: str, values: npt.ArrayLike) -> FloatArray:
    """Finite doubles of shape (n,), n >= 1; SonaTypeError or SonaValueError otherwise."""
    array = numbers(name, values)
    if array.ndim != 1 or not len(array):
        raise SonaValueError(f"expected {name} of shape (n,) with n >= 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise SonaValueError(f"expected finite {name}, got {int((~np.isfinite(array)).sum())} values that are not")
    return array
