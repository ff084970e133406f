"""What is in service: one of the kept versions, until another takes its place at once or after a trial."""

import logging
import threading
import time
from dataclasses import replace
from typing import Any

from sona._locks import lock
from sona.adapters import Factors, MemoryVersions, Version
from sona.adapters.versions import find, keep_served, replaced_by
from sona.errors import SonaError, SonaStoreError, SonaValueError
from sona.loops.background import BackgroundLoop, Proposal
from sona.loops.gate import GateConfig
from sona.loops.journal import Journal
from sona.loops.learner import new_adapter, new_instant
from sona.loops.learners import Learners
from sona.loops.observed import Observed
from sona.loops.ruling import Ruling
from sona.loops.trial import Trial
from sona.loops.versions import StoredVersions

RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


class Service:
    """
    Keeps versions of the corrections, puts them in service or on trial, and decides trials. Candidates are of the first layer alone.

    Parameters
    ----------
    name : str
        Of the engine.
    learners : Learners
        Whose first layer is served, and which have the trial that is on.
    versions : MemoryVersions or StoredVersions
        Those of the journal's store, where there is one.
    journal : Journal or None
        Of the same learners, opened.
    background : BackgroundLoop
        Its configuration says what goes on trial; it is told when another correction is served.
    mutex : Lock
        Held while a reward is learned.
    observed : Observed
        Sees the decisions of trials, and versions that are served because somebody asked for them in the store.

    Attributes
    ----------
    versions : MemoryVersions or StoredVersions
    deciding : Lock
        Held while a trial is decided, begun or ended by a caller, and while a version is published.
    """

    def __init__(
        self,
        name: str,
        learners: Learners,
        versions: MemoryVersions | StoredVersions,
        journal: Journal | None,
        background: BackgroundLoop,
        mutex: threading.Lock,
        observed: Observed,
    ) -> None:
        self.versions = versions
        self.deciding = lock()
        self._name, self._learners, self._journal, self._background = name, learners, journal, background
        self._mutex, self._observed = mutex, observed
        self._decide_at = 0.0  # after a failure, monotonic seconds

    def keep(self, proposal: Proposal) -> Version:
        """Keep a candidate as a version; an accepted one is in service on return, and an undecided one on trial where there are trials."""
        kept = self._add(proposal.ruling, proposal.metrics, proposal.window, proposal.factors)
        if kept.verdict == "accept":
            return self._serve(kept, cause="gate")
        config = self._background.config
        wanted = kept.verdict == "undecided" and config.trial and config.serve == "accepted" and self._learners.trial is None
        if wanted and self._tries():
            self.begin_trial(kept, proposal.level)
        return kept

    def _add(self, found: Ruling, metrics: dict[str, Any], window: dict[str, Any], factors: Factors) -> Version:
        kept = self.versions.add(
            Version(
                name=self._name,
                parent=next((version.number for version in self.versions.all() if version.published), None),
                created=time.time(),
                verdict=found.verdict,
                reason=found.reason,
                metrics=metrics,
                window=window,
                factors=factors,
            )
        )
        about = {"version": kept.id, "number": kept.number, "verdict": kept.verdict, "reason": kept.reason}
        log.info("%s: %s, %s", kept.id, kept.verdict, kept.reason, extra={"event": "gate.decided", "learner": self._name, **about})
        return kept

    # ---- a candidate on trial ----

    @property
    def ruling(self) -> Ruling | None:
        """What the gate says so far of the candidate on trial, its version's number among the evidence; None without a trial."""
        trial = self._learners.trial
        if trial is None:
            return None
        found = trial.ruling
        return replace(found, evidence={**found.evidence, "version": trial.version})

    def start_trial(self, version: Version | str | int) -> Ruling:
        """Put a version, its number or its id on trial in the place of the one that is; SonaError where that cannot be."""
        chosen = find(self.versions.all(), version)
        if not self._tries():
            raise SonaValueError(f"trial of {chosen.id}: expected a router with explore='greedy' and pool=False")
        if self._journal is not None and not self._journal.leading:
            raise SonaStoreError(f"trial of {chosen.id}: another process learns for this store")
        chosen.check(self._learners.config.hidden_dim, 1)
        with self.deciding:
            self.begin_trial(chosen, min(max(self._learners.instants[0].mean_reward, 0.01), 1.0))
        ruling = self.ruling
        assert ruling is not None
        return ruling

    def _tries(self) -> bool:
        """Whether there may be trials."""
        policy = self._learners.policy
        return policy is not None and policy.explore == "greedy" and policy.partner is None

    def begin_trial(self, candidate: Version, level: float) -> None:
        """Put a kept version on trial; `level` is the mean reward before, see `Duel`."""
        policy, config = self._learners.policy, self._learners.config
        assert policy is not None
        gate = self._background.config.gate or GateConfig()
        with self._mutex:
            self._learners.end_trial()
            self._learners.begin_trial(
                Trial.of(
                    policy,
                    new_adapter(config),
                    new_instant(config),
                    candidate.factors,
                    gate=gate,
                    level=level,
                    version=candidate.number,
                )
            )
        log.info("%s: on trial", candidate.id, extra={"event": "trial.began", "learner": self._name, "version": candidate.id})
        if self._journal is not None:
            self._journal.save()

    def stop_trial(self) -> None:
        """End a trial without making anything of its candidate."""
        with self.deciding:
            trial = self._learners.trial
            self._stop_trial()
        if trial is not None:
            about = {"learner": self._name, "number": trial.version}
            log.info("version %d: the trial was stopped", trial.version, extra={"event": "trial.stopped", **about})

    def _stop_trial(self) -> None:
        with self._mutex:
            self._learners.end_trial()
        if self._journal is not None and self._journal.leading:
            self._journal.save()

    @property
    def due(self) -> bool:
        """Whether `decide` would do something, and with a store write to it."""
        trial = self._learners.trial
        return trial is not None and trial.gate.verdict != "undecided" and time.monotonic() >= self._decide_at

    def decide(self) -> None:
        """End the trial if its gate has a verdict; where the store cannot be written, a call a second later or more does."""
        trial = self._learners.trial
        if trial is None or not self.due:
            return
        if self.deciding.acquire(blocking=False):
            try:
                if self._learners.trial is trial and (self._journal is None or self._journal.leading):
                    self._observed.run("trial_decision", lambda: self._decide(trial))
            except SonaStoreError as error:
                about = {"learner": self._name, "number": trial.version, "error": str(error)}
                log.warning("trial of version %d: %s", trial.version, error, extra={"event": "trial.not_decided", **about})
                self._decide_at = time.monotonic() + RETRY_SECONDS
            finally:
                self.deciding.release()

    def _decide(self, trial: Trial) -> Version:
        """Keep what came of a trial as a version, and serve it if it was accepted; SonaStoreError leaves it to be done later."""
        found = trial.ruling
        metrics = {name: dict(about) for name, about in found.evidence.items()}
        outcome = trial.outcome or self._add(found, metrics, {"candidate": trial.version}, Factors.of(trial.candidate.adapter))
        if found.verdict != "accept":
            self._stop_trial()
            return outcome
        try:
            return self._serve(outcome, trial, cause="trial")
        except SonaStoreError:
            if self._learners.trial is not None:  # another object, where it was ended and put back
                self._learners.trial.outcome = outcome
            raise

    # ---- versions ----

    def keep_served(self, reason: str) -> Version:
        """Keep what is served now as a version; SonaStoreError where another process learns for the store."""
        with self._mutex:
            served = [Factors.of(adapter) for adapter in self._learners.adapters]
        with self.deciding:
            kept = keep_served(self.versions, self._name, served, time.time(), reason=reason)
        about = {"learner": self._name, "version": kept.id, "number": kept.number}
        log.info("%s: kept", kept.id, extra={"event": "version.kept", **about})
        return kept

    def publish(self, version: Version | str | int, *, cause: str) -> Version:
        """Put a version, its number or its id in service; SonaError, and the old correction is served, where that cannot be."""
        with self.deciding:  # a reward may be deciding a trial
            return self._serve(find(self.versions.all(), version), cause=cause)

    def grant(self) -> None:
        """
        Serve the version that somebody asked for in the store, see `Store.ask_publish`. One that cannot be served is refused there; where
        the store cannot be written, a later poll finds the wish again.
        """
        journal = self._journal
        if journal is None or (number := journal.asked) is None or number < 0 or not journal.leading:
            return
        if not self.deciding.acquire(blocking=False):
            return
        try:
            journal.asked = None
            try:
                self._observed.run("publish", lambda: self._serve(find(self.versions.all(), number), cause="asked"))
            except SonaStoreError:
                raise
            except SonaError as error:
                about = {"learner": self._name, "number": number, "error": str(error)}
                log.warning("version %d was asked for and is refused: %s", number, error, extra={"event": "version.refused", **about})
                journal.store.refuse_publish(self._name, number)
        except SonaStoreError as error:
            about = {"learner": self._name, "number": number, "error": str(error)}
            log.warning("version %d was asked for: %s", number, error, extra={"event": "version.not_published", **about})
        finally:
            self.deciding.release()

    def _serve(self, version: Version, trial: Trial | None = None, *, cause: str) -> Version:
        """Put a version in service; with `trial`, whose candidate it is, everything else that the candidate has learned as well."""
        learners, journal = self._learners, self._journal
        if journal is not None and not journal.leading:
            raise SonaStoreError(f"version {version.id}: another process learns for this store")
        version.check(learners.config.hidden_dim, len(learners.adapters))
        with self._mutex:
            before, restores = learners.state(), 0 if journal is None else journal.restores
            served = [Factors.of(adapter) for adapter in learners.adapters]
        keep_served(self.versions, self._name, served, time.time(), reason=replaced_by(version), spare=version.number)
        with self._mutex:
            if trial is None:
                for factors, adapter in zip(version.layers, learners.adapters, strict=False):
                    factors.put(adapter)
            else:
                trial.take_over()
            learners.end_trial()
        try:
            if isinstance(self.versions, MemoryVersions):
                self.versions.publish(version.number)
            elif journal is not None:
                journal.save(publish=version.number)
        except BaseException:
            with self._mutex:
                if journal is None or journal.restores == restores:  # else the lease was lost, and what another process saved is served
                    learners.put(before)
            raise
        self._background.replaced()
        about = {"learner": self._name, "version": version.id, "number": version.number, "cause": cause}
        log.info("%s: in service, by %s", version.id, cause, extra={"event": "version.published", **about})
        return replace(version, published=True)
