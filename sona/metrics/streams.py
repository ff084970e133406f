"""What a stream of rewards was worth: regret and rolling means."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.metrics._checks import FloatArray, numbers, vector


def cumulative_regret(reward: npt.ArrayLike, best: npt.ArrayLike = 1.0) -> FloatArray:
    """Running sum of ``best - reward``, (n,). ``best`` is the expected reward of the right arm, one number or one per round."""
    rewards = vector("reward", reward)
    highest = numbers("best", best)
    if highest.shape not in ((), rewards.shape):
        raise SonaValueError(f"expected best as one number or one for each of {len(rewards)} rewards, got shape {highest.shape}")
    if not np.isfinite(highest).all():
        raise SonaValueError(f"expected finite best, got {int((~np.isfinite(highest)).sum())} values that are not")
    return np.asarray(np.cumsum(highest - rewards), np.float64)


def regret(reward: npt.ArrayLike, best: npt.ArrayLike = 1.0) -> float:
    """Sum of ``best - reward`` over the stream; see :func:`cumulative_regret`."""
    return float(cumulative_regret(reward, best)[-1])


def rolling_mean(values: npt.ArrayLike, window: int) -> FloatArray:
    """Mean of the last ``window`` values at each position, (n,); of all values so far while there are fewer."""
    series = vector("values", values)
    if window < 1:
        raise SonaValueError(f"expected window >= 1, got {window}")
    total = np.concatenate([[0.0], np.cumsum(series)])
    end = np.arange(1, len(series) + 1)
    start = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[start]) / (end - start), np.float64)
