from collections.abc import Callable
from typing import Any, Self

from sona.types import QueryTrajectory

class TrajectoryBuilder:
    def __new__(cls, id: int, query_embedding: Any, *, clock: Callable[[], float] = ...) -> Self: ...
    def __len__(self) -> int: ...
    def add_step(
        self,
        activations: Any,
        attention_weights: Any = None,
        reward: float | None = None,
        *,
        expected: float | None = None,
        layer: int = 0,
        x: Any = None,
    ) -> None: ...
    def end(self, final_quality: float | None = None, *, default_reward: float | None = None) -> bytes: ...
    def build(self, final_quality: float | None = None, *, default_reward: float | None = None) -> QueryTrajectory: ...
