"""Reads logged decisions, one JSON object a line: what was asked, which arm was shown, what it earned.

Fields: ``x`` (numbers), ``arm`` (name), ``reward`` (number); optional ``propensity`` (the probability with which the log drew that arm),
``candidates`` (names that could have been shown), ``time`` (a number or ISO 8601), and ``arms`` (name -> vector) on the first line,
alone or with a decision. Other fields are ignored and counted.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaError, SonaValueError
from sona.replay.lines import BadLines, numbered_lines

MAX_DIM = 1 << 16
MAX_ARMS = 100_000
MAX_NAME = 256
MAX_FIELD_NAMES = 32  # distinct ignored fields that are counted by name
FIELDS = frozenset({"x", "arm", "reward", "propensity", "candidates", "time", "arms"})

Arms = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class LoggedRow:
    """One decision. x: (d,) float32; propensity and time are NaN where the line has none; candidates None means all arms."""

    line: int
    x: npt.NDArray[np.float32]
    arm: str
    reward: float
    candidates: tuple[str, ...] | None
    propensity: float
    time: float


@dataclass
class LogShape:
    """What the first reading of a log found: arms in order of appearance, with their vectors if it gives any."""

    dim: int = 0
    names: dict[str, None] = field(default_factory=dict)
    vectors: Arms | None = None
    rows: int = 0
    without_propensity: int = 0
    earlier_than_before: int = 0
    ignored: Counter[str] = field(default_factory=Counter)


class LoggedDecisions:
    """A log that is read twice: :meth:`scan` checks every line before anything is learned, :meth:`rows` then gives the decisions.

    Parameters
    ----------
    path : path
    reward_range : (float, float)
        Rewards outside are bad lines, unless ``clip``.
    arms : mapping of name to (d,) vector, optional
        Overrides what the first line gives; decisions may then name no other arm.
    skip_bad : bool
        Count bad lines instead of raising on the first.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        reward_range: tuple[float, float] = (0.0, 1.0),
        clip: bool = False,
        arms: Arms | None = None,
        skip_bad: bool = False,
    ) -> None:
        self._path = path
        self._range = reward_range
        self._clip = clip
        self._skip = skip_bad
        self.shape = LogShape(vectors=arms)
        self.bad = BadLines(path, skip=skip_bad)

    def scan(self) -> LogShape:
        """Read and check every line."""
        shape = self.shape
        if shape.vectors is not None:
            shape.names, shape.dim = dict.fromkeys(shape.vectors), len(next(iter(shape.vectors.values())))
        latest = -math.inf
        for row in self._read(self.bad, first_reading=True):
            shape.rows += 1
            shape.without_propensity += math.isnan(row.propensity)
            if row.time < latest:
                shape.earlier_than_before += 1
            latest = max(latest, row.time) if not math.isnan(row.time) else latest
        if not shape.rows:
            raise SonaValueError(f"{os.fspath(self._path)} has no usable decision")
        if len(shape.names) < 2:
            raise SonaValueError(f"{os.fspath(self._path)}: expected at least 2 arms, got {len(shape.names)}")
        return shape

    def rows(self) -> Iterator[LoggedRow]:
        """The decisions in the order of the file; call :meth:`scan` first."""
        return self._read(BadLines(self._path, skip=self._skip), first_reading=False)

    def _read(self, bad: BadLines, *, first_reading: bool) -> Iterator[LoggedRow]:
        first = True
        for number, text in numbered_lines(self._path, bad):
            try:
                line = _object(text)
                if first and "arms" in line:
                    if first_reading and self.shape.vectors is None:
                        self._take_arms(line["arms"], number)
                    if not {"x", "arm", "reward"} & line.keys():
                        first = False
                        continue
                elif "arms" in line:
                    raise SonaValueError("field arms is only allowed on the first line")
                row = self._row(number, line)
            except SonaValueError as problem:
                bad.add(number, problem)
                first = False
                continue
            first = False
            if first_reading:
                self._note(row, line)
            yield row

    def _take_arms(self, value: Any, number: int) -> None:
        """Never skipped: without its vectors the whole log would mean something else."""
        try:
            self.shape.vectors = parse_arms(value)
        except SonaValueError as problem:
            raise SonaError(f"{os.fspath(self._path)}, line {number}: {problem}") from None
        self.shape.names = dict.fromkeys(self.shape.vectors)
        self.shape.dim = len(next(iter(self.shape.vectors.values())))

    def _note(self, row: LoggedRow, line: Mapping[str, Any]) -> None:
        self.shape.dim = len(row.x)
        if self.shape.vectors is None:
            for name in (row.arm, *(row.candidates or ())):
                self.shape.names.setdefault(name)
        for name in line.keys() - FIELDS:
            known = name in self.shape.ignored or len(self.shape.ignored) < MAX_FIELD_NAMES
            self.shape.ignored[name if known else "(others)"] += 1

    def _row(self, number: int, line: Mapping[str, Any]) -> LoggedRow:
        for name in ("x", "arm", "reward"):
            if name not in line:
                raise SonaValueError(f"field {name} is missing")
        arm = _name("arm", line["arm"])
        candidates = _candidates(line["candidates"]) if line.get("candidates") is not None else None
        if candidates is not None and arm not in candidates:
            raise SonaValueError(f"arm {arm[:40]!r} is not among the candidates")
        for name in (arm, *(candidates or ())):
            if self.shape.vectors is not None and name not in self.shape.vectors:
                raise SonaValueError(f"arm {name[:40]!r} has no vector in arms")
            if self.shape.vectors is None and name not in self.shape.names and len(self.shape.names) >= MAX_ARMS:
                raise SonaValueError(f"expected at most {MAX_ARMS} arms, got one more: {name[:40]!r}")
        return LoggedRow(
            line=number,
            x=_vector("x", line["x"], self.shape.dim),
            arm=arm,
            reward=self._reward(line["reward"]),
            candidates=candidates,
            propensity=_propensity(line["propensity"]) if line.get("propensity") is not None else math.nan,
            time=_time(line["time"]) if line.get("time") is not None else math.nan,
        )

    def _reward(self, value: Any) -> float:
        reward = _number("reward", value)
        low, high = self._range
        if self._clip:
            return min(max(reward, low), high)
        if not low <= reward <= high:
            raise SonaValueError(f"expected reward in [{low:g}, {high:g}], got {reward:g}")
        return reward


def read_arms(path: str | os.PathLike[str]) -> Arms:
    """A file of its own for the arms: one JSON object, name -> vector, on one line or many."""
    bad = BadLines(path, skip=False)
    try:
        return parse_arms(_object("\n".join(text for _, text in numbered_lines(path, bad))))
    except SonaValueError as problem:
        raise SonaValueError(f"{os.fspath(path)}: {problem}") from None


def parse_arms(value: Any) -> Arms:
    """{"small": [0.1, ...], ...} -> name -> (d,) float32; all of one length, none of them zero."""
    if not isinstance(value, dict) or not 2 <= len(value) <= MAX_ARMS:
        got = f"{len(value)}" if isinstance(value, dict) else _kind(value)
        raise SonaValueError(f"expected arms as an object of 2..{MAX_ARMS} vectors, got {got}")
    arms: Arms = {}
    dim = 0
    for name, vector in value.items():
        try:
            arms[_name("arm", name)] = row = _vector("the vector", vector, dim)
        except SonaValueError as problem:
            raise SonaValueError(f"arm {name[:40]!r}: {problem}") from None
        if not row.any():
            raise SonaValueError(f"arm {name[:40]!r}: expected a vector that is not zero")
        dim = len(row)
    return arms


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise SonaValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise SonaValueError("not JSON that can be read: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits, NaN or Infinity
        raise SonaValueError(str(error)) from None
    if not isinstance(value, dict):
        raise SonaValueError(f"expected a JSON object, got {_kind(value)}")
    return value


def _refuse_constant(name: str) -> float:
    raise SonaValueError(f"expected finite numbers, got {name}")


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        got = f"{len(value)} characters" if isinstance(value, str) else _kind(value)
        raise SonaValueError(f"expected {what} as a name of 1..{MAX_NAME} characters, got {got}")
    return value


def _candidates(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise SonaValueError(f"expected candidates as a list of names, got {'none' if value == [] else _kind(value)}")
    names = tuple(_name("candidate", name) for name in value)
    if len(set(names)) < len(names):
        raise SonaValueError("a candidate appears twice")
    return names


def _vector(what: str, value: Any, dim: int) -> npt.NDArray[np.float32]:
    if not isinstance(value, list) or not value:
        raise SonaValueError(f"expected {what} as a list of numbers, got {'an empty one' if value == [] else _kind(value)}")
    if len(value) > MAX_DIM or (dim and len(value) != dim):
        raise SonaValueError(f"expected {what} with {dim or f'at most {MAX_DIM}'} numbers, got {len(value)}")
    for number in value:
        if type(number) is not float and type(number) is not int:
            raise SonaValueError(f"expected {what} as a list of numbers, got {_kind(number)} in it")
    try:
        with np.errstate(over="ignore"):
            row = np.array(value, np.float64).astype(np.float32)
    except OverflowError:
        raise SonaValueError(f"expected finite float32 numbers in {what}") from None
    if not np.isfinite(row).all():
        raise SonaValueError(f"expected finite float32 numbers in {what}")
    return row


def _number(what: str, value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise SonaValueError(f"expected {what} as a number, got {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise SonaValueError(f"expected a finite {what}")
    return number


def _propensity(value: Any) -> float:
    propensity = _number("propensity", value)
    if not 0 < propensity <= 1:
        raise SonaValueError(f"expected propensity in (0, 1], got {propensity:g}")
    return propensity


def _time(value: Any) -> float:
    if not isinstance(value, str):
        return _number("time", value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise SonaValueError(f"expected time as a number or ISO 8601, got {value[:40]!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _kind(value: Any) -> str:
    """The JSON word for a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
