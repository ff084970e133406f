"""The memory graph: what was learned and put in, as vectors that are joined by weighted edges."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from sona._arrays import Floats
from sona._kernels import Kernels
from sona.errors import SonaTypeError, SonaValueError
from sona.memory import exchange, hebb, state
from sona.memory.apply import apply
from sona.memory.change import GraphChange
from sona.memory.checks import ids_of, kinds_of, text_of, unit_rows, whole, within
from sona.memory.csr import Longs
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.nearest import nearest
from sona.memory.nodes import START
from sona.memory.readable import Readable
from sona.memory.recall import Recalled, blended, seeds

_SHORT = 1024  # nodes that are connected under the lock

ROUNDING = 1e-6  # of a number of a vector of length 1: less is no change


class MemoryGraph(Readable):
    """
    Nodes with a vector each, joined by edges of three kinds, see `NodeKind` and `EdgeKind`.

    Bounded: `max_nodes` nodes, `max_degree` edges a node, weights and strengths in (0, 1]. An id is never used again; that of a node that
    was merged into another stands for the other. Nodes also have positions 0 to n - 1, which change when others are removed.

    Parameters
    ----------
    dim : int
        Length of the vectors.
    max_nodes : int
        When there is no room, `add` removes episodes, then memories; of each first what was not used in this cycle or the last, then what
        has the smallest strength times quality. Never a pattern.
    max_degree : int
        An edge stays where it is among the heaviest of both its ends; at most half of them may be similarities, so that there is room for
        what is learned.

    Attributes
    ----------
    cycle : int
        Deep cycles so far; whoever runs them sets it, to no less than it was. Births and uses are dated with it.
    ids, vectors, kinds, quality, strength, uses, last_used, born, keys
        Columns by position as in `GraphSnapshot`, read-only; they stay as they are when the graph goes on.

    Thread-safety
    -------------
    Methods take turns under one lock. A `snapshot`, a `csr` and a column do not change any more; whoever computes for long takes one.
    """

    def __init__(self, dim: int, *, max_nodes: int = 50_000, max_degree: int = 32) -> None:
        super().__init__(dim, max_nodes=max_nodes, max_degree=max_degree)
        self._kernels = Kernels()

    # ---- nodes ----

    def add(
        self,
        vector: Any,
        *,
        kind: NodeKind = NodeKind.MEMORY,
        quality: float = 0.5,
        key: int | None = None,
        data: Any = None,
        link: int = 8,
    ) -> int:
        """
        Add a node.

        Parameters
        ----------
        vector : (dim,) array_like
            Its direction counts; zero is similar to nothing.
        kind : NodeKind
        quality : float in [0, 1]
        key : int, optional
            What the caller knows it by, in [0, 2**63) and unique among nodes of its kind.
        data : object
            Anything that JSON can write.
        link : int
            How many similarity edges to make, see `connect`.

        Returns
        -------
        int
            Its id, which is never used again.

        Raises
        ------
        SonaValueError, SonaTypeError
            For an argument that cannot be used, and where there is no room but in place of patterns.
        """
        vectors = unit_rows(vector, (self.dim,), "vector")[None]
        return int(self._add(vectors, kind, quality, None if key is None else [key], None if data is None else [data], link)[0])

    def add_many(
        self,
        vectors: Any,
        *,
        kind: Any = NodeKind.MEMORY,
        quality: Any = 0.5,
        keys: Any = None,
        data: Sequence[Any] | None = None,
        link: int = 8,
    ) -> Longs:
        """`add` for vectors of shape (n, dim); kind and quality are one or (n,). All are added or none. Returns the ids, (n,) int64."""
        return self._add(unit_rows(vectors, (None, self.dim), "vectors"), kind, quality, keys, data, link)

    def _add(self, vectors: Floats, kind: Any, quality: Any, keys: Any, data: Sequence[Any] | None, link: int) -> Longs:
        n = len(vectors)
        kinds, qualities, link = kinds_of(kind, n, NodeKind), within(quality, n, "quality"), whole(link, 0, "link")
        own_keys = np.full(n, -1, np.int64) if keys is None else ids_of(keys, "keys" if n > 1 else "key")
        texts: list[str | None] = [None] * n if data is None else [text_of(one) for one in data]
        if len(own_keys) != n or len(texts) != n:
            raise SonaValueError(f"keys, data: expected one for each of {n} vectors, got {len(own_keys)} and {len(texts)}")
        with self._lock:
            self._nodes.check_keys(kinds, own_keys)
            self._make_room(n)
            self._version += 1
            ids = np.arange(self._nodes.next, self._nodes.next + n)
            self._nodes.add(
                vectors,
                ids=ids,
                kinds=kinds,
                quality=qualities,
                strength=START,
                uses=0,
                last_used=-1,
                born=self.cycle,
                keys=own_keys,
                touched=self._version,
                data=texts,
            )
            self._adjacency.grow(n)
        if link:
            self._connect(ids, link, missing=True)  # others may have pushed them out by now
        return ids

    def _make_room(self, count: int) -> None:
        """Remove the worst so that `count` more fit."""
        many = len(self) + count - self.max_nodes
        if many <= 0:
            return
        worst = self._nodes.least_worth(many, max(self.cycle - 1, 0))
        if many > len(worst):
            raise SonaValueError(
                f"max_nodes: expected room for {count} more among {self.max_nodes}, got {len(self)} nodes of which {len(worst)} may be "
                f"removed: no patterns"
            )
        self._take_out(worst)

    def shrink(self, max_nodes: int) -> None:
        """Another bound on the nodes; what `add` would remove first goes, and SonaValueError where there are more patterns than that."""
        with self._lock:
            before, self.max_nodes = self.max_nodes, whole(max_nodes, 1, "max_nodes")
            try:
                if len(self) > max_nodes:
                    self._version += 1
                self._make_room(0)
            except SonaValueError:
                self.max_nodes = before
                raise

    def update(self, ids: Any, *, vectors: Any = None, quality: Any = None, link: int = 8) -> None:
        """
        Give nodes other vectors or qualities; where a vector changes by more than 1e-6 its similarity edges are made anew.

        Parameters
        ----------
        ids : int or (n,) ints
            Distinct.
        vectors : (n, dim) array_like, optional
        quality : float or (n,), optional
        link : int
            Similarity edges to make for each.
        """
        wanted, link = ids_of(ids, "ids"), whole(link, 0, "link")
        rows = None if vectors is None else unit_rows(np.atleast_2d(np.asarray(vectors)), (len(wanted), self.dim), "vectors")
        own = None if quality is None else within(quality, len(wanted), "quality")
        with self._lock:
            places = self.positions(wanted)
            if len(np.unique(places)) != len(places):
                raise SonaValueError(f"ids: expected distinct nodes, got {wanted.tolist()[:8]}")
            self._version += 1
            self._nodes.columns.own("touched")[places] = self._version
            if own is not None:
                self._nodes.columns.own("quality")[places] = own
            if rows is None:
                return
            moved = np.flatnonzero(np.abs(self._nodes.columns["vectors"][places] - rows).max(axis=1) > ROUNDING)
            if len(moved):
                places, wanted = places[moved], wanted[moved]
                self._nodes.columns.own("vectors")[places] = rows[moved]
                self._moves += 1
                row, column, kind, weight = self._adjacency.rows(places)
                alike = kind == EdgeKind.SIMILARITY
                self._adjacency.edit(row[alike], column[alike].astype(np.int64), kind[alike], np.zeros_like(weight[alike]))
                if link:
                    self.connect(wanted, link)

    def remove(self, ids: Any) -> int:
        """Take nodes and their edges out; ids that are not there are no error. Returns how many there were."""
        wanted = ids_of(ids, "ids")
        with self._lock:
            places = self._nodes.places(wanted)
            places = np.unique(places[places >= 0])
            if len(places):
                self._version += 1
                self._take_out(places)
            return len(places)

    def _take_out(self, places: Longs) -> None:
        self._nodes.take_out(places, self._adjacency.take_out(places))

    # ---- edges ----

    def _ends(self, u: Any, v: Any) -> tuple[Longs, Longs]:
        """Positions of the ends of edges; under the lock."""
        i, j = ids_of(u, "u"), ids_of(v, "v")
        if len(i) != len(j):
            raise SonaValueError(f"u, v: expected as many of one as of the other, got {len(i)} and {len(j)}")
        at, to = self.positions(i), self.positions(j)
        if (at == to).any():
            raise SonaValueError(f"u, v: expected two nodes, got {i[np.argmax(at == to)]} twice")
        return at, to

    def link(self, u: Any, v: Any, kind: Any, weight: Any) -> None:
        """
        Join nodes, or give an edge that is there another weight.

        Parameters
        ----------
        u, v : int or (m,) ints
            Ids; u != v.
        kind : EdgeKind or (m,)
        weight : float or (m,) in (0, 1]
        """
        with self._lock:
            i, j = self._ends(u, v)
            kinds, weights = kinds_of(kind, len(i), EdgeKind), within(weight, len(i), "weight", above=True)
            if len(i):
                self._version += 1
                self._adjacency.edit(i, j, kinds, weights)

    def unlink(self, u: Any, v: Any, kind: Any) -> None:
        """Take edges out, where they are there; parameters as of `link`."""
        with self._lock:
            i, j = self._ends(u, v)
            kinds = kinds_of(kind, len(i), EdgeKind)
            if len(i):
                self._version += 1
                self._adjacency.edit(i, j, kinds, np.zeros(len(i), np.float32))

    def connect(self, ids: Any = None, k: int = 8) -> None:
        """
        Similarity edges from nodes to the k nearest others, where the cosine is above 0; the weight is the cosine.

        Edges that are there stay. All nodes by default, in time of n² dim: 50,000 of 384 take about 15 s on one core, and memory for a few
        blocks of rows. More than a thousand are compared without the lock: what is removed meanwhile is left out.
        """
        self._connect(ids, whole(k, 1, "k"), missing=False)

    def _connect(self, ids: Any, k: int, *, missing: bool) -> None:
        """`connect`, where ids that are `missing` may be left out."""
        columns = self._nodes.columns
        with self._lock:
            rows = None if ids is None else self._present(ids) if missing else np.unique(self.positions(ids))
            if rows is not None and len(rows) <= _SHORT:
                self._join(*nearest(columns["vectors"], k, rows))
                return
            vectors, known, moves = columns.view("vectors"), columns.view("ids"), self._moves
        row, other, similarity = nearest(vectors, k, rows)  # for long: the others go on
        with self._lock:
            if self._moves != moves:  # rarely: again, while they wait
                row, other, similarity = nearest(columns["vectors"], k, None if ids is None else self._present(known[rows]))
            else:
                place = self._nodes.places(known)
                place[place >= 0] = np.where(columns["ids"][place[place >= 0]] == known[place >= 0], place[place >= 0], -1)
                there = (place[row] >= 0) & (place[other] >= 0)
                row, other, similarity = place[row[there]], place[other[there]], similarity[there]
            self._join(row, other, similarity)

    def _present(self, ids: Longs) -> Longs:
        places = self._nodes.places(ids)
        return np.unique(places[places >= 0])

    def _join(self, row: Longs, other: Longs, similarity: Floats) -> None:
        if len(row):
            self._version += 1
            self._adjacency.edit(row, other, np.full(len(row), EdgeKind.SIMILARITY, np.uint8), similarity)

    # ---- use ----

    def recall(self, x: Any, k: int = 10, *, hops: int = 0, mark: bool = True) -> list[Recalled]:
        """
        The k nodes that fit x of shape (dim,) best.

        Parameters
        ----------
        x : (dim,) array_like
        k : int
        hops : int
            0 ranks by cosine. Else by the mean of the cosine and of what `propagate` brings to the node in so many hops, scaled to the
            largest cosine.
        mark : bool
            Whether this counts as a use.
        """
        query, k, hops = unit_rows(x, (self.dim,), "x"), whole(k, 0, "k"), whole(hops, 0, "hops")
        with self._lock:
            k = min(k, len(self))
            if not k:
                return []
            vectors = self._nodes.columns["vectors"]
            if hops:
                places, similarity, score = blended(vectors, query, self.propagate(query, hops), k)
            else:
                places, similarity = self._kernels.top_k(vectors, query, k)
                score = similarity
            if mark:
                self._mark(places)
            columns = (self._nodes.columns[name][places].tolist() for name in ("ids", "kinds", "quality"))
            texts = [self._nodes.data[place] for place in places.tolist()]
            rows = list(zip(*columns, similarity.tolist(), score.tolist(), texts, strict=True))
        return [
            Recalled(id, NodeKind(kind), like, by, quality, None if text is None else json.loads(text))
            for id, kind, quality, like, by, text in rows
        ]

    def _mark(self, places: Longs) -> None:
        self._version += 1
        np.add.at(self._nodes.columns.own("uses"), places, 1)
        self._nodes.columns.own("last_used")[places] = self.cycle
        self._nodes.columns.own("touched")[places] = self._version

    def touch(self, ids: Any) -> None:
        """Count a use of each of these ids, as often as it is there, and nothing else; those that are gone are left out."""
        wanted = ids_of(ids, "ids")
        with self._lock:
            places = self._nodes.places(wanted)
            self._mark(places[places >= 0])

    def used(self, ids: Any, retrieved: Any = (), *, missing: bool = False) -> int:
        """
        Learn from one use of the memory, by Hebb's rule.

        Nodes that were used get stronger by 5 % of what is missing to 1, those that were only retrieved weaker by 2 %; the same for the
        co-activation edges between two used nodes, which are made where there are none, and between a used one and one only retrieved.

        Parameters
        ----------
        ids : (m,) ints
            At most 32.
        retrieved : ints
            May contain `ids`.
        missing : bool
            Whether ids that are not there are left out; else they are an error.

        Returns
        -------
        int
            How many of `ids` are there.
        """
        wanted, others = ids_of(ids, "ids"), ids_of(retrieved, "retrieved")
        with self._lock:
            if missing:
                wanted, others = (some[self._nodes.places(some) >= 0] for some in (wanted, others))
            used = np.unique(self.positions(wanted))
            unused = np.setdiff1d(self.positions(others), used)
            if len(used) > hebb.TOGETHER:
                raise SonaValueError(f"ids: expected at most {hebb.TOGETHER} nodes that were used together, got {len(used)}")
            self._mark(used)
            hebb.strengths(self._nodes.columns.own("strength"), used, unused)
            hebb.together(self._adjacency, used, unused)
        return len(wanted)

    def coactivate(self, u: Any, v: Any, gain: Any) -> int:
        """
        Move the co-activation edges between ids u and v by `gain`, in (0, 1], of what is missing to 1; none counts as 0.

        Pairs of which one is gone, or that were merged into one, are left out. Returns how many edges were moved.
        """
        i, j = ids_of(u, "u"), ids_of(v, "v")
        if len(i) != len(j):
            raise SonaValueError(f"u, v: expected as many of one as of the other, got {len(i)} and {len(j)}")
        gains = within(gain, len(i), "gain", above=True)
        with self._lock:
            at, to = self._nodes.places(i), self._nodes.places(j)
            there = (at >= 0) & (to >= 0) & (at != to)
            low, high = np.minimum(at, to)[there], np.maximum(at, to)[there]
            pair, which = np.unique(low * len(self) + high, return_inverse=True)
            left = np.ones(len(pair))
            np.multiply.at(left, which, 1 - gains[there])  # gains of one pair, after merges, compose
            self._version += 1
            hebb.coactivate(self._adjacency, pair // len(self), pair % len(self), (1 - left).astype(np.float32))
            return len(pair)

    def propagate(self, x: Any, hops: int = 3, alpha: float = 0.85) -> Floats:
        """
        What reaches each node when the nodes nearest to x of shape (dim,), as much as they are similar, send on over the edges.

        Returns
        -------
        (n,) float32
            By position; see `sona.memory.propagate.propagate`.
        """
        from sona.memory.propagate import propagate

        query = unit_rows(x, (self.dim,), "x")
        with self._lock:
            csr, start = self.csr(), seeds(self._nodes.columns["vectors"], query, self._kernels)
        if not len(csr):
            return start
        result: Floats = np.asarray(propagate(csr, start, hops, alpha), np.float32)
        return result

    def apply(self, change: GraphChange) -> dict[str, int]:
        """
        Make a change, all of it or none; see `GraphChange`.

        Returns
        -------
        dict
            How many were unlinked, decayed, linked, strengthened, merged, removed, and skipped because the graph has gone on.

        Raises
        ------
        SonaValueError, SonaTypeError
            For weights and factors outside of their ranges, ends that are one node, and nodes to be merged whose kind or data differ.
        """
        if not isinstance(change, GraphChange):
            raise SonaTypeError(f"change: expected a GraphChange, got {type(change).__name__}")
        with self._lock:
            return apply(self, change)

    # ---- other forms ----

    @classmethod
    def from_state(cls, arrays: Mapping[str, Any], *, max_nodes: int = 50_000, max_degree: int = 32) -> Self:
        """
        The graph whose `state` this is: same ids, positions and rows, so that the same walks come out.

        Raises
        ------
        SonaCorruptError
            For arrays that are missing, of another type or shape, that contradict each other, or hold more than the bounds allow.
        """
        graph = cls(state.dimension(arrays), max_nodes=max_nodes, max_degree=max_degree)
        state.fill(graph, arrays)
        return graph

    @classmethod
    def from_networkx(cls, graph: Any, dim: int, *, max_nodes: int = 50_000, max_degree: int = 32) -> Self:
        """
        From a networkx.Graph with ids as nodes and the attributes that `to_networkx` gives.

        All attributes may be missing: a memory of quality 0.5 with a zero vector, an edge of weight 1. An edge that is of none of the three
        kinds is a co-activation of its weight. Edges from a node to itself are left out.

        Raises
        ------
        SonaTypeError
            For a directed or a multigraph, nodes that are no ints, and attributes of a wrong type.
        SonaValueError
            For weights outside of (0, 1], NaN among them, other attributes out of range, and more nodes or edges than the bounds allow.
        """
        result = cls(dim, max_nodes=max_nodes, max_degree=max_degree)
        exchange.fill(result, graph)
        return result
