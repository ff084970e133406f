"""The report of ``sona demo`` as it stands in a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sona.report.table import accuracy, aligned, policy_table
from sona.simulate import FIRST, LAST, summaries_of

WORLD_LINES = {
    "few": "arm vectors are centroids of 5 labelled examples",
    "shift": "arm vectors are centroids of 5 labelled examples; since then half of the embedding has been rotated",
    "perm": "arm vectors are centroids of 5 labelled examples, and half of them are swapped",
    "rand": "arm vectors are random",
}


def demo_text(report: Mapping[str, Any], out: str | os.PathLike[str]) -> str:
    """Table of the last run, what resuming gave, and where everything lies."""
    run = report["runs"][-1]
    rounds, start = run["rounds"], run["start"]
    linucb = report["linucb"]
    lines = [
        f"world {report['world']}, seed {report['seed']}: {WORLD_LINES[report['world']]}",
        f"rounds {start + 1} to {start + rounds} of handwritten digits, 10 arms, 64 dimensions; only the shown arm's reward comes back",
        "",
        policy_table(summaries_of(run), rounds),
        "",
        f"LinUCB: disjoint, starts from the same arm vectors; alpha {linucb['alpha']:g}, ridge {linucb['ridge']:g}, "
        "the best of a sweep over the four worlds",
    ]
    if run["resumed"] is not None:
        lines.append(
            f"resumed: first {min(FIRST, rounds)} of this run {accuracy(run['resumed']['first'])}, "
            f"last {min(LAST, run['resumed']['previous_rounds'])} of the previous run {accuracy(run['resumed']['previous_last'])}"
        )
    files = ["report.json", "sona.db"] + ([] if report["figure"] is None else ["figure.png"])
    lines.append(f"wrote {', '.join(str(Path(out) / name) for name in files)}")
    if report["figure"] is None:
        lines.append("no figure: it needs matplotlib (pip install 'sona[plot]')")
    if run["unfinished"]:
        lines.append(f"the run before was cut off: its {run['unfinished']} rounds are in the store, not in report.json")
    if start == 0:
        lines.append("run the same command again: it resumes from the store")
    return "\n".join(lines)


STORY_LINES = {
    "drift": "half way the reward map permutes: every digit has another right answer from then on",
    "tasks": "five tasks of two digits each, one after the other, ten arms open all the time",
    "poison": "rewards lie: some always, all of them for a while, and later those of one source",
}
WITHOUT = "unguarded: the same learner without guard, drift alarm, limits on sources and background cycles; frozen: never learns"


def story_text(report: Mapping[str, Any], out: str | os.PathLike[str]) -> str:
    """Accuracy by phase for the three policies, what sona did, and where everything lies."""
    policies = report["policies"]
    rows = [["", *policies]]
    ends = [phase["start"] for phase in report["phases"][1:]] + [report["rounds"]]
    for number, (phase, end) in enumerate(zip(report["phases"], ends, strict=True)):
        shown = f"{phase['start'] + 1} to {end}: {phase['what']}"
        rows.append([shown, *(accuracy(line["phases"][number]) for line in policies.values())])
    rows.append([f"last {min(500, report['rounds'])}", *(accuracy(line["last"]) for line in policies.values())])
    rows.append(["wrong answers", *(str(line["wrong"]) for line in policies.values())])
    rows.append(["held-out digits at the end", *(accuracy(line["held_out"]) for line in policies.values())])
    weights = "  ".join(f"{name} {weight:.3f}" for name, weight in report["guard_weights"].items())
    lines = [f"{report['story']}, seed {report['seed']}: {STORY_LINES[report['story']]}", WITHOUT, "", aligned(rows), ""]
    lines += [f"round {event['round']}: {event['what']}: {event['detail']}" for event in report["did"]] or ["no drift alarm, no cycle"]
    lines.append(f"guard, where its models disagree at the end: {weights}")
    named = [each["source"] for each in report["sources"] if each["quarantined"]]
    if report["sources"]:
        lines.append(f"sources: {len(report['sources'])}, in quarantine at the end: {', '.join(named) or 'none'}")
    files = ["report.json"] + ([] if report["figure"] is None else ["figure.png"])
    lines.append(f"wrote {', '.join(str(Path(out) / name) for name in files)}")
    if report["figure"] is None:
        lines.append("no figure: it needs matplotlib (pip install 'sona[plot]')")
    return "\n".join(lines)
