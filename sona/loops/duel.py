"""The duel: two models share the decisions on which they differ; a betting test says at any moment whether one may replace the other."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, Self

from sona.errors import SonaValueError
from sona.loops.ruling import Ruling, Verdict, at_least, between, unit_reward

Side = Literal["candidate", "incumbent"]
Played = Literal["candidate", "incumbent", "both", "other"]

# Shares of what may be staked without going broke. Steps of the square root of 2: at a gain of one point, 20 % disagreement, within 10,000
# decisions, these ten accepted 61 % where steps of 2 accepted 51 %, because bets below .04 pay nothing within 32,000.
BETS = tuple(0.9 * 2.0 ** (-j / 2) for j in range(10))
LOW_LEVEL = 0.2  # below this mean reward, tolerances shrink with it: at .05 one point is a fifth of everything


class Draws(Protocol):
    """numpy.random.Generator, random.Random."""

    def random(self) -> float: ...


def share_of(level: float) -> float:
    """What tolerances are multiplied with at a mean reward `level` in (0, 1]."""
    return min(1.0, between("level", level, 0, 1 + 1e-9) / LOW_LEVEL)


class Wealth:
    """
    Evidence against "the mean is at most 0": what ten gamblers, each with 1 to begin with, own on average after betting on a sequence.

    If every element has mean at most 0 given those before it, the chance that the average ever reaches w is at most 1 / w (Ville, 1939;
    as a test of means: Waudby-Smith & Ramdas, JRSS B 2024). That holds at any stopping time: one may look after every element.
    """

    __slots__ = ("logs",)

    def __init__(self) -> None:
        self.logs = [0.0] * len(BETS)
        """Of each gambler's wealth."""

    def bet(self, gain: float, worst: float) -> None:
        """
        Each gambler's wealth times 1 + share gain / worst.

        Parameters
        ----------
        gain : float
            The element, at least -worst: no wealth ever becomes negative.
        worst : float
            The largest possible loss, known before the element; it may differ from one to the next.
        """
        if not gain >= -worst * (1 + 1e-12):
            raise SonaValueError(f"gain: expected at least {-worst:g}, the largest loss that was announced, got {gain:g}")
        self.logs = [log + math.log1p(share * gain / worst) for log, share in zip(self.logs, BETS, strict=True)]

    @property
    def log(self) -> float:
        """Natural logarithm of the average."""
        top = max(self.logs)
        return top + math.log(sum(math.exp(log - top) for log in self.logs) / len(BETS))


class Bets:
    """
    Both sides of the question, over the gain z of the candidate per decision, with mean D.

    Attributes
    ----------
    tolerance, margin : float
        `accept` bets against D <= -tolerance, `reject` against D >= margin.
    baseline : float
        Mean reward of the earlier decisions on which the models differed, starting from .5; it is what the next one is compared with.
    n, differing : int
        Decisions, and those on which the models differed.
    total, square : float
        Sums of z and z^2.
    """

    __slots__ = ("accept", "differing", "margin", "n", "reject", "reward", "square", "tolerance", "total")

    def __init__(self, tolerance: float, margin: float) -> None:
        self.tolerance = between("tolerance", tolerance, 0, 1)
        self.margin = between("margin", margin, 0, 1)
        self.accept = Wealth()
        self.reject = Wealth()
        self.n = self.differing = 0
        self.reward = self.total = self.square = 0.0

    @property
    def baseline(self) -> float:
        return (0.5 + self.reward) / (1 + self.differing)

    def agree(self, heaviest: tuple[float, float]) -> None:
        """A decision on which both models play the same arm: z = 0. `heaviest` as for `differ`."""
        self._bet(0.0, heaviest)
        self.n += 1

    def differ(self, reward: float, weight: float, heaviest: tuple[float, float]) -> float:
        """
        A decision on which they differ: z = (reward - baseline) weight, returned.

        weight : 1 / P for the candidate's arm, -1 / P for the incumbent's, 0 for others, with P the probability that this arm was drawn.
        heaviest : the largest 1 / P that the candidate's and the incumbent's arm can have.
        """
        z = (reward - self.baseline) * weight
        self._bet(z, heaviest)  # with the baseline from before this reward
        self.n += 1
        self.differing += 1
        self.reward += reward
        self.total += z
        self.square += z * z
        return z

    def blind(self, heaviest: tuple[float, float]) -> None:
        """A decision on which they differ and of which nothing is known: z = -1 for `accept`, +1 for `reject`."""
        least, most = self._bounds(heaviest)
        self.accept.bet(self.tolerance - 1, max(least, 1.0))
        self.reject.bet(self.margin - 1, max(most, 1.0))
        self.n += 1

    def _bet(self, z: float, heaviest: tuple[float, float]) -> None:
        least, most = self._bounds(heaviest)
        self.accept.bet(z + self.tolerance, least)
        self.reject.bet(self.margin - z, most)

    def _bounds(self, heaviest: tuple[float, float]) -> tuple[float, float]:
        """Largest values of -z and z at today's baseline."""
        (candidate, incumbent), b = heaviest, self.baseline
        return max(b * candidate, (1 - b) * incumbent), max((1 - b) * candidate, b * incumbent)

    def evidence(self) -> dict[str, float | None]:
        """Plain numbers by name, None where there are too few decisions for one. Wealth is cut at 1e299."""
        n = self.n
        gain = self.total / n if n else None
        error = None if gain is None or n < 2 else math.sqrt(max(self.square / n - gain * gain, 0.0) / (n - 1))
        return {
            "n": n,
            "differing": self.differing,
            "gain": gain,
            "gain_standard_error": error,
            "accept_wealth": math.exp(min(self.accept.log, 690.0)),
            "reject_wealth": math.exp(min(self.reject.log, 690.0)),
            "baseline": self.baseline,
            "tolerance": self.tolerance,
            "margin": self.margin,
        }

    def state(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("tolerance", "margin", "n", "differing", "reward", "total", "square")}
        return kept | {"accept": list(self.accept.logs), "reject": list(self.reject.logs)}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        bets = cls(state["tolerance"], state["margin"])
        bets.n = at_least("n", state["n"], 0)
        bets.differing = at_least("differing", state["differing"], 0)
        if bets.differing > bets.n:
            raise SonaValueError(f"differing: expected at most n={bets.n}, got {bets.differing}")
        bets.reward = between("reward", state["reward"], -1e-9, bets.differing + 1e-9)
        bets.total = between("total", state["total"], -math.inf, math.inf)
        bets.square = between("square", state["square"], -1e-300, math.inf)
        for name in ("accept", "reject"):
            logs = [between(name, log, -math.inf, math.inf) for log in state[name]]
            if len(logs) != len(BETS):
                raise SonaValueError(f"{name}: expected {len(BETS)} logarithms of wealth, got {len(logs)}")
            getattr(bets, name).logs = logs
        return bets


class Duel:
    """
    Decides by live traffic whether a candidate may replace an incumbent.

    Only where the two choose different arms anything changes: there the candidate's arm is played with probability q. With D the mean gain
    of the candidate in reward per decision, decisions on which they agree included::

        z = (reward - b) (1[candidate played] / q - 1[incumbent played] / (1 - q))        0 where they agree; mean D

    two betting tests run, one against D <= -tolerance and one against D >= margin. "accept" and "reject" come when the wealth of one
    reaches 1 / alpha after at least n_min decisions ("reject" if both do), "expired" at n_max. At any stopping time a candidate that
    loses the tolerance or more is accepted with probability at most alpha, and one that gains the margin or more is rejected with at most
    alpha, as long as rewards are honest and those that come late or never do so regardless of their value and of the side.

    Parameters
    ----------
    q : float
        Probability of the candidate's arm; .2 costs less reward while the trial of a bad candidate lasts and takes up to twice as long.
    share : float
        Least probability that one of the two is drawn where they differ: 1, or less where other models are drawn from as well.
    tolerance, margin : float
        In reward, .002 = .2 points.
    level : float
        Mean reward of the incumbent before the trial. Below .2 tolerance and margin are multiplied by level / .2, so that they stay shares
        of what there is to gain; the level is fixed beforehand because the hypotheses may not depend on the trial's own rewards.
    alpha : float
    n_min, n_max : int
        Decisions. n_min should be twice the longest burst of wrong rewards that is to be survived.
    veto : callable, optional
        Asked, without arguments, when the wealth suffices to accept: True holds the acceptance back and the duel goes on. It can make
        acceptance rarer only.

    Notes
    -----
    `record` takes every rewarded decision once, when its reward arrives, those on which the models agree ("both") included: a decision
    that never gets a reward counts nowhere, so that D is per rewarded decision. The first reward of a decision counts; a caller does not
    pass on a revision, because the bet on the decision is settled. Rewards that arrive after the verdict change nothing. State: 31 numbers.

    One thread at a time.

    Examples
    --------
    >>> import random
    >>> rng, duel = random.Random(0), Duel(n_min=100)
    >>> while duel.verdict == "undecided":
    ...     side, propensity = duel.choose(rng)
    ...     z = duel.record(side, 1.0 if side == "candidate" else 0.0)
    >>> duel.verdict
    'accept'
    """

    def __init__(
        self,
        *,
        q: float = 0.5,
        share: float = 1.0,
        tolerance: float = 0.002,
        margin: float = 0.005,
        level: float = 1.0,
        alpha: float = 0.05,
        n_min: int = 1000,
        n_max: int = 32_000,
        veto: Callable[[], bool] | None = None,
    ) -> None:
        self.q = between("q", q, 0, 1)
        self.alpha = between("alpha", alpha, 0, 1)
        self.n_min = at_least("n_min", n_min, 1)
        self.n_max = at_least("n_max", n_max, n_min)
        scale = share_of(level)
        self._bets = Bets(tolerance * scale, margin * scale)
        self.share = between("share", share, 0, 1 + 1e-9)
        self._heaviest = 1 / (self.q * share), 1 / ((1 - self.q) * share)
        self._played = {"candidate": 0, "incumbent": 0, "other": 0}  # arms with a reward, where they differ
        self._earned = dict.fromkeys(self._played, 0.0)
        self._veto = veto
        self._verdict: Verdict = "undecided"

    @property
    def tolerance(self) -> float:
        """In reward, at the level of the trial."""
        return self._bets.tolerance

    @property
    def margin(self) -> float:
        """In reward, at the level of the trial."""
        return self._bets.margin

    @property
    def verdict(self) -> Verdict:
        """Once it is not "undecided" it stays."""
        return self._verdict

    def choose(self, rng: Draws) -> tuple[Side, float]:
        """
        Whose arm to play where the models differ, and with what probability that was drawn (log it as the decision's propensity).

        After the verdict nothing is drawn: the candidate if it was accepted, else the incumbent, with probability 1.
        """
        if self._verdict != "undecided":
            return ("candidate" if self._verdict == "accept" else "incumbent"), 1.0
        return ("candidate", self.q) if rng.random() < self.q else ("incumbent", 1 - self.q)

    def record(self, played: Played, reward: float, propensity: float | None = None) -> float:
        """
        One rewarded decision.

        Parameters
        ----------
        played : {"candidate", "incumbent", "both", "other"}
            Whose arm was played; "both" where they agree, "other" where they differ and the arm was that of a third model.
        reward : float
            In [0, 1].
        propensity : float, optional
            With which the arm was drawn, at least the `share` of q or of 1 - q; default as `choose` draws.

        Returns
        -------
        z : float
            The gain of the candidate that this decision shows; 0 for "both" and after the verdict.

        Raises
        ------
        SonaValueError, SonaTypeError
            Unknown side, reward outside [0, 1] or not a number, propensity too small; the duel is as it was.
        """
        if played not in ("candidate", "incumbent", "both", "other"):
            raise SonaValueError(f"played: expected 'candidate', 'incumbent', 'both' or 'other', got {played!r}")
        reward = unit_reward(reward)
        least = self.q if played == "candidate" else 1 - self.q
        drawn = least if propensity is None else propensity
        if played in ("candidate", "incumbent") and not least * self.share * (1 - 1e-6) <= drawn <= 1 + 1e-6:
            raise SonaValueError(f"propensity: expected a number in [{least * self.share:g}, 1] for the {played}'s arm, got {drawn}")
        if self._verdict != "undecided":
            return 0.0
        z = 0.0
        if played == "both":
            self._bets.agree(self._heaviest)
        else:
            ours = played == "candidate"
            weight = 0.0 if played == "other" else min(1 / drawn, self._heaviest[not ours])
            z = self._bets.differ(reward, weight if ours else -weight, self._heaviest)
            self._played[played] += 1
            self._earned[played] += reward
        self._judge()
        return z

    def _judge(self) -> None:
        if self._bets.n < self.n_min:
            return
        enough = -math.log(self.alpha)
        if self._bets.reject.log >= enough:
            self._verdict = "reject"
        elif self._bets.accept.log >= enough and not (self._veto is not None and self._veto()):
            self._verdict = "accept"
        elif self._bets.n >= self.n_max:
            self._verdict = "expired"

    @property
    def evidence(self) -> dict[str, float | None]:
        """
        Plain numbers by name.

        n, differing (decisions), gain (estimate of D) and its standard error, accept_wealth, reject_wealth, candidate_played and the mean
        rewards of both sides where they differ, baseline, tolerance, margin.
        """
        played, earned = self._played, self._earned
        means = {f"{side}_reward": earned[side] / played[side] if played[side] else None for side in ("candidate", "incumbent")}
        return self._bets.evidence() | {"candidate_played": played["candidate"]} | means

    @property
    def ruling(self) -> Ruling:
        """The verdict with a reason in words."""
        found = self.evidence
        return Ruling(self._verdict, reason(self._verdict, found, self.alpha, self.n_min), found)

    def state(self) -> dict[str, Any]:
        """Everything but the veto, for JSON."""
        return self._bets.state() | {
            "q": self.q,
            "share": self.share,
            "alpha": self.alpha,
            "n_min": self.n_min,
            "n_max": self.n_max,
            "played": self._played,
            "earned": self._earned,
            "verdict": self._verdict,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], *, veto: Callable[[], bool] | None = None) -> Self:
        """
        The duel that `state` was taken from: it goes on as if nothing had happened.

        Raises
        ------
        SonaValueError
            Not what `state` returns.
        """
        try:
            settings = {name: state[name] for name in ("q", "share", "alpha", "n_min", "n_max")}
            duel = cls(**settings, veto=veto)
            duel._bets = Bets.restore(state)
            for side in duel._played:
                duel._played[side] = at_least("played", state["played"][side], 0)
                duel._earned[side] = between("earned", state["earned"][side], -1e-9, duel._played[side] + 1e-9)
            if sum(duel._played.values()) != duel._bets.differing:
                raise SonaValueError(f"played: expected differing={duel._bets.differing} in sum, got {duel._played}")
            duel._verdict = state["verdict"]
        except (KeyError, TypeError) as error:
            raise SonaValueError(f"expected the state of a duel, got {error!r}") from error
        if duel._verdict not in ("accept", "reject", "undecided", "expired"):
            raise SonaValueError(f"verdict: expected one of a duel, got {duel._verdict!r}")
        return duel


def reason(verdict: Verdict, found: Mapping[str, Any], alpha: float, n_min: int) -> str:
    """What the evidence of `Bets` says, in words; a point is a hundredth of the reward range."""
    if verdict == "accept":
        why = f"evidence of {found['accept_wealth']:.3g} to 1 that it does not lose {100 * found['tolerance']:.3g} points"
    elif verdict == "reject":
        why = f"evidence of {found['reject_wealth']:.3g} to 1 that it does not gain {100 * found['margin']:.3g} points"
    elif verdict == "undecided" and found["n"] < n_min:
        why = f"too early, fewer than {n_min} decisions"
    else:
        why = (
            f"evidence of {found['accept_wealth']:.2g} to 1 for it and {found['reject_wealth']:.2g} to 1 against it, {1 / alpha:.0f} decide"
        )
        why = f"the trial ended without a decision, {why}" if verdict == "expired" else why
    if found["gain_standard_error"] is None:
        return why
    gain = f"gain {100 * found['gain']:+.2f} points a decision, standard error {100 * found['gain_standard_error']:.2f}"
    return f"{why}: {gain}, after {found['n']} decisions of which {found['differing']} differ"
