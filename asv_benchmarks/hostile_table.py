"""Does one hostile source of rewards among twenty do harm?  Prints what is kept of the gain, and what other kinds of bad feedback do.

    python asv_benchmarks/hostile_table.py [--seeds 60-64] [--streams NAME ...] [--quick] [--json FILE]

Source 0 of 20 turns hostile at request 2000 of 6000: it inverts its rewards, or promotes one arm (1 where that arm is shown, else 0).
Figures are expected rewards after request 2000, over streams and seeds. TREC needs SONA_DATA. Constants were chosen on seeds 0-9.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import streams
from measure import recovered, windows
from numpy.typing import NDArray
from row import print_lines

from sona import Router, SonaValueError

F64 = NDArray[np.float64]
ROUNDS, TURN, SOURCES = 6000, 2000, 20
SETS = ("digits:few", "digits:shift", "trec6:few")
RATES = {"c": "1/0", "r5": ".5/.2"}
SHARES = (0.05, 0.2, 0.4)
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "unguarded": {"guard": False, "sources": None},
    "guard": {"sources": None},
    "guard, caps and trust": {},
}
FULL = "guard, caps and trust"
OTHER = {"f20": "20 % flipped", "c:nan=5": "5 % NaN, 1/0", "r5:nan=5": "5 % NaN, .5/.2", "c:delay=500": "500 late, 1/0"}
OTHER |= {"r5:delay=500": "500 late, .5/.2"}
AFTER = 1000  # requests


@dataclass(frozen=True)
class Attack:
    """What source 0 does from request TURN on, and its share of the traffic from the start."""

    kind: str = "none"
    share: float = 0.05

    def senders(self, rng: np.random.Generator, rounds: int) -> NDArray[np.int64]:
        """Source of each request."""
        chance = np.full(SOURCES, (1 - self.share) / (SOURCES - 1))
        chance[0] = self.share
        return rng.choice(SOURCES, size=rounds, p=chance)

    def reward(self, honest: float, arm: int, promoted: int) -> float:
        if self.kind == "invert":
            return 1 - honest
        return float(arm == promoted) if self.kind == "promote" else honest


@dataclass
class Run:
    """Expected rewards per request, of the frozen model and of a router; shares of the rewards after TURN that counted for nothing."""

    frozen: F64
    earned: F64
    blocked: dict[str, float] = field(default_factory=dict)


def play(stream: streams.Stream, attack: Attack, options: Mapping[str, Any]) -> Run:
    """Feedback names its source and arrives `delay` requests late."""
    rounds = len(stream.x)
    rng = np.random.default_rng([stream.seed, 77])
    sender = attack.senders(rng, rounds)
    promoted = int(rng.integers(len(stream.arms)))
    router = Router(stream.arms, seed=stream.seed, **options)
    frozen = stream.value[np.arange(rounds), router.predict(stream.x, model="frozen")].astype(np.float64)
    earned, waiting = np.empty(rounds), []
    sent, lost = np.zeros(2), np.zeros(2)
    for t, x in enumerate(stream.x):
        decision = router.route(x)
        earned[t] = stream.value[t, decision.index]
        reward = stream.reward(t, decision.index)
        hostile = t >= TURN and sender[t] == 0
        waiting.append((decision.id, attack.reward(reward, decision.index, promoted) if hostile else reward, f"source {sender[t]}"))
        if len(waiting) <= stream.delay:
            continue
        id, reward, source = waiting.pop(0)
        try:
            router.feedback(id, reward, source=source)
        except SonaValueError:  # NaN
            continue
        if t >= TURN and options.get("sources", True):
            one = router.engine.sources._known[source]
            sent[int(sender[t] == 0)] += 1
            lost[int(sender[t] == 0)] += one.weight == 0
    weights = router.engine.adapters[0].delta()
    if not np.isfinite(weights).all():
        raise AssertionError(f"{stream.name}: a weight is not finite")
    return Run(frozen, earned, {"honest": lost[0] / max(sent[0], 1), "source 0": lost[1] / max(sent[1], 1)})


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    setting: str
    what: str
    figure: str
    target: str = ""
    met: bool | None = None


def over(runs: Sequence[Run], start: int) -> list[float]:
    """Reward over the frozen model's from a request on, per cent, one a run."""
    return [100 * (run.earned[start:].mean() / run.frozen[start:].mean() - 1) for run in runs]


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):+.1f}" + (f" +- {stdev(values):.1f}" if len(values) > 1 else "")


def hostile(sets: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    found = []
    for rate, name in RATES.items():
        made = [streams.make(f"{data}:{rate}:T={ROUNDS}", seed) for data in sets for seed in seeds]
        calm = {(c, s): [play(one, Attack("none", s), CONFIGURATIONS[c]) for one in made] for c in CONFIGURATIONS for s in SHARES}
        for share in SHARES:
            setting = f"{name}, no attack, {share:.0%}"
            found += [Row(setting, f"over frozen, {c}", spread(over(calm[c, share], TURN)) + " %") for c in CONFIGURATIONS]
            blocked = mean(100 * run.blocked["honest"] for run in calm[FULL, share])
            found.append(Row(setting, "honest rewards that counted for nothing", f"{blocked:.2f} %"))
        for kind in ("invert", "promote"):
            for share in SHARES:
                setting = f"{name}, {kind}, {share:.0%}"
                for c in CONFIGURATIONS:
                    runs = [play(one, Attack(kind, share), CONFIGURATIONS[c]) for one in made]
                    gains, before = over(runs, TURN), over(calm[c, share], TURN)
                    kept = 100 * mean(gains) / mean(before)
                    figure = f"{spread(gains)} %, {kept:.0f} % of the gain kept, least {min(gains):+.1f} %"
                    if c != FULL:
                        found.append(Row(setting, f"over frozen, {c}", figure))
                        continue
                    found.append(Row(setting, f"over frozen, {c}", figure, ">= 0 and >= 70 % kept", mean(gains) >= 0 and kept >= 70))
                    own, honest = (mean(100 * run.blocked[who] for run in runs) for who in ("source 0", "honest"))
                    found.append(Row(setting, "counted for nothing: hostile, honest rewards", f"{own:.0f} %, {honest:.2f} %"))
                print(f"{setting}: done", file=sys.stderr, flush=True)
    return found


def others(sets: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    found = []
    for tail, name in OTHER.items():
        runs = [play(streams.make(f"{data}:{tail}:T={ROUNDS}", seed), Attack(), {}) for data in sets for seed in seeds]
        gains = over(runs, 0)
        found.append(Row(name, f"over frozen, {FULL}", f"{spread(gains)} %, least {min(gains):+.1f} %", ">= 0", mean(gains) >= 0))
        print(f"{name}: done", file=sys.stderr, flush=True)
    return found


def blocks(sets: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Rewards of every source inverted for a while: nothing that compares sources can tell, so the guard is alone."""
    found = []
    for rate, name in RATES.items():
        for length in (500, 2000):
            end, setting = 3000 + length, f"{name}, {length} in a row inverted"
            runs = [play(streams.make(f"{data}:{rate}:T=8000:invert={length}", seed), Attack(), {}) for data in sets for seed in seeds]
            if length == 500:
                lost = [100 * windows(r.frozen - r.earned, AFTER)[end:].max() / (AFTER * r.frozen.mean()) for r in runs]
                limit = 0 if rate == "c" else 5
                found.append(Row(setting, "lost in the worst 1000 after it", f"{max(lost):+.1f} %", f"<= {limit} %", max(lost) <= limit))
                back = median(recovered(r.earned - r.frozen, 3000, end) for r in runs)
                found.append(Row(setting, "requests until 80 % of the gain is back, median", f"{back:.0f}", "<= 500", back <= 500))
            else:
                level = median(_level(r.earned - r.frozen, end) for r in runs)
                found.append(Row(setting, "requests until level with frozen, median", f"{level:.0f}", "<= 500", level <= 500))
            print(f"{setting}: done", file=sys.stderr, flush=True)
    return found


def _level(gain: F64, end: int) -> float:
    """Requests after `end` until the mean gain of the 100 that follow is not negative."""
    reached = np.flatnonzero(windows(gain[end:], 100) >= 0)
    return float(reached[0]) if len(reached) else float(len(gain) - end)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="60-64", metavar="FIRST-LAST")
    parser.add_argument("--streams", nargs="*", default=list(SETS), metavar="NAME", help="data:world")
    parser.add_argument("--quick", action="store_true", help="the hostile source alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    sets = [name for name in options.streams if streams.available(name)]
    for name in sorted(set(options.streams) - set(sets)):
        print(f"{name}: left out, set SONA_DATA to the directory of the embeddings", file=sys.stderr)
    rows = hostile(sets, seeds)
    if not options.quick:
        rows += others(sets, seeds) + blocks(sets, seeds)
    lines = [("setting", "what", "figure", "target", "met")]
    lines += [(r.setting, r.what, r.figure, r.target, {True: "yes", False: "NO", None: ""}[r.met]) for r in rows]
    print_lines(lines)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1, default=bool) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
