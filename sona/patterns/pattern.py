"""LearnedPattern: a region of the embedding space that requests come back to, and how well they went."""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Self

import numpy as np

from sona._arrays import Floats, coerce
from sona._fields import finite
from sona._vector import frozen
from sona.errors import SonaTypeError, SonaValueError


class PatternType(IntEnum):
    """What kind of request a pattern stands for; the caller says so with each trajectory, nothing guesses it."""

    GENERAL = 0
    REASONING = 1
    FACTUAL = 2
    CREATIVE = 3
    CODE_GEN = 4
    CONVERSATIONAL = 5


@dataclass(frozen=True, slots=True, eq=False)
class LearnedPattern:
    """
    A cluster of trajectories.

    Attributes
    ----------
    id : int
        The same from cycle to cycle.
    centroid : float32 array of shape (d,), read-only
        Weighted mean of the members' unit vectors; shorter than 1, the more so the wider the cluster is.
    cluster_size : int
        Members.
    total_weight : float
        Sum of the members' quality times weight; decays while no cycle finds the pattern again.
    avg_quality : float
        Mean of the members' quality.
    created_at, last_accessed : int
        Seconds since the epoch; last_accessed is created_at until the first access.
    access_count : int
        How often `ReasoningBank.find_patterns` returned it.
    pattern_type : PatternType
        The type that most of the members' weight has.

    Raises
    ------
    SonaValueError, SonaTypeError
        A centroid that is not a finite vector, cluster_size below 1, a negative or non-finite number.
    """

    id: int
    centroid: Floats
    cluster_size: int
    total_weight: float
    avg_quality: float
    created_at: int
    last_accessed: int
    access_count: int
    pattern_type: PatternType = PatternType.GENERAL

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "centroid", frozen(self.centroid, None, "centroid"))
        for name in ("id", "cluster_size", "created_at", "last_accessed", "access_count"):
            value, least = getattr(self, name), int(name == "cluster_size")
            if not isinstance(value, int | np.integer):
                raise SonaTypeError(f"{name}: expected an int, got {type(value).__name__}")
            if value < least:
                raise SonaValueError(f"{name}: expected at least {least}, got {value}")
            put(self, name, int(value))
        for name in ("total_weight", "avg_quality"):
            value = finite(getattr(self, name), name)
            if value < 0:
                raise SonaValueError(f"{name}: expected at least 0, got {value:g}")
            put(self, name, value)
        put(self, "pattern_type", PatternType(self.pattern_type))

    def merge(self, other: Self) -> Self:
        """
        Both as one: centroid and avg_quality weighted by cluster_size, the sums added, the earlier creation and the later access.

        The id and the type stay those of this pattern.

        Raises
        ------
        SonaValueError
            Centroids of different length.
        """
        if len(self.centroid) != len(other.centroid):
            raise SonaValueError(f"merge: expected a centroid of shape {self.centroid.shape}, got {other.centroid.shape}")
        size = self.cluster_size + other.cluster_size
        own, others = self.cluster_size / size, other.cluster_size / size
        centroid = own * self.centroid.astype(np.float64) + others * other.centroid
        return replace(
            self,
            centroid=centroid.astype(np.float32),
            cluster_size=size,
            total_weight=self.total_weight + other.total_weight,
            avg_quality=own * self.avg_quality + others * other.avg_quality,
            created_at=min(self.created_at, other.created_at),
            last_accessed=max(self.last_accessed, other.last_accessed),
            access_count=self.access_count + other.access_count,
        )

    def decay(self, factor: float) -> Self:
        """The pattern with `factor` times its total_weight; factor in [0, 1]."""
        return replace(self, total_weight=self.total_weight * unit_interval(factor, "factor"))

    def similarity(self, x: Any) -> float:
        """Cosine of the angle between the centroid and x of shape (d,); 0 where either is zero."""
        v = coerce(x, self.centroid.shape, "x").astype(np.float64)
        c = self.centroid.astype(np.float64)
        norm = math.sqrt(v @ v) * math.sqrt(c @ c)
        return float(v @ c / norm) if norm > 0 else 0.0


def unit_interval(value: Any, name: str) -> float:
    """A number in [0, 1] as a float."""
    result = finite(value, name)
    if not 0 <= result <= 1:
        raise SonaValueError(f"{name}: expected a number in [0, 1], got {result:g}")
    return result
