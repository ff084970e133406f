"""What is said to keep old tasks, on the same softmax policy: a dense correction W, learned from the reward of the shown arm.

Every learner here holds S of them at once, one a seed, and takes one request of each. x' is x with the constant input appended, W is
(S, d + 1, d), y = x + x' W.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TAU, CONSTANT, FLOOR = 0.1, 0.3, 0.01


@dataclass(frozen=True)
class Setting:
    """
    Attributes
    ----------
    step : {"sgd", "implicit"}
        Gradient of the expected reward with pi of the shown arm as the baseline, or sona's instant step with the identity.
    rate : float
        Learning rate, or prior variance of a weight.
    keep : {"nothing", "ewc", "online ewc", "roadmap ewc", "gpm", "replay"}
        ewc: per task the mean of squared gradients of single samples and an anchor (Kirkpatrick et al. 2017); online ewc: one decaying sum
        and the last anchor (Schwarz et al. 2018); both as a proximal step after each request, which is stable for any strength. roadmap
        ewc: the gradient over 1 + strength F. gpm: inputs are projected off the main directions of earlier tasks (Saha et al. 2021).
        replay: so many remembered requests after each one, from a reservoir of each task.
    strength : float
        lambda, directions per task, or replayed requests per request.
    """

    step: Literal["sgd", "implicit"] = "implicit"
    rate: float = 0.1
    keep: str = "nothing"
    strength: float = 0.0
    rows: int = 200
    decay: float = 0.9

    def __str__(self) -> str:
        return f"{self.keep} {self.strength:g}, {self.step} {self.rate:g}" if self.keep != "nothing" else f"{self.step} {self.rate:g}"


def sweep(data: str) -> dict[str, list[Setting]]:
    """Settings to choose from by name of the method."""
    sgd = [Setting("sgd", rate) for rate in (0.001, 0.003, 0.01, 0.03, 0.1)]
    steps = [Setting("sgd", 0.01), Setting("sgd", 0.03), Setting("implicit", 0.1)]
    if data == "ng20":
        sgd, steps = sgd[:4], steps[1:]

    def each(keep: str, *strengths: float) -> list[Setting]:
        return [replace(step, keep=keep, strength=strength) for step in steps for strength in strengths]

    return {
        "SGD": sgd,
        "instant step, identity, W dense": [Setting("implicit", rate) for rate in (0.05, 0.1, 0.2)],
        "EWC": each("ewc", 10, 100, 1000, 10_000),
        "online EWC": each("online ewc", 10, 100, 1000, 10_000),
        "the roadmap's EWC": each("roadmap ewc", 10, 2000),
        "GPM": each("gpm", 2, 5, 10, 20),
        "replay of a reservoir, SGD": [Setting("sgd", rate, "replay", m) for rate in (0.01, 0.03) for m in (1, 2, 4)],
        "replay of a reservoir, instant step": [Setting("implicit", 0.1, "replay", m) for m in (1, 2, 4)],
    }


@dataclass
class Learners:
    """S learners of one setting. arms (S, K, d)."""

    arms: F32
    setting: Setting
    seed: int = 0
    weights: F32 = field(init=False)

    def __post_init__(self) -> None:
        count, _, d = self.arms.shape
        self.weights = np.zeros((count, d + 1, d), np.float32)
        self.rng = np.random.default_rng((self.seed, 11))
        self.every = np.arange(count)
        zeros = np.zeros_like(self.weights)
        self.fisher, self.samples = zeros.copy(), 0  # of the task that is going on
        self.kept, self.pulled = zeros.copy(), zeros.copy()  # sum of F_t, and of F_t W*_t
        self.basis = np.zeros((count, d + 1, 0), np.float32)
        self.inputs: list[F32] = []
        self.reservoirs: list[list[tuple[F32, I64, F32]]] = [[]]
        self.seen = 0

    def inputs_of(self, x: F32) -> F32:
        return np.concatenate([x, np.full((*x.shape[:-1], 1), CONSTANT, np.float32)], axis=-1)

    def policy(self, x: F32) -> F32:
        """pi (S, K) of requests (S, d)."""
        y = x + np.matmul(self.inputs_of(x)[:, None], self.weights)[:, 0]
        logits = np.matmul(self.arms, y[:, :, None])[:, :, 0] / TAU
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float32)

    def choose(self, x: F32) -> I64:
        return np.asarray(self.policy(x).argmax(axis=1), np.int64)

    def best(self, at: int, x: F32) -> I64:
        """First choices (n,) of learner `at`."""
        y = x + self.inputs_of(x) @ self.weights[at]
        return np.asarray((y @ self.arms[at].T).argmax(axis=1), np.int64)

    def learn(self, x: F32, arm: I64, reward: F32) -> None:
        keep = self.setting.keep
        self._step(x, arm, reward, note=True)
        if keep == "replay":
            for _ in range(int(self.setting.strength)):
                self._step(*self._remembered(), note=False)
            self._remember(x, arm, reward)
        if keep == "gpm":
            self.inputs.append(self.inputs_of(x))
        if keep in ("ewc", "online ewc") and self.kept.any():
            pull = self.setting.rate * self.setting.strength
            self.weights = (self.weights + pull * self.pulled) / (1 + pull * self.kept)

    def _step(self, x: F32, arm: I64, reward: F32, *, note: bool) -> None:
        pi = self.policy(x)
        p = pi[self.every, arm]
        v = (self.arms[self.every, arm] - np.matmul(pi[:, None], self.arms)[:, 0]) / TAU
        full = self.inputs_of(x)
        q = full - np.matmul(self.basis, np.matmul(self.basis.transpose(0, 2, 1), full[:, :, None]))[:, :, 0]
        gain = (reward - p) * self.setting.rate
        if self.setting.step == "implicit":
            curvature = np.maximum(p * (1 - p), FLOOR)
            gain = gain / (1 + curvature * (v * v).sum(axis=1) * self.setting.rate * (q * q).sum(axis=1))
        change = gain[:, None, None] * q[:, :, None] * v[:, None, :]
        if "ewc" in self.setting.keep and note:
            gradient = (reward - p)[:, None, None] * full[:, :, None] * v[:, None, :]
            self.samples += 1
            self.fisher += (gradient * gradient - self.fisher) / self.samples
        if self.setting.keep == "roadmap ewc":
            change = change / (1 + self.setting.strength * self.kept)
        self.weights += change

    def _remember(self, x: F32, arm: I64, reward: F32) -> None:
        """Algorithm R, the same places for all learners."""
        kept = self.reservoirs[-1]
        self.seen += 1
        if len(kept) < self.setting.rows:
            kept.append((x, arm, reward))
        elif (at := int(self.rng.integers(self.seen))) < self.setting.rows:
            kept[at] = (x, arm, reward)

    def _remembered(self) -> tuple[F32, I64, F32]:
        full = [kept for kept in self.reservoirs if kept]
        if not full:
            x = np.zeros((len(self.arms), self.arms.shape[2]), np.float32)
            return x, np.zeros(len(x), np.int64), self.policy(x)[:, 0]
        kept = full[int(self.rng.integers(len(full)))]
        return kept[int(self.rng.integers(len(kept)))]

    def end_task(self) -> None:
        keep = self.setting.keep
        if keep in ("ewc", "roadmap ewc"):
            self.kept += self.fisher
            self.pulled += self.fisher * self.weights
        elif keep == "online ewc":
            self.kept = self.setting.decay * self.kept + self.fisher
            self.pulled = self.kept * self.weights
        elif keep == "gpm":
            rows = np.stack(self.inputs, axis=1)  # (S, n, d + 1)
            left = rows - np.matmul(np.matmul(rows, self.basis), self.basis.transpose(0, 2, 1))
            fresh = np.linalg.eigh(np.matmul(left.transpose(0, 2, 1), left))[1][:, :, -int(self.setting.strength) :]
            self.basis = np.linalg.qr(np.concatenate([self.basis, fresh], axis=2))[0].astype(np.float32)
        self.fisher[:], self.samples, self.seen = 0, 0, 0
        self.inputs.clear()
        self.reservoirs.append([])
