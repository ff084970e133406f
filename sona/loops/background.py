"""Loop B: patterns, a candidate by replay, and what the gate says about it."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from sona._locks import lock
from sona.adapters import Factors, Version
from sona.errors import SonaValueError
from sona.loops._policy import Policy
from sona.loops.drift import Drift
from sona.loops.gate import GateConfig, remembered
from sona.loops.journal import Journal
from sona.loops.logged import logged_duel
from sona.loops.patterns import RequestPatterns
from sona.loops.replay import Mark, Replay
from sona.loops.reservoir import Tasks
from sona.loops.rows import Rows
from sona.loops.ruling import Ruling, at_least, between
from sona.loops.screen import calibrate, screen
from sona.loops.window import Window
from sona.patterns import PatternConfig
from sona.store.rows import SEQUENCE_BITS

MARKS = 16
MARK_EVERY = (64, 256)  # rewards between marks: a fortieth of what is learned, within these
HELD_OUT = 0.2  # of the window: the newest rows are not replayed, and judge
GUARD_FLOOR = 0.002  # least propensity that a router's guard draws with
TASK_ROWS = 30  # fewer rows of a task say nothing about it

Serve = Literal["accepted", "screened"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundLoopConfig:
    """
    When a background cycle is due, and how it replays.

    Attributes
    ----------
    extraction_interval : float
        Seconds between cycles, for `LoopCoordinator`.
    min_trajectories : int
        With fewer rewarded decisions since the last cycle a cycle is skipped, and they wait for the next one.
    base_lora_lr : float
        Size of a replayed step, as a share of the instant step. The roadmap's 0.0001 is the rate of a gradient; the instant step has no
        rate, and a ten-thousandth of it changes no decision.
    passes : int
        Over the replayed rows, shuffled.
    replay_rows : int
        The newest rewarded decisions that are replayed.
    reservoir_rows : int
        Decisions of each task that are replayed beside them.
    least_propensity : float
        Below it a logged draw says nothing to the duel, which its inverse bounds the stakes of: declare what your exploration guarantees.
        At the default, the floor of the router's guard, thousands of held out decisions decide nothing.
    serve : {"accepted", "screened"}
        Which candidates are put in service. "accepted": those that a duel accepts. "screened": all that the screen and every remembered
        task let pass, without a duel or a trial: right where rewards are clean, wrong where they are noisy, see docs/background.md.
    trial : bool
        Put undecided candidates of a greedy policy on trial; not with serve="screened".
    gate : GateConfig, optional
        Of the trial, and what a remembered task may lose.
    patterns : PatternConfig, optional
        Of the bank; its `embedding_dim` must be that of the engine.
    seed : int

    Notes
    -----
    The roadmap's `ewc_lambda` is not here: replay of a reservoir kept more of earlier tasks than any penalty, and a penalty added to it
    changed nothing or did harm (docs/ewc.md). `sona.ewc` has the penalty for adapters that learn without replay.
    """

    extraction_interval: float = 3600.0
    min_trajectories: int = 100
    base_lora_lr: float = 0.3
    passes: int = 2
    replay_rows: int = 4000
    reservoir_rows: int = 200
    least_propensity: float = GUARD_FLOOR
    serve: Serve = "accepted"
    trial: bool = True
    gate: GateConfig | None = None
    patterns: PatternConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.serve not in ("accepted", "screened"):
            raise SonaValueError(f"serve: expected 'accepted' or 'screened', got {self.serve!r}")
        between("extraction_interval", self.extraction_interval, 0, float("inf"))
        between("base_lora_lr", self.base_lora_lr, 0, 1 + 1e-9)
        between("least_propensity", self.least_propensity, 0, 0.5 + 1e-9)
        for name, least in (("min_trajectories", 1), ("passes", 1), ("replay_rows", 1), ("reservoir_rows", 1), ("seed", 0)):
            at_least(name, getattr(self, name), least)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundResult:
    """
    What one background cycle did.

    Attributes
    ----------
    trajectories_processed, patterns_extracted : int
    elapsed : float
        Seconds.
    status : str
        "completed", or "skipped: " and why.
    verdict : {"accept", "reject", "undecided"} or None
        About the candidate; None where there was none.
    reason : str
    version : Version or None
        The candidate. It is in service only if it was accepted.
    """

    trajectories_processed: int = 0
    patterns_extracted: int = 0
    elapsed: float = 0.0
    status: str
    verdict: str | None = None
    reason: str = ""
    version: Version | None = None

    @classmethod
    def skipped(cls, reason: str) -> Self:
        """Nothing was done and nothing discarded."""
        return cls(status=f"skipped: {reason}")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate with the judgement of it; it is in service nowhere."""

    factors: Factors
    ruling: Ruling
    metrics: dict[str, Any]
    window: dict[str, Any]
    level: float  # mean reward of what was replayed


class BackgroundLoop:
    """
    What is too slow for a request: patterns of the requests, and a correction that has learned the remembered decisions several times.

    Parameters
    ----------
    config : BackgroundLoopConfig
    hidden_dim : int
    policy : Policy or None
        Whose decisions are replayed. Without one every cycle is skipped: a step that a caller computed cannot be computed again.
    journal : Journal or None
        Of the same learner, opened.
    drift : Drift or None
        What was decided before the last change that it found is not replayed, but for the reservoirs of earlier tasks.
    max_discard : float
        See `Adapter`.

    Notes
    -----
    Whether a candidate is better can only be seen on decisions that neither it nor the incumbent has learned from, and the instant loop
    learns from each at once. So the loop takes marks of the learner as it goes; a cycle starts from the mark before the newest fifth of
    the window, replays what is older, and compares the result with the mark itself on that fifth. The screen may reject. Only a duel on
    logged propensities may accept, and only where the policy explores: greedy choices, with the guard's draws among three models too, give
    arms that no model proposed no chance, and nobody logged which those were. Passing the screen is not evidence of a gain, see
    docs/background.md: an undecided candidate is kept as a version and not served. What is kept has learned the fifth as well: after the
    other rows where there is one task, in one order with them where there are several, because the newest rows alone would undo what
    earlier tasks need. What is served now and what is kept are then compared on the reservoir of each task, and a task that falls by more
    than its tolerance rejects.

    Rewards may be learned from other threads while a cycle runs; those of its last milliseconds are not in the candidate, and the next
    cycle replays them. A second `run_cycle` while one is under way is skipped.
    """

    def __init__(
        self,
        config: BackgroundLoopConfig,
        hidden_dim: int,
        *,
        policy: Policy | None = None,
        journal: Journal | None = None,
        drift: Drift | None = None,
        max_discard: float = 0.05,
    ) -> None:
        bank = PatternConfig(embedding_dim=hidden_dim) if config.patterns is None else config.patterns
        if bank.embedding_dim != hidden_dim:
            raise SonaValueError(f"patterns: expected embedding_dim={hidden_dim}, got {bank.embedding_dim}")
        self.config = config
        self.patterns = RequestPatterns(bank, policy, journal)
        self._policy, self._max_discard = policy, max_discard
        self._drift, self._alarms = drift, 0 if drift is None else drift.alarms
        self._running = lock()
        self._cycles = 0
        self._counted = 0  # ids below it do not count as new any more
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        self._mark_at = 0
        self.window = None if policy is None else Window(policy, journal, config.replay_rows, Tasks(config.reservoir_rows, config.seed))

    # ---- while the instant loop learns ----

    def note(self) -> None:
        """Take a mark of the learner when one is due; to be called after rewards are learned."""
        policy = self._policy
        if self._drift is not None and self._drift.alarms != self._alarms:
            self._alarms = self._drift.alarms
            log.warning("rewards fell behind what was expected", extra={"event": "drift.alarm", "alarms": self._alarms})
            self.replaced()
        if policy is not None and policy.learned >= self._mark_at:
            self._mark_at = policy.learned + min(max(policy.learned // 40, MARK_EVERY[0]), MARK_EVERY[1])
            self._marks.append(Mark.of(policy))

    def replaced(self) -> None:
        """Another correction is served: earlier marks are not what it came from."""
        self._marks.clear()
        if self._policy is not None:
            self._marks.append(Mark.of(self._policy))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No cycle is under way inside; waits for one that is."""
        with self._running:
            yield

    def forget(self, ids: Collection[int]) -> None:
        """
        The learner has been replaced by one that never had the rewards of these decisions: what was made of them goes, and the patterns
        are found anew. With no cycle under way, and with no patterns in the store.
        """
        self.patterns.reset()
        self._counted = self._cycles = 0
        if self.window is not None:
            self.window.forget(ids)
        self.replaced()

    def start_task(self, name: str, tolerance: float | None = None) -> None:
        """
        Decisions from now on belong to another task, of which a reservoir of its own is kept.

        The drift alarm starts anew: rewards that fall behind now are those of a new task, and the earlier ones are to be kept.
        `tolerance` is what a candidate may lose on its rows, in reward between 0 and 1; default that of the gate.
        """
        if tolerance is not None:
            between("tolerance", tolerance, 0, 1)
        if self._policy is not None and self._policy.watch is not None:
            self._policy.watch.reset()
        if self.window is not None:
            self.window.offer(self.window.newest())
            self.window.tasks.begin(name, tolerance)
            self.window.save()

    # ---- a cycle ----

    def run_cycle(self, keep: Callable[[Proposal], Version], *, hold: str | None = None) -> BackgroundResult:
        """
        One cycle.

        Parameters
        ----------
        keep : callable
            Takes the candidate, keeps it as a version and serves it if it is accepted. Called once at most, after everything that can
            fail; when it raises, the cycle has not been.
        hold : str, optional
            Why no candidate is to be made now.

        Raises
        ------
        SonaError
            Whatever a step raises; the loop is as it was.
        """
        if not self._running.acquire(blocking=False):
            return BackgroundResult.skipped("another cycle is under way")
        try:
            return self._cycle(keep, hold)
        finally:
            self._running.release()

    def _cycle(self, keep: Callable[[Proposal], Version], hold: str | None) -> BackgroundResult:
        if self._policy is None or self.window is None:
            return BackgroundResult.skipped("there is no policy whose decisions could be replayed")
        began = time.perf_counter()
        self.note()
        arms, alarms = self._policy.version, self._alarms
        rows = self.window.newest(self._since)
        new = rows.take(self._own(rows) & (rows.id >= self._counted) if self._cycles else np.ones(len(rows), np.bool_))
        if len(new) < self.config.min_trajectories:
            return BackgroundResult.skipped(f"insufficient trajectories, {len(new)} of {self.config.min_trajectories}")
        mark, fresh = self._split(rows)
        proposal = None if hold is not None else self._propose(self._policy, mark, rows.take(~fresh), rows.take(fresh))
        found = self.patterns.learn(rows)
        if self._policy.version != arms:
            return BackgroundResult.skipped("arms were added or removed meanwhile")
        if self._drift is not None and self._drift.alarms != alarms:
            return BackgroundResult.skipped("the drift alarm was raised meanwhile")
        version = None if proposal is None else keep(proposal)
        own = rows.id[self._own(rows)]
        self._counted = int(own[-1]) + 1 if len(own) else self._counted
        self.patterns.take(found)
        self.window.offer(rows)
        self.window.save()
        self._cycles += 1
        return BackgroundResult(
            trajectories_processed=len(rows),
            patterns_extracted=len(found.bank.patterns),
            elapsed=time.perf_counter() - began,
            status="completed",
            verdict=None if proposal is None else proposal.ruling.verdict,
            reason=(hold or "nothing is older than what is held out") if proposal is None else proposal.ruling.reason,
            version=version,
        )

    def _split(self, rows: Rows) -> tuple[Mark, npt.NDArray[np.bool_]]:
        """The newest mark that leaves a fifth of the window unseen, else the oldest; and which rows it has not learned from."""
        assert self._policy is not None
        marks = list(self._marks) or [Mark.of(self._policy)]
        unseen = [self._own(rows) & (rows.id >= mark.before) for mark in marks]
        enough = [n for n, some in enumerate(unseen) if some.sum() >= HELD_OUT * len(rows)]
        chosen = enough[-1] if enough else 0
        return marks[chosen], unseen[chosen]

    @property
    def _since(self) -> int:
        """Id of the first decision after the last change."""
        return 0 if self._drift is None else self._drift.since

    def _own(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which rows are decisions of this process: their ids are in the order in which they were made."""
        assert self._policy is not None
        return np.asarray(rows.id >> np.uint64(SEQUENCE_BITS) == self._policy.first_id >> SEQUENCE_BITS)

    def _propose(self, policy: Policy, mark: Mark, old: Rows, fresh: Rows) -> Proposal | None:
        assert self.window is not None
        config = self.config
        reservoir = self.window.reservoir(self._since)
        older = reservoir.take(~np.isin(reservoir.id, np.concatenate([old.id, fresh.id])))
        replayed = older.joined(old)
        if not len(replayed):
            return None
        replay = Replay(policy, mark, max_discard=self._max_discard)
        seed = (config.seed, self._cycles)
        candidate = replay.run(replayed, passes=config.passes, step=config.base_lora_lr, seed=seed)
        level = float(np.clip(replayed.reward.mean(), 0.01, 1.0))  # not that of the rows that judge
        ruling, metrics = self._judge(replay, candidate, fresh, level, explored=policy.explore != "greedy")
        late = Rows.empty(policy.dim)
        if len(fresh) and ruling.verdict != "reject":
            late = Rows.remembered(policy, config.replay_rows, since=int(fresh.id[-1]) + 1)  # learned since the cycle began
            several = len(self.window.tasks.kept) > 1
            rest, start = (replayed.joined(fresh), None) if several else (fresh, candidate)
            candidate = replay.run(rest.joined(late), start, passes=config.passes, step=config.base_lora_lr, seed=seed)
            ruling = self._served(self._remembers(policy, candidate, reservoir, ruling, metrics), metrics)
        window = {"replayed": len(replayed), "reservoir": len(older), "held_out": len(fresh), "late": len(late)}
        window |= {"first_id": int(replayed.id[0]), "last_id": int((fresh if len(fresh) else replayed).id[-1])}
        return Proposal(candidate, ruling, metrics, window, level)

    def _remembers(self, policy: Policy, candidate: Factors, reservoir: Rows, ruling: Ruling, metrics: dict[str, Any]) -> Ruling:
        """`ruling`, or a rejection where the candidate earns less of a task's remembered rewards than what is served now."""
        assert self.window is not None
        now = Replay(policy, max_discard=self._max_discard)
        (_, theirs), (_, ours) = now.score(reservoir, candidate), now.score(reservoir)
        allowed = (self.config.gate or GateConfig()).task_tolerance
        for task, kept in self.window.tasks.kept.items():
            of = np.isin(reservoir.id, np.array(kept.ids, np.uint64))
            if of.sum() < TASK_ROWS:
                continue
            arm, reward = reservoir.arm[of], reservoir.reward[of]
            tolerance = allowed if kept.tolerance is None else kept.tolerance
            found = remembered(task, reward * (theirs[of] == arm), reward * (ours[of] == arm), tolerance)
            metrics[f"task {task}"] = dict(found.evidence)
            ruling = found if found.verdict == "reject" and ruling.verdict != "reject" else ruling
        return ruling

    def _served(self, ruling: Ruling, metrics: dict[str, Any]) -> Ruling:
        """`ruling`, or an acceptance of what the screen had enough rows for and let pass, where the configuration asks for no more."""
        if self.config.serve != "screened" or ruling.verdict != "undecided" or "z" not in metrics["screen"]:
            return ruling
        return Ruling("accept", f"no duel was asked for: {ruling.reason}", ruling.evidence)

    def _judge(self, replay: Replay, candidate: Factors, fresh: Rows, level: float, *, explored: bool) -> tuple[Ruling, dict[str, Any]]:
        if not len(fresh):
            return Ruling("undecided", "there are no decisions that the learner has not learned from", {}), {}
        reward = fresh.reward.astype(np.float64)
        (after, theirs), (before, ours) = replay.score(fresh, candidate), replay.score(fresh)
        metrics: dict[str, Any] = {"differing": int((theirs != ours).sum())}
        metrics |= {"before": {"brier": _brier(before, reward)}, "after": {"brier": _brier(after, reward)}}
        screened = screen(after, before, reward)
        metrics["screen"] = dict(screened.evidence)
        if screened.verdict == "reject":
            return screened, metrics
        if not explored:
            blind = "the log cannot tell more, because greedy choices give arms that no model proposed no chance"
            return Ruling("undecided", f"{screened.reason}; {blind}", screened.evidence), metrics
        floor = self.config.least_propensity
        chance = np.where(fresh.propensity >= floor, fresh.propensity, np.nan)
        duel = logged_duel(theirs, ours, fresh.arm, reward, chance, least_propensity=floor, level=level)
        metrics["duel"] = dict(duel.evidence)
        if duel.verdict == "undecided":
            return Ruling("undecided", f"{screened.reason}; {duel.reason}", duel.evidence), metrics
        return duel, metrics


def _brier(probability: npt.NDArray[np.float64], reward: npt.NDArray[np.float64]) -> float:
    """Mean squared error of the calibrated probabilities."""
    intercept, slope = calibrate(probability, reward)
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return float(np.mean((1 / (1 + np.exp(-intercept - slope * np.log(p / (1 - p)))) - reward) ** 2))
