"""Figures of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sona.report.plots.canvas import blank, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's palette, told apart by dash and width too.
STYLES: dict[str, tuple[str, str, float]] = {
    "frozen": ("#000000", ":", 1.8),
    "sona": ("#0072B2", "-", 2.2),
    "LinUCB": ("#D55E00", "--", 1.6),
    "unguarded": ("#D55E00", "--", 1.6),
}
ROLLING = 250  # rounds behind each point of the rolling accuracy
STORY_ROLLING = 100  # the same for a story, where what matters is how soon


@dataclass(frozen=True)
class Curve:
    """One run: the rounds where regret was read, and each policy's cumulative regret there, counted from the start of the run.

    ``start`` is the round before the run's first.
    """

    start: int
    round: Sequence[int]
    regret: Mapping[str, Sequence[int]]


def draw(curves: Sequence[Curve], path: str | os.PathLike[str], *, title: str) -> None:
    """Cumulative regret and rolling accuracy of consecutive runs, as PNG; a vertical line marks where a run resumed.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure = blank()
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=12)
    rounds, series = joined(curves)
    for name, regret in series.items():
        colour, dash, width = STYLES.get(name, ("#009E73", "-.", 1.6))
        left.plot(rounds, regret, dash, color=colour, linewidth=width, label=name)
        at, accuracy = rolling_accuracy(rounds, regret)
        right.plot(at, accuracy, dash, color=colour, linewidth=width, label=name)
    for axes, what in ((left, "Cumulative regret (wrong answers)"), (right, f"Accuracy of the last {ROLLING} rounds")):
        _dress(axes, what, [curve.start for curve in curves[1:]])
    right.set_ylim(0, 1.02)
    left.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(series) + 1, frameon=False, fontsize=10)
    figure.savefig(path, format="png")


def draw_story(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """
    Accuracy over the last 100 rounds and wrong answers so far of a story of ``sona demo``, as PNG; phases are bands, alarms triangles.

    Where there are tasks, the right half shows what is kept of them instead.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure = blank()
    left, right = figure.subplots(1, 2)
    lines = [
        f"{'shaded' if number % 2 else 'white'} from {phase['start']}: {phase['what']}" for number, phase in enumerate(report["phases"])
    ]
    about = [f"Handwritten digits, story {report['story']}, seed {report['seed']}"]
    about += ["   ".join(lines[at : at + 3]) for at in range(0, len(lines), 3)]
    figure.suptitle("\n".join(about), fontsize=9)
    kept = report["kept"]
    rounds = np.concatenate([[0], report["curve"]["round"]])
    for name in report["policies"]:
        wrong = np.concatenate([[0], report["curve"][name]])
        colour, dash, width = STYLES[name]
        behind = np.searchsorted(rounds, rounds[1:] - STORY_ROLLING, side="left")
        left.plot(
            rounds[1:], 1 - (wrong[1:] - wrong[behind]) / (rounds[1:] - rounds[behind]), dash, color=colour, linewidth=width, label=name
        )
        if kept is None:
            right.plot(rounds, wrong, dash, color=colour, linewidth=width)
        else:
            right.plot(kept["round"], kept[name], dash, color=colour, linewidth=width, marker="o", markersize=4)
    second = "Wrong answers so far" if kept is None else "Held-out accuracy on all tasks so far, at the end of each"
    for axes, what in ((left, f"Accuracy of the last {STORY_ROLLING} rounds"), (right, second)):
        _dress(axes, what, [])
        ends = [phase["start"] for phase in report["phases"][1:]] + [report["rounds"]]
        for number, (phase, end) in enumerate(zip(report["phases"], ends, strict=True)):
            if number % 2:
                axes.axvspan(phase["start"], end, color="#F0E442", alpha=0.22, linewidth=0, zorder=0)
    left.set_ylim(0, 1.02)
    right.set_xlim(left.get_xlim())
    right.set_ylim(0, None if kept is None else 1.02)
    at = [event["round"] for event in report["did"] if event["what"] == "drift alarm"]
    if at:
        left.plot(at, [0.03] * len(at), "^", color=STYLES["sona"][0], markersize=8, linestyle="none", label="drift alarm of sona")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    figure.savefig(path, format="png")


def joined(curves: Sequence[Curve]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Consecutive runs end to end: rounds (m,), and per policy the regret since the first of them (m,)."""
    start = curves[0].start
    rounds = np.concatenate([[start], *(curve.round for curve in curves)]).astype(np.int64)
    series = {}
    for name in curves[0].regret:
        parts, carried = [np.zeros(1)], 0.0
        for curve in curves:
            parts.append(np.asarray(curve.regret[name], np.float64) + carried)
            carried = float(parts[-1][-1])
        series[name] = np.concatenate(parts)
    return rounds, series


def rolling_accuracy(rounds: np.ndarray, regret: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy over the ROLLING rounds before each point that has that many behind it, else since the start."""
    begin = np.searchsorted(rounds, rounds[1:] - ROLLING, side="left")
    wrong = regret[1:] - regret[begin]
    return rounds[1:], 1 - wrong / (rounds[1:] - rounds[begin])


def _dress(axes: Axes, what: str, resumed: Sequence[int]) -> None:
    for place, at in enumerate(resumed):
        axes.axvline(at, color="#999999", linewidth=1.0, zorder=0, label="_hidden" if place else "resumed")
    axes.set_xlabel("Round")
    plain(axes, what)
    axes.margins(x=0.01)
