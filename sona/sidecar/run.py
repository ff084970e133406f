"""The loop of ``sona learn``: read, learn, publish, save, release."""

import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sona.config import SonaConfig
from sona.engine import SonaEngine
from sona.errors import SonaError, SonaValueError
from sona.loops.background import BackgroundResult
from sona.loops.coordinator import LoopCoordinator
from sona.loops.deep import DeepResult
from sona.sidecar._shared import SharedRing, Weights
from sona.sidecar.consumer import Consumer, LearnerReplaced
from sona.sidecar.saver import Saver

BATCH = 64  # records between publications, at most
BATCH_SECONDS = 0.002  # and about so long
LOOK_EVERY = 1.0  # s between looks at whether the files are still those that were opened
GIVE_UP = 5.0  # s that the end waits for a cycle of a loop

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SidecarConfig:
    """
    Attributes
    ----------
    engine : SonaConfig
    name : str
        Under which the state is kept in the store.
    model_fingerprint : str, optional
        Identifies the frozen model: a stored state of another one is refused, and so are weights by a reader that names another.
    capacity : int
        Bytes of the ring where the producer has not made it yet; a power of two, at least 4096.
    save_every : float
        Seconds between saves, at most; also when the ring is half full.
    poll : float
        Seconds between looks into an empty ring.
    cycles : bool
        Whether background and deep cycles are run when they are due.
    """

    engine: SonaConfig
    name: str = "default"
    model_fingerprint: str | None = None
    capacity: int = 4 << 20
    save_every: float = 1.0
    poll: float = 0.001
    cycles: bool = True

    def __post_init__(self) -> None:
        if self.capacity < 4096 or self.capacity & (self.capacity - 1):
            raise SonaValueError(f"capacity: expected a power of two of at least 4096, got {self.capacity}")
        for name, most in (("save_every", 3600.0), ("poll", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise SonaValueError(f"{name}: expected seconds, a number from 0 to {most:g}, got {getattr(self, name)}")


def fingerprint_of(text: str | None) -> int:
    """The 64 bits that stand for a model's name in the file of the weights: the first 8 bytes of its SHA-256, little-endian; 0 for None."""
    return 0 if text is None else int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def max_rank(config: SonaConfig) -> int:
    """Rows that an adapter of this configuration may have: the largest rank, and what piles up between truncations."""
    return 2 * max(config.base_lora_rank_max, 16) + config.micro_lora_rank


class Sidecar:
    """
    Learns from a shared ring, publishes the weights, and keeps everything in a store.

    Parameters
    ----------
    ring, weights : path
        Files that the other process maps, best in /dev/shm; each is made when absent.
    store : path
        Or whatever else `SonaEngine` takes to open a store.
    config : SidecarConfig
    progress : callable, optional
        Takes `report()` about once a second.

    Notes
    -----
    Records are learned in batches, and the weights published after each that changed them, before anything slow. Saves run in a thread of
    their own, cycles of the background and the deep loop in another. Where the store fails, learning and publishing go on and nothing is
    released: the ring fills, and its producer drops and counts.

    A ring or weights file that is replaced by another one is left, everything in it learned and saved, for the new one. Where the learning
    lease was lost and another process has led before it is taken again, all are opened anew, and what it has not learned is read again.

    Thread-safety
    -------------
    `run`: once at a time. `stop`: any thread, and signal handlers. `report`: any thread.
    """

    def __init__(
        self,
        ring: str | os.PathLike[str],
        *,
        store: Any,
        weights: str | os.PathLike[str],
        config: SidecarConfig,
        progress: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self.ring, self.weights, self.store, self.config = os.fspath(ring), os.fspath(weights), store, config
        self._progress = progress
        self._stopped = False  # no event: the handler of a signal may find its lock held by the very thread that it interrupts
        self._began = time.monotonic()
        self._done: Counter[str] = Counter()  # of files that were left
        self._bad: Counter[str] = Counter()
        self._last: dict[str, Any] = {}
        self._open: _Open | None = None
        self._counting = threading.Lock()  # held while they are left, after which they answer no more

    def stop(self) -> None:
        """Let `run` learn what waits, save it and return."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether it has been told to."""
        return self._stopped

    def run(self, *, once: bool = False) -> dict[str, Any]:
        """
        Work until `stop`, or with `once` until the ring is empty; what `report` says at the end.

        Raises
        ------
        SonaStoreError
            Another process reads the ring, writes the weights or learns for the store; or the store cannot be opened or, at the end, not be
            written: then what it does not have is still in the ring.
        SonaVersionError
            Ring, weights or state belong to another model, shape or format.
        SonaCorruptError
            One of the files is damaged.
        """
        while True:
            replaced: object = None
            with _Open(self) as files:
                self._open = files
                try:
                    files.work(once=once)
                except LearnerReplaced as error:
                    replaced = error
                finally:
                    self._leave(files)
            if replaced is None:
                if once or self._stopped:
                    return self.report()
                replaced = f"{self.ring} or {self.weights} was replaced"
            log.warning("%s: opened again", replaced, extra={"event": "sidecar.reopened", "reason": str(replaced)})

    def _leave(self, files: "_Open") -> None:
        with self._counting:
            self._open = None
            self._last = files.now()
            self._done += Counter(files.counts())
            self._bad += files.consumer.bad

    def report(self) -> dict[str, Any]:
        """Counts since `run` began, and what ring and weights are like now; without these before they are open."""
        with self._counting:
            files = self._open
            counts, bad, now = self._done, self._bad, self._last
            if files is not None:
                counts, bad, now = counts + Counter(files.counts()), bad + files.consumer.bad, files.now()
        return {"seconds": time.monotonic() - self._began, **{name: counts[name] for name in _COUNTS}, "bad": dict(bad), **now}


_COUNTS = ("trajectories", "feedback", "again", "published", "publish_failures", "saves", "save_failures", "cycles")


class _Open:
    """Ring, store and weights while they are open, and the loop over them."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar, config = sidecar, sidecar.config
        self.published = self.publish_failures = 0
        with ExitStack() as stack:
            self.ring = SharedRing.consumer(sidecar.ring, config.capacity)  # first: it tells that another sidecar is at work
            stack.callback(self.ring.close)
            self.engine = SonaEngine(config.engine, store=sidecar.store, name=config.name, model_fingerprint=config.model_fingerprint)
            stack.callback(self.engine.close)
            if not self.engine.enabled:
                raise SonaValueError("SONA_DISABLE=1: expected to learn")
            self.consumer = Consumer(self.engine, self.ring)
            self.weights = Weights.writer(
                sidecar.weights,
                layers=config.engine.num_layers,
                dim=config.engine.hidden_dim,
                max_rank=max_rank(config.engine),
                fingerprint=fingerprint_of(config.model_fingerprint),
            )
            stack.callback(self.weights.close)
            self._files = self._identities()
            self.saver = Saver(self.consumer.save)
            stack.callback(self.saver.close)
            self.cycles = _Cycles(self.engine, on=config.cycles)
            self.coordinator = LoopCoordinator(self.cycles).start()
            stack.callback(self._end_cycles)
            self._stack = stack.pop_all()
        self._taken = 0  # records
        self._published_at = (-1, 0)  # steps learned and version; whatever the file has, it is not what this process has learned
        self._saved_at = self._learned
        self._last_save = time.monotonic()
        self._next_look = time.monotonic() + LOOK_EVERY

    def __enter__(self) -> "_Open":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- the loop ----

    def work(self, *, once: bool) -> None:
        """Until the sidecar is told to stop, until the files are replaced, or `once`; everything that was read is saved then."""
        poll = self.sidecar.config.poll
        self._drain()  # what a crash left is learned before readers see weights that do not have it
        while not (once or self.sidecar.stopped or self._replaced()):
            taken = self._take()
            self._publish()
            self._save_when_due()
            if not taken:
                time.sleep(poll)
        self._drain()
        self._publish()
        self._finish()

    @property
    def _steps(self) -> int:
        """Learned so far, also from rewards that other processes have brought to the store."""
        metrics = self.engine.loop_a.metrics
        return metrics.accumulated + metrics.revised

    @property
    def _learned(self) -> tuple[int, int]:
        return self._taken, self._steps

    def _take(self) -> int:
        taken, end = 0, time.monotonic() + BATCH_SECONDS
        while taken < BATCH and self.consumer.take(1):
            taken += 1
            if time.monotonic() >= end:
                break
        self._taken += taken
        return taken

    def _drain(self) -> None:
        """Learn what is in the ring now; a producer that goes on does not keep this from ending, because nothing is released."""
        while self._take():
            pass

    def _publish(self) -> None:
        if (self._steps, self.cycles.version) == self._published_at:
            return
        try:
            with self.engine.ended.mutex:  # rewards that other processes have brought are learned in another thread, and versions served
                self._published_at = self._steps, self.cycles.version
                self.weights.publish(self.engine.adapters, self.cycles.version)
        except SonaError as error:
            self.publish_failures += 1
            log.warning("weights: %s", error, extra={"event": "weights.not_published", "error": str(error)})
        else:
            self.published += 1

    def _save_when_due(self) -> None:
        mark = self.saver.ended()
        if mark is not None:
            self.ring.release(mark)
        now = time.monotonic()
        due = now - self._last_save >= self.sidecar.config.save_every or self.ring.used > self.ring.capacity // 2
        if due and self.saver.ready and (self._learned != self._saved_at or self.saver.last_error is not None):
            self.consumer.settle()
            self._last_save, self._saved_at = now, self._learned
            self.saver.begin(self.ring.mark())

    def _finish(self) -> None:
        """Save in this thread and release; what cannot be saved stays in the ring."""
        self.saver.wait()
        settled = self.consumer.settle()
        mark = self.ring.mark()
        self.consumer.save()
        self.saver.saves += 1
        self.ring.release(mark)
        if not settled:
            owed = self.consumer.owed
            log.warning(
                "%d rewards wait in the state for trajectories that could not be read",
                owed,
                extra={"event": "sidecar.rewards_wait", "rewards": owed},
            )

    # ---- files ----

    def _identities(self) -> list[tuple[int, int] | None]:
        return [_identity(self.sidecar.ring), _identity(self.sidecar.weights)]

    def _replaced(self) -> bool:
        """Once a second: whether another file has the name of the ring, or the weights are not where readers look for them."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        if self.sidecar._progress is not None:
            self.sidecar._progress(self.sidecar.report())
        ring, weights = self._identities()
        return (ring is not None and ring != self._files[0]) or weights != self._files[1]

    # ---- the slow loops ----

    def _end_cycles(self) -> None:
        """A cycle that is killed leaves what was before, so nobody waits long for one."""
        ending = threading.Thread(target=self.coordinator.stop, daemon=True)
        ending.start()
        ending.join(GIVE_UP)

    # ---- counts ----

    def counts(self) -> dict[str, int]:
        """What grows."""
        consumer, saver = self.consumer, self.saver
        return {
            "trajectories": consumer.trajectories,
            "feedback": consumer.feedback,
            "again": consumer.again,
            "published": self.published,
            "publish_failures": self.publish_failures,
            "saves": saver.saves,
            "save_failures": saver.failures,
            "cycles": self.cycles.completed,
        }

    def now(self) -> dict[str, Any]:
        """What is."""
        ring = self.ring
        return {
            "owed": self.consumer.owed,
            "ring": {"used": ring.used, "capacity": ring.capacity, "dropped": ring.dropped, "damaged": ring.damaged},
            "epoch": self.weights.epoch,
            "version": self.cycles.version,
            "store_error": self.saver.last_error,
        }


class _Cycles:
    """What is due in an engine, for a thread of its own; another one teaches it meanwhile, with `engine.ended.mutex` held."""

    def __init__(self, engine: SonaEngine, *, on: bool) -> None:
        self.engine, self._on = engine, on
        self.completed = 0
        self.version = self._published()

    def tick(self) -> None:
        """Learn what other processes have brought to the store."""
        self.engine.tick()
        self.version = self._published()

    def _published(self) -> int:
        assert self.engine.store is not None
        return self.engine.store.published(self.engine.name) or 0

    def background_learn(self) -> BackgroundResult:
        result = self.engine.background_learn() if self._on else BackgroundResult.skipped("cycles are switched off")
        self.completed += result.status == "completed"
        return result

    def deep_learn(self) -> DeepResult:
        result = self.engine.deep_learn() if self._on else DeepResult.skipped("cycles are switched off")
        self.completed += result.status == "completed"
        return result


def _identity(path: str) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino
