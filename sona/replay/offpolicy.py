"""Learns from logged decisions in their order and estimates what the policies would have earned: each row is predicted, then learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.metrics import Estimate, ips, replay_estimate, snips
from sona.replay.log import LoggedRow


class Learner(Protocol):
    """Picks an arm for a logged row without being told the outcome, and then learns it."""

    def choose(self, row: LoggedRow) -> str: ...

    def learn(self, row: LoggedRow) -> None: ...


class LoggedRun:
    """What happened row by row. reward, propensity: (n,); agree[name]: (n,) bool, that policy picked the logged arm."""

    def __init__(self, names: Iterable[str]) -> None:
        self._agree: dict[str, list[bool]] = {name: [] for name in names}
        self._reward: list[float] = []
        self._propensity: list[float] = []

    def add(self, row: LoggedRow, propensity: float, chosen: Mapping[str, str]) -> None:
        self._reward.append(row.reward)
        self._propensity.append(propensity)
        for name, arm in chosen.items():
            self._agree[name].append(arm == row.arm)

    @property
    def reward(self) -> npt.NDArray[np.float64]:
        return np.array(self._reward)

    @property
    def propensity(self) -> npt.NDArray[np.float64]:
        return np.array(self._propensity)

    @property
    def agree(self) -> dict[str, npt.NDArray[np.bool_]]:
        return {name: np.array(values, np.bool_) for name, values in self._agree.items()}


def run_log(
    rows: Iterable[LoggedRow],
    learners: Mapping[str, Learner],
    *,
    uniform_over: int | None = None,
    on_row: Callable[[int], None] | None = None,
) -> LoggedRun:
    """Show every row to every learner: first to choose, then to learn.

    ``uniform_over``: the caller vouches that arms were drawn uniformly at random; a row without candidates then had this many.
    """
    run = LoggedRun(learners)
    for done, row in enumerate(rows, 1):
        propensity = row.propensity
        if uniform_over is not None:
            propensity = 1 / (len(row.candidates) if row.candidates is not None else uniform_over)
        chosen = {name: learner.choose(row) for name, learner in learners.items()}
        run.add(row, propensity, chosen)
        for learner in learners.values():
            learner.learn(row)
        if on_row is not None:
            on_row(done)
    return run


def estimates(run: LoggedRun, policy: str, part: slice, reward_range: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """Replay, IPS and SNIPS of one policy over a part of the rows: each an estimate, or {"refused": why}."""
    agree, reward, propensity = run.agree[policy][part], run.reward[part], run.propensity[part]
    target = agree.astype(np.float64)
    methods: dict[str, Callable[[], Estimate]] = {
        "replay": lambda: replay_estimate(agree, reward, propensity_logged=propensity, reward_range=reward_range),
        "ips": lambda: ips(reward, propensity, target, reward_range=reward_range),
        "snips": lambda: snips(reward, propensity, target, reward_range=reward_range),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, method in methods.items():
        try:
            found[name] = asdict(method())
        except SonaValueError as reason:
            found[name] = {"refused": str(reason)}
    return found
