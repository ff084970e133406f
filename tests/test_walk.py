"""Walks follow the weights, are the same every time, and a graph taken over is the graph that was given."""

import signal
import threading
import time
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_matrix, csr_array
from scipy.stats import chi2_contingency, chisquare

from sona.errors import SonaTypeError, SonaValueError
from sona.memory import Csr, walks

Array = np.ndarray[Any, np.dtype[Any]]


def random_weights(n: int, density: float, seed: int) -> Array:
    """A symmetric matrix of float32 weights, 0 where there is no edge."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) * (rng.random((n, n)) < density), 1).astype(np.float32)
    return upper + upper.T


matrices = st.builds(random_weights, st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000))


def scattered(csr: Csr, seed: int = 0) -> Csr:
    """The same graph with rows in another order and with gaps full of nonsense between them."""
    rng = np.random.default_rng(seed)
    start, stop, at = np.zeros(len(csr), np.int64), np.zeros(len(csr), np.int64), 0
    column, weight, cumulative = (np.full(3 * len(csr.column) + 9 * len(csr), fill, np.float64) for fill in (-9, np.nan, 1e9))
    for row in rng.permutation(len(csr)).tolist():
        at += int(rng.integers(0, 5))
        own = slice(csr.start[row], csr.stop[row])
        start[row], stop[row] = at, at + own.stop - own.start
        for to, source in ((column, csr.column), (weight, csr.weight), (cumulative, csr.cumulative)):
            to[at : stop[row]] = source[own]
        at = int(stop[row])
    return Csr(start, stop, column.astype(np.int32), weight.astype(np.float32), cumulative.astype(np.float32), csr.version)


# ---- the graph as arrays ----


@given(matrices)
def test_a_graph_comes_back_as_the_matrix_it_was_made_from(weights: Array) -> None:
    with_diagonal = weights + np.diag(np.arange(len(weights))).astype(np.float32)
    graph = nx.from_numpy_array(weights)
    for csr in (Csr.of(with_diagonal), Csr.of(coo_matrix(weights)), Csr.of(csr_array(weights)), Csr.from_networkx(graph)):
        np.testing.assert_array_equal(csr.matrix().toarray(), weights)
        np.testing.assert_array_equal(scattered(csr).matrix().toarray(), weights)
        for row in range(len(csr)):
            own = slice(csr.start[row], csr.stop[row])
            assert (np.diff(csr.column[own]) > 0).all()
            np.testing.assert_allclose(csr.cumulative[own], np.cumsum(csr.weight[own], dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">f8", "g", "i1", ">i8", "u8", "?"])
def test_a_matrix_of_any_type_and_layout(dtype: str) -> None:
    weights = (random_weights(9, 0.5, 4) > 0).astype(dtype)
    strided = np.zeros((18, 27), dtype)
    strided[::2, ::3] = weights
    for same in (weights, np.asfortranarray(weights), strided[::2, ::3], np.ma.asarray(weights)):
        np.testing.assert_array_equal(Csr.of(same).matrix().toarray(), weights.astype(np.float32))


def test_rows_of_other_lengths_than_the_entries_are_refused() -> None:
    for degree in ([3], [-1, 3], [1 << 40]):
        with pytest.raises(SonaValueError, match="rows: expected"):
            Csr.sorted(np.array(degree), np.zeros(2, np.int32), np.ones(2, np.float32))


def test_a_networkx_graph_keeps_its_order_of_nodes_whatever_they_are() -> None:
    graph = nx.Graph()
    graph.add_edge("b", ("x", 1), strength=2.0)
    graph.add_edge(7, "b")
    graph.add_edge("b", "b", strength=9.0)
    graph.add_node("alone")
    found = Csr.from_networkx(graph, weight="strength", default=0.5).matrix().toarray()
    np.testing.assert_array_equal(found, nx.to_numpy_array(graph, weight="strength", dtype=np.float32) * (1 - np.eye(4)) - _half(graph))
    np.testing.assert_array_equal(Csr.from_networkx(graph.subgraph(["b", 7])).matrix().toarray(), [[0, 1], [1, 0]])
    graph.add_edge(7, "alone", strength=0)
    assert Csr.from_networkx(graph, weight="strength").matrix().nnz == 4


def _half(graph: Any) -> Array:
    """What 7 - b has less than networkx's default of 1."""
    nodes, result = list(graph), np.zeros((len(graph), len(graph)))
    result[nodes.index(7), nodes.index("b")] = result[nodes.index("b"), nodes.index(7)] = 0.5
    return result


@pytest.mark.parametrize(
    ("matrix", "error"),
    [
        ([[0, 1], [2, 0]], SonaValueError),
        ([[0, 1], [0, 0]], SonaValueError),
        ([[0, -1], [-1, 0]], SonaValueError),
        ([[0, np.nan], [np.nan, 0]], SonaValueError),
        ([[0, np.inf], [np.inf, 0]], SonaValueError),
        ([[0, 1e300], [1e300, 0]], SonaValueError),
        ([[0, 1, 1], [1, 0, 1]], SonaValueError),
        ([1, 2], SonaValueError),
        ([["a"]], SonaTypeError),
        ([[0], [0, 1]], SonaTypeError),
        ([[1j]], SonaTypeError),
    ],
)
def test_a_matrix_that_is_no_undirected_graph_is_refused(matrix: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="matrix: expected"):
        Csr.of(matrix)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_networkx_graph_with_unusable_weights_is_refused(weight: float) -> None:
    graph = nx.path_graph(3)
    graph.edges[0, 1]["weight"] = weight
    with pytest.raises(SonaValueError, match="expected finite weights"):
        Csr.from_networkx(graph)


@pytest.mark.parametrize("make", [nx.DiGraph, nx.MultiGraph, nx.MultiDiGraph, dict])
def test_directed_and_multigraphs_are_refused(make: Any) -> None:
    with pytest.raises(SonaTypeError, match="graph: expected"):
        Csr.from_networkx(make())
    bad = nx.Graph()
    bad.add_edge(0, 1, weight="heavy")
    with pytest.raises(SonaTypeError, match="expected numbers"):
        Csr.from_networkx(bad)


# ---- walks ----


@given(matrices, st.integers(0, 2**64 - 1), st.sampled_from([0.3, 1.0, 3.0, np.inf]), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_walk_goes_along_edges_or_back_or_anywhere_as_allowed(weights: Array, seed: int, temperature: float, revisit: float) -> None:
    csr = scattered(Csr.of(weights))
    starts = np.arange(len(weights))
    paths = walks(csr, starts, 9, seed=seed, temperature=temperature, revisit=revisit)
    np.testing.assert_array_equal(paths[:, 0], starts)
    for path in paths.tolist():
        for step, (a, b) in enumerate(pairwise(path)):
            if b < 0:
                left = set(np.flatnonzero(weights[a]).tolist()) if a >= 0 else set()
                assert a < 0 or not (left - set(path[: step + 1]) if revisit == 0 else left)
            else:
                assert weights[a, b] > 0
                assert revisit > 0 or b not in path[: step + 1]
    options = {"seed": seed, "temperature": temperature, "revisit": revisit}
    np.testing.assert_array_equal(walks(Csr.of(weights), starts, 9, **options), paths)  # gaps and the order of rows do not matter
    np.testing.assert_array_equal(walks(csr, starts[: len(starts) // 2], 9, **options), paths[: len(starts) // 2])
    np.testing.assert_array_equal(walks(csr, starts, 4, **options), paths[:, :4])
    assert (walks(csr, starts, 9, jump=1e-6, **options) >= 0).all()
    back = walks(csr, starts, 9, restart=1.0, **options)
    np.testing.assert_array_equal(back, np.repeat(starts[:, None], 9, axis=1))


@pytest.mark.parametrize(("temperature", "revisit"), [(1.0, 1.0), (1.0, 0.2), (0.4, 1.0), (2.5, 0.2), (np.inf, 0.0)])
def test_third_nodes_are_as_frequent_as_the_rule_says(temperature: float, revisit: float) -> None:
    weights, w = random_weights(7, 0.8, 3).astype(np.float64), 60_000
    heated = np.where(weights > 0, np.where(weights > 0, weights, 1) ** (1 / temperature), 0)
    expected = np.zeros(7)
    for first, p in enumerate(heated[0] / heated[0].sum()):
        if p:
            row = heated[first].copy()
            row[0] *= revisit
            expected += p * row / row.sum()
    found = np.bincount(
        walks(Csr.of(weights), np.zeros(w, np.int64), 3, seed=5, temperature=temperature, revisit=revisit)[:, 2], minlength=7
    )
    possible = expected > 0
    assert not found[~possible].any()
    assert chisquare(found[possible], w * expected[possible]).pvalue > 1e-4
    assert chisquare(found[possible], np.full(possible.sum(), w / possible.sum())).pvalue < 1e-6  # the test sees a wrong rule


def test_parallel_entries_count_as_one_edge() -> None:
    """Node 0 is joined to 1 by three entries and to 2 by one: at any temperature like one of their sum."""
    column, weight = np.array([1, 1, 1, 2, 0, 0], np.int32), np.array([1, 1, 1, 1, 3, 1], np.float32)
    start, stop = np.array([0, 4, 5]), np.array([4, 5, 6])
    sums = np.array([1, 2, 3, 4, 3, 1], np.float32)
    for temperature, odds in ((1.0, 3.0), (0.5, 9.0), (2.0, 3**0.5), (np.inf, 1.0)):
        found = walks(Csr(start, stop, column, weight, sums), np.zeros(40_000, np.int64), 2, seed=1, temperature=temperature)[:, 1]
        assert chisquare(np.bincount(found)[1:], 40_000 * np.array([odds, 1]) / (odds + 1)).pvalue > 1e-4


@pytest.mark.parametrize("options", [{}, {"revisit": 0.2}, {"temperature": 0.5}, {"temperature": 3.0, "revisit": 0.2}])
def test_weights_whose_sum_is_beyond_float32_are_weights_all_the_same(options: dict[str, float]) -> None:
    weights = np.zeros((4, 4))
    weights[0, 1:] = weights[1:, 0] = [2, 3, 1]
    starts = np.zeros(20_000, np.int64)
    plain, huge = (np.bincount(walks(Csr.of(w), starts, 4, seed=3, **options)[:, 3], minlength=4) for w in (weights, weights * 1.1e38))
    possible = plain > 0
    assert not huge[~possible].any()
    assert chi2_contingency([plain[possible], huge[possible]]).pvalue > 1e-4


def test_jumps_reach_every_node_alike_and_restarts_only_the_start() -> None:
    csr = Csr.of(np.zeros((50, 50)))
    found = walks(csr, np.full(50_000, 3), 2, seed=2, jump=1.0)[:, 1]
    assert chisquare(np.bincount(found, minlength=50)).pvalue > 1e-4
    assert (walks(csr, [3], 4, seed=2, restart=0.5)[0, 1:] <= 3).all()


def test_walks_run_beside_each_other() -> None:
    csr, starts = Csr.of(random_weights(60, 0.3, 1)), np.arange(60).repeat(50)
    expected, found = walks(csr, starts, 30, seed=9, temperature=1.3), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: walks(csr, starts, 30, seed=9, temperature=1.3)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[i] == expected).all() for i in range(4))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_a_signal_ends_a_long_call() -> None:
    csr, starts, begun = Csr.of(random_weights(60, 0.3, 1)), np.zeros(200_000, np.int32), time.perf_counter()
    walks(csr, starts, 30, seed=1)
    whole, before = time.perf_counter() - begun, signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, whole / 20)
        begun = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            walks(csr, starts, 30, seed=1)
        assert time.perf_counter() - begun < whole / 2
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "options",
    [
        {"starts": [5]},
        {"starts": [-1]},
        {"length": 0},
        {"length": 1 << 40},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"revisit": 1.5},
        {"revisit": float("nan")},
        {"restart": 0.6, "jump": 0.6},
        {"jump": -0.1},
        {"seed": -1},
        {"seed": 1 << 64},
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, Any]) -> None:
    csr = Csr.of(random_weights(5, 1, 1))
    with pytest.raises(SonaValueError, match=f"{next(iter(options))}.*: expected" if "jump" not in options else "restart, jump"):
        walks(csr, **({"starts": [0], "length": 3, "seed": 1} | options))
    for wrong in ([0.5], [[0], [0, 1]], None, ["a"]):
        with pytest.raises(SonaTypeError, match="starts"):
            walks(csr, wrong, 3, seed=1)
    with pytest.raises(SonaTypeError, match="seed"):
        walks(csr, [0], 3, seed=1.5)  # type: ignore[arg-type]
    for dtype in (">i2", np.uint64, np.int8):
        np.testing.assert_array_equal(walks(csr, np.array([1, 9, 3, 9], dtype)[::2], 3, seed=1), walks(csr, [1, 3], 3, seed=1))


def test_a_broken_graph_is_refused_and_read_no_further() -> None:
    csr = Csr.of(random_weights(5, 1, 1))
    far = csr.column.copy()
    far[:] = 1000
    for broken in (
        Csr(csr.start, csr.stop, far, csr.weight, csr.cumulative),
        Csr(csr.start - 9, csr.stop, csr.column, csr.weight, csr.cumulative),
        Csr(csr.start, csr.stop + 10**9, csr.column, csr.weight, csr.cumulative),
        Csr(csr.start, csr.stop[:-1], csr.column, csr.weight, csr.cumulative),
        Csr(csr.start, csr.stop, csr.column, csr.weight, csr.cumulative[:-1]),
    ):
        with pytest.raises(SonaValueError, match="csr: "):
            walks(broken, np.arange(5), 5, seed=1)
    for other in (
        None,
        Csr(csr.start.astype(np.int32), csr.stop, csr.column, csr.weight, csr.cumulative),  # type: ignore[arg-type]
        Csr(csr.start, csr.stop, csr.column, csr.weight, csr.cumulative.astype(">f4")),
        Csr(csr.start, csr.stop, csr.column, np.repeat(csr.weight, 2)[::2], csr.cumulative),
        Csr(csr.start, csr.stop, csr.column, csr.weight.tolist(), csr.cumulative),  # type: ignore[arg-type]
    ):
        with pytest.raises(SonaTypeError, match="csr: expected a Csr"):
            walks(other, np.arange(5), 5, seed=1)  # type: ignore[arg-type]


def test_no_walks_and_no_nodes_are_fine() -> None:
    assert walks(Csr.of(np.zeros((0, 0))), [], 3, seed=1).shape == (0, 3)
    assert walks(Csr.of(np.zeros((2, 2))), [], 3, seed=1).shape == (0, 3)
    np.testing.assert_array_equal(walks(Csr.of(np.zeros((2, 2))), [1], 3, seed=1), [[1, -1, -1]])
