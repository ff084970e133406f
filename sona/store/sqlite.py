"""The store in one SQLite file: decisions, feedback, trajectories, arm sets and adapter state, by namespace."""

import ctypes
import hashlib
import json
import logging
import math
import operator
import os
import re
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

from sona.errors import (
    SonaClosedError,
    SonaCorruptError,
    SonaError,
    SonaStoreError,
    SonaTypeError,
    SonaValueError,
    SonaVersionError,
    SonaWarning,
)
from sona.store import pruning, schema
from sona.store.lease import Lease
from sona.store.mounts import network_filesystem
from sona.store.rows import MAX_ID, Blob, DecisionRow, FeedbackRow, PruneReport, TrajectoryRow

log = logging.getLogger("sona")

SEQUENCE_BITS = 40  # of a decision id; the session takes the 23 above
MIN_MAX_BYTES = 1 << 20
PRUNE_TO = 0.9  # of max_bytes, so that not every append prunes
RETENTION_EVERY = 3600.0  # s between looks at retention_days
ARM_SET_GRACE = 86400.0  # s that an unused arm set stays: a decision that names it may still be on its way from another process
CHUNK = 256  # rows read at a time, so that no reader holds the log back
PRUNE_ROWS = 2048  # rows deleted per transaction, so that no writer waits long
VACUUM_PAGES = 4096
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Row = TypeVar("Row", DecisionRow, FeedbackRow, TrajectoryRow)

_DECISION = "id, time, x, arm, arm_set, candidates, propensity, proposals, source"
_open: "weakref.WeakSet[SqliteStore]" = weakref.WeakSet()


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
        self.path = _file_path(path)
        self.max_bytes = max_bytes
        self.retention_days = retention_days
        self.busy_timeout_ms = busy_timeout_ms
        self.pruned_decisions = 0  # by this object, explicit and automatic
        self.prune_failures = 0  # automatic pruning that could not write; tried again at the next append
        self._clock = clock
        self._session: int | None = None
        self._next_retention = -math.inf
        self._closed_because: str | None = None
        self._lock = threading.RLock()
        filesystem = network_filesystem(os.path.realpath(self.path))
        if filesystem is not None:
            warnings.warn(f"{self.path} is on {filesystem}: SQLite's locks are unsafe on network file systems", SonaWarning, stacklevel=2)
        self._conn: sqlite3.Connection | None = None
        with self._translated():
            conn = sqlite3.connect(self.path, timeout=busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False)
            try:
                schema.prepare(conn, self.path, busy_timeout_ms=busy_timeout_ms)
                self._ns = _namespace_key(conn, self.namespace)
            except BaseException:
                conn.close()
                raise
            self._conn = conn
        # Two names of one file must share a lease.
        self._lease = Lease(f"{os.path.realpath(self.path)}.lease-{self.namespace}")
        _open.add(self)

    def __repr__(self) -> str:
        state = "" if self._closed_because is None else f", {self._closed_because}"
        return f"<SqliteStore {self.path!r} namespace={self.namespace!r}{state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- connection and transactions -------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    def _error(self, exc: sqlite3.Error) -> SonaError:
        code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return SonaCorruptError(f"{self.path}: expected a sound SQLite database, got: {exc}")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return SonaStoreError(f"{self.path}: another writer held the file for more than {self.busy_timeout_ms} ms")
        return SonaStoreError(f"{self.path}: {exc}")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            if self._conn is None:
                raise SonaClosedError(f"{self.path}: the store {self._closed_because}")
            yield self._conn

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or nothing when the block or the commit raises."""
        with self._reading() as conn:
            conn.execute("BEGIN IMMEDIATE")
            try:
                version = conn.execute("PRAGMA user_version").fetchone()[0]
                if version != schema.current_version():  # migrated by a newer sona since this one opened it
                    raise SonaVersionError(
                        f"{self.path}: expected schema version {schema.current_version()}, got {version}: a newer sona took over"
                    )
                yield conn
                conn.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if conn.in_transaction:
                        conn.execute("ROLLBACK")
                raise

    @property
    def closed(self) -> bool:
        return self._closed_because is not None

    def close(self) -> None:
        """Give back the lease and the file; a second call does nothing. Waits for a call that is under way."""
        with self._lock:
            conn, self._conn = self._conn, None
            if conn is None:
                return
            self._closed_because = "is closed"
            _open.discard(self)
            self._lease.release()
            with self._translated():
                conn.close()

    def _disown(self) -> None:
        """Runs in a forked child. SQLite forbids a connection to cross a fork, even to be closed: closing could remove
        the parent's log. A reference that is never given back keeps it from being closed."""
        if self._conn is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._conn))
            self._conn = None
        self._lock = threading.RLock()  # a thread that does not exist here may hold the old one
        self._closed_because = "was opened by the parent of this forked process, open it again"
        self._lease.disown()

    # -- sessions and the lease ------------------------------------------------------------------------------------

    @property
    def session(self) -> int:
        """A number no other opening of this file has or had; the upper bits of decision ids.

        ``id = session << 40 | sequence`` is unique over threads, processes and restarts.
        """
        with self._lock:
            if self._session is None:
                with self._writing() as conn:
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
        with self._reading():
            return self._lease.acquire()

    def release_lease(self) -> None:
        """Give the learning lease back."""
        with self._reading():
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
        with self._writing() as conn:
            last: int = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (ns,)).fetchone()[0]
            conn.executemany(
                f"INSERT INTO decisions (ns, {_DECISION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ns, id) DO NOTHING",
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
        with self._reading() as conn:
            row = conn.execute(f"SELECT {_DECISION} FROM decisions WHERE ns = ? AND id = ?", (self._ns, _id(id))).fetchone()
        return None if row is None else self._row(DecisionRow, row)

    def _row(self, kind: type[Row], values: tuple[Any, ...]) -> Row:
        try:
            return kind(*values)
        except (SonaTypeError, SonaValueError) as exc:
            raise SonaCorruptError(f"{self.path}: a row of namespace {self.namespace!r} is damaged: {exc}") from exc

    def decisions(self, limit: int | None = None) -> Iterator[tuple[DecisionRow, float | None]]:
        """The newest `limit` decisions (None: all), oldest first, each with its last reward or None.

        Reads in pieces: rows that are added or deleted meanwhile may or may not appear, each row at most once.
        """
        if limit is not None:
            _count("limit", limit)
        return self._decisions(limit)

    def _decisions(self, limit: int | None) -> Iterator[tuple[DecisionRow, float | None]]:
        left = MAX_ID if limit is None else limit
        after = self._before_newest("decisions", limit)
        while left > 0:
            with self._reading() as conn:
                rows = conn.execute(
                    f"""SELECT time, pos, {_DECISION},
                        (SELECT reward FROM feedback f WHERE f.ns = d.ns AND f.id = d.id ORDER BY f.seq DESC LIMIT 1)
                        FROM decisions d WHERE ns = ? AND (time, pos) > (?, ?) ORDER BY time, pos LIMIT ?""",
                    (self._ns, *after, min(left, CHUNK)),
                ).fetchall()
            if not rows:
                return
            after, left = rows[-1][:2], left - len(rows)
            for row in rows:
                yield self._row(DecisionRow, row[2:-1]), row[-1]

    def _before_newest(self, table: str, limit: int | None) -> tuple[float, int]:
        """(time, pos) just before the newest `limit` rows of `table`."""
        if limit is None:
            return -math.inf, -1
        with self._reading() as conn:
            row = conn.execute(
                f"SELECT time, pos FROM {table} WHERE ns = ? ORDER BY time DESC, pos DESC LIMIT 1 OFFSET ?", (self._ns, limit)
            ).fetchone()
        return (-math.inf, -1) if row is None else row

    def reward(self, id: SupportsIndex, before: int | None = None) -> float | None:
        """The last reward reported for that id, of those with a number below `before` if given; None when there is none."""
        last = "SELECT reward FROM feedback WHERE ns = ? AND id = ? AND seq < ? ORDER BY seq DESC LIMIT 1"
        with self._reading() as conn:
            row = conn.execute(last, (self._ns, _id(id), MAX_ID if before is None else before)).fetchone()
        return None if row is None else row[0]

    def feedback_after(self, seq: int, limit: int = 1024) -> list[tuple[int, FeedbackRow]]:
        """At most `limit` feedback rows with a number above `seq`, ascending, as (number, row).

        Numbers grow in the order of commits: a reader that goes on from the last number it saw misses nothing.
        """
        _count("seq", seq)
        _count("limit", limit)
        with self._reading() as conn:
            rows = conn.execute(
                "SELECT seq, id, reward, time, source FROM feedback WHERE ns = ? AND seq > ? ORDER BY seq LIMIT ?", (self._ns, seq, limit)
            ).fetchall()
        return [(row[0], self._row(FeedbackRow, row[1:])) for row in rows]

    def last_seq(self) -> int:
        """The highest feedback number so far, also when its row is gone; 0 before any feedback."""
        with self._reading() as conn:
            last: int = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
        return last

    def trajectories(self, limit: int | None = None) -> Iterator[TrajectoryRow]:
        """The newest `limit` trajectories (None: all), oldest first; read in pieces, as `decisions`."""
        if limit is not None:
            _count("limit", limit)
        return self._trajectories(limit)

    def _trajectories(self, limit: int | None) -> Iterator[TrajectoryRow]:
        left = MAX_ID if limit is None else limit
        after = self._before_newest("trajectories", limit)
        while left > 0:
            with self._reading() as conn:
                rows = conn.execute(
                    """SELECT time, pos, id, time, payload, quality FROM trajectories
                       WHERE ns = ? AND (time, pos) > (?, ?) ORDER BY time, pos LIMIT ?""",
                    (self._ns, *after, min(left, CHUNK)),
                ).fetchall()
            if not rows:
                return
            after, left = rows[-1][:2], left - len(rows)
            for row in rows:
                yield self._row(TrajectoryRow, row[2:])

    def count(self) -> int:
        """Decisions in the namespace."""
        with self._reading() as conn:
            n: int = conn.execute("SELECT count(*) FROM decisions WHERE ns = ?", (self._ns,)).fetchone()[0]
        return n

    # -- adapter state and arm sets --------------------------------------------------------------------------------

    def put_state(self, name: str, blob: Blob, applied_seq: int) -> None:
        """Keep `blob` as the state of that name, learned from the feedback up to number `applied_seq`; durable on return.

        The sound state before it is kept as well. Takes the learning lease when it is free.

        Raises
        ------
        SonaStoreError
            Another store holds the lease, or the write failed; the old state stays.
        """
        _name("state name", name)
        if type(blob) is not Blob:
            raise SonaTypeError(f"expected the state to be bytes, got {type(blob).__name__}")
        _count("applied_seq", applied_seq)
        if not self.try_lease():
            raise SonaStoreError(f"{self.path}: another process or store holds the learning lease of namespace {self.namespace!r}")
        with self._writing() as conn:
            kept, newest = None, 0
            for generation, seq, digest, old in self._generations(conn, name):
                newest = max(newest, generation)
                if kept is None and digest == _state_digest(seq, old):
                    kept = generation
            conn.execute("DELETE FROM state WHERE ns = ? AND name = ? AND generation IS NOT ?", (self._ns, name, kept))
            conn.execute(
                "INSERT INTO state (ns, name, generation, applied_seq, sha256, blob) VALUES (?, ?, ?, ?, ?, ?)",
                (self._ns, name, newest + 1, applied_seq, _state_digest(applied_seq, blob), blob),
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
        with self._reading() as conn:
            generations = self._generations(conn, name)
        for age, (_, seq, digest, blob) in enumerate(generations):
            if digest == _state_digest(seq, blob):
                if age:
                    text = f"{self.path}: state {name!r} does not match its checksum; going back to the one before it (feedback {seq})"
                    warnings.warn(text, SonaWarning, stacklevel=2)
                return blob, seq
        if generations:
            raise SonaCorruptError(f"{self.path}: no kept state {name!r} matches its checksum")
        return None

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
        digest = _arms_digest(listed, vectors, costs)
        with self._writing() as conn:
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
        with self._reading() as conn:
            row = conn.execute(
                "SELECT sha256, names, vectors, costs FROM arms WHERE ns = ? AND version = ?", (self._ns, _id(version))
            ).fetchone()
        if row is None:
            return None
        digest, listed, vectors, costs = row
        if digest != _arms_digest(listed, vectors, costs):
            raise SonaCorruptError(f"{self.path}: arm set {version} does not match its checksum")
        return tuple(json.loads(listed)), vectors, costs

    def latest_arms(self) -> tuple[int, tuple[str, ...], Blob, Blob] | None:
        """(version, names, vectors, costs) of the arm set put last; None before the first."""
        with self._reading() as conn:
            version: int = conn.execute("SELECT arm_set FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
            found = self.arms(version)
        return None if found is None else (version, *found)

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
        with self._writing() as conn:
            gone = sum(pruning.delete_ids(conn, self._ns, (_id(id),)))
        self._scrub_log()
        return gone

    def forget_source(self, source: str) -> int:
        """Delete every decision of that source with its feedback and trajectory, and all feedback the source gave; as `forget`."""
        if not isinstance(source, str):
            raise SonaTypeError(f"expected source to be a str, got {type(source).__name__}")
        with self._writing() as conn:
            ids = conn.execute("SELECT id FROM decisions WHERE ns = ? AND source = ?", (self._ns, source)).fetchall()
            gone = sum(pruning.delete_ids(conn, self._ns, (row[0] for row in ids)))
            gone += conn.execute("DELETE FROM feedback WHERE ns = ? AND source = ?", (self._ns, source)).rowcount
        self._scrub_log()
        return gone

    def _scrub_log(self) -> None:
        with self._reading() as conn:
            if conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise SonaStoreError(
                    f"{self.path}: the rows are deleted, but a reader keeps the log that still holds their bytes; call again"
                )

    def bytes(self) -> int:
        """The namespace's share of the file's used pages, which `max_bytes` bounds."""
        with self._reading() as conn:
            return pruning.live_bytes(conn, self._ns)

    def file_bytes(self) -> int:
        """Size on disk of the file and its log, over all namespaces."""
        with self._reading():
            return sum(os.path.getsize(name) for name in (self.path, f"{self.path}-wal") if os.path.exists(name))

    def prune(self) -> PruneReport:
        """Enforce `retention_days` and `max_bytes`, oldest decisions first, and give unused space back to the file system.

        `append` does the same in small steps. Adapter state and the current arm set are never pruned, so
        ``bytes_after`` may stay above a `max_bytes` smaller than those.
        """
        before = self.bytes()
        total = [0, 0, 0]
        while self._prune_step(PRUNE_ROWS, total, target=self.max_bytes):
            pass
        with self._writing() as conn:
            arm_sets = pruning.drop_arm_sets(conn, self._ns, self._clock() - ARM_SET_GRACE)
        with self._reading() as conn:
            pruning.free_pages(conn, 2**31 - 1)
        return PruneReport(total[0], total[1], total[2], arm_sets, before, self.bytes())

    def _prune_step(self, rows: int, total: list[int], *, target: float | None, retention: bool = True) -> bool:
        """One short transaction of pruning; adds the rows deleted to `total`, True when there may be more to do."""
        deleted = (0, 0, 0)
        with self._writing() as conn:
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
                with self._writing() as conn:
                    pruning.drop_arm_sets(conn, self._ns, now - ARM_SET_GRACE)
                with self._reading() as conn:
                    pruning.free_pages(conn, VACUUM_PAGES)
        except SonaError as exc:
            self.prune_failures += 1
            log.warning("%s: pruning failed, to be tried again at the next append: %s", self.path, exc)

    def integrity(self) -> list[str]:
        """What is wrong with the file or this namespace, one sentence each; empty when all is sound."""
        try:
            with self._reading() as conn:
                found = [f"database: {row[0]}" for row in conn.execute("PRAGMA quick_check").fetchall() if row[0] != "ok"]
                found += self._check_identity(conn)
                found += self._check_blobs(conn)
                found += self._check_rows(conn)
        except (SonaCorruptError, SonaStoreError) as exc:
            return [f"unreadable: {exc}"]
        return found

    def _check_identity(self, conn: sqlite3.Connection) -> list[str]:
        try:
            version = schema.check_version(conn, self.path)
        except (SonaCorruptError, SonaVersionError) as exc:
            return [str(exc)]
        return [] if version == schema.current_version() else [f"schema: expected version {schema.current_version()}, got {version}"]

    def _check_blobs(self, conn: sqlite3.Connection) -> list[str]:
        found = []
        for name, generation in conn.execute("SELECT name, generation FROM state WHERE ns = ?", (self._ns,)).fetchall():
            where = (self._ns, name, generation)
            row = conn.execute("SELECT applied_seq, sha256, blob FROM state WHERE ns = ? AND name = ? AND generation = ?", where).fetchone()
            if row[1] != _state_digest(row[0], row[2]):
                found.append(f"state {name!r}, generation {generation}: does not match its checksum")
        for (version,) in conn.execute("SELECT version FROM arms WHERE ns = ?", (self._ns,)).fetchall():
            try:
                self.arms(version)
            except SonaCorruptError as exc:
                found.append(str(exc))
        return found

    def _check_rows(self, conn: sqlite3.Connection) -> list[str]:
        ns, found = self._ns, []
        last, kept = conn.execute("SELECT last_seq, bytes FROM namespaces WHERE ns = ?", (ns,)).fetchone()
        tables = ("decisions", "feedback", "trajectories", "state", "arms")
        counted = sum(
            conn.execute(f"SELECT coalesce(sum({schema.payload_sql(table)}), 0) FROM {table} WHERE ns = ?", (ns,)).fetchone()[0]
            for table in tables
        )
        if counted != kept:
            found.append(f"size: expected {counted} bytes of payload, the books say {kept}")
        highest = conn.execute("SELECT coalesce(max(seq), 0) FROM feedback WHERE ns = ?", (ns,)).fetchone()[0]
        if highest > last:
            found.append(f"feedback: expected numbers up to {last}, got {highest}")
        columns = {DecisionRow: _DECISION, FeedbackRow: "id, reward, time, source", TrajectoryRow: "id, time, payload, quality"}
        for (kind, names), table in zip(columns.items(), tables, strict=False):
            for row in conn.execute(f"SELECT {names} FROM {table} WHERE ns = ?", (ns,)):
                try:
                    kind(*row)
                except (SonaTypeError, SonaValueError) as exc:
                    found.append(f"{table}, id {row[0]!r}: {exc}")
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


def _count(what: str, value: int) -> None:
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise SonaValueError(f"expected {what} to be an int from 0 to 2**63 - 1, got {value!r}")


def _rows(kind: type[Row], rows: Iterable[Row]) -> list[Row]:
    listed = list(rows)
    for row in listed:
        if type(row) is not kind:
            raise SonaTypeError(f"expected rows of type {kind.__name__}, got {type(row).__name__}")
    return listed


def _file_path(path: str | os.PathLike[str]) -> str:
    try:
        text = os.fspath(path)
    except TypeError:
        raise SonaTypeError(f"expected path to be a str or os.PathLike, got {type(path).__name__}") from None
    if not isinstance(text, str):
        raise SonaTypeError(f"expected path to be a str or os.PathLike of str, got {type(text).__name__}")
    if not text or text == ":memory:" or text.startswith("file:") or "\0" in text:
        raise SonaValueError(f"expected the path of a file, got {text!r}")
    text = os.path.abspath(text)
    if os.path.isdir(text):
        raise SonaStoreError(f"{text}: expected the path of a file, got a directory")
    if not os.path.isdir(os.path.dirname(text)):
        raise SonaStoreError(f"{text}: the directory {os.path.dirname(text)} does not exist")
    return text


def _namespace_key(conn: sqlite3.Connection, name: str) -> int:
    find = "SELECT ns FROM namespaces WHERE name = ?"
    row = conn.execute(find, (name,)).fetchone()
    if row is None:
        conn.execute("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (name,))
        row = conn.execute(find, (name,)).fetchone()
    key: int = row[0]
    return key


def _state_digest(applied_seq: int, blob: Blob) -> Blob:
    digest = hashlib.sha256(b"%d\0" % applied_seq)
    digest.update(blob)
    return digest.digest()


def _arms_digest(names: Blob, vectors: Blob, costs: Blob) -> Blob:
    digest = hashlib.sha256()
    for part in (names, vectors, costs):
        digest.update(b"%d\0" % len(part))
        digest.update(part)
    return digest.digest()


def _disown_all() -> None:
    for store in list(_open):
        store._disown()
    _open.clear()


os.register_at_fork(after_in_child=_disown_all)
