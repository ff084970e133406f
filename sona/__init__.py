"""sona: online learning beside a frozen model."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sona._version import __version__

if TYPE_CHECKING:
    from sona import metrics
    from sona._kernels import isas
    from sona.adapters import Adapter, BaseLoRA, MicroLoRA, Version, fold
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
    from sona.ewc import Adwin, EwcConfig, EwcPlusPlus, LowRankEwc, PageHinkley, TaskFactors, TaskFisher
    from sona.loops._guard import Guard
    from sona.loops._instant import Instant
    from sona.loops._policy import Decision
    from sona.loops.background import BackgroundLoop, BackgroundLoopConfig, BackgroundResult
    from sona.loops.coordinator import LoopCoordinator
    from sona.loops.deep import DeepLoop, DeepLoopConfig, DeepResult
    from sona.loops.forgetting import ForgetReport
    from sona.loops.gate import Duel, Gate, GateConfig
    from sona.loops.instant import InstantLoop, InstantLoopConfig, InstantLoopMetrics
    from sona.loops.limits import SourceLimits, SourceReport
    from sona.loops.memory import Memory
    from sona.loops.patterns import PatternMatch
    from sona.memory import (
        Consolidation,
        ConsolidationConfig,
        Dream,
        DreamConfig,
        DreamEngine,
        DreamEvaluator,
        DreamGate,
        DreamQuality,
        EdgeKind,
        EdgeWeights,
        GraphChange,
        MemoryConsolidator,
        MemoryGraph,
        NodeKind,
        PhiEvaluator,
        Recalled,
    )
    from sona.memory.iit3 import Iit3Result, iit3
    from sona.memory.phi import Phi, phi
    from sona.patterns import LearnedPattern, PatternConfig, PatternType, ReasoningBank, Transitions, Verdict
    from sona.ranker import Ranker, Ranking
    from sona.router import LoggedDecision, Router
    from sona.store import SqliteStore, open_store
    from sona.trajectory import Ring, TrajectoryBuffer, TrajectoryBuilder
    from sona.types import LearningSignal, QueryTrajectory, SignalMetadata, TrajectoryStep

# Where each public name lives; looked up on first use, so that `import sona` loads neither numpy nor SQLite.
_HOMES = {
    "sona._kernels": ("isas",),
    "sona.adapters": ("Adapter", "BaseLoRA", "MicroLoRA", "Version", "fold"),
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
    "sona.ewc": ("Adwin", "EwcConfig", "EwcPlusPlus", "LowRankEwc", "PageHinkley", "TaskFactors", "TaskFisher"),
    "sona.loops._guard": ("Guard",),
    "sona.loops._instant": ("Instant",),
    "sona.loops._policy": ("Decision",),
    "sona.loops.background": ("BackgroundLoop", "BackgroundLoopConfig", "BackgroundResult"),
    "sona.loops.coordinator": ("LoopCoordinator",),
    "sona.loops.deep": ("DeepLoop", "DeepLoopConfig", "DeepResult"),
    "sona.loops.forgetting": ("ForgetReport",),
    "sona.loops.gate": ("Duel", "Gate", "GateConfig"),
    "sona.loops.instant": ("InstantLoop", "InstantLoopConfig", "InstantLoopMetrics"),
    "sona.loops.limits": ("SourceLimits", "SourceReport"),
    "sona.loops.memory": ("Memory",),
    "sona.loops.patterns": ("PatternMatch",),
    "sona.memory": (
        "Consolidation",
        "ConsolidationConfig",
        "Dream",
        "DreamConfig",
        "DreamEngine",
        "DreamEvaluator",
        "DreamGate",
        "DreamQuality",
        "EdgeKind",
        "EdgeWeights",
        "GraphChange",
        "MemoryConsolidator",
        "MemoryGraph",
        "NodeKind",
        "PhiEvaluator",
        "Recalled",
    ),
    "sona.memory.iit3": ("Iit3Result", "iit3"),
    "sona.memory.phi": ("Phi", "phi"),
    "sona.patterns": ("LearnedPattern", "PatternConfig", "PatternType", "ReasoningBank", "Transitions", "Verdict"),
    "sona.ranker": ("Ranker", "Ranking"),
    "sona.router": ("LoggedDecision", "Router"),
    "sona.store": ("SqliteStore", "open_store"),
    "sona.trajectory": ("Ring", "TrajectoryBuffer", "TrajectoryBuilder"),
    "sona.types": ("LearningSignal", "QueryTrajectory", "SignalMetadata", "TrajectoryStep"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Adapter",
    "Adwin",
    "BackgroundLoop",
    "BackgroundLoopConfig",
    "BackgroundResult",
    "BaseLoRA",
    "Consolidation",
    "ConsolidationConfig",
    "Decision",
    "DeepLoop",
    "DeepLoopConfig",
    "DeepResult",
    "Dream",
    "DreamConfig",
    "DreamEngine",
    "DreamEvaluator",
    "DreamGate",
    "DreamQuality",
    "Duel",
    "EdgeKind",
    "EdgeWeights",
    "EwcConfig",
    "EwcPlusPlus",
    "ForgetReport",
    "Gate",
    "GateConfig",
    "GraphChange",
    "Guard",
    "Iit3Result",
    "Instant",
    "InstantLoop",
    "InstantLoopConfig",
    "InstantLoopMetrics",
    "LearnedPattern",
    "LearningSignal",
    "LoggedDecision",
    "LoopCoordinator",
    "LowRankEwc",
    "Memory",
    "MemoryConsolidator",
    "MemoryGraph",
    "MicroLoRA",
    "MissingExtraError",
    "NodeKind",
    "PageHinkley",
    "PatternConfig",
    "PatternMatch",
    "PatternType",
    "Phi",
    "PhiEvaluator",
    "QueryTrajectory",
    "Ranker",
    "Ranking",
    "ReasoningBank",
    "Recalled",
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
    "SourceLimits",
    "SourceReport",
    "SqliteStore",
    "TaskFactors",
    "TaskFisher",
    "TrajectoryBuffer",
    "TrajectoryBuilder",
    "TrajectoryStep",
    "Transitions",
    "Verdict",
    "Version",
    "__version__",
    "fold",
    "get_include",
    "iit3",
    "isas",
    "metrics",
    "open_store",
    "phi",
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
