"""What users get of patterns: similar ones with verdicts on arms by name, what comes next, and the same after a restart or a kill."""

import random
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import killed
from hypothesis import given
from hypothesis import strategies as st
from reference import Clusters

from sona import Router, SonaEngine
from sona.cli import main
from sona.config import SonaConfig
from sona.contents import contents
from sona.errors import SonaClosedError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError, SonaWarning
from sona.loops.background import BackgroundLoopConfig
from sona.loops.journal import decode_state, encode_state
from sona.loops.patterns import Findings, RequestPatterns, state_name
from sona.patterns import PatternConfig, ReasoningBank
from sona.store import SqliteStore

D, K = 20, 6
NAMES = [f"arm {k}" for k in range(K)]
SMALL = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=D, k_clusters=K), min_trajectories=50)


@pytest.fixture
def world() -> Clusters:
    return Clusters(2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


def make_router(world: Clusters, store: Any = None, config: BackgroundLoopConfig = SMALL, **options: Any) -> Router:
    options = {"explore": "softmax", "tau": 2.0, "guard": False} | options  # every arm is tried everywhere
    return Router(dict(zip(NAMES, world.arms, strict=True)), store=store, background=config, **options)


def serve(router: Router, world: Clusters, rounds: int, *, ring: bool = False) -> list[int]:
    """Requests of random clusters, or of one cluster after the other; arm k succeeds in cluster k. Returns ids."""
    ids = []
    for t in range(rounds):
        x, k = world.draw()
        while ring and k != t % K:
            x, k = world.draw()
        d = router.route(x)
        assert router.feedback(d.id, float(d.arm == NAMES[k]))
        ids.append(d.id)
    return ids


def ids_of(router: Router, world: Clusters) -> list[int]:
    """The pattern of each cluster."""
    return [router.engine.find_patterns(centre, 1)[0].id for centre in world.centres]


def counted(found: RequestPatterns) -> dict[tuple[int, int], float]:
    state = found.transitions.state()
    return dict(zip(map(tuple, state["pairs"].tolist()), state["counts"].tolist(), strict=True))


def told(engine: SonaEngine, world: Clusters) -> tuple[list[Any], list[dict[int, float]]]:
    """What is found for each cluster, and what comes next."""
    found = [[(m.id, m.similarity, m.quality, m.verdicts) for m in engine.find_patterns(centre, 3)] for centre in world.centres]
    return found, [dict(engine.next_patterns(centre)) for centre in world.centres]


# ---- lookups ----


def test_requests_are_served_well_enough_for_patterns_of_more_than_0_7(world: Clusters) -> None:
    """As served by default: early failures count too."""
    router = make_router(world, explore="greedy", tau=0.1, guard=True)
    serve(router, world, 600)
    assert router.background_learn().patterns_extracted == K
    patterns = router.engine.patterns.bank.patterns
    assert np.average([p.avg_quality for p in patterns], weights=[p.cluster_size for p in patterns]) > 0.7


def test_each_cluster_has_its_pattern_and_a_verdict_for_its_arm(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 600)
    assert router.background_learn().patterns_extracted == K
    assert sorted(ids_of(router, world)) == list(range(K))
    for k, centre in enumerate(world.centres):
        found = router.engine.find_patterns(centre, K)
        assert [match.id for match in found] == [p.id for p in router.engine.patterns.bank.find_patterns(centre, K)]
        similar = [match.similarity for match in found]
        assert similar == sorted(similar, reverse=True)
        assert similar == pytest.approx([float(centre @ m.pattern.centroid / np.linalg.norm(m.pattern.centroid)) for m in found])
        best = found[0].verdicts[0]
        assert (best.arm, best.pattern, best.mean) == (NAMES[k], found[0].id, 1.0)
        assert best.improvement > 0
        assert best.p_value <= 0.05
        assert found[0].quality == found[0].pattern.avg_quality > 0


def test_verdicts_are_those_of_the_bank_under_names(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 300)
    router.background_learn()
    found = router.engine.find_patterns(world.centres[0], 99)
    told = [(v.pattern, v.arm, v.count, v.mean, v.improvement, v.p_value, v.consistency) for m in found for v in m.verdicts]
    bank = router.engine.patterns.bank
    want = [(v.pattern, NAMES[v.arm], v.count, v.mean, v.improvement, v.p_value, v.consistency) for v in bank.verdicts()]
    assert sorted(told) == sorted(want)
    assert len(want) >= K


def test_before_the_first_cycle_and_without_a_router_there_is_nothing(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 60)
    for engine in (router.engine, SonaEngine(SonaConfig(hidden_dim=D))):
        assert engine.find_patterns(world.centres[0]) == []
        assert engine.next_patterns(world.centres[0]) == []
        assert engine.patterns.hierarchy().cut(2) == {}


def test_a_bank_of_one_trajectory(world: Clusters) -> None:
    config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=D, min_cluster_size=1), min_trajectories=1)
    router = make_router(world, config=config)
    x, _ = world.draw()
    router.feedback(router.route(x).id, 1.0)
    assert router.background_learn().patterns_extracted == 1
    (match,) = router.engine.find_patterns(x)
    assert (match.id, match.quality, match.verdicts) == (0, 1.0, ())
    assert match.similarity == pytest.approx(1)
    assert router.engine.next_patterns(x) == []


def test_what_is_refused(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 60)
    router.background_learn()
    engine = router.engine
    for call in (engine.find_patterns, engine.next_patterns):
        with pytest.raises(SonaValueError, match=r"x: expected shape \(20,\), got \(3,\)"):
            call(np.ones(3))
        with pytest.raises(SonaValueError, match="x: expected finite"):
            call(np.full(D, np.nan))
        with pytest.raises(SonaValueError, match="k: expected"):
            call(np.ones(D), -1)
        with pytest.raises((SonaValueError, SonaTypeError), match="k: expected an int"):
            call(np.ones(D), 1.5)
        assert call(np.ones(D), 0) == []
    router.close()
    with pytest.raises(SonaClosedError):
        engine.find_patterns(np.ones(D))


# ---- arms that come and go ----


def test_a_removed_arm_has_no_verdict_and_its_row_starts_anew(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 600)
    router.background_learn()
    first = ids_of(router, world)

    def judged() -> set[str]:
        return {v.arm for match in router.engine.find_patterns(world.centres[0], 99) for v in match.verdicts}

    assert judged() == set(NAMES)
    row = router._policy.row(NAMES[2])
    router.remove_arm(NAMES[2])
    assert judged() == set(NAMES) - {NAMES[2]}
    router.add_arm("new", world.arms[2] + 0.1)
    assert router._policy.row("new") == row
    assert judged() == set(NAMES) - {NAMES[2]}
    serve(router, world, 60)
    router.background_learn()
    assert NAMES[2] not in judged()
    told = router.engine.patterns.bank._window.copy()[1]["arm"]
    assert np.count_nonzero(told == row) < 60  # the old arm's rewards are not the new one's
    assert ids_of(router, world) == first


# ---- what comes next ----


def test_what_follows_is_learned_from_the_sequence_of_requests(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 600, ring=True)
    router.background_learn()
    ids = ids_of(router, world)
    for k, centre in enumerate(world.centres):
        (likely, chance), *others = router.engine.next_patterns(centre, K)
        assert likely == ids[(k + 1) % K]
        assert chance > 0.8
        assert chance + sum(p for _, p in others) == pytest.approx(1)
        assert len(router.engine.next_patterns(centre, 2)) == 2
    assert router.engine.patterns.transitions.helps


def test_each_transition_counts_once_over_cycles_and_restarts(world: Clusters, path: Path) -> None:
    """Against the pairs of consecutive requests of each process, over a window that overlaps the one before it."""
    config = BackgroundLoopConfig(patterns=SMALL.patterns, min_trajectories=50, replay_rows=200)
    total = 0
    for _ in range(2):
        with make_router(world, path, config) as router:
            for rounds in (60, 70, 150):
                serve(router, world, rounds)
                assert router.background_learn().status == "completed"
                total += rounds
            total -= 1  # nothing came before a process's first request
            gain = router.engine.patterns.transitions.gain
            assert gain["count"] == total - 1  # before the first one there is no prediction


def test_transitions_of_patterns_that_are_gone_are_dropped(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 300)
    router.background_learn()
    found = router.engine.patterns
    known = {p.id for p in found.bank.patterns}
    for _ in range(500):
        found.transitions.observe(min(known), 10**6)
    serve(router, world, 60)
    router.background_learn()
    named = router.engine.next_patterns(world.centres[0], 99)
    assert {id for id, _ in named} == known
    assert sum(chance for _, chance in named) == pytest.approx(1)


# ---- the store ----


def test_patterns_keep_ids_verdicts_and_transitions_over_a_restart(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        serve(router, world, 400)
        router.background_learn()
        before, following = told(router.engine, world)
        count = counted(router.engine.patterns)
        assert all(found[0][3] for found in before)
    for _ in range(3):
        with make_router(world, path) as router:
            again, coming = told(router.engine, world)
            assert repr(again) == repr(before)  # a degree of freedom may be NaN
            assert coming == [pytest.approx(each) for each in following]
            assert counted(router.engine.patterns) == pytest.approx(count)
    with make_router(world, path) as router:
        ids = ids_of(router, world)
        serve(router, world, 100)
        assert router.background_learn().patterns_extracted == K
        assert ids_of(router, world) == ids


def test_the_kept_patterns_hold_no_request(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        serve(router, world, 400)
        router.background_learn()
        x = router.engine.patterns.bank._window.copy()[0]
        assert len(x) == 400
        assert router.engine.store is not None
        kept = router.engine.store.get_state(state_name("default"))
        assert kept is not None
        assert not any(row.tobytes() in kept[0] for row in x)
        gone = router.route(world.centres[0]).id
        router.feedback(gone, 1.0)
        router.flush()
        router.engine.store.forget(gone)
    with make_router(world, path) as router:
        router.background_learn()
        assert len(router.engine.patterns.bank) == 400  # what is forgotten is in no later cycle


def test_what_is_kept_is_bounded(world: Clusters, path: Path) -> None:
    """By patterns, transitions and window, whatever has been served."""
    config = BackgroundLoopConfig(
        patterns=PatternConfig(embedding_dim=D, k_clusters=20, max_patterns=30, min_cluster_size=2), min_trajectories=50, replay_rows=100
    )
    sizes = []
    with make_router(world, path, config) as router:
        rng = np.random.default_rng(0)
        for _ in range(12):
            for x in rng.normal(size=(100, D)).astype(np.float32):
                router.feedback(router.route(x).id, float(rng.integers(2)))
            router.background_learn()
            assert router.engine.store is not None
            kept = router.engine.store.get_state(state_name("default"))
            assert kept is not None
            sizes.append(len(kept[0]))
    pattern, transition, verdict, id = 4 * D + 60, 24, 80, 8
    assert max(sizes) <= 30 * pattern + 30**2 * transition + 100 * (verdict + id) + 4096
    assert max(sizes) < 1.2 * max(sizes[:8])


@pytest.mark.parametrize("damage", ["bytes", "arrays", "dim", "verdicts"])
def test_damaged_patterns_are_named_and_found_anew(world: Clusters, path: Path, damage: str) -> None:
    name = state_name("default")
    with make_router(world, path) as router:
        serve(router, world, 300)
        router.background_learn()
    with SqliteStore(path) as store:
        kept = store.get_state(name)
        assert kept is not None
        arrays, meta = decode_state(kept[0])
        if damage == "arrays":
            del arrays["bank.patterns.id"]
        if damage == "dim":
            arrays["bank.patterns.centroid"] = arrays["bank.patterns.centroid"][:, :7].copy()
        if damage == "verdicts":
            arrays["verdicts.arm"] = arrays["verdicts.arm"] + 99
        store.put_state(name, b"no state" if damage == "bytes" else encode_state(arrays, meta), 0)
    with pytest.warns(SonaWarning, match="the next cycle finds them anew"):
        router = make_router(world, path)
    with router:
        assert router.engine.find_patterns(world.centres[0]) == []
        assert router.background_learn().patterns_extracted == K
    with make_router(world, path) as router:
        assert len(router.engine.find_patterns(world.centres[0], 99)) == K


def test_patterns_of_a_newer_sona_are_refused(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        serve(router, world, 100)
        router.background_learn()
    with SqliteStore(path) as store:
        kept = store.get_state(state_name("default"))
        assert kept is not None
        arrays, meta = decode_state(kept[0])
        store.put_state(state_name("default"), encode_state(arrays, meta | {"format": 2}), 0)
    with pytest.raises(SonaVersionError, match="patterns: expected format 1 or older, got 2"):
        make_router(world, path)


def test_a_store_that_cannot_be_written_costs_nothing_but_the_copy(
    world: Clusters, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = SqliteStore.put_state

    def fail(self: SqliteStore, name: str, *rest: Any, **options: Any) -> None:
        if name == state_name("default"):
            raise SonaStoreError("disk full")
        real(self, name, *rest, **options)

    with make_router(world, path) as router:
        serve(router, world, 200)
        with monkeypatch.context() as patched:
            patched.setattr(SqliteStore, "put_state", fail)
            assert router.background_learn().patterns_extracted == K
        assert "patterns: disk full" in caplog.text
        ids = ids_of(router, world)
        serve(router, world, 60)
        assert router.background_learn().status == "completed"
        assert ids_of(router, world) == ids
    with make_router(world, path) as router:
        assert ids_of(router, world) == ids


def test_a_follower_sees_what_the_leader_finds(world: Clusters, path: Path) -> None:
    with make_router(world, path) as leader, make_router(world, path) as follower:
        now = 0.0
        follower.engine.patterns._clock = lambda: now
        follower.engine.patterns._next_look = 0.0
        assert follower.engine.find_patterns(world.centres[0]) == []
        serve(leader, world, 200)
        leader.background_learn()
        assert follower.engine.find_patterns(world.centres[0]) == []  # it looks once a second
        now = 1.0
        assert ids_of(follower, world) == ids_of(leader, world)
        (seen, coming), (want, expected) = told(follower.engine, world), told(leader.engine, world)
        assert repr(seen) == repr(want)
        assert coming == [pytest.approx(each) for each in expected]
        ids = ids_of(leader, world)
        leader.close()
        assert follower.engine.journal is not None
        follower.engine.journal.poll()
        serve(follower, world, 100)
        assert follower.background_learn().status == "completed"
        assert ids_of(follower, world) == ids


def test_a_new_leader_goes_on_from_the_last_ones_patterns(world: Clusters, path: Path) -> None:
    """Also when it has not looked anything up since they were found."""
    with make_router(world, path) as leader, make_router(world, path) as follower:
        follower.engine.patterns._next_look = np.inf
        serve(leader, world, 200)
        leader.background_learn()
        ids, count = ids_of(leader, world), counted(leader.engine.patterns)
        leader.close()
        assert follower.engine.journal is not None
        follower.engine.journal.poll()
        serve(follower, world, 60)
        follower.background_learn()
        assert ids_of(follower, world) == ids
        assert sum(counted(follower.engine.patterns).values()) > sum(count.values())


def keep_for_ever(path: str, acknowledge: Connection, seed: int) -> None:
    """What a cycle does at its end, over and over: as many decisions followed as transitions counted."""
    with make_router(Clusters(3), path) as router:
        found = router.engine.patterns
        count = len(found._found.followed)
        while True:
            count += 1
            findings = Findings(found.bank, found.transitions, found._found.verdicts, np.arange(count, dtype=np.uint64))
            found.transitions.observe(count % K, seed % K)
            found.take(findings)
            acknowledge.send(count)


@pytest.mark.slow
def test_a_kill_leaves_the_old_or_the_new_patterns(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        serve(router, world, 200)
        router.background_learn()
        ids = ids_of(router, world)
        found = router.engine.patterns._found
        start = found.transitions.gain["count"]
        router.engine.patterns.take(Findings(found.bank, found.transitions, found.verdicts, np.empty(0, np.uint64)))
    last = 0
    for seed in range(8):
        acknowledged = killed(keep_for_ever, path, random.Random(seed), 0.1)
        with make_router(world, path) as router:
            assert ids_of(router, world) == ids
            found = router.engine.patterns._found
            count = len(found.followed)
            assert found.followed.tolist() == list(range(count))
            assert found.transitions.gain["count"] == start + count
            assert max([last, *acknowledged]) <= count
            last = count
    assert last > 8
    with SqliteStore(path) as store:
        assert store.integrity() == []


def test_inspect_counts_the_patterns(world: Clusters, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_router(world, path) as router:
        serve(router, world, 200)
    assert contents(path)["namespaces"]["default"]["states"]["default"]["patterns"] == 0
    with make_router(world, path) as router:
        router.background_learn()
    assert main(["inspect", str(path)]) == 0
    assert f", {K} patterns, " in capsys.readouterr().out
    assert list(contents(path)["namespaces"]["default"]["states"]) == ["default"]  # theirs is no learner's


# ---- bounds ----


def test_nothing_grows_over_a_hundred_thousand_trajectories() -> None:
    world = Clusters(3, dim=8)
    config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=8, k_clusters=K), replay_rows=1000)
    router = make_router(world, config=config, precondition="identity", pending=2048, explore="greedy")
    x, k = (np.array(column) for column in zip(*(world.draw() for _ in range(1000)), strict=True))
    sizes = []
    for at in range(100_000):
        d = router.route(x[at % 1000])
        router.feedback(d.id, float(d.index == k[at % 1000]))
        if at % 10_000 == 9_999:
            assert router.background_learn().status == "completed"
            found = router.engine.patterns
            arrays = (found.bank.state() | found.transitions.state() | {"followed": found._found.followed}).values()
            sizes.append((sum(array.nbytes for array in arrays), found.bank.nbytes))
    assert len(set(sizes)) == 1, sizes


def test_cycles_with_each_request_discard_none_that_waits(world: Clusters) -> None:
    router = make_router(world)
    for count in range(1, 120):
        serve(router, world, 1)
        router.tick()
        result = router.background_learn()
        assert result.status == ("completed" if count % 50 == 0 else f"skipped: insufficient trajectories, {count % 50} of 50")
        assert len(router.engine.patterns.bank) == count // 50 * 50


# ---- the bank's rows in one go ----


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_replacing_is_adding_one_by_one_to_an_empty_bank(n: int, capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, quality, arm = rng.normal(size=(n, 3)), rng.uniform(size=n), rng.integers(-1, 4, size=n)
    reward, weight = np.where(rng.uniform(size=n) < 0.3, np.nan, rng.uniform(size=n)), rng.uniform(0, 9, size=n)
    config = PatternConfig(embedding_dim=3, max_trajectories=capacity)
    slow, fast = ReasoningBank(config), ReasoningBank(config)
    fast.add([1, 2, 3], 0.5)
    fast.replace(x, quality, arm=arm, reward=reward, weight=weight)
    for row in zip(x, quality, arm, reward, weight, strict=True):
        slow.add(row[0], row[1], None if row[2] < 0 else int(row[2]), None if np.isnan(row[3]) else row[3], row[4])
    for name, array in slow.state().items():
        np.testing.assert_array_equal(array, fast.state()[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones((2, 4))}, SonaValueError, r"x: expected shape \(n, 3\)"),
        ({"x": np.full((2, 3), np.inf)}, SonaValueError, "x: expected finite"),
        ({"quality": [0.5]}, SonaValueError, r"quality: expected shape \(2,\) like the rows of x, got \(1,\)"),
        ({"quality": 2.0}, SonaValueError, r"expected quality and reward in \[0, 1\]"),
        ({"quality": np.nan}, SonaValueError, r"expected quality and reward in \[0, 1\]"),
        ({"reward": -1.0}, SonaValueError, r"expected quality and reward in \[0, 1\]"),
        ({"weight": -1.0}, SonaValueError, r"weight in \[0, 1e\+09\]"),
        ({"arm": [0, 1 << 20]}, SonaValueError, r"arm: expected ints in \[-1, 1048576\)"),
        ({"arm": [-2, 0]}, SonaValueError, "arm: expected ints"),
        ({"arm": 0.5}, SonaTypeError, "arm: expected ints, got float64"),
        ({"quality": "high"}, SonaTypeError, "quality: expected numbers"),
    ],
)
def test_rows_that_do_not_fit_leave_the_bank_as_it_was(change: dict[str, Any], error: type[Exception], message: str) -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=3))
    bank.add([1, 2, 3], 0.5, arm=2, reward=0.25)
    before = bank.state()
    with pytest.raises(error, match=message):
        bank.replace(**{"x": np.ones((2, 3)), "quality": 0.5} | change)
    for name, array in bank.state().items():
        np.testing.assert_array_equal(array, before[name])
