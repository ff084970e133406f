"""The learning lease of a namespace on a server: an advisory lock of a session of its own, and a term that fences off who lost it."""

import logging
import os
import select
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sona.errors import SonaClosedError, SonaStoreError
from sona.store.outcomes import LeaseLost
from sona.store.postgres.connection import Connection, Link
from sona.store.postgres.schema import key_of
from sona.store.postgres.url import Place

log = logging.getLogger(__name__)

_all: "weakref.WeakSet[Lease]" = weakref.WeakSet()

LOOK_SECONDS = 1.0  # between looks of the watching thread at a session that tells nothing
RETRY_SECONDS = 0.1  # between its looks for a server that is not there
STOP_SECONDS = 5.0


def channel(place: Place, namespace: str) -> str:
    """Under which the sessions of a namespace are told of new states and versions."""
    return f"sona_{key_of('changes', place.schema, namespace) & 0xFFFFFFFFFFFFFFFF:016x}"


def _readable(fds: tuple[int, ...], seconds: float) -> bool:
    """Wait until one of them can be read, or has been hung up."""
    poll = select.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Lease:
    """
    At most one session holds the lease of a namespace at a time. Whoever takes it counts up the namespace's fence, in the session that
    holds the lock; a transaction with an older number is refused by `Connection.writing`, so that a holder whose session has ended cannot
    write any more once somebody else has taken over.

    Attributes
    ----------
    number : int
        That of the fence when it was taken last; 0 before the first time.
    term : int
        That of the first of the takings that nobody else's came between.
    """

    def __init__(self, place: Place, namespace: str, *, statement_timeout_ms: int, own: Connection) -> None:
        self._place, self._namespace, self._timeout, self._own = place, namespace, statement_timeout_ms, own
        self._key = key_of("lease", place.schema, namespace)
        self._channel = channel(place, namespace)
        self._lock = threading.RLock()
        self._session: Connection | None = None
        self._held_in = 0  # which of the connection's sessions has the lock; 0: none
        self._lost = self._closed = False
        self.number = self.term = 0
        self._changed: Callable[[], object] | None = None
        self._watcher: threading.Thread | None = None
        self._stop, self._wake, self._news = False, (-1, -1), False
        _all.add(self)

    @property
    def held(self) -> bool:
        """As far as is known without asking."""
        return self._held_in != 0

    def acquire(self) -> bool:
        """Take the lease if it is free, also where it was held and lost; True when held afterwards."""
        with self._lock:
            if self.held and self.check():
                return True
            self._lost = False
            with self._opened().reading() as link:
                session = self._opened().opened
                if not link.execute("SELECT pg_try_advisory_lock(?)", (self._key,)).fetchone()[0]:
                    return False
                try:
                    row = link.execute("UPDATE namespaces SET fence = fence + 1 WHERE ns = ? RETURNING fence", (self._own.ns,)).fetchone()
                except BaseException:
                    link.raw.close()  # and with the session goes the lock
                    raise
            if row[0] != self.number + 1 or self.number == 0:
                self.term = row[0]
            self.number, self._held_in = row[0], session
            return True

    def check(self) -> bool:
        """Whether the lease is still held: asks the server."""
        with self._lock:
            if not self.held:
                return False
            try:
                session = self._opened()
                with session.reading() as link:
                    if session.opened == self._held_in:
                        link.execute("SELECT 1").fetchone()
                        return True
            except SonaClosedError:
                raise
            except SonaStoreError as error:
                log.warning("lease: %s", error, extra={"event": "lease.unreadable", "error": str(error)})
            self.lose()
            return False

    def lose(self) -> None:
        """It is gone; nothing is written under it until it is taken again."""
        with self._lock:
            if self.held:
                log.warning(
                    "%s: the learning lease of namespace %r was lost",
                    self._place.shown,
                    self._namespace,
                    extra={"event": "lease.session_lost", "namespace": self._namespace},
                )
                self._held_in, self._lost = 0, True
                if self._session is not None:  # where the session lives, the others need not wait for its end
                    self._session.drop()

    def fence(self) -> tuple[int | None, int]:
        """
        The number to write under, None when somebody else holds the lease, and the term. Takes it when it is free and was not lost;
        LeaseLost when it was.
        """
        with self._lock:
            if self._lost:
                raise LeaseLost(f"{self._place.shown}: the learning lease of namespace {self._namespace!r} was lost")
            if not self.held and not self.acquire():
                return None, self.term
            return self.number, self.term

    def release(self) -> None:
        """Give it back; nothing happens when it is not held."""
        with self._lock:
            self._lost = False
            held_in, self._held_in = self._held_in, 0
            session = self._session
            if held_in and session is not None and session.alive:
                with suppress(SonaStoreError), session.reading() as link:
                    if session.opened == held_in:
                        link.execute("SELECT pg_advisory_unlock(?)", (self._key,))

    def _opened(self) -> Connection:
        with self._lock:
            if self._closed or self._own.closed:
                with self._own.reading():  # says why it is closed
                    raise SonaClosedError(f"{self._place.shown}: the store is closed")
            if self._session is None:
                self._session = Connection(self._place, statement_timeout_ms=self._timeout, prepare=False, on_open=self._listen)
            return self._session

    # ---- what others tell ----

    def watch(self, changed: Callable[[], object] | None) -> None:
        """
        Call `changed`, from a thread of its own, when another session has written a state or version, and when the lease or the connection
        was lost or came back. None: no more.
        """
        self._unwatch()
        if changed is None:
            return
        self._changed, self._stop, self._wake = changed, False, os.pipe()
        self._watcher = threading.Thread(target=self._run, args=self._wake[:1], name="sona-postgres-watcher", daemon=True)
        self._watcher.start()

    def _unwatch(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        self._stop = True
        with suppress(BrokenPipeError):  # it has ended by itself: the store was closed
            os.write(self._wake[1], b"x")
        if watcher is not threading.current_thread():
            watcher.join(STOP_SECONDS)
        os.close(self._wake[1])

    def _listen(self, link: Link) -> None:
        link.raw.add_notify_handler(self._told)
        link.execute(f'LISTEN "{self._channel}"')

    def _told(self, notify: Any) -> None:
        if notify.pid != self._own.pid:
            self._news = True

    def _run(self, wake: int) -> None:
        opened = 0
        while not self._stop:
            try:
                session = self._opened()
                with session.reading():
                    pass
                if opened not in (0, session.opened):  # what was told in between is lost, and with the old session the lease
                    self._news = True
                    self._lose_if_ended()
                opened = session.opened
                if _readable((wake, session.fileno()), LOOK_SECONDS):
                    session.hear()
            except SonaClosedError:
                break
            except SonaStoreError:  # the connection is gone
                self._news = self._lose_if_ended() or self._news
                _readable((wake,), RETRY_SECONDS)
            if self._news and not self._stop:
                self._news = False
                self._call()
        os.close(wake)

    def _lose_if_ended(self) -> bool:
        with self._lock:  # another thread may have taken it anew meanwhile
            session = self._session
            lost = self.held and (session is None or session.opened != self._held_in or not session.alive)
            if lost:
                self.lose()
            return lost

    def _call(self) -> None:
        changed = self._changed
        try:
            if changed is not None:
                changed()
        except SonaClosedError:
            pass
        except Exception as error:
            log.warning("store: %s", error, extra={"event": "store.unreadable", "error": str(error)})

    # ---- ends ----

    def close(self) -> None:
        """Give it back and end its session."""
        self._unwatch()
        with self._lock:
            self._closed = True
            self.release()  # the others need not wait for the server to notice
            if self._session is not None:
                self._session.close()

    def disown(self) -> None:
        """In a forked child: the parent keeps the lease and its watcher."""
        self._lock = threading.RLock()  # a thread that does not exist here may hold the old one
        watcher, self._watcher, self._held_in = self._watcher, None, 0
        if watcher is not None:
            os.close(self._wake[1])  # not the other end, which the watcher may have closed


def _after_fork_in_child() -> None:
    for lease in list(_all):
        lease.disown()


os.register_at_fork(after_in_child=_after_fork_in_child)
