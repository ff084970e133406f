"""Times several pieces of code against each other on a machine that other work slows down and lets go again.

All pieces take turns, in an order that rotates from round to round, and a comparison is the median over the rounds of the ratio within a
round: on a shared machine times wander by half while such ratios repeat to about a tenth.

Where a loop and its arrays happen to lie in memory can double the time of an empty call for as long as they lie there. Each piece is
therefore compiled several times, and each round takes the next copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from timeit import Timer
from typing import Any

EMPTY_LOOP = "\0"
COPIES = 5


@dataclass(frozen=True)
class Code:
    """One statement and the names it uses."""

    statement: str
    names: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rounds:
    """Seconds of one execution of each code, round by round; the empty loop is subtracted."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, over: str) -> float:
        """How many times as long `name` takes as `over`: the median of the rounds."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[over], strict=True))


def interleave(
    codes: Mapping[str, Code | Sequence[Code]], *, rounds: int, sample: float = 1e-3, clock: Callable[[], float] = time.process_time
) -> Rounds:
    """
    Time the codes in turns.

    Parameters
    ----------
    codes : mapping
        By name; a sequence where copies of one code use arrays of their own.
    rounds : int
    sample : float
        Seconds that each code runs for in a round, at least: long for the clock, short for the machine's moods.
    clock : callable
        CPU time of the process by default, because waiting for a core is not the code's doing.
    """
    timers = {
        name: [Timer(c.statement, timer=clock, globals=dict(c.names)) for c in ([code] * COPIES if isinstance(code, Code) else code)]
        for name, code in codes.items()
    }
    timers[EMPTY_LOOP] = [Timer("pass", timer=clock) for _ in range(COPIES)]
    counts = {name: _count(copies[0], sample) for name, copies in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    for i in range(rounds):
        for name in order:
            copies = timers[name]
            seconds[name].append(copies[i % len(copies)].timeit(counts[name]) / counts[name])
        order.append(order.pop(0))
    loop = median(seconds.pop(EMPTY_LOOP))
    return Rounds({name: [max(s - loop, 1e-9) for s in own] for name, own in seconds.items()})


def _count(timer: Timer, sample: float) -> int:
    """Executions that take about `sample` seconds; the fastest of three tries counts, because a first call loads and allocates."""
    count = 1
    while (took := min(timer.repeat(3, count))) < sample:
        count = max(count + 1, min(10 * count, int(1.2 * count * sample / max(took, 1e-9))))
    return count
