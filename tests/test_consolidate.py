"""Consolidation: what grows, fades, goes and becomes one, and that the rules of the memory hold whatever it decides."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.errors import SonaValueError
from sona.memory import (
    ConsolidationConfig,
    DreamEngine,
    DreamEvaluator,
    DreamGate,
    EdgeKind,
    MemoryConsolidator,
    MemoryGraph,
    NodeKind,
)

DIM = 6


def fill(graph, rng, count):
    """Nodes of every kind, some of them near-duplicates of others, with one of three data."""
    base = rng.standard_normal((max(count // 3, 1), DIM))
    for _ in range(count):
        x = base[rng.integers(len(base))] + rng.choice([0.0, 0.02, 1.0]) * rng.standard_normal(DIM)
        graph.add(x, kind=NodeKind(int(rng.integers(3))), quality=float(rng.uniform()), data=int(rng.integers(3)), link=4)


def use(graph, rng, many):
    """Retrieves and uses some nodes; the ids used."""
    if not len(graph):
        return set()
    ids = rng.choice(graph.ids, size=min(many, len(graph)), replace=False)
    graph.used(ids[: len(ids) // 2 + 1], retrieved=ids)
    return set(ids[: len(ids) // 2 + 1].tolist())


def rules(graph):
    """The rules of the memory that hold at any time."""
    assert len(graph) <= graph.max_nodes
    assert ((graph.strength > 0) & (graph.strength <= 1)).all()
    assert ((graph.quality >= 0) & (graph.quality <= 1)).all()
    assert len(set(graph.ids.tolist())) == len(graph)
    neighbours = {id: set() for id in graph.ids.tolist()}
    for kind in EdgeKind:
        u, v, w = graph.edges(kind)
        assert ((w > 0) & (w <= 1)).all()
        assert (u != v).all()
        for a, b in zip(u.tolist(), v.tolist(), strict=True):
            neighbours[a].add(b)
            neighbours[b].add(a)
    assert max(map(len, neighbours.values()), default=0) <= graph.max_degree


def same(change, other):
    for name in ("unlink", "link", "strengthen", "merge"):
        for a, b in zip(getattr(change, name), getattr(other, name), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(change.remove, other.remove)
    assert dict(change.decay) == dict(other.decay)
    assert change.based_on == other.based_on


# ---- the rules of the memory ----


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), room=st.sampled_from([20, 60]), pressure=st.booleans())
def test_ten_deep_cycles_keep_every_rule_of_the_memory(seed, room, pressure):
    rng = np.random.default_rng(seed)
    graph = MemoryGraph(DIM, max_nodes=room, max_degree=6)
    harsh = ConsolidationConfig(loss=0.9, floor=0.3, max_nodes=room // 2 if pressure else None)
    consolidator = MemoryConsolidator(harsh)
    for _ in range(10):
        fill(graph, rng, min(8, room - len(graph)))
        used = use(graph, rng, 6)
        kinds = dict(zip(graph.ids.tolist(), graph.kinds.tolist(), strict=True))
        data = dict(zip(graph.ids.tolist(), graph.snapshot().data, strict=True))
        engine = DreamEngine(graph, seed=seed % 1000)
        dreams = DreamGate().select(DreamEvaluator(graph).evaluate(engine.generate_dreams(10)))
        graph.apply(engine.integrate_dreams(dreams))
        rules(graph)
        before = graph.snapshot()
        found = consolidator.consolidate(before)
        graph.apply(found.change)
        rules(graph)
        left = set(graph.ids.tolist())
        taken = dict(zip(*(column.tolist() for column in found.change.merge), strict=True))
        for id in set(kinds) - left:
            if id in taken:
                assert graph.position(id) == graph.position(taken[id])
                assert kinds[id] == kinds[taken[id]] != NodeKind.PATTERN
                assert data[id] == data[taken[id]]
            else:
                assert id not in used
                assert kinds[id] == NodeKind.EPISODE or pressure
                assert kinds[id] != NodeKind.PATTERN
        assert found.merged == len(taken)
        assert found.removed == len(set(kinds) - left - set(taken))
        assert found.strengthened + found.decayed == len(left)
        graph.cycle += 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_snapshot_gives_one_consolidation_and_stays_as_it_is(seed):
    rng = np.random.default_rng(seed)
    graph = MemoryGraph(DIM)
    fill(graph, rng, 40)
    use(graph, rng, 10)
    snapshot = graph.snapshot()
    columns = {name: getattr(snapshot, name).copy() for name in ("ids", "vectors", "quality", "strength", "uses", "last_used")}
    first = MemoryConsolidator().consolidate(snapshot)
    graph.apply(first.change)
    same(first.change, MemoryConsolidator().consolidate(snapshot).change)
    for name, column in columns.items():
        np.testing.assert_array_equal(getattr(snapshot, name), column)


def test_an_empty_memory_has_nothing_to_consolidate():
    found = MemoryConsolidator().consolidate(MemoryGraph(3).snapshot())
    assert not found.change
    assert (found.strengthened, found.decayed, found.removed, found.pruned, found.merged, found.complete) == (0, 0, 0, 0, 0, True)


# ---- value and strength ----


def test_value_is_quality_use_and_connectivity():
    rng = np.random.default_rng(0)
    graph = MemoryGraph(DIM)
    fill(graph, rng, 30)
    for _ in range(3):
        use(graph, rng, 8)
        graph.apply(MemoryConsolidator(ConsolidationConfig(merge_similarity=2)).consolidate(graph.snapshot()).change)
        graph.cycle += 1
    snapshot = graph.snapshot()
    total = {id: 0.0 for id in graph.ids.tolist()}
    for kind in EdgeKind:
        for u, v, w in zip(*(column.tolist() for column in graph.edges(kind)), strict=True):
            total[u] += w
            total[v] += w
    middle = np.median(list(total.values()))
    value = MemoryConsolidator().values(snapshot)
    for at, id in enumerate(snapshot.ids.tolist()):
        used = 1 - math.exp(-snapshot.uses[at] * 2 ** (-(snapshot.cycle - snapshot.last_used[at]) / 4)) if snapshot.uses[at] else 0
        connected = total[id] / (total[id] + middle) if total[id] else 0
        assert value[at] == pytest.approx(0.5 * snapshot.quality[at] + 0.35 * used + 0.15 * connected, abs=1e-5)
    assert 0 <= value.min() < value.max() <= 1


def test_what_reaches_the_threshold_grows_and_the_rest_fades_by_how_far_it_falls_short():
    graph = MemoryGraph(2)
    good, fair, poor = (graph.add(x, quality=q, link=0) for x, q in (([1, 0], 1.0), ([0, 1], 0.8), ([-1, 0], 0.1)))
    graph.used([good])
    before = {id: graph.strength[graph.position(id)] for id in (good, fair, poor)}
    found = MemoryConsolidator(ConsolidationConfig(gain=0.5, loss=0.5)).consolidate(graph.snapshot(), threshold=0.7)
    assert (found.strengthened, found.decayed) == (1, 2)
    graph.apply(found.change)
    after = {id: graph.strength[graph.position(id)] for id in before}
    assert after[good] == pytest.approx(before[good] + 0.5 * (1 - before[good]))
    assert after[fair] == pytest.approx(before[fair] * (1 - 0.5 * (0.7 - 0.4) / 0.7))
    assert after[poor] == pytest.approx(before[poor] * (1 - 0.5 * (0.7 - 0.05) / 0.7))
    low = MemoryConsolidator().consolidate(graph.snapshot(), threshold=0)
    assert (low.strengthened, low.decayed) == (3, 0)


# ---- removal ----


def test_only_episodes_fade_away():
    graph = MemoryGraph(3)
    ids = {kind: graph.add(np.eye(3)[kind], kind=kind, quality=0.0, link=0) for kind in NodeKind}
    consolidator = MemoryConsolidator(ConsolidationConfig(loss=0.9))
    cycles = 0
    while len(graph) == 3:
        graph.apply(consolidator.consolidate(graph.snapshot()).change)
        graph.cycle += 1
        cycles += 1
        assert cycles < 30
    assert cycles > 1
    assert ids[NodeKind.EPISODE] not in graph
    for _ in range(10):
        graph.apply(consolidator.consolidate(graph.snapshot()).change)
    assert len(graph) == 2
    assert graph.strength.min() > 0


def test_an_episode_has_two_cycles_to_show_its_worth():
    graph = MemoryGraph(2)
    graph.cycle = 5
    graph.add([1, 0], kind=NodeKind.EPISODE, quality=0.0, link=0)
    consolidator, left = MemoryConsolidator(ConsolidationConfig(loss=1.0)), []
    for _ in range(3):
        graph.apply(consolidator.consolidate(graph.snapshot()).change)
        graph.cycle += 1
        left.append(len(graph))
    assert left == [1, 1, 0]


def test_beyond_its_room_a_memory_gives_up_what_is_worth_least_but_never_what_is_in_use():
    rng = np.random.default_rng(1)
    graph = MemoryGraph(DIM)
    x = rng.standard_normal((60, DIM))
    kinds = rng.integers(3, size=60)
    ids = [graph.add(x[k], kind=NodeKind(int(kinds[k])), quality=float(rng.uniform()), link=3) for k in range(60)]
    used = set(np.array(ids)[:10].tolist())
    graph.used(sorted(used))
    snapshot = graph.snapshot()
    value = MemoryConsolidator().values(snapshot)
    free = [at for at in range(60) if snapshot.kinds[at] != NodeKind.PATTERN and snapshot.ids[at] not in used]
    free.sort(key=lambda at: (snapshot.kinds[at] != NodeKind.EPISODE, value[at]))
    episodes = sum(NodeKind(int(snapshot.kinds[at])) is NodeKind.EPISODE for at in free)
    for limit in (60, 60 - episodes // 2, 60 - episodes - 3, 1):
        found = MemoryConsolidator(ConsolidationConfig(max_nodes=limit)).consolidate(snapshot)
        expected = [int(snapshot.ids[at]) for at in free[: 60 - limit]]
        assert sorted(found.change.remove.tolist()) == sorted(expected)
        assert found.removed == len(expected)


# ---- near-duplicates ----


def test_near_duplicates_of_one_kind_and_equal_data_become_the_one_of_most_value():
    graph = MemoryGraph(3)
    x, twin, other = [1, 0, 0], [1, 0.05, 0], [1, 0.5, 0]
    first = graph.add(x, quality=0.4, data="a")
    best = graph.add(twin, quality=0.9, data="a")
    different = graph.add(x, quality=0.9, data="b")
    apart = graph.add(other, data="a")
    pattern = graph.add(x, kind=NodeKind.PATTERN, data="a")
    episode = graph.add(x, kind=NodeKind.EPISODE, data="a")
    found = MemoryConsolidator().consolidate(graph.snapshot())
    assert [column.tolist() for column in found.change.merge] == [[first], [best]]
    graph.apply(found.change)
    assert set(graph.ids.tolist()) == {best, different, apart, pattern, episode}
    assert graph.position(first) == graph.position(best)


def test_a_memory_that_a_user_knows_by_its_key_takes_in_and_is_not_taken_in():
    graph = MemoryGraph(3)
    known = [graph.add([1, 0, 0], quality=0.1, key=key) for key in (7, 8)]
    nameless = [graph.add([1, 0, 0], quality=0.9) for _ in range(3)]
    for _ in range(2):
        graph.apply(MemoryConsolidator().consolidate(graph.snapshot()).change)
        assert set(graph.ids.tolist()) == set(known)
        assert [graph.find(7), graph.find(8)] == known
    assert all(graph.position(id) in (0, 1) for id in nameless)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), spread=st.sampled_from([0.0, 0.05, 0.1]))
def test_merging_again_merges_nothing(seed, spread):
    rng = np.random.default_rng(seed)
    graph = MemoryGraph(DIM)
    base = rng.standard_normal((5, DIM))
    for _ in range(40):
        x = base[rng.integers(5)] + spread * rng.standard_normal(DIM)
        graph.add(x, kind=NodeKind.MEMORY, quality=float(rng.uniform()), data=0, link=4)
    before = graph.snapshot()
    found = MemoryConsolidator().consolidate(before)
    graph.apply(found.change)
    assert MemoryConsolidator().consolidate(graph.snapshot()).merged == 0
    if spread <= 0.05:
        assert found.merged > 0
    value = MemoryConsolidator().values(before)
    for old, into in zip(*(column.tolist() for column in found.change.merge), strict=True):
        assert value[before.positions(np.array([into]))] >= value[before.positions(np.array([old]))]
    merged, took = (set(column.tolist()) for column in found.change.merge)
    assert not merged & took


def test_the_same_vector_again_and_again_is_one_memory():
    graph = MemoryGraph(3)
    for _ in range(50):
        graph.add([1, 2, 3], data="same", link=3)
    graph.apply(MemoryConsolidator().consolidate(graph.snapshot()).change)
    assert len(graph) == 1
    assert all(id in graph for id in range(50))


def test_merged_nodes_hand_on_their_neighbours(monkeypatch):
    monkeypatch.setattr("sona.memory.consolidate.LINES", 0)
    graph = MemoryGraph(3)
    ids = [graph.add([1, 2, 3], link=0) for _ in range(20)]
    graph.link(ids[:-1], ids[1:], EdgeKind.SIMILARITY, 1.0)  # a chain
    graph.apply(MemoryConsolidator().consolidate(graph.snapshot()).change)
    assert len(graph) == 1


# ---- edges ----


def test_dreamed_edges_fade_and_go_unless_they_are_made_again():
    graph = MemoryGraph(3)
    a, b, c = (graph.add(row, link=0, quality=1.0) for row in np.eye(3))
    graph.link(a, b, EdgeKind.CREATIVE, 0.1)
    graph.link(b, c, EdgeKind.SIMILARITY, 0.001)
    weight, cycles, consolidator = 0.1, 0, MemoryConsolidator()
    while graph.edge(a, b):
        assert graph.edge(a, b) == {EdgeKind.CREATIVE: pytest.approx(weight)}
        found = consolidator.consolidate(graph.snapshot())
        graph.apply(found.change)
        weight *= 0.8
        cycles += 1
        assert found.pruned == (weight < 0.02)
        assert cycles < 20
    assert weight < 0.02 <= weight / 0.8
    assert graph.edge(b, c) == {EdgeKind.SIMILARITY: pytest.approx(0.001)}


# ---- the deadline ----


def test_a_deadline_leaves_a_change_that_holds_and_the_next_one_goes_on(monkeypatch):
    monkeypatch.setattr("sona.memory.consolidate.CHUNK", 8)

    def filled():
        rng = np.random.default_rng(2)
        graph = MemoryGraph(DIM, max_degree=6)
        x = np.repeat(rng.standard_normal((12, DIM)), 5, axis=0) + 0.01 * rng.standard_normal((60, DIM))
        graph.add_many(x, kind=NodeKind.MEMORY, quality=rng.uniform(size=60), link=3)
        return graph

    graph = filled()
    whole = MemoryConsolidator().consolidate(graph.snapshot())
    assert whole.complete
    assert whole.merged > 0
    for looks in (0, 3):
        ticks = iter(range(1000))
        cut = MemoryConsolidator(clock=lambda ticks=ticks: next(ticks)).consolidate(graph.snapshot(), deadline=looks)
        assert not cut.complete
        assert cut.merged < whole.merged
        assert cut.strengthened + cut.decayed + cut.removed + cut.merged == 60
        copy = filled()
        copy.apply(cut.change)
        rules(copy)
        copy.apply(MemoryConsolidator().consolidate(copy.snapshot()).change)
        assert len(copy) == 60 - whole.merged


# ---- bad input ----


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 0.6},
        {"use": -0.1},
        {"use_half_life": 0},
        {"gain": 1.5},
        {"loss": math.nan},
        {"floor": 2},
        {"max_nodes": 0},
        {"merge_similarity": 0},
        {"creative_decay": 1.1},
        {"prune": -1},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(SonaValueError, match=r"expected .* got"):
        ConsolidationConfig(**options)


def test_a_threshold_out_of_range_is_refused():
    with pytest.raises(SonaValueError, match=r"threshold: expected a number in \[0, 1\], got 1.5"):
        MemoryConsolidator().consolidate(MemoryGraph(3).snapshot(), threshold=1.5)
