"""sona: online learning beside a frozen model."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sona._version import __version__

if TYPE_CHECKING:
    from sona import metrics
    from sona._kernels import isas
    from sona.adapters import Adapter, BaseLoRA, MicroLoRA, fold
    from sona.config import SonaConfig
    from sona.engine import SonaEngine
    from sona.errors import (
        MissingExtraError,
        SonaClosedError,
        SonaCorruptError,
        SonaError,
        SonaStoreError,
        SonaTypeError,
        SonaValueError,
        SonaVersionError,
        SonaWarning,
    )
    from sona.loops._guard import Guard
    from sona.loops._instant import Instant
    from sona.loops._policy import Decision
    from sona.loops.instant import InstantLoop, InstantLoopConfig, InstantLoopMetrics
    from sona.router import LoggedDecision, Router
    from sona.store import SqliteStore
    from sona.trajectory import Ring, TrajectoryBuffer, TrajectoryBuilder
    from sona.types import LearningSignal, QueryTrajectory, SignalMetadata, TrajectoryStep

# Where each public name lives; looked up on first use, so that `import sona` loads neither numpy nor SQLite.
_HOMES = {
    "sona._kernels": ("isas",),
    "sona.adapters": ("Adapter", "BaseLoRA", "MicroLoRA", "fold"),
    "sona.config": ("SonaConfig",),
    "sona.engine": ("SonaEngine",),
    "sona.errors": (
        "MissingExtraError",
        "SonaClosedError",
        "SonaCorruptError",
        "SonaError",
        "SonaStoreError",
        "SonaTypeError",
        "SonaValueError",
        "SonaVersionError",
        "SonaWarning",
    ),
    "sona.loops._guard": ("Guard",),
    "sona.loops._instant": ("Instant",),
    "sona.loops._policy": ("Decision",),
    "sona.loops.instant": ("InstantLoop", "InstantLoopConfig", "InstantLoopMetrics"),
    "sona.router": ("LoggedDecision", "Router"),
    "sona.store": ("SqliteStore",),
    "sona.trajectory": ("Ring", "TrajectoryBuffer", "TrajectoryBuilder"),
    "sona.types": ("LearningSignal", "QueryTrajectory", "SignalMetadata", "TrajectoryStep"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Adapter",
    "BaseLoRA",
    "Decision",
    "Guard",
    "Instant",
    "InstantLoop",
    "InstantLoopConfig",
    "InstantLoopMetrics",
    "LearningSignal",
    "LoggedDecision",
    "MicroLoRA",
    "MissingExtraError",
    "QueryTrajectory",
    "Ring",
    "Router",
    "SignalMetadata",
    "SonaClosedError",
    "SonaConfig",
    "SonaCorruptError",
    "SonaEngine",
    "SonaError",
    "SonaStoreError",
    "SonaTypeError",
    "SonaValueError",
    "SonaVersionError",
    "SonaWarning",
    "SqliteStore",
    "TrajectoryBuffer",
    "TrajectoryBuilder",
    "TrajectoryStep",
    "__version__",
    "fold",
    "get_include",
    "isas",
    "metrics",
]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("sona.metrics")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'sona' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def get_include() -> str:
    """Directory of the C headers, for compilers and Cython: ``#include "sona/sona.h"``."""
    here = Path(__file__).resolve().parent
    installed = here / "include"
    return str(installed if installed.is_dir() else here.parent / "csrc" / "include")
