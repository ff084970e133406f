"""What happens where several parts of a router meet: threads, trials, sources, pools, restarts."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Clusters

from sona import Router, SonaTypeError, Version
from sona.adapters import Factors
from sona.loops._policy import Policy
from sona.loops.background import BackgroundLoopConfig
from sona.loops.gate import GateConfig
from sona.loops.ruling import items_now
from sona.loops.trial import Trial
from sona.loops.veto import SourceVeto

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
    return engine._service.versions.add(
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


def test_items_are_read_again_where_one_came_in_meanwhile() -> None:
    """As a garbage collection lets it happen: it may run code of others in the middle of list(dict.items())."""

    class Busy(dict[str, int]):
        turns = 0

        def items(self) -> Any:
            self.turns += 1
            if self.turns < 3:
                raise RuntimeError("dictionary changed size during iteration")
            return super().items()

    assert items_now(Busy(a=1)) == [("a", 1)]


def test_a_trial_may_end_while_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    router = make(world := Clusters(0))
    version = propose(router, world)
    router.engine.start_trial(version)
    ruling = Trial.ruling.fget
    assert ruling is not None

    def slow(trial: Trial) -> Any:
        found = ruling(trial)
        router.engine._learners.end_trial()
        return found

    monkeypatch.setattr(Trial, "ruling", property(slow))
    found = router.engine.trial
    assert found is not None
    assert found.evidence["version"] == version.number


# ---- trials ----


def test_nothing_counts_for_a_trial_while_the_guard_doubts_the_learner() -> None:
    router = make(world := Clusters(0))
    engine, policy = router.engine, router.engine.policy
    kept = engine._service.versions.add(replace(propose(router, world), factors=Factors.of(engine.adapters[0])))
    engine.start_trial(kept)
    state = policy.state()
    state["guard"][0] = -3.0  # all models agree, and the candidate with them
    policy.restore(state)
    d = router.route(world.draw()[0])
    router.feedback(d.id, 1.0)
    assert engine._learners.trial is not None
    assert engine._learners.trial.ruling.evidence["duel"]["n"] == 0


def test_a_late_reward_of_an_earlier_trial_of_a_version_does_not_count() -> None:
    router = make(world := Clusters(0))
    version = propose(router, world)
    router.engine.start_trial(version)
    early = [router.route(world.draw()[0]) for _ in range(20)]
    router.engine.stop_trial()
    router.engine.start_trial(version)
    for d in early:
        router.feedback(d.id, 1.0)
    trial = router.engine._learners.trial
    assert trial is not None
    assert trial.ruling.evidence["duel"]["n"] == 0
    serve(router, world, 10)
    assert trial.ruling.evidence["duel"]["n"] > 0


def test_a_bad_source_is_refused_before_anything_is_learned() -> None:
    router = make(world := Clusters(0), sources=None)
    router.engine.start_trial(propose(router, world))
    d = router.route(world.draw()[0])
    with pytest.raises(SonaTypeError, match="source"):
        router.feedback(d.id, 1.0, source=7)  # type: ignore[arg-type]
    assert router.stats()["learned"] == 0
    assert router.feedback(d.id, 1.0, source="a")


def test_publish_waits_for_a_trial_that_is_being_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    router = make(world := Clusters(0))
    engine = router.engine
    served = propose(router, world, seed=2)
    engine.start_trial(propose(router, world, seed=1))
    engine._learners.trial.gate._duel._verdict = "accept"  # type: ignore[union-attr]
    keep, inside = engine._service.versions.add, threading.Event()

    def slow(version: Version, **about: Any) -> Version:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            time.sleep(0.2)
        return keep(version, **about)

    monkeypatch.setattr(engine._service.versions, "add", slow)
    deciding = threading.Thread(target=serve, args=(router, world, 1))
    deciding.start()
    assert inside.wait(10)
    engine.publish(served)
    deciding.join(10)
    assert next(v for v in engine.versions() if v.published).number == served.number
    np.testing.assert_allclose(Factors.of(engine.adapters[0]).up, served.factors.up, atol=1e-5)


# ---- decisions that come back from a store ----


def changed(policy: Policy, rows: Callable[[], Any], learn: Callable[[], object]) -> float:
    before = len(rows()[1])
    learn()
    return float(np.linalg.norm(rows()[1][before:]))


@pytest.fixture
def recalled() -> Callable[..., float]:
    """Length of the step that another reward of a decision makes, when the first one was learned by another process."""

    def step(own: bool, weight: float = 1.0) -> float:
        router = make(Clusters(0), drift=False)
        policy = router.engine.policy
        assert policy is not None
        x = np.eye(20, dtype=np.float32)[0]
        policy.recall(77, x, 0, 1.0, own=own, agreed=True, reward=1.0)
        return changed(policy, policy.adapter.rows, lambda: policy.learn(77, 0.0, weight))

    return step


def test_another_reward_of_an_overruled_decision_makes_as_small_a_step_as_the_first(recalled: Callable[..., float]) -> None:
    assert recalled(False) == pytest.approx(0.3 * recalled(True), rel=1e-4)


def test_a_source_above_its_cap_is_not_heard_in_full_when_it_changes_its_mind_later(recalled: Callable[..., float]) -> None:
    assert recalled(True, 0.1) == pytest.approx(0.1 * recalled(True), rel=1e-4)


def test_a_candidate_learns_another_reward_of_a_decision_that_came_back() -> None:
    router = make(world := Clusters(0))
    router.engine.start_trial(propose(router, world))
    policy, trial = router.engine.policy, router.engine._learners.trial
    assert policy is not None
    assert trial is not None
    x = world.draw()[0]
    policy.recall(77, x, 0, 0.5, own=False, trial=policy.trial, rival=3, reward=0.0)
    assert changed(policy, trial.candidate.adapter.rows, lambda: policy.learn(77, 1.0)) > 0


def test_a_settled_decision_takes_another_reward() -> None:
    router = make(world := Clusters(0))
    policy = router.engine.policy
    assert policy is not None
    d = router.route(world.draw()[0])
    policy.settle(d.id, 1.0)
    assert router.feedback(d.id, 0.0)
    assert router.stats()["revised"] == 1


# ---- the drift alarm ----


def test_a_change_seen_in_ids_of_another_process_does_not_hide_our_own_decisions() -> None:
    other = make(Clusters(0))
    state = other.engine.state()
    state["drift.alarms"] = np.array([1, 9 << 40, 0], np.uint64)
    router = make(world := Clusters(0))
    router.engine.restore(state)
    serve(router, world, 200)
    assert router.background_learn().trajectories_processed == 200


# ---- two processes ----


def test_patterns_of_a_process_that_follows_go_when_the_leader_forgets_a_source(path: Path) -> None:
    with make(world := Clusters(0), path) as leader, make(world, path) as follower:
        for _ in range(120):
            x, k = world.draw()
            d = leader.route(x)
            leader.feedback(d.id, float(d.arm == k), source="a" if k else "b")
        assert leader.background_learn().patterns_extracted > 0
        known = follower.engine.patterns
        known.follow(now=True)
        assert known.bank.patterns
        leader.forget_source("b")
        known.follow(now=True)
        assert not known.bank.patterns


def test_a_reward_finds_its_decision_when_the_learner_is_replaced_before_the_decision_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(world := Clusters(0), path) as router:
        journal, policy, accepted = router.engine.journal, router.engine.policy, []
        assert journal is not None
        assert policy is not None
        append = journal.store.append

        def slow(*rows: Any) -> int:
            time.sleep(0.2)
            return append(*rows)

        monkeypatch.setattr(journal.store, "append", slow)
        with journal.intake, journal.mutex:
            d = router.route(world.draw()[0])
            rewarding = threading.Thread(target=lambda: accepted.append(router.feedback(d.id, 1.0)))
            rewarding.start()
            time.sleep(0.1)
            policy.forget_decisions()  # as `forget_source` does
        rewarding.join(10)
        assert accepted == [True]


def test_a_quarantined_source_is_heard_neither_by_replay_nor_by_retrieval_nor_by_whom_it_reported_before(path: Path) -> None:
    """Its rewards are in the store, and were never learned: also after a restart."""
    world, rng, lies, own = Clusters(0), np.random.default_rng(0), set(), []
    with make(world, path, retrieval=1000) as router:
        for n in range(900):
            x, k = world.draw()
            d = router.route(x)
            source = f"s{n % 6}"
            bad = source == "s0"
            router.feedback(d.id, float((d.arm == k) != bad) if rng.random() < 0.95 else 0.5, source=source)
            assert router.engine.policy is not None
            if bad and n > 600:
                lies.add(d.id)
                own.append(router.engine.policy.recorded(d.id)["reward"])
        assert router.engine.sources.quarantined() == ["s0"]
        assert own == [None] * len(own)
        assert router.engine.loop_b.window is not None
        assert not lies & set(router.engine.loop_b.window.newest().id.tolist())
    with make(world, path, retrieval=1000) as router:
        assert router._retrieval is not None
        assert len(router._retrieval)
        assert not lies & set(router._retrieval._at)
        before = router.stats()["learned"]
        assert router.feedback(min(lies), 1.0, source="s1")
        assert router.stats()["learned"] == before + 1
