"""What a deep cycle costs, and whether what is served is better for it.

    python asv_benchmarks/deep_table.py [--seeds 60-64] [--json FILE]

Cost: one cycle of a full memory with a store, in a process of its own. Served: accuracy of a router on digits whose arms turn half way
through, and on five tasks one after the other, with background cycles, and with deep cycles besides.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from types import SimpleNamespace

import numpy as np
from drift_table import TURN, changing
from numpy.typing import NDArray
from row import HEAD, Row, print_lines, within
from tasks_table import TASKS, make_tasks

from sona import BackgroundLoopConfig, Router
from sona.loops.deep import DeepLoop, DeepLoopConfig
from sona.loops.episodes import Episodes
from sona.loops.memory import Memory
from sona.memory import NodeKind
from sona.patterns import LearnedPattern
from sona.store import SqliteStore

NODES, PATTERNS, DIM = 50_000, 10_000, 384
EVERY = 500  # requests between background cycles; a deep one comes after each


# ---- cost ----


class Held:
    """A store that this process leads."""

    leading, name = True, "default"

    def __init__(self, store: SqliteStore) -> None:
        store.try_lease()
        self.store, self.term = store, store.term


def clumped(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    centres = rng.standard_normal((200, DIM), np.float32)
    return centres[rng.integers(200, size=count)] + rng.standard_normal((count, DIM), np.float32)


def build(path: str) -> dict[str, float]:
    """A store with a memory that has room for 1000 decisions; seconds that its similarity edges took."""
    rng = np.random.default_rng(0)
    with SqliteStore(path) as store:
        memory = Memory(DIM, Held(store), max_nodes=NODES)
        graph = memory.graph
        graph.add_many(clumped(PATTERNS, rng), kind=NodeKind.PATTERN, quality=rng.random(PATTERNS), keys=np.arange(PATTERNS), link=0)
        others = NODES - PATTERNS - 1000
        graph.add_many(clumped(others, rng), quality=rng.random(others), link=0)
        began = perf_counter()
        graph.connect(k=8)
        built = perf_counter() - began
        memory.save()
    return {"built": built}


def full_cycle(path: str) -> dict[str, float]:
    """Seconds and megabytes of opening that store and of one cycle, which takes in 1000 decisions and 10,000 patterns that all moved."""
    rng = np.random.default_rng(1)
    base = _megabytes()
    with SqliteStore(path) as store:
        began = perf_counter()
        memory = Memory(DIM, Held(store), max_nodes=NODES)
        opened = perf_counter() - began
        old = clumped(PATTERNS, np.random.default_rng(0))  # as they were built
        patterns = [LearnedPattern(k, x + 0.05 * rng.standard_normal(DIM, np.float32), 10, 10.0, 0.5, 0, 0, 0) for k, x in enumerate(old)]
        episodes = Episodes(np.arange(1, 1001), clumped(1000, rng), rng.random(1000, np.float32), ["arm"] * 1000)
        bank = SimpleNamespace(current=lambda: patterns)
        loop = DeepLoop(DeepLoopConfig(max_nodes=NODES), memory, bank, lambda newest: episodes)  # type: ignore[arg-type]
        stages: list[tuple[str, float]] = []
        began = perf_counter()
        result = loop.run_cycle(progress=lambda done, stage: stages.append((stage, perf_counter() - began)))
    took = {f"stage: {stage}": end - start for (stage, start), (_, end) in pairwise(stages)}
    assert result.status == "completed", result
    return {"opened": opened, "cycle": result.elapsed, "peak": _megabytes() - base, "edges": result.edges, **took}


def _megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def cost() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        done: dict[str, float] = {}
        for step in ("build", "cycle"):  # in processes of their own, so that the second has no memory of the first
            command = [sys.executable, __file__, f"--{step}", str(Path(folder) / "sona.db")]
            done |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    case = f"{NODES:,} nodes, {PATTERNS:,} of them patterns, {done['edges']:,.0f} edges, d={DIM}"
    rows = [
        within("deep cycle", case, done["cycle"], 60.0),
        Row("memory added by opening it and a cycle", case, f"{done['peak']:.0f} MB", target="< 300 MB", met=done["peak"] < 300),
        within("opening its store", case, done["opened"], short=False),
        within("similarity edges of all nodes, once", case, done["built"], short=False),
    ]
    return rows + [within(name, case, value, short=False) for name, value in done.items() if name.startswith("stage")]


# ---- is what is served better? ----


def turned(seed: int, *, deep: bool) -> tuple[float, float]:
    """Accuracy over the requests after the arms have turned, and the mean size of the memory at the end."""
    stream = changing("digits:shift:turned", seed)
    router = Router(stream.arms, seed=seed)
    right = 0
    for t, x in enumerate(stream.x):
        d = router.route(x)
        reward = stream.reward(t, d.arm)
        right += reward > 0 and t >= TURN
        router.feedback(d.id, reward)
        if t % EVERY == EVERY - 1:
            router.background_learn()
            if deep:
                router.deep_learn()
    return right / (len(stream.x) - TURN), len(router.engine.memory)


def five_tasks(seed: int, *, deep: bool) -> tuple[float, float]:
    """Mean held-out accuracy over five tasks at the end of the last, and the size of the memory."""
    tasks = make_tasks("shift", seed)
    router = Router(tasks.arms, seed=seed, background=BackgroundLoopConfig(serve="screened"))
    for task in range(TASKS):
        router.engine.loop_b.start_task(f"task {task}")
        for t, (x, y) in enumerate(zip(tasks.x[task], tasks.y[task], strict=True)):
            d = router.route(x)
            router.feedback(d.id, float(d.arm == y))
            if t % EVERY == EVERY - 1 or t == len(tasks.x[task]) - 1:
                router.background_learn()
                if deep:
                    router.deep_learn()
    return mean(tasks.accuracy(router.predict)), len(router.engine.memory)


def served(seeds: list[int]) -> list[tuple[str, ...]]:
    lines = []
    for what, play in (
        ("digits, shift, arms turn half way: accuracy after it", turned),
        ("five tasks of digits, shift: held-out accuracy", five_tasks),
    ):
        without = [play(seed, deep=False)[0] for seed in seeds]
        both = [play(seed, deep=True) for seed in seeds]
        accuracy, size = ([each[part] for each in both] for part in (0, 1))
        lines.append(
            (
                what,
                _spread(without),
                _spread(accuracy),
                f"{mean(a - b for a, b in zip(accuracy, without, strict=True)):+.4f}",
                f"{mean(size):.0f}",
            )
        )
    return lines


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} +- {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="60-64")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", help=argparse.SUPPRESS)
    parser.add_argument("--cycle", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build or arguments.cycle:
        print(json.dumps(build(arguments.build) if arguments.build else full_cycle(arguments.cycle)))
        return
    first, _, last = arguments.seeds.partition("-")
    rows = cost()
    print_lines([HEAD, *(row.cells for row in rows)])
    lines = served(list(range(int(first), int(last or first) + 1)))
    print()
    print_lines([("what is served", "without deep cycles", "with", "difference", "nodes"), *lines])
    if arguments.json:
        arguments.json.write_text(json.dumps({"cost": [asdict(row) for row in rows], "served": lines}, indent=1))


if __name__ == "__main__":
    main()
