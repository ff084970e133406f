"""A candidate on live traffic: a second learner beside the policy's own, and the gate that decides between them."""

import json
from dataclasses import replace
from typing import Any, Self

import numpy as np

from sona.adapters import Adapter, Factors, Version
from sona.errors import SonaTypeError, SonaValueError
from sona.loops._instant import Instant
from sona.loops._policy import RIVAL_LEAST, Policy
from sona.loops.gate import Gate, GateConfig
from sona.loops.learner import Arrays, learned, partner_of, put_learned, put_rows, rows_of
from sona.loops.ruling import Ruling


class Trial:
    """
    A candidate that learns what the policy's learner learns, and is served part of the decisions on which the two differ.

    Parameters
    ----------
    policy : Policy
        Greedy. Its own learner is the incumbent.
    adapter, instant : Adapter, Instant
        Made as the policy's own were; they become the candidate's.
    gate : Gate
        With `share` at most `RIVAL_LEAST`: nothing is drawn, and nothing counts, while the guard gives the learner less.
    version : int
        Number of the candidate's version.
    number : int
        1 to 255: tells decisions of this trial from those of another, also of one of the same version.
    span : (float, float)
        Least and largest cost of an arm: what the gate is told is the reward less the cost, mapped from [-largest, 1 - least] to [0, 1].

    Attributes
    ----------
    outcome : Version or None
        What came of the candidate, where that was kept and could not be put in service yet.

    Notes
    -----
    The candidate starts with what the incumbent believes of success rates, trust and P, and from then on both take the same steps, each of
    full size where the served arm was its own choice. The first reward of a decision counts; it is told to the gate by `Policy.learn`, so
    that a reward which is learned again after a crash is told again.
    """

    def __init__(
        self, policy: Policy, adapter: Adapter, instant: Instant, gate: Gate, version: int, span: tuple[float, float], number: int
    ) -> None:
        self.gate, self.version, self.span, self.number = gate, version, span, number
        self._policy = policy
        self.candidate = partner_of(policy, adapter, instant)
        self.outcome: Version | None = None

    @classmethod
    def of(
        cls, policy: Policy, adapter: Adapter, instant: Instant, factors: Factors, *, gate: GateConfig, level: float, version: int
    ) -> Self:
        """
        A trial that begins.

        Parameters
        ----------
        factors : Factors
            The candidate.
        level : float
            Mean reward before the trial, see `Duel`.
        """
        low, high = float(policy.costs().min()), float(policy.costs().max())
        width = 1 + high - low
        config = replace(gate, share=RIVAL_LEAST, tolerance=gate.tolerance / width, margin=gate.margin / width)
        trial = cls(policy, adapter, instant, Gate(config, level=level), version, (low, high), policy.requests % 255 + 1)
        instant.restore(policy.instant.state())
        trial.candidate.adopt(policy)
        factors.put(adapter)
        return trial

    def begin(self) -> None:
        """From now on the candidate is served and taught."""
        self._policy.contest(self.candidate, self.gate.config.q, self.number, self)

    def end(self) -> None:
        """The candidate is neither served nor taught any more."""
        self._policy.end_contest()

    def record(self, played: Any, net: float, source: str | None, propensity: float) -> None:
        """One first reward less the cost of its arm; see `Policy.contest`."""
        low, high = self.span
        unit = min(max((net + high) / (1 + high - low), 0.0), 1.0)
        self.gate.record(played, unit, source, None if played in ("both", "other") else propensity)

    @property
    def ruling(self) -> Ruling:
        """The gate's decision so far."""
        return self.gate.ruling

    def take_over(self) -> None:
        """The candidate becomes the policy's own learner, with everything that it has learned during the trial."""
        put_rows(self._policy.adapter, rows_of(self.candidate.adapter))
        self._policy.instant.restore(self.candidate.instant.state())
        self._policy.adopt(self.candidate)

    def state(self) -> Arrays:
        """Everything, as named arrays."""
        about = {"version": self.version, "number": self.number, "span": self.span, "gate": self.gate.state()}
        return {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), **learned(self.candidate)}

    @classmethod
    def restore(cls, policy: Policy, adapter: Adapter, instant: Instant, arrays: Arrays) -> Self:
        """
        The trial that `state` was taken from: it goes on where it was.

        Raises
        ------
        SonaValueError
            Not what `state` returns for such a policy.
        """
        try:
            about = json.loads(arrays["about"].tobytes())
            low, high = (float(each) for each in about["span"])
            version = int(about["version"])
            number = int(about.get("number", version % 255 + 1))  # absent: from before the same version could be tried again
            if not 0 < number < 256:
                raise SonaValueError(f"number: expected 1 to 255, got {number}")
            trial = cls(policy, adapter, instant, Gate.restore(about["gate"]), version, (low, high), number)
            put_learned(trial.candidate, arrays)
        except (KeyError, TypeError, ValueError, SonaTypeError) as error:
            raise SonaValueError(f"expected the state of a trial, got {error!r}") from error
        return trial


def on_trial(arrays: Arrays) -> int | None:
    """Number of the version that is on trial in a learner's state."""
    return int(json.loads(arrays["trial.about"].tobytes())["version"]) if "trial.about" in arrays else None
