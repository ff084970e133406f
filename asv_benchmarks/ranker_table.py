"""What clicks teach a Ranker on real text, against a linear adapter fitted again every night and the frozen order; and what a query pays.

    apt-get update -o Acquire::Languages=en -o Dir::State::lists=DIR && pip download --no-deps wordllama==0.4.0.post1 -d DIR
    python asv_benchmarks/ranker_table.py --data DIR [--seeds 10-14] [--clicks 100,1000,10000] [--streams popular,once]
    python asv_benchmarks/ranker_table.py --data DIR --tune          # the sweep of the nightly adapter, on seeds 0 to 2
    python asv_benchmarks/ranker_table.py --data DIR --hostile       # shares of hostile users, with and without the guard
    python asv_benchmarks/ranker_table.py --time                     # processor time that a query pays beside its scan

nDCG@10 and MRR on held-out queries over all documents, over the frozen order's on the same queries; mean and spread over seeds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from row import print_lines
from search_learners import SWEEP, Frozen, Nightly, Setting, Sona
from search_streams import STREAMS, Corpus, Searches, User, quality

BLOCK = 32  # queries that are drawn, and ranked by those who do not learn from each click, at a time

# The best of the sweep (--tune) on each stream.
TUNED = {"popular": Setting(1e-3, 3, 0.1), "once": Setting(3e-4, 3, 0.1)}


def play(searches: Searches, learner: Frozen, user: User, points: Sequence[int]) -> list[tuple[float, float]]:
    """(nDCG, MRR) over the frozen order's, once that many clicks have been given."""
    base = quality(Frozen(searches).scores, searches)
    given, found = 0, []
    while len(found) < len(points):
        block = [next(searches.draws) for _ in range(BLOCK)]
        for (query, target), shown in zip(block, learner.show(np.stack([query for query, _ in block])), strict=True):
            clicks = user.clicks(shown, target)
            learner.learn(query, shown, clicks)
            given += len(clicks)
            if len(found) < len(points) and given >= points[len(found)]:
                now = quality(learner.scores, searches)
                found.append((now[0] / base[0], now[1] / base[1]))
                print(f"    {type(learner).__name__} seed {user.seed}: {given} clicks {found[-1][0]:.4f} {found[-1][1]:.4f}", flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def learning(corpus: Corpus, streams: Sequence[str], seeds: Sequence[int], points: Sequence[int], learners: Sequence[str]) -> None:
    lines = [("stream", "clicks", "learner", "nDCG@10 / frozen", "MRR / frozen")]
    for stream in streams:
        make: dict[str, Callable[[Searches], Frozen]] = {"sona": Sona, "nightly": lambda s, t=TUNED[stream]: Nightly(s, t)}
        for name in learners:
            runs = [play(searches := STREAMS[stream](corpus, seed), make[name](searches), User(seed), points) for seed in seeds]
            for at, point in enumerate(points):
                lines.append((stream, str(point), name, *(spread([run[at][measure] for run in runs]) for measure in (0, 1))))
    print_lines(lines)


def tune(corpus: Corpus, streams: Sequence[str], seeds: Sequence[int], points: Sequence[int]) -> None:
    """Each setting fitted on the same clicks, which were given on lists in the frozen order."""
    lines = [("stream", "setting of the nightly adapter", *(f"nDCG@10 after {point}" for point in points))]
    for stream in streams:
        logs = []
        for seed in seeds:
            searches = STREAMS[stream](corpus, seed)
            log = Nightly(searches, Setting())
            log.due = points[-1] + 1000
            play(searches, log, User(seed), points[-1:])
            logs.append((searches, log.night, quality(Frozen(searches).scores, searches)[0]))
        for setting in SWEEP:
            found = []
            for searches, night, base in logs:
                for point in points:
                    fitted = Nightly(searches, setting)
                    fitted.night = night.first(point)
                    fitted.fit()
                    found.append(quality(fitted.scores, searches)[0] / base)
            lines.append((stream, str(setting), *(spread(found[at :: len(points)]) for at in range(len(points)))))
            print(lines[-1], flush=True)
    print_lines(lines)


def hostile(corpus: Corpus, streams: Sequence[str], seeds: Sequence[int], points: Sequence[int]) -> None:
    lines = [("stream", "hostile users", "guard", *(f"nDCG@10 after {point}" for point in points))]
    for stream in streams:
        for share in (0.2, 0.5, 1.0):
            for guard in (True, False):
                runs = [
                    play(searches := STREAMS[stream](corpus, seed), Sona(searches, guard=guard), User(seed, hostile=share), points)
                    for seed in seeds
                ]
                lines.append(
                    (stream, f"{share:.0%}", "yes" if guard else "no", *(spread([r[at][0] for r in runs]) for at in range(len(points))))
                )
    print_lines(lines)


def costs(rounds: int = 400, n: int = 20000, dim: int = 256) -> None:
    """Each round: `rank` and the bare scan of the same array with the same query, in turn; the median of the
    differences. Time of the processor, not of the clock: other programs that run meanwhile do not count."""
    from sona import Ranker
    from sona._kernels import Kernels

    random = np.random.default_rng(0)
    documents = random.standard_normal((n, dim)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    kernels = Kernels()
    lines = [("documents", "case", "scan p50", "rank p50", "added p50", "added p90", "click p50")]
    for case, size in (("20000", n), ("1000", 1000)):
        ranker = Ranker(documents[:size], guard=False)
        clicks = []
        for _ in range(500):
            ranking = ranker.rank(random.standard_normal(dim))
            began = time.thread_time()
            ranker.clicked(ranking.id, ranking.documents[3])
            clicks.append(time.thread_time() - began)
        scan, rank = [], []
        for turn in range(rounds):
            query = random.standard_normal(dim).astype(np.float32)
            query /= np.linalg.norm(query)
            times = {}
            for who in ("scan", "rank") if turn % 2 else ("rank", "scan"):
                began = time.thread_time()
                if who == "scan":
                    kernels.top_k(ranker._documents._rows.served, query, 10)
                else:
                    ranker.rank(query)
                times[who] = time.thread_time() - began
            scan.append(times["scan"])
            rank.append(times["rank"])
        added = np.array(rank) - np.array(scan)
        values = (np.median(scan), np.median(rank), np.median(added), np.quantile(added, 0.9), np.median(clicks))
        lines.append((case, "after 500 clicks", *(f"{1e6 * each:.0f} µs" for each in values)))
    print_lines(lines)


def numbers(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=numbers)
    parser.add_argument("--clicks", type=numbers)
    parser.add_argument("--streams", type=lambda text: text.split(","), default=list(STREAMS))
    parser.add_argument("--learners", type=lambda text: text.split(","), default=["sona", "nightly"])
    for name in ("tune", "hostile", "time"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    if options.time:
        costs()
        return
    if options.data is None:
        parser.error("--data: expected a directory")
    corpus = Corpus.read(options.data)
    if options.tune:
        tune(corpus, options.streams, options.seeds or [0, 1, 2], options.clicks or [1000])
    elif options.hostile:
        hostile(corpus, options.streams, options.seeds or numbers("10-14"), options.clicks or [1000])
    else:
        learning(corpus, options.streams, options.seeds or numbers("10-14"), options.clicks or [100, 1000, 10000], options.learners)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
