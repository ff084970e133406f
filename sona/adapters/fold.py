"""Fold: move what one adapter has learned into another, as a sum of corrections."""

import numpy as np

from sona.adapters._lora import Adapter
from sona.errors import SonaValueError


def fold(source: Adapter, target: Adapter) -> float:
    """
    target += source, then source is empty; the sum of the two corrections is what it was, but for the returned share.

    Sums of corrections are formed on the pairs themselves: adding the factors of two adapters would mix up, down and down, up.

    Parameters
    ----------
    source, target : Adapter
        Of the same dim.

    Returns
    -------
    float
        Share of the energy of the sum that target's rank could not hold.
    """
    if source.dim != target.dim:
        raise SonaValueError(f"fold: expected equal dims, got {source.dim} into {target.dim}")
    if source is target:
        raise SonaValueError("fold: expected two adapters, got the same one twice")
    before = target.info()["discarded_sum"]
    for up, down, offset in zip(source.up, source.down, source.offset, strict=True):
        target.append(up, down, source.scale, float(offset))
    target.fold()
    empty = np.zeros((0, source.dim), dtype=np.float32)
    source.assign(empty, empty)
    return float(target.info()["discarded_sum"] - before)
