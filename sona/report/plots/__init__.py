"""Figures. matplotlib is imported on the first figure and is an extra: ``pip install 'sona[plot]'``."""

from sona.report.plots.memory import draw_dream, draw_partition, draw_patterns, draw_quality
from sona.report.plots.runs import STYLES, Curve, draw, draw_story, joined, rolling_accuracy

__all__ = [
    "STYLES",
    "Curve",
    "draw",
    "draw_dream",
    "draw_partition",
    "draw_patterns",
    "draw_quality",
    "draw_story",
    "joined",
    "rolling_accuracy",
]
