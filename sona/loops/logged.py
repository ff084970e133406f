"""The duel on decisions that were logged: no live traffic, and only as much certainty as the log's own draws allow."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaValueError
from sona.loops.duel import Bets, reason, share_of
from sona.loops.ruling import FloatArray, Ruling, Verdict, at_least, between, columns

MAX_UNSUPPORTED = 0.01  # share of rows that may say nothing
WEIGHT_Z = 4.0  # the importance weights of a true log average 1


def logged_duel(
    candidate: npt.ArrayLike,
    incumbent: npt.ArrayLike,
    shown: npt.ArrayLike,
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    *,
    least_propensity: float = 0.005,
    tolerance: float = 0.002,
    margin: float = 0.005,
    level: float = 1.0,
    alpha: float = 0.05,
    n_min: int = 1000,
) -> Ruling:
    """
    The test of `Duel` with z = (reward - b) (1[shown = candidate] - 1[shown = incumbent]) / propensity where the models differ.

    Parameters
    ----------
    candidate, incumbent, shown : (n,) ints or strings
        The arms that each model would choose and the one that the log shows, oldest first. Neither model has trained on these rows.
    reward : (n,) float in [0, 1]
        Of the shown arm.
    propensity : (n,) float
        Probability with which the log drew the shown arm; NaN or 0 where unknown. Both models' arms must have been possible there.
    least_propensity : float
        No draw had a smaller one: it bounds the bets, so it is fixed beforehand. The default is the floor of the router's guard.
    tolerance, margin, level, alpha, n_min :
        As for `Duel`.

    Returns
    -------
    Ruling
        "undecided" with the reason where the log cannot tell: among the rows on which the models differ more than 1 % have no propensity
        or propensity 1 (then nothing is known of the other arm; fewer are counted at their worst, for either side), an arm was shown
        far less often than its propensities say, or the log is too short. Never "expired".

    Raises
    ------
    SonaValueError, SonaTypeError
        Shapes that do not match, rewards outside [0, 1], propensities outside [0, 1] or below `least_propensity`.
    """
    floor = between("least_propensity", least_propensity, 0, 0.5 + 1e-9)
    alpha, n_min = between("alpha", alpha, 0, 1), at_least("n_min", n_min, 1)
    scale = share_of(level)
    bets = Bets(tolerance * scale, margin * scale)
    (rewards,) = columns(reward=reward)
    theirs, ours, arms = _arms(len(rewards), candidate=candidate, incumbent=incumbent, shown=shown)
    chance = np.asarray(propensity, np.float64)
    chance, _ = columns(propensity=np.where(np.isnan(chance), 0.0, chance), reward=rewards)

    differ = theirs != ours
    known = (chance > 0) & (chance < 1 - 1e-9)
    used = differ & known
    if (used & (chance < floor * (1 - 1e-9))).any():
        raise SonaValueError(f"propensity: expected at least least_propensity={floor:g}, got {chance[used].min():g}")
    sign = (arms == theirs).astype(np.float64) - (arms == ours)
    weight = np.divide(sign, chance, out=np.zeros(len(sign)), where=used)
    blind = int((differ & ~known).sum())
    refusal = _refusal(int(differ.sum()), blind, chance[differ], weight[used])
    if refusal is not None:
        return Ruling("undecided", f"the log cannot tell: {refusal}", {"n": len(rewards), "differing": int(differ.sum()), "blind": blind})

    verdict = _settle(bets, rewards, weight, differ, known, 1 / floor, -math.log(alpha), n_min)
    found = bets.evidence() | {"blind": blind}
    return Ruling(verdict, reason(verdict, found, alpha, n_min), found)


def _settle(
    bets: Bets,
    rewards: FloatArray,
    weight: FloatArray,
    differ: npt.NDArray[np.bool_],
    known: npt.NDArray[np.bool_],
    heaviest: float,
    enough: float,
    n_min: int,
) -> Verdict:
    bounds = heaviest, heaviest
    for r, w, differs, seen in zip(rewards.tolist(), weight.tolist(), differ.tolist(), known.tolist(), strict=True):
        if not differs:
            bets.agree(bounds)
        elif seen:
            bets.differ(r, w, bounds)
        else:
            bets.blind(bounds)
        if bets.n >= n_min:
            if bets.reject.log >= enough:
                return "reject"
            if bets.accept.log >= enough:
                return "accept"
    return "undecided"


def _arms(n: int, **arms: npt.ArrayLike) -> list[npt.NDArray[Any]]:
    found = [np.asarray(arm) for arm in arms.values()]
    for name, arm in zip(arms, found, strict=True):
        if arm.shape != (n,):
            raise SonaValueError(f"{name}: expected {n} arms, one for each reward, got shape {arm.shape}")
    return found


def _refusal(differing: int, blind: int, chance: FloatArray, weight: FloatArray) -> str | None:
    if not differing:
        return "the models never differ there"
    if blind > MAX_UNSUPPORTED * differing:
        absent = int((chance == 0).sum())
        return (
            f"of {differing} rows on which the models differ, {absent} have no propensity and {blind - absent} have propensity 1, "
            "so nothing is known of the other arm"
        )
    for name, drawn in (("candidate", np.maximum(weight, 0)), ("incumbent", np.maximum(-weight, 0))):
        spread = float(drawn.std()) / len(drawn) ** 0.5
        if abs(float(drawn.mean()) - 1) > max(WEIGHT_Z * spread, MAX_UNSUPPORTED):
            return (
                f"the weights 1 / propensity of the {name}'s arm average {drawn.mean():.3g} where they should average 1: "
                "it could not always be drawn, or the propensities are not those of the log"
            )
    return None
