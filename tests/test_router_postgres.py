"""Promises of a Router with a store on a server: those of a file, and that what breaks on the way is neither lost nor learned twice."""

import itertools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import StartPython
from postgres import Server
from test_journal import CRASH, check_recovery, journal_of, learned_bits, looks, open_router, poll, serve, world

from sona import PatternConfig, Router, SonaEngine
from sona.cli import main
from sona.errors import SonaStoreError
from sona.loops.background import BackgroundLoopConfig
from sona.store import open_store

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'sona[postgres]'")


@pytest.fixture
def url(postgres_server: Server) -> str:
    return postgres_server.url()


def wait_for(true: Callable[[], object], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it does not become true"
        time.sleep(0.01)


def cut_lease(router: Router | SonaEngine) -> None:
    """End the session that holds the lease, as a failover of the server would."""
    store: Any = (router.engine if isinstance(router, Router) else router).store
    pid = store._lease._session.pid
    with store._db.reading() as link:
        link.execute("SELECT pg_terminate_backend(?)", (pid,))
        wait_for(lambda: link.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ?", (pid,)).fetchone() is None)


def only_when_asked(router: Router) -> None:
    """It looks at the store, and for the lease, when the test says so: its clock stands still and it is told nothing."""
    journal = journal_of(router)
    journal.store.watch(None)
    journal._clock = lambda: 0.0
    journal._next_poll = 1.0


# ---- as with a file ----


@pytest.mark.parametrize("explore", ["greedy", "thompson"])
def test_a_restart_goes_on_bit_for_bit(postgres_server: Server, explore: Any) -> None:
    answers = []
    for stops in ((), (100, 200)):
        url = postgres_server.url()
        source, seen = world(), []
        router = open_router(url, explore=explore)
        for t in range(300):
            if t in stops:
                router.close()
                router = open_router(url, explore=explore)
            x, best = source.draw()
            d = router.route(x)
            router.feedback(d.id, float(d.index == best))
            seen.append((d.arm, d.propensity, d.scores.tobytes()))
        answers.append((seen, learned_bits(router), router.stats()["guard_weights"]))
        router.close()
    assert answers[0] == answers[1]


def test_a_router_learns_on_a_server_what_it_learns_in_a_file(url: str, tmp_path: Any) -> None:
    bits = []
    for where in (url, tmp_path / "s.db"):
        with open_router(where) as router:
            serve(router, world(), 200)
            bits.append(learned_bits(router))
    assert bits[0] == bits[1]


@pytest.mark.parametrize("kill", range(2))
def test_a_killed_process_loses_nothing_acknowledged(kill: int, url: str, start_python: StartPython) -> None:
    process = start_python(CRASH, url, 40, 0)
    assert process.stdout is not None
    acknowledged = 0
    while acknowledged < 30 + 47 * kill:
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    for line in process.stdout:
        acknowledged = int(line)
    with open_store(url) as store:
        wait_for(store.try_lease)  # until the server has noticed
    check_recovery(url, acknowledged)


def test_memory_versions_and_forgetting_work_on_a_server(url: str, rng: np.random.Generator) -> None:
    patterns = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=8, k_clusters=4), min_trajectories=50)
    arms = {name: np.eye(8)[k] for k, name in enumerate("abc")}
    with Router(arms, store=url, explore="softmax", background=patterns) as router:
        for n in range(300):
            x = rng.standard_normal(8)
            d = router.route(x)
            router.feedback(d.id, float(d.index == int(np.argmax(x[:3]))), source="u" if n % 3 else "v")
        note = router.engine.memory.add(np.ones(8), {"note": 1})
        assert router.background_learn().status == "completed"
        assert router.deep_learn().status == "completed"
        router.engine.flush()
        nodes = len(router.engine.memory)
        found = router.engine.find_patterns(np.ones(8), 3)
        report = router.forget_source("v")
        assert (report.rewards_removed, report.complete) == (100, True)
        versions = router.engine.versions()
    with Router(arms, store=url, explore="softmax", background=patterns) as router:
        assert [v.id for v in router.engine.versions()] == [v.id for v in versions]
        assert router.engine.memory.recall(np.ones(8), 1)[0].id == note
        assert nodes > 1
        assert found
        assert set(router.engine.store.sources()) == {"u"}  # type: ignore[union-attr]
        assert router.engine.store.integrity() == []  # type: ignore[union-attr]


def test_an_engine_takes_a_url(url: str) -> None:
    with SonaEngine(store=url) as engine:
        assert "postgresql://" in repr(engine)
        tid = engine.begin_trajectory(np.ones(engine.config.hidden_dim))
        engine.add_step(tid, activations=np.ones(engine.config.hidden_dim), reward=1.0)
        engine.end_trajectory(tid, quality=0.5)
        engine.flush()
        kept = engine.state()
    with SonaEngine(store=url) as engine:
        for name, array in engine.state().items():
            np.testing.assert_array_equal(array, kept[name])


def test_the_command_line_takes_a_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    secret = url.replace("sona@", "sona:s3cret@")
    assert main(["verify", secret]) == 1
    assert "no such store" in capsys.readouterr().err
    with open_router(url) as router:
        serve(router, world(), 30)
    for command in ("verify", "inspect", "doctor", "versions"):
        assert main([command, secret, "--json"]) == 0
        out = capsys.readouterr()
        assert "s3cret" not in out.out + out.err
        report = json.loads(out.out)
        if command == "inspect":
            assert report["namespaces"]["default"]["rewards"] == 30
            assert report["file_bytes"] > 10_000
        if command == "verify":
            assert report["namespaces"]["default"]["faults"] == []


# ---- several processes ----


def test_followers_are_woken_by_the_server(url: str) -> None:
    """Their clocks stand still, so that none of them polls because of the time."""
    with open_router(url) as first, open_router(url) as second:
        journal_of(second)._clock = lambda: 0.0
        journal_of(second)._next_poll = 1.0
        serve(first, world(), 50)
        journal_of(first).save()
        wait_for(lambda: (looks(second) == looks(first)).all())


def test_who_loses_the_lease_with_nobody_else_there_leads_again_and_forgets_nothing(url: str) -> None:
    source = world()
    with open_router(url) as router:
        serve(router, source, 20)
        journal = journal_of(router)
        kept, epoch = looks(router), journal._epoch
        cut_lease(router)
        journal.poll()
        wait_for(lambda: journal.leading)
        assert journal._epoch == epoch
        np.testing.assert_array_equal(looks(router), kept)
        serve(router, source, 20)
        assert router.stats()["learned"] == 40
        kept = looks(router)
    with open_router(url) as router:
        np.testing.assert_array_equal(looks(router), kept)


def test_who_loses_the_lease_to_another_follows_it(url: str) -> None:
    """What it learned is learned by the other, from the store; what it had not yet written as well; nothing twice."""
    source, twin = world(), open_router(None)
    with open_router(url, seed=1) as first, open_router(url, seed=1) as second:
        leader, follower = journal_of(first), journal_of(second)
        for router in (first, second):
            only_when_asked(router)
        assert (leader.leading, follower.leading) == (True, False)
        requests = [source.draw() for _ in range(60)]
        decisions = [first.route(x) for x, _ in requests]
        for d, (_, best) in zip(decisions[:30], requests[:30], strict=True):
            first.feedback(d.id, float(d.index == best))
        first.flush()
        cut_lease(first)
        follower.poll()
        assert follower.leading
        assert follower.term > leader.term
        assert second.stats()["learned"] == 30
        for d, (_, best) in zip(decisions[30:], requests[30:], strict=True):  # it does not know yet, and learns
            first.feedback(d.id, float(d.index == best))
        with pytest.raises(SonaStoreError, match="lost"):
            leader.save()
        leader.poll()
        assert not leader.leading
        first.flush()
        follower.poll()
        assert second.stats()["learned"] == 60
        follower.save()
        leader.poll()
        np.testing.assert_array_equal(looks(first), looks(second))
        answers = [twin.route(x) for x, _ in requests]
        for d, (_, best) in zip(answers, requests, strict=True):
            twin.feedback(d.id, float(d.index == best))
        np.testing.assert_allclose(looks(second), looks(twin), atol=1e-5)
        # And back: rewards that came in between and those of before are not confused.
        again = decisions[0]
        assert second.feedback(again.id, 1.0, sync=True)
        assert second.feedback(again.id, 0.0, sync=True)
        cut_lease(second)
        leader.poll()
        assert leader.leading
        follower.poll()
        assert not follower.leading
        leader.save()
        follower.poll()
        np.testing.assert_array_equal(looks(first), looks(second))
        assert first.feedback(decisions[1].id, 0.5)
        assert first.stats()["engine"]["store"]["leading"] is True


def test_what_was_learned_before_the_lease_was_lost_is_learned_again_where_the_state_lacks_it(url: str) -> None:
    """Another led in between and saved a state without it: rewards of before, and those that had not been written yet."""
    source = world()
    with open_router(url, guard=False) as first, open_router(url, guard=False) as second:
        for router in (first, second):
            only_when_asked(router)
        serve(first, source, 10)
        first.flush()
        journal_of(first).save()
        poll(second)
        decisions = [first.route(source.draw()[0]) for _ in range(20)]
        writer: Any = journal_of(first).writer
        with writer._turn(None):  # as if the disk were slow
            assert all(first.feedback(d.id, 1.0) for d in decisions)
            cut_lease(first)
            journal_of(second).poll()
            journal_of(second).store.put_state("default", *stored_state(second))
            cut_lease(second)
            journal_of(first).poll()
            assert journal_of(first).leading
            assert choices(first) == 10
        poll(first)
        assert choices(first) == 30
        assert first.feedback(decisions[0].id, 0.0)  # another reward of one that was learned is a revision
        assert choices(first) == 30
        assert first.stats()["revised"] == 1


def stored_state(router: Router) -> tuple[bytes, int]:
    kept = journal_of(router).store.get_state("default")
    assert kept is not None
    return kept


def choices(router: Router) -> int:
    """Rewards that are in what this router has, whoever learned them."""
    return int(router.engine.state()["policy.arm_calibration"][:, 2].sum())


def test_memory_follows_who_leads(url: str) -> None:
    with open_router(url) as first, open_router(url) as second:
        dim = first.engine.config.hidden_dim
        for router in (first, second):
            only_when_asked(router)
        first.engine.memory.add(np.ones(dim), "kept")
        first.engine.flush()
        first.engine.memory.add(-np.ones(dim), "not kept")
        cut_lease(first)
        journal_of(second).poll()
        with pytest.raises(SonaStoreError, match="lost"):
            first.engine.flush()
        second.engine.memory.add(np.arange(1, dim + 1), "of the second")
        second.engine.flush()
        journal_of(first).poll()
        with pytest.raises(SonaStoreError, match="another process learns"):
            first.engine.memory.add(np.ones(dim), "refused")
        first.engine.memory.follow(now=True)
        seen = [sorted(router.engine.memory.graph.data(id) for id in router.engine.memory.graph.ids.tolist()) for router in (first, second)]
        assert seen == [["kept", "of the second"]] * 2


def test_memory_that_nobody_else_changed_outlives_a_lost_lease(url: str) -> None:
    with open_router(url) as router:
        dim = router.engine.config.hidden_dim
        router.engine.memory.add(np.ones(dim), "kept")
        router.engine.flush()
        router.engine.memory.add(-np.ones(dim), "not yet")
        cut_lease(router)
        journal_of(router)._following = False
        wait_for(lambda: not router.engine.store.keep_lease())  # type: ignore[union-attr]
        journal_of(router).leading = False
        router.engine.memory.follow(now=True)  # as if it were looked up meanwhile
        journal_of(router)._following = True
        journal_of(router).poll()
        wait_for(lambda: journal_of(router).leading)
        router.engine.flush()
    with open_router(url) as router:
        memory = router.engine.memory
        assert sorted(memory.graph.data(id) for id in memory.graph.ids.tolist()) == ["kept", "not yet"]


# ---- a server that goes and comes ----


def test_requests_go_on_while_the_server_is_away_and_nothing_is_lost(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Killed in the middle of serving and learning: no request waits, what was acknowledged is there, all of it is learned once."""
    caplog.set_level(logging.CRITICAL, logger="sona")
    url, source = own_server.url(), world()
    router = open_router(url)
    arms, slowest = [], 0.0
    for n in itertools.count():
        if n == 150:
            own_server.stop("immediate")
        if n == 450:
            own_server.start()
        if n >= 600 and journal_of(router).leading:
            break
        x, best = source.draw()
        began = time.perf_counter()
        d = router.route(x)
        assert router.feedback(d.id, float(d.index == best))
        router.tick()
        slowest = max(slowest, time.perf_counter() - began)
        arms.append((d.id, float(d.index == best)))
        time.sleep(0.001)
    wait_for(lambda: _flushed(router))
    poll(router)
    assert slowest < 1.0
    assert router.stats()["engine"]["store"]["dropped"] == 0
    assert router.stats()["learned"] == len(arms)
    router.close()
    with open_store(url) as store:
        assert {(row.id, row.reward) for _, row in store.feedback_after(0, 10**6)} == set(arms)
        assert store.last_seq() == len(arms)
        assert store.integrity() == []
    with open_router(url) as again:
        assert again.stats()["engine"]["store"]["replayed"] == 0


def _flushed(router: Router) -> bool:
    try:
        router.flush()
    except SonaStoreError:
        return False
    return True


def test_a_server_that_restarts_in_the_middle_of_a_cycle_leaves_what_was(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The cycle ends with an error and changes nothing, or is done; a later one is done."""
    caplog.set_level(logging.CRITICAL, logger="sona")
    patterns = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=8, k_clusters=4), min_trajectories=50)
    arms = {name: np.eye(8)[k] for k, name in enumerate("abc")}
    rng = np.random.default_rng(3)
    url = own_server.url()
    with Router(arms, store=url, explore="softmax", background=patterns) as router:
        for _ in range(300):
            x = rng.standard_normal(8)
            d = router.route(x)
            router.feedback(d.id, float(d.index == int(np.argmax(x[:3]))))
        router.flush()
        store: Any = router.engine.store
        before, versions = learned_bits(router), len(router.engine.versions())
        real = store.put_version

        def restart_first(*arguments: Any, **options: Any) -> int:
            own_server.restart("immediate")
            return int(real(*arguments, **options))

        store.put_version = restart_first
        try:
            done = router.background_learn()
        except SonaStoreError:
            done = None
        del store.put_version
        wait_for(lambda: _led(router))
        if done is None:
            assert learned_bits(router) == before
            assert len(router.engine.versions()) == versions
            done = router.background_learn()
        assert done.status == "completed"
        assert len(router.engine.versions()) > versions
        assert router.deep_learn().status == "completed"
        assert store.integrity() == []


def _led(router: Router) -> bool:
    try:
        journal_of(router).poll()
    except SonaStoreError:
        return False
    return journal_of(router).leading


def test_a_router_that_is_closed_while_the_server_is_away_says_so(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sona")
    url = own_server.url()
    router = open_router(url)
    serve(router, world(), 5, sync=True)
    own_server.stop()
    serve(router, world(), 5)
    with pytest.raises(SonaStoreError):
        router.close()
    router.close()
    own_server.start()
    with open_router(url) as router:
        wait_for(lambda: _led(router))
        assert router.stats()["learned"] == 5


def alone(router: Router | SonaEngine) -> Any:
    """Its journal, which polls only when told to."""
    engine = router.engine if isinstance(router, Router) else router
    assert engine.journal is not None
    engine.journal.store.watch(None)
    return engine.journal


def test_who_starts_disabled_goes_on_from_the_state_when_it_is_enabled(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SonaEngine(store=url) as engine:
        kept = taught(engine)
    monkeypatch.setenv("SONA_DISABLE", "1")
    engine = SonaEngine(store=url)
    monkeypatch.delenv("SONA_DISABLE")
    with engine:
        engine.enabled = True
        alone(engine).poll()
        assert alone(engine).leading
        assert bits(engine) == kept
    with SonaEngine(store=url) as engine:
        assert bits(engine) == kept


def test_who_is_closed_without_its_lease_lets_the_next_on_its_store_object_lead(url: str) -> None:
    with open_store(url) as store, open_router(store) as second:
        journal_of(second)._give_lease()
        first = open_router(store)
        journal = alone(first)
        assert journal.leading
        cut_lease(first)
        journal._following = False
        assert not journal._still_leading()
        first.close()
        poll(second)
        assert journal_of(second).leading
        first.close()
        assert store.lease


def taught(engine: SonaEngine) -> bytes:
    tid = engine.begin_trajectory(np.ones(engine.config.hidden_dim))
    engine.add_step(tid, activations=np.ones(engine.config.hidden_dim))
    engine.end_trajectory(tid, quality=1.0)
    return bits(engine)


def bits(engine: SonaEngine) -> bytes:
    return b"".join(array.tobytes() for name, array in engine.state().items() if name.startswith("layer"))


@pytest.mark.parametrize("noticed", [False, True])
def test_what_trajectories_taught_is_saved_at_the_end_where_the_lease_was_lost_to_nobody(url: str, noticed: bool) -> None:
    with SonaEngine(store=url) as engine:
        journal = alone(engine)
        taught(engine)
        engine.flush()
        kept = taught(engine)
        cut_lease(engine)
        if noticed:
            assert not journal._still_leading()
    with SonaEngine(store=url) as engine:
        assert bits(engine) == kept


def test_who_waits_for_its_own_lost_session_does_not_go_back_to_its_own_state(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SonaEngine(store=url) as engine:
        journal = alone(engine)
        taught(engine)
        engine.flush()
        kept = taught(engine)
        cut_lease(engine)
        with monkeypatch.context() as patch:
            patch.setattr(journal.store, "try_lease", lambda: False)  # the server has not noticed that the old session is gone
            journal.poll()
        assert not journal.leading
        assert bits(engine) == kept
        journal.poll()
        assert journal.leading
        assert bits(engine) == kept


def test_a_forked_child_leaves_the_watcher_of_its_parent_alone(url: str) -> None:
    with open_store(url) as store:
        told: list[int] = []
        store.watch(lambda: told.append(1))
        assert store.try_lease()
        lease: Any = store._lease  # type: ignore[attr-defined]
        taken, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with lease._lock:
                taken.set()
                go_on.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait(60)
        child = os.fork()
        if child == 0:  # it may neither wait for a thread that it does not have nor speak to the server
            try:
                signal.alarm(20)
                assert lease._watcher is None
                store.close()
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        go_on.set()
        holder.join()
        assert status == 0
        assert store.keep_lease()
        with open_store(url, namespace="default") as other, other._db.writing() as link:  # type: ignore[attr-defined]
            other._changed(link)  # type: ignore[attr-defined]
        wait_for(lambda: told)
