"""What the dashboard asks of a store, whichever database it is in, and how a wish for another version reaches the process that learns."""

import dataclasses
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartPython
from stores import VERSION, Place, decision, feedback, trajectory
from test_sidecar import Place as Sidecar
from test_sidecar import eventually, reader_of
from test_versions import DIM, factors, make_router, serve, served, version

from sona import Adapter, SonaEngine
from sona.config import SonaConfig
from sona.contents import ask_rollback
from sona.errors import SonaStoreError, SonaValueError
from sona.sidecar import Weights
from sona.store import SqliteStore, Store
from sona.store import overview as parts


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


# ---- what is shown ----


def test_whatever_is_written_changes_a_mark_and_nothing_else_does(store: Store) -> None:
    seen = [store.marks()]

    def changes(call: Any) -> set[str]:
        call()
        seen.append(store.marks())
        return {name for name in seen[-2].keys() | seen[-1].keys() if seen[-2].get(name) != seen[-1].get(name)}

    assert changes(lambda: store.append([decision(1)])) == {"decisions"}
    assert changes(lambda: store.append([], [feedback(1)])) == {"rewards"}
    assert changes(lambda: store.append([], [], [trajectory(1)])) == {"trajectories"}
    assert changes(lambda: store.put_state("m", b"one", 0)) == {"state m"}
    assert changes(lambda: store.put_state("m", b"two", 0)) == {"state m"}
    assert changes(lambda: store.put_version("m", VERSION)) == {"versions"}
    assert changes(lambda: store.ask_publish("m", 1)) == {"publish m"}
    assert changes(lambda: store.put_state("m", b"two", 0, publish=1)) == {"publish m", "state m", "served m"}
    assert changes(lambda: store.decision(1)) == set()


def test_the_series_is_what_the_rewards_add_up_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside sums over plain rows: other namespaces, revisions, rewards of trajectories and of what is gone, any number of buckets."""
    monkeypatch.setattr(parts, "PIECE", 7)
    rng = random.Random(3)
    with place.open() as store, place.open(namespace="other") as other:
        decisions = [decision(id) for id in range(40)]
        rewards = [feedback(rng.randrange(60), rng.random(), time=5000.0 + n) for n in range(90)]
        store.append(decisions)
        for row in rewards:
            other.append([], [dataclasses.replace(row, reward=9.0)])
            store.append([], [row])
        for newest, buckets in ((90, 7), (1000, 1), (33, 90), (1, 5), (90, 1000)):
            recent = list(enumerate(rewards))[-newest:]
            counted = [row for n, row in recent if all(later.id != row.id for later in rewards[n + 1 :])]
            series = store.reward_series(newest, buckets)
            assert len(series) <= buckets
            assert sum(each.rewards for each in series) == len(counted)
            assert np.isclose(sum(each.total for each in series), sum(row.reward for row in counted))
            assert np.isclose(sum(each.squares for each in series), sum(row.reward**2 for row in counted))
            assert [each.first for each in series] == sorted(each.first for each in series)
            assert {series[0].first, series[-1].last} <= {row.time for row in counted}
            known = [row for row in counted if row.id < 40]
            assert [(each.time, each.reward) for each in store.outcomes(newest)] == [(row.time, row.reward) for row in known]
            assert [each.decided for each in store.outcomes(newest)] == [decisions[row.id].time for row in known]
            assert [each[3:] for each in store.outcomes(newest)] == [(row.id % 3, 1, 0.75, b"guard") for row in known]


def test_an_empty_store_has_an_empty_series(store: Store) -> None:
    assert store.reward_series(100, 10) == []
    assert list(store.outcomes(100)) == []
    assert store.marks() == {"rewards": 0, "decisions": 0, "trajectories": 0, "versions": 0}
    with pytest.raises(SonaValueError, match="newest"):
        store.reward_series(-1, 10)


# ---- a wish for a version ----


def test_a_wish_ends_with_what_was_wished_for_and_not_with_another_version(store: Store) -> None:
    for _ in range(3):
        store.put_version("m", VERSION)
    assert store.asked("m") is None
    store.ask_publish("m", 2)
    store.put_state("m", b"", 0, publish=1)
    assert (store.asked("m"), store.asked("other")) == (2, None)
    store.refuse_publish("m", 3)
    assert store.asked("m") == 2
    store.ask_publish("m", 3)
    store.refuse_publish("m", 3)
    assert store.asked("m") == -3
    store.put_state("m", b"", 0, publish=1)  # whoever looked at the refusal has looked at it
    assert store.asked("m") is None
    store.ask_publish("m", 3)
    store.put_state("m", b"", 0, publish=3)
    assert store.asked("m") is None
    with pytest.raises(SonaValueError, match="state name"):
        store.ask_publish("no name", 1)


def test_the_wish_of_one_name_and_namespace_is_not_that_of_another(place: Place) -> None:
    with place.open() as one, place.open(namespace="two") as two:
        one.ask_publish("a", 1)
        two.ask_publish("a", 2)
        one.ask_publish("b", 3)
        assert (one.asked("a"), one.asked("b"), two.asked("a"), two.asked("b")) == (1, 3, 2, None)
        assert {name for name in two.marks() if name.startswith("publish")} == {"publish a"}


@pytest.mark.parametrize("by", ["tick", "reward"])
def test_the_process_that_learns_grants_a_wish_at_its_next_tick_or_reward(path: Path, by: str) -> None:
    with make_router(path) as router:
        serve(router)
        one = router.engine._service.versions.add(version(1))
        router.flush()
        before = served(router)
        wanted, done = ask_rollback(path, one.id)
        assert (wanted.number, done) == (1, False)
        assert served(router) == before
        assert router.engine.journal is not None
        router.engine.journal.poll()  # what a second does
        if by == "tick":
            router.tick()
        else:
            serve(router, 1)
        assert [v.number for v in router.engine.versions() if v.published] == [1]
        assert router.engine.observed.stats()["publish"]["completed"] == 1  # watchers see it, as one that was called for
        assert router.engine.store is not None
        assert router.engine.store.asked("default") is None
        if by == "tick":
            assert served(router) == factors(1).to_bytes()
        assert any(v.verdict == "served" for v in router.engine.versions())  # what was served until then can be had back


def test_where_nobody_learns_a_wish_is_done_at_once(path: Path) -> None:
    with make_router(path) as router:
        serve(router)
        router.engine._service.versions.add(version(1))
    wanted, done = ask_rollback(path, 1)
    assert (wanted.number, wanted.published, done) == (1, True, True)
    with make_router(path) as router:
        assert served(router) == factors(1).to_bytes()


def test_a_wish_that_cannot_be_granted_is_refused_and_nothing_changes(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with make_router(path) as router:
        serve(router)
        router.engine._service.versions.add(version(1, factors=factors(1, dim=5)))
        before, engine = served(router), router.engine
        assert engine.journal is not None
        assert engine.store is not None
        for number in (1, 77):
            engine.store.ask_publish("default", number)
            engine.journal.poll()
            router.tick()
            assert engine.store.asked("default") == -number
            assert served(router) == before
        assert caplog.text.count("is refused") == 2
        with pytest.raises(SonaValueError, match="expected one of"):
            ask_rollback(path, 77)


def test_a_store_that_cannot_be_written_keeps_the_wish(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_router(path) as router:
        serve(router)
        router.engine._service.versions.add(version(1))
        ask_rollback(path, 1)
        before, journal = served(router), router.engine.journal
        assert journal is not None

        def full(*_: Any, **__: Any) -> None:
            raise SonaStoreError("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(SqliteStore, "put_state", full)
            journal.poll()
            router.tick()
            assert served(router) == before
        journal.poll()
        router.tick()
        assert served(router) == factors(1).to_bytes()


def test_a_follower_grants_nothing_and_the_next_leader_does(path: Path) -> None:
    leader, follower = make_router(path), make_router(path)
    serve(leader)
    leader.engine._service.versions.add(version(1))
    ask_rollback(path, 1)
    assert follower.engine.journal is not None
    follower.engine.journal.poll()
    follower.tick()
    assert served(follower) != factors(1).to_bytes()
    leader.engine.journal._following = False  # type: ignore[union-attr]  # it ends without having looked
    leader.close()
    follower.engine.journal.poll()
    follower.tick()
    assert served(follower) == factors(1).to_bytes()
    follower.close()


def test_an_engine_without_a_router_grants_at_its_tick(path: Path) -> None:
    with SonaEngine(SonaConfig(hidden_dim=DIM), store=path) as engine:
        engine._service.versions.add(version(1))
        engine.journal.save()  # type: ignore[union-attr]
        assert not ask_rollback(path, 1)[1]
        engine.journal.poll()  # type: ignore[union-attr]
        engine.tick()
        assert [v.published for v in engine.versions() if v.number == 1] == [True]


def test_a_process_of_its_own_grants_a_wish_within_seconds(path: Path, start_python: StartPython) -> None:
    with make_router(path) as router:
        serve(router)
        router.engine._service.versions.add(version(1))
    child = start_python(
        """
        import sys, time
        from test_versions import make_router, served, factors
        from sona import LoopCoordinator
        router = make_router(sys.argv[1])
        with LoopCoordinator(router, interval=0.05):
            print("ready", flush=True)
            give_up = time.monotonic() + 30
            while served(router) != factors(1).to_bytes() and time.monotonic() < give_up:
                time.sleep(0.01)
            print(served(router) == factors(1).to_bytes(), flush=True)
        router.close()
        """,
        path,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert not ask_rollback(path, 1)[1]
    assert child.stdout.readline() == "True\n"
    assert child.wait(30) == 0


def test_a_sidecar_that_has_nothing_to_learn_grants_a_wish_and_publishes_its_weights(tmp_path: Path) -> None:
    """`sona learn` beside a program that adopts its weights: what is adopted after the wish is the version."""
    config = SonaConfig.ephemeral(hidden_dim=DIM)
    with SonaEngine(config, store=tmp_path / "sona.db") as engine:
        engine._service.versions.add(version(1))
        engine.journal.save()  # type: ignore[union-attr]
    wanted = factors(1).down.T @ factors(1).up

    def has_version(reader: Weights, adapter: Adapter) -> bool:
        reader.adopt([adapter])
        return bool(np.allclose(adapter.delta(), wanted, atol=1e-4))

    with closing(Sidecar(tmp_path)) as place:
        place.start()
        reader = reader_of(place.weights)
        adapter = Adapter(DIM)
        eventually(lambda: reader.adopt([adapter]) is not None, "nothing was published")
        assert not ask_rollback(place.store, 1)[1]
        eventually(lambda: has_version(reader, adapter), "the version was not published")
        reader.close()
