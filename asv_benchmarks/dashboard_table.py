"""What the dashboard costs over a large store: each part of the page from the server, and the first paint in a real browser.

    python asv_benchmarks/dashboard_table.py [--rows N] [--patterns N] [--paints N] [--store FILE]

The store has as many rewarded decisions as trajectories (d = 256), a memory of as many nodes as patterns, and the state of a router. It is
made in a temporary directory, or once in --store. A part is read from a server that has read nothing before ("first") and again when the
store has not changed ("again"). First paint: from the start of the navigation until tiles and rewards are drawn, as the page itself
notes it; all parts: until the last one is drawn. Chromium without a window, each time with a server of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from row import HEAD, Row, print_lines, seconds, within

from sona import Router
from sona.loops.journal import _PROPOSALS
from sona.loops.memory import Memory
from sona.loops.patterns import Findings, _encoded, state_name
from sona.memory import Dream, DreamEvaluator, NodeKind
from sona.patterns import PatternConfig, ReasoningBank, Transitions, Verdict
from sona.report.dashboard import Dashboard
from sona.report.dashboard.data import PARTS, Board
from sona.simulate import cpu_name
from sona.store import DecisionRow, FeedbackRow, SqliteStore, TrajectoryRow
from sona.trajectory import encode
from sona.types import QueryTrajectory, TrajectoryStep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

DIM, ARMS, GROUP = 256, 8, 5000
SEED = 0
PAINT = 1.0  # s


def make_store(path: Path, rows: int, patterns: int) -> None:
    """Rewards of which a fifth are of requests where the models differ, over thirty days."""
    rng = np.random.default_rng(SEED)
    with Router(rng.standard_normal((ARMS, DIM)), store=path, seed=SEED) as router:
        for x in rng.standard_normal((300, DIM)):
            decision = router.route(x)
            router.feedback(decision.id, float(decision.index == 1))
        router.background_learn()
    with SqliteStore(path) as store:
        now = time.time()
        times = np.sort(now - 30 * 86400 * rng.random(rows))
        step = TrajectoryStep(activations=rng.standard_normal(DIM).astype(np.float32), attention_weights=None, reward=1.0, timestamp=0.0)
        record = encode(
            QueryTrajectory(
                id=1,
                query_embedding=rng.standard_normal(DIM).astype(np.float32),
                steps=[step],
                final_quality=1.0,
                latency_us=900,
            )
        )
        for first in range(0, rows, GROUP):
            some = range(first, min(first + GROUP, rows))
            x = rng.standard_normal((len(some), DIM)).astype(np.float32)
            decisions, rewards, trajectories = [], [], []
            for n, row in zip(some, x, strict=True):
                differ, arm = n % 5 == 0, int(rng.integers(ARMS))
                frozen = differ and rng.random() < 0.03
                chance = (1.0, 0.0, 1.0) if differ and not frozen else (0.0, 1.0, 0.0) if frozen else (1.0, 1.0, 1.0)
                proposals = _PROPOSALS.pack(*chance, not frozen, not differ, 0, 0, 0)
                when, propensity = float(times[n]), 0.03 if frozen else 0.97 if differ else 1.0
                id = 1 << 50 | n
                decisions.append(DecisionRow(id, when, row.tobytes(), arm, 1, None, propensity, proposals))
                rewards.append(FeedbackRow(id, float(rng.random() < 0.5 + 0.4 * n / rows), when + float(rng.exponential(30.0))))
                trajectories.append(TrajectoryRow(2 << 50 | n, when, record, float(rng.random())))
            store.append(decisions, rewards, trajectories)
        assert store.try_lease()
        put_patterns(store, patterns, rng)
        put_memory(store, patterns, rng)


def put_patterns(store: SqliteStore, count: int, rng: np.random.Generator) -> None:
    config = PatternConfig(embedding_dim=DIM, max_patterns=count)
    arrays = ReasoningBank(config).state(trajectories=False)
    centres = rng.standard_normal((40, DIM))
    about = {
        "id": np.arange(count),
        "cluster_size": rng.integers(1, 500, count),
        "total_weight": rng.random(count) * 9 + 1,
        "avg_quality": rng.random(count),
    }
    arrays["patterns.centroid"] = (centres[rng.integers(40, size=count)] + rng.standard_normal((count, DIM))).astype(np.float32)
    for name, array in arrays.items():
        if name.startswith("patterns.") and name != "patterns.centroid":
            arrays[name] = about.get(name.removeprefix("patterns."), np.zeros(count)).astype(array.dtype)
    arrays["counters"] = np.array([9, count], np.int64)
    verdicts = [Verdict(n, str(n % ARMS), 30, 0.8, 0.5, 0.3, 4.0, 20.0, 0.001, 0.5) for n in range(0, count, 4)]
    found = Findings(ReasoningBank.from_state(config, arrays), Transitions(), verdicts, np.empty(0, np.uint64))
    store.put_state(state_name("default"), _encoded(found), 0)


def put_memory(store: SqliteStore, count: int, rng: np.random.Generator) -> None:
    class Keeper:
        leading, name = True, "default"

        def __init__(self) -> None:
            self.store, self.term = store, store.term

    memory = Memory(DIM, Keeper(), max_nodes=count)
    graph = memory.graph
    graph.add_many(rng.standard_normal((count, DIM)).astype(np.float32), kind=NodeKind.MEMORY, link=4)
    ids = graph.ids
    dreams = [Dream(tuple(int(each) for each in rng.choice(ids, 12, replace=False)), (), "walk", 0) for _ in range(8)]
    dreams = [replace(dream, proposals=tuple(zip(dream.nodes, dream.nodes[1:], strict=False))) for dream in dreams]
    for _ in range(50):
        memory.ended(DreamEvaluator(graph).evaluate(dreams), 4, int(graph.degree.sum()) // 2)
    memory.close()


def part_rows(path: Path) -> Iterator[Row]:
    for part in PARTS[:-1]:
        with Board(path) as board:
            began = time.perf_counter()
            told = board.part(part)
            first = time.perf_counter() - began
            began = time.perf_counter()
            board.part(part)
            again = time.perf_counter() - began
        size = len(json.dumps(told, separators=(",", ":")))
        yield Row(f"{part}", f"{size / 1024:.0f} kB sent", f"{seconds(first)} first, {seconds(again)} again")
    with Board(path) as board:
        times = []
        for _ in range(200):
            began = time.perf_counter()
            board.tags()
            times.append(time.perf_counter() - began)
        yield Row("a look whether there is anything new", "each second while a page is open", seconds(float(np.median(times))))


def paint_rows(path: Path, paints: int, case: str) -> Iterator[Row]:
    from browser import browser

    with browser() as page:
        for name, width in (("desktop, 1280 px", 1280), ("phone, 390 px", 390)):
            found = []
            for _ in range(paints):
                page.size(width)
                with Dashboard(path) as dashboard:
                    page.open(dashboard.url)
                    found.append([int(page.run(f"document.documentElement.dataset.{what}")) / 1e3 for what in ("painted", "loaded")])
                    assert page.problems() == []
            painted, loaded = np.median(found, axis=0).tolist()
            spread = f"{min(row[0] for row in found):.2f} to {max(row[0] for row in found):.2f} s"
            yield replace(within(f"first paint, {name}", f"{case}; {paints} times, {spread}", painted, PAINT))
            yield Row(f"all parts, {name}", case, seconds(loaded))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--patterns", type=int, default=10_000)
    parser.add_argument("--paints", type=int, default=9)
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory(dir=".") as directory:
        path = arguments.store or Path(directory) / "sona.db"
        if not path.exists():
            make_store(path, arguments.rows, arguments.patterns)
        case = f"{arguments.rows} decisions and trajectories, {arguments.patterns} patterns, d={DIM}"
        print(f"{cpu_name()}; {case}; {path.stat().st_size / 1e6:.0f} MB\n")
        print_lines([HEAD, *(row.cells for row in [*part_rows(path), *paint_rows(path, arguments.paints, case)])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
