"""What the stores' methods take: names, ids, counts and rows, and what is said of anything else."""

import math
import operator
import re
from collections.abc import Iterable
from typing import SupportsIndex, TypeVar

from sona.errors import SonaTypeError, SonaValueError
from sona.store.rows import MAX_ID, DecisionRow, FeedbackRow, TrajectoryRow, VersionRow

MIN_MAX_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Row = TypeVar("Row", DecisionRow, FeedbackRow, TrajectoryRow, VersionRow)


def check_name(what: str, value: str) -> str:
    """`value`, a str that `NAME` matches."""
    if not isinstance(value, str):
        raise SonaTypeError(f"expected {what} to be a str, got {type(value).__name__}")
    if not NAME.fullmatch(value):
        raise SonaValueError(
            f"expected {what} of 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit, got {value[:80]!r}"
        )
    return value


def check_bounds(max_bytes: int | None, retention_days: float | None) -> None:
    """The two bounds that a store may have."""
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < MIN_MAX_BYTES):
        raise SonaValueError(f"expected max_bytes to be None or an int of at least {MIN_MAX_BYTES}, got {max_bytes!r}")
    if retention_days is not None and not 0 < retention_days < math.inf:
        raise SonaValueError(f"expected retention_days to be None or positive and finite, got {retention_days!r}")


def check_milliseconds(what: str, value: int) -> None:
    """A timeout."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise SonaValueError(f"expected {what} to be an int from 0 to 2**31 - 1, got {value!r}")


def id_of(value: SupportsIndex) -> int:
    """`value` as an int; -1, which no row has, where no row can have it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise SonaTypeError(f"expected an int, got {type(value).__name__}") from None
    return number if 0 <= number <= MAX_ID else -1


def check_count(what: str, value: int) -> None:
    """A number of rows, or of a reward."""
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise SonaValueError(f"expected {what} to be an int from 0 to 2**63 - 1, got {value!r}")


def rows_of(kind: type[Row], rows: Iterable[Row]) -> list[Row]:
    """`rows` as a list, each of that kind."""
    listed = list(rows)
    for row in listed:
        if type(row) is not kind:
            raise SonaTypeError(f"expected rows of type {kind.__name__}, got {type(row).__name__}")
    return listed
