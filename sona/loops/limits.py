"""How much the rewards of each source count: no more than a share allows, and nothing while they contradict what the others report."""

import json
import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError
from sona.loops._policy import Policy
from sona.loops.ruling import at_least, between, items_now
from sona.store.rows import check_source

WINDOW = 1000.0  # rewards: what share and surprise remember
SETTLED = 100.0  # rewards in the window before a share means something
FAIR = 2.0  # times an equal share that any source may have
JUDGED = 10.0  # rewards of a source before its surprise means something
DOUBT = 10.0  # pseudo-rewards of the largest variance there is, 1/4
MEDIAN_EVERY = 16  # rewards
UNKNOWN = 2.0  # stands for no median in a stored state


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLimits:
    """
    What a source of rewards may do; see docs/sources.md.

    Attributes
    ----------
    cap : float
        Share of the recent rewards above which the rewards of a source count for less, so that together they count as that share. Twice an
        equal share is always allowed.
    tolerance, deviations : float
        The rewards of a source count for nothing while its mean surprise is further from the median of the sources than
        tolerance + deviations standard errors.
    momentum : float
        Of a source's mean surprise.
    min_sources : int
        With fewer sources in the recent rewards nothing is capped, with fewer to compare nothing is doubted.
    max_sources : int
        Sources remembered; the one that reported the longest ago is forgotten first.
    trusted : collection of str
        Sources that are neither capped nor doubted.
    """

    cap: float = 0.1
    tolerance: float = 0.05
    deviations: float = 3.0
    momentum: float = 0.02
    min_sources: int = 5
    max_sources: int = 1024
    trusted: Collection[str] = ()

    def __post_init__(self) -> None:
        for name, most in (("cap", 1 + 1e-9), ("tolerance", math.inf), ("deviations", math.inf), ("momentum", 1)):
            between(name, getattr(self, name), 0, most)
        at_least("min_sources", self.min_sources, 3)
        at_least("max_sources", self.max_sources, self.min_sources)
        if isinstance(self.trusted, str) or not all(isinstance(source, str) for source in self.trusted):
            raise SonaTypeError(f"trusted: expected a collection of sources, got {self.trusted!r}")
        object.__setattr__(self, "trusted", frozenset(self.trusted))


@dataclass(frozen=True, slots=True)
class SourceReport:
    """
    One source of rewards.

    Attributes
    ----------
    source : str
    rewards : int
        Since it was first seen, those included that counted for nothing.
    share : float
        Of the last thousand or so rewards that named a source.
    surprise : float
        Mean of reward minus expected reward, recent ones first, in [-1, 1].
    weight : float
        What its newest reward counted for, in [0, 1].
    quarantined : bool
        Whether that was nothing.
    """

    source: str
    rewards: int
    share: float
    surprise: float
    weight: float
    quarantined: bool


class _Record:
    """Decayed sums of one source, as of reward number `at`."""

    __slots__ = ("at", "count", "evenness", "rewards", "squares", "surprise", "traffic", "weight")

    def __init__(self, *values: float) -> None:
        start = values or (0.0,) * 7 + (1.0,)
        self.at, self.rewards, self.traffic, self.count, self.evenness, self.surprise, self.squares, self.weight = start

    def values(self) -> tuple[float, ...]:
        return self.at, self.rewards, self.traffic, self.count, self.evenness, self.surprise, self.squares, self.weight

    @property
    def mean(self) -> float:
        return self.surprise / self.count if self.count > 0 else 0.0

    @property
    def error(self) -> float:
        """Standard error of `mean`."""
        spread = max(self.squares - self.count * self.mean**2, 0.0)
        effective = min(self.count**2 / self.evenness, 2 * self.count)  # Kish; less when the rewards are long ago
        return math.sqrt((spread + DOUBT / 4) / (self.count + DOUBT) / effective)


WIDTH = len(_Record().values())


class Sources:
    """
    Weighs rewards by who reported them.

    Parameters
    ----------
    limits : SourceLimits or None
        None: every reward counts in full and nothing is remembered.

    Notes
    -----
    The weight of a reward is

        min(1, cap / share) and 0 while |mean - median| > tolerance + deviations * standard error

    where the mean is that of the source's surprises, reward minus expected reward at the weights of the moment, and the median is over the
    sources. A reward that replaces another one surprises by the difference of the two. Everything depends on the order of the rewards
    alone, so a replay from a saved state gives the weights that were given.
    """

    def __init__(self, limits: SourceLimits | None) -> None:
        self.limits = limits
        self._known: OrderedDict[str, _Record] = OrderedDict()  # the one that reported last is the last
        self._now = 0  # rewards that named a source
        self._total = 0.0  # the same, decayed
        self._median: float | None = None
        self._active = 0

    def learn(self, policy: Policy, id: int, reward: float, source: str | None) -> bool:
        """`Policy.learn` with the weight of the source; True too where that is 0 and nothing is learned."""
        check_source(source)
        if source is None or self.limits is None:
            return policy.learn(id, reward, source=source)
        surprise = policy.score(id, reward)
        weight = 1.0 if surprise is None else self.weigh(source, surprise)
        return weight == 0 or policy.learn(id, reward, weight, source)

    def weigh(self, source: str, surprise: float) -> float:
        """Take note of a reward that surprised by that much and return what it counts for, in [0, 1]."""
        assert self.limits is not None
        limits = self.limits
        self._now += 1
        self._total = self._total * math.exp(-1 / WINDOW) + 1
        one = self._known.get(source)
        if one is None:
            if len(self._known) >= limits.max_sources:
                self._known.popitem(last=False)
            one = self._known[source] = _Record()
        self._known.move_to_end(source)
        aged = math.exp((one.at - self._now) / WINDOW)
        kept = aged * (1 - limits.momentum)
        one.at = float(self._now)
        one.rewards += 1
        one.traffic = aged * one.traffic + 1
        one.count = kept * one.count + 1
        one.evenness = kept**2 * one.evenness + 1
        one.surprise = kept * one.surprise + surprise
        one.squares = kept * one.squares + surprise**2
        if self._now % MEDIAN_EVERY == 0:
            self._compare()
        one.weight = 1.0 if source in limits.trusted else 0.0 if self._doubts(one) else self._share_of(one)
        return one.weight

    def _compare(self) -> None:
        """The median, and how many sources there are."""
        assert self.limits is not None
        means, self._active = [], 0
        for one in reversed(self._known.values()):
            aged = math.exp((one.at - self._now) / WINDOW)
            self._active += aged * one.traffic >= 0.5
            if aged * one.count >= JUDGED:
                means.append(one.mean)
        self._median = median(means) if len(means) >= self.limits.min_sources else None

    def _doubts(self, one: _Record) -> bool:
        assert self.limits is not None
        if self._median is None or one.count < JUDGED:
            return False
        return abs(one.mean - self._median) > self.limits.tolerance + self.limits.deviations * one.error

    def _share_of(self, one: _Record) -> float:
        assert self.limits is not None
        if self._total < SETTLED or self._active < self.limits.min_sources:
            return 1.0
        return min(1.0, max(self.limits.cap, FAIR / self._active) * self._total / one.traffic)

    def counts(self, source: str | None) -> bool:
        """Whether the newest reward of a source counted for something."""
        one = None if source is None else self._known.get(source)
        return one is None or one.weight > 0

    def quarantined(self) -> list[str]:
        """Sources whose newest reward counted for nothing."""
        return [source for source, one in items_now(self._known) if one.weight == 0]

    def knows(self, source: str) -> bool:
        """Whether a reward of that source is remembered."""
        return source in self._known

    def report(self) -> list[SourceReport]:
        """The sources that are remembered, the one with the largest share first."""
        found = []
        for source, one in items_now(self._known):  # rewards may come in meanwhile
            share = one.traffic * math.exp((one.at - self._now) / WINDOW) / self._total
            found.append(SourceReport(source, int(one.rewards), share, one.mean, one.weight, one.weight == 0))
        return sorted(found, key=lambda each: (-each.share, each.source))

    # ---- state ----

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `restore` takes; none where no reward named a source."""
        if not self._now:
            return {}
        return {
            "names": np.frombuffer(json.dumps(list(self._known)).encode(), np.uint8),
            "records": np.array([one.values() for one in self._known.values()], np.float64).reshape(-1, WIDTH),
            "clock": np.array([self._now, self._total, self._active, UNKNOWN if self._median is None else self._median], np.float64),
        }

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `state` returned; SonaValueError for anything else."""
        fresh = type(self)(self.limits)
        if arrays:
            fresh._fill(arrays)
        self._known, self._now, self._total = fresh._known, fresh._now, fresh._total
        self._median, self._active = fresh._median, fresh._active

    def _fill(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        try:
            names = json.loads(np.asarray(arrays["names"], np.uint8).tobytes())
            records, clock = np.asarray(arrays["records"], np.float64), np.asarray(arrays["clock"], np.float64)
        except (KeyError, ValueError) as error:
            raise SonaValueError(f"sources: expected names, records and clock, got {error!r}") from error
        sound = isinstance(names, list) and len(set(names)) == len(names) and records.shape == (len(names), WIDTH) and clock.shape == (4,)
        if not (sound and np.isfinite(records).all() and np.isfinite(clock).all()):
            raise SonaValueError(
                f"sources: expected finite records (n, {WIDTH}) of n names and clock (4,), got {records.shape}, {clock.shape}"
            )
        if self.limits is None:
            return
        self._now, self._total, self._active = int(clock[0]), float(clock[1]), int(clock[2])
        self._median = None if clock[3] == UNKNOWN else float(clock[3])
        for name, values in zip(names, records.tolist(), strict=True):
            check_source(name)
            self._known[name] = _Record(*values)
