"""A memory graph as a networkx graph, and back."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.errors import SonaTypeError, SonaValueError
from sona.memory.checks import Kinds, text_of, unit_rows, whole, within
from sona.memory.csr import Longs, undirected
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.nodes import LEAST_STRENGTH, START

if TYPE_CHECKING:
    from sona.memory.readable import Readable

_NAMES = {kind.name.lower(): kind for kind in EdgeKind}  # attributes of edges
_COUNTS = {"uses": 0, "last_used": -1, "born": 0, "key": -1}  # attributes of nodes, their defaults and least values


def to_networkx(graph: "Readable") -> Any:
    """See `MemoryGraph.to_networkx`."""
    import networkx as nx

    found = graph.snapshot()
    result = nx.Graph(cycle=found.cycle)
    columns = (found.ids, found.kinds, found.quality, found.strength, found.uses, found.last_used, found.born, found.keys)
    rows = zip(*(column.tolist() for column in columns), found.vectors, found.data, strict=True)
    for id, kind, quality, strength, uses, last_used, born, key, vector, text in rows:
        counts = {"uses": uses, "last_used": last_used, "born": born, "key": key}
        data = None if text is None else json.loads(text)
        result.add_node(id, kind=NodeKind(kind).name.lower(), quality=quality, strength=strength, **counts, data=data, vector=vector)
    for name, kind in _NAMES.items():
        for u, v, weight in zip(*(column.tolist() for column in found.edges(kind)), strict=True):
            total = result.edges[u, v]["weight"] if result.has_edge(u, v) else 0.0
            result.add_edge(u, v, **{name: weight, "weight": total + weight})
    return result


def fill(graph: "Readable", source: Any) -> None:
    """Put the nodes and edges of a networkx graph into a new graph; see `MemoryGraph.from_networkx`."""
    undirected(source)
    about = dict(source.nodes(data=True))
    n = len(about)
    if not all(isinstance(node, int | np.integer) and not isinstance(node, bool) and 0 <= node < 1 << 62 for node in about):
        raise SonaTypeError("graph: expected ints of at least 0 as nodes, which become ids; networkx.convert_node_labels_to_integers helps")
    if n > graph.max_nodes:
        raise SonaValueError(f"graph: expected at most max_nodes={graph.max_nodes} nodes, got {n}")
    ids = np.fromiter(map(int, about), np.int64, n)
    kinds = np.fromiter((_kind(one.get("kind", NodeKind.MEMORY)) for one in about.values()), np.uint8, n)
    quality = within([one.get("quality", 0.5) for one in about.values()], n, "quality") if n else np.empty(0, np.float32)
    strength = within([one.get("strength", START) for one in about.values()], n, "strength", above=True) if n else quality
    counts = {name: _counts([one.get(name, least) for one in about.values()], name, least) for name, least in _COUNTS.items()}
    keys = counts.pop("key")
    vectors = np.zeros((n, graph.dim), np.float32)
    for i, one in enumerate(about.values()):
        if one.get("vector") is not None:
            vectors[i] = unit_rows(one["vector"], (graph.dim,), "vector")
    texts = [text_of(one.get("data")) for one in about.values()]
    graph._nodes.check_keys(kinds, keys)
    edges = _edges(source, {int(id): i for i, id in enumerate(about)})
    graph._nodes.add(
        vectors,
        ids=ids,
        kinds=kinds,
        quality=quality,
        strength=np.maximum(strength, np.float32(LEAST_STRENGTH)),
        keys=keys,
        touched=0,
        data=texts,
        **counts,
    )
    graph._adjacency.grow(n)
    graph._adjacency.edit(*edges)
    newest = max(counts["born"].max(initial=0), counts["last_used"].max(initial=0))
    graph.cycle = max(whole(source.graph.get("cycle", 0), 0, "cycle"), int(newest))
    if len(graph._adjacency.edges()[0]) != len(edges[0]):
        raise SonaValueError(f"graph: expected at most max_degree={graph.max_degree} edges of a node, half of them similarities, got more")


def _kind(value: Any) -> int:
    name = value.name if isinstance(value, NodeKind) else str(value).upper()
    if name not in NodeKind.__members__:
        raise SonaValueError(f"kind: expected one of {[kind.name.lower() for kind in NodeKind]}, got {value!r}")
    return NodeKind[name].value


def _counts(values: list[Any], name: str, least: int) -> npt.NDArray[np.int64]:
    if not all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values):
        raise SonaTypeError(f"{name}: expected ints")
    if not all(least <= value < 1 << 63 for value in values):
        raise SonaValueError(f"{name}: expected ints in [{least}, 2**63), got {min(values)} to {max(values)}")
    return np.array(values, np.int64)


def _edges(source: Any, place: dict[int, int]) -> tuple[Longs, Longs, Kinds, Floats]:
    """Positions of ends, kinds and weights. An edge without a weight of one of the kinds is a co-activation of its `weight`, or of 1."""
    u, v, kinds, weights = [], [], [], []
    for a, b, about in source.edges(data=True):
        if a == b:
            continue
        own = {kind: about[name] for name, kind in _NAMES.items() if name in about} or {EdgeKind.COACTIVATION: about.get("weight", 1.0)}
        for kind, weight in own.items():
            u.append(place[int(a)])
            v.append(place[int(b)])
            kinds.append(kind.value)
            weights.append(weight)
    weight = within(weights, len(weights), "weight", above=True) if weights else np.empty(0, np.float32)
    return np.array(u, np.int64), np.array(v, np.int64), np.array(kinds, np.uint8), weight
