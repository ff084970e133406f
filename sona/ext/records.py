"""Decisions with their rewards, trajectories and patterns as Parquet or JSON lines, a group of rows at a time."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sona.errors import MissingExtraError, SonaCorruptError, SonaStoreError, SonaValueError
from sona.ext.files import replacing
from sona.loops.journal import decode_state
from sona.loops.patterns import RequestPatterns
from sona.patterns import PatternConfig
from sona.store import DecisionRow, Store
from sona.trajectory import decode

GROUP_ROWS, GROUP_BYTES = 8192, 16 << 20  # of a group that is in memory

# Columns as Arrow types by name: l int64, d float64, f float32, s string, v list of float32, t list of strings.
DECISIONS = {
    "id": "l",
    "time": "d",
    "arm": "s",
    "reward": "f",
    "propensity": "f",
    "source": "s",
    "arm_set": "l",
    "candidates": "t",
    "x": "v",
}
TRAJECTORIES = {"id": "l", "time": "d", "quality": "d", "latency_us": "l", "x": "v", "steps": "steps"}
STEPS = {"layer": "l", "reward": "f", "expected": "f", "timestamp": "d", "activations": "v", "x": "v", "attention_weights": "v"}
PATTERNS = {
    "id": "l",
    "cluster_size": "l",
    "total_weight": "d",
    "avg_quality": "d",
    "created_at": "l",
    "last_accessed": "l",
    "access_count": "l",
    "pattern_type": "s",
    "verdicts": "verdicts",
    "centroid": "v",
}
VERDICTS = {
    "arm": "s",
    "count": "l",
    "mean": "d",
    "rest_mean": "d",
    "improvement": "d",
    "statistic": "d",
    "df": "d",
    "p_value": "d",
    "consistency": "d",
}

Row = dict[str, Any]


def write_decisions(store: Store, file: str | os.PathLike[str]) -> int:
    """
    Every decision, oldest first, with the last reward that was reported for it; returns how many.

    Parameters
    ----------
    store : Store
    file : path
        ``.parquet`` or ``.jsonl``. Appears as a whole; at most 8192 rows or 16 MiB are in memory.

    Notes
    -----
    Columns: id, time (s since the epoch), arm (text of its name), reward (in [0, 1]; null before the first), propensity, source (who
    asked), arm_set, candidates (names; null: all of the arm set), x (list of float32).

    Raises
    ------
    SonaValueError
        Another suffix.
    MissingExtraError
        A Parquet file, and pyarrow is not installed.
    SonaStoreError, SonaCorruptError
    """
    return write_rows(file, DECISIONS, decision_rows(store))


def decision_rows(store: Store) -> Iterator[Row]:
    """What `write_decisions` writes; x as an array."""
    names: dict[int, list[str]] = {}
    for row, reward in store.decisions():
        arms = _arms(store, row, names)
        chosen = None if row.candidates is None else [arms[number] for number in np.frombuffer(row.candidates, "<i4").tolist()]
        yield {
            "id": row.id,
            "time": row.time,
            "arm": arms[row.arm],
            "reward": reward,
            "propensity": row.propensity,
            "source": row.source,
            "arm_set": row.arm_set,
            "candidates": chosen,
            "x": np.frombuffer(row.x, "<f4"),
        }


def _arms(store: Store, row: DecisionRow, names: dict[int, list[str]]) -> list[str]:
    if row.arm_set not in names:
        kept = store.arms(row.arm_set)
        if kept is None:
            raise SonaCorruptError(f"{store.path}: arm set {row.arm_set} of decision {row.id} is missing")
        names[row.arm_set] = [str(json.loads(name)) for name in kept[0]]
    if row.arm >= len(names[row.arm_set]):
        raise SonaCorruptError(f"{store.path}: arm {row.arm} of decision {row.id} is not in arm set {row.arm_set}")
    return names[row.arm_set]


def write_trajectories(store: Store, file: str | os.PathLike[str]) -> int:
    """
    Every ended trajectory, oldest first; returns how many. Parameters and errors as `write_decisions`.

    Columns: id, time, quality (in [0, 1] or null), latency_us, x (the query), steps: a list of layer, reward, expected, timestamp (s,
    monotonic), activations, x and attention_weights (null where the step has none).
    """
    return write_rows(file, TRAJECTORIES, _trajectory_rows(store))


def _trajectory_rows(store: Store) -> Iterator[Row]:
    for row in store.trajectories():
        trajectory = decode(row.payload)
        steps = [{name: getattr(step, name) for name in STEPS} for step in trajectory.steps]
        yield {
            "id": row.id,
            "time": row.time,
            "quality": row.quality,
            "latency_us": trajectory.latency_us,
            "x": trajectory.query_embedding,
            "steps": steps,
        }


class _Follower:
    """Whose patterns are read: those of a name in a store that another may lead."""

    leading, term = False, -1

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name


def write_patterns(store: Store, file: str | os.PathLike[str], *, name: str = "default") -> int:
    """
    The patterns of the engine or router of that name, as of its last background cycle; returns how many.

    Columns are the fields of `LearnedPattern`, with the centroid last, and verdicts: a list of the fields of `Verdict`, with the text of
    the arm's name, null where a statistic is infinite. Parameters and errors as `write_decisions`; SonaStoreError when there is no state
    of that name.
    """
    kept = store.get_state(name)
    if kept is None:
        raise SonaStoreError(f"{store.path}: there is no state {name!r} (--name)")
    arrays = decode_state(kept[0])[0]
    if "layer0.down" not in arrays:
        raise SonaCorruptError(f"{store.path}: state {name!r} is not that of an engine")
    patterns = RequestPatterns(PatternConfig(embedding_dim=arrays["layer0.down"].shape[1]), None, _Follower(store, name))
    return write_rows(file, PATTERNS, _pattern_rows(patterns))


def _pattern_rows(patterns: RequestPatterns) -> Iterator[Row]:
    for pattern in patterns.current():
        verdicts = [asdict(v) for v in patterns.verdicts if v.pattern == pattern.id]
        plain = ("id", "cluster_size", "total_weight", "avg_quality", "created_at", "last_accessed", "access_count", "centroid")
        row = {field: getattr(pattern, field) for field in plain}
        yield row | {"pattern_type": pattern.pattern_type.name, "verdicts": [{n: _plain(v[n]) for n in VERDICTS} for v in verdicts]}


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- files ----


class Sink(Protocol):
    """A file that takes rows in groups."""

    def write(self, rows: list[Row]) -> None: ...
    def close(self) -> None: ...


def write_rows(file: str | os.PathLike[str], columns: dict[str, str], rows: Iterable[Row]) -> int:
    """Write rows of those columns to a file that appears as a whole; how many they were."""
    where = Path(file)
    form: Callable[[Path, dict[str, str]], Sink]
    if where.suffix == ".parquet":
        form = _Parquet
        _pyarrow()
    elif where.suffix == ".jsonl":
        form = _Lines
    else:
        raise SonaValueError(f"{where}: expected a file *.parquet or *.jsonl")
    count, left = 0, iter(rows)
    with replacing(where) as temporary:
        sink = form(temporary, columns)
        try:
            while group := _group(left):
                sink.write(group)
                count += len(group)
        finally:
            sink.close()
    return count


def _group(rows: Iterator[Row]) -> list[Row]:
    """As many as are bounded in number and bytes, at least one while there are any."""
    group: list[Row] = []
    size = 0
    while size < GROUP_BYTES and (row := next(islice(rows, 1), None)) is not None:
        group.append(row)
        size += 200 + _bytes(row)
        if len(group) == GROUP_ROWS:
            break
    return group


def _bytes(row: Row) -> int:
    return sum(
        value.nbytes if isinstance(value, np.ndarray) else sum(200 + _bytes(part) for part in value if isinstance(part, dict))
        for value in row.values()
        if isinstance(value, np.ndarray | list)
    )


class _Lines:
    def __init__(self, where: Path, columns: dict[str, str]) -> None:
        self._file = open(where, "w", encoding="utf-8")  # noqa: SIM115
        self._columns = columns

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            ordered = {name: row.get(name) for name in self._columns}
            self._file.write(json.dumps(ordered, ensure_ascii=False, allow_nan=False, default=_listed) + "\n")

    def close(self) -> None:
        self._file.close()


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Parquet files need pyarrow: pip install 'sona[parquet]'; *.jsonl needs nothing") from None
    return pyarrow


class _Parquet:
    def __init__(self, where: Path, columns: dict[str, str]) -> None:
        pa = self._pa = _pyarrow()
        self._schema = pa.schema([(name, _arrow(pa, kind)) for name, kind in columns.items()])
        self._columns = columns
        self._writer = pa.parquet.ParquetWriter(where, self._schema, compression="zstd")

    def write(self, rows: list[Row]) -> None:
        arrays = [self._array([row.get(name) for row in rows], kind) for name, kind in self._columns.items()]
        self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema))

    def _array(self, values: list[Any], kind: str) -> Any:
        pa = self._pa
        if kind != "v":
            return pa.array(values, _arrow(pa, kind))
        lengths = np.array([0 if value is None else len(value) for value in values])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        missing = pa.array([value is None for value in values])
        flat = np.concatenate([np.empty(0, np.float32), *(value for value in values if value is not None)]).astype(np.float32)
        return pa.ListArray.from_arrays(offsets, flat, mask=missing)

    def close(self) -> None:
        self._writer.close()


def _arrow(pa: Any, kind: str) -> Any:
    plain = {"l": pa.int64, "d": pa.float64, "f": pa.float32, "s": pa.string}
    if kind in plain:
        return plain[kind]()
    if kind in "vt":
        return pa.list_(pa.float32() if kind == "v" else pa.string())
    fields = {"steps": STEPS, "verdicts": VERDICTS}[kind]
    return pa.list_(pa.struct([(name, _arrow(pa, inner)) for name, inner in fields.items()]))
