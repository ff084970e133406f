"""MicroLoRA: the rank 1-2 adapter of one request."""

import math

import numpy as np

from sona._arrays import Floats
from sona.adapters._lora import Adapter
from sona.errors import SonaValueError


class MicroLoRA(Adapter):
    """
    Rank 1-2 adapter, y += scale * up^T (down x), with exact gradients; scale = 1 / sqrt(rank).

    `down` starts with small seeded values and `up` with zeros, so the output is unchanged until something is learned.

    Parameters
    ----------
    hidden_dim : int
        Length of x and y.
    rank : {1, 2}
    seed : int
        Of the initial `down`.
    isa : str, optional
        Kernel table.

    Notes
    -----
    Two ways to learn: `accumulate_gradient` and `apply_accumulated` for a caller with gradients and a learning rate, and `observe` for
    one exact pair, such as `sona.Instant` makes. A pair beyond the rank is absorbed by the best rank-`rank` approximation of the sum;
    `fold` moves everything into a base first where nothing may be lost.
    """

    def __new__(cls, hidden_dim: int, rank: int = 1, *, seed: int = 0, isa: str | None = None) -> "MicroLoRA":
        if rank not in (1, 2):
            raise SonaValueError(f"rank: expected 1 or 2, got {rank!r}")
        if rank > hidden_dim:
            raise SonaValueError(f"rank: expected at most hidden_dim={hidden_dim}, got {rank}")
        self = super().__new__(
            cls, hidden_dim, rank=rank, rank_max=rank, micro=rank, window=rank, max_discard=0.0, scale=1 / math.sqrt(rank), isa=isa
        )
        down = np.random.default_rng(seed).uniform(-0.01, 0.01, (rank, hidden_dim)).astype(np.float32)
        self.assign(down, np.zeros_like(down), base=0)
        self.rank = rank
        return self

    rank: int

    def observe(self, x: Floats, v: Floats, gain: float = 1.0) -> float:
        """
        delta(x') += gain * v * <x, x'>: absorb one rank-one correction; x and v have shape (hidden_dim,).

        Returns
        -------
        float
            Share of the energy of the sum that no longer fits into the rank.
        """
        self.append(v, x, gain)
        return float(self.truncate()) if len(self.down) > self.rank else 0.0

    def param_count(self) -> int:
        """Numbers that are learned: 2 * rank * hidden_dim."""
        return 2 * self.rank * int(self.dim)
