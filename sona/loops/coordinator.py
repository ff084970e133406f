"""Runs the loops in time: from a thread of its own, or whenever it is asked."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from sona.errors import SonaClosedError, SonaTypeError
from sona.loops.background import BackgroundResult
from sona.loops.deep import DeepResult
from sona.loops.ruling import between

log = logging.getLogger("sona")


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
    A cycle or a callback that fails is tried again when the next one is due. No lock is held during a callback: it may call `stop`.
    The thread ends by itself when the learner is closed, and never keeps the interpreter from exiting.
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
        self._busy = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.cycles = self.deep_cycles = 0
        self.failures = 0
        self.last_result: BackgroundResult | None = None
        self.last_deep_result: DeepResult | None = None
        self.last_error: str | None = None

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
            if result is not None:
                self.cycles += 1
                self.last_result = result
            return result
        if now >= self._next_deep:
            self._next_deep = now + self._between_deep
            deep: DeepResult | None = self._guarded("deep cycle", self._learner.deep_learn)
            if deep is not None:
                self.deep_cycles += 1
                self.last_deep_result = deep
            return deep
        return None

    def _guarded(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except SonaClosedError:
            raise
        except Exception as error:  # the caller's code, or a store that cannot be written: the next turn tries again
            self.failures += 1
            self.last_error = f"{what}: {type(error).__name__}: {error}"
            log.warning("%s", self.last_error, exc_info=True)
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
