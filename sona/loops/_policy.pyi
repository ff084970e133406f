from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.adapters._lora import Adapter
from sona.loops._instant import Instant

Logged = tuple[int, float, bytes, int, int, bytes | None, float, tuple[float, float, float], bool, bool, int, int]

class Decision:
    id: int
    arm: Any
    index: int
    propensity: float
    candidates: tuple[Any, ...]
    @property
    def scores(self) -> Floats: ...

class Policy:
    adapter: Adapter
    instant: Instant
    dim: int
    capacity: int
    tau: float
    explore: str
    first_id: int
    arms: tuple[Any, ...]
    next_id: int
    enabled: bool
    learned: int
    revised: int
    unknown: int
    rejected: int
    surprise: float
    rival: Policy | None
    judge: Any
    trial: int
    def __new__(
        cls,
        adapter: Adapter,
        instant: Instant,
        *,
        tau: float = 0.1,
        explore: Literal["greedy", "thompson", "softmax"] = "greedy",
        guard: bool = True,
        thompson_scale: float = 0.1,
        off_policy_step: float = 0.3,
        anchor_every: int = 500,
        pending: int = 8192,
        log_bytes: int = 0,
        seed: int = 0,
        first_id: int = 1,
    ) -> Self: ...
    def add_arm(self, name: Any, vector: Any, cost: float = 0.0) -> int: ...
    def remove_arm(self, name: Any) -> None: ...
    def take_arms(self, source: Policy) -> None: ...
    def row(self, name: Any) -> int: ...
    def names_by_row(self) -> tuple[Any, ...]: ...
    def vectors(self) -> Floats: ...
    def costs(self) -> Floats: ...
    @property
    def version(self) -> int: ...
    def route(self, x: Any, candidates: Sequence[Any] | None = None) -> Decision: ...
    def route_batch(self, x: Any) -> list[Decision]: ...
    def predict(self, x: Any, model: str = "current", candidates: Sequence[Any] | None = None) -> npt.NDArray[np.int64]: ...
    def explain(self, x: Any) -> dict[Any, dict[str, float]]: ...
    def explain_decision(self, id: int) -> dict[Any, dict[str, float]]: ...
    def learn(self, id: int, reward: float, weight: float = 1.0, source: str | None = None) -> bool: ...
    def learn_logged(self, x: Any, name: Any, reward: float, candidates: Sequence[Any] | None = None) -> None: ...
    def count_unknown(self) -> None: ...
    def knows(self, id: int) -> bool: ...
    def recall(
        self,
        id: int,
        x: Any,
        row: int,
        propensity: float,
        *,
        candidates: Sequence[int] | None = None,
        chance: tuple[float, float, float] = (1.0, 0.0, 0.0),
        own: bool = True,
        agreed: bool = False,
        trial: int = 0,
        rival: int = 0,
        reward: float | None = None,
    ) -> None: ...
    def contest(self, rival: Policy, share: float, trial: int, judge: Any) -> None: ...
    def end_contest(self) -> None: ...
    def adopt(self, other: Policy) -> None: ...
    def drain(self) -> list[Logged]: ...
    @property
    def unrecorded(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def guard_weights(self) -> dict[str, float]: ...
    @property
    def trust(self) -> float: ...
    @property
    def bytes(self) -> int: ...
    @property
    def pending_bytes(self) -> int: ...
    def state(self) -> dict[str, npt.NDArray[Any]]: ...
    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None: ...
