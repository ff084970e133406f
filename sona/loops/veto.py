"""A veto by the sources of rewards: a minority of them, however busy, cannot promote a model that the others do not find better."""

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError
from sona.loops.ruling import at_least, between, items_now

TRIM = 0.1  # of the sources, at either end: 2 of 20
# Looks at the bound come when there are GROWTH times the rows of the last one, each at alpha / LOOKS. There are 16 up to 32,000 rows, but
# they are correlated. Simulated with 20 sources of which one colludes on 40 % of the traffic, alpha = .05: the veto is lifted in 2 %
# of the trials at a loss of one point and in 12 % at the tolerance itself (9 and 35 % at LOOKS = 1); LOOKS = 16 would halve the gains of
# one point that are found within 10,000.
GROWTH = 1.25
LOOKS = 5
MAX_SOURCES = 4096


def trimmed_bound(values: npt.ArrayLike, alpha: float = 0.05) -> tuple[float, float]:
    """
    Trimmed mean and its one-sided lower confidence bound of level 1 - alpha (Tukey & McLaughlin, 1963; Yuen, 1974).

    A tenth of the values, at least one, is dropped at either end; the bound uses the Winsorised standard deviation and Student's t.

    Parameters
    ----------
    values : (m,) float, m >= 5

    Returns
    -------
    mean, bound : float
    """
    from scipy import special

    ordered = np.sort(np.asarray(values, np.float64))
    m = len(ordered)
    if m < 5:
        raise SonaValueError(f"values: expected at least 5, got {m}")
    cut = max(1, int(TRIM * m + 1e-9))
    kept = m - 2 * cut
    mean = float(ordered[cut : m - cut].mean())
    winsorised = np.clip(ordered, ordered[cut], ordered[m - cut - 1])
    squares = float(np.sum((winsorised - winsorised.mean()) ** 2))
    return mean, mean - float(special.stdtrit(kept - 1, 1 - alpha)) * math.sqrt(squares / (kept * (kept - 1)))


class SourceVeto:
    """
    Holds an acceptance back until the trimmed mean over sources agrees.

    Every source counts once, whatever its share of the traffic: its opinion is the mean of z (see `Duel.record`) over its decisions. The
    veto stands while the lower bound of the trimmed mean is at most -tolerance. With fewer than `min_sources` sources that have `min_rows`
    decisions each there is no opinion and no veto: a few sources cannot outvote one.

    Parameters
    ----------
    tolerance : float
        In reward per decision, as for `Duel`.
    min_sources, min_rows : int
    alpha : float
        Level of the test; a fifth of it at each look.

    Notes
    -----
    Sources must be authenticated: who can invent ids has as many votes as it likes. Past 4096 sources further ones have no vote.
    The bound is one for a fixed number of rows, so it is computed anew only when there are a quarter more rows than at the last look.
    """

    def __init__(self, *, tolerance: float = 0.002, min_sources: int = 10, min_rows: int = 20, alpha: float = 0.05) -> None:
        self.tolerance = between("tolerance", tolerance, 0, 1)
        self.alpha = between("alpha", alpha, 0, 1)
        self.min_sources = at_least("min_sources", min_sources, 5)
        self.min_rows = at_least("min_rows", min_rows, 1)
        self._rows: dict[str, int] = {}
        self._total: dict[str, float] = {}
        self._n = 0
        self._look_at = 0
        self._vetoed = False

    def record(self, source: str, z: float) -> None:
        """One decision of a source; z = 0 where the models agree."""
        if not isinstance(source, str):
            raise SonaTypeError(f"source: expected a str, got {type(source).__name__}")
        z = between("z", z, -math.inf, math.inf)
        if source not in self._rows and len(self._rows) >= MAX_SOURCES:
            return
        self._total[source] = self._total.get(source, 0.0) + z
        self._rows[source] = self._rows.get(source, 0) + 1
        self._n += 1

    def vetoes(self) -> bool:
        """Whether an acceptance now would go against the sources, as of the last look."""
        if self._n >= self._look_at:
            bound = self.evidence["bound"]
            self._vetoed = bound is not None and bound <= -self.tolerance
            if bound is not None:
                self._look_at = math.ceil(GROWTH * self._n)
        return self._vetoed

    @property
    def evidence(self) -> dict[str, Any]:
        """Plain numbers: sources with enough decisions, their trimmed mean and its lower bound (None with too few), rows, tolerance."""
        means = [self._total[s] / n for s, n in items_now(self._rows) if n >= self.min_rows]  # rewards may come in meanwhile
        mean, bound = trimmed_bound(means, self.alpha / LOOKS) if len(means) >= self.min_sources else (None, None)
        return {"sources": len(means), "mean": mean, "bound": bound, "rows": self._n, "tolerance": self.tolerance}

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tolerance": self.tolerance,
            "alpha": self.alpha,
            "min_sources": self.min_sources,
            "min_rows": self.min_rows,
            "look_at": self._look_at,
            "vetoed": self._vetoed,
            "sources": {source: [n, self._total[source]] for source, n in self._rows.items()},
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """The veto that `state` was taken from; SonaValueError for anything else."""
        try:
            veto = cls(**{name: state[name] for name in ("tolerance", "alpha", "min_sources", "min_rows")})
            veto._look_at = at_least("look_at", state["look_at"], 0)
            veto._vetoed = bool(state["vetoed"])
            for source, (n, total) in state["sources"].items():
                veto._rows[source] = at_least("rows", n, 1)
                veto._total[source] = between("total", total, -math.inf, math.inf)
        except (KeyError, TypeError, AttributeError) as error:
            raise SonaValueError(f"expected the state of a source veto, got {error!r}") from error
        veto._n = sum(veto._rows.values())
        return veto
