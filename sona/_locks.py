"""Locks that a forked child finds free, whatever thread of its parent held them, and a signal that Ctrl-C leaves in order."""

import _thread
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 0.1  # s that a fork waits for what the locks guard to be whole; afterwards the child may miss an update that was under way

_brief: "weakref.WeakSet[Any]" = weakref.WeakSet()
_long: "weakref.WeakSet[Any]" = weakref.WeakSet()
_fork = threading.local()


def lock(*, brief: bool = False) -> threading.Lock:
    """A lock; brief: never held for long, so that a fork waits for it."""
    made = threading.Lock()
    (_brief if brief else _long).add(made)
    return made


def rlock(*, brief: bool = False) -> Any:
    """The same, re-entrant."""
    made = threading.RLock()
    (_brief if brief else _long).add(made)
    return made


class Signal:
    """
    As `threading.Event`, for one waiting thread.

    `Event.set` takes a lock in Python code: where Ctrl-C comes in between, nobody ever gets that lock again.
    """

    def __init__(self) -> None:
        self._set = False
        self._lock = threading.Lock()  # released by `set`, taken by the thread that waits
        self._lock.acquire()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        with suppress(RuntimeError):  # released already
            self._lock.release()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is set, after at most `timeout` seconds."""
        give_up = math.inf if timeout is None else time.monotonic() + timeout
        while not self._set:
            left = min(max(give_up - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
            if not self._lock.acquire(timeout=left):
                break
        return self._set


def shielded(work: Callable[[], T]) -> T:
    """
    `work()`, and all of it, whatever Ctrl-C does: Python raises KeyboardInterrupt in the main thread alone, and only the waiting is that
    thread's here. Interrupted, the caller goes on at once and the work in the background.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return work()
    done, found, failed = threading.Lock(), [], []
    done.acquire()

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            done.release()

    try:
        _thread.start_new_thread(run, ())  # threading.Thread.start can itself be left in disorder by Ctrl-C
    except RuntimeError:  # at the end of the interpreter there are no more threads
        return work()
    done.acquire()
    if failed:
        raise failed[0]
    return found[0]


def _before_fork() -> None:
    _fork.held = []
    give_up = time.monotonic() + PATIENCE
    for each in list(_brief):
        if each.acquire(timeout=max(give_up - time.monotonic(), 0)):
            _fork.held.append(each)


def _after_fork_in_parent() -> None:
    for each in reversed(_fork.held):
        each.release()
    _fork.held = []


def _after_fork_in_child() -> None:
    for each in (*_brief, *_long):
        each._at_fork_reinit()
    _fork.held = []


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
