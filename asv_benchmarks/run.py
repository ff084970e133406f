"""Plays a stream to a policy and says what it earned, in expected reward: the luck of the draw is not counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from peers import F32, I64, Policy
from streams import Stream

import sona

Precondition = Literal["auto", "identity", "full"]


@dataclass(frozen=True)
class Run:
    """One policy on one stream.

    Attributes
    ----------
    earned : (T,) float64
        Expected reward of the shown arm.
    regret : float
        What the best arm of each request would have earned more, summed.
    held_out : float
        Expected reward on the rows that were never shown, without exploration.
    """

    earned: NDArray[np.float64]
    regret: float
    held_out: float


class Adapted:
    """A sona.Router as a policy; rewards that it refuses (NaN) are lost."""

    def __init__(self, arms: F32, seed: int, *, signed: bool = False, **options: Any) -> None:
        self.router = sona.Router(arms, seed=seed, reward_range=(-1.0, 1.0) if signed else (0.0, 1.0), **options)

    def choose(self, x: F32) -> tuple[int, int]:
        decision = self.router.route(x)
        return decision.index, decision.id

    def learn(self, ticket: int, reward: float) -> None:
        with suppress(sona.SonaValueError):
            self.router.feedback(ticket, reward)

    def best(self, x: F32) -> I64:
        return self.router.predict(x)


def adapted(stream: Stream, *, precondition: Precondition = "full", guard: bool = True, **options: Any) -> Callable[[F32, int], Policy]:
    """Makes the Router for a stream: its reward range, and room for the decisions that wait for their reward."""
    pending = max(8192, 2 * stream.delay)
    return lambda arms, seed: Adapted(arms, seed, signed=stream.signed, precondition=precondition, guard=guard, pending=pending, **options)


def play(stream: Stream, make: Callable[[F32, int], Policy]) -> Run:
    """All requests of `stream` in order; each reward arrives `stream.delay` requests after its decision."""
    policy = make(stream.arms, stream.seed)
    shown = np.zeros(len(stream.x), np.int64)
    waiting: deque[tuple[int, int, Any]] = deque()
    for t, x in enumerate(stream.x):
        arm, ticket = policy.choose(x)
        shown[t] = arm
        waiting.append((t, arm, ticket))
        if len(waiting) > stream.delay:
            at, arm, ticket = waiting.popleft()
            reward = stream.reward(at, arm)
            if stream.signed and isinstance(policy, Adapted):
                reward = 2 * reward - 1
            if isinstance(policy, Adapted) or reward == reward:
                policy.learn(ticket, reward)
    earned = stream.value[np.arange(len(shown)), shown].astype(np.float64)
    held = policy.best(stream.held_x)
    return Run(
        earned=earned,
        regret=float((stream.value.max(1) - earned).sum()),
        held_out=float(stream.held_value[np.arange(len(held)), held].mean()),
    )
