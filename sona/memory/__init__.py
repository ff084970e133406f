"""The memory station: what the model knows as a graph that walks can explore, and how integrated a part of it is."""

from sona.memory.change import GraphChange
from sona.memory.csr import Csr
from sona.memory.graph import MemoryGraph, Recalled
from sona.memory.kinds import EdgeKind, NodeKind
from sona.memory.snapshot import GraphSnapshot

__all__ = ["Csr", "EdgeKind", "GraphChange", "GraphSnapshot", "MemoryGraph", "NodeKind", "Recalled"]
