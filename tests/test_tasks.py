"""Promises of sona.metrics about sequences of tasks: the published formulas, worked by hand, and no backward transfer on its own."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import SonaTypeError, SonaValueError
from sona.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    own_task_accuracy,
    task_summary,
)

# on task:  1    2    3
R = [
    [0.9, 0.4, 0.2],  # after task 1
    [0.6, 0.8, 0.5],  # after task 2
    [0.7, 0.5, 0.95],  # after task 3
]
FROZEN = [0.3, 0.3, 0.1]


def test_by_hand() -> None:
    assert average_accuracy(R) == pytest.approx((0.7 + 0.5 + 0.95) / 3)
    assert own_task_accuracy(R) == pytest.approx((0.9 + 0.8 + 0.95) / 3)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert forgetting(R) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert forward_transfer(R, FROZEN) == pytest.approx(((0.4 - 0.3) + (0.5 - 0.1)) / 2)


def test_forgetting_counts_from_the_best_accuracy_and_transfer_from_the_first() -> None:
    gained = [[0.5, 0.0, 0.0], [0.8, 0.5, 0.0], [0.7, 0.5, 0.5]]
    assert backward_transfer(gained) == pytest.approx(0.1)  # task 1 ended above where it was learned
    assert forgetting(gained) == pytest.approx(0.05)  # and below where it had been
    assert forgetting([[0.5, 0.0], [0.8, 0.5]]) == pytest.approx(-0.3)  # the last row is no earlier one


def test_a_learner_that_learns_nothing_has_no_negative_transfer_and_its_summary_says_why() -> None:
    idle = np.tile([0.2, 0.3, 0.1], (3, 1))
    found = task_summary(idle)
    assert (found.backward, found.forgetting) == (0.0, 0.0)
    text = str(found)
    assert text.index("average accuracy 0.200") < text.index("own-task accuracy 0.200") < text.index("backward transfer +0.000")


def test_the_summary_is_its_parts() -> None:
    found = task_summary(R, FROZEN)
    assert (found.average, found.own_task) == (average_accuracy(R), own_task_accuracy(R))
    assert (found.backward, found.forgetting, found.forward) == (backward_transfer(R), forgetting(R), forward_transfer(R, FROZEN))
    assert str(found) == (
        "average accuracy 0.717, own-task accuracy 0.883, backward transfer -0.250, forgetting 0.250, forward transfer +0.250"
    )
    assert task_summary(R).forward is None
    assert "forward" not in str(task_summary(R))


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_what_was_not_measured_above_the_diagonal_changes_nothing_else(tasks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    full = rng.random((tasks, tasks))
    lower = np.where(np.tri(tasks, dtype=bool), full, np.nan)
    low = np.where(np.tri(tasks, dtype=bool), full, 0.0)
    assert task_summary(lower) == task_summary(low)
    assert forgetting(full) >= -backward_transfer(full) - 1e-12
    with pytest.raises(SonaValueError, match="the task before it"):
        forward_transfer(lower, np.zeros(tasks))


def test_one_task_has_an_accuracy_and_no_transfer() -> None:
    assert average_accuracy([[0.4]]) == own_task_accuracy([[0.4]]) == 0.4
    for call in (backward_transfer, forgetting, task_summary, lambda r: forward_transfer(r, [0.1])):
        with pytest.raises(SonaValueError, match="T >= 2"):
            call([[0.4]])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([0.1, 0.2], r"got \(2,\)"),
        ([[0.1, 0.2]], r"got \(1, 2\)"),
        (np.empty((0, 0)), r"got \(0, 0\)"),
        ([[0.1, 0.2], [np.nan, 0.3]], "on and below the diagonal"),
        ([[0.1, np.inf], [0.2, 0.3]], "no infinite ones"),
    ],
)
def test_unusable_matrices_are_refused(matrix: Any, message: str) -> None:
    for call in (average_accuracy, own_task_accuracy, backward_transfer, forgetting, task_summary, lambda r: forward_transfer(r, [0, 0])):
        with pytest.raises(SonaValueError, match=message):
            call(matrix)


def test_unusable_starting_points_are_refused() -> None:
    for before, message in [([0.1, 0.2], "each of 3 tasks, got 2"), ([0.1, np.nan, 0.2], "finite before")]:
        with pytest.raises(SonaValueError, match=message):
            task_summary(R, before)
    with pytest.raises(SonaTypeError, match="accuracy as numbers"):
        task_summary([["a"]])
