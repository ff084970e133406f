"""Does an EWC pull add anything to replay?  Five tasks of two digits, with reservoirs of several sizes, the pull after each replayed pass.

    python asv_benchmarks/ewc_replay.py [--worlds shift rand] [--seeds 60 61 62 63 64]

The window is the task that is going on, so that earlier tasks are in the reservoirs alone. Nothing is chosen: every strength is printed.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from tasks_table import EVERY, TASKS, Tasks, make_tasks

from sona import BackgroundLoopConfig, Router
from sona.adapters import Factors
from sona.ewc import LowRankEwc
from sona.loops import background
from sona.loops.replay import Replay, Rows
from sona.metrics import TaskSummary, task_summary

CONSTANT, TAU, SPARE = 0.3, 0.1, 16
RESERVOIRS = (200, 50, 20, 1)
STRENGTHS = (0.0, 0.03, 0.3, 3.0)


def columns(rows: Any, offset: Any) -> Any:
    """x, then the constant input, as one input."""
    return np.column_stack([rows, offset / np.float32(CONSTANT)])


class Pulled(Replay):
    """A replay whose result is pulled towards the anchors of earlier tasks after each pass."""

    ewc: LowRankEwc
    strength: float

    def run(self, rows: Rows, start: Factors | None = None, *, passes: int = 1, seed: Any = 0, **options: Any) -> Factors:
        if not self.strength or not self.ewc.tasks:
            return super().run(rows, start, passes=passes, seed=seed, **options)
        found = start
        for number in range(passes):
            found = super().run(rows, found, passes=1, seed=(*seed, number), **options)
            if len(found.down):
                rank = min(len(found.down) + SPARE, found.up.shape[1])
                rate = self.strength / self.ewc.lambda_
                at = self.ewc.proximal_step(columns(found.down, found.offset), found.up, rank=rank, rate=rate)
                found = Factors(np.ascontiguousarray(at.down[:, :-1]), at.up, np.ascontiguousarray(CONSTANT * at.down[:, -1]))
        assert found is not None
        return found


def end_task(router: Router, tasks: Tasks, ewc: LowRankEwc, requests: int) -> None:
    """Fisher of the task's own decisions at what is learned now, which is the anchor."""
    policy, adapter = router.engine.policy, router.engine.adapters[0]
    assert policy is not None
    rows = Rows.remembered(policy, requests)
    down, up, offset = adapter.rows()
    logits = (policy.trust * rows.x + rows.x @ adapter.delta() + offset @ up) @ tasks.arms.T / TAU
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    doubt = rows.reward - p[np.arange(len(rows)), rows.arm]
    ewc.update_fisher(columns(rows.x, np.full(len(rows), CONSTANT**2)), doubt[:, None] * (tasks.arms[rows.arm] - p @ tasks.arms) / TAU)
    ewc.start_new_task(columns(down, offset), up)


def pulled(world: str, seed: int, reservoir: int, strength: float) -> TaskSummary:
    tasks = make_tasks(world, seed)
    _, requests, d = tasks.x.shape
    Pulled.ewc, Pulled.strength = LowRankEwc(d + 1, d), strength
    background.Replay = Pulled  # type: ignore[misc]
    config = BackgroundLoopConfig(serve="screened", replay_rows=requests, reservoir_rows=reservoir)
    router, found = Router(tasks.arms, seed=seed, background=config), []
    for task in range(TASKS):
        router.engine.loop_b.start_task(f"task {task}")
        for n, (x, right) in enumerate(zip(tasks.x[task], tasks.y[task], strict=True)):
            decision = router.route(x)
            router.feedback(decision.id, float(decision.index == right))
            if n % EVERY == EVERY - 1 or n == requests - 1:
                router.background_learn()
        found.append(tasks.accuracy(router.predict))
        end_task(router, tasks, Pulled.ewc, requests)
    return task_summary(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=["shift", "rand"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[60, 61, 62, 63, 64])
    options = parser.parse_args()
    print("| world | reservoir | rate lambda | average | backward | own |\n|---|---|---|---|---|---|")
    for world in options.worlds:
        for reservoir in RESERVOIRS:
            for strength in STRENGTHS:
                runs = [pulled(world, seed, reservoir, strength) for seed in options.seeds]
                average = [run.average for run in runs]
                backward, own = np.mean([run.backward for run in runs]), np.mean([run.own_task for run in runs])
                spread = np.std(average, ddof=1) if len(runs) > 1 else 0.0
                print(
                    f"| {world} | {reservoir} | {strength:g} | {np.mean(average):.3f}+-{spread:.3f} | {backward:+.3f} | {own:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
