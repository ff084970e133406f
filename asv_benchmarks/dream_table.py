"""What dreams and a consolidation cost, and which gate lets the better dreams through.

    SONA_DATA=DIR python asv_benchmarks/dream_table.py [--seeds 60-64] [--graphs NAME ...] [--json FILE]

Better: a tenth of the edges of a graph of nearest neighbours is hidden, and a dream is good if the pairs it proposes are hidden edges.
Graphs of text need SONA_DATA; without it they are left out. Seeds 0 to 31 are for tuning.
"""

from __future__ import annotations

import argparse
import json
import sys
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from time import process_time

import numpy as np
from numpy.typing import NDArray
from row import HEAD, Row, print_lines, within
from streams import MissingData, labelled
from timing import Code, interleave

from sona.memory import DreamConfig, DreamEngine, DreamEvaluator, DreamGate, EdgeKind, MemoryConsolidator, MemoryGraph, NodeKind

GRAPHS = ("digits", "trec6", "ng20")
MEASURES = ("density", "phi", "score", "novelty", "coherence", "diversity")


def memory(nodes: int, dim: int = 384, link: int = 8, seed: int = 0, **bounds: int) -> MemoryGraph:
    """Clumped vectors linked to their nearest neighbours, qualities between 0 and 1."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, dim)).astype(np.float32)
    x = centres[rng.integers(50, size=nodes)] + rng.standard_normal((nodes, dim)).astype(np.float32)
    graph = MemoryGraph(dim, **bounds)
    graph.add_many(x, kind=NodeKind.EPISODE, quality=rng.uniform(size=nodes), link=link)
    return graph


def dreaming(rounds: int) -> list[Row]:
    rows = []
    for nodes in (500, 5000):
        snapshot = memory(nodes).snapshot()
        degree = float(snapshot.degree.mean())
        codes, dreams = {}, {}
        for generator in ("walk", "quantum", "mixed"):
            engine = DreamEngine(snapshot, DreamConfig(generator=generator))
            names = {"engine": engine, "evaluator": DreamEvaluator(snapshot), "gate": DreamGate()}
            dreams[generator] = engine.generate_dreams()
            codes[f"generated, {generator}"] = Code("engine.generate_dreams()", names)
            codes[f"generated, evaluated and gated, {generator}"] = Code("gate.select(evaluator.evaluate(engine.generate_dreams()))", names)
        codes["evaluated"] = Code("evaluator.evaluate(dreams)", {"evaluator": DreamEvaluator(snapshot), "dreams": dreams["walk"]})
        measured = interleave(codes, rounds=rounds)
        case = f"50 dreams of 15, {nodes} nodes, degree {degree:.1f}, d=384"
        for name in codes:
            rows.append(within(name, case, measured.median(name), 0.1 if "gated" in name or name.startswith("generated") else 0.05))
    return rows


def consolidating(nodes: int = 50_000) -> list[Row]:
    """One consolidation of a full memory: CPU time, and memory allocated at the peak."""
    graph = memory(nodes, link=8, max_nodes=nodes)
    rng = np.random.default_rng(1)
    for kind in (EdgeKind.CREATIVE, EdgeKind.COACTIVATION):
        u, v = rng.choice(graph.ids, size=(2, nodes // 4))
        graph.link(u[u != v], v[u != v], kind, rng.uniform(0.01, 0.2, size=int((u != v).sum())))
    snapshot, consolidator = graph.snapshot(), MemoryConsolidator()
    start = process_time()
    consolidator.consolidate(snapshot)
    took = process_time() - start
    tracemalloc.start()
    consolidator.consolidate(snapshot)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    degree = float(snapshot.degree.mean())
    case = f"{nodes} nodes, degree {degree:.1f}, d=384"
    return [
        within("consolidation", case, took, 30.0),
        Row("memory that a consolidation needs besides", case, f"{peak:.0f} MB", target="<= 150 MB", met=peak <= 150),
    ]


def hidden(data: str, seed: int, nodes: int = 1000, k: int = 8) -> tuple[MemoryGraph, set[tuple[int, int]]]:
    """A graph of nearest neighbours without a tenth of its edges, and these, u < v."""
    x, _ = labelled(data)
    rng = np.random.default_rng([seed, 7])
    x = x[rng.permutation(len(x))[:nodes]]
    graph = MemoryGraph(x.shape[1], max_degree=64)
    graph.add_many(x, kind=NodeKind.MEMORY, quality=np.full(len(x), 0.5), link=k)
    u, v, _ = graph.edges(EdgeKind.SIMILARITY)
    away = rng.random(len(u)) < 0.1
    graph.unlink(u[away], v[away], EdgeKind.SIMILARITY)
    return graph, {(min(a, b), max(a, b)) for a, b in zip(u[away].tolist(), v[away].tolist(), strict=True)}


def hits(data: str, seed: int, config: DreamConfig, count: int = 1500) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """For each dream: (hits, pairs proposed), and its measures."""
    graph, lost = hidden(data, seed)
    dreams = DreamEvaluator(graph).evaluate(DreamEngine(graph, config, seed=seed).generate_dreams(count))
    dreams = [dream for dream in dreams if dream.proposals]
    found = [[sum((min(pair), max(pair)) in lost for pair in dream.proposals), len(dream.proposals)] for dream in dreams]
    return np.array(found, float), {name: np.array([getattr(dream.quality, name) for dream in dreams]) for name in MEASURES}


def gates(graphs: list[str], seeds: range) -> list[list[str]]:
    """Precision in percent, mean +- standard deviation over seeds: all pairs, and those of the better half of the dreams."""
    lines = [["graph", "generator", "all dreams", *(f"better half by {name}" for name in MEASURES)]]
    every = 10**6  # all pairs that are near, not only the most alike
    generators = {
        "walk": DreamConfig(proposals_per_dream=every),
        "walk without leaps": DreamConfig(proposals_per_dream=every, jump=0.0),
        "quantum": DreamConfig(proposals_per_dream=every, generator="quantum"),
    }
    for data in graphs:
        try:
            labelled(data)
        except MissingData as error:
            print(f"{data}: left out, {error}", file=sys.stderr)
            continue
        for name, config in generators.items():
            columns: list[list[float]] = [[] for _ in range(1 + len(MEASURES))]
            for seed in seeds:
                found, measures = hits(data, seed, config)
                halves = [np.ones(len(found), bool)] + [own >= np.quantile(own, 0.5) for own in measures.values()]
                for column, half in zip(columns, halves, strict=True):
                    column.append(100 * float(found[half, 0].sum() / found[half, 1].sum()))
            lines.append([data, name, *(f"{np.mean(column):.2f}+-{np.std(column):.2f}" for column in columns)])
            print(" ".join(lines[-1]), file=sys.stderr, flush=True)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="60-64", metavar="FIRST-LAST")
    parser.add_argument("--graphs", nargs="*", default=list(GRAPHS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    rows = dreaming(options.rounds) + consolidating()
    print_lines([HEAD, *(row.cells for row in rows)])
    lines = gates(options.graphs, range(first, last + 1))
    print("\nProposed pairs that are hidden edges, in percent:\n")
    print_lines(lines)
    if options.json:
        options.json.write_text(json.dumps({"costs": [asdict(row) for row in rows], "gates": lines}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
