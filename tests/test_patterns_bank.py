"""A bank keeps what it was given within its bounds, and its patterns keep their ids."""

import itertools
import re
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from hypothesis import given
from hypothesis import strategies as st

from sona._arrays import Floats
from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError
from sona.patterns import LearnedPattern, PatternConfig, PatternType, ReasoningBank
from sona.patterns.clusters import fit, one_thread, similarities
from sona.types import QueryTrajectory

D = 16


def centres(k: int, dim: int = D, seed: int = 0) -> Floats:
    """Orthonormal, so that clusters are far apart."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return q[:k].astype(np.float32)


def cloud(centre: Floats, n: int, noise: float, rng: np.random.Generator) -> Floats:
    """Rows around each centre, in turn."""
    rows = np.tile(centre, (n, 1)) + noise * rng.normal(size=(n * len(centre), centre.shape[1])) / np.sqrt(centre.shape[1])
    return rows.astype(np.float32)


def bank_of(rows: Floats, quality: Any = 1.0, **options: Any) -> ReasoningBank:
    bank = ReasoningBank(PatternConfig(embedding_dim=rows.shape[1], **options), clock=lambda: 1000.0)
    for x, q in zip(rows, np.broadcast_to(quality, len(rows)), strict=True):
        bank.add(x, float(q))
    return bank


def cosines(patterns: list[LearnedPattern], centre: Floats) -> np.ndarray[Any, Any]:
    return np.array([[p.similarity(c) for c in centre] for p in patterns])


# ---- extraction ----


def test_pattern_extraction_empty() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=D))
    assert bank.extract_patterns() == []
    assert bank.find_patterns(np.ones(D), 3) == []
    assert bank.assign(np.ones((2, D))).tolist() == [-1, -1]
    assert bank.verdicts() == []
    assert bank.hierarchy().cut(3) == {}
    np.testing.assert_array_equal(bank.prior(np.ones(D), [0.25, 0.75]), [0.25, 0.75])


def test_pattern_extraction_single() -> None:
    """One trajectory is too few by default and stays; where one is enough it is a pattern."""
    x = np.arange(1, D + 1)
    bank = bank_of(np.float32(x)[None])
    assert bank.extract_patterns() == []
    assert len(bank) == 1
    (pattern,) = bank_of(np.float32(x)[None], min_cluster_size=1).extract_patterns()
    assert (pattern.id, pattern.cluster_size, pattern.total_weight, pattern.avg_quality) == (0, 1, 1.0, 1.0)
    np.testing.assert_allclose(pattern.centroid, x / np.linalg.norm(x), rtol=1e-6)


def test_pattern_extraction_multiple(rng: np.random.Generator) -> None:
    centre = centres(4)
    patterns = bank_of(cloud(centre, 30, 0.3, rng), np.tile([1.0, 0.5, 0.25, 0.75], 30), k_clusters=4).extract_patterns()
    alike = cosines(patterns, centre)
    assert sorted(alike.argmax(axis=1).tolist()) == [0, 1, 2, 3]
    assert alike.max(axis=1).min() > 0.95
    for pattern, which in zip(patterns, alike.argmax(axis=1), strict=True):
        quality = [1.0, 0.5, 0.25, 0.75][which]
        assert (pattern.cluster_size, pattern.avg_quality, pattern.total_weight) == (30, quality, 30 * quality)
        assert (pattern.created_at, pattern.last_accessed, pattern.access_count) == (1000, 1000, 0)


@pytest.mark.parametrize("k", [10, 100])
def test_ten_cycles_over_the_same_clusters_leave_ten_patterns_with_the_same_ids(rng: np.random.Generator, k: int) -> None:
    """Also with more clusters than there are: their near-duplicates become one."""
    centre = centres(10, dim=64)
    bank = bank_of(cloud(centre, 60, 0.25, rng), k_clusters=k, max_trajectories=600)
    where: dict[int, int] = {}
    for cycle in range(10):
        patterns = bank.extract_patterns()
        assert len(patterns) == 10
        found = {p.id: int(cosines([p], centre).argmax()) for p in patterns}
        assert sorted(found.values()) == list(range(10))
        assert cycle == 0 or found == where
        where = found
        for x in cloud(centre, 12, 0.25, rng):  # a fifth of the trajectories is new each time
            bank.add(x, 1.0)
    assert sum(p.cluster_size for p in patterns) == 600


def test_a_split_clustering_does_not_change_ids_without_need(rng: np.random.Generator) -> None:
    """Data with no clusters at all: refitting from new seeds would scatter the ids, staying keeps nearly all."""
    rows = rng.normal(size=(600, 32)).astype(np.float32)
    bank = bank_of(rows, k_clusters=20, max_trajectories=600)
    before = {p.id for p in bank.extract_patterns()}
    for x in rng.normal(size=(60, 32)).astype(np.float32):
        bank.add(x, 1.0)
    after = {p.id for p in bank.extract_patterns()}
    assert len(before) == 20
    assert len(before & after) == 20
    assert len(after) <= 25


def test_an_old_clustering_that_has_become_a_bad_one_is_left(rng: np.random.Generator) -> None:
    """Two centroids in one cluster and one between the other two: Lloyd alone would stay there."""
    centre = 10 * centres(3)
    x = cloud(centre, 50, 1.0, rng)
    old = np.stack([centre[0] + 0.1, centre[0] - 0.1, (centre[1] + centre[2]) / 2])
    found = fit(x, np.ones(150), 3, old=old, max_iterations=100, tolerance=1e-3, seed=0)
    alike = similarities(found.centroids, centre)
    assert alike.max(axis=0).min() > 0.99
    assert sorted(np.bincount(found.labels).tolist()) == [50, 50, 50]


def test_inertia_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    from sklearn.cluster import KMeans

    ratios = []
    for seed in range(10):
        centre = rng.normal(size=(60, 32)).astype(np.float32)
        rows = cloud(centre, 10, 3.0, rng)
        quality = rng.uniform(size=len(rows))
        bank = bank_of(rows, quality, k_clusters=30, min_cluster_size=1, merge_similarity=1.0, seed=seed)
        bank.extract_patterns()
        for x in rows[:60]:  # a second cycle, which may stay where it was
            bank.add(x, 1.0)
        centroids = np.stack([p.centroid for p in bank.extract_patterns()])
        x, outcome = bank._window.copy()
        weight = outcome["quality"]
        inertia = weight @ ((x[:, None] - centroids) ** 2).sum(axis=2).min(axis=1)
        with one_thread():
            peers = [KMeans(30, n_init=1, random_state=s).fit(x, sample_weight=weight).inertia_ for s in range(5)]
        ratios.append(inertia / np.median(peers))
    assert np.median(ratios) <= 1.01


# ---- quality ----


def test_quality_pulls_the_centroid() -> None:
    """Two points in one cluster, three of the four units of quality on the first."""
    rows = np.float32([[1, 0], [0, 1]])
    (pattern,) = bank_of(rows, [0.75, 0.25], min_cluster_size=2, k_clusters=1).extract_patterns()
    np.testing.assert_allclose(pattern.centroid, [0.75, 0.25], rtol=1e-6)
    assert (pattern.total_weight, pattern.avg_quality) == (1.0, 0.5)


def test_weight_multiplies_quality() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=2, min_cluster_size=2, k_clusters=1))
    bank.add([1, 0], 0.5, weight=6)
    bank.add([0, 1], 1.0)
    (pattern,) = bank.extract_patterns()
    np.testing.assert_allclose(pattern.centroid, [0.75, 0.25], rtol=1e-6)
    assert pattern.total_weight == 4


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e9])
def test_the_scale_of_weights_does_not_matter(rng: np.random.Generator, scale: float) -> None:
    centre = centres(2)
    bank = ReasoningBank(PatternConfig(embedding_dim=D, k_clusters=2))
    for i, x in enumerate(cloud(centre, 20, 0.2, rng)):
        bank.add(x, 0.5, arm=i % 4 // 2, reward=float(i % 4 // 2), weight=scale)
    patterns = bank.extract_patterns()
    assert sorted(cosines(patterns, centre).argmax(axis=1).tolist()) == [0, 1]
    assert cosines(patterns, centre).max(axis=1).min() > 0.99
    assert scale < 1e-100 or [v.improvement for v in bank.verdicts()] == [1.0, -1.0] * 2  # its square is beyond a float


def test_without_any_quality_all_count_alike(rng: np.random.Generator) -> None:
    centre = centres(3)
    patterns = bank_of(cloud(centre, 20, 0.2, rng), 0.0, k_clusters=3).extract_patterns()
    assert sorted(cosines(patterns, centre).argmax(axis=1).tolist()) == [0, 1, 2]
    assert {(p.total_weight, p.avg_quality, p.cluster_size) for p in patterns} == {(0.0, 0.0, 20)}


@pytest.mark.parametrize("what", ["quality", "weight"])
def test_a_region_without_quality_or_trust_makes_no_pattern_and_moves_none(rng: np.random.Generator, what: str) -> None:
    centre = centres(3)
    bank = ReasoningBank(PatternConfig(embedding_dim=D, k_clusters=2))
    for i, x in enumerate(cloud(centre, 20, 0.2, rng)):
        bank.add(x, **{"quality": 1.0, what: float(i % 3 < 2)})
    patterns = bank.extract_patterns()
    alike = cosines(patterns, centre)
    assert sorted(alike.argmax(axis=1).tolist()) == [0, 1]
    assert alike.max(axis=1).min() > 0.98
    assert sum(p.cluster_size for p in patterns) == 60  # counted where they are nearest all the same


def test_fewer_distinct_vectors_than_clusters() -> None:
    patterns = bank_of(np.repeat(centres(3), 40, axis=0), k_clusters=20).extract_patterns()
    assert [p.cluster_size for p in patterns] == [40, 40, 40]


def test_zero_vectors_are_one_pattern_that_is_like_nothing() -> None:
    rows = np.concatenate([np.zeros((10, D), np.float32), np.repeat(centres(1), 10, axis=0)])
    bank = bank_of(rows, k_clusters=2)
    ids = [p.id for p in bank.extract_patterns()]
    assert len(ids) == 2
    assert [p.id for p in bank.extract_patterns()] == ids
    assert {p.similarity(np.ones(D)) for p in bank.patterns if not p.centroid.any()} == {0.0}


def test_the_type_is_that_of_most_weight(rng: np.random.Generator) -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=D, k_clusters=2))
    for i, x in enumerate(cloud(centres(2), 15, 0.1, rng)):
        common = PatternType.CODE_GEN if i % 2 else PatternType.FACTUAL
        bank.add(x, 1.0, pattern_type=common if i % 6 < 4 else PatternType.CREATIVE)
    bank.extract_patterns()
    for centre, kind in zip(centres(2), (PatternType.FACTUAL, PatternType.CODE_GEN), strict=True):
        assert bank.find_patterns(centre, 1)[0].pattern_type is kind
        assert [p.pattern_type for p in bank.find_patterns(-centre, 5, pattern_type=kind)] == [kind]
    assert bank.find_patterns(centres(1)[0], 5, pattern_type=PatternType.REASONING) == []


# ---- bounds ----


@given(st.integers(1, 9), st.lists(st.integers(0, 99), max_size=40), st.integers(0, 3))
def test_the_newest_are_kept(capacity: int, values: list[int], forgotten: int) -> None:
    """Against a deque, also after forgetting a source."""
    bank = ReasoningBank(PatternConfig(embedding_dim=2, max_trajectories=capacity))
    model: deque[int] = deque(maxlen=capacity)
    for turn in range(2):
        for value in values:
            bank.add([1, 0], value / 100, source=str(value % 4))
            model.append(value)
        if turn == 0:
            left = [v for v in model if v % 4 != forgotten]
            assert bank.forget_source(str(forgotten)) == len(model) - len(left)
            model = deque(left, capacity)
    assert len(bank) == len(model)
    np.testing.assert_allclose(bank._window.copy()[1]["quality"], np.array(model) / 100)


def test_bytes_bound_the_trajectories() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=D, max_bytes=20_000))
    sizes = set()
    for i in range(1000):
        bank.add(np.full(D, 1.0 + i), 1.0)
        sizes.add(len(bank))
        assert bank._window.nbytes <= 20_000
    assert max(sizes) == len(bank) == 20_000 // (4 * D + 38)
    with pytest.raises(SonaValueError, match="max_bytes: expected at least 102, one trajectory of 16 floats, got 100"):
        ReasoningBank(PatternConfig(embedding_dim=D, max_bytes=100))


def test_patterns_do_not_grow_without_bound(rng: np.random.Generator) -> None:
    """Every cycle sees other clusters; the old ones stay for a while, the lightest go."""
    bank = ReasoningBank(PatternConfig(embedding_dim=D, k_clusters=8, max_trajectories=80, max_patterns=20))
    sizes, nbytes = [], []
    for _ in range(30):
        for x in rng.normal(size=(80, D)):
            bank.add(x, 1.0)
        sizes.append(len(bank.extract_patterns()))
        nbytes.append(bank.nbytes)
    assert max(sizes) == 20
    assert len(set(nbytes[5:])) == 1


def test_a_pattern_that_is_not_found_again_decays_and_goes(rng: np.random.Generator) -> None:
    centre = centres(2)
    bank = bank_of(cloud(centre[:1], 10, 0.1, rng), k_clusters=1, max_trajectories=10, decay=0.5)
    (old,) = bank.extract_patterns()
    for x in cloud(centre[1:], 10, 0.1, rng):
        bank.add(x, 1.0)
    cycles = [{p.id: p.total_weight for p in bank.extract_patterns()} for _ in range(4)]
    assert cycles == [{old.id: weight, 1: 10.0} for weight in (5.0, 2.5, 1.25)] + [{1: 10.0}]  # the next is below min_weight


def test_a_poor_pattern_that_nobody_looked_up_goes_at_once(rng: np.random.Generator) -> None:
    centre = centres(3)
    quality = np.tile([0.2, 0.2, 0.9], 10)
    bank = bank_of(cloud(centre, 10, 0.1, rng), quality, k_clusters=3, max_trajectories=30)
    bank.extract_patterns()
    looked_up = bank.find_patterns(centre[0], 1)[0].id
    good = next(p.id for p in bank.patterns if p.avg_quality > 0.5)
    for x in cloud(-centre[:1], 30, 0.1, rng):
        bank.add(x, 1.0)
    assert {p.id for p in bank.extract_patterns()} == {looked_up, good, 3}


def test_a_pattern_that_comes_back_has_its_old_id(rng: np.random.Generator) -> None:
    centre = centres(2)
    bank = bank_of(cloud(centre[:1], 10, 0.1, rng), k_clusters=1, max_trajectories=10)
    (old,) = bank.extract_patterns()
    for which, known in ((1, {0, 1}), (0, {0, 1})):
        for x in cloud(centre[which : which + 1], 10, 0.1, rng):
            bank.add(x, 1.0)
        assert {p.id for p in bank.extract_patterns()} == known
        assert bank.find_patterns(centre[which], 1)[0].id == (old.id if which == 0 else 1)


def test_an_old_pattern_that_a_new_one_covers_is_merged_into_it() -> None:
    """Two old ones 26 degrees apart, then all trajectories between them: one is found again, the other is a near-duplicate of it."""
    left, right = np.float32([np.cos(a) for a in (0.0, 0.45)]), np.float32([np.sin(a) for a in (0.0, 0.45)])
    ends = np.stack([left, right], axis=1)
    bank = bank_of(np.repeat(ends, 10, axis=0), k_clusters=2, max_trajectories=20)
    assert [p.id for p in bank.extract_patterns()] == [0, 1]
    bank.find_patterns(ends[0], 2)
    for _ in range(20):
        bank.add(ends.sum(axis=0), 1.0)
    (pattern,) = bank.extract_patterns()
    assert (pattern.id, pattern.access_count, pattern.total_weight) == (0, 2, 20 + 0.9 * 10)
    (pattern,) = bank.extract_patterns()  # counted anew
    assert (pattern.id, pattern.access_count, pattern.total_weight) == (0, 2, 20)


# ---- looking up ----


def test_find_patterns_is_a_sort_by_cosine(rng: np.random.Generator) -> None:
    bank = bank_of(rng.normal(size=(400, D)).astype(np.float32), k_clusters=20)
    patterns = bank.extract_patterns()
    for x in rng.normal(size=(20, D)):
        expected = sorted(patterns, key=lambda p: -p.similarity(x))
        for k in (0, 1, 7, 100):
            assert [p.id for p in bank.find_patterns(100 * x, k)] == [p.id for p in expected[:k]]


def test_finding_counts_as_access_and_looking_does_not(rng: np.random.Generator) -> None:
    ticks = itertools.count(5)
    bank = ReasoningBank(PatternConfig(embedding_dim=D, k_clusters=2), clock=lambda: float(next(ticks)))
    for x in cloud(centres(2), 10, 0.1, rng):
        bank.add(x, 1.0)
    bank.extract_patterns()  # at 5
    first = bank.find_patterns(centres(1)[0], 1)[0]  # at 6
    assert (first.access_count, first.created_at, first.last_accessed) == (1, 5, 6)
    bank.find_patterns(centres(1)[0], 2)  # at 7
    counts = {p.id: (p.access_count, p.last_accessed) for p in bank.patterns}
    other = 1 - first.id
    assert counts == {first.id: (2, 7), other: (1, 7)}
    assert {p.id: (p.access_count, p.last_accessed) for p in bank.extract_patterns()} == counts  # a cycle keeps them


def test_decay_takes_weight_from_all(rng: np.random.Generator) -> None:
    bank = bank_of(cloud(centres(2), 10, 0.1, rng), k_clusters=2)
    bank.extract_patterns()
    bank.decay(0.5)
    assert [p.total_weight for p in bank.patterns] == [5.0, 5.0]


def test_assign_is_the_nearest_centroid(rng: np.random.Generator) -> None:
    bank = bank_of(rng.normal(size=(300, D)).astype(np.float32), k_clusters=12)
    patterns = bank.extract_patterns()
    rows = rng.normal(size=(50, D))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [min(patterns, key=lambda p: float(((p.centroid - x) ** 2).sum())).id for x in unit]
    assert bank.assign(rows).tolist() == expected


def test_the_hierarchy_is_that_of_ward(rng: np.random.Generator) -> None:
    from scipy.cluster.hierarchy import fcluster

    centre = centres(3)
    near = np.concatenate([c + 0.35 * centres(12, seed=1)[3 * i + 1 : 3 * i + 4] for i, c in enumerate(centre)])
    bank = bank_of(np.repeat(near, 10, axis=0), k_clusters=9)
    patterns = bank.extract_patterns()
    assert len(patterns) == 9
    tree = bank.hierarchy()
    for groups in range(1, 12):
        own = tree.cut(groups)
        scipy = fcluster(tree.linkage, groups, "maxclust")
        assert list(own) == sorted(own) == [p.id for p in patterns]
        assert len({*zip(own.values(), scipy, strict=True)}) == len({*own.values()}) == min(groups, 9)
    assert len({(tree.cut(3)[p.id], int(cosines([p], centre).argmax())) for p in patterns}) == 3
    with pytest.raises(SonaValueError, match="groups: expected an int of at least 1, got 0"):
        tree.cut(0)


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones(3)}, SonaValueError, r"x: expected shape \(16,\), got \(3,\)"),
        ({"x": np.full(D, np.nan)}, SonaValueError, "x: expected finite"),
        ({"x": ["a"] * D}, SonaTypeError, "x: expected an array of real numbers"),
        ({"quality": np.nan}, SonaValueError, "quality: expected a finite number"),
        ({"quality": 1.5}, SonaValueError, r"quality: expected a number in \[0, 1\], got 1.5"),
        ({"quality": "good"}, SonaTypeError, "quality: expected a number, got str"),
        ({"arm": -1}, SonaValueError, "arm: expected an int in"),
        ({"arm": 1.0}, SonaTypeError, "arm: expected an int or None, got float"),
        ({"reward": np.inf}, SonaValueError, "reward: expected a finite number"),
        ({"reward": -0.1}, SonaValueError, r"reward: expected a number in \[0, 1\], got -0.1"),
        ({"weight": -1}, SonaValueError, r"weight: expected a number in \[0, 1e\+09\], got -1"),
        ({"source": 3}, SonaTypeError, "source: expected a str, got int"),
        ({"pattern_type": 9}, ValueError, "9 is not a valid PatternType"),
    ],
)
def test_what_is_refused_leaves_the_bank_as_it_was(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    bank = bank_of(np.repeat(centres(2), 10, axis=0))
    bank.extract_patterns()
    before = bank.state()
    with pytest.raises(error, match=message):
        bank.add(**{"x": np.ones(D), "quality": 0.5} | arguments)
    for name, array in bank.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_lookups_are_checked() -> None:
    bank = bank_of(np.repeat(centres(2), 10, axis=0))
    bank.extract_patterns()
    for call, message in (
        (lambda: bank.find_patterns(np.full(D, np.inf), 1), "x: expected finite"),
        (lambda: bank.find_patterns(np.ones(D), -1), "k: expected at least 0, got -1"),
        (lambda: bank.assign(np.ones(D)), r"x: expected shape \(n, 16\), got \(16,\)"),
        (lambda: bank.decay(2), r"factor: expected a number in \[0, 1\]"),
        (lambda: bank.verdicts(level=0), r"level: expected a number in \(0, 1\), got 0"),
    ):
        with pytest.raises(SonaValueError, match=message):
            call()
    with pytest.raises(SonaTypeError, match="k: expected an int, got float"):
        bank.find_patterns(np.ones(D), 1.0)  # type: ignore[arg-type]
    assert {p.access_count for p in bank.patterns} == {0}


def test_a_trajectory_is_added_once_its_quality_is_known() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=2))
    assert not bank.add_trajectory(QueryTrajectory(1, np.ones(2), (), None, 5))
    assert bank.add_trajectory(QueryTrajectory(1, np.ones(2), (), 0.25, 5), arm=3, reward=0.5, weight=2.0, source="a")
    assert len(bank) == 1
    x, outcome = bank._window.copy()
    np.testing.assert_allclose(x, [[np.sqrt(0.5), np.sqrt(0.5)]], rtol=1e-6)
    assert outcome[["quality", "weight", "reward", "arm", "rewarded"]].item() == (0.25, 2.0, 0.5, 3, True)


# ---- state ----


def filled(rng: np.random.Generator, **options: Any) -> ReasoningBank:
    config = PatternConfig(embedding_dim=D, k_clusters=6, max_trajectories=100, **options)
    bank = ReasoningBank(config, clock=lambda: 7.0)
    for i, x in enumerate(rng.normal(size=(130, D))):
        bank.add(x, i / 130, arm=i % 3, reward=float(i % 2), source=str(i % 5), pattern_type=PatternType(i % 6))
    bank.extract_patterns()
    bank.find_patterns(np.ones(D), 2)
    return bank


def test_a_bank_goes_on_from_its_state_bit_for_bit(rng: np.random.Generator, tmp_path: Any) -> None:
    from safetensors.numpy import load_file, save_file

    bank = filled(rng)
    save_file(bank.state(), tmp_path / "bank.safetensors")
    again = ReasoningBank.from_state(bank.config, load_file(tmp_path / "bank.safetensors"), clock=lambda: 7.0)
    for x in rng.normal(size=(50, D)):
        for each in (bank, again):
            each.add(x, 0.5)
            each.find_patterns(x, 3)
    for each in (bank, again):
        each.extract_patterns()
    for name, array in bank.state().items():
        np.testing.assert_array_equal(array, again.state()[name], err_msg=name)
    assert bank.verdicts() == again.verdicts()


def test_the_state_of_an_empty_bank() -> None:
    config = PatternConfig(embedding_dim=D)
    bank = ReasoningBank.from_state(config, ReasoningBank(config).state())
    assert (len(bank), bank.patterns) == (0, [])


def test_smaller_bounds_keep_the_newest_and_the_heaviest(rng: np.random.Generator) -> None:
    bank = filled(rng)
    small = PatternConfig(embedding_dim=D, max_trajectories=10, max_patterns=2)
    again = ReasoningBank.from_state(small, bank.state())
    np.testing.assert_array_equal(again.state()["trajectories.quality"], bank.state()["trajectories.quality"][-10:])
    heaviest = sorted(bank.patterns, key=lambda p: -p.total_weight)[:2]
    assert {p.id for p in again.patterns} == {p.id for p in heaviest}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counters": None}, "expected counters"),
        ({"trajectories.x": None}, "expected an array trajectories.x"),
        ({"patterns.id": None}, "expected an array patterns.id"),
        ({"trajectories.x": np.zeros((100, 3), np.float32)}, r"trajectories.x of shape \(n, 16\)"),
        ({"trajectories.x": np.full((100, D), np.nan, np.float32)}, "expected finite float32 trajectories.x"),
        ({"trajectories.quality": np.full(100, 2.0)}, "expected outcomes within the ranges"),
        ({"trajectories.quality": np.full(100, np.nan)}, "expected finite float64 trajectories.quality"),
        ({"trajectories.arm": np.zeros(99, np.int32)}, r"trajectories.arm of shape \(100,\), got int32 \(99,\)"),
        ({"patterns.id": np.zeros(6, np.int64)}, "expected pattern ids that differ"),
        ({"patterns.pattern_type": np.full(6, 9, np.int8)}, "expected patterns of a known type"),
        ({"counters": np.array([1, 3])}, "below the next one"),
    ],
)
def test_a_damaged_state_is_refused(rng: np.random.Generator, change: dict[str, Any], message: str) -> None:
    bank = filled(rng)
    assert len(bank.patterns) == 6
    state = {name: array for name, array in (bank.state() | change).items() if array is not None}
    with pytest.raises(SonaCorruptError, match=message):
        ReasoningBank.from_state(bank.config, state)


# ---- the document ----


def test_the_example_of_the_document_finds_the_arm_of_each_topic(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[1] / "docs/patterns.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/patterns.md", "exec"), {})
    *found, last = capsys.readouterr().out.splitlines()
    assert len({re.search(r"arm (\d)", line)[1] for line in found}) == len(found) == 2  # type: ignore[index]
    assert re.fullmatch(r"\d+ requests like this one, mean quality 0\.\d\d", last)


def test_the_example_of_a_router_prints_what_the_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[1] / "docs/patterns.md").read_text(encoding="utf-8")
    (_, code), (printed,) = (re.findall(rf"^```{kind}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL) for kind in ("python", "text"))
    exec(compile(code, "docs/patterns.md", "exec"), {})
    assert capsys.readouterr().out == printed


# ---- threads, imports ----


def test_threads_add_and_look_up_while_a_cycle_runs(rng: np.random.Generator) -> None:
    bank = filled(rng, min_cluster_size=2)
    rows = rng.normal(size=(200, D))
    errors: list[BaseException] = []
    cycled = threading.Event()

    def work() -> None:
        try:
            while not cycled.is_set():
                for x in rows:
                    bank.add(x, 0.5)
                    found = bank.find_patterns(x, 2)
                    assert len(found) == 2
                    assert all(np.isfinite(p.centroid).all() for p in found)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            bank.extract_patterns()
    finally:
        cycled.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(bank) == 100


def test_cycles_run_one_at_a_time(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = filled(rng)
    inside, most = [0], [0]
    real = ReasoningBank._cluster

    def counted(self: ReasoningBank, *arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return real(self, *arguments)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(ReasoningBank, "_cluster", counted)
    threads = [threading.Thread(target=bank.extract_patterns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert bank.state()["counters"][0] == 5


def test_importing_and_adding_loads_nothing_heavy(run_python: RunPython) -> None:
    run_python("""
        import sys
        from sona.patterns import ReasoningBank, PatternConfig, Transitions, UsearchIndex
        bank = ReasoningBank(PatternConfig(embedding_dim=2))
        bank.add([1, 0], 1.0)
        bank.find_patterns([1, 0], 1)
        heavy = {"sklearn", "scipy", "networkx", "usearch"} & set(sys.modules)
        assert not heavy, heavy
    """)
