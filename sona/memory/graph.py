"""The memory graph: what was learned and put in, as vectors that are joined by weighted edges."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np

from sona._arrays import Floats
from sona._kernels import Kernels
from sona.errors import SonaTypeError, SonaValueError
from sona.memory.adjacency import LEAST_WEIGHT, Adjacency
from sona.memory.change import GraphChange
from sona.memory.checks import Kinds, ids_of, kinds_of, text_of, unit_rows, whole, within
from sona.memory.csr import Csr, Longs
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.nearest import nearest
from sona.memory.nodes import COLUMNS, LEAST_STRENGTH, START, Nodes
from sona.memory.snapshot import GraphSnapshot, _by_kind

_USED, _UNUSED = 0.05, 0.02  # Hebbian: share of what is missing to 1 that a use adds, and of what is there that it costs to be passed over
_TOGETHER = 32  # most nodes of one `used`: all pairs of them are joined
_SEEDS = 16  # nearest nodes that `propagate` starts from

T = TypeVar("T")


class _Column(Generic[T]):
    """A column of the graph by position: read-only, and it stays as it is when the graph goes on."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, graph: "MemoryGraph | None", owner: type) -> T:
        found: Any = self
        if graph is not None:
            with graph._lock:
                found = graph._nodes.columns.view(self.name)
        return cast(T, found)


@dataclass(frozen=True, slots=True)
class Recalled:
    """A node that `MemoryGraph.recall` found.

    Attributes
    ----------
    id : int
    kind : NodeKind
    similarity : float
        Cosine to the query.
    score : float
        What it was ranked by.
    quality : float
    data : object
        As it was put in, through JSON.
    """

    id: int
    kind: NodeKind
    similarity: float
    score: float
    quality: float
    data: Any


class MemoryGraph:
    """
    Nodes with a vector each, joined by edges of three kinds, see `NodeKind` and `EdgeKind`.

    Bounded: `max_nodes` nodes, `max_degree` edges a node, weights and strengths in (0, 1]. An id is never used again; that of a node that
    was merged into another stands for the other. Nodes also have positions 0 to n - 1, which change when others are removed.

    Parameters
    ----------
    dim : int
        Length of the vectors.
    max_nodes : int
        When there is no room, `add` removes episodes, then memories, those with the smallest strength times quality first; never a pattern,
        and never what was used in this cycle or the last.
    max_degree : int
        An edge stays where it is among the heaviest of both its ends; at most half of them may be similarities, so that there is room for
        what is learned.

    Attributes
    ----------
    cycle : int
        Deep cycles so far; whoever runs them counts. Births and uses are dated with it.
    ids, vectors, kinds, quality, strength, uses, last_used, born, keys
        Columns by position as in `GraphSnapshot`, read-only; they stay as they are when the graph goes on.

    Thread-safety
    -------------
    Methods take turns under one lock. A `snapshot`, a `csr` and a column do not change any more; whoever computes for long takes one.
    """

    ids: _Column[Longs] = _Column("ids")
    vectors: _Column[Floats] = _Column("vectors")
    kinds: _Column[Kinds] = _Column("kinds")
    quality: _Column[Floats] = _Column("quality")
    strength: _Column[Floats] = _Column("strength")
    uses: _Column[Longs] = _Column("uses")
    last_used: _Column[Longs] = _Column("last_used")
    born: _Column[Longs] = _Column("born")
    keys: _Column[Longs] = _Column("keys")

    def __init__(self, dim: int, *, max_nodes: int = 50_000, max_degree: int = 32) -> None:
        self.dim = whole(dim, 1, "dim")
        self.max_nodes = whole(max_nodes, 1, "max_nodes")
        self.max_degree = whole(max_degree, 1, "max_degree")
        self.cycle = 0
        self._lock = threading.RLock()
        self._nodes = Nodes(self.dim)
        self._adjacency = Adjacency(self.max_degree)
        self._version = 0
        self._moves = 0  # vectors changed so far
        self._kernels = Kernels()

    # ---- looking ----

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, id: Any) -> bool:
        return id in self._nodes

    @property
    def version(self) -> int:
        """Changes so far; uses count."""
        return self._version

    @property
    def nbytes(self) -> int:
        """Memory of columns and edges, without data."""
        return self._nodes.columns.nbytes + self._adjacency.nbytes

    @property
    def degree(self) -> Longs:
        """Edges of each node, (n,) int64."""
        with self._lock:
            return self._adjacency.degree()

    def data(self, id: int) -> Any:
        """What was put in with a node."""
        with self._lock:
            text = self._nodes.data[self.position(id)]
        return None if text is None else json.loads(text)

    def resolve(self, id: int) -> int | None:
        """The id of the node that an id stands for, another one after a merge; None where there is none any more."""
        with self._lock:
            return self._nodes.resolve(id)

    def find(self, key: int, kind: NodeKind = NodeKind.MEMORY) -> int | None:
        """Id of the node of this kind that was added with `key`; None where there is none."""
        with self._lock:
            return self._nodes.find(int(kind), key)

    def position(self, id: int) -> int:
        """Where the node with this id stands. SonaValueError where there is none."""
        return int(self.positions(id)[0])

    def positions(self, ids: Any) -> Longs:
        """Where the nodes with these ids stand, (n,) int64. SonaValueError where there is none."""
        with self._lock:
            return self._nodes.positions(ids)

    def edge(self, u: int, v: int) -> dict[EdgeKind, float]:
        """Weights of the edges between two ids, by kind."""
        with self._lock:
            i, j = self.positions([u, v]).tolist()
            column, kind, weight = self._adjacency.row(i)
            return _by_kind(column == j, kind, weight)

    def edges(self, kind: EdgeKind | None = None) -> tuple[Longs, Longs, Floats]:
        """Ends, as ids, and weight of every edge, each once; with `kind`, of those of one kind."""
        with self._lock:
            row, column, kinds, weight = self._adjacency.edges()
            ids = self._nodes.columns["ids"]
            own = slice(None) if kind is None else kinds == kind
            return ids[row[own]], ids[column[own]], weight[own]

    def csr(self) -> Csr:
        """Every edge with its weight, whatever its kind; the same object until an edge or a position changes."""
        with self._lock:
            return self._adjacency.csr(self._version)

    def snapshot(self) -> GraphSnapshot:
        """The graph as it is now. What is changed later is copied first, vectors only where one of them changes or is removed."""
        with self._lock:
            csr = self._adjacency.csr(self._version)
            columns: dict[str, Any] = {name: self._nodes.columns.view(name) for name in (*COLUMNS, "vectors")}
            return GraphSnapshot(
                version=self._version,
                cycle=self.cycle,
                data=tuple(self._nodes.data),
                edge_kinds=self._adjacency.kinds(),
                _csr=csr,
                **columns,
            )

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
            For an argument that cannot be used, and where there is no room and nothing that may be removed.
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
                self.connect(ids, link)
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
                f"removed: no patterns, and nothing that was used in this cycle or the last"
            )
        self._take_out(worst)

    def update(self, ids: Any, *, vectors: Any = None, quality: Any = None, link: int = 8) -> None:
        """
        Give nodes other vectors or qualities; where a vector changes its similarity edges are made anew.

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
            if rows is not None:
                self._nodes.columns.own("vectors")[places] = rows
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
        blocks of rows.
        """
        k = whole(k, 1, "k")
        with self._lock:
            wanted = None if ids is None else ids_of(ids, "ids")
            vectors = self._nodes.columns.view("vectors") if wanted is None else self._nodes.columns["vectors"]
            known, moves = (self._nodes.columns.view("ids") if wanted is None else self._nodes.columns["ids"]), self._moves
            if wanted is not None:
                self._join(*nearest(vectors, k, np.unique(self.positions(wanted))))
                return
        found = nearest(vectors, k)  # for long: the others go on
        with self._lock:
            if self._moves != moves:
                found = nearest(self._nodes.columns["vectors"], k)
            else:
                place = self._nodes.places(known)
                row, other = place[found[0]], place[found[1]]
                there = (row >= 0) & (other >= 0) & (row != other)
                found = row[there], other[there], found[2][there]
            self._join(*found)

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
            if not hops:
                places, score = self._kernels.top_k(vectors, query, k)
                similarity = score
            else:
                cosine = np.maximum(vectors @ query, 0)
                there = self.propagate(query, hops)
                top = there.max()
                total = cosine + there * np.float32(cosine.max() / top if top > 0 else 0)
                places = np.lexsort((np.arange(len(total)), -total))[:k]
                similarity, score = vectors[places] @ query, total[places] / 2
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
        self._nodes.columns.own("uses")[places] += 1
        self._nodes.columns.own("last_used")[places] = self.cycle
        self._nodes.columns.own("touched")[places] = self._version

    def used(self, ids: Any, retrieved: Any = ()) -> None:
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
        """
        wanted, others = ids_of(ids, "ids"), ids_of(retrieved, "retrieved")
        with self._lock:
            used = np.unique(self.positions(wanted))
            unused = np.setdiff1d(self.positions(others), used)
            if len(used) > _TOGETHER:
                raise SonaValueError(f"ids: expected at most {_TOGETHER} nodes that were used together, got {len(used)}")
            self._mark(used)
            strength = self._nodes.columns.own("strength")
            strength[used] += _USED * (1 - strength[used])
            strength[unused] = np.maximum((1 - _UNUSED) * strength[unused], LEAST_STRENGTH)
            i, j = np.triu_indices(len(used), 1)
            self._coactivate(used[i], used[j], np.float32(_USED))
            i, j = np.repeat(used, len(unused)), np.tile(unused, len(used))
            weight = self._adjacency.weights(i, j, EdgeKind.COACTIVATION)
            there = weight > 0
            less = (1 - _UNUSED) * weight[there]
            less[less < LEAST_WEIGHT] = 0
            self._adjacency.edit(i[there], j[there], np.full(len(less), EdgeKind.COACTIVATION, np.uint8), less.astype(np.float32))

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
            self._version += 1
            self._coactivate(at[there], to[there], gains[there])
            return int(np.count_nonzero(there))

    def _coactivate(self, i: Longs, j: Longs, gain: Any) -> None:
        weight = self._adjacency.weights(i, j, EdgeKind.COACTIVATION)
        weight = np.minimum(weight + gain * (1 - weight), 1).astype(np.float32)
        self._adjacency.edit(i, j, np.full(len(i), EdgeKind.COACTIVATION, np.uint8), weight)

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
            csr, seeds = self.csr(), np.zeros(len(self), np.float32)
            if len(self):
                places, similarity = self._kernels.top_k(self._nodes.columns["vectors"], query, min(_SEEDS, len(self)))
                seeds[places] = np.maximum(similarity, 0)
        result: Floats = np.asarray(propagate(csr, seeds, hops, alpha), np.float32)
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
        from sona.memory.apply import apply

        if not isinstance(change, GraphChange):
            raise SonaTypeError(f"change: expected a GraphChange, got {type(change).__name__}")
        with self._lock:
            return apply(self, change)
