"""The figures behind the learning table: regret of sona and of swept peers, stream by stream, and what the guard costs and saves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers import Factory, Frozen, RoadmapUpdate, linear_sweep, logistic_sweep, vowpal_sweep
from run import Precondition, adapted, play
from streams import Stream, make

F64 = NDArray[np.float64]
WINDOW = 1000  # requests over which the worst loss is taken
GUARD_SETS = ("digits:few", "digits:shift", "trec6:few", "ng20:few")
VW_STREAMS = ("digits:few:c", "digits:shift:c")


@dataclass
class Variant:
    """A way to set up the Router."""

    name: str
    precondition: Precondition = "auto"
    guard: bool = True
    pool: bool = False


VARIANTS = (Variant("sona"), Variant("identity", precondition="identity"), Variant("no guard", guard=False), Variant("pool", pool=True))


@dataclass
class Regrets:
    """Mean regret over seeds on one stream; a row of the table.

    Attributes
    ----------
    frozen : float
    sona : dict
        By variant.
    spread : float
        Standard deviation over seeds of the first variant's.
    held_out : float
        Expected reward of the first variant on unseen rows.
    peers : dict
        By setting of a sweep.
    """

    stream: str
    frozen: float
    sona: dict[str, float]
    spread: float
    held_out: float
    peers: dict[str, float] = field(default_factory=dict)

    def best(self, *prefixes: str, constant: bool = False) -> tuple[str, float]:
        """The best setting whose name starts with one of `prefixes`; those with a constant feature only when asked for."""
        held = {k: v for k, v in self.peers.items() if k.startswith(prefixes) and (constant or "constant" not in k)}
        return min(held.items(), key=lambda item: item[1]) if held else ("none", float("nan"))

    def over(self, variant: str, *prefixes: str, constant: bool = False) -> float:
        return self.sona[variant] / self.best(*prefixes, constant=constant)[1]

    def over_frozen(self, variant: str) -> float:
        if not self.frozen:
            return 0.0 if not self.sona[variant] else float("inf")
        return self.sona[variant] / self.frozen


class PeerFile:
    """Regrets of peers by stream, seed and setting: they do not change with sona, so a file of them may be reused."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, float] = json.loads(path.read_text()) if path and path.exists() else {}

    def regret(self, stream: Stream, setting: str, factory: Factory) -> float:
        key = f"{stream.name}|{stream.seed}|{setting}"
        if key not in self.known:
            self.known[key] = play(stream, factory).regret
        return self.known[key]

    def save(self) -> None:
        if self.path:
            self.path.write_text(json.dumps(self.known, indent=0, sort_keys=True))


def sweep(stream: Stream) -> dict[str, Factory]:
    """Every peer setting that a stream is measured against."""
    data, world, rewards = stream.name.split(":")[:3]
    unclean = rewards != "c" or world in ("graded", "onearm")
    peers: dict[str, Factory] = {"roadmap": RoadmapUpdate} if not unclean else {}
    peers |= linear_sweep(len(stream.arms), alone=unclean, constant=world == "onearm")
    if data == "digits":
        peers |= logistic_sweep()
    if stream.name in VW_STREAMS:
        peers |= vowpal_sweep()
    return peers


def regrets(name: str, seeds: Sequence[int], peers: PeerFile | None, variants: Iterable[Variant] = VARIANTS) -> Regrets:
    """Plays stream `name` for every seed; `peers` None leaves the peers out."""
    frozen: list[float] = []
    sona: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    held_out: list[float] = []
    for seed in seeds:
        stream = make(name, seed)
        frozen.append(play(stream, Frozen).regret)
        for variant in variants:
            run = play(stream, adapted(stream, precondition=variant.precondition, guard=variant.guard, pool=variant.pool))
            sona.setdefault(variant.name, []).append(run.regret)
            if variant.name == VARIANTS[0].name:
                held_out.append(run.held_out)
        for setting, factory in (sweep(stream) if peers else {}).items():
            others.setdefault(setting, []).append(peers.regret(stream, setting, factory))  # type: ignore[union-attr]
    if peers:
        peers.save()
    return Regrets(
        stream=name,
        frozen=float(np.mean(frozen)),
        sona={k: float(np.mean(v)) for k, v in sona.items()},
        spread=float(np.std(next(iter(sona.values())))),
        held_out=float(np.mean(held_out)) if held_out else float("nan"),
        peers={k: float(np.mean(v)) for k, v in others.items()},
    )


def geometric_mean(ratios: Iterable[float]) -> float:
    return float(np.exp(np.mean(np.log(np.fromiter(ratios, float)))))


@dataclass
class GuardRow:
    """One kind of rewards over all sets and seeds; shares in percent.

    Attributes
    ----------
    gain : float
        Reward over the frozen model's.
    least_gain : float
        The same of the worst run.
    cost : float
        Reward lost against the unguarded learner.
    highest_cost : float
        The same of the worst set.
    worst : float
        Most reward lost against frozen in any 1000 requests of any run, in percent of frozen's mean; after the last inverted reward
        where there are some.
    inside : float
        The same over the whole stream.
    recovery : float
        Requests after an inverted block until 80 % of the gain before it is back, median; NaN without a block.
    """

    rewards: str
    gain: float
    least_gain: float
    cost: float
    highest_cost: float
    worst: float
    inside: float
    recovery: float

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def guard_row(rewards: str, sets: Sequence[str], seeds: Sequence[int]) -> GuardRow:
    """Guarded and unguarded learner on 8000 requests of each set; `rewards` is the tail of a stream's name."""
    gain, cost, worst, inside, recovery = [], np.zeros((len(sets), len(seeds))), [], [], []
    for i, data in enumerate(sets):
        for j, seed in enumerate(seeds):
            stream = make(f"{data}:{rewards}:T=8000", seed)
            frozen, bare, guarded = (play(stream, f).earned for f in (Frozen, adapted(stream, guard=False), adapted(stream, guard=True)))
            gain.append(guarded.sum() / frozen.sum() - 1)
            cost[i, j] = 1 - guarded.sum() / bare.sum()
            lost = windows(frozen - guarded, WINDOW) / (WINDOW * frozen.mean())
            inside.append(lost.max())
            block = np.flatnonzero(stream.inverted)
            worst.append(lost[block[-1] + 1 :].max() if len(block) else lost.max())
            if "invert" in rewards:
                recovery.append(recovered(guarded - frozen, int(block[0]), int(block[-1]) + 1))
    return GuardRow(
        rewards=rewards,
        gain=100 * float(np.mean(gain)),
        least_gain=100 * float(np.min(gain)),
        cost=100 * float(cost.mean()),
        highest_cost=100 * float(cost.mean(1).max()),
        worst=100 * float(np.max(worst)),
        inside=100 * float(np.max(inside)),
        recovery=float(np.median(recovery)) if recovery else float("nan"),
    )


def windows(per_request: F64, width: int) -> F64:
    """Sums over every run of `width` consecutive requests."""
    total = np.concatenate([[0.0], np.cumsum(per_request)])
    return np.asarray(total[width:] - total[:-width])


def recovered(gain: F64, start: int, end: int) -> float:
    """Requests after `end` until the mean gain of the 100 that follow reaches 80 % of the mean of the 500 before `start`."""
    after = windows(gain[end:], 100) / 100
    back = np.flatnonzero(after >= 0.8 * gain[start - 500 : start].mean())
    return float(back[0]) if len(back) else float(len(after))
