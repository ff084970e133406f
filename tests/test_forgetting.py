"""Promises of forgetting a source: what is left is what the others taught, bit for bit, in weights and file, or nothing has changed."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from reference import Clusters

from sona import ForgetReport, Router, SonaClosedError, SonaEngine, SonaStoreError, SonaTypeError, SonaValueError, SqliteStore
from sona.loops.forgetting import Relearner

Array = np.ndarray[Any, Any]
ARMS = Clusters(0).arms
BAD = "mallory-7f3a"
DAY = 86400.0


def open_router(path: Path | SqliteStore | None, **options: Any) -> Router:
    return Router(ARMS, store=path, **({"seed": 3} | options))


def play(router: Router, *, bad: bool, rounds: int = 600, late: int = 120) -> None:
    """Rewards of four sources and of nobody as they come; then decisions whose rewards, some revised, are late, and one source lies."""
    world, rng = Clusters(0), np.random.default_rng(7)

    def decide(t: int) -> tuple[int, float]:
        x, best = world.draw()
        d = router.route(x, [best, (best + 1) % 6, (best + 2) % 6] if t % 5 == 0 else None)
        return d.id, float(d.index == best)

    for t in range(rounds):
        id, right = decide(t)
        router.feedback(id, right, source=None if t % 5 == 4 else f"s{t % 5}")
    decided = [decide(t) for t in range(late)]
    for t, which in enumerate(rng.permutation(late)):
        id, right = decided[which]
        if t % 3 == 0 and bad:
            router.feedback(id, 1 - right, source=BAD)
        if t % 3:
            router.feedback(id, right, source=f"s{t % 4}")
        if t % 10 == 5:
            router.feedback(id, 1 - right, source=f"s{t % 4}")


def bits(router: Router) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in router.engine.state().items()}


def rows_of(path: Path, source: str) -> int:
    with SqliteStore(path) as store:
        return store.sources().get(source, (0, 0.0))[0]


def file_bytes(path: Path) -> bytes:
    return b"".join(each.read_bytes() for each in path.parent.glob(path.name + "*"))


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("options", [{}, {"precondition": "identity", "guard": False}, {"explore": "softmax"}, {"sources": None}])
def test_what_is_left_is_what_the_others_taught(options: dict[str, Any], stored: bool, tmp_path: Path) -> None:
    """Bit for bit the state of a router that made the same decisions and never had those rewards."""
    paths = [tmp_path / name if stored else None for name in ("attacked.db", "calm.db")]
    with open_router(paths[0], **options) as attacked, open_router(paths[1], **options) as calm:
        play(attacked, bad=True)
        play(calm, bad=False)
        assert bits(attacked) != bits(calm)
        report = attacked.forget_source(BAD)
        assert report == ForgetReport(source=BAD, rewards_removed=40, rewards_replayed=report.rewards_replayed)
        assert report.rewards_replayed == 600 + 80 + 12
        assert bits(attacked) == bits(calm)
        assert BAD not in [each.source for each in attacked.sources()]
        for router in (attacked, calm):  # and both go on alike
            play(router, bad=True, rounds=30, late=30)
        assert {k: v for k, v in bits(attacked).items() if k.startswith("layer")} == {
            k: v for k, v in bits(calm).items() if k.startswith("layer")
        }
        assert attacked.forget_source(BAD).complete
    if paths[0] is not None and paths[1] is not None:
        with open_router(paths[0], **options) as again:
            assert again.stats()["engine"]["store"]["replayed"] == 0
            assert again.forget_source(BAD) == ForgetReport(source=BAD)


def test_nothing_of_the_source_is_left_in_the_file(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db") as router:
        play(router, bad=True)
        router.warm_start([])  # writes the state
        assert BAD.encode() in file_bytes(tmp_path / "s.db")
        router.forget_source(BAD)
        assert BAD.encode() not in file_bytes(tmp_path / "s.db")
        assert router.engine.store is not None
        assert router.engine.store.integrity() == []
        assert router.engine.store.whole()
    assert BAD.encode() not in file_bytes(tmp_path / "s.db")
    assert rows_of(tmp_path / "s.db", BAD) == 0


@pytest.mark.parametrize("stored", [True, False])
def test_a_decision_of_the_source_can_be_rewarded_again(stored: bool, tmp_path: Path) -> None:
    """By another source, as if for the first time; and a reward that stays is revised, not learned twice."""
    outs = []
    for bad in (True, False):
        with open_router(tmp_path / f"{bad}.db" if stored else None) as router:
            world = Clusters(0)
            first, second = (router.route(world.draw()[0]) for _ in range(2))
            router.feedback(first.id, 1.0, source="s1")
            if bad:
                router.feedback(second.id, 0.0, source=BAD)
                assert router.forget_source(BAD).rewards_removed == 1
            router.feedback(second.id, 1.0, source="s1")
            assert router.stats()["revised"] == 0
            router.feedback(first.id, 0.0, source="s1")
            assert router.stats()["revised"] == 1
            outs.append(router.apply_batch(np.stack([world.draw()[0] for _ in range(20)])))
    np.testing.assert_allclose(outs[0], outs[1], atol=6e-2)  # a revision after a restart is a difference and no longer exact


@pytest.mark.parametrize("stored", [True, False])
def test_versions_since_its_first_reward_are_dropped(stored: bool, tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db" if stored else None) as router:
        play(router, bad=False, rounds=300)
        kept = router.background_learn().version
        assert kept is not None
        router.engine._learners.end_trial()
        play(router, bad=True, rounds=300)
        dropped = router.background_learn().version
        assert dropped is not None
        router.engine.publish(dropped)
        assert [v.number for v in router.engine.versions()] == [1, 2, 3]
        report = router.forget_source(BAD)
        assert report.versions_dropped == 2
        assert [v.id for v in router.engine.versions()] == [kept.id]
        router.engine.publish(kept)
        assert [v.number for v in router.engine.versions()] == [1, 4]
        result = router.background_learn()
        assert result.status == "completed"


def test_a_cycle_after_forgetting_replays_no_reward_of_the_source(tmp_path: Path) -> None:
    for stored in (True, False):
        with open_router(tmp_path / "s.db" if stored else None) as router:
            play(router, bad=True, late=300)
            router.background_learn()
            router.engine._learners.end_trial()
            router.forget_source(BAD)
            window = router.engine.loop_b.window
            assert window is not None
            rows, reservoir = window.newest(), window.reservoir()
            assert len(rows) == 600 + 200 + 10  # of the late ones those that somebody else rewarded
            assert set(reservoir.id.tolist()) <= set(rows.id.tolist())
            assert list(router.engine.patterns.bank.patterns) == []


def test_what_could_not_be_replayed_is_said(tmp_path: Path) -> None:
    ahead = 0.0
    with SqliteStore(tmp_path / "s.db", retention_days=5, clock=lambda: time.time() + ahead) as store, open_router(store) as router:
        play(router, bad=True, rounds=50, late=30)
        router.flush()
        ahead = 10 * DAY
        store.prune()
        ahead = 0.0
        assert not router.forget_source("nobody").complete
        play(router, bad=True, rounds=20, late=30)
        report = router.forget_source(BAD)
        assert not report.complete
        assert "no longer kept" in report.reason
        assert report.rewards_replayed == 20 + 20 + 3
    with open_router(None) as router:
        router.warm_start([(Clusters(0).draw()[0], 1, 1.0)] * 5)
        play(router, bad=True, rounds=10, late=30)
        report = router.forget_source(BAD)
        assert not report.complete
        assert report.reason == "5 rewards of trajectories or of a warm start were never kept"
        assert router.forget_source(BAD).complete
    with open_router(None, pending=64) as router:
        play(router, bad=True, rounds=100, late=60)
        assert not router.forget_source(BAD).complete
    with open_router(None) as router:
        play(router, bad=True, rounds=30, late=30)
        router.remove_arm(2)
        report = router.forget_source(BAD)
        assert not report.complete
        assert "arms that are gone" in report.reason


def test_arms_that_came_later_stay(tmp_path: Path) -> None:
    for path in (tmp_path / "s.db", None):
        with open_router(path) as router:
            play(router, bad=True, rounds=30, late=30)
            router.add_arm("new", np.eye(ARMS.shape[1])[0])
            play(router, bad=True, rounds=30, late=30)
            report = router.forget_source(BAD)
            assert report.complete, report.reason
            assert router.arms[-1] == "new"
            assert router.feedback(router.route(Clusters(0).draw()[0]).id, 1.0)


# ---- who may, and when ----


def test_only_a_source_can_be_forgotten() -> None:
    with open_router(None) as router:
        for wrong in (None, 3, "", "x" * 256):
            with pytest.raises((SonaTypeError, SonaValueError), match="source"):
                router.forget_source(wrong)  # type: ignore[arg-type]
        assert router.forget_source("nobody") == ForgetReport(source="nobody")
    with pytest.raises(SonaClosedError):
        router.forget_source(BAD)
    with pytest.raises(SonaValueError, match="pool=False"), open_router(None, pool=True) as router:
        router.forget_source(BAD)
    with pytest.raises(SonaValueError, match="router"), SonaEngine() as engine:
        engine.forget_source(BAD)


def test_a_process_that_does_not_learn_cannot_forget_and_sees_that_another_did(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db") as leader:
        play(leader, bad=True)
        leader.warm_start([])
        with open_router(tmp_path / "s.db") as follower:
            with pytest.raises(SonaStoreError, match="another process learns"):
                follower.forget_source(BAD)
            leader.forget_source(BAD)
            assert follower.engine.journal is not None
            follower.engine.journal.poll()
            x = np.stack([Clusters(5).draw()[0] for _ in range(10)])
            np.testing.assert_array_equal(follower.apply_batch(x), leader.apply_batch(x))
            d = follower.route(Clusters(0).draw()[0])
            follower.feedback(d.id, 1.0, source="s1")
            follower.flush()
        assert leader.engine.journal is not None
        leader.engine.journal.poll()
        assert leader.stats()["engine"]["store"]["replayed"] == 1


def test_a_store_that_cannot_be_written_leaves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_router(tmp_path / "s.db") as router:
        play(router, bad=True)
        router.flush()
        before = bits(router)

        def fail(*_: object, **__: object) -> None:
            raise SonaStoreError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_delete_source", fail)
            with pytest.raises(SonaStoreError, match="full"):
                router.forget_source(BAD)
        assert bits(router) == before
        assert router.feedback(router.route(Clusters(0).draw()[0]).id, 1.0, sync=True)
        assert router.forget_source(BAD).rewards_removed == 40


KILLED = """
    import os, sys
    from sona.store import SqliteStore
    from test_forgetting import BAD, open_router, play

    router, moment = open_router(sys.argv[1]), sys.argv[2]
    play(router, bad=True)
    router.warm_start([])
    delete, replace = SqliteStore._delete_source, SqliteStore.replace_without

    def inside(*arguments):
        delete(*arguments)
        os._exit(7)

    def after(*arguments, **named):
        replace(*arguments, **named)
        os._exit(7)

    if moment == "inside":
        SqliteStore._delete_source = inside
    else:
        SqliteStore.replace_without = after
    router.forget_source(BAD)
"""


@pytest.mark.parametrize("moment", ["inside", "after"])
def test_a_kill_leaves_the_old_state_with_its_rows_or_the_new_one(moment: str, tmp_path: Path, run_python: RunPython) -> None:
    run_python(KILLED, tmp_path / "s.db", moment, code=7)
    with open_router(None) as twin:
        play(twin, bad=moment == "inside")
        with open_router(tmp_path / "s.db") as router:
            assert router.stats()["engine"]["store"]["replayed"] == 0
            x = np.stack([Clusters(5).draw()[0] for _ in range(10)])
            np.testing.assert_array_equal(router.apply_batch(x), twin.apply_batch(x))
    assert rows_of(tmp_path / "s.db", BAD) == (40 if moment == "inside" else 0)


@pytest.mark.parametrize("stored", [True, False])
def test_rewards_go_on_while_a_source_is_forgotten(stored: bool, tmp_path: Path) -> None:
    """Four threads serve meanwhile; in the end the weights are those of all rewards that are kept."""
    with open_router(tmp_path / "s.db" if stored else None, guard=False) as router:
        play(router, bad=True)
        stop, failed = threading.Event(), []

        def serve(seed: int) -> None:
            world = Clusters(seed)
            try:
                while not stop.is_set():
                    x, best = world.draw()
                    d = router.route(x)
                    time.sleep(0.001)
                    assert router.feedback(d.id, float(d.index == best), source=f"s{seed}")
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        report = router.forget_source(BAD)
        time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert failed == []
        assert report.rewards_removed == 40
        assert report.complete
        if stored:
            router.flush()
            engine, policy = router.engine, router.engine.policy
            assert engine.journal is not None
            assert policy is not None
            twin = Relearner(engine._learners)
            twin.follow(engine.journal, BAD, (1, 1 << 62), np.zeros(0), policy.requests)
            np.testing.assert_allclose(twin.policy.adapter.delta(), engine.adapters[0].delta(), atol=1e-5)
    if stored:
        assert rows_of(tmp_path / "s.db", BAD) == 0


@pytest.mark.parametrize("stored", [True, False])
def test_retrieval_keeps_no_reward_of_a_source_that_was_forgotten_or_counts_for_nothing(stored: bool, tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db" if stored else None, retrieval=2000) as router:
        play(router, bad=True)
        assert router.stats()["retrieval_rows"] > 600 + 80 + 4
        router.forget_source(BAD)
        assert router.stats()["retrieval_rows"] == 600 + 80 + 4
        world = Clusters(0)
        for t in range(1200):
            x, best = world.draw()
            d = router.route(x)
            right = float(d.index == best)
            router.feedback(d.id, 1 - right if t % 8 == 0 else right, source=f"t{t % 8}")
        assert [each.source for each in router.sources() if each.quarantined] == ["t0"]
        kept = router.stats()["retrieval_rows"]
        d = router.route(world.draw()[0])
        router.feedback(d.id, 0.0, source="t0")
        assert router.stats()["retrieval_rows"] == kept
        router.feedback(d.id, 1.0, source="t1")
        assert router.stats()["retrieval_rows"] == kept + 1
