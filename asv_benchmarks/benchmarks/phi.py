"""Phi of one graph by each search, and of the parts that 50 walks visit."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from phi_table import neighbours, random_graph, walks

from sona import phi
from sona.memory.phi import phi_of_subgraphs


class Search:
    params = ([8, 12, 16, 32, 64], [False, True])
    param_names = ("n", "directed")

    def setup(self, n, directed):
        self.w = random_graph(n)

    def time_phi(self, n, directed):
        phi(self.w, directed=directed)


class EverySubset:
    params = ([8, 12, 16, 18],)
    param_names = ("n",)

    def setup(self, n):
        self.w = random_graph(n)

    def time_exhaustive(self, n):
        phi(self.w, method="exhaustive")

    def time_normalised(self, n):
        phi(self.w, normalise=True)


class Parts:
    def setup(self):
        graph = neighbours(10)
        self.rows = graph.indptr[:-1].astype(np.int64), graph.indptr[1:].astype(np.int64), graph.indices, graph.data
        self.nodes = walks(graph, 15)

    def time_parts(self):
        phi_of_subgraphs(*self.rows, self.nodes)
