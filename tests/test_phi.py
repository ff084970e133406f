"""Phi is the least loss over all cuts of the bits that walkers carry, whichever search finds it, and says what it will not take."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
from conftest import RunPython
from hypothesis import given
from hypothesis import strategies as st

import sona
from sona.errors import SonaTypeError, SonaValueError
from sona.memory.csr import Csr
from sona.memory.phi import METHODS, Phi, phi, phi_of_subgraphs

F64 = npt.NDArray[np.float64]


# ---- a slow model: the covariance of the occupancies themselves, and every cut ----


def stationary(p: F64) -> F64:
    """Where lazy walkers are in the long run, from everywhere alike: those of transient nodes have left."""
    lazy = (p + np.eye(len(p))) / 2
    for _ in range(60):
        lazy = lazy @ lazy
        lazy /= lazy.sum(1, keepdims=True)
    pi: F64 = lazy.mean(0)
    return np.where(pi > 1e-9, pi, 0)


class Oracle:
    """Bits from the covariance of (X, X'): Poisson numbers with means pi, of whom alpha pi_i P_ij are at i and then at j."""

    def __init__(self, w: F64, alpha: float) -> None:
        out = w.sum(1)
        p = np.divide(w, out[:, None], out=np.eye(len(w)), where=out[:, None] > 0)
        pi = stationary(p)
        pi[out == 0] = 0  # a walker that cannot move is none
        self.n, self.held = len(w), pi > 0
        flow = alpha * pi[:, None] * p
        self.covariance = np.block([[np.diag(pi), flow], [flow.T, np.diag(pi)]])

    def log_det(self, nodes: npt.NDArray[np.bool_]) -> float:
        held = np.flatnonzero(nodes & self.held)
        rows = np.concatenate([held, held + self.n])
        return float(np.linalg.slogdet(self.covariance[np.ix_(rows, rows)])[1] / math.log(2))

    def total(self) -> float:
        """Multi-information of now and a step later."""
        everybody = np.full(self.n, True)
        return float(np.log2(np.diag(self.covariance)[: self.n][self.held]).sum() - self.log_det(everybody) / 2)

    def cut(self, part: npt.NDArray[np.bool_]) -> float:
        return (self.log_det(part) + self.log_det(~part) - self.log_det(np.full(self.n, True))) / 2


def cuts(n: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Each once, by the side of node 0."""
    for bits in range(1, 1 << n, 2):
        if bits != (1 << n) - 1:
            yield np.array([bits >> i & 1 for i in range(n)], dtype=bool)


def sides(found: Phi) -> npt.NDArray[np.bool_]:
    near, far = found.partition
    assert sorted([*near, *far]) == list(range(found.n))  # type: ignore[type-var]
    assert near[0] == 0
    part = np.zeros(found.n, dtype=bool)
    part[list(near)] = True  # type: ignore[call-overload]
    return part


def random_graph(rng: np.random.Generator, n: int, *, directed: bool = False, connected: bool = True) -> F64:
    """Weights over four decades, any density, sometimes with walkers that stay."""
    w = np.exp(rng.uniform(-5, 5, (n, n))) * (rng.random((n, n)) < rng.uniform(0.2, 1))
    if connected:
        ring = rng.permutation(n)
        w[ring, np.roll(ring, 1)] += rng.uniform(0.1, 1)
    if rng.random() < 0.7:
        np.fill_diagonal(w, 0)
    return w if directed else w + w.T


def complete(n: int) -> F64:
    return np.ones((n, n)) - np.eye(n)


def ring(n: int) -> F64:
    w = np.zeros((n, n))
    w[np.arange(n), np.arange(n) - 1] = 1
    return np.maximum(w, w.T)


def path(n: int) -> F64:
    w = ring(n)
    w[0, -1] = w[-1, 0] = 0
    return w


def star(n: int) -> F64:
    w = np.zeros((n, n))
    w[0, 1:] = w[1:, 0] = 1
    return w


def two_cliques(bridge: float) -> F64:
    w = np.kron(np.eye(2), complete(4))
    w[3, 4] = w[4, 3] = bridge
    return w


# ---- the value ----


@pytest.mark.parametrize(
    ("w", "bits", "normalised"),
    [
        (two_cliques(0), 0, 0),
        (two_cliques(0.1), 0.003292, 0.003292),
        (two_cliques(1), 0.145628, 0.145628),
        (ring(8), 0.951349, None),
        (complete(8), 0.389548, 0.730),
        (star(8), 0.456221, 1.315),
        (path(8), 0.562117, 0.562117),
        (complete(12), 0.273274, 0.696),
        (ring(12), 0.927278, None),
        (complete(24), 0.145300, None),
        (star(24), 0.155, None),
        (np.array([[0.0, 5.0], [5.0, 0.0]]), 1.849440, 1.849440),
    ],
)
def test_worked_values(w: F64, bits: float, normalised: float | None) -> None:
    def near(value: float) -> Any:
        return pytest.approx(value, abs=0.6 * 10.0 ** -min(6, len(f"{value}") - 2))

    assert phi(w).value == near(bits)
    if normalised is not None:
        assert phi(w, normalise=True).value == near(normalised)


def test_reference_values() -> None:
    directory = os.environ.get("SONA_REFERENCE")
    if not directory:
        pytest.skip("set SONA_REFERENCE to the directory of phi_reference.json: values of another implementation")
    records = json.loads((Path(directory) / "phi_reference.json").read_text())["markov"]["records"]
    assert len(records) >= 28
    for record in records:
        w, alpha, name = np.array(record["W"]), record["alpha"], (record["name"], record["alpha"])
        oracle = Oracle(w, alpha)
        for normalise in (False, True):
            value, part = (
                (record["phi_bits_at_size_normalised_mib"], record["size_normalised_mib_A"])
                if normalise
                else (record["phi_bits"], record["mib_A"])
            )
            if value is None:
                continue
            for method in METHODS if record["n"] <= 18 and not normalise else ("auto",):
                found = phi(w, alpha, normalise=normalise, method=method)
                assert found.total == pytest.approx(record["I_total_bits"], abs=1e-9), name
                assert found.value == pytest.approx(value, abs=1e-9), name
                want = np.isin(np.arange(len(w)), part)
                if (sides(found) != (want if want[0] else ~want)).any():  # only where the two are tied
                    assert oracle.cut(sides(found)) == pytest.approx(oracle.cut(want), abs=1e-11), name


@pytest.mark.parametrize("directed", [False, True])
def test_phi_is_the_least_of_all_cuts(directed: bool, rng: np.random.Generator) -> None:
    for round in range(60):
        n, alpha = 2 + round % 6, float(rng.uniform(0.05, 0.99))
        w = random_graph(rng, n, directed=directed, connected=round % 4 != 0)
        oracle = Oracle(w, alpha)
        lost = {part.tobytes(): oracle.cut(part) for part in cuts(n)}
        for method in METHODS:
            found = phi(w, alpha, directed=directed, method=method)
            assert found.value == pytest.approx(min(lost.values()), abs=1e-11)
            assert found.value == pytest.approx(lost[sides(found).tobytes()], abs=1e-11)
            assert found.total == pytest.approx(oracle.total(), abs=1e-11)
        size = {part.tobytes(): min(part.sum(), n - part.sum()) for part in cuts(n)}
        chosen = phi(w, alpha, directed=directed, normalise=True)
        key = sides(chosen).tobytes()
        assert chosen.value == pytest.approx(lost[key], abs=1e-11)
        assert lost[key] / size[key] == pytest.approx(min(lost[k] / size[k] for k in lost), abs=1e-11)


@pytest.mark.parametrize(("directed", "graphs"), [(False, 1200), (True, 400)])
def test_queyranne_finds_what_looking_at_every_cut_finds(directed: bool, graphs: int, rng: np.random.Generator) -> None:
    for round in range(graphs):
        w = random_graph(rng, 2 + round % 13, directed=directed)
        alpha = float(rng.uniform(0.3, 0.999))
        every, quick = (phi(w, alpha, directed=directed, method=method) for method in ("exhaustive", "queyranne"))
        assert (every.method, quick.method) == ("exhaustive", "queyranne")
        assert quick.value == pytest.approx(every.value, abs=1e-11)


@pytest.mark.parametrize("n", [18, 32, 48, 64])
@pytest.mark.parametrize("directed", [False, True])
def test_no_sampled_cut_of_a_large_graph_is_below(n: int, directed: bool, rng: np.random.Generator) -> None:
    w = random_graph(rng, n, directed=directed)
    oracle, found = Oracle(w, 0.85), phi(w, directed=directed)
    assert found.value == pytest.approx(oracle.cut(sides(found)), abs=1e-10)
    for _ in range(100):
        part = rng.random(n) < rng.uniform(1 / n, 0.5)
        part[0] = True
        part[1] = False
        assert found.value <= oracle.cut(part) + 1e-10
    for node in range(n):
        assert found.value <= oracle.cut(np.arange(n) == node) + 1e-10


def test_two_communities_are_found_at_every_size() -> None:
    for n in (6, 12, 18, 30, 64):
        w = np.kron(np.eye(2), complete(n // 2))
        w[0, -1] = w[-1, 0] = 1e-3
        for method in METHODS if n <= 18 else ("auto", "queyranne"):
            assert phi(w, method=method).partition == (tuple(range(n // 2)), tuple(range(n // 2, n)))


def test_closed_forms() -> None:
    for alpha in (1e-3, 0.3, 0.85, 0.99, 0.999999):
        edge = phi([[0, 2], [2, 0]], alpha)
        assert edge.value == edge.total == pytest.approx(-math.log2(1 - alpha**2), abs=1e-9)

        def bits(share: float, alpha: float = alpha) -> float:
            return -0.5 * math.log2(1 - (alpha * share) ** 2)

        for n in (3, 7, 8, 13, 14, 18, 24, 64):  # eigenvalues of S: 1 and n - 1 times -1/(n - 1), without a node (n-2)/(n-1)
            found = phi(complete(n), alpha)
            assert found.value == pytest.approx(bits(1) - bits((n - 2) / (n - 1)) + bits(1 / (n - 1)), abs=1e-9)
            assert found.total == pytest.approx(bits(1) + (n - 1) * bits(1 / (n - 1)), abs=1e-9)
        for n in (3, 5, 16):  # a directed cycle: each cut parts two steps at least
            found = phi(np.roll(np.eye(n), 1, axis=1), alpha, directed=True)
            assert found.value == pytest.approx(2 * bits(1), abs=1e-9)
            assert found.total == pytest.approx(n * bits(1), abs=1e-8)


def test_walkers_have_the_covariance_that_phi_is_made_of(rng: np.random.Generator) -> None:
    """The model itself, played: Poisson numbers of walkers that move, die and are replaced."""
    w = np.array([[1.0, 4, 0, 2], [1, 0, 3, 0], [0, 2, 0, 5], [3, 0, 1, 0]])
    p, alpha, mean, trials = w / w.sum(1, keepdims=True), 0.7, 30.0, 100_000
    pi = stationary(p)
    now = rng.poisson(mean * pi, (trials, 4))
    kept = rng.binomial(now, alpha)
    then = rng.poisson((1 - alpha) * mean * pi, (trials, 4))
    for i in range(4):
        then += rng.multinomial(kept[:, i], p[i])
    both = np.cov(np.concatenate([now, then], axis=1).T) / mean
    np.testing.assert_allclose(both, Oracle(w, alpha).covariance, atol=0.01)


# ---- invariants ----


@given(st.integers(2, 20), st.booleans(), st.integers(0, 2**32))
def test_neither_order_nor_scale_matter(n: int, directed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = random_graph(rng, n, directed=directed, connected=bool(rng.integers(2)))
    order, found = rng.permutation(n), phi(w, directed=directed)
    for other in (w[np.ix_(order, order)], w * 1e300 / w.max() if w.any() else w, w * 2e-290):
        again = phi(other, directed=directed)
        assert again.value == pytest.approx(found.value, abs=1e-11)
        assert again.total == pytest.approx(found.total, abs=1e-11)


@given(st.integers(2, 20), st.integers(0, 2**32))
def test_phi_is_0_exactly_where_the_graph_is_in_pieces(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.random((n, n)) * (rng.random((n, n)) < rng.uniform(0.5, 3) / n)
    both, way = nx.from_numpy_array(w + w.T), nx.from_numpy_array(w, create_using=nx.DiGraph)
    found = phi(w + w.T)
    assert (found.value == 0) == (not nx.is_connected(both))
    if found.value == 0:
        assert set(found.partition[0]) == nx.node_connected_component(both, 0)
        assert found.method == "connectivity"
    found = phi(w, directed=True)
    assert (found.value == 0) == (not nx.is_strongly_connected(way))
    if found.value == 0:
        assert set(found.partition[0]) <= nx.node_connected_component(way.to_undirected(), 0)
    else:
        assert found.value > 1e-9


@given(st.integers(2, 20), st.integers(0, 2**32))
def test_a_symmetric_graph_is_the_same_both_ways(n: int, seed: int) -> None:
    w = random_graph(np.random.default_rng(seed), n)
    assert phi(w, directed=True).value == pytest.approx(phi(w).value, abs=1e-11)
    assert phi(w, directed=True).total == pytest.approx(phi(w).total, abs=1e-11)


def test_periodic_and_slow_chains_have_their_stationary_distribution() -> None:
    """A walk back and forth on a path whose ends are a million times as busy as the middle, as a directed graph."""
    w = np.diag([1e6, 1, 1e-3, 1, 1e6], 1)
    w += w.T
    assert phi(w, directed=True).value == pytest.approx(phi(w).value, rel=1e-12)
    assert phi(w).value > 0


def test_staying_is_information_of_the_node_itself() -> None:
    w = two_cliques(1)
    lazy = phi(w + 100 * np.eye(8))
    assert lazy.value < phi(w).value < phi(w).total < lazy.total


# ---- what may be passed ----


def test_one_node_and_no_edge() -> None:
    assert phi([[0]]) == Phi(0.0, ((0,), ()), 0.0, "connectivity", 1)
    assert phi([[3.0]]).value == 0
    assert phi([[3.0]]).total == pytest.approx(-0.5 * math.log2(1 - 0.85**2))
    for directed in (False, True):
        assert phi(np.zeros((3, 3)), directed=directed) == Phi(0.0, ((0,), (1, 2)), 0.0, "connectivity", 3)
    alone = np.pad(ring(5), (1, 0))
    assert phi(alone) == Phi(0.0, ((0,), (1, 2, 3, 4, 5)), phi(ring(5)).total, "connectivity", 6)


def test_the_result_is_a_number_and_cannot_be_changed() -> None:
    found = phi(two_cliques(1))
    assert float(found) == found.value == pytest.approx(0.145628, abs=1e-6)
    assert found.partition == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert (found.n, found.method) == (8, "exhaustive")
    with pytest.raises(AttributeError):
        found.value = 1.0  # type: ignore[misc]
    assert phi(complete(18)).method == "queyranne"


def test_arrays_of_any_layout_and_type(rng: np.random.Generator) -> None:
    w = np.rint(random_graph(rng, 7))
    found = phi(w)
    strided = np.zeros((14, 21))
    strided[::2, ::3] = w
    frozen = w.copy()
    frozen.setflags(write=False)
    for same in (
        w.T,
        np.asfortranarray(w),
        strided[::2, ::3],
        w.astype(np.int64),
        w.astype(">f4"),
        w.astype(np.longdouble),
        w.tolist(),
        frozen,
        np.ma.asarray(w),
        scipy.sparse.csr_array(w),
        scipy.sparse.coo_matrix(w),
    ):
        assert phi(same) == found
    assert phi(w > 0) == phi((w > 0) * 1.0)
    np.testing.assert_array_equal(frozen, w)


def test_a_link_below_rounding_is_no_gap() -> None:
    faint = phi(two_cliques(1e-9))
    assert 0 <= faint.value < 1e-14
    assert (faint.method, phi(two_cliques(0)).method) == ("exhaustive", "connectivity")


def test_rounding_of_float32_is_no_asymmetry() -> None:
    w = two_cliques(1)
    w[0, 1] *= 1 + 1e-7
    assert phi(w).value == pytest.approx(phi(two_cliques(1)).value, abs=1e-7)


def test_networkx_graphs_by_their_own_names() -> None:
    graph = nx.Graph()
    graph.add_weighted_edges_from([("a", "b", 3), ("b", "c", 2.0), ("c", "a", 1), ("d", "e", 5), ("e", "a", 0.1), ("b", "b", 0.5)])
    names = list(graph)
    assert phi(graph).partition == (("a", "b", "c"), ("d", "e"))
    assert phi(graph).value == phi(nx.to_numpy_array(graph, names)).value
    bare = nx.path_graph(5)
    assert phi(bare) == phi(path(5))
    cycle = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
    assert phi(cycle) == phi(nx.to_numpy_array(cycle), directed=True)
    with pytest.raises(SonaValueError, match=r"directed=True, got 1.0 from 0 to 1 and 0.0 from 1 to 0"):
        phi(cycle, directed=False)
    assert phi(nx.Graph(cycle), directed=True).value == pytest.approx(phi(complete(3)).value)
    parallel = nx.MultiGraph([(0, 1), (1, 0), (1, 2), (2, 2)])
    assert phi(parallel) == phi([[0, 2, 0], [2, 0, 1], [0, 1, 1]])
    for weight in ("heavy", "3", 1j, np.complex64(1), 10**400, None, [1.0, 2.0]):
        graph["a"]["b"]["weight"] = weight
        with pytest.raises(SonaTypeError, match="number as weight of the edge"):
            phi(graph)
    with pytest.raises(SonaValueError, match="expected 1 to 64 nodes, got 65"):
        phi(nx.complete_graph(65))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: phi([[0, math.nan], [1, 0]]), SonaValueError, "expected finite weights, got nan from 0 to 1"),
        (lambda: phi([[0, math.inf], [math.inf, 0]]), SonaValueError, "expected finite weights, got inf"),
        (lambda: phi([[0, -1], [-1, 0]]), SonaValueError, "expected weights of at least 0, got -1.0 from 0 to 1"),
        (lambda: phi([[0, 2], [1, 0]]), SonaValueError, "symmetric matrix, or directed=True, got 2.0 from 0 to 1 and 1.0 from 1 to 0"),
        (lambda: phi([[0, 1e-30], [0, 0]]), SonaValueError, "symmetric matrix"),
        (lambda: phi(np.zeros((0, 0))), SonaValueError, "expected 1 to 64 nodes, got 0"),
        (lambda: phi(np.ones((65, 65))), SonaValueError, "expected 1 to 64 nodes, got 65"),
        (lambda: phi(scipy.sparse.csr_array((10**6, 10**6))), SonaValueError, "expected 1 to 64 nodes, got 1000000"),
        (lambda: phi(np.ones((19, 19)), normalise=True), SonaValueError, "expected 1 to 18 nodes with normalise"),
        (lambda: phi(np.ones((19, 19)), method="exhaustive"), SonaValueError, "expected 1 to 18 nodes with normalise or method"),
        (lambda: phi(np.ones((3, 2))), SonaValueError, r"expected shape \(n, n\), got \(3, 2\)"),
        (lambda: phi(np.ones(3)), SonaValueError, r"expected shape \(n, n\), got \(3,\)"),
        (lambda: phi(3.0), SonaValueError, r"expected shape \(n, n\), got \(\)"),
        (lambda: phi([[0, 1], [1]]), SonaTypeError, "expected an array of numbers, got list"),
        (lambda: phi(np.ones((2, 2), dtype=complex)), SonaTypeError, "real numbers, got dtype complex128"),
        (lambda: phi([["a", "b"], ["c", "d"]]), SonaTypeError, "real numbers, got dtype <U1"),
        (lambda: phi(None), SonaTypeError, "real numbers, got dtype object"),
        (lambda: phi(complete(3), 1.0), SonaValueError, r"alpha: expected a number in \(0, 0.999999\], got 1.0"),
        (lambda: phi(complete(3), 0), SonaValueError, "alpha: expected a number in"),
        (lambda: phi(complete(3), math.nan), SonaValueError, "alpha: expected a number in"),
        (lambda: phi(complete(3), "0.5"), SonaTypeError, "alpha: expected a number, got str"),  # type: ignore[arg-type]
        (lambda: phi(complete(3), True), SonaTypeError, "alpha: expected a number, got bool"),
        (lambda: phi(complete(3), method=np.zeros(2)), SonaValueError, "method: expected 'auto', 'exhaustive' or"),  # type: ignore[arg-type]
        (lambda: phi(complete(3), method="greedy"), SonaValueError, "method: expected 'auto', 'exhaustive' or 'queyranne', got 'greedy'"),
        (lambda: phi(complete(3), normalise=True, method="queyranne"), SonaValueError, "not exact for it"),
        (
            lambda: phi([[1, 1e-300, 0], [1, 0, 1e-300], [1, 1, 0]], directed=True),
            SonaValueError,
            "stationary distribution that float64 holds, got weights from 1e-300 to 1.0",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_neither_scipy_nor_networkx_are_loaded(run_python: RunPython) -> None:
    run_python(
        """
        import sys
        import sona
        assert round(float(sona.phi([[0, 1], [1, 0]])), 4) == 1.8494
        assert not {"scipy", "networkx"} & set(sys.modules)
        """
    )


def test_top_level_names() -> None:
    assert sona.phi is phi
    assert sona.Phi is Phi


# ---- many parts of one graph ----


def neighbours(rng: np.random.Generator, nodes: int, k: int) -> scipy.sparse.csr_array:
    """Cosines of a symmetric graph of nearest neighbours, float32."""
    x = rng.standard_normal((nodes, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -1)
    near = cosine >= np.sort(cosine, axis=1)[:, -k][:, None]
    return scipy.sparse.csr_array(np.where(near | near.T, np.maximum(np.maximum(cosine, cosine.T), 0), 0).astype(np.float32))


def arrays(graph: scipy.sparse.csr_array) -> tuple[Any, ...]:
    return graph.indptr[:-1], graph.indptr[1:], graph.indices, graph.data


@pytest.mark.parametrize("normalise", [False, True])
def test_parts_have_the_phi_of_their_own_matrix(normalise: bool, rng: np.random.Generator) -> None:
    graph = neighbours(rng, 300, 10)
    lists = [rng.integers(0, 300, 1 + k % 18).tolist() for k in range(40)]
    walks = rng.integers(-1, 300, (40, 18)).astype(np.int32)
    walks[:, 0] = 7
    for nodes in (lists, walks, iter(lists)):
        rows = lists if not isinstance(nodes, np.ndarray) else nodes.tolist()
        want = []
        for row in rows:
            ids = sorted({node for node in row if node >= 0})
            want.append(phi(graph[ids][:, ids].toarray().astype(np.float64), normalise=normalise).value)
        np.testing.assert_array_equal(phi_of_subgraphs(*arrays(graph), nodes, normalise=normalise), want)
    assert phi_of_subgraphs(*arrays(graph), []).shape == (0,)


def test_parts_of_rows_with_gaps_and_parallel_entries() -> None:
    """Node 0: to 1 twice, to 2; the rows stand in reverse with gaps that hold what must not be read."""
    start, stop = np.array([7, 4, 1]), np.array([10, 6, 3])
    column = np.array([-9, 0, 1, 99, 0, 2, -9, 1, 2, 1], dtype=np.int32)
    weight = np.array([np.nan, 4, 5, np.nan, 3, 5, np.nan, 1, 4, 2], dtype=np.float32)
    found = phi_of_subgraphs(start, stop, column, weight, [[2, 0, 1], [1, 0]], alpha=0.5)
    assert found == pytest.approx([phi([[0, 3, 4], [3, 0, 5], [4, 5, 0]], 0.5).value, phi([[0, 3], [3, 0]], 0.5).value])
    way = phi_of_subgraphs(start, stop, column, weight * np.array([1, 1, 1, 1, 2, 1, 1, 1, 1, 1]), [[0, 1, 2]], directed=True)
    assert way == pytest.approx([phi([[0, 3, 4], [6, 0, 5], [4, 5, 0]], directed=True).value])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"nodes": [[0, 1], [0, 300]]}, SonaValueError, r"nodes\[1\]: expected nodes below 300, got 300"),
        ({"nodes": [[0, 1], []]}, SonaValueError, r"nodes\[1\]: expected 1 to 64 nodes, got 0"),
        ({"nodes": [[-1, -1]]}, SonaValueError, r"nodes\[0\]: expected 1 to 64 nodes, got 0"),
        ({"nodes": [range(65)]}, SonaValueError, r"nodes\[0\]: expected 1 to 64 nodes, got 65"),
        ({"nodes": [range(19)], "normalise": True}, SonaValueError, "expected 1 to 18 nodes with normalise"),
        ({"nodes": [[0.5, 1]]}, SonaTypeError, r"nodes\[0\]: expected an array of integers"),
        ({"nodes": [[[1, 2]]]}, SonaValueError, r"nodes\[0\]: expected shape \(n,\), got \(1, 2\)"),
        ({"nodes": None}, SonaTypeError, "nodes: expected a row of integers for each part, got NoneType"),
        ({"nodes": [[[1], [2, 3]]]}, SonaTypeError, r"nodes\[0\]: expected an array of integers, got list"),
        (
            {"nodes": np.array([[0, 1 << 63]], np.uint64)},
            SonaValueError,
            r"nodes: expected numbers that int64 holds, got 9223372036854775808",
        ),
        ({"nodes": [np.array([1 << 63], np.uint64)]}, SonaValueError, r"nodes\[0\]: expected numbers that int64 holds"),
        ({"column": 1 << 32}, SonaValueError, "column: expected numbers that int32 holds, got 42949"),
        ({"weight": 1e300}, SonaValueError, r"nodes\[0\], by the order of its nodes: expected finite weights, got inf"),
        ({"alpha": 2}, SonaValueError, "alpha"),
        ({"start": np.zeros(300)}, SonaTypeError, "start: expected an array of integers, got dtype float64"),
        ({"start": np.zeros(299, dtype=int)}, SonaValueError, r"stop: expected shape \(299,\) as start has, got \(300,\)"),
        ({"weight": np.zeros(3)}, SonaValueError, "weight: expected shape"),
        ({"stop": np.full(300, 10**9)}, SonaValueError, "start, stop: expected rows within"),
        ({"start": np.full(300, -1)}, SonaValueError, "start, stop: expected rows within"),
        ({"weight": -1.0}, SonaValueError, r"nodes\[0\], by the order of its nodes: expected weights of at least 0, got -"),
        ({"weight": math.nan}, SonaValueError, r"nodes\[0\], by the order of its nodes: expected finite weights, got nan"),
        ({"weight": "ramp"}, SonaValueError, r"nodes\[0\], by the order of its nodes: expected a symmetric matrix"),
    ],
)
def test_what_parts_are_refused(change: dict[str, Any], error: type[Exception], message: str, rng: np.random.Generator) -> None:
    graph = neighbours(rng, 300, 10)
    start, stop, column, weight = arrays(graph)
    given = {"start": start, "stop": stop, "column": column, "weight": weight, "nodes": [range(60), [0, 1]], **change}
    if isinstance(change.get("weight"), float):
        given["weight"] = np.full(len(weight), change["weight"])
    elif isinstance(change.get("weight"), str):
        given["weight"] = np.linspace(1, 2, len(weight), dtype=np.float32)
    if isinstance(change.get("column"), int):
        given["column"] = column.astype(np.int64) + change["column"]
    with pytest.raises(error, match=message):
        phi_of_subgraphs(**given)


def test_parts_of_arrays_of_any_layout_and_type(rng: np.random.Generator) -> None:
    start, stop, column, weight = arrays(neighbours(rng, 60, 6))
    want = phi_of_subgraphs(start, stop, column, weight, [range(20), [7, 3]])
    shifted = np.frombuffer(b"." + weight.tobytes(), dtype=np.float32, offset=1)
    assert not shifted.flags.aligned
    for change in (list, np.ma.asarray, lambda a: a.astype(">i8"), lambda a: np.repeat(a, 3)[::3], lambda a: a.astype(np.uint64)):
        for w in (weight, weight.astype(">f8"), weight.astype(np.longdouble), shifted):
            found = phi_of_subgraphs(change(start), change(stop), change(column), w, [change(np.arange(20)), change(np.array([7, 3]))])
            np.testing.assert_array_equal(found, want)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_a_signal_ends_a_search_in_many_parts() -> None:
    """Ctrl-C is heard between parts, and the call ends."""
    rng = np.random.default_rng(0)
    n, parts = 64, 400
    w = rng.random((n, n))
    csr = Csr.of(w + w.T)
    nodes = np.tile(np.arange(n), (parts, 1))
    begun = time.perf_counter()
    phi_of_subgraphs(csr.start, csr.stop, csr.column, csr.weight, nodes[:40])
    whole, before = (time.perf_counter() - begun) * parts / 40, signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, whole / 20)
        begun = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            phi_of_subgraphs(csr.start, csr.stop, csr.column, csr.weight, nodes)
        assert time.perf_counter() - begun < whole / 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_parts_beyond_those_of_one_piece_have_their_own_phi_and_their_own_refusal() -> None:
    rng = np.random.default_rng(0)
    w = rng.random((40, 40))
    csr = Csr.of(w + w.T)
    nodes = np.stack([rng.permutation(40)[:5] for _ in range(50)])
    found = phi_of_subgraphs(csr.start, csr.stop, csr.column, csr.weight, nodes)
    one_by_one = [phi_of_subgraphs(csr.start, csr.stop, csr.column, csr.weight, row[None])[0] for row in nodes]
    assert found.tolist() == one_by_one
    assert len(set(one_by_one)) > 40
    nodes[37, 0] = 40
    with pytest.raises(SonaValueError, match=r"nodes\[37\].*below 40, got 40"):
        phi_of_subgraphs(csr.start, csr.stop, csr.column, csr.weight, nodes)
