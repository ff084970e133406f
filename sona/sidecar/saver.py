"""Makes what was learned durable from a thread of its own, and tries again while the store cannot be written."""

import logging
import threading
import time
from collections.abc import Callable

from sona.errors import SonaError

FIRST_RETRY, LONGEST_RETRY = 0.5, 30.0  # s

log = logging.getLogger(__name__)


class Saver:
    """
    Runs one save at a time beside the loop that asks for it.

    Parameters
    ----------
    save : callable
        Raises where the store cannot be written.
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    saves, failures : int
    last_error : str or None
        None since the last save that worked.
    """

    def __init__(self, save: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._save, self._clock = save, clock
        self._wanted, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._ending = False
        self._mark: int | None = None  # of the save that is on or has ended
        self._ended = False  # it has, and nobody has asked since
        self._in_a_row = 0
        self._retry_at = 0.0
        self.saves = self.failures = 0
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name="sona-saver", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether `begin` may be called: no save is on, and the pause after one that failed is over."""
        return self._idle.is_set() and not self._ended and self._clock() >= self._retry_at

    def begin(self, mark: int) -> None:
        """Start to save what has been learned until now, which the ring calls `mark`."""
        self._mark = mark
        self._idle.clear()
        self._wanted.set()

    def ended(self) -> int | None:
        """The mark of a save that has worked since the last call, or None."""
        if not self._idle.is_set() or not self._ended:
            return None
        self._ended = False
        return self._mark

    def wait(self) -> None:
        """Return when no save is on."""
        self._idle.wait()

    def close(self) -> None:
        """End the thread, after a save that is on."""
        self._ending = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.wait():
            self._wanted.clear()
            if self._ending:
                return
            try:
                self._save()
            except Exception as error:  # the disk, the database: what is not saved stays in the ring
                self._failed(error)
            else:
                self.saves += 1
                self._in_a_row, self._retry_at, self.last_error = 0, 0.0, None
                self._ended = True
            self._idle.set()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        pause = min(FIRST_RETRY * 2.0**self._in_a_row, LONGEST_RETRY)
        self._in_a_row = min(self._in_a_row + 1, 30)
        self._retry_at = self._clock() + pause
        self.last_error = f"{type(error).__name__}: {error}"
        log.warning(
            "not saved, next attempt in %g s: %s",
            pause,
            error,
            exc_info=None if isinstance(error, SonaError) else error,
            extra={"event": "state.not_saved", "error": str(error)},
        )
