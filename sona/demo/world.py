"""Four worlds of handwritten digits: a frozen embedding, arm vectors from five labelled examples, and what has gone wrong since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError

WorldName = Literal["few", "shift", "perm", "rand"]
WORLDS: tuple[WorldName, ...] = get_args(WorldName)
HELD_OUT = 449  # a quarter of the 1,797 digits, never streamed
LABELLED = 5  # examples a class behind each arm vector, never streamed
CLIP = 6.0  # standard deviations


@dataclass(frozen=True)
class World:
    """Unit-norm embeddings with labels, and one unit vector per arm; K = 10, d = 64.

    Attributes
    ----------
    arms : (K, d) float32
    x, y : (n, d) float32, (n,) int64
        What the stream draws from.
    held_x, held_y : (449, d) float32, (449,) int64
    """

    name: WorldName
    seed: int
    arms: npt.NDArray[np.float32]
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    held_x: npt.NDArray[np.float32]
    held_y: npt.NDArray[np.int64]

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Which row of ``x`` rounds start .. start + count - 1 show: shuffled passes, the same for one seed wherever a run begins."""
        size = len(self.x)
        first, last = start // size, (start + count - 1) // size
        passes = [np.random.default_rng((self.seed, 1, number)).permutation(size) for number in range(first, last + 1)]
        return np.concatenate(passes)[start - first * size :][:count]


def make_world(name: WorldName, seed: int) -> World:
    """Build a world; everything random in it comes from ``seed``.

    ``few``: arm vectors are the centroids of 5 labelled examples. ``shift``: then half of the embedding's coordinates are rotated, as when
    the embedding model was replaced. ``perm``: half of the arms' vectors are swapped. ``rand``: the arm vectors are random.
    """
    if name not in WORLDS:
        raise SonaValueError(f"expected a world among {', '.join(WORLDS)}, got {name!r}")
    from sklearn.datasets import load_digits  # here: importing scikit-learn takes longer than `import sona` may

    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng((seed, 0))
    order = rng.permutation(len(labels))
    held, pool = order[:HELD_OUT], order[HELD_OUT:]
    spread = pixels[pool].std(axis=0)
    embedding = (pixels - pixels[pool].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    embedding = _unit(np.clip(embedding, -CLIP, CLIP))

    classes = int(labels.max()) + 1
    shown = np.stack([pool[labels[pool] == digit][:LABELLED] for digit in range(classes)])  # (K, 5)
    arms = _unit(embedding[shown].mean(axis=1))
    if name == "shift":
        half = rng.permutation(embedding.shape[1])[: embedding.shape[1] // 2]
        embedding[:, half] = embedding[:, half] @ _rotation(len(half), rng)
    elif name == "perm":
        swapped = rng.permutation(classes)[: classes // 2]
        arms[swapped] = arms[np.roll(swapped, 1)]
    elif name == "rand":
        arms = _unit(rng.standard_normal(arms.shape))

    stream = np.setdiff1d(pool, shown)
    return World(
        name=name,
        seed=seed,
        arms=arms.astype(np.float32),
        x=embedding[stream].astype(np.float32),
        y=labels[stream].astype(np.int64),
        held_x=embedding[held].astype(np.float32),
        held_y=labels[held].astype(np.int64),
    )


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(norm > 0, norm, 1.0), np.float64)


def _rotation(size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)), np.float64)
