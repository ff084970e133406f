"""ReasoningBank: trajectories in, patterns with stable ids out."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce, unit_rows
from sona._fields import finite
from sona._kernels import Kernels
from sona._locks import lock
from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError
from sona.patterns.clusters import Doubles, Ints, assignment, fit, near_duplicates, nearest, one_thread, similarities
from sona.patterns.config import PatternConfig
from sona.patterns.hierarchy import PatternHierarchy
from sona.patterns.pattern import LearnedPattern, PatternType, unit_interval
from sona.patterns.prior import retrieval_prior
from sona.patterns.statistics import PatternStatistics
from sona.patterns.verdict import Verdict, verdicts
from sona.patterns.window import OUTCOME, Outcomes, TrajectoryWindow
from sona.types import QueryTrajectory

_MAX_ARMS = 1 << 20
_MAX_WEIGHT = 1e9  # sums of them, and of their squares, stay far within a float
# Of each pattern, beside its centroid; the fields of LearnedPattern.
_ABOUT = np.dtype(
    [
        ("id", np.int64),
        ("cluster_size", np.int64),
        ("total_weight", np.float64),
        ("avg_quality", np.float64),
        ("created_at", np.int64),
        ("last_accessed", np.int64),
        ("access_count", np.int64),
        ("pattern_type", np.int8),
    ]
)


class ReasoningBank:
    """
    Recent trajectories, and the patterns that they fall into.

    Vectors are kept with norm 1, because everything that compares them uses the cosine. This is clustering of embeddings with bookkeeping
    of rewards; the algorithm of the same name by Ouyang et al. (arXiv 2509.25140), which has a language model write down lessons in words,
    is a different one.

    Parameters
    ----------
    config : PatternConfig, optional
    isa : str, optional
        Kernel table.
    clock : callable, optional
        Seconds since the epoch, for created_at and last_accessed.

    Thread-safety
    -------------
    Any thread may call any method. Only `extract_patterns` takes long; others go on while it fits clusters.
    """

    def __init__(self, config: PatternConfig | None = None, *, isa: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self.config = PatternConfig() if config is None else config
        self._window = TrajectoryWindow(self.config.embedding_dim, self.config.max_trajectories, self.config.max_bytes)
        self._kernels = Kernels(isa)
        self._clock = clock
        self._lock = lock(brief=True)
        self._cycle = lock()  # held by whatever changes which patterns there are; taken before _lock
        self._cycles = 0
        self._next_id = 0
        self._about: npt.NDArray[Any] = np.empty(0, _ABOUT)  # in the order of ids
        self._centroids: Floats = np.empty((0, self.config.embedding_dim), np.float32)
        self._units = self._centroids  # of norm 1, for the scan

    # ---- trajectories ----

    def add(
        self,
        x: Any,
        quality: float,
        arm: int | None = None,
        reward: float | None = None,
        weight: float = 1.0,
        source: str | None = None,
        *,
        pattern_type: PatternType = PatternType.GENERAL,
    ) -> None:
        """
        Keep a trajectory; the oldest goes where the bounds say so.

        Parameters
        ----------
        x : array (embedding_dim,)
            The request. A zero vector stays zero and is similar to nothing.
        quality : float
            In [0, 1]: how much it pulls the centroid of its pattern. Where all of a region has quality 0, no pattern arises there.
        arm : int, optional
            What was done, as a number from 0.
        reward : float, optional
            What that earned, in [0, 1]; verdicts and the retrieval prior use it where there is also an arm.
        weight : float
            Trust in it, in [0, 1e9]: less than 1 for a capped source, or one over the propensity.
        source : str, optional
            Who reported it; kept as a hash, for `forget_source`.
        pattern_type : PatternType

        Raises
        ------
        SonaValueError, SonaTypeError
            Another shape, NaN or infinity, a number out of its range. Nothing is kept.
        """
        row = unit_rows(coerce(x, (self.config.embedding_dim,), "x")[None])[0]
        if arm is not None:
            if not isinstance(arm, int | np.integer) or isinstance(arm, bool):
                raise SonaTypeError(f"arm: expected an int or None, got {type(arm).__name__}")
            if not 0 <= arm < _MAX_ARMS:
                raise SonaValueError(f"arm: expected an int in [0, {_MAX_ARMS}), got {arm}")
        weight = finite(weight, "weight")
        if not 0 <= weight <= _MAX_WEIGHT:
            raise SonaValueError(f"weight: expected a number in [0, {_MAX_WEIGHT:g}], got {weight:g}")
        outcome = (
            unit_interval(quality, "quality"),
            weight,
            0.0 if reward is None else unit_interval(reward, "reward"),
            -1 if source is None else _hashed(source),
            -1 if arm is None else int(arm),
            reward is not None,
            int(PatternType(pattern_type)),
        )
        with self._lock:
            self._window.append(row, outcome)

    def replace(self, x: Any, quality: Any, *, arm: Any = -1, reward: Any = np.nan, weight: Any = 1.0) -> None:
        """
        Keep these trajectories in place of all others, oldest first; of more than the bounds allow, the newest.

        Parameters
        ----------
        x : array (n, embedding_dim)
        quality, arm, reward, weight : arrays (n,) or numbers
            As for `add`; -1 for no arm and NaN for no reward.

        Raises
        ------
        SonaValueError, SonaTypeError
            Shapes that do not fit, a number out of its range. The bank is as it was.
        """
        rows = unit_rows(coerce(x, (None, self.config.embedding_dim), "x"))
        outcome = np.zeros(len(rows), OUTCOME)
        columns = {"quality": quality, "weight": weight, "reward": reward, "arm": arm}
        for name, column in columns.items():
            given = np.asarray(column)
            if given.dtype.kind not in ("iu" if name == "arm" else "fiu"):
                raise SonaTypeError(f"{name}: expected {'ints' if name == 'arm' else 'numbers'}, got {given.dtype}")
            if given.shape not in ((), (len(rows),)):
                raise SonaValueError(f"{name}: expected shape ({len(rows)},) like the rows of x, got {given.shape}")
            if name == "arm" and not ((given >= -1) & (given < _MAX_ARMS)).all():
                raise SonaValueError(f"arm: expected ints in [-1, {_MAX_ARMS})")
            outcome[name] = given
        outcome["rewarded"] = ~np.isnan(outcome["reward"])
        outcome["reward"][~outcome["rewarded"]] = 0
        outcome["source"] = -1
        if not _within(outcome):
            raise SonaValueError(f"expected quality and reward in [0, 1] and weight in [0, {_MAX_WEIGHT:g}]")
        with self._lock:
            self._window.replace(rows, outcome)

    def add_trajectory(
        self,
        trajectory: QueryTrajectory,
        *,
        arm: int | None = None,
        reward: float | None = None,
        weight: float = 1.0,
        source: str | None = None,
    ) -> bool:
        """`add` its query_embedding and final_quality. False, and nothing is kept, while the quality is not known."""
        if trajectory.final_quality is None:
            return False
        self.add(trajectory.query_embedding, trajectory.final_quality, arm, reward, weight, source)
        return True

    def forget_source(self, source: str) -> int:
        """Drop the trajectories of a source; patterns lose what it said at the next cycle. Returns how many there were."""
        number = _hashed(source)
        with self._lock:
            x, outcome = self._window.copy()
            kept = outcome["source"] != number
            if not kept.all():
                self._window.replace(x[kept], outcome[kept])
        return int(np.count_nonzero(~kept))

    def __len__(self) -> int:
        """Trajectories kept."""
        return len(self._window)

    # ---- patterns ----

    def extract_patterns(self) -> list[LearnedPattern]:
        """
        One cycle: cluster the trajectories, carry ids over, and let go of what does not come back. No trajectory is used up.

        k-means weighted by quality times weight, see `sona.patterns.clusters.fit`; clusters with nearly the same centroid become one; new
        centroids take the id of the old pattern that the best one-to-one assignment gives them, if it is as near as `match_similarity`.
        A pattern that is not found again decays, may be merged into one like it, and is pruned in the end. With fewer than
        `min_cluster_size` trajectories nothing changes.

        Returns
        -------
        list of LearnedPattern
            All patterns, in the order of their ids.
        """
        config = self.config
        with self._cycle:
            with self._lock:
                x, outcome = self._window.copy()
            if len(x) < config.min_cluster_size:
                return self.patterns
            import sklearn.cluster  # noqa: F401  loads the libraries that one_thread is to limit

            with one_thread():
                found = self._cluster(x, outcome)
                self._cycles += 1
                fresh = self._take_over(found, np.flatnonzero(found.count >= config.min_cluster_size))
                self._consolidate()
            self._prune(fresh)
        return self.patterns

    def _cluster(self, x: Floats, outcome: Outcomes) -> PatternStatistics:
        """The clusters of these trajectories, those of nearly the same centroid as one."""
        config = self.config
        weight = outcome["quality"] * outcome["weight"]
        clusters = fit(
            x,
            weight,
            min(config.k_clusters, len(x) // config.min_cluster_size),
            old=self._centroids,
            max_iterations=config.max_iterations,
            tolerance=config.convergence_threshold,
            seed=(config.seed, self._cycles),
        )
        used, labels = np.unique(clusters.labels, return_inverse=True)
        mass = np.bincount(labels, weights=weight).astype(np.float64, copy=False)
        labels = near_duplicates(clusters.centroids[used], mass, config.merge_similarity)[labels]
        return PatternStatistics.of(np.arange(labels.max() + 1), labels, x, outcome)

    def _take_over(self, found: PatternStatistics, rows: Ints) -> Ints:
        """
        The patterns after a cycle: those found, under their old ids or new ones, and the old ones that were not found, decayed.

        Returns the ids of those found.
        """
        centroids, now = found.centroids[rows], self._now()
        ids = np.full(len(rows), -1, np.int64)
        with self._lock:
            stale = np.ones(len(self._about), np.bool_)
            about = np.zeros(len(rows), _ABOUT)
            about["created_at"] = about["last_accessed"] = now
            if len(rows) and len(stale):
                alike = similarities(centroids, self._centroids)
                own, old = assignment(alike)
                same = alike[own, old] >= self.config.match_similarity
                about[own[same]] = self._about[old[same]]  # id, times and accesses
                ids[own[same]] = self._about["id"][old[same]]
                stale[old[same]] = False
            new = ids < 0
            about["id"][new] = self._next_id + np.arange(np.count_nonzero(new))
            self._next_id += int(np.count_nonzero(new))
            about["cluster_size"], about["total_weight"] = found.count[rows], found.weight[rows]
            about["avg_quality"] = found.quality[rows] / found.count[rows]
            about["pattern_type"] = np.argmax(found.types[rows], axis=1)
            left = self._about[stale].copy()
            left["total_weight"] *= self.config.decay
            self._store(np.concatenate([about, left]), np.concatenate([centroids, self._centroids[stale]]))
            return about["id"].copy()

    def _store(self, about: npt.NDArray[Any], centroids: Floats) -> None:
        order = np.argsort(about["id"])
        self._about, self._centroids = about[order], np.ascontiguousarray(centroids[order])
        self._units = unit_rows(self._centroids)

    def _consolidate(self) -> None:
        """Merge patterns of nearly the same centroid into the one with the smallest id."""
        with self._lock:
            sizes = self._about["cluster_size"].astype(np.float64)
            group = near_duplicates(self._centroids, sizes, self.config.merge_similarity)
            _, first = np.unique(group, return_index=True)
            if len(first) == len(group):
                return
            merged = [reduce(LearnedPattern.merge, map(self._pattern, np.flatnonzero(group == group[row]).tolist())) for row in first]
            about = np.array([tuple(getattr(pattern, name) for name in _ABOUT.names or ()) for pattern in merged], _ABOUT)
            self._store(about, np.stack([pattern.centroid for pattern in merged]))

    def _prune(self, fresh: Ints) -> None:
        """Drop the patterns that are not `fresh` and worth nothing any more, then the lightest beyond `max_patterns`."""
        config = self.config
        with self._lock:
            about = self._about
            stale = ~np.isin(about["id"], fresh)
            poor = (about["avg_quality"] < config.quality_threshold) & (about["access_count"] == 0)
            kept = np.flatnonzero(~(stale & ((about["total_weight"] < config.min_weight) | poor)))
            if len(kept) > config.max_patterns:
                heaviest = np.argsort(-about["total_weight"][kept], kind="stable")[: config.max_patterns]
                kept = np.sort(kept[heaviest])
            if len(kept) < len(about):
                self._store(about[kept], self._centroids[kept])

    def _now(self) -> int:
        return int(self._clock())

    def _pattern(self, row: int) -> LearnedPattern:
        id, size, weight, quality, created, accessed, count, kind = self._about[row].item()
        return LearnedPattern(id, self._centroids[row], size, weight, quality, created, accessed, count, PatternType(kind))

    @property
    def patterns(self) -> list[LearnedPattern]:
        """All patterns, in the order of their ids; looking counts as no access."""
        with self._lock:
            return [self._pattern(row) for row in range(len(self._about))]

    def find_patterns(self, x: Any, k: int = 5, *, pattern_type: PatternType | None = None) -> list[LearnedPattern]:
        """
        The k patterns with the largest cosine to x of shape (embedding_dim,), most similar first; each counts as accessed.

        Exact: one scan over all centroids. `pattern_type` restricts it to patterns of that type.
        """
        query = unit_rows(coerce(x, (self.config.embedding_dim,), "x")[None])[0]
        if not isinstance(k, int | np.integer) or isinstance(k, bool):
            raise SonaTypeError(f"k: expected an int, got {type(k).__name__}")
        if k < 0:
            raise SonaValueError(f"k: expected at least 0, got {k}")
        with self._lock:
            k = min(k, len(self._units))
            if pattern_type is None:
                rows, _ = self._kernels.top_k(self._units, query, k)
            else:
                some = np.flatnonzero(self._about["pattern_type"] == PatternType(pattern_type))
                rows = some[self._kernels.top_k(self._units[some], query, k)[0]]
            self._about["access_count"][rows] += 1
            self._about["last_accessed"][rows] = self._now()
            return [self._pattern(row) for row in rows.tolist()]

    def assign(self, x: Any) -> Ints:
        """Ids (n,) of the patterns nearest to the rows of x (n, embedding_dim); -1 for all while there are no patterns."""
        rows = unit_rows(coerce(x, (None, self.config.embedding_dim), "x"))
        with self._lock:
            ids, centroids = self._about["id"].copy(), self._centroids
        return ids[nearest(centroids, rows)] if len(ids) else np.full(len(rows), -1, np.int64)

    def decay(self, factor: float) -> None:
        """Multiply the total_weight of every pattern by `factor`, in [0, 1]."""
        factor = unit_interval(factor, "factor")
        with self._lock:
            self._about["total_weight"] *= factor

    def hierarchy(self) -> PatternHierarchy:
        """Ward's tree over the centroids."""
        with self._lock:
            ids, centroids = self._about["id"].copy(), self._centroids
        return PatternHierarchy.of(ids, centroids)

    # ---- arms ----

    def statistics(self, patterns: Sequence[LearnedPattern] | None = None) -> PatternStatistics:
        """
        Sums of the trajectories kept, each under the pattern nearest to it; no rows where there are no patterns.

        Those of several banks under the same `patterns`, the bank's own by default, add up.

        Raises
        ------
        SonaValueError
            Centroids of another length than embedding_dim.
        """
        with self._lock:
            x, outcome = self._window.copy()
            ids, centroids = self._about["id"].copy(), self._centroids
        if patterns is not None:
            ids = np.array([pattern.id for pattern in patterns], np.int64)
            rows = [coerce(pattern.centroid, (self.config.embedding_dim,), "centroid") for pattern in patterns]
            centroids = np.stack(rows) if rows else centroids[:0]
        if not len(ids):
            x, outcome = x[:0], outcome[:0]
        with one_thread():
            labels = nearest(centroids, x) if len(x) else np.empty(0, np.int64)
        return PatternStatistics.of(ids, labels, x, outcome)

    def verdicts(self, *, level: float = 0.05) -> list[Verdict]:
        """What the trajectories kept show about arms; see `sona.patterns.verdict.verdicts`."""
        return verdicts(self.statistics(), level=level)

    def prior(self, x: Any, policy: Any, *, neighbours: int = 10, kappa: float = 1.0) -> Doubles:
        """Scores of the K arms for x, blended from `policy` (K,) and the nearest trajectories; see `retrieval_prior`."""
        with self._lock:
            rows, outcome = self._window.view()
            arms = np.where(outcome["rewarded"], outcome["arm"], -1)
            return retrieval_prior(x, rows, arms, outcome["reward"], policy, neighbours=neighbours, kappa=kappa)

    # ---- state ----

    @property
    def nbytes(self) -> int:
        """Memory of the trajectories and the patterns."""
        return self._window.nbytes + self._about.nbytes + self._centroids.nbytes + self._units.nbytes

    def state(self, *, trajectories: bool = True) -> dict[str, npt.NDArray[Any]]:
        """
        Trajectories, patterns and counters as named arrays of numbers, for a snapshot or a safetensors file.

        Without `trajectories` none are in it; a bank made from that knows the patterns and has to be given trajectories anew.
        """
        with self._cycle, self._lock:
            x, outcome = self._window.copy()
            if not trajectories:
                x, outcome = x[:0], outcome[:0]
            arrays: dict[str, npt.NDArray[Any]] = {
                "counters": np.array([self._cycles, self._next_id], np.int64),
                "trajectories.x": x,
                "patterns.centroid": self._centroids.copy(),
            }
            for prefix, table in (("trajectories", outcome), ("patterns", self._about)):
                arrays |= {f"{prefix}.{name}": np.ascontiguousarray(table[name]) for name in table.dtype.names or ()}
        return arrays

    @classmethod
    def from_state(
        cls,
        config: PatternConfig,
        state: Mapping[str, npt.NDArray[Any]],
        *,
        isa: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """
        The bank that gave `state`, or one of smaller bounds with the newest of it; its next cycle is the one that would have come.

        Raises
        ------
        SonaCorruptError
            Arrays that `state` does not give, of another length of vectors, or not finite.
        """
        bank = cls(config, isa=isa, clock=clock)
        dim = config.embedding_dim
        x, outcome = _table(state, "trajectories", "x", dim, OUTCOME)
        centroids, about = _table(state, "patterns", "centroid", dim, _ABOUT)
        counters = state.get("counters")
        if counters is None or counters.shape != (2,) or counters.dtype.kind not in "iu" or (counters < 0).any():
            raise SonaCorruptError("reasoning bank: expected counters, two ints of at least 0")
        bank._cycles, bank._next_id = (int(value) for value in counters)
        ids = about["id"]
        if len(np.unique(ids)) != len(ids) or ids.max(initial=-1) >= bank._next_id or ids.min(initial=0) < 0:
            raise SonaCorruptError("reasoning bank: expected pattern ids that differ and are below the next one")
        if not ((about["pattern_type"] >= 0) & (about["pattern_type"] < len(PatternType))).all() or (about["cluster_size"] < 1).any():
            raise SonaCorruptError("reasoning bank: expected patterns of a known type and at least one member")
        if not _within(outcome):
            raise SonaCorruptError("reasoning bank: expected outcomes within the ranges that ReasoningBank.add names")
        bank._window.replace(unit_rows(x), outcome)
        bank._store(about, centroids)
        bank._prune(ids)
        return bank


def _hashed(source: Any) -> int:
    """A name as 63 bits: no table of names grows, and none is kept in a file."""
    if not isinstance(source, str):
        raise SonaTypeError(f"source: expected a str, got {type(source).__name__}")
    return int.from_bytes(hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def _within(outcome: Outcomes) -> bool:
    units = all(((outcome[name] >= 0) & (outcome[name] <= 1)).all() for name in ("quality", "reward"))
    kinds = (outcome["pattern_type"] >= 0) & (outcome["pattern_type"] < len(PatternType))
    arms = (outcome["arm"] >= -1) & (outcome["arm"] < _MAX_ARMS)
    weights = (outcome["weight"] >= 0) & (outcome["weight"] <= _MAX_WEIGHT)
    return bool(units and weights.all() and kinds.all() and arms.all())


def _table(
    state: Mapping[str, npt.NDArray[Any]], prefix: str, vector: str, dim: int, dtype: np.dtype[Any]
) -> tuple[Floats, npt.NDArray[Any]]:
    """Vectors (n, dim) and the structured array (n,) whose fields stand beside them in `state`."""
    names = (vector, *(dtype.names or ()))
    absent = [f"{prefix}.{name}" for name in names if f"{prefix}.{name}" not in state]
    if absent:
        raise SonaCorruptError(f"reasoning bank: expected an array {absent[0]}")
    rows = state[f"{prefix}.{vector}"]
    if rows.ndim != 2 or rows.shape[1] != dim or rows.dtype != np.float32 or not np.isfinite(rows).all():
        raise SonaCorruptError(
            f"reasoning bank: expected finite float32 {prefix}.{vector} of shape (n, {dim}), got {rows.dtype} {rows.shape}"
        )
    table = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        column = state[f"{prefix}.{name}"]
        if column.shape != (len(rows),) or column.dtype != dtype[name] or not np.isfinite(column).all():
            raise SonaCorruptError(
                f"reasoning bank: expected finite {dtype[name]} {prefix}.{name} of shape ({len(rows)},), got {column.dtype} {column.shape}"
            )
        table[name] = column
    return rows, table
