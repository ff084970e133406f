"""What the memory graph costs: walks over it, taking one over from networkx, and changes while readers hold what they saw."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from walk_table import STEPS, WALKS, weighted

from sona.memory import Csr, EdgeKind, MemoryGraph, walks


class Walks:
    params = ([1_000, 10_000], [1.0, 1.5])
    param_names = ("nodes", "temperature")

    def setup(self, nodes: int, temperature: float) -> None:
        self.graph = weighted(nodes)
        self.csr = Csr.from_networkx(self.graph)
        self.starts = np.random.default_rng(0).integers(0, nodes, WALKS).astype(np.int32)

    def time_walks(self, nodes: int, temperature: float) -> None:
        walks(self.csr, self.starts, STEPS + 1, seed=1, temperature=temperature)

    def time_taking_over(self, nodes: int, temperature: float) -> None:
        Csr.from_networkx(self.graph)


class Changes:
    def setup(self) -> None:
        rng = np.random.default_rng(0)
        self.graph, self.vector = MemoryGraph(64, max_nodes=5_000), rng.normal(size=64)
        self.ids = self.graph.add_many(rng.normal(size=(5_000, 64)))

    def time_add(self) -> None:
        self.graph.add(self.vector)

    def time_link_and_look(self) -> None:
        self.graph.link(self.ids[-1], self.ids[-2], EdgeKind.CREATIVE, 0.1)
        self.graph.csr()

    def time_recall(self) -> None:
        self.graph.recall(self.vector, mark=False)
