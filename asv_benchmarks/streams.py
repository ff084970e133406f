"""Bandit streams of known expected reward: real embeddings, a frozen model of stated quality, and only the shown arm's reward comes back.

A stream is named `data:world:rewards[:option...]`:

data     digits (scikit-learn's, nothing to download); trec6, trec50, ng20 (MiniLM embeddings in the directory that SONA_DATA names);
         gauss<K> (synthetic, K arms); clusters (synthetic, six arms)
world    few    arm vectors are centroids of 5 labelled examples, the inputs are as labelled
         shift  the same, then half of the input space is rotated
         perm   the same, then the vectors of half of the arms trade places
         rand   random arm vectors
         even, low, sup   two arms: even or odd digit, digit below five, one half of the newsgroups' topics
         graded  random orthonormal arms, every arm succeeds sometimes
         onearm  five random orthonormal arms, one is best for every input
         half, all (clusters only) the frozen model is certain, and wrong for half of the clusters or for all
rewards  c (right 1, wrong 0), r95 (.95/.85), r5 (.5/.2), r2 (.2/.05), r05 (.05/.01), f20 (.8/.2: one reward in five flipped), h5 (.95/.5)
options  T=<n>, delay=<n> (feedback arrives n requests late), scale=<f> (norm of inputs and arms), signed (rewards in [-1, 1]),
         invert=<n> (a block of n rewards is inverted, from request 3000 on), spread=<n> (n inverted rewards spread over 4000 requests),
         optimal (the frozen model's own choice is the right arm; T=8000), nan=<percent> (that share of the rewards is NaN)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

RATES = {
    "c": (1.0, 0.0),
    "r95": (0.95, 0.85),
    "r5": (0.5, 0.2),
    "r2": (0.2, 0.05),
    "r05": (0.05, 0.01),
    "f20": (0.8, 0.2),
    "h5": (0.95, 0.5),
}
EMBEDDINGS = {"trec6": "trec_minilm384.npz", "trec50": "trec_minilm384.npz", "ng20": "ng20_minilm384.npz"}

TWO_GROUPS = {"even": (1, 3, 5, 7, 9), "low": (0, 1, 2, 3, 4), "sup": (*range(1, 7), *range(11, 15))}  # classes of the second arm

CLEAN_TEXT = tuple(f"{data}:{world}:c" for data in ("trec6", "trec50", "ng20") for world in ("few", "shift"))
CLEAN_DIGITS = tuple(f"digits:{world}:c" for world in ("few", "shift", "perm", "rand"))
DIGIT_RATES = tuple(f"digits:{world}:{rate}" for world in ("few", "shift") for rate in ("r95", "r5", "r2", "r05"))
TEXT_RATES = tuple(f"trec6:few:{rate}" for rate in ("r95", "r5", "r2", "r05"))
OTHER_WORLDS = ("digits:graded:c", "trec6:graded:c", "digits:onearm:c", "digits:even:c", "digits:low:c", "ng20:sup:c")
ALL = CLEAN_DIGITS + CLEAN_TEXT + DIGIT_RATES + TEXT_RATES + OTHER_WORLDS


class MissingData(RuntimeError):
    """The embeddings of a text stream are not on this machine."""


@dataclass(frozen=True)
class Stream:
    """T requests, K arms, and what each arm is worth at each request.

    Attributes
    ----------
    x : (T, d) float32
    arms : (K, d) float32
        The frozen model's vector of each arm.
    value : (T, K) float32
        Probability that the arm succeeds, which is its expected reward.
    coin : (T,) float64
        Uniform draws: an arm succeeds where coin < value, so every policy meets the same luck.
    inverted : (T,) bool
        Requests whose reward arrives as its opposite.
    lost : (T,) bool
        Requests whose reward arrives as NaN.
    held_x, held_value : (n, d) and (n, K) float32
        Rows that the stream never shows.
    delay : int
        Requests between a decision and its feedback.
    signed : bool
        Rewards are sent as -1 and 1 in place of 0 and 1.
    """

    name: str
    seed: int
    x: F32
    arms: F32
    value: F32
    coin: F64
    inverted: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    held_x: F32
    held_value: F32
    delay: int = 0
    signed: bool = False

    def reward(self, t: int, arm: int) -> float:
        """The reward that comes back for `arm` at request `t`, in [0, 1]; NaN where it is lost."""
        if self.lost[t]:
            return float("nan")
        return float((self.coin[t] < self.value[t, arm]) != self.inverted[t])


def available(name: str) -> bool:
    """True if the data of this stream can be read here."""
    try:
        _source(name.split(":")[0])
    except MissingData:
        return False
    return True


def make(name: str, seed: int) -> Stream:
    """The stream of that name; equal names and seeds give equal streams.

    Raises
    ------
    MissingData
        The stream needs embeddings and SONA_DATA does not lead to them.
    ValueError
        The name does not describe a stream.
    """
    data, world, rewards, *options = name.split(":")
    option = {key: value for key, _, value in (o.partition("=") for o in options)}
    unknown = set(option) - {"T", "delay", "scale", "signed", "invert", "spread", "nan", "optimal"}
    if rewards not in RATES or unknown:
        raise ValueError(f"expected data:world:rewards[:option...], got {name!r}")
    rng = np.random.default_rng([seed, *data.encode(), 0, *world.encode()])
    rounds = int(option.get("T", 8000 if "optimal" in option else _rounds(data, world, rewards)))

    if data == "clusters":
        x, label, arms, held_x, held_label = _clusters(rounds, world, rng)
    elif data.startswith("gauss"):
        x, label, arms, held_x, held_label = _gauss(int(data[5:]), rounds, world, rng)
    else:
        x, label, arms, held_x, held_label = _labelled(data, world, rounds, rng)
    if "optimal" in option:
        label, held_label = _choice(x, arms), _choice(held_x, arms)

    value, held_value = _values(label, held_label, len(arms), world, RATES[rewards], rng)
    scale = np.float32(option.get("scale", 1))
    inverted = np.zeros(rounds, bool)
    if "invert" in option:
        inverted[3000 : 3000 + int(option["invert"])] = True
    if "spread" in option:
        inverted[2000 + rng.choice(4000, int(option["spread"]), replace=False)] = True
    return Stream(
        name=name,
        seed=seed,
        x=x * scale,
        arms=arms * scale,
        value=value,
        coin=rng.random(rounds),
        inverted=inverted,
        lost=rng.random(rounds) < float(option.get("nan", 0)) / 100,
        held_x=held_x * scale,
        held_value=held_value,
        delay=int(option.get("delay", 0)),
        signed="signed" in option,
    )


def _rounds(data: str, world: str, rewards: str) -> int:
    if world == "onearm":
        return 2000
    slow = rewards != "c" or world == "graded"
    if data.startswith(("clusters", "gauss")):
        return 2000 if data == "clusters" else 3000
    return {"digits": 6000 if slow else 3000, "trec6": 4000 if slow else 3000}.get(data, 4000)


def labelled(data: str) -> tuple[F32, I64]:
    """
    All rows (n, d) of a data set, unit norm, and their classes (n,).

    Raises
    ------
    MissingData
        They need embeddings and SONA_DATA does not lead to them.
    """
    return _source(data)


@lru_cache(maxsize=4)
def _source(data: str) -> tuple[F32, I64]:
    """All rows (n, d), unit norm, and their classes (n,)."""
    if data == "digits":
        from sklearn.datasets import load_digits
        from sklearn.preprocessing import StandardScaler

        digits = load_digits()
        return _unit(np.clip(StandardScaler().fit_transform(digits.data), -6, 6)), digits.target.astype(np.int64)
    if data.startswith(("gauss", "clusters")):
        return np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    directory = os.environ.get("SONA_DATA")
    if data not in EMBEDDINGS:
        raise ValueError(f"expected digits, clusters, gauss<K> or one of {', '.join(EMBEDDINGS)}, got {data!r}")
    path = Path(directory or "") / EMBEDDINGS[data]
    if not directory or not path.is_file():
        raise MissingData(f"{EMBEDDINGS[data]} not found: set SONA_DATA to the directory that holds it (now {directory or 'unset'})")
    with np.load(path) as file:
        return _unit(file["X"]), file["y_fine" if data == "trec50" else "y"].astype(np.int64)


def _labelled(data: str, world: str, rounds: int, rng: np.random.Generator) -> tuple[F32, I64, F32, F32, I64]:
    """Rows of a data set in random order, 1/5 or more held out, five examples per class spent on the arms."""
    rows, classes = _source(data)
    if world in TWO_GROUPS:
        classes = np.isin(classes, TWO_GROUPS[world]).astype(np.int64)
    spare = len(rows) // (4 if data == "digits" else 5)
    order = rng.permutation(len(rows))
    candidates = np.roll(order, -spare)  # the examples come from the streamed part unless a class has none there
    members = [candidates[classes[candidates] == k] for k in range(classes.max() + 1)]
    examples = [rows_of[: min(5, max(1, len(rows_of) // 2))] for rows_of in members]
    used = np.concatenate(examples)
    held, live = np.setdiff1d(order[:spare], used), np.setdiff1d(order[spare:], used)
    arms = _unit(np.stack([rows[e].mean(0) for e in examples]))
    shown = np.concatenate([rng.permutation(live) for _ in range(-(-rounds // len(live)))])[:rounds]
    x, held_x = rows[shown], rows[held]
    count, d = arms.shape
    if world == "shift":
        turn = _orthonormal(d // 2, d // 2, rng)
        x, held_x = x.copy(), held_x.copy()
        for part in (x, held_x):
            part[:, : d // 2] = part[:, : d // 2] @ turn
    elif world == "perm":
        moved = rng.permutation(count)[: max(2, count // 2)]
        arms[moved] = arms[np.roll(moved, 1)]
    elif world == "rand":
        arms = _unit(rng.standard_normal((count, d)))
    elif world in ("graded", "onearm"):
        arms = _orthonormal(4 if world == "graded" and data != "digits" else 5, d, rng)
    return x, classes[shown], arms, held_x, classes[held]


def _gauss(count: int, rounds: int, world: str, rng: np.random.Generator) -> tuple[F32, I64, F32, F32, I64]:
    """`count` random unit arms in 128 dimensions; inputs are an arm plus noise of 0.8 of its length."""
    d = 128
    arms = _unit(rng.standard_normal((count, d)))
    label = rng.integers(count, size=rounds + 2000)
    x = _unit(arms[label] + rng.standard_normal((len(label), d)) * (0.8 / np.sqrt(d)))
    if world == "shift":
        x[:, : d // 2] = x[:, : d // 2] @ _orthonormal(d // 2, d // 2, rng)
    return x[:rounds], label[:rounds], arms, x[rounds:], label[rounds:]


def _clusters(rounds: int, world: str, rng: np.random.Generator) -> tuple[F32, I64, F32, F32, I64]:
    """Six tight clusters in 32 dimensions around the arms, of which three or all trade places; pi of the frozen choice is .99 and more."""
    centres = _unit(rng.standard_normal((6, 32)))
    label = rng.integers(6, size=rounds + 2000)
    x = _unit(centres[label] + rng.standard_normal((len(label), 32)) * (0.2 / np.sqrt(32)))
    moved = rng.permutation(6)[: 6 if world == "all" else 3]
    arms = centres.copy()
    arms[moved] = centres[np.roll(moved, 1)]
    return x[:rounds], label[:rounds], arms, x[rounds:], label[rounds:]


def _values(label: I64, held: I64, arms: int, world: str, rate: tuple[float, float], rng: np.random.Generator) -> tuple[F32, F32]:
    """Expected reward of every arm, for the streamed and for the held-out rows."""
    right, wrong = rate
    if world == "graded":  # (class, arm): one good arm per class, the others in between
        table = rng.uniform(0.35, 0.75, (label.max() + 1, arms))
        table[np.arange(len(table)), rng.integers(arms, size=len(table))] = rng.uniform(0.85, 0.95, len(table))
    elif world == "onearm":
        table = np.full((label.max() + 1, arms), 0.1)
        table[:, rng.integers(arms)] = 0.9
    else:
        table = np.where(np.eye(arms, dtype=bool), right, wrong)
    return table[label].astype(np.float32), table[held].astype(np.float32)


def _unit(rows: NDArray[np.floating]) -> F32:
    rows = np.asarray(rows, np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def _orthonormal(count: int, d: int, rng: np.random.Generator) -> F32:
    return np.asarray(np.linalg.qr(rng.standard_normal((d, count)))[0].T, np.float32)


def _choice(x: F32, arms: F32) -> I64:
    return np.asarray(np.argmax(x @ arms.T, axis=1), np.int64)
