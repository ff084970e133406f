"""What a deep cycle did, as text, JSON and figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sona.memory import DreamEvaluator
from sona.report.plots import draw_dream, draw_partition, draw_patterns, draw_quality

if TYPE_CHECKING:
    from sona.loops.deep import DeepResult
    from sona.loops.memory import Memory
    from sona.patterns import LearnedPattern

_FIELDS = ("dreams_generated", "dreams_integrated", "patterns_strengthened", "patterns_pruned", "elapsed", "status", "nodes", "edges")


def deep_report(result: DeepResult, memory: Memory) -> dict[str, Any]:
    """The result by field, and under "memory" the last entry of the memory's history, None where a cycle has never ended."""
    report = {name: getattr(result, name) for name in (*_FIELDS, "edges_added", "edges_pruned")}
    return {**report, "memory": memory.history[-1] if memory.history else None}


def deep_text(report: Mapping[str, Any], drawn: Sequence[str]) -> str:
    """A few lines for a terminal; `drawn` are the figures that were written."""
    lines = [f"deep cycle  {report['status']} in {report['elapsed']:.2f} s"]
    about = report["memory"]
    if about is not None:
        kinds = ", ".join(f"{about['nodes'][kind]} {text}" for kind, text in _KINDS.items())
        lines += [
            f"memory      {report['nodes']} nodes: {kinds}; {report['edges']} edges",
            f"dreams      {report['dreams_generated']}, of which {report['dreams_integrated']} passed the gate{_measured(about)}",
            f"nodes       {report['patterns_strengthened']} strengthened, {report['patterns_pruned']} removed or merged",
            f"edges       {report['edges_added']} added or renewed, {report['edges_pruned']} pruned",
        ]
    if drawn:
        lines.append(f"figures     {', '.join(drawn)}")
    return "\n".join(lines)


_KINDS = {"pattern": "patterns", "memory": "of users", "episode": "decisions"}


def _measured(about: Mapping[str, Any]) -> str:
    if about["density"] is None:
        return ""
    return f"; mean density {about['density']:.2f}, coherence {about['coherence']:.2f}, Phi {about['phi']:.3f} bits a step"


def draw_deep(out: str | os.PathLike[str], result: DeepResult, memory: Memory, patterns: Sequence[LearnedPattern]) -> list[str]:
    """
    dream.png and partition.png of the dream with the largest Phi, patterns.png, and quality.png over all cycles; returns their paths.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    drawn = []

    def place(name: str) -> str:
        drawn.append(os.fspath(Path(out) / name))
        return drawn[-1]

    graph = memory.graph
    dreams = [dream for dream in result.dreams if dream.quality is not None and all(graph.resolve(id) == id for id in dream.nodes)]
    if dreams:
        best = max(dreams, key=lambda dream: dream.quality.phi if dream.quality is not None else 0.0)
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
    if memory.history:
        draw_quality(memory.history, place("quality.png"))
    return drawn
