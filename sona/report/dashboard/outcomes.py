"""Rewards beside their decisions: what each arm earned, what the frozen model would have, and how long rewards take to come."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.loops.journal import proposal_columns
from sona.metrics.offpolicy import snips
from sona.store import Store

Array = npt.NDArray[Any]

POINTS = 120  # of the line of regret
ARMS = 30  # that are listed
CONFIDENT = 1.96  # standard errors of a 95 % interval
# s; one bar between two
DELAYS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0)


def outcomes(store: Store, newest: int) -> dict[str, Any]:
    """
    Of the newest rewards that count: arms, the most chosen first; regret against the frozen model; and delays.

    Regret against a model is what it would have earned and the served choices did not. Where the arms differ, the guard draws, so that
    w = P(frozen chooses this arm) / P(it was served) times the reward is an unbiased estimate; (w - 1)(r - mean) of each reward, added up,
    is the regret, with less noise than w r - r because w - 1 is 0 on average. Where nothing was drawn there is no estimate, and the reason
    is given: see `sona.metrics.offpolicy`. Rewards of a time without a guard count as if the models had agreed.
    """
    rows = list(store.outcomes(newest))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    time, decided, reward = (np.array(column, np.float64) for column in columns[:3])
    return {
        "count": len(rows),
        "arms": _arms(store, np.array(columns[3], np.int64), np.array(columns[4], np.int64), reward),
        "regret": _regret(time, reward, np.array(columns[5], np.float64), columns[6]),
        "delay": _delay(time - decided),
    }


def _arms(store: Store, arm: Array, arm_set: Array, reward: Array) -> dict[str, Any]:
    pairs, at = np.unique(np.stack([arm_set, arm], axis=1), axis=0, return_inverse=True)
    names: list[str] = []
    for version, row in pairs.tolist():
        kept = store.arms(version)
        names.append(str(json.loads(kept[0][row])) if kept is not None and row < len(kept[0]) else f"row {row} of a set that is gone")
    distinct = sorted(set(names))
    place = np.array([distinct.index(name) for name in names], np.int64)[at.reshape(-1)] if len(names) else np.zeros(0, np.int64)
    count = np.bincount(place, minlength=len(distinct))
    total, squares = (np.bincount(place, weights, len(distinct)) for weights in (reward, reward**2))
    order = np.argsort(-count, kind="stable")
    listed = [
        {
            "arm": distinct[each],
            "count": int(count[each]),
            "mean": float(total[each] / count[each]),
            "error": standard_error(int(count[each]), float(total[each]), float(squares[each])),
        }
        for each in order[:ARMS].tolist()
    ]
    return {"listed": listed, "more": max(len(distinct) - ARMS, 0)}


def standard_error(count: int, total: float, squares: float) -> float | None:
    """Standard error of a mean."""
    return float((max(squares - total**2 / count, 0.0) / (count - 1) / count) ** 0.5) if count > 1 else None


def _regret(time: Array, reward: Array, propensity: Array, proposals: tuple[bytes, ...]) -> dict[str, Any]:
    nothing: dict[str, Any] = {"points": [], "frozen": None, "reason": None}
    if not len(reward):
        return nothing
    proposed = proposal_columns(proposals)
    if not ((proposed["own"] == 1) & (proposed["chance"][:, 1] == 0)).any():  # without a guard the learner's choice stands for it
        return nothing | {"reason": "the frozen model never chose another arm than the learner, or the router has no guard"}
    chance = np.clip(proposed["chance"][:, 1].astype(np.float64), 0.0, 1.0)
    low, high = min(float(reward.min()), 0.0), max(float(reward.max()), 1.0)
    try:
        estimate = snips(reward, propensity, chance, reward_range=(low, high))
    except SonaValueError as error:
        return nothing | {"reason": str(error)}
    gap = (chance / propensity - 1) * (reward - reward.mean())
    ends = np.unique(np.linspace(0, len(gap), min(POINTS, len(gap)) + 1).astype(np.int64)[1:]) - 1
    total, spread = np.cumsum(gap)[ends], CONFIDENT * np.sqrt(np.cumsum(gap**2))[ends]
    return {
        "points": [
            {"time": float(time[end]), "count": end + 1, "regret": float(r), "low": float(r - s), "high": float(r + s)}
            for end, r, s in zip(ends.tolist(), total, spread, strict=True)
        ],
        "frozen": {"value": estimate.value, "low": estimate.low, "high": estimate.high, "served": float(reward.mean())},
        "reason": None,
    }


def _delay(seconds: Array) -> dict[str, Any]:
    """How many rewards came within which time of their decisions; clocks of two machines may differ, hence the bound."""
    seconds = np.maximum(seconds, 0.0)
    if not len(seconds):
        return {"bars": [], "p50": None, "p90": None, "p99": None}
    count = np.histogram(seconds, [0.0, *DELAYS, np.inf])[0].tolist()
    quantiles = dict(zip(("p50", "p90", "p99"), np.percentile(seconds, (50, 90, 99)).tolist(), strict=True))
    return {"bars": [{"to": to, "count": n} for to, n in zip((*DELAYS, None), count, strict=True)], **quantiles}
