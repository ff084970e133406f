"""The report of ``sona replay`` as it stands in a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sona.report.table import aligned, one_line, policy_table, shown
from sona.simulate import summaries_of

METHODS = {"replay": "replay (match)", "ips": "IPS", "snips": "SNIPS"}


def replay_text(report: Mapping[str, Any], out: str | os.PathLike[str] | None) -> str:
    lines = _labelled(report) if report["kind"] == "labelled" else _logged(report)
    lines += _remarks(report)
    if out is not None:
        names = ["report.json"] + (["figure.png"] if report.get("figure") else [])
        lines.append(f"wrote {', '.join(str(Path(out) / name) for name in names)}")
        if "figure" in report and report["figure"] is None:
            lines.append("no figure: it needs matplotlib (pip install 'sona[plot]')")
    return "\n".join(lines)


def _labelled(report: Mapping[str, Any]) -> list[str]:
    return [
        f"{shown(report['file'])}: {report['rounds']} rows streamed, {report['held_out_rows']} held out, {report['features']} features, "
        f"{report['arms']} arms",
        f"arm vectors: {report['prior']}; only the shown arm's reward comes back",
        "",
        policy_table(summaries_of(report), report["rounds"]),
        "",
    ]


def _logged(report: Mapping[str, Any]) -> list[str]:
    low, high = report["reward_range"]
    lines = [
        f"{shown(report['file'])}: {report['rows']} logged decisions, {report['features']} features, {report['arms']} arms",
        f"arm vectors: {report['prior']}; each row is predicted before it is learned",
        f"estimated mean reward in [{low:g}, {high:g}] with 95 % confidence intervals",
        "",
    ]
    header = ["", "agrees with the log", *METHODS.values()]
    table = [header]
    reasons: dict[tuple[str, str], list[str]] = {}  # (which estimates, why) -> of what
    for part, policies in report["estimates"].items():
        for policy, methods in policies.items():
            row = [f"{policy}, {part}", f"{report['agreement'][part][policy]:.3f}"]
            refused = {method: found["refused"] for method, found in methods.items() if "refused" in found}
            for reason in dict.fromkeys(refused.values()):
                which = [METHODS[method] for method in refused if refused[method] == reason]
                estimates = "all" if len(which) == len(METHODS) else " and ".join(which)
                reasons.setdefault((estimates, reason), []).append(f"{policy}, {part}")
            for method, found in methods.items():
                row.append("refused" if method in refused else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
            table.append(row)
    lines += [aligned(table), ""]
    for (estimates, reason), where in reasons.items():
        lines += [f"refused: {estimates} of {'; '.join(where)}", f"  {reason}"]
    return lines


def _remarks(report: Mapping[str, Any]) -> list[str]:
    lines = []
    if report["store_held_state"]:
        lines.append("the store was there before: where it has learned from these rows already, the figures above are too good")
    if report.get("sorted_by_class"):
        lines.append("the rows come in runs of one class, which is easier than mixed requests: --shuffle mixes them")
    if report["skipped"]:
        lines.append(f"skipped {report['skipped']} bad lines, the first:")
        lines += [f"  {one_line(message)}" for message in report["skipped_first"]]
    if report["ignored"]:
        fields = ", ".join(f"{shown(name)} ({count})" for name, count in sorted(report["ignored"].items()))
        lines.append(f"ignored fields: {fields}")
    if report.get("rows_earlier_than_before"):
        lines.append(
            f"{report['rows_earlier_than_before']} rows have an earlier time than a row before them; the order of the file was kept"
        )
    return lines
