"""The rows a store holds. A row checks itself when it is made, so that no group of rows can fail because of one of them."""

import math
from dataclasses import dataclass

from sona.errors import SonaTypeError, SonaValueError

Blob = bytes
"""``bytes``, for classes that have a method of that name."""

# Columns of the tables that hold the rows, in the order of their fields.
DECISION_COLUMNS = "id, time, x, arm, arm_set, candidates, propensity, proposals, source"
FEEDBACK_COLUMNS = "id, reward, time, source"
TRAJECTORY_COLUMNS = "id, time, payload, quality"

MAX_ID = 2**63 - 1
SEQUENCE_BITS = 40  # of a decision id; the session takes the 23 above
MAX_SOURCE = 255  # characters

# What a row costs beside its payload (keys, indexes, record headers), measured on files of 10^4 rows; it only steers pruning.
DECISION_OVERHEAD = 160
FEEDBACK_OVERHEAD = 96
TRAJECTORY_OVERHEAD = 64


def _integer(name: str, value: object) -> None:
    if type(value) is not int:
        raise SonaTypeError(f"expected {name} to be an int, got {type(value).__name__}")
    if not 0 <= value <= MAX_ID:
        raise SonaValueError(f"expected {name} between 0 and 2**63 - 1, got {value}")


def _finite(name: str, value: object) -> None:
    if not isinstance(value, float | int):
        raise SonaTypeError(f"expected {name} to be a float, got {type(value).__name__}")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int beyond the range of a float
        finite = False
    if not finite:
        raise SonaValueError(f"expected a finite {name}, got {value}")


def _blob(name: str, value: object, item: int) -> None:
    if type(value) is not bytes:
        raise SonaTypeError(f"expected {name} to be bytes, got {type(value).__name__}")
    if len(value) % item:
        raise SonaValueError(f"expected {name} in items of {item} bytes, got {len(value)} bytes")


def check_source(value: object) -> None:
    """SonaTypeError or SonaValueError for what a row cannot have as its source."""
    if value is None:
        return
    if not isinstance(value, str):
        raise SonaTypeError(f"expected source to be a str or None, got {type(value).__name__}")
    if not 0 < len(value) <= MAX_SOURCE or "\0" in value:
        raise SonaValueError(f"expected a source of 1 to {MAX_SOURCE} characters without NUL, got {len(value)} characters: {value[:40]!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SonaValueError(f"expected a source that UTF-8 can encode, got {value!r}") from None


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One choice of the router, with all that is needed to learn from it later.

    Parameters
    ----------
    id : int
        Unique within a namespace: ``session << 40 | sequence``.
    time : float
        Wall clock, seconds since the epoch. Orders and expires rows; never used for intervals.
    x : bytes
        The request, raw little-endian float32, shape (d,).
    arm : int
        Row number of the served arm in its arm set.
    arm_set : int
        Version that ``put_arms`` returned.
    candidates : bytes or None
        Raw little-endian int32 row numbers; None when every arm was a candidate.
    propensity : float
        Probability with which the arm was served.
    proposals : bytes
        What the guard needs to learn from the outcome; opaque here.
    source : str or None
        Who asked, at most 255 characters.

    Raises
    ------
    SonaTypeError, SonaValueError
        A field of another type (numpy scalars included), a negative or non-finite number, an impossible length.
    """

    id: int
    time: float
    x: bytes
    arm: int
    arm_set: int
    candidates: bytes | None
    propensity: float
    proposals: bytes
    source: str | None = None

    def __post_init__(self) -> None:
        _integer("id", self.id)
        _integer("arm", self.arm)
        _integer("arm_set", self.arm_set)
        _finite("time", self.time)
        _finite("propensity", self.propensity)
        if self.propensity < 0:
            raise SonaValueError(f"expected a propensity of at least 0, got {self.propensity}")
        _blob("x", self.x, 4)
        if self.candidates is not None:
            _blob("candidates", self.candidates, 4)
        _blob("proposals", self.proposals, 1)
        check_source(self.source)

    @property
    def nbytes(self) -> int:
        """What the row costs in a store, bytes (an estimate)."""
        return len(self.x) + len(self.candidates or b"") + len(self.proposals) + len(self.source or "") + DECISION_OVERHEAD


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """The outcome of a decision; of several rows with one id the last that reached the store counts.

    Parameters
    ----------
    id : int
        The decision's id.
    reward : float
        Finite; its range is the caller's business.
    time : float
        Wall clock, seconds since the epoch.
    source : str or None
        Who reported it, at most 255 characters.

    Raises
    ------
    SonaTypeError, SonaValueError
        As for `DecisionRow`.
    """

    id: int
    reward: float
    time: float
    source: str | None = None

    def __post_init__(self) -> None:
        _integer("id", self.id)
        _finite("reward", self.reward)
        _finite("time", self.time)
        check_source(self.source)

    @property
    def nbytes(self) -> int:
        """What the row costs in a store, bytes (an estimate)."""
        return len(self.source or "") + FEEDBACK_OVERHEAD


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """A finished trajectory.

    Parameters
    ----------
    id : int
        Unique among the trajectories of a namespace; where it is also a decision's id, both are forgotten together.
    time : float
        Wall clock, seconds since the epoch.
    payload : bytes
        Opaque here.
    quality : float or None
        None while no outcome is known.

    Raises
    ------
    SonaTypeError, SonaValueError
        As for `DecisionRow`.
    """

    id: int
    time: float
    payload: bytes
    quality: float | None = None

    def __post_init__(self) -> None:
        _integer("id", self.id)
        _finite("time", self.time)
        _blob("payload", self.payload, 1)
        if self.quality is not None:
            _finite("quality", self.quality)

    @property
    def nbytes(self) -> int:
        """What the row costs in a store, bytes (an estimate)."""
        return len(self.payload) + TRAJECTORY_OVERHEAD


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of what an engine has learned; it never changes once it is kept.

    Parameters
    ----------
    parent : int or None
        Number of the version that it was made from.
    time : float
        Wall clock, seconds since the epoch.
    verdict : str
        What was decided about it when it was made, one word.
    reason : str
        Why.
    about : str
        JSON; opaque here.
    factors : bytes
        Opaque here.

    Raises
    ------
    SonaTypeError, SonaValueError
        As for `DecisionRow`.
    """

    parent: int | None
    time: float
    verdict: str
    reason: str
    about: str
    factors: bytes

    def __post_init__(self) -> None:
        if self.parent is not None:
            _integer("parent", self.parent)
        _finite("time", self.time)
        for name in ("verdict", "reason", "about"):
            if not isinstance(getattr(self, name), str):
                raise SonaTypeError(f"expected {name} to be a str, got {type(getattr(self, name)).__name__}")
            if "\0" in getattr(self, name):
                raise SonaValueError(f"expected {name} without NUL, got {getattr(self, name)[:40]!r}")
        _blob("factors", self.factors, 1)


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a pruning removed: rows by kind, arm sets no longer referred to, and the live bytes before and after."""

    decisions: int
    feedback: int
    trajectories: int
    arm_sets: int
    bytes_before: int
    bytes_after: int
