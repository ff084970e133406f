"""What the tests of the stores share: rows, and a place of either kind, past whose store one can reach."""

import sqlite3
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sona.store import DecisionRow, FeedbackRow, SqliteStore, Store, TrajectoryRow, VersionRow, open_store

X = struct.pack("<4f", 1.0, -2.0, 0.5, 3.25)
VERSION = VersionRow(None, 1000.0, "accept", "because", "{}", b"factors")


def decision(id: int, *, time: float | None = None, source: str | None = None, x: bytes = X, arm_set: int = 1) -> DecisionRow:
    when = 1000.0 + id if time is None else time
    return DecisionRow(id, when, x, id % 3, arm_set, struct.pack("<2i", 0, 2), 0.75, b"guard", source)


def feedback(id: int, reward: float = 1.0, *, time: float | None = None, source: str | None = None) -> FeedbackRow:
    return FeedbackRow(id, reward, 2000.0 + id if time is None else time, source)


def trajectory(id: int, payload: bytes = b"steps", quality: float | None = 0.5) -> TrajectoryRow:
    return TrajectoryRow(id, 1000.0 + id, payload, quality)


class SqlitePlace:
    """A file that nobody has opened yet."""

    kind = "sqlite"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "sona.db"
        self.where = str(self.path)

    def open(self, **options: Any) -> Store:
        return SqliteStore(self.path, **options)

    def raw(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Reach into the database past the store."""
        return raw(self.path, sql, *values)


class PostgresPlace:
    """A schema of a server that nobody has opened yet."""

    kind = "postgres"

    def __init__(self, url: str) -> None:
        self.where = url
        self.schema = url.rpartition("=")[2]

    def open(self, **options: Any) -> Store:
        return open_store(self.where, **options)

    def raw(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Reach into the database past the store."""
        import psycopg

        options = f"-c search_path={self.schema},public"
        with psycopg.connect(self.where.rpartition("&schema")[0], autocommit=True, options=options) as conn:
            cursor = conn.execute(sql.replace("?", "%s").encode(), values or None)
            return cursor.fetchall() if cursor.description else []


Place = SqlitePlace | PostgresPlace


def raw(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Reach into a file past the store."""
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        return conn.execute(sql, values).fetchall()
    finally:
        conn.close()


def in_threads(*calls: Callable[[], object]) -> None:
    """Call all of them at once; what one raises fails the test."""
    errors = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
