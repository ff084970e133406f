"""Plays a stream of labelled rows to several policies at once, each paid only for the arm that it showed, and sums up what happened."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from sona._version import __version__
from sona.metrics import cumulative_regret

if TYPE_CHECKING:
    from sona.router import Router

FIRST, LAST = 500, 1000  # rounds that the accuracies are taken over
CPUINFO = "/proc/cpuinfo"
CURVE_STEP = 50  # rounds between the points of a curve


class Policy(Protocol):
    """What :func:`play` calls: ``route`` and ``feedback`` are timed, one call each a round."""

    name: str
    learns: bool

    @property
    def state_bytes(self) -> int: ...

    @property
    def route(self) -> Callable[[npt.NDArray[np.float32]], Any]: ...

    def arm(self, decision: Any) -> int: ...

    def feedback(self, decision: Any, reward: float) -> object: ...

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]: ...


class Frozen:
    """The nearest arm by inner product, for ever. ``arms``: (K, d)."""

    name = "frozen"
    learns = False
    state_bytes = 0

    def __init__(self, arms: npt.NDArray[np.float32]) -> None:
        self._arms = np.ascontiguousarray(arms, np.float32)

    def route(self, x: npt.NDArray[np.float32]) -> int:
        return int((self._arms @ x).argmax())

    def arm(self, decision: int) -> int:
        return decision

    def feedback(self, decision: int, reward: float) -> None:
        """Learns nothing."""

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        return np.asarray(np.argmax(x @ self._arms.T, axis=1), np.int64)


class Adapted:
    """A :class:`sona.Router` as a policy; ``route`` is the Router's own method, so nothing is added to its time."""

    name = "sona"
    learns = True

    def __init__(self, router: Router) -> None:
        self.router = router
        self.route = router.route

    @property
    def state_bytes(self) -> int:
        return self.router.state_bytes

    def arm(self, decision: Any) -> int:
        return int(decision.index)

    def feedback(self, decision: Any, reward: float) -> None:
        self.router.feedback(decision.id, reward)

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        return self.router.predict(x)


@dataclass
class Trace:
    """One policy's rounds: rewards (n,), nanoseconds of each call (n,)."""

    reward: npt.NDArray[np.float64]
    route_ns: npt.NDArray[np.int64]
    feedback_ns: npt.NDArray[np.int64]

    def cut(self, rounds: int) -> Trace:
        return Trace(self.reward[:rounds], self.route_ns[:rounds], self.feedback_ns[:rounds])


@dataclass(frozen=True)
class Latency:
    """Microseconds of single calls, as ``time.perf_counter_ns`` around them sees."""

    p50_us: float
    p99_us: float

    @classmethod
    def of(cls, nanoseconds: npt.NDArray[np.int64]) -> Latency:
        p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1000
        return cls(round(float(p50), 2), round(float(p99), 2))


@dataclass(frozen=True)
class Summary:
    """A policy's line in the table. ``first`` and ``last``: accuracy of the first 500 and last 1000 rounds (of all, if there are fewer)."""

    first: float
    last: float
    regret: float
    held_out: float | None
    route: Latency
    feedback: Latency | None
    state_bytes: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Summary:
        feedback = line["feedback"]
        return cls(**{**line, "route": Latency(**line["route"]), "feedback": None if feedback is None else Latency(**feedback)})


def summaries_of(run: Mapping[str, Any]) -> dict[str, Summary]:
    """The lines of the table that a report holds."""
    return {name: Summary.from_json(line) for name, line in run["policies"].items()}


class Interrupted(Exception):
    """Ctrl-C arrived after ``rounds`` whole rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__(rounds)
        self.rounds = rounds


def play(
    policies: Sequence[Policy],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    *,
    on_round: Callable[[int, Mapping[str, Trace]], None] | None = None,
    traces: dict[str, Trace] | None = None,
) -> dict[str, Trace]:
    """Row ``rows[t]`` of ``x`` (m, d) to each policy in round t; reward 1 where it shows arm ``y`` of that row, else 0.

    ``traces``, when given, is filled as rounds complete, so that a caller still has them after :class:`Interrupted`.
    """
    n = len(rows)
    traces = {} if traces is None else traces
    for policy in policies:
        traces[policy.name] = Trace(np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64))
    done = 0
    try:
        for at in rows.tolist():
            row, label = x[at], int(y[at])
            for policy in policies:
                trace = traces[policy.name]
                start = perf_counter_ns()
                decision = policy.route(row)
                trace.route_ns[done] = perf_counter_ns() - start
                reward = 1.0 if policy.arm(decision) == label else 0.0
                start = perf_counter_ns()
                policy.feedback(decision, reward)
                trace.feedback_ns[done] = perf_counter_ns() - start
                trace.reward[done] = reward
            done += 1
            if on_round is not None:
                on_round(done, traces)
    except KeyboardInterrupt:
        raise Interrupted(done) from None
    return traces


def summarise(policy: Policy, trace: Trace, held_x: npt.NDArray[np.float32], held_y: npt.NDArray[np.int64]) -> Summary:
    held_out = float(np.mean(policy.predict(held_x) == held_y)) if len(held_x) else None
    return Summary(
        first=float(trace.reward[:FIRST].mean()),
        last=float(trace.reward[-LAST:].mean()),
        regret=float(cumulative_regret(trace.reward)[-1]),
        held_out=held_out,
        route=Latency.of(trace.route_ns),
        feedback=Latency.of(trace.feedback_ns) if policy.learns else None,
        state_bytes=policy.state_bytes,
    )


def curves(traces: Mapping[str, Trace], start: int) -> dict[str, list[int]]:
    """Cumulative regret of each policy within this run, every 50 rounds, and the rounds (counted from ``start``) where it was read."""
    rounds = len(next(iter(traces.values())).reward)
    at = np.unique(np.append(np.arange(CURVE_STEP, rounds + 1, CURVE_STEP), rounds))
    points = {"round": (start + at).tolist()}
    for name, trace in traces.items():
        points[name] = cumulative_regret(trace.reward)[at - 1].round().astype(int).tolist()
    return points


def machine() -> dict[str, Any]:
    """What a latency means nothing without."""
    return {
        "sona": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
    }


def cpu_name() -> str:
    try:
        with open(CPUINFO, encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
