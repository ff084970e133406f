"""Figures of the memory graph: a dream, the cut of Phi, the patterns, and how a memory went on from deep cycle to deep cycle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.memory.kinds import NodeKind
from sona.memory.phi import weights_of
from sona.report.plots.canvas import blank, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sona.memory import Dream, MemoryGraph
    from sona.memory.phi import Phi

KINDS = {"pattern": ("#0072B2", "s"), "memory": ("#009E73", "D"), "episode": ("#777777", "o")}
EDGE, MARKED = "#BBBBBB", "#D55E00"
AROUND = 3  # neighbours drawn beside each node that a dream visited
GAP = 1.4  # between the two circles of a partition


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
        axes.plot(*zip(place[u], place[v], strict=True), "-", color=EDGE, linewidth=0.6 + 1.6 * weight, zorder=1)
    for u, v in dream.proposals:
        axes.plot(*zip(place[u], place[v], strict=True), "--", color=MARKED, linewidth=1.3, zorder=2)
    arrow = {"arrowstyle": "-|>", "color": "#000000", "linewidth": 1.3, "shrinkA": 7, "shrinkB": 7, "connectionstyle": "arc3,rad=0.12"}
    for u, v in zip(dream.nodes, dream.nodes[1:], strict=False):
        axes.annotate("", xy=place[v], xytext=place[u], arrowprops=arrow, zorder=3)
    _nodes(axes, graph, place, visited)
    axes.plot([], [], "-", color=EDGE, label="edge")
    axes.plot([], [], "-", color="#000000", label="path of the dream")
    if dream.proposals:
        axes.plot([], [], "--", color=MARKED, label="proposed edge")
    quality = dream.quality
    about = (
        "" if quality is None else f": density {quality.density:.2f}, coherence {quality.coherence:.2f}, Phi {quality.phi:.3f} bits a step"
    )
    axes.set_title(f"A dream of {len(visited)} nodes ({dream.generator}){about}", fontsize=11)
    axes.set_axis_off()
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, format="png")


def _nodes(axes: Axes, graph: MemoryGraph, place: Mapping[int, npt.NDArray[np.float64]], visited: Sequence[int]) -> None:
    names = {id: NodeKind(int(kind)).name.lower() for id, kind in zip(place, graph.kinds[graph.positions(list(place))], strict=True)}
    for kind, (colour, marker) in KINDS.items():
        if kind in names.values():
            axes.scatter([], [], 90, color=colour, marker=marker, label=kind)
        for bold, size, alpha in ((True, 90, 1.0), (False, 28, 0.45)):
            at = np.array([place[id] for id in place if (id in visited) is bold and names[id] == kind]).reshape(-1, 2)
            axes.scatter(at[:, 0], at[:, 1], size, color=colour, marker=marker, alpha=alpha, zorder=4)
    for id in visited:
        _name(axes, f"{id} (start)" if id == visited[0] else str(id), place[id], (0, 9))


def _name(axes: Axes, text: str, at: npt.NDArray[np.float64], offset: tuple[float, float] = (0, 0)) -> None:
    """Text at a point, legible on top of lines."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.2, foreground="white")]
    axes.annotate(
        text,
        (at[0], at[1]),
        xytext=offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=7,
        path_effects=halo,
        zorder=6,
    )


def draw_partition(weights: Any, phi: Phi, path: str | os.PathLike[str], *, labels: Sequence[object] | None = None) -> None:
    """
    A weighted graph in the two parts of its minimum bipartition, as PNG; what the cut goes through is dashed. Directions are not drawn.

    Parameters
    ----------
    weights : array_like, scipy sparse array or networkx graph
        What `sona.phi` was given, of n nodes.
    phi : Phi
        What it returned.
    labels : sequence of n, optional
        What to write on the nodes, in place of their row numbers or names.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    SonaValueError
        The cut is not one of this graph, or there are more or fewer labels than nodes.
    """
    figure = blank(8.4, 4.4)
    axes = figure.subplots()
    w, names = weights_of(weights)
    known = {name: row for row, name in enumerate(range(len(w)) if names is None else names)}
    if {node for part in phi.partition for node in part} != set(known):
        raise SonaValueError(f"phi: expected a cut of these {len(w)} nodes, got one of other nodes")
    shown = list(known) if labels is None else list(labels)
    if len(shown) != len(w):
        raise SonaValueError(f"labels: expected {len(w)}, got {len(shown)}")
    place = np.zeros((len(w), 2))
    parts = [np.array([known[node] for node in part], np.int64) for part in phi.partition]
    radii = [0.0 if len(part) <= 1 else 0.5 + 0.06 * len(part) for part in parts]
    for side, (part, radius) in enumerate(zip(parts, radii, strict=True)):
        angle = np.linspace(0, 2 * np.pi, len(part), endpoint=False) + np.pi / 2
        place[part] = np.stack([side * (sum(radii) + GAP) + radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    inside = np.zeros(len(w), np.int64)
    inside[parts[1]] = 1
    strongest = max(float(w.max()), 1e-30)
    for u, v in np.argwhere(np.maximum(w, w.T) > 0).tolist():
        if u < v:
            cut = inside[u] != inside[v]
            width = 0.6 + 2.4 * max(w[u, v], w[v, u]) / strongest
            axes.plot(*place[[u, v]].T, "--" if cut else "-", color=MARKED if cut else EDGE, linewidth=width, zorder=2 if cut else 1)
    for side, colour in enumerate(("#0072B2", "#009E73")):
        axes.scatter(place[parts[side], 0], place[parts[side], 1], 330, color=colour, zorder=3)
    for node in range(len(w)):
        _name(axes, str(shown[node]), place[node])
    least = "dashed: the cut that loses least" if phi.value > 0 else "this cut loses nothing"
    axes.set_title(f"Phi = {phi.value:.3f} bits a step of {phi.total:.3f} in all; {least}", fontsize=11)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.set_axis_off()
    figure.savefig(path, format="png")


def draw_patterns(centroids: Any, quality: Any, size: Any, path: str | os.PathLike[str], *, labels: Sequence[object] | None = None) -> None:
    """
    Patterns in the plane of their two largest principal components, as PNG: colour is the mean reward, area the number of requests.

    The largest twenty have their label, the row number by default.

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
        _name(axes, str(row if labels is None else labels[row]), at[row])
    figure.colorbar(dots, ax=axes, label="mean reward", shrink=0.8)
    plain(axes, f"{len(x)} patterns; the two axes hold {kept:.0%} of their variance")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
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
    for kind, (colour, own) in KINDS.items():
        left.plot(cycles, [entry["nodes"][kind] for entry in history], "-", color=colour, marker=marker and own, markersize=4, label=kind)
    for name, colour, dash in (
        ("density", "#0072B2", "-"),
        ("coherence", "#009E73", "--"),
        ("phi", "#D55E00", "-."),
        ("strength", "#000000", ":"),
    ):
        at = [(cycle, entry[name]) for cycle, entry in zip(cycles, history, strict=True) if entry[name] is not None]
        if at:
            right.plot(
                *zip(*at, strict=True), dash, color=colour, marker=marker, markersize=4, label="Phi, bits a step" if name == "phi" else name
            )
    for axes, what in ((left, "Nodes by kind"), (right, "Mean over the dreams, and strength of the nodes")):
        if axes.lines:
            axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        axes.set_xlabel("Deep cycle")
        plain(axes, what)
        axes.set_xlim(left.get_xlim())
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylim(0, max(left.get_ylim()[1], 1.0))
    left.yaxis.get_major_locator().set_params(integer=True)
    right.set_ylim(bottom=0)
    figure.savefig(path, format="png")
