"""The memory graph holds what a slow model of it holds, whatever was done; readers keep what they saw; bad input changes nothing."""

import json
import threading
import tracemalloc
from dataclasses import copy, dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError
from sona.memory import Csr, EdgeKind, EdgeWeights, GraphChange, GraphSnapshot, MemoryGraph, NodeKind, walks
from sona.memory.nearest import nearest

D, MOST, DEGREE = 4, 14, 4
f32 = np.float32
SIMILARITY, COACTIVATION, CREATIVE = EdgeKind
COLUMNS = ("ids", "vectors", "kinds", "quality", "strength", "uses", "last_used", "born", "keys")


def vector(number: int) -> Any:
    """Unit vectors, all different."""
    x = np.random.default_rng(number).normal(size=D)
    return (x / np.linalg.norm(x)).astype(f32)


@dataclass
class Node:
    vector: Any
    kind: NodeKind
    quality: Any
    strength: Any = field(default_factory=lambda: f32(0.5))
    uses: int = 0
    last_used: int = -1
    born: int = 0
    key: int = -1
    data: Any = None
    touched: int = 0


@dataclass
class Model:
    """A memory graph of dicts: nodes by id, weights by the two ids and a kind."""

    nodes: dict[int, Node] = field(default_factory=dict)
    edges: dict[tuple[int, int, EdgeKind], Any] = field(default_factory=dict)
    merged: dict[int, int] = field(default_factory=dict)

    def weight(self, u: int, v: int, kind: EdgeKind) -> Any:
        return self.edges.get((min(u, v), max(u, v), kind), f32(0))

    def put(self, edges: dict[tuple[int, int, EdgeKind], Any], positions: dict[int, int]) -> None:
        """Set weights, 0 for none; then each node keeps the heaviest."""
        for (u, v, kind), weight in edges.items():
            self.edges[min(u, v), max(u, v), kind] = f32(weight)
        self.edges = {edge: weight for edge, weight in self.edges.items() if weight > 0}
        dropped = set()
        for node in self.nodes:
            own = [edge for edge in self.edges if node in edge[:2]]
            own.sort(key=lambda edge: (-self.edges[edge], positions[edge[0] + edge[1] - node], edge[2]))
            alike = [edge for edge in own if edge[2] == SIMILARITY][DEGREE // 2 :]
            dropped |= {*alike, *[edge for edge in own if edge not in alike][DEGREE:]}
        for edge in dropped:
            del self.edges[edge]

    def near(self, id: int, k: int) -> dict[tuple[int, int, EdgeKind], Any]:
        cosines = {other: float(self.nodes[id].vector @ node.vector) for other, node in self.nodes.items() if other != id}
        best = sorted(cosines, key=lambda other: -cosines[other])[:k]
        return {(id, other, SIMILARITY): min(cosines[other], 1) for other in best if cosines[other] > 0}

    def remove(self, ids: list[int]) -> None:
        for id in ids:
            del self.nodes[id]
        self.edges = {edge: weight for edge, weight in self.edges.items() if not set(edge[:2]) & set(ids)}
        self.merged = {old: new for old, new in self.merged.items() if new not in ids}


KINDS = st.sampled_from(list(NodeKind))
EDGE_KINDS = st.sampled_from(list(EdgeKind))
UNIT = st.sampled_from([0.0, 0.25, 0.5, 1.0])
WEIGHT = st.sampled_from([0.01, 0.2, 0.4, 0.41, 0.7, 1.0])


class AgainstDicts(RuleBasedStateMachine):
    """The graph beside the model, compared after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.model = MemoryGraph(D, max_nodes=MOST, max_degree=DEGREE), Model()
        self.next, self.keys = 0, 0
        self.kept: list[tuple[GraphSnapshot, dict[str, Any], list[Any]]] = []

    @property
    def positions(self) -> dict[int, int]:
        return {id: i for i, id in enumerate(self.graph.ids.tolist())}

    def some(self, data: st.DataObject, most: int = 6) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(self.model.nodes)), unique=True, max_size=most))

    def known(self) -> bool:
        return len(self.model.nodes) >= 2

    @rule(kinds=st.lists(KINDS, min_size=1, max_size=6), quality=UNIT, keyed=st.booleans(), link=st.integers(0, 3))
    def add(self, kinds: list[NodeKind], quality: float, keyed: bool, link: int) -> None:
        count = len(kinds)
        many = len(self.model.nodes) + count - MOST
        free = [id for id, n in self.model.nodes.items() if n.kind != NodeKind.PATTERN]
        ids, vectors = list(range(self.next, self.next + count)), [vector(self.next + i) for i in range(count)]
        touched = self.graph.version + 1
        keys = [self.keys + i for i in range(count)] if keyed else None
        data = [{"n": id // 3} for id in ids]
        if many > len(free):
            with pytest.raises(SonaValueError, match="max_nodes"):
                self.graph.add_many(vectors, kind=kinds, quality=quality, keys=keys, data=data, link=link)
            return
        since = max(self.graph.cycle - 1, 0)
        worth = {id: (n.kind == NodeKind.MEMORY, n.last_used >= since, n.strength * n.quality, id) for id, n in self.model.nodes.items()}
        self.model.remove(sorted(free, key=worth.__getitem__)[: max(many, 0)])
        if count == 1:
            found = [self.graph.add(vectors[0], kind=kinds[0], quality=quality, key=keys and keys[0], data=data[0], link=link)]
        else:
            found = self.graph.add_many(vectors, kind=kinds, quality=quality, keys=keys, data=data, link=link).tolist()
        assert found == ids
        for i, id in enumerate(ids):
            key = keys[i] if keys else -1
            self.model.nodes[id] = Node(vectors[i], kinds[i], f32(quality), born=self.graph.cycle, key=key, data=data[i], touched=touched)
        self.next, self.keys = self.next + count, self.keys + count
        if link:
            self.model.put({edge: w for id in ids for edge, w in self.model.near(id, link).items()}, self.positions)

    @precondition(known)
    @rule(data=st.data(), kind=EDGE_KINDS, weights=st.lists(WEIGHT, min_size=1, max_size=6))
    def link(self, data: st.DataObject, kind: EdgeKind, weights: list[float]) -> None:
        pairs = [data.draw(st.permutations(sorted(self.model.nodes)))[:2] for _ in weights]
        u, v = (list(column) for column in zip(*pairs, strict=True))
        self.graph.link(u, v, kind, weights)
        self.model.put({(min(p), max(p), kind): w for p, w in zip(pairs, weights, strict=True)}, self.positions)

    @precondition(known)
    @rule(data=st.data(), kind=EDGE_KINDS)
    def unlink(self, data: st.DataObject, kind: EdgeKind) -> None:
        u, v = data.draw(st.permutations(sorted(self.model.nodes)))[:2]
        self.graph.unlink(u, v, kind)
        self.model.put({(u, v, kind): 0}, self.positions)

    @precondition(known)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ids = self.some(data)
        assert self.graph.remove([*ids, 10**6]) == len(ids)
        self.model.remove(ids)

    @precondition(known)
    @rule(data=st.data(), number=st.integers(1000, 2000), quality=UNIT)
    def update(self, data: st.DataObject, number: int, quality: float) -> None:
        (id,) = data.draw(st.permutations(sorted(self.model.nodes)))[:1]
        node = self.model.nodes[id]
        moved = np.abs(node.vector - vector(number)).max() > 1e-6
        node.vector, node.quality, node.touched = vector(number), f32(quality), self.graph.version + 1
        self.graph.update(id, vectors=vector(number), quality=quality, link=2)
        if not moved:
            return
        self.model.put({edge: 0 for edge in self.model.edges if id in edge[:2] and edge[2] == SIMILARITY}, self.positions)
        self.model.put(self.model.near(id, 2), self.positions)

    @precondition(known)
    @rule(data=st.data())
    def used(self, data: st.DataObject) -> None:
        used, retrieved = self.some(data, 3), self.some(data, 4)
        self.graph.used(used, retrieved)
        unused = [id for id in retrieved if id not in used]
        for id in used:
            node = self.model.nodes[id]
            node.strength += f32(0.05) * (1 - node.strength)
            node.uses, node.last_used, node.touched = node.uses + 1, self.graph.cycle, self.graph.version
        for id in unused:
            node = self.model.nodes[id]
            node.strength = max((1 - f32(0.02)) * node.strength, f32(0.01))
        positions = self.positions
        grown = {}
        for u in used:
            for v in used:
                if u < v:
                    weight = self.model.weight(u, v, COACTIVATION)
                    grown[u, v, COACTIVATION] = weight + f32(0.05) * (1 - weight)
        self.model.put(grown, positions)
        self.model.put(
            {
                (u, v, COACTIVATION): (1 - f32(0.02)) * self.model.weight(u, v, COACTIVATION)
                for u in used
                for v in unused
                if self.model.weight(u, v, COACTIVATION)
            },
            positions,
        )

    @rule()
    def count_a_cycle(self) -> None:
        self.graph.cycle += 1

    @precondition(known)
    @rule(data=st.data(), age=st.integers(0, 3), decay=st.sampled_from([None, 1.0, 0.5, 1e-3]), factor=st.sampled_from([0.001, 0.9, 1.5]))
    def apply(self, data: st.DataObject, age: int, decay: float | None, factor: float) -> None:
        """A change of everything at once; what was touched since is neither removed nor merged."""
        model, based_on = self.model, max(self.graph.version - age, 0)
        link, unlink = (data.draw(st.permutations(sorted(model.nodes)))[:2] for _ in range(2))
        strong, removed, pair = self.some(data, 3), self.some(data, 3), data.draw(st.permutations(sorted(model.nodes)))[:2]
        one, other = (model.nodes[id] for id in pair)
        mergeable = one.kind == other.kind and one.data == other.data
        change = GraphChange(
            based_on=based_on,
            unlink=(np.array(unlink[:1]), np.array(unlink[1:]), np.array([CREATIVE], np.uint8)),
            decay={} if decay is None else {COACTIVATION: decay},
            link=(np.array(link[:1]), np.array(link[1:]), np.array([CREATIVE], np.uint8), np.array([0.3], f32)),
            strengthen=(np.array([*strong, 10**6]), np.full(len(strong) + 1, factor, f32)),
            merge=(np.array(pair[:1]), np.array(pair[1:])) if mergeable else (np.empty(0, np.int64), np.empty(0, np.int64)),
            remove=np.array([*removed, 10**6]),
        )
        counts = self.graph.apply(change)
        positions = {id: i for i, id in enumerate(self.before)}
        merging = mergeable and one.touched <= based_on
        gone = {id for id in removed if model.nodes[id].touched <= based_on} - (set(pair) if merging else set())
        expected = {"linked": 1, "unlinked": 1, "strengthened": len(strong), "merged": int(merging), "removed": len(gone)}
        assert {name: counts[name] for name in expected} == expected
        model.put({(*unlink, CREATIVE): 0}, positions)
        if decay is not None:
            for edge in [edge for edge in model.edges if edge[2] == COACTIVATION]:
                model.edges[edge] *= f32(decay)
            model.edges = {edge: weight for edge, weight in model.edges.items() if weight >= 1e-4}
        model.put({(*link, CREATIVE): 0.3}, positions)
        for id in strong:
            model.nodes[id].strength = np.clip(model.nodes[id].strength * f32(factor), f32(0.01), f32(1))
        if merging:
            self.merge(*pair, positions)
        model.remove(sorted(gone))

    def merge(self, old: int, into: int, positions: dict[int, int]) -> None:
        model = self.model
        over = {}
        for (u, v, kind), weight in model.edges.items():
            if old in (u, v) and into not in (u, v):
                node = u + v - old
                over[min(node, into), max(node, into), kind] = max(weight, model.weight(node, into, kind))
        model.put(over, positions)
        one, other = model.nodes[old], model.nodes[into]
        other.uses += one.uses
        for name in ("strength", "quality", "last_used", "touched"):
            setattr(other, name, max(getattr(one, name), getattr(other, name)))
        other.born = min(one.born, other.born)
        model.merged = {id: into if to == old else to for id, to in model.merged.items()} | {old: into}
        model.remove([old])

    @rule()
    def keep_a_snapshot(self) -> None:
        snapshot = self.graph.snapshot()
        self.kept = [*self.kept[-3:], (snapshot, *self.seen(snapshot))]

    def seen(self, snapshot: GraphSnapshot) -> tuple[dict[str, Any], list[Any]]:
        return {name: getattr(snapshot, name).copy() for name in COLUMNS}, [
            column.copy() for kind in EdgeKind for column in snapshot.edges(kind)
        ]

    @rule()
    def go_on_from_what_was_written(self) -> None:
        arrays = self.graph.state()
        old, self.graph = self.graph, MemoryGraph.from_state(arrays, max_nodes=MOST, max_degree=DEGREE)
        starts = np.arange(len(old))
        np.testing.assert_array_equal(walks(old.csr(), starts, 6, seed=1), walks(self.graph.csr(), starts, 6, seed=1))
        for node in self.model.nodes.values():
            node.touched = 0

    @rule()
    def go_on_from_networkx(self) -> None:
        graph = MemoryGraph.from_networkx(self.graph.to_networkx(), D, max_nodes=MOST, max_degree=DEGREE)
        for name in COLUMNS:
            np.testing.assert_allclose(getattr(graph, name), getattr(self.graph, name), rtol=1e-5, atol=1e-6)
        for kind in EdgeKind:
            for own, other in zip(graph.edges(kind), self.graph.edges(kind), strict=True):
                np.testing.assert_array_equal(own, other)

    @invariant()
    def nodes_are_those_of_the_model(self) -> None:
        graph, model = self.graph, self.model
        self.before = graph.ids.tolist()
        assert len(graph) == len(model.nodes)
        assert sorted(self.before) == sorted(model.nodes)
        for i, id in enumerate(self.before):
            node = model.nodes[id]
            assert graph.position(id) == i
            assert id in graph
            np.testing.assert_allclose(graph.vectors[i], node.vector, rtol=1e-6)
            assert graph.data(id) == node.data
            found = (graph.kinds[i], graph.uses[i], graph.last_used[i], graph.born[i], graph.keys[i])
            assert found == (node.kind, node.uses, node.last_used, node.born, node.key)
            assert (graph.quality[i], graph.strength[i]) == (node.quality, node.strength)
            assert node.key < 0 or graph.find(node.key, node.kind) == id
        assert {old: graph.resolve(old) for old in model.merged} == model.merged
        assert graph.resolve(10**6) is None
        assert 10**6 not in graph

    @invariant()
    def edges_are_those_of_the_model(self) -> None:
        found = {}
        for kind in EdgeKind:
            for u, v, weight in zip(*(column.tolist() for column in self.graph.edges(kind)), strict=True):
                found[min(u, v), max(u, v), kind] = weight
                assert self.graph.edge(v, u)[kind] == weight
        assert found == pytest.approx(self.model.edges, rel=1e-5, abs=1e-6)

    @invariant()
    def the_csr_is_that_of_a_rebuild(self) -> None:
        csr, n = self.graph.csr(), len(self.model.nodes)
        dense, positions = np.zeros((n, n)), self.positions
        for (u, v, _), weight in self.model.edges.items():
            dense[positions[u], positions[v]] += weight
            dense[positions[v], positions[u]] += weight
        np.testing.assert_allclose(csr.matrix().toarray(), dense, rtol=1e-5, atol=1e-6)
        rebuilt = Csr.of(csr.matrix())
        np.testing.assert_allclose(rebuilt.matrix().toarray(), dense, rtol=1e-5, atol=1e-6)
        for row in range(n):
            own = slice(csr.start[row], csr.stop[row])
            assert (np.diff(csr.column[own]) >= 0).all()
            np.testing.assert_allclose(csr.cumulative[own], np.cumsum(csr.weight[own], dtype=np.float64), rtol=1e-6)
        assert self.graph.csr() is csr
        np.testing.assert_array_equal(self.graph.degree, csr.stop - csr.start)

    @invariant()
    def snapshots_stay_as_they_were(self) -> None:
        for snapshot, columns, edges in self.kept:
            now, ends = self.seen(snapshot)
            for name in COLUMNS:
                np.testing.assert_array_equal(now[name], columns[name])
            for own, other in zip(ends, edges, strict=True):
                np.testing.assert_array_equal(own, other)
            for i, id in enumerate(snapshot.ids.tolist()):
                assert snapshot.position(id) == i


TestAgainstDicts = AgainstDicts.TestCase
TestAgainstDicts.settings = settings(max_examples=40, stateful_step_count=30)


def filled(count: int = 12, **options: Any) -> MemoryGraph:
    """A graph with all kinds of nodes, edges, data, keys and a merge."""
    graph = MemoryGraph(D, **options)
    kinds = [NodeKind(i % 3) for i in range(count)]
    graph.add_many([vector(i) for i in range(count)], kind=kinds, keys=range(count), data=[None, "ä", {"a": [1]}] * (count // 3), link=3)
    graph.add(vector(99), data="ä")
    graph.link([0, 1, 2], [3, 4, 5], [COACTIVATION, CREATIVE, CREATIVE], [0.3, 0.1, 1.0])
    graph.used([0, 1, 2], retrieved=[3])
    graph.apply(GraphChange(based_on=graph.version, merge=(np.array([count]), np.array([4]))))
    graph.remove([5])
    graph.cycle = 3
    return graph


# ---- finding ----


def test_recall_ranks_by_cosine_and_counts_as_use() -> None:
    graph = filled()
    query = vector(7) * 5
    found = graph.recall(query, 4)
    cosines = graph.vectors @ vector(7)
    assert [node.id for node in found] == graph.ids[np.argsort(-cosines)[:4]].tolist()
    np.testing.assert_allclose([node.similarity for node in found], np.sort(cosines)[::-1][:4], rtol=1e-5)
    assert (found[0].id, found[0].kind, found[0].data) == (7, NodeKind.MEMORY, "ä")
    places = graph.positions([node.id for node in found])
    assert (graph.last_used[places] == 3).all()
    uses, version = graph.uses, graph.version
    graph.recall(query, 4, mark=False)
    np.testing.assert_array_equal(graph.uses, uses)
    assert graph.version == version
    assert len(graph.recall(query, 100)) == len(graph)
    assert graph.recall(query, 0) == MemoryGraph(D).recall(query) == []


def test_hops_bring_up_what_is_joined_to_what_fits() -> None:
    graph = MemoryGraph(D)
    ids = graph.add_many(np.eye(D), link=0)
    graph.link(ids[0], ids[1], COACTIVATION, 1.0)
    (first, second, *rest) = graph.recall(np.eye(D)[0], 4, hops=2)
    assert (first.id, second.id) == (ids[0], ids[1])
    assert second.similarity == 0
    assert second.score > 0 == rest[0].score
    reached = graph.propagate(np.eye(D)[0], hops=1, alpha=0.5)
    np.testing.assert_allclose(reached, [0.5, 0.5, 0, 0], atol=1e-6)
    assert MemoryGraph(D).propagate(np.eye(D)[0]).shape == (0,)


@pytest.mark.parametrize("block", [4, 16, 1024])
def test_nearest_rows_are_those_of_a_sort_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("sona.memory.nearest._BLOCK", block)
    x = np.random.default_rng(1).normal(size=(70, 5)).astype(f32)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    for rows in (None, np.arange(0, 70, 3)):
        row, other, value = nearest(x, 4, rows)
        for i in range(70) if rows is None else rows.tolist():
            best = np.argsort(-similarity[i])[:4]
            best = best[similarity[i, best] > 0]
            assert other[row == i].tolist() == best.tolist()
            np.testing.assert_allclose(value[row == i], np.minimum(similarity[i, best], 1), rtol=1e-5)


def test_connecting_all_is_connecting_each() -> None:
    x = np.random.default_rng(2).normal(size=(1500, D))
    together, apart = MemoryGraph(D), MemoryGraph(D)
    together.add_many(x, link=0)
    together.connect(k=5)
    ids = apart.add_many(x, link=0)
    apart.connect(ids[:1499], 5)
    apart.connect(ids[-1], 5)
    assert (together.degree[:-1] > 0).mean() > 0.99
    difference = together.csr().matrix() != apart.csr().matrix()
    assert difference.nnz <= 0.02 * together.csr().matrix().nnz  # hubs may keep others of their edges when these come one after the other


@pytest.mark.parametrize("meanwhile", ["remove", "move", "merge"])
@pytest.mark.parametrize("all_nodes", [True, False])
def test_what_happens_while_similarities_are_computed_counts(monkeypatch: pytest.MonkeyPatch, meanwhile: str, all_nodes: bool) -> None:
    graph = MemoryGraph(D)
    ids = graph.add_many([vector(i) for i in range(20)], link=0)
    calls = []

    def interrupted(vectors: Any, k: int, rows: Any = None) -> Any:
        found = nearest(vectors, k, rows)
        if not calls:
            calls.append(1)
            if meanwhile == "remove":
                graph.remove(ids[3:6])
            elif meanwhile == "move":
                graph.update(ids[3], vectors=vector(77), link=0)
            else:
                graph.apply(GraphChange(based_on=graph.version, merge=(ids[3:4], ids[4:5])))
        return found

    monkeypatch.setattr("sona.memory.graph.nearest", interrupted)
    monkeypatch.setattr("sona.memory.graph._SHORT", 3)
    graph.connect(None if all_nodes else ids[2:12], 3)
    u, v, weight = graph.edges(SIMILARITY)
    assert len(u) > 10
    cosine = np.einsum("ij,ij->i", graph.vectors[graph.positions(u)], graph.vectors[graph.positions(v)])
    np.testing.assert_allclose(weight, cosine, rtol=1e-5)


# ---- bounds ----


def test_a_touch_is_a_use_and_nothing_else() -> None:
    graph = MemoryGraph(D)
    ids = [graph.add(vector(number), link=0) for number in range(3)]
    graph.cycle = 4
    strength = graph.strength.copy()
    graph.touch([ids[0], ids[2], ids[0], 99])
    assert graph.uses.tolist() == [2, 0, 1]
    assert graph.last_used.tolist() == [4, -1, 4]
    assert np.array_equal(graph.strength, strength)
    assert len(graph.edges()[0]) == 0


def test_patterns_are_never_pushed_out_and_what_was_used_last() -> None:
    graph = MemoryGraph(D, max_nodes=4)
    pattern, used = graph.add(vector(0), kind=NodeKind.PATTERN, quality=0.0), graph.add(vector(1), quality=0.0)
    graph.used([used])
    good, bad = graph.add(vector(2), quality=0.9), graph.add(vector(3), quality=0.1)
    episode = graph.add(vector(4), kind=NodeKind.EPISODE, quality=1.0)
    assert graph.ids.tolist() == [pattern, used, good, episode]
    assert bad not in graph
    graph.add_many([vector(5), vector(6)], quality=0.1)
    assert sorted(graph.ids.tolist()) == [pattern, used, 5, 6]
    with pytest.raises(SonaValueError, match="max_nodes: expected room for 4 more among 4"):
        graph.add_many([vector(i) for i in range(4)])
    assert sorted(graph.ids.tolist()) == [pattern, used, 5, 6]
    graph.add_many([vector(i) for i in range(3)])
    assert sorted(graph.ids.tolist()) == [pattern, 7, 8, 9]


def test_a_graph_of_less_room_gives_up_what_it_is_worth_least() -> None:
    graph = MemoryGraph(D, max_nodes=4)
    pattern, good = graph.add(vector(0), kind=NodeKind.PATTERN, quality=0.0), graph.add(vector(1), quality=0.9)
    graph.add(vector(2), quality=0.1)
    graph.add(vector(3), kind=NodeKind.EPISODE)
    version = graph.version
    graph.shrink(2)
    assert sorted(graph.ids.tolist()) == [pattern, good]
    assert graph.version > version
    for wrong, error in ((0, SonaValueError), (1.5, SonaTypeError)):
        with pytest.raises(error, match="max_nodes"):
            graph.shrink(wrong)
    other = graph.add(vector(4), kind=NodeKind.PATTERN)
    with pytest.raises(SonaValueError, match="max_nodes"):
        graph.shrink(1)
    assert graph.max_nodes == 2
    assert sorted(graph.ids.tolist()) == [pattern, other]
    graph.shrink(9)
    graph.add(vector(5))
    assert len(graph) == 3


def test_what_others_push_out_before_it_is_joined_was_added_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = MemoryGraph(D, max_nodes=3)
    connect, others = MemoryGraph._connect, [vector(7), vector(8), vector(9)]

    def late(self: MemoryGraph, *arguments: Any, **options: Any) -> None:
        while others:
            self.add(others.pop(), link=0, quality=1.0)
        connect(self, *arguments, **options)

    monkeypatch.setattr(MemoryGraph, "_connect", late)
    assert graph.add(vector(0), quality=0.1) == 0
    assert sorted(graph.ids.tolist()) == [1, 2, 3]


def test_fifty_thousand_nodes_with_ten_edges_each_take_less_than_thirty_megabytes() -> None:
    """Beside their vectors; ids, keys and all are in it, and a reader who holds an older graph."""
    n, rng = 50_000, np.random.default_rng(0)
    u, v = rng.integers(0, n, (2, 5 * n))
    other = u != v
    tracemalloc.start()
    try:
        graph = MemoryGraph(1)
        graph.add_many(np.ones((n, 1)), link=0)
        graph.link(u[other], v[other], SIMILARITY, 0.5)
        for _ in range(3):
            held = graph.csr()
            graph.link(u[:1000], (u[:1000] + 1) % n, COACTIVATION, 0.1)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken - graph.vectors.nbytes < 30e6
    assert 10e6 < graph.nbytes < taken
    assert len(held) == n


def test_edges_beyond_the_degree_go_lightest_first_and_leave_room_for_what_is_learned() -> None:
    graph = MemoryGraph(D, max_degree=6)
    hub, *rest = graph.add_many([vector(i) for i in range(12)], link=0).tolist()
    graph.link([hub] * 11, rest, SIMILARITY, np.linspace(0.1, 0.9, 11))
    assert graph.degree[0] == 3
    graph.link([hub] * 11, rest, COACTIVATION, np.linspace(0.01, 0.02, 11))
    assert graph.degree[0] == 6
    assert sorted(graph.edge(hub, rest[-1])) == [SIMILARITY, COACTIVATION]
    assert graph.edge(hub, rest[0]) == {}


# ---- use ----


def test_what_is_used_together_grows_together_and_stays_bounded() -> None:
    graph = filled()
    for _ in range(500):
        graph.used([0, 1])
    assert graph.edge(0, 1)[COACTIVATION] == pytest.approx(1)
    assert graph.strength.max() <= 1
    for _ in range(500):
        graph.used([0], retrieved=[0, 1])
    assert COACTIVATION not in graph.edge(0, 1)
    assert graph.strength[graph.position(1)] == f32(0.01)


def test_edge_weights_bring_to_the_graph_what_their_signals_said() -> None:
    graph, edges = filled(), EdgeWeights()
    graph.link(0, 3, COACTIVATION, 0.4)
    for _ in range(3):
        edges.update_from_signal([0, 3, 6, 7, 8, 1], quality=0.5, scale=0.1)  # the sixth is not taken
    assert len(edges) == 10
    assert edges.gain(3, 0) == pytest.approx(1 - 0.95**3)
    edges.update_from_signal([0, 10**6], quality=1.0)
    assert edges.commit(graph) == 10
    assert graph.edge(0, 3)[COACTIVATION] == pytest.approx(1 - 0.6 * 0.95**3)
    assert graph.edge(6, 8)[COACTIVATION] == pytest.approx(1 - 0.95**3)
    assert len(edges) == edges.commit(graph) == 0


def test_edge_weights_are_bounded_and_the_smallest_gains_go() -> None:
    edges = EdgeWeights(capacity=10)
    for i in range(100):
        edges.update_from_signal([0, 1], quality=1.0, scale=1.0)
        edges.update_from_signal([i, i + 1, i + 2], quality=0.1)
        assert len(edges) <= 10
    assert edges.gain(0, 1) == 1.0
    edges = EdgeWeights()
    edges.update_from_signal([1, 2], quality=0.0)
    edges.update_from_signal([1, 1], quality=1.0)
    assert len(edges) == 0


def test_merged_ids_stand_for_the_one_that_took_them_also_in_chains() -> None:
    graph = MemoryGraph(D)
    ids = graph.add_many([vector(i) for i in range(5)], link=0)
    change = GraphChange(based_on=graph.version, merge=(ids[:3], ids[1:4]))
    assert graph.apply(change)["merged"] == 3
    assert [graph.resolve(int(id)) for id in ids] == [3, 3, 3, 3, 4]
    graph.link(0, 4, COACTIVATION, 0.5)
    assert graph.edge(3, 4) == {COACTIVATION: 0.5}
    graph.remove([1])
    assert graph.ids.tolist() == [4]
    assert not any(int(id) in graph for id in ids[:4])


def test_readers_see_whole_graphs_while_others_write() -> None:
    graph, stop, seen = filled(max_nodes=60), threading.Event(), []
    errors: list[BaseException] = []

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for i in range(60):
                ids = graph.add_many(rng.normal(size=(3, D)), kind=NodeKind.EPISODE, link=2)
                graph.recall(rng.normal(size=D), 3, hops=i % 2, mark=False)
                graph.apply(GraphChange(based_on=graph.version, remove=ids[:1], decay={SIMILARITY: 0.9}))
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        while not stop.is_set():
            snapshot = graph.snapshot()
            matrix = snapshot.csr().matrix()
            if not (len(snapshot) == matrix.shape[0] == len(snapshot.data) and abs(matrix - matrix.T).max() == 0):
                errors.append(AssertionError("a torn snapshot"))
            seen.append(snapshot.version)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    reader = threading.Thread(target=read)
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    reader.join()
    assert not errors
    assert len(set(seen)) > 1


# ---- other forms ----


def test_a_state_goes_through_a_file_and_names_no_objects() -> None:
    graph = filled()
    arrays = graph.state()
    assert all(array.dtype.kind in "iuf" and array.flags.c_contiguous for array in arrays.values())
    again = MemoryGraph.from_state({name: array.copy() for name, array in arrays.items()})
    for name, array in again.state().items():
        np.testing.assert_array_equal(array, arrays[name])
    assert again.resolve(12) == 4
    assert again.add(vector(5)) == 13
    empty = MemoryGraph.from_state(MemoryGraph(D).state())
    assert (len(empty), empty.dim) == (0, D)


@pytest.mark.parametrize("name", sorted(filled().state()))
def test_a_damaged_state_is_refused(name: str) -> None:
    arrays = filled().state()
    array = arrays.pop(name)
    damaged = {"missing": None, "another type": array.astype(np.float64), "another shape": array[None], "shorter": array[:-1]}
    damaged["full"] = np.full_like(array, np.nan if array.dtype.kind == "f" else 255)
    damaged["below"] = array.copy()
    damaged["below"].flat[0] = -7 if array.dtype.kind in "if" else 77
    possible = {"uses": ["full"], "merged": ["shorter"]}
    for what in damaged.keys() - possible.get(name, []):
        given = arrays if damaged[what] is None else {**arrays, name: damaged[what]}
        with pytest.raises(SonaCorruptError, match="memory graph: expected"):
            MemoryGraph.from_state(given)


def test_a_state_beyond_the_bounds_is_refused() -> None:
    arrays = filled().state()
    with pytest.raises(SonaCorruptError, match="at most 5 nodes"):
        MemoryGraph.from_state(arrays, max_nodes=5)
    with pytest.raises(SonaCorruptError, match="at most 2 of a node"):
        MemoryGraph.from_state(arrays, max_degree=2)


def test_networkx_sees_nodes_and_edges_with_what_they_are() -> None:
    graph = filled()
    found = graph.to_networkx()
    assert set(found) == set(graph.ids.tolist())
    assert found.nodes[4]["kind"] == "memory"
    assert found.nodes[2]["data"] == {"a": [1]}
    for u, v, about in found.edges(data=True):
        kinds = {kind.name.lower(): weight for kind, weight in graph.edge(u, v).items()}
        assert about == {**kinds, "weight": pytest.approx(sum(kinds.values()))}
    json.dumps([about["data"] for _, about in found.nodes(data=True)])


def test_a_foreign_graph_comes_in_as_coactivations_without_vectors() -> None:
    karate = nx.karate_club_graph()
    heaviest = max(weight for *_, weight in karate.edges(data="weight"))
    for _, _, about in karate.edges(data=True):
        about["weight"] /= heaviest
    karate.add_edge(3, 3, weight=1.0)
    graph = MemoryGraph.from_networkx(karate, 3)
    assert len(graph) == 34
    assert not graph.vectors.any()
    expected = nx.to_numpy_array(karate)
    expected[3, 3] = 0
    np.testing.assert_allclose(graph.csr().matrix().toarray(), expected, rtol=1e-6)
    assert len(graph.edges(COACTIVATION)[0]) == 78


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (nx.DiGraph([(0, 1)]), SonaTypeError, "directed"),
        (nx.MultiGraph([(0, 1), (0, 1)]), SonaTypeError, "multigraph"),
        (nx.Graph([("a", "b")]), SonaTypeError, "expected ints"),
        (nx.Graph([(-1, 2)]), SonaTypeError, "expected ints"),
        (nx.Graph([(0, 1, {"weight": -0.5})]), SonaValueError, r"weight: expected numbers in \(0, 1\]"),
        (nx.Graph([(0, 1, {"weight": float("nan")})]), SonaValueError, "weight"),
        (nx.Graph([(0, 1, {"creative": 2.0})]), SonaValueError, "weight"),
        (nx.Graph([(0, 1, {"weight": "x"})]), SonaTypeError, "weight"),
        (nx.star_graph(40), SonaValueError, "max_degree=32"),
        (nx.empty_graph(101), SonaValueError, "max_nodes=100"),
    ],
)
def test_a_foreign_graph_that_does_not_fit_is_refused(graph: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MemoryGraph.from_networkx(graph, D, max_nodes=100)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", "dog"), ("quality", 2.0), ("strength", 0.0), ("uses", -1), ("born", 0.5), ("vector", [1.0]), ("data", {1, 2}), ("key", "k")],
)
def test_attributes_of_nodes_out_of_range_are_named(name: str, value: Any) -> None:
    graph = nx.Graph()
    graph.add_node(0, **{name: value})
    with pytest.raises((SonaValueError, SonaTypeError), match=f"{name}: expected"):
        MemoryGraph.from_networkx(graph, D)


# ---- bad input ----

NO = np.empty(0, np.int64)


def changes(**parts: Any) -> GraphChange:
    return GraphChange(based_on=10**6, **parts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.add(vector(0)[:3]), "vector: expected shape"),
        (lambda g: g.add(vector(0) * np.nan), "vector: expected finite"),
        (lambda g: g.add_many([vector(0)], quality=1.5), "quality: expected"),
        (lambda g: g.add_many([vector(0)], quality=[0.5, 0.5]), "quality: expected"),
        (lambda g: g.add(vector(0), quality=float("nan")), "quality: expected"),
        (lambda g: g.add(vector(0), kind=3), "kind: expected"),
        (lambda g: g.add(vector(0), kind="memory"), "kind: expected"),
        (lambda g: g.add(vector(0), key=1, kind=NodeKind.MEMORY), "key: expected"),
        (lambda g: g.add_many([vector(0), vector(1)], keys=[77, 77]), "key: expected"),
        (lambda g: g.add_many([vector(0)], keys=[1, 2]), "keys, data: expected"),
        (lambda g: g.add(vector(0), data={1, 2}), "data: expected"),
        (lambda g: g.add(vector(0), data=float("nan")), "data: expected"),
        (lambda g: g.add(vector(0), link=-1), "link: expected"),
        (lambda g: g.update([0, 0], quality=0.5), "ids: expected distinct"),
        (lambda g: g.update([0, 99], quality=0.5), "ids: expected nodes"),
        (lambda g: g.update([0], vectors=np.full((1, D), np.inf)), "vectors: expected"),
        (lambda g: g.link(0, 0, SIMILARITY, 0.5), "u, v: expected two nodes"),
        (lambda g: g.link([0, 1], [2], SIMILARITY, 0.5), "u, v: expected as many"),
        (lambda g: g.link(0, 99, SIMILARITY, 0.5), "ids: expected nodes"),
        (lambda g: g.link(0, 1, 3, 0.5), "kind: expected"),
        (lambda g: g.link(0, 1, SIMILARITY, 0.0), "weight: expected"),
        (lambda g: g.link(0, 1, SIMILARITY, 1.5), "weight: expected"),
        (lambda g: g.link(0, 1, SIMILARITY, "a"), "weight: expected"),
        (lambda g: g.link(0.5, 1, SIMILARITY, 0.5), "u: expected ints"),
        (lambda g: g.connect(k=0), "k: expected"),
        (lambda g: g.connect([99]), "ids: expected nodes"),
        (lambda g: g.recall(vector(0)[:3]), "x: expected shape"),
        (lambda g: g.recall(vector(0), -1), "k: expected"),
        (lambda g: g.recall(vector(0), hops=True), "hops: expected"),
        (lambda g: g.used([99]), "ids: expected nodes"),
        (lambda g: g.used([0], retrieved=[99]), "ids: expected nodes"),
        (lambda g: g.position(99), "ids: expected nodes"),
        (lambda g: g.snapshot().positions([0, 99]), "ids: expected nodes"),
        (lambda g: g.coactivate([0], [1], 0.0), "gain: expected"),
        (lambda g: g.apply({}), "change: expected"),
        (lambda g: g.apply(changes(remove=NO, link=([0], [0], 0, 0.5))), "link: expected two nodes"),
        (lambda g: g.apply(changes(remove=[1], link=([0], [1], 0, 1.5))), "link: expected numbers"),
        (lambda g: g.apply(changes(remove=[1], link=([0], [1], 3, 0.5))), "kind: expected"),
        (lambda g: g.apply(changes(remove=[1], unlink=([0], [1, 2], 0))), "unlink: expected columns"),
        (lambda g: g.apply(changes(remove=[1], decay={SIMILARITY: 1.5})), "decay: expected"),
        (lambda g: g.apply(changes(remove=[1], decay={5: 0.5})), "decay: expected"),
        (lambda g: g.apply(changes(remove=[1], strengthen=([0], [0.0]))), "strengthen: expected"),
        (lambda g: g.apply(changes(remove=[1], strengthen=([0], [np.nan]))), "strengthen: expected"),
        (lambda g: g.apply(changes(remove=[3], merge=([0], [1]))), "merge: expected nodes of one kind"),
        (lambda g: g.apply(changes(remove=[3], merge=([1], [7]))), "merge: expected nodes of one kind with equal data"),
        (lambda g: g.apply(changes(remove=[3], merge=([1, 4], [4, 1]))), "merge: .*circle"),
        (lambda g: g.apply(changes(remove=[3], merge=([1, 1], [4, 10]))), "merge: expected every node"),
        (lambda g: EdgeWeights().update_from_signal([0, 1], 2.0), "quality: expected"),
        (lambda g: EdgeWeights().commit(3), "graph: expected"),
        (lambda g: setattr(g, "cycle", 2), "cycle: expected at least 3"),
        (lambda g: setattr(g, "cycle", 3.5), "cycle: expected an int"),
        (lambda g: MemoryGraph(0), "dim: expected"),
        (lambda g: MemoryGraph(3, max_degree=0), "max_degree: expected"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(call: Any, message: str) -> None:
    graph = filled()
    graph.add(vector(50), data="other", key=77, link=0)
    before = copy.deepcopy(graph.state())
    if "equal data" in message:
        graph.update(7, quality=graph.quality[graph.position(7)], link=0)
        call = lambda g: g.apply(changes(merge=([1], [13])))  # noqa: E731  # "ä" and "other"
        before = copy.deepcopy(graph.state())
    with pytest.raises((SonaValueError, SonaTypeError), match=message):
        call(graph)
    after = graph.state()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
