"""A uniform sample of the decisions of each task, for replay (algorithm R: Vitter 1985)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sona.loops.ruling import at_least, between

MAX_TASKS = 10  # the two oldest merge, as those of EWC do


@dataclass(slots=True)
class Reservoir:
    """
    At most `size` of the ids that were offered, each with the same probability.

    Ids, not rows: what a store forgets is gone from here as well. `tolerance` is what a candidate may lose on them; None: as the gate says.
    """

    size: int
    seen: int = 0
    ids: list[int] = field(default_factory=list)
    tolerance: float | None = None

    def offer(self, ids: Iterable[int], rng: np.random.Generator) -> None:
        """Each id once."""
        for id in ids:
            self.seen += 1
            if len(self.ids) < self.size:
                self.ids.append(id)
            elif (at := int(rng.integers(self.seen))) < self.size:
                self.ids[at] = id

    def merged(self, other: "Reservoir", rng: np.random.Generator) -> "Reservoir":
        """A sample of what both were offered: each place goes to either in proportion to what it has seen and not placed yet."""
        pools = [list(rng.permutation(np.array(each.ids, np.uint64)).tolist()) for each in (self, other)]
        left = [self.seen, other.seen]
        chosen: list[int] = []
        while len(chosen) < self.size and (pools[0] or pools[1]):
            side = int(rng.random() * sum(left) >= left[0])
            side = side if pools[side] else 1 - side
            chosen.append(pools[side].pop())
            left[side] = max(left[side] - 1, 0)
        given = [each.tolerance for each in (self, other) if each.tolerance is not None]
        return Reservoir(self.size, self.seen + other.seen, chosen, min(given, default=None))


class Tasks:
    """
    A reservoir for each of at most 10 tasks, in the order in which they began.

    Parameters
    ----------
    size : int
        Ids of each.
    seed : int
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = at_least("reservoir", size, 1)
        self.seed = seed
        self._rng = np.random.default_rng(seed)
        self.kept: dict[str, Reservoir] = {}

    def begin(self, task: str, tolerance: float | None = None) -> None:
        """What is offered from now on belongs to this task; one that was there goes on, with its tolerance unless another is given."""
        self.kept[task] = self.kept.pop(task) if task in self.kept else Reservoir(self.size)
        if tolerance is not None:
            self.kept[task].tolerance = tolerance
        if len(self.kept) > MAX_TASKS:
            (_, one), (name, two), *rest = self.kept.items()
            self.kept = {name: one.merged(two, self._rng), **dict(rest)}

    def offer(self, ids: Iterable[int]) -> None:
        """Decisions of the task that began last."""
        if not self.kept:
            self.begin("default")
        self.kept[next(reversed(self.kept))].offer(ids, self._rng)

    @property
    def ids(self) -> list[int]:
        """Of all tasks, each once, ascending."""
        return sorted({id for each in self.kept.values() for id in each.ids})

    def since(self, first: int) -> list[int]:
        """`ids` without those below `first` of the task that began last."""
        old = {id for id in self.kept[next(reversed(self.kept))].ids if id < first} if self.kept else set()
        return [id for id in self.ids if id not in old]

    def state(self) -> dict[str, Any]:
        """Everything but the random stream, for JSON."""
        return {"size": self.size, "tasks": [[name, each.seen, each.ids, each.tolerance] for name, each in self.kept.items()]}

    @classmethod
    def restore(cls, state: dict[str, Any], seed: int = 0) -> "Tasks":
        """What `state` was taken from. KeyError, TypeError or ValueError for anything else."""
        tasks = cls(state["size"], seed)
        for name, seen, ids, *given in state["tasks"]:  # without a tolerance: from before tasks had one
            tolerance = given[0] if given else None
            if tolerance is not None:
                between("tolerance", tolerance, 0, 1)
            ids = [at_least("id", id, 0) for id in ids]
            tasks.kept[str(name)] = Reservoir(tasks.size, at_least("seen", seen, len(ids)), ids, tolerance)
        return tasks
