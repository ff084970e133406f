"""A memory graph as arrays that a file can hold, and back."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaCorruptError
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.nodes import COLUMNS

if TYPE_CHECKING:
    from sona.memory.readable import Readable

Array = npt.NDArray[Any]
_EDGES = {"edge_u": np.int32, "edge_v": np.int32, "edge_kind": np.uint8, "edge_weight": np.float32}


def state(graph: "Readable") -> dict[str, Array]:
    """Under the lock of the graph; see `MemoryGraph.state`."""
    nodes = graph._nodes
    texts = [b"" if text is None else text.encode() for text in nodes.data]
    edges: list[Array] = [*graph._adjacency.edges()]
    return {
        "graph": np.array([graph.dim, graph.cycle, graph._version, nodes.next], np.int64),
        **{name: nodes.columns.view(name) for name in (*COLUMNS, "vectors")},
        **{name: column.astype(dtype) for (name, dtype), column in zip(_EDGES.items(), edges, strict=True)},
        "data": np.frombuffer(b"".join(texts), np.uint8).copy(),
        "data_stop": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "merged": np.array(list(nodes.merged.items()), np.int64).reshape(-1, 2),
    }


class _Reader:
    """Arrays by name, as they must be."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = arrays

    def get(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> Array:
        if name not in self.arrays:
            raise SonaCorruptError(f"memory graph: expected an array {name!r}, got none")
        array = np.asarray(self.arrays[name])
        fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
        if array.dtype != dtype or not fits:
            raise SonaCorruptError(f"memory graph: expected {name} {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
        return array


def sound(condition: Any, what: str) -> None:
    if not np.all(condition):
        raise SonaCorruptError(f"memory graph: expected {what}, got something else")


def dimension(arrays: Mapping[str, Any]) -> int:
    """Of the vectors; SonaCorruptError where there is none."""
    dim = int(_Reader(arrays).get("graph", np.int64, (4,))[0])
    sound(dim >= 1, "at least one dimension")
    return dim


def fill(graph: "Readable", arrays: Mapping[str, Any]) -> None:
    """Put what `state` returned into a new graph. SonaCorruptError for anything else."""
    reader = _Reader(arrays)
    _, cycle, version, following = reader.get("graph", np.int64, (4,)).tolist()
    ids = reader.get("ids", np.int64, (None,))
    n = len(ids)
    columns = {name: reader.get(name, dtype, (n,)) for name, dtype in COLUMNS.items()}
    vectors = reader.get("vectors", np.float32, (n, graph.dim))
    u, v, kind, weight = _edges(reader, n)
    merged = reader.get("merged", np.int64, (None, 2))
    sound(min(cycle, version, following) >= 0, "counts of at least 0")
    sound(n <= graph.max_nodes, f"at most {graph.max_nodes} nodes")
    sound((ids >= 0) & (ids < following), "ids below the next one")
    sound(len(np.unique(ids)) == n, "distinct ids")
    norm = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    sound(np.isfinite(norm) & ((norm == 0) | (np.abs(norm - 1) < 1e-3)), "vectors of norm 1 or 0")
    sound(columns["kinds"] < len(NodeKind), "known kinds of nodes")
    sound((columns["quality"] >= 0) & (columns["quality"] <= 1), "qualities in [0, 1]")
    sound((columns["strength"] > 0) & (columns["strength"] <= 1), "strengths in (0, 1]")
    sound((columns["uses"] >= 0) & (columns["keys"] >= -1), "uses of at least 0 and keys of at least -1")
    for name, least in (("born", 0), ("last_used", -1)):
        sound((columns[name] >= least) & (columns[name] <= cycle), f"{name} in [{least}, {cycle}]")
    keyed = columns["keys"] >= 0
    pairs = np.stack([columns["kinds"][keyed].astype(np.int64), columns["keys"][keyed]], axis=1)
    sound(len(np.unique(pairs, axis=0)) == len(pairs), "distinct keys of each kind")
    sound(np.isin(merged[:, 1], ids) & ~np.isin(merged[:, 0], ids) & (merged >= 0).all(axis=1), "merged ids that stand for nodes")
    sound((merged[:, 0] < following) & (len(np.unique(merged[:, 0])) == len(merged)), "merged ids that were given once")

    graph._nodes.add(vectors, **columns, touched=0, data=_texts(reader, n))
    graph._nodes.next, graph._nodes.merged = following, dict(merged.tolist())
    graph._adjacency.grow(n)
    graph._adjacency.edit(u, v, kind, weight)
    graph._cycle, graph._version = cycle, version
    sound(len(graph._adjacency.edges()[0]) == len(u), f"each edge once and at most {graph.max_degree} of a node")


def _edges(reader: _Reader, n: int) -> tuple[Array, Array, Array, Array]:
    m = len(reader.get("edge_u", np.int32, (None,)))
    u, v, kind, weight = (reader.get(name, dtype, (m,)) for name, dtype in _EDGES.items())
    sound((u >= 0) & (u < v) & (v < n), "edges between two nodes")
    sound(kind < len(EdgeKind), "known kinds of edges")
    sound((weight > 0) & (weight <= 1), "weights in (0, 1]")
    return u.astype(np.int64), v.astype(np.int64), kind, weight


def _readable(text: str) -> None:
    """ValueError for what is no JSON."""
    with suppress(RecursionError):  # how deep data may be nested depends on how deep the caller is: they were put in from less deep
        json.loads(text)


def _texts(reader: _Reader, n: int) -> list[str | None]:
    stop = reader.get("data_stop", np.int64, (n,))
    raw = reader.get("data", np.uint8, (int(stop[-1]) if n else 0,)).tobytes()
    start = np.concatenate([[0], stop[:-1]]) if n else stop
    sound(stop >= start, "data one behind the other")
    try:
        texts = [raw[a:b].decode() or None for a, b in zip(start.tolist(), stop.tolist(), strict=True)]
        for text in texts:
            if text is not None:
                _readable(text)
    except ValueError as error:
        raise SonaCorruptError(f"memory graph: expected data in JSON ({error})") from None
    return texts
