"""Clicks on a list that was shown become trajectories of the engine, which it keeps, learns from and takes back as any other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.engine import SonaEngine
from sona.ranker.clicks import click_gradient, click_weight
from sona.ranker.documents import DocumentId, Documents, key_of, pack
from sona.ranker.guard import Guard

_EXPECTED = 0.01  # of a click: near nothing, so that the instant step takes the click's gradient as it is


@dataclass(slots=True)
class Shown:
    """A ranking that waits for its clicks: the trajectory of each click, and who has won a shared list so far."""

    x: Floats
    documents: tuple[DocumentId, ...]
    propensities: Floats
    teams: list[int] | None
    clicks: dict[DocumentId, int | None] = field(default_factory=dict)  # None: it taught nothing
    revoked: dict[DocumentId, int | None] = field(default_factory=dict)
    winner: int = 0


class Beside:
    """What the engine keeps beside the query's correction."""

    def __init__(self, documents: Documents, guard: Guard) -> None:
        self.documents, self.guard = documents, guard

    def learn(self, record: bytes, change: float) -> None:
        self.documents.learn(record, change)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return self.documents.state() | self.guard.state()

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self.documents.restore(arrays)
        self.guard.restore(arrays)


class Clicks:
    """
    Learns clicks, once each, and takes them back.

    Attributes
    ----------
    count : int
        Clicks that are learned.

    Thread-safety
    -------------
    One thread at a time.
    """

    def __init__(self, engine: SonaEngine, documents: Documents, guard: Guard) -> None:
        self._engine, self._documents, self._guard = engine, documents, guard
        self.count = 0

    def put(self, shown: Shown, wanted: Sequence[DocumentId]) -> None:
        """From now on these are the clicks on that list."""
        for document in [each for each in shown.clicks if each not in wanted]:
            self._revoke(shown, document)
        for document in wanted:
            if document not in shown.clicks:
                self._learn(shown, document)
        self._count_win(shown)

    def _learn(self, shown: Shown, document: DocumentId) -> None:
        self.count += 1
        tid = shown.revoked.pop(document, None)
        if tid is None:
            tid = self._record(shown, document)
        if tid is not None:
            self._engine.feedback(tid, 1.0)
        shown.clicks[document] = tid

    def _revoke(self, shown: Shown, document: DocumentId) -> None:
        self.count -= 1
        tid = shown.clicks.pop(document)
        if tid is not None:
            self._engine.feedback(tid, 0.0)
            shown.revoked[document] = tid

    def _record(self, shown: Shown, document: DocumentId) -> int | None:
        """A trajectory that says what the click does, still without its reward; None where it does nothing."""
        places, vectors = self._documents.rows_of(shown.documents)
        clicked = shown.documents.index(document)
        if clicked not in places or len(places) < 2:
            return None
        scores = (vectors @ self._engine.apply(shown.x)).astype(np.float64)
        gradient = click_gradient(scores, places.index(clicked))
        weight = click_weight(float(shown.propensities[clicked]))  # for the documents; in the shared map it was noise, not a correction
        tid = self._engine.begin_trajectory(shown.x)
        self._engine.add_step(
            tid,
            activations=gradient.astype(np.float32) @ vectors,
            attention_weights=pack([key_of(shown.documents[place]) for place in places], weight * gradient),
            expected=_EXPECTED,
        )
        self._engine.end_trajectory(tid)
        return tid

    def _count_win(self, shown: Shown) -> None:
        if shown.teams is None:
            return
        credit = sum(team for document, team in zip(shown.documents, shown.teams, strict=True) if document in shown.clicks)
        winner = (credit > 0) - (credit < 0)
        self._guard.count(shown.winner, winner)
        shown.winner = winner
