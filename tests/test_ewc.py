"""Promises of EWC++: the penalty is the formula, a step is stable for any lambda, no task is dropped, bad input changes nothing.

`Oracle` is the definition in float64, task by task; the ring under test is compared with it.
"""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sona.errors import SonaTypeError, SonaValueError
from sona.ewc import EwcConfig, EwcPlusPlus
from sona.ewc.rule import FISHER_RANGE

Doubles = npt.NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 40)
lambdas = st.sampled_from([1e-3, 1.0, 2000.0, 1e12])


@dataclass
class Oracle:
    """Penalties of all tasks ever, none merged: (F, w*) of each, in float64."""

    strength: float
    tasks: list[tuple[Doubles, Doubles]] = field(default_factory=list)

    def loss(self, w: Doubles) -> float:
        return self.strength / 2 * sum(float(f @ (w - anchor) ** 2) for f, anchor in self.tasks)

    def gradient(self, w: Doubles) -> Doubles:
        return self.strength * sum((f * (w - anchor) for f, anchor in self.tasks), np.zeros_like(w))

    def proximal(self, w: Doubles, rate: float) -> Doubles:
        total, pulled = np.zeros_like(w), np.zeros_like(w)
        for f, anchor in self.tasks:
            total, pulled = total + f, pulled + f * anchor
        return (w + rate * self.strength * pulled) / (1 + rate * self.strength * total)


def config(strength: float, **changes: Any) -> EwcConfig:
    return EwcConfig(**{"initial_lambda": strength, "min_lambda": strength / 1e3, "max_lambda": strength * 1e3} | changes)


def filled(seed: int, n: int, tasks: int, strength: float = 2000.0, **changes: Any) -> tuple[EwcPlusPlus, Oracle]:
    """An EWC++ after `tasks` tasks, and the oracle that saw the same."""
    rng = np.random.default_rng(seed)
    ewc, oracle = EwcPlusPlus(n, config(strength, **changes)), Oracle(strength)
    for _ in range(tasks):
        ewc.update_fisher(rng.normal(size=(5, n)) * rng.gamma(0.3, size=n))
        task = ewc.start_new_task(rng.normal(size=n))
        oracle.tasks.append((task.fisher.astype(np.float64), task.optimal_weights.astype(np.float64)))
    return ewc, oracle


def close(got: Any, want: Any, scale: Any = 1.0, tolerance: float = 1e-5) -> None:
    """|got - want| <= tolerance (|want| + scale)"""
    error = np.abs(np.asarray(got, np.float64) - want)
    assert (error <= tolerance * (np.abs(want) + scale)).all(), float(np.max(error))


def same(a: dict[str, np.ndarray[Any, Any]], b: dict[str, np.ndarray[Any, Any]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# ---- the Fisher estimate ----


@given(seeds, lengths, st.integers(1, 30))
def test_the_fisher_is_the_mean_of_squared_gradients_of_single_samples(seed: int, n: int, samples: int) -> None:
    gradients = np.random.default_rng(seed).normal(size=(samples, n)).astype(np.float32)
    ewc = EwcPlusPlus(n)
    ewc.update_fisher(gradients)
    close(ewc.fisher, (gradients.astype(np.float64) ** 2).mean(axis=0))
    assert ewc.samples == samples


def test_the_square_of_the_mean_would_be_something_else() -> None:
    """Gradients that cancel, as they do at an optimum."""
    ewc = EwcPlusPlus(2)
    ewc.update_fisher([[1.0, 0.0], [-1.0, 0.0]])
    assert ewc.fisher.tolist() == [1.0, 0.0]


@given(seeds, st.sampled_from([0.0, 0.5, 0.9, 0.999]))
def test_the_mean_turns_exponential(seed: int, decay: float) -> None:
    gradients = np.random.default_rng(seed).normal(size=(40, 3)).astype(np.float32)
    ewc, want = EwcPlusPlus(3, EwcConfig(fisher_ema_decay=decay)), np.zeros(3)
    for t, g in enumerate(gradients.astype(np.float64), 1):
        a = max(1 / t, 1 - decay)
        want = (1 - a) * want + a * g**2
    ewc.update_fisher(gradients)
    close(ewc.fisher, want)


def test_a_batch_is_its_rows_one_by_one(rng: np.random.Generator) -> None:
    gradients = rng.normal(size=(20, 7))
    batch, single = EwcPlusPlus(7), EwcPlusPlus(7)
    batch.update_fisher(gradients)
    for row in gradients:
        single.update_fisher(row)
    assert same(batch.state(), single.state())


# ---- normalisation at the end of a task ----


def test_a_task_ends_with_a_fisher_from_0_to_1(rng: np.random.Generator) -> None:
    gradients = rng.normal(size=(50, 20)) * np.linspace(1e-4, 1e-2, 20)
    ewc = EwcPlusPlus(20)
    ewc.update_fisher(gradients)
    raw = ewc.fisher.astype(np.float64)
    task = ewc.start_new_task(np.zeros(20))
    close(task.fisher, (raw - raw.min()) / (raw.max() - raw.min()))
    assert (task.fisher.min(), task.fisher.max()) == (0.0, 1.0)


def test_one_huge_value_does_not_free_all_others() -> None:
    gradients = np.full(1000, 1e-3)
    gradients[0], gradients[1] = 1e15, 0.0
    ewc = EwcPlusPlus(1000)
    ewc.update_fisher(gradients)
    assert ewc.start_new_task(np.zeros(1000)).fisher[2:] == pytest.approx(1 / FISHER_RANGE)


def test_nothing_learned_protects_nothing_and_equal_values_protect_alike() -> None:
    for gradient, want in ((0.0, 0.0), (3e-4, 1.0)):
        ewc = EwcPlusPlus(4)
        ewc.update_fisher(np.full(4, gradient))
        assert ewc.start_new_task(np.ones(4)).fisher.tolist() == [want] * 4
        assert (ewc.regularization_loss(np.zeros(4)) > 0) == (want > 0)


def test_the_next_task_starts_without_the_last_ones_fisher(rng: np.random.Generator) -> None:
    ewc, _ = filled(0, 5, 1)
    assert ewc.samples == 0
    assert not ewc.fisher.any()
    ewc.update_fisher([0, 0, 2, 0, 0])
    assert ewc.start_new_task(np.zeros(5)).fisher.tolist() == [0, 0, 1, 0, 0]


# ---- the penalty ----


@given(seeds, lengths, st.integers(1, 10), lambdas)
def test_the_penalty_is_the_formula(seed: int, n: int, tasks: int, strength: float) -> None:
    ewc, oracle = filled(seed, n, tasks, strength)
    w = np.random.default_rng(seed + 1).normal(size=n).astype(np.float32)
    wide = w.astype(np.float64)
    loss = ewc.regularization_loss(w)
    assert loss == pytest.approx(oracle.loss(wide), rel=1e-5)
    close(ewc.regularization_gradient(w), oracle.gradient(wide), strength * tasks * (1 + np.abs(wide)))


def test_the_penalty_is_not_silently_zero(rng: np.random.Generator) -> None:
    ewc, _ = filled(0, 30, 3)
    assert ewc.regularization_loss(rng.normal(size=30)) > 1
    assert np.abs(ewc.regularization_gradient(rng.normal(size=30))).max() > 1


@given(seeds, st.integers(1, 12))
def test_the_gradient_is_that_of_finite_differences(seed: int, tasks: int) -> None:
    n, h = 6, 2.0**-4
    ewc, _ = filled(seed, n, tasks)
    w = np.round(np.random.default_rng(seed + 1).normal(size=n) * 64) / 64  # w + h and w - h are float32 numbers
    difference = [(ewc.regularization_loss(w + h * e) - ewc.regularization_loss(w - h * e)) / (2 * h) for e in np.eye(n)]
    close(ewc.regularization_gradient(w), np.array(difference), ewc.lambda_ * tasks * (1 + np.abs(w)), 1e-6)


def test_the_penalty_vanishes_at_the_anchor_of_a_single_task(rng: np.random.Generator) -> None:
    ewc, _ = filled(0, 10, 1)
    anchor = ewc.tasks[0].optimal_weights
    assert ewc.regularization_loss(anchor) == 0
    assert not ewc.regularization_gradient(anchor).any()


# ---- steps ----


@given(seeds, lengths, st.integers(1, 12), lambdas, st.sampled_from([1e-3, 1.0, 10.0]))
def test_the_proximal_step_is_the_closed_form(seed: int, n: int, tasks: int, strength: float, rate: float) -> None:
    ewc, oracle = filled(seed, n, tasks, strength)
    w = np.random.default_rng(seed + 1).normal(size=n).astype(np.float32)
    close(ewc.proximal_step(w, rate), oracle.proximal(w.astype(np.float64), rate), 3.0)


@given(seeds, st.sampled_from([1e-3, 1.0, 10.0]), lambdas)
def test_constrained_gradients_are_proximal_steps(seed: int, rate: float, strength: float) -> None:
    """w + rate g' is the proximal step from w + rate g."""
    ewc, oracle = filled(seed, 8, 3, strength)
    g, w = np.random.default_rng(seed + 1).normal(size=(2, 8)).astype(np.float32)
    got = w + np.float64(rate) * ewc.apply_constraints(g, w, rate)
    close(got, oracle.proximal(w + np.float64(rate) * g, rate), 3 * (1 + rate))


@pytest.mark.parametrize("strength", [1.0, 1e6, 1e12, 1e30])
def test_any_lambda_pulls_towards_the_anchor_and_never_past_it(strength: float, rng: np.random.Generator) -> None:
    ewc, _ = filled(3, 50, 1, strength)
    task = ewc.tasks[0]
    w = rng.normal(size=50).astype(np.float32)
    for _ in range(200):
        nearer = ewc.proximal_step(w, 0.1)
        before, after = w - task.optimal_weights, nearer - task.optimal_weights
        assert (np.abs(after) <= np.abs(before) + 1e-6).all()
        assert (after * before >= -1e-6).all()
        w = nearer
    important = task.fisher > 0.2
    assert important.any()
    assert np.abs(w - task.optimal_weights)[important].max() < (0.1 if strength == 1 else 1e-6)


def test_the_largest_lambda_and_rate_do_not_overflow() -> None:
    ewc, _ = filled(3, 10, 1, 1e30, max_lambda=3e38)
    for _ in range(40):
        ewc.adapt_lambda(1.0)
    assert ewc.lambda_ == 3e38
    task = ewc.tasks[0]
    got = ewc.proximal_step(np.ones(10), 1e6)
    assert got[task.fisher > 0] == pytest.approx(task.optimal_weights[task.fisher > 0], abs=1e-6)


def test_a_plain_gradient_step_diverges_where_the_proximal_one_does_not() -> None:
    ewc, _ = filled(3, 10, 1, 1e6)
    w = np.ones(10)
    for _ in range(5):
        w = w - ewc.regularization_gradient(w)
    assert np.abs(w).max() > 1e20


def test_what_does_not_matter_keeps_every_bit() -> None:
    ewc = EwcPlusPlus(3, config(1e12))
    ewc.update_fisher([0.0, 1.0, 0.5])
    ewc.start_new_task([1e6, 1.0, 1.0])
    got = ewc.proximal_step([0.1, 5.0, 5.0])
    assert got[0] == np.float32(0.1)
    assert got[1:] == pytest.approx([1.0, 1.0])


def test_without_weights_the_step_is_the_roadmaps_scaling(rng: np.random.Generator) -> None:
    ewc, oracle = filled(0, 12, 3)
    g = rng.normal(size=12).astype(np.float32)
    total = sum(f for f, _ in oracle.tasks)
    close(ewc.apply_constraints(g), g / (1 + 2000 * np.asarray(total)), 0.0)


def test_before_the_first_task_nothing_is_constrained(rng: np.random.Generator) -> None:
    ewc = EwcPlusPlus(5)
    g = rng.normal(size=5).astype(np.float32)
    ewc.update_fisher(g)
    for out in (ewc.apply_constraints(g), ewc.apply_constraints(g, g), ewc.proximal_step(g)):
        assert np.array_equal(out, g)
        assert not np.shares_memory(out, g)
    assert ewc.regularization_loss(g) == 0
    assert not ewc.regularization_gradient(g).any()


def test_the_arguments_are_left_as_they_are(rng: np.random.Generator) -> None:
    ewc, _ = filled(0, 5, 2)
    g, w = rng.normal(size=(2, 5)).astype(np.float32)
    copies = g.copy(), w.copy()
    ewc.apply_constraints(g, w)
    ewc.proximal_step(w)
    ewc.update_fisher(g)
    task = ewc.start_new_task(w)
    w += 1
    assert np.array_equal(g, copies[0])
    assert np.array_equal(task.optimal_weights, copies[1])
    with pytest.raises(ValueError, match="read-only"):
        task.fisher[0] = 1


def test_a_second_task_learned_under_the_pull_keeps_the_first(rng: np.random.Generator) -> None:
    """Two regressions that share half of their inputs, the second learned by gradient steps: error on the first, and on the second."""
    n = 20
    truth = rng.normal(size=(2, n))
    inputs = rng.normal(size=(2, 400, n))
    inputs[0, :, n // 2 :] = 0  # the first task leaves half of the weights free
    targets = [x @ w for x, w in zip(inputs, truth, strict=True)]
    first = np.r_[truth[0, : n // 2], np.zeros(n // 2)]
    errors = {}
    for strength in (1e-6, 1e4):
        ewc = EwcPlusPlus(n, config(strength))
        ewc.update_fisher(inputs[0] * rng.normal(size=(400, 1)))  # gradients of a unit-variance likelihood
        ewc.start_new_task(first)
        w = first.copy()
        for _ in range(300):
            g = inputs[1].T @ (targets[1] - inputs[1] @ w) / 400
            w = w + 0.1 * ewc.apply_constraints(g, w, 0.1)
        errors[strength] = [float(np.mean((x @ w - y) ** 2)) for x, y in zip(inputs, targets, strict=True)]
    assert errors[1e-6][0] > 1
    assert errors[1e4][0] < 0.01 * errors[1e-6][0]
    both = np.r_[truth[0, : n // 2], truth[1, n // 2 :]]  # what the second task can reach without touching the first
    assert errors[1e4][1] < 1.1 * float(np.mean((inputs[1] @ both - targets[1]) ** 2))


# ---- many tasks ----


@pytest.mark.parametrize("tasks", [1, 10, 11, 50])
def test_any_number_of_tasks_is_bounded_and_none_is_dropped(tasks: int) -> None:
    ewc, oracle = filled(1, 16, tasks)
    assert len(ewc.tasks) == min(tasks, 10)
    assert ewc.ended == tasks
    assert sum(task.importance for task in ewc.tasks) == tasks
    w = np.random.default_rng(9).normal(size=16).astype(np.float32)
    close(ewc.regularization_gradient(w), oracle.gradient(w.astype(np.float64)), 2000.0 * tasks)
    close(ewc.proximal_step(w, 1e-3), oracle.proximal(w.astype(np.float64), 1e-3), 3.0)


def test_the_state_of_fifty_tasks_is_no_larger_than_that_of_ten() -> None:
    sizes = [sum(a.nbytes for a in filled(1, 64, tasks)[0].state().values()) for tasks in (10, 50)]
    assert sizes[0] == sizes[1]


@given(seeds, lengths)
def test_two_merged_tasks_keep_the_minimiser_of_the_sum_of_their_penalties(seed: int, n: int) -> None:
    ewc, oracle = filled(seed, n, 2, max_tasks=1)
    (task,) = ewc.tasks
    (f0, w0), (f1, w1) = oracle.tasks
    matters = f0 + f1 > 0
    best = (f0 * w0 + f1 * w1)[matters] / (f0 + f1)[matters]
    close(task.optimal_weights[matters], best)
    assert task.task_id == 1
    assert task.importance == 2
    close(2 * task.fisher, f0 + f1)


@given(seeds, st.integers(2, 12), lambdas)
def test_consolidation_changes_no_gradient(seed: int, tasks: int, strength: float) -> None:
    ewc, oracle = filled(seed, 9, tasks, strength)
    ewc.consolidate_all_tasks()
    assert len(ewc.tasks) == 1
    w = np.random.default_rng(seed + 1).normal(size=9).astype(np.float32)
    close(ewc.regularization_gradient(w), oracle.gradient(w.astype(np.float64)), strength * tasks * (1 + np.abs(w)))
    before = ewc.state()
    ewc.consolidate_all_tasks()
    assert same(ewc.state(), before)


def test_consolidating_nothing_is_fine() -> None:
    ewc = EwcPlusPlus(3)
    ewc.consolidate_all_tasks()
    assert ewc.tasks == ()


# ---- lambda ----


def test_lambda_rises_with_forgetting_and_falls_without() -> None:
    ewc = EwcPlusPlus(1)
    assert ewc.lambda_ == 2000
    assert ewc.adapt_lambda(0.02) == 2000
    assert EwcPlusPlus(1).adapt_lambda(0.01) == pytest.approx(1900)
    assert ewc.adapt_lambda(0.03) == pytest.approx(3000)
    assert ewc.adapt_lambda(0.5) == pytest.approx(6000)
    assert ewc.adapt_lambda(0.0) == pytest.approx(5400)
    assert ewc.adapt_lambda(-0.3) == pytest.approx(4860)
    assert ewc.lambda_ == pytest.approx(4860)


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(100, 15000))
def test_lambda_is_monotone_in_what_was_forgotten(a: float, b: float, start: float) -> None:
    low, high = (EwcPlusPlus(1, EwcConfig(initial_lambda=start)).adapt_lambda(f) for f in sorted((a, b)))
    assert low <= high


@given(st.lists(st.floats(-1, 1), max_size=60))
def test_lambda_stays_within_its_ends(measured: list[float]) -> None:
    ewc = EwcPlusPlus(1)
    for forgetting in measured:
        assert 100 <= ewc.adapt_lambda(forgetting) <= 15000


def test_lambda_reaches_its_ends() -> None:
    ewc = EwcPlusPlus(1)
    assert [ewc.adapt_lambda(1.0) for _ in range(5)][-1] == 15000
    assert [ewc.adapt_lambda(0.0) for _ in range(60)][-1] == 100


# ---- boundaries ----


@pytest.mark.parametrize("boundary", ["adwin", "page-hinkley"])
def test_a_task_boundary_is_found_in_the_surprise(boundary: Any) -> None:
    rng = np.random.default_rng(0)
    ewc = EwcPlusPlus(4, EwcConfig(boundary=boundary))
    assert not any(ewc.detect_task_boundary(float(r) - 0.9) for r in rng.random(2000) < 0.9)
    assert any(ewc.detect_task_boundary(float(r) - 0.9) for r in rng.random(64) < 0.2)


def test_a_new_task_watches_anew() -> None:
    ewc = EwcPlusPlus(1)
    for _ in range(200):
        ewc.detect_task_boundary(0.0)
    ewc.update_fisher([1.0])
    ewc.start_new_task([0.0])
    assert not any(ewc.detect_task_boundary(-0.9) for _ in range(200))


# ---- state ----


def busy(**changes: Any) -> EwcPlusPlus:
    """An EWC++ in the middle of a task, after twelve."""
    ewc, _ = filled(5, 6, 12, **changes)
    ewc.update_fisher(np.random.default_rng(6).normal(size=(3, 6)))
    ewc.adapt_lambda(0.05)
    for i in range(40):
        ewc.detect_task_boundary(0.1 * (-1) ** i)
    return ewc


@pytest.mark.parametrize("boundary", ["adwin", "page-hinkley"])
def test_it_goes_on_after_a_restart_bit_for_bit(boundary: Any, tmp_path: Path) -> None:
    ewc = busy(boundary=boundary)
    save_file(ewc.state(), tmp_path / "ewc.safetensors")
    other = EwcPlusPlus(6, ewc.config)
    other.restore(load_file(tmp_path / "ewc.safetensors"))
    assert same(other.state(), ewc.state())
    w = np.random.default_rng(7).normal(size=6)
    for each in (ewc, other):
        each.update_fisher(w)
        each.start_new_task(w)
        each.detect_task_boundary(0.5)
    assert same(other.state(), ewc.state())
    assert np.array_equal(other.proximal_step(w + 1), ewc.proximal_step(w + 1))


def test_a_new_one_has_a_state_too(tmp_path: Path) -> None:
    save_file(EwcPlusPlus(6).state(), tmp_path / "ewc.safetensors")
    ewc = busy()
    ewc.restore(load_file(tmp_path / "ewc.safetensors"))
    assert same(ewc.state(), EwcPlusPlus(6).state())


def test_a_state_fits_into_a_smaller_configuration() -> None:
    """Fewer tasks: the oldest merge. A narrower range of lambda: its nearer end."""
    ewc = busy()
    small = EwcPlusPlus(6, EwcConfig(max_tasks=3, initial_lambda=500.0, max_lambda=1000.0))
    small.restore(ewc.state())
    assert len(small.tasks) == 3
    assert small.lambda_ == 1000
    w = np.random.default_rng(7).normal(size=6)
    close(small.regularization_gradient(w) / small.lambda_, ewc.regularization_gradient(w) / ewc.lambda_, 20.0)


def test_the_state_is_a_copy() -> None:
    ewc = busy()
    before = ewc.state()
    for array in ewc.state().values():
        array[...] = 0
    assert same(ewc.state(), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fisher", np.full(6, np.nan, np.float32)),
        ("fisher", np.full(6, -1, np.float32)),
        ("fisher", np.zeros((2, 3), np.float32)),
        ("fisher", np.zeros(5, np.float32)),
        ("lambda", np.array([np.inf])),
        ("lambda", np.array([0.0])),
        ("samples", np.array([-1])),
        ("ended", np.array(["x"])),
        ("tasks.id", np.arange(11)),
        ("tasks.importance", np.zeros(10)),
        ("tasks.fisher", np.full((10, 6), 1.5, np.float32)),
        ("tasks.fisher", np.zeros((9, 6), np.float32)),
        ("tasks.optimal_weights", np.full((10, 6), np.inf, np.float32)),
        ("adwin.total", np.array([np.nan])),
        ("adwin.rows", np.array([[1]])),
        ("adwin.updates", np.array([])),
        *((name, None) for name in ("fisher", "lambda", "samples", "ended", "tasks.id", "tasks.importance", "tasks.fisher", "adwin.sums")),
    ],
)
def test_a_damaged_state_is_refused(name: str, value: Any) -> None:
    ewc, other = busy(), EwcPlusPlus(6)
    state = ewc.state() | {name: value}
    if value is None:
        del state[name]
    with pytest.raises(SonaValueError, match="expected"):
        other.restore(state)
    assert same(other.state(), EwcPlusPlus(6).state())


def test_a_state_of_another_detector_is_refused() -> None:
    with pytest.raises(SonaValueError, match="count"):
        EwcPlusPlus(3, EwcConfig(boundary="page-hinkley")).restore(EwcPlusPlus(3).state())


# ---- refusals ----

NAN, BIG = np.array([1, np.nan, 1]), np.full(3, 3e38)
REFUSED: list[tuple[Callable[[EwcPlusPlus], object], str]] = [
    *(
        (call, message)
        for bad, message in (
            (NAN, "expected finite"),
            ([1, 2, np.inf], "expected finite"),
            ([1.0, 2.0], r"expected shape \(3,\), got \(2,\)"),
            (np.ones(4), r"expected shape \(3,\), got \(4,\)"),
            (np.ones((1, 1, 3)), r"expected shape \(3,\), got \(1, 1, 3\)"),
        )
        for call in (
            lambda ewc, bad=bad: ewc.update_fisher(bad),
            lambda ewc, bad=bad: ewc.start_new_task(bad),
            lambda ewc, bad=bad: ewc.apply_constraints(bad),
            lambda ewc, bad=bad: ewc.apply_constraints(np.ones(3), bad),
            lambda ewc, bad=bad: ewc.proximal_step(bad),
            lambda ewc, bad=bad: ewc.regularization_loss(bad),
            lambda ewc, bad=bad: ewc.regularization_gradient(bad),
        )
    ),
    (lambda ewc: ewc.update_fisher([[1, 1, 1], [1, 1, np.nan]]), "gradients: expected finite"),
    (lambda ewc: ewc.update_fisher([[1, 1, 1], [1, 1, 1e20]]), "gradients: expected a squared norm within float32"),
    (lambda ewc: ewc.update_fisher(np.ones((2, 4))), r"gradients: expected shape \(n, 3\), got \(2, 4\)"),
    (lambda ewc: ewc.update_fisher(["a", "b", "c"]), "gradients: expected an array of real numbers"),
    (lambda ewc: ewc.proximal_step(BIG), "weights: expected a distance"),
    (lambda ewc: ewc.regularization_gradient(BIG), "weights: expected a distance"),
    (lambda ewc: ewc.apply_constraints(np.ones(3), np.ones(3), 0.0), "rate: expected a positive number, got 0"),
    (lambda ewc: ewc.proximal_step(np.ones(3), -1.0), "rate: expected a positive number, got -1"),
    (lambda ewc: ewc.proximal_step(np.ones(3), np.nan), "rate: expected a finite number"),
    (lambda ewc: ewc.adapt_lambda(np.nan), "forgetting: expected a finite number"),
    (lambda ewc: ewc.adapt_lambda(1.5), r"forgetting: expected a fall of accuracy in \[-1, 1\], got 1.5"),
    (lambda ewc: ewc.detect_task_boundary(np.nan), "surprise: expected a finite number"),
    (lambda ewc: ewc.detect_task_boundary(2.0), r"surprise: expected .* \[-1, 1\], got 2"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_input_is_refused_and_changes_nothing(call: Callable[[EwcPlusPlus], object], message: str) -> None:
    ewc, _ = filled(2, 3, 2)
    ewc.update_fisher([1.0, 2.0, 3.0])
    before = ewc.state()
    with pytest.raises((SonaValueError, SonaTypeError), match=message):
        call(ewc)
    assert same(ewc.state(), before)


def test_a_task_without_samples_cannot_end() -> None:
    ewc, _ = filled(2, 3, 1)
    before = ewc.state()
    with pytest.raises(SonaValueError, match="expected at least one sample"):
        ewc.start_new_task(np.ones(3))
    assert same(ewc.state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tasks": 0}, "max_tasks: expected an int of at least 1, got 0"),
        ({"max_tasks": 2.0}, "max_tasks"),
        ({"initial_lambda": -1.0}, "initial_lambda: expected a positive number"),
        ({"min_lambda": 0.0}, "min_lambda: expected a positive number"),
        ({"max_lambda": math.inf}, "max_lambda: expected a finite number"),
        ({"initial_lambda": math.nan}, "initial_lambda: expected a finite number"),
        ({"initial_lambda": 50.0}, r"initial_lambda: expected a number in \[100, 15000\], got 50"),
        ({"fisher_ema_decay": 1.0}, r"fisher_ema_decay: expected a number in \[0, 1\), got 1.0"),
        ({"forgetting_target": 0.0}, r"forgetting_target: expected a number in \(0, 1\]"),
        ({"boundary": "kswin"}, "boundary: expected 'adwin' or 'page-hinkley', got 'kswin'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        EwcConfig(**changes)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_a_parameter_count_is_a_positive_int(count: Any) -> None:
    with pytest.raises(SonaValueError, match="param_count: expected an int of at least 1"):
        EwcPlusPlus(count)


def test_the_defaults_are_those_of_the_roadmap() -> None:
    defaults = EwcConfig()
    assert (defaults.max_tasks, defaults.initial_lambda, defaults.min_lambda, defaults.max_lambda) == (10, 2000, 100, 15000)
    assert defaults.fisher_ema_decay == 0.999
    assert EwcPlusPlus().param_count == 1000
    with pytest.raises(FrozenInstanceError):
        defaults.max_tasks = 3  # type: ignore[misc]
