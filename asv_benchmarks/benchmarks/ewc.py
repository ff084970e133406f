"""Elastic weight consolidation: what a step and a sample cost after ten tasks, and what is kept of old tasks for it."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from five_tasks import STRENGTH, five_tasks

from sona.ewc import Adwin, EwcPlusPlus, LowRankEwc, PageHinkley

TASKS = 10


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Vector:
    params = ([1_000, 10_000, 100_000],)
    param_names = ("n",)

    def setup(self, n):
        self.ewc = EwcPlusPlus(n)
        for task in range(TASKS):
            self.ewc.update_fisher(normal(n, seed=task))
            self.ewc.start_new_task(normal(n, seed=TASKS + task))
        self.g, self.w = normal(2, n)

    def time_constraint(self, n):
        self.ewc.apply_constraints(self.g, self.w, 1e-3)

    def time_proximal_step(self, n):
        self.ewc.proximal_step(self.w, 1e-3)

    def time_fisher_update(self, n):
        self.ewc.update_fisher(self.g)

    def time_loss(self, n):
        self.ewc.regularization_loss(self.w)


class Product:
    params = ([256, 1024],)
    param_names = ("dim",)

    def setup(self, dim):
        self.ewc = LowRankEwc(dim, dim)
        for task in range(TASKS):
            self.ewc.update_fisher(*normal(2, dim, seed=task))
            self.ewc.start_new_task(*normal(2, 16, dim, seed=TASKS + task))
        self.x, self.g = normal(2, dim)
        self.down, self.up = normal(2, 16, dim) / np.float32(dim)

    def time_fisher_update(self, dim):
        self.ewc.update_fisher(self.x, self.g)

    def time_loss(self, dim):
        self.ewc.regularization_loss(self.down, self.up)

    def time_proximal_step(self, dim):
        self.ewc.proximal_step(self.down, self.up, rank=16, rate=1e-3)


class Boundary:
    params = (["adwin", "page-hinkley"],)
    param_names = ("detector",)

    def setup(self, detector):
        self.detector = {"adwin": Adwin, "page-hinkley": PageHinkley}[detector]()
        self.surprises = ((np.random.default_rng(0).random(1000) < 0.9) - 0.9).tolist()
        for _ in range(10):
            self.time_1000_calm_requests(detector)

    def time_1000_calm_requests(self, detector):
        update = self.detector.update
        for value in self.surprises:
            update(value)


class FiveTasks:
    """Accuracy on all tasks at the end, with and without the pull; equal seeds give equal figures."""

    params = (["shift", "rand"], ["identity", "full"], [0.0, STRENGTH])
    param_names = ("world", "precondition", "pull")
    timeout = 300

    def setup(self, world, precondition, pull):
        self.runs = [five_tasks(world, seed, pull, precondition=precondition) for seed in (10, 11, 12)]

    def track_average_accuracy(self, world, precondition, pull):
        return float(np.mean([run.average for run in self.runs]))

    def track_backward_transfer(self, world, precondition, pull):
        return float(np.mean([run.backward for run in self.runs]))

    def track_own_task_accuracy(self, world, precondition, pull):
        return float(np.mean([run.own for run in self.runs]))
