"""The store in one SQLite file: decisions, feedback, trajectories, arm sets and adapter state, by namespace."""

import json
import logging
import math
import operator
import os
import re
import sqlite3
import time
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

from sona.errors import SonaCorruptError, SonaError, SonaStoreError, SonaTypeError, SonaValueError, SonaWarning
from sona.store import pruning
from sona.store.checksums import arms_digest, state_digest, version_digest
from sona.store.connection import Connection
from sona.store.integrity import findings
from sona.store.lease import Lease
from sona.store.mounts import network_filesystem
from sona.store.rows import (
    DECISION_COLUMNS,
    FEEDBACK_COLUMNS,
    MAX_ID,
    TRAJECTORY_COLUMNS,
    Blob,
    DecisionRow,
    FeedbackRow,
    PruneReport,
    TrajectoryRow,
    VersionRow,
)

log = logging.getLogger("sona")

SEQUENCE_BITS = 40  # of a decision id; the session takes the 23 above
MIN_MAX_BYTES = 1 << 20
PRUNE_TO = 0.9  # of max_bytes, so that not every append prunes
RETENTION_EVERY = 3600.0  # s between looks at retention_days
ARM_SET_GRACE = 86400.0  # s that an unused arm set stays: a decision that names it may still be on its way from another process
CHUNK = 256  # rows read at a time, so that no reader holds the log back
VERSIONS_KEPT = 20  # of each name, beside the published one
PRUNE_ROWS = 2048  # rows deleted per transaction, so that no writer waits long
VACUUM_PAGES = 4096
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Row = TypeVar("Row", DecisionRow, FeedbackRow, TrajectoryRow, VersionRow)

# Without the hint SQLite walks all feedback of the namespace backwards.
_LAST_REWARD = "SELECT reward FROM feedback INDEXED BY feedback_id WHERE ns = {} AND id = {} AND seq < {}{} ORDER BY seq DESC LIMIT 1"


class SqliteStore:
    """One namespace of a store file.

    Any number of processes may append to a file at once; at most one holds the learning lease of a namespace. What
    `append` returned from is on the disk: a kill or a power loss at any moment loses none of it. Namespaces share the
    file and nothing else. All methods may be called from several threads; they take turns. A forked child must open
    the file again.

    Parameters
    ----------
    path : str or os.PathLike
        The file; made when absent, in a directory that exists. Beside it SQLite keeps ``-wal`` and ``-shm``, sona
        ``.lease-<namespace>``. To back up a store in use, copy it with SQLite's backup command, not file by file.
    namespace : str, optional
        Letters, digits, ``.``, ``_`` and ``-``, at most 64, the first a letter or digit.
    max_bytes : int, optional
        Bound on the namespace's share of the file, at least 2**20; the oldest decisions go first. None: no bound.
    retention_days : float, optional
        Rows older than this are deleted. None: kept for ever.
    busy_timeout_ms : int, optional
        How long to wait for other writers.
    clock : callable, optional
        Wall clock in seconds, for `retention_days`.

    Raises
    ------
    SonaValueError, SonaTypeError
        An unusable argument; ``":memory:"`` is one.
    SonaStoreError
        The file cannot be made, read or written.
    SonaCorruptError
        The file is not a SQLite database, or not sona's.
    SonaVersionError
        A newer sona wrote the file.

    Warns
    -----
    SonaWarning
        The file lies on a network file system, whose locks SQLite cannot rely on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        namespace: str = "default",
        max_bytes: int | None = None,
        retention_days: float | None = None,
        busy_timeout_ms: int = 5000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.namespace = _name("namespace", namespace)
        if max_bytes is not None and (type(max_bytes) is not int or max_bytes < MIN_MAX_BYTES):
            raise SonaValueError(f"expected max_bytes to be None or an int of at least {MIN_MAX_BYTES}, got {max_bytes!r}")
        if retention_days is not None and not 0 < retention_days < math.inf:
            raise SonaValueError(f"expected retention_days to be None or positive and finite, got {retention_days!r}")
        if type(busy_timeout_ms) is not int or not 0 <= busy_timeout_ms < 2**31:
            raise SonaValueError(f"expected busy_timeout_ms to be an int from 0 to 2**31 - 1, got {busy_timeout_ms!r}")
        self.max_bytes = max_bytes
        self.retention_days = retention_days
        self.pruned_decisions = 0  # by this object, explicit and automatic
        self.prune_failures = 0  # automatic pruning that could not write; tried again at the next append
        self._clock = clock
        self._session: int | None = None
        self._next_retention = -math.inf
        self._db = Connection(path, busy_timeout_ms=busy_timeout_ms)
        self.path = self._db.path
        try:
            self._ns = self._namespace_key()
        except BaseException:
            self._db.close()
            raise
        real = os.path.realpath(self.path)
        self._lease = Lease(f"{real}.lease-{self.namespace}")  # two names of one file must share it
        filesystem = network_filesystem(real)
        if filesystem is not None:
            warnings.warn(f"{self.path} is on {filesystem}: SQLite's locks are unsafe on network file systems", SonaWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<SqliteStore {self.path!r} namespace={self.namespace!r}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._db.closed

    def close(self) -> None:
        """Give back the lease and the file; a second call does nothing. Waits for a call that is under way."""
        try:
            self._db.close()
        finally:
            self._lease.release()

    def _namespace_key(self) -> int:
        find = "SELECT ns FROM namespaces WHERE name = ?"
        with self._db.reading() as conn:
            row = conn.execute(find, (self.namespace,)).fetchone()
        if row is None:
            with self._db.writing() as conn:
                conn.execute("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (self.namespace,))
                row = conn.execute(find, (self.namespace,)).fetchone()
        key: int = row[0]
        return key

    # -- sessions and the lease ------------------------------------------------------------------------------------

    @property
    def session(self) -> int:
        """A number no other opening of this file has or had; the upper bits of decision ids.

        ``id = session << 40 | sequence`` is unique over threads, processes and restarts.
        """
        with self._db.reading():  # one thread at a time
            if self._session is None:
                with self._db.writing() as conn:
                    conn.execute("UPDATE counters SET value = value + 1 WHERE name = 'session'")
                    session: int = conn.execute("SELECT value FROM counters WHERE name = 'session'").fetchone()[0]
                if session > MAX_ID >> SEQUENCE_BITS:
                    raise SonaStoreError(f"{self.path}: all {MAX_ID >> SEQUENCE_BITS} sessions of this file are used up")
                self._session = session
            return self._session

    @property
    def lease(self) -> bool:
        """True while this store holds the learning lease of its namespace."""
        return self._lease.held

    def try_lease(self) -> bool:
        """Take the learning lease if nobody else holds it; True when held afterwards.

        The kernel frees it when the process dies. Appending needs no lease, `put_state` does.
        """
        with self._db.reading():
            return self._lease.acquire()

    def release_lease(self) -> None:
        """Give the learning lease back."""
        with self._db.reading():
            self._lease.release()

    # -- decisions, feedback, trajectories -------------------------------------------------------------------------

    def append(
        self, decisions: Iterable[DecisionRow], feedback: Iterable[FeedbackRow] = (), trajectories: Iterable[TrajectoryRow] = ()
    ) -> int:
        """Write all rows in one transaction; they are durable when this returns.

        A decision whose id is there already stays as it was, so a group may be written again. Several feedback rows may
        share an id: the last counts. A trajectory replaces the one of its id.

        Returns
        -------
        int
            The highest feedback number so far; 0 before any feedback.

        Raises
        ------
        SonaTypeError
            Something that is not a row; nothing is written.
        SonaStoreError
            Disk full, read-only, locked for too long; nothing is written and the store stays usable.
        """
        new_decisions = _rows(DecisionRow, decisions)
        new_feedback = _rows(FeedbackRow, feedback)
        new_trajectories = _rows(TrajectoryRow, trajectories)
        ns = self._ns
        with self._db.writing() as conn:
            last: int = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (ns,)).fetchone()[0]
            conn.executemany(
                f"INSERT INTO decisions (ns, {DECISION_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ns, id) DO NOTHING",
                ((ns, d.id, d.time, d.x, d.arm, d.arm_set, d.candidates, d.propensity, d.proposals, d.source) for d in new_decisions),
            )
            if new_feedback:
                conn.executemany(
                    "INSERT INTO feedback (ns, seq, id, reward, time, source) VALUES (?, ?, ?, ?, ?, ?)",
                    ((ns, seq, f.id, f.reward, f.time, f.source) for seq, f in enumerate(new_feedback, last + 1)),
                )
                last += len(new_feedback)
                conn.execute("UPDATE namespaces SET last_seq = ? WHERE ns = ?", (last, ns))
            conn.executemany(
                """INSERT INTO trajectories (ns, id, time, payload, quality) VALUES (?, ?, ?, ?, ?)
                   ON CONFLICT (ns, id) DO UPDATE SET time = excluded.time, payload = excluded.payload, quality = excluded.quality""",
                ((ns, t.id, t.time, t.payload, t.quality) for t in new_trajectories),
            )
        self._prune_when_due(len(new_decisions) + len(new_feedback) + len(new_trajectories))
        return last

    def decision(self, id: SupportsIndex) -> DecisionRow | None:
        """The decision of that id; None when unknown, pruned or forgotten."""
        with self._db.reading() as conn:
            row = conn.execute(f"SELECT {DECISION_COLUMNS} FROM decisions WHERE ns = ? AND id = ?", (self._ns, _id(id))).fetchone()
        return None if row is None else self._row(DecisionRow, row)

    def decisions_of(self, ids: Iterable[int]) -> dict[int, DecisionRow]:
        """The decisions of those ids that are known, by id; at most 1024 ids."""
        wanted = [_id(one) for one in ids]
        listed = ", ".join("?" * len(wanted))
        with self._db.reading() as conn:
            rows = conn.execute(
                f"SELECT {DECISION_COLUMNS} FROM decisions WHERE ns = ? AND id IN ({listed})", (self._ns, *wanted)
            ).fetchall()
        return {row[0]: self._row(DecisionRow, row) for row in rows}

    def _row(self, kind: type[Row], values: tuple[Any, ...]) -> Row:
        try:
            return kind(*values)
        except (SonaTypeError, SonaValueError) as exc:
            raise SonaCorruptError(f"{self.path}: a row of namespace {self.namespace!r} is damaged: {exc}") from exc

    def decisions(self, limit: int | None = None, *, without: Collection[str] = ()) -> Iterator[tuple[DecisionRow, float | None]]:
        """The newest `limit` decisions (None: all), oldest first, each with its last reward that is of none of these sources, or None.

        Reads in pieces: rows that are added or deleted meanwhile may or may not appear, each row at most once.
        """
        if limit is not None:
            _count("limit", limit)
        return self._decisions(limit, tuple(without))

    def _decisions(self, limit: int | None, without: tuple[str, ...]) -> Iterator[tuple[DecisionRow, float | None]]:
        reward = _LAST_REWARD.format("decisions.ns", "decisions.id", MAX_ID, _of_others(without))
        for row in self._oldest_first("decisions", f"{DECISION_COLUMNS}, ({reward})", limit, without):
            yield self._row(DecisionRow, row[:-1]), row[-1]

    def _oldest_first(self, table: str, columns: str, limit: int | None, given: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The newest `limit` rows of `table`, oldest first, CHUNK at a time by (time, pos); `given` goes into `columns`."""
        time, pos, left = -math.inf, -1, MAX_ID
        if limit is not None:
            left = limit
            with self._db.reading() as conn:
                before = conn.execute(
                    f"SELECT time, pos FROM {table} WHERE ns = ? ORDER BY time DESC, pos DESC LIMIT 1 OFFSET ?", (self._ns, limit)
                ).fetchone()
            if before is not None:
                time, pos = before
        # Two queries because SQLite seeks in (ns, time, pos) by all three only where time is fixed.
        same_time = f"SELECT time, pos, {columns} FROM {table} WHERE ns = ? AND time = ? AND pos > ? ORDER BY pos LIMIT ?"
        later = f"SELECT time, pos, {columns} FROM {table} WHERE ns = ? AND time > ? ORDER BY time, pos LIMIT ?"
        while left > 0:
            most = min(left, CHUNK)
            with self._db.reading() as conn:
                rows = conn.execute(same_time, (*given, self._ns, time, pos, most)).fetchall()
                if len(rows) < most:
                    rows += conn.execute(later, (*given, self._ns, time, most - len(rows))).fetchall()
            if not rows:
                return
            time, pos = rows[-1][:2]
            left -= len(rows)
            for row in rows:
                yield row[2:]

    def reward(self, id: SupportsIndex, before: int | None = None, *, without: Collection[str] = ()) -> float | None:
        """
        The last reward reported for that id, of those with a number below `before` if given and of none of these sources; None when
        there is none.
        """
        if before is not None:
            _count("before", before)
        with self._db.reading() as conn:
            row = conn.execute(
                _LAST_REWARD.format("?", "?", "?", _of_others(without)), (self._ns, _id(id), MAX_ID if before is None else before, *without)
            ).fetchone()
        return None if row is None else row[0]

    def feedback_after(self, seq: int, limit: int = 1024) -> list[tuple[int, FeedbackRow]]:
        """At most `limit` feedback rows with a number above `seq`, ascending, as (number, row).

        Numbers grow in the order of commits: a reader that goes on from the last number it saw misses nothing.
        """
        _count("seq", seq)
        _count("limit", limit)
        with self._db.reading() as conn:
            rows = conn.execute(
                f"SELECT seq, {FEEDBACK_COLUMNS} FROM feedback WHERE ns = ? AND seq > ? ORDER BY seq LIMIT ?", (self._ns, seq, limit)
            ).fetchall()
        return [(row[0], self._row(FeedbackRow, row[1:])) for row in rows]

    def last_seq(self) -> int:
        """The highest feedback number so far, also when its row is gone; 0 before any feedback."""
        with self._db.reading() as conn:
            last: int = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
        return last

    def trajectory(self, id: SupportsIndex) -> TrajectoryRow | None:
        """The trajectory of that id; None when unknown, pruned or forgotten."""
        with self._db.reading() as conn:
            row = conn.execute(f"SELECT {TRAJECTORY_COLUMNS} FROM trajectories WHERE ns = ? AND id = ?", (self._ns, _id(id))).fetchone()
        return None if row is None else self._row(TrajectoryRow, row)

    def trajectories(self, limit: int | None = None) -> Iterator[TrajectoryRow]:
        """The newest `limit` trajectories (None: all), oldest first; read in pieces, as `decisions`."""
        if limit is not None:
            _count("limit", limit)
        return self._trajectories(limit)

    def _trajectories(self, limit: int | None) -> Iterator[TrajectoryRow]:
        for row in self._oldest_first("trajectories", TRAJECTORY_COLUMNS, limit):
            yield self._row(TrajectoryRow, row)

    def decision_times(self) -> list[float]:
        """Time of every decision, ascending."""
        with self._db.reading() as conn:
            return [row[0] for row in conn.execute("SELECT time FROM decisions WHERE ns = ? ORDER BY time", (self._ns,))]

    def sources(self) -> dict[str, tuple[int, float]]:
        """Sources of the feedback that is kept: number of rewards, and the time of the first."""
        with self._db.reading() as conn:
            rows = conn.execute(
                "SELECT source, count(*), min(time) FROM feedback WHERE ns = ? AND source IS NOT NULL GROUP BY source ORDER BY source",
                (self._ns,),
            ).fetchall()
        return {source: (count, first) for source, count, first in rows}

    def whole(self) -> bool:
        """Whether every reward that ever came is still here or was deleted by `forget`, `forget_source` or `replace_without`."""
        with self._db.reading() as conn:
            (kept,) = conn.execute("SELECT count(*) FROM feedback WHERE ns = ?", (self._ns,)).fetchone()
            (last,) = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()
            return bool(kept + self._counter(conn, "forgotten") == last)

    def _counter(self, conn: sqlite3.Connection, name: str) -> int:
        row = conn.execute("SELECT value FROM counters WHERE name = ?", (f"{name}:{self._ns}",)).fetchone()
        return 0 if row is None else row[0]

    def _count_up(self, conn: sqlite3.Connection, name: str, value: int) -> None:
        conn.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (f"{name}:{self._ns}", value),
        )

    def count(self) -> int:
        """Decisions in the namespace."""
        with self._db.reading() as conn:
            n: int = conn.execute("SELECT count(*) FROM decisions WHERE ns = ?", (self._ns,)).fetchone()[0]
        return n

    # -- adapter state and arm sets --------------------------------------------------------------------------------

    def put_state(
        self,
        name: str,
        blob: Blob,
        applied_seq: int,
        *,
        publish: int | None = None,
        vectors: Iterable[tuple[int, Blob]] = (),
        drop: Iterable[int] | None = (),
    ) -> None:
        """Keep `blob` as the state of that name, learned from the feedback up to number `applied_seq`; durable on return.

        The sound state before it is kept as well. Takes the learning lease when it is free. With `publish`, the version of that number
        becomes the published one in the same transaction; so do `vectors`, (id, bytes), become what `vectors_of` returns for these ids, and
        those of the ids `drop` are deleted; None: all others.

        Raises
        ------
        SonaStoreError
            Another store holds the lease, there is no such version, or the write failed; the old state stays.
        """
        _name("state name", name)
        if type(blob) is not Blob:
            raise SonaTypeError(f"expected the state to be bytes, got {type(blob).__name__}")
        _count("applied_seq", applied_seq)
        self._lead()
        with self._db.writing() as conn:
            if publish is not None:
                self._publish(conn, name, publish)
            if drop is None:
                conn.execute("DELETE FROM vectors WHERE ns = ? AND name = ?", (self._ns, name))
            else:
                conn.executemany("DELETE FROM vectors WHERE ns = ? AND name = ? AND id = ?", ((self._ns, name, one) for one in drop))
            conn.executemany(
                """INSERT INTO vectors (ns, name, id, crc, vector) VALUES (?, ?, ?, ?, ?)
                   ON CONFLICT (ns, name, id) DO UPDATE SET crc = excluded.crc, vector = excluded.vector""",
                ((self._ns, name, one, zlib.crc32(vector), vector) for one, vector in vectors),
            )
            kept, newest = None, 0
            for generation, seq, digest, old in self._generations(conn, name):
                newest = max(newest, generation)
                if kept is None and digest == state_digest(seq, old):
                    kept = generation
            conn.execute("DELETE FROM state WHERE ns = ? AND name = ? AND generation IS NOT ?", (self._ns, name, kept))
            conn.execute(
                "INSERT INTO state (ns, name, generation, applied_seq, sha256, blob) VALUES (?, ?, ?, ?, ?, ?)",
                (self._ns, name, newest + 1, applied_seq, state_digest(applied_seq, blob), blob),
            )

    def get_state(self, name: str) -> tuple[Blob, int] | None:
        """(blob, applied_seq) of the newest sound state of that name; None when there never was one.

        Raises
        ------
        SonaCorruptError
            No kept state matches its checksum.

        Warns
        -----
        SonaWarning
            The newest state is corrupt and the one before it is returned.
        """
        with self._db.reading() as conn:
            generations = self._generations(conn, name)
        for age, (_, seq, digest, blob) in enumerate(generations):
            if digest == state_digest(seq, blob):
                if age:
                    text = f"{self.path}: state {name!r} does not match its checksum; going back to the one before it (feedback {seq})"
                    warnings.warn(text, SonaWarning, stacklevel=2)
                return blob, seq
        if generations:
            raise SonaCorruptError(f"{self.path}: no kept state {name!r} matches its checksum")
        return None

    def vectors_of(self, name: str) -> Iterator[tuple[int, Blob]]:
        """(id, bytes) of the vectors that were put with the state of that name, by id; those that are damaged are left out."""
        last = -1
        while True:
            with self._db.reading() as conn:
                rows = conn.execute(
                    "SELECT id, crc, vector FROM vectors WHERE ns = ? AND name = ? AND id > ? ORDER BY id LIMIT ?",
                    (self._ns, name, last, CHUNK),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from ((id, vector) for id, crc, vector in rows if crc == zlib.crc32(vector))

    def _lead(self) -> None:
        if not self.try_lease():
            raise SonaStoreError(f"{self.path}: another process or store holds the learning lease of namespace {self.namespace!r}")

    def _generations(self, conn: sqlite3.Connection, name: str) -> list[tuple[int, int, Blob, Blob]]:
        """(generation, applied_seq, sha256, blob), newest first."""
        return conn.execute(
            "SELECT generation, applied_seq, sha256, blob FROM state WHERE ns = ? AND name = ? ORDER BY generation DESC", (self._ns, name)
        ).fetchall()

    def put_arms(self, names: Sequence[str], vectors: Blob, costs: Blob) -> int:
        """Keep an arm set and make it the latest; the same content always has the same version.

        Parameters
        ----------
        names : sequence of str
            K arm names.
        vectors, costs : bytes
            Opaque here: raw (K, d) vectors and K costs.

        Returns
        -------
        int
            The version, from 1 on.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise SonaTypeError("expected arm names as a sequence of str")
        if type(vectors) is not Blob or type(costs) is not Blob:
            raise SonaTypeError(f"expected vectors and costs as bytes, got {type(vectors).__name__} and {type(costs).__name__}")
        listed = json.dumps(list(names)).encode()
        digest = arms_digest(listed, vectors, costs)
        with self._db.writing() as conn:
            row = conn.execute("SELECT version FROM arms WHERE ns = ? AND sha256 = ?", (self._ns, digest)).fetchone()
            if row is None:
                conn.execute("UPDATE namespaces SET last_arm_set = last_arm_set + 1 WHERE ns = ?", (self._ns,))
                version: int = conn.execute("SELECT last_arm_set FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
                conn.execute(
                    "INSERT INTO arms (ns, version, time, sha256, names, vectors, costs) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (self._ns, version, self._clock(), digest, listed, vectors, costs),
                )
            else:
                version = row[0]
                conn.execute("UPDATE arms SET time = ? WHERE ns = ? AND version = ?", (self._clock(), self._ns, version))
            conn.execute("UPDATE namespaces SET arm_set = ? WHERE ns = ?", (version, self._ns))
        return version

    def arms(self, version: SupportsIndex) -> tuple[tuple[str, ...], Blob, Blob] | None:
        """(names, vectors, costs) of an arm set; None when the version is unknown or was pruned.

        Raises
        ------
        SonaCorruptError
            The arm set does not match its checksum.
        """
        with self._db.reading() as conn:
            row = conn.execute(
                "SELECT sha256, names, vectors, costs FROM arms WHERE ns = ? AND version = ?", (self._ns, _id(version))
            ).fetchone()
        if row is None:
            return None
        digest, listed, vectors, costs = row
        if digest != arms_digest(listed, vectors, costs):
            raise SonaCorruptError(f"{self.path}: arm set {version} does not match its checksum")
        return tuple(json.loads(listed)), vectors, costs

    def latest_arms(self) -> tuple[int, tuple[str, ...], Blob, Blob] | None:
        """(version, names, vectors, costs) of the arm set put last; None before the first."""
        with self._db.reading() as conn:
            version: int = conn.execute("SELECT arm_set FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
            found = self.arms(version)
        return None if found is None else (version, *found)

    # -- versions --------------------------------------------------------------------------------------------------

    def put_version(self, name: str, row: VersionRow) -> int:
        """Keep a version; durable on return. Returns its number, from 1 on, which no other version of that name has or had.

        The newest 20 and the published one are kept, older ones are deleted. Takes the learning lease when it is free.

        Raises
        ------
        SonaStoreError
            Another store holds the lease, or the write failed; nothing has changed.
        """
        _name("state name", name)
        (row,) = _rows(VersionRow, [row])
        self._lead()
        with self._db.writing() as conn:
            newest = conn.execute("SELECT max(number) FROM versions WHERE ns = ? AND name = ?", (self._ns, name)).fetchone()[0]
            number: int = max(newest or 0, self._counter(conn, f"versions:{name}")) + 1
            content = (name, number, row.parent, row.time, row.verdict, row.reason, row.about, row.factors)
            conn.execute(
                "INSERT INTO versions (ns, sha256, name, number, parent, time, verdict, reason, about, factors)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._ns, version_digest(*content), *content),
            )
            conn.execute(
                "DELETE FROM versions WHERE ns = ? AND name = ? AND number <= ? AND NOT published", (self._ns, name, number - VERSIONS_KEPT)
            )
        return number

    def versions(self, name: str) -> list[tuple[int, VersionRow]]:
        """(number, version) of that name, oldest first.

        Raises
        ------
        SonaCorruptError
            One does not match its checksum.
        """
        with self._db.reading() as conn:
            found = conn.execute(
                "SELECT sha256, name, number, parent, time, verdict, reason, about, factors FROM versions"
                " WHERE ns = ? AND name = ? ORDER BY number",
                (self._ns, name),
            ).fetchall()
        result = []
        for digest, *content in found:
            if digest != version_digest(*content):
                raise SonaCorruptError(f"{self.path}: version {content[1]} of {name!r} does not match its checksum")
            result.append((content[1], VersionRow(*content[2:])))
        return result

    def published(self, name: str) -> int | None:
        """Number of the published version of that name; None before the first."""
        with self._db.reading() as conn:
            row = conn.execute("SELECT number FROM versions WHERE ns = ? AND name = ? AND published", (self._ns, name)).fetchone()
        return None if row is None else row[0]

    def _publish(self, conn: sqlite3.Connection, name: str, number: int) -> None:
        conn.execute("UPDATE versions SET published = 0 WHERE ns = ? AND name = ? AND published", (self._ns, name))
        one = conn.execute("UPDATE versions SET published = 1 WHERE ns = ? AND name = ? AND number = ?", (self._ns, name, number))
        if one.rowcount != 1:
            raise SonaStoreError(f"{self.path}: there is no version {number} of {name!r}")

    def state_names(self) -> list[str]:
        """Names under which there is a state, sorted."""
        with self._db.reading() as conn:
            return [row[0] for row in conn.execute("SELECT DISTINCT name FROM state WHERE ns = ? ORDER BY name", (self._ns,))]

    # -- forgetting, bounds, integrity -----------------------------------------------------------------------------

    def forget(self, id: SupportsIndex) -> int:
        """Delete a decision, its feedback and trajectory, and overwrite their bytes in the file and its log.

        What was learned from it stays in the adapter state.

        Returns
        -------
        int
            Rows deleted.

        Raises
        ------
        SonaStoreError
            The write failed, or a reader in another process kept the log in use: the rows are deleted then, but the log
            may still hold their bytes; call again.
        """
        with self._db.writing() as conn:
            decisions, feedback, trajectories = pruning.delete_ids(conn, self._ns, (_id(id),))
            self._count_up(conn, "forgotten", feedback)
        self.scrub_log()
        return decisions + feedback + trajectories

    def forget_source(self, source: str) -> int:
        """Delete every decision of that source with its feedback and trajectory, and all feedback the source gave; as `forget`."""
        if not isinstance(source, str):
            raise SonaTypeError(f"expected source to be a str, got {type(source).__name__}")
        with self._db.writing() as conn:
            gone = sum(self._delete_source(conn, source))
        self.scrub_log()
        return gone

    def _delete_source(self, conn: sqlite3.Connection, source: str) -> tuple[int, int, int]:
        """Decisions, feedback and trajectories deleted."""
        ids = conn.execute("SELECT id FROM decisions WHERE ns = ? AND source = ?", (self._ns, source)).fetchall()
        decisions, feedback, trajectories = pruning.delete_ids(conn, self._ns, (row[0] for row in ids))
        feedback += conn.execute("DELETE FROM feedback WHERE ns = ? AND source = ?", (self._ns, source)).rowcount
        self._count_up(conn, "forgotten", feedback)
        return decisions, feedback, trajectories

    def replace_without(
        self, source: str, name: str, blob: Blob, applied_seq: int, *, versions_since: float, keep: Collection[str] = ()
    ) -> tuple[int, int] | None:
        """
        Delete a source as `forget_source` does, together with every state and the versions that may hold what it taught, and keep `blob`,
        learned without it from the feedback up to number `applied_seq`; all of it in one transaction, or nothing.

        Feedback numbers go up by one, so that readers of states see that there is a newer one. Call `scrub_log` afterwards.

        Parameters
        ----------
        versions_since : float
            Versions of that name from this time on (wall clock, s) are deleted; their numbers are not given out again.
        keep : collection of str
            Names of states that stay.

        Returns
        -------
        (int, int) or None
            Rewards and versions deleted; None, and nothing has changed, when there is feedback with a number above `applied_seq`.

        Raises
        ------
        SonaStoreError
            Another store holds the lease, or the write failed; nothing has changed.
        """
        _name("state name", name)
        _count("applied_seq", applied_seq)
        self._lead()
        ns = self._ns
        with self._db.writing() as conn:
            if conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (ns,)).fetchone()[0] != applied_seq:
                return None
            _, feedback, _ = self._delete_source(conn, source)
            conn.execute("UPDATE namespaces SET last_seq = last_seq + 1 WHERE ns = ?", (ns,))
            self._count_up(conn, "forgotten", 1)
            newest = conn.execute("SELECT max(number) FROM versions WHERE ns = ? AND name = ?", (ns, name)).fetchone()[0] or 0
            self._count_up(conn, f"versions:{name}", max(newest - self._counter(conn, f"versions:{name}"), 0))
            versions = conn.execute("DELETE FROM versions WHERE ns = ? AND name = ? AND time >= ?", (ns, name, versions_since)).rowcount
            generation = conn.execute("SELECT max(generation) FROM state WHERE ns = ? AND name = ?", (ns, name)).fetchone()[0] or 0
            stays = ", ".join("?" * len(keep))
            for table in ("state", "vectors"):
                conn.execute(f"DELETE FROM {table} WHERE ns = ? AND name NOT IN ({stays})", (ns, *keep))
            conn.execute(
                "INSERT INTO state (ns, name, generation, applied_seq, sha256, blob) VALUES (?, ?, ?, ?, ?, ?)",
                (ns, name, generation + 1, applied_seq + 1, state_digest(applied_seq + 1, blob), blob),
            )
        return feedback, versions

    def scrub_log(self) -> None:
        """Overwrite the log, which may still hold bytes of deleted rows; SonaStoreError when a reader keeps it in use: call again."""
        with self._db.reading() as conn:
            if conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise SonaStoreError(
                    f"{self.path}: the rows are deleted, but a reader keeps the log that still holds their bytes; call again"
                )

    def bytes(self) -> int:
        """The namespace's share of the file's used pages, which `max_bytes` bounds."""
        with self._db.reading() as conn:
            return pruning.live_bytes(conn, self._ns)

    def file_bytes(self) -> int:
        """Size on disk of the file and its log, over all namespaces."""
        with self._db.reading():
            return sum(os.path.getsize(name) for name in (self.path, f"{self.path}-wal") if os.path.exists(name))

    def prune(self) -> PruneReport:
        """Enforce `retention_days` and `max_bytes`, oldest decisions first, and give unused space back to the file system.

        `append` does the same in small steps. Adapter state, versions and the current arm set are never pruned, so
        ``bytes_after`` may stay above a `max_bytes` smaller than those.
        """
        before = self.bytes()
        total = [0, 0, 0]
        while self._prune_step(PRUNE_ROWS, total, target=self.max_bytes):
            pass
        with self._db.writing() as conn:
            arm_sets = pruning.drop_arm_sets(conn, self._ns, self._clock() - ARM_SET_GRACE)
        with self._db.reading() as conn:
            pruning.free_pages(conn, 2**31 - 1)
        return PruneReport(total[0], total[1], total[2], arm_sets, before, self.bytes())

    def _prune_step(self, rows: int, total: list[int], *, target: float | None, retention: bool = True) -> bool:
        """One short transaction of pruning; adds the rows deleted to `total`, True when there may be more to do."""
        deleted = (0, 0, 0)
        with self._db.writing() as conn:
            if retention and self.retention_days is not None:
                deleted = pruning.drop_before(conn, self._ns, self._clock() - self.retention_days * 86400.0, rows)
            if not any(deleted) and target is not None:
                excess = pruning.live_bytes(conn, self._ns) - target
                if excess > 0:
                    deleted = pruning.drop_oldest(conn, self._ns, int(excess), rows)
        for kind, n in enumerate(deleted):
            total[kind] += n
        self.pruned_decisions += deleted[0]
        return any(deleted)

    def _prune_when_due(self, appended: int) -> None:
        """Keeps up with `appended` new rows; never fails the append that is durable already."""
        try:
            now = self._clock()
            retention = self.retention_days is not None and not self._next_retention - RETENTION_EVERY <= now < self._next_retention
            full = self.max_bytes is not None and self.bytes() > self.max_bytes
            if not retention and not full:
                return
            target = self.max_bytes * PRUNE_TO if self.max_bytes is not None and full else None
            more = self._prune_step(max(PRUNE_ROWS, 2 * appended), [0, 0, 0], target=target, retention=retention)
            if retention and not more:
                self._next_retention = now + RETENTION_EVERY
            if more:
                with self._db.writing() as conn:
                    pruning.drop_arm_sets(conn, self._ns, now - ARM_SET_GRACE)
                with self._db.reading() as conn:
                    pruning.free_pages(conn, VACUUM_PAGES)
        except SonaError as exc:
            self.prune_failures += 1
            log.warning("%s: pruning failed, to be tried again at the next append: %s", self.path, exc)

    def integrity(self) -> list[str]:
        """What is wrong with the file or this namespace, one sentence each; empty when all is sound. Reads everything."""
        found: list[str] = []
        try:
            with self._db.reading() as conn:
                found.extend(findings(conn, self._ns, self.path))
        except (SonaCorruptError, SonaStoreError) as exc:
            found.append(f"unreadable: {exc}")
        return found


def _name(what: str, value: str) -> str:
    if not isinstance(value, str):
        raise SonaTypeError(f"expected {what} to be a str, got {type(value).__name__}")
    if not NAME.fullmatch(value):
        raise SonaValueError(
            f"expected {what} of 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit, got {value[:80]!r}"
        )
    return value


def _id(value: SupportsIndex) -> int:
    """`value` as an int; -1, which no row has, where no row can have it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise SonaTypeError(f"expected an int, got {type(value).__name__}") from None
    return number if 0 <= number <= MAX_ID else -1


def _of_others(sources: Collection[str]) -> str:
    return f" AND (source IS NULL OR source NOT IN ({', '.join('?' * len(sources))}))" if sources else ""


def _count(what: str, value: int) -> None:
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise SonaValueError(f"expected {what} to be an int from 0 to 2**63 - 1, got {value!r}")


def _rows(kind: type[Row], rows: Iterable[Row]) -> list[Row]:
    listed = list(rows)
    for row in listed:
        if type(row) is not kind:
            raise SonaTypeError(f"expected rows of type {kind.__name__}, got {type(row).__name__}")
    return listed
