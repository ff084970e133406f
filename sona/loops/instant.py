"""Loop A: each ended trajectory is recorded and learned from at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from sona.adapters import Adapter
from sona.errors import SonaValueError
from sona.loops._instant import Instant
from sona.loops._learn import learn_steps
from sona.trajectory._record import encode
from sona.trajectory.buffer import TrajectoryBuffer
from sona.types import QueryTrajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class InstantLoopConfig:
    """
    What the instant loop holds before it flushes, at most.

    Attributes
    ----------
    micro_lora_rank : int
        Pairs of the micro tier, 1 or 2.
    max_pending_signals : int
        Trajectories that wait to be drained; further ones are dropped and counted.
    max_pending_bytes : int
        Bound on their memory.
    flush_every : int
        Steps between folds of micro into base; 0: only when the micro tier is full. Every choice gives the same output.
    """

    micro_lora_rank: int = 1
    max_pending_signals: int = 1000
    max_pending_bytes: int = 32 << 20
    flush_every: int = 0


@dataclass(slots=True)
class InstantLoopMetrics:
    """
    Counters of the instant loop.

    Attributes
    ----------
    processed : int
        Trajectories seen.
    accumulated : int
        Steps learned from.
    revised : int
        Steps whose reward changed later.
    rejected : int
        Steps without a reward or with an unusable one.
    dropped : int
        Trajectories that the buffer had no room for; they were learned from all the same.
    flushes : int
    """

    processed: int = 0
    accumulated: int = 0
    revised: int = 0
    rejected: int = 0
    dropped: int = 0
    flushes: int = 0


class Beside(Protocol):
    """What else learns from the rewards of trajectories, and is kept with what the adapters learn."""

    def learn(self, record: bytes, change: float) -> None:
        """The reward of a trajectory's steps has grown by `change`; nothing had been learned of it before where it is the first."""

    def state(self) -> dict[str, npt.NDArray[Any]]: ...
    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None: ...


class InstantLoop:
    """
    Records trajectories and learns from their steps.

    Parameters
    ----------
    hidden_dim : int
    config : InstantLoopConfig, optional
    adapters, instants : sequence, optional
        One of each per layer; default: one layer of their own.
    beside : Beside, optional
        Told of the rewards that come after the end of a trajectory.

    Thread-safety
    -------------
    `on_inference` and `flush_updates`: one thread at a time. `drain_trajectories`: any thread.
    """

    def __init__(
        self,
        hidden_dim: int,
        config: InstantLoopConfig | None = None,
        *,
        adapters: Sequence[Adapter] | None = None,
        instants: Sequence[Instant] | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.config = config or InstantLoopConfig()
        self.adapters = tuple(adapters or (Adapter(hidden_dim, micro=self.config.micro_lora_rank),))
        self.instants = tuple(instants or (Instant(hidden_dim) for _ in self.adapters))
        dims = {adapter.dim for adapter in self.adapters} | {instant.dim for instant in self.instants}
        if len(self.adapters) != len(self.instants) or dims != {hidden_dim}:
            raise SonaValueError(f"instant loop: expected one adapter and one instant step of dim {hidden_dim} per layer")
        self.buffer = TrajectoryBuffer(self.config.max_pending_signals, max_bytes=self.config.max_pending_bytes)
        self.metrics = InstantLoopMetrics()
        self.beside = beside
        self._since_flush = 0

    def on_inference(self, trajectory: QueryTrajectory) -> list[float | None]:
        """
        Record a trajectory and learn from each step that has a reward in [0, 1].

        Returns
        -------
        list of float or None
            The reward learned per step, None where there was nothing to learn from.
        """
        return self.on_record(encode(trajectory))

    def on_record(self, record: bytes) -> list[float | None]:
        """`on_inference` of a trajectory that is bytes already: what `TrajectoryBuilder.end` and `sona.trajectory.encode` return."""
        kept = self.buffer.put(record)
        self.metrics.processed += 1
        self.metrics.dropped += not kept
        return learn_steps(self, record, None, None)

    def revise(self, trajectory: QueryTrajectory, learned: Sequence[float | None], reward: float) -> list[float | None]:
        """
        Another reward in [0, 1] for every step of a trajectory: what was learned changes by the difference, once.

        Takes and returns the reward learned per step, as `on_inference` does.
        """
        return self.revise_record(encode(trajectory), learned, reward)

    def revise_record(self, record: bytes, learned: Sequence[float | None], reward: float) -> list[float | None]:
        """`revise` of a trajectory that is bytes already."""
        now = learn_steps(self, record, learned, reward)
        if self.beside is not None and now and now[0] is not None:
            self.beside.learn(record, now[0] - (learned[0] or 0.0))
        return now

    def flush_updates(self) -> None:
        """Fold micro into base in every layer. The output does not change."""
        for adapter in self.adapters:
            adapter.fold()
        self.metrics.flushes += 1
        self._since_flush = 0

    def drain_trajectories(self) -> list[QueryTrajectory]:
        """The recorded trajectories, oldest first; the buffer is empty afterwards."""
        return self.buffer.drain()
