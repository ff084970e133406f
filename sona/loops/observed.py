"""What others may see of the work of an engine: counts, and calls at the beginning and the end of each piece."""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sona._locks import lock

T = TypeVar("T")

WORK = ("background_cycle", "deep_cycle", "trial_decision", "publish")
STATUSES = ("completed", "cut", "skipped", "failed")

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """
    Told of each piece of work by the thread that does it, one of `ended` and `failed` after each `began` that returned. What these raise
    is logged, and the work goes on.
    """

    def began(self, work: str) -> Any:
        """One of `WORK` begins; what is returned comes back as `token`."""

    def ended(self, token: Any, result: Any) -> object:
        """A BackgroundResult, DeepResult or Version."""

    def failed(self, token: Any, error: BaseException) -> object:
        """It raised this, and the caller gets it."""


class Observed:
    """
    Runs pieces of work, counts them, and tells the watchers; without any it costs two clock readings and a lock a piece.

    Thread-safety
    -------------
    Any thread.
    """

    def __init__(self) -> None:
        self._watchers: tuple[Watcher, ...] = ()
        self._mutex = lock(brief=True)
        self._counts = {work: dict.fromkeys(STATUSES, 0) for work in WORK}
        self._last: dict[str, tuple[float, float]] = {}  # of the last that was not skipped: s that it took, wall clock of its end

    def add(self, watcher: Watcher) -> None:
        """Tell it from the next piece on; once, however often it is added."""
        with self._mutex:
            if watcher not in self._watchers:
                self._watchers = (*self._watchers, watcher)

    def remove(self, watcher: Watcher) -> None:
        """Tell it no more, but for the end of what it saw begin; nothing happens where it was not told."""
        with self._mutex:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)

    @property
    def watchers(self) -> tuple[Watcher, ...]:
        """Who is told."""
        return self._watchers

    def run(self, work: str, call: Callable[[], T]) -> T:
        """What `call` returns or raises."""
        began = time.perf_counter()
        watching: list[tuple[Watcher, Any]] = []
        for watcher in self._watchers:
            try:
                watching.append((watcher, watcher.began(work)))
            except Exception as error:
                _log_watcher(work, error)
        try:
            result = call()
        except BaseException as error:
            self._count(work, "failed", began)
            for watcher, token in reversed(watching):
                _tell(work, watcher.failed, token, error)
            raise
        self._count(work, getattr(result, "status", "completed").partition(":")[0], began)
        for watcher, token in reversed(watching):
            _tell(work, watcher.ended, token, result)
        return result

    def _count(self, work: str, status: str, began: float) -> None:
        with self._mutex:
            self._counts[work][status] += 1
            if status != "skipped":
                self._last[work] = (time.perf_counter() - began, time.time())

    def stats(self) -> dict[str, dict[str, float]]:
        """By work: how many were completed, cut, skipped and failed; of the last not skipped its `seconds` and when it was over, `at`."""
        with self._mutex:
            return {
                work: {**counts, **dict(zip(("seconds", "at"), self._last.get(work, ()), strict=False))}
                for work, counts in self._counts.items()
            }


def _tell(work: str, call: Callable[[Any, Any], object], token: Any, about: Any) -> None:
    try:
        call(token, about)
    except Exception as error:
        _log_watcher(work, error)


def _log_watcher(work: str, error: Exception) -> None:
    log.warning("a watcher of %s raised: %s", work, error, exc_info=error, extra={"event": "watcher.failed", "work": work})
