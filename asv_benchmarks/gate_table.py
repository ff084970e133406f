"""How often is the gate wrong, and how soon is it right?  Prints error rates, power, bursts and hostile sources over synthetic trials.

    python asv_benchmarks/gate_table.py [--trials 400] [--seed 0] [--json FILE]

Decisions are independent; the models differ on a share of them, and there the right arm succeeds with one probability and a wrong arm
with another ("1/0": always and never). D is the candidate's exact gain in reward per decision, in points of a hundredth. The duel runs over
all trials at once; some are played again through `sona.loops.duel.Duel`, and there is no table unless verdicts and decisions are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from row import print_lines

from sona.loops.duel import BETS, Duel
from sona.loops.gate import Gate, GateConfig, screen

Verdicts = NDArray[np.int64]  # 1 accepted, -1 rejected, 0 neither

LEVELS = ((1.0, 0.0), (0.95, 0.5), (0.8, 0.2), (0.5, 0.2))
RIGHT = 0.8  # of the decisions where the models differ, the share where one of them is right
CHUNK = 1000
AGAIN = 3  # trials of every world that the real duel plays too


@dataclass(frozen=True)
class World:
    """Where trials happen. `inverted`: first and last decision of a burst of wrong rewards; `spread`: D is uniform in gain +- spread."""

    gain: float
    success: tuple[float, float] = (0.8, 0.2)
    differ: float = 0.2
    q: float = 0.5
    n_max: int = 10_000
    n_min: int = 1000
    inverted: tuple[int, int] = (0, 0)
    spread: float = 0.0

    @property
    def name(self) -> str:
        high, low = (f"{s:g}".lstrip("0") or "0" for s in self.success)
        return f"{high}/{low}"

    def rewards(self, rng: np.random.Generator, trials: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Success probability of the candidate's and of the incumbent's arm where they differ, (trials,) each."""
        high, low = self.success
        gain = self.gain + self.spread * rng.uniform(-1, 1, trials)
        gap = gain / (self.differ * (high - low))
        return low + (high - low) * (RIGHT + gap) / 2, low + (high - low) * (RIGHT - gap) / 2

    @property
    def fixed_sample_power(self) -> float:
        """Of a z-test of D <= -tolerance at level .05 that looks once, at n_max: more than a test can have that may stop at any time."""
        from scipy.special import ndtr

        ours, theirs = (float(p[0]) for p in replace(self, spread=0.0).rewards(np.random.default_rng(0), 1))
        b = (ours + theirs) / 2
        second = sum((p * (1 - b) ** 2 + (1 - p) * b**2) / share for p, share in ((ours, self.q), (theirs, 1 - self.q)))
        deviation = sqrt((self.differ * second - self.gain**2) / self.n_max)
        return float(ndtr((self.gain + 0.002) / deviation - 1.645))


def duels(world: World, trials: int, seed: int) -> tuple[Verdicts, NDArray[np.int64]]:
    """Verdict and number of decisions of every trial: `Duel` with its defaults, all trials in step."""
    rng = np.random.default_rng(seed)
    ours, theirs = world.rewards(rng, trials)
    q, shares, tolerance, margin = world.q, np.array(BETS), 0.002, 0.005
    up, down = np.ones((trials, len(BETS))), np.ones((trials, len(BETS)))
    total, differing = np.full(trials, 0.5), np.ones(trials)
    verdict, decisions = np.zeros(trials, np.int64), np.full(trials, world.n_max)
    seen: list[tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]] = []
    for first in range(0, world.n_max, CHUNK):
        apart, candidate = rng.random((CHUNK, trials)) < world.differ, rng.random((CHUNK, trials)) < q
        reward = (rng.random((CHUNK, trials)) < np.where(candidate, ours, theirs)).astype(float)
        number = np.arange(first, first + CHUNK)
        burst = (number >= world.inverted[0]) & (number < world.inverted[1])
        reward[burst] = 1 - reward[burst]
        seen.append((apart[:, :AGAIN], candidate[:, :AGAIN], reward[:, :AGAIN]))
        for n, a, c, r in zip(number + 1, apart, candidate, reward, strict=True):
            b = total / differing
            z = np.where(a, (r - b) * np.where(c, 1 / q, -1 / (1 - q)), 0.0)
            up *= 1 + shares * ((z + tolerance) / np.maximum(b / q, (1 - b) / (1 - q)))[:, None]
            down *= 1 + shares * ((margin - z) / np.maximum((1 - b) / q, b / (1 - q)))[:, None]
            total += a * r
            differing += a
            if n >= world.n_min:
                accept, reject = up.mean(1) >= 20, down.mean(1) >= 20
                new = (verdict == 0) & (accept | reject)
                verdict[new], decisions[new] = np.where(reject, -1, 1)[new], n
        if verdict.all():
            break
    check(world, seen, verdict, decisions)
    return verdict, decisions


def check(world: World, seen: list, verdict: Verdicts, decisions: NDArray[np.int64]) -> None:
    """The real duel comes to the same verdicts after as many decisions."""
    apart, candidate, reward = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    for trial in range(apart.shape[1]):
        duel, played = Duel(q=world.q, n_min=world.n_min, n_max=world.n_max), 0
        for a, c, r in zip(apart[:, trial].tolist(), candidate[:, trial].tolist(), reward[:, trial].tolist(), strict=True):
            duel.record(("candidate" if c else "incumbent") if a else "both", r)
            played += 1
            if duel.verdict != "undecided":
                break
        expected = {1: "accept", -1: "reject", 0: "expired"}[int(verdict[trial])]
        if (duel.verdict, played) != (expected, decisions[trial]):
            raise SystemExit(
                f"{world}: expected {expected} after {decisions[trial]} decisions, the duel says {duel.verdict} after {played}"
            )


@dataclass(frozen=True)
class Row:
    what: str
    setting: str
    figure: str
    target: str = ""
    met: bool | None = None


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def median(decisions: NDArray[np.int64]) -> str:
    return f"{np.median(decisions):.0f}" if len(decisions) else "-"


def type_one(trials: int, seed: int) -> Iterator[Row]:
    worlds = [World(-0.002, s, n_max=32_000) for s in LEVELS]
    worlds += [World(-0.002, (1.0, 0.0), differ=d, q=q, n_max=32_000) for d, q in ((0.05, 0.5), (0.4, 0.5), (0.2, 0.2))]
    for world in worlds:
        accepted = float((duels(world, trials, seed)[0] == 1).mean())
        setting = f"{world.name}, differ {world.differ:g}, q {world.q:g}, up to 32,000"
        yield Row("accepted at D = -.2 points", setting, percent(accepted), "<= 5 %", accepted <= 0.05)


def power(trials: int, seed: int) -> Iterator[Row]:
    for gain, least in ((0.02, 0.8), (0.01, None)):
        for success in LEVELS:
            world = World(gain, success)
            verdict, decisions = duels(world, trials, seed)
            share = float((verdict == 1).mean())
            figure = f"{percent(share)}, median {median(decisions[verdict == 1])}, one look at 10,000: {percent(world.fixed_sample_power)}"
            target = "" if least is None else f">= {100 * least:.0f} %"
            yield Row(
                f"accepted at D = +{100 * gain:g}", f"{world.name}, 10,000", figure, target, None if least is None else share >= least
            )
    for success in LEVELS:
        world = World(0.035, success, spread=0.025)
        verdict, decisions = duels(world, trials, seed)
        share = float((verdict == 1).mean())
        figure = f"{percent(share)}, median {median(decisions[verdict == 1])}"
        yield Row("accepted at D = +1 .. +6", f"{world.name}, 10,000", figure, ">= 80 %", share >= 0.8)
    for gain in (-0.01, -0.02):
        world = World(gain)
        verdict, decisions = duels(world, trials, seed)
        figure = f"{percent(float((verdict == -1).mean()))}, median {median(decisions[verdict == -1])}"
        yield Row(f"rejected at D = {100 * gain:g}", f"{world.name}, 10,000", figure)


def bursts(trials: int, seed: int) -> Iterator[Row]:
    for success in ((1.0, 0.0), (0.5, 0.2)):
        for first in (0, 250, 500):
            worlds = [World(gain, success, inverted=(first, first + 500)) for gain in (-0.01, -0.05)]
            accepted = max(float((duels(world, trials, seed)[0] == 1).mean()) for world in worlds)
            setting = f"{worlds[0].name}, inverted {first}..{first + 500}"
            yield Row("accepted at D = -1 and -5, worse", setting, percent(accepted), "<= 5 %", accepted <= 0.05)
        world = World(-0.05, success, inverted=(0, 500), n_min=1)
        setting = f"{world.name}, inverted 0..500, no minimum"
        yield Row("accepted at D = -5", setting, percent(float((duels(world, trials, seed)[0] == 1).mean())))


def sourced(world: World, hostile: float, config: GateConfig, seed: int) -> str:
    """Verdict of the real gate: 20 sources, the first with a share of the traffic, rewarding the candidate always, the incumbent never."""
    rng = np.random.default_rng(seed)
    (ours,), (theirs,) = world.rewards(rng, 1)
    n = world.n_max
    apart, candidate = rng.random(n) < world.differ, rng.random(n) < world.q
    reward = (rng.random(n) < np.where(candidate, ours, theirs)).astype(float)
    source = np.where(rng.random(n) < hostile, 0, rng.integers(1, 20, n)) if hostile else rng.integers(0, 20, n)
    if hostile:
        reward = np.where((source == 0) & apart, candidate, reward)
    gate = Gate(config)
    for a, c, r, s in zip(apart.tolist(), candidate.tolist(), reward.tolist(), source.tolist(), strict=True):
        gate.record(("candidate" if c else "incumbent") if a else "both", r, f"s{s}")
        if gate.verdict != "undecided":
            break
    return gate.verdict


def sources(trials: int, seed: int) -> Iterator[Row]:
    plain, vetoed = GateConfig(min_sources=21), GateConfig()  # 21 of 20 sources: no opinion

    def share(world: World, hostile: float, config: GateConfig) -> float:
        return sum(sourced(world, hostile, config, seed + k) == "accept" for k in range(trials)) / trials

    for success in ((1.0, 0.0), (0.5, 0.2)):
        for hostile in (0.05, 0.2, 0.4):
            world = World(-0.01, success)
            found = share(world, hostile, vetoed)
            figure = f"{percent(found)}, without the veto {percent(share(world, hostile, plain))}"
            yield Row("accepted at D = -1", f"{world.name}, 1 of 20 sources, {100 * hostile:.0f} %", figure, "<= 5 %", found <= 0.05)
        for gain in (0.02, 0.01):
            world = World(gain, success)
            found = share(world, 0.0, vetoed)
            figure = f"{percent(found)}, without the veto {percent(share(world, 0.0, plain))}"
            target = (">= 80 %", found >= 0.8) if gain == 0.02 else ("", None)
            yield Row(f"accepted at D = +{100 * gain:g}", f"{world.name}, 20 honest sources", figure, *target)


def screens(trials: int, seed: int) -> Iterator[Row]:
    """Models see the logit of the shown arm through noise: how many candidates are rejected that see it as well, better, or negated."""

    def share(success: tuple[float, float], n: int, noise: float | None) -> float:
        rejected = 0
        for k in range(trials):
            rng = np.random.default_rng(seed + k)
            logit = rng.normal(1, 1.5, n)
            right = rng.random(n) < 1 / (1 + np.exp(-logit))
            reward = (rng.random(n) < np.where(right, *success)).astype(float)
            seen = [-logit if blur is None else logit + blur * rng.normal(size=n) for blur in (noise, 1.0)]
            candidate, incumbent = (1 / (1 + np.exp(-x)) for x in seen)
            rejected += screen(candidate, incumbent, reward).verdict == "reject"
        return rejected / trials

    for success in ((1.0, 0.0), (0.5, 0.2)):
        for n in (500, 2000):
            setting = f"{World(0, success).name}, {n} rows"
            same, better = share(success, n, 1.0), share(success, n, 0.5)
            yield Row("screened out: as good", setting, percent(same), "<= 7 %", same <= 0.07)
            yield Row("screened out: better", setting, percent(better), "<= 3 %", better <= 0.03)
            yield Row("screened out: turned round", setting, percent(share(success, n, None)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, default=400, help="per setting of the duel; a 16th of it of the sources, half of it of the screen"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    options = parser.parse_args()
    start, rows = perf_counter(), []
    many, few = options.trials, max(options.trials // 16, 1)
    for part, trials in ((type_one, many), (power, many), (bursts, many), (sources, few), (screens, many // 2)):
        rows += part(trials, options.seed)
        print(f"{part.__name__}: {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    lines = [("what", "setting", "figure", "target", "met")]
    lines += [(r.what, r.setting, r.figure, r.target, {True: "yes", False: "NO", None: ""}[r.met]) for r in rows]
    print_lines(lines)
    judged = [r for r in rows if r.met is not None]
    met = f"{sum(bool(r.met) for r in judged)} of {len(judged)} met"
    print(f"\n{options.trials} trials a setting of the duel; {met}, {perf_counter() - start:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
