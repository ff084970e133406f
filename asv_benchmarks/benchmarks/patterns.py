"""What a cycle of the reasoning bank takes, and looking things up between cycles."""

import numpy as np

from sona import Router
from sona.patterns import ExactIndex, PatternConfig, ReasoningBank, Transitions


def clouds(n, d, k):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(k, d))[rng.integers(k, size=n)] + 0.7 * rng.normal(size=(n, d))).astype(np.float32)


class Bank:
    params = ([1_000, 10_000],)
    param_names = ("trajectories",)

    def setup(self, n):
        rng = np.random.default_rng(1)
        self.bank = ReasoningBank(PatternConfig(k_clusters=50, merge_similarity=1.0))
        self.x = clouds(n, 256, 100)
        for row, quality, arm in zip(self.x, rng.uniform(size=n), rng.integers(20, size=n), strict=True):
            self.bank.add(row, float(quality), arm=int(arm), reward=float(quality))
        self.bank.extract_patterns()
        self.pi = np.full(20, 0.05)

    def time_extract_patterns(self, n):
        self.bank.extract_patterns()

    def time_replace(self, n):
        self.bank.replace(self.x, 0.5, arm=0, reward=0.5)

    def time_verdicts(self, n):
        self.bank.verdicts()

    def time_hierarchy(self, n):
        self.bank.hierarchy().cut(5)

    def time_100_find_patterns(self, n):
        for x in self.x[:100]:
            self.bank.find_patterns(x, 5)

    def time_100_priors(self, n):
        for x in self.x[:100]:
            self.bank.prior(x, self.pi)


class Search:
    params = ([1_000, 100_000],)
    param_names = ("rows",)

    def setup(self, n):
        self.index = ExactIndex(128)
        rows = np.random.default_rng(0).normal(size=(n, 128)).astype(np.float32)
        for id, row in enumerate(rows):
            self.index.add(id, row)
        self.x = rows[0]

    def time_search_10(self, n):
        self.index.search(self.x, 10)


class Retrieval:
    params = ([0, 1_000, 4_000],)
    param_names = ("rows",)

    def setup(self, rows):
        rng = np.random.default_rng(0)
        self.router = Router(rng.normal(size=(20, 384)).astype(np.float32), retrieval=rows)
        self.x = rng.normal(size=(max(rows, 100), 384)).astype(np.float32)
        for x in self.x:
            self.router.feedback(self.router.route(x).id, float(rng.integers(2)))

    def time_100_routes(self, rows):
        for x in self.x[:100]:
            self.router.route(x)


class Sequence:
    def setup(self):
        self.chain = np.random.default_rng(0).integers(100, size=1001).tolist()

    def time_1000_transitions(self):
        transitions = Transitions()
        for a, b in zip(self.chain, self.chain[1:], strict=False):
            transitions.observe(a, b)
