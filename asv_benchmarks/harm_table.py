"""Does a memory that dreams and consolidates recall as well as before?  Ten deep cycles over real embeddings.

    SONA_DATA=DIR python asv_benchmarks/harm_table.py [--seeds 60-64] [--data NAME ...] [--json FILE]

A memory of labelled vectors answers held-out queries by the vote of its 10 best recalled. Between cycles other queries retrieve it and use
what has the right label. "before" is the accuracy when the memory is filled, "used only" after the same use without any cycle, "after" with
ten cycles: 50 dreams, gated, integrated, then a consolidation. "at random" is "used only" with as many nodes removed by lot.
"no harm": "after" is at most 0.2 points below "used only", on average.

memories        1000 memories of users, of any quality
noisy episodes  1000 episodes, one in five with a wrong label; those have qualities from 0 to .6, the others from .4 to 1. What is worth
                little fades within ten cycles (loss=0.4) and goes.
full            1000 episodes and room for no more; each query of a cycle is put in as well

Text needs SONA_DATA. Seeds 0 to 31 are for tuning.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from row import print_lines
from streams import F32, I64, MissingData, labelled

from sona.memory import (
    ConsolidationConfig,
    DreamConfig,
    DreamEngine,
    DreamEvaluator,
    DreamGate,
    MemoryConsolidator,
    MemoryGraph,
    NodeKind,
)

DATA = ("digits", "trec6", "ng20")
SCENES = ("memories", "noisy episodes", "full")
STORED, QUERIES, USES, CYCLES = 1000, 1000, 50, 10
TOLERANCE = 0.2  # points
MEANS = ("before", "used_only", "at_random", "after")


@dataclass(frozen=True)
class Harm:
    """Accuracies in percent; `kept` is the share, in percent, of the memories used in a cycle that recall still finds after it."""

    data: str
    scene: str
    hops: int
    seed: int
    before: float
    used_only: float
    after: float
    at_random: float
    nodes: int
    edges: int
    kept: float


def accuracy(graph: MemoryGraph, x: F32, label: I64, hops: int) -> float:
    """Percent of the queries whose label gets the most score among the 10 best recalled."""
    right = 0
    for query, own in zip(x, label.tolist(), strict=True):
        votes: Counter[int] = Counter()
        for found in graph.recall(query, 10, hops=hops, mark=False):
            votes[found.data] += found.score
        right += bool(votes) and votes.most_common(1)[0][0] == own
    return 100 * right / len(x)


def use(graph: MemoryGraph, x: F32, label: I64) -> list[int]:
    """Each query uses what it recalls of its own label; the ids used."""
    everything: list[int] = []
    for query, own in zip(x, label.tolist(), strict=True):
        found = graph.recall(query, 10, mark=False)
        used = [each.id for each in found if each.data == own]
        if used:
            graph.used(used, retrieved=[each.id for each in found])
        everything += used
    return sorted(set(everything))


def found_again(graph: MemoryGraph, ids: list[int], vectors: dict[int, NDArray[np.float32]]) -> float:
    """Percent of the ids that are what their own vector recalls first; a merged one counts as what took it in."""
    hit = 0
    for id in ids:
        best = graph.recall(vectors[id], 1, mark=False)
        hit += bool(best) and graph.position(best[0].id) == graph.position(id)
    return 100 * hit / max(len(ids), 1)


def measure(data: str, scene: str, hops: int, seed: int, config: DreamConfig) -> Harm:
    x, label = labelled(data)
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(len(x))
    stored, live, asked = np.split(order[: STORED + USES * CYCLES + QUERIES], [STORED, STORED + USES * CYCLES])
    told, quality = label[stored].copy(), rng.uniform(size=STORED)
    if scene == "noisy episodes":
        wrong = rng.random(STORED) < 0.2
        told[wrong] = (told[wrong] + rng.integers(1, label.max() + 1, size=int(wrong.sum()))) % (label.max() + 1)
        quality = np.where(wrong, 0.6 * quality, 0.4 + 0.6 * quality)

    def filled() -> MemoryGraph:
        graph = MemoryGraph(x.shape[1], max_nodes=STORED)
        kind = NodeKind.MEMORY if scene == "memories" else NodeKind.EPISODE
        graph.add_many(x[stored], kind=kind, quality=quality, data=told.tolist())
        return graph

    graph, plain = filled(), filled()
    before = accuracy(graph, x[asked], label[asked], hops)
    consolidation = ConsolidationConfig(loss=0.4) if scene == "noisy episodes" else ConsolidationConfig(max_nodes=STORED)
    engine, consolidator = DreamEngine(graph, config, seed=seed), MemoryConsolidator(consolidation)
    kept = 100.0
    for cycle in range(CYCLES):
        part = live[USES * cycle : USES * (cycle + 1)]
        use(plain, x[part], label[part])
        used = use(graph, x[part], label[part])
        vectors = {id: graph.vectors[graph.position(id)].copy() for id in used}
        if scene == "full":
            for each in (plain, graph):
                each.add_many(x[part], kind=NodeKind.EPISODE, quality=rng.uniform(size=USES), data=label[part].tolist())
        dreams = DreamGate().select(DreamEvaluator(graph).evaluate(engine.generate_dreams()))
        graph.apply(engine.integrate_dreams(dreams))
        graph.apply(consolidator.consolidate(graph.snapshot()).change)
        graph.cycle += 1
        plain.cycle += 1
        kept = min(kept, found_again(graph, used, vectors))
    used_only, after = (accuracy(each, x[asked], label[asked], hops) for each in (plain, graph))
    plain.remove(rng.permutation(plain.ids)[: len(plain) - len(graph)])
    at_random = accuracy(plain, x[asked], label[asked], hops)
    return Harm(data, scene, hops, seed, before, used_only, after, at_random, len(graph), len(graph.edges()[0]), kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="60-64", metavar="FIRST-LAST")
    parser.add_argument("--data", nargs="*", default=list(DATA), metavar="NAME")
    parser.add_argument("--generator", default="mixed", choices=("walk", "quantum", "mixed"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    runs: list[Harm] = []
    for data in options.data:
        try:
            labelled(data)
        except MissingData as error:
            print(f"{data}: left out, {error}", file=sys.stderr)
            continue
        for scene in SCENES:
            for hops in (0, 2):
                config = DreamConfig(generator=options.generator)
                own = [measure(data, scene, hops, seed, config) for seed in range(first, last + 1)]
                runs += own
                print(*line(own), file=sys.stderr, flush=True)
    print_lines(table(runs))
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def table(runs: list[Harm]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, str, int], list[Harm]] = {}
    for run in runs:
        groups.setdefault((run.data, run.scene, run.hops), []).append(run)
    names = (name.replace("_", " ") for name in MEANS)
    head = ("data", "scene", "hops", *names, "after - before", "after - used only", "no harm", "nodes", "edges", "used found")
    return [head, *map(line, groups.values())]


def line(own: list[Harm]) -> tuple[str, ...]:
    """One data set, scene and number of hops, over seeds."""
    means = [spread([getattr(run, name) for run in own]) for name in MEANS]
    since, by_cycles = ([run.after - getattr(run, name) for run in own] for name in ("before", "used_only"))
    verdict = "yes" if np.mean(by_cycles) >= -TOLERANCE else "NO"
    tail = (f"{max(run.nodes for run in own)}", f"{max(run.edges for run in own)}", f"{min(run.kept for run in own):.1f} %")
    return (own[0].data, own[0].scene, str(own[0].hops), *means, signed(since), signed(by_cycles), verdict, *tail)


def signed(values: list[float]) -> str:
    return f"{np.mean(values):+.2f}+-{np.std(values):.2f}"


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f}+-{np.std(values):.2f}"


if __name__ == "__main__":
    sys.exit(main())
