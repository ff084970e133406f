"""Replay: rewarded decisions go through the instant step again, on an adapter that nobody serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona.adapters import Adapter, Factors
from sona.errors import SonaValueError
from sona.loops._instant import Instant
from sona.loops._policy import Policy
from sona.loops._replay import learn_rows, score_rows
from sona.loops.rows import Rows
from sona.loops.ruling import at_least

__all__ = ["Factors", "Mark", "Replay", "Rows"]

OFF_POLICY = 0.3  # of the step, where the model that served would have chosen another arm: as in the policy itself
WINDOW = 32  # pairs between truncations


@dataclass(frozen=True, eq=False, slots=True)
class Mark:
    """
    A learner as it was before the decision with id `before`: it has learned from none with that id or a later one.

    What decides a score or a step is in it; P is not, replay takes p0 I.
    """

    before: int
    factors: Factors
    instant: Mapping[str, npt.NDArray[np.float64]]
    policy: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """The learner as it is now."""
        kept = {name: value for name, value in policy.state().items() if not name.startswith("copy")}
        instant = {name: value for name, value in policy.instant.state().items() if name != "covariance"}
        return cls(policy.next_id, Factors.of(policy.adapter), instant, kept)


class Replay:
    """
    The learner of a policy as it was at a mark, apart from it: steps that nobody serves, and scores of models that nobody serves.

    Parameters
    ----------
    policy : Policy
        Arms, temperature, prior and shape of the adapter are taken from it; it is not changed.
    mark : Mark, optional
        Default: as it is now.
    max_discard : float
        See `Adapter`.

    Notes
    -----
    A replayed step is the instant step of docs/learning.md with P = p0 I, at today's weights of the correction that is learned. Calibration
    and trust are those of the mark and stay there: the rows have been counted once, and a model does well on what it has learned. One
    thread at a time; the GIL is released while rows are learned or scored.
    """

    def __init__(self, policy: Policy, mark: Mark | None = None, *, max_discard: float = 0.05) -> None:
        self.mark = Mark.of(policy) if mark is None else mark
        live, dim = policy.adapter.info(), policy.dim
        self._adapter = Adapter(
            dim,
            rank=live["rank"],
            rank_max=live["rank_max"],
            window=max(WINDOW, live["rank"]),
            max_discard=max_discard,
            isa=policy.adapter.isa,
        )
        instant = Instant(dim, policy.instant.prior_variance, policy.instant.constant, "identity", isa=policy.adapter.isa)
        instant.restore(dict(self.mark.instant))
        self._policy = Policy(self._adapter, instant, tau=policy.tau, guard=False, off_policy_step=1.0, pending=1)
        self._policy.take_arms(policy)
        nothing = {f"copy{n}.{part}": np.zeros((0, dim), np.float32) for n in range(2) for part in ("down", "up", "offset")}
        self._policy.restore({**self.mark.policy, **nothing})

    def run(
        self,
        rows: Rows,
        start: Factors | None = None,
        *,
        passes: int = 1,
        step: float = 0.3,
        shuffle: bool = True,
        seed: int | tuple[int, int] = 0,
        shards: int = 1,
    ) -> Factors:
        """
        Learn the rows and return the correction, truncated to the rank of the base.

        The rows are dealt to the shards in turn, each shard is replayed from `start` by itself, and `reduce` makes one correction of what
        comes out: with one shard that is the shard's own, bit for bit. Shards may as well be replayed in processes of their own.

        Parameters
        ----------
        rows : Rows
        start : Factors, optional
            Default: the correction of the mark.
        passes : int
        step : float in (0, 1]
            Share of the instant step; of rows that were not the serving model's own choice 0.3 of that.
        shuffle : bool
            Another order in each pass, drawn from `seed`; else the order of the rows.
        shards : int

        Raises
        ------
        SonaValueError
            Rows of another width or with arms that the policy has not.
        """
        at_least("passes", passes, 1)
        at_least("shards", shards, 1)
        if not 0 < step <= 1:
            raise SonaValueError(f"step: expected a number in (0, 1], got {step!r}")
        self._check(rows)
        start = self.mark.factors if start is None else start
        parts = [rows] if shards == 1 else [rows.take(np.arange(at, len(rows), shards)) for at in range(shards)]
        return self.reduce([self._replayed(part, start, passes, step, shuffle, seed) for part in parts])

    def reduce(self, parts: Sequence[Factors]) -> Factors:
        """
        One correction from those of several shards that were replayed from the same start: the mean of the products down^T up, truncated
        to the rank of the base; of one shard it is that shard's.

        A step depends on the steps before it, so this is not what one pass over all rows would have learned. The mean learns less; the sum
        of what each shard changed overshoots, see docs/background.md.
        """
        if not parts:
            raise SonaValueError("reduce: expected at least one correction, got none")
        if len(parts) == 1:
            return parts[0]
        share = np.float32(1 / len(parts))
        down, offset = np.concatenate([part.down for part in parts]), np.concatenate([part.offset for part in parts])
        Factors(down, share * np.concatenate([part.up for part in parts]), offset).put(self._adapter)
        self._adapter.truncate()
        return Factors.of(self._adapter)

    def _replayed(self, rows: Rows, start: Factors, passes: int, step: float, shuffle: bool, seed: int | tuple[int, int]) -> Factors:
        start.put(self._adapter)
        weight = np.where(rows.own, step, step * OFF_POLICY).astype(np.float32)
        rng = np.random.default_rng(seed)
        for _ in range(passes):
            order = rng.permutation(len(rows)) if shuffle else np.arange(len(rows))
            learn_rows(self._policy, rows.x, rows.arm, rows.reward, weight, rows.start, rows.candidates, order.astype(np.int64))
        self._adapter.truncate()
        return Factors.of(self._adapter)

    def score(self, rows: Rows, factors: Factors | None = None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """(probability (n,) that the model with this correction gives to the shown arm, choice (n,) its own arm); default the mark's."""
        self._check(rows)
        (self.mark.factors if factors is None else factors).put(self._adapter)
        probability, choice = score_rows(self._policy, rows.x, rows.arm, rows.start, rows.candidates)
        return np.minimum(probability.astype(np.float64), 1.0), choice

    def _check(self, rows: Rows) -> None:
        if rows.x.shape[1] != self._policy.dim:
            raise SonaValueError(f"x: expected rows of {self._policy.dim} numbers, got {rows.x.shape[1]}")
        open_rows = np.array([name is not None for name in self._policy.names_by_row()], np.bool_)
        for name, numbers in (("arm", rows.arm), ("candidates", rows.candidates)):
            if len(numbers) and (numbers.max() >= len(open_rows) or not open_rows[numbers].all()):
                raise SonaValueError(f"{name}: expected rows of open arms below {len(open_rows)}, got one that is not")
