"""Promises of EWC++ on a low-rank correction: what its factors give is what the dense matrices give, in `Dense`, entry by entry."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sona.errors import SonaTypeError, SonaValueError
from sona.ewc import EwcConfig, EwcPlusPlus, LowRankEwc, TaskFactors
from sona.ewc.lowrank import ANCHOR_RANK
from sona.ewc.rule import Arrays

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(1, 12)
ranks = st.integers(0, 5)


def product(down: Any, up: Any) -> Doubles:
    return np.asarray(down, np.float64).T @ np.asarray(up, np.float64)


def fisher(task: TaskFactors) -> Doubles:
    return task.importance * np.outer(task.inputs.astype(np.float64), task.outputs)


def anchor(task: TaskFactors) -> Doubles:
    return product(task.down, task.up)


@dataclass
class Dense:
    """Penalties of all tasks, none merged, as dense matrices."""

    strength: float
    tasks: list[tuple[Doubles, Doubles]] = field(default_factory=list)

    def loss(self, w: Doubles) -> float:
        return self.strength / 2 * sum(float((f * (w - at) ** 2).sum()) for f, at in self.tasks)

    def gradient(self, w: Doubles) -> Doubles:
        return self.strength * sum((f * (w - at) for f, at in self.tasks), np.zeros_like(w))

    def proximal(self, w: Doubles, rate: float) -> Doubles:
        total, pulled = np.zeros_like(w), np.zeros_like(w)
        for f, at in self.tasks:
            total, pulled = total + f, pulled + f * at
        return (w + rate * self.strength * pulled) / (1 + rate * self.strength * total)

    def minimiser(self) -> Doubles:
        return np.asarray(sum(f * at for f, at in self.tasks) / sum(f for f, _ in self.tasks))


def pairs(rng: np.random.Generator, rank: int, dim_in: int, dim_out: int) -> tuple[Floats, Floats]:
    return rng.normal(size=(rank, dim_in)).astype(np.float32), rng.normal(size=(rank, dim_out)).astype(np.float32)


def filled(
    seed: int, dim_in: int, dim_out: int, rank: int, tasks: int, strength: float = 2000.0, **changes: Any
) -> tuple[LowRankEwc, Dense]:
    rng = np.random.default_rng(seed)
    config = EwcConfig(**{"initial_lambda": strength, "min_lambda": strength / 1e3, "max_lambda": strength * 1e3} | changes)
    ewc, dense = LowRankEwc(dim_in, dim_out, config), Dense(strength)
    for _ in range(tasks):
        ewc.update_fisher(
            rng.normal(size=(6, dim_in)) * rng.gamma(1, size=dim_in), rng.normal(size=(6, dim_out)) * rng.gamma(1, size=dim_out)
        )
        task = ewc.start_new_task(*pairs(rng, rank, dim_in, dim_out))
        dense.tasks.append((fisher(task), anchor(task)))
    return ewc, dense


def close(got: Any, want: Any, scale: float = 1.0, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# ---- the Fisher of the product ----


@given(seeds, dims, dims)
def test_of_one_sample_the_factors_are_the_exact_diagonal(seed: int, dim_in: int, dim_out: int) -> None:
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=dim_in), rng.normal(size=dim_out)
    ewc = LowRankEwc(dim_in, dim_out)
    ewc.update_fisher(x, g)
    close(np.outer(ewc.inputs, ewc.outputs), np.outer(x, g) ** 2)


def test_where_squares_are_uncorrelated_the_factors_approach_the_exact_diagonal(rng: np.random.Generator) -> None:
    """The exact diagonal is what `EwcPlusPlus` keeps of the whole matrix, fed with outer products."""
    d, samples = 32, 4000
    x, g = rng.normal(size=(samples, d)) * np.linspace(0.1, 2, d), rng.normal(size=(samples, d)) * np.linspace(2, 0.1, d)
    ewc, exact = LowRankEwc(d, d, EwcConfig(fisher_ema_decay=0.9999)), EwcPlusPlus(d * d, EwcConfig(fisher_ema_decay=0.9999))
    for each_x, each_g in zip(x, g, strict=True):
        ewc.update_fisher(each_x, each_g)
        exact.update_fisher(np.outer(each_x, each_g).ravel())
    ratio = np.outer(ewc.inputs, ewc.outputs) / exact.fisher.reshape(d, d)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.1


def test_the_factors_are_means_of_squares_and_a_batch_is_its_rows(rng: np.random.Generator) -> None:
    x, g = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32)
    batch, single = LowRankEwc(4, 3), LowRankEwc(4, 3)
    batch.update_fisher(x, g)
    for each_x, each_g in zip(x, g, strict=True):
        single.update_fisher(each_x, each_g)
    close(batch.inputs, (x.astype(np.float64) ** 2).mean(axis=0))
    close(batch.outputs, (g.astype(np.float64) ** 2).mean(axis=0))
    assert same(batch.state(), single.state())


def test_a_task_ends_with_factors_up_to_1() -> None:
    ewc = LowRankEwc(2, 3)
    ewc.update_fisher([3.0, 0.0], [1.0, 2.0, 4.0])
    task = ewc.start_new_task(np.ones((1, 2)), np.ones((1, 3)))
    assert task.inputs.tolist() == [1, 0]
    assert task.outputs.tolist() == [1 / 16, 1 / 4, 1]
    assert not ewc.inputs.any()
    assert not ewc.outputs.any()


def test_nothing_learned_protects_nothing() -> None:
    ewc = LowRankEwc(2, 2)
    for _ in range(12):
        ewc.update_fisher(np.zeros(2), np.ones(2))
        ewc.start_new_task(np.ones((1, 2)), np.ones((1, 2)))
    assert ewc.regularization_loss(5 * np.ones((1, 2)), np.ones((1, 2))) == 0


# ---- the penalty ----


@given(seeds, dims, dims, ranks, ranks, st.integers(1, 10))
def test_the_penalty_is_that_of_the_dense_matrix(seed: int, dim_in: int, dim_out: int, r: int, s: int, tasks: int) -> None:
    ewc, dense = filled(seed, dim_in, dim_out, r, tasks)
    down, up = pairs(np.random.default_rng(seed + 1), s, dim_in, dim_out)
    scale = 2000 * tasks * (1 + np.abs(product(down, up)).max() ** 2 + max(np.abs(at).max() for _, at in dense.tasks) ** 2)
    close(ewc.regularization_loss(down, up), dense.loss(product(down, up)), scale * dim_in * dim_out, 1e-10)
    close(product(*ewc.regularization_gradient(down, up)), dense.gradient(product(down, up)), scale, 1e-6)


def test_the_penalty_is_not_silently_zero_and_vanishes_at_the_anchor(rng: np.random.Generator) -> None:
    ewc, _ = filled(0, 8, 8, 2, 1)
    task = ewc.tasks[0]
    assert ewc.regularization_loss(*pairs(rng, 2, 8, 8)) > 1
    assert ewc.regularization_loss(task.down, task.up) == pytest.approx(0, abs=1e-9)


@given(seeds)
def test_the_gradient_is_that_of_finite_differences(seed: int) -> None:
    ewc, _ = filled(seed, 3, 4, 2, 2)
    w = np.round(np.random.default_rng(seed + 1).normal(size=(3, 4)) * 64) / 64
    identity, h = np.eye(3), 2.0**-4

    def loss(at: Doubles) -> float:
        return ewc.regularization_loss(identity, at)  # W = identity^T at

    want = np.zeros((3, 4))
    for i, j in np.ndindex(3, 4):
        e = np.zeros((3, 4))
        e[i, j] = h
        want[i, j] = (loss(w + e) - loss(w - e)) / (2 * h)
    close(product(*ewc.regularization_gradient(identity, w)), want, ewc.lambda_ * 10, 1e-6)


@given(seeds)
def test_only_the_product_counts_not_its_factors(seed: int) -> None:
    """Rotated, rescaled and longer pairs of the same product."""
    ewc, _ = filled(seed, 7, 6, 3, 2)
    rng = np.random.default_rng(seed + 1)
    down, up = (array.astype(np.float64) for array in pairs(rng, 3, 7, 6))
    mix = rng.normal(size=(3, 3)) + 3 * np.eye(3)
    other = np.vstack([mix.T @ down, np.zeros((1, 7))]), np.vstack([np.linalg.solve(mix, up), np.ones((1, 6))])
    assert ewc.regularization_loss(*other) == pytest.approx(ewc.regularization_loss(down, up), rel=1e-3)
    close(
        ewc.proximal_step(*other, rank=6)[0].T @ ewc.proximal_step(*other, rank=6)[1], product(*ewc.proximal_step(down, up, rank=6)[:2]), 10
    )


def test_before_the_first_task_there_is_no_penalty(rng: np.random.Generator) -> None:
    ewc = LowRankEwc(5, 4)
    down, up = pairs(rng, 2, 5, 4)
    assert ewc.regularization_loss(down, up) == 0
    assert [a.shape for a in ewc.regularization_gradient(down, up)] == [(0, 5), (0, 4)]
    pulled = ewc.proximal_step(down, up, rank=2)
    close(product(pulled.down, pulled.up), product(down, up))
    assert pulled.discarded == pytest.approx(0, abs=1e-6)


# ---- steps ----


@given(seeds, dims, dims, ranks, st.integers(1, 10), st.sampled_from([1e-3, 1.0, 2000.0, 1e12]), st.sampled_from([1e-3, 1.0, 10.0]))
def test_the_proximal_step_is_the_closed_form(
    seed: int, dim_in: int, dim_out: int, r: int, tasks: int, strength: float, rate: float
) -> None:
    ewc, dense = filled(seed, dim_in, dim_out, r, tasks, strength)
    down, up = pairs(np.random.default_rng(seed + 1), r, dim_in, dim_out)
    want = dense.proximal(product(down, up), rate)
    got = ewc.proximal_step(down, up, rank=min(dim_in, dim_out), rate=rate)
    close(product(got.down, got.up), want, 1 + float(np.abs(want).max()))
    assert got.discarded < 1e-9


def test_the_arguments_are_left_as_they_are(rng: np.random.Generator) -> None:
    ewc, _ = filled(0, 5, 4, 2, 1)
    down, up = pairs(rng, 2, 5, 4)
    copies = down.copy(), up.copy()
    ewc.regularization_gradient(down, up)
    ewc.proximal_step(down, up, rank=2)
    ewc.update_fisher(down, up)
    task = ewc.start_new_task(down, up)
    down += 1
    up += 1
    assert np.array_equal(task.down, copies[0])
    assert np.array_equal(task.up, copies[1])
    with pytest.raises(ValueError, match="read-only"):
        task.down[0] = 1


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_lower_rank_is_the_best_of_that_rank(rank: int) -> None:
    """Error against that of the truncated SVD of the dense result, over more rows than one block holds."""
    ewc, dense = filled(0, 300, 60, 4, 3, 3.0)
    down, up = pairs(np.random.default_rng(1), 4, 300, 60)
    want = dense.proximal(product(down, up), 1.0)
    values = np.linalg.svd(want, compute_uv=False)
    least = float((values[rank:] ** 2).sum() / (values**2).sum())
    got = ewc.proximal_step(down, up, rank=rank)
    assert got.down.shape == (rank, 300)
    assert got.up.shape == (rank, 60)
    error = float(((product(got.down, got.up) - want) ** 2).sum() / (want**2).sum())
    assert error <= 1.02 * least + 1e-9
    assert got.discarded == pytest.approx(error, abs=1e-5)


def test_a_step_is_the_same_every_time() -> None:
    ewc, _ = filled(0, 40, 30, 3, 2)
    down, up = pairs(np.random.default_rng(1), 3, 40, 30)
    first, second = (ewc.proximal_step(down, up, rank=3) for _ in range(2))
    assert np.array_equal(first.down, second.down)
    assert np.array_equal(first.up, second.up)


@pytest.mark.parametrize("strength", [1.0, 1e6, 1e12, 1e30])
def test_any_lambda_pulls_towards_the_anchor_and_never_past_it(strength: float) -> None:
    ewc, _ = filled(3, 10, 9, 2, 1, strength)
    at, goal = pairs(np.random.default_rng(4), 9, 10, 9), anchor(ewc.tasks[0])
    first = ewc.regularization_loss(*at)
    for _ in range(5):
        step = ewc.proximal_step(*at, rank=9)
        before, after = product(*at) - goal, product(step.down, step.up) - goal
        assert (np.abs(after) <= np.abs(before) + 1e-5).all()
        at = step.down, step.up
    assert ewc.regularization_loss(*at) < first * (0.9 if strength == 1 else 1e-6)


# ---- many tasks ----


@given(seeds, st.integers(0, 3))
def test_two_merged_tasks_keep_the_minimiser_of_the_sum_of_their_penalties(seed: int, rank: int) -> None:
    ewc, dense = filled(seed, 7, 6, rank, 2, max_tasks=1)
    (task,) = ewc.tasks
    best = dense.minimiser()
    values = np.linalg.svd(best, compute_uv=False)
    kept = max(1, 2 * rank)
    error = np.linalg.norm(anchor(task) - best)
    assert error <= 1.02 * np.linalg.norm(values[kept:]) + 1e-5 * (1 + values[0])
    assert (task.task_id, len(task.down)) == (1, min(kept, 6))


def test_with_room_for_it_the_minimiser_is_exact() -> None:
    ewc, dense = filled(0, 30, 30, 20, 2, max_tasks=1)
    close(anchor(ewc.tasks[0]), dense.minimiser(), float(np.abs(dense.minimiser()).max()))


@given(seeds, st.integers(2, 12))
def test_merged_tasks_keep_the_sums_of_the_fisher_over_rows_and_columns(seed: int, tasks: int) -> None:
    ewc, dense = filled(seed, 5, 6, 1, tasks)
    ewc.consolidate_all_tasks()
    (task,) = ewc.tasks
    total = np.asarray(sum(f for f, _ in dense.tasks))
    close(fisher(task).sum(axis=0), total.sum(axis=0), tasks * 5)
    close(fisher(task).sum(axis=1), total.sum(axis=1), tasks * 5)


def test_tasks_that_share_a_factor_merge_exactly(rng: np.random.Generator) -> None:
    ewc, dense = LowRankEwc(6, 5, EwcConfig(max_tasks=1)), Dense(2000.0)
    x = rng.normal(size=(10, 6))
    for _ in range(2):
        ewc.update_fisher(x, rng.normal(size=(10, 5)) * rng.gamma(1, size=5))
        task = ewc.start_new_task(*pairs(rng, 5, 6, 5))
        dense.tasks.append((fisher(task), anchor(task)))
    w = pairs(rng, 3, 6, 5)
    close(product(*ewc.regularization_gradient(*w)), dense.gradient(product(*w)), 2e4)


@pytest.mark.parametrize("tasks", [10, 11, 50])
def test_any_number_of_tasks_is_bounded_and_none_is_dropped(tasks: int) -> None:
    ewc, dense = filled(1, 80, 70, 3, tasks)
    assert len(ewc.tasks) == 10
    assert ewc.ended == tasks
    assert len(ewc.tasks[0].down) <= ANCHOR_RANK
    assert sum(fisher(task).sum() for task in ewc.tasks) == pytest.approx(sum(f.sum() for f, _ in dense.tasks), rel=1e-4)


@pytest.mark.slow
def test_five_tasks_of_digits_are_kept_better_under_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    """More accuracy on all tasks at the end, nearly as much on each at its own end."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "asv_benchmarks")
    from five_tasks import STRENGTH, five_tasks

    free, pulled = ([five_tasks("shift", seed, strength) for seed in (10, 11)] for strength in (0.0, STRENGTH))
    gains = [b.average - a.average for a, b in zip(free, pulled, strict=True)]
    assert min(gains) > 0.04
    assert min(b.own - a.own for a, b in zip(free, pulled, strict=True)) > -0.03


# ---- state ----


def busy() -> LowRankEwc:
    ewc, _ = filled(5, 6, 4, 2, 12, max_lambda=15000.0)
    ewc.update_fisher(np.ones(6), np.ones(4))
    ewc.adapt_lambda(0.05)
    ewc.detect_task_boundary(0.25)
    return ewc


def test_it_goes_on_after_a_restart_bit_for_bit(tmp_path: Path) -> None:
    ewc = busy()
    save_file(ewc.state(), tmp_path / "ewc.safetensors")
    other = LowRankEwc(6, 4, ewc.config)
    other.restore(load_file(tmp_path / "ewc.safetensors"))
    assert same(other.state(), ewc.state())
    for each in (ewc, other):
        each.update_fisher(np.arange(6), np.arange(4))
        each.start_new_task(np.ones((1, 6)), np.ones((1, 4)))
        each.detect_task_boundary(-0.5)
    assert same(other.state(), ewc.state())


def test_a_new_one_and_an_empty_anchor_have_a_state_too(tmp_path: Path) -> None:
    ewc = LowRankEwc(3, 2)
    for _ in range(2):
        save_file(ewc.state(), tmp_path / "ewc.safetensors")
        other = LowRankEwc(3, 2)
        other.restore(load_file(tmp_path / "ewc.safetensors"))
        assert same(other.state(), ewc.state())
        ewc.update_fisher(np.ones(3), np.ones(2))
        ewc.start_new_task(np.zeros((0, 3)), np.zeros((0, 2)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", np.full(6, np.nan, np.float32)),
        ("outputs", np.full(4, -1, np.float32)),
        ("outputs", np.zeros(5, np.float32)),
        ("tasks.id", np.arange(9)),
        ("tasks.importance", np.zeros(10)),
        ("tasks.3.inputs", np.full(6, 1.5, np.float32)),
        ("tasks.3.down", np.zeros((2, 5), np.float32)),
        ("tasks.3.up", np.zeros((1, 4), np.float32)),
        ("tasks.3.up", np.full((2, 4), np.inf, np.float32)),
        ("tasks.3.up", None),
        ("adwin.total", np.array([np.nan])),
    ],
)
def test_a_damaged_state_is_refused(name: str, value: Any) -> None:
    ewc, other = busy(), LowRankEwc(6, 4)
    state = ewc.state() | {name: value}
    if value is None:
        del state[name]
    with pytest.raises(SonaValueError, match="expected"):
        other.restore(state)
    assert same(other.state(), LowRankEwc(6, 4).state())


def test_a_state_fits_into_fewer_tasks() -> None:
    ewc, small = busy(), LowRankEwc(6, 4, EwcConfig(max_tasks=2))
    small.restore(ewc.state())
    assert len(small.tasks) == 2
    assert sum(fisher(task).sum() for task in small.tasks) == pytest.approx(sum(fisher(task).sum() for task in ewc.tasks), rel=1e-4)


# ---- refusals ----

D, U = np.ones((2, 3)), np.ones((2, 4))
BIG = np.full((1, 3), 3e38)
REFUSED: list[tuple[Callable[[LowRankEwc], object], str]] = [
    *(
        (call, message)
        for down, up, message in (
            (np.ones((2, 4)), U, r"down: expected shape \(n, 3\), got \(2, 4\)"),
            (D, np.ones((3, 4)), r"up: expected shape \(2, 4\), got \(3, 4\)"),
            (np.ones(3), U, r"down: expected shape \(n, 3\), got \(3,\)"),
            (np.ones((0, 3)), U, "down: expected at least one row"),
            (D * np.nan, U, "down: expected finite"),
            (D, U * np.inf, "up: expected finite"),
            ([["a"] * 3], U, "down: expected an array of real numbers"),
        )
        for call in (
            lambda ewc, down=down, up=up: ewc.start_new_task(down, up),
            lambda ewc, down=down, up=up: ewc.regularization_loss(down, up),
            lambda ewc, down=down, up=up: ewc.regularization_gradient(down, up),
            lambda ewc, down=down, up=up: ewc.proximal_step(down, up, rank=1),
        )
    ),
    (lambda ewc: ewc.update_fisher(np.ones(4), np.ones(4)), r"x: expected shape \(3,\), got \(4,\)"),
    (lambda ewc: ewc.update_fisher(np.ones(3), np.ones(3)), r"g: expected shape \(4,\), got \(3,\)"),
    (lambda ewc: ewc.update_fisher(D, np.ones((3, 4))), r"g: expected shape \(2, 4\), got \(3, 4\)"),
    (lambda ewc: ewc.update_fisher([1, np.nan, 1], np.ones(4)), "x: expected finite"),
    (lambda ewc: ewc.update_fisher(np.ones(3), [1, 1, 1, np.inf]), "g: expected finite"),
    (lambda ewc: ewc.update_fisher(np.ones(3), [1, 1, 1, 1e20]), "g: expected a squared norm within float32"),
    (lambda ewc: ewc.regularization_gradient(BIG, np.ones((1, 4))), "down, up: expected a distance"),
    (lambda ewc: ewc.proximal_step(D, U, rank=0), "rank: expected an int from 1 to 3, got 0"),
    (lambda ewc: ewc.proximal_step(D, U, rank=4), "rank: expected an int from 1 to 3, got 4"),
    (lambda ewc: ewc.proximal_step(D, U, rank=1, rate=0.0), "rate: expected a positive number"),
    (lambda ewc: ewc.adapt_lambda(math.nan), "forgetting: expected a finite number"),
    (lambda ewc: ewc.detect_task_boundary(math.nan), "surprise: expected a finite number"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_input_is_refused_and_changes_nothing(call: Callable[[LowRankEwc], object], message: str) -> None:
    ewc, _ = filled(2, 3, 4, 2, 2)
    ewc.update_fisher(np.ones(3), np.ones(4))
    before = ewc.state()
    with pytest.raises((SonaValueError, SonaTypeError), match=message):
        call(ewc)
    assert same(ewc.state(), before)


def test_a_task_without_samples_cannot_end() -> None:
    with pytest.raises(SonaValueError, match="expected at least one sample"):
        LowRankEwc(3, 4).start_new_task(D, U)


@pytest.mark.parametrize(("dims", "message"), [((0, 3), "dim_in"), ((3, 1.5), "dim_out")])
def test_dims_are_positive_ints(dims: Any, message: str) -> None:
    with pytest.raises(SonaValueError, match=f"{message}: expected an int of at least 1"):
        LowRankEwc(*dims)


# ---- shards ----


@given(seeds, st.integers(1, 5), st.integers(0, 200), st.integers(1, 200))
def test_the_fisher_of_shards_is_that_of_one_pass(seed: int, count: int, first: int, rest: int) -> None:
    rng = np.random.default_rng(seed)
    x, g = (10 ** rng.uniform(-2, 2, (first + rest, 1)) * rng.normal(size=(first + rest, d)) for d in (6, 4))
    whole, merged = LowRankEwc(6, 4), LowRankEwc(6, 4)
    vector, joined = EwcPlusPlus(6), EwcPlusPlus(6)
    whole.update_fisher(x, g)
    vector.update_fisher(x)
    merged.update_fisher(x[:first], g[:first]) if first else None
    joined.update_fisher(x[:first]) if first else None
    for shard in range(count):
        some, one = LowRankEwc(6, 4), EwcPlusPlus(6)
        if len(range(first + shard, first + rest, count)):
            some.update_fisher(x[first + shard :: count], g[first + shard :: count])
            one.update_fisher(x[first + shard :: count])
        merged.merge_fisher(some)
        joined.merge_fisher(one)
    assert merged.samples == joined.samples == first + rest
    for got, want in ((merged.inputs, whole.inputs), (merged.outputs, whole.outputs), (joined.fisher, vector.fisher)):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-5 * float(want.max()))


def test_fisher_estimates_of_other_shapes_do_not_merge() -> None:
    one, other = LowRankEwc(3, 2), LowRankEwc(2, 3)
    one.update_fisher(np.ones(3), np.ones(2))
    other.update_fisher(np.ones(2), np.ones(3))
    before = one.state()
    with pytest.raises(SonaValueError, match="merge_fisher: expected estimates of shapes"):
        one.merge_fisher(other)
    assert all(np.array_equal(value, before[name]) for name, value in one.state().items())
