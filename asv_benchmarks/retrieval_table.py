"""Do similar decisions help beside the learner, and what do they cost?  Prints regret with and without retrieval, and time per request.

    python asv_benchmarks/retrieval_table.py [--seeds 60-64] [--streams NAME ...] [--json FILE]

Digits come back every 1300 requests or so; streams with T=1290 show each at most once, and no text comes twice. Text streams need
SONA_DATA; without it they are left out. Seeds 0 to 4 are for tuning.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import numpy as np
from run import adapted, play
from streams import available, make

import sona

ROWS = 4000
ONCE = tuple(f"digits:{name}:T=1290" for name in ("few:c", "shift:c", "rand:c", "few:r5", "few:f20"))
STREAMS = (
    *ONCE,
    *("digits:few:c", "digits:shift:c", "digits:rand:c", "digits:few:r5", "digits:few:f20"),
    *("digits:shift:r5", "digits:few:r2", "digits:few:r05", "digits:few:c:optimal", "digits:few:r5:optimal"),
    *("trec6:few:c", "trec6:few:r5", "trec6:few:f20", "ng20:few:c", "ng20:few:r5"),
)


def regret(name: str, seed: int, rows: int) -> float:
    stream = make(name, seed)
    return play(stream, adapted(stream, retrieval=rows)).regret


def microseconds(dim: int, rows: int) -> float:
    """Median time of a route over 20 arms with so many rows to compare with, 0 for none."""
    rng = np.random.default_rng(0)
    router = sona.Router(rng.standard_normal((20, dim)).astype(np.float32), retrieval=rows)
    for x in rng.standard_normal((max(rows, 200), dim)).astype(np.float32):
        router.feedback(router.route(x).id, float(rng.integers(2)))
    took = []
    for x in rng.standard_normal((500, dim)).astype(np.float32):
        start = perf_counter_ns()
        router.route(x)
        took.append(perf_counter_ns() - start)
    return median(took) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="60-64", metavar="FIRST-LAST")
    parser.add_argument("--streams", nargs="*", default=list(STREAMS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every regret")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    seeds = range(first, last + 1)
    found = {}
    print("| stream | without | with | change | seeds with less |\n|---|---|---|---|---|")
    for name in options.streams:
        if not available(name):
            print(f"{name}: left out, SONA_DATA does not lead to its embeddings", file=sys.stderr)
            continue
        without, beside = (np.array([regret(name, seed, rows) for seed in seeds]) for rows in (0, ROWS))
        found[name] = {"without": without.tolist(), "with": beside.tolist()}
        pair = " | ".join(f"{each.mean():.0f}+-{each.std():.0f}" for each in (without, beside))
        change = 100 * (beside.mean() / without.mean() - 1)
        print(f"| {name} | {pair} | {change:+.0f} % | {(beside < without).sum()} of {len(seeds)} |", flush=True)
    print("\n| dim | rows | one route |\n|---|---|---|")
    for dim in (64, 384):
        for rows in (0, 1000, ROWS):
            print(f"| {dim} | {rows} | {microseconds(dim, rows):.1f} us |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
