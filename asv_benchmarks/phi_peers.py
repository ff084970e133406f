"""Phi in numpy, as one would write it without sona: every subset with whole levels of the tree at once, and Queyranne's algorithm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

F64 = NDArray[np.float64]


def pair(w: F64, alpha: float) -> F64:
    """I - alpha S and I + alpha S, (2, n, n)."""
    root = np.sqrt(w.sum(1))
    s = alpha * w / np.outer(root, root)
    eye = np.eye(len(w))
    return np.stack([eye - s, eye + s])


def exhaustive(w: F64, alpha: float = 0.85) -> float:
    """Level k holds a matrix for each subset of the first k nodes; the next holds these without a row, and their Schur complements."""
    m = pair(w, alpha)[None]  # (subsets, 2, n - k, n - k)
    minor = np.ones(1)
    for _ in range(len(w)):
        pivot, rest = m[:, :, 0, 0], m[:, :, 1:, 1:]
        minor = np.concatenate([minor, minor * pivot.prod(1)])
        if rest.shape[-1]:
            column = m[:, :, 1:, 0]
            m = np.concatenate([rest, rest - column[..., None] * (column / pivot[..., None])[..., None, :]])
    half = len(minor) // 2
    return float(np.log2((minor[1:half] * minor[half:-1][::-1]).min() / minor[-1]) / 2)


def queyranne(w: F64, alpha: float = 0.85) -> float:
    """Nodes in groups of growing size; both matrices and their inverses lose a group's rows at each step."""
    both = pair(w, alpha)
    every = np.concatenate([both, np.linalg.inv(both)])  # (4, n, n)
    groups = [[i] for i in range(len(w))]
    own = [float(x) for x in every[:, range(len(w)), range(len(w))].prod(0)]
    least = np.inf
    while len(groups) > 1:
        first = max(range(len(groups)), key=lambda g: len(groups[g]))
        left = [*range(first), *range(first + 1, len(groups))]
        m, rows = every, [i for g in groups for i in g]
        m = m[:, rows][:, :, rows]
        size = np.array([len(g) for g in groups])
        start = np.cumsum(size) - size
        alone = np.array(own)
        taken, before = first, first
        while True:
            block = slice(start[taken], start[taken] + size[taken])
            if size[taken] == 1:
                column = m[:, :, start[taken]]
                m = m - column[:, :, None] * (column / column[:, start[taken], None])[:, None, :]
            else:
                m = m - m[:, :, block] @ np.linalg.solve(m[:, block, block], m[:, block, :])
            key = m[:, start, start].prod(0)
            for g in left:
                if size[g] > 1 and g != taken:
                    at = slice(start[g], start[g] + size[g])
                    key[g] = np.linalg.det(m[:, at, at]).prod()
            before = taken
            if taken != first:
                left.remove(taken)
            if len(left) == 1:
                break
            taken = left[int(np.argmin((key / alone)[left]))]
        last = left[0]
        least = min(least, own[last])
        merged = groups[before] + groups[last]
        kept = [g for g in range(len(groups)) if g not in (before, last)]
        groups, own = [groups[g] for g in kept], [own[g] for g in kept]
        if kept:
            groups.append(merged)
            own.append(float(np.linalg.det(every[:, merged][:, :, merged]).prod()))
        else:
            break
    return float(np.log2(least) / 2)


def of_subgraphs(graph: csr_array, walks: NDArray[np.int32], alpha: float = 0.85, crossover: int = 15) -> F64:
    """One part after the other, by the faster of the two."""
    found = []
    for walk in walks:
        ids = np.unique(walk)
        w = graph[ids][:, ids].toarray().astype(np.float64)
        found.append((exhaustive if len(ids) <= crossover else queyranne)(w, alpha))
    return np.array(found)
