"""What a store costs: a SQLite file and a PostgreSQL server in turn, in one run, both with commits that wait for the disk.

    python asv_benchmarks/store_table.py [--url postgresql://...] [--rounds N] [--quick]

Sustained: route and reward, with a `flush` at the latest every 100 ms, so that each reward is acknowledged within that time; rewards per
second of wall clock, requests included. Waiting: `feedback(sync=True)` one by one. Nearest: ten of stored vectors. Without --url a server
is started on a Unix socket, with fsync on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from row import HEAD, Row, print_lines

from sona import Router
from sona.simulate import cpu_name
from sona.store import open_store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

DIM, ARMS, GROUP_SECONDS = 384, 8, 0.1
SEED = 0
TARGET = {"SQLite": 5000, "PostgreSQL": 2000}  # rewards per second


def open_router(where: str) -> Router:
    return Router(np.random.default_rng(SEED).standard_normal((ARMS, DIM)), store=where, seed=SEED)


def sustained(router: Router, x: np.ndarray, seconds: float) -> tuple[float, float]:
    """Rewards acknowledged per second, and the longest time in s from the first reward of a group to the end of its flush."""
    began = end = time.perf_counter()
    rewards, longest = 0, 0.0
    while end - began < seconds:
        group = time.perf_counter()
        while time.perf_counter() - group < GROUP_SECONDS / 2:
            decision = router.route(x[rewards % len(x)])
            router.feedback(decision.id, float(decision.index == rewards % ARMS))
            rewards += 1
            if rewards % 2000 == 0:
                break
        router.flush()
        end = time.perf_counter()
        longest = max(longest, end - group)
    return rewards / (end - began), longest


def waiting(router: Router, x: np.ndarray, count: int) -> list[float]:
    """Seconds of each reward that is waited for."""
    times = []
    for n in range(count):
        decision = router.route(x[n % len(x)])
        began = time.perf_counter()
        router.feedback(decision.id, 1.0, sync=True)
        times.append(time.perf_counter() - began)
    return times


def milliseconds(times: list[float]) -> str:
    return f"p50 {np.percentile(times, 50) * 1e3:.2f} ms, p99 {np.percentile(times, 99) * 1e3:.1f} ms"


def feedback_rows(places: dict[str, str], rounds: int, seconds: float) -> Iterator[Row]:
    x = np.random.default_rng(SEED).standard_normal((1000, DIM)).astype(np.float32)
    rates: dict[str, list[float]] = {name: [] for name in places}
    longest: dict[str, list[float]] = {name: [] for name in places}
    waits: dict[str, list[float]] = {name: [] for name in places}
    routers = {name: open_router(where) for name, where in places.items()}
    for _ in range(rounds):
        for name, router in routers.items():
            rate, slowest = sustained(router, x, seconds)
            rates[name].append(rate)
            longest[name].append(slowest)
            waits[name] += waiting(router, x, 50)
    for name, router in routers.items():
        stats = router.stats()["engine"]["store"]
        assert stats["dropped"] == 0 == stats["failed"], stats
        router.close()
        rate = float(np.median(rates[name]))
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        yield Row(
            f"acknowledged rewards, {name}",
            f"d={DIM}, groups of at most {np.median(longest[name]) * 1e3:.0f} ms (longest {max(longest[name]) * 1e3:.0f})",
            f"{rate:.0f}/s ({spread})",
            target=f">= {TARGET[name]}/s",
            met=rate >= TARGET[name],
        )
        yield Row(f"feedback(sync=True), {name}", f"{len(waits[name])} one by one", milliseconds(waits[name]))


def nearest_rows(places: dict[str, str], count: int) -> Iterator[Row]:
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal((200, DIM))
    vectors = (centres[rng.integers(200, size=count)] + 0.7 * rng.standard_normal((count, DIM))).astype(np.float32)
    queries = vectors[rng.choice(count, 50, replace=False)] + 0.3 * rng.standard_normal((50, DIM)).astype(np.float32)
    exact: list[set[int]] = []
    for name, where in places.items():
        with open_store(where, namespace="nearest") as store:
            began = time.perf_counter()
            store.put_state("graph", b"", 0, vectors=((n, v.tobytes()) for n, v in enumerate(vectors)))
            yield Row(f"vectors written, {name}", f"{count} of d={DIM}", f"{time.perf_counter() - began:.2f} s")
            kinds: list[tuple[str, Callable[[], Any]]] = [("all compared", lambda: None)]
            if name == "PostgreSQL" and store.pgvector:
                kinds.append(("pgvector's index", lambda store=store: store.index_vectors("graph", DIM)))
            for kind, prepare in kinds:
                began = time.perf_counter()
                prepare()
                built = time.perf_counter() - began
                times, found = [], []
                for query in queries:
                    began = time.perf_counter()
                    found.append({id for id, _ in store.nearest("graph", query, 10)})
                    times.append(time.perf_counter() - began)
                exact = exact or found
                recall = np.mean([len(a & b) / 10 for a, b in zip(found, exact, strict=True)])
                about = f"{milliseconds(times)}, recall {recall:.3f}" + (f", built in {built:.1f} s" if built > 0.1 else "")
                yield Row(f"nearest 10, {name}", f"{count} of d={DIM}, {kind}", about)


def told_rows(where: str) -> Iterator[Row]:
    with open_store(where, namespace="told") as writer, open_store(where, namespace="told") as reader:
        told = threading.Event()
        reader.watch(told.set)
        time.sleep(0.5)
        times = []
        for n in range(50):
            told.clear()
            writer.put_state("x", b"%d" % n, 0)
            began = time.perf_counter()
            assert told.wait(5)
            times.append(time.perf_counter() - began)
        yield Row("a follower is told of a state, PostgreSQL", "after put_state has returned", milliseconds(times))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    seconds, vectors = (1.0, 1000) if arguments.quick else (5.0, 10_000)
    server = None
    with tempfile.TemporaryDirectory(dir=".") as directory:
        url = arguments.url
        if url is None:
            from postgres import Server

            server = Server(fsync=True)
            url = server.url()
        try:
            places = {"SQLite": str(Path(directory) / "sona.db"), "PostgreSQL": url}
            print(f"{cpu_name()}; {version(url)}\n")
            found = [*feedback_rows(places, arguments.rounds, seconds), *nearest_rows(places, vectors), *told_rows(url)]
            print_lines([HEAD, *(row.cells for row in found)])
        finally:
            if server is not None:
                server.close()
    return 0


def version(url: str) -> str:
    import sqlite3

    import psycopg

    with open_store(url) as store, store._db.reading() as link:
        number = link.execute("SHOW server_version").fetchone()[0]
        vector = link.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        fsync = link.execute("SHOW fsync").fetchone()[0]
    return (
        f"SQLite {sqlite3.sqlite_version}; PostgreSQL {number}, fsync {fsync}, pgvector {vector[0] if vector else 'absent'}, "
        f"psycopg {psycopg.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
