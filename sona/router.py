"""Router: arms, decisions, feedback."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona._fields import finite, whole
from sona.config import Precondition, SonaConfig
from sona.engine import SonaEngine, Store
from sona.errors import SonaClosedError, SonaTypeError, SonaValueError
from sona.loops._instant import Instant
from sona.loops._policy import Decision, Policy
from sona.loops.arms import arm_vectors, refuse_identical, refuse_same_text
from sona.loops.awaiting import Awaiting
from sona.loops.background import BackgroundLoopConfig, BackgroundResult
from sona.loops.deep import DeepLoopConfig, DeepResult
from sona.loops.forgetting import ForgetReport
from sona.loops.learner import new_adapter, partner_of
from sona.loops.limits import SourceLimits, SourceReport
from sona.loops.retrieval import Retrieval
from sona.loops.ruling import at_least
from sona.store.rows import MAX_ID

Arm = Hashable
Explore = Literal["greedy", "thompson", "softmax"]

# The pool, measured on held-out streams: see docs/learning.md.
_POOL_ODDS = 5.0
_PARTNER_P0 = 0.05
_REHEARSED = 16
_REHEARSAL_WINDOW = 4000
_REHEARSAL_STRENGTH = 0.1

_LIMITS = SourceLimits()
_LOG_BYTES = 16 << 20  # decisions between two groups that the writer moves to the store


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedDecision:
    """
    One decision of some logging policy, for `Router.warm_start`.

    Attributes
    ----------
    x : array of shape (dim,)
    arm : hashable
        Name of the arm that was shown.
    reward : float
        In the router's declared range.
    candidates : sequence, optional
        Arms that were open; default all.
    """

    x: Any
    arm: Arm
    reward: float
    candidates: Sequence[Arm] | None = None


class Router:
    """
    Picks one of several arms for each request and learns from the reward of the arm it picked.

    Parameters
    ----------
    arms : mapping, array or sequence of names
        name -> vector, or an array (K, dim) whose row numbers are the names, or names alone (then `dim`: the arms get seeded
        orthonormal vectors and everything is learned).
    dim : int, optional
        Length of x; needed for names alone.
    store : path, URL or store, optional
        Keeps decisions, feedback and what was learned; None keeps a bounded memory.
    cost : mapping, optional
        Cost per arm in units of reward (after mapping to [0, 1]); the choice maximises expected reward minus cost.
    bias : bool
        Learn a constant per arm beside its response to x.
    explore : {"greedy", "thompson", "softmax"}
        "greedy" had the least regret on every stream measured; "thompson" and "softmax" log propensities below 1 everywhere.
    guard : bool
        Serve the frozen model, or an older copy of the learner, in proportion to the evidence that it is better.
    pool : bool
        Two learners on the same rewards, of which one learns remembered rewards again: less regret, at several times the cost of a reward
        and twice that of a request. See docs/learning.md. Needs explore="greedy"; candidates of the background loop are not put on trial.
    retrieval : int
        The newest rewarded decisions that each request is compared with, so that what the most similar ones earned counts beside what the
        learner expects; 0 for none. Lowers the regret on many streams and costs a scan of as many vectors, see docs/patterns.md. For
        greedy routers.
    precondition : {"auto", "identity", "full"}
        See `sona.Instant`.
    tau : float
        Temperature of the softmax over cosine scores.
    p0 : float, optional
        Prior variance of a weight; default as in `sona.Instant`.
    normalize : bool
        Scale arm vectors to unit norm; False keeps their relative norms.
    reward_range : (float, float)
        Least and largest reward.
    clip : bool
        Move rewards outside the range to its ends instead of refusing them.
    base_rank : int, optional
        Rank of the learned correction; default min(K - 1, 64), which loses nothing up to 65 arms.
    pending : int
        Decisions remembered in memory for their feedback; with a store, older ones are found there.
    seed : int
        Of the guard's draws, of exploration and of arms without vectors.
    name : str
        Under which the state is kept in the store.
    model_fingerprint : str, optional
        Identifies the frozen model; a stored state of another model is refused.
    background : BackgroundLoopConfig, optional
        Of `background_learn`.
    deep : DeepLoopConfig, optional
        Of `deep_learn`.
    sources : SourceLimits or None
        How much the rewards of one source may count, where `feedback` names sources; None: as much as they like.
    drift : bool
        Watch the rewards, and doubt what was learned where they fall behind what was expected: see docs/drift.md.

    Attributes
    ----------
    engine : SonaEngine
        The engine underneath; its first layer's adapter is what the router learns.

    Thread-safety
    -------------
    Every method may be called from any thread; calls take turns under the GIL and never wait for the disk, except `flush`, `close`,
    `add_arm`, `remove_arm` and `warm_start` with a store, and feedback with sync=True or for a decision that is only in the store.
    For that, `afeedback` leaves the event loop free. In a child of `fork`, a router with a store is closed.

    Notes
    -----
    A router cannot be pickled or copied (SonaTypeError): a copy would learn from half of the rewards. Processes share what is learned by
    opening the same store.
    """

    def __init__(
        self,
        arms: Mapping[Any, Any] | npt.NDArray[Any] | Sequence[Any],
        *,
        dim: int | None = None,
        store: Store = None,
        cost: Mapping[Any, float] | None = None,
        bias: bool = True,
        explore: Explore = "greedy",
        guard: bool = True,
        pool: bool = False,
        retrieval: int = 0,
        precondition: Precondition = "auto",
        tau: float = 0.1,
        p0: float | None = None,
        normalize: bool = True,
        reward_range: tuple[float, float] = (0.0, 1.0),
        clip: bool = False,
        base_rank: int | None = None,
        pending: int = 8192,
        seed: int = 0,
        name: str = "default",
        model_fingerprint: str | None = None,
        background: BackgroundLoopConfig | None = None,
        deep: DeepLoopConfig | None = None,
        sources: SourceLimits | None = _LIMITS,
        drift: bool = True,
    ) -> None:
        vectors = arm_vectors(arms, dim, seed)
        refuse_same_text(vectors)
        if cost is not None and not isinstance(cost, Mapping):
            raise SonaTypeError(f"cost: expected prices by name of arm, got {cost!r}")
        costs = {arm: finite(price, f"cost of arm {arm!r}") for arm, price in (cost or {}).items()}
        tau = finite(tau, "tau")
        unknown = [arm for arm in costs if arm not in vectors]
        if unknown:
            raise SonaValueError(f"cost: expected names of arms, got {unknown}")
        if pool and explore in ("thompson", "softmax"):
            raise SonaValueError(f"explore: expected 'greedy' with pool=True, got {explore!r}")
        at_least("retrieval", retrieval, 0)
        if retrieval and explore != "greedy":
            raise SonaValueError(f"retrieval: expected 0 with explore={explore!r}, got {retrieval}")
        width = len(next(iter(vectors.values())))
        norms = {arm: float(np.linalg.norm(v.astype(np.float64))) for arm, v in vectors.items()}
        self._scale = float(np.mean(list(norms.values())))
        self._normalize = normalize
        prepared = {arm: self._prepared(arm, v) for arm, v in vectors.items()}
        refuse_identical(prepared)
        rank = min(max(len(vectors) - 1, 1), 64) if base_rank is None else base_rank
        config = SonaConfig(
            hidden_dim=width,
            base_lora_rank=rank,
            base_lora_rank_max=max(rank, 64),
            p0=p0,
            bias_input=0.3 if bias else 0.0,
            precondition=precondition,
            reward_range=reward_range,
            clip=clip,
        )

        def make_policy(engine: SonaEngine) -> Policy:
            policy = Policy(
                engine.adapters[0],
                engine.instants[0],
                tau=tau,
                explore=explore,
                guard=guard,
                pending=pending,
                log_bytes=_LOG_BYTES if engine.store is not None else 0,
                seed=seed,
                first_id=(engine.session << 40) + 1,
                odds=_POOL_ODDS if pool else 2.0,
            )
            for arm, vector in prepared.items():
                policy.add_arm(arm, vector, costs.get(arm, 0.0))
            if pool:
                _form_pool(engine, policy)
            policy.enabled = engine.enabled
            return policy

        self.engine = SonaEngine(
            config,
            store=store,
            name=name,
            model_fingerprint=model_fingerprint,
            policy=make_policy,
            background=background,
            deep=deep,
            sources=sources,
            drift=drift,
        )
        assert self.engine.policy is not None
        self._policy: Policy = self.engine.policy
        self._journal = self.engine.journal
        self._awaiting = None if self._journal is None else Awaiting(self._journal)
        self._retrieval = Retrieval(self._policy, retrieval) if retrieval else None
        if self._retrieval is not None and self._journal is not None and self.engine.loop_b.window is not None:
            self._retrieval.fill(self.engine.loop_b.window.newest())

    def _prepared(self, arm: Arm, vector: Floats) -> Floats:
        """The vector at the norm the policy uses."""
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not length > 0:
            raise SonaValueError(f"arm {arm!r}: expected a non-zero vector, got zeros")
        return (vector.astype(np.float64) / (length if self._normalize else self._scale)).astype(np.float32)

    # ---- arms ----

    @property
    def arms(self) -> tuple[Any, ...]:
        """Names of the arms that are open."""
        names: tuple[Any, ...] = self._policy.arms
        return names

    def add_arm(self, name: Arm, vector: Any, cost: float = 0.0) -> None:
        """Open another arm while serving; it starts with what the correction already says about its vector."""
        self._check_recording()
        cost = finite(cost, f"cost of arm {name!r}")
        prepared = self._prepared(name, coerce(vector, (self.engine.config.hidden_dim,), f"arm {name!r}"))
        refuse_identical({**dict(zip(self.arms, self._policy.vectors(), strict=True)), name: prepared})
        if name not in self.arms:
            refuse_same_text([*self.arms, name])
        if self._journal is None:
            self._policy.add_arm(name, prepared, cost)
            return
        with self._journal.mutex:
            self._policy.add_arm(name, prepared, cost)
            self._journal.arms_changed()

    def remove_arm(self, name: Arm) -> None:
        """Close an arm while serving; feedback for its earlier decisions is answered with False."""
        self._check_recording()
        if len(self.arms) == 1:
            raise SonaValueError(f"arm {name!r}: expected at least one arm to stay")
        row = self._policy.row(name)
        with self._journal.mutex if self._journal is not None else nullcontext():
            self._policy.remove_arm(name)
            if self._retrieval is not None:
                self._retrieval.forget_arm(row)
            if self._journal is not None:
                self._journal.arms_changed()

    # ---- requests ----

    def route(self, x: Any, candidates: Sequence[Arm] | None = None) -> Decision:
        """
        Pick an arm for x.

        Parameters
        ----------
        x : array of shape (dim,)
            Any norm; its direction counts. Finite.
        candidates : sequence of names, optional
            Arms open to this choice; default all.
        """
        if self.engine._closed:
            raise SonaClosedError(f"the router {self.engine._closed_because}")
        decision = self._policy.route(x, candidates) if self._retrieval is None else self._retrieval.route(x, candidates)
        if self._journal is not None:
            self._journal.notify()
        return decision

    async def aroute(self, x: Any, candidates: Sequence[Arm] | None = None) -> Decision:
        """
        `route`, for code that awaits everything. It does on the event loop what `route` does, which takes microseconds and never waits
        for the store, for another process or for learning: there is nothing to await, and `route` may be called in a coroutine as well.
        """
        return self.route(x, candidates)

    def route_batch(self, x: Any) -> list[Decision]:
        """One decision per row of x (n, dim); the same as n calls of `route`."""
        self._check_open()
        if self._retrieval is None:
            decisions: list[Decision] = self._policy.route_batch(x)
        else:
            decisions = self._retrieval.route_batch(x)
        if self._journal is not None:
            self._journal.notify()
        return decisions

    def predict(
        self, x: Any, *, model: Literal["current", "frozen"] = "current", candidates: Sequence[Arm] | None = None
    ) -> npt.NDArray[np.int64]:
        """Row number of the model's first choice per row of x (n, dim), shape (n,): nothing is explored, retrieved, recorded or learned."""
        self._check_open()
        rows: npt.NDArray[np.int64] = self._policy.predict(x, model, candidates)
        return rows

    def apply_batch(self, x: Any, out: Floats | None = None) -> Floats:
        """
        trust * x + delta(x) row by row, (n, dim): the adapted embeddings, whose inner products with the arms are what `route` compares.

        trust is 1 until rewards say that the frozen model is wrong; see `stats`.
        """
        given = coerce(x, (None, self.engine.config.hidden_dim), "x").copy()
        y = self.engine.apply_batch(given, out)
        if self.engine.enabled and self._policy.trust < 1:
            y -= np.float32(1 - self._policy.trust) * given
        return y

    def explain(self, decision: Decision) -> dict[Any, dict[str, float]]:
        """
        What each tier adds to the score of each arm for the decision's x, at today's weights: frozen (times trust), base, micro,
        bias; their sum is the score, a cosine similarity where arms are normalised. cost is in units of reward and no part of the score.
        """
        self._check_open()
        if not isinstance(decision, Decision):
            raise SonaTypeError(f"decision: expected what route returned, got {type(decision).__name__}")
        parts: dict[Any, dict[str, float]] = self._policy.explain_decision(decision.id)
        return parts

    # ---- outcomes ----

    def feedback(self, id: int, reward: float, *, sync: bool = False, source: str | None = None) -> bool:
        """
        The reward of a decision: now, days later, from another process, again. The last one counts.

        Parameters
        ----------
        id : int
            Of the decision.
        reward : float
            In the declared range.
        sync : bool
            Return only when the reward is durable in the store.
        source : str, optional
            Who reported it, up to 255 characters; kept with it. See `sources`.

        Returns
        -------
        bool
            False, and counted, when the id is unknown or expired or its arm is gone.

        Raises
        ------
        SonaValueError
            A reward that is not finite or outside the range.
        SonaStoreError
            With sync=True: the store could not be written; the reward is learned and will be tried again.
        """
        self._check_open()
        id, unit = whole(id, "id"), self.engine._unit(reward)
        accepted = self._rewarded(id, unit, source)
        if sync and accepted and self._journal is not None:
            self._journal.flush()
        return accepted

    async def afeedback(self, id: int, reward: float, *, sync: bool = False, source: str | None = None) -> bool:
        """
        `feedback`, with the event loop free while it waits: for the store, with sync=True or where the decision is only there, and for
        another thread that learns.

        A reward that need not wait is learned at once, on the event loop. Durable, with sync=True, are all that were given while the group
        before was written, by one write for all of them. From the event loops of any threads.

        Cancelled, a reward is recorded and learned as a whole, or not at all where its turn had not come; with sync=True and once it is
        recorded, only the waiting ends. Of rewards of one decision the last one recorded counts: await the first before giving the second.

        Returns and raises what `feedback` does.
        """
        self._check_open()
        id, unit = whole(id, "id"), self.engine._unit(reward)
        if self._awaiting is None or not 0 <= id <= MAX_ID:
            return self._rewarded(id, unit, source)
        if self._awaiting.would_wait(id):
            accepted = await self._awaiting.done(lambda: self._rewarded(id, unit, source))
        else:
            accepted = self._learn(id, unit, source)
            if self.engine._service.due:
                await self._awaiting.done(self.engine._rewarded)
            else:
                self.engine._rewarded()
        if sync and accepted:
            await self._awaiting.durable()
        return accepted

    def _rewarded(self, id: int, unit: float, source: str | None) -> bool:
        accepted = self._learn(id, unit, source)
        self.engine._rewarded()
        return accepted

    def _learn(self, id: int, unit: float, source: str | None) -> bool:
        accepted = self._accept(id, unit, source)
        if accepted and self._retrieval is not None and self.engine.enabled and self.engine.sources.counts(source):
            self._retrieval.learned(id, unit)
        return accepted

    def _accept(self, id: int, unit: float, source: str | None) -> bool:
        if 0 <= id <= MAX_ID:
            if self._journal is not None:
                return self._journal.feedback(id, unit, source, learn=self.engine.enabled)
            if self.engine.enabled:
                return self.engine.learn(id, unit, source)
            if self._policy.knows(id):
                return True
        self._policy.count_unknown()
        return False

    def feedback_batch(self, ids: Iterable[int], rewards: Iterable[float], *, sync: bool = False, source: str | None = None) -> int:
        """Rewards of several decisions, in order; returns how many ids were known. A bad reward raises before any is learned."""
        self._check_open()
        for name, given in (("ids", ids), ("rewards", rewards)):
            if not isinstance(given, Iterable):
                raise SonaTypeError(f"{name}: expected one per decision, got {given!r}")
        ids, rewards = [whole(id, "id") for id in ids], list(rewards)
        if len(ids) != len(rewards):
            raise SonaValueError(f"feedback_batch: expected as many rewards as ids, got {len(rewards)} and {len(ids)}")
        units = [self.engine._unit(reward) for reward in rewards]
        accepted = 0
        for id, unit in zip(ids, units, strict=True):
            accepted += self._learn(id, unit, source)
            self.engine._rewarded()
        if sync:
            self.flush()
        return accepted

    def warm_start(self, rows: Iterable[LoggedDecision | tuple[Any, Arm, float]]) -> int:
        """
        Learn from decisions of another policy, in order; returns how many.

        Each row is a LoggedDecision or (x, arm, reward). A step is a full one where the router would have made the same choice and a
        smaller one elsewhere. With a store, the learned state is durable on return; the rows themselves are not kept. Rows before one that
        is refused are learned.
        """
        self._check_recording()
        count = 0
        try:
            for row in rows:
                logged = row if isinstance(row, LoggedDecision) else _logged(row, count)
                self._policy.learn_logged(logged.x, logged.arm, self.engine._unit(logged.reward), logged.candidates)
                count += 1
        finally:
            self.engine.unlogged += count
        if self._journal is not None and self._journal.leading:
            self._journal.save()
        return count

    def sources(self) -> list[SourceReport]:
        """
        Who reported rewards lately and what that counts for, the largest share first; see `SourceLimits`.

        Only rewards that this process has learned, or would have if they counted for something.
        """
        return self.engine.sources.report()

    def forget_source(self, source: str) -> ForgetReport:
        """See `SonaEngine.forget_source`."""
        report = self.engine.forget_source(source)
        if self._retrieval is not None and self.engine.loop_b.window is not None:
            self._retrieval.clear()
            self._retrieval.fill(self.engine.loop_b.window.newest())
        return report

    # ---- state ----

    @property
    def state_bytes(self) -> int:
        """Bytes of everything learned: adapter, preconditioner, arms and older copies."""
        other = self._policy.partner
        partner = 0 if other is None else int(other.bytes) + int(other.adapter.info()["bytes"]) + int(other.instant.bytes)
        return self.engine.state_bytes + int(self._policy.bytes) + partner

    def stats(self) -> dict[str, Any]:
        """
        Counters by name; "drift" holds the alarms (None when switched off), "engine" the engine's counters, "latency" what every 16th
        choice ("route") and reward learned ("learn") of this process took: count, seconds in all, and buckets of [at most so many seconds,
        how many].
        """
        p = self._policy
        return {
            "arms": len(p.arms),
            "requests": p.requests,
            "learned": p.learned,
            "revised": p.revised,
            "unknown_feedback": p.unknown,
            "rejected": p.rejected,
            "unrecorded": p.unrecorded,
            "confidence": p.instant.confidence,
            "surprise": p.surprise,
            "trust": p.trust,
            "guard_weights": p.guard_weights,
            "pool": p.own_share if p.partner is not None else None,
            "drift": None if self.engine.drift is None else self.engine.drift.stats(),
            "latency": p.latency,
            "state_bytes": self.state_bytes,
            "pending_bytes": p.pending_bytes,
            "retrieval_rows": 0 if self._retrieval is None else len(self._retrieval),
            "retrieval_bytes": 0 if self._retrieval is None else self._retrieval.nbytes,
            "sources": [asdict(each) for each in self.sources()],
            "engine": self.engine.stats(),
        }

    def tick(self) -> None:
        """See `SonaEngine.tick`."""
        self.engine.tick()

    def background_learn(self) -> BackgroundResult:
        """See `SonaEngine.background_learn`."""
        return self.engine.background_learn()

    def deep_learn(self, *, duration: float | None = None) -> DeepResult:
        """See `SonaEngine.deep_learn`."""
        return self.engine.deep_learn(duration=duration)

    def flush(self) -> None:
        """Return when every decision and reward so far is durable."""
        self.engine.flush()

    def close(self) -> None:
        """Write what is left and release the store; a second call does nothing."""
        if self._awaiting is not None:
            self._awaiting.close()
        self.engine.close()

    def _check_open(self) -> None:
        if self.engine._closed:
            raise SonaClosedError(f"the router {self.engine._closed_because}")

    def _check_recording(self) -> None:
        self._check_open()
        if self._journal is not None:
            self._journal.check_open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise SonaTypeError(f"{self!r}: expected a store, or engine.save(path), for a copy of what is learned; it cannot be pickled")

    def __repr__(self) -> str:
        return f"<Router {len(self.arms)} arms, dim={self.engine.config.hidden_dim}>"


def _form_pool(engine: SonaEngine, policy: Policy) -> None:
    """The policy rehearses; its partner, with the identity and smaller steps, does not."""
    config, instant = engine.config, policy.instant
    policy.join(partner_of(policy, new_adapter(config), Instant(config.hidden_dim, _PARTNER_P0, config.bias_input, "identity")))
    step = Instant(config.hidden_dim, instant.prior_variance, config.bias_input, "identity")
    policy.rehearse(step, _REHEARSED, _REHEARSAL_WINDOW, _REHEARSAL_STRENGTH)


def _logged(row: Any, number: int) -> LoggedDecision:
    """A row of `warm_start` that is a tuple."""
    if not isinstance(row, Sequence) or isinstance(row, str | bytes) or len(row) != 3:
        raise SonaTypeError(f"row {number}: expected a LoggedDecision or (x, arm, reward), got {type(row).__name__} {row!r:.100}")
    return LoggedDecision(x=row[0], arm=row[1], reward=row[2])
