"""What similar decisions earned counts beside the learner: the documented blend, what is logged is what happened, and nothing is stale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Clusters, unit

from sona import Adapter, Instant, Router, SqliteStore
from sona.errors import SonaValueError
from sona.loops._policy import Policy
from sona.loops.replay import Rows
from sona.loops.retrieval import NEIGHBOURS, PRIOR
from sona.patterns import retrieval_prior

DIM = 8
Memory = dict[int, tuple[Any, Any, float]]  # id -> x, arm, reward; in the order in which they were learned


def make_router(world: Clusters | None = None, *, rows: int = 100, arms: Any = None, **options: Any) -> Router:
    vectors = {f"arm {k}": v for k, v in enumerate((world or Clusters(1, dim=DIM)).arms)} if arms is None else arms
    return Router(vectors, retrieval=rows, **({"guard": False, "precondition": "identity"} | options))


def expectations(router: Router, memory: Memory, x: Any, pi: Any, names: tuple[Any, ...]) -> Any:
    """The blend by the formula of sona.patterns, over candidates, less their costs."""
    policy = router._policy
    place = {name: at for at, name in enumerate(router.arms)}
    full = np.zeros(len(place))
    full[[place[name] for name in names]] = pi
    known = [(row, place[arm], reward) for row, arm, reward in reversed(memory.values()) if arm in place]
    rows = np.array([row for row, _, _ in known], np.float32).reshape(-1, policy.dim)
    arms, rewards = np.array([arm for _, arm, _ in known], np.int64), np.array([reward for _, _, reward in known])
    # c: the success rate of the best arm, shrunk towards that of all, or of all
    everywhere = policy.instant.confidence
    calibration = policy.state()["arm_calibration"]
    confidence = max([everywhere, *(min(1.0, (r + 30 * everywhere) / (q + 30)) for r, q, _ in calibration)])
    blend = retrieval_prior(x, rows, arms, rewards, confidence * full, neighbours=NEIGHBOURS, kappa=PRIOR / confidence)
    costs = dict(zip(router.arms, policy.costs(), strict=True))
    return np.array([blend[place[name]] - costs[name] for name in names])


def remember(memory: Memory, capacity: int, id: int, entry: tuple[Any, Any, float]) -> None:
    memory[id] = entry
    while len(memory) > capacity:
        del memory[next(iter(memory))]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans(), st.booleans())
def test_the_served_arm_is_the_first_choice_of_the_documented_blend(seed: int, capacity: int, some: bool, costs: bool) -> None:
    """Against the formula over a plain memory, through repeated rewards, candidates, costs, and more decisions than it keeps."""
    rng = np.random.default_rng(seed)
    world = Clusters(seed % 7, dim=DIM)
    names = [f"arm {k}" for k in range(6)]
    router = make_router(world, rows=capacity, cost={name: float(rng.uniform(0, 0.3)) for name in names} if costs else None)
    memory: Memory = {}
    for _ in range(80):
        x, k = world.draw()
        candidates = [names[at] for at in rng.permutation(6)[:3]] if some else None
        d = router.route(3 * x, candidates)
        score = expectations(router, memory, x, d.scores, d.candidates)
        assert score[d.candidates.index(d.arm)] >= score.max() - 1e-5
        assert d.propensity == 1
        reward = float(rng.uniform() < (0.9 if d.arm == names[k] else 0.2))
        assert router.feedback(d.id, reward)
        remember(memory, capacity, d.id, (x, d.arm, reward))
        if rng.uniform() < 0.2:  # an earlier reward again, another one
            id = list(memory)[rng.integers(len(memory))]
            row, arm, old = memory[id]
            memory[id] = (row, arm, 1 - old)
            assert router.feedback(id, 1 - old)
    assert router.stats()["retrieval_rows"] == len(memory) == min(80, capacity)


def test_neighbours_overrule_a_learner_that_expects_less() -> None:
    router = make_router(arms=np.eye(3, 8), p0=1e-6)  # hardly learns
    x = unit([1, 0.8, 0, 0, 0, 0, 0, 0])
    assert router.route(x).arm == 0
    for _ in range(10):
        router.feedback(router.route(x, [1]).id, 1.0)
    assert router.route(x).arm == 1
    assert router.predict(x[None])[0] == 0  # the learner alone


def test_of_equal_requests_the_newest_count() -> None:
    """Also where more of them are kept than are asked, and after the memory has gone round."""
    router = make_router(arms=np.eye(3, 8), p0=1e-6, rows=25)
    x = unit([1, 0.8, 0, 0, 0, 0, 0, 0])
    assert router._retrieval is not None
    for t in range(80):
        arm, reward = t // 15 % 3, float(t // 15 % 2)
        router.feedback(router.route(x, [arm]).id, reward)
        recent = [(at // 15 % 3, float(at // 15 % 2)) for at in range(max(0, t - 9), t + 1)]
        earned, seen = router._retrieval.evidence(x.astype(np.float32))
        assert earned == pytest.approx([sum(r for a, r in recent if a == k) for k in range(3)], abs=1e-5)
        assert seen == pytest.approx([sum(a == k for a, _ in recent) for k in range(3)], abs=1e-5)


def test_own_and_propensity_say_what_the_learner_and_the_guard_did() -> None:
    """`own` is whether the learner alone would have chosen it; the guard draws among blend, frozen model and older copy."""
    world = Clusters(5, dim=DIM, rough=4.0)
    router = make_router(world, rows=200, guard=True, seed=3)
    alone, drawn, flips = [], [], 0
    for _ in range(600):
        x, k = world.draw()
        own, frozen = (int(router.predict(x[None], model=model)[0]) for model in ("current", "frozen"))  # type: ignore[arg-type]
        weights = router._policy.guard_weights
        d = router.route(x)
        alone.append(d.index == own)
        flips += d.index not in (own, frozen)
        if weights["anchor"] == 0 and d.propensity < 1:
            expected = weights["frozen"] if d.index == frozen else weights["current"]
            assert d.propensity == pytest.approx(expected, rel=1e-5)
            drawn.append(d.propensity)
        router.feedback(d.id, float(d.index == k))
    assert Rows.remembered(router._policy, 600).own.tolist() == alone
    assert flips > 10  # neither the learner's own choice nor the frozen model's
    assert len(drawn) > 10


def test_a_memory_of_what_is_no_longer_so_does_not_hold_the_router() -> None:
    """Another arm becomes right everywhere, and every neighbour speaks for the old one."""
    arms = np.eye(4, 8)
    router = make_router(arms=arms, rows=4000, guard=True)
    right_arm = []
    rng = np.random.default_rng(0)
    for t in range(3000):
        k = int(rng.integers(4))
        x = unit(arms[k] + 0.3 * unit(rng.normal(size=8)))
        d = router.route(x)
        right = k if t >= 1000 else (k + 1) % 4
        router.feedback(d.id, float(d.index == right))
        right_arm.append(d.index == right)
    assert np.mean(right_arm[800:1000]) > 0.9
    assert np.mean(right_arm[-1000:]) > 0.9


def test_a_trial_leaves_out_what_neighbours_overrule() -> None:
    """There the candidate would be overruled as well: nothing is drawn, and the decision does not count."""
    router = make_router(arms=np.eye(3, 8), p0=1e-6)
    policy = router._policy
    candidate = Policy(Adapter(8, rank=8), Instant(8, None, 0.3, "identity"), guard=False)
    candidate.take_arms(policy)
    x = unit([1, 0.8, 0, 0, 0, 0, 0, 0])
    for _ in range(20):  # it has learned that arm 2 is right here, and nothing elsewhere
        candidate.learn_logged(x, 2, 1.0)
        candidate.learn_logged(x, 0, 0.0)
    judge = Judge()
    policy.contest(candidate, 0.5, 1, judge)
    assert {candidate.predict(x[None])[0], router.predict(x[None])[0]} == {0, 2}
    before = [router.route(x) for _ in range(40)]
    assert {d.arm for d in before} == {0, 2}
    for d in before:
        router.feedback(d.id, 0.0)
    assert len(judge.seen) == 40
    for _ in range(10):
        router.feedback(router.route(x, [1]).id, 1.0)
    judge.seen.clear()
    for _ in range(40):
        d = router.route(x)
        assert (d.arm, d.propensity) == (1, 1.0)
        router.feedback(d.id, 1.0)
    assert judge.seen == []


def test_off_is_the_router_as_it_was_and_disabled_is_the_frozen_model(monkeypatch: pytest.MonkeyPatch) -> None:
    served = []
    for rows in (0, 50):
        world = Clusters(2, dim=DIM)
        router = make_router(world, rows=rows)
        router.engine.enabled = False
        for _ in range(50):
            x, k = world.draw()
            d = router.route(x)
            served.append((d.index, int(router.predict(x[None], model="frozen")[0])))
            router.feedback(d.id, float(d.index == k))
        assert router.stats()["retrieval_rows"] == 0
    assert all(arm == frozen for arm, frozen in served)
    assert make_router(rows=0)._retrieval is None


def test_a_batch_is_as_many_requests() -> None:
    world = Clusters(4, dim=DIM)
    one, many = make_router(world), make_router(world)
    for _ in range(20):
        x = np.stack([world.draw()[0] for _ in range(4)])
        singly, together = [one.route(row) for row in x], many.route_batch(x)
        assert [d.arm for d in singly] == [d.arm for d in together]
        for a, b in zip(singly, together, strict=True):
            one.feedback(a.id, float(a.index == 2))
            many.feedback(b.id, float(b.index == 2))


class Judge:
    """What a trial is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def record(self, *told: Any) -> None:
        self.seen.append(told)


# ---- arms, restarts ----


def test_a_new_arm_in_the_row_of_a_removed_one_inherits_nothing() -> None:
    router = make_router(arms={"a": np.eye(3)[0], "b": np.eye(3)[1], "c": np.eye(3)[2]}, p0=1e-6, rows=7)
    x = unit([0.6, 1, 0])
    decisions = []
    for _ in range(12):  # more than it keeps
        decisions.append(router.route(x))
        router.feedback(decisions[-1].id, 1.0)
    assert {d.arm for d in decisions} == {"b"}
    router.feedback(router.route(x, ["a"]).id, 0.5)
    row = router._policy.row("b")
    router.remove_arm("b")
    router.add_arm("new", [0.0, 0.0, -1.0])
    assert router._policy.row("new") == row
    assert router.stats()["retrieval_rows"] == 1
    assert not router.feedback(decisions[-1].id, 1.0)
    earned, seen = router._retrieval.evidence(np.float32(x))  # type: ignore[union-attr]
    assert earned.tolist() == [0.5, 0, 0]
    assert seen.tolist() == [pytest.approx(1), 0, 0]
    for _ in range(9):
        router.feedback(router.route(x, ["c"]).id, 0.0)
    assert router.stats()["retrieval_rows"] == 7


def test_a_restart_remembers_the_newest_rewards_of_the_store(tmp_path: Path) -> None:
    world = Clusters(6, dim=DIM)
    with make_router(world, store=tmp_path / "sona.db", rows=30) as router:
        for _ in range(50):
            x, k = world.draw()
            d = router.route(x)
            router.feedback(d.id, float(d.index == k))
        want = router._retrieval
    with make_router(world, store=tmp_path / "sona.db", rows=30) as router:
        kept = router._retrieval
        assert kept is not None
        assert want is not None
        assert len(kept) == 30
        for x, _ in (world.draw() for _ in range(20)):
            for again, before in zip(kept.evidence(x), want.evidence(x), strict=True):
                np.testing.assert_allclose(again, before, rtol=1e-6)


def test_a_reward_that_comes_after_a_restart_is_kept(tmp_path: Path) -> None:
    world = Clusters(6, dim=DIM)
    with make_router(world, store=tmp_path / "sona.db") as router:
        x, _ = world.draw()
        d = router.route(x)
    with make_router(world, store=SqliteStore(tmp_path / "sona.db")) as router:
        assert router.feedback(d.id, 1.0)
        assert router._retrieval is not None
        assert router._retrieval.evidence(x)[0][d.index] == pytest.approx(1)


# ---- bounds and errors ----


def test_memory_is_bounded() -> None:
    world = Clusters(6, dim=DIM)
    router = make_router(world, rows=100)
    sizes = set()
    for _ in range(1000):
        x, k = world.draw()
        d = router.route(x)
        router.feedback(d.id, float(d.index == k))
        assert router._retrieval is not None
        sizes.add((router._retrieval.nbytes, len(router._retrieval._at) <= 100))
    assert sizes == {(100 * (4 * DIM + 4 + 8 + 8), True)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": -1}, "retrieval: expected an int of at least 0, got -1"),
        ({"rows": 2.5}, "retrieval: expected an int of at least 0, got 2.5"),
        ({"explore": "softmax"}, "retrieval: expected 0 with explore='softmax', got 100"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        make_router(**options)


def test_a_request_that_is_refused_changes_nothing() -> None:
    router = make_router()
    for bad, message in ((np.ones(3), r"x: expected shape \(8,\), got \(3,\)"), (np.full(DIM, np.nan), "x: expected finite")):
        with pytest.raises(SonaValueError, match=message):
            router.route(bad)
    with pytest.raises(SonaValueError, match="arm: expected one of"):
        router.route(np.ones(DIM), ["nobody"])
    assert router.stats()["requests"] == 0
    assert router.route(np.zeros(DIM)).propensity == 1


def test_evidence_is_checked() -> None:
    policy = make_router(rows=0)._policy
    for bad, message in (((np.full(6, np.nan), np.ones(6), 1.0), "earned"), ((np.ones(6), np.ones(5), 1.0), "seen")):
        with pytest.raises(SonaValueError, match=message):
            policy.route_beside(np.ones(DIM), *bad)
    for prior in (0.0, np.inf, np.nan):
        with pytest.raises(SonaValueError, match="prior: expected a positive finite number"):
            policy.route_beside(np.ones(DIM), np.ones(6, np.float32), np.ones(6, np.float32), prior)
    want = policy.route(np.ones(DIM)).arm
    sums = np.zeros(3, np.float32)  # made while there were three arms
    assert policy.route_beside(np.ones(DIM), sums, sums, 1.0).arm == want
