"""Writes what accumulates on the hot path to a store in groups, from one thread."""

import atexit
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Protocol, Self

from sona._locks import Signal, shielded
from sona.errors import SonaClosedError, SonaStoreError, SonaValueError
from sona.store.outcomes import UnknownOutcome
from sona.store.rows import DecisionRow, FeedbackRow, TrajectoryRow

log = logging.getLogger(__name__)

Told = Callable[[Exception | None], object]
Drained = tuple[Iterable[DecisionRow], Iterable[FeedbackRow], Iterable[TrajectoryRow]]
Group = tuple[list[DecisionRow], list[FeedbackRow], list[TrajectoryRow]]

EXIT_TIMEOUT = 5.0  # s that the end of the interpreter waits for a last group

_open: "weakref.WeakSet[GroupWriter]" = weakref.WeakSet()


class Appendable(Protocol):
    """What a writer needs of a store."""

    def append(self, decisions: list[DecisionRow], feedback: list[FeedbackRow], trajectories: list[TrajectoryRow], /) -> int:
        """Write all rows in one transaction, durable on return, or raise and write none."""


def log_failure(error: Exception, spooled: int, dropped: int) -> None:
    """Say that a group was not written: why, and how many rows wait and were dropped since the start."""
    log.warning(
        "store: %s; %d rows wait, %d were dropped",
        error,
        spooled,
        dropped,
        extra={"event": "store.write_failed", "error": str(error), "spooled": spooled, "dropped": dropped},
    )


class _Reentered(SonaStoreError):
    """A method was called by the thread that is inside of one already."""


class GroupWriter:
    """Moves rows from a caller's buffers to a store, a group every `interval` at most.

    A group that cannot be written waits in a bounded spool and is tried again, at intervals that double up to
    ``backoff[1]``; the caller's hot path never notices. A spool that is full loses its oldest decisions first, then
    trajectories, then feedback; losses are counted, reported to `on_error`, and make the next `flush` raise.

    `notify` and `when_durable` may be called from any thread and never wait. Everything else may be called from any thread
    and takes turns. In a forked child the writer is passive: `notify` does nothing, `flush` and `step` raise, the parent writes.

    Parameters
    ----------
    store : Store or alike
    drain : callable
        Returns (decisions, feedback, trajectories) recorded since its last call. Called by one thread at a time. When it
        raises, what it took is lost and the next `flush` says so.
    interval : float, optional
        Seconds between groups, at least.
    on_error : callable, optional
        Called with the exception of a background write that failed, without any lock held.
    start : bool, optional
        False: no thread; groups are written by `step` and `flush` alone.
    clock : callable, optional
        Monotonic seconds.
    spool_rows, spool_bytes : int, optional
        Bounds on what waits for the store.
    group_rows : int, optional
        A larger group is split, decisions first, so that no transaction keeps other processes waiting.
    backoff : (float, float), optional
        First and longest wait before a failed group is tried again, seconds.

    Attributes
    ----------
    written, dropped : int
        Rows that are durable; rows given up.
    groups, failed : int
        Transactions that succeeded; attempts (and calls of `drain`) that raised.
    """

    def __init__(
        self,
        store: Appendable,
        drain: Callable[[], Drained],
        *,
        interval: float = 0.1,
        on_error: Callable[[Exception], object] | None = None,
        start: bool = True,
        clock: Callable[[], float] = time.monotonic,
        spool_rows: int = 1 << 16,
        spool_bytes: int = 64 << 20,
        group_rows: int = 1 << 14,
        backoff: tuple[float, float] = (0.1, 30.0),
    ) -> None:
        if not 0 < interval < math.inf:
            raise SonaValueError(f"expected a positive, finite interval, got {interval!r}")
        if min(spool_rows, spool_bytes, group_rows) < 1:
            raise SonaValueError(
                f"expected bounds of at least 1, got spool_rows={spool_rows}, spool_bytes={spool_bytes}, group_rows={group_rows}"
            )
        if not 0 < backoff[0] <= backoff[1] < math.inf:
            raise SonaValueError(f"expected 0 < backoff[0] <= backoff[1], finite, got {backoff!r}")
        self.written = self.dropped = self.groups = self.failed = 0
        self._store = store
        self._drain = drain
        self._interval = interval
        self._on_error = on_error
        self._clock = clock
        self._spool = _Spool(spool_rows, spool_bytes)
        self._group_rows = group_rows
        self._backoff = backoff
        self._failures = 0  # in a row
        self._again: tuple[int, int, int] | None = None  # rows of a group that the store may have all the same
        self._retry_at = -math.inf
        self._lost = 0  # dropped since the last flush
        self._drain_error: Exception | None = None  # since the last flush
        self._quiet_until = -math.inf
        self._closed_because: str | None = None
        self._on_error_raised = False
        # Re-entrant only so that a signal handler that calls flush inside of flush gets an error and not a deadlock.
        self._flight = threading.RLock()
        self._in_flight = False
        self._notified = False
        self._wake = Signal()
        self._hurry = Signal()  # ends the pause between two groups
        self._waiting: deque[Told] = deque()
        self._stopping = Signal()
        self._last_error: Exception | None = None  # of the group that the thread wrote at its end
        self._thread: threading.Thread | None = None
        _open.add(self)
        if start:
            self._thread = threading.Thread(target=self._run, name="sona-writer", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def spooled(self) -> int:
        """Rows that wait for the store."""
        return len(self._spool)

    @property
    def closed(self) -> bool:
        return self._closed_because is not None

    def counters(self) -> dict[str, int]:
        """written, failed, spooled, dropped, groups."""
        return {name: getattr(self, name) for name in ("written", "failed", "spooled", "dropped", "groups")}

    def notify(self) -> None:
        """Say that there is something to drain. Costs a flag test except for the first call after a group."""
        # The writer clears the flag before it drains, so rows recorded before a notify that found it set are drained.
        if not self._notified:
            self._notified = True
            self._wake.set()

    def when_durable(self, told: Told) -> None:
        """
        What `flush` does, without waiting: a group is written at once, and everything recorded before the call is in it.

        Parameters
        ----------
        told : callable
            Called once, from another thread as a rule and without any lock held: with None when the rows are durable, else with the error
            that `flush` would raise, one object for each caller. It should return soon, since the writer waits for it.
        """
        self._waiting.append(told)
        if self.closed:  # nobody looks any more
            self._tell(self._taken(), SonaClosedError(f"the writer {self._closed_because}"), 0)
            return
        self._notified = True
        self._hurry.set()
        self._wake.set()

    def _taken(self) -> list[Told]:
        """Those who wait; each is taken once."""
        found = []
        with suppress(IndexError):  # another thread may be at it
            while self._waiting:
                found.append(self._waiting.popleft())
        return found

    def _tell(self, waiting: list[Told], error: Exception | None, lost: int) -> None:
        for told in waiting:
            try:
                told(self._unwritten(error, lost))
            except Exception:
                log.exception("when_durable: what was to be told raised", extra={"event": "callback.failed"})

    def _unwritten(self, error: Exception | None, lost: int) -> Exception | None:
        """What `flush` raises after a group that ended so."""
        if isinstance(error, SonaClosedError):
            return SonaClosedError(str(error))
        if error is not None:
            failed = SonaStoreError(f"flush failed, {self.spooled} rows wait to be written: {error}")
            failed.__cause__ = error
            return failed
        return SonaStoreError(f"flush wrote what was left, but {lost} rows were dropped since the last flush") if lost else None

    def step(self) -> int:
        """Drain and write one group, unless a failed one waits to be tried again; rows written. Never raises for the store."""
        written, error = shielded(self._step)
        self._report(error)
        return written

    def _step(self) -> tuple[int, Exception | None]:
        with self._turn(None):
            before = self.written
            waiting = self._taken()
            error = self._advance(force=bool(waiting))
            heard = self._outcome(error) if waiting else (None, 0)
        self._tell(waiting, *heard)
        return self.written - before, error

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything recorded before the call is durable.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for a group that another thread is writing.

        Raises
        ------
        SonaStoreError
            The write failed (the rows stay spooled), rows were dropped since the last flush, or the time ran out.
        SonaClosedError
            The writer is closed.
        """
        failed = shielded(lambda: self._unwritten(*self._flush(timeout)))
        if failed is not None:
            raise failed

    def _flush(self, timeout: float | None) -> tuple[Exception | None, int]:
        with self._turn(timeout):
            waiting = self._taken()
            error, lost = self._outcome(self._advance(force=True))
        self._tell(waiting, error, lost)
        return error, lost

    def _outcome(self, error: Exception | None) -> tuple[Exception | None, int]:
        """What those hear who wait for a group that was just tried, and what was lost since anybody last heard."""
        error = error or self._drain_error
        lost, self._lost, self._drain_error = self._lost, 0, None
        return error, lost

    def close(self, timeout: float | None = EXIT_TIMEOUT) -> None:
        """Write what is left and end the thread; a second call does nothing.

        Raises
        ------
        SonaStoreError
            The last rows could not be written within `timeout` seconds; they are counted as dropped.
        """
        shielded(lambda: self._close(timeout))

    def _close(self, timeout: float | None) -> None:
        if self.closed:
            return
        self._stopping.set()
        self._hurry.set()
        self._wake.set()
        give_up = math.inf if timeout is None else time.monotonic() + timeout
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        error: Exception | None
        waiting: list[Told] = []
        heard: tuple[Exception | None, int] = None, 0
        try:
            with self._turn(None if timeout is None else max(give_up - time.monotonic(), 0.0)):
                waiting = self._taken()
                error = self._last_error or self._advance(force=True)  # a store that hangs has kept the thread, and not who closes
                heard = self._outcome(error)
        except SonaClosedError:  # another thread closed it meanwhile
            return
        except _Reentered:  # the group under way goes on; closing now would give its rows up
            raise
        except SonaStoreError as exc:
            error = exc
        self._closed_because = "is closed"
        _open.discard(self)
        left = self.spooled
        self.dropped += left
        self._tell(waiting, *heard)
        self._tell(self._taken(), SonaClosedError(f"the writer {self._closed_because}"), 0)
        if error is not None:
            raise SonaStoreError(f"closed with {left} rows unwritten: {error}") from error

    # -- one group -------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self, timeout: float | None) -> Iterator[None]:
        if timeout is not None and not timeout >= 0:
            raise SonaValueError(f"expected timeout to be None or at least 0, got {timeout!r}")
        if timeout is None:
            with self._flight:  # as a call of acquire, Ctrl-C could come after it and before the block that releases
                yield from self._alone()
            return
        if not self._flight.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise SonaStoreError(f"another thread was still writing a group after {timeout} s")
        try:
            yield from self._alone()
        finally:
            self._flight.release()

    def _alone(self) -> Iterator[None]:
        if self._in_flight:
            raise _Reentered("called while the same thread writes a group (from a signal handler or from drain)")
        if self._closed_because is not None:
            raise SonaClosedError(f"the writer {self._closed_because}")
        self._in_flight = True
        try:
            yield
        finally:
            self._in_flight = False

    def _advance(self, *, force: bool) -> Exception | None:
        error: Exception | None = None
        self._notified = False
        try:
            self._spool.extend(*self._drain())
        except Exception as exc:
            self.failed += 1
            self._drain_error = error = exc
        if force or self._clock() >= self._retry_at:
            error = self._write() or error
        lost = self._spool.trim()
        if lost:
            self._again = None
        self.dropped += lost
        self._lost += lost
        if lost and error is None:
            error = SonaStoreError(f"the spool is full, {lost} rows were dropped")
        return error

    def _write(self) -> Exception | None:
        while len(self._spool):
            group = self._spool.head(self._group_rows) if self._again is None else self._spool.first(*self._again)
            rows = len(group[0]) + len(group[1]) + len(group[2])
            try:
                self._store.append(*group)
            except (TypeError, ValueError) as exc:  # the store will never take these rows
                self.failed += 1
                self._spool.remove(group)
                self._again = None
                self.dropped += rows
                self._lost += rows
                return exc
            except Exception as exc:
                self.failed += 1
                self._failures += 1
                if isinstance(exc, UnknownOutcome):
                    self._again = len(group[0]), len(group[1]), len(group[2])
                self._retry_at = self._clock() + min(self._backoff[0] * 2.0 ** min(self._failures - 1, 60), self._backoff[1])
                return exc
            self._spool.remove(group)
            if self._failures:
                log.info("the store takes what is written again", extra={"event": "store.write_recovered", "failures": self._failures})
            self._failures, self._retry_at, self._again = 0, -math.inf, None
            self.groups += 1
            self.written += rows
        return None

    def _report(self, error: Exception | None) -> None:
        if error is None:
            return
        if self._on_error is None:
            if self._clock() >= self._quiet_until:
                self._quiet_until = self._clock() + self._backoff[1]
                log_failure(error, self.spooled, self.dropped)
            return
        try:
            self._on_error(error)
        except Exception:
            if not self._on_error_raised:
                self._on_error_raised = True
                log.exception("on_error raised; said once", extra={"event": "callback.failed"})

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with suppress(SonaClosedError):
            while True:
                # Rows that wait for a retry need a wake-up of their own; without any the thread sleeps until notified.
                self._wake.wait(max(self._retry_at - self._clock(), 0.0) if self.spooled else None)
                if self._stopping.is_set():
                    break
                self._wake.clear()
                self.step()
                self._hurry.wait(self._interval)
                if self._stopping.is_set():
                    break
                self._hurry.clear()
            with self._turn(None):
                self._last_error = self._advance(force=True)

    def _disown(self) -> None:
        """Runs in a forked child, where the thread does not exist and any lock may be held for ever."""
        self._closed_because = "belongs to the parent of this forked process"
        self._thread = None
        self._flight = threading.RLock()
        self._in_flight = False
        self._notified = True  # notify does nothing from now on
        self._waiting.clear()
        self._spool.clear()


class _Spool:
    """Rows that are drained and not yet durable, oldest first, bounded when `trim` is called."""

    def __init__(self, most_rows: int, most_bytes: int) -> None:
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._bytes = 0
        self._decisions: deque[DecisionRow] = deque()
        self._feedback: deque[FeedbackRow] = deque()
        self._trajectories: deque[TrajectoryRow] = deque()

    def __len__(self) -> int:
        return len(self._decisions) + len(self._feedback) + len(self._trajectories)

    def extend(self, decisions: Iterable[DecisionRow], feedback: Iterable[FeedbackRow], trajectories: Iterable[TrajectoryRow]) -> None:
        # Whatever an iterable may raise, it raises before anything is kept.
        listed = list(decisions), list(feedback), list(trajectories)
        self._bytes += sum(row.nbytes for rows in listed for row in rows)
        self._decisions.extend(listed[0])
        self._feedback.extend(listed[1])
        self._trajectories.extend(listed[2])

    def head(self, most: int) -> Group:
        """The next `most` rows; feedback only once no decision is left before it."""
        decisions = min(len(self._decisions), most)
        trajectories = min(len(self._trajectories), most - decisions)
        return self.first(decisions, min(len(self._feedback), most - decisions - trajectories), trajectories)

    def first(self, decisions: int, feedback: int, trajectories: int) -> Group:
        """That many of each kind, which must be there."""
        islice = itertools.islice
        return (
            list(islice(self._decisions, decisions)),
            list(islice(self._feedback, feedback)),
            list(islice(self._trajectories, trajectories)),
        )

    def remove(self, group: Group) -> None:
        """Remove what `head` or `first` returned."""
        queues: tuple[deque[Any], ...] = (self._decisions, self._feedback, self._trajectories)
        for queue, rows in zip(queues, (len(group[0]), len(group[1]), len(group[2])), strict=True):
            for _ in range(rows):
                self._bytes -= queue.popleft().nbytes

    def trim(self) -> int:
        """Drop rows down to the bounds: oldest decisions, then trajectories, then feedback; rows dropped."""
        before = len(self)
        queues: tuple[deque[Any], ...] = (self._decisions, self._trajectories, self._feedback)
        for queue in queues:
            while queue and (len(self) > self._most_rows or self._bytes > self._most_bytes):
                self._bytes -= queue.popleft().nbytes
        return before - len(self)

    def clear(self) -> None:
        self._decisions.clear()
        self._feedback.clear()
        self._trajectories.clear()
        self._bytes = 0


def _disown_all() -> None:
    for writer in list(_open):
        writer._disown()
    _open.clear()


def _close_all() -> None:
    """At exit: a last group for every writer that was not closed."""
    for writer in list(_open):
        try:
            writer.close(EXIT_TIMEOUT)
        except Exception as exc:
            log.warning("at exit: %s", exc, extra={"event": "store.not_closed", "error": str(exc)})


os.register_at_fork(after_in_child=_disown_all)
atexit.register(_close_all)
