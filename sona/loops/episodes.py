"""Rewarded decisions as the memory takes them in: from a store, or from what a policy remembers."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.loops._policy import Policy
from sona.loops.rows import Rows
from sona.store import Store


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """
    Attributes
    ----------
    id : (n,) int64
        Of the decisions.
    x : (n, dim) float32
    reward : (n,) float32
        In [0, 1].
    arm : list of str
        What was shown, by the text of its name.
    """

    id: npt.NDArray[np.int64]
    x: Floats
    reward: Floats
    arm: list[str]

    def __len__(self) -> int:
        return len(self.id)

    @classmethod
    def none(cls, dim: int) -> Self:
        """No decisions."""
        return cls(np.empty(0, np.int64), np.empty((0, dim), np.float32), np.empty(0, np.float32), [])

    @classmethod
    def of_policy(cls, policy: Policy, newest: int) -> Self:
        """The newest rewarded ones that a policy remembers, oldest first."""
        rows = Rows.remembered(policy, newest)
        names = policy.names_by_row()
        known = np.array([names[arm] is not None for arm in rows.arm.tolist()], np.bool_)
        rows = rows.take(known)
        return cls(rows.id.astype(np.int64), rows.x, rows.reward, [str(names[arm]) for arm in rows.arm.tolist()])

    @classmethod
    def of_store(cls, store: Store, dim: int, newest: int, *, without: Collection[str] = ()) -> Self:
        """The rewarded ones among the newest of a store, oldest first; `without` the rewards of these sources."""
        names: dict[int, list[str]] = {}
        ids, x, rewards, arms = [], [], [], []
        for row, reward in store.decisions(newest, without=without):
            if reward is None or len(row.x) != 4 * dim or not 0 <= reward <= 1:
                continue
            if row.arm_set not in names:
                kept = store.arms(row.arm_set)
                names[row.arm_set] = [] if kept is None else [str(json.loads(name)) for name in kept[0]]
            direction = np.frombuffer(row.x, "<f4")
            if not 0 <= row.arm < len(names[row.arm_set]) or not np.isfinite(direction).all():
                continue
            ids.append(row.id)
            x.append(direction)
            rewards.append(reward)
            arms.append(names[row.arm_set][row.arm])
        if not ids:
            return cls.none(dim)
        return cls(np.array(ids, np.int64), np.stack(x), np.array(rewards, np.float32), arms)
