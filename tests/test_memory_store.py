"""Promises of a memory in a store: whoever leads goes on from what is there, nothing old overwrites it, and bounds never close it."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sona import Router, SonaConfig, SonaEngine
from sona.contents import dream
from sona.errors import SonaClosedError, SonaStoreError, SonaValueError, SonaWarning
from sona.loops.background import BackgroundLoopConfig
from sona.loops.deep import DeepLoopConfig
from sona.loops.journal import decode_state, encode_state
from sona.loops.limits import Sources
from sona.loops.memory import HISTORY, NOTED, Memory, state_name
from sona.memory import Dream, DreamEngine, EdgeKind, MemoryGraph, NodeKind
from sona.patterns import PatternConfig
from sona.store import SqliteStore

D = 8
CONFIG = SonaConfig(hidden_dim=D)
KEY = state_name("default")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


class Held:
    """A store for a learner of this process."""

    name = "default"

    def __init__(self, store: SqliteStore, *, leading: bool = True) -> None:
        self.store, self.leading = store, leading
        held = leading and store.try_lease()
        self.term = store.term if held else -1


def data(memory: Memory) -> list[Any]:
    return sorted(memory.graph.data(id) for id in memory.graph.ids.tolist())


def kept(path: Path) -> tuple[list[int], list[int]]:
    """Ids that have a vector of their own according to the state, and those that have one."""
    with SqliteStore(path) as store:
        assert store.integrity() == []
        arrays, _ = decode_state(store.get_state(KEY)[0])  # type: ignore[index]
        return arrays["ids"][arrays["kinds"] != NodeKind.EPISODE].tolist(), [id for id, _ in store.vectors_of(KEY)]


def whole(path: Path) -> None:
    """State and vectors belong together."""
    ids, vectors = kept(path)
    assert sorted(ids) == vectors


def bytes_of(path: Path) -> bytes:
    return path.read_bytes() + Path(f"{path}-wal").read_bytes()


def router(store: Any = None, **options: Any) -> Router:
    patterns = PatternConfig(embedding_dim=D, k_clusters=4)
    small = BackgroundLoopConfig(patterns=patterns, min_trajectories=50)
    arms = {name: np.eye(D)[k] for k, name in enumerate("abc")}
    return Router(arms, store=store, explore="softmax", background=small, **options)


def serve(to: Router, rng: np.random.Generator, rounds: int, source: str | None = None) -> list[int]:
    ids = []
    for _ in range(rounds):
        decision = to.route(rng.standard_normal(D))
        to.feedback(decision.id, float(decision.index == 0), source=source)
        ids.append(decision.id)
    return ids


# ---- who leads ----


def lead(engine: SonaEngine) -> None:
    """A second later, when the process that led has ended."""
    assert engine.journal is not None
    engine.journal.poll()
    assert engine.journal.leading


@pytest.mark.parametrize("use", ["add", "cycle", "rewards", "propagation", "nothing"])
def test_a_process_that_comes_to_lead_goes_on_from_what_the_store_has(use: str, path: Path) -> None:
    first, second = SonaEngine(CONFIG, store=path), SonaEngine(CONFIG, store=path)
    one = first.memory.add(np.eye(D)[0], "one")
    first.close()  # the second has never looked
    lead(second)
    if use == "add":
        assert second.memory.add(np.eye(D)[1], "two") != one
    elif use == "cycle":
        assert second.deep_learn().nodes == 1
    elif use == "rewards":
        second.memory.forget_rewards()
    elif use == "propagation":
        second.memory.propagation = None
    second.close()
    whole(path)
    with SonaEngine(CONFIG, store=path) as third:
        assert data(third.memory) == (["one", "two"] if use == "add" else ["one"])
        assert third.memory.graph.cycle == (use == "cycle")


def test_engines_that_lead_in_turn_lose_nothing(path: Path) -> None:
    engines = [SonaEngine(CONFIG, store=path) for _ in range(7)]
    for n in range(6):
        for engine in engines[n % 2 :]:
            engine.memory._next_look = 0
            engine.memory.recall(np.eye(D)[0])  # every other time the next one has seen the last change
        leader = engines.pop(0)
        if n:
            lead(leader)
        leader.memory.add(np.eye(D)[n], n)
        if n > 2:
            leader.memory.forget([n - 3])
        leader.deep_learn()
        leader.close()
        whole(path)
    lead(engines[0])
    assert data(engines[0].memory) == [3, 4, 5]
    engines[0].close()


@pytest.mark.parametrize("reading", ["get_state", "vectors_of"])
def test_a_process_that_comes_to_lead_and_cannot_read_does_not_overwrite(reading: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SonaEngine(CONFIG, store=path), SonaEngine(CONFIG, store=path)
    first.memory.add(np.eye(D)[0], "one")
    first.close()
    lead(second)

    def fail(*arguments: Any) -> None:
        raise SonaStoreError("no")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, reading, fail)
        with pytest.raises(SonaStoreError, match="no"):
            second.memory.add(np.eye(D)[1], "two")
        with pytest.raises(SonaStoreError, match="no"):
            second.deep_learn()
    second.memory.add(np.eye(D)[1], "two")
    second.close()
    with SonaEngine(CONFIG, store=path) as third:
        assert data(third.memory) == ["one", "two"]


def test_a_reader_between_two_writes_reads_again_and_says_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and vectors are read one after the other: between them the process that leads may have written both."""
    with SonaEngine(CONFIG, store=path) as leader, SonaEngine(CONFIG, store=path) as follower:
        ids = [leader.memory.add(np.eye(D)[n], n) for n in range(3)]
        leader.flush()
        read = SqliteStore.vectors_of

        def late(store: SqliteStore, name: str) -> Iterator[tuple[int, bytes]]:
            if ids:
                leader.memory.forget([ids.pop()])
            return read(store, name)

        monkeypatch.setattr(SqliteStore, "vectors_of", late)
        follower.memory._next_look = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            follower.memory.recall(np.eye(D)[0])
        assert data(follower.memory) == []


# ---- writing from several threads ----


def test_a_write_that_was_late_brings_nothing_forgotten_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SonaEngine(CONFIG, store=path) as engine:
        ids = [engine.memory.add(np.eye(D)[0], "a secret"), engine.memory.add(np.eye(D)[1], "the rest")]
        writing, go = threading.Event(), threading.Event()
        put = SqliteStore.put_state

        def slow(self: SqliteStore, *arguments: Any, **options: Any) -> None:
            if threading.current_thread() is flush:
                writing.set()
                go.wait(1)
            put(self, *arguments, **options)

        monkeypatch.setattr(SqliteStore, "put_state", slow)
        flush = threading.Thread(target=engine.memory.save)
        flush.start()
        assert writing.wait(10)
        forget = threading.Thread(target=engine.memory.forget, args=(ids[:1],))
        forget.start()
        forget.join(0.2)
        go.set()
        flush.join(10)
        forget.join(10)
        assert b"a secret" not in bytes_of(path)
    whole(path)


def test_nodes_that_go_meanwhile_do_not_let_others_be_taken_for_them(rng: np.random.Generator) -> None:
    """Positions change with every removal: what is removed by kind has to be looked up at one moment."""
    engine = SonaEngine(CONFIG)
    memory, stop, errors = engine.memory, threading.Event(), []
    mine = [memory.add(x, n) for n, x in enumerate(rng.standard_normal((20, D)))]

    def forgetful() -> None:
        while not stop.is_set():
            memory.forget([memory.add(rng.standard_normal(D), -1)])

    def rewards() -> None:
        own = np.random.default_rng(0)
        try:
            for _ in range(300):
                memory.graph.add_many(own.standard_normal((3, D)), kind=NodeKind.EPISODE, link=0)
                memory.forget_rewards()
        except Exception as error:
            errors.append(error)
        stop.set()

    threads = [threading.Thread(target=each) for each in (forgetful, rewards)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert all(id in memory.graph for id in mine)


def test_what_was_used_may_be_forgotten_at_the_same_time(rng: np.random.Generator) -> None:
    engine = SonaEngine(CONFIG)
    memory, stop, errors = engine.memory, threading.Event(), []
    current: list[int] = [memory.add(rng.standard_normal(D))]

    def use() -> None:
        try:
            while not stop.is_set():
                memory.used(list(current), list(current))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    for _ in range(600):
        memory.forget(current)
        current[:] = [memory.add(rng.standard_normal(D))]
    stop.set()
    thread.join()
    assert errors == []


def test_what_is_dreamed_of_may_be_forgotten_meanwhile(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    engine = SonaEngine(CONFIG)
    ids = [engine.memory.add(x, n) for n, x in enumerate(rng.standard_normal((20, D)))]
    dreaming = DreamEngine.generate_dreams

    def slow(self: DreamEngine, count: int | None = None) -> list[Dream]:
        dreams = dreaming(self, count)
        engine.memory.forget(ids[:19])
        return dreams

    monkeypatch.setattr(DreamEngine, "generate_dreams", slow)
    result = engine.deep_learn()
    assert (result.status, result.dreams_generated, result.nodes) == ("completed", 50, 1)


@pytest.mark.parametrize("owned", [False, True])
def test_a_cycle_that_outlives_its_engine_writes_nothing_and_takes_no_lease(owned: bool, path: Path) -> None:
    store = path if owned else SqliteStore(path)
    engine = SonaEngine(CONFIG, store=store)
    memory = engine.memory
    memory.add(np.eye(D)[0], "one")

    def progress(done: int, stage: str) -> None:
        if done == 3:
            engine.close()

    with pytest.raises(SonaClosedError):
        engine.deep_learn(progress=progress)
    for change in (lambda: memory.add(np.eye(D)[1]), lambda: memory.used([0]), lambda: memory.forget([0])):
        with pytest.raises(SonaClosedError):
            change()
    with SonaEngine(CONFIG, store=path) as another:
        assert another.journal is not None
        assert another.journal.leading
        assert (data(another.memory), another.memory.graph.cycle) == (["one"], 0)
    if isinstance(store, SqliteStore):
        store.close()


# ---- bounds ----


def test_a_memory_that_is_full_of_what_is_used_still_remembers() -> None:
    """Without deep cycles everything that was ever recalled counts as used of late."""
    graph = MemoryGraph(D, max_nodes=4)
    pattern = graph.add(np.eye(D)[0], kind=NodeKind.PATTERN)
    episode = graph.add(np.eye(D)[1], kind=NodeKind.EPISODE, quality=1.0)
    weak, strong = graph.add(np.eye(D)[2], quality=0.1), graph.add(np.eye(D)[3], quality=0.9)
    graph.used([pattern, episode, weak, strong])
    fifth = graph.add(np.eye(D)[4])
    assert sorted(graph.ids.tolist()) == [pattern, weak, strong, fifth]
    graph.used([fifth])
    sixth = graph.add(np.eye(D)[5])
    assert sorted(graph.ids.tolist()) == [pattern, strong, fifth, sixth]
    graph.add_many(np.eye(D)[5:8])
    assert pattern in graph
    with pytest.raises(SonaValueError, match="max_nodes: expected room for 4 more among 4, got 4 nodes of which 3 may be removed"):
        graph.add_many(np.eye(D)[:4])


def test_decisions_push_out_no_memories_even_where_all_decisions_are_in_use(rng: np.random.Generator) -> None:
    own = router(deep=DeepLoopConfig(max_nodes=12, episodes=6))
    memory = own.engine.memory
    mine = [memory.add(rng.standard_normal(D), n) for n in range(6)]
    serve(own, rng, 6)
    own.deep_learn()
    graph = memory.graph
    for _ in range(3):
        graph.touch(graph.ids[graph.kinds == NodeKind.EPISODE])
        serve(own, rng, 6)
        own.deep_learn()
        assert all(id in graph for id in mine)
        assert len(graph) <= 12


def test_a_memory_smaller_than_the_bank_has_cycles(rng: np.random.Generator) -> None:
    own = router(deep=DeepLoopConfig(max_nodes=5, episodes=10))
    serve(own, rng, 100)
    assert own.background_learn().status == "completed"
    assert len(own.engine.patterns.bank.patterns) == 4
    memory = own.engine.memory
    for n in range(3):
        memory.used([memory.add(rng.standard_normal(D), n)])
        assert own.deep_learn().status == "completed"
        kinds = memory.graph.kinds.tolist()
        assert kinds.count(NodeKind.PATTERN) == 2
        assert kinds.count(NodeKind.MEMORY) == n + 1
        assert len(kinds) <= 5


def test_a_smaller_bound_keeps_what_is_worth_most(path: Path) -> None:
    with SonaEngine(CONFIG, store=path) as engine:
        for n in range(8):
            engine.memory.add(np.eye(D)[n], n, quality=n / 8)
        engine.memory.recall(np.eye(D)[0], 8)
    with SonaEngine(CONFIG, store=path, deep=DeepLoopConfig(max_nodes=3)) as engine:
        assert data(engine.memory) == [5, 6, 7]
        engine.memory.add(np.eye(D)[0], 8, quality=1.0)
        assert data(engine.memory) == [6, 7, 8]
    whole(path)
    with SonaEngine(CONFIG, store=path) as engine:
        assert data(engine.memory) == [6, 7, 8]


def test_the_command_keeps_a_memory_larger_than_its_own_bound(path: Path) -> None:
    with SonaEngine(CONFIG, store=path) as engine:
        for n in range(8):
            engine.memory.add(np.eye(D)[n], n)
    _, memory, _ = dream(path, DeepLoopConfig(max_nodes=3))
    assert data(memory) == list(range(8))


# ---- damage ----


def test_a_memory_that_cannot_be_read_is_not_overwritten_before_something_is_put_in(path: Path) -> None:
    with SonaEngine(CONFIG, store=path) as engine:
        engine.memory.add(np.eye(D)[0], "one")
    with SqliteStore(path) as store:
        blob = store.get_state(KEY)[0]  # type: ignore[index]
        arrays, meta = decode_state(blob)
        store.put_state(KEY, encode_state(arrays | {"strength": arrays["strength"] + 2}, meta), 0)
        store.put_state(KEY, encode_state(arrays | {"strength": arrays["strength"] + 3}, meta), 0)
        damaged = store.get_state(KEY)
    with pytest.warns(SonaWarning, match="it starts empty"), SonaEngine(CONFIG, store=path) as engine:
        engine.flush()
    with SqliteStore(path) as store:
        assert store.get_state(KEY) == damaged
    with pytest.warns(SonaWarning, match="it starts empty"), SonaEngine(CONFIG, store=path) as engine:
        engine.memory.add(np.eye(D)[1], "two")
    assert kept(path) == ([0], [0])  # and no vector of the old one is left


def test_after_going_back_to_the_state_before_no_id_comes_twice(path: Path) -> None:
    with SonaEngine(CONFIG, store=path) as engine:
        engine.memory.add(np.eye(D)[0], "one")
        engine.flush()
        later = engine.memory.add(np.eye(D)[1], "two")
    with SqliteStore(path) as store, store._db.writing() as conn:
        conn.execute("UPDATE state SET blob = zeroblob(9) WHERE name = ? AND generation = (SELECT max(generation) FROM state)", (KEY,))
    with pytest.warns(SonaWarning, match="going back"):
        engine = SonaEngine(CONFIG, store=path)
    with engine:
        assert data(engine.memory) == ["one"]
        assert engine.memory.add(np.eye(D)[2], "three") > later


def test_a_vector_that_is_damaged_costs_its_node_and_is_gone_with_the_next_write(path: Path) -> None:
    with SonaEngine(CONFIG, store=path) as engine:
        engine.memory.add(np.eye(D)[0], "one")
        engine.memory.add(np.eye(D)[1], "two")
    with SqliteStore(path) as store, store._db.writing() as conn:
        conn.execute("UPDATE vectors SET vector = zeroblob(32) WHERE id = 1")
    with pytest.warns(SonaWarning, match="1 of 2 vectors"):
        engine = SonaEngine(CONFIG, store=path)
    with engine:
        assert data(engine.memory) == ["one"]
        engine.flush()
    whole(path)


@pytest.mark.parametrize("damage", ["x", "arms", "row"])
def test_damaged_decisions_cost_their_episodes_and_nothing_else(damage: str, path: Path, rng: np.random.Generator) -> None:
    with router(path) as own:
        own.engine.memory.add(np.eye(D)[0], "one")
        ids = serve(own, rng, 20)
        own.deep_learn()
        before = int((own.engine.memory.graph.kinds == NodeKind.EPISODE).sum())
    with SqliteStore(path) as store, store._db.writing() as conn:
        if damage == "x":
            for id, number in zip(ids, (np.nan, 1e30, 17.0), strict=False):
                conn.execute("UPDATE decisions SET x = ? WHERE id = ?", (np.full(D, number, "<f4").tobytes(), id))
        elif damage == "arms":
            conn.execute("UPDATE arms SET sha256 = zeroblob(32)")
        else:
            conn.execute("UPDATE decisions SET propensity = 'none' WHERE id = ?", (ids[0],))
    with SqliteStore(path) as store:
        assert store.try_lease()
        memory = Memory(D, Held(store))
        assert memory.graph.data(memory.recall(np.eye(D)[0], 1)[0].id) == "one"
        left = int((memory.graph.kinds == NodeKind.EPISODE).sum())
        assert before - 3 <= left <= before
        if damage == "x":
            assert left < before
    if damage == "x":  # they are not taken in either
        with router(path) as own:
            assert own.deep_learn().status == "completed"


# ---- time ----


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_clock_that_was_set_back_puts_a_cycle_off_for_one_interval_at_most(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall, week = Clock(2e9), 7 * 86400.0
    monkeypatch.setattr("time.time", wall)
    with SonaEngine(CONFIG, store=path) as engine:
        engine.deep_learn()
    wall.now = 1e9  # thirty years before
    for day in range(8):
        with SonaEngine(CONFIG, store=path) as engine:
            assert engine.loop_c.due_in() == week - 86400.0 * day if day < 7 else engine.loop_c.due_in() == 0
        wall.now += 86400.0


def test_the_time_of_the_last_cycle_is_a_time(path: Path) -> None:
    with SonaEngine(CONFIG, store=path) as engine:
        engine.memory.add(np.eye(D)[0])
    with SqliteStore(path) as store:
        arrays, meta = decode_state(store.get_state(KEY)[0])  # type: ignore[index]
        store.put_state(KEY, encode_state(arrays, meta | {"deep_at": float("nan")}), 0)
    with SonaEngine(CONFIG, store=path) as engine:
        assert 0 < engine.loop_c.due_in() <= 7 * 86400.0


# ---- what is taken in ----


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_length_of_a_request_says_nothing(scale: float) -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=4))
    a, b, far = (engine.memory.add(x) for x in ([1, 0.5, 0, 0], [1, -0.5, 0, 0], [0.02, 0, 0, 1]))
    for _ in range(10):
        tid = engine.begin_trajectory([scale, 0, 0, 0])
        engine.add_step(tid, activations=[0, 1, 0, 0], expected=0.5)
        engine.end_trajectory(tid, quality=1.0)
    engine.deep_learn()
    assert EdgeKind.COACTIVATION in engine.memory.graph.edge(a, b)
    assert EdgeKind.COACTIVATION not in engine.memory.graph.edge(a, far)


def test_a_reward_that_comes_after_the_end_of_a_trajectory_counts_once() -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=4))
    a, b = (engine.memory.add(x) for x in ([1, 0.5, 0, 0], [1, -0.5, 0, 0]))
    for _ in range(10):
        tid = engine.begin_trajectory([1, 0, 0, 0])
        engine.add_step(tid, activations=[0, 1, 0, 0], expected=0.5)
        engine.end_trajectory(tid)
        engine.feedback(tid, 0.0)
        engine.feedback(tid, 1.0)
    engine.deep_learn()
    assert engine.memory.graph.edge(a, b)[EdgeKind.COACTIVATION] == pytest.approx((1 - 0.99**10) * 0.95)


def test_a_near_duplicate_begins_anew_when_its_reward_changes(path: Path) -> None:
    with router(path) as own:
        x = np.eye(D)[0]
        ids = []
        for _ in range(3):
            ids.append(own.route(x, ["a"]).id)
            own.feedback(ids[-1], 1.0)
        own.deep_learn()
        graph = own.engine.memory.graph
        assert len(graph) == 1
        absorbed = next(id for id in ids if graph.find(id, NodeKind.EPISODE) is None)
    with router(path) as own:
        graph = own.engine.memory.graph
        own.deep_learn()
        assert len(graph) == 1
        own.feedback(absorbed, 0.25)
        own.deep_learn()
        again = graph.find(absorbed, NodeKind.EPISODE)
        assert again is not None
        assert graph.data(again) == {"arm": "a", "reward": 0.25}
        assert len(graph) == 2


def test_nothing_can_be_remembered_under_a_request_without_a_direction() -> None:
    memory = SonaEngine(CONFIG).memory
    with pytest.raises(SonaValueError, match="x: expected a vector other than zero"):
        memory.add(np.zeros(D))
    assert len(memory) == 0


def test_data_nested_too_deep_are_refused_and_what_was_taken_can_be_read() -> None:
    graph = MemoryGraph(D)

    def nested(depth: int) -> list[Any]:
        made: list[Any] = []
        for _ in range(depth):
            made = [made]
        return made

    with pytest.raises(SonaValueError, match="data: expected what JSON can write"):
        graph.add(np.eye(D)[0], data=nested(100_000))
    assert len(graph) == 0
    graph.add(np.eye(D)[0], data=nested(600))

    def deeper(levels: int) -> MemoryGraph:
        return deeper(levels - 1) if levels else MemoryGraph.from_state(graph.state())

    assert len(deeper(400)) == 1


def test_a_state_keeps_arrays_without_dimensions() -> None:
    arrays, _ = decode_state(encode_state({"a": np.array(3.0), "b": np.arange(6.0).reshape(2, 3).T}, {}))
    assert arrays["a"].shape == ()
    assert arrays["b"].tolist() == [[0, 3], [1, 4], [2, 5]]


# ---- bounds on what waits and what is told, and what counts ----


def test_history_and_what_waits_for_a_cycle_are_bounded() -> None:
    memory = SonaEngine(SonaConfig(hidden_dim=4)).memory
    for _ in range(HISTORY + 5):
        memory.ended([], 0, 0)
    assert [memory.history[0]["cycle"], memory.history[-1]["cycle"]] == [6, HISTORY + 5]
    for n in range(NOTED + 5):
        memory.note(n, b"", n / 2000)
    assert list(memory._noted) == list(range(5, NOTED + 5))


def test_a_cycle_proposes_edges_without_a_dream(rng: np.random.Generator) -> None:
    for most, some in ((0, False), (5, True)):
        engine = SonaEngine(CONFIG, deep=DeepLoopConfig(dreams_per_cycle=0, proposals=most))
        for n, x in enumerate(rng.standard_normal((60, D))):
            engine.memory.add(x, n)
        engine.deep_learn()
        made = len(engine.memory.graph.edges(EdgeKind.CREATIVE)[0])
        assert made <= most
        assert (made > 0) is some


def test_patterns_have_the_quality_that_the_bank_says_now(rng: np.random.Generator) -> None:
    own = router()
    for reward in (1.0, 0.0):
        for _ in range(150):
            own.feedback(own.route(rng.standard_normal(D)).id, reward)
        own.background_learn()
        own.deep_learn()
        bank = {pattern.id: pattern.avg_quality for pattern in own.engine.patterns.bank.patterns}
        _, keys, quality = own.engine.memory.graph.of_kind(NodeKind.PATTERN)
        assert dict(zip(keys.tolist(), quality.tolist(), strict=True)) == pytest.approx(bank)


def test_rewards_of_a_quarantined_source_are_not_taken_in(path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sources, "quarantined", lambda self: ["bad"])
    with router(path) as own:
        bad, good = serve(own, rng, 10, "bad"), serve(own, rng, 10, "good")
        own.deep_learn()
        keys = set(own.engine.memory.graph.of_kind(NodeKind.EPISODE)[1].tolist())
        assert keys
        assert keys <= set(good)
    _, memory, _ = dream(path, DeepLoopConfig())
    assert not set(memory.graph.of_kind(NodeKind.EPISODE)[1].tolist()) & set(bad)


def test_a_store_that_replaces_its_states_drops_their_vectors(path: Path) -> None:
    with SqliteStore(path) as store:
        for name in ("one", "two"):
            store.put_state(name, b"x", 0, vectors=[(1, b"1234")])
        assert store.replace_without("bad", "learner", b"y", 0, versions_since=0.0, keep=("one",)) is not None
        assert [list(store.vectors_of(name)) for name in ("one", "two")] == [[(1, b"1234")], []]
        assert store.integrity() == []
