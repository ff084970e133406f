"""Does it learn?  Prints regret against the frozen model and against peers at the best of their sweeps, and what the guard costs and saves.

    python asv_benchmarks/learning_table.py [--seeds 10-19] [--quick] [--json FILE] [--peers FILE] [--readme]

The text streams need SONA_DATA, the directory of the embeddings; without it they are left out with a message.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from time import perf_counter

import streams
from measure import GUARD_SETS, GuardRow, PeerFile, Regrets, geometric_mean, guard_row, regrets
from row import print_lines

LINEAR = ("LinUCB", "LinTS")
PEERS = (*LINEAR, "logistic")
ODD = (
    "digits:onearm:c",
    "digits:even:c",
    "digits:graded:c",
    "gauss200:shift:c",
    "gauss1000:shift:c",
    "digits:few:c:scale=0.1",
    "digits:shift:c:scale=0.1",
    "digits:few:c:scale=10",
    "digits:shift:c:scale=10",
    "digits:few:c:signed",
    "digits:shift:c:signed",
    "digits:few:c:delay=100",
    "digits:shift:c:delay=100",
    "digits:few:c:delay=500",
    "digits:shift:c:delay=500",
    "digits:few:f20",
    "digits:shift:f20",
    "digits:few:c:nan=5",
    "clusters:half:c",
    "clusters:all:c",
)
CERTAIN = ("clusters:half:c", "clusters:all:c")  # of the streams above: the frozen model is certain and wrong
# What the README shows, and how it names the streams.
README = {
    "digits:few:c": "digits, arms = centroids of 5 labels",
    "digits:shift:c": "the same, half of the space rotated",
    "digits:perm:c": "digits, half of the arms swapped",
    "digits:rand:c": "digits, random arms",
    "trec6:few:c": "TREC questions, 6 classes (MiniLM)",
    "trec50:few:c": "TREC questions, 50 classes",
    "ng20:few:c": "20 Newsgroups (MiniLM)",
    "digits:few:r5": "digits, right arm succeeds .5, others .2",
    "digits:few:r05": "digits, .05 and .01 (clicks)",
    "digits:graded:c": "digits, every arm right sometimes",
}
PERFECT = "gauss1000:few:c:optimal:T=3000"
GRADED = "digits:graded:c:T=10000"
GUARD_ROWS = (
    ("c:optimal", "frozen optimal, 1/0"),
    ("r5:optimal", "frozen optimal, .5/.2"),
    ("r05:optimal", "frozen optimal, .05/.01"),
    ("c", "1/0"),
    ("h5", ".95/.5"),
    ("f20", ".8/.2"),
    ("r5", ".5/.2"),
    ("r05", ".05/.01"),
    ("c:invert=500", "500 inverted in a row, 1/0"),
    ("r5:invert=500", "500 inverted in a row, .5/.2"),
    ("c:spread=500", "500 inverted, spread, 1/0"),
    ("r5:spread=500", "500 inverted, spread, .5/.2"),
)


@dataclass
class Check:
    """A promise, the figure that was measured, and whether it holds."""

    what: str
    figure: float
    at_most: float

    @property
    def met(self) -> bool:
        return self.figure <= self.at_most


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{title}\n")
    print_lines([header, *([cell if isinstance(cell, str) else f"{cell:.2f}" for cell in row] for row in rows)])
    sys.stdout.flush()


def regret_row(r: Regrets) -> list[object]:
    peer, regret = r.best(*PEERS)
    linear = r.best(*LINEAR)[1]
    return [
        r.stream,
        f"{r.sona['sona']:.0f} ± {r.spread:.0f}",
        r.over_frozen("sona"),
        f"{peer} {regret:.0f}",
        r.over("sona", *PEERS),
        r.sona["sona"] / linear,
        r.over("identity", *PEERS),
        r.over("no guard", *PEERS),
        r.over("pool", *PEERS),
        r.sona["pool"] / linear,
        f"{r.held_out:.3f}",
    ]


HEADER = (
    "stream",
    "regret",
    "/ frozen",
    "best peer",
    "/ peer",
    "/ linear",
    "identity / peer",
    "no guard / peer",
    "pool / peer",
    "pool / linear",
    "held out",
)


def readme(table: Sequence[Regrets]) -> str:
    """The Markdown table of the README."""
    by = {r.stream: r for r in table}
    header = ("stream", "regret", "/ frozen", "/ best LinUCB, LinTS", "/ best peer", "no guard / best peer", "pool / best peer")
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for stream, name in README.items():
        if stream in by:
            r = by[stream]
            ratios = (r.over_frozen("sona"), r.over("sona", *LINEAR), *(r.over(v, *PEERS) for v in ("sona", "no guard", "pool")))
            lines.append(f"| {name} | {r.sona['sona']:.0f} ± {r.spread:.0f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    means = (geometric_mean(r.over(variant, *PEERS) for r in table) for variant in ("sona", "no guard", "pool"))
    lines.append(f"| geometric mean of {len(table)} streams | | | | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(lines)


def clean_checks(by: dict[str, Regrets]) -> list[Check]:
    checks = []
    for name, limit in (("digits:few:c", 0.30), ("digits:shift:c", 0.16), ("trec6:few:c", 0.50)):
        if name in by:
            checks.append(Check(f"{name}: regret / frozen", by[name].over_frozen("sona"), limit))
    for name in ("digits:few:c", "digits:shift:c", "trec6:few:c", "trec6:shift:c", "ng20:few:c", "ng20:shift:c"):
        if name in by:
            checks.append(Check(f"{name}: regret / best LinUCB or LinTS", by[name].over("sona", *LINEAR), 1.05))
            checks.append(Check(f"{name}: identity / best LinUCB or LinTS", by[name].over("identity", *LINEAR), 1.15))
    for name in ("digits:few:c", "digits:shift:c"):
        if by[name].best("VW")[0] != "none":
            checks.append(Check(f"{name}: regret / best VowpalWabbit", by[name].over("sona", "VW"), 0.6))
    checks += [Check(f"{name}: regret / best peer", by[name].over("sona", *PEERS), 1.1) for name in streams.CLEAN_TEXT if name in by]
    checks += [Check(f"{name}: regret / frozen", by[name].over_frozen("sona"), 1.05) for name in streams.DIGIT_RATES if name in by]
    if by.keys() >= set(streams.ALL):
        mean = geometric_mean(r.over("sona", *PEERS) for r in by.values())
        checks.append(Check(f"geometric mean of {len(by)} streams, regret / best peer", mean, 1.0))
    return checks


def pool_checks(by: dict[str, Regrets]) -> list[Check]:
    checks = []
    for name, limit in (("digits:few:c", 0.9), ("digits:shift:c", 1.0), ("trec6:few:c", 1.0), ("ng20:few:c", 1.0)):
        if name in by:
            checks.append(Check(f"{name}: pool / best LinUCB or LinTS", by[name].over("pool", *LINEAR), limit))
    for name, r in by.items():
        checks.append(Check(f"{name}: pool / frozen", r.over_frozen("pool"), 1.0))
        wrong_arms = name.split(":")[1] in ("perm", "rand")
        checks.append(Check(f"{name}: pool / best peer", r.over("pool", *PEERS), 1.3 if wrong_arms else 1.03))
    if by.keys() >= set(streams.ALL):
        mean = geometric_mean(r.over("pool", *PEERS) for r in by.values())
        checks.append(Check(f"geometric mean of {len(by)} streams, pool / best peer", mean, 0.88))
    return checks


def guard_checks(row: GuardRow) -> list[Check]:
    tail = row.rewards
    limit = {"c": 2.0, "r5": 5.0}.get(tail.split(":")[0])
    if "optimal" in tail:
        checks = [Check(f"{tail}: % of frozen's reward lost", -row.gain, 5.0 if limit is None else 1.0)]
        return checks if limit is None else [*checks, Check(f"{tail}: % lost in the worst 1000 requests", row.worst, limit)]
    if "invert" in tail or "spread" in tail:
        checks = [Check(f"{tail}: % lost to frozen in 1000 requests", row.worst, 0.0 if tail.startswith("c") else 5.0)]
        return checks if "spread" in tail else [*checks, Check(f"{tail}: requests until 80 % of the gain is back", row.recovery, 500)]
    return [Check(f"{tail}: % of the unguarded reward, worst set", row.highest_cost, 4.0)]


def guard_cells(g: GuardRow) -> list[str]:
    shares = [f"{share:+.2f}" for share in (g.gain, g.least_gain, g.cost, g.highest_cost)]
    return [*shares, f"{g.worst:.1f}", f"{g.inside:.1f}", "" if isnan(g.recovery) else f"{g.recovery:.0f}"]


def main() -> int:
    options = arguments()
    start = perf_counter()
    seeds, peers = options.seeds, PeerFile(options.peers)
    names = [n for n in streams.ALL if streams.available(n)]
    if len(names) < len(streams.ALL):
        print("text streams left out: set SONA_DATA to the directory that holds " + ", ".join(sorted(set(streams.EMBEDDINGS.values()))))
    if options.quick:
        names = [n for n in names if n.startswith("digits")]

    table = [regrets(name, seeds, peers) for name in names]
    print_table(f"Regret, mean of seeds {options.seeds}; peers at the best setting of their sweep", HEADER, map(regret_row, table))
    for variant in ("sona", "identity", "no guard", "pool"):
        plain, fair = (geometric_mean(r.over(variant, *PEERS, constant=constant) for r in table) for constant in (False, True))
        print(f"geometric mean of {len(table)} streams, {variant}: {plain:.3f} of the best peer", end="")
        print(f" ({fair:.3f} if peers get a constant feature on the one-arm stream)")
    by = {r.stream: r for r in table}
    checks = clean_checks(by) + pool_checks(by)
    elsewhere = [
        (r.stream, r.sona["sona"], *r.best("VW"), r.peers.get("roadmap", float("nan")), r.frozen) for r in table if "roadmap" in r.peers
    ]
    print_table("Elsewhere", ("stream", "sona", "best VowpalWabbit", "its regret", "roadmap's literal update", "frozen"), elsewhere)

    graded = regrets(GRADED, seeds, peers)
    odd = [graded, *(regrets(name, seeds, None) for name in (ODD[:6:2] if options.quick else ODD))]
    perfect = regrets(PERFECT, seeds, None)
    checks += [Check(f"{r.stream}: regret / frozen", r.over_frozen("sona"), 0.2 if r.stream in CERTAIN else 1.0) for r in odd]
    checks.append(Check(f"{GRADED}: regret / best LinUCB", graded.over("sona", "LinUCB"), 0.8))
    checks.append(Check(f"{PERFECT}: errors where the frozen model makes none", perfect.sona["sona"], 20))
    print_table(
        "Unusual streams",
        ("stream", "regret", "/ frozen", "identity / frozen", "no guard / frozen", "pool / frozen"),
        [(r.stream, f"{r.sona['sona']:.0f}", *(r.over_frozen(v) for v in r.sona)) for r in [*odd, perfect]],
    )

    sets = [s for s in GUARD_SETS if streams.available(s)][: 1 if options.quick else None]
    guard = [guard_row(rewards, sets, seeds) for rewards, _ in GUARD_ROWS]
    print_table(
        f"Guard: 8000 requests of {', '.join(sets)}; percent of reward",
        ("rewards", "over frozen", "worst run", "cost of the guard", "worst set", "lost in worst 1000", "anywhere", "recovery"),
        [(name, *guard_cells(g)) for (_, name), g in zip(GUARD_ROWS, guard, strict=True)],
    )
    for row in guard:
        checks += guard_checks(row)
    learning = [g.cost for g in guard if ":" not in g.rewards]
    checks.append(Check("% of the unguarded reward, mean of sets and rewards", sum(learning) / len(learning), 2.0))

    print_table("Promises", ("what", "figure", "at most", "met"), [(c.what, c.figure, c.at_most, "yes" if c.met else "NO") for c in checks])
    print(f"\n{sum(c.met for c in checks)} of {len(checks)} met, {perf_counter() - start:.0f} s")
    if options.readme:
        print(f"\n{readme(table)}")
    if options.json:
        report = {
            "seeds": seeds,
            "streams": [asdict(r) for r in table],
            "unusual": [asdict(r) for r in [*odd, perfect]],
            "guard": [g.as_json() for g in guard],
            "checks": [asdict(c) | {"met": c.met} for c in checks],
        }
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_range, default=list(range(10, 20)), metavar="A-B", help="default 10-19: not used for tuning")
    parser.add_argument("--quick", action="store_true", help="digits only, one set for the guard")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--peers", type=Path, metavar="FILE", help="regrets of peers: read where known, extended where not")
    parser.add_argument("--readme", action="store_true", help="print the Markdown table of the README too")
    return parser.parse_args()


def seed_range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


if __name__ == "__main__":
    sys.exit(main())
