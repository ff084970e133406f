"""The learning rule in numpy float64, written from the equations in csrc/include/sona/*.h: slow and plain, the C code is compared with it.

Every constant of the rule that a test depends on is in this block and nowhere else in the tests.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# csrc/src/instant.c
MEMORY = 0.99
OPTIMISM = 1.0
CURVATURE_FLOOR = 0.01
ODDS_FLOOR = 0.01
RESTORED = 0.003
RESTORE_AT = 0.03
MEAN_MOMENTUM = 0.02
MEAN_START = 0.5
VARIANCE_FLOOR = 1e-3
CENTRE_NOISE = 4.0
CENTRE_MEMORY = 1000
LEAST_SPREAD = 1e-3
# csrc/src/policy.c, sona/loops/_policy.pyx
PRIOR = 30.0
OFF_POLICY_STEP = 0.3
TAU = 0.1
P0, P0_IDENTITY = 0.2, 0.1
CONSTANT = 0.3
# csrc/src/guard.c
TRUST_VARIANCE, TRUST_VARIANCE_LEAST, TRUST_LEAST = 0.1, 0.003, 0.05
DOUBT, PATIENCE, ANEW = 0.5, 64, 3.0
GUARD_MEMORY = 0.99
GUARD_HANDICAP = 5.0
GUARD_LIMIT = 2.0


def precision_scale(actions: int) -> float:
    """How much one success shrinks P, which all actions share."""
    return 3.0 / actions


def calibration_gain(pi: float, reward: float) -> tuple[float, float]:
    """What one own choice adds to R and to Q."""
    return np.sqrt(pi) * reward, np.sqrt(pi) * pi


@dataclass
class Dense:
    """delta(x) = x D + b, the whole correction as a matrix."""

    dim: int
    matrix: Array = field(init=False)
    constant: Array = field(init=False)

    def __post_init__(self) -> None:
        self.matrix = np.zeros((self.dim, self.dim))
        self.constant = np.zeros(self.dim)

    def append(self, up: Any, down: Any, coef: float = 1.0, offset: float = 0.0) -> None:
        up, down = np.asarray(up, np.float64), np.asarray(down, np.float64)
        self.matrix += coef * np.outer(down, up)
        self.constant += coef * offset * up

    def __call__(self, x: Any) -> Array:
        return np.asarray(np.asarray(x, np.float64) @ self.matrix + self.constant)


@dataclass
class Pair:
    """One learned pair: delta(x) += gain * up * (down . x + offset)."""

    gain: float
    up: Array
    down: Array
    offset: float


class InstantRule:
    """One outcome becomes one pair; sona/instant.h."""

    def __init__(self, dim: int, *, p0: float | None = None, constant: float = CONSTANT, full: bool = False, actions: int = 1) -> None:
        p0 = (P0 if full else P0_IDENTITY) if p0 is None else p0
        self.dim, self.p0, self.constant, self.full, self.actions = dim, p0, constant, full, actions
        self.covariance = p0 * np.eye(dim + 1)
        self.rewarded = self.shown = OPTIMISM
        self.mean = MEAN_START
        self.steps = 0
        self.restore = 0.0
        self.middle, self.inputs, self.square = np.zeros(dim), 0, 0.0  # mean of the inputs and a zero, how many, mean of |x|^2

    def place(self, x: Any) -> tuple[Array, float, Array]:
        """(x', stretch, what is taken off x)."""
        length = float(self.middle @ self.middle)
        noise = max(self.square - length, 0) / (self.inputs + 1)
        share = 1 - CENTRE_NOISE * noise / length if length > 0 else 0.0
        if not share > 0 or not self.constant > 0:
            return np.append(x, self.constant), 1.0, np.zeros(self.dim)
        left = max(self.square - share * (2 - share) * length, LEAST_SPREAD * self.square)
        stretch, off = float(np.sqrt(self.square / left)), share * self.middle
        return np.append(stretch * (np.asarray(x, np.float64) - off), self.constant), stretch, off

    def count(self, x: Any) -> None:
        x = np.asarray(x, np.float64)
        self.inputs = min(self.inputs + 1, CENTRE_MEMORY)
        self.middle = self.middle + (x - self.middle) / (self.inputs + 1)
        self.square += (float(x @ x) - self.square) / self.inputs

    @property
    def confidence(self) -> float:
        return min(1.0, self.rewarded / self.shown)

    def step(
        self,
        to: Dense,
        x: Any,
        v: Any,
        reward: float,
        probability: float | None = None,
        *,
        rate: float = 0.0,
        weight: float = 1.0,
        own: bool = True,
        again: bool = False,
    ) -> tuple[dict[str, float], Pair]:
        report, pair, input_, q = self._pair(to, x, v, probability, rate, weight, reward=reward)
        if not again:
            length = float(np.asarray(v, np.float64) @ np.asarray(v, np.float64))
            if self.full and report["sigma"] > VARIANCE_FLOOR * self.p0 * float(input_ @ input_):
                w = weight * reward * report["curvature"] * length * precision_scale(self.actions)
                self.covariance -= w * np.outer(q, q) / (1 + w * report["sigma"])
            if self.full:
                self.restore += RESTORED * report["expected"] * (1 - reward) * weight
            if self.restore >= RESTORE_AT:
                self.covariance = (1 - self.restore) * self.covariance + self.restore * self.p0 * np.eye(self.dim + 1)
                self.restore = 0.0
            if own:
                if probability is not None:
                    more = calibration_gain(probability, reward)
                    self.rewarded = MEMORY * self.rewarded + more[0]
                    self.shown = MEMORY * self.shown + more[1]
                self.steps += 1
            self.mean += MEAN_MOMENTUM * (reward - self.mean)
            self.count(x)
        return report, pair

    def revise(
        self, to: Dense, x: Any, v: Any, change: float, probability: float | None = None, *, rate: float = 0.0, weight: float = 1.0
    ) -> tuple[dict[str, float], Pair]:
        return self._pair(to, x, v, probability, rate, weight, change=change)[:2]

    def _pair(
        self,
        to: Dense,
        x: Any,
        v: Any,
        probability: float | None,
        rate: float,
        weight: float,
        *,
        reward: float = 0.0,
        change: float | None = None,
    ) -> tuple[dict[str, float], Pair, Array, Array]:
        x, v = np.asarray(x, np.float64), np.asarray(v, np.float64)
        if probability is None:
            c, p, factor = 1.0, self.mean, 1.0
            h = max(p * (1 - p), CURVATURE_FLOOR)
        else:
            c = min(1.0, max(self.confidence, rate))
            p = c * probability
            odds, rest = max(1 - p, ODDS_FLOOR), 1 - probability
            factor = rest / odds
            h = max(p * rest * rest / odds, CURVATURE_FLOOR)
        surprise = reward - p if change is None else change
        input_, stretch, off = self.place(x)
        q = self.covariance @ input_ if self.full else self.p0 * input_
        sigma = float(input_ @ q)
        advantage = surprise * factor
        gain = weight * c * advantage / (1 + c * h * float(v @ v) * sigma)
        down = stretch * q[: self.dim]
        pair = Pair(gain, v, down, float(q[self.dim] * self.constant - down @ off))
        to.append(pair.up, pair.down, pair.gain, pair.offset)
        report = {
            "expected": p,
            "confidence": c,
            "advantage": advantage,
            "curvature": h,
            "sigma": sigma,
            "gain": gain,
            "surprise": surprise,
        }
        return report, pair, input_, q


@dataclass
class Shown:
    """A decision as the policy remembers it."""

    x: Array
    candidates: tuple[Any, ...]
    arm: Any
    own: bool
    reward: float | None = None
    probability: float = 0.0
    weight: float = 1.0
    trust: tuple[float, float] | None = (0.0, 0.0)  # what it added to trust and to its variance; None where that is forgotten
    step: int = 0
    arm_step: int = 0
    pair: Pair | None = None


class TrustRule:
    """How far the frozen model's scores count; sona/trust.h."""

    def __init__(self) -> None:
        self.value, self.variance = 1.0, TRUST_VARIANCE
        self.barren, self.patience = 0, PATIENCE

    def update(self, margin: float, frozen: float, c: float, r: float, weight: float = 1.0) -> tuple[float, float]:
        before = self.value, self.variance
        spread = c * self.variance * frozen**2
        shrink = 1 / np.sqrt(1 + np.pi * spread / 8)
        s = 1 / (1 + np.exp(-shrink * margin))
        odds = max(1 - c * s, ODDS_FLOOR)
        slope = shrink * (r * (1 - s) - (1 - r) * c * s * (1 - s) / odds)
        h = weight * shrink**2 * (r * s * (1 - s) + (1 - r) * max(c * s * (1 - s) * (1 - 2 * s + c * s * s) / odds**2, 0))
        step = self.variance * frozen
        self.value = float(np.clip(self.value + weight * c * step * slope, TRUST_LEAST, 1))
        self.variance = max(self.variance - h * step**2 / (1 + h * spread), TRUST_VARIANCE_LEAST)
        return self.value - before[0], self.variance - before[1]

    def take_back(self, value: float, variance: float) -> None:
        self.value = float(np.clip(self.value - value, TRUST_LEAST, 1))
        self.variance = max(self.variance - variance, TRUST_VARIANCE_LEAST)

    def gave_up(self, reward: float) -> bool:
        if self.barren < 0:
            return False
        self.barren = -1 if reward > 0 else self.barren + 1
        if self.barren < self.patience:
            return False
        self.barren, self.patience, self.variance = 0, 2 * self.patience, max(self.variance, DOUBT)
        return True


class PolicyRule:
    """Softmax over arm vectors seen through a dense correction, without guard or exploration; sona/policy.h. Arms go by name."""

    def __init__(
        self, arms: dict[Any, Any], *, tau: float = TAU, p0: float | None = None, constant: float = CONSTANT, full: bool = False
    ) -> None:
        dim = len(next(iter(arms.values())))
        self.tau = tau
        self.delta = Dense(dim)
        self.instant = InstantRule(dim, p0=p0, constant=constant, full=full)
        self.trust = TrustRule()
        self.vectors: dict[Any, Array] = {}  # of open arms, and of closed ones whose row nobody has taken
        self.open: set[Any] = set()
        self.costs: dict[Any, float] = {}
        self.records: dict[Any, list[float]] = {}  # R_k, Q_k, own choices
        for name, vector in arms.items():
            self.add_arm(name, vector)

    def add_arm(self, name: Any, vector: Any, cost: float = 0.0, *, takes_row_of: Any = None) -> None:
        self.vectors.pop(takes_row_of, None)
        self.vectors[name] = unit(vector)
        self.costs[name] = cost
        self.records[name] = [0.0, 0.0, 0]
        self.open.add(name)
        self.instant.actions = len(self.open)

    def remove_arm(self, name: Any) -> None:
        self.open.remove(name)
        self.instant.actions = len(self.open)

    def probabilities(self, x: Any, candidates: Sequence[Any]) -> Array:
        y = self.trust.value * unit(x) + self.delta(unit(x))
        return softmax([self.vectors[name] @ y / self.tau for name in candidates])

    def utilities(self, x: Any, candidates: Sequence[Any]) -> Array:
        """What the first choice maximises: pi, or c pi - cost where arms have costs."""
        pi = self.probabilities(x, candidates)
        if not any(self.costs.values()):
            return pi
        return max(self.instant.confidence, self.best_rate()) * pi - np.array([self.costs[name] for name in candidates])

    def best_rate(self) -> float:
        everywhere = self.instant.confidence
        return min(1.0, max((r + PRIOR * everywhere) / (q + PRIOR) for r, q, _ in (self.records[name] for name in self.open)))

    def show(self, x: Any, arm: Any, candidates: Sequence[Any]) -> Shown:
        """Remember a decision; the arm is given, so that a tie in float32 cannot tell the two apart."""
        return Shown(unit(x), tuple(candidates), arm, own=candidates[int(np.argmax(self.utilities(x, candidates)))] == arm)

    def learn(self, d: Shown, reward: float) -> None:
        pi, v = self._direction(d)
        margin, frozen = self._margins(d)
        confidence = max(self.instant.confidence, self.best_rate())
        d.weight = 1.0 if d.own else OFF_POLICY_STEP
        _, d.pair = self.instant.step(self.delta, d.x, v, reward, pi, rate=self.best_rate(), weight=d.weight, own=d.own)
        d.trust = self.trust.update(margin, frozen, confidence, reward, d.weight)
        record = self.records[d.arm]
        if d.own:
            more = calibration_gain(pi, reward)
            record[:] = MEMORY * record[0] + more[0], MEMORY * record[1] + more[1], record[2] + 1
        if d.own and self.trust.gave_up(reward):
            self.instant.rewarded = self.instant.shown = ANEW
            for kept in self.records.values():
                kept[:2] = 0.0, 0.0
        d.reward, d.probability, d.step, d.arm_step = reward, pi, self.instant.steps, int(record[2])

    def revise(self, d: Shown, reward: float, *, stands: bool) -> None:
        """stands: the pair has not been truncated away and is taken back; otherwise the difference is applied once."""
        assert d.reward is not None
        assert d.pair is not None
        change = reward - d.reward
        if stands:
            self.delta.append(d.pair.up, d.pair.down, -d.pair.gain, d.pair.offset)
        if d.trust is not None:
            self.trust.take_back(*d.trust)
        pi, v = self._direction(d)
        margin, frozen = self._margins(d)
        if d.own:
            root = calibration_gain(d.probability, 1.0)[0]
            self.instant.rewarded += MEMORY ** (self.instant.steps - d.step) * root * change
            record = self.records[d.arm]
            record[0] += MEMORY ** (record[2] - d.arm_step) * root * change
        rate = self.best_rate()
        confidence = max(self.instant.confidence, rate)
        if stands:
            _, d.pair = self.instant.step(self.delta, d.x, v, reward, pi, rate=rate, weight=d.weight, again=True)
        else:
            _, d.pair = self.instant.revise(self.delta, d.x, v, change, pi, rate=rate, weight=d.weight)
        if d.trust is not None:
            d.trust = self.trust.update(margin, frozen, confidence, reward, d.weight)
        if reward > 0:
            self.trust.barren = -1
        d.reward = reward

    def _margins(self, d: Shown) -> tuple[float, float]:
        """Of the shown arm over the others, in the logits of the policy and of the frozen model."""
        known = [name for name in d.candidates if name in self.vectors]
        a, pi = known.index(d.arm), self.probabilities(d.x, known)
        others = np.delete(pi, a)
        if not len(others):
            return 0.0, 0.0
        scores = np.array([self.vectors[name] @ unit(d.x) / self.tau for name in known])
        return float(np.log(pi[a] / others.sum())), float(scores[a] - others @ np.delete(scores, a) / others.sum())

    def _direction(self, d: Shown) -> tuple[float, Array]:
        known = [name for name in d.candidates if name in self.vectors]
        pi = self.probabilities(d.x, known)
        v = np.zeros(len(d.x))
        for name, p in zip(known, pi, strict=True):
            v += (float(name == d.arm) - p) * self.vectors[name] / self.tau
        return float(pi[known.index(d.arm)]), v


class GuardRule:
    """Exp3.S over two or three models; sona/guard.h."""

    def __init__(self, odds: float, *, floor: float = 0.002, rate: float = 0.3, share: float = 1e-4) -> None:
        self.floor, self.rate, self.share = floor, rate, share
        self.log_weight = np.array([np.log(odds), 0.0])
        self.rewards = self.outcomes = 0.0

    @property
    def weights(self) -> Array:
        n = len(self.log_weight)
        return np.pad((1 - n * self.floor) * softmax(self.log_weight) + self.floor, (0, 3 - n))

    def admit(self) -> None:
        most = self.log_weight[0] - GUARD_HANDICAP
        third = min(self.log_weight[2], most) if len(self.log_weight) == 3 else most
        self.log_weight = np.append(self.log_weight[:2], third)

    def update(self, chance: Any, propensity: float, reward: float, expected: float | None = None) -> None:
        mean = self.rewards / self.outcomes if self.outcomes else 0.5
        baseline = mean if expected is None else expected
        n = len(self.log_weight)
        gain = self.rate * np.asarray(chance, np.float64)[:n] * (reward - baseline) / propensity
        w = softmax(self.log_weight + np.clip(gain, -GUARD_LIMIT, GUARD_LIMIT))
        self.log_weight = np.log((1 - self.share) * w + self.share / n)
        self.rewards = GUARD_MEMORY * self.rewards + reward
        self.outcomes = GUARD_MEMORY * self.outcomes + 1


def softmax(logits: Any) -> Array:
    e = np.exp(np.asarray(logits) - np.max(logits))
    return np.asarray(e / e.sum())


def unit(x: Any) -> Array:
    """x / |x|; the zero vector stays zero."""
    x = np.asarray(x, np.float64)
    norm = float(np.linalg.norm(x))
    return x / norm if norm > 0 else x


class Clusters:
    """Requests around K centres. Vectors of the right arms point only roughly there: the frozen model is right half of the time."""

    def __init__(self, seed: int, *, arms: int = 6, dim: int = 20, noise: float = 0.5, rough: float = 2.0) -> None:
        rng = np.random.default_rng(seed)
        self.centres, errors = (np.stack([unit(row) for row in rows]) for rows in rng.normal(size=(2, arms, dim)))
        self.arms = np.stack([unit(row) for row in self.centres + rough * errors]).astype(np.float32)
        self.noise, self._rng = noise, rng

    def draw(self) -> tuple[npt.NDArray[np.float32], int]:
        """(x, row of the right arm)"""
        k = int(self._rng.integers(len(self.arms)))
        x = unit(self.centres[k] + self.noise * unit(self._rng.normal(size=self.arms.shape[1])))
        return x.astype(np.float32), k


# ---- trajectories as bytes: the layout of sona/trajectory/_record.pyx ----


def encode(t: Any) -> bytes:
    """A QueryTrajectory, field by field."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    def vector(value: Any) -> bytes:
        return b"" if value is None else value.astype("<f4").tobytes()

    body = struct.pack("<HHQQdII", 1, 0, t.id, t.latency_us, number(t.final_quality), len(t.query_embedding), len(t.steps))
    body += vector(t.query_embedding)
    for s in t.steps:
        attention = 0 if s.attention_weights is None else len(s.attention_weights)
        body += struct.pack("<dddIIII", s.timestamp, number(s.reward), number(s.expected), s.layer, attention, s.x is not None, 0)
        body += vector(s.activations) + vector(s.attention_weights) + vector(s.x)
    return struct.pack("<4sII", b"STRJ", 12 + len(body), zlib.crc32(body)) + body
