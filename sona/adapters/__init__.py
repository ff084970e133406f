"""Low-rank corrections: one that learns pair by pair, and the roadmap's micro and base adapters over it."""

from sona.adapters._lora import Adapter
from sona.adapters.base import BaseLoRA
from sona.adapters.factors import Factors
from sona.adapters.fold import fold
from sona.adapters.micro import MicroLoRA
from sona.adapters.versions import MemoryVersions, Version, VersionLog

__all__ = ["Adapter", "BaseLoRA", "Factors", "MemoryVersions", "MicroLoRA", "Version", "VersionLog", "fold"]
