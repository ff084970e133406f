"""Which trajectories belong together: k-means that stays where it was, near-duplicates, and which new cluster is which old one."""

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, unit_rows

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_STAYS = 1.01  # the old clustering, refitted, is kept while its inertia is at most this times that of a fresh one
_BLOCK = 1 << 22  # distances computed at a time


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centroids (k, d) float32, the cluster of each row (n,), and the weighted sum of squared distances."""

    centroids: Floats
    labels: Ints
    inertia: float


def similarities(a: Floats, b: Floats) -> Floats:
    """Cosines (n, m) between the rows of a (n, d) and b (m, d). Two zero rows are the same (1); a zero row is like no other (0)."""
    result: Floats = unit_rows(a) @ unit_rows(b).T
    result[np.ix_(~a.any(axis=1), ~b.any(axis=1))] = 1
    return result


def nearest(centroids: Floats, x: Floats) -> Ints:
    """Index (n,) of the nearest of the centroids (k, d), k >= 1, to each row of x (n, d); the first of equals."""
    squares = np.einsum("ij,ij->i", centroids, centroids)
    result = np.empty(len(x), np.int64)
    step = max(1, _BLOCK // len(centroids))
    for at in range(0, len(x), step):
        result[at : at + step] = np.argmin(squares - 2 * (x[at : at + step] @ centroids.T), axis=1)
    return result


def one_thread() -> AbstractContextManager[Any]:
    """
    Keeps the BLAS and OpenMP that are loaded to one thread inside; BLAS of the whole process, as scikit-learn does in each of its own fits.

    With more, the matrices of a cycle are so small that threads wait longer for each other than they compute: ten times as long where the
    cores are busy, as a host's are.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


def fit(x: Floats, weight: Doubles, k: int, *, old: Floats, max_iterations: int, tolerance: float, seed: Any) -> Clusters:
    """
    Weighted k-means of x (n, d) with k <= n clusters.

    scikit-learn's greedy k-means++ and Lloyd, and Lloyd once more from the same centroids where each that has a counterpart among `old`
    (m, d) is moved there. The second is kept unless the first is more than 1 % better: fitting from new seeds alone keeps 42 to 72 % of
    the centroids within a cosine of .8 on text when a tenth of the rows changes, this keeps all of them at the same inertia.

    All weights zero: all rows count alike.
    """
    from sklearn.cluster import kmeans_plusplus

    weight = weight / weight.max() if weight.any() else np.ones(len(x))  # scikit-learn sums them in float32
    random = np.random.RandomState(np.random.SeedSequence(seed).generate_state(4))
    # In double precision the seeding, most of the time, takes half as long: scikit-learn converts float32 anew for each centroid.
    seeds, _ = kmeans_plusplus(x.astype(np.float64), k, sample_weight=weight, random_state=random)
    best = _lloyd(x, weight, seeds.astype(np.float32), max_iterations, tolerance)
    if len(old):
        own, others = assignment(similarities(best.centroids, old))
        start = best.centroids.copy()
        start[own] = old[others]
        stayed = _lloyd(x, weight, start, max_iterations, tolerance)
        if stayed.inertia <= _STAYS * best.inertia:
            best = stayed
    return best


def _lloyd(x: Floats, weight: Doubles, start: Floats, max_iterations: int, tolerance: float) -> Clusters:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than k: some clusters stay empty
        found = KMeans(len(start), init=start, n_init=1, max_iter=max_iterations, tol=tolerance, random_state=0).fit(
            x, sample_weight=weight
        )
    return Clusters(np.ascontiguousarray(found.cluster_centers_, np.float32), found.labels_.astype(np.int64), float(found.inertia_))


def assignment(similarity: Floats) -> tuple[Ints, Ints]:
    """Pairs (row, column), one to one, with the largest sum of similarity."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return rows, columns


def near_duplicates(centroids: Floats, mass: Doubles, limit: float) -> Ints:
    """
    Group (n,) of each centroid (n, d), numbered in the order of their first members.

    The two most alike groups become one, at their mean weighted by `mass` (n,), until no two have a cosine of `limit` or more.
    """
    n = len(centroids)
    group = np.arange(n)
    mean, mass = centroids.astype(np.float64), mass.astype(np.float64)
    alike = similarities(centroids, centroids)
    alike[np.tril_indices(n)] = -2  # each pair once, the smaller index first; below every cosine
    while n > 1:
        into, gone = divmod(int(np.argmax(alike)), n)
        if alike[into, gone] < limit:
            break
        total = mass[into] + mass[gone]
        share = mass[gone] / total if total > 0 else 0.5
        mean[into] += share * (mean[gone] - mean[into])
        mass[into] = total
        group[group == gone] = into
        alive = np.flatnonzero(group == np.arange(n))
        alike[gone], alike[:, gone] = -2, -2
        fresh = similarities(mean[into : into + 1].astype(np.float32), mean[alive].astype(np.float32))[0]
        before, after = alive < into, alive > into
        alike[alive[before], into], alike[into, alive[after]] = fresh[before], fresh[after]
    return np.unique(group, return_inverse=True)[1].astype(np.int64)
