"""Low-rank corrections: one that learns pair by pair, and the roadmap's micro and base adapters over it."""

from sona.adapters._lora import Adapter
from sona.adapters.base import BaseLoRA
from sona.adapters.fold import fold
from sona.adapters.micro import MicroLoRA

__all__ = ["Adapter", "BaseLoRA", "MicroLoRA", "fold"]
