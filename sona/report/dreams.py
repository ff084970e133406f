"""What a deep cycle did, as text, JSON and figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sona.memory import DreamEvaluator
from sona.report.plots import draw_dream, draw_partition, draw_patterns, draw_quality
from sona.report.table import one_line

if TYPE_CHECKING:
    from sona.loops.deep import DeepResult
    from sona.loops.memory import Memory
    from sona.patterns import LearnedPattern

_FIELDS = ("dreams_generated", "dreams_integrated", "patterns_strengthened", "patterns_pruned", "elapsed", "status", "nodes", "edges")


_PLURAL = {"pattern": "patterns", "memory": "memories", "episode": "episodes"}


def deep_report(result: DeepResult, memory: Memory, figures: Sequence[str]) -> dict[str, Any]:
    """The result by field; "memory" is the last entry of the memory's history, None where no cycle has ended, "figures" what was drawn."""
    report = {name: getattr(result, name) for name in (*_FIELDS, "edges_added", "edges_pruned")}
    return {**report, "memory": memory.history[-1] if memory.history else None, "figures": list(figures)}


def deep_text(report: Mapping[str, Any]) -> str:
    """A few lines for a terminal."""
    late = " (out of time)" if report["status"].startswith("cut: ") else ""
    lines = [f"deep cycle  {report['status']}{late}, {report['elapsed']:.2f} s"]
    about = report["memory"]
    if about is not None:
        kinds = ", ".join(_count(about["nodes"][kind], kind, plural) for kind, plural in _PLURAL.items())
        lines += [
            f"memory      {_count(report['nodes'], 'node')} ({kinds}), {_count(report['edges'], 'edge')}",
            f"dreams      {_dreams(report, about)}",
            f"nodes       {report['patterns_strengthened']} strengthened, {report['patterns_pruned']} removed or merged",
            f"edges       {report['edges_added']} added or renewed, {report['edges_pruned']} pruned",
        ]
    if report["figures"]:
        lines.append(f"figures     {', '.join(map(one_line, report['figures']))}")
    return "\n".join(lines)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _dreams(report: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    if about["density"] is None:
        return "none"
    measures = f"mean density {about['density']:.2f}, coherence {about['coherence']:.2f}, Phi {about['phi']:.3f} bits a step"
    return f"{report['dreams_generated']}, {report['dreams_integrated']} passed the gate; {measures}"


def draw_deep(out: str | os.PathLike[str], result: DeepResult, memory: Memory, patterns: Sequence[LearnedPattern]) -> list[str]:
    """
    Draw dream.png and partition.png of the dream with the most proposals, of equals with the largest Phi, patterns.png, and quality.png
    over all cycles, into a directory; returns their paths. Where there is nothing to draw there is no figure.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    drawn: list[str] = []

    def place(name: str) -> str:
        drawn.append(os.fspath(Path(out) / name))
        return drawn[-1]

    graph = memory.graph
    dreams = [dream for dream in result.dreams if dream.quality is not None and all(graph.resolve(id) == id for id in dream.nodes)]
    if dreams:
        best = max(dreams, key=lambda dream: (len(dream.proposals), dream.quality.phi if dream.quality is not None else 0.0))
        (best,) = DreamEvaluator(graph).evaluate([best])  # on the memory as it is now
        draw_dream(graph, best, place("dream.png"))
        nodes = list(dict.fromkeys(best.nodes))
        if len(nodes) > 1:
            from sona.memory.phi import phi

            at = graph.positions(nodes)
            weights = graph.csr().matrix()[at][:, at].toarray()
            draw_partition(weights, phi(weights), place("partition.png"), labels=nodes)
    if len(patterns) > 1:
        draw_patterns(
            np.stack([pattern.centroid for pattern in patterns]),
            [pattern.avg_quality for pattern in patterns],
            [pattern.cluster_size for pattern in patterns],
            place("patterns.png"),
            labels=[pattern.id for pattern in patterns],
        )
    if any(any(entry["nodes"].values()) for entry in memory.history):
        draw_quality(memory.history, place("quality.png"))
    return drawn
