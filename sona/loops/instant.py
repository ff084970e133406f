"""Loop A: each ended trajectory is recorded and learned from at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from sona.adapters import Adapter
from sona.errors import SonaValueError
from sona.loops._instant import Instant
from sona.trajectory.buffer import TrajectoryBuffer
from sona.types import QueryTrajectory, TrajectoryStep


@dataclass(frozen=True, kw_only=True, slots=True)
class InstantLoopConfig:
    """
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


class InstantLoop:
    """
    Records trajectories and learns from their steps.

    Parameters
    ----------
    hidden_dim : int
    config : InstantLoopConfig, optional
    adapters, instants : sequence, optional
        One of each per layer; default: one layer of their own.

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
    ) -> None:
        self.config = config or InstantLoopConfig()
        self.adapters = tuple(adapters or (Adapter(hidden_dim, micro=self.config.micro_lora_rank),))
        self.instants = tuple(instants or (Instant(hidden_dim) for _ in self.adapters))
        dims = {adapter.dim for adapter in self.adapters} | {instant.dim for instant in self.instants}
        if len(self.adapters) != len(self.instants) or dims != {hidden_dim}:
            raise SonaValueError(f"instant loop: expected one adapter and one instant step of dim {hidden_dim} per layer")
        self.buffer = TrajectoryBuffer(self.config.max_pending_signals, max_bytes=self.config.max_pending_bytes)
        self.metrics = InstantLoopMetrics()
        self._since_flush = 0

    def on_inference(self, trajectory: QueryTrajectory) -> list[float | None]:
        """
        Record a trajectory and learn from each step that has a reward in [0, 1].

        Returns
        -------
        list of float or None
            The reward learned per step, None where there was nothing to learn from.
        """
        self.metrics.processed += 1
        if not self.buffer.record(trajectory):
            self.metrics.dropped += 1
        return [self._learn(trajectory, step, step.reward) for step in trajectory.steps]

    def revise(self, trajectory: QueryTrajectory, learned: Sequence[float | None], reward: float) -> list[float | None]:
        """
        Another reward in [0, 1] for every step of a trajectory: what was learned changes by the difference, once.

        Takes and returns the reward learned per step, as `on_inference` does.
        """
        return [self._learn(trajectory, step, reward, old) for step, old in zip(trajectory.steps, learned, strict=True)]

    def _learn(self, trajectory: QueryTrajectory, step: TrajectoryStep, reward: float | None, old: float | None = None) -> float | None:
        """The reward that has been learned afterwards: `old` where the new one is unusable."""
        if old is not None and reward == old:
            return old
        if reward is None or not 0 <= step.layer < len(self.adapters):
            self.metrics.rejected += 1
            return old
        x = trajectory.query_embedding if step.x is None else step.x
        if not self.instants[step.layer].learn(self.adapters[step.layer], x, step.activations, reward, old, step.expected):
            self.metrics.rejected += 1
            return old
        if old is None:
            self.metrics.accumulated += 1
        else:
            self.metrics.revised += 1
        self._since_flush += 1
        if self.config.flush_every and self._since_flush >= self.config.flush_every:
            self.flush_updates()
        return reward

    def flush_updates(self) -> None:
        """Fold micro into base in every layer. The output does not change."""
        for adapter in self.adapters:
            adapter.fold()
        self.metrics.flushes += 1
        self._since_flush = 0

    def drain_trajectories(self) -> list[QueryTrajectory]:
        """The recorded trajectories, oldest first; the buffer is empty afterwards."""
        return self.buffer.drain()
