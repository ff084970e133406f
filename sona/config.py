"""Configuration of an engine: one frozen dataclass, each field with its unit, default and reason."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from sona._fields import number
from sona.errors import SonaTypeError, SonaValueError

Precondition = Literal["auto", "identity", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SonaConfig:
    """
    What a `SonaEngine` is made of.

    Attributes
    ----------
    hidden_dim : int
        Length of the vectors that pass through, floats.
    num_layers : int
        Layers with an adapter of their own. An embedder or a router has one.
    micro_lora_rank : int
        Pairs of the micro tier, 1 or 2; a further one folds them into the base.
    base_lora_rank : int
        Rank that a truncation of the base keeps.
    base_lora_rank_max : int
        The base grows to at most this when a truncation would discard more than `max_discard`. Rank 16 lost 344 decisions of 3000 at
        1000 arms where rank 64 lost 13.
    max_discard : float
        Share of the squared Frobenius norm of the correction that a truncation may drop.
    p0 : float, optional
        Prior variance of a weight, for unit-norm inputs: how far one outcome may move the policy. Default as in `sona.Instant`.
    bias_input : float
        The learned constant input; 0 for none. Without it an action that is best everywhere cannot be learned from centred inputs.
    precondition : {"auto", "identity", "full"}
        See `sona.Instant`. "full" keeps (hidden_dim + 1)^2 floats per layer.
    trajectory_capacity : int
        Trajectories that wait to be drained, and as many ended ones that are remembered for late feedback.
    trajectory_bytes : int
        Bound on the memory of each of the two; one of n steps takes about 4 hidden_dim (1 + n) + 50 (1 + n) bytes.
    reward_range : (float, float)
        Least and largest reward; rewards are mapped to [0, 1].
    clip : bool
        Move rewards outside the range to its ends (and count them) where the default is an error.
    """

    hidden_dim: int = 256
    num_layers: int = 1
    micro_lora_rank: int = 2
    base_lora_rank: int = 8
    base_lora_rank_max: int = 64
    max_discard: float = 0.05
    p0: float | None = None
    bias_input: float = 0.3
    precondition: Precondition = "auto"
    trajectory_capacity: int = 10_000
    trajectory_bytes: int = 32 << 20
    reward_range: tuple[float, float] = (0.0, 1.0)
    clip: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "num_layers", "base_lora_rank", "base_lora_rank_max", "trajectory_capacity", "trajectory_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SonaValueError(f"{name}: expected an int of at least 1, got {value!r}")
        if self.micro_lora_rank not in (1, 2):
            raise SonaValueError(f"micro_lora_rank: expected 1 or 2, got {self.micro_lora_rank!r}")
        if self.base_lora_rank_max < self.base_lora_rank:
            raise SonaValueError(
                f"base_lora_rank_max: expected at least base_lora_rank={self.base_lora_rank}, got {self.base_lora_rank_max}"
            )
        if not 0 <= number(self.max_discard, "max_discard") < 1:
            raise SonaValueError(f"max_discard: expected a number in [0, 1), got {self.max_discard!r}")
        if self.p0 is not None and not 0 < number(self.p0, "p0") < math.inf:
            raise SonaValueError(f"p0: expected a positive finite number, got {self.p0!r}")
        if not 0 <= number(self.bias_input, "bias_input") < math.inf:
            raise SonaValueError(f"bias_input: expected a finite number of at least 0, got {self.bias_input!r}")
        if self.precondition not in ("auto", "identity", "full"):
            raise SonaValueError(f"precondition: expected 'auto', 'identity' or 'full', got {self.precondition!r}")
        try:
            ends = [number(end, "reward_range") for end in self.reward_range]
        except TypeError:
            raise SonaTypeError(f"reward_range: expected two numbers, got {self.reward_range!r}") from None
        if len(ends) != 2:
            raise SonaValueError(f"reward_range: expected two numbers, got {self.reward_range!r}")
        low, high = ends
        object.__setattr__(self, "reward_range", (low, high))
        if not (math.isfinite(high - low) and low < high):  # the difference is finite only where both are
            raise SonaValueError(f"reward_range: expected two finite numbers, the first smaller, got {self.reward_range!r}")

    def to_unit(self, reward: float) -> float:
        """
        Map a reward of the declared range to [0, 1].

        Raises
        ------
        SonaValueError
            NaN, infinite, or outside the range while `clip` is off.
        SonaTypeError
            Not a real number; text is none.
        """
        low, high = self.reward_range
        if type(reward) is float and low <= reward <= high:
            return (reward - low) / (high - low)
        value = number(reward, "reward")
        if not math.isfinite(value):
            raise SonaValueError(f"reward: expected a finite number, got {value}")
        if not low <= value <= high:
            if not self.clip:
                raise SonaValueError(f"reward: expected a number in [{low:g}, {high:g}], got {value:g} (clip=True moves it to the end)")
            value = min(max(value, low), high)
        return (value - low) / (high - low)

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    # Presets. Each promises what a test in tests/test_config.py holds it to; keywords replace single settings.

    @classmethod
    def max_throughput(cls, **changes: Any) -> Self:
        """Least work: O(hidden_dim) per outcome, no matrix of its square, and a request never passes more than 24 rows of correction."""
        return cls._preset(changes, base_lora_rank=4, base_lora_rank_max=8, precondition="identity", trajectory_capacity=5_000)

    @classmethod
    def max_quality(cls, **changes: Any) -> Self:
        """
        Most from each outcome: the inverse covariance at any hidden_dim, where the default stops at 512, so that more of what was
        learned on other inputs stays; and a truncation drops at most a hundredth of the correction, up to rank 128.
        """
        return cls._preset(
            changes, base_lora_rank=16, base_lora_rank_max=128, max_discard=0.01, precondition="full", trajectory_capacity=20_000
        )

    @classmethod
    def edge(cls, **changes: Any) -> Self:
        """Least memory: below 1 MB at hidden_dim=384, weights and trajectories that wait together, however long it runs."""
        return cls._preset(
            changes,
            micro_lora_rank=1,
            base_lora_rank=4,
            base_lora_rank_max=8,
            precondition="identity",
            trajectory_capacity=200,
            trajectory_bytes=256 << 10,
        )

    @classmethod
    def batch(cls, **changes: Any) -> Self:
        """
        Rewards that come in groups, long after the requests: up to 50,000 ended trajectories wait for theirs (of one step and
        hidden_dim=384; the default's 10,000), and then teach the same, bit for bit, as if each had come at once.
        """
        return cls._preset(changes, trajectory_capacity=50_000, trajectory_bytes=256 << 20)

    @classmethod
    def ephemeral(cls, **changes: Any) -> Self:
        """
        A short-lived worker that hands over what it learned: `SonaEngine.state` is below 80 KB at hidden_dim=384 and goes on in another
        engine of this preset bit for bit. Without a store, as always, nothing is written to disk.
        """
        return cls._preset(
            changes, base_lora_rank=8, base_lora_rank_max=8, precondition="identity", trajectory_capacity=500, trajectory_bytes=2 << 20
        )

    @classmethod
    def coordinator(cls, **changes: Any) -> Self:
        """
        The process that learns for many workers: 50,000 trajectories (of one step and hidden_dim=384) wait to be drained before one is
        dropped, and the base keeps what a hundred arms teach: up to rank 128 a truncation drops at most a hundredth.
        """
        return cls._preset(
            changes,
            base_lora_rank=16,
            base_lora_rank_max=128,
            max_discard=0.01,
            trajectory_capacity=50_000,
            trajectory_bytes=256 << 20,
        )

    @classmethod
    def _preset(cls, changes: dict[str, Any], **fields: Any) -> Self:
        return cls(**(fields | changes))
