"""Five tasks of two digits each, one after the other, ten arms open all the time: what is kept of the first tasks at the end of the last.

    python asv_benchmarks/five_tasks.py

Backward transfer alone can be gamed by not learning, so accuracy on each task at its own end stands beside it. Constants were chosen on
seeds 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sona import Adapter, Instant
from sona.demo.world import WORLDS, WorldName, make_world
from sona.ewc import EwcConfig, LowRankEwc

F64 = npt.NDArray[np.float64]

TAU, P0, CONSTANT = 0.1, 0.2, 0.3
REQUESTS = 600  # of each task
PULL_EVERY = 16  # requests
SEEDS = (10, 11, 12, 13, 14)
STRENGTH = 0.1  # rate * lambda of a pull


@dataclass(frozen=True)
class Kept:
    """
    Attributes
    ----------
    average : float
        Accuracy on held-out digits of all tasks at the end.
    backward : float
        Mean over tasks but the last of accuracy at the end less accuracy at the task's own end.
    own : float
        Mean over tasks of accuracy at the task's own end.
    """

    average: float
    backward: float
    own: float


def five_tasks(world: WorldName, seed: int, strength: float = STRENGTH, *, precondition: Literal["identity", "full"] = "identity") -> Kept:
    """Stream the tasks through one adapter, pulled towards the anchors of earlier ones; a strength of 0 is no protection."""
    data = make_world(world, seed)
    arms, (_, d) = data.arms.astype(np.float64), data.arms.shape
    rng = np.random.default_rng((seed, 5))
    tasks = rng.permutation(len(arms)).reshape(5, 2)
    adapter = Adapter(d, rank=d, rank_max=d)
    instant = Instant(d, P0, CONSTANT, precondition, len(arms))
    config = EwcConfig()
    ewc, rate = LowRankEwc(d + 1, d, config), strength / config.initial_lambda  # inputs: x, then the constant

    def policy(x: F64) -> F64:
        y = x + x @ adapter.delta() + adapter.offset @ adapter.up
        odds = np.exp((y @ arms.T - (y @ arms.T).max(axis=-1, keepdims=True)) / TAU)
        return np.asarray(odds / odds.sum(axis=-1, keepdims=True))

    def accuracy(task: npt.NDArray[np.int64]) -> float:
        rows = np.isin(data.held_y, task)
        return float((policy(data.held_x[rows].astype(np.float64)).argmax(axis=1) == data.held_y[rows]).mean())

    def down() -> npt.NDArray[np.float32]:
        return np.column_stack([adapter.down, adapter.offset / np.float32(CONSTANT)])

    own = []
    for task in tasks:
        shown = rng.choice(np.flatnonzero(np.isin(data.y, task)), REQUESTS)
        for request, row in enumerate(shown):
            x = data.x[row]
            p = policy(x.astype(np.float64))
            arm = int(p.argmax())
            v = (arms[arm] - p @ arms) / TAU
            reward = float(arm == data.y[row])
            ewc.update_fisher(np.append(x, CONSTANT), (reward - p[arm]) * v)
            instant.step(adapter, x, v, reward, min(float(p[arm]), 1.0))
            if strength and ewc.tasks and request % PULL_EVERY == PULL_EVERY - 1:
                pulled = ewc.proximal_step(down(), adapter.up, rank=d, rate=rate)
                adapter.assign(np.ascontiguousarray(pulled.down[:, :-1]), pulled.up, CONSTANT * pulled.down[:, -1])
        ewc.start_new_task(down(), adapter.up)
        own.append(accuracy(task))
    end = [accuracy(task) for task in tasks]
    return Kept(float(np.mean(end)), float(np.mean(np.subtract(end, own)[:-1])), float(np.mean(own)))


def main() -> None:
    print(f"{'world':7}{'steps':10}{'pull':>6}{'average':>9}{'backward':>10}{'own':>7}")
    for world in WORLDS:
        for precondition in ("identity", "full"):
            for strength in (0.0, STRENGTH):
                runs = [five_tasks(world, seed, strength, precondition=precondition) for seed in SEEDS]
                average, backward, own = (float(np.mean([getattr(run, name) for run in runs])) for name in ("average", "backward", "own"))
                print(f"{world:7}{precondition:10}{strength:6g}{average:9.3f}{backward:10.3f}{own:7.3f}", flush=True)


if __name__ == "__main__":
    main()
