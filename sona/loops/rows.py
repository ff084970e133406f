"""Rewarded decisions as columns: what a replay learns from and a screen is asked about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona.errors import SonaValueError
from sona.loops._policy import Policy
from sona.loops._replay import remembered

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """
    n decisions with their rewards. Nothing that a model computes is kept: scores are made again from x and the candidates.

    Attributes
    ----------
    id : (n,) uint64
    x : (n, dim) float32
        Unit-norm, or zero.
    arm : (n,) int32
        Row number of the shown arm in its policy.
    reward : (n,) float32 in [0, 1]
    own : (n,) bool
        Whether it was the first choice of the model that served.
    propensity : (n,) float32
        Probability with which the arm was shown; NaN or 0 where unknown.
    start : (n + 1,) int64
    candidates : int32
        Those of row i are candidates[start[i] : start[i + 1]], distinct row numbers; none means every arm.

    Raises
    ------
    SonaValueError, SonaTypeError
        Shapes that do not match, numbers that are not finite or outside their range, a shown arm that was no candidate.
    """

    id: npt.NDArray[np.uint64]
    x: Floats
    arm: npt.NDArray[np.int32]
    reward: Floats
    own: npt.NDArray[np.bool_]
    propensity: Floats
    start: Ints
    candidates: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        n, x = len(self.id), self.x
        shaped = x.dtype == np.float32 and x.ndim == 2 and len(x) == n and x.flags.c_contiguous
        if not (shaped and np.isfinite(x).all()):
            raise SonaValueError(f"x: expected finite C-contiguous float32 of shape ({n}, dim), got {x.dtype} {x.shape}")
        for name, dtype in (("id", np.uint64), ("arm", np.int32), ("reward", np.float32), ("own", np.bool_), ("propensity", np.float32)):
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != (n,):
                raise SonaValueError(f"{name}: expected {np.dtype(dtype)} of shape ({n},), got {column.dtype} {column.shape}")
        if not ((self.reward >= 0) & (self.reward <= 1)).all():
            raise SonaValueError("reward: expected numbers in [0, 1]")
        start, candidates = self.start, self.candidates
        if start.dtype != np.int64 or start.shape != (n + 1,) or candidates.dtype != np.int32 or candidates.ndim != 1:
            raise SonaValueError(f"candidates: expected int32, with int64 start of shape ({n + 1},), got {candidates.dtype} {start.shape}")
        if start[0] != 0 or start[-1] != len(candidates) or (np.diff(start) < 0).any() or (candidates < 0).any() or (self.arm < 0).any():
            raise SonaValueError("candidates: expected row numbers from 0 on, and a start that rises from 0 to their number")
        listed = np.repeat(np.arange(n), np.diff(start))
        pairs = np.unique(np.stack([listed, candidates], axis=1), axis=0)
        among = np.bincount(listed[candidates == self.arm[listed]], minlength=n)
        if len(pairs) < len(candidates) or not (among[np.diff(start) > 0] == 1).all():
            raise SonaValueError("candidates: expected distinct arms with the shown one among them")

    @classmethod
    def of(
        cls,
        x: Any,
        arm: Any,
        reward: Any,
        *,
        candidates: Sequence[Sequence[int] | None] | None = None,
        own: Any = True,
        propensity: Any = np.nan,
        first_id: int = 1,
    ) -> Self:
        """Rows from plain sequences; x of any norm, candidates as row numbers or None for every arm."""
        x = coerce(x, (None, None), "x")
        n = len(x)
        norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        unit = np.divide(x, norm, out=np.zeros(x.shape), where=norm > 0).astype(np.float32)
        some = [()] * n if candidates is None else [() if each is None else tuple(each) for each in candidates]
        if len(some) != n:
            raise SonaValueError(f"candidates: expected {n} sequences, one for each row of x, got {len(some)}")
        return cls(
            np.arange(first_id, first_id + n, dtype=np.uint64),
            unit,
            np.asarray(arm, np.int32),
            np.asarray(reward, np.float32),
            np.broadcast_to(np.asarray(own, np.bool_), (n,)).copy(),
            np.broadcast_to(np.asarray(propensity, np.float32), (n,)).copy(),
            np.concatenate([[0], np.cumsum([len(each) for each in some])]).astype(np.int64),
            np.array([row for each in some for row in each], np.int32),
        )

    @classmethod
    def remembered(cls, policy: Policy, limit: int, since: int = 0) -> Self:
        """The newest `limit` rewarded decisions that a policy remembers with an id of at least `since`, oldest first."""
        return cls(*remembered(policy, limit, since))

    @classmethod
    def empty(cls, dim: int) -> Self:
        """No rows."""
        none = np.zeros(0, np.float32)
        numbers = none.astype(np.int32)
        return cls(none.astype(np.uint64), none.reshape(0, dim), numbers, none, none.astype(np.bool_), none, np.zeros(1, np.int64), numbers)

    def __len__(self) -> int:
        return len(self.id)

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return sum(getattr(self, name).nbytes for name in self.__slots__)

    def take(self, which: npt.NDArray[Any]) -> Self:
        """The rows at these positions, or where a mask is true."""
        at = np.flatnonzero(which) if which.dtype == np.bool_ else which.astype(np.int64)
        counts = np.diff(self.start)[at]
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        within = np.arange(start[-1]) - np.repeat(start[:-1], counts) + np.repeat(self.start[:-1][at], counts)
        return type(self)(
            self.id[at],
            self.x[at],
            self.arm[at],
            self.reward[at],
            self.own[at],
            self.propensity[at],
            start,
            self.candidates[within],
        )

    def joined(self, other: Self) -> Self:
        """These rows and then the others."""
        return type(self)(
            np.concatenate([self.id, other.id]),
            np.concatenate([self.x, other.x]),
            np.concatenate([self.arm, other.arm]),
            np.concatenate([self.reward, other.reward]),
            np.concatenate([self.own, other.own]),
            np.concatenate([self.propensity, other.propensity]),
            np.concatenate([self.start, other.start[1:] + len(self.candidates)]),
            np.concatenate([self.candidates, other.candidates]),
        )

    def renumbered(self, before: Sequence[str | None], now: Sequence[str | None]) -> Self:
        """
        The same rows where arm `before[k]` has become row `now.index(before[k])`.

        Rows whose arm is gone are dropped, and so are candidates. Arms that have come since were no candidates.
        """
        if tuple(before) == tuple(now):
            return self
        place = {name: row for row, name in enumerate(now) if name is not None}
        to = np.array([-1 if name is None else place.get(name, -1) for name in before] or [-1], np.int32)
        everything = np.array([k for k, name in enumerate(before) if name is not None], np.int32)
        kept = np.flatnonzero(to[self.arm] >= 0)
        rows = [self.candidates[self.start[i] : self.start[i + 1]] for i in kept]
        named = [to[row if len(row) else everything] for row in rows]
        some = [row[row >= 0] for row in named]
        start = np.concatenate([[0], np.cumsum([len(row) for row in some])]).astype(np.int64)
        return type(self)(
            self.id[kept],
            self.x[kept],
            to[self.arm[kept]],
            self.reward[kept],
            self.own[kept],
            self.propensity[kept],
            start,
            np.concatenate([np.zeros(0, np.int32), *some]),
        )
