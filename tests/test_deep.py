"""Promises of the deep loop: it takes in what was learned, changes nothing that is served, loses nothing in use; a cut leaves it valid."""

import json
import random
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from crash import killed
from reference import Clusters

from sona import EwcPlusPlus, LoopCoordinator, Router, SonaConfig, SonaEngine, phi
from sona.cli import main
from sona.config import SonaConfig as Config
from sona.errors import SonaClosedError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError, SonaWarning
from sona.loops.background import BackgroundLoopConfig
from sona.loops.deep import STAGES, DeepLoopConfig, DeepResult, activated
from sona.loops.journal import decode_state, encode_state
from sona.loops.memory import Memory, state_name
from sona.memory import DreamEngine, DreamGate, EdgeKind, MemoryConsolidator, MemoryGraph, NodeKind, Propagation
from sona.patterns import PatternConfig
from sona.report.plots import draw_partition, draw_quality
from sona.store import SqliteStore

D, K = 20, 6
NAMES = [f"arm {k}" for k in range(K)]
SMALL = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=D, k_clusters=K), min_trajectories=50)
DEEP = DeepLoopConfig(dreams_per_cycle=20, episodes=300)


@pytest.fixture
def world() -> Clusters:
    return Clusters(3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


def make_router(world: Clusters, store: Any = None, **options: Any) -> Router:
    options = {"explore": "softmax", "tau": 2.0, "guard": False, "background": SMALL, "deep": DEEP} | options
    return Router(dict(zip(NAMES, world.arms, strict=True)), store=store, **options)


def serve(router: Router, world: Clusters, rounds: int, source: str | None = None) -> list[int]:
    """Requests of random clusters; arm k succeeds in cluster k. Returns ids."""
    ids = []
    for _ in range(rounds):
        x, k = world.draw()
        d = router.route(x)
        assert router.feedback(d.id, float(d.arm == NAMES[k]), source=source)
        ids.append(d.id)
    return ids


def kinds(graph: MemoryGraph) -> dict[NodeKind, int]:
    return {kind: int((graph.kinds == kind).sum()) for kind in NodeKind}


def told(graph: MemoryGraph) -> Any:
    """Everything of a graph but which vectors episodes have, which is rounded anew at each reading."""
    rows = zip(graph.ids.tolist(), graph.kinds.tolist(), graph.quality.tolist(), graph.strength.tolist(), graph.uses.tolist(), strict=True)
    edges = zip(*(column.tolist() for column in graph.edges()), strict=True)
    return sorted(rows), sorted((min(u, v), max(u, v), w) for u, v, w in edges), [graph.data(id) for id in graph.ids.tolist()], graph.cycle


# ---- a cycle ----


def test_the_memory_takes_in_patterns_and_decisions_and_dreams_of_them(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 250)
    router.background_learn()
    result = router.deep_learn()
    graph = router.engine.memory.graph
    assert kinds(graph) == {NodeKind.PATTERN: K, NodeKind.MEMORY: 0, NodeKind.EPISODE: len(graph) - K}
    assert 150 < len(graph) - K <= 250  # near-duplicates became one
    assert (result.status, result.dreams_generated) == ("completed", 20)
    assert 10 <= result.dreams_integrated < 20  # the denser half passes
    assert result.nodes == len(graph)
    assert result.edges == len(graph.edges()[0])
    assert result.elapsed > 0
    assert len(result.dreams) == 20
    assert all(dream.quality is not None for dream in result.dreams)
    assert len(graph.edges(EdgeKind.CREATIVE)[0]) > 0
    assert len(graph.edges(EdgeKind.COACTIVATION)[0]) > 0


def test_patterns_whose_requests_succeed_grow_stronger_and_the_others_weaker(world: Clusters) -> None:
    router = make_router(world)
    for _ in range(250):
        x, k = world.draw()
        router.feedback(router.route(x).id, 1.0 if k < 2 else 0.2)
    router.background_learn()
    assert router.deep_learn().patterns_strengthened == 2
    graph = router.engine.memory.graph
    patterns = graph.kinds == NodeKind.PATTERN
    good = graph.quality[patterns] > 0.9
    assert good.sum() == 2
    assert graph.strength[patterns][good].min() > 0.5 > graph.strength[patterns][~good].max()


def test_the_leaves_of_the_patterns_hierarchy_are_nodes(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 250)
    router.background_learn()
    router.deep_learn()
    graph, tree = router.engine.memory.graph, router.engine.patterns.hierarchy()
    leaves = [graph.find(id, NodeKind.PATTERN) for id in tree.ids.tolist()]
    assert len(leaves) == K
    assert sorted(leaves) == sorted(graph.ids[graph.kinds == NodeKind.PATTERN].tolist())


def test_patterns_are_joined_by_the_requests_that_activate_them(world: Clusters) -> None:
    """Only rewarded requests: where nothing succeeds nothing is joined."""
    for reward, joined in ((1.0, True), (0.0, False)):
        router = make_router(world)
        serve(router, world, 250)
        router.background_learn()
        router.deep_learn()  # knows the decisions so far
        graph = router.engine.memory.graph
        u, v, _ = graph.edges(EdgeKind.COACTIVATION)
        graph.unlink(u, v, EdgeKind.COACTIVATION)
        for _ in range(30):
            router.feedback(router.route(world.draw()[0]).id, reward)
        router.deep_learn()
        assert (len(graph.edges(EdgeKind.COACTIVATION)[0]) > 0) is joined


def test_an_episode_says_what_was_shown_and_what_it_earned(world: Clusters) -> None:
    router = make_router(world)
    x, _ = world.draw()
    decision = router.route(x)
    router.feedback(decision.id, 1.0)
    router.deep_learn()
    (found,) = router.engine.memory.recall(x, 5)
    assert (found.kind, found.data, found.quality) == (NodeKind.EPISODE, {"arm": decision.arm, "reward": 1.0}, 1.0)
    assert found.similarity == pytest.approx(1, abs=1e-6)


def test_a_decision_is_taken_in_once_and_anew_when_its_reward_changes(world: Clusters) -> None:
    router = make_router(world, pending=64)
    ids = serve(router, world, 30)
    router.deep_learn()
    graph = router.engine.memory.graph
    before = dict(zip(graph.keys.tolist(), graph.ids.tolist(), strict=True))
    first = next(id for id in ids if id in before)
    router.feedback(first, 0.5)
    router.deep_learn()
    after = dict(zip(graph.keys.tolist(), graph.ids.tolist(), strict=True))
    assert {key for key in after if before.get(key) != after[key]} == {first}
    assert graph.data(after[first])["reward"] == 0.5


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_served_does_not_change(stored: bool, world: Clusters, path: Path) -> None:
    router = make_router(world, path if stored else None, guard=True, explore="greedy", retrieval=200)
    serve(router, world, 250)
    router.background_learn()
    x = np.stack([world.draw()[0] for _ in range(50)])
    before = [(d.arm, d.scores.tolist(), d.propensity) for d in router.route_batch(x)], router.engine.state()
    for _ in range(10):
        router.deep_learn()
    after = [(d.arm, d.scores.tolist(), d.propensity) for d in router.route_batch(x)], router.engine.state()
    assert before[0] == after[0]
    unequal = {key for key in before[1] if not np.array_equal(before[1][key], after[1][key])}
    assert unequal <= {"policy.requests", "policy.random"}  # fifty requests more


def test_trajectories_of_an_engine_join_what_they_activate() -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=4))
    a, b, c = (engine.memory.add(x) for x in ([1, 0.5, 0, 0], [1, -0.5, 0, 0], [0, 0, 0, 1]))
    for _ in range(10):
        tid = engine.begin_trajectory([1, 0, 0, 0])
        engine.add_step(tid, activations=[0, 1, 0, 0], expected=0.5)
        engine.end_trajectory(tid, quality=1.0)
    engine.deep_learn()
    graph = engine.memory.graph
    assert graph.edge(a, b)[EdgeKind.COACTIVATION] == pytest.approx((1 - 0.99**10) * 0.95)  # and decayed once
    assert EdgeKind.COACTIVATION not in graph.edge(a, c)


@pytest.mark.parametrize("count", [0, 3, 80])
def test_a_request_activates_the_nearest_few_that_are_near_enough(count: int, rng: np.random.Generator) -> None:
    graph = MemoryGraph(3)
    kinds = rng.choice([NodeKind.PATTERN, NodeKind.MEMORY, NodeKind.EPISODE], count)
    for kind in kinds.tolist():
        graph.add(rng.normal(size=3), kind=kind, link=0)
    x = rng.normal(size=(70, 3)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for row, nodes in zip(x, activated(graph, x), strict=True):
        cosine = {
            id: float(v @ row)
            for id, v, kind in zip(graph.ids.tolist(), graph.vectors, graph.kinds, strict=True)
            if kind != NodeKind.EPISODE
        }
        assert nodes == sorted((id for id in cosine if cosine[id] >= 0.1), key=lambda id: -cosine[id])[:5]


def test_an_empty_memory_has_an_empty_cycle() -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=4))
    result = engine.deep_learn()
    assert (result.status, result.nodes, result.edges, result.dreams) == ("completed", 0, 0, ())
    assert (engine.memory.graph.cycle, engine.memory.history[0]["density"]) == (1, None)


def test_the_same_seed_has_the_same_cycle(world: Clusters) -> None:
    results = []
    for seed in (1, 1, 2):
        own = Clusters(3)
        router = make_router(own, deep=DeepLoopConfig(dreams_per_cycle=20, seed=seed))
        serve(router, own, 200)
        router.background_learn()
        results.append(([(d.nodes, d.proposals) for d in router.deep_learn().dreams], told(router.engine.memory.graph)))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]


def test_tasks_of_the_callers_ewc_become_one() -> None:
    ewc = EwcPlusPlus(3)
    for task in range(4):
        ewc.update_fisher(np.full((1, 3), 1.0 + task, np.float32))
        ewc.start_new_task(np.full(3, task, np.float32))
    engine = SonaEngine(SonaConfig(hidden_dim=4))
    engine.deep_learn(ewc=ewc)
    assert len(ewc.tasks) == 1


def test_a_floor_of_phi_stops_dreams_below_it(world: Clusters) -> None:
    router = make_router(world, deep=DeepLoopConfig(phi_threshold=0.3, gate=DreamGate(by=None)))
    serve(router, world, 200)
    result = router.deep_learn()
    passed = sum(dream.quality is not None and dream.quality.phi >= 0.3 for dream in result.dreams)
    assert result.dreams_integrated == passed < result.dreams_generated


# ---- ten cycles ----


def test_ten_cycles_keep_what_is_used_and_their_bounds(world: Clusters) -> None:
    router = make_router(world, deep=DeepLoopConfig(max_nodes=120, episodes=100))
    memory = router.engine.memory
    mine = [memory.add(world.draw()[0], {"note": n}) for n in range(20)]
    for _ in range(10):
        serve(router, world, 120)
        router.background_learn()
        memory.used(mine[:5], mine)
        router.deep_learn()
        graph = memory.graph
        assert len(graph) <= 120
        assert graph.degree.max() <= 32
        assert all(graph.resolve(id) == id for id in mine[:5])
        assert ((graph.strength > 0) & (graph.strength <= 1)).all()
        assert ((graph.edges()[2] > 0) & (graph.edges()[2] <= 1)).all()
    assert graph.cycle == 10
    assert [entry["cycle"] for entry in memory.history] == list(range(1, 11))
    assert graph.strength[graph.positions(mine[:5])].min() > graph.strength[graph.positions([i for i in mine[5:] if i in graph])].max()


# ---- while others go on ----


def test_what_users_do_during_a_cycle_is_not_lost(world: Clusters) -> None:
    router = make_router(world, deep=DeepLoopConfig(max_nodes=150, episodes=100))
    memory = router.engine.memory
    mine = [memory.add(world.draw()[0], n) for n in range(40)]
    serve(router, world, 200)
    added: list[int] = []

    def progress(done: int, stage: str) -> None:
        added.append(memory.add(world.draw()[0], stage))
        memory.used(mine[:3])
        assert router.deep_learn().status == "skipped: another cycle is under way"

    result = router.engine.deep_learn(progress=progress)
    assert result.status == "completed"
    assert all(memory.graph.resolve(id) is not None for id in added + mine[:3])


def test_the_progress_names_each_stage(world: Clusters) -> None:
    seen: list[tuple[int, str]] = []
    router = make_router(world)
    router.engine.deep_learn(progress=lambda done, stage: seen.append((done, stage)))
    assert seen == [*enumerate(STAGES), (len(STAGES), "")]


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("stage", range(len(STAGES) - 1))
def test_a_cycle_that_runs_out_of_time_says_where_and_leaves_a_valid_memory(stage: int, world: Clusters, path: Path) -> None:
    router = make_router(world, path)
    serve(router, world, 200)
    router.background_learn()
    router.deep_learn()
    clock = Clock()
    loop = router.engine.loop_c
    loop._clock = clock

    def progress(done: int, name: str) -> None:
        clock.now = 1000.0 if done >= stage else 0.0

    serve(router, world, 50)
    result = router.engine.deep_learn(progress=progress, duration=600.0)
    assert result.status == f"cut: {STAGES[stage]}"
    assert result.nodes == len(router.engine.memory)
    before = told(router.engine.memory.graph)
    router.close()
    with make_router(world, path) as again:
        assert told(again.engine.memory.graph) == before
        assert again.deep_learn().status == "completed"


def test_dreams_end_when_the_time_is_over(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router(world, deep=DeepLoopConfig(dreams_per_cycle=2000))
    serve(router, world, 100)
    clock = Clock()
    monkeypatch.setattr(router.engine.loop_c, "_clock", clock)
    generate = DreamEngine.generate_dreams

    def slowly(engine: DreamEngine, count: int) -> Any:
        clock.now += 250.0
        return generate(engine, count)

    monkeypatch.setattr(DreamEngine, "generate_dreams", slowly)
    result = router.engine.deep_learn(duration=600.0)
    assert (result.status, result.dreams_generated) == ("cut: dreams", 1500)
    assert 750 <= result.dreams_integrated < 1500
    assert result.edges_added > 0


def test_no_time_at_all_changes_nothing(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 50)
    result = router.deep_learn(duration=0)
    assert (result.status, result.nodes, result.dreams) == (f"cut: {STAGES[0]}", 0, ())
    with pytest.raises(SonaValueError, match="duration"):
        router.deep_learn(duration=-1)
    assert router.deep_learn().nodes > 0


def test_a_failure_leaves_a_valid_memory_and_the_next_cycle_works(world: Clusters, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router(world, path)
    serve(router, world, 100)
    router.deep_learn()
    kept = router.engine.store.get_state(state_name("default"))  # type: ignore[union-attr]
    serve(router, world, 50)

    def fail(*args: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryConsolidator, "consolidate", fail)
        with pytest.raises(MemoryError):
            router.deep_learn()
    assert router.engine.store.get_state(state_name("default")) == kept  # type: ignore[union-attr]
    assert router.deep_learn().status == "completed"
    router.close()


def test_a_store_that_cannot_be_written_gets_the_memory_later(world: Clusters, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router(world, path)
    serve(router, world, 100)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise SonaStoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "put_state", fail)
        with pytest.raises(SonaStoreError, match="disk full"):
            router.deep_learn()
    router.flush()
    before = told(router.engine.memory.graph)
    router.close()
    with make_router(world, path) as again:
        assert told(again.engine.memory.graph) == before


# ---- the store ----


def test_the_memory_comes_back(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        memory = router.engine.memory
        mine = memory.add(world.centres[0], {"text": "äöü", "tags": [1, None]}, quality=0.75)
        serve(router, world, 150)
        router.background_learn()
        router.deep_learn()
        memory.used([mine], [])
        before, history, at = told(memory.graph), memory.history, memory.deep_at
    with make_router(world, path) as router:
        memory = router.engine.memory
        assert (told(memory.graph), memory.history, memory.deep_at) == (before, history, at)
        assert memory.graph.data(mine) == {"text": "äöü", "tags": [1, None]}
        assert memory.recall(world.centres[0], 1)[0].id == mine
        assert memory.add(world.centres[1]) > max(row[0] for row in before[0])


def test_what_message_passing_has_learned_is_kept_with_the_memory(path: Path) -> None:
    learned = Propagation(2).fit(np.ones((3, 3), np.float32) - np.eye(3, dtype=np.float32), np.eye(3), [0, 1], [1, 2], [1.0, 0.0])
    with SonaEngine(SonaConfig(hidden_dim=4), store=path) as engine:
        assert engine.memory.propagation is None
        engine.flush()
        engine.memory.propagation = learned
    with SonaEngine(SonaConfig(hidden_dim=4), store=path) as engine:
        kept = engine.memory.propagation
        assert kept is not None
        assert all(np.array_equal(array, kept.state()[name]) for name, array in learned.state().items())
        engine.memory.propagation = None
    with SonaEngine(SonaConfig(hidden_dim=4), store=path) as engine:
        assert engine.memory.propagation is None


def test_the_state_has_no_request_in_it(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        x, _ = world.draw()
        router.feedback(router.route(x).id, 1.0)
        router.deep_learn()
        store = router.engine.store
        assert store is not None
        kept = store.get_state(state_name("default"))
        assert kept is not None
        (row,) = (row for row, _ in store.decisions())
        assert row.x[:8] not in kept[0]
        assert list(store.vectors_of(state_name("default"))) == []
    assert len(decode_state(kept[0])[0]["kinds"]) == 1


def test_what_the_store_forgets_is_gone_from_the_memory(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        memory = router.engine.memory
        ids = serve(router, world, 40)
        router.deep_learn()
        (running, restarted) = [id for id in ids if memory.graph.find(id, NodeKind.EPISODE) is not None][:2]
        router.engine.store.forget(running)  # type: ignore[union-attr]
        router.deep_learn()
        assert memory.graph.find(running, NodeKind.EPISODE) is None
        assert memory.graph.find(restarted, NodeKind.EPISODE) is not None
    with SqliteStore(path) as store:
        store.forget(restarted)
    with make_router(world, path) as router:
        assert router.engine.memory.graph.find(restarted, NodeKind.EPISODE) is None
        assert len(router.engine.memory) > 0


@pytest.mark.parametrize("stored", [False, True])
def test_forgetting_a_source_drops_what_rewards_made_and_keeps_what_users_put_in(stored: bool, world: Clusters, path: Path) -> None:
    with make_router(world, path if stored else None) as router:
        memory = router.engine.memory
        mine = [memory.add(world.centres[k], k) for k in range(3)]
        memory.used(mine[:2])
        serve(router, world, 60, "good")
        serve(router, world, 60, "bad")
        router.background_learn()
        router.deep_learn()
        router.forget_source("bad")
        graph = memory.graph
        assert sorted(graph.ids.tolist()) == mine
        assert len(graph.edges(EdgeKind.COACTIVATION)[0]) == 0
        assert graph.uses[graph.position(mine[0])] > 0
        before = told(graph)
    if stored:
        with make_router(world, path) as router:
            assert told(router.engine.memory.graph) == before
            router.deep_learn()
            assert kinds(router.engine.memory.graph)[NodeKind.EPISODE] <= 60


def test_forgetting_a_memory_overwrites_its_bytes(path: Path) -> None:
    with SonaEngine(SonaConfig(hidden_dim=4), store=path) as engine:
        ids = [engine.memory.add([1, 0, 0, 0], "a secret"), engine.memory.add([0, 1, 0, 0], "the rest")]
        engine.flush()
        assert b"a secret" in path.read_bytes() + Path(f"{path}-wal").read_bytes()
        assert engine.memory.forget(ids[:1]) == 1
        assert engine.memory.forget(ids[:1]) == 0
        assert b"a secret" not in path.read_bytes() + Path(f"{path}-wal").read_bytes()
        assert [found.data for found in engine.memory.recall([1, 0, 0, 0])] == ["the rest"]


def test_another_process_follows_the_memory_and_cannot_change_it(path: Path) -> None:
    config = SonaConfig(hidden_dim=4)
    with SonaEngine(config, store=path) as leader, SonaEngine(config, store=path) as follower:
        id = leader.memory.add([1, 0, 0, 0], "one")
        leader.flush()
        follower.memory._next_look = 0  # a second later
        assert [found.id for found in follower.memory.recall([1, 0, 0, 0])] == [id]
        for change in (lambda: follower.memory.add([1, 0, 0, 0]), lambda: follower.memory.used([id]), lambda: follower.memory.forget([id])):
            with pytest.raises(SonaStoreError, match="another process"):
                change()
        assert follower.deep_learn().status == "skipped: another process learns for this store"
        follower.flush()
        leader.memory.used([id])
        leader.flush()
    with SonaEngine(config, store=path) as engine:
        assert engine.memory.graph.uses.tolist() == [1]  # recalled by a reader only, used once


def test_a_damaged_memory_starts_empty_with_a_warning(path: Path) -> None:
    with SonaEngine(SonaConfig(hidden_dim=4), store=path) as engine:
        engine.memory.graph.link(engine.memory.add([1, 0, 0, 0]), engine.memory.add([0, 1, 0, 0]), EdgeKind.CREATIVE, 0.5)
    with SqliteStore(path) as store:
        blob = store.get_state(state_name("default"))[0]  # type: ignore[index]
        arrays, meta = decode_state(blob)
        for wrong in (
            {"kinds": arrays["kinds"][:0]},
            {"edge_u": arrays["edge_u"] + 7},
            {"strength": arrays["strength"] + 2},
            {"taken": None},
        ):
            broken = {key: array for key, array in (arrays | wrong).items() if array is not None}
            store.put_state(state_name("default"), encode_state(broken, meta), 0)
            with pytest.warns(SonaWarning, match="it starts empty"):
                assert len(Memory(4, Held(store))) == 0
        store.put_state(state_name("default"), blob, 0, vectors=[(1, b"1234")])
        with pytest.warns(SonaWarning, match="1 of 2 vectors are missing or damaged"):
            assert Memory(4, Held(store)).graph.ids.tolist() == [0]
        with pytest.warns(SonaWarning, match="dim 5, got 4"):
            Memory(5, Held(store))
        store.put_state(state_name("default"), encode_state(arrays, meta | {"format": 2}), 0)
        with pytest.raises(SonaVersionError, match="format 1 or older, got 2"):
            Memory(4, Held(store))


class Held:
    leading = True
    name = "default"

    def __init__(self, store: SqliteStore) -> None:
        store.try_lease()
        self.store, self.term = store, store.term


def test_disabled_or_closed_there_is_no_cycle(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 20)
    router.engine.enabled = False
    assert router.deep_learn().status == "skipped: learning is switched off"
    router.engine.enabled = True
    assert router.deep_learn().status == "completed"
    router.close()
    for use in (router.deep_learn, lambda: router.engine.memory):
        with pytest.raises(SonaClosedError):
            use()


@pytest.mark.parametrize(
    ("x", "options", "error"),
    [
        ([1, 2, 3], {}, SonaValueError),
        ([np.nan, 0, 0, 0], {}, SonaValueError),
        ("abcd", {}, SonaTypeError),
        ([1, 0, 0, 0], {"quality": 1.5}, SonaValueError),
        ([1, 0, 0, 0], {"data": {1, 2}}, SonaTypeError),
    ],
)
def test_a_memory_that_cannot_be_is_refused(x: Any, options: dict[str, Any], error: type[Exception]) -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=4))
    with pytest.raises(error):
        engine.memory.add(x, options.pop("data", None), **options)
    assert len(engine.memory) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"deep_interval": -1},
        {"dreams_per_cycle": 1.5},
        {"consolidation_threshold": 2},
        {"phi_threshold": -0.1},
        {"max_nodes": 0},
        {"episodes": -1},
        {"seed": -1},
        {"max_cycle_duration": float("nan")},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((SonaValueError, SonaTypeError), match=next(iter(wrong))):
        DeepLoopConfig(**wrong)


# ---- in time ----


def test_the_coordinator_runs_it_weekly_also_over_restarts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall, week = Clock(), 7 * 86400.0
    monkeypatch.setattr("time.time", wall)
    wall.now = 1_000_000_000.0
    seen: list[DeepResult] = []
    for day in range(1, 16):
        with SonaEngine(Config(hidden_dim=4), store=path) as engine:
            engine.memory.add([1, 0, 0, 0])
            clock = Clock()
            coordinator = LoopCoordinator(engine, on_deep_cycle=seen.append, clock=clock)
            assert coordinator.run_due() is None
            clock.now = 86400.0
            wall.now += 86400.0
            for _ in range(2):  # the background cycle is due as well, and comes first
                coordinator.run_due()
            assert coordinator.deep_cycles == (day % 7 == 0)
            assert engine.loop_c.due_in() == week - 86400.0 * (day % 7)
    assert [result.status for result in seen] == ["completed"] * 2
    assert coordinator.last_deep_result is None


# ---- the command ----


def learned(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        router.engine.memory.add(world.centres[0], "mine")
        serve(router, world, 150)
        router.background_learn()


def test_dream_is_a_deep_cycle_over_a_store(world: Clusters, path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    learned(world, path)
    assert main(["dream", str(path), "--json", "--dreams", "7", "--out", str(tmp_path / "pictures")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["dreams_generated"]) == ("completed", 7)
    assert report["memory"]["nodes"] == {"pattern": K, "memory": 1, "episode": report["nodes"] - K - 1}
    pictures = {str(tmp_path / "pictures" / f"{name}.png") for name in ("dream", "partition", "patterns", "quality")}
    assert set(report["figures"]) == pictures == {str(file) for file in (tmp_path / "pictures").iterdir()}
    assert main(["dream", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"({K} patterns, 1 memory, " in out
    assert "figures" not in out
    assert main(["inspect", str(path)]) == 0
    assert "memory of" in capsys.readouterr().out
    with make_router(world, path) as router:
        assert router.engine.memory.graph.cycle == 2


def test_dream_says_what_is_wrong(world: Clusters, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned(world, path)
    for arguments, message in (
        ([str(path.with_name("none.db"))], "none.db"),
        ([str(path), "--namespace", "other"], "'other'"),
        ([str(path), "--name", "other"], "there is no state 'other'; expected one of the names default (--name)"),
    ):
        assert main(["dream", *arguments]) == 1
        assert message in capsys.readouterr().err
    for wrong in (["--duration", "-1"], ["--dreams", "x"]):
        with pytest.raises(SystemExit):
            main(["dream", str(path), *wrong])
        capsys.readouterr()
    with make_router(world, path):
        assert main(["dream", str(path)]) == 1
        assert "engine.deep_learn()" in capsys.readouterr().err


def test_dream_without_time_or_memory(world: Clusters, path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with make_router(world, path):
        pass
    assert main(["dream", str(path), "--out", str(tmp_path / "pictures")]) == 0
    out = capsys.readouterr().out
    assert "completed" in out
    assert "0 nodes" in out
    assert "dreams      none" in out
    assert not list((tmp_path / "pictures").iterdir())  # there is nothing to draw
    assert main(["dream", str(path), "--duration", "0"]) == 0
    assert f"cut: {STAGES[0]} (out of time)" in capsys.readouterr().out


def test_figures_that_cannot_be_drawn_are_refused_before_the_cycle(
    world: Clusters, path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(world, path)
    (tmp_path / "file").write_text("")
    assert main(["dream", str(path), "--out", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["dream", str(path), "--out", str(tmp_path / "pictures")]) == 1
    assert "pip install 'sona[plot]'" in capsys.readouterr().err
    with make_router(world, path) as router:
        assert router.engine.memory.graph.cycle == 0


# ---- kills ----


def dream_on(path: str, acknowledge: Connection, seed: int) -> None:
    """Serves, remembers and has deep cycles, each of which is acknowledged with the memory's size."""
    world = Clusters(seed % 1000)
    with make_router(world, Path(path)) as router:
        memory = router.engine.memory
        while True:
            acknowledge.send((memory.graph.cycle, len(memory)))
            memory.add(world.draw()[0], {"cycle": memory.graph.cycle})
            serve(router, world, 20)
            assert router.deep_learn().status == "completed"


@pytest.mark.slow
def test_a_kill_leaves_the_memory_of_before_or_after_a_cycle(path: Path) -> None:
    rng, size = random.Random(5), {}
    for _ in range(6):
        acknowledged = killed(dream_on, path, rng, 0.5)
        size.update(acknowledged)
        with make_router(Clusters(0), path) as router:  # a damaged one would warn
            memory = router.engine.memory
            assert acknowledged[-1][0] <= memory.graph.cycle <= acknowledged[-1][0] + 1
            assert memory.graph.cycle == len(memory.history)
            notes = [memory.graph.data(id) for id in memory.graph.ids[memory.graph.kinds == NodeKind.MEMORY].tolist()]
            assert sorted(note["cycle"] for note in notes) == list(range(memory.graph.cycle))
            assert len(memory) == size.get(memory.graph.cycle, len(memory))
    assert len(size) > 6


# ---- figures ----


def test_a_partition_is_drawn_of_whatever_phi_takes(tmp_path: Path) -> None:
    graph = networkx.Graph([("a", "b", {"weight": 2.0}), ("b", "c", {"weight": 1.0})])
    matrix = networkx.to_numpy_array(graph)
    for number, (given, labels) in enumerate(((graph, None), (matrix, "abc"), (matrix.tolist(), "abc"))):
        draw_partition(given, phi(given), tmp_path / f"{number}.png", labels=labels)
    drawn = {(tmp_path / f"{number}.png").read_bytes() for number in range(3)}
    assert len(drawn) == 1  # the same names at the same places
    with pytest.raises(SonaValueError, match="phi: expected a cut of these 3 nodes"):
        draw_partition(graph, phi(matrix), tmp_path / "wrong.png")
    with pytest.raises(SonaValueError, match="labels: expected 3, got 2"):
        draw_partition(graph, phi(graph), tmp_path / "wrong.png", labels="ab")
    assert not (tmp_path / "wrong.png").exists()


def test_what_a_memory_became_is_drawn_from_no_cycle_on(tmp_path: Path) -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=D))
    for number in range(3):
        draw_quality(engine.memory.history, tmp_path / f"{number}.png")
        engine.deep_learn()
    assert all((tmp_path / f"{number}.png").stat().st_size > 1000 for number in range(3))


def test_a_full_cycle_has_room_for_every_pair_that_its_requests_activate() -> None:
    """A thousand requests of five memories each, no pair of which comes twice: ten edges from each."""
    groups, dim = 1000, 64
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((groups, dim))
    engine = SonaEngine(SonaConfig(hidden_dim=dim), deep=DeepLoopConfig(dreams_per_cycle=0, proposals=0, edge_update_scale=0.5))
    graph = engine.memory.graph
    near = np.repeat(directions, 5, axis=0) + 0.01 * rng.standard_normal((5 * groups, dim))
    for first in range(0, len(near), 500):
        graph.add_many(near[first : first + 500], kind=NodeKind.MEMORY, link=0, data=list(range(first, first + 500)))
    for x in directions:
        tid = engine.begin_trajectory(x)
        engine.add_step(tid, activations=x)
        engine.end_trajectory(tid, 1.0)
    engine.deep_learn()
    u, v, weight = graph.edges(EdgeKind.COACTIVATION)
    assert len(u) == 10 * groups
    assert (u // 5 == v // 5).all()
    assert (weight > 0).all()
