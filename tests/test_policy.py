"""Promises of the policy and its guard: they are the documented rule, and what they log is what happened."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import CONSTANT, GuardRule, PolicyRule, Shown, unit

from sona import Adapter, Guard, Instant, isas
from sona.errors import SonaTypeError, SonaValueError
from sona.loops._policy import Decision, Policy

Array = np.ndarray[Any, Any]

DIM, ARMS = 17, 5


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def make_policy(arms: dict[Any, Any], *, precondition: str = "identity", isa: str | None = None, rank: int = 16, **options: Any) -> Policy:
    dim = len(next(iter(arms.values())))
    adapter = Adapter(dim, rank=rank, isa=isa)
    policy = Policy(adapter, Instant(dim, None, CONSTANT, precondition, isa=isa), **({"guard": False} | options))
    for name, vector in arms.items():
        policy.add_arm(name, unit(vector).astype(np.float32))
    return policy


def some_arms(rng: np.random.Generator, count: int = ARMS, dim: int = DIM) -> dict[str, Array]:
    return {f"arm{k}": unit(normal(rng, dim)).astype(np.float32) for k in range(count)}


def train(policy: Policy, rng: np.random.Generator, rounds: int = 300, best: str = "arm2") -> None:
    """One arm is rewarded everywhere."""
    for _ in range(rounds):
        d = policy.route(normal(rng, policy.dim))
        assert policy.learn(d.id, float(d.arm == best))


def probe(policy: Policy, seed: int = 99) -> tuple[Array, Array]:
    x = normal(np.random.default_rng(seed), 50, policy.dim)
    return policy.predict(x), np.stack([policy.route(row).scores for row in x])


# ---- against the rule ----


class Both:
    """A policy and the rule beside it, fed the same arms, requests and rewards."""

    def __init__(self, rng: np.random.Generator, *, full: bool, isa: str, costs: bool = False, explore: str = "greedy") -> None:
        self.rng, self.explore = rng, explore
        arms = some_arms(rng)
        adapter = Adapter(DIM, rank=DIM, window=DIM, isa=isa)  # loses nothing, whichever arms come
        instant = Instant(DIM, None, CONSTANT, "full" if full else "identity", isa=isa)
        self.policy = Policy(adapter, instant, guard=False, explore=explore, log_bytes=1 << 12)
        self.rule = PolicyRule(arms, full=full)
        for name, vector in arms.items():
            self.rule.costs[name] = float(np.float32(rng.uniform(0, 0.3))) if costs else 0.0
            self.policy.add_arm(name, vector, self.rule.costs[name])
        self.shown: list[tuple[int, Shown]] = []
        self.standing: dict[int, int] = {}  # decision -> generation of the rows that its pair is one of
        self.in_row = dict(enumerate(arms))  # the last arm that each row held
        self.worst = 0.0

    def route(self) -> Decision:
        x = normal(self.rng, DIM)
        candidates = None
        if self.rng.random() < 0.3:
            candidates = list(self.rng.permutation(self.policy.arms)[: self.rng.integers(1, len(self.policy.arms) + 1)])
        d = self.policy.route(x, candidates)
        assert set(d.candidates) == set(self.policy.arms if candidates is None else candidates)
        want = self.rule.probabilities(x, d.candidates)
        self.worst = max(self.worst, float(np.abs(d.scores - want).max()))
        shown = self.rule.show(x, d.arm, d.candidates)
        own = self.policy.drain()[-1][8]
        first, *others = sorted(self.rule.utilities(x, d.candidates), reverse=True)
        if not others or first > others[0] + 1e-3:  # else float32 may see the other side of a tie
            assert shown.own is own
        shown.own = own
        if self.explore == "greedy":
            assert own
            assert d.propensity == 1
        else:
            assert d.propensity == pytest.approx(want[d.candidates.index(d.arm)], rel=1e-3)
        self.shown.append((d.id, shown))
        return d

    def reward(self, id: int, shown: Shown, reward: float) -> None:
        info = self.policy.adapter.info()
        has_room = info["total"] + 2 <= info["rank"] + DIM  # else the rows are truncated before the step is taken back
        stands = has_room and self.standing.get(id) == info["generation"]
        alive = shown.arm in self.rule.open
        assert self.policy.learn(id, reward) is alive
        if not alive:
            return
        if shown.reward is None:
            self.rule.learn(shown, reward)
        elif shown.reward != reward:
            self.rule.revise(shown, reward, stands=stands)
            if not stands:
                self.standing[id] = 0
                return
        else:
            return
        self.standing[id] = self.policy.adapter.info()["generation"]

    def agree(self) -> None:
        assert self.worst < 5e-5  # of a probability, after all that learning in float32
        assert self.policy.instant.confidence == pytest.approx(self.rule.instant.confidence, rel=1e-4)
        rates = dict(zip(self.policy.arms, self.policy.state()["arm_calibration"], strict=True))
        for name in self.rule.open:
            np.testing.assert_allclose(rates[name], self.rule.records[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("explore", "costs"), [("greedy", False), ("greedy", True), ("softmax", False)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_policy_is_the_documented_rule(explore: str, costs: bool, full: bool, seed: int, isa: str) -> None:
    """400 requests, rewarded at once, late, out of order, twice, and differently the second time."""
    both = Both(np.random.default_rng(seed), full=full, isa=isa, costs=costs, explore=explore)
    rng = both.rng
    for _ in range(400):
        both.route()
        for _ in range(rng.integers(0, 3)):
            late = rng.random() < 0.5
            id, shown = both.shown[int(rng.integers(len(both.shown))) if late else -1]
            both.reward(id, shown, float(np.float32(rng.choice([0.0, 1.0, rng.random()]))))
    both.agree()
    assert both.policy.revised > 30
    assert both.policy.adapter.info()["truncations"] > 5


@pytest.mark.parametrize("full", [False, True])
def test_arms_beyond_the_first_block_are_added_while_it_learns(full: bool, isa: str) -> None:
    """Forty arms come one by one to a learner that knows something already: each is scored as if it had always been there."""
    both = Both(np.random.default_rng(8), full=full, isa=isa)
    for t in range(400):
        both.route()
        both.reward(*both.shown[-1], float(both.rng.random() < 0.4))
        if t % 10 == 9:
            name, vector = f"late{t}", unit(normal(both.rng, DIM)).astype(np.float32)
            assert both.policy.add_arm(name, vector) == len(both.rule.vectors)
            both.rule.add_arm(name, vector)
    both.agree()


@pytest.mark.parametrize("full", [False, True])
def test_arms_come_and_go_while_it_learns(full: bool, isa: str) -> None:
    """A decision is learned from over the arms that were open when it was made; a reward for a closed arm changes nothing."""
    both = Both(np.random.default_rng(7), full=full, isa=isa)
    rng = both.rng
    for t in range(400):
        both.route()
        id, shown = both.shown[int(rng.integers(max(0, len(both.shown) - 20), len(both.shown)))]
        both.reward(id, shown, float(rng.random() < 0.4))
        if t % 20 == 10 and len(both.policy.arms) > 2:
            name = both.policy.arms[int(rng.integers(len(both.policy.arms)))]
            both.policy.remove_arm(name)
            both.rule.remove_arm(name)
            assert name not in both.policy.arms
        if t % 20 == 15 or t == 200:
            name, vector, rows = f"late{t}", unit(normal(rng, DIM)).astype(np.float32), both.policy.names_by_row()
            row = both.policy.add_arm(name, vector)
            assert row == (rows.index(None) if None in rows else len(rows))  # the first gap, or a new row
            both.rule.add_arm(name, vector, takes_row_of=both.in_row.get(row))
            both.in_row[row] = name
    both.agree()
    assert both.policy.unknown > 5


def test_the_tables_choose_alike() -> None:
    """Same seed on every instruction set: the same arms, and probabilities equal to float32 rounding of what was learned."""
    runs = []
    for isa in isas():
        rng = np.random.default_rng(3)
        policy = make_policy(some_arms(rng), precondition="full", isa=isa, guard=True, explore="softmax", seed=5)
        arms = []
        for _ in range(300):
            d = policy.route(normal(rng, DIM))
            policy.learn(d.id, float(d.arm == "arm3"))
            arms.append(d.arm)
        runs.append((arms, probe(policy)[1]))
    for arms, scores in runs[1:]:
        assert arms == runs[0][0]
        np.testing.assert_allclose(scores, runs[0][1], atol=1e-3)


# ---- arms and candidates ----


def test_rows_and_names() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng))
    version = policy.version
    policy.remove_arm("arm1")
    policy.remove_arm("arm3")
    assert policy.arms == ("arm0", "arm2", "arm4")
    assert policy.names_by_row() == ("arm0", None, "arm2", None, "arm4")
    assert policy.version == version + 2
    d = policy.route(normal(rng, DIM))
    assert d.scores.shape == (3,)
    assert d.candidates == policy.arms
    assert d.scores.sum() == pytest.approx(1, abs=1e-5)
    assert policy.vectors().shape == (3, DIM)
    new = normal(rng, DIM)
    assert policy.add_arm(("tuple", 1), new, 0.25) == 1
    np.testing.assert_array_equal(policy.vectors()[1], new)
    np.testing.assert_array_equal(policy.costs(), np.float32([0, 0.25, 0, 0]))
    assert policy.row(("tuple", 1)) == 1


def test_candidates_are_scored_in_their_own_order() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng))
    train(policy, rng, 50)
    x = normal(rng, DIM)
    whole = dict(zip(policy.arms, policy.route(x).scores, strict=True))
    d = policy.route(x, ["arm4", "arm0", "arm2"])
    part = np.array([whole["arm4"], whole["arm0"], whole["arm2"]])
    np.testing.assert_allclose(d.scores, part / part.sum(), rtol=1e-4)
    assert policy.route(x, ["arm3"]).scores == pytest.approx([1.0])
    np.testing.assert_array_equal(policy.predict(x[None], candidates=("arm1",)), [1])


@pytest.mark.parametrize(
    ("candidates", "error"),
    [
        ([], SonaValueError),
        (["arm0", "arm0"], SonaValueError),
        (["arm0", "arm9"], SonaValueError),
        ("arm0", SonaTypeError),
        (b"arm0", SonaTypeError),
        (3, TypeError),
        ([["arm0"]], TypeError),
        ([None], SonaValueError),
    ],
)
def test_candidates_are_checked(candidates: Any, error: type[Exception]) -> None:
    policy = make_policy(some_arms(np.random.default_rng(0)))
    with pytest.raises(error):
        policy.route(np.ones(DIM), candidates)
    assert policy.requests == 0


def test_arms_are_checked() -> None:
    policy = make_policy(some_arms(np.random.default_rng(0)))
    before = policy.arms, policy.version
    for name, vector, cost in [
        ("arm0", np.ones(DIM), 0.0),
        ("new", np.ones(DIM + 1), 0.0),
        ("new", np.full(DIM, np.nan), 0.0),
        ("new", np.full(DIM, 1e25), 0.0),
        ("new", np.ones(DIM), np.nan),
        ("new", np.ones(DIM), np.inf),
    ]:
        with pytest.raises(SonaValueError):
            policy.add_arm(name, vector, cost)
    with pytest.raises(SonaValueError, match="expected one of 'arm0', 'arm1'"):
        policy.remove_arm("arm9")
    with pytest.raises(SonaValueError, match="got \\['arm0'\\]"):
        policy.row(["arm0"])
    assert (policy.arms, policy.version) == before


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"tau": -1.0},
        {"tau": np.nan},
        {"tau": np.inf},
        {"explore": "epsilon"},
        {"thompson_scale": -1.0},
        {"thompson_scale": np.nan},
        {"off_policy_step": 0.0},
        {"off_policy_step": 1.5},
        {"anchor_every": -1},
        {"pending": 0},
        {"pending": -1},
        {"log_bytes": -1},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError):
        Policy(Adapter(DIM), Instant(DIM), **options)


def test_parts_must_fit() -> None:
    with pytest.raises(SonaValueError, match="instant: expected dim 17, got 18"):
        Policy(Adapter(DIM), Instant(DIM + 1))
    with pytest.raises(TypeError):
        Policy(None, Instant(DIM))
    with pytest.raises(TypeError):
        Policy(Adapter(DIM), Instant(DIM), epsilon=0.1)
    with pytest.raises(SonaValueError, match="route over 0 arms"):
        Policy(Adapter(DIM), Instant(DIM)).route(np.ones(DIM))
    with pytest.raises(SonaValueError, match="predict over 0 arms"):
        Policy(Adapter(DIM), Instant(DIM)).predict(np.ones((1, DIM)))


# ---- feedback ----


def test_only_remembered_decisions_can_be_rewarded() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng), pending=4)
    ids = [policy.route(normal(rng, DIM)).id for _ in range(6)]
    assert [policy.knows(id) for id in ids] == [False, False, True, True, True, True]
    assert [policy.learn(id, 1.0) for id in ids] == [False, False, True, True, True, True]
    assert policy.learn(0, 1.0) is False
    assert policy.learn(2**64 - 1, 1.0) is False
    assert (policy.learned, policy.unknown) == (4, 4)


@given(reward=st.one_of(st.floats(), st.just(1e38), st.just(-1e-9)))
def test_rewards_outside_the_unit_interval_are_refused(reward: float) -> None:
    policy = make_policy(some_arms(np.random.default_rng(0)))
    d = policy.route(np.ones(DIM))
    rows = len(policy.adapter.up)
    if 0 <= reward <= 1:
        assert policy.learn(d.id, reward)
    else:
        with pytest.raises(SonaValueError, match="reward: expected a number in \\[0, 1\\]"):
            policy.learn(d.id, reward)
        assert len(policy.adapter.up) == rows
        assert policy.learned == 0
        assert policy.rejected == 1


def test_a_repeated_reward_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng))
    train(policy, rng, 20)
    d = policy.route(normal(rng, DIM))
    assert policy.learn(d.id, 0.25)
    rows = policy.adapter.up
    for _ in range(5):
        assert policy.learn(d.id, 0.25)
    np.testing.assert_array_equal(policy.adapter.up, rows)
    assert (policy.learned, policy.revised) == (21, 0)


def test_a_revised_reward_leaves_what_the_right_one_would_have_left() -> None:
    finals = []
    for first in (0.0, 1.0):
        rng = np.random.default_rng(4)
        policy = make_policy(some_arms(rng))
        for _ in range(10):  # all goes well: the success rate, which the new step sees and the old one did not, stays 1
            policy.learn(policy.route(normal(rng, DIM)).id, 1.0)
        d = policy.route(normal(rng, DIM))
        policy.learn(d.id, first)
        if first == 0:
            policy.learn(d.id, 0.5)
            policy.learn(d.id, 1.0)
        finals.append((probe(policy)[1], policy.instant.confidence))
    np.testing.assert_allclose(finals[0][0], finals[1][0], atol=1e-4)
    assert finals[0][1] == pytest.approx(finals[1][1], rel=1e-6)


def test_a_recalled_decision_is_learned_from_like_a_remembered_one() -> None:
    finals = []
    for recalled in (False, True):
        rng = np.random.default_rng(4)
        policy = make_policy(some_arms(rng), precondition="full", log_bytes=1 << 16)
        train(policy, rng, 40)
        x = normal(rng, DIM)
        d = policy.route(x, ["arm4", "arm1"])
        id = d.id
        if recalled:
            kept = policy.drain()[-1]
            id = 1 << 50
            assert kept[0] == d.id
            candidates = np.frombuffer(kept[5], np.int32).tolist()
            assert candidates == [4, 1]
            policy.recall(
                id, np.frombuffer(kept[2], np.float32), kept[3], kept[6], candidates=candidates, chance=kept[7], own=kept[8], agreed=kept[9]
            )
        assert policy.learn(id, 1.0)
        finals.append(probe(policy)[1])
    np.testing.assert_allclose(finals[0], finals[1], atol=1e-6)


def test_a_recalled_reward_is_not_learned_twice() -> None:
    rng = np.random.default_rng(4)
    policy = make_policy(some_arms(rng))
    train(policy, rng, 40)
    x = normal(rng, DIM)
    policy.recall(7 << 40, x, 2, 1.0, reward=0.5)
    rows = policy.adapter.up
    assert policy.learn(7 << 40, 0.5)
    np.testing.assert_array_equal(policy.adapter.up, rows)
    before = policy.route(x).scores[2]
    assert policy.learn(7 << 40, 1.0)
    assert policy.route(x).scores[2] > before
    assert policy.revised == 1
    with pytest.raises(SonaValueError, match="expected a row that holds an arm"):
        policy.recall(8 << 40, x, 99, 1.0)
    with pytest.raises(SonaValueError):
        policy.recall(8 << 40, np.full(DIM, np.nan), 2, 1.0)


# ---- what reaches a store ----


def test_drain_hands_out_each_decision_once() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng), log_bytes=1 << 20, first_id=(3 << 40) + 1)
    x = normal(rng, 6, DIM)
    decisions = [policy.route(row, ["arm3", "arm1"] if i % 2 else None) for i, row in enumerate(x)]
    drained = policy.drain()
    assert policy.drain() == []
    assert [row[0] for row in drained] == [d.id for d in decisions] == list(range((3 << 40) + 1, (3 << 40) + 7))
    for i, (row, d) in enumerate(zip(drained, decisions, strict=True)):
        np.testing.assert_allclose(np.frombuffer(row[2], np.float32), unit(x[i]), atol=1e-6)
        assert (row[3], row[4]) == (d.index, policy.version)
        assert row[5] == (np.int32([3, 1]).tobytes() if i % 2 else None)
        assert row[6:] == (1.0, (1.0, 1.0, 0.0), True, True) or row[7][0] == 1.0
    assert [row[1] for row in drained] == sorted(row[1] for row in drained)


def test_a_full_log_is_counted_and_serves_on() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng), log_bytes=4096)
    ids = [policy.route(normal(rng, DIM)).id for _ in range(100)]
    kept = policy.drain()
    assert 0 < len(kept) < 100
    assert policy.unrecorded == 100 - len(kept)
    assert all(policy.learn(id, 1.0) for id in ids)


# ---- propensities ----


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("explore", ["greedy", "softmax", "thompson"])
@pytest.mark.parametrize("candidates", [None, ["arm4", "arm2", "arm0"]])
def test_propensities_are_frequencies(explore: str, guard: bool, candidates: list[str] | None) -> None:
    rng = np.random.default_rng(1)
    policy = make_policy(some_arms(rng), precondition="full", explore=explore, guard=guard, seed=8, anchor_every=40)
    train(policy, rng, 150)
    assert not guard or policy.guard_weights["anchor"] > 0
    draws, counts, propensity = 6000, Counter[str](), {}
    for x in normal(rng, 2, DIM):
        counts.clear()
        propensity.clear()
        for _ in range(draws):
            d = policy.route(x, candidates)
            counts[d.arm] += 1
            assert propensity.setdefault(d.arm, d.propensity) == d.propensity
        for arm, p in propensity.items():
            assert 0 < p <= 1 + 1e-6
            assert counts[arm] / draws == pytest.approx(p, abs=5 * math.sqrt(p * (1 - min(p, 1)) / draws) + 2e-3)
        unseen = 1 - sum(propensity.values())
        assert -1e-3 < unseen < 10 / draws + 5e-3


@pytest.mark.parametrize("guard", [False, True])
def test_softmax_draws_by_probability(guard: bool) -> None:
    rng = np.random.default_rng(1)
    policy = make_policy(some_arms(rng), explore="softmax", guard=guard)
    train(policy, rng, 100)
    x = normal(rng, DIM)
    d = policy.route(x)
    weights = policy.guard_weights if guard else {"current": 1.0, "frozen": 0.0}
    frozen = policy.predict(x[None], "frozen")[0] == d.index
    assert d.propensity == pytest.approx(weights["current"] * d.scores[d.index] + weights["frozen"] * frozen, rel=1e-5)


def test_thompson_explores_where_little_is_known() -> None:
    rng = np.random.default_rng(1)
    policy = make_policy(some_arms(rng), precondition="full", explore="thompson", seed=1)
    x = normal(rng, DIM)
    fresh = Counter(policy.route(x).arm for _ in range(300))
    for _ in range(300):
        d = policy.route(x)
        policy.learn(d.id, float(d.arm == "arm2"))
    settled = Counter(policy.route(x).arm for _ in range(300))
    assert len(fresh) > 1
    assert settled["arm2"] > 290


def test_costs_take_the_exact_chance_from_thompson_and_say_so() -> None:
    rng = np.random.default_rng(1)
    policy = make_policy(some_arms(rng), explore="thompson")
    policy.add_arm("dear", normal(rng, DIM), 0.5)
    d = policy.route(normal(rng, DIM))
    assert math.isnan(d.propensity)
    assert policy.learn(d.id, 1.0)


def test_costs_are_weighed_against_probability() -> None:
    arms = np.eye(3, dtype=np.float32)
    policy = Policy(Adapter(3), Instant(3, precondition="identity"), guard=False, tau=0.5)
    for name, vector, cost in zip("abc", arms, (0.0, 0.2, 0.9), strict=True):
        policy.add_arm(name, vector, cost)
    assert policy.route(unit([1.0, 1.0, 1.0]).astype(np.float32)).arm == "a"  # equal chances: the free one
    assert policy.route(np.float32([0, 1, 0])).arm == "b"  # .79 - .2 against .11
    assert policy.route(np.float32([0, 0, 1])).arm == "a"  # .79 - .9 is less than nothing
    assert policy.route(np.float32([0, 0, 1]), ["c"]).arm == "c"


# ---- the guard ----


@given(
    odds=st.floats(0.1, 20),
    floor=st.floats(0, 0.1),
    rate=st.floats(0, 1),
    share=st.floats(0, 0.1),
    outcomes=st.lists(
        st.tuples(
            st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
            st.floats(0.01, 1),
            st.floats(0, 1),
            st.none() | st.floats(0, 1),
            st.booleans(),
        ),
        max_size=40,
    ),
)
def test_the_guard_is_the_documented_rule(
    odds: float, floor: float, rate: float, share: float, outcomes: list[tuple[list[float], float, float, float | None, bool]]
) -> None:
    guard, rule = Guard(odds, floor, rate, share), GuardRule(odds, floor=floor, rate=rate, share=share)
    for chance, propensity, reward, expected, admit in outcomes:
        np.testing.assert_allclose(guard.weights, rule.weights, rtol=1e-9, atol=1e-12)
        assert guard.weights.sum() == pytest.approx(1)
        assert (guard.weights[: len(rule.log_weight)] >= floor * (1 - 1e-12)).all()
        if admit:
            guard.admit()
            rule.admit()
        guard.update(chance, propensity, reward, *() if expected is None else (expected,))
        rule.update(chance, propensity, reward, expected)
    np.testing.assert_allclose(guard.weights, rule.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_guard_finds_the_best_model(best: int) -> None:
    """Three models that disagree on every request; one is right twice as often. No share of the draws is ever zero."""
    rng = np.random.default_rng(best)
    guard = Guard(seed=100 + best)
    guard.admit()
    served = []
    for _ in range(3000):
        action, propensity, chance = guard.choose((0, 1, 2))
        assert chance[action] == chance.sum() == 1
        served.append(action)
        guard.update(chance, propensity, float(rng.random() < (0.6 if action == best else 0.3)))
    assert guard.weights[best] > 0.8
    assert guard.weights.min() > 0
    assert np.mean(np.array(served[-1000:]) == best) > 0.85


def test_the_guard_draws_by_weight_only_where_models_disagree() -> None:
    guard = Guard(seed=3)
    guard.admit()
    weights = guard.weights
    assert guard.choose(("a", "a", "a")) == ("a", 1.0, pytest.approx([1, 1, 1]))
    draws = Counter[str]()
    for _ in range(5000):
        action, propensity, chance = guard.choose(("a", "b", "a"))
        draws[action] += 1
        expected = (weights[0] + weights[2], [1, 0, 1]) if action == "a" else (weights[1], [0, 1, 0])
        assert propensity == pytest.approx(expected[0])
        np.testing.assert_array_equal(chance, expected[1])
    assert draws["a"] / 5000 == pytest.approx(weights[0] + weights[2], abs=0.03)


def test_the_guard_refuses_what_makes_no_sense() -> None:
    for options in ({"odds": 0.0}, {"odds": -1.0}, {"floor": 0.4}, {"floor": -0.1}, {"rate": -1.0}, {"share": 2.0}, {"odds": math.nan}):
        with pytest.raises(SonaValueError, match="expected odds > 0"):
            Guard(**options)
    guard = Guard()
    with pytest.raises(SonaValueError, match="proposals: expected 2, got 3"):
        guard.choose((1, 2, 3))
    before = guard.weights
    for chance, propensity, reward in [([1, 0, 0], 0.0, 1.0), ([1, 0, 0], 1.5, 1.0), ([1, 0, 0], 0.5, math.nan), ([1, 0], 0.5, 1.0)]:
        with pytest.raises(SonaValueError):
            guard.update(chance, propensity, reward)
    with pytest.raises(SonaValueError):
        guard.update([math.nan, 0, 0], 0.5, 1.0)
    np.testing.assert_array_equal(guard.weights, before)


def test_the_policy_admits_an_older_copy_only_when_there_is_one() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng), guard=True, anchor_every=50)
    for t in range(120):
        assert (policy.guard_weights["anchor"] > 0) == (t >= 100), t
        train(policy, rng, 1)
    x = normal(rng, 40, DIM)
    assert (policy.predict(x, "anchor") != policy.predict(x, "frozen")).any()
    with pytest.raises(SonaValueError, match="model: expected one of current, frozen, anchor"):
        policy.predict(x, "best")


def test_the_guard_follows_the_evidence() -> None:
    """Rewards that say the learner's changes are wrong move the weight to the frozen model; fair ones bring it back."""
    rng = np.random.default_rng(2)
    policy = make_policy(some_arms(rng), guard=True, anchor_every=10_000, seed=1)

    def weight_after(rounds: int, pays: str) -> float:
        for _ in range(rounds):
            x = normal(rng, DIM)
            right = policy.predict(x[None], "frozen")[0] if pays == "frozen" else 2
            d = policy.route(x)
            policy.learn(d.id, float(d.index == right))
        return policy.guard_weights["current"]

    assert weight_after(400, "arm2") > 0.9
    assert weight_after(200, "frozen") < 0.6
    assert weight_after(1500, "arm2") > 0.9


# ---- explain ----


@given(dim=st.integers(2, 30), pairs=st.integers(0, 12), seed=st.integers(0, 2**32))
def test_explain_sums_to_what_route_sees(dim: int, pairs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy = make_policy(some_arms(rng, 4, dim), rank=2)
    for _ in range(pairs):
        policy.learn(policy.route(normal(rng, dim)).id, float(rng.random()))
    x = normal(rng, dim)
    parts = policy.explain(x)
    score = np.array([p["score"] for p in parts.values()])
    for p in parts.values():
        assert p["score"] == pytest.approx(p["frozen"] + p["base"] + p["micro"] + p["bias"], abs=1e-5)
    pi = np.exp((score - score.max()) / 0.1)
    np.testing.assert_allclose(policy.route(x).scores, pi / pi.sum(), atol=1e-3)
    want = policy.trust * unit(x) @ policy.vectors().T
    np.testing.assert_allclose([p["frozen"] for p in parts.values()], want, atol=1e-5)
    if pairs == 0:
        assert all(p["base"] == p["micro"] == p["bias"] == 0 for p in parts.values())


def test_explain_a_decision() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(some_arms(rng), pending=2)
    train(policy, rng, 30)
    x = normal(rng, DIM)
    d = policy.route(x)
    assert policy.explain_decision(d.id) == policy.explain(x)
    policy.route(x)
    policy.route(x)
    with pytest.raises(SonaValueError, match="expected one that is still remembered"):
        policy.explain_decision(d.id)


# ---- state ----


@pytest.mark.parametrize("explore", ["greedy", "softmax", "thompson"])
@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_a_restored_policy_goes_on_bit_for_bit(explore: str, precondition: str) -> None:
    def make() -> Policy:
        return make_policy(
            some_arms(np.random.default_rng(0)), precondition=precondition, guard=True, explore=explore, anchor_every=30, seed=6
        )

    def go_on(policy: Policy) -> list[Any]:
        rng, seen = np.random.default_rng(77), []
        for _ in range(150):
            d = policy.route(normal(rng, DIM))
            policy.learn(d.id, float(d.arm == "arm1"))
            seen.append((d.arm, d.propensity, d.scores.tobytes()))
        return [*seen, policy.guard_weights, policy.surprise, policy.instant.confidence, policy.adapter.up.tobytes()]

    policy, twin = make(), make()
    train(policy, np.random.default_rng(1), 200)
    policy.adapter.truncate()
    twin.restore(policy.state())
    twin.instant.restore(policy.instant.state())
    twin.adapter.assign(policy.adapter.down, policy.adapter.up, policy.adapter.offset, policy.adapter.info()["base"])
    assert twin.guard_weights["anchor"] > 0
    assert go_on(policy) == go_on(twin)


def test_a_state_from_before_trust_is_restored_with_full_trust() -> None:
    policy = make_policy(some_arms(np.random.default_rng(0)))
    train(policy, np.random.default_rng(1), 60)
    state = policy.state()
    del state["trust"]
    twin = make_policy(some_arms(np.random.default_rng(0)))
    twin.restore(state)
    assert policy.trust < twin.trust == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guard", np.zeros(7)),
        ("guard", np.array([0, 0, 0, 0, 0, 0, 4.0])),
        ("guard", np.array([np.nan, 0, 0, 0, 0, 0, 2.0])),
        ("guard", np.zeros(3)),
        ("trust", np.array([1.5, 0.1, 0, 64])),
        ("trust", np.array([np.nan, 0.1, 0, 64])),
        ("trust", np.array([1, np.inf, 0, 64])),
        ("trust", np.ones(3)),
        ("random", np.zeros(4, np.uint64)),
        ("random", np.ones(3, np.uint64)),
        ("requests", np.zeros(1, np.uint64)),
        ("arm_calibration", np.zeros((2, 2))),
        ("arm_calibration", np.full((ARMS, 3), np.nan)),
        ("arm_calibration", np.full((ARMS, 3), -1.0)),
        ("copy0.down", np.zeros((3, DIM + 1), np.float32)),
        ("copy0.up", np.full((1, DIM), np.nan, np.float32)),
    ],
)
def test_restore_refuses_another_state(name: str, value: Array) -> None:
    policy = make_policy(some_arms(np.random.default_rng(0)), guard=True, anchor_every=20)
    train(policy, np.random.default_rng(1), 60)
    kept = {key: array.tobytes() for key, array in policy.state().items()}
    with pytest.raises(SonaValueError):
        policy.restore(policy.state() | {name: value})
    assert {key: array.tobytes() for key, array in policy.state().items()} == kept


def test_calibration_follows_names_when_arms_change() -> None:
    rng = np.random.default_rng(0)
    arms = some_arms(rng)
    policy = make_policy(arms)
    train(policy, rng, 100)
    kept = dict(zip(policy.arms, policy.state()["arm_calibration"].tolist(), strict=True))
    twin = make_policy(dict(reversed(arms.items())))
    twin.remove_arm("arm0")
    twin.restore(policy.state())
    restored = dict(zip(twin.arms, twin.state()["arm_calibration"].tolist(), strict=True))
    assert restored == {name: kept[name] for name in twin.arms}


# ---- the kill switch, and what a request leaves behind ----


def test_a_disabled_policy_is_the_frozen_model() -> None:
    rng = np.random.default_rng(0)
    for explore in ("greedy", "softmax", "thompson"):
        policy = make_policy(some_arms(rng), guard=True, explore=explore)
        train(policy, rng, 200)
        x = normal(rng, 100, DIM)
        frozen = policy.predict(x, "frozen")
        assert (policy.predict(x) != frozen).any()
        policy.enabled = False
        decisions = policy.route_batch(x)
        np.testing.assert_array_equal([d.index for d in decisions], frozen)
        assert {d.propensity for d in decisions} == {1.0}
        policy.enabled = True
        assert policy.enabled
        assert [d.index for d in policy.route_batch(x)] != frozen.tolist()


def test_predicting_and_explaining_leave_no_trace() -> None:
    def run(looks: bool) -> list[Any]:
        rng = np.random.default_rng(0)
        policy = make_policy(some_arms(rng), guard=True, explore="thompson", precondition="full", anchor_every=50)
        seen = []
        for _ in range(200):
            x = normal(rng, DIM)
            if looks:
                for model in ("current", "frozen", "anchor"):
                    policy.predict(x[None], model)
                policy.explain(x)
            d = policy.route(x)
            policy.learn(d.id, float(d.arm == "arm2"))
            seen.append((d.id, d.arm, d.propensity, d.scores.tobytes()))
        return seen

    assert run(looks=True) == run(looks=False)
