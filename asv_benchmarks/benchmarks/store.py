"""The way to the disk and back."""

import tempfile
from pathlib import Path

import numpy as np

from sona import Ring, Router


class Ringing:
    params = ([64, 1024, 16384],)
    param_names = ("bytes",)

    def setup(self, size):
        self.ring, self.record, self.out = Ring(1 << 18), bytearray(size), bytearray(size)

    def time_100_pushes_and_pops(self, size):
        push, pop, record, out = self.ring.push, self.ring.pop_into, self.record, self.out
        for _ in range(100):
            push(record)
            pop(out)


class Stored:
    """A router over a store on disk."""

    params = ([64, 384],)
    param_names = ("dim",)

    def setup(self, dim):
        self.directory = tempfile.TemporaryDirectory()
        rng = np.random.default_rng(0)
        self.path = Path(self.directory.name, "sona.db")
        self.router = Router(rng.normal(size=(20, dim)), store=self.path, precondition="identity")
        self.xs = list(rng.normal(size=(256, dim)).astype(np.float32))
        self.time_256_decisions_until_durable(dim)

    def teardown(self, dim):
        self.router.close()
        self.directory.cleanup()

    def time_256_decisions_until_durable(self, dim):
        for x in self.xs:
            self.router.feedback(self.router.route(x).id, 1.0)
        self.router.flush()

    def time_synchronous_feedback(self, dim):
        self.router.feedback(self.router.route(self.xs[0]).id, 1.0, sync=True)
