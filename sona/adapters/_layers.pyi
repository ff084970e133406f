from typing import Any

from sona._arrays import Floats
from sona.adapters._lora import Adapter

def forward_layers(layers: tuple[Adapter, ...], x: Any, out: Floats) -> None: ...
