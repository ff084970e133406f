"""Promises of the coordinator: one cycle at a time, when due, and no failure of anybody's code ends it."""

import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reference import Clusters

from sona import LoopCoordinator, Router, SonaConfig, SonaEngine
from sona.errors import SonaClosedError, SonaStoreError, SonaTypeError, SonaValueError
from sona.loops.background import BackgroundLoopConfig, BackgroundResult
from sona.loops.deep import DeepResult
from sona.patterns import PatternConfig

WAIT = 30.0  # seconds before a test gives up


class Learner:
    """Stands in for a router whose cycles do what a test wants."""

    def __init__(self, extraction_interval: float = 60.0, cycle: Callable[[], BackgroundResult] | None = None) -> None:
        self.engine = SimpleNamespace(
            loop_b=SimpleNamespace(config=SimpleNamespace(extraction_interval=extraction_interval)),
            loop_c=SimpleNamespace(config=SimpleNamespace(deep_interval=1000.0), due_in=lambda: 700.0),
        )
        self.deep_cycles = 0
        self.ticks = 0
        self.cycles = 0
        self.cycle = cycle or (lambda: BackgroundResult(status="completed"))
        self.tick_error: Exception | None = None

    def tick(self) -> None:
        self.ticks += 1
        if self.tick_error is not None:
            raise self.tick_error

    def background_learn(self) -> BackgroundResult:
        self.cycles += 1
        return self.cycle()

    def deep_learn(self) -> DeepResult:
        self.deep_cycles += 1
        return DeepResult(status=f"deep {self.deep_cycles}")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_cycle_runs_when_its_interval_has_passed_and_every_call_ticks() -> None:
    clock, learner = Clock(), Learner(60.0)
    coordinator = LoopCoordinator(learner, clock=clock)
    seen = []
    for clock.now in (100.0, 159.9, 160.0, 160.1, 219.9, 220.0, 500.0, 501.0):
        seen.append(coordinator.run_due() is not None)
    assert seen == [False, False, True, False, False, True, True, False]
    assert (learner.ticks, learner.cycles, coordinator.cycles, coordinator.failures) == (8, 3, 3, 0)
    assert coordinator.last_result == BackgroundResult(status="completed")


def test_a_deep_cycle_runs_when_its_own_interval_has_passed_after_a_background_cycle_that_is_due_too() -> None:
    clock, learner = Clock(), Learner(600.0)
    seen: list[str] = []
    coordinator = LoopCoordinator(
        learner,
        clock=clock,
        on_cycle=lambda result: seen.append(result.status),
        on_deep_cycle=lambda result: seen.append(result.status),
    )
    for clock.now in (799.0, 800.0, 801.0, 1799.0, 1799.5, 1800.0, 1801.0):
        coordinator.run_due()
    assert seen == ["completed", "deep 1", "completed", "deep 2"]  # at 799, 800, 1799 and 1800
    assert (coordinator.cycles, coordinator.deep_cycles, coordinator.failures) == (2, 2, 0)
    assert coordinator.last_deep_result == DeepResult(status="deep 2")


def test_the_callback_sees_every_result_also_skipped_ones() -> None:
    clock, seen = Clock(), list[str]()
    learner = Learner(cycle=lambda: BackgroundResult.skipped("too few"))
    coordinator = LoopCoordinator(learner, clock=clock, on_cycle=lambda result: seen.append(result.status))
    clock.now += 60
    coordinator.run_due()
    assert seen == ["skipped: too few"]


def test_a_cycle_that_fails_is_counted_logged_and_tried_again_when_due(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> BackgroundResult:
        raise SonaStoreError("the disk is full")

    clock, learner = Clock(), Learner(cycle=fail)
    coordinator = LoopCoordinator(learner, clock=clock)
    clock.now += 60
    with caplog.at_level(logging.WARNING, "sona"):
        assert coordinator.run_due() is None
    assert coordinator.last_error == "background cycle: SonaStoreError: the disk is full"
    assert "the disk is full" in caplog.text
    assert coordinator.run_due() is None
    assert learner.cycles == 1
    learner.cycle = lambda: BackgroundResult(status="completed")
    clock.now += 60
    assert coordinator.run_due() is not None
    assert (coordinator.cycles, coordinator.failures) == (1, 1)


def test_a_callback_or_a_tick_that_fails_stops_nothing() -> None:
    def callback(result: BackgroundResult) -> None:
        raise RuntimeError("somebody else's")

    clock, learner = Clock(), Learner()
    coordinator = LoopCoordinator(learner, clock=clock, on_cycle=callback)
    learner.tick_error = SonaStoreError("locked")
    for _ in range(3):
        clock.now += 60
        assert coordinator.run_due() is not None
    assert (coordinator.cycles, coordinator.failures) == (3, 6)
    assert coordinator.last_error == "on_cycle: RuntimeError: somebody else's"


def test_the_thread_outlives_callbacks_and_cycles_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    enough, learner = threading.Event(), Learner(1e-3)

    def fail(_: BackgroundResult) -> None:
        if learner.cycles >= 5:
            enough.set()
        raise RuntimeError("somebody else's")

    def cycle() -> BackgroundResult:
        if learner.cycles % 2:
            return BackgroundResult(status="completed")
        raise SonaStoreError("the disk is full")

    learner.cycle = cycle
    with caplog.at_level(logging.WARNING, "sona"), LoopCoordinator(learner, interval=1e-3, on_cycle=fail) as coordinator:
        assert enough.wait(WAIT)
        assert coordinator.running
    works = [vars(record)["work"] for record in caplog.records]
    assert set(works) == {"on_cycle", "background cycle"}
    assert coordinator.failures == len(works) >= 5


def test_a_second_call_while_a_cycle_runs_does_nothing() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow() -> BackgroundResult:
        inside.set()
        assert leave.wait(WAIT)
        return BackgroundResult(status="completed")

    clock, learner = Clock(), Learner(cycle=slow)
    coordinator = LoopCoordinator(learner, clock=clock)
    clock.now += 60
    first = threading.Thread(target=coordinator.run_due)
    first.start()
    assert inside.wait(WAIT)
    clock.now += 60
    assert coordinator.run_due() is None
    assert learner.ticks == 1
    leave.set()
    first.join(WAIT)
    assert learner.cycles == 1


def test_the_thread_runs_cycles_until_it_is_stopped() -> None:
    enough = threading.Event()
    learner = Learner(1e-3)
    coordinator = LoopCoordinator(learner, interval=1e-3, on_cycle=lambda _: learner.cycles >= 3 and enough.set())
    with coordinator:
        thread = coordinator._thread
        assert coordinator.start() is coordinator
        assert coordinator._thread is thread
        assert enough.wait(WAIT)
        assert coordinator.running
    assert not coordinator.running
    ticks = learner.ticks
    coordinator.stop()
    assert learner.ticks == ticks
    enough.clear()
    learner.cycles = 0
    with coordinator:
        assert enough.wait(WAIT)


def test_a_callback_may_stop_the_thread() -> None:
    coordinator: list[LoopCoordinator] = []
    coordinator.append(LoopCoordinator(Learner(1e-3), interval=1e-3, on_cycle=lambda _: coordinator[0].stop()))
    thread = coordinator[0].start()._thread
    assert thread is not None
    thread.join(WAIT)
    assert not coordinator[0].running


def test_the_thread_ends_when_the_learner_is_closed() -> None:
    learner = Learner()
    learner.tick_error = SonaClosedError("the router is closed")
    coordinator = LoopCoordinator(learner, interval=1e-3).start()
    thread = coordinator._thread
    assert thread is not None
    thread.join(WAIT)
    assert not coordinator.running
    assert coordinator.failures == 0
    with pytest.raises(SonaClosedError):
        coordinator.run_due()


def test_a_router_learns_in_the_background_while_it_serves() -> None:
    world, done = Clusters(3), threading.Event()
    config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=20, k_clusters=6), min_trajectories=50, extraction_interval=1e-3)
    results: list[BackgroundResult] = []

    def on_cycle(result: BackgroundResult) -> None:
        results.append(result)
        if result.status == "completed" and result.version is not None:
            done.set()

    with Router(world.arms, background=config, guard=False) as router:
        with LoopCoordinator(router, interval=1e-3, on_cycle=on_cycle) as coordinator:
            while not done.is_set() and len(results) < 100_000:
                x, k = world.draw()
                d = router.route(x)
                router.feedback(d.id, float(d.arm == k))
        assert done.is_set()
        assert coordinator.failures == 0, coordinator.last_error
        assert router.engine.versions()


def test_an_engine_alone_is_coordinated_from_its_own_thread() -> None:
    clock: Any = Clock()
    with SonaEngine(SonaConfig(hidden_dim=8)) as engine:
        coordinator = LoopCoordinator(engine, clock=clock)
        with pytest.raises(SonaTypeError, match="expected a Router, got a SonaEngine"):
            coordinator.start()
        clock.now += 3600
        result = coordinator.run_due()
        assert result is not None
        assert result.status.startswith("skipped: there is no policy")


@pytest.mark.parametrize("interval", [-1.0, float("inf"), float("nan")])
def test_a_bad_interval_is_refused(interval: float) -> None:
    with pytest.raises(SonaValueError, match="interval"):
        LoopCoordinator(Learner(), interval=interval)


def test_a_failed_deep_cycle_is_tried_again_soon_and_then_ever_more_rarely() -> None:
    """Not a whole interval later, and not at every tick either; a cycle that ends starts the waits anew."""

    def fail() -> DeepResult:
        raise SonaStoreError("the disk is full")

    clock, learner = Clock(), Learner(1e9)
    learner.engine.loop_c.config.deep_interval = 7 * 86400.0
    coordinator = LoopCoordinator(learner, clock=clock)
    works, tries = learner.deep_learn, []
    learner.deep_learn = lambda: (tries.append(clock.now), fail())[1]  # type: ignore[method-assign]
    start = clock.now + 700
    for clock.now in np.arange(start, start + 30_000, 10.0).tolist():
        coordinator.run_due()
    assert np.diff(tries).tolist() == [60, 120, 240, 480, 960, 1920, *[3600] * 7]
    assert coordinator.failures == len(tries)
    learner.deep_learn = works  # type: ignore[method-assign]
    clock.now = tries[-1] + 3600
    assert coordinator.run_due() is not None
    ended = clock.now
    for clock.now in (ended + 3600, ended + 7 * 86400 - 1):
        assert coordinator.run_due() is None
    learner.deep_learn = fail  # type: ignore[method-assign]
    clock.now += 1
    assert coordinator.run_due() is None
    learner.deep_learn = works  # type: ignore[method-assign]
    clock.now += 60
    assert coordinator.run_due() is not None
