"""Patterns of patterns: Ward's agglomerative clustering of the centroids."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaValueError
from sona.patterns.clusters import Doubles, Ints


@dataclass(frozen=True, slots=True, eq=False)
class PatternHierarchy:
    """
    A binary tree over n patterns.

    Attributes
    ----------
    ids : int64 array (n,)
        Of the patterns, the leaves of the tree.
    linkage : float64 array (max(n - 1, 0), 4)
        As `scipy.cluster.hierarchy.linkage` gives it: the two nodes that join, the height, the number of leaves below. Ready for
        `scipy.cluster.hierarchy.dendrogram`.
    """

    ids: Ints
    linkage: Doubles

    @classmethod
    def of(cls, ids: Ints, centroids: Floats) -> Self:
        """The tree over centroids of shape (n, d); each join is the one that adds least to the sum of squared distances."""
        if len(ids) < 2:
            return cls(ids, np.empty((0, 4)))
        from scipy.cluster.hierarchy import linkage

        return cls(ids, linkage(centroids.astype(np.float64), "ward"))

    def cut(self, groups: int) -> dict[int, int]:
        """
        Pattern id -> number of its group, with at most `groups` of them: the tree without its highest joins.

        Groups are numbered from 0 in the order of their first pattern.

        Raises
        ------
        SonaValueError
            groups below 1.
        """
        if type(groups) is not int or groups < 1:
            raise SonaValueError(f"groups: expected an int of at least 1, got {groups!r}")
        n = len(self.ids)
        below: dict[int, list[int]] = {leaf: [leaf] for leaf in range(n)}
        for node, (a, b) in enumerate(self.linkage[: max(n - groups, 0), :2].astype(int).tolist(), n):
            below[node] = below.pop(a) + below.pop(b)
        ordered = sorted(below.values(), key=min)
        group = {leaf: number for number, leaves in enumerate(ordered) for leaf in leaves}
        return {id: group[leaf] for leaf, id in enumerate(self.ids.tolist())}
