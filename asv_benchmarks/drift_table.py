"""What does a change of the world cost?  Accuracy and regret after the rewards turn or the embeddings are rotated, against swept peers.

    SONA_DATA=<embeddings> python asv_benchmarks/drift_table.py [--seeds 5] [--tune 10] [--streams NAME ...] [--alone] [--json FILE]
    python asv_benchmarks/drift_table.py --alarms [--seeds 5]

At request 2000 of 4000 either every arm's rewards become those of another arm (`turned`: the same questions, other right answers) or all
inputs are multiplied by one rotation (`rotated`: another embedding model). Every peer setting is played on seeds 0 to 9; the best of each
kind, by the regret over all streams of the table and on each stream alone, then meets sona on seeds 60 and up. sona has one setting;
--alone leaves the peers out. --alarms prints the alarm's delay after the change and its false alarms in 10,000 requests of a world that
stays.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from peers import F32, Frozen, Linear, Policy
from run import Adapted
from streams import Stream, available, make

TURN, ROUNDS, LAST = 2000, 4000, 500
STREAMS = (
    "digits:few:turned",
    "digits:shift:turned",
    "digits:few:rotated",
    "digits:shift:rotated",
    "trec6:few:turned",
    "trec6:few:rotated",
)
FIRST_SEED = 60
RATES = ("c", "f20", "h5", "r95", "r5", "r05")
CALM = 10_000


def changing(name: str, seed: int, *, rates: str = "c", turn: int = TURN, rounds: int = ROUNDS) -> Stream:
    """`data:world:change`, change one of turned, rotated and none."""
    data, world, change = name.split(":")
    stream = make(f"{data}:{world}:{rates}:T={rounds}", seed)
    rng = np.random.default_rng([seed, 9])
    count, d = stream.arms.shape
    x, value = stream.x.copy(), stream.value.copy()
    if change == "turned":
        order = rng.permutation(count)
        other = np.empty(count, np.int64)
        other[order] = np.roll(order, 1)  # one cycle: no arm keeps its rewards
        value[turn:] = value[turn:][:, other]
    elif change == "rotated":
        x[turn:] = x[turn:] @ np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    elif change != "none":
        raise ValueError(f"expected turned, rotated or none, got {change!r}")
    return replace(stream, x=x, value=value)


class Discounted(Linear):
    """
    D-LinUCB (Russac, Vernade and Cappe 2019), an arm at a time: what was seen counts gamma as much with each request, or with each
    its arm; the regulariser stays, so an arm that is not chosen goes back to its prior vector.
    """

    FRESH = 8  # requests between inversions for the arms that were not chosen

    def __init__(self, arms: F32, seed: int = 0, *, alpha: float, gamma: float, every: bool, prior: bool = True) -> None:
        super().__init__(arms, seed, alpha=alpha, prior=prior)
        count, d = arms.shape
        self.gamma, self.every, self.requests = gamma, every, 0
        self.start = self.mean.copy()
        self.precision = np.zeros((count, d, d), np.float32)
        self.target = np.zeros((count, d), np.float32)  # sum of x (r - <start, x>)

    def _invert(self, arms: Any) -> None:
        self.covariance[arms] = np.linalg.inv(self.precision[arms] + np.eye(self.precision.shape[1], dtype=np.float32))
        self.mean[arms] = self.start[arms] + np.einsum("...ij,...j->...i", self.covariance[arms], self.target[arms])

    def learn(self, ticket: tuple[int, F32], reward: float) -> None:
        arm, x = ticket
        faded = slice(None) if self.every else arm
        self.precision[faded] *= np.float32(self.gamma)
        self.target[faded] *= np.float32(self.gamma)
        self.precision[arm] += np.outer(x, x)
        self.target[arm] += x * np.float32(reward - self.start[arm] @ x)
        self.requests += 1
        self._invert(slice(None) if self.every and self.requests % self.FRESH == 0 else arm)


class Sliding(Linear):
    """SW-LinUCB (Cheung, Simchi-Levi and Zhu 2019), an arm at a time: what is older than `window` requests is taken back."""

    FRESH = 500  # requests between exact inversions: taking back loses digits

    def __init__(self, arms: F32, seed: int = 0, *, alpha: float, window: int, prior: bool = True) -> None:
        super().__init__(arms, seed, alpha=alpha, prior=prior)
        self.start, self.window, self.requests = self.mean.copy(), window, 0
        self.target = np.zeros_like(self.mean)
        self.covariance = self.covariance.astype(np.float64)
        self.kept: deque[tuple[int, F32, float]] = deque()

    def _count(self, arm: int, x: F32, error: float, sign: int) -> None:
        direction = self.covariance[arm] @ x
        self.covariance[arm] -= np.outer(direction, direction) * (sign / (1 + sign * (x @ direction)))
        self.target[arm] += np.float32(sign * error) * x
        self.mean[arm] = self.start[arm] + (self.covariance[arm] @ self.target[arm]).astype(np.float32)

    def learn(self, ticket: tuple[int, F32], reward: float) -> None:
        arm, x = ticket
        error = float(reward - self.start[arm] @ x)
        self.kept.append((arm, x, error))
        self._count(arm, x, error, 1)
        if len(self.kept) > self.window:
            self._count(*self.kept.popleft(), -1)
        self.requests += 1
        if self.requests % self.FRESH == 0:
            for k in range(len(self.mean)):
                seen = np.array([x for arm, x, _ in self.kept if arm == k], np.float64).reshape(-1, self.mean.shape[1])
                self.covariance[k] = np.linalg.inv(np.eye(self.mean.shape[1]) + seen.T @ seen)


Factory = Callable[[F32, int], Policy]


def peers() -> dict[str, dict[str, Factory]]:
    """Settings by kind."""
    linear: dict[str, Factory] = {f"alpha {alpha:g}": partial(Linear, alpha=alpha) for alpha in (0, 0.1, 0.3, 1.0)}
    thompson: dict[str, Factory] = {f"alpha {alpha:g}": partial(Linear, alpha=alpha, sample=True) for alpha in (0.03, 0.1, 0.3)}
    discounted: dict[str, Factory] = {}
    for alpha in (0.1, 0.3, 1.0):
        for gamma in (0.99, 0.995, 0.998, 0.999):
            discounted[f"gamma {gamma:g} a request, alpha {alpha:g}"] = partial(Discounted, alpha=alpha, gamma=gamma, every=True)
        for gamma in (0.9, 0.95, 0.98, 0.99, 0.995):
            discounted[f"gamma {gamma:g} a choice, alpha {alpha:g}"] = partial(Discounted, alpha=alpha, gamma=gamma, every=False)
    for gamma in (0.95, 0.98, 0.99):
        discounted[f"gamma {gamma:g} a choice, alpha 0.3, no prior"] = partial(Discounted, alpha=0.3, gamma=gamma, every=False, prior=False)
    sliding: dict[str, Factory] = {}
    for window in (200, 400, 800, 1600):
        sliding |= {f"window {window}, alpha {alpha:g}": partial(Sliding, alpha=alpha, window=window) for alpha in (0.1, 0.3, 1.0)}
    return {"LinUCB": linear, "LinTS": thompson, "discounted LinUCB": discounted, "sliding LinUCB": sliding}


OURS: dict[str, Factory] = {
    "frozen": Frozen,
    "sona": Adapted,
    "sona, no alarm": partial(Adapted, drift=False),
    "sona, no guard": partial(Adapted, guard=False),
}


@dataclass(frozen=True)
class After:
    """Over seeds.

    Attributes
    ----------
    accuracy : float
        Of the last 500 requests, which are 1500 after the change.
    spread : float
        Standard deviation of that.
    regret : float
        Of all 4000 requests.
    """

    accuracy: float
    spread: float
    regret: float


def lost(stream: Stream, factory: Factory) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Expected reward lost against the best arm, (T,)."""
    policy = factory(stream.arms, stream.seed)
    missed = np.zeros(len(stream.x))
    for t, x in enumerate(stream.x):
        arm, ticket = policy.choose(x)
        missed[t] = stream.value[t].max() - stream.value[t, arm]
        policy.learn(ticket, stream.reward(t, arm))
    return missed


def after(name: str, factory: Factory, seeds: Sequence[int]) -> After:
    runs = [lost(changing(name, seed), factory) for seed in seeds]
    accuracy = [1 - float(run[-LAST:].mean()) for run in runs]
    return After(mean(accuracy), stdev(accuracy) if len(runs) > 1 else 0.0, mean(float(run.sum()) for run in runs))


def tuned(streams: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[str, tuple[str, Factory]]]:
    """kind -> stream -> its best setting by regret; under "all" the one with the least regret in geometric mean over the streams."""
    best: dict[str, dict[str, tuple[str, Factory]]] = {}
    for kind, settings in peers().items():
        regret = {name: {s: after(s, factory, seeds).regret for s in streams} for name, factory in settings.items()}
        scores = {s: {name: found[s] for name, found in regret.items()} for s in streams}
        scores["all"] = {name: float(np.exp(np.mean(np.log(list(found.values()))))) for name, found in regret.items()}
        best[kind] = {s: (least := min(found, key=lambda name: found[name]), settings[least]) for s, found in scores.items()}
        print(f"{kind}: " + str({s: setting for s, (setting, _) in best[kind].items()}), file=sys.stderr, flush=True)
    return best


def table(streams: Sequence[str], seeds: Sequence[int], best: dict[str, dict[str, tuple[str, Factory]]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    print(f"| stream | policy | accuracy {ROUNDS - LAST}-{ROUNDS} | spread | regret | setting |\n|---|---|---|---|---|---|")
    for name in streams:
        lines: dict[str, tuple[str, Factory]] = {label: ("", factory) for label, factory in OURS.items()}
        for kind, found in best.items():
            lines[kind] = found["all"]
            if found[name][0] != found["all"][0]:
                lines[f"{kind}, best here"] = found[name]
        for label, (setting, factory) in lines.items():
            row = after(name, factory, seeds)
            rows.append({"stream": name, "policy": label, "setting": setting, **asdict(row)})
            print(f"| {name} | {label} | {row.accuracy:.3f} | {row.spread:.3f} | {row.regret:.0f} | {setting} |", flush=True)
    return rows


def alarms(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Delay in requests after the change, and false alarms in a world that stays."""
    rows: list[dict[str, Any]] = []
    print(f"| rewards | change | found | delay, median (most) | false alarms in {CALM} requests |\n|---|---|---|---|---|")
    for rates in RATES:
        calm = 0
        for seed in seeds:
            for world in ("few", "shift"):
                policy = Adapted((stream := changing(f"digits:{world}:none", seed, rates=rates, rounds=CALM)).arms, seed)
                for t, x in enumerate(stream.x):
                    arm, ticket = policy.choose(x)
                    policy.learn(ticket, stream.reward(t, arm))
                calm += policy.router.stats()["drift"]["alarms"]
        for change in ("turned", "rotated"):
            delays = [_delay(changing(f"digits:{world}:{change}", seed, rates=rates)) for seed in seeds for world in ("few", "shift")]
            found = [delay for delay in delays if delay is not None]
            rows.append({"rewards": rates, "change": change, "found": len(found), "of": len(delays), "false": calm, "runs": 2 * len(seeds)})
            rows[-1] |= {"delay": median(found), "most": max(found)} if found else {}
            delay = f"{median(found):.0f} ({max(found)})" if found else "-"
            print(f"| {rates} | {change} | {len(found)} of {len(delays)} | {delay} | {calm} in {2 * len(seeds)} runs |", flush=True)
    return rows


def _delay(stream: Stream) -> int | None:
    policy = Adapted(stream.arms, stream.seed)
    before = 0
    for t, x in enumerate(stream.x):
        arm, ticket = policy.choose(x)
        policy.learn(ticket, stream.reward(t, arm))
        raised = policy.router.stats()["drift"]["alarms"] if t % 8 == 7 or t == TURN - 1 else before
        if t >= TURN and raised > before:
            return t + 1 - TURN
        before = raised
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="first is 60")
    parser.add_argument("--tune", type=int, default=10, help="first is 0")
    parser.add_argument("--streams", nargs="+", default=[name for name in STREAMS if available(name)])
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--alarms", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    rows = alarms(seeds) if given.alarms else table(given.streams, seeds, {} if given.alone else tuned(given.streams, range(given.tune)))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
