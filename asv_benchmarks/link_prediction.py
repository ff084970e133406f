"""Which links are missing?  Hides a tenth of the edges of five graphs and asks dreams, gated and not, and formulas to find them again.

    SONA_DATA=<embeddings> python asv_benchmarks/link_prediction.py [--seeds 60-67] [--graphs NAME ...] [--json FILE]

digits      1000 of scikit-learn's digits, each joined with its eight most similar ones, weight = cosine
miserables  the characters of Les Miserables that appear together (networkx), weight = chapters
clicks      500 newsgroup articles that a sona.Router has recommended: in each of 1500 sessions a visitor with one topic reads six
            articles of that topic; after each the router recommends one of 60 articles drawn at random, which is clicked with probability
            0.8 if it is of the topic and 0.1 if not, and the router learns that. Articles clicked in one session are joined, weight =
            sessions. Needs SONA_DATA
questions   1000 of the TREC questions joined like the digits. Needs SONA_DATA
karate      the 34 members of Zachary's club (networkx)

Candidates are all pairs at a distance of two in what is left, 60,000 of them at most, and the hidden edges. A dream is a walk of 15 steps;
it proposes the pairs without an edge that are at most four steps apart in it, and a pair's score is the number of dreams that propose
it. A gate leaves half of the dreams, or those of 0.3 bits and more. Printed are AUC and average precision (AP) of each ranking and what is
said about dreams: the hit rate of a dream is the share of its proposals that are hidden edges. The exponent of `proposals` was swept on
seeds 0 to 11 of the first three graphs; the last two were left out of that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from convolution import Convolution, of_pairs
from row import print_lines
from scipy.sparse import coo_matrix, csr_matrix, triu
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from streams import F32, F64, I64, MissingData, _source

import sona
from sona.memory import (
    Dream,
    DreamConfig,
    DreamEngine,
    DreamEvaluator,
    DreamGate,
    EdgeKind,
    MemoryGraph,
    Propagation,
    proposals,
)

HIDDEN, CAP = 0.1, 60_000
LENGTH, REACH = 15, 4
DREAMS = {"miserables": 400, "clicks": 1200, "digits": 1500, "questions": 1500, "karate": 200}
TOPICS, ITEMS, SESSIONS, READS, SLATE = 20, 500, 1500, 6, 60


# ---- graphs: a symmetric matrix of weights, and vectors of the nodes where there are any ----


def nearest(x: F32, k: int) -> csr_matrix:
    """Each row joined with its k most similar ones."""
    cosine = x @ x.T
    np.fill_diagonal(cosine, -2)
    at = np.argpartition(-cosine, k, axis=1)[:, :k]
    row = np.repeat(np.arange(len(x)), k)
    found = csr_matrix((np.maximum(cosine[row, at.ravel()], 0), (row, at.ravel())), shape=cosine.shape)
    found.eliminate_zeros()
    return found.maximum(found.T).tocsr()


def similar(data: str, seed: int) -> tuple[csr_matrix, F32]:
    x = _source(data)[0]
    x = x[np.random.default_rng([seed, 1]).permutation(len(x))[:1000]]
    return nearest(x, 8), x


def known(name: str) -> tuple[csr_matrix, None]:
    import networkx

    return csr_matrix(networkx.to_scipy_sparse_array(getattr(networkx, name)(), dtype=np.float32)), None


def clicks(seed: int) -> tuple[csr_matrix, F32]:
    x, topic = _source("ng20")
    once = np.unique(x, axis=0, return_index=True)[1]
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(once)
    items = np.concatenate([order[topic[order] == k][: ITEMS // TOPICS] for k in range(TOPICS)])
    rest = np.setdiff1d(order, items)
    read = [rest[topic[rest] == k] for k in range(TOPICS)]
    router = sona.Router(x[items], seed=seed)
    together: Counter[tuple[int, int]] = Counter()
    for _ in range(SESSIONS):
        wanted, clicked = int(rng.integers(TOPICS)), set()
        for _ in range(READS):
            decision = router.route(x[rng.choice(read[wanted])], candidates=rng.choice(ITEMS, SLATE, replace=False).tolist())
            click = rng.random() < (0.8 if topic[items[decision.index]] == wanted else 0.1)
            router.feedback(decision.id, float(click))
            if click:
                clicked.add(decision.index)
        together.update((a, b) for a in clicked for b in clicked if a < b)
    pairs = np.array(sorted(together))
    upper = coo_matrix(([together[a, b] for a, b in pairs.tolist()], pairs.T), shape=(ITEMS, ITEMS), dtype=np.float32)
    return (upper + upper.T).tocsr(), x[items]


GRAPHS: dict[str, Callable[[int], tuple[csr_matrix, F32 | None]]] = {
    "miserables": lambda seed: known("les_miserables_graph"),
    "clicks": clicks,
    "digits": lambda seed: similar("digits", seed),
    "questions": lambda seed: similar("trec6", seed),
    "karate": lambda seed: known("karate_club_graph"),
}


@dataclass(frozen=True)
class Case:
    """
    Attributes
    ----------
    left : csr_matrix (n, n)
        Without the hidden edges.
    u, v, hidden : (m,) int64, int64, bool
        Candidates u < v, and which of them are hidden edges.
    x : (n, d) float32 or None
    """

    left: csr_matrix
    u: I64
    v: I64
    hidden: np.ndarray[Any, np.dtype[np.bool_]]
    x: F32 | None


def hide(whole: csr_matrix, x: F32 | None, rng: np.random.Generator, share: float = HIDDEN, cap: int = CAP) -> Case:
    upper = triu(whole, 1).tocoo()
    order = rng.permutation(upper.nnz)
    gone, kept = np.split(order, [max(1, round(share * upper.nnz))])
    half = coo_matrix((upper.data[kept], (upper.row[kept], upper.col[kept])), whole.shape)
    left = (half + half.T).tocsr()
    two = (left @ left).toarray() > 0
    two[left.nonzero()] = False
    two[upper.row[gone], upper.col[gone]] = False
    u, v = np.nonzero(np.triu(two, 1))
    if len(u) > cap:
        some = rng.permutation(len(u))[:cap]
        u, v = u[some], v[some]
    u, v = np.concatenate([upper.row[gone], u]), np.concatenate([upper.col[gone], v])
    return Case(left, u.astype(np.int64), v.astype(np.int64), np.arange(len(u)) < len(gone), x)


# ---- formulas: a score of every pair, (n, n) ----


def common(case: Case, weight: Callable[[F64], F64]) -> F64:
    """sum over common neighbours z of weight(degree of z), without weights of edges."""
    joined = (case.left.toarray() > 0).astype(np.float64)
    return joined * weight(np.maximum(joined.sum(0), 1))[None] @ joined


def series(step: F64, rate: float, length: int) -> F64:
    """sum_t rate^t step^t over t = 1..length."""
    power, total = np.eye(len(step)), np.zeros_like(step)
    for _ in range(length):
        power = rate * (power @ step)
        total += power
    return total


def damped_walk(case: Case) -> F64:
    """Four steps of D^-1/2 W D^-1/2 at alpha = 0.85: what infinitely many walks would count."""
    weight = case.left.toarray().astype(np.float64)
    root = 1 / np.sqrt(np.maximum(weight.sum(0), 1e-12))
    return series(weight * root * root[:, None], 0.85, 4)


def proposed(case: Case) -> F64:
    """`sona.memory.proposals`, all of them."""
    n = case.left.shape[0]
    u, v, score = proposals(case.left, np.arange(n), n)
    found = np.zeros((n, n))
    found[u, v] = score
    return found + found.T


def learned(case: Case, *others: csr_matrix) -> F64:
    """`Propagation` from every node, its weights fitted on another tenth of the edges; `others` are further kinds of edges."""
    n = case.left.shape[0]
    start = np.eye(n, dtype=np.float32)
    part = hide(case.left, None, np.random.default_rng(0), cap=20_000)
    model = Propagation(4).fit([part.left, *others], start, part.u, part.v, part.hidden.astype(np.float64))
    return model([case.left, *others], start).astype(np.float64)


def convolved(case: Case) -> F64:
    """Inner products of 15 outputs of two layers of graph convolution over the vectors, trained like `learned`."""
    part = hide(case.left, None, np.random.default_rng(0), share=2 * HIDDEN, cap=20_000)
    assert case.x is not None
    x = case.x.astype(np.float64) * np.sqrt(case.x.shape[1]) / 4
    step: list[Any] = []
    for graph in (part.left, case.left):
        root = 1 / np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-12))
        step.append(graph.multiply(root[:, None]).multiply(root[None]).tocsr().astype(np.float64))
    net = Convolution(step[0], x, 16, 16, l2=1e-3)
    net.minimise(of_pairs(part.u, part.v, part.hidden.astype(np.float64)), steps=100)
    net.step, net.input = step[1], np.hstack([x, step[1] @ x])
    z = net.layers(net.at)[1]
    return z[:, :-1] @ z[:, :-1].T + z[:, -1] + z[:, -1:]


def cosine(case: Case) -> F64:
    assert case.x is not None
    return (case.x @ case.x.T).astype(np.float64)


FORMULAS: dict[str, Callable[[Case], F64]] = {
    "proposals (the default)": proposed,
    "damped walk, exact": damped_walk,
    "common neighbours": lambda case: common(case, np.ones_like),
    "Adamic-Adar": lambda case: common(case, lambda degree: 1 / np.log(np.maximum(degree, 2))),
    "resource allocation": lambda case: common(case, lambda degree: 1 / degree),
    "Katz, 3 steps, beta .05": lambda case: series((case.left.toarray() > 0).astype(np.float64), 0.05, 3),
    "learned hops": learned,
}
WITH_VECTORS: dict[str, Callable[[Case], F64]] = {"graph convolution": convolved, "cosine of the vectors": cosine}
SIMILAR = "learned hops and kinds, with similarity"  # the articles' vectors as a second kind of edge


# ---- dreams ----


def memory(case: Case) -> MemoryGraph:
    """A graph of the nodes; those without vectors get one apart from all others."""
    n = case.left.shape[0]
    x = np.eye(n, dtype=np.float32) if case.x is None else case.x
    graph = MemoryGraph(x.shape[1], max_nodes=n, max_degree=n)
    ids = graph.add_many(x, link=0)
    upper = triu(case.left, 1).tocoo()
    graph.link(ids[upper.row], ids[upper.col], EdgeKind.COACTIVATION, upper.data / upper.data.max())
    return graph


def dreamt(graph: MemoryGraph, count: int, seed: int, **options: Any) -> list[Dream]:
    config = DreamConfig(length=LENGTH, reach=REACH, proposals_per_dream=LENGTH * (LENGTH - 1) // 2, **options)
    return DreamEvaluator(graph).evaluate(DreamEngine(graph, config, seed=seed).generate_dreams(count))


def visits(graph: MemoryGraph, dreams: Sequence[Dream]) -> F64:
    """Number of dreams that propose each pair, (n, n)."""
    found = np.zeros((len(graph), len(graph)))
    pairs = np.array([pair for dream in dreams for pair in dream.proposals], np.int64).reshape(-1, 2)
    u, v = (graph.positions(column) for column in pairs.T)
    np.add.at(found, (u, v), 1.0)
    return found + found.T


def gates(dreams: list[Dream], scored: bool) -> dict[str, list[Dream]]:
    found = {
        "walks": dreams,
        "walks, every other one": dreams[::2],
        "walks, upper half by Phi": DreamGate(by="phi").select(dreams),
        "walks, Phi >= 0.3 bits": DreamGate(by=None, phi_threshold=0.3).select(dreams),
        "walks, upper half by density": DreamGate(by="density").select(dreams),
    }
    return found | ({"walks, upper half by score": DreamGate(by="score").select(dreams)} if scored else {})


def hit_rates(case: Case, graph: MemoryGraph, dreams: Sequence[Dream]) -> F64:
    """Share of each dream's proposals that are hidden edges, NaN where it proposes nothing."""
    n = len(graph)
    hidden = {(u, v) for u, v in zip(case.u[case.hidden].tolist(), case.v[case.hidden].tolist(), strict=True)}
    hidden |= {(v, u) for u, v in hidden}
    at = {int(id): i for id, i in zip(graph.ids.tolist(), range(n), strict=True)}
    return np.array([np.mean([(at[u], at[v]) in hidden for u, v in d.proposals]) if d.proposals else np.nan for d in dreams])


def correlated(case: Case, graph: MemoryGraph, dreams: list[Dream], names: Sequence[str]) -> dict[str, float]:
    """Rank correlation of each measure of a dream with the share of its proposals that are hidden edges."""
    rates = hit_rates(case, graph, dreams)
    some = ~np.isnan(rates)
    measures = {name: np.array([getattr(dream.quality, name) for dream in dreams]) for name in names}
    return {name: float(spearmanr(values[some], rates[some]).statistic) for name, values in measures.items()}


def about(name: str, case: Case, graph: MemoryGraph, walks: list[Dream], seed: int) -> dict[str, float]:
    """Whether better dreams can be told, with and without leaps; the share of hidden edges among what a part of them proposes; times."""
    scored = case.x is not None
    names = ("phi", "density", "score") if scored else ("phi", "density")
    found = {"nodes": len(graph), "edges": case.left.nnz / 2, "hidden": case.hidden.sum(), "candidates": len(case.u)}
    found |= {f"Spearman of hit rate and {key}": value for key, value in correlated(case, graph, walks, names).items()}
    plain = dreamt(graph, DREAMS[name], seed, jump=0.0, restart=0.0)
    found |= {f"... without leaps, {key}": value for key, value in correlated(case, graph, plain, names).items()}
    for label, chosen in gates(walks, scored).items():
        pairs = np.triu(visits(graph, chosen), 1) > 0
        found[f"precision of {label}"] = pairs[case.u[case.hidden], case.v[case.hidden]].sum() / max(pairs.sum(), 1)
        found[f"dreams left by {label}"] = len(chosen) / len(walks)
    for label, call in (("dreams", lambda: dreamt(graph, DREAMS[name], seed)), ("proposals", lambda: proposed(case))):
        start = process_time()
        call()
        found[f"CPU ms of {label}"] = 1000 * (process_time() - start)
    return {key: float(value) for key, value in found.items()}


def scores(name: str, case: Case, graph: MemoryGraph, walks: list[Dream], seed: int) -> Iterator[tuple[str, F64]]:
    scored = case.x is not None
    for label, dreams in gates(walks, scored).items():
        yield label, visits(graph, dreams)
    yield "quantum walks", visits(graph, dreamt(graph, DREAMS[name], seed, generator="quantum"))
    for label, formula in (FORMULAS | (WITH_VECTORS if scored else {})).items():
        yield label, formula(case)
    if name == "clicks" and case.x is not None:
        yield SIMILAR, learned(case, nearest(case.x, 8))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="60-67", metavar="FIRST-LAST")
    parser.add_argument("--graphs", nargs="*", default=list(GRAPHS), choices=list(GRAPHS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    found: dict[str, dict[str, Any]] = {}
    for name in options.graphs:
        table: dict[str, dict[str, list[float]]] = {}
        more: dict[str, list[float]] = {}
        for seed in range(first, last + 1):
            try:
                whole, x = GRAPHS[name](seed)
            except MissingData as missing:
                print(f"{name}: left out, {missing}", file=sys.stderr)
                break
            case = hide(whole, x, np.random.default_rng([seed, 3]))
            graph = memory(case)
            walks = dreamt(graph, DREAMS[name], seed)
            for label, score in scores(name, case, graph, walks, seed):
                row, ranked = table.setdefault(label, {"AUC": [], "AP": []}), score[case.u, case.v]
                row["AUC"].append(float(roc_auc_score(case.hidden, ranked)))
                row["AP"].append(float(average_precision_score(case.hidden, ranked)))
            for key, value in about(name, case, graph, walks, seed).items():
                more.setdefault(key, []).append(value)
        if table:
            lines = [(name, "AUC", "AP")]
            lines += [
                (label, *(f"{np.mean(row[key]):.3f}+-{np.std(row[key]):.3f}" for key in ("AUC", "AP"))) for label, row in table.items()
            ]
            print_lines(lines)
            print()
            print_lines([(name, "mean", "spread"), *((key, f"{np.mean(of):.4g}", f"{np.std(of):.2g}") for key, of in more.items())])
            print(flush=True)
            found[name] = {"ranking": table, "about": more}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
