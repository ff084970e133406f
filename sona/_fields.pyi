from collections.abc import Iterable
from typing import Any

def number(value: Any, name: str) -> float: ...
def whole(value: Any, name: str) -> int: ...
def finite(value: Any, name: str) -> float: ...
def set_step(
    step: Any,
    activations: Any,
    attention_weights: Any,
    reward: float | None,
    timestamp: float,
    expected: float | None,
    layer: int,
    x: Any,
) -> None: ...
def set_trajectory(
    trajectory: Any,
    step_type: type,
    id: int,
    query_embedding: Any,
    steps: Iterable[Any],
    final_quality: float | None,
    latency_us: int,
) -> None: ...
