"""What a request and its outcome cost a Python caller."""

import subprocess
import sys

import numpy as np

from sona import Adapter, Instant, Router, SonaConfig, SonaEngine

ARMS = 20


def normal(*shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


class Routing:
    params = ([64, 384, 1024], ["identity", "full"])
    param_names = ("dim", "precondition")

    def setup(self, dim, precondition):
        self.router = Router(normal(ARMS, dim), precondition=precondition)
        self.xs = list(normal(64, dim, seed=1))
        for _ in range(20):  # up to the full rank and past the first older copy
            self.time_64_requests_and_outcomes(dim, precondition)

    def time_64_requests(self, dim, precondition):
        for x in self.xs:
            self.router.route(x)

    def time_64_requests_and_outcomes(self, dim, precondition):
        for x in self.xs:
            decision = self.router.route(x)
            self.router.feedback(decision.id, float(decision.index % 3 == 0))


class InstantStep:
    """64 outcomes, truncations included."""

    params = ([384], ["identity", "full"], [16, 64])
    param_names = ("dim", "precondition", "rank")

    def setup(self, dim, precondition, rank):
        self.instant, self.adapter = Instant(dim, precondition=precondition, actions=ARMS), Adapter(dim, rank=rank, rank_max=rank)
        self.pairs = list(zip(normal(64, dim), 10 * normal(64, dim, seed=1), strict=True))

    def time_64_steps(self, dim, precondition, rank):
        for x, v in self.pairs:
            self.instant.step(self.adapter, x, v, 1.0, 0.4)


class Trajectories:
    params = ([256],)
    param_names = ("dim",)

    def setup(self, dim):
        self.engine = SonaEngine(SonaConfig(hidden_dim=dim, precondition="identity"))
        self.x, self.v = normal(dim), 10 * normal(dim, seed=1)
        self.y = np.empty(dim, np.float32)

    def time_two_steps(self, dim):
        tid = self.engine.begin_trajectory(self.x)
        self.engine.add_step(tid, activations=self.v, reward=1.0)
        self.engine.add_step(tid, activations=self.v, reward=0.0)
        self.engine.end_trajectory(tid)

    def time_apply(self, dim):
        self.engine.apply(self.x, self.y)


class Import:
    params = (["sona", "sona.router"],)
    param_names = ("module",)
    number = 1

    def time_import(self, module):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
