"""Random walks over a weighted graph, and what it costs to take it over from networkx: 50 walks of 15 steps, against networkx and numpy.

    python asv_benchmarks/walk_table.py [--quick] [--nodes 1000 10000 50000]

The graphs are gnm with an average degree of 20 and uniform weights. Own code and peers take turns; ratios are medians over the rounds. The
peers always walk plainly, also where our walks do more: avoid what they visited, or have a temperature, restarts and jumps.
"Batches" says after how many batches of walks taking the graph over has paid for itself against networkx.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from row import HEAD, Row, faster, print_lines, seconds
from timing import Code, interleave

from sona.memory import Csr, walks

WALKS, STEPS, DEGREE = 50, 15, 20
BATCHES = {1_000: 1.0, 10_000: 15.0}  # most batches until the extraction has paid for itself


def weighted(nodes: int, seed: int = 1) -> Any:
    draw = random.Random(seed)
    graph = nx.gnm_random_graph(nodes, nodes * DEGREE // 2, seed=seed)
    for _, _, about in graph.edges(data=True):
        about["weight"] = draw.random() + 0.01
    return graph


def by_networkx(graph: Any, starts: list[int], draw: random.Random) -> list[list[int]]:
    found = []
    for node in starts:
        path = [node]
        for _ in range(STEPS):
            near = graph[node]
            if not near:
                break
            (node,) = draw.choices(list(near), [about["weight"] for about in near.values()])
            path.append(node)
        found.append(path)
    return found


def in_lockstep(csr: Csr, sums: NDArray[np.float64], starts: NDArray[np.int32], draw: np.random.Generator) -> NDArray[np.int64]:
    """All walks a step at a time in numpy: one search in the running sums over all rows."""
    at = starts.astype(np.int64)
    paths = np.full((len(at), STEPS + 1), -1, np.int64)
    paths[:, 0] = at
    live = np.arange(len(at))
    for step in range(STEPS):
        live = live[csr.stop[at[live]] > csr.start[at[live]]]
        first, last = csr.start[at[live]], csr.stop[at[live]]
        low = np.where(first > 0, sums[first - 1], 0)
        entry = np.searchsorted(sums, low + draw.random(len(live)) * (sums[last - 1] - low), side="right")
        at[live] = csr.column[np.clip(entry, first, last - 1)]
        paths[live, step + 1] = at[live]
    return paths


def rows(nodes: int, rounds: int) -> Iterator[Row]:
    graph = weighted(nodes)
    csr = Csr.from_networkx(graph)
    sums = np.cumsum(csr.weight, dtype=np.float64)
    starts = np.random.default_rng(0).integers(0, nodes, WALKS).astype(np.int32)
    names = {
        **{"csr": csr, "graph": graph, "starts": starts, "walks": walks, "length": STEPS + 1, "seeds": iter(range(1 << 62))},
        **{"by_networkx": by_networkx, "first": starts.tolist(), "old": random.Random(0)},
        **{"in_lockstep": in_lockstep, "sums": sums, "draw": np.random.default_rng(0), "Csr": Csr, "nx": nx},
    }
    codes = {
        "plain": "walks(csr, starts, length, seed=next(seeds), revisit=1.0)",
        "default": "walks(csr, starts, length, seed=next(seeds))",
        "dream": "walks(csr, starts, length, seed=next(seeds), temperature=1.5, restart=0.1, jump=0.05)",
        "networkx": "by_networkx(graph, first, old)",
        "numpy": "in_lockstep(csr, sums, starts, draw)",
    }
    times = interleave({name: Code(code, names) for name, code in codes.items()}, rounds=rounds)
    case = f"{nodes} nodes"
    for name, what in (("plain", "walks"), ("default", "walks, revisits halved"), ("dream", "walks, T 1.5, restarts, jumps")):
        own, bound = times.median(name), name == "plain"
        yield faster(what, case, own, "networkx, random.choices", times.ratio("networkx", name), 100 if bound else None)
        if bound:
            yield faster(what, case, own, "numpy lockstep", times.ratio("numpy", name), 5)
    taking = {
        "own": "Csr.from_networkx(graph)",
        "scipy": "nx.to_scipy_sparse_array(graph)",
        "networkx": codes["networkx"],
        "plain": codes["plain"],
    }
    times = interleave({name: Code(code, names) for name, code in taking.items()}, rounds=max(3, rounds // 4))
    own = times.median("own")
    yield faster("taking the graph over", case, own, "to_scipy_sparse_array", times.ratio("scipy", "own"), 1.5)
    batches = np.median([o / (b - p) for o, b, p in zip(*(times.seconds[name] for name in ("own", "networkx", "plain")), strict=True)])
    most = BATCHES.get(nodes)
    target = "" if most is None else f"<= {most:g} batches"
    met = None if most is None else bool(batches <= most)
    yield Row("taking over pays after", case, f"{batches:.3g} batches", f"networkx, {seconds(times.median('networkx'))}", None, target, met)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--nodes", nargs="*", type=int, default=[1_000, 10_000, 50_000])
    options = parser.parse_args()
    found = [row for nodes in options.nodes for row in rows(nodes, 7 if options.quick else 41)]
    print_lines([HEAD, *(row.cells for row in found)])


if __name__ == "__main__":
    main()
