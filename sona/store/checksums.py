"""What the checksums in a store cover."""

import hashlib


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
