"""What a judge of two models answers, and the checks that the judges share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from sona._fields import number
from sona.errors import SonaTypeError, SonaValueError

Verdict = Literal["accept", "reject", "undecided", "expired"]
FloatArray = npt.NDArray[np.float64]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Ruling:
    """
    A decision about a candidate, or the lack of one.

    Attributes
    ----------
    verdict : {"accept", "reject", "undecided", "expired"}
        "expired": the trial reached its end without evidence either way, and the candidate is dropped.
    reason : str
        In words, with the figures that mattered.
    evidence : mapping
        Plain numbers by name, for JSON.
    """

    verdict: Verdict
    reason: str
    evidence: Mapping[str, Any]


def unit_reward(reward: float) -> float:
    """A reward as a float in [0, 1]; SonaTypeError or SonaValueError otherwise."""
    value = reward if type(reward) is float else number(reward, "reward")
    if not 0 <= value <= 1:  # false for NaN
        raise SonaValueError(f"reward: expected a number in [0, 1], got {value}")
    return value


def between(name: str, value: float, low: float, high: float) -> float:
    """A number strictly between two; SonaValueError otherwise."""
    if not (isinstance(value, int | float) and low < value < high):
        raise SonaValueError(f"{name}: expected a number between {low:g} and {high:g}, got {value!r}")
    return float(value)


def at_least(name: str, value: int, least: int) -> int:
    """An int not below `least`; SonaValueError otherwise."""
    if type(value) is not int or value < least:
        raise SonaValueError(f"{name}: expected an int of at least {least}, got {value!r}")
    return value


def columns(least: float = 0.0, most: float = 1.0, **values: npt.ArrayLike) -> list[FloatArray]:
    """Finite vectors of one length n with elements in [least, most]; SonaTypeError or SonaValueError with the name of one that is not."""
    found: list[FloatArray] = []
    for name, value in values.items():
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise SonaTypeError(f"{name}: expected numbers: {error}") from None
        if array.ndim != 1 or (found and len(array) != len(found[0])):
            expected = f"({len(found[0])},)" if found else "(n,)"
            raise SonaValueError(f"{name}: expected shape {expected}, got {array.shape}")
        inside = (array >= least) & (array <= most) & np.isfinite(array)
        if not inside.all():
            raise SonaValueError(
                f"{name}: expected numbers in [{least:g}, {most:g}], got {array[~inside][0]} in row {int(np.argmin(inside))}"
            )
        found.append(array)
    return found


def items_now(table: Mapping[K, V]) -> list[tuple[K, V]]:
    """Items of a dict to which other threads add: once more where one did meanwhile, which a garbage collection in between allows."""
    while True:
        try:
            return list(table.items())
        except RuntimeError:
            continue
