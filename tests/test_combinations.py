"""What happens where several parts of a router meet: threads, trials, sources, pools, restarts."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Clusters

from sona import Router, Version
from sona.adapters import Factors
from sona.loops.background import BackgroundLoopConfig
from sona.loops.gate import GateConfig
from sona.loops.sources import SourceVeto
from sona.loops.trial import Trial

QUICK = GateConfig(n_min=20, n_max=200)
CONFIG = BackgroundLoopConfig(min_trajectories=50, gate=QUICK)


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns after a few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


def make(world: Clusters, store: Any = None, **options: Any) -> Router:
    return Router(world.arms, store=store, **{"background": CONFIG, **options})


def serve(router: Router, world: Clusters, rounds: int) -> list[Any]:
    decisions = []
    for _ in range(rounds):
        x, k = world.draw()
        d = router.route(x)
        router.feedback(d.id, float(d.arm == k))
        decisions.append(d)
    return decisions


def propose(router: Router, world: Clusters, seed: int = 1, rank: int = 5) -> Any:
    """A random correction, kept as a version and not on trial yet."""
    rows = np.random.default_rng(seed).normal(size=(2, rank, world.arms.shape[1])).astype(np.float32)
    engine = router.engine
    factors = Factors(rows[0], rows[1], np.zeros(rank, np.float32))
    return engine._versions.add(
        Version(name="default", parent=None, created=time.time(), verdict="undecided", reason="", metrics={}, window={}, factors=factors)
    )


def together(seconds: float, *works: Callable[[], object]) -> None:
    """Each in a thread of its own, over and over; raises what one of them raised."""
    stop, raised = time.monotonic() + seconds, []

    def repeat(work: Callable[[], object]) -> None:
        try:
            while time.monotonic() < stop and not raised:
                work()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=repeat, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    if raised:
        raise raised[0]


# ---- threads ----


def test_sources_are_reported_while_rewards_come_in(often: None) -> None:
    router = make(world := Clusters(0))
    names = iter(f"s{n}" for n in range(10**9))

    def rewarded() -> None:
        x, k = world.draw()
        d = router.route(x)
        router.feedback(d.id, float(d.arm == k), source=next(names))

    together(2, rewarded, router.stats, router.sources)


def test_a_ruling_is_made_while_rewards_come_in(often: None) -> None:
    veto, names = SourceVeto(), iter(f"s{n % 4000}" for n in range(10**9))
    together(2, lambda: veto.record(next(names), 0.5), lambda: veto.evidence)


def test_a_trial_may_end_while_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    router = make(world := Clusters(0))
    version = propose(router, world)
    router.engine.start_trial(version)
    ruling = Trial.ruling.fget
    assert ruling is not None

    def slow(trial: Trial) -> Any:
        found = ruling(trial)
        router.engine._end_trial()
        return found

    monkeypatch.setattr(Trial, "ruling", property(slow))
    found = router.engine.trial
    assert found is not None
    assert found.evidence["version"] == version.number
