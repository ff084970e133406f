"""Dreams: both walks, what they propose, how they are measured, and which pass."""

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.stats import binom

from sona.errors import SonaTypeError, SonaValueError
from sona.memory import (
    Dream,
    DreamConfig,
    DreamEngine,
    DreamEvaluator,
    DreamGate,
    DreamQuality,
    EdgeKind,
    MemoryGraph,
    NodeKind,
    PhiEvaluator,
)
from sona.memory.csr import Csr
from sona.memory.quantum import distribution, neighbourhood, quantum_walks
from sona.memory.visited import Visited


def memory(nodes=40, dim=8, seed=0, link=5, **bounds):
    """Clumped vectors of every kind, linked to their neighbours; some isolated nodes."""
    rng = np.random.default_rng(seed)
    graph = MemoryGraph(dim, **bounds)
    centres = rng.standard_normal((4, dim))
    x = centres[rng.integers(4, size=nodes)] + 0.6 * rng.standard_normal((nodes, dim))
    quality = rng.uniform(size=nodes)
    for k in range(nodes):
        graph.add(x[k], kind=NodeKind(k % 3), quality=float(quality[k]), link=0 if k % 13 == 12 else link)
    return graph


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def weights(graph):
    """Total weight of every edge, by pair of ids."""
    total = Counter()
    for kind in EdgeKind:
        for u, v, w in zip(*(column.tolist() for column in graph.edges(kind)), strict=True):
            total[u, v] += w
            total[v, u] += w
    return total


# ---- the walks ----


def test_dreams_follow_edges_and_start_where_quality_and_strength_are():
    graph = memory()
    graph.update(graph.ids[::2], quality=np.zeros(len(graph.ids[::2])))
    edges = weights(graph)
    starts = set()
    for dream in DreamEngine(graph, DreamConfig(restart=0, jump=0)).generate_dreams(200):
        assert 1 <= len(dream.nodes) <= 15
        assert all(edges[a, b] > 0 for a, b in pairwise(dream.nodes))
        starts.add(dream.nodes[0])
    positive = {id for id in graph.ids[1::2].tolist() if any(edges[id, other] for other in graph.ids.tolist())}
    assert starts <= positive
    assert len(starts) > len(positive) / 2


def test_starts_are_drawn_in_proportion_to_quality():
    graph = MemoryGraph(2)
    ids = graph.add_many(np.eye(2), kind=NodeKind.MEMORY, quality=np.array([0.2, 0.6]), link=0)
    first = [dream.nodes[0] for dream in DreamEngine(graph).generate_dreams(4000)]
    assert binom.cdf(first.count(ids[0]), 4000, 0.25) == pytest.approx(0.5, abs=0.4999)


@pytest.mark.parametrize("generator", ["walk", "quantum", "mixed"])
def test_the_same_memory_and_seed_dream_the_same_and_each_batch_dreams_anew(generator):
    graph = memory()
    config = DreamConfig(generator=generator)
    engine, twin = DreamEngine(graph, config, seed=3), DreamEngine(graph.snapshot(), config, seed=3)
    first = engine.generate_dreams(20)
    assert first == twin.generate_dreams(20)
    assert first != engine.generate_dreams(20)
    assert first != DreamEngine(graph, config, seed=4).generate_dreams(20)
    expected = {"walk": {"walk": 20}, "quantum": {"quantum": 20}, "mixed": {"walk": 10, "quantum": 10}}
    assert Counter(dream.generator for dream in first) == expected[generator]


def test_temperature_restarts_and_jumps_reach_the_walker():
    graph = memory(60)
    edges = weights(graph)

    def dreams(**options):
        return DreamEngine(graph, DreamConfig(**{"restart": 0, "jump": 0} | options)).generate_dreams(200)

    def mean_weight(found):
        return np.mean([edges[pair] for dream in found for pair in pairwise(dream.nodes)])

    assert mean_weight(dreams(temperature=0.1)) > mean_weight(dreams(temperature=10))
    assert any(edges[pair] == 0 for dream in dreams(jump=0.5) for pair in pairwise(dream.nodes))
    returns = [sum(Counter(dream.nodes[1:])[dream.nodes[0]] for dream in dreams(restart=p)) for p in (0, 0.5)]
    assert returns[1] > 2 * returns[0]
    distinct = [sum(len(set(dream.nodes)) for dream in dreams(revisit=p)) for p in (1.0, 0.01)]
    assert distinct[1] > distinct[0]


# ---- the quantum walk ----


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), nodes=st.integers(1, 12), time=st.floats(0.01, 60))
def test_chances_of_the_quantum_walk_are_those_of_the_matrix_exponential(seed, nodes, time):
    rng = np.random.default_rng(seed)
    w = np.triu(rng.uniform(0.1, 2, size=(3, nodes, nodes)) * (rng.random((3, nodes, nodes)) < 0.4), 1)
    w += w.transpose(0, 2, 1)
    chance = distribution(w, np.full(3, time))
    for k in range(3):
        degree = w[k].sum(axis=1)
        scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
        laplacian = np.diag((degree > 0).astype(float)) - scale[:, None] * w[k] * scale
        expected = np.abs(expm(-1j * laplacian * time)[:, 0]) ** 2
        np.testing.assert_allclose(chance[k], expected, atol=1e-10)


def test_a_quantum_dream_measures_different_nodes_with_those_chances():
    csr = memory(30).csr()
    start, many = int(np.argmax(csr.stop - csr.start)), 4000
    paths = quantum_walks(csr, np.full(many, start), 4, np.random.default_rng(1), size=16, time=1.5)
    hood = neighbourhood(csr, start, 16)
    times = np.random.default_rng(1).uniform(0.75, 2.25, size=many)
    w = np.repeat(Visited.of(csr, hood[None]).weight, many, axis=0)
    chance = distribution(w, times)[:, 1:]
    expected = (chance / chance.sum(axis=1, keepdims=True)).mean(axis=0)
    found = np.array([np.mean(paths[:, 1] == node) for node in hood[1:]])
    assert found.sum() == 1
    assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / many)
    assert all(len(set(path)) == 4 for path in paths.tolist())


def test_a_neighbourhood_grows_ring_by_ring():
    graph = memory(60)
    csr = graph.csr()
    w = csr.matrix().toarray() > 0
    for start in range(len(csr)):
        hood = neighbourhood(csr, start, 10).tolist()
        distance = {start: 0}
        ring = [start]
        while ring:
            ring = sorted({int(v) for u in ring for v in np.flatnonzero(w[u]) if int(v) not in distance})
            distance |= dict.fromkeys(ring, max(distance.values()) + 1)
        assert hood[0] == start
        assert len(set(hood)) == len(hood) == min(10, len(distance))
        steps = [distance[node] for node in hood]
        assert steps == sorted(steps)
        assert all(node in hood for node, away in distance.items() if away < steps[-1])


# ---- proposals ----


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), reach=st.integers(1, 20), most=st.integers(0, 200), generator=st.sampled_from(["walk", "quantum"]))
def test_what_a_dream_proposes_is_near_unlinked_and_most_alike_first(seed, reach, most, generator):
    graph = memory(30, seed=seed)
    config = DreamConfig(reach=reach, proposals_per_dream=most, generator=generator, length=8, jump=0.2)
    edges = weights(graph)
    x = unit(graph.vectors.astype(np.float64))
    for dream in DreamEngine(graph, config, seed=seed).generate_dreams(5):
        near = {
            tuple(sorted((a, b), key=dream.nodes.index))
            for (i, a), (j, b) in combinations(enumerate(dream.nodes), 2)
            if a != b and j - i <= reach and not edges[a, b]
        }
        cosine = {(a, b): float(x[graph.position(a)] @ x[graph.position(b)]) for a, b in near}
        assert set(dream.proposals) <= near
        assert len(set(dream.proposals)) == len(dream.proposals) == min(most, len(near))
        taken = [cosine[pair] for pair in dream.proposals]
        assert all(a >= b - 1e-5 for a, b in pairwise(taken))
        assert all(cosine[pair] <= min(taken, default=2) + 1e-5 for pair in near - set(dream.proposals))


def test_integrated_dreams_become_weak_creative_edges_once():
    graph = memory()
    engine = DreamEngine(graph, DreamConfig(creative_weight=0.2))
    dreams = engine.generate_dreams(10)
    before = {kind: sorted(zip(*(c.tolist() for c in graph.edges(kind)), strict=True)) for kind in EdgeKind}
    votes = Counter(tuple(sorted(pair)) for dream in dreams for pair in dream.proposals)
    assert max(votes.values()) > 1
    graph.apply(engine.integrate_dreams(dreams))
    assert sorted(zip(*(c.tolist() for c in graph.edges(EdgeKind.SIMILARITY)), strict=True)) == before[EdgeKind.SIMILARITY]
    made = {tuple(sorted((u, v))): w for u, v, w in zip(*(c.tolist() for c in graph.edges(EdgeKind.CREATIVE)), strict=True)}
    assert set(made) == set(votes)
    for pair, count in votes.items():
        assert made[pair] == pytest.approx(1 - 0.8**count)
    again = engine.integrate_dreams(dreams)
    assert not again
    graph.apply(again)
    assert {tuple(sorted((u, v))): w for u, v, w in zip(*(c.tolist() for c in graph.edges(EdgeKind.CREATIVE)), strict=True)} == made


def test_a_single_dream_integrates_as_a_batch_of_one_and_without_nodes_that_are_gone():
    graph = memory()
    engine = DreamEngine(graph)
    dream = max(engine.generate_dreams(), key=lambda dream: len(dream.proposals))
    (gone, _), *_ = dream.proposals
    graph.remove([gone])
    graph.apply(engine.integrate_dream(dream))
    u, v, _ = graph.edges(EdgeKind.CREATIVE)
    expected = {tuple(sorted(pair)) for pair in dream.proposals if gone not in pair}
    assert expected
    assert {tuple(sorted(pair)) for pair in zip(u.tolist(), v.tolist(), strict=True)} == expected


# ---- small and empty memories ----


@pytest.mark.parametrize("generator", ["walk", "quantum", "mixed"])
def test_memories_of_none_one_and_unlinked_nodes(generator):
    graph = MemoryGraph(3)
    engine = DreamEngine(graph, DreamConfig(generator=generator, jump=0))
    assert engine.generate_dreams() == []
    with pytest.raises(SonaValueError, match="expected at least one node to dream of"):
        engine.generate_dream()
    assert DreamEvaluator(graph).evaluate([]) == []
    first = graph.add([1, 0, 0], link=0)
    assert engine.generate_dream().nodes == (first,)
    second = graph.add([0, 1, 0], link=0)
    dreams = engine.generate_dreams(30)
    assert {dream.nodes for dream in dreams} == {(first,), (second,)}
    assert all(dream.proposals == () for dream in dreams)
    (measured,) = DreamEvaluator(graph).evaluate(dreams[:1])
    utility = float(0.5 * graph.strength[0])
    assert measured.quality == DreamQuality(0, 0, utility, 0, 0, 0, pytest.approx(0.2 * utility))
    assert len(engine.integrate_dreams(dreams).link[0]) == 0


def test_a_leap_to_where_it_is_makes_no_step():
    graph = MemoryGraph(3)
    graph.add_many(np.eye(3), kind=NodeKind.MEMORY, quality=np.full(3, 0.5), link=0)
    dreams = DreamEngine(graph, DreamConfig(jump=0.9)).generate_dreams()
    assert all(a != b for dream in dreams for a, b in pairwise(dream.nodes))
    assert 2 < np.mean([len(dream.nodes) for dream in dreams]) < 15


def test_leaps_join_what_no_edge_does():
    graph = MemoryGraph(3)
    ids = graph.add_many(np.eye(3), kind=NodeKind.MEMORY, quality=np.full(3, 0.5), link=0)
    dream = max(DreamEngine(graph, DreamConfig(jump=0.5)).generate_dreams(), key=lambda dream: len(dream.proposals))
    assert {frozenset(pair) for pair in dream.proposals} == {frozenset(pair) for pair in combinations(ids.tolist(), 2)}


# ---- evaluation ----


def phi_by_enumeration(w, alpha=0.85):
    """min over bipartitions of I(V) - I(A) - I(B), straight from the formula."""
    n = len(w)
    degree = w.sum(axis=1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    s = scale[:, None] * w * scale

    def bits(part):
        block = s[np.ix_(part, part)]
        return -0.5 * np.linalg.slogdet(np.eye(len(part)) - alpha**2 * block @ block)[1] / math.log(2)

    everything = list(range(n))
    cuts = [
        bits(everything) - bits(part) - bits([k for k in everything if k not in part])
        for size in range(1, n // 2 + 1)
        for part in map(list, combinations(everything, size))
    ]
    return min(cuts, default=0.0)


def measure(graph, dream, alpha=0.85):
    """The quality of one dream in plain loops."""
    edges, x = weights(graph), unit(graph.vectors.astype(np.float64))
    at = {id: graph.position(id) for id in dream.nodes}
    nodes = list(dict.fromkeys(dream.nodes))

    def cosine(a, b):
        return float(x[at[a]] @ x[at[b]])

    pairs = list(combinations(nodes, 2))
    novelty = [0.0 if edges[pair] else 1 - max(cosine(*pair), 0) for pair in dream.proposals]
    steps = [cosine(a, b) for a, b in pairwise(dream.nodes)]
    found = {
        "novelty": float(np.mean(novelty)) if novelty else 0.0,
        "coherence": max(float(np.mean(steps)), 0) if steps else 0.0,
        "utility": float(np.mean([graph.quality[at[a]] * graph.strength[at[a]] for a in nodes])),
        "diversity": min(max(1 - float(np.mean([cosine(*pair) for pair in pairs])), 0), 1) if pairs else 0.0,
        "density": float(np.mean([edges[pair] > 0 for pair in pairs])) if pairs else 0.0,
        "phi": phi_by_enumeration(np.array([[edges[a, b] for b in nodes] for a in nodes]), alpha),
    }
    return found | {"score": 0.4 * found["novelty"] + 0.3 * found["coherence"] + 0.2 * found["utility"] + 0.1 * found["diversity"]}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), generator=st.sampled_from(["walk", "quantum"]))
def test_the_batch_is_measured_as_slow_loops_measure_it(seed, generator):
    graph = memory(30, seed=seed)
    dreams = DreamEngine(graph, DreamConfig(length=7, generator=generator, jump=0.1), seed=seed).generate_dreams(6)
    made = DreamEngine(graph, DreamConfig(creative_weight=0.3), seed=seed)
    graph.apply(made.integrate_dreams(dreams[:2]))  # some of what is proposed has an edge by now
    for dream, measured in zip(dreams, DreamEvaluator(graph).evaluate(dreams), strict=True):
        assert (measured.nodes, measured.proposals, measured.seed) == (dream.nodes, dream.proposals, dream.seed)
        expected = measure(graph, dream)
        for name, value in expected.items():
            assert getattr(measured.quality, name) == pytest.approx(value, abs=1e-5), name
        assert PhiEvaluator(graph).evaluate_dream(dream) == pytest.approx(expected["phi"], abs=1e-5)
    other = PhiEvaluator(graph, alpha=0.5).evaluate_dream(dreams[0])
    assert other == pytest.approx(measure(graph, dreams[0], 0.5)["phi"], abs=1e-5)


def test_measures_stay_in_their_range():
    graph = memory(80, seed=5)
    for dream in DreamEvaluator(graph).evaluate(DreamEngine(graph, DreamConfig(generator="mixed", jump=0.2)).generate_dreams(200)):
        quality = dream.quality
        assert all(
            0 <= value <= 1
            for value in (quality.novelty, quality.coherence, quality.utility, quality.diversity, quality.density, quality.score)
        )
        assert quality.phi >= 0


def test_dreams_of_something_else_are_refused():
    graph = memory()
    a, b = graph.ids[:2].tolist()
    stranger = int(graph.ids.max()) + 1
    for wrong in (
        Dream((), (), "walk", 0),
        Dream((a, stranger), (), "walk", 0),
        Dream((a,), ((a, b),), "walk", 0),
    ):
        with pytest.raises(SonaValueError, match="expected"):
            DreamEvaluator(graph).evaluate([wrong])


# ---- gates ----


def dreams_of(**measures):
    """One dream for each value of a measure."""
    ((name, values),) = measures.items()
    zero = dict.fromkeys(("novelty", "coherence", "utility", "diversity", "density", "phi", "score"), 0.0)
    return [Dream((k,), (), "walk", 0, DreamQuality(**zero | {name: value})) for k, value in enumerate(values)]


@pytest.mark.parametrize("by", ["density", "phi", "score"])
def test_a_quantile_lets_the_better_ones_pass_in_their_order(by):
    values = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2]
    assert [dream.nodes[0] for dream in DreamGate(by=by).select(dreams_of(**{by: values}))] == [0, 2, 3, 4]
    assert [dream.nodes[0] for dream in DreamGate(by=by, quantile=1).select(dreams_of(**{by: values}))] == [2]
    assert len(DreamGate(by=by, quantile=0).select(dreams_of(**{by: values}))) == 6


def test_the_floor_on_phi_comes_on_top_and_is_off_by_default():
    dreams = dreams_of(phi=[0.1, 0.3, 0.5, 0.2])
    assert DreamGate().select(dreams) == dreams
    assert DreamGate(phi_threshold=0.3).select(dreams) == dreams[1:3]
    assert DreamGate(by=None, phi_threshold=0.3).select(dreams) == dreams[1:3]
    assert DreamGate(by=None).select(dreams) == dreams
    assert DreamGate(phi_threshold=0.3).select([]) == []


def test_a_gate_wants_evaluated_dreams():
    with pytest.raises(SonaTypeError, match="got one without"):
        DreamGate().select([Dream((1,), (), "walk", 0)])


# ---- bad input ----


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (DreamConfig, {"dreams_per_cycle": -1}),
        (DreamConfig, {"dreams_per_cycle": 2.0}),
        (DreamConfig, {"length": 1}),
        (DreamConfig, {"length": 65}),
        (DreamConfig, {"generator": "sleep"}),
        (DreamConfig, {"temperature": 0}),
        (DreamConfig, {"temperature": math.nan}),
        (DreamConfig, {"revisit": 1.5}),
        (DreamConfig, {"restart": -0.1}),
        (DreamConfig, {"restart": 0.6, "jump": 0.5}),
        (DreamConfig, {"reach": 0}),
        (DreamConfig, {"creative_weight": 0}),
        (DreamConfig, {"proposals_per_dream": -1}),
        (DreamConfig, {"quantum_nodes": 65}),
        (DreamConfig, {"quantum_time": math.inf}),
        (DreamGate, {"by": "novelty"}),
        (DreamGate, {"quantile": 1.1}),
        (DreamGate, {"phi_threshold": math.nan}),
    ],
)
def test_settings_out_of_range_are_refused(make, options):
    with pytest.raises(SonaValueError, match=r"expected .* got"):
        make(**options)


def test_arguments_out_of_range_are_refused():
    graph = memory()
    engine = DreamEngine(graph)
    for wrong in (lambda: DreamEngine(graph, seed=-1), lambda: engine.generate_dreams(-1), lambda: DreamEvaluator(graph, alpha=1)):
        with pytest.raises(SonaValueError, match=r"expected .* got"):
            wrong()


def test_a_csr_alone_is_enough_for_the_quantum_walk():
    csr = Csr.of(np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 0]]))
    paths = quantum_walks(csr, np.array([0, 2]), 3, np.random.default_rng(0))
    assert paths.tolist() == [[0, 1, -1], [2, -1, -1]]
