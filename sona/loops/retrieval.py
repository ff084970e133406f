"""What the most similar rewarded decisions earned, asked beside the learner at each request."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce, unit_rows
from sona._kernels import Kernels
from sona._locks import lock
from sona.errors import SonaTypeError, SonaValueError
from sona.loops._policy import Decision, Policy
from sona.loops.rows import Rows
from sona.loops.ruling import at_least

# Swept on seeds 0 to 4 of 13 streams, 5 to 30 neighbours and a prior of 1 to 5: the pair at which none of them became worse.
NEIGHBOURS = 10
PRIOR = 2.0  # successes that the learner's own expectation counts for: where they are rare, a lucky neighbour says little


class Retrieval:
    """
    A greedy policy's choice among expectations: (PRIOR pi_a + sum w r [arm = a]) / (PRIOR / c + sum w [arm = a]), less the cost, over the
    ten rewarded decisions with the most similar x; w = cos^2, and c pi_a is what the learner expects.

    Parameters
    ----------
    policy : Policy
    capacity : int
        Decisions kept, the newest; 4 dim + 150 bytes or so each. A request scans all of them.

    Thread-safety
    -------------
    Any thread may call any method; calls take turns.
    """

    def __init__(self, policy: Policy, capacity: int) -> None:
        at_least("retrieval", capacity, 1)
        self._policy, self._kernels, self._lock = policy, Kernels(), lock(brief=True)
        self._x: Floats = np.zeros((capacity, policy.dim), np.float32)
        self._arm = np.zeros(capacity, np.int32)
        self._reward = np.zeros(capacity)
        self._id = np.zeros(capacity, np.uint64)
        self._at: dict[int, int] = {}  # id -> place
        # From the end to the front and round again: of equally similar decisions a scan finds the newer ones first.
        self._count, self._newest = 0, capacity

    def __len__(self) -> int:
        """Decisions kept."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self._x.nbytes + self._arm.nbytes + self._reward.nbytes + self._id.nbytes

    def route(self, x: Any, candidates: Sequence[Any] | None = None) -> Decision:
        """`Policy.route`, with what similar decisions earned."""
        return self._beside(self._unit(x, (self._policy.dim,)), candidates)

    def route_batch(self, x: Any) -> list[Decision]:
        """One decision per row of x (n, dim); the same as n calls of `route`."""
        return [self._beside(unit, None) for unit in self._unit(x, (None, self._policy.dim))]

    def _unit(self, x: Any, shape: tuple[int | None, ...]) -> Floats:
        try:
            return unit_rows(coerce(x, shape, "x"))
        except (SonaTypeError, SonaValueError):
            self._policy.count_rejected()
            raise

    def _beside(self, unit: Floats, candidates: Sequence[Any] | None) -> Decision:
        earned, seen = self.evidence(unit)
        return self._policy.route_beside(unit, earned, seen, PRIOR, candidates)

    def evidence(self, unit: Floats) -> tuple[Floats, Floats]:
        """Sums of w r and of w, by row of the arm, over the nearest decisions to a unit vector (dim,)."""
        rows = len(self._policy.names_by_row())
        with self._lock:
            parts = self._newest_first()
            near = [self._kernels.top_k(self._x[part], unit, NEIGHBOURS) for part in parts]
            at = np.concatenate([index + part.start for (index, _), part in zip(near, parts, strict=True)])
            cos = np.concatenate([score for _, score in near])
            if len(near) > 1:
                nearest = np.argsort(-cos, kind="stable")[:NEIGHBOURS]
                at, cos = at[nearest], cos[nearest]
            arm, reward = self._arm[at], self._reward[at]
        weight = np.maximum(cos, 0).astype(np.float64) ** 2
        known = arm < rows  # another arm may have come while this was computed
        earned, seen = (np.bincount(arm[known], some[known], rows).astype(np.float32) for some in (weight * reward, weight))
        return earned, seen

    def learned(self, id: int, reward: float) -> None:
        """The reward in [0, 1] of a decision that the policy remembers; a repeated one replaces the one before."""
        with self._lock:  # an arm that is removed meanwhile waits with `forget_arm`
            shown = self._policy.shown(id)
            if shown is not None:
                self._keep(id, *shown, reward)

    def fill(self, rows: Rows) -> None:
        """Remember these rewarded decisions, the newest last."""
        newest = rows.take(np.arange(max(len(rows) - len(self._x), 0), len(rows)))
        with self._lock:
            for row in zip(newest.id.tolist(), newest.x, newest.arm.tolist(), newest.reward.tolist(), strict=True):
                self._keep(*row)

    def clear(self) -> None:
        """Remember nothing."""
        with self._lock:
            self._count, self._newest = 0, len(self._x)
            self._at.clear()
            for column in (self._x, self._arm, self._reward, self._id):
                column[:] = 0

    def _keep(self, id: int, unit: Floats, arm: int, reward: float) -> None:
        at = self._at.get(id)
        if at is None:
            at = self._newest = (self._newest - 1) % len(self._x)
            if self._count < len(self._x):
                self._count += 1
            else:
                del self._at[int(self._id[at])]
            self._id[at], self._at[id] = id, at
        self._x[at], self._arm[at], self._reward[at] = unit, arm, reward

    def forget_arm(self, row: int) -> None:
        """Drop what an arm earned: its row may get another one."""
        with self._lock:
            places = np.concatenate([np.arange(part.start, part.stop) for part in self._newest_first()])
            kept: npt.NDArray[np.int64] = places[self._arm[places] != row]
            self._count, self._newest = len(kept), len(self._x) - len(kept)
            for column in (self._x, self._arm, self._reward, self._id):
                column[self._newest :] = column[kept]
            self._at = {id: at for at, id in enumerate(self._id[self._newest :].tolist(), self._newest)}

    def _newest_first(self) -> list[slice]:
        """Where decisions lie, from the newest to the oldest."""
        whole = slice(self._newest, len(self._x))
        return [whole, slice(0, self._newest)] if self._count == len(self._x) and self._newest else [whole]
