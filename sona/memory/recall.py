"""What a query finds in the memory, and in what order."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sona._arrays import Floats
from sona._kernels import Kernels
from sona.memory.csr import Longs
from sona.memory.kinds import NodeKind

SEEDS = 16  # nearest nodes that `MemoryGraph.propagate` starts from


@dataclass(frozen=True, slots=True)
class Recalled:
    """
    A node that `MemoryGraph.recall` found.

    Attributes
    ----------
    id : int
    kind : NodeKind
    similarity : float
        Cosine to the query.
    score : float
        What it was ranked by.
    quality : float
    data : object
        As it was put in, through JSON.
    """

    id: int
    kind: NodeKind
    similarity: float
    score: float
    quality: float
    data: Any


def seeds(vectors: Floats, query: Floats, kernels: Kernels) -> Floats:
    """(n,) the cosine to the query at the nearest nodes, where it is above 0, and 0 elsewhere."""
    result = np.zeros(len(vectors), np.float32)
    if len(vectors):
        places, similarity = kernels.top_k(vectors, query, min(SEEDS, len(vectors)))
        result[places] = np.maximum(similarity, 0)
    return result


def blended(vectors: Floats, query: Floats, there: Floats, k: int) -> tuple[Longs, Floats, Floats]:
    """
    The k best by the mean of the cosine to the query and of what is `there`, (n,), scaled to the largest cosine.

    Returns
    -------
    (positions, similarity, score)
        Equal scores in the order of positions.
    """
    cosine = vectors @ query
    near, top = np.maximum(cosine, 0), there.max()
    score = 0.5 * (near + there * np.float32(near.max() / top if top > 0 else 0))
    places = np.argsort(-score, kind="stable")[:k]
    return places, cosine[places], score[places].astype(np.float32)
