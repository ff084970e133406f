"""Configuration of a ReasoningBank."""

import math
from dataclasses import dataclass

from sona.errors import SonaValueError


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternConfig:
    """
    How many trajectories and patterns a `ReasoningBank` keeps, and what counts as the same pattern.

    Attributes
    ----------
    embedding_dim : int
        Length of the vectors, floats.
    k_clusters : int
        Clusters of a cycle, at most; a cycle over n trajectories asks for no more than n / min_cluster_size.
    max_iterations : int
        Of Lloyd's algorithm.
    convergence_threshold : float
        Squared movement of the centroids, relative to the variance of the data, that ends it.
    min_cluster_size : int
        A smaller cluster makes no pattern; its trajectories stay for the next cycle.
    quality_threshold : float
        A pattern that a cycle did not find again, that nobody looked up and whose mean quality is below this is pruned at once.
    max_trajectories : int
        The oldest goes when one more comes.
    max_bytes : int
        Bound on the memory of the trajectories, about 4 embedding_dim + 38 bytes each.
    max_patterns : int
        Those of least total_weight go beyond it.
    match_similarity : float
        Least cosine between a new centroid and an old one for the pattern to keep its id. On 384-dimensional text embeddings a refit moved
        centroids by a cosine of .97 to 1 (10 % of the rows exchanged), and other centroids were at .75 to .83, at most.
    merge_similarity : float
        Patterns whose centroids have at least this cosine become one.
    decay : float
        What a cycle multiplies the total_weight of a pattern by that it did not find again.
    min_weight : float
        Such a pattern is pruned when its total_weight falls below this: one trajectory of quality 1 has weight 1.
    seed : int
        Of the seeding; a cycle draws from (seed, number of the cycle).
    """

    embedding_dim: int = 256
    k_clusters: int = 100
    max_iterations: int = 100
    convergence_threshold: float = 1e-3
    min_cluster_size: int = 5
    quality_threshold: float = 0.3
    max_trajectories: int = 10_000
    max_bytes: int = 32 << 20
    max_patterns: int = 1_000
    match_similarity: float = 0.8
    merge_similarity: float = 0.95
    decay: float = 0.9
    min_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("embedding_dim", "k_clusters", "max_iterations", "min_cluster_size", "max_trajectories", "max_bytes", "max_patterns")
        for name in (*counts, "seed"):
            value, least = getattr(self, name), int(name in counts)
            if type(value) is not int or value < least:
                raise SonaValueError(f"{name}: expected an int of at least {least}, got {value!r}")
        for name in ("quality_threshold", "match_similarity", "merge_similarity", "decay"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SonaValueError(f"{name}: expected a number in [0, 1], got {value!r}")
        for name in ("convergence_threshold", "min_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise SonaValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
