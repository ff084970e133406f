from typing import Any, Self

import numpy.typing as npt

from sona.adapters._lora import Adapter
from sona.config import Precondition

FULL_UP_TO: int

class Instant:
    dim: int
    precondition: str
    prior_variance: float
    constant: float
    def __new__(
        cls,
        dim: int,
        p0: float | None = None,
        constant: float = 0.3,
        precondition: Precondition = "auto",
        actions: int = 1,
        isa: str | None = None,
    ) -> Self: ...
    def step(
        self, adapter: Adapter, x: Any, v: Any, reward: float, expected: float | None = None, weight: float = 1.0, own: bool = True
    ) -> dict[str, float]: ...
    def revise(
        self, adapter: Adapter, x: Any, v: Any, change: float, expected: float | None = None, weight: float = 1.0
    ) -> dict[str, float]: ...
    @property
    def confidence(self) -> float: ...
    @property
    def mean_reward(self) -> float: ...
    @property
    def bytes(self) -> int: ...
    def soften(self, keep: float = 0.2) -> None: ...
    def state(self) -> dict[str, npt.NDArray[Any]]: ...
    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None: ...
