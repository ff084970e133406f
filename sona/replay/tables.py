"""Reads labelled rows from .npz and .csv: every answer is known, so a bandit can be played on them."""

from __future__ import annotations

import csv
import errno
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.replay.lines import BadLines, numbered_lines

MAX_BYTES = 1 << 32  # of X and y once unpacked
MAX_FEATURES = 1 << 16
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Labelled:
    """x (n, d) float32; y (n,) int64 indexes ``names``, one per class; in the order of the file."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    names: tuple[str, ...]
    ignored: dict[str, int] = field(default_factory=dict)


def read_npz(path: str | os.PathLike[str], bad: BadLines) -> Labelled:
    """Arrays ``X`` (n, d) and ``y`` (n,) of an .npz file; others are ignored. Nothing is unpickled, and no size is believed unchecked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in ("X", "y") if name not in members]
            if missing:
                raise SonaValueError(f"{os.fspath(path)}: expected arrays X and y, got {', '.join(sorted(members)) or 'none'}")
            x, y = (_read_member(archive, members[name], name) for name in ("X", "y"))
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a seek to where the archive points
            raise
        raise SonaValueError(f"{os.fspath(path)} is not a sound .npz file: {error}") from None
    except (SonaValueError, MemoryError):
        raise
    except Exception as error:  # zipfile and numpy raise whatever they stumble over: struct.error, UnicodeDecodeError, RuntimeError, ...
        raise SonaValueError(f"{os.fspath(path)} is not a sound .npz file: {error}") from None
    if x.ndim != 2 or y.shape != x.shape[:1] or 0 in x.shape:
        raise SonaValueError(f"expected X of shape (n, d) and y of shape (n,), got {x.shape} and {y.shape}")
    if x.dtype.kind not in "fiu":
        raise SonaValueError(f"expected X as numbers, got {x.dtype}")
    with np.errstate(over="ignore"):
        rows = x.astype(np.float32)
    sound = np.isfinite(rows).all(axis=1)
    for row in np.flatnonzero(~sound).tolist():
        bad.add(row, "expected finite float32 values in X", unit="row")
    return _labelled(rows[sound], _class_names(y[sound]), Counter({name: 1 for name in members if name not in ("X", "y")}))


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> npt.NDArray[np.generic]:
    """An array whose header promises exactly the bytes that are there: allocation follows the file, never a claim in it."""
    readers: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype[np.generic]]]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version not in readers:
                raise SonaValueError(f"expected .npy format 1.0 or 2.0 for {name}, got {'.'.join(map(str, version))}")
            shape, _, dtype = readers[version](file)
            header = file.tell()
        if dtype.hasobject:
            raise SonaValueError(f"expected {name} as numbers or fixed-width strings, got Python objects, which are never unpickled")
        promised = dtype.itemsize
        for extent in shape:
            promised *= int(extent)
        if promised > MAX_BYTES:
            raise SonaValueError(f"expected {name} of at most {MAX_BYTES} bytes, got {promised}")
        if promised != info.file_size - header:
            raise SonaValueError(f"{name} promises {promised} bytes and holds {info.file_size - header}")
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except SonaValueError:
        raise
    except ValueError as error:
        raise SonaValueError(f"{name} is not a sound array: {error}") from None


def _class_names(y: npt.NDArray[np.generic]) -> list[str]:
    if y.dtype.kind == "f":
        if not np.array_equal(y, np.round(y.astype(np.float64))):
            raise SonaValueError("expected y as class labels (whole numbers or strings), got fractions")
        if not (np.abs(y) < 2**53).all():
            raise SonaValueError("expected y as class labels below 2^53, got larger numbers")
        y = y.astype(np.int64)
    if y.dtype.kind == "S":
        y = np.char.decode(y.astype(np.bytes_), "utf-8", "replace")
    if y.dtype.kind not in "iubU":
        raise SonaValueError(f"expected y as class labels (whole numbers or strings), got {y.dtype}")
    return [str(label) for label in y.tolist()]


def read_csv(path: str | os.PathLike[str], bad: BadLines, *, label: str = "y") -> Labelled:
    """A header, a label column and numbers everywhere else; one row a line, comma-separated."""
    lines = numbered_lines(path, bad)
    number, text = next(lines, (1, ""))
    columns = [column.strip() for column in _fields(text)]
    if label not in columns:
        raise SonaValueError(f"{os.fspath(path)}, line {number}: expected a header with the label column {label!r}; name it with --label")
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise SonaValueError(f"{os.fspath(path)}, line {number}: column {repeated[0]!r} appears twice")
    if not 2 <= len(columns) <= MAX_FEATURES:
        beside = f"expected 1..{MAX_FEATURES - 1} columns beside the label, got {len(columns) - 1}"
        raise SonaValueError(f"{os.fspath(path)}, line {number}: {beside}")
    at = columns.index(label)
    names: list[str] = []
    rows: list[npt.NDArray[np.float32]] = []
    for number, text in lines:
        try:
            cells = _fields(text)
            if len(cells) != len(columns):
                raise SonaValueError(f"expected {len(columns)} fields, got {len(cells)}")
            name = cells.pop(at).strip()
            if not name:
                raise SonaValueError(f"the label column {label!r} is empty")
            rows.append(_numbers(cells, columns[:at] + columns[at + 1 :]))
            names.append(name)
        except SonaValueError as problem:
            bad.add(number, problem)
    if not rows:
        raise SonaValueError(f"{os.fspath(path)} has no usable rows")
    return _labelled(np.stack(rows), names, Counter())


def _fields(text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration) as error:
        raise SonaValueError(f"not comma-separated: {error}") from None


def _numbers(cells: list[str], columns: list[str]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        row = np.array([_number(cell) for cell in cells], np.float64).astype(np.float32)
    unusable = np.flatnonzero(~np.isfinite(row))
    if len(unusable):
        first = int(unusable[0])
        raise SonaValueError(f"expected a finite float32 number in column {columns[first]!r}, got {cells[first][:40]!r}")
    return row


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _labelled(x: npt.NDArray[np.float32], names: list[str], ignored: Counter[str]) -> Labelled:
    if not len(x):
        raise SonaValueError("no usable rows")
    if x.shape[1] > MAX_FEATURES:
        raise SonaValueError(f"expected at most {MAX_FEATURES} features, got {x.shape[1]}")
    classes = {name: place for place, name in enumerate(dict.fromkeys(names))}
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise SonaValueError(f"expected 2..{MAX_CLASSES} classes in y, got {len(classes)}")
    y = np.array([classes[name] for name in names], np.int64)
    return Labelled(np.ascontiguousarray(x), y, tuple(classes), dict(ignored))
