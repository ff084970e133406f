"""A pattern is a value: merging and decaying give another one."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import SonaTypeError, SonaValueError
from sona.patterns import LearnedPattern, PatternConfig, PatternType

P1 = LearnedPattern(
    id=1,
    centroid=np.array([1.0, 0.0]),
    cluster_size=10,
    total_weight=5.0,
    avg_quality=0.8,
    created_at=100,
    last_accessed=200,
    access_count=5,
)
P2 = LearnedPattern(
    id=2,
    centroid=np.array([0.0, 1.0]),
    cluster_size=10,
    total_weight=5.0,
    avg_quality=0.9,
    created_at=150,
    last_accessed=250,
    access_count=3,
)


def test_pattern_merge() -> None:
    """The roadmap's own test, and its other fields."""
    merged = P1.merge(P2)
    assert merged.cluster_size == 20
    assert abs(merged.centroid[0] - 0.5) < 1e-6
    assert abs(merged.centroid[1] - 0.5) < 1e-6
    assert abs(merged.avg_quality - 0.85) < 1e-6
    assert (merged.id, merged.total_weight, merged.access_count) == (1, 10.0, 8)
    assert (merged.created_at, merged.last_accessed) == (100, 250)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=3, max_size=6), st.randoms())
def test_merging_weighs_by_cluster_size_and_its_order_does_not_matter(members: list[tuple[int, float]], random: Any) -> None:
    rng = np.random.default_rng(0)
    patterns = [LearnedPattern(i, rng.normal(size=4), size, quality * size, quality, i, i, i) for i, (size, quality) in enumerate(members)]
    sizes = np.array([p.cluster_size for p in patterns], float)
    centroid = np.average([p.centroid for p in patterns], axis=0, weights=sizes)
    quality = np.average([p.avg_quality for p in patterns], weights=sizes)
    random.shuffle(patterns)
    merged = patterns[0]
    for pattern in patterns[1:]:
        merged = merged.merge(pattern)
    np.testing.assert_allclose(merged.centroid, centroid, rtol=1e-5, atol=1e-6)
    assert merged.avg_quality == pytest.approx(quality)
    assert merged.cluster_size == sizes.sum()


def test_decay_takes_weight_and_nothing_else() -> None:
    decayed = P1.decay(0.5)
    assert decayed.total_weight == 2.5
    assert replace(decayed, total_weight=5.0).merge(P2).total_weight == P1.merge(P2).total_weight
    assert P1.total_weight == 5.0  # the pattern itself is as it was
    with pytest.raises(FrozenInstanceError):
        P1.total_weight = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        P1.centroid[0] = 2


def test_similarity_is_the_cosine() -> None:
    assert P1.similarity([2.0, 2.0]) == pytest.approx(np.sqrt(0.5))
    assert P1.similarity([0.0, 0.0]) == 0
    with pytest.raises(SonaValueError, match=r"x: expected shape \(2,\), got \(3,\)"):
        P1.similarity([1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cluster_size": 0}, SonaValueError, "cluster_size: expected at least 1, got 0"),
        ({"cluster_size": 1.5}, SonaTypeError, "cluster_size: expected an int, got float"),
        ({"access_count": -1}, SonaValueError, "access_count: expected at least 0, got -1"),
        ({"total_weight": -1.0}, SonaValueError, "total_weight: expected at least 0, got -1"),
        ({"avg_quality": np.nan}, SonaValueError, "avg_quality: expected a finite number"),
        ({"centroid": np.array([np.inf])}, SonaValueError, "centroid: expected finite"),
    ],
)
def test_a_pattern_is_checked(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(P1, **change)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SonaValueError, match=r"merge: expected a centroid of shape \(2,\), got \(3,\)"):
        P1.merge(replace(P2, centroid=np.ones(3)))
    with pytest.raises(SonaValueError, match=r"factor: expected a number in \[0, 1\], got 2"):
        P1.decay(2)


def test_types_are_named() -> None:
    assert [t.name for t in PatternType] == ["GENERAL", "REASONING", "FACTUAL", "CREATIVE", "CODE_GEN", "CONVERSATIONAL"]
    assert P1.pattern_type is PatternType.GENERAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_clusters": 0}, "k_clusters: expected an int of at least 1, got 0"),
        ({"max_bytes": 1e6}, "max_bytes: expected an int of at least 1"),
        ({"seed": -1}, "seed: expected an int of at least 0, got -1"),
        ({"decay": 1.1}, r"decay: expected a number in \[0, 1\], got 1.1"),
        ({"match_similarity": float("nan")}, "match_similarity"),
        ({"min_weight": float("inf")}, "min_weight: expected a finite number"),
    ],
)
def test_the_configuration_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        PatternConfig(**change)


def test_the_defaults() -> None:
    config = PatternConfig()
    assert (config.k_clusters, config.embedding_dim, config.max_iterations) == (100, 256, 100)
    assert (config.convergence_threshold, config.min_cluster_size) == (1e-3, 5)
    assert (config.max_trajectories, config.quality_threshold) == (10_000, 0.3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        PatternConfig(clusters=3)  # type: ignore[call-arg]
