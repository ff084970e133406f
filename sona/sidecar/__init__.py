"""The sidecar: a process that learns from what a C program puts into a shared ring, and gives the weights back through shared memory."""

from sona.sidecar._shared import SharedRing, Weights
from sona.sidecar.run import Sidecar, SidecarConfig, fingerprint_of

__all__ = ["SharedRing", "Sidecar", "SidecarConfig", "Weights", "fingerprint_of"]
