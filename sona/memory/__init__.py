"""The memory station: what the model knows as a graph that walks can explore, and how integrated a part of it is."""

from sona.memory._walk import walks
from sona.memory.change import GraphChange
from sona.memory.consolidate import Consolidation, ConsolidationConfig, MemoryConsolidator
from sona.memory.csr import Csr
from sona.memory.dream import Dream, DreamConfig, DreamEngine
from sona.memory.edges import EdgeWeights
from sona.memory.evaluate import DreamEvaluator, DreamGate, DreamQuality, PhiEvaluator
from sona.memory.graph import MemoryGraph
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.links import proposals
from sona.memory.propagate import propagate
from sona.memory.propagation import Propagation
from sona.memory.recall import Recalled
from sona.memory.snapshot import GraphSnapshot

__all__ = [
    "Consolidation",
    "ConsolidationConfig",
    "Csr",
    "Dream",
    "DreamConfig",
    "DreamEngine",
    "DreamEvaluator",
    "DreamGate",
    "DreamQuality",
    "EdgeKind",
    "EdgeWeights",
    "GraphChange",
    "GraphSnapshot",
    "MemoryConsolidator",
    "MemoryGraph",
    "NodeKind",
    "PhiEvaluator",
    "Propagation",
    "Recalled",
    "propagate",
    "proposals",
    "walks",
]
