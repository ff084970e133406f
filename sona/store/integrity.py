"""What can be wrong with a store file and one of its namespaces."""

import sqlite3
import zlib
from collections.abc import Iterator

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError, SonaVersionError
from sona.store import schema
from sona.store.checksums import arms_digest, state_digest, version_digest
from sona.store.rows import DECISION_COLUMNS, FEEDBACK_COLUMNS, TRAJECTORY_COLUMNS, DecisionRow, FeedbackRow, TrajectoryRow


def findings(conn: sqlite3.Connection, ns: int, path: str) -> Iterator[str]:
    """One sentence for each fault, beginning with where it is.

    Raises
    ------
    sqlite3.Error
        The file is too damaged to go on.
    """
    for (line,) in conn.execute("PRAGMA quick_check").fetchall():
        if line != "ok":
            yield f"database: {line}"
    try:
        version = schema.check_version(conn, path)
        if version != schema.current_version():
            yield f"schema: expected version {schema.current_version()}, got {version}"
    except (SonaCorruptError, SonaVersionError) as exc:
        yield f"schema: {exc}"
    yield from _states(conn, ns)
    yield from _vectors(conn, ns)
    yield from _arm_sets(conn, ns)
    yield from _versions(conn, ns)
    yield from _books(conn, ns)
    yield from _rows(conn, ns)


def _states(conn: sqlite3.Connection, ns: int) -> Iterator[str]:
    # One blob in memory at a time.
    for pos, name, generation in conn.execute("SELECT pos, name, generation FROM state WHERE ns = ?", (ns,)).fetchall():
        seq, digest, blob = conn.execute("SELECT applied_seq, sha256, blob FROM state WHERE pos = ?", (pos,)).fetchone()
        if digest != state_digest(seq, blob):
            yield f"state {name!r}, generation {generation}: does not match its checksum"


def _vectors(conn: sqlite3.Connection, ns: int) -> Iterator[str]:
    for name, id, crc, vector in conn.execute("SELECT name, id, crc, vector FROM vectors WHERE ns = ?", (ns,)):
        if crc != zlib.crc32(vector):
            yield f"vector {id} of {name!r}: does not match its checksum"


def _arm_sets(conn: sqlite3.Connection, ns: int) -> Iterator[str]:
    for pos, version in conn.execute("SELECT pos, version FROM arms WHERE ns = ?", (ns,)).fetchall():
        digest, *content = conn.execute("SELECT sha256, names, vectors, costs FROM arms WHERE pos = ?", (pos,)).fetchone()
        if digest != arms_digest(*content):
            yield f"arm set {version}: does not match its checksum"


def _versions(conn: sqlite3.Connection, ns: int) -> Iterator[str]:
    for pos, name, number in conn.execute("SELECT pos, name, number FROM versions WHERE ns = ?", (ns,)).fetchall():
        digest, *content = conn.execute(
            "SELECT sha256, name, number, parent, time, verdict, reason, about, factors FROM versions WHERE pos = ?", (pos,)
        ).fetchone()
        if digest != version_digest(*content):
            yield f"version {number} of {name!r}: does not match its checksum"


def _books(conn: sqlite3.Connection, ns: int) -> Iterator[str]:
    last, booked = conn.execute("SELECT last_seq, bytes FROM namespaces WHERE ns = ?", (ns,)).fetchone()
    counted = sum(
        conn.execute(f"SELECT coalesce(sum({cost}), 0) FROM {table} WHERE ns = ?", (ns,)).fetchone()[0]
        for table, cost in schema.payload_sql().items()
    )
    if counted != booked:
        yield f"size: expected {counted} bytes of payload, the books say {booked}"
    highest = conn.execute("SELECT coalesce(max(seq), 0) FROM feedback WHERE ns = ?", (ns,)).fetchone()[0]
    if highest > last:
        yield f"feedback: expected numbers up to {last}, got {highest}"


def _rows(conn: sqlite3.Connection, ns: int) -> Iterator[str]:
    kinds: tuple[tuple[str, type[DecisionRow | FeedbackRow | TrajectoryRow], str], ...] = (
        ("decisions", DecisionRow, DECISION_COLUMNS),
        ("feedback", FeedbackRow, FEEDBACK_COLUMNS),
        ("trajectories", TrajectoryRow, TRAJECTORY_COLUMNS),
    )
    for table, kind, columns in kinds:
        for row in conn.execute(f"SELECT {columns} FROM {table} WHERE ns = ?", (ns,)):
            try:
                kind(*row)
            except (SonaTypeError, SonaValueError) as exc:
                yield f"{table}, id {row[0]!r}: {exc}"
