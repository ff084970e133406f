"""Message passing and proposed links are what dense algebra in double precision says, and learned weights are worth learning."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.errors import SonaTypeError, SonaValueError
from sona.memory import Propagation, propagate, proposals
from sona.memory.propagation import _Loss, _steps


def drawn(n: int, density: float, seed: int) -> Any:
    """A symmetric matrix of weights, (n, n) float64 with float32 values; some nodes without edges."""
    rng = np.random.default_rng(seed)
    matrix = np.triu((rng.random((n, n)) < density) * rng.uniform(0.1, 2.0, (n, n)), 1).astype(np.float32)
    matrix[rng.random(n) < 0.1] = 0
    return (matrix + matrix.T).astype(np.float64)


def walk(matrix: Any) -> Any:
    """D^-1/2 A D^-1/2 with 1 on the diagonal of a node without edges, entry by entry."""
    n, degree = len(matrix), matrix.sum(axis=1)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if matrix[i, j] > 0:
                found[i, j] = matrix[i, j] / np.sqrt(degree[i] * degree[j])
        if degree[i] == 0:
            found[i, i] = 1.0
    return found


graphs = st.builds(drawn, st.integers(1, 25), st.floats(0.0, 0.6), st.integers(0, 9999))


# ---- closed form ----


@given(graphs, st.integers(0, 6), st.floats(0, 0.99), st.integers(0, 4))
def test_closed_form_is_the_sum_over_hops(matrix: Any, hops: int, alpha: float, columns: int) -> None:
    seed = np.random.default_rng(1).normal(size=(len(matrix), columns) if columns else len(matrix)).astype(np.float32)
    s = walk(matrix)
    expected = np.linalg.matrix_power(alpha * s, hops) @ seed.astype(np.float64)
    for k in range(hops):
        expected = expected + (1 - alpha) * np.linalg.matrix_power(alpha * s, k) @ seed
    found = propagate(sp.csr_matrix(matrix), seed, hops, alpha)
    assert found.dtype == np.float32
    assert found.shape == seed.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_many_hops_solve_the_linear_system() -> None:
    matrix = drawn(40, 0.2, 3)
    seed = np.eye(40, dtype=np.float32)
    exact = 0.15 * np.linalg.inv(np.eye(40) - 0.85 * walk(matrix))
    np.testing.assert_allclose(propagate(matrix, seed, 64, 0.85), exact, atol=2e-4)


@given(graphs)
def test_nothing_spreads_without_hops_or_alpha_or_edges(matrix: Any) -> None:
    seed = np.random.default_rng(2).normal(size=len(matrix)).astype(np.float32)
    before = seed.copy()
    found = propagate(matrix, seed, 0)
    assert np.array_equal(found, before)
    found += 1  # a copy
    assert np.array_equal(seed, before)
    np.testing.assert_allclose(propagate(matrix, seed, 5, 0.0), before, rtol=1e-6)
    np.testing.assert_allclose(propagate(matrix, seed, 5, 1e-6), before, atol=1e-4)
    np.testing.assert_allclose(propagate(np.zeros_like(matrix), seed, 5, 0.85), before, rtol=1e-5)


@given(graphs, st.floats(0.1, 50))
def test_it_does_not_depend_on_order_scale_or_direction(matrix: Any, scale: float) -> None:
    n = len(matrix)
    order = np.random.default_rng(5).permutation(n)
    eye = np.eye(n, dtype=np.float32)
    found = propagate(matrix, eye, 3)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    np.testing.assert_allclose(propagate(matrix[order][:, order], eye, 3), found[order][:, order], atol=1e-6)
    np.testing.assert_allclose(propagate((matrix * scale).astype(np.float32), eye, 3), found, atol=1e-5)
    np.testing.assert_allclose(propagate(matrix + np.diag(np.arange(n)), eye, 3), found, atol=1e-6)


def test_rows_in_any_form_and_parallel_entries_are_accepted() -> None:
    matrix = drawn(12, 0.4, 8)
    seed = np.arange(12, dtype=np.float64)
    expected = propagate(matrix, seed)
    upper = sp.coo_matrix(matrix)
    twice = sp.coo_matrix(
        (np.concatenate([upper.data, upper.data]) / 2, (np.concatenate([upper.row] * 2), np.concatenate([upper.col] * 2))), upper.shape
    )
    for form in (sp.csc_matrix(matrix), upper, twice, sp.lil_matrix(matrix)):
        np.testing.assert_allclose(propagate(form, seed), expected, rtol=1e-5)


# ---- proposals ----


def scored(matrix: Any) -> Any:
    """The documented score of every pair, one middle node at a time; 0 for what is joined."""
    n, degree = len(matrix), matrix.sum(axis=1)
    found = np.zeros((n, n))
    for u in range(n):
        for v in range(n):
            if u != v and matrix[u, v] == 0:
                through = [matrix[u, z] * matrix[z, v] / degree[z] for z in range(n) if matrix[u, z] > 0 and matrix[z, v] > 0]
                found[u, v] = sum(through) / (degree[u] * degree[v]) ** 0.25 if through else 0.0
    return found


@given(graphs, st.integers(1, 6), st.integers(0, 25))
def test_proposals_are_the_best_of_each_start(matrix: Any, k: int, count: int) -> None:
    n = len(matrix)
    starts = np.random.default_rng(4).permutation(n)[:count]
    score, expected = scored(matrix), {}
    for u in starts.tolist():
        best = np.sort(score[u])[::-1][:k]
        for v in np.flatnonzero(score[u] > 0).tolist():
            if score[u, v] >= best[-1] * (1 + 1e-5):  # what a tie may not decide
                expected[min(u, v), max(u, v)] = score[u, v]
    u, v, found = proposals(sp.csr_matrix(matrix), starts, k)
    pairs = list(zip(u.tolist(), v.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) <= k * len(starts)
    assert set(expected) <= set(pairs)
    assert all(a < b and matrix[a, b] == 0 and {a, b} & set(starts.tolist()) for a, b in pairs)
    np.testing.assert_allclose(found, [score[pair] for pair in pairs], rtol=1e-4)
    assert np.all(np.diff(found) <= 0)
    assert len(pairs) >= sum(1 for u in starts.tolist() if (score[u] > 0).any()) / 2


def test_proposals_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = sp.csr_matrix(drawn(80, 0.1, 6))
    starts = np.random.default_rng(0).permutation(80)[:50]
    whole = proposals(matrix, starts, 5)
    monkeypatch.setattr(sys.modules["sona.memory.links"], "BLOCK", 40)
    for one, other in zip(whole, proposals(matrix, starts, 5), strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(whole, proposals(matrix, starts, 5, limit=7), strict=True):
        assert np.array_equal(one[:7], other)


def test_a_square_proposes_its_diagonals() -> None:
    square = np.zeros((4, 4))
    for i in range(4):
        square[i, (i + 1) % 4] = square[(i + 1) % 4, i] = 1
    u, v, score = proposals(square, range(4))
    assert list(zip(u, v, strict=True)) == [(0, 2), (1, 3)]
    np.testing.assert_allclose(score, 1 / np.sqrt(2), rtol=1e-6)  # two ways of 1/2, degrees 2 and 2
    assert [len(part) for part in proposals(square, [])] == [0, 0, 0]
    assert [len(part) for part in proposals(np.ones((3, 3)), [0, 1, 2])] == [0, 0, 0]


# ---- learned ----


def cells_of(n: int, c: int, kinds: int, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    graphs = [sp.csr_matrix(drawn(n, 0.2, seed + 100 * i)) for i in range(kinds)]
    start = rng.normal(size=(n, c))
    m = 2 * n
    return graphs, start, rng.integers(n, size=m), rng.integers(c, size=m), rng.integers(2, size=m).astype(float), rng.normal(size=m)


@pytest.mark.parametrize("kinds", [1, 2, 3])
@pytest.mark.parametrize("hops", [1, 3])
def test_gradient_is_that_of_finite_differences(kinds: int, hops: int) -> None:
    graphs, start, rows, columns, target, offset = cells_of(15, 3, kinds, 7)
    steps = _steps(graphs)
    loss = _Loss(steps, start, (rows, columns), target, offset, hops, 0.01)
    at = loss.start() + np.random.default_rng(0).normal(size=hops + kinds + 2)
    numeric = np.zeros(len(at))
    for i in range(len(at)):
        up, down = at.copy(), at.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        numeric[i] = (loss(up)[0] - loss(down)[0]) / 2e-5
    if kinds == 1:  # one share is always 1: only the penalty is left
        assert loss(at)[1][hops] == pytest.approx(0.01 * at[hops])
    np.testing.assert_allclose(loss(at)[1], numeric, atol=1e-8, rtol=1e-6)


def test_a_prediction_is_the_documented_formula() -> None:
    graphs, start, rows, columns, target, offset = cells_of(15, 3, 2, 9)
    model = Propagation(2).fit(graphs, start, rows, columns, target, offset)
    s = sum(share * walk(g.toarray().astype(np.float64)) for share, g in zip(model.share, graphs, strict=True))
    known = np.random.default_rng(0).normal(size=start.shape)
    z = model.bias + model.trust * known + model.hop[0] * s @ start + model.hop[1] * s @ s @ start
    np.testing.assert_allclose(model(graphs, start, known), 1 / (1 + np.exp(-z)), atol=1e-5)
    assert model.share.sum() == pytest.approx(1)


def clique_pairs(n: int, seed: int) -> tuple[Any, Any, Any]:
    """A graph of which two steps say the truth and one step lies: bipartite between opposite classes; and one of random edges."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n)
    true = np.triu(rng.random((n, n)) < 0.08, 1) & (label[:, None] != label)
    noise = np.triu(rng.random((n, n)) < 0.08, 1)
    return label, *(sp.csr_matrix((part | part.T).astype(np.float32)) for part in (true, noise))


def held_out_loss(p: Any, target: Any) -> float:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-np.mean(target * np.log(p) + (1 - target) * np.log1p(-p)))


@pytest.mark.parametrize("seed", range(3))
def test_learned_weights_beat_the_closed_form_where_neighbours_disagree(seed: int) -> None:
    label, true, noise = clique_pairs(200, seed)
    rng = np.random.default_rng(seed)
    part = rng.integers(3, size=200)  # messages, targets, held out
    messages = np.where(part == 0, 2.0 * label - 1, 0)[:, None]
    fit, held = np.flatnonzero(part == 1), np.flatnonzero(part == 2)
    model = Propagation(3).fit([true, noise], messages, fit, np.zeros(len(fit), int), label[fit])
    learned = model([true, noise], messages)[held, 0]
    closed = propagate(true + noise, messages[:, 0])[held]
    assert np.mean((learned > 0.5) == label[held]) > 0.9
    assert np.mean((closed > 0) == label[held]) < 0.6
    assert model.share[0] > 0.8
    assert model.hop[0] < 0
    closed_probability = 1 / (1 + np.exp(-closed / closed.std()))
    assert held_out_loss(learned, label[held]) < 0.6 * held_out_loss(closed_probability, label[held])


def test_it_falls_back_on_what_is_known_where_the_graph_says_nothing() -> None:
    rng = np.random.default_rng(0)
    n = 400
    offset = rng.normal(size=n)
    target = (rng.random(n) < 1 / (1 + np.exp(-offset))).astype(float)
    model = Propagation(2, l2=0.1).fit(sp.csr_matrix((n, n)), np.zeros((n, 1)), np.arange(n), np.zeros(n, int), target, offset)
    assert np.array_equal(model.hop, np.zeros(2))
    assert model.trust == pytest.approx(1, abs=0.2)
    assert model.bias == pytest.approx(0, abs=0.3)


def test_a_fit_is_reproducible_and_survives_its_state() -> None:
    case = cells_of(30, 2, 2, 1)
    model, again = (Propagation(3, steps=50).fit(*case) for _ in range(2))
    back = Propagation.from_state(model.state())
    for other in (again, back):
        assert np.array_equal(other(case[0], case[1]), model(case[0], case[1]))
    assert set(back.state()) == set(model.state())
    unfitted = Propagation.from_state(Propagation(2).state())
    with pytest.raises(SonaValueError, match="fit before"):
        unfitted(case[0], case[1])


# ---- bad input ----

GRAPH = drawn(6, 0.9, 0)
ONES = np.ones(6)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: propagate([[0, 1], [1, 0]], [1, 1]), SonaTypeError, "Csr"),
        (lambda: propagate(np.ones((2, 3)), [1, 1]), SonaValueError, r"\(n, n\)"),
        (lambda: propagate(np.triu(GRAPH), ONES), SonaValueError, "symmetric"),
        (lambda: propagate(-GRAPH, ONES), SonaValueError, "weights"),
        (lambda: propagate(GRAPH * np.nan, ONES), SonaValueError, "weights"),
        (lambda: propagate(GRAPH, np.ones(5)), SonaValueError, "seed"),
        (lambda: propagate(GRAPH, np.full(6, np.inf)), SonaValueError, "seed"),
        (lambda: propagate(GRAPH, ONES, -1), SonaValueError, "hops"),
        (lambda: propagate(GRAPH, ONES, 65), SonaValueError, "hops"),
        (lambda: propagate(GRAPH, ONES, 2.0), SonaValueError, "hops"),  # type: ignore[arg-type]
        (lambda: propagate(GRAPH, ONES, 2, 1.0), SonaValueError, "alpha"),
        (lambda: propagate(GRAPH, ONES, 2, float("nan")), SonaValueError, "alpha"),
        (lambda: proposals(GRAPH, [6]), SonaValueError, "starts"),
        (lambda: proposals(GRAPH, [-1]), SonaValueError, "starts"),
        (lambda: proposals(GRAPH, [1, 1]), SonaValueError, "once"),
        (lambda: proposals(GRAPH, [0.5]), SonaTypeError, "starts"),
        (lambda: proposals(GRAPH, [0], 0), SonaValueError, "k"),
        (lambda: proposals(GRAPH, [0], limit=0), SonaValueError, "limit"),
        (lambda: Propagation(0), SonaValueError, "hops"),
        (lambda: Propagation(l2=-1), SonaValueError, "l2"),
        (lambda: Propagation(steps=0), SonaValueError, "steps"),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("kinds", [], "kinds"),
        ("kinds", [GRAPH, drawn(7, 0.5, 0)], "same nodes"),
        ("seed", np.ones(6), "seed"),
        ("rows", [0, 6], "rows"),
        ("columns", [0, 2], "columns"),
        ("columns", [0], "cells"),
        ("target", [0, 2.0], "target"),
        ("target", [0, 1, 1], "target"),
        ("offset", [0.0, np.nan], "offset"),
    ],
)
def test_a_refused_fit_changes_nothing(name: str, value: Any, match: str) -> None:
    case: dict[str, Any] = {"kinds": GRAPH, "seed": np.ones((6, 2)), "rows": [0, 1], "columns": [0, 1], "target": [0.0, 1.0]}
    model = Propagation().fit(**case)
    before = model.state()
    with pytest.raises(SonaValueError, match=match):
        model.fit(**{**case, name: value})
    assert all(np.array_equal(before[key], value) for key, value in model.state().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hop", None),
        ("hop", np.zeros(0)),
        ("hop", np.array([np.nan])),
        ("rest", np.zeros(3)),
        ("share", np.array([0.3, 0.3])),
        ("rest", "x"),
    ],
)
def test_a_bad_state_is_refused(name: str, value: Any) -> None:
    state: dict[str, Any] = Propagation().fit(GRAPH, np.ones((6, 1)), [0, 1], [0, 0], [0.0, 1.0]).state()
    with pytest.raises(SonaValueError, match="state"):
        Propagation.from_state({**state, name: value})


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_extreme_weights_stay_finite(seed: int) -> None:
    matrix = drawn(10, 0.5, seed) * 1e-30
    matrix[0, 1] = matrix[1, 0] = 1e30
    assert np.isfinite(propagate(matrix, np.full(10, 1e30))).all()
    assert np.isfinite(proposals(matrix, range(10))[2]).all()


def test_the_example_prints_what_its_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[1] / "docs/links.md").read_text(encoding="utf-8")
    (code,), (expected,) = (re.findall(rf"```{kind}\n(.*?)```", document, re.DOTALL) for kind in ("python", "text"))
    exec(compile(code, "docs/links.md", "exec"), {})
    assert capsys.readouterr().out == expected
