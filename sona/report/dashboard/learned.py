"""Patterns in a plane and the memory's latest dreams, read from what a store keeps of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaCorruptError
from sona.loops import memory as kept_memory
from sona.loops import patterns as kept_patterns
from sona.loops.journal import Arrays, decode_state
from sona.memory.kinds import EdgeKind, NodeKind
from sona.patterns.clusters import one_thread
from sona.store import Store

Array = npt.NDArray[Any]

DRAWN = 2000  # patterns on the map
LISTED = 20  # patterns in the table
NODES = 200  # of the memory that are drawn
AROUND = 3  # neighbours drawn beside each node that a dream visited
TEXT = 80  # characters of what a user put in


def patterns(store: Store, name: str) -> dict[str, Any]:
    """The largest patterns on their two largest principal components, the largest of these with their verdicts."""
    nothing: dict[str, Any] = {"count": 0, "points": [], "listed": [], "variance": None, "damage": None}
    try:
        kept = store.get_state(kept_patterns.state_name(name))
        if kept is None:
            return nothing
        return _patterns(*decode_state(kept[0]))
    except (SonaCorruptError, KeyError, IndexError, ValueError, TypeError) as error:
        return nothing | {"damage": f"patterns: {error}"}


def _patterns(arrays: Arrays, meta: dict[str, Any]) -> dict[str, Any]:
    column = {each: arrays[f"bank.patterns.{each}"] for each in ("id", "cluster_size", "avg_quality", "centroid")}
    largest = np.argsort(-column["cluster_size"], kind="stable")[:DRAWN]
    id, size, quality = (column[each][largest].tolist() for each in ("id", "cluster_size", "avg_quality"))
    at, variance = plane(column["centroid"][largest].astype(np.float64))
    verdict = {each: arrays[f"verdicts.{each}"].tolist() for each in ("pattern", "arm", "count", "improvement", "p_value")}
    about: dict[int, list[dict[str, Any]]] = {}
    for pattern, arm, count, improvement, p_value in zip(*verdict.values(), strict=True):
        about.setdefault(pattern, []).append(
            {"arm": str(meta["arms"][arm]), "count": count, "improvement": improvement, "p_value": p_value}
        )
    return {
        "count": len(column["id"]),
        "verdicts": len(verdict["pattern"]),
        "points": [list(row) for row in zip(id, at[:, 0].tolist(), at[:, 1].tolist(), size, quality, strict=True)],
        "listed": [
            {"id": i, "size": s, "quality": q, "verdicts": about.get(i, [])}
            for i, s, q in zip(id[:LISTED], size[:LISTED], quality[:LISTED], strict=True)
        ],
        "variance": variance,
        "damage": None,
    }


def plane(x: Array) -> tuple[Array, float]:
    """
    Rows (n, d) on their two largest principal components, (n, 2) within [-1, 1], and the share of the variance that these hold.

    The direction in which a component points is that of its largest part, so that a map does not flip from cycle to cycle.
    """
    middle = x - x.mean(axis=0) if len(x) else x
    with one_thread():
        values, axes = np.linalg.eigh(middle.T @ middle)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1, 1)
    at = np.zeros((len(x), 2))
    at[:, : axes.shape[1]] = middle @ axes
    share = float(values[::-1][:2].sum() / max(float(values.sum()), 1e-30))
    return at / max(float(np.abs(at).max(initial=0.0)), 1e-30), share


def memory(store: Store, name: str) -> dict[str, Any]:
    """The last dreams with the nodes around them, or the strongest nodes where none is known, and what the deep cycles did."""
    nothing: dict[str, Any] = {"nodes": [], "edges": [], "dreams": [], "history": [], "counts": {}, "damage": None}
    try:
        kept = store.get_state(kept_memory.state_name(name))
        if kept is None:
            return nothing
        return _memory(*decode_state(kept[0]))
    except (SonaCorruptError, KeyError, IndexError, ValueError, TypeError) as error:
        return nothing | {"damage": f"memory: {error}"}


def _memory(arrays: Arrays, meta: dict[str, Any]) -> dict[str, Any]:
    ids, kinds, strength = arrays["ids"], arrays["kinds"], arrays["strength"]
    row = {id: at for at, id in enumerate(ids.tolist())}
    merged = dict(arrays["merged"].tolist())
    dreams = [_dream(each, row, merged) for each in meta.get("dreams", [])]
    dreams = [each for each in dreams if len(each["nodes"]) > 1]
    u, v, kind, weight = (arrays[f"edge_{each}"] for each in ("u", "v", "kind", "weight"))
    chosen = _chosen([row[id] for dream in dreams for id in dream["nodes"]], u, v, kind, weight, strength)
    inside = np.isin(u, chosen) & np.isin(v, chosen)
    texts = arrays["data"].tobytes(), arrays["data_stop"].tolist()
    names = [each.name.lower() for each in NodeKind]
    return {
        "counts": {
            "nodes": {name: int((kinds == number).sum()) for number, name in enumerate(names)},
            "edges": {each.name.lower(): int((kind == each).sum()) for each in EdgeKind},
        },
        "nodes": [
            {
                "id": int(ids[at]),
                "kind": names[kinds[at]],
                "strength": float(strength[at]),
                "quality": float(arrays["quality"][at]),
                "text": _text(*texts, at),
            }
            for at in chosen
        ],
        "edges": [
            {"from": int(ids[a]), "to": int(ids[b]), "kind": EdgeKind(int(k)).name.lower(), "weight": float(w)}
            for a, b, k, w in zip(u[inside], v[inside], kind[inside], weight[inside], strict=True)
        ],
        "dreams": dreams,
        "history": meta["history"],
        "damage": None,
    }


def _dream(about: dict[str, Any], row: dict[int, int], merged: dict[int, int]) -> dict[str, Any]:
    """Of the nodes that there are by now; one that was merged into another is that one."""
    path: list[int] = []
    for id in (merged.get(each, each) for each in about["nodes"]):
        if id in row and path[-1:] != [id]:
            path.append(id)
    proposals = [[merged.get(u, u), merged.get(v, v)] for u, v in about["proposals"]]
    return {**about, "nodes": path, "proposals": [pair for pair in proposals if pair[0] != pair[1] and set(pair) <= set(path)]}


def _chosen(visited: list[int], u: Array, v: Array, kind: Array, weight: Array, strength: Array) -> list[int]:
    """Rows of the nodes to draw: visited ones, then ends of creative edges, then neighbours, then the strongest; at most NODES."""
    chosen = dict.fromkeys(visited)
    creative = np.flatnonzero(kind == EdgeKind.CREATIVE)
    for edge in creative[np.argsort(-weight[creative], kind="stable")][: NODES // 3].tolist():
        chosen |= dict.fromkeys((int(u[edge]), int(v[edge])))
    for one in list(chosen):
        near = np.flatnonzero((u == one) | (v == one))
        for edge in near[np.argsort(-weight[near], kind="stable")][:AROUND].tolist():
            chosen |= dict.fromkeys((int(u[edge]), int(v[edge])))
    if not chosen:
        chosen = dict.fromkeys(np.argsort(-strength, kind="stable")[:NODES].tolist())
    return list(chosen)[:NODES]


def _text(raw: bytes, stop: list[int], at: int) -> str:
    """The beginning of what belongs to a node."""
    text = raw[stop[at - 1] if at else 0 : stop[at]].decode(errors="replace")
    value = json.loads(text) if text else ""
    shown = value if isinstance(value, str) else json.dumps(value)
    return shown if len(shown) <= TEXT else f"{shown[: TEXT - 1]}…"
