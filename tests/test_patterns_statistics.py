"""Statistics of shards add up to those of one pass."""

from dataclasses import fields
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona._arrays import Floats
from sona.errors import SonaTypeError, SonaValueError
from sona.patterns import PatternConfig, PatternStatistics, PatternType, ReasoningBank
from sona.patterns.clusters import nearest
from sona.patterns.window import OUTCOME, Outcomes

D = 5


def draw(n: int, rng: np.random.Generator, arms: int = 4) -> tuple[Floats, Outcomes]:
    x = rng.normal(size=(n, D)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    outcome = np.zeros(n, OUTCOME)
    outcome["quality"] = rng.uniform(size=n) * (rng.uniform(size=n) < 0.8)
    outcome["weight"] = rng.choice([0.0, 0.5, 1.0, 3.0], size=n)
    outcome["reward"] = rng.choice([0.0, 1.0, 0.3], size=n)
    outcome["arm"] = rng.integers(-1, arms, size=n)
    outcome["rewarded"] = rng.uniform(size=n) < 0.8
    outcome["pattern_type"] = rng.integers(len(PatternType), size=n)
    return x, outcome


def assert_equal(a: PatternStatistics, b: PatternStatistics) -> None:
    for field in fields(PatternStatistics):
        np.testing.assert_allclose(getattr(a, field.name), getattr(b, field.name), rtol=1e-9, atol=1e-9, err_msg=field.name)


def oracle(p: int, arms: int, labels: Any, x: Floats, outcome: Outcomes) -> dict[str, Any]:
    """One row at a time, two passes over the rewards of a cell."""
    result: dict[str, Any] = {name: np.zeros(p) for name in ("count", "weight", "quality")}
    result |= {name: np.zeros((p, D)) for name in ("vectors", "weighted_vectors")} | {"types": np.zeros((p, len(PatternType)))}
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for label, row, o in zip(labels, x.astype(float), outcome, strict=True):
        pull = o["quality"] * o["weight"]
        result["count"][label] += 1
        result["weight"][label] += pull
        result["quality"][label] += o["quality"]
        result["vectors"][label] += row
        result["weighted_vectors"][label] += pull * row
        result["types"][label, o["pattern_type"]] += o["weight"]
        if o["rewarded"] and o["arm"] >= 0 and o["weight"] > 0:
            cells.setdefault((int(label), int(o["arm"])), []).append((float(o["weight"]), float(o["reward"])))
    result |= {name: np.zeros((p, arms)) for name in ("arm_count", "arm_weight", "arm_weight2", "arm_mean", "arm_squares")}
    for cell, told in cells.items():
        w, r = np.array(told).T
        mean = (w * r).sum() / w.sum()
        values = (len(w), w.sum(), (w**2).sum(), mean, (w * (r - mean) ** 2).sum())
        for name, value in zip(("arm_count", "arm_weight", "arm_weight2", "arm_mean", "arm_squares"), values, strict=True):
            result[name][cell] = value
    return result


@given(st.integers(0, 60), st.integers(1, 4), st.integers(0, 1000))
def test_one_pass_is_the_sum_over_rows(n: int, p: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, outcome = draw(n, rng)
    labels = rng.integers(p, size=n)
    found = PatternStatistics.of(np.arange(p), labels, x, outcome)
    for name, expected in oracle(p, found.arm_count.shape[1], labels, x, outcome).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-5, atol=1e-6, err_msg=name)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 1000))
def test_shards_add_up_to_one_pass(sizes: list[int], p: int, seed: int) -> None:
    """Of any number and size, with different arms, in any order."""
    rng = np.random.default_rng(seed)
    shards = [draw(n, rng, arms=1 + i) for i, n in enumerate(sizes)]
    labels = [rng.integers(p, size=n) for n in sizes]
    ids = 10 + np.arange(p)
    parts = [PatternStatistics.of(ids, a, x, outcome) for a, (x, outcome) in zip(labels, shards, strict=True)]
    x, outcome = (np.concatenate(each) for each in zip(*shards, strict=True))
    whole = PatternStatistics.of(ids, np.concatenate(labels), x, outcome)
    merged = reduce(add, parts)
    arms = merged.arm_count.shape[1] - whole.arm_count.shape[1]
    assert arms == 0
    assert_equal(merged, whole)
    assert_equal(reduce(add, [parts[i] for i in rng.permutation(len(parts))]), whole)
    assert_equal(reduce(add, parts[1:], parts[0]), merged)


def test_variances_survive_a_large_mean() -> None:
    """Rewards that differ in the ninth digit, split over shards: sums of squares would have lost them."""
    rng = np.random.default_rng(0)
    x, outcome = draw(1000, rng)
    outcome["reward"], outcome["arm"], outcome["rewarded"], outcome["weight"] = 1 - 1e-9 * rng.uniform(size=1000), 0, True, 1
    parts = [PatternStatistics.of(np.arange(1), np.zeros(100, int), x[i::10], outcome[i::10]) for i in range(10)]
    expected = np.var(outcome["reward"] - 1) * 1000
    np.testing.assert_allclose(reduce(add, parts).arm_squares[0, 0], expected, rtol=1e-5)


def test_centroids_are_the_next_step_of_lloyd(rng: np.random.Generator) -> None:
    x, outcome = draw(300, rng)
    start = x[:6]
    labels = nearest(start, x)
    pull = outcome["quality"] * outcome["weight"]
    halves = [PatternStatistics.of(np.arange(6), labels[half], x[half], outcome[half]) for half in (slice(140), slice(140, None))]
    expected = [np.average(x[labels == j], axis=0, weights=pull[labels == j]) for j in range(6)]
    np.testing.assert_allclose((halves[0] + halves[1]).centroids, expected, rtol=1e-4, atol=1e-6)
    outcome["quality"] = 0
    plain = PatternStatistics.of(np.arange(7), labels, x, outcome).centroids
    np.testing.assert_allclose(plain[:6], [x[labels == j].mean(axis=0) for j in range(6)], rtol=1e-4, atol=1e-6)
    assert not plain[6].any()


def test_only_statistics_of_the_same_patterns_add_up(rng: np.random.Generator) -> None:
    x, outcome = draw(10, rng)
    labels = np.zeros(10, int)
    one = PatternStatistics.of(np.arange(2), labels, x, outcome)
    with pytest.raises(SonaValueError, match="expected statistics of the same 2 patterns, got 3 others"):
        one + PatternStatistics.of(np.arange(3), labels, x, outcome)
    with pytest.raises(SonaTypeError, match="expected PatternStatistics to add, got int"):
        one + 1  # type: ignore[operator]


def test_the_statistics_of_a_bank_are_of_all_it_keeps(rng: np.random.Generator) -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=D, k_clusters=5))
    for i, row in enumerate(rng.normal(size=(100, D))):
        bank.add(row, 0.5, arm=i % 3, reward=float(i % 2))
    assert len(bank.statistics().ids) == 0
    bank.extract_patterns()
    found = bank.statistics()
    assert found.ids.tolist() == [p.id for p in bank.patterns]
    assert found.count.sum() == found.arm_count.sum() == 100
    assert (found.arm_weight * found.arm_mean).sum() == pytest.approx(50)


def test_banks_of_several_processes_add_up_under_the_same_patterns(rng: np.random.Generator) -> None:
    config = PatternConfig(embedding_dim=D, k_clusters=5)
    whole, *parts = (ReasoningBank(config) for _ in range(4))
    for i, row in enumerate(rng.normal(size=(150, D))):
        for bank in (whole, parts[i % 3]):
            bank.add(row, i / 150, arm=i % 4, reward=float(i % 5 == 0), weight=1 + i % 2)
    patterns = whole.extract_patterns()
    assert_equal(reduce(add, (bank.statistics(patterns) for bank in parts)), whole.statistics())
    assert len(parts[0].statistics().ids) == len(whole.statistics([]).ids) == 0
    with pytest.raises(SonaValueError, match=r"centroid: expected shape \(4,\), got \(5,\)"):
        ReasoningBank(PatternConfig(embedding_dim=4)).statistics(patterns)
