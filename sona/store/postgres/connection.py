"""A connection to a server that several threads share, that comes back when the server does, and whose errors are sona's."""

import ctypes
import functools
import math
import os
import secrets
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from sona.errors import SonaClosedError, SonaCorruptError, SonaError, SonaStoreError, SonaVersionError
from sona.store.namespace import Found
from sona.store.outcomes import LeaseLost, UnknownOutcome
from sona.store.postgres import schema
from sona.store.postgres.url import Place

CONNECT_SECONDS = 5
RETRY_SECONDS = (0.05, 5.0)  # first and longest wait between attempts to connect; calls in between fail at once
GRACE_SECONDS = 5.0  # that a server may be silent beyond its statement timeout
FATES = 16
RESOLVE_SECONDS = 3.0  # for learning what became of a commit whose answer was lost

_all: "weakref.WeakSet[Connection]" = weakref.WeakSet()
_watchdog: threading.Thread | None = None
_starting = threading.Lock()


class Link:
    """A psycopg connection that takes SQL with ``?``; one thread at a time."""

    def __init__(self, raw: "psycopg.Connection[Any]", patience: float) -> None:
        self.raw = raw
        self._patience = patience
        self.fd, self.pid = raw.fileno(), raw.info.backend_pid
        self._give_up = math.inf  # monotonic seconds after which the server counts as hung
        self.has_vectors = False

    @contextmanager
    def timed(self, seconds: float | None = None) -> Iterator[None]:
        """A server that does not answer for so long has its connection cut: it may hang, or the network may be gone."""
        self._give_up = time.monotonic() + (self._patience if seconds is None else seconds)
        try:
            yield
        finally:
            self._give_up = math.inf

    def cut_when_hung(self, now: float) -> None:
        """From another thread."""
        if now > self._give_up:
            with suppress(OSError), socket.socket(fileno=os.dup(self.fd)) as theirs:
                theirs.shutdown(socket.SHUT_RDWR)

    def execute(self, sql: str, parameters: Sequence[Any] = (), /, *, prepare: bool | None = None) -> Found:
        """One statement; the result is that of the server in binary. False: planned anew each time, for these parameters."""
        with self.timed():
            return self.raw.execute(_marked(sql), parameters or None, prepare=prepare, binary=True)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Found:
        with self.timed():
            cursor = self.raw.cursor()
            cursor.executemany(_marked(sql), parameters)
            return cursor

    def copy(self, table: str, columns: dict[str, str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows into a table; `columns` maps names to types."""
        statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)".encode()
        with self.timed(), self.raw.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(list(columns.values()))
            for row in rows:
                copy.write_row(row)

    @property
    def broken(self) -> bool:
        """Also when the server has hung up while nobody asked it anything."""
        try:
            while not self.raw.closed and select.select([self.fd], [], [], 0)[0]:
                self.raw.pgconn.consume_input()  # a farewell, and then the end
                self.hear()
        except (psycopg.Error, OSError, ValueError):
            return True
        return self.raw.closed or self.raw.pgconn.status != ConnStatus.OK

    def hear(self) -> None:
        """Hand on the notifications that have come."""
        while notify := self.raw.pgconn.notifies():
            if self.raw.pgconn.notify_handler is not None:
                self.raw.pgconn.notify_handler(notify)


@functools.lru_cache(512)
def _marked(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


class Connection:
    """
    A session on a server.

    Parameters
    ----------
    place : Place
    statement_timeout_ms : int
        How long the server may take for a statement, waiting for others included.
    prepare : bool
        Make the schema where it is absent, and migrate an older one.
    on_open : callable, optional
        Called with each new link.

    Attributes
    ----------
    opened : int
        How many sessions there have been: a lock that belongs to one is gone with the next.

    Raises
    ------
    SonaStoreError
        The server cannot be reached or refuses; SonaCorruptError, SonaVersionError as `schema.prepare`.
    """

    def __init__(
        self,
        place: Place,
        *,
        statement_timeout_ms: int,
        prepare: bool = True,
        on_open: Callable[[Link], None] | None = None,
    ) -> None:
        self.place = place
        self.path = place.shown
        self.lock = threading.RLock()
        self.opened = 0
        self.ns: int | None = None  # whose row every transaction locks
        self._timeout = statement_timeout_ms
        self._prepare = prepare
        self._key = secrets.randbits(62)  # under which the database has the mark of the last transaction
        self._unknown = 0  # mark of a transaction of which nobody knows yet whether it was done
        self._fates: dict[int, bool] = {}  # what became of such ones, by mark; the newest
        self._on_open = on_open
        self._link: Link | None = None
        self._closed_because: str | None = None
        self._failures = 0  # to connect, in a row
        self._retry_at = -math.inf
        self._why = ""
        _all.add(self)
        _watch_over()
        with self.lock:
            self._connect()

    @property
    def closed(self) -> bool:
        return self._closed_because is not None

    @property
    def alive(self) -> bool:
        """Whether there is a session, as far as is known without asking."""
        link = self._link
        return link is not None and not link.raw.closed

    @property
    def pid(self) -> int:
        """Of the server's process for this session; 0 without one."""
        link = self._link
        return 0 if link is None else link.pid

    def fileno(self) -> int:
        """Of the socket, which another thread may be closing; -1 without one."""
        link = self._link
        return -1 if link is None else link.fd

    def _connect(self) -> Link:
        now = time.monotonic()
        if now < self._retry_at:
            raise SonaStoreError(f"{self.path}: not reachable, to be tried again in {self._retry_at - now:.1f} s: {self._why}")
        self.drop()
        options: dict[str, Any] = {
            "application_name": "sona",
            "connect_timeout": CONNECT_SECONDS,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "client_encoding": "utf8",
        }
        try:
            raw = psycopg.connect(**(options | self.place.parameters), autocommit=True)
        except psycopg.Error as exc:
            self._failures += 1
            self._retry_at = time.monotonic() + min(RETRY_SECONDS[0] * 2.0 ** min(self._failures - 1, 30), RETRY_SECONDS[1])
            self._why = self.place.scrubbed(_in_a_line(exc))
            raise SonaStoreError(f"{self.path}: {self._why}") from None
        link = Link(raw, self._timeout / 1000 + GRACE_SECONDS)
        try:
            with self._translated():
                schema.set_up(link, self.place, self._timeout)
                if self._prepare:
                    schema.prepare(link, self.place)
                    link.execute("DELETE FROM commits WHERE time < now() - interval '7 days'")  # of those who did not close
                    link.execute("INSERT INTO commits VALUES (?, 0, now()) ON CONFLICT (session) DO NOTHING", (self._key,))
                schema.adopt_vectors(link, self.place)
                if self._on_open is not None:
                    self._on_open(link)
        except BaseException:
            raw.close()
            raise
        self._failures, self._retry_at = 0, -math.inf
        self._link = link
        self.opened += 1
        return link

    @contextmanager
    def reading(self) -> Iterator[Link]:
        """The session, for this thread alone; a new one where the last has ended.

        Raises
        ------
        SonaClosedError
        SonaStoreError
            In place of any error of the server or on the way there.
        """
        with self.lock:
            if self._closed_because is not None:
                raise SonaClosedError(f"{self.path}: the store {self._closed_because}")
            link = self._link
            status = TransactionStatus.UNKNOWN if link is None else link.raw.info.transaction_status
            if link is None or status == TransactionStatus.UNKNOWN or (status == TransactionStatus.IDLE and link.broken):
                link = self._connect()
            with self._translated():
                yield link

    @contextmanager
    def writing(self, *, fence: int | None = None) -> Iterator[Link]:
        """
        One transaction, durable when the block ends; nothing of it when the block or the commit raises.

        It holds the row of its namespace, so the transactions of a namespace are one after the other.

        Parameters
        ----------
        fence : int, optional
            Number of the lease under which it is done.

        Raises
        ------
        LeaseLost
            The lease has been taken since.
        UnknownOutcome
            See there.
        """
        with self.reading() as link:
            mark = secrets.randbits(62) + 1
            try:
                link.execute("BEGIN")
                self._begin(link, fence, mark)
                yield link
            except BaseException:
                with suppress(psycopg.Error):
                    if not link.raw.closed:
                        link.execute("ROLLBACK")
                raise
            try:
                link.execute("COMMIT")
            except psycopg.Error as exc:
                if not link.broken:
                    raise
                self._resolve(mark, exc)

    def _begin(self, link: Link, fence: int | None, mark: int) -> None:
        """Lock, check that the transaction may go on, and leave a mark, which is there if the transaction is."""
        lock = "SELECT fence FROM namespaces WHERE ns = ? FOR UPDATE"
        if self.ns is not None:
            found = link.execute(lock, (self.ns,)).fetchone()
            if found is None:
                raise SonaCorruptError(f"{self.path}: the namespace is gone from the database")
            if fence is not None and found[0] != fence:
                raise LeaseLost(f"{self.path}: the learning lease was lost to another process (number {found[0]}, this was {fence})")
        (version,) = link.execute("SELECT version FROM sona_schema").fetchone()
        if version != schema.current_version():  # a newer sona has migrated it since
            raise SonaVersionError(
                f"{self.path}: expected schema version {schema.current_version()}, got {version}: a newer sona took over"
            )
        if self._unknown:
            self._learn_fate(link)
        if link.execute("UPDATE commits SET mark = ?, time = now() WHERE session = ?", (mark, self._key)).rowcount != 1:
            link.execute("INSERT INTO commits VALUES (?, ?, now())", (self._key, mark))  # silent for longer than they are kept

    def _resolve(self, mark: int, why: psycopg.Error) -> None:
        """Return if the transaction was committed after all."""
        give_up = time.monotonic() + RESOLVE_SECONDS
        while True:
            with suppress(SonaStoreError):
                if self.committed(mark):
                    return
                raise why
            if time.monotonic() >= give_up:
                text = self.place.scrubbed(" ".join(str(why).split()))
                unknown = UnknownOutcome(f"{self.path}: the connection broke during a commit, which may have been done: {text}")
                unknown.mark = self._unknown = mark
                raise unknown from None
            time.sleep(0.02)

    def committed(self, mark: int) -> bool:
        """
        Whether the last transaction, which left that mark, was done; waits while the server is still at it.

        Its number would not tell: a server that crashes may give out the numbers of lost transactions again.
        """
        if mark in self._fates:
            return self._fates[mark]
        self._unknown = mark
        with self.reading() as link:
            return self._learn_fate(link)

    def _learn_fate(self, link: Link) -> bool:
        """Whether the transaction of unknown outcome was done: the next one overwrites its mark."""
        found = link.execute("SELECT mark FROM commits WHERE session = ? FOR UPDATE", (self._key,)).fetchone()
        done = found is not None and found[0] == self._unknown
        self._fates = dict([*self._fates.items(), (self._unknown, done)][-FATES:])
        self._unknown = 0
        return done

    def hear(self) -> None:
        """Hand on what the server has told unasked; SonaStoreError when it has hung up."""
        with self.lock:
            link = self._link
            if link is None or link.broken:
                raise SonaStoreError(f"{self.path}: the connection is gone")
            link.hear()

    def drop(self) -> None:
        """End the session; the next call begins another."""
        link, self._link = self._link, None
        if link is not None:
            with suppress(psycopg.Error):
                link.raw.close()

    def close(self) -> None:
        """Wait for the call under way and close; a second call does nothing."""
        with self.lock:
            if self._closed_because is None:
                self._closed_because = "is closed"
                if self._prepare and self.alive:
                    with suppress(psycopg.Error):
                        self._link.execute("DELETE FROM commits WHERE session = ?", (self._key,))  # type: ignore[union-attr]
            self.drop()

    def disown(self) -> None:
        """
        In a forked child: let go of the parent's session without a word to the server.

        To close the socket here ends nothing, and without that a lease would outlive the parent in the child.
        """
        link, self._link = self._link, None
        if link is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(link.raw))
            with suppress(OSError):
                os.close(link.fd)
        if self._closed_because is None:
            self._closed_because = "was opened by the parent of this forked process: open it again"
        self.lock = threading.RLock()  # a thread that does not exist here may hold the old one

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            raise self._error(exc) from exc

    def _error(self, exc: psycopg.Error) -> SonaError:
        text = self.place.scrubbed(_in_a_line(exc))
        if isinstance(exc, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
            return SonaStoreError(f"{self.path}: the server took more than {self._timeout} ms: {text}")
        if isinstance(exc, psycopg.errors.DataCorrupted | psycopg.errors.IndexCorrupted):
            return SonaCorruptError(f"{self.path}: {text}")
        return SonaStoreError(f"{self.path}: {text}")


def _in_a_line(exc: psycopg.Error) -> str:
    """What the server or libpq says on several lines, with what it asks or advises there."""
    return "; ".join(line.strip() for line in str(exc).splitlines() if line.strip())


def _watch_over() -> None:
    """One thread a process cuts the connections whose server is silent for too long."""
    global _watchdog
    with _starting:
        if _watchdog is None:
            _watchdog = threading.Thread(target=_cut_hung, name="sona-postgres-watchdog", daemon=True)
            _watchdog.start()


def _cut_hung() -> None:
    while True:
        time.sleep(0.5)
        now = time.monotonic()
        for connection in list(_all):
            link = connection._link
            if link is not None:
                link.cut_when_hung(now)


def _after_fork_in_child() -> None:
    global _watchdog, _starting
    _watchdog, _starting = None, threading.Lock()
    for connection in list(_all):
        connection.disown()


os.register_at_fork(after_in_child=_after_fork_in_child)
