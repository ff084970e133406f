"""How much of the frozen model's regret is left: lower is better, and equal seeds give equal figures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import Frozen
from run import Precondition, adapted, play
from streams import make


class Regret:
    params = (
        [
            "digits:few:c",
            "digits:shift:c",
            "digits:perm:c",
            "digits:few:r5",
            "digits:shift:r2",
            "digits:graded:c",
            "digits:onearm:c",
            "digits:even:c",
            "gauss200:shift:c",
            "digits:shift:c:delay=100",
        ],
        ["full", "identity"],
        [True, False],
    )
    param_names = ("stream", "precondition", "guard")
    unit = "x frozen"

    def track_regret(self, name: str, precondition: Precondition, guard: bool) -> float:
        ours = frozen = 0.0
        for seed in (10, 11, 12):
            stream = make(name, seed)
            ours += play(stream, adapted(stream, precondition=precondition, guard=guard)).regret
            frozen += play(stream, Frozen).regret
        return ours / frozen


class FrozenIsRight:
    params = (["c", "r5"],)
    param_names = ("rewards",)
    unit = "% of reward lost"

    def track_loss(self, rewards: str) -> float:
        stream = make(f"digits:few:{rewards}:optimal", 10)
        frozen = play(stream, Frozen).earned.sum()
        return float(100 * (1 - play(stream, adapted(stream)).earned.sum() / frozen))
