"""The retrieval prior is the documented blend."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import SonaTypeError, SonaValueError
from sona.patterns import PatternConfig, ReasoningBank, retrieval_prior


def oracle(x: Any, rows: Any, arms: Any, rewards: Any, pi: Any, neighbours: int, kappa: float) -> list[float]:
    """The formula, one neighbour and one arm at a time."""
    norm = float(np.linalg.norm(x))
    cos = [float(np.dot(row, x)) / norm if norm else 0.0 for row in rows.astype(float)]
    near = sorted((i for i in range(len(rows)) if arms[i] >= 0), key=lambda i: -cos[i])[:neighbours]
    result = []
    for arm, p in enumerate(pi):
        top, bottom = kappa * p, kappa
        for i in near:
            if arms[i] == arm:
                weight = max(cos[i], 0.0) ** 2
                top += weight * rewards[i]
                bottom += weight
        result.append(top / bottom)
    return result


def draw(n: int, d: int, arms: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    rows = rng.normal(size=(n, d))
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return rows.astype(np.float32), rng.integers(-1, arms, size=n), rng.choice([0.0, 1.0, 0.4], size=n)


@given(
    st.integers(0, 60), st.integers(2, 9), st.integers(1, 5), st.integers(1, 12), st.floats(0.1, 5), st.integers(0, 5), st.integers(0, 999)
)
def test_it_is_the_formula(n: int, d: int, arms: int, neighbours: int, kappa: float, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, arm, rewards = draw(n, d, arms, rng)
    x, pi = 10 * rng.normal(size=(m + 1, d)), rng.dirichlet(np.ones(arms), size=m + 1).astype(np.float32)
    expected = [oracle(each, rows, arm, rewards, p, neighbours, kappa) for each, p in zip(x, pi, strict=True)]
    found = retrieval_prior(x, rows, arm, rewards, pi, neighbours=neighbours, kappa=kappa)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    one = retrieval_prior(x[0], rows, arm, rewards, pi[0], neighbours=neighbours, kappa=kappa)
    assert one.shape == (arms,)
    np.testing.assert_array_equal(one, found[0])


def test_without_neighbours_it_is_the_policy() -> None:
    pi = np.float32([0.2, 0.8])
    for rows, arms in (
        (np.empty((0, 2), np.float32), np.empty(0, int)),
        (np.float32([[1, 0]]), np.array([-1])),
        (np.float32([[-1, 0]]), np.array([0])),
        (np.float32([[0, 0]]), np.array([0])),
    ):
        np.testing.assert_array_equal(retrieval_prior([1.0, 0.0], rows, arms, np.ones(len(rows)), pi), pi)
    np.testing.assert_array_equal(retrieval_prior([0.0, 0.0], np.float32([[1, 0]]), np.array([0]), np.ones(1), pi), pi)


def test_a_bank_blends_what_it_keeps() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=2, max_trajectories=3))
    bank.add([0, 1], 1.0, arm=0, reward=0.0)  # pushed out
    bank.add([0, 1], 1.0, arm=0, reward=1.0)
    bank.add([0, 1], 1.0, arm=1)  # no reward: no neighbour
    bank.add([0, 1], 1.0, reward=1.0)  # no arm
    np.testing.assert_allclose(bank.prior([0.0, 5.0], [0.5, 0.5]), [0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        bank.prior([[0.0, 5.0], [1.0, 0.0]], [[0.5, 0.5], [0.1, 0.9]], kappa=3.0), [[0.625, 0.5], [0.1, 0.9]], rtol=1e-6
    )


ROWS, ARMS, REWARDS, PI = np.eye(3, dtype=np.float32), np.array([0, 1, 0]), np.ones(3), np.float32([0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [np.nan, 0, 0]}, SonaValueError, "x: expected finite"),
        ({"x": [1.0, 0.0]}, SonaValueError, r"x: expected shape \(3,\)"),
        ({"rows": np.eye(3)}, SonaTypeError, "rows: expected a float32 array"),
        ({"rows": 2 * ROWS}, SonaValueError, "expected vectors of norm 1 or 0"),
        ({"arms": np.array([0, 2, 0])}, SonaValueError, r"arms: expected ints in \[-1, 2\)"),
        ({"arms": np.array([0, 1])}, SonaValueError, r"arms, rewards: expected shape \(3,\)"),
        ({"rewards": np.array([1, np.nan, 1])}, SonaValueError, "finite rewards"),
        ({"policy": [[0.5, 0.5]]}, SonaValueError, r"policy: expected shape \(n,\)"),
        ({"neighbours": 0}, SonaValueError, "neighbours: expected an int of at least 1, got 0"),
        ({"kappa": 0.0}, SonaValueError, "kappa: expected a positive finite number"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"x": [1.0, 0.0, 0.0], "rows": ROWS, "arms": ARMS, "rewards": REWARDS, "policy": PI} | change
    with pytest.raises(error, match=message):
        retrieval_prior(**arguments)
