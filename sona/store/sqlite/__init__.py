"""The store in one SQLite file."""

import os
import sqlite3
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sona.errors import SonaCorruptError, SonaStoreError, SonaVersionError, SonaWarning
from sona.store import namespace as parts
from sona.store.arguments import check_bounds, check_milliseconds, check_name
from sona.store.bounds import Bounds
from sona.store.integrity import Integrity
from sona.store.overview import Overview
from sona.store.records import Records
from sona.store.rows import DECISION_COLUMNS, Blob, DecisionRow, FeedbackRow, TrajectoryRow
from sona.store.sqlite import pages, schema
from sona.store.sqlite.connection import Connection
from sona.store.sqlite.lease import Lease
from sona.store.sqlite.mounts import network_filesystem
from sona.store.states import States
from sona.store.vectors import Vectors


class SqliteStore(Records, States, Vectors, Overview, Bounds, Integrity):
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
        self.namespace = check_name("namespace", namespace)
        check_bounds(max_bytes, retention_days)
        check_milliseconds("busy_timeout_ms", busy_timeout_ms)
        self.max_bytes = max_bytes
        self.retention_days = retention_days
        self._clock = clock
        self._term = 0
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

    def close(self) -> None:
        """Give back the lease and the file; a second call does nothing. Waits for a call that is under way."""
        try:
            self._db.close()
        finally:
            self._lease.release()

    # -- the lease -------------------------------------------------------------------------------------------------

    @property
    def lease(self) -> bool:
        """True while this store holds the learning lease of its namespace."""
        return self._lease.held

    @property
    def term(self) -> int:
        """Of the lease that this store took last: another number after each time that it was free; 0 before the first."""
        return self._term

    def keep_lease(self) -> bool:
        """Whether the lease that was taken is still held."""
        return self.lease

    def try_lease(self) -> bool:
        """Take the learning lease if nobody else holds it; True when held afterwards.

        The kernel frees it when the process dies. Appending needs no lease, `put_state`, `put_version` and `replace_without` do.
        """
        with self._db.reading():
            if not self._lease.held and self._lease.acquire():
                self._term += 1
            return self._lease.held

    def release_lease(self) -> None:
        """Give the learning lease back."""
        with self._db.reading():
            self._lease.release()

    @contextmanager
    def _leading(self, term: int | None) -> Iterator[sqlite3.Connection]:
        if not self.try_lease():
            raise self._taken()
        if term is not None and term != self._term:
            raise self._lost(term)
        with self._db.writing() as conn:
            yield conn

    def watch(self, changed: Callable[[], object] | None) -> bool:
        """False: nobody tells of what other processes write to a file; look at it from time to time."""
        return False

    # -- what SQLite does in its own way ---------------------------------------------------------------------------

    # Without the hint SQLite walks all feedback of the namespace backwards.
    _feedback_by_id = "feedback INDEXED BY feedback_id"

    def _insert_decisions(self, conn: sqlite3.Connection, rows: list[DecisionRow]) -> None:
        conn.executemany(
            f"INSERT INTO decisions (ns, {DECISION_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ns, id) DO NOTHING",
            ((self._ns, d.id, d.time, d.x, d.arm, d.arm_set, d.candidates, d.propensity, d.proposals, d.source) for d in rows),
        )

    def _insert_feedback(self, conn: sqlite3.Connection, first: int, rows: list[FeedbackRow]) -> None:
        conn.executemany(
            "INSERT INTO feedback (ns, seq, id, reward, time, source) VALUES (?, ?, ?, ?, ?, ?)",
            ((self._ns, seq, f.id, f.reward, f.time, f.source) for seq, f in enumerate(rows, first)),
        )

    def _upsert_trajectories(self, conn: sqlite3.Connection, rows: list[TrajectoryRow]) -> None:
        conn.executemany(
            """INSERT INTO trajectories (ns, id, time, payload, quality) VALUES (?, ?, ?, ?, ?)
               ON CONFLICT (ns, id) DO UPDATE SET time = excluded.time, payload = excluded.payload, quality = excluded.quality""",
            ((self._ns, t.id, t.time, t.payload, t.quality) for t in rows),
        )

    def _upsert_vectors(self, conn: sqlite3.Connection, name: str, rows: Iterable[tuple[int, Blob]]) -> None:
        conn.executemany(
            """INSERT INTO vectors (ns, name, id, crc, vector) VALUES (?, ?, ?, ?, ?)
               ON CONFLICT (ns, name, id) DO UPDATE SET crc = excluded.crc, vector = excluded.vector""",
            ((self._ns, name, one, zlib.crc32(vector), vector) for one, vector in rows),
        )

    def _vectors_after(self, conn: sqlite3.Connection, name: str, id: int) -> list[tuple[int, int, Blob]]:
        return conn.execute(
            "SELECT id, crc, vector FROM vectors WHERE ns = ? AND name = ? AND id > ? ORDER BY id LIMIT ?",
            (self._ns, name, id, parts.CHUNK),
        ).fetchall()

    def _payload(self) -> dict[str, str]:
        return schema.payload_sql()

    def _live_bytes(self, conn: sqlite3.Connection) -> int:
        return pages.live_bytes(conn, self._ns)

    def _give_back(self, conn: sqlite3.Connection, most: int) -> None:
        pages.free_pages(conn, most)

    def scrub_log(self) -> None:
        """Overwrite the log, which may still hold bytes of deleted rows; SonaStoreError when a reader keeps it in use: call again."""
        with self._db.reading() as conn:
            if conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise SonaStoreError(
                    f"{self.path}: the rows are deleted, but a reader keeps the log that still holds their bytes; call again"
                )

    def file_bytes(self) -> int:
        """Size on disk of the file and its log, over all namespaces."""
        with self._db.reading():
            return sum(os.path.getsize(name) for name in (self.path, f"{self.path}-wal") if os.path.exists(name))

    def _database_findings(self, conn: sqlite3.Connection) -> Iterator[str]:
        for (line,) in conn.execute("PRAGMA quick_check").fetchall():
            if line != "ok":
                yield f"database: {line}"
        try:
            version = schema.check_version(conn, self.path)
            if version != schema.current_version():
                yield f"schema: expected version {schema.current_version()}, got {version}"
            else:
                yield from schema.differences(conn)
        except (SonaCorruptError, SonaVersionError) as exc:
            yield f"schema: {exc}"
