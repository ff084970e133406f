"""What the checksums in a store cover."""

import hashlib
import json


def state_digest(applied_seq: int, blob: bytes) -> bytes:
    """SHA-256 of an adapter state with the feedback number it was learned up to."""
    digest = hashlib.sha256(b"%d\0" % applied_seq)
    digest.update(blob)
    return digest.digest()


def arms_digest(names: bytes, vectors: bytes, costs: bytes) -> bytes:
    """SHA-256 of an arm set; the lengths keep the parts apart."""
    digest = hashlib.sha256()
    for part in (names, vectors, costs):
        digest.update(b"%d\0" % len(part))
        digest.update(part)
    return digest.digest()


def version_digest(name: str, number: int, parent: int | None, time: float, verdict: str, reason: str, about: str, factors: bytes) -> bytes:
    """SHA-256 of everything of a version that may not change."""
    digest = hashlib.sha256(json.dumps([name, number, parent, time, verdict, reason, about]).encode())
    digest.update(b"\0")
    digest.update(factors)
    return digest.digest()
