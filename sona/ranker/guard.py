"""The guard: frozen and learned order share a list now and then, and the one that users click on less does not serve."""

from collections.abc import Sequence
from math import sqrt
from random import Random
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError

T = TypeVar("T")

LEARNED, FROZEN = 1, -1
MEMORY = 0.998  # of wins: about 500 lists
LEAVE, RETURN = 2.0, 0.5  # standard deviations by which frozen leads


def draft(learned: Sequence[T], frozen: Sequence[T], k: int, random: Random) -> tuple[list[T], list[int]]:
    """
    Team-draft interleaving: both orders pick their best that is left, in turns, a coin says who begins each round.

    Radlinski, Kurup & Joachims 2008. Where both lists begin alike, those documents belong to neither.

    Returns
    -------
    (documents, teams)
        At most k of them; a team is LEARNED, FROZEN or 0.
    """
    same = 0
    while same < min(k, len(learned), len(frozen)) and learned[same] == frozen[same]:
        same += 1
    shown, teams = list(learned[:same]), [0] * same
    taken = set(shown)
    sources = {LEARNED: iter(learned[same:]), FROZEN: iter(frozen[same:])}
    while len(shown) < k:
        before = len(shown)
        first = LEARNED if random.random() < 0.5 else FROZEN
        for team in (first, -first):
            document = next((each for each in sources[team] if each not in taken), None)
            if document is not None and len(shown) < k:
                taken.add(document)
                shown.append(document)
                teams.append(team)
        if len(shown) == before:
            break
    return shown, teams


class Guard:
    """
    Wins of the learned and the frozen order on shared lists, the newest about 500 of them, and what follows: which one serves.

    Frozen takes over when it leads by two standard deviations of a fair coin, and hands back when it leads by less than a half. Lists are
    shared all the while, so there is a way back.

    Thread-safety
    -------------
    `serves_frozen`: any. Everything else: one thread at a time.
    """

    def __init__(self) -> None:
        self.wins = [0.0, 0.0]  # learned, frozen
        self.serves_frozen = False

    def count(self, before: int, now: int) -> None:
        """A list's winner changed from one team, or from nobody (0), to another."""
        if before == now:
            return
        if not before:
            self.wins = [MEMORY * each for each in self.wins]
        else:
            self._add(before, -1.0)
        if now:
            self._add(now, 1.0)
        learned, frozen = self.wins
        bound = RETURN if self.serves_frozen else LEAVE
        self.serves_frozen = frozen - learned > bound * sqrt(max(frozen + learned, 1.0))

    def _add(self, team: int, amount: float) -> None:
        place = 0 if team == LEARNED else 1
        self.wins[place] = max(self.wins[place] + amount, 0.0)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `restore` takes."""
        return {"wins": np.array([*self.wins, self.serves_frozen], np.float64)}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `state` returned; from the start where there is nothing. SonaValueError, and nothing changes, for anything else."""
        wins = np.asarray(arrays.get("wins", np.zeros(3)))
        if wins.shape != (3,) or not np.isfinite(wins).all() or not (wins >= 0).all():
            raise SonaValueError(f"guard: expected wins (3,) of at least 0, got {wins!r}")
        self.wins, self.serves_frozen = [float(wins[0]), float(wins[1])], bool(wins[2])
