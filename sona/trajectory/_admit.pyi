from collections.abc import Callable

from typing_extensions import Buffer

def admitted(data: Buffer, id: int | None, dim: int, layers: int, unit: Callable[[float], float]) -> tuple[int, bytes, float | None]: ...
