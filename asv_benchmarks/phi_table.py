"""What does Phi cost?  `sona.phi` from Python against numpy programs of the same two algorithms, by the number of nodes.

    python asv_benchmarks/phi_table.py [--quick] [--json FILE]

Both searches of both sides take turns in one process, on the same random weighted graphs; ratios are medians over rounds of the faster
numpy program over `sona.phi` with its own choice. Then every search by kind of graph, to see where they cross, and the parts of a
nearest-neighbour graph that 50 walks visit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phi_peers import exhaustive, of_subgraphs, queyranne
from row import HEAD, Row, faster, print_lines, seconds, within
from scipy.sparse import csr_array
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from table import machine
from timing import Code, interleave

from sona import phi
from sona.memory.phi import phi_of_subgraphs
from sona.patterns.clusters import one_thread

F64 = NDArray[np.float64]

TARGETS = {8: 10e-6, 12: 60e-6, 16: 1.3e-3, 32: 5e-3}
AT_LEAST = 5  # times as fast as numpy, up to 16 nodes
EVERY_CUT = 18  # most nodes of the searches through all subsets
WALKS, WITHIN = 50, 20e-3  # s for all of them


def random_graph(n: int, seed: int = 0) -> F64:
    w = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    return w + w.T


def kinds(n: int) -> Iterator[tuple[str, F64]]:
    """Graphs that the searches might find easy or hard."""
    yield "random", random_graph(n)
    ring = np.roll(np.eye(n), 1, axis=1)
    yield "ring", ring + ring.T
    star = np.zeros((n, n))
    star[0, 1:] = star[1:, 0] = 1
    yield "star", star
    part = np.arange(n) % 4
    yield "four groups", np.where(part[:, None] == part, 1.0, 0.01) - np.eye(n)


def against_numpy(n: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Rows with targets, and a line of the table."""
    w = random_graph(n)
    codes = {"sona": Code("phi(w)", {"phi": phi, "w": w}), "numpy queyranne": Code("q(w)", {"q": queyranne, "w": w})}
    if n <= EVERY_CUT:
        codes["numpy exhaustive"] = Code("e(w)", {"e": exhaustive, "w": w})
        assert abs(exhaustive(w) - float(phi(w))) < 1e-9
    assert abs(queyranne(w) - float(phi(w))) < 1e-9
    found = interleave(codes, rounds=rounds, sample=2e-4)
    peer = min((name for name in codes if name != "sona"), key=found.median)
    own, ratio = found.median("sona"), found.ratio(peer, "sona")
    rows = [faster("phi from Python", f"n={n}", own, peer, ratio, AT_LEAST if n <= 16 else None)]
    if n in TARGETS:
        rows.append(within("phi from Python", f"n={n}", own, TARGETS[n]))
    times = [seconds(found.median(name)) if name in codes else "" for name in ("sona", "numpy exhaustive", "numpy queyranne")]
    verdicts = [f"{row.target}: {'yes' if row.met else 'no'}" for row in rows if row.target]
    return rows, [str(n), phi(w).method, *times, f"{ratio:.3g}x", ", ".join(verdicts)]


def searches(n: int, rounds: int, *, directed: bool) -> list[str]:
    """Median time of each search, the least and the most over the kinds of graphs."""
    times: dict[str, list[float]] = {"exhaustive": [], "queyranne": []}
    for _, w in kinds(n):
        codes = {
            method: Code("phi(w, directed=d, method=m)", {"phi": phi, "w": w, "d": directed, "m": method})
            for method in times
            if n <= EVERY_CUT or method == "queyranne"
        }
        found = interleave(codes, rounds=rounds, sample=2e-4)
        for method in codes:
            times[method].append(found.median(method))
    spread = [f"{seconds(min(t))} to {seconds(max(t))}" if t else "" for t in times.values()]
    return [str(n), "directed" if directed else "symmetric", *spread]


def neighbours(k: int) -> csr_array:
    """Cosines of the k nearest neighbours of each of 1797 digits."""
    x = PCA(32, random_state=0).fit_transform(load_digits().data)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    np.fill_diagonal(cosine, 0)
    near = cosine >= np.partition(cosine, -k, axis=1)[:, [-k]]
    return csr_array(np.where(near | near.T, np.maximum(np.maximum(cosine, cosine.T), 0), 0).astype(np.float32))


def walks(graph: csr_array, length: int, seed: int = 0) -> NDArray[np.int32]:
    """By weight, a visited node counting a tenth."""
    rng = np.random.default_rng(seed)
    out = np.empty((WALKS, length), np.int32)
    for walk in out:
        walk[0] = rng.integers(graph.shape[0])
        for step in range(1, length):
            row = slice(graph.indptr[walk[step - 1]], graph.indptr[walk[step - 1] + 1])
            chance = graph.data[row] * np.where(np.isin(graph.indices[row], walk[:step]), 0.1, 1.0)
            walk[step] = rng.choice(graph.indices[row], p=chance / chance.sum())
    return out


def parts(length: int, rounds: int) -> Row:
    graph = neighbours(10)
    nodes = walks(graph, length)
    start, stop = graph.indptr[:-1].astype(np.int64), graph.indptr[1:].astype(np.int64)
    names = {"f": phi_of_subgraphs, "graph": (start, stop, graph.indices, graph.data), "nodes": nodes}
    np.testing.assert_allclose(phi_of_subgraphs(start, stop, graph.indices, graph.data, nodes), of_subgraphs(graph, nodes), atol=1e-11)
    found = interleave(
        {"sona": Code("f(*graph, nodes)", names), "numpy": Code("f(graph, nodes)", {"f": of_subgraphs, "graph": graph, "nodes": nodes})},
        rounds=rounds,
    )
    own, ratio = found.median("sona"), found.ratio("numpy", "sona")
    return replace(within("50 parts of a kNN graph", f"walks of {length}", own, WITHIN), peer="scipy and numpy", ratio=ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine to FILE too")
    options = parser.parse_args()
    rounds = 5 if options.quick else 21
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()) + "\n")
    rows: list[Row] = []
    lines = [["n", "search", "sona.phi", "numpy exhaustive", "numpy Queyranne", "faster numpy / sona", "target"]]
    for n in (4, 8, 12, 14, 16, 18, 24, 32, 48, 64):
        found, line = against_numpy(n, rounds if n <= 16 else max(5, rounds // 3))
        rows += found
        lines.append(line)
    print_lines(lines)
    print()
    own_lines = [["n", "graph", "exhaustive", "Queyranne"]]
    for directed in (False, True):
        own_lines += [searches(n, rounds, directed=directed) for n in (8, 12, 13, 14, 15, 16, 18, 32, 64)]
    print_lines(own_lines)
    print()
    part_rows = [parts(length, rounds // 2 + 1) for length in (8, 15, 20)]
    print_lines([HEAD, *(row.cells for row in part_rows)])
    if options.json:
        options.json.write_text(
            json.dumps({**about, "rows": [asdict(row) for row in rows + part_rows], "searches": own_lines}, indent=1) + "\n"
        )


if __name__ == "__main__":
    with one_thread():
        main()
