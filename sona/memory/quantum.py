"""
Continuous-time quantum walks: where a walker may be found that was everywhere at once.

The walk lives in a neighbourhood of its start, of at most 64 nodes. With A = D^-1/2 W D^-1/2 of that neighbourhood and the normalised
Laplacian L = I - A, the amplitudes at time t are exp(-i L t) e_start, and their squared moduli the chances of finding it at each node
(Farhi and Gutmann 1998). Interference carries it away from the start in proportion to t, where a random walk gets as far as sqrt(t).
"""

import numpy as np

from sona.memory.csr import Csr, Doubles, Longs
from sona.memory.visited import Visited, incident


def quantum_walks(csr: Csr, starts: Longs, length: int, rng: np.random.Generator, *, size: int = 64, time: float = 2.0) -> Longs:
    """
    Paths (B, length) of positions, -1 behind the last: the start, then different nodes in the order measured.

    Parameters
    ----------
    csr : Csr
    starts : int64 array (B,)
    length : int
    rng : numpy Generator
        Draws each measurement's time, from half of `time` to one and a half times, and its outcomes.
    size : int
        Nodes of a neighbourhood, at most.
    time : float
        In units in which a pair of nodes with one edge swaps its walker in pi / 2.
    """
    hoods = np.full((len(starts), size), -1, np.int64)
    for row, start in zip(hoods, starts.tolist(), strict=True):
        found = neighbourhood(csr, start, size)
        row[: len(found)] = found
    paths = np.full((len(starts), length), -1, np.int64)
    if not len(starts):
        return paths
    visited = Visited.of(csr, hoods)
    chance = distribution(visited.weight, rng.uniform(0.5 * time, 1.5 * time, size=len(starts)))
    chance[:, 0] = 0
    chance[~visited.mask | (chance < 1e-12)] = 0  # what is left of rounding is no chance
    # the smallest of exponential times with these rates come in the order of draws without replacement
    arrival = np.divide(rng.exponential(size=chance.shape), chance, out=np.full(chance.shape, np.inf), where=chance > 0)
    order = np.argsort(arrival, axis=1, kind="stable")[:, : length - 1]
    met = np.take_along_axis(arrival, order, axis=1) < np.inf
    paths[:, 0] = starts
    paths[:, 1 : 1 + order.shape[1]] = np.where(met, np.take_along_axis(visited.nodes, order, axis=1), -1)
    return paths


def neighbourhood(csr: Csr, start: int, size: int) -> Longs:
    """Positions of `start` and of the nodes around it, ring by ring; of the last ring those with the heaviest edges to the ring before."""
    inside = ring = np.array([start], np.int64)
    while len(inside) < size:
        _, at = incident(csr, ring)
        columns, inverse = np.unique(csr.column[at].astype(np.int64), return_inverse=True)
        weight = np.bincount(inverse, weights=csr.weight[at], minlength=len(columns))
        new = ~np.isin(columns, inside)
        columns, weight = columns[new], weight[new]
        if not len(columns):
            break
        ring = columns[np.argsort(-weight, kind="stable")[: size - len(inside)]]
        inside = np.concatenate([inside, ring])
    return inside


def distribution(weight: Doubles, time: Doubles) -> Doubles:
    """
    Chances (B, m) of finding the walker that was at node 0 at time 0 at each node at `time` (B,), on graphs of `weight` (B, m, m).

    exp(-i L t) = exp(-i t) exp(i A t), and with the spectrum of A in [-1, 1] the latter is sum_k (2 - [k = 0]) i^k J_k(t) T_k(A): Bessel
    functions and Chebyshev polynomials. J_k(t) falls faster than exponentially beyond k = t.
    """
    from scipy.special import jv

    degree = weight.sum(axis=2)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    a = weight * scale[:, :, None] * scale[:, None, :]
    last = float(time.max())
    terms = int(last + 12 * last ** (1 / 3)) + 12
    factor = jv(np.arange(terms)[:, None], time[None, :])  # (terms, B)
    before = np.zeros((*degree.shape, 1))
    before[:, 0] = 1
    now = a @ before
    amplitude = np.zeros(degree.shape, np.complex128)
    for k in range(terms):
        amplitude += (2 - (k == 0)) * 1j**k * factor[k][:, None] * before[:, :, 0]
        before, now = now, 2 * (a @ now) - before
    return np.abs(amplitude) ** 2
