"""How a `GraphChange` is carried out: everything is looked at before anything is done."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.errors import SonaTypeError, SonaValueError
from sona.memory.change import GraphChange
from sona.memory.checks import Kinds, ids_of, kinds_of, whole, within
from sona.memory.csr import Longs
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.nodes import LEAST_STRENGTH

if TYPE_CHECKING:
    from sona.memory.graph import MemoryGraph

Flags = npt.NDArray[np.bool_]


def _pairs(graph: "MemoryGraph", pair: Any, name: str) -> tuple[Longs, Longs, Flags]:
    """Positions of two columns of ids, and which rows have both."""
    u, v = (ids_of(column, name) for column in pair)
    if len(u) != len(v):
        raise SonaValueError(f"{name}: expected columns of one length, got {len(u)} and {len(v)}")
    if (u == v).any():
        raise SonaValueError(f"{name}: expected two nodes, got {u[np.argmax(u == v)]} twice")
    i, j = graph._nodes.places(u), graph._nodes.places(v)
    return i, j, (i >= 0) & (j >= 0) & (i != j)


def _factors(decay: Any) -> Floats:
    if not all(isinstance(kind, int) and 0 <= kind < len(EdgeKind) for kind in decay):
        raise SonaTypeError(f"decay: expected factors by EdgeKind, got {dict(decay)}")
    factors = np.ones(len(EdgeKind), np.float32)
    for kind, factor in decay.items():
        factors[kind] = within(factor, 1, "decay")[0]
    return factors


def _chains(old: Longs, into: Longs) -> Longs:
    """Where each of `old` ends when those it goes into go on themselves. SonaValueError for circles and for nodes that go twice."""
    if len(np.unique(old)) != len(old):
        raise SonaValueError("merge: expected every node to go into one other")
    goes, end = dict(zip(old.tolist(), into.tolist(), strict=True)), into.copy()
    for _ in range(len(old)):
        further = np.fromiter((goes.get(node, node) for node in end.tolist()), np.int64, len(end))
        if (further == end).all():
            return end
        end = further
    if len(old):
        raise SonaValueError("merge: expected nodes that go into one that stays, got a circle")
    return end


def apply(graph: "MemoryGraph", change: GraphChange) -> dict[str, int]:
    """Under the lock of the graph; see `MemoryGraph.apply`."""
    columns, adjacency = graph._nodes.columns, graph._adjacency
    based_on = whole(change.based_on, 0, "based_on")
    unlink_i, unlink_j, unlinked = _pairs(graph, change.unlink[:2], "unlink")
    unlink_kind = kinds_of(change.unlink[2], len(unlink_i), EdgeKind)
    factors = _factors(change.decay)
    link_i, link_j, linked = _pairs(graph, change.link[:2], "link")
    link_kind = kinds_of(change.link[2], len(link_i), EdgeKind)
    link_weight = within(change.link[3], len(link_i), "link", above=True)
    strong = graph._nodes.places(ids_of(change.strengthen[0], "strengthen"))
    factor = np.asarray(change.strengthen[1], np.float32)
    if factor.shape != strong.shape or not (np.isfinite(factor) & (factor > 0)).all():
        raise SonaValueError(f"strengthen: expected {len(strong)} finite factors above 0, got {factor.tolist()[:8]}")
    gone = np.unique(graph._nodes.places(ids_of(change.remove, "remove")))
    old, into, merged = _pairs(graph, change.merge, "merge")
    fresh = columns["touched"] > based_on
    merged &= ~fresh[old] if len(fresh) else False
    removed = gone[gone >= 0]
    removed = removed[~fresh[removed]] if len(removed) else removed
    skipped = sum(int(np.count_nonzero(~flags)) for flags in (unlinked, linked, strong >= 0, merged))
    old, into = old[merged], _chains(old[merged], into[merged])
    removed = np.setdiff1d(removed, np.concatenate([old, into]))
    skipped += len(np.unique(ids_of(change.remove, "remove"))) - len(removed)
    _mergeable(graph, old, into)

    graph._version += 1
    counts = {"unlinked": int(unlinked.sum()), "decayed": 0, "linked": int(linked.sum()), "strengthened": int((strong >= 0).sum())}
    adjacency.edit(unlink_i[unlinked], unlink_j[unlinked], unlink_kind[unlinked], np.zeros(int(unlinked.sum()), np.float32))
    if (factors != 1).any():
        counts["decayed"] = int((factors[adjacency.edges()[2]] != 1).sum())
        adjacency.decay(factors)
    adjacency.edit(link_i[linked], link_j[linked], link_kind[linked], link_weight[linked])
    strength = columns.own("strength")
    np.multiply.at(strength, strong[strong >= 0], factor[strong >= 0])
    np.clip(strength, LEAST_STRENGTH, 1, out=strength)
    _merge(graph, old, into)
    graph._take_out(np.union1d(removed, old))
    return {**counts, "merged": len(old), "removed": len(removed), "skipped": skipped}


def _mergeable(graph: "MemoryGraph", old: Longs, into: Longs) -> None:
    kinds, data = graph._nodes.columns["kinds"], graph._nodes.data
    for one, other in zip(old.tolist(), into.tolist(), strict=True):
        if kinds[one] != kinds[other] or data[one] != data[other]:
            ids = graph._nodes.columns["ids"]
            what = [f"{NodeKind(int(kinds[node])).name} {ids[node]} with data {data[node]}" for node in (one, other)]
            raise SonaValueError(f"merge: expected nodes of one kind with equal data, got {what[0]} into {what[1]}")


def _merge(graph: "MemoryGraph", old: Longs, into: Longs) -> None:
    """Edges, uses and ids of `old` go over to `into`; the nodes themselves are left to be taken out."""
    if not len(old):
        return
    columns, adjacency = graph._nodes.columns, graph._adjacency
    place = np.arange(columns.n)
    place[old] = into
    row, there, kind, weight = adjacency.rows(old)
    row, column = place[row], place[there]
    other = row != column
    row, column, kind, weight = _heaviest(row[other], column[other], kind[other], weight[other])
    for one in EdgeKind:  # an edge that is there is replaced by a heavier one alone
        own = kind == one
        weight[own] = np.maximum(weight[own], adjacency.weights(row[own], column[own], one))
    adjacency.edit(row, column, kind, weight)
    np.add.at(columns.own("uses"), into, columns["uses"][old])
    for name in ("strength", "quality", "last_used", "touched"):
        np.maximum.at(columns.own(name), into, columns[name][old])
    np.minimum.at(columns.own("born"), into, columns["born"][old])
    graph._nodes.stands_for(columns["ids"][old].tolist(), columns["ids"][into].tolist(), graph.max_nodes)


def _heaviest(row: Longs, column: Longs, kind: Kinds, weight: Floats) -> tuple[Longs, Longs, Kinds, Floats]:
    """Both ends in ascending order, the heaviest of the same edge last, where it counts."""
    order = np.argsort(weight, kind="stable")
    low, high = np.minimum(row, column)[order], np.maximum(row, column)[order]
    return low, high, kind[order], weight[order]
