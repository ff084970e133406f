"""What reaches the nodes of a graph from some of them."""

from typing import Any

import numpy as np

from sona._arrays import Floats
from sona.memory.csr import Csr


def propagate(csr: Csr, seed_scores: Any, hops: int, alpha: float) -> Floats:
    """p = (1 - alpha) s + alpha D^-1/2 A D^-1/2 p, `hops` times from p = s; (n,) float32."""
    matrix, seeds = csr.matrix(), np.asarray(seed_scores, np.float32)
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    score = seeds
    for _ in range(hops):
        score = (1 - alpha) * seeds + alpha * scale * (matrix @ (scale * score))
    return score.astype(np.float32)
