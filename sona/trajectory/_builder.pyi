from collections.abc import Callable
from typing import Any

from sona.types import QueryTrajectory

class TrajectoryBuilder:
    def __init__(self, id: int, query_embedding: Any, *, clock: Callable[[], float] = ...) -> None: ...
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
    def build(self, final_quality: float | None = None, *, default_reward: float | None = None) -> QueryTrajectory: ...
