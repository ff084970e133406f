"""Do rewards spread over a graph of requests?  Predicts held-out rewards from those of stored decisions, by neighbours and by graphs.

    SONA_DATA=<embeddings> python asv_benchmarks/propagate_table.py [--seeds 60-64] [--tune 0-4] [--streams NAME ...] [--json FILE]

A router learns on each stream; its decisions are the stored ones. The rows that the stream never shows are the fresh ones: every method
predicts the reward of each arm on them from the router's expectation and the stored rewards. Requests are joined with the ten most
similar stored ones. Settings of each method are swept on the seeds of --tune: the one with the least log-loss over all streams is used.

loss, Brier: of the arm that the router would choose, after Platt scaling on other fresh rows; AUC over all arms; earned: expected reward of
the arm with the highest prediction. screen: the screen of background cycles, the method as the candidate against the ten neighbours as
shipped: z over the rows of all seeds, and the verdict. It can only reject.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from convolution import Convolution, of_cells
from row import print_lines
from scipy.sparse import bmat, csr_matrix
from sklearn.metrics import roc_auc_score
from streams import F32, F64, I64, Stream, available, make

import sona
from sona.loops.retrieval import NEIGHBOURS, PRIOR
from sona.loops.screen import calibrate, screen
from sona.memory import Propagation, propagate

STREAMS = (
    *(f"digits:{world}:{rates}:T=1290" for world in ("few", "shift") for rates in ("c", "r5")),
    *(f"{data}:few:{rates}:T=3000" for data in ("trec6", "ng20") for rates in ("c", "r5")),
)
FOLDS = 5


@dataclass(frozen=True)
class Episodes:
    """
    n stored decisions of a router and m fresh requests.

    Attributes
    ----------
    x, fresh : (n, d) and (m, d) float32
        Unit norm.
    arm : (n,) int64
    reward : (n,) float64
    expected : (n, K) float64
        What the router expected of each arm when it decided.
    ahead : (m, K) float64
        What it expects on the fresh rows after all of them.
    confidence : float
        c of the documentation of the learner: ahead = c pi.
    value, outcome : (m, K) float64
        Expected reward of each arm, and one draw.
    """

    x: F32
    fresh: F32
    arm: I64
    reward: F64
    expected: F64
    ahead: F64
    confidence: float
    value: F64
    outcome: F64

    @cached_property
    def chosen(self) -> tuple[I64, I64]:
        """The cells of the router's choice on the fresh rows."""
        return np.arange(len(self.fresh)), self.ahead.argmax(1)

    @cached_property
    def similar(self) -> tuple[I64, F64]:
        """The thirty most similar stored requests of each fresh one, (m, 30), and their cosines."""
        cosine = (self.fresh @ self.x.T).astype(np.float64)
        at = np.argsort(-cosine, axis=1, kind="stable")[:, :30]
        return at, np.take_along_axis(cosine, at, axis=1)

    @cached_property
    def graph(self) -> csr_matrix:
        """Stored requests and behind them the fresh ones, each joined with its ten most similar stored ones."""
        n = len(self.x)
        own = self.x @ self.x.T
        np.fill_diagonal(own, -np.inf)
        parts = []
        for cosine in (own, self.fresh @ self.x.T):
            at = np.argpartition(-cosine, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
            weight = np.maximum(np.take_along_axis(cosine, at, axis=1), 0).ravel()
            parts.append(csr_matrix((weight, (np.repeat(np.arange(len(at)), NEIGHBOURS), at.ravel())), shape=(len(at), n)))
        stored = parts[0].maximum(parts[0].T)
        return bmat([[stored, parts[1].T], [parts[1], None]]).tocsr()

    def spread(self, value: F64) -> F64:
        """(n + m, K): what each stored decision has, in the column of its arm; 0 for the fresh ones."""
        seed = np.zeros((len(self.x) + len(self.fresh), self.value.shape[1]))
        seed[np.arange(len(self.arm)), self.arm] = value
        return seed

    @property
    def surprise(self) -> F64:
        return self.reward - self.expected[np.arange(len(self.arm)), self.arm]


@lru_cache(maxsize=64)
def episodes(name: str, seed: int) -> Episodes:
    stream: Stream = make(name, seed)
    router = sona.Router(stream.arms, seed=seed)
    n = len(stream.x)
    arm, reward, expected = np.zeros(n, np.int64), np.zeros(n), np.zeros(stream.value.shape)
    for t, x in enumerate(stream.x):
        if t % 50 == 0:
            confidence = router.stats()["confidence"]
        decision = router.route(x)
        arm[t], reward[t], expected[t] = decision.index, stream.reward(t, decision.index), confidence * decision.scores
        router.feedback(decision.id, reward[t])
    confidence = router.stats()["confidence"]
    ahead = confidence * np.array([router.route(x).scores for x in stream.held_x], np.float64)
    outcome = np.random.default_rng([seed, 7]).random(stream.held_value.shape) < stream.held_value
    value = stream.held_value.astype(np.float64)
    return Episodes(stream.x, stream.held_x, arm, reward, expected, ahead, confidence, value, outcome.astype(np.float64))


# ---- methods: predicted reward of each arm on the fresh rows, (m, K) ----

Method = Callable[[Episodes], F64]


def router_alone(e: Episodes) -> F64:
    return e.ahead


def neighbours(k: int, prior: float) -> Method:
    """What `Retrieval` does: (prior pi + sum w r) / (prior / c + sum w), w = cos^2."""

    def predict(e: Episodes) -> F64:
        at, cosine = (part[:, :k] for part in e.similar)
        weight, row = np.maximum(cosine, 0) ** 2, np.repeat(np.arange(len(at)), k).reshape(at.shape)
        earned, seen = np.zeros((2, *e.ahead.shape))
        np.add.at(earned, (row, e.arm[at]), weight * e.reward[at])
        np.add.at(seen, (row, e.arm[at]), weight)
        strength = prior / e.confidence
        return (strength * e.ahead + earned) / (strength + seen)

    return predict


def closed_form(hops: int, alpha: float, prior: float, surprise: bool) -> Method:
    """The same with sums over the graph in place of neighbours; of rewards, or of how much they differed from what was expected."""

    def predict(e: Episodes) -> F64:
        n = len(e.x)
        seen = propagate(e.graph, e.spread(np.ones(n)), hops, alpha)[n:].astype(np.float64)
        earned = propagate(e.graph, e.spread(e.surprise if surprise else e.reward), hops, alpha)[n:].astype(np.float64)
        strength = prior / e.confidence
        return e.ahead + earned / (strength + seen) if surprise else (strength * e.ahead + earned) / (strength + seen)

    return predict


def learned(hops: int, l2: float) -> Method:
    """`Propagation` of the surprises, fitted on the stored decisions: each fifth is predicted from the messages of the others."""

    def predict(e: Episodes) -> F64:
        n, count = len(e.x), e.ahead.shape[1]
        fold, seeds = np.arange(n) % FOLDS, []
        for held in range(FOLDS):
            seeds.append(e.spread(np.where(fold == held, 0, e.surprise)))
        model = Propagation(hops, l2=l2)
        known = _logit(e.expected[np.arange(n), e.arm])
        model.fit(e.graph, np.hstack(seeds), np.arange(n), fold * count + e.arm, e.reward, known)
        return model(e.graph, e.spread(e.surprise), _logit(np.vstack([e.expected, e.ahead])))[n:].astype(np.float64)

    return predict


def convolution(l2: float) -> Method:
    """Two layers of 16 and K over the requests' vectors, which add to the logit of what was expected."""

    def predict(e: Episodes) -> F64:
        n = len(e.x)
        x = np.vstack([e.x, e.fresh]).astype(np.float64) * np.sqrt(e.x.shape[1]) / 4
        degree = np.asarray(e.graph.sum(axis=1)).ravel()
        root = 1 / np.sqrt(np.maximum(degree, 1e-12))
        net = Convolution(e.graph.multiply(root[:, None]).multiply(root[None]).tocsr(), x, 16, e.ahead.shape[1], l2=l2)
        z = net.minimise(of_cells(np.arange(n), e.arm, e.reward, _logit(e.expected[np.arange(n), e.arm])))
        return (1 + np.tanh((z[n:] + _logit(e.ahead)) / 2)) / 2

    return predict


def _logit(p: F64) -> F64:
    p = np.clip(p, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(p) - np.log1p(-p))


SHIPPED = f"{NEIGHBOURS} neighbours, as shipped"
FIXED: dict[str, Method] = {"router alone": router_alone, SHIPPED: neighbours(NEIGHBOURS, PRIOR)}
SWEPT: dict[str, dict[str, Method]] = {
    "neighbours": {f"k {k}, prior {p:g}": neighbours(k, p) for k, p in product((5, 10, 20, 30), (0.5, 1, 2, 4, 8))},
    "closed form": {
        f"hops {h}, alpha {a:g}, prior {p:g}" + ", surprise" * s: closed_form(h, a, p, s)
        for (h, a), p, s in product(((1, 0.85), (2, 0.85), (3, 0.5), (3, 0.85), (6, 0.85)), (0.05, 0.1, 0.2, 0.4, 0.8), (False, True))
    },
    "learned": {f"hops {h}, l2 {l2:g}": learned(h, l2) for h, l2 in product((1, 2, 3), (1e-4, 1e-3, 1e-2))},
    "convolution": {f"l2 {l2:g}": convolution(l2) for l2 in (3e-4, 1e-3, 3e-3, 1e-2)},
}


# ---- judging ----


def calibrated(p: F64, reward: F64) -> F64:
    """p after Platt scaling on the other folds."""
    fold, found = np.arange(len(p)) % FOLDS, np.zeros(len(p))
    for held in range(FOLDS):
        intercept, slope = calibrate(p[fold != held], reward[fold != held])
        found[fold == held] = (1 + np.tanh((intercept + slope * _logit(p[fold == held])) / 2)) / 2
    return found


def judged(e: Episodes, p: F64) -> dict[str, float]:
    p = np.clip(p, 0, 1)
    reward = e.outcome[e.chosen]
    q = calibrated(p[e.chosen], reward)
    return {
        "loss": float(-np.mean(reward * np.log(q) + (1 - reward) * np.log1p(-q))),
        "Brier": float(np.mean((q - reward) ** 2)),
        "AUC": float(roc_auc_score(e.outcome.ravel(), p.ravel())),
        "earned": float(e.value[np.arange(len(p)), p.argmax(1)].mean()),
    }


def best(streams: Sequence[str], seeds: Sequence[int]) -> dict[str, tuple[str, Method]]:
    """Of each kind the setting with the least mean log-loss over the streams."""
    found = {}
    for kind, settings in SWEPT.items():
        loss = {
            setting: float(np.mean([judged(e, method(e))["loss"] for name in streams for e in (episodes(name, seed) for seed in seeds)]))
            for setting, method in settings.items()
        }
        least = min(loss, key=lambda setting: loss[setting])
        found[kind] = (least, settings[least])
        print(
            f"{kind}: {least} of {len(loss)} settings, loss {loss[least]:.4f} on seeds {seeds[0]}-{seeds[-1]}", file=sys.stderr, flush=True
        )
    return found


def rows(name: str, methods: dict[str, Method], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    cases = [episodes(name, seed) for seed in seeds]
    reward = np.concatenate([e.outcome[e.chosen] for e in cases])

    def predicted(method: Method) -> list[F64]:
        return [np.clip(method(e), 0, 1) for e in cases]

    incumbent = np.concatenate([p[e.chosen] for p, e in zip(predicted(FIXED[SHIPPED]), cases, strict=True)])
    for label, method in methods.items():
        found = predicted(method)
        ruling = screen(np.concatenate([p[e.chosen] for p, e in zip(found, cases, strict=True)]), incumbent, reward)
        measures = [judged(e, p) for e, p in zip(cases, found, strict=True)]
        by_name = {key: [each[key] for each in measures] for key in measures[0]}
        yield {"stream": name, "method": label, **by_name, "z": ruling.evidence["z"], "verdict": ruling.verdict, "n": len(reward)}


def seeds_of(text: str) -> range:
    first, last = map(int, text.split("-"))
    return range(first, last + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default=range(60, 65), metavar="FIRST-LAST")
    parser.add_argument("--tune", type=seeds_of, default=range(5), metavar="FIRST-LAST")
    parser.add_argument("--streams", nargs="*", default=list(STREAMS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    options = parser.parse_args()
    streams = [name for name in options.streams if available(name)]
    for name in set(options.streams) - set(streams):
        print(f"{name}: left out, SONA_DATA does not lead to its embeddings", file=sys.stderr)
    methods = FIXED | {f"{kind} ({setting})": method for kind, (setting, method) in best(streams, options.tune).items()}
    episodes.cache_clear()
    found = [row for name in streams for row in rows(name, methods, options.seeds)]
    lines = [("stream", "method", "loss", "Brier", "AUC", "earned", "screen")]
    for row in found:
        cells = [f"{np.mean(row[key]):.4f}+-{np.std(row[key]):.4f}" for key in ("loss", "Brier", "AUC", "earned")]
        verdict = "is the incumbent" if row["method"] == SHIPPED else f"z {row['z']:+.1f}, {row['verdict']}"
        lines.append((row["stream"], row["method"], *cells, verdict))
    print_lines(lines)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
