"""What one click says about each document of the list that was shown."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona._fields import finite
from sona.errors import SonaTypeError, SonaValueError

Doubles = npt.NDArray[np.float64]

# Measured on Debian's package descriptions, seeds 0 to 4: see docs/ranker.md.
TEMPERATURE = 0.1  # of the softmax over cosine similarities
DOUBT = 0.2  # a click on a document of that share of the softmax counts half
CLIP = 3.0  # bound on 1 / propensity


class Examination:
    """
    How likely a user looks at each place of a list.

    Parameters
    ----------
    given : float or sequence of float
        A power law 1 / rank^given, or the probabilities from the first place on, each in (0, 1]; the last one holds for the places below.

    Raises
    ------
    SonaValueError, SonaTypeError
        A negative exponent, a probability outside (0, 1], or none at all.
    """

    def __init__(self, given: float | Sequence[float]) -> None:
        if isinstance(given, str | bytes):
            raise SonaTypeError(f"examination: expected a number or a sequence of numbers, got {given!r}")
        self._exponent = 0.0
        self._places = [finite(p, "examination") for p in given] if isinstance(given, Sequence | np.ndarray) else None
        if self._places is None:
            self._exponent = finite(given, "examination")
            if self._exponent < 0:
                raise SonaValueError(f"examination: expected an exponent of at least 0, got {given}")
        elif not self._places or not all(0 < p <= 1 for p in self._places):
            raise SonaValueError(f"examination: expected probabilities in (0, 1], got {given!r}")
        self._known: dict[int, Floats] = {}

    def __call__(self, k: int) -> Floats:
        """Of the first k places, (k,), read-only."""
        found = self._known.get(k)
        if found is None:
            if self._places is None:
                places = np.arange(1, k + 1, dtype=np.float64) ** -self._exponent
            else:
                places = np.array([self._places[min(i, len(self._places) - 1)] for i in range(k)], np.float64)
            found = places.astype(np.float32)
            found.flags.writeable = False
            self._known[k] = found
        return found


def click_gradient(scores: Doubles, clicked: int) -> Doubles:
    """
    How much one click moves each document of its list towards the query, (k,); the sum is 0.

    The gradient of log pi[clicked], pi = softmax(scores / temperature), times pi[clicked] / (pi[clicked] + doubt): the chance that the
    click was meant. Without that factor stray clicks far down the list undo what the others teach.

    Parameters
    ----------
    scores : array of shape (k,)
        Cosine similarities of today.
    clicked : int
        Place in the list.
    """
    z = scores / TEMPERATURE
    pi = np.exp(z - z.max())
    pi /= pi.sum()
    trust = pi[clicked] / (pi[clicked] + DOUBT)
    gradient: Doubles = -trust * pi
    gradient[clicked] += trust
    return gradient


def click_weight(propensity: float) -> float:
    """Of a click on a place that a user looks at with that chance, for those who did not look: 1 / propensity, bounded."""
    return min(1 / propensity, CLIP)
