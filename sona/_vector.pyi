from typing import Any

from sona._arrays import Floats

def frozen(value: Any, length: int | None, name: str) -> Floats: ...
