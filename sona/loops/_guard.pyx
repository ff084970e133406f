"""The guard for callers who have their own policy, over sona/guard.h."""

from libc.math cimport NAN, isfinite, isinf

from sona._c cimport sona_guard_admit, sona_guard_init, sona_guard_update, sona_guard_weights

import numpy as np

from sona._arrays import coerce
from sona.errors import SonaValueError


cdef class Guard:
    """
    Which model to trust where they disagree: Exp3.S over (learner, frozen) and, once admitted, an older copy; see sona/guard.h.

    Parameters
    ----------
    odds : float
        Of the learner against each other model at the start.
    floor, rate, share : float
        Least probability of a model; learning rate; how much weight is shared out after each outcome.
    seed : int
    """

    def __cinit__(self, double odds=2.0, double floor=0.002, double rate=0.3, double share=1e-4, seed=0):
        if not (odds > 0 and 0 <= floor < 1 / 3 and rate >= 0 and 0 <= share <= 1):
            raise SonaValueError(f"guard: expected odds > 0, floor in [0, 1/3), rate >= 0 and share in [0, 1], got odds={odds}, "
                                 f"floor={floor}, rate={rate}, share={share}")
        sona_guard_init(&self.guard, odds)
        self.guard.floor, self.guard.rate, self.guard.share = floor, rate, share
        self.random = np.random.default_rng(seed)

    @property
    def weights(self):
        """Probability of each model, (3,)."""
        cdef double w[3]
        sona_guard_weights(&self.guard, w)
        return np.array([w[0], w[1], w[2]])

    def admit(self):
        """An older copy of the learner becomes the third model; call it again when the copy is replaced."""
        sona_guard_admit(&self.guard)

    def choose(self, proposals):
        """
        Serve one of the proposed actions (learner, frozen[, older copy]).

        Returns (action, propensity, chance); chance (3,) says which models proposed it.
        """
        count = self.guard.models
        if len(proposals) != count:
            raise SonaValueError(f"proposals: expected {count}, got {len(proposals)}")
        chance = np.zeros(3, dtype=np.float32)
        if all(p == proposals[0] for p in proposals):
            chance[:count] = 1
            return proposals[0], 1.0, chance
        weights = self.weights
        drawn = min(int(np.searchsorted(np.cumsum(weights), self.random.random(), side="right")), count - 1)
        chance[:count] = [p == proposals[drawn] for p in proposals]
        return proposals[drawn], float(weights @ chance), chance

    def update(self, chance, double propensity, double reward, double expected=NAN):
        """
        The reward in [0, 1] of an action on which the models disagreed; chance and propensity are what `choose` returned.

        expected is what the learner's own choice was to earn; without it the decayed mean of such rewards is the baseline.
        """
        cdef float c[3]
        values = coerce(chance, (3,), "chance")
        if not 0 < propensity <= 1 or not isfinite(reward) or isinf(expected):
            raise SonaValueError(f"guard: expected propensity in (0, 1], a finite reward and no infinity, got {propensity}, {reward} "
                                 f"and {expected}")
        c[0], c[1], c[2] = values[0], values[1], values[2]
        sona_guard_update(&self.guard, c, propensity, reward, expected, 1)
