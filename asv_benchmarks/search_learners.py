"""Who ranks in ranker_table.py: sona, the frozen order, and a linear adapter of the query that is fitted again every night."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from search_streams import SHOWN, Searches

from sona import Ranker

F32 = NDArray[np.float32]


class Frozen:
    """The cosine similarity."""

    def __init__(self, searches: Searches) -> None:
        self.documents = searches.documents

    def scores(self, queries: F32) -> F32:
        return np.asarray(queries @ self.documents.T)

    def show(self, queries: F32) -> Iterator[list[int]]:
        """The documents for each query, (m, d), as each is asked for."""
        scores = self.scores(queries)
        best = np.argpartition(scores, -SHOWN, axis=1)[:, -SHOWN:]
        for row, found in zip(scores, best, strict=True):
            yield [int(document) for document in found[np.argsort(-row[found])]]

    def learn(self, query: F32, shown: list[int], clicks: list[int]) -> None:
        pass


class Sona(Frozen):
    """sona.Ranker as it comes."""

    def __init__(self, searches: Searches, **options: Any) -> None:
        super().__init__(searches)
        self.ranker = Ranker(searches.documents, **options)

    def scores(self, queries: F32) -> F32:
        """Of the order that serves."""
        if self.ranker.stats()["serves_frozen"]:
            return super().scores(queries)
        served = self.ranker._documents._rows.served[: len(self.documents)]
        return np.asarray(self.ranker.engine.apply_batch(queries) @ served.T)

    def show(self, queries: F32) -> Iterator[list[int]]:
        for query in queries:
            self.last = self.ranker.rank(query, SHOWN)
            yield list(self.last.documents)

    def learn(self, query: F32, shown: list[int], clicks: list[int]) -> None:
        self.ranker.feedback(self.last.id, clicks)


@dataclass(frozen=True)
class Setting:
    """Of the nightly fit: Adam, in-batch negatives, and the first `hard` documents that were shown and not clicked."""

    rate: float = 3e-4
    epochs: int = 3
    temperature: float = 0.05
    hard: int = 9
    decay: float = 0.0
    inverse: bool = False  # weigh clicks by 1 / propensity, at most 10
    batch: int = 32

    def __str__(self) -> str:
        more = (f", decay {self.decay:g}" if self.decay else "") + (", inverse" if self.inverse else "")
        return f"rate {self.rate:g}, {self.epochs} epochs, temperature {self.temperature:g}, {self.hard} hard{more}"


SWEEP = [
    *(Setting(rate, 3, 0.05, hard) for rate in (1e-4, 3e-4, 1e-3) for hard in (3, 9)),
    Setting(hard=0),
    *(Setting(rate, 3, temperature) for rate in (3e-4, 1e-3, 3e-3) for temperature in (0.1, 0.2, 0.4)),
    *(Setting(3e-4, 10, temperature) for temperature in (0.05, 0.1, 0.2)),
    Setting(temperature=0.02),
    Setting(decay=1e-2),
    *(Setting(3e-4, 3, temperature, inverse=True) for temperature in (0.05, 0.1)),
]


@dataclass
class Night:
    """Clicks until now."""

    queries: list[F32] = field(default_factory=list)
    clicked: list[int] = field(default_factory=list)
    passed: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def first(self, count: int) -> Night:
        return Night(self.queries[:count], self.clicked[:count], self.passed[:count], self.weights[:count])


class Nightly(Frozen):
    """y = x M + b over the query, fitted from the identity on all clicks so far, after 100, 200, 400 and then every 500 clicks."""

    def __init__(self, searches: Searches, setting: Setting, seed: int = 0) -> None:
        super().__init__(searches)
        self.setting, self.seed, self.night, self.due = setting, seed, Night(), 100
        self.matrix, self.bias = np.eye(self.documents.shape[1], dtype=np.float32), np.zeros(self.documents.shape[1], np.float32)

    def scores(self, queries: F32) -> F32:
        return super().scores(queries @ self.matrix + self.bias)

    def learn(self, query: F32, shown: list[int], clicks: list[int]) -> None:
        for document in clicks:
            place = shown.index(document)
            self.night.queries.append(query)
            self.night.clicked.append(document)
            self.night.passed.append([each for each in shown if each != document][: SHOWN - 1])
            self.night.weights.append(min(place + 1, 10))
        if len(self.night.clicked) >= self.due:
            self.due = 2 * self.due if self.due < 400 else 500 * (self.due // 500 + 1)
            self.fit()

    def fit(self) -> None:
        import torch

        torch.set_num_threads(1)
        s, night = self.setting, self.night
        generator = torch.Generator().manual_seed(self.seed)
        documents, queries = torch.from_numpy(self.documents), torch.from_numpy(np.stack(night.queries))
        clicked, passed = torch.tensor(night.clicked), torch.tensor(night.passed)
        weights = torch.tensor(night.weights) if s.inverse else torch.ones(len(clicked))
        eye = torch.eye(len(self.bias))
        matrix, bias = eye.clone().requires_grad_(), torch.zeros(len(self.bias), requires_grad=True)
        adam = torch.optim.Adam([matrix, bias], lr=s.rate)
        for _ in range(s.epochs):
            for rows in torch.randperm(len(clicked), generator=generator).split(s.batch):
                y = queries[rows] @ matrix + bias
                wanted = clicked[rows]
                logits = y @ documents[wanted].T
                same = (wanted[:, None] == wanted[None, :]) & ~torch.eye(len(rows), dtype=torch.bool)
                logits = logits.masked_fill(same, -1e9)
                if s.hard:
                    logits = torch.cat([logits, torch.einsum("bd,bhd->bh", y, documents[passed[rows][:, : s.hard]])], 1)
                losses = torch.nn.functional.cross_entropy(logits / s.temperature, torch.arange(len(rows)), reduction="none")
                loss = (losses * weights[rows]).sum() / weights[rows].sum() + s.decay * ((matrix - eye) ** 2).sum()
                adam.zero_grad()
                loss.backward()
                adam.step()
        self.matrix, self.bias = matrix.detach().numpy(), bias.detach().numpy()
