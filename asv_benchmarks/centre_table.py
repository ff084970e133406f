"""Does a Router learn from embeddings that all point much the same way?  Prints the share of right answers over 3000 requests.

    python asv_benchmarks/centre_table.py [--seeds 10-14] [--data NAME ...]

Rows of unit norm get one common vector added and are brought to norm 1 again, so that two of them have the given cosine on average, as in
many models of text. Arms are names, or centroids of five labelled rows as they are. "taken off before" is what a caller could do: the mean
of the first 100 rows taken off each. LinUCB has the same arms (none for names), a constant input, and its best setting of 9 on seed 0.
Text needs SONA_DATA; without it that is left out. Constants were chosen on seeds 0 to 2.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streams import MissingData, labelled

import sona
from sona.demo.linucb import LinUCB

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

REQUESTS = 3000
COMMON = (0.0, 1.0, 2.0, 4.0)  # length of the common vector
SWEEP = [(alpha, ridge) for alpha in (0.1, 0.3, 1.0) for ridge in (0.03, 0.1, 0.5)]


def unit(rows: NDArray[np.floating]) -> F32:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def world(data: str, common: float, seed: int) -> tuple[F32, I64, F32]:
    """(x (T, d), label (T,), centroids (K, d)): rows in a new order for each seed, again from the start where there are too few."""
    rng = np.random.default_rng(seed)
    x, label = labelled(data)
    middle = rng.standard_normal(x.shape[1])
    x = unit(unit(x - x.mean(axis=0)) + common * middle / np.linalg.norm(middle))
    order = rng.permutation(len(x))
    examples = np.concatenate([order[label[order] == k][:5] for k in range(label.max() + 1)])
    centroids = np.stack([x[examples[label[examples] == k]].mean(axis=0) for k in range(label.max() + 1)])
    live = np.resize(order[~np.isin(order, examples)], REQUESTS)
    return x[live], label[live], centroids.astype(np.float32)


def routed(x: F32, label: I64, arms: F32 | None, seed: int, **options: Any) -> float:
    names = list(range(label.max() + 1))
    router = sona.Router(names, dim=x.shape[1], seed=seed, **options) if arms is None else sona.Router(arms, seed=seed, **options)
    right = 0
    for row, k in zip(x, label, strict=True):
        decision = router.route(row)
        router.feedback(decision.id, float(decision.arm == k))
        right += decision.arm == k
    return right / len(x)


def linear(x: F32, label: I64, arms: F32 | None, alpha: float, ridge: float) -> float:
    x = np.column_stack([x, np.full(len(x), 0.3, np.float32)])
    start = np.zeros((label.max() + 1, x.shape[1]), np.float32)
    if arms is not None:
        start[:, :-1] = arms
    policy, right = LinUCB(start, alpha=alpha, ridge=ridge), 0
    for row, k in zip(x, label, strict=True):
        decision = policy.route(row)
        policy.feedback(decision, float(policy.arm(decision) == k))
        right += policy.arm(decision) == k
    return right / len(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="10-14", metavar="FIRST-LAST")
    parser.add_argument("--data", nargs="*", default=["digits", "trec6"], metavar="NAME")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    print("| data, arms | mean cosine | Router | pool | Router, mean taken off before | LinUCB |\n|---|---|---|---|---|---|")
    for data in options.data:
        try:
            labelled(data)
        except MissingData as missing:
            print(f"{data}: left out, {missing}", file=sys.stderr)
            continue
        for named in (True, False):
            for common in COMMON:
                x, label, arms = world(data, common, 0)
                best = max(SWEEP, key=lambda setting: linear(x, label, None if named else arms, *setting))
                found = []
                for seed in range(first, last + 1):
                    x, label, arms = world(data, common, seed)
                    mean = x[:100].mean(axis=0)
                    given, apart = (None, None) if named else (arms, arms - mean)
                    plain, pool = (routed(x, label, given, seed, **more) for more in ({}, {"pool": True}))
                    found.append((plain, pool, routed(unit(x - mean), label, apart, seed), linear(x, label, given, *best)))
                cosine = np.square(x.mean(axis=0)).sum()
                cells = " | ".join(f"{m:.3f} +- {s:.3f}" for m, s in zip(np.mean(found, axis=0), np.std(found, axis=0), strict=True))
                print(f"| {data}, {'names' if named else 'centroids'} | {cosine:.2f} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
