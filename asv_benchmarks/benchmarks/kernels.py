"""Kernels called from Python, a hundred times where one call is shorter than the bench's own."""

import numpy as np

from sona import Adapter, BaseLoRA, MicroLoRA
from sona._kernels import Kernels


def normal(*shape):
    return (np.random.default_rng(0).normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


class MicroForward:
    params = ([256, 384, 1024, 4096], [1, 2])
    param_names = ("dim", "rank")

    def setup(self, dim, rank):
        self.micro = MicroLoRA(dim, rank=rank)
        self.micro.assign(normal(rank, dim), 1e-3 * normal(rank, dim), base=0)
        self.x, self.y = normal(2, dim)

    def time_100_in_place(self, dim, rank):
        forward, x, y = self.micro.forward, self.x, self.y
        for _ in range(100):
            forward(x, y)


class BaseForward:
    params = ([256, 1024],)
    param_names = ("dim",)

    def setup(self, dim):
        self.base = BaseLoRA(dim, 8, 12)
        for layer in self.base.layers:
            layer.assign(normal(8, dim), 1e-3 * normal(8, dim))
        self.x, self.y = normal(2, 12, dim)

    def time_twelve_layers(self, dim):
        self.base.forward(self.x, self.y)


class BatchForward:
    params = ([256, 1024], [1, 2, 8])
    param_names = ("dim", "rank")

    def setup(self, dim, rank):
        self.adapter = Adapter(dim, rank=rank)
        self.adapter.assign(normal(rank, dim), 1e-3 * normal(rank, dim))
        self.x, self.y = normal(2, 256, dim)

    def time_256_rows(self, dim, rank):
        self.adapter.forward_batch(self.x, self.y)


class Truncate:
    """Rows whose directions are all new: nothing of the decomposition is free."""

    params = ([8, 16, 64],)
    param_names = ("rank",)

    def setup(self, rank):
        self.adapter = Adapter(384, rank=rank, rank_max=rank)
        self.down, self.up = np.split(normal(4 * rank, 384), 2)

    def time_assign_and_truncate(self, rank):
        self.adapter.assign(self.down, self.up)
        self.adapter.truncate()


class Elementwise:
    params = ([1_000, 10_000, 100_000],)
    param_names = ("n",)

    def setup(self, n):
        self.kernels = Kernels()
        self.g, self.w, self.anchor = normal(3, n)
        self.f = np.abs(normal(n))

    def time_100_fisher_updates(self, n):
        for _ in range(100):
            self.kernels.fisher_update(self.f, self.g, 1e-3)

    def time_100_ewc_pulls(self, n):
        for _ in range(100):
            self.kernels.ewc_pull(self.g, self.f, self.w, self.anchor, 1e-9)

    def time_100_ewc_scales(self, n):
        for _ in range(100):
            self.kernels.ewc_scale(self.g, self.f, 1e-9)


class Scan:
    params = ([1_000, 10_000],)
    param_names = ("rows",)

    def setup(self, rows):
        self.kernels, self.rows, self.x = Kernels(), normal(rows, 384), normal(384)

    def time_top_10(self, rows):
        self.kernels.top_k(self.rows, self.x, 10)
