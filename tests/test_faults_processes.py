"""Forks, interrupts, ends, clocks and switches: whatever happens to the process, nothing hangs, and what was learned is what was kept."""

import copy
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython

from sona import Adapter, EwcPlusPlus, Instant, LoopCoordinator, Router, SonaEngine, SqliteStore
from sona.cli import main
from sona.errors import SonaClosedError, SonaError, SonaStoreError
from sona.loops.background import BackgroundLoopConfig
from sona.loops.deep import DeepLoopConfig
from sona.patterns import PatternConfig

DIM = 8
SMALL = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=DIM, k_clusters=4), min_trajectories=20)
DEEP = DeepLoopConfig(dreams_per_cycle=5, episodes=60)


def make(store: Any = None, **options: Any) -> Router:
    arms = {name: np.eye(DIM)[k] for k, name in enumerate("abc")}
    return Router(arms, store=store, **({"background": SMALL, "deep": DEEP, "seed": 1} | options))


def serve(router: Router, rounds: int, seed: int = 0) -> dict[int, float]:
    """Rewards by decision."""
    rng = np.random.default_rng(seed)
    given = {}
    for x in rng.standard_normal((rounds, DIM)):
        d = router.route(x)
        given[d.id] = float(d.index == int(np.argmax(x[:3])))
        assert router.feedback(d.id, given[d.id])
    return given


def kept(path: Path) -> dict[int, float | None]:
    with SqliteStore(path) as store:
        assert store.integrity() == []
        return {row.id: reward for row, reward in store.decisions()}


def bits(router: Router) -> dict[str, bytes]:
    """What is learned, without what belongs to a session."""
    return {name: a.tobytes() for name, a in router.engine.state().items() if not name.startswith("drift.")}


# ---- one store object ----


def test_a_store_object_that_is_used_again_gives_out_no_id_twice(tmp_path: Path) -> None:
    given: dict[int, float] = {}
    with SqliteStore(tmp_path / "s.db") as store:
        for seed in range(3):
            with make(store) as router:
                new = serve(router, 30, seed)
            assert not new.keys() & given.keys()
            given |= new
    assert kept(tmp_path / "s.db") == given


def test_of_two_routers_on_one_store_object_one_learns_and_the_other_goes_on_for_it(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        one, two = make(store), make(store)
        assert [r.stats()["engine"]["store"]["leading"] for r in (one, two)] == [True, False]
        given = serve(one, 40) | serve(two, 40, 1)
        assert len(given) == 80
        two.flush()
        assert one.engine.journal is not None
        one.engine.journal.poll()
        assert one.stats()["learned"] == 80
        with pytest.raises(SonaStoreError, match="another process"):
            two.engine.memory.add(np.ones(DIM))
        learned = bits(one)
        one.close()
        assert two.engine.journal is not None
        two.engine.journal.poll()
        assert two.stats()["engine"]["store"]["leading"]
        assert {name for name, value in bits(two).items() if value != learned[name]} <= {"policy.random", "policy.requests"}
        given |= serve(two, 10, 2)
        two.close()
    assert kept(tmp_path / "s.db") == given


def test_an_engine_that_could_not_be_made_leaves_the_callers_store_free(tmp_path: Path) -> None:
    make(tmp_path / "s.db", model_fingerprint="one").close()
    with SqliteStore(tmp_path / "s.db") as store:
        errors = []
        for _ in range(2):
            try:
                make(store, model_fingerprint="two")
            except SonaError as error:
                errors.append(error)  # and with it everything that its traceback holds
        assert len(errors) == 2
        assert not store.lease
        with make(store, model_fingerprint="one") as router:
            assert router.stats()["engine"]["store"]["leading"]


# ---- fork ----

FORK = """
    import faulthandler, os, sys, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
    import numpy as np
    from sona import LoopCoordinator, Router, SonaError
    from sona.errors import SonaClosedError
    from sona.loops.background import BackgroundLoopConfig
    from sona.loops.deep import DeepLoopConfig
    from sona.patterns import PatternConfig

    store = sys.argv[1] if sys.argv[2] == "store" else None
    config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=8, k_clusters=4), min_trajectories=20, extraction_interval=0.02)
    router = Router(np.eye(3, 8), store=store, background=config, deep=DeepLoopConfig(dreams_per_cycle=2, episodes=30, deep_interval=0.05),
                    retrieval=20)
    x = np.ones(8)
    stop = False
    acknowledged = []

    def serve(seed):
        rng = np.random.default_rng(seed)
        while not stop:
            d = router.route(rng.standard_normal(8))
            if router.feedback(d.id, float(d.index == 0)):
                acknowledged.append(d.id)
            router.engine.find_patterns(x)
            router.engine.memory.recall(x)

    for _ in range(60):
        d = router.route(x + np.random.default_rng(_).standard_normal(8))
        router.feedback(d.id, 1.0)
        acknowledged.append(d.id)
    router.background_learn()  # what is imported on the way is imported by now
    router.deep_learn()
    coordinator = LoopCoordinator(router, interval=0.001).start()
    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()

    def child():
        faulthandler.dump_traceback_later(20, exit=True)
        learned = router.stats()["learned"]
        router.stats()
        assert not coordinator.running
        if store is None:  # a copy that goes its own way
            d = router.route(x)
            router.route_batch(x[None])
            router.predict(x[None])
            router.engine.find_patterns(x)
            router.engine.memory.recall(x)
            router.tick()
            assert router.feedback(d.id, 1.0)
            assert router.stats()["learned"] == learned + 1
            router.background_learn()
            router.engine.memory.add(x)
            router.flush()
            coordinator.start()
            coordinator.stop()
        else:
            id = acknowledged[-1]
            for call in (lambda: router.route(x), lambda: router.route_batch(x[None]), lambda: router.predict(x[None]),
                         lambda: router.feedback(id, 1.0), lambda: router.feedback_batch([id], [1.0]), router.flush, router.tick,
                         lambda: router.add_arm("new", x), lambda: router.warm_start([(x, 0, 1.0)]), router.background_learn,
                         router.deep_learn, lambda: router.engine.apply(x), lambda: router.engine.versions()):
                try:
                    call()
                except SonaClosedError as error:
                    assert "forked" in str(error) and "Router(...)" in str(error), error
                else:
                    raise AssertionError("what cannot be kept is not taken")
            assert router.stats()["learned"] == learned
            assert router.arms == (0, 1, 2)
        router.close()
        try:
            router.route(x)
        except SonaClosedError:
            os._exit(0)

    for attempt in range(int(sys.argv[3])):
        pid = os.fork()
        if pid == 0:
            try:
                child()
            finally:
                import traceback
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0, f"child {attempt}"
    stop = True
    for thread in threads:
        thread.join()
    coordinator.stop()
    assert coordinator.failures == 0, coordinator.last_error
    router.close()
    if store is not None:
        from sona import SqliteStore
        with SqliteStore(store) as opened:
            assert opened.integrity() == []
            rewarded = {row.id for _, row in opened.feedback_after(0, limit=1 << 24)}
        assert rewarded == set(acknowledged), len(rewarded ^ set(acknowledged))
    print(len(acknowledged))
"""


@pytest.mark.parametrize("where", ["memory", "store"])
def test_a_child_forked_while_all_threads_work_leaves_the_parent_alone(where: str, tmp_path: Path, run_python: RunPython) -> None:
    assert int(run_python(FORK, tmp_path / "s.db", where, 6).stdout) > 60


# ---- Ctrl-C ----

INTERRUPTED = """
    import faulthandler, random, signal, sys, time
    import numpy as np
    from sona import Router, SqliteStore

    faulthandler.dump_traceback_later(100, exit=True)
    path = sys.argv[1] if sys.argv[2] == "store" else None
    make = lambda: Router(np.eye(3, 8), store=path, retrieval=20, seed=1)
    router, rng, requests = make(), random.Random(3), np.random.default_rng(0)
    acknowledged, doubtful, interrupts = {}, {}, 0

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        sync, pending = rng.random() < 0.3, None
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + rng.random() * 4e-3)
            for _ in range(30):
                d = router.route(requests.standard_normal(8))
                pending = d.id, round(rng.random(), 3)
                assert router.feedback(*pending, sync=sync)
                acknowledged[d.id], pending = pending[1], None
            if rng.random() < 0.1:
                router.flush()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupts += 1
            if pending:
                doubtful[pending[0]] = pending[1]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    learned = router.stats()["learned"]
    assert len(acknowledged) <= learned <= len(acknowledged) + len(doubtful)
    router.flush()
    state = {k: v.tobytes() for k, v in router.engine.state().items() if not k.startswith("drift.")}
    router.close()
    if path is not None:
        with SqliteStore(path) as store:
            assert store.integrity() == []
            kept = {row.id: reward for row, reward in store.decisions() if reward is not None}
        assert all(kept.get(id) == reward for id, reward in acknowledged.items())
        assert all(doubtful.get(id) == reward for id, reward in kept.items() if id not in acknowledged)
        assert len(kept) == learned, (len(kept), learned)  # what is learned is kept, and the other way round
        with make() as again:
            assert state == {k: v.tobytes() for k, v in again.engine.state().items() if not k.startswith("drift.")}
    print(interrupts)
"""


@pytest.mark.parametrize("where", ["memory", "store"])
def test_ctrl_c_at_any_moment_leaves_a_reward_learned_and_kept_or_neither(where: str, tmp_path: Path, run_python: RunPython) -> None:
    assert int(run_python(INTERRUPTED, tmp_path / "s.db", where, 1.0).stdout) > 40


@pytest.mark.slow
def test_ctrl_c_for_a_long_time(tmp_path: Path, run_python: RunPython) -> None:
    assert int(run_python(INTERRUPTED, tmp_path / "s.db", "store", 40).stdout) > 2000


# ---- ends ----


def test_close_while_every_loop_runs_ends_them_all(tmp_path: Path) -> None:
    """Cycles, requests, rewards, lookups and flushes from other threads end with what they wanted or with SonaClosedError."""
    x = np.ones(DIM)
    for attempt in range(2):
        path = tmp_path / f"{attempt}.db"
        router = make(path)
        given = serve(router, 40)
        router.background_learn()
        failures: list[BaseException] = []

        def until_closed(call: Callable[[], object], failures: list[BaseException] = failures) -> None:
            try:
                while True:
                    call()
            except SonaClosedError:
                pass
            except BaseException as error:
                failures.append(error)

        def reward(router: Router = router, given: dict[int, float] = given) -> None:
            d = router.route(x)
            if router.feedback(d.id, 1.0):
                given[d.id] = 1.0

        calls = [
            router.background_learn,
            router.deep_learn,
            reward,
            router.flush,
            lambda router=router: router.engine.memory.recall(x),
            lambda router=router: router.engine.find_patterns(x),
            lambda router=router: router.engine.memory.add(x, "kept"),
        ]
        threads = [threading.Thread(target=until_closed, args=(call,), daemon=True) for call in calls]
        coordinator = LoopCoordinator(router, interval=1e-3).start()
        for thread in threads:
            thread.start()
        time.sleep(0.1 * attempt)
        closers = [threading.Thread(target=router.close, daemon=True) for _ in range(2)]
        for thread in closers:
            thread.start()
        router.close()
        for thread in (*threads, *closers):
            thread.join(30)
            assert not thread.is_alive(), "a thread hangs"
        coordinator.stop()
        assert failures == []
        assert kept(path).items() >= given.items()


EXIT = """
    import sys, time
    import numpy as np
    from sona import LoopCoordinator, Router
    from sona.loops.background import BackgroundLoopConfig
    from sona.loops.deep import DeepLoopConfig
    from sona.patterns import PatternConfig

    config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=8, k_clusters=4), min_trajectories=20, extraction_interval=1e-3)
    router = Router(np.eye(3, 8), store=sys.argv[1], background=config, deep=DeepLoopConfig(deep_interval=0.01, dreams_per_cycle=300))
    coordinator = LoopCoordinator(router, interval=1e-3).start()
    x = np.random.default_rng(0).normal(size=(200, 8))
    for row in x:
        assert router.feedback(router.route(row).id, 1.0)
    time.sleep(float(sys.argv[2]))
    if sys.argv[3] == "raise":
        raise RuntimeError("the end")
"""


@pytest.mark.parametrize(("wait", "how"), [(0.0, "return"), (0.6, "return"), (0.3, "raise")])
def test_an_interpreter_that_ends_in_the_middle_of_a_cycle_says_nothing_and_loses_nothing(
    wait: float, how: str, tmp_path: Path, run_python: RunPython
) -> None:
    done = run_python(EXIT, tmp_path / "s.db", wait, how, code=0 if how == "return" else 1)
    if how == "return":
        assert done.stderr == ""
    else:
        assert done.stderr.rstrip().endswith("RuntimeError: the end")
    rows = kept(tmp_path / "s.db")
    assert list(rows.values()) == [1.0] * 200


# ---- callbacks ----


def test_a_callback_may_call_everything(tmp_path: Path) -> None:
    """Of the coordinator, of a cycle's progress, of the writer: no lock is held, so nothing waits for itself."""
    router = make(tmp_path / "s.db")
    serve(router, 60)
    seen: list[str] = []

    def everything(*what: object) -> None:
        seen.append(type(what[0]).__name__ if what else "")
        d = router.route(np.ones(DIM))
        assert router.feedback(d.id, 1.0, sync=True)
        assert router.feedback_batch([d.id], [0.5], sync=True) == 1
        router.flush()
        router.tick()
        router.add_arm("new", np.arange(DIM) + 1.0)
        router.remove_arm("new")
        router.engine.memory.forget([router.engine.memory.add(np.ones(DIM) + len(seen), "for a moment")])
        router.engine.find_patterns(np.ones(DIM))
        router.background_learn()
        router.deep_learn()
        router.engine.versions()
        router.stats()

    class Watcher:
        """Calls all of it once at each end of a piece of work, and not for the work that this makes."""

        def __init__(self) -> None:
            self.calling, self.heard = False, set[str]()

        def began(self, work: str) -> None:
            self.told(work, "began")

        def ended(self, _: object, result: object) -> None:
            self.told(type(result).__name__, "ended")

        failed = ended

        def told(self, what: str, how: str) -> None:
            self.heard.add(f"{what} {how}")
            if not self.calling:
                self.calling = True
                everything(watcher)
                self.calling = False

    now = [0.0]
    watcher = Watcher()
    coordinator = LoopCoordinator(router, on_cycle=everything, on_deep_cycle=everything, clock=lambda: now[0])

    def work() -> None:
        router.engine.observed.add(watcher)
        router.background_learn()
        router.deep_learn()
        router.engine.observed.remove(watcher)
        for now[0] in (3600.0, 8 * 86400.0, 8 * 86400.0 + 1):
            coordinator.run_due()
        router.engine.deep_learn(progress=everything)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a callback waits for itself"
    assert coordinator.failures == 0, coordinator.last_error
    assert {"BackgroundResult", "DeepResult", "int", "Watcher"} <= set(seen)
    assert watcher.heard >= {"background_cycle began", "deep_cycle began", "BackgroundResult ended", "DeepResult ended"}
    router.close()


# ---- time ----


def test_a_clock_that_jumps_loses_nothing_and_orders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back by ten years and forward by one between and during requests, cycles and restarts: the same is learned as without."""
    learned = []
    for jumps in ((0.0, 0.0, 0.0, 0.0), (-3e8, 3e7, -1.7e9, 0.0)):
        path, given = tmp_path / f"{jumps[0]}.db", {}
        real = time.time
        for number, jump in enumerate(jumps):
            with monkeypatch.context() as patched:
                patched.setattr(time, "time", lambda jump=jump, real=real: real() + jump)
                router = make(path, explore="greedy", guard=False)
                new = serve(router, 30, number)
                given |= new
                some = list(new)[:5]
                for id in some:
                    given[id] = 1 - given[id]
                    assert router.feedback(id, given[id])  # the later one counts, whatever the clock says
                assert router.deep_learn().status == "completed"
                router.tick()
                router.close()
        learned.append([router.engine.state()["layer0.up"].tobytes(), router.engine.state()["layer0.down"].tobytes()])
        assert kept(path) == given
        with make(path) as again:
            assert again.stats()["engine"]["store"]["replayed"] == 0
            assert 0 <= again.engine.loop_c.due_in() <= DEEP.deep_interval
    assert learned[0] == learned[1]


# ---- copies ----


def test_what_lives_cannot_be_copied_and_says_what_to_do(tmp_path: Path) -> None:
    router = make(tmp_path / "s.db")
    for live in (router, router.engine):
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"expected .*store"):
                duplicate(live)
    for part in (Adapter(4, rank=1), Instant(4), router.engine.memory, router.engine.memory.graph, router.engine.patterns.bank):
        with pytest.raises(TypeError):
            pickle.dumps(part)
    assert router.feedback(router.route(np.ones(DIM)).id, 1.0)
    router.close()
    task = EwcPlusPlus(4)  # plain arrays may be copied
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert {k: v.tobytes() for k, v in other.state().items()} == {k: v.tobytes() for k, v in task.state().items()}


@pytest.mark.parametrize("stored", [False, True])
def test_a_state_that_is_taken_while_others_learn_is_of_one_moment(stored: bool, tmp_path: Path) -> None:
    """What `state` returns and `save` writes while another thread learns is what a router that learned so many rewards and no more has."""

    def router_of(store: Path | None) -> Router:
        return make(store, explore="greedy", guard=False, drift=False)

    def learn(router: Router, rng: np.random.Generator) -> None:
        d = router.route(rng.standard_normal(DIM))
        router.feedback(d.id, float(d.index == 0))

    def parts(state: dict[str, Any]) -> dict[str, bytes]:
        return {k: a.tobytes() for k, a in state.items() if k not in ("policy.random", "policy.requests")}

    router, stop = router_of(tmp_path / "s.db" if stored else None), threading.Event()

    def work() -> None:
        rng = np.random.default_rng(1)
        while not stop.is_set():
            learn(router, rng)

    thread = threading.Thread(target=work, daemon=True)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        taken = []
        while len(taken) < 600:
            time.sleep(5e-5 * (len(taken) % 3))  # locks are not fair
            taken.append(router.engine.state())
        router.engine.save(tmp_path / "snapshot")
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join(30)
    taken.append(SonaEngine.load(tmp_path / "snapshot").state() | {"policy.": np.zeros(0)})
    router.close()
    wanted = {int(state["layer0.calibration"][3]) for state in taken}
    assert len(wanted) > 5
    again, rng, expected = router_of(None), np.random.default_rng(1), {}
    for steps in range(max(wanted) + 1):
        if steps in wanted:
            expected[steps] = parts(again.engine.state())
        learn(again, rng)
    for state in taken:
        whole = expected[int(state["layer0.calibration"][3])]
        mine = parts(state)
        if "policy." in mine:  # a snapshot of an engine, read by one without a policy
            mine = {k: v for k, v in mine.items() if k.startswith("layer0.")}
            whole = {k: v for k, v in whole.items() if k.startswith("layer0.")}
        assert mine == whole


# ---- the kill switch ----


def test_the_kill_switch_reaches_every_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Learned weights in memory, in a store and in a snapshot: with SONA_DISABLE=1 outputs are inputs and nothing changes."""
    with make(tmp_path / "s.db") as router:
        serve(router, 60)
        router.background_learn()
        router.engine.save(tmp_path / "snapshot")
        learned = bits(router)
    x = np.random.default_rng(9).normal(size=(7, DIM)).astype(np.float32)
    monkeypatch.setenv("SONA_DISABLE", "1")
    frozen = np.argmax(x[:, :3], axis=1)
    for options in ({}, {"pool": True}, {"retrieval": 20}, {"explore": "thompson"}, {"explore": "softmax"}):
        store = tmp_path / "s.db" if options == {} else None
        with make(store, **options) as router:
            before = bits(router)
            assert not router.engine.enabled
            np.testing.assert_array_equal(router.apply_batch(x), x)
            decisions = [*router.route_batch(x), *(router.route(row) for row in x)]
            assert [d.index for d in decisions] == [*frozen, *frozen]
            np.testing.assert_array_equal(router.predict(x), frozen)
            for d in decisions:
                assert router.feedback(d.id, 0.0)
            assert router.feedback_batch([d.id for d in decisions], [1.0] * 14) == 14
            assert router.background_learn().status.startswith("skipped")
            assert router.deep_learn().status.startswith("skipped")
            coordinator = LoopCoordinator(router, clock=iter([0.0, *[1e9] * 20]).__next__)
            coordinator.run_due()
            assert coordinator.failures == 0
            router.tick()
            router.flush()
            assert router.stats()["learned"] == 0
            ignored = ("policy.random", "policy.requests")
            assert {k: v for k, v in bits(router).items() if k not in ignored} == {k: v for k, v in before.items() if k not in ignored}
    engine = SonaEngine.load(tmp_path / "snapshot")
    for call in (engine.apply_batch, lambda rows: np.stack([engine.apply(row) for row in rows])):
        np.testing.assert_array_equal(call(x), x)
    for call in (engine.apply_micro_lora, engine.apply_base_lora):
        np.testing.assert_array_equal(call(x[0]), x[0])
    state = {name: array.tobytes() for name, array in engine.state().items()}
    tid = engine.begin_trajectory(x[0])
    engine.add_step(tid, activations=x[1], reward=1.0)
    engine.end_trajectory(tid, 1.0)
    assert engine.feedback(tid, 0.0)
    assert {name: array.tobytes() for name, array in engine.state().items()} == state
    assert main(["doctor"]) == 0
    assert "SONA_DISABLE" in capsys.readouterr().out
    monkeypatch.delenv("SONA_DISABLE")
    with make(tmp_path / "s.db") as router:  # what came meanwhile is learned now, once
        assert router.stats()["engine"]["store"]["replayed"] == 28
        assert bits(router) != learned
