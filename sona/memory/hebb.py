"""Hebb's rule for the memory: what is used together grows together, what is passed over fades."""

import numpy as np

from sona._arrays import Floats
from sona.memory.adjacency import LEAST_WEIGHT, Adjacency
from sona.memory.csr import Longs
from sona.memory.kinds import EdgeKind
from sona.memory.nodes import LEAST_STRENGTH

USED, UNUSED = 0.05, 0.02  # share of what is missing to 1 that a use adds, and of what is there that it costs to be passed over
TOGETHER = 32  # most nodes of one use: all pairs of them are joined


def strengths(strength: Floats, used: Longs, unused: Longs) -> None:
    """Strengthen and weaken nodes in place."""
    strength[used] += np.float32(USED) * (1 - strength[used])
    strength[unused] = np.maximum((1 - np.float32(UNUSED)) * strength[unused], np.float32(LEAST_STRENGTH))


def together(adjacency: Adjacency, used: Longs, unused: Longs) -> None:
    """The edges between nodes that were used grow, those from them to nodes that were not weaken."""
    i, j = np.triu_indices(len(used), 1)
    coactivate(adjacency, used[i], used[j], np.full(len(i), USED, np.float32))
    u, v = np.repeat(used, len(unused)), np.tile(unused, len(used))
    weight = adjacency.weights(u, v, EdgeKind.COACTIVATION)
    there = weight > 0
    less = (1 - np.float32(UNUSED)) * weight[there]
    less[less < LEAST_WEIGHT] = 0
    adjacency.edit(u[there], v[there], np.full(len(less), EdgeKind.COACTIVATION, np.uint8), less)


def coactivate(adjacency: Adjacency, u: Longs, v: Longs, gain: Floats) -> None:
    """Move the co-activation edges between positions u and v, distinct pairs, by `gain` of what is missing to 1; none counts as 0."""
    weight = adjacency.weights(u, v, EdgeKind.COACTIVATION)
    weight = np.minimum(weight + gain * (1 - weight), np.float32(1))
    adjacency.edit(u, v, np.full(len(u), EdgeKind.COACTIVATION, np.uint8), weight)
