"""Router in an event loop: `afeedback` is `feedback` with the loop free, whole when it is cancelled, and durable when it says so."""

import asyncio
import contextlib
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres import Server

from sona import Router, SonaEngine, SqliteStore, open_store
from sona.errors import SonaClosedError, SonaStoreError, SonaTypeError, SonaValueError

DIM = 8


def make(store: Any, **options: Any) -> Router:
    return Router(np.eye(3, DIM), store=store, **{"seed": 1, **options})


def rewards_in(path: Path) -> dict[int, float]:
    with SqliteStore(path) as store:
        assert store.integrity() == []
        return {row.id: reward for row, reward in store.decisions() if reward is not None}


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("it waits")


def learned_by(router: Router) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in router.engine.state().items() if not key.startswith("drift.")}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(1e-3)


class Gate:
    """Holds up the calls of a method until it is opened."""

    def __init__(self, owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.threads = 0, set[int]()
        self._open, work = threading.Event(), getattr(owner, name)

        def wait(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            self.threads.add(threading.get_ident())
            assert self._open.wait(60)
            return work(*arguments, **options)

        monkeypatch.setattr(owner, name, wait)

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("where", ["memory", "store"])
@pytest.mark.parametrize("options", [{}, {"pool": True}, {"retrieval": 20}], ids=["plain", "pool", "retrieval"])
def test_the_same_is_learned_as_by_the_methods_that_are_called(where: str, options: dict[str, Any], tmp_path: Path) -> None:
    def store(name: str) -> Path | None:
        return tmp_path / name if where == "store" else None

    rng = np.random.default_rng(0)
    requests, rewards = rng.standard_normal((60, DIM)), rng.integers(0, 2, (60, 3))
    with make(store("a.db"), **options) as called, make(store("b.db"), **options) as awaited:

        async def serve() -> None:
            for number, (x, row) in enumerate(zip(requests, rewards, strict=True)):
                one, other = called.route(x), await awaited.aroute(x)
                assert (one.arm, one.propensity) == (other.arm, other.propensity)
                sync = number % 10 == 0
                assert called.feedback(one.id, row[one.index], sync=sync)
                assert await awaited.afeedback(other.id, row[other.index], sync=sync)

        asyncio.run(serve())
        assert learned_by(called) == learned_by(awaited)


def test_what_need_not_wait_does_not(tmp_path: Path) -> None:
    for store in (None, tmp_path / "s.db"):
        with make(store) as router:
            before = threading.active_count()
            for _ in range(20):
                d = at_once(router.aroute(np.ones(DIM)))
                assert at_once(router.afeedback(d.id, 1.0))
            assert at_once(router.aroute(np.ones(DIM), candidates=[1])).arm == 1
            assert at_once(router.afeedback(-1, 1.0)) is False
            assert at_once(router.afeedback(1 << 70, 1.0)) is False
            assert router.stats()["learned"] == 20
            assert threading.active_count() == before


def test_the_loop_goes_on_while_a_group_is_written_and_the_next_holds_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    with make(path) as router:
        router.flush()
        assert router.engine.journal is not None
        disk = Gate(router.engine.journal.store, "append", monkeypatch)
        groups = router.engine.journal.stats()["groups"]

        async def serve() -> None:
            first = asyncio.create_task(router.afeedback((await router.aroute(np.ones(DIM))).id, 1.0, sync=True))
            await until(lambda: disk.calls)
            others = [asyncio.create_task(router.afeedback((await router.aroute(np.ones(DIM))).id, 1.0, sync=True)) for _ in range(100)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert not any(task.done() for task in (first, *others))
            assert router.stats()["learned"] == 101  # what waits is for the disk alone
            disk.open()
            assert all(await asyncio.gather(first, *others))
            assert len(rewards_in(path)) == 101

        asyncio.run(serve())
        assert router.engine.journal.stats()["groups"] <= groups + 2


def test_a_decision_that_is_only_in_the_store_is_looked_up_by_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    with make(path) as leader, make(path) as other:
        ids = [leader.route(np.ones(DIM)).id for _ in range(30)]
        leader.flush()
        assert other.engine.journal is not None
        threads = threading.active_count()
        disk = Gate(other.engine.journal.store, "rewarded", monkeypatch)

        async def serve() -> None:
            asked = [asyncio.create_task(other.afeedback(id, 1.0, sync=True)) for id in [*ids, leader.route(np.ones(DIM)).id + 10]]
            await until(lambda: disk.calls)
            d = await other.aroute(np.ones(DIM))
            assert await other.afeedback(d.id, 1.0)  # one that it knows is not held up
            assert (disk.calls, threading.active_count()) == (1, threads + 1)
            disk.open()
            assert await asyncio.gather(*asked) == [True] * 30 + [False]
            assert set(rewards_in(path)) >= set(ids)

        asyncio.run(serve())
        assert len(disk.threads) == 1
        assert threading.get_ident() not in disk.threads


@pytest.mark.parametrize("name", ["intake", "mutex"])
def test_the_loop_does_not_wait_for_a_thread_that_learns(name: str, tmp_path: Path) -> None:
    with make(tmp_path / "s.db") as router:
        d = router.route(np.ones(DIM))
        lock = getattr(router.engine.journal, name)

        async def serve() -> None:
            with lock:
                task = asyncio.create_task(router.afeedback(d.id, 1.0))
                await asyncio.sleep(0.01)
                assert not task.done()
                await router.aroute(np.ones(DIM))
            assert await task

        asyncio.run(serve())
        assert router.stats()["learned"] == 1


def test_the_reward_that_decides_a_trial_writes_the_version_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(tmp_path / "s.db") as router:
        for due in (False, True):
            deciding = []
            with monkeypatch.context() as patch:
                patch.setattr(type(router.engine._service), "due", due)
                patch.setattr(router.engine, "_rewarded", lambda deciding=deciding: deciding.append(threading.current_thread().name))
                assert asyncio.run(router.afeedback(router.route(np.ones(DIM)).id, 1.0))
            assert [name.startswith("sona-feedback") for name in deciding] == [due]


def test_errors_are_those_of_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make(tmp_path / "s.db")
    d = router.route(np.ones(DIM))
    for bad, error in (((d.id, float("nan")), SonaValueError), ((d.id, 2.0), SonaValueError), (("1", 1.0), SonaTypeError)):
        with pytest.raises(error):
            at_once(router.afeedback(*bad))  # type: ignore[arg-type]
    with pytest.raises(SonaValueError, match="x: expected"):
        at_once(router.aroute(np.full(DIM, np.nan)))
    assert asyncio.run(router.afeedback(d.id + 5, 1.0, sync=True)) is False
    assert router.stats()["learned"] == 0
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise SonaStoreError("the disk is full")

        assert router.engine.journal is not None
        patch.setattr(router.engine.journal.store, "append", full)

        async def both() -> list[Any]:
            calls = (router.afeedback(d.id, 1.0, sync=True), router.afeedback(d.id, 0.0, sync=True))
            return await asyncio.gather(*calls, return_exceptions=True)

        found = asyncio.run(both())
        assert [type(error) for error in found] == [SonaStoreError] * 2
        assert all(re.fullmatch("flush failed, [12] rows wait to be written: the disk is full", str(error)) for error in found)
        assert router.stats()["learned"] == 1
    assert asyncio.run(router.afeedback(d.id, 1.0, sync=True))  # the disk has room again
    router.close()
    assert rewards_in(tmp_path / "s.db") == {d.id: 1.0}
    for refused in (router.afeedback(d.id, 1.0), router.aroute(np.ones(DIM))):
        with pytest.raises(SonaClosedError, match="the router is closed"):
            at_once(refused)


def test_cancelled_while_it_waits_for_the_disk_a_reward_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(tmp_path / "s.db") as router:
        router.flush()
        d = router.route(np.ones(DIM))
        assert router.engine.journal is not None
        disk = Gate(router.engine.journal.store, "append", monkeypatch)

        async def serve() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await router.afeedback(d.id, 1.0, sync=True)
            disk.open()
            await asyncio.sleep(0.02)  # the writer tells, and nobody listens

        asyncio.run(serve())
        assert router.stats()["learned"] == 1
    assert rewards_in(tmp_path / "s.db") == {d.id: 1.0}


def test_cancelled_in_the_queue_nothing_is_recorded_and_cancelled_at_work_all_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    with make(path) as leader, make(path) as other:
        begun, queued = (leader.route(np.ones(DIM)).id for _ in range(2))
        leader.flush()
        assert other.engine.journal is not None
        disk = Gate(other.engine.journal.store, "rewarded", monkeypatch)

        async def serve() -> None:
            tasks = [asyncio.create_task(other.afeedback(id, 1.0)) for id in (begun, queued)]
            await until(lambda: disk.calls)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() for task in tasks)
            disk.open()
            assert await other.afeedback(begun, 1.0, sync=True)  # behind the first

        asyncio.run(serve())
    assert rewards_in(path) == {begun: 1.0}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_cancelled_whenever_a_reward_is_learned_and_kept_or_neither(seed: int, tmp_path: Path) -> None:
    path, choose = tmp_path / "s.db", random.Random(seed)
    acknowledged: dict[int, float] = {}
    given: dict[int, float] = {}
    with make(path) as router, make(path) as other:

        async def one(routed: Router, rewarded: Router) -> None:
            d = await routed.aroute(np.ones(DIM))
            if routed is not rewarded:
                await asyncio.sleep(choose.random() * 0.05)
            given[d.id] = reward = round(choose.random(), 3)
            sync = choose.random() < 0.7
            if await rewarded.afeedback(d.id, reward, sync=sync) and sync:
                acknowledged[d.id] = reward

        async def serve() -> None:
            tasks = []
            for _ in range(300):
                routed, rewarded = choose.choice([(router, router), (other, other), (router, other), (other, router)])
                tasks.append(asyncio.create_task(one(routed, rewarded)))
                if choose.random() < 0.4:
                    choose.choice(tasks).cancel()
                if choose.random() < 0.2:
                    await asyncio.sleep(choose.random() * 5e-3)
            await asyncio.gather(*tasks, return_exceptions=True)
            assert not [task for task in tasks if not task.cancelled() and task.exception()]

        asyncio.run(serve())
        other.flush()
        assert router.engine.journal is not None
        router.engine.journal.poll()
        learned = router.stats()["learned"]
    kept = rewards_in(path)
    assert len(acknowledged) > 50
    assert acknowledged.items() <= kept.items()
    assert {id: float(np.float32(reward)) for id, reward in kept.items()} == {id: float(np.float32(given[id])) for id in kept}
    assert learned == len(kept)


def test_loops_of_several_threads_share_a_router(tmp_path: Path) -> None:
    path, count = tmp_path / "s.db", 40
    found: list[int] = []
    with make(path) as router, make(path) as other:

        async def serve() -> None:
            for number in range(count):
                d = await router.aroute(np.ones(DIM))
                if number % 4 == 0:
                    await router.afeedback(d.id, 0.0, sync=True)
                assert await (other if number % 4 == 0 else router).afeedback(d.id, 1.0, sync=True)
                found.append(d.id)

        threads = [threading.Thread(target=asyncio.run, args=(serve(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3 * count
        assert rewards_in(path) == dict.fromkeys(found, 1.0)


def test_a_loop_that_ended_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with make(tmp_path / "s.db") as router:
        router.flush()
        assert router.engine.journal is not None
        disk = Gate(router.engine.journal.store, "append", monkeypatch)

        async def leave() -> None:
            task = asyncio.create_task(router.afeedback(router.route(np.ones(DIM)).id, 1.0, sync=True))
            await until(lambda: disk.calls)
            task.cancel()

        asyncio.run(leave())
        disk.open()
        router.flush()
        assert router.stats()["learned"] == 1
    assert caplog.text == ""


def test_close_ends_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that was learned is written, one that was not is refused; and nobody waits for ever."""
    path = tmp_path / "s.db"
    leader, other = make(path), make(path)
    known, asked, late = other.route(np.ones(DIM)).id, leader.route(np.ones(DIM)).id, leader.route(np.ones(DIM)).id
    leader.flush()
    other.flush()
    assert other.engine.journal is not None
    read = Gate(other.engine.journal.store, "rewarded", monkeypatch)
    write = Gate(other.engine.journal.store, "append", monkeypatch)

    async def serve() -> list[Any]:
        tasks = [asyncio.create_task(other.afeedback(known, 1.0, sync=True))]
        await until(lambda: write.calls)
        tasks += [asyncio.create_task(other.afeedback(id, 1.0)) for id in (asked, late)]
        await until(lambda: read.calls)
        closing = asyncio.create_task(asyncio.to_thread(other.close))
        await until(lambda: other.engine._closed)
        with pytest.raises(SonaClosedError):
            await other.afeedback(known, 0.0)
        write.open()
        await closing
        read.open()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(serve())
    assert found[0] is True
    assert all(isinstance(error, SonaClosedError) for error in found[1:]), found
    leader.close()
    assert rewards_in(path) == {known: 1.0}


def test_rewards_that_need_not_be_durable_are_written_in_groups_as_before(tmp_path: Path) -> None:
    with make(tmp_path / "s.db") as router:

        async def serve() -> float:
            start = time.monotonic()
            for _ in range(2000):
                await router.afeedback((await router.aroute(np.ones(DIM))).id, 1.0)
            return time.monotonic() - start

        took = asyncio.run(serve())
        assert router.stats()["engine"]["store"]["groups"] <= took / 0.1 + 2


@pytest.mark.slow
def test_a_server_that_hangs_holds_up_no_loop(own_server: Server) -> None:
    """Rewards time out, requests go on, and what was recorded is durable once the server answers again."""
    url = own_server.url()
    with make(url) as leader, make(url) as router:
        elsewhere = leader.route(np.ones(DIM)).id
        leader.flush()
        router.flush()

        async def gives_up(id: int) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await router.afeedback(id, 1.0, sync=True)

        async def serve() -> list[int]:
            with own_server.hung():
                ids = [(await router.aroute(np.ones(DIM))).id for _ in range(5)]
                ticks = asyncio.create_task(count())
                await asyncio.gather(*map(gives_up, (*ids, elsewhere)))
                ticks.cancel()
                assert ticked[0] > 20
            d = await router.aroute(np.ones(DIM))
            assert await router.afeedback(d.id, 1.0, sync=True)
            assert not await router.afeedback(elsewhere + 9, 1.0)  # behind the read that had begun, which went on
            return [*ids, elsewhere, d.id]

        async def count() -> None:
            while True:
                await asyncio.sleep(1e-3)
                ticked[0] += 1

        ticked = [0]
        given = asyncio.run(serve())
        assert router.stats()["engine"]["store"]["dropped"] == 0
    with open_store(url) as store:
        assert {row.id for row, reward in store.decisions() if reward == 1.0} == set(given)


def test_an_engine_has_none_of_it() -> None:
    assert not [name for name in ("aroute", "afeedback") if hasattr(SonaEngine, name)]
    with contextlib.closing(make(None)) as router:
        assert asyncio.iscoroutinefunction(router.aroute)
        assert asyncio.iscoroutinefunction(router.afeedback)
