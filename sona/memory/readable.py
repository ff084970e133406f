"""What a memory graph holds, and how to look at it."""

import json
from typing import Any, Generic, TypeVar, cast

import numpy.typing as npt

from sona._arrays import Floats
from sona._locks import rlock
from sona.memory import exchange, state
from sona.memory.adjacency import Adjacency
from sona.memory.checks import Kinds, whole
from sona.memory.csr import Csr, Longs
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.nodes import COLUMNS, Nodes
from sona.memory.snapshot import GraphSnapshot

T = TypeVar("T")


class _Column(Generic[T]):
    """A column of the graph by position: read-only, and it stays as it is when the graph goes on."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, graph: "Readable | None", owner: type) -> T:
        found: Any = self
        if graph is not None:
            with graph._lock:
                found = graph._nodes.columns.view(self.name)
        return cast(T, found)


class Readable:
    """The part of `MemoryGraph` that changes nothing: see there."""

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
        self._cycle = 0
        self._lock = rlock(brief=True)
        self._nodes = Nodes(self.dim)
        self._adjacency = Adjacency(self.max_degree)
        self._version = 0
        self._moves = 0  # vectors changed so far

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, id: Any) -> bool:
        return id in self._nodes

    @property
    def cycle(self) -> int:
        """Deep cycles so far; whoever runs them sets it, to no less than it was. Births and uses are dated with it."""
        return self._cycle

    @cycle.setter
    def cycle(self, cycle: int) -> None:
        self._cycle = whole(cycle, self._cycle, "cycle")

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

    def of_kind(self, kind: NodeKind) -> tuple[Longs, Longs, Floats]:
        """Ids, keys and qualities of the nodes of this kind, (m,) each. Columns taken one after the other may be of different moments."""
        with self._lock:
            columns = self._nodes.columns
            own = columns["kinds"] == kind
            return columns["ids"][own], columns["keys"][own], columns["quality"][own]

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
            own = column == j
            return {EdgeKind(k): w for k, w in zip(kind[own].tolist(), weight[own].tolist(), strict=True)}

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

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """
        Everything as arrays, for safetensors or npz.

        Returns
        -------
        dict
            The columns by name; graph (4,) int64: dim, cycle, version, next id; edge_u, edge_v (m,) int32 positions, edge_kind uint8 and
            edge_weight float32; data, uint8: JSON in UTF-8, that of node i ends at data_stop[i]; merged (p, 2) int64: ids and what they
            stand for.
        """
        with self._lock:
            return state.state(self)

    def to_networkx(self) -> Any:
        """
        The same as a networkx.Graph whose nodes are ids.

        Nodes have kind (its name in lower case), quality, strength, uses, last_used, born, key (-1 for none), data and vector; edges have
        weight, the sum of similarity, coactivation and creative, and those of the three that they are made of.
        """
        return exchange.to_networkx(self)
