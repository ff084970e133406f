"""Has the world changed? Two detectors on the surprise r - expected, which is zero on average while the policy is calibrated."""

import math
import operator
from typing import Any, Protocol

from sona._fields import finite
from sona.errors import SonaValueError

MAX_BUCKETS = 5  # Adwin: of one size; a sixth merges the two oldest (Bifet & Gavalda: M)
CLOCK = 32  # Adwin: updates between looks at the window, as in the authors' code
MAX_ROWS = 48  # Adwin: of a state that is read; 2^48 values are more than any stream has
WARM_UP = 30  # Page-Hinkley: values before the mean is worth a comparison


class Detector(Protocol):
    """What `EwcPlusPlus.detect_task_boundary` asks of a detector."""

    def update(self, value: float) -> bool: ...
    def reset(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


def _surprise(value: float) -> float:
    value = finite(value, "surprise")
    if not -1 <= value <= 1:
        raise SonaValueError(f"surprise: expected reward - expected in [-1, 1], got {value:g}")
    return value


def _number(state: dict[str, Any], name: str, low: float = -math.inf) -> float:
    """A finite number of a state, at least `low`."""
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise SonaValueError(
            f"state: expected a finite number{f' of at least {low:g}' if low > -math.inf else ''} as {name}, got {value!r}"
        )
    return value


class Adwin:
    """
    Adaptive window: keeps the values since the last change, and drops the older ones where two parts differ in mean.

    The window is an exponential histogram, so that n values take O(log n) numbers (Bifet & Gavalda, "Learning from time-changing data with
    adaptive windowing", SDM 2007, algorithm ADWIN2). A cut into n0 older and n1 newer values is a change where their means differ by more
    than sqrt(2 v L / m) + 2 L / (3 m), v the variance of the window, 1/m = 1/n0 + 1/n1, L = ln(2 ln(n) / delta). The second term is that
    of values whose range is 1, which the surprise of a reward in [0, 1] has at any one expectation.

    Parameters
    ----------
    delta : float
        Bound on the chance of a false alarm, in (0, 1).
    bucket : int
        Values of the smallest bucket, in which a change is not looked for; it divides `clock`.
    clock : int
        Values between looks at the window.
    memory : int, optional
        Most values of the window: what is older is forgotten, and a change that is too small to show within that many is not found.
        Without it every difference is found in time, also that between a policy which still learns and one which has.

    Attributes
    ----------
    width : int
        Values in the window, without those of a bucket that is not full yet.
    change : float
        How far the mean of the window moved when it was cut the last time; 0 before that.

    Thread-safety
    -------------
    One thread at a time.
    """

    def __init__(self, delta: float = 1e-3, *, bucket: int = 1, clock: int = CLOCK, memory: int | None = None) -> None:
        if not 0 < finite(delta, "delta") < 1:
            raise SonaValueError(f"delta: expected a number in (0, 1), got {delta}")
        if bucket < 1 or clock < 1 or clock % bucket:
            raise SonaValueError(f"clock: expected a multiple of bucket >= 1, got {clock} and {bucket}")
        if memory is not None and memory < 2 * bucket:
            raise SonaValueError(f"memory: expected at least two buckets of {bucket} values, got {memory}")
        self.delta, self.bucket, self.clock, self.memory = float(delta), bucket, clock, memory
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.width = 0
        self._total = 0.0
        self.change = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean
        self._updates = 0
        # Row i: buckets of bucket * 2^i values, oldest first, each (sum, sum of squared deviations from its own mean)
        self._rows: list[list[tuple[float, float]]] = [[]]
        self._open = (0, 0.0, 0.0)  # the bucket that is not full: values, sum, squared deviations

    @property
    def waiting(self) -> int:
        """Values of the bucket that is not full yet."""
        return self._open[0]

    @property
    def mean(self) -> float:
        """Mean of the window; 0 where it is empty."""
        return self._total / self.width if self.width else 0.0

    @property
    def variance(self) -> float:
        """Variance of the window; 0 where it is empty."""
        return max(self._squares, 0.0) / self.width if self.width else 0.0

    def update(self, value: float) -> bool:
        """
        Take a value in [-1, 1] into account; True where the window was cut because it held a change.

        Raises
        ------
        SonaValueError, SonaTypeError
            Anything else than a number in [-1, 1]. The state is as it was.
        """
        value = _surprise(value)
        self._updates += 1
        count, total, squares = self._open
        if count:
            squares += count / (count + 1) * (value - total / count) ** 2
        count, total = count + 1, total + value
        if count < self.bucket:
            self._open = (count, total, squares)
            return False
        self._open = (0, 0.0, 0.0)
        self._squares += squares + self.width * count / (self.width + count) * (total / count - self.mean) ** 2
        self._total += total
        self.width += count
        self._rows[0].append((total, squares))
        self._compress()
        if self.memory is not None:
            while self.width > self.memory:
                self._drop_oldest()
        if self._updates % self.clock:
            return False
        if not self._is_cut():
            return False
        before = self.mean
        while self._is_cut():
            self._drop_oldest()
        self.change = self.mean - before
        return True

    def _compress(self) -> None:
        for i, row in enumerate(self._rows):
            if len(row) <= MAX_BUCKETS:
                return
            (sum0, squares0), (sum1, squares1) = row[:2]
            del row[:2]
            if i + 1 == len(self._rows):
                self._rows.append([])
            # Two means sum / n that far apart, n = bucket * 2^i: n0 n1 / (n0 + n1) times the squared difference
            self._rows[i + 1].append((sum0 + sum1, squares0 + squares1 + (sum0 - sum1) ** 2 / (2 * self.bucket << i)))

    def _is_cut(self) -> bool:
        n, n0, sum0 = self.width, 0, 0.0
        if n < 2:
            return False
        scale, variance = math.log(2 * math.log(n) / self.delta), self.variance
        for i in reversed(range(len(self._rows))):
            for total, _ in self._rows[i]:
                n0 += self.bucket << i
                sum0 += total
                if n0 == n:
                    return False
                share = scale * (1 / n0 + 1 / (n - n0))
                if abs(sum0 / n0 - (self._total - sum0) / (n - n0)) > math.sqrt(2 * variance * share) + 2 / 3 * share:
                    return True
        return False

    def _drop_oldest(self) -> None:
        i = len(self._rows) - 1
        total, squares = self._rows[i].pop(0)
        if not self._rows[i] and i:
            del self._rows[i]
        n0, n1 = self.bucket << i, self.width - (self.bucket << i)
        self.width, self._total = n1, self._total - total
        self._squares -= squares + n0 * n1 / (n0 + n1) * (total / n0 - self.mean) ** 2

    def state(self) -> dict[str, Any]:
        """Numbers and lists of numbers, as JSON holds them, without the settings."""
        buckets = [(i, *bucket) for i in reversed(range(len(self._rows))) for bucket in self._rows[i]]  # oldest first
        waiting = {"open": list(self._open)} if self._open[0] else {}
        return {
            "updates": self._updates,
            "total": self._total,
            "deviations": self._squares,
            "rows": [i for i, _, _ in buckets],
            "sums": [total for _, total, _ in buckets],
            "squares": [squares for _, _, squares in buckets],
            **waiting,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """
        Go on where `state` was taken.

        Raises
        ------
        SonaValueError
            What is missing, not finite, or no histogram. Nothing has changed.
        """
        updates, total, deviations = (_number(state, name, low) for name, low in (("updates", 0), ("total", -math.inf), ("deviations", -1)))
        try:
            count, own, square = state.get("open", (0, 0.0, 0.0))
            waiting = operator.index(count), float(own), float(square)
            buckets = list(zip(state["rows"], state["sums"], state["squares"], strict=True))
            levels = [operator.index(i) for i, _, _ in buckets]
            sums = [float(own) for _, own, _ in buckets]
            squares = [float(own) for _, _, own in buckets]
        except (KeyError, TypeError, ValueError):
            raise SonaValueError("state: expected rows, sums and squares as lists of numbers of equal length, and three as open") from None
        if not (0 <= waiting[0] < self.bucket and abs(waiting[1]) <= waiting[0] and 0 <= waiting[2] <= waiting[0]):
            raise SonaValueError(f"state: expected fewer than {self.bucket} values in [-1, 1] as open, got {waiting}")
        sorted_rows = levels == sorted(levels, reverse=True) and all(0 <= i < MAX_ROWS for i in levels)
        if not sorted_rows or any(levels.count(i) > MAX_BUCKETS for i in levels):
            raise SonaValueError(f"state: expected up to {MAX_BUCKETS} buckets a row, the largest rows first, got {levels}")
        sizes = [self.bucket << i for i in levels]
        if not all(abs(own) <= n and 0 <= square <= n for n, own, square in zip(sizes, sums, squares, strict=True)):
            raise SonaValueError("state: expected sums and squares of values in [-1, 1]")
        width = sum(sizes)
        if not math.isclose(total, sum(sums), rel_tol=1e-6, abs_tol=1e-6 * (1 + width)):
            raise SonaValueError(f"state: expected the total of the sums, {sum(sums):g}, got {total:g}")
        self.width, self._total, self._squares, self._updates, self._open = width, total, deviations, int(updates), waiting
        self._rows = [[] for _ in range(1 + max(levels, default=0))]
        for i, own, square in zip(levels, sums, squares, strict=True):
            self._rows[i].append((own, square))


class PageHinkley:
    """
    Page's test for a fall of the mean, with the mean so far as the reference (Page, Biometrika 1954; Hinkley, Biometrika 1971).

    With m the running mean of the values x, the sum S of x - m + delta rises while the mean stays and falls when it does; an alarm is
    where S is more than `threshold` below its maximum, and everything starts anew. Rises of the mean are not looked for: a reward that
    comes more often than expected costs nothing.

    Parameters
    ----------
    delta : float
        Fall of the mean that does not matter, at least 0. What random walks of the surprise stay under for how long depends on it:
        their typical excursion is variance / (2 delta).
    threshold : float
        Accumulated fall that is an alarm, positive. A fall of the mean by f is found after about threshold / (f - delta) values.

    Attributes
    ----------
    count : int
        Values since the start or the last alarm.

    Thread-safety
    -------------
    One thread at a time.
    """

    def __init__(self, delta: float = 0.02, threshold: float = 20.0) -> None:
        if finite(delta, "delta") < 0:
            raise SonaValueError(f"delta: expected a number of at least 0, got {delta}")
        if finite(threshold, "threshold") <= 0:
            raise SonaValueError(f"threshold: expected a positive number, got {threshold}")
        self.delta, self.threshold = float(delta), float(threshold)
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.count = 0
        self.mean = 0.0
        self._sum = 0.0
        self._largest = 0.0

    def update(self, value: float) -> bool:
        """
        Take a value in [-1, 1] into account; True where the mean has fallen.

        Raises
        ------
        SonaValueError, SonaTypeError
            Anything else than a number in [-1, 1]. The state is as it was.
        """
        value = _surprise(value)
        self.count += 1
        self.mean += (value - self.mean) / self.count
        self._sum += value - self.mean + self.delta
        self._largest = max(self._largest, self._sum)
        if self.count < WARM_UP or self._largest - self._sum <= self.threshold:
            return False
        self.reset()
        return True

    def state(self) -> dict[str, Any]:
        """Numbers, as JSON holds them, without the settings."""
        return {"count": self.count, "mean": self.mean, "sum": self._sum, "largest": self._largest}

    def restore(self, state: dict[str, Any]) -> None:
        """
        Go on where `state` was taken.

        Raises
        ------
        SonaValueError
            What is missing or not finite. Nothing has changed.
        """
        count, mean, total = _number(state, "count", 0), _number(state, "mean"), _number(state, "sum")
        largest = _number(state, "largest", max(0.0, total))
        self.count, self.mean, self._sum, self._largest = int(count), mean, total, largest
