"""Figures of the memory graph: a dream, the cut of Phi, the patterns, and how a memory went on from deep cycle to deep cycle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sona.memory.kinds import NodeKind
from sona.report.plots.canvas import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sona.memory import Dream, MemoryGraph
    from sona.memory.phi import Phi

KINDS = {"pattern": ("#0072B2", "s"), "memory": ("#009E73", "D"), "episode": ("#777777", "o")}
AROUND = 3  # neighbours drawn beside each node that a dream visited


def draw_dream(graph: MemoryGraph, dream: Dream, path: str | os.PathLike[str]) -> None:
    """
    A dream on the graph, as PNG: the nodes in the order in which it visited them, what they are joined to, and the pairs that it proposes.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure = blank(8.5, 6.4)
    import networkx

    axes = figure.subplots()
    csr, visited = graph.csr(), list(dict.fromkeys(dream.nodes))
    around = networkx.Graph()
    around.add_nodes_from(visited)
    for id in visited:
        row = graph.position(id)
        at = np.arange(csr.start[row], csr.stop[row])
        near = at[np.argsort(-csr.weight[at], kind="stable")][:AROUND]
        known = at[np.isin(graph.ids[csr.column[at]], visited)]
        for entry in np.union1d(near, known).tolist():
            around.add_edge(id, int(graph.ids[csr.column[entry]]), weight=float(csr.weight[entry]))
    place = networkx.spring_layout(around, seed=0, iterations=200)
    for u, v, weight in around.edges(data="weight"):
        axes.plot(*zip(place[u], place[v], strict=True), "-", color="#BBBBBB", linewidth=0.6 + 1.6 * weight, zorder=1)
    for u, v in dream.proposals:
        axes.plot(*zip(place[u], place[v], strict=True), "--", color="#D55E00", linewidth=1.3, zorder=2)
    for step, (u, v) in enumerate(zip(dream.nodes, dream.nodes[1:], strict=False)):
        arrow = {"arrowstyle": "-|>", "color": "#000000", "linewidth": 1.3, "shrinkA": 7, "shrinkB": 7, "connectionstyle": "arc3,rad=0.12"}
        axes.annotate("", xy=(place[v][0], place[v][1]), xytext=(place[u][0], place[u][1]), arrowprops=arrow, zorder=3)
        if step == 0:
            axes.annotate("start", (place[u][0], place[u][1]), xytext=(0, -15), textcoords="offset points", ha="center", fontsize=9)
    _nodes(axes, graph, place, visited)
    axes.plot([], [], "-", color="#000000", label="the dream's way")
    axes.plot([], [], "--", color="#D55E00", label="proposed edge")
    quality = dream.quality
    about = "" if quality is None else f": density {quality.density:.2f}, coherence {quality.coherence:.2f}, Phi {quality.phi:.3f} bits"
    axes.set_title(f"A dream of {len(visited)} nodes ({dream.generator}){about}", fontsize=11)
    axes.set_axis_off()
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, format="png")


def _nodes(axes: Axes, graph: MemoryGraph, place: Mapping[int, npt.NDArray[np.float64]], visited: Sequence[int]) -> None:
    names = {id: NodeKind(int(kind)).name.lower() for id, kind in zip(place, graph.kinds[graph.positions(list(place))], strict=True)}
    for kind, (colour, marker) in KINDS.items():
        for bold in (True, False):
            ids = [id for id in place if (id in visited) is bold and names[id] == kind]
            if not ids:
                continue
            at = np.array([place[id] for id in ids])
            size, alpha = (90, 1.0) if bold else (28, 0.45)
            axes.scatter(at[:, 0], at[:, 1], size, color=colour, marker=marker, alpha=alpha, zorder=4, label=kind if bold else None)
    for id in visited:
        axes.annotate(
            str(id), (place[id][0], place[id][1]), xytext=(7, 5), textcoords="offset points", fontsize=7, color="#333333", zorder=5
        )


def draw_partition(weights: Any, phi: Phi, path: str | os.PathLike[str], *, labels: Sequence[object] | None = None) -> None:
    """
    A weighted graph (n, n) in the two parts of its minimum bipartition, as PNG; what the cut goes through is dashed.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure = blank(8.4, 4.4)
    axes = figure.subplots()
    w = np.asarray(weights, np.float64)
    place = np.zeros((len(w), 2))
    parts = [np.array(part, np.int64) for part in phi.partition]
    for side, part in enumerate(parts):
        angle = np.linspace(0, 2 * np.pi, len(part), endpoint=False) + np.pi / 2
        radius = 0.0 if len(part) == 1 else 0.5 + 0.06 * len(part)
        place[part] = np.stack([3.2 * side + radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    inside = np.zeros(len(w), np.int64)
    inside[parts[1]] = 1
    strongest = max(float(w.max()), 1e-30)
    for u, v in np.argwhere(np.maximum(w, w.T) > 0).tolist():
        if u < v:
            cut = inside[u] != inside[v]
            width = 0.6 + 2.4 * max(w[u, v], w[v, u]) / strongest
            axes.plot(
                *place[[u, v]].T, "--" if cut else "-", color="#D55E00" if cut else "#BBBBBB", linewidth=width, zorder=2 if cut else 1
            )
    for side, colour in enumerate(("#0072B2", "#009E73")):
        axes.scatter(place[parts[side], 0], place[parts[side], 1], 330, color=colour, zorder=3)
    for node in range(len(w)):
        axes.annotate(
            str(node if labels is None else labels[node]), place[node], ha="center", va="center", fontsize=7, color="white", zorder=4
        )
    axes.set_title(f"Phi = {phi.value:.3f} bits a step of {phi.total:.3f} in all; dashed: the cut that loses least", fontsize=11)
    axes.set_aspect("equal")
    axes.set_axis_off()
    figure.savefig(path, format="png")


def draw_patterns(centroids: Any, quality: Any, size: Any, path: str | os.PathLike[str], *, labels: Sequence[object] | None = None) -> None:
    """
    Patterns in the plane of their two largest principal components, as PNG: colour is the mean reward, area the number of requests.

    Parameters
    ----------
    centroids : array (n, dim)
    quality : array (n,) in [0, 1]
    size : array (n,)

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure = blank(7.2, 5.6)
    axes = figure.subplots()
    x = np.asarray(centroids, np.float64)
    sizes = np.asarray(size, np.float64)
    middle = x - x.mean(axis=0)
    _, values, axes_of = np.linalg.svd(middle, full_matrices=False)
    at = np.zeros((len(x), 2))
    shown = min(2, len(values))
    at[:, :shown] = middle @ axes_of[:shown].T
    kept = float((values[:shown] ** 2).sum() / max((values**2).sum(), 1e-30))
    dots = axes.scatter(
        at[:, 0], at[:, 1], 30 + 320 * sizes / max(sizes.max(), 1e-30), c=np.asarray(quality), cmap="cividis", vmin=0, vmax=1, alpha=0.85
    )
    for row in np.argsort(-sizes, kind="stable")[:20].tolist():
        axes.annotate(
            str(row if labels is None else labels[row]), at[row], xytext=(0, 9), textcoords="offset points", ha="center", fontsize=7
        )
    figure.colorbar(dots, ax=axes, label="mean reward", shrink=0.8)
    axes.set_title(f"{len(x)} patterns; the two axes hold {kept:.0%} of their variance", fontsize=11)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def draw_quality(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """
    A memory over its deep cycles, as PNG: how large it is, and how good its dreams were.

    Parameters
    ----------
    history : sequence of mappings
        `engine.memory.history`.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    figure = blank()
    left, right = figure.subplots(1, 2)
    cycles = [entry["cycle"] for entry in history]
    marker = "o" if len(cycles) < 30 else None
    for kind, (colour, _) in KINDS.items():
        left.plot(cycles, [entry["nodes"][kind] for entry in history], "-", color=colour, marker=marker, markersize=4, label=kind)
    for name, colour, dash in (
        ("density", "#0072B2", "-"),
        ("coherence", "#009E73", "--"),
        ("phi", "#D55E00", "-."),
        ("strength", "#000000", ":"),
    ):
        at = [(cycle, entry[name]) for cycle, entry in zip(cycles, history, strict=True) if entry[name] is not None]
        if at:
            right.plot(
                *zip(*at, strict=True), dash, color=colour, marker=marker, markersize=4, label="Phi, bits" if name == "phi" else name
            )
    for axes, what in ((left, "Nodes by kind"), (right, "Mean over the dreams, and strength of the nodes")):
        if axes.lines:
            axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        axes.set_xlabel("Deep cycle")
        axes.set_title(what, fontsize=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, format="png")
