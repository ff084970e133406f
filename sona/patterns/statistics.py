"""What trajectories say about patterns and arms, as sums: of a shard each, and of all shards together when added."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.errors import SonaTypeError, SonaValueError
from sona.patterns.clusters import Doubles, Ints
from sona.patterns.pattern import PatternType
from sona.patterns.window import Outcomes


@dataclass(frozen=True, slots=True, eq=False)
class PatternStatistics:
    """
    Sums over the trajectories of p patterns and K arms. Adding those of two shards gives, up to rounding, those of both in one pass.

    Attributes
    ----------
    ids : int64 array (p,)
        Of the patterns; shards that are added have the same.
    count : int64 array (p,)
        Trajectories.
    weight : float64 array (p,)
        Sum of quality times weight.
    quality : float64 array (p,)
        Sum of quality.
    vectors, weighted_vectors : float64 arrays (p, d)
        Sums of the unit vectors, and of quality times weight times them.
    types : float64 array (p, 6)
        Sum of weight by `PatternType`.
    arm_count : int64 array (p, K)
        Rewards of positive weight.
    arm_weight, arm_weight2 : float64 arrays (p, K)
        Sums of weight and of its square over those.
    arm_mean, arm_squares : float64 arrays (p, K)
        Weighted mean of the rewards, and weighted sum of squared deviations from it.
    """

    ids: Ints
    count: Ints
    weight: Doubles
    quality: Doubles
    vectors: Doubles
    weighted_vectors: Doubles
    types: Doubles
    arm_count: Ints
    arm_weight: Doubles
    arm_weight2: Doubles
    arm_mean: Doubles
    arm_squares: Doubles

    @classmethod
    def of(cls, ids: Ints, labels: Ints, x: Floats, outcome: Outcomes) -> Self:
        """
        One pass over n trajectories.

        Parameters
        ----------
        ids : int64 array (p,)
        labels : int64 array (n,)
            Index into ids of each trajectory's pattern.
        x : float32 array (n, d)
            Unit vectors.
        outcome : structured array (n,) of dtype `sona.patterns.window.OUTCOME`
        """
        p = len(ids)
        order = np.argsort(labels, kind="stable")
        x, outcome, labels = x[order], outcome[order], labels[order]
        count = np.bincount(labels, minlength=p)
        weight = outcome["quality"] * outcome["weight"]
        kinds = p, len(PatternType)
        types = _totals(labels * kinds[1] + outcome["pattern_type"], outcome["weight"], p * kinds[1])

        told = outcome["rewarded"] & (outcome["arm"] >= 0) & (outcome["weight"] > 0)
        arm, reward, trust = (outcome[name][told] for name in ("arm", "reward", "weight"))
        cells = p, int(arm.max(initial=-1)) + 1
        cell, size = labels[told] * cells[1] + arm, p * cells[1]
        arm_weight = _totals(cell, trust, size)
        mean = _totals(cell, trust * reward, size) / np.maximum(arm_weight, np.finfo(float).tiny)
        squares = _totals(cell, trust * (reward - mean[cell]) ** 2, size)
        return cls(
            ids=ids,
            count=count,
            weight=_totals(labels, weight, p),
            quality=_totals(labels, outcome["quality"], p),
            vectors=_sums(x, count),
            weighted_vectors=_sums(x * weight[:, None], count),
            types=types.reshape(kinds),
            arm_count=np.bincount(cell, minlength=size).reshape(cells),
            arm_weight=arm_weight.reshape(cells),
            arm_weight2=_totals(cell, trust**2, size).reshape(cells),
            arm_mean=mean.reshape(cells),
            arm_squares=squares.reshape(cells),
        )

    def __add__(self, other: Self) -> Self:
        """
        The statistics of both shards. Means and squared deviations combine as in Chan, Golub & LeVeque 1983, so that nothing cancels.

        Raises
        ------
        SonaTypeError, SonaValueError
            Not statistics, or of other patterns or another length of vectors.
        """
        if not isinstance(other, PatternStatistics):
            raise SonaTypeError(f"expected PatternStatistics to add, got {type(other).__name__}")
        if not np.array_equal(self.ids, other.ids) or self.vectors.shape != other.vectors.shape:
            raise SonaValueError(f"expected statistics of the same {len(self.ids)} patterns, got {len(other.ids)} others")
        arms = max(self.arm_count.shape[1], other.arm_count.shape[1])
        a, b = self._padded(arms), other._padded(arms)
        weight = a["arm_weight"] + b["arm_weight"]
        share = b["arm_weight"] / np.maximum(weight, np.finfo(float).tiny)
        apart = b["arm_mean"] - a["arm_mean"]
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if not f.name.startswith(("ids", "arm_"))}
        return type(self)(
            ids=self.ids,
            **sums,
            arm_count=a["arm_count"] + b["arm_count"],
            arm_weight=weight,
            arm_weight2=a["arm_weight2"] + b["arm_weight2"],
            arm_mean=a["arm_mean"] + share * apart,
            arm_squares=a["arm_squares"] + b["arm_squares"] + a["arm_weight"] * share * apart**2,
        )

    def _padded(self, arms: int) -> dict[str, npt.NDArray[Any]]:
        missing = (0, 0), (0, arms - self.arm_count.shape[1])
        return {f.name: np.pad(getattr(self, f.name), missing) for f in fields(self) if f.name.startswith("arm_")}

    @property
    def centroids(self) -> Floats:
        """(p, d): the weighted mean of each pattern's vectors, the plain one where all weights are zero, zero where there are none."""
        weighted = self.weight > 0
        total = np.where(weighted, self.weight, np.maximum(self.count, 1))
        sums = np.where(weighted[:, None], self.weighted_vectors, self.vectors)
        result: Floats = (sums / total[:, None]).astype(np.float32)
        return result


def _totals(cell: Ints, values: Doubles, size: int) -> Doubles:
    """(size,): the sum of the values (n,) of each cell."""
    return np.bincount(cell, weights=values, minlength=size).astype(np.float64, copy=False)


def _sums(rows: Floats | Doubles, count: Ints) -> Doubles:
    """(p, d): the sum of the first count[0] rows, of the next count[1], and so on."""
    result = np.zeros((len(count), rows.shape[1]))
    some = np.flatnonzero(count)
    if len(some):
        result[some] = np.add.reduceat(rows, np.cumsum(count)[some] - count[some], axis=0, dtype=np.float64)
    return result
