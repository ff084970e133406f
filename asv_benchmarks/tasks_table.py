"""Five tasks, one after the other, all arms open all the time: what is kept of the first tasks at the end of the last.

    SONA_DATA=... python asv_benchmarks/tasks_table.py [--data few shift rand ng20:few ng20:shift] [--tune 10] [--json FILE]

few, shift, rand: handwritten digits, two a task. ng20: 20 Newsgroups, four topics a task, in the worlds of streams.py. A peer's setting is
the one of the highest average accuracy over seeds 0 to 9 of the same data; sona has one setting, its defaults with what passes served.
Reported are seeds 60 to 64.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from streams import _labelled
from task_peers import Learners, Setting, sweep

from sona import BackgroundLoopConfig, Router
from sona.demo.world import make_world
from sona.metrics import TaskSummary, task_summary

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TASKS = 5
DATA = ("few", "shift", "rand", "ng20:few", "ng20:shift")
SEEDS = (60, 61, 62, 63, 64)
EVERY = 500  # requests between cycles, and one at the end of each task


@dataclass(frozen=True)
class Tasks:
    """
    Attributes
    ----------
    x, y : (TASKS, n, d) float32 and (TASKS, n) int64
        Requests of each task, and the right arm of each.
    arms : (K, d) float32
    held : list of (x, y)
        Rows of each task that are never shown.
    """

    x: F32
    y: I64
    arms: F32
    held: list[tuple[F32, I64]]

    def accuracy(self, best: Callable[[F32], I64]) -> list[float]:
        return [float((best(x) == y).mean()) for x, y in self.held]


def make_tasks(name: str, seed: int) -> Tasks:
    """600 requests of each of five pairs of digits, or 1000 of each of five fours of newsgroups."""
    rng = np.random.default_rng((seed, 5))
    if name.startswith("ng20"):
        x, y, arms, held_x, held_y = _labelled("ng20", name.partition(":")[2], 15_000, np.random.default_rng((seed, 7)))
        requests = 1000
    else:
        world = make_world(name, seed)  # type: ignore[arg-type]
        x, y, arms, held_x, held_y, requests = world.x, world.y, world.arms, world.held_x, world.held_y, 600
    tasks = rng.permutation(len(arms)).reshape(TASKS, -1)
    rows = np.stack([rng.choice(np.flatnonzero(np.isin(y, task)), requests) for task in tasks])
    held = [(held_x[of], held_y[of]) for of in (np.isin(held_y, task) for task in tasks)]
    return Tasks(x[rows], y[rows], arms, held)


def routed(tasks: Tasks, seed: int, *, cycles: bool, **options: object) -> TaskSummary:
    """A router as users run it; `cycles`: what passes is served, each 500 requests and at the end of each task."""
    config = BackgroundLoopConfig(serve="screened", **options.pop("background", {}))  # type: ignore[arg-type]
    router = Router(tasks.arms, seed=seed, background=config, **options)  # type: ignore[arg-type]
    before, found = tasks.accuracy(router.predict), []
    for task in range(TASKS):
        router.engine.loop_b.start_task(f"task {task}")
        last = len(tasks.x[task]) - 1
        for n, (x, right) in enumerate(zip(tasks.x[task], tasks.y[task], strict=True)):
            decision = router.route(x)
            router.feedback(decision.id, float(decision.index == right))
            if cycles and (n % EVERY == EVERY - 1 or n == last):
                router.background_learn()
        found.append(tasks.accuracy(router.predict))
    return task_summary(found, before)


def learned(many: list[Tasks], setting: Setting) -> list[TaskSummary]:
    """A peer's setting on several seeds at once."""
    learners = Learners(np.stack([tasks.arms for tasks in many]), setting)
    x, y = np.stack([tasks.x for tasks in many], axis=2), np.stack([tasks.y for tasks in many], axis=2)  # (TASKS, n, S, d)

    def accuracies() -> list[list[float]]:
        return [tasks.accuracy(lambda held, at=at: learners.best(at, held)) for at, tasks in enumerate(many)]

    before, found = accuracies(), []
    for task in range(TASKS):
        for at, right in zip(x[task], y[task], strict=True):
            arm = learners.choose(at)
            learners.learn(at, arm, (arm == right).astype(np.float32))
        learners.end_task()
        found.append(accuracies())
    return [task_summary([row[at] for row in found], before[at]) for at in range(len(many))]


@dataclass(frozen=True)
class Row:
    """One line of the table; mean and standard deviation over seeds."""

    data: str
    what: str
    setting: str
    average: tuple[float, float]
    backward: tuple[float, float]
    own: tuple[float, float]
    forward: tuple[float, float]

    @classmethod
    def of(cls, data: str, what: str, setting: str, runs: list[TaskSummary]) -> Row:
        columns = np.array([[r.average, r.backward, r.own_task, r.forward or 0.0] for r in runs])
        found = [(float(c.mean()), float(c.std(ddof=1))) for c in columns.T]
        return cls(data, what, setting, *found)

    def __str__(self) -> str:
        numbers = f"{self.average[0]:.3f}+-{self.average[1]:.3f} | {self.backward[0]:+.3f}+-{self.backward[1]:.3f} | "
        numbers += f"{self.own[0]:.3f}+-{self.own[1]:.3f} | {self.forward[0]:+.3f}"
        return f"| {self.data:10} | {self.what:36} | {self.setting:28} | {numbers} |"


def tuned(data: str, seeds: int, report: list[Tasks]) -> list[Row]:
    """Each peer at its best setting."""
    rows, known = [], [make_tasks(data, seed) for seed in range(seeds)]
    for what, settings in sweep(data.partition(":")[0]).items():
        worth = {s: float(np.mean([run.average for run in learned(known, s)])) for s in settings}
        best = max(worth, key=worth.__getitem__)
        print(f"{data} {what}: " + "; ".join(f"{s} {value:.3f}" for s, value in worth.items()), file=sys.stderr, flush=True)
        rows.append(Row.of(data, what, str(best), learned(report, best)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=list(DATA), metavar="NAME")
    parser.add_argument("--tune", type=int, default=10, metavar="SEEDS", help="seeds that the peers' settings are chosen on; 0: no peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    options = parser.parse_args()
    found: list[Row] = []
    print(f"| {'data':10} | {'what':36} | {'setting':28} | average     | backward      | own         | forward |\n|" + "---|" * 7)
    for data in options.data:
        many = [make_tasks(data, seed) for seed in SEEDS]
        rows = []
        for what, pre, cycles in (
            ("unprotected: router without cycles", "identity", False),
            ("router without cycles", "full", False),
            ("router, what passes is served", "identity", True),
            ("router, what passes is served", "full", True),
        ):
            runs = [routed(tasks, seed, cycles=cycles, precondition=pre) for tasks, seed in zip(many, SEEDS, strict=True)]
            rows.append(Row.of(data, what, pre, runs))
        rows += tuned(data, options.tune, many) if options.tune else []
        print("\n".join(map(str, rows)), flush=True)
        found += rows
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
