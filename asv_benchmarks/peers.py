"""What sona is measured against, each over a sweep of its own options and with the same prior knowledge where it can take any.

A policy has three methods: `choose(x)` gives the row of an arm and a ticket, `learn(ticket, reward)` takes the reward of that decision
whenever it comes, `best(X)` gives the arm that it would show without exploring, (n,).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
TAU = 0.1


class Policy(Protocol):
    def choose(self, x: F32) -> tuple[int, Any]: ...

    def learn(self, ticket: Any, reward: float) -> None: ...

    def best(self, x: F32) -> I64: ...


class Frozen:
    """The arm of the largest inner product, for ever."""

    def __init__(self, arms: F32, seed: int = 0) -> None:
        self.arms = arms

    def choose(self, x: F32) -> tuple[int, None]:
        return int((self.arms @ x).argmax()), None

    def learn(self, ticket: None, reward: float) -> None:
        """Learns nothing."""

    def best(self, x: F32) -> I64:
        return np.asarray(np.argmax(x @ self.arms.T, axis=1), np.int64)


class Linear:
    """One ridge regression of reward on x per arm: LinUCB (Li et al. 2010), or LinTS (Agrawal and Goyal 2013) with `sample`.

    Parameters
    ----------
    arms : (K, d) float32
    alpha : float
        Deviations of the mean that are added (LinUCB) or that the draws have (LinTS).
    sample : bool
    prior : bool
        The coefficients start at the arm's vector, else at zero.
    constant : float
        A constant feature, 0 for none.
    """

    def __init__(self, arms: F32, seed: int = 0, *, alpha: float, sample: bool = False, prior: bool = True, constant: float = 0.0) -> None:
        count, d = arms.shape
        side = d + (constant > 0)
        self.alpha, self.sample, self.constant = np.float32(alpha), sample, np.float32(constant)
        self.rng = np.random.default_rng([seed, 1])
        self.mean = np.zeros((count, side), np.float32)
        if prior:
            self.mean[:, :d] = arms
        self.covariance = np.tile(np.eye(side, dtype=np.float32), (count, 1, 1))  # (K, side, side)

    def choose(self, x: F32) -> tuple[int, tuple[int, F32]]:
        x = np.append(x, self.constant) if self.constant else x
        score = self.mean @ x
        if self.alpha:
            width = self.alpha * (self.rng.standard_normal(len(score), np.float32) if self.sample else np.ones(len(score), np.float32))
            reach = width * np.float32(np.sqrt(x @ x))  # no deviation exceeds alpha |x|: most arms are out without their matrix
            near = np.flatnonzero(score + np.maximum(reach, 0) >= (score + np.minimum(reach, 0)).max())
            exact = np.full(len(score), -np.inf, np.float32)
            for k in near:
                exact[k] = score[k] + width[k] * np.sqrt(max(x @ (self.covariance[k] @ x), 0))
            score = exact
        arm = int(score.argmax())
        return arm, (arm, x)

    def learn(self, ticket: tuple[int, F32], reward: float) -> None:
        arm, x = ticket
        direction = self.covariance[arm] @ x
        gain = direction / (1 + x @ direction)
        self.mean[arm] += gain * np.float32(reward - self.mean[arm] @ x)
        self.covariance[arm] -= np.outer(gain, direction)

    def best(self, x: F32) -> I64:
        if self.constant:
            x = np.hstack([x, np.full((len(x), 1), self.constant, np.float32)])
        return np.asarray(np.argmax(x @ self.mean.T, axis=1), np.int64)


class Logistic:
    """One logistic regression of reward on x per arm by an extended Kalman filter, with one intercept for all that is learned as well.

    The coefficients start at e_a / tau with variance `variance`, so that the first choices are the frozen model's.
    """

    def __init__(self, arms: F32, seed: int = 0, *, alpha: float, sample: bool = False, variance: float = 3.0) -> None:
        count, d = arms.shape
        self.alpha, self.sample = alpha, sample
        self.rng = np.random.default_rng([seed, 2])
        self.mean = (arms / TAU).astype(np.float64)
        self.covariance = np.tile(variance * np.eye(d), (count, 1, 1))
        self.intercept, self.intercept_variance = -1.0, 4.0

    def choose(self, x: F32) -> tuple[int, tuple[int, F32]]:
        score = self.mean @ x
        if self.alpha:
            deviation = self.alpha * np.sqrt(np.maximum((self.covariance @ x) @ x, 0))
            score = score + (deviation * self.rng.standard_normal(len(score)) if self.sample else deviation)
        arm = int(score.argmax())
        return arm, (arm, x)

    def learn(self, ticket: tuple[int, F32], reward: float) -> None:
        arm, x = ticket
        direction = self.covariance[arm] @ x
        variance = x @ direction
        p = 1 / (1 + np.exp(-(self.mean[arm] @ x + self.intercept)))
        h = max(p * (1 - p), 0.01)
        gain = (reward - p) / (1 + h * (variance + self.intercept_variance))
        self.mean[arm] += gain * direction
        self.covariance[arm] -= np.outer(h / (1 + h * variance) * direction, direction)
        self.intercept += gain * self.intercept_variance
        shrunk = h * self.intercept_variance**2 / (1 + h * (variance + self.intercept_variance))
        self.intercept_variance = max(self.intercept_variance - shrunk, 0.003)

    def best(self, x: F32) -> I64:
        return np.asarray(np.argmax(x @ self.mean.T, axis=1), np.int64)


class RoadmapUpdate:
    """The roadmap's formulas taken at their word: rank-2 micro-LoRA, trajectories of `steps` requests, learning rate 0.001.

    The advantage is taken against the trajectory's own mean, the gradient is normalised, the same gradient goes to every row of `up`
    without the input's factor, and quality multiplies once more.
    """

    def __init__(self, arms: F32, seed: int = 0, *, rate: float = 0.001, steps: int = 8) -> None:
        d = arms.shape[1]
        self.arms, self.rate, self.steps = arms, rate, steps
        self.down = np.random.default_rng([seed, 3]).random((2, d), np.float32) * np.float32(0.01)
        self.up = np.zeros((2, d), np.float32)
        self.trajectory: list[tuple[F32, float]] = []

    def adapted(self, x: F32) -> F32:
        return x + (x @ self.down.T) @ self.up / np.float32(np.sqrt(2))

    def choose(self, x: F32) -> tuple[int, F32]:
        logit = self.arms @ self.adapted(x) / TAU
        arm = int(logit.argmax())
        probability = np.exp(logit - logit.max())
        return arm, (self.arms[arm] - self.arms.T @ (probability / probability.sum())) / TAU

    def learn(self, ticket: F32, reward: float) -> None:
        self.trajectory.append((ticket, reward))
        if len(self.trajectory) < self.steps:
            return
        rewards = np.array([r for _, r in self.trajectory], np.float32)
        gradient = (rewards - rewards.mean()) @ np.stack([v for v, _ in self.trajectory])
        norm = np.linalg.norm(gradient)
        if norm > 1e-6:
            self.up += np.float32(self.rate * rewards.mean()) * gradient / norm
        self.trajectory.clear()

    def best(self, x: F32) -> I64:
        return np.asarray(np.argmax(self.adapted(x) @ self.arms.T, axis=1), np.int64)


class VowpalWabbit:
    """VowpalWabbit's contextual bandit with action-dependent features: x crossed with the arm, and the frozen model's score of each arm."""

    def __init__(self, arms: F32, seed: int = 0, *, options: str) -> None:
        import vowpalwabbit

        self.arms = arms
        self.rng = np.random.default_rng([seed, 4])
        self.engine = vowpalwabbit.Workspace(f"--cb_explore_adf {options} -q SA --quiet --random_seed {seed + 1}")

    def example(self, x: F32, score: F32, label: tuple[int, float, float] | None = None) -> list[str]:
        lines = ["shared |S " + " ".join(f"{i}:{value:.5g}" for i, value in enumerate(x) if value)]
        for k, value in enumerate(score):
            head = f"0:{label[1]}:{label[2]:.6g} " if label and label[0] == k else ""
            lines.append(f"{head}|A a{k} |F score:{value:.5g}")
        return lines

    def choose(self, x: F32) -> tuple[int, tuple[int, float, F32, F32]]:
        score = self.arms @ x
        mass = np.maximum(self.engine.predict(self.example(x, score)), 0)
        mass /= mass.sum()
        arm = int(self.rng.choice(len(mass), p=mass))
        return arm, (arm, float(mass[arm]), x, score)

    def learn(self, ticket: tuple[int, float, F32, F32], reward: float) -> None:
        arm, chance, x, score = ticket
        self.engine.learn(self.example(x, score, (arm, -reward, chance)))

    def best(self, x: F32) -> I64:
        return np.array([int(np.argmax(self.engine.predict(self.example(row, self.arms @ row)))) for row in x])


Factory = Callable[[F32, int], Policy]


def linear_sweep(arms: int, *, alone: bool, constant: bool) -> dict[str, Factory]:
    """LinUCB and LinTS that start from the arm vectors; `alone`: from zero as well; `constant`: with the constant feature as well."""
    many = arms >= 20
    sweep: dict[str, Factory] = {}

    def add(name: str, **options: Any) -> None:
        sweep[name] = partial(Linear, **options)

    for alpha in (0.0, 0.1, 0.3) if many else (0.0, 0.1, 0.3, 1.0):
        add(f"LinUCB {alpha:g}", alpha=alpha)
    for alpha in (0.03, 0.1) if many else (0.03, 0.1, 0.3):
        add(f"LinTS {alpha:g}", alpha=alpha, sample=True)
    if alone:
        add("LinUCB 0.1 no prior", alpha=0.1, prior=False)
        add("LinUCB 0.3 no prior", alpha=0.3, prior=False)
        add("LinTS 0.1 no prior", alpha=0.1, sample=True, prior=False)
    if constant:
        for alpha in (0.0, 0.1, 0.3):
            add(f"LinUCB {alpha:g} constant", alpha=alpha, constant=0.3)
        for alpha in (0.03, 0.1):
            add(f"LinTS {alpha:g} constant", alpha=alpha, sample=True, constant=0.3)
    return sweep


def logistic_sweep() -> dict[str, Factory]:
    return {
        "logistic UCB 0": partial(Logistic, alpha=0.0),
        "logistic UCB 0.1": partial(Logistic, alpha=0.1),
        "logistic TS 0.3": partial(Logistic, alpha=0.3, sample=True),
    }


def vowpal_sweep() -> dict[str, Factory]:
    """Empty where vowpalwabbit is not installed."""
    if find_spec("vowpalwabbit") is None:
        return {}
    sweep: dict[str, Factory] = {}
    for explore in ("--epsilon 0.005", "--squarecb --gamma_scale 1000", "--softmax --lambda 30"):
        for rate in (0.5, 2.0, 4.0):
            options = f"{explore} --cb_type mtr -l {rate:g}"
            sweep[f"VW {options}"] = partial(VowpalWabbit, options=options)
    return sweep
