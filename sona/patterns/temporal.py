"""Which pattern comes after which: decayed counts, a prediction, and whether it is worth more than naming the most frequent pattern."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError
from sona.patterns.pattern import unit_interval

_RESCALE = 1e100  # increments grow by 1/decay instead of all counts shrinking; rescaled when this large


class Transitions:
    """
    Counts of (pattern, next pattern), decayed by `decay` at each observation.

    Parameters
    ----------
    decay : float
        In (0, 1]: an observation counts half after ln 2 / (1 - decay) further ones.
    max_transitions : int
        Pairs kept; half of them, the ones of least count, are forgotten when there are more.
    kappa : float
        Weight of the overall frequencies in a prediction, in observations.

    Thread-safety
    -------------
    One thread at a time.
    """

    def __init__(self, *, decay: float = 0.999, max_transitions: int = 100_000, kappa: float = 5.0) -> None:
        if not unit_interval(decay, "decay") > 0:
            raise SonaValueError(f"decay: expected a number in (0, 1], got {decay:g}")
        if type(max_transitions) is not int or max_transitions < 2:
            raise SonaValueError(f"max_transitions: expected an int of at least 2, got {max_transitions!r}")
        if not 0 < kappa < math.inf:
            raise SonaValueError(f"kappa: expected a positive finite number, got {kappa!r}")
        self.decay, self.max_transitions, self.kappa = decay, max_transitions, kappa
        self._after: dict[int, dict[int, float]] = {}
        self._popular: dict[int, float] = {}
        self._pairs = 0
        self._unit = 1.0  # what an observation adds now
        self._outcomes = np.zeros(4, np.int64)  # by 2 * (transition was right) + (popularity was right)

    def __len__(self) -> int:
        """Pairs kept."""
        return self._pairs

    def observe(self, pattern: int, next_pattern: int) -> None:
        """
        One request of `pattern` was followed by one of `next_pattern`.

        Both predictions are first compared with what came, so that `gain` is about the future of what had been seen.

        Raises
        ------
        SonaTypeError
            Not ints.
        """
        for name, value in (("pattern", pattern), ("next_pattern", next_pattern)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise SonaTypeError(f"{name}: expected an int, got {type(value).__name__}")
        if self._popular:
            popular = max(self._popular, key=self._popular.__getitem__)
            after = self._after.get(pattern, {})
            prior = self.kappa * self._unit / sum(self._popular.values())  # in the units of the stored counts
            guess = max([popular, *after], key=lambda n: after.get(n, 0.0) + prior * self._popular.get(n, 0.0))
            self._outcomes[2 * (guess == next_pattern) + (popular == next_pattern)] += 1
        after = self._after.setdefault(int(pattern), {})
        self._pairs += next_pattern not in after
        after[int(next_pattern)] = after.get(next_pattern, 0.0) + self._unit
        self._popular[int(next_pattern)] = self._popular.get(next_pattern, 0.0) + self._unit
        self._unit /= self.decay
        if self._unit > _RESCALE:
            self._scale(1 / self._unit)
        if self._pairs > self.max_transitions or len(self._popular) > self.max_transitions:
            self._forget()

    def predict(self, pattern: int) -> list[tuple[int, float]]:
        """
        Patterns that may come next with their probabilities, most probable first: (count + kappa frequency) / (total + kappa).

        Of a pattern never seen, the overall frequencies; empty before the first observation.
        """
        if not self._popular:
            return []
        after = self._after.get(pattern, {})
        everything = sum(self._popular.values())
        total = sum(after.values()) / self._unit + self.kappa
        chances = {n: (after.get(n, 0.0) / self._unit + self.kappa * count / everything) / total for n, count in self._popular.items()}
        return sorted(chances.items(), key=lambda item: (-item[1], item[0]))

    def keep(self, patterns: Iterable[int]) -> None:
        """Forget every count from or to other patterns than these: they are gone, and will not come."""
        alive = set(patterns)
        self._after = {a: {b: n for b, n in after.items() if b in alive} for a, after in self._after.items() if a in alive}
        self._pairs = sum(map(len, self._after.values()))
        self._popular = {pattern: n for pattern, n in self._popular.items() if pattern in alive}

    @property
    def gain(self) -> dict[str, float]:
        """
        What knowing the current pattern was worth so far.

        Returns
        -------
        dict
            count : predictions compared. accuracy, popularity : how often the predicted next pattern, and the most frequent one, came.
            evidence : a betting wealth against "where only one of the two is right, it is popularity at least as often". It exceeds 1 / a
            with probability at most a, whenever and however often one looks.
        """
        neither, lost, won, both = self._outcomes.tolist()
        count = neither + lost + won + both
        rate = 1 / max(count, 1)
        return {"count": count, "accuracy": rate * (won + both), "popularity": rate * (lost + both), "evidence": _wealth(won, lost)}

    @property
    def helps(self) -> bool:
        """Whether `gain` has shown, at the 5 % level, that the prediction beats popularity."""
        return self.gain["evidence"] >= 20

    def _scale(self, factor: float) -> None:
        self._unit *= factor
        for counts in (*self._after.values(), self._popular):
            for key in counts:
                counts[key] *= factor

    def _forget(self) -> None:
        """Keep the half of the pairs, and of the frequencies, with the largest counts."""
        keep = self.max_transitions // 2
        pairs = sorted(((count, a, b) for a, after in self._after.items() for b, count in after.items()), reverse=True)[:keep]
        self._after = {}
        for count, a, b in pairs:
            self._after.setdefault(a, {})[b] = count
        self._pairs = len(pairs)
        popular = sorted(self._popular.items(), key=lambda item: (-item[1], item[0]))[:keep]
        self._popular = dict(popular)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the options, as arrays."""
        pairs = [(a, b, count / self._unit) for a, after in self._after.items() for b, count in after.items()]
        return {
            "pairs": np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2),
            "counts": np.array([pair[2] for pair in pairs], np.float64),
            "popular": np.array(list(self._popular), np.int64),
            "frequencies": np.array([count / self._unit for count in self._popular.values()], np.float64),
            "outcomes": self._outcomes.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]], **options: Any) -> Self:
        """
        What `state` gave, with the options it was made with.

        Raises
        ------
        SonaCorruptError
            Arrays that `state` does not give.
        """
        result = cls(**options)
        try:
            pairs, counts, popular, frequencies, outcomes = (
                np.asarray(state[name]) for name in ("pairs", "counts", "popular", "frequencies", "outcomes")
            )
        except KeyError as error:
            raise SonaCorruptError(f"transitions: expected an array {error}") from None
        if pairs.shape != (len(counts), 2) or popular.shape != frequencies.shape or outcomes.shape != (4,):
            raise SonaCorruptError(f"transitions: expected {len(counts)} pairs, got {pairs.shape}, {popular.shape}, {frequencies.shape}")
        if not (np.isfinite(counts).all() and (counts >= 0).all() and np.isfinite(frequencies).all() and (frequencies >= 0).all()):
            raise SonaCorruptError("transitions: expected finite counts of at least 0")
        for (a, b), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            result._after.setdefault(a, {})[b] = count
        result._pairs = len(counts)
        result._popular = dict(zip(popular.tolist(), frequencies.tolist(), strict=True))
        result._outcomes = outcomes.astype(np.int64)
        return result


def _wealth(won: int, lost: int) -> float:
    """
    Likelihood of won and lost under a chance to win that is uniform on (1/2, 1), over that under 1/2: a supermartingale wherever the
    chance to win, given the past, is at most 1/2.
    """
    from scipy.special import betainc, betaln

    tail = float(betainc(lost + 1, won + 1, 0.5))  # P(chance > 1/2) under Beta(won + 1, lost + 1)
    if tail == 0:
        return 0.0
    log = math.log(2) * (won + lost + 1) + float(betaln(won + 1, lost + 1)) + math.log(tail)
    return math.exp(min(log, 700.0))
