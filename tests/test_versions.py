"""Promises of versions: they never change, one of them is published together with the state that has it, and any can be served again."""

import itertools
import json
import os
import random
import sqlite3
import struct
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import killed
from hypothesis import given, settings
from hypothesis import strategies as st

from sona import Router, SonaEngine
from sona.adapters import Factors, MemoryVersions, Version
from sona.adapters.factors import join, split
from sona.adapters.versions import KEPT, find
from sona.cli import main
from sona.config import SonaConfig
from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError
from sona.loops.versions import StoredVersions
from sona.store import SqliteStore, VersionRow

Array = np.ndarray[Any, Any]
DIM = 8


def factors(seed: int, rank: int = 2, dim: int = DIM) -> Factors:
    rng = np.random.default_rng(seed)
    down, up = rng.normal(size=(2, rank, dim)).astype(np.float32)
    return Factors(down, up, rng.normal(size=rank).astype(np.float32))


def version(seed: int, **changes: Any) -> Version:
    fields = {
        "name": "default",
        "created": 1000.0 + seed,
        "verdict": "undecided",
        "reason": f"because {seed}",
        "metrics": {"before": {"brier": 0.25}, "after": {"brier": None}},
        "window": {"replayed": seed, "held_out": 3},
        "factors": factors(seed),
    }
    return Version(**(fields | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


def make_router(store: Any = None, **options: Any) -> Router:
    return Router(["a", "b", "c"], dim=DIM, store=store, **options)


def serve(router: Router, rounds: int = 60, best: str = "b", seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        d = router.route(rng.normal(size=DIM))
        router.feedback(d.id, float(d.arm == best))


def served(router: Router) -> bytes:
    return Factors.of(router.engine.adapters[0]).to_bytes()


# ---- the log: memory and store are the same ----


@settings(max_examples=15)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_memory_and_store_keep_the_same_versions(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    """0: publish the oldest one that is kept; 1: the newest; else add."""
    with SqliteStore(tmp_path_factory.mktemp("v") / "sona.db") as store:
        memory, stored = MemoryVersions(), StoredVersions(store, "default")
        oracle: list[tuple[int, int]] = []  # (number, seed)
        published, number = None, 0
        for seed, step in enumerate(steps):
            if step < 2 and oracle:
                published = oracle[0 if step == 0 else -1][0]
                memory.publish(published)
                store.put_state("default", b"", 0, publish=published)
            else:
                number += 1
                assert memory.add(version(seed)).number == stored.add(version(seed)).number == number
                oracle.append((number, seed))
                oracle = [(n, s) for n, s in oracle if n == published or n > number - KEPT]
            assert [(v.number, v.published) for v in memory.all()] == [(n, n == published) for n, _ in oracle]
            assert [v.id for v in memory.all()] == [v.id for v in stored.all()]
        assert stored.all() == memory.all()
        assert [v.factors.to_bytes() for v in stored.all()] == [factors(seed).to_bytes() for _, seed in oracle]
        assert store.integrity() == []


def test_a_number_is_never_given_out_twice(path: Path) -> None:
    with SqliteStore(path) as store:
        log = StoredVersions(store, "default")
        numbers = [log.add(version(0)).number for _ in range(3 * KEPT)]
    with SqliteStore(path) as store:
        numbers.append(StoredVersions(store, "default").add(version(0)).number)
        assert len(StoredVersions(store, "default").all()) == KEPT
    assert numbers == list(range(1, 3 * KEPT + 2))


@pytest.mark.parametrize("stored", [False, True])
def test_the_published_version_stays_beside_the_newest_twenty(path: Path, stored: bool) -> None:
    with make_router(path if stored else None) as router:
        engine = router.engine
        engine.publish(engine._service.versions.add(version(1)))
        for seed in range(2, KEPT + 9):
            engine._service.versions.add(version(seed))
        numbers = [v.number for v in engine.versions()]
        assert numbers == [1, *range(max(numbers) - KEPT + 1, max(numbers) + 1)]


@pytest.mark.parametrize("stored", [False, True])
def test_the_oldest_version_can_be_served_although_what_it_replaces_becomes_one_more(path: Path, stored: bool) -> None:
    with make_router(path if stored else None) as router:
        engine = router.engine
        for seed in range(KEPT + 5):
            engine._service.versions.add(version(seed))
        serve(router)
        learned = served(router)
        oldest = engine.versions()[0]
        assert engine.rollback(oldest).published
        assert served(router) == oldest.factors.to_bytes()
        kept = engine.versions()
        assert kept[0].id == oldest.id
        assert kept[-1].factors.to_bytes() == learned
        assert len(kept) == KEPT + 1


def test_an_id_names_number_and_content() -> None:
    log = MemoryVersions()
    one, two = log.add(version(1)), log.add(version(2))
    assert (one.id, two.id) == (f"default@1-{factors(1).digest}", f"default@2-{factors(2).digest}")
    assert find(log.all(), one.id) is find(log.all(), 1) is find(log.all(), "1") is find(log.all(), one)
    for wrong in ("default@2-00000000", 3, "", "default@1"):
        with pytest.raises(SonaValueError, match="expected one of default@1-"):
            find(log.all(), wrong)
    with pytest.raises(SonaValueError, match="there are none"):
        find([], 1)
    with pytest.raises(SonaValueError, match="got 7"):
        log.publish(7)


def test_versions_of_other_names_and_namespaces_are_apart(path: Path) -> None:
    with SqliteStore(path) as a, SqliteStore(path, namespace="other") as b:
        assert a.put_version("one", VersionRow(None, 0.0, "accept", "", "{}", b"1")) == 1
        assert a.put_version("two", VersionRow(None, 0.0, "accept", "", "{}", b"2")) == 1
        assert b.put_version("one", VersionRow(None, 0.0, "accept", "", "{}", b"3")) == 1
        a.put_state("two", b"", 0, publish=1)
        assert (a.published("one"), a.published("two"), b.published("one")) == (None, 1, None)


@pytest.mark.parametrize(
    "fields",
    [("1", 0.0, "v", "r", "{}", b""), (1, float("nan"), "v", "r", "{}", b""), (1, 0.0, 3, "r", "{}", b""), (1, 0.0, "v", "r", "{}", "")],
)
def test_bad_rows_are_refused(fields: tuple[Any, ...]) -> None:
    with pytest.raises((SonaValueError, TypeError), match="expected"):
        VersionRow(*fields)


def test_publishing_what_is_not_there_changes_nothing(path: Path) -> None:
    with SqliteStore(path) as store:
        StoredVersions(store, "default").add(version(1))
        store.put_state("default", b"old", 1, publish=1)
        with pytest.raises(SonaStoreError, match="no version 9"):
            store.put_state("default", b"new", 2, publish=9)
        assert store.get_state("default") == (b"old", 1)
        assert store.published("default") == 1


def test_a_damaged_version_is_found(path: Path) -> None:
    with SqliteStore(path) as store:
        StoredVersions(store, "default").add(version(1))
    with sqlite3.connect(path) as conn:
        conn.execute("UPDATE versions SET verdict = 'accept'")
    conn.close()
    with SqliteStore(path) as store:
        assert store.integrity() == ["version 1 of 'default': does not match its checksum"]
        with pytest.raises(SonaCorruptError, match="version 1"):
            store.versions("default")


def test_another_process_that_leads_is_respected(path: Path) -> None:
    with SqliteStore(path) as store, SqliteStore(path) as other:
        assert store.try_lease()
        with pytest.raises(SonaStoreError, match="lease"):
            other.put_version("default", VersionRow(None, 0.0, "accept", "", "{}", b""))


# ---- serving a version ----


@pytest.mark.parametrize("stored", [False, True])
def test_rollback_serves_the_version_and_keeps_what_it_replaced(path: Path, stored: bool) -> None:
    with make_router(path if stored else None) as router:
        serve(router)
        engine = router.engine
        learned = served(router)
        one = engine._service.versions.add(version(1))
        assert engine.publish(one).published
        assert served(router) == factors(1).to_bytes()
        kept = {v.number: v for v in engine.versions()}
        assert [v.published for v in kept.values()] == [True, False]
        assert (kept[2].verdict, kept[2].parent, kept[2].factors.to_bytes()) == ("served", None, learned)
        serve(router, 5, seed=1)
        assert served(router) != factors(1).to_bytes()  # learning goes on
        engine.rollback(2)
        assert served(router) == learned
        assert [(v.number, v.published, v.parent) for v in engine.versions()] == [(1, False, None), (2, True, None), (3, False, 1)]
        engine.rollback(engine.versions()[0].id)
        assert len(engine.versions()) == 3  # what was served is one of them
        serve(router, 5)


def test_a_published_version_is_served_after_a_restart(path: Path) -> None:
    with make_router(path) as router:
        serve(router)
        router.engine.publish(router.engine._service.versions.add(version(1)))
        x = np.ones(DIM, np.float32)
        want = router.engine.apply(x)
    with make_router(path) as router:
        np.testing.assert_array_equal(router.engine.apply(x), want)
        assert [v.published for v in router.engine.versions()] == [True, False]


def test_a_version_that_does_not_fit_is_not_served(path: Path) -> None:
    huge = factors(1)
    bad = [version(0, factors=factors(0, dim=3)), version(0, factors=Factors(huge.down * np.float32(1e20), huge.up, huge.offset))]
    with make_router(path) as router:
        serve(router)
        for one in bad:
            kept = router.engine._service.versions.add(one)
            before = served(router)
            with pytest.raises(SonaVersionError, match=f"version {kept.id}"):
                router.engine.publish(kept)
            assert served(router) == before
            assert not any(v.published for v in router.engine.versions())
        with pytest.raises(SonaValueError, match="got '99'"):
            router.engine.rollback(99)


def test_a_store_that_cannot_be_written_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_router(path) as router:
        serve(router)
        one = router.engine._service.versions.add(version(1))
        router.engine.publish(one)
        two = router.engine._service.versions.add(version(2))
        before = served(router)

        def full(*_: Any, **__: Any) -> None:
            raise SonaStoreError("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(SqliteStore, "put_state", full)
            with pytest.raises(SonaStoreError, match="disk full"):
                router.engine.publish(two)
        assert served(router) == before
        assert [v.number for v in router.engine.versions() if v.published] == [1]
        router.engine.publish(two)
        assert served(router) == factors(2).to_bytes()


def test_a_follower_neither_publishes_nor_learns_and_follows_what_is_published(path: Path) -> None:
    with make_router(path) as leader, make_router(path) as follower:
        serve(leader)
        one = leader.engine._service.versions.add(version(1))
        with pytest.raises(SonaStoreError, match="another process learns"):
            follower.engine.publish(1)
        assert follower.background_learn().status == "skipped: another process learns for this store"
        leader.engine.publish(one)
        assert follower.engine.journal is not None
        follower.engine.journal.poll()
        assert served(follower) == factors(1).to_bytes()
        leader.engine.rollback(2)  # no reward came in between
        follower.engine.journal.poll()
        assert served(follower) == served(leader)


def test_readers_see_one_version_or_the_other() -> None:
    router = make_router()
    engine = router.engine
    one, two = (engine._service.versions.add(version(seed, factors=factors(seed, rank=6))) for seed in (1, 2))
    x = np.ones(DIM, np.float32)
    allowed = set()
    for each in (one, two):
        engine.publish(each)
        allowed.add(engine.apply(x).tobytes())
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(engine.apply(x).tobytes())

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    began = time.monotonic()
    for n in itertools.count():
        engine.publish(one if n % 2 else two)
        if n >= 300 and (len(seen) > 1 or time.monotonic() > began + 10):  # threads may have swapped places at one of the two only
            break
    stop.set()
    for reader in readers:
        reader.join()
    assert seen == allowed


def test_versions_of_an_engine_without_a_router() -> None:
    with SonaEngine(SonaConfig(hidden_dim=DIM)) as engine:
        assert engine.versions() == []
        engine.publish(engine._service.versions.add(version(1)))
        assert engine.background_learn().status.startswith("skipped: there is no policy")
    for call in (engine.versions, engine.background_learn, lambda: engine.rollback(1)):
        with pytest.raises(SonaClosedError):
            call()


# ---- several layers ----


def teach(engine: SonaEngine, seed: int) -> None:
    """A step of each layer, each another one."""
    rng = np.random.default_rng(seed)
    for layer in range(len(engine.adapters)):
        x, v = rng.normal(size=(2, DIM)).astype(np.float32)
        engine.adapters[layer].append(v, x, 0.1)


def all_served(engine: SonaEngine) -> list[bytes]:
    return [Factors.of(adapter).to_bytes() for adapter in engine.adapters]


@pytest.mark.parametrize("stored", [False, True])
def test_a_kept_version_brings_every_layer_back(path: Path, stored: bool) -> None:
    config = SonaConfig(hidden_dim=DIM, num_layers=3)
    with SonaEngine(config, store=path if stored else None) as engine:
        teach(engine, 1)
        first = all_served(engine)
        kept = engine.keep_version("before the night")
        assert (kept.verdict, kept.reason, kept.as_dict()["layers"]) == ("served", "before the night", 3)
        assert engine.keep_version().id == kept.id  # nothing has changed
        teach(engine, 2)
        second = all_served(engine)
        assert all(a != b for a, b in zip(first, second, strict=True))
        assert engine.rollback(kept).published
        assert all_served(engine) == first
        back = engine.versions()[-1]
        assert [one.to_bytes() for one in back.layers] == second
        engine.rollback(back)
        assert all_served(engine) == second
        with pytest.raises(SonaTypeError, match="reason"):
            engine.keep_version(7)  # type: ignore[arg-type]
    if stored:
        with SonaEngine(config, store=path) as engine:
            assert all_served(engine) == second
        assert main(["rollback", str(path), str(kept.number)]) == 0
        with SonaEngine(config, store=path) as engine:
            assert all_served(engine) == first


def test_a_version_of_the_first_layer_leaves_the_others(path: Path) -> None:
    with SonaEngine(SonaConfig(hidden_dim=DIM, num_layers=2), store=path) as engine:
        teach(engine, 1)
        before = all_served(engine)
        engine.publish(engine._service.versions.add(version(1)))
        assert all_served(engine) == [factors(1).to_bytes(), before[1]]
        assert len(engine.versions()[-1].layers) == 2
        engine.rollback(2)
        assert all_served(engine) == before


def test_a_version_of_more_layers_than_there_are_is_not_served() -> None:
    with SonaEngine(SonaConfig(hidden_dim=DIM)) as engine:
        one = engine._service.versions.add(version(1, further=(factors(2),)))
        with pytest.raises(SonaVersionError, match="at most 1 layers, got 2"):
            engine.publish(one)


def test_layers_survive_their_bytes() -> None:
    layers = [factors(1), factors(2, rank=0), factors(3, rank=5)]
    blob = join(layers)
    assert [one.to_bytes() for one in split(blob)] == [one.to_bytes() for one in layers]
    assert split(factors(1).to_bytes())[0].to_bytes() == factors(1).to_bytes() == join([factors(1)])
    for bad in (b"", blob[:-1], blob + b"x", blob[:20], blob[4:], b"\xff" * 40):
        with pytest.raises(SonaCorruptError, match="expected the bytes of a correction"):
            split(bad)


# ---- kill -9 ----


def publish_versions(path: str, acknowledge: Connection, seed: int) -> None:
    """Adds versions and publishes some of them with a state that is their content; acknowledges both."""
    rng = random.Random(seed)
    store = SqliteStore(path)
    assert store.try_lease()
    while True:
        content = struct.pack("<q", rng.getrandbits(62)) * rng.choice([1, 2000])
        number = store.put_version("default", VersionRow(None, 0.0, "accept", "", "{}", content))
        acknowledge.send(("kept", number, content))
        if rng.random() < 0.5:
            store.put_state("default", content, number, publish=number)
            acknowledge.send(("published", number, content))


@pytest.mark.slow
def test_kills_lose_no_version_and_never_part_the_published_one_from_its_state(tmp_path: Path) -> None:
    path, rng = tmp_path / "sona.db", random.Random(7)
    last, published = 0, 0
    for _ in range(16):
        seen = killed(publish_versions, path, rng, 0.08)
        with SqliteStore(path) as store:
            assert store.integrity() == []
            kept = dict(store.versions("default"))
            for what, number, content in seen:
                if number in kept:
                    assert kept[number].factors == content
                last, published = max(last, number), number if what == "published" else published
            assert max(kept) in (last, last + 1)
            assert len(kept) <= KEPT + 1
            now, state = store.published("default"), store.get_state("default")
            assert (now is None) == (state is None)
            if now is not None and state is not None:
                assert now >= published
                assert state == (kept[now].factors, now)
            last = max(kept)
    assert last > 16


# ---- the command line ----


def test_the_command_line_lists_versions_and_rolls_back(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_router(path) as router:
        serve(router)
        router.engine.publish(router.engine._service.versions.add(version(1)))
        serve(router, 10)
        assert main(["rollback", str(path), "2"]) == 0  # what was learned until then
        assert "is asked for: the process that learns" in capsys.readouterr().out
        assert router.engine.journal is not None
        router.engine.journal.poll()
        router.tick()
        assert [v.number for v in router.engine.versions() if v.published] == [2]
        assert main(["rollback", str(path), "77"]) == 1
        assert "version: expected one of" in capsys.readouterr().err
        router.engine.publish(1)
        serve(router, 10)
        learned = served(router)
        assert main(["versions", str(path)]) == 0
        assert capsys.readouterr().out.splitlines()[0].startswith(f"* default@1-{factors(1).digest}  undecided  because 1")
    assert main(["rollback", str(path), "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["id"], told["done"]) == (f"default@1-{factors(1).digest}", True)
    with make_router(path) as router:
        assert served(router) == factors(1).to_bytes()
        assert router.stats()["learned"] == 0  # the rewards are in the state still
    assert main(["versions", str(path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["versions"]
    assert [(v["number"], v["verdict"], v["published"]) for v in listed] == [
        (1, "undecided", True),
        (2, "served", False),
        (3, "served", False),
        (4, "served", False),
    ]
    assert listed[3]["parent"] == 1
    assert main(["rollback", str(path), listed[3]["id"]]) == 0
    assert "is served from the next start on" in capsys.readouterr().out
    with make_router(path) as router:
        assert served(router) == learned
        assert [v.number for v in router.engine.versions() if v.published] == [4]


def test_the_command_line_takes_the_one_learner_there_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_router(path, name="faq") as router:
        serve(router)
        router.engine.keep_version("by hand")
    assert main(["versions", str(path)]) == 0
    assert capsys.readouterr().out.endswith("served  by hand\n")
    assert main(["rollback", str(path), "1"]) == 0
    assert main(["versions", str(path), "--name", "other"]) == 0
    assert capsys.readouterr().out.endswith("no versions\n")


def test_the_command_line_inspects(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_router(path) as router:
        serve(router, 7)
        router.engine._service.versions.add(version(1))
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["namespaces"]["default"]
    assert (found["decisions"], found["rewards"], found["arms"]) == (7, 7, 3)
    state = found["states"]["default"]
    assert (state["dim"], state["versions"], state["published"]) == (DIM, 1, None)
    assert main(["inspect", str(path)]) == 0
    assert "7 decisions, 7 rewards, 3 arms" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["versions"], ["inspect"], ["rollback", "1"]])
def test_a_store_that_is_not_there_is_an_error_and_is_not_made(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.db"
    assert main([command[0], str(missing), *command[1:]]) == 1
    assert "no such store" in capsys.readouterr().err
    assert not os.path.exists(missing)


def test_a_wrong_version_or_namespace_is_an_error(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_router(path) as router:
        serve(router, 3)
    assert main(["versions", str(path)]) == 0
    assert capsys.readouterr().out == "no versions\n"
    for arguments, message in (
        (["4"], "there are none"),
        (["4", "--namespace", "x"], "namespaces"),
        (["4", "--name", "x"], "there are none"),
    ):
        assert main(["rollback", str(path), *arguments]) == 1
        assert message in capsys.readouterr().err
