"""A connection that several threads share, whose writes are whole transactions and whose errors are sona's."""

import ctypes
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sona.errors import SonaClosedError, SonaCorruptError, SonaError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError
from sona.store.sqlite import schema

FORK_PATIENCE = 10.0  # s that a fork waits for other threads to come out of SQLite; beyond any sensible busy timeout

_opening = threading.RLock()  # held before any connection's own lock
_all: "weakref.WeakSet[Connection]" = weakref.WeakSet()
_fork = threading.local()


class Connection:
    """An open store file.

    Parameters
    ----------
    path : str or os.PathLike
        A file, made when absent.
    busy_timeout_ms : int
        How long a statement waits for other processes.

    Raises
    ------
    SonaValueError, SonaTypeError
        Not the path of a file.
    SonaStoreError, SonaCorruptError, SonaVersionError
        As `schema.prepare`, or the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout_ms: int) -> None:
        self.path = _file_path(path)
        self.busy_timeout_ms = busy_timeout_ms
        self.lock = threading.RLock()
        self._conn: sqlite3.Connection | None = None
        self._closed_because = "was not opened"
        self._writing: object = None  # whose transaction is under way
        with _opening, self.lock, self._translated():
            _all.add(self)
            conn = sqlite3.connect(self.path, timeout=busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False)
            try:
                schema.prepare(conn, self.path, busy_timeout_ms=busy_timeout_ms)
            except BaseException:
                conn.close()
                raise
            self._conn = conn

    @property
    def closed(self) -> bool:
        return self._conn is None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone.

        Raises
        ------
        SonaClosedError
        SonaStoreError
            In place of any error of SQLite, with the path; SonaCorruptError where the file is damaged.
        """
        with self.lock, self._translated():
            if self._conn is None:
                raise SonaClosedError(f"{self.path}: the store {self._closed_because}")
            yield self._conn

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable when the block ends; nothing of it when the block or the commit raises."""
        with self.reading() as conn:
            self._writing = mine = object()
            try:
                if conn.in_transaction:  # Ctrl-C came between a call before and its block
                    conn.execute("ROLLBACK")
                conn.execute("BEGIN IMMEDIATE")
                version = conn.execute("PRAGMA user_version").fetchone()[0]
                expected = schema.current_version()
                if version != expected:  # a newer sona has migrated the file since this one opened it
                    raise SonaVersionError(f"{self.path}: expected schema version {expected}, got {version}: a newer sona took over")
                yield conn
                conn.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if self._writing is mine and conn.in_transaction:
                        conn.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Wait for the call under way and close; a second call does nothing."""
        with self.lock:
            conn, self._conn = self._conn, None
            if conn is not None:
                self._closed_because = "is closed"
                with self._translated():
                    conn.close()

    def disown(self) -> None:
        """In a forked child: let go of the parent's connection without touching it.

        SQLite forbids a connection to cross a fork, even to be closed: that could remove the parent's log. A reference
        that is never given back keeps it open.
        """
        if self._conn is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._conn))
            self._conn = None
            self._closed_because = "was opened by the parent of this forked process: open it again"
        self.lock = threading.RLock()  # a thread that does not exist here may hold the old one

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        except UnicodeDecodeError as exc:  # damaged text, or an error message that quotes it
            raise SonaCorruptError(f"{self.path}: expected a sound SQLite database, got text that is not UTF-8") from exc

    def _error(self, exc: sqlite3.Error) -> SonaError:
        code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return SonaCorruptError(f"{self.path}: expected a sound SQLite database, got: {exc}")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return SonaStoreError(f"{self.path}: another writer held the file for more than {self.busy_timeout_ms} ms")
        return SonaStoreError(f"{self.path}: {exc}")


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


# SQLite's own locks are global: a child forked while a thread is inside of SQLite could never use it.
def _before_fork() -> None:
    _fork.paused = [_opening] if _opening.acquire(timeout=FORK_PATIENCE) else []
    for connection in list(_all):
        if connection.lock.acquire(timeout=FORK_PATIENCE):
            _fork.paused.append(connection.lock)


def _after_fork_in_parent() -> None:
    for lock in reversed(_fork.paused):
        lock.release()
    _fork.paused = []


def _after_fork_in_child() -> None:
    global _opening
    _opening = threading.RLock()
    for connection in list(_all):
        connection.disown()
    _fork.paused = []


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
