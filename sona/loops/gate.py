"""The promotion gate: what a candidate must pass before it replaces the incumbent, as one decision with its reasons."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError
from sona.loops.duel import Draws, Duel, Played, Side
from sona.loops.logged import logged_duel
from sona.loops.ruling import Ruling, Verdict, at_least, between, columns
from sona.loops.screen import screen
from sona.loops.veto import SourceVeto

__all__ = ["Duel", "Gate", "GateConfig", "Played", "Ruling", "Side", "SourceVeto", "Verdict", "logged_duel", "remembered", "screen"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """
    What a candidate has to prove before it is accepted.

    Attributes
    ----------
    q : float
        Probability of the candidate's arm where the models differ.
    share : float
        Least probability that one of the two is drawn there; below 1 where other models are drawn from as well.
    tolerance, margin : float
        In reward per decision: a candidate that loses the tolerance is accepted, and one that gains the margin rejected, with probability
        at most `alpha`. Shares of `level` / .2 of them below a mean reward of .2.
    alpha : float
    n_min, n_max : int
        Rewarded decisions of a trial. n_min is twice the longest burst of wrong rewards that is to be survived.
    screen_z : float
        The screen rejects below -screen_z standard errors.
    screen_rows : int
        Fewer fresh rows leave the screen undecided.
    task_tolerance : float
        What a candidate may lose on the rows of a remembered task, in reward. The rows are few: 200 of them have a standard error of about
        .02 where the models differ on a tenth.
    min_sources, source_rows : int
        The sources' veto needs so many sources with so many decisions each.
    """

    q: float = 0.5
    share: float = 1.0
    tolerance: float = 0.002
    margin: float = 0.005
    alpha: float = 0.05
    n_min: int = 1000
    n_max: int = 32_000
    screen_z: float = 1.645
    screen_rows: int = 100
    task_tolerance: float = 0.05
    min_sources: int = 10
    source_rows: int = 20

    def __post_init__(self) -> None:
        for name in ("q", "tolerance", "margin", "alpha", "task_tolerance"):
            between(name, getattr(self, name), 0, 1)
        between("share", self.share, 0, 1 + 1e-9)
        between("screen_z", self.screen_z, 0, math.inf)
        for name, least in (("n_min", 1), ("n_max", 1), ("screen_rows", 10), ("min_sources", 5), ("source_rows", 1)):
            at_least(name, getattr(self, name), least)
        if self.n_max < self.n_min:
            raise SonaValueError(f"n_max: expected at least n_min={self.n_min}, got {self.n_max}")


def remembered(task: str, candidate: npt.ArrayLike, incumbent: npt.ArrayLike, tolerance: float = 0.05) -> Ruling:
    """
    Whether a candidate still does what was learned for an earlier task.

    Parameters
    ----------
    task : str
    candidate, incumbent : (n,) float in [0, 1], n >= 1
        What each model earns on the same remembered rows: the reward of the arm it would choose, known or estimated.
    tolerance : float
        The largest mean loss, in reward.

    Returns
    -------
    Ruling
        "reject" when the mean loss over the rows is larger, else "undecided". It speaks of these rows, not of a population: there is no
        test in it, and the standard error in the evidence says how far they may be from it.
    """
    between("tolerance", tolerance, 0, 1)
    ours, theirs = columns(candidate=candidate, incumbent=incumbent)
    if not len(ours):
        raise SonaValueError(f"task {task!r}: expected at least one row, got none")
    difference = theirs - ours
    loss = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(len(ours)) if len(ours) > 1 else None
    evidence = {"n": len(ours), "loss": loss, "standard_error": error, "tolerance": tolerance}
    said = f"{100 * loss:+.2f} points lost on {len(ours)} rows of task {task!r}, {100 * tolerance:g} allowed"
    return Ruling("reject", f"forgets: {said}", evidence) if loss > tolerance else Ruling("undecided", f"remembers: {said}", evidence)


class Gate:
    """
    Screen, remembered tasks, duel and sources, joined: any of them may reject, the duel alone accepts, and only while the sources agree.

    Parameters
    ----------
    config : GateConfig, optional
    level : float
        Mean reward of the incumbent before the trial, see `Duel`.

    Notes
    -----
    The screen and the tasks need no traffic: ask them first. A decided gate stays decided, and then `choose` draws no more. What is kept
    is a few dozen numbers and two per source; `state` and `restore` carry a trial over a restart. One thread at a time.
    """

    def __init__(self, config: GateConfig | None = None, *, level: float = 1.0) -> None:
        self.config = c = config or GateConfig()
        self._duel = Duel(
            q=c.q,
            share=c.share,
            tolerance=c.tolerance,
            margin=c.margin,
            level=level,
            alpha=c.alpha,
            n_min=c.n_min,
            n_max=c.n_max,
            veto=self._vetoes,
        )
        self._sources = SourceVeto(tolerance=self._duel.tolerance, min_sources=c.min_sources, min_rows=c.source_rows, alpha=c.alpha)
        self._offline: dict[str, dict[str, Any]] = {}
        self._refusal: str | None = None

    def _vetoes(self) -> bool:
        return self._sources.vetoes()

    # ---- without traffic ----

    def screen(self, candidate: npt.ArrayLike, incumbent: npt.ArrayLike, reward: npt.ArrayLike) -> Ruling:
        """See `sona.loops.screen.screen`; a rejection decides the gate."""
        found = screen(candidate, incumbent, reward, z_reject=self.config.screen_z, min_rows=self.config.screen_rows)
        return self._note("screen", found)

    def remembered(self, task: str, candidate: npt.ArrayLike, incumbent: npt.ArrayLike, tolerance: float | None = None) -> Ruling:
        """See `sona.loops.gate.remembered`; a rejection decides the gate. `tolerance` of this task, default that of the configuration."""
        found = remembered(task, candidate, incumbent, self.config.task_tolerance if tolerance is None else tolerance)
        return self._note(f"task {task}", found)

    def _note(self, what: str, found: Ruling) -> Ruling:
        if self.verdict == "undecided":
            self._offline[what] = dict(found.evidence)
            if found.verdict == "reject":
                self._refusal = found.reason
        return found

    # ---- the trial ----

    def choose(self, rng: Draws) -> tuple[Side, float]:
        """Whose arm to play where the models differ, and the probability of that draw; see `Duel.choose`."""
        return ("incumbent", 1.0) if self._refusal is not None else self._duel.choose(rng)

    def record(self, played: Played, reward: float, source: str | None = None, propensity: float | None = None) -> float:
        """
        One rewarded decision, and who rewarded it; see `Duel.record`.

        Raises
        ------
        SonaValueError, SonaTypeError
            As `Duel.record`, and for a source that is no str; the gate is as it was.
        """
        if source is not None and not isinstance(source, str):
            raise SonaTypeError(f"source: expected a str or None, got {type(source).__name__}")
        decided = self.verdict != "undecided"
        if self._refusal is not None:
            return 0.0
        z = self._duel.record(played, reward, propensity)
        if source is not None and not decided:
            self._sources.record(source, z)
        return z

    # ---- the decision ----

    @property
    def verdict(self) -> Verdict:
        return "reject" if self._refusal is not None else self._duel.verdict

    @property
    def ruling(self) -> Ruling:
        """The decision so far. evidence: "screen", "task <name>" and "sources" where there are any, and "duel"."""
        duel, sources = self._duel.ruling, self._sources.evidence
        evidence = self._offline | {"duel": dict(duel.evidence)}
        heard = sources["sources"] >= self.config.min_sources
        if heard:
            evidence["sources"] = sources
        reason = duel.reason if self._refusal is None else self._refusal
        if self._refusal is None and heard and duel.verdict in ("accept", "undecided", "expired"):
            agree = sources["bound"] > -self._sources.tolerance
            reason += f"; the trimmed mean of {sources['sources']} sources is {100 * sources['mean']:+.2f} points, at least "
            reason += f"{100 * sources['bound']:+.2f}: they {'agree' if agree else 'do not agree'} that it may replace the incumbent"
        return Ruling(self.verdict, reason, evidence)

    def state(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "config": {field.name: getattr(self.config, field.name) for field in fields(self.config)},
            "duel": self._duel.state(),
            "sources": self._sources.state(),
            "offline": self._offline,
            "refusal": self._refusal,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """The gate that `state` was taken from: it goes on as if nothing had happened. SonaValueError for anything else."""
        try:
            gate = cls(GateConfig(**state["config"]))
            gate._duel = Duel.restore(state["duel"], veto=gate._vetoes)
            gate._sources = SourceVeto.restore(state["sources"])
            gate._offline = {str(name): dict(found) for name, found in state["offline"].items()}
            gate._refusal = None if state["refusal"] is None else str(state["refusal"])
        except (KeyError, TypeError, AttributeError) as error:
            raise SonaValueError(f"expected the state of a gate, got {error!r}") from error
        return gate
