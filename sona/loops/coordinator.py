"""Runs the loops in time: from a thread of its own, or whenever it is asked."""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from sona._locks import Signal, lock
from sona.errors import SonaClosedError, SonaTypeError
from sona.loops.background import BackgroundResult
from sona.loops.deep import DeepResult
from sona.loops.ruling import between

RETRY = (60.0, 3600.0)  # s after the first failure of a cycle in a row, doubled after each further one up to the second number

EXIT_TIMEOUT = 10.0  # s that the end of the interpreter waits for a cycle under way

log = logging.getLogger(__name__)

_all: "weakref.WeakSet[LoopCoordinator]" = weakref.WeakSet()


class LoopCoordinator:
    """
    Ticks a router or an engine, and starts a background cycle whenever `extraction_interval` of its configuration has passed, and a deep
    one whenever `deep_interval` has passed since the last, which may have been in another process.

    Parameters
    ----------
    learner : Router or SonaEngine
    interval : float
        Seconds between ticks of the thread.
    on_cycle, on_deep_cycle : callable, optional
        Take the BackgroundResult and the DeepResult of each cycle, skipped ones too. What they raise is logged and counted, and nothing
        stops.
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    cycles, deep_cycles, failures : int
        Cycles that ended, and ticks, cycles and callbacks that raised.
    last_result : BackgroundResult or None
    last_deep_result : DeepResult or None
    last_error : str or None

    Notes
    -----
    A cycle that fails is tried again after a minute, then after two, four and so on, up to an hour or its interval if that is shorter; a
    callback that fails is not called again for its result. No lock is held during a callback: it may call `stop`.
    The thread ends by itself when the learner is closed. At the end of the interpreter a cycle under way has ten seconds to end.
    """

    def __init__(
        self,
        learner: Any,
        *,
        interval: float = 1.0,
        on_cycle: Callable[[BackgroundResult], object] | None = None,
        on_deep_cycle: Callable[[DeepResult], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        between("interval", interval, 0, float("inf"))
        self._learner, self._interval, self._clock = learner, interval, clock
        self._on_cycle, self._on_deep_cycle = on_cycle, on_deep_cycle
        self._any_thread = hasattr(learner, "engine")  # a router; an engine is used by one thread at a time
        engine = learner.engine if self._any_thread else learner
        self._between_cycles: float = engine.loop_b.config.extraction_interval
        self._next_cycle = clock() + self._between_cycles
        self._between_deep: float = engine.loop_c.config.deep_interval
        self._next_deep = clock() + engine.loop_c.due_in()
        self._failed = {"background cycle": 0, "deep cycle": 0}  # in a row
        self._busy = lock()
        self._stopped = Signal()
        self._thread: threading.Thread | None = None
        self.cycles = self.deep_cycles = 0
        self.failures = 0
        self.last_result: BackgroundResult | None = None
        self.last_deep_result: DeepResult | None = None
        self.last_error: str | None = None
        _all.add(self)

    def _after_fork(self) -> None:
        """Runs in a forked child, where the thread does not exist."""
        self._stopped, self._thread = Signal(), None

    def run_due(self) -> BackgroundResult | DeepResult | None:
        """
        Tick, and run one cycle if one is due, a background cycle first; its result, or None where none was due or another call is on.

        Raises
        ------
        SonaClosedError
            The learner is closed.
        """
        if not self._busy.acquire(blocking=False):
            return None
        try:
            result = self._cycle()
        finally:
            self._busy.release()
        if isinstance(result, BackgroundResult) and self._on_cycle is not None:
            self._guarded("on_cycle", self._on_cycle, result)
        if isinstance(result, DeepResult) and self._on_deep_cycle is not None:
            self._guarded("on_deep_cycle", self._on_deep_cycle, result)
        return result

    def _cycle(self) -> BackgroundResult | DeepResult | None:
        self._guarded("tick", self._learner.tick)
        now = self._clock()
        if now >= self._next_cycle:
            self._next_cycle = now + self._between_cycles
            result: BackgroundResult | None = self._guarded("background cycle", self._learner.background_learn)
            if result is None:
                self._next_cycle = self._retry_at("background cycle", self._between_cycles)
                return None
            self._failed["background cycle"] = 0
            self.cycles += 1
            self.last_result = result
            return result
        if now >= self._next_deep:
            self._next_deep = now + self._between_deep
            deep: DeepResult | None = self._guarded("deep cycle", self._learner.deep_learn)
            if deep is None:
                self._next_deep = self._retry_at("deep cycle", self._between_deep)
                return None
            self._failed["deep cycle"] = 0
            self.deep_cycles += 1
            self.last_deep_result = deep
            return deep
        return None

    def _retry_at(self, what: str, between: float) -> float:
        wait = min(RETRY[0] * 2.0 ** min(self._failed[what], 60), RETRY[1], between)
        self._failed[what] += 1
        return self._clock() + wait

    def _guarded(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except SonaClosedError:
            raise
        except Exception as error:  # the caller's code, or a store that cannot be written: the next turn tries again
            if not threading.main_thread().is_alive():  # the interpreter ends, and a cycle may need what is not to be had any more
                return None
            self.failures += 1
            self.last_error = f"{what}: {type(error).__name__}: {error}"
            log.warning("%s", self.last_error, exc_info=True, extra={"event": "loop.failed", "work": what, "error": str(error)})
            return None

    # ---- a thread ----

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> Self:
        """
        Call `run_due` every `interval` seconds from a thread; a second call while it runs does nothing.

        Raises
        ------
        SonaTypeError
            The learner is a SonaEngine alone, which one thread at a time may use: call `run_due` from that thread.
        """
        if not self._any_thread:
            raise SonaTypeError("start: expected a Router, got a SonaEngine, which only one thread may use; call run_due from that thread")
        if not self.running:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, name="sona-loops", daemon=True)
            self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self.run_due()
            except SonaClosedError:
                return

    def stop(self) -> None:
        """End the thread and wait for it; a cycle under way is finished first. From within a callback: without waiting."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _after_fork_in_child() -> None:
    for coordinator in list(_all):
        coordinator._after_fork()


def _stop_all() -> None:
    """At exit: a thread that is inside of compiled code when the interpreter goes would end the process with an error."""
    give_up = time.monotonic() + EXIT_TIMEOUT
    for coordinator in list(_all):
        coordinator._stopped.set()
    for coordinator in list(_all):
        thread = coordinator._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(give_up - time.monotonic(), 0.0))


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_stop_all)
