"""Figures of a run. matplotlib is imported on the first figure and is an extra: ``pip install 'sona[plot]'``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sona.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's palette, told apart by dash and width too.
STYLES: dict[str, tuple[str, str, float]] = {
    "frozen": ("#000000", ":", 1.8),
    "sona": ("#0072B2", "-", 2.2),
    "LinUCB": ("#D55E00", "--", 1.6),
}
ROLLING = 250  # rounds behind each point of the rolling accuracy


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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("figures need matplotlib: pip install 'sona[plot]'") from None

    figure = Figure(figsize=(10.5, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
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
    axes.set_title(what, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
