"""Promises of the Router: it learns from rewards however they come, is never much worse than the frozen model, and says what it did."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Clusters, PolicyRule, unit

import sona
from sona import LoggedDecision, Router
from sona.demo.world import WorldName, make_world
from sona.errors import SonaClosedError, SonaTypeError, SonaValueError

Array = np.ndarray[Any, Any]

DIM = 20


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def serve(router: Router, world: Clusters, rounds: int) -> float:
    """Share of right arms; every reward comes at once."""
    right = 0
    for _ in range(rounds):
        x, best = world.draw()
        d = router.route(x)
        right += d.index == best
        router.feedback(d.id, float(d.index == best))
    return right / rounds


def learned(router: Router) -> list[bytes]:
    """All bits that an outcome may change."""
    return [name.encode() + array.tobytes() for name, array in router.engine.state().items()]


def looks(router: Router, seed: int = 9) -> Array:
    """What the router makes of fifty requests; leaves no trace."""
    x = normal(np.random.default_rng(seed), 50, router.engine.config.hidden_dim)
    return router.apply_batch(x)


# ---- arms ----


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        ({"small": [1.0, 0.0], "large": [0.0, 2.0]}, ("small", "large")),
        (np.array([[1.0, 0.0], [0.0, 2.0]]), (0, 1)),
        (np.array([[1, 0], [0, 2]], dtype=">i4"), (0, 1)),
        (np.asfortranarray(np.array([[1, 0], [0, 2]], dtype=np.float16)), (0, 1)),
        ({("a", 1): np.array([1.0, 0.0]), 2.5: np.array([0.0, 2.0])}, (("a", 1), 2.5)),
    ],
)
def test_arms_come_as_names_with_vectors_or_as_rows(arms: Any, names: tuple[Any, ...]) -> None:
    router = Router(arms)
    assert router.arms == names
    assert router.route([1.0, 0.1]).arm == names[0]
    d = router.route([0.1, 1.0])
    assert (d.arm, d.index, d.candidates) == (names[1], 1, names)
    assert d.propensity == 1
    np.testing.assert_allclose(d.scores.sum(), 1, atol=1e-6)
    assert d.scores.dtype == np.float32


def test_names_alone_get_orthonormal_seeded_vectors() -> None:
    names = [f"arm{k}" for k in range(7)]
    vectors = Router(names, dim=DIM, seed=4)._policy.vectors()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(7), atol=1e-6)
    np.testing.assert_array_equal(vectors, Router(names, dim=DIM, seed=4)._policy.vectors())
    assert np.abs(vectors - Router(names, dim=DIM, seed=5)._policy.vectors()).max() > 0.1
    many = Router(list(range(30)), dim=DIM)._policy.vectors()  # more than dim: orthonormal in groups
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)
    assert np.abs(many @ many.T - np.eye(30)).max() < 0.99


@pytest.mark.parametrize(
    ("arms", "options", "error", "message"),
    [
        ({}, {}, SonaValueError, "at least one arm"),
        ([], {"dim": 3}, SonaValueError, "at least one"),
        (["a", "b", "a"], {"dim": 3}, SonaValueError, "distinct names"),
        (["a", "b"], {}, SonaValueError, "dim: expected"),
        (["a", "b"], {"dim": 0}, SonaValueError, "dim"),
        (["a", "b"], {"dim": -2}, SonaValueError, "dim"),
        ("ab", {"dim": 3}, SonaTypeError, "sequence of names"),
        (3, {"dim": 3}, SonaTypeError, "sequence of names"),
        ([[1.0, 0.0], [0.0, 1.0]], {"dim": 2}, SonaTypeError, "names"),
        (np.zeros((0, 3)), {}, SonaValueError, "at least one"),
        (np.zeros((3, 0)), {}, SonaValueError, "at least one"),
        (np.zeros(3), {}, SonaTypeError, "expected a mapping"),
        (np.array(["a", "b"]), {"dim": 3}, SonaTypeError, "expected a mapping"),
        (np.eye(3), {"dim": 4}, SonaValueError, r"expected shape \(n, 4\)"),
        ({"a": [1.0, 0.0], "b": [0.0, 0.0]}, {}, SonaValueError, "arm 'b': expected a non-zero vector"),
        ({"a": [1.0, 0.0], "b": [1.0, 0.0]}, {}, SonaValueError, "same one for 'a' and 'b'"),
        ({"a": [1.0, 0.0], "b": [4.0, 0.0]}, {}, SonaValueError, "same one for 'a' and 'b'"),
        ({"a": [1.0, 0.0], "b": [1.0]}, {}, SonaValueError, r"arm 'b': expected shape \(2,\)"),
        ({"a": [1.0, np.nan]}, {}, SonaValueError, "arm 'a': expected finite"),
        ({"a": [1.0, 1e300]}, {}, SonaValueError, "arm 'a': expected finite"),
        ({"a": ["x", "y"]}, {}, SonaTypeError, "arm 'a': expected an array of real numbers"),
        ({"a": 1.0}, {}, SonaValueError, "arm 'a': expected shape"),
        ({"a": [1.0, 0.0], None: [0.0, 1.0]}, {}, SonaValueError, "arm None: expected a new name, got None"),
        ({1: [1.0, 0.0], "1": [0.0, 1.0]}, {}, SonaValueError, "names that differ as text, got 1 and '1'"),
    ],
)
def test_arms_are_checked(arms: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Router(arms, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"tau": -1.0},
        {"tau": math.inf},
        {"p0": 0.0},
        {"p0": -1.0},
        {"p0": math.inf},
        {"p0": math.nan},
        {"explore": "random"},
        {"precondition": "half"},
        {"reward_range": (1.0, 0.0)},
        {"reward_range": (0.0, 0.0)},
        {"reward_range": (0.0, math.inf)},
        {"reward_range": (math.nan, 1.0)},
        {"reward_range": (-1.7e308, 1.7e308)},
        {"base_rank": 0},
        {"base_rank": -1},
        {"base_rank": 1.5},
        {"pending": 0},
        {"cost": {"c": 0.1}},
        {"cost": {"a": math.nan}},
        {"cost": {"a": math.inf}},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError):
        Router({"a": [1.0, 0.0], "b": [0.0, 1.0]}, **options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError):
        Router({"a": [1.0, 0.0]}, epsilon=0.1)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1e-20, 1e20])
def test_norms_of_inputs_and_arms_do_not_matter(scale: float) -> None:
    """Directions count: the same requests and arms at another norm get the same answers and teach the same."""
    answers = []
    for factor in (1.0, scale):
        rng = np.random.default_rng(2)
        router = Router(normal(rng, 4, DIM) * np.float32(factor))
        arms = []
        for _ in range(200):
            d = router.route(normal(rng, DIM) * np.float32(factor))
            router.feedback(d.id, float(d.index == 1))
            arms.append(d.index)
        answers.append((arms, looks(router)))
    assert answers[0][0] == answers[1][0]
    np.testing.assert_allclose(answers[0][1], answers[1][1], atol=2e-4)


@pytest.mark.parametrize("exponent", [-44, -40, -30, -20, 18, 20, 38])
def test_any_float32_norm_is_normalised(exponent: int) -> None:
    router = Router(np.eye(3, 4, dtype=np.float32))
    x = np.float32([0.6, 0.8, 0.0, 0.0]).astype(np.float64)
    want = router.route(x).scores
    tiny = exponent == -44  # subnormal: two digits are left
    np.testing.assert_allclose(router.route((x * 10.0**exponent).astype(np.float32)).scores, want, atol=0.1 if tiny else 1e-5)


def test_arms_of_the_largest_norm() -> None:
    big = np.full((2, 40), 3e38, np.float32)  # the norm itself is beyond float32
    big[1, ::2] *= -1
    router = Router(big)
    np.testing.assert_allclose(np.linalg.norm(router._policy.vectors(), axis=1), 1, atol=1e-6)


def test_relative_norms_count_when_asked_to() -> None:
    router = Router({"long": [3.0, 0.0], "short": [0.0, 1.0]}, normalize=False)
    assert router.route([1.0, 1.0]).arm == "long"
    np.testing.assert_allclose(np.linalg.norm(router._policy.vectors(), axis=1), [1.5, 0.5])


def test_the_zero_vector_is_routed_and_learned_from_without_harm() -> None:
    rng = np.random.default_rng(0)
    router = Router(normal(rng, 4, DIM))
    d = router.route(np.zeros(DIM))
    np.testing.assert_allclose(d.scores, 0.25, atol=1e-6)
    for _ in range(100):
        d = router.route(np.zeros(DIM))
        router.feedback(d.id, float(d.index == 3))
    assert router.route(np.zeros(DIM)).index == 3  # by the learned constant alone
    assert all(np.isfinite(array).all() for array in router.engine.state().values())
    plain = Router(normal(rng, 4, DIM), bias=False, guard=False)
    for _ in range(50):
        d = plain.route(np.zeros(DIM))
        plain.feedback(d.id, float(d.index == 3))
    np.testing.assert_allclose(plain.route(np.zeros(DIM)).scores, 0.25, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 200])
def test_any_number_of_arms(count: int) -> None:
    rng = np.random.default_rng(1)
    router = Router(normal(rng, count, 32))
    world = Clusters(3, arms=count, dim=32, noise=0.2)
    for _ in range(3 * count + 20):
        x, best = world.draw()
        d = router.route(x)
        assert d.scores.shape == (count,)
        assert router.feedback(d.id, float(d.index == best))
    assert all(np.isfinite(array).all() for array in router.engine.state().values())
    if count == 1:
        assert router.route(x).scores == pytest.approx([1.0])


# ---- the rule ----


@pytest.mark.parametrize("precondition", ["identity", "full"])
@pytest.mark.parametrize("reward_range", [(0.0, 1.0), (-1.0, 1.0), (3.0, 11.0)])
def test_the_router_is_the_documented_rule(precondition: Any, reward_range: tuple[float, float]) -> None:
    """Decisions and scores over 300 rounds equal those of the equations, with rewards in any range and inputs of any norm."""
    rng = np.random.default_rng(11)
    arms = {f"arm{k}": normal(rng, DIM) * np.float32(10.0 ** rng.uniform(-3, 3)) for k in range(6)}
    router = Router(arms, guard=False, precondition=precondition, reward_range=reward_range)
    rule = PolicyRule(arms, full=precondition == "full")
    low, high = reward_range
    for t in range(300):
        x = normal(rng, DIM) * np.float32(10.0 ** rng.uniform(-3, 3))
        candidates = None if t % 3 else tuple(rng.permutation(list(arms))[:4])
        d = router.route(x, candidates)
        want = rule.probabilities(x, d.candidates)
        np.testing.assert_allclose(d.scores, want, atol=1e-4)
        assert want[d.candidates.index(d.arm)] > want.max() - 1e-4
        shown = rule.show(x, d.arm, d.candidates)
        shown.own = True
        reward = float(np.float32(rng.random()))
        assert router.feedback(d.id, low + (high - low) * reward)
        rule.learn(shown, reward)
    probe = normal(rng, 20, DIM)
    assert router.stats()["trust"] == pytest.approx(rule.trust.value, abs=1e-4)
    want = np.stack([rule.trust.value * row + rule.delta(row) for row in probe])
    np.testing.assert_allclose(router.apply_batch(probe), want, atol=1e-3)
    np.testing.assert_allclose(router.engine.apply_batch(probe) - probe, np.stack([rule.delta(row) for row in probe]), atol=1e-3)
    router.apply_batch(probe, out=probe)
    np.testing.assert_allclose(probe, want, atol=1e-3)


def test_costs_shift_the_choice() -> None:
    """A costly arm is chosen only where it is worth more than its price."""
    world = Clusters(0, noise=0.1)
    router = Router(world.arms, cost={2: 0.3}, guard=False)
    serve(router, world, 500)
    x = world.centres[2].astype(np.float32)
    assert router.route(x).index == 2
    dear = Router(world.arms, cost={2: 1.5}, guard=False)
    serve(dear, world, 500)
    assert dear.route(x).index != 2
    assert dear.route(x, [2]).index == 2
    assert router.explain(router.route(x))[2]["cost"] == pytest.approx(0.3)


def test_a_subset_of_candidates_is_a_choice_among_them() -> None:
    world = Clusters(1)
    router = Router({f"arm{k}": e for k, e in enumerate(world.arms)})
    serve(router, world, 300)
    x = world.draw()[0]
    first = router.route(x).arm
    d = router.route(x, [arm for arm in router.arms if arm != first])
    assert d.arm != first
    assert first not in d.candidates
    assert d.scores.shape == (5,)
    assert router.route(x, (arm for arm in [first])).arm == first
    assert router.feedback(d.id, 1.0)
    for wrong in (["nobody"], [], [first, first], first):
        with pytest.raises((SonaValueError, SonaTypeError)):
            router.route(x, wrong)


# ---- it learns ----


@pytest.mark.parametrize("precondition", ["identity", "full"])
@pytest.mark.parametrize("explore", ["greedy", "softmax", "thompson"])
def test_it_learns_clusters(precondition: Any, explore: Any) -> None:
    world = Clusters(5)
    router = Router(world.arms, precondition=precondition, explore=explore)
    serve(router, world, 1000)
    assert serve(router, world, 500) > (0.95 if explore == "greedy" else 0.85)


@pytest.mark.parametrize(
    ("name", "accuracy", "regret"), [("few", 0.95, 0.35), ("shift", 0.93, 0.25), ("perm", 0.75, 0.6), ("rand", 0.93, 0.25)]
)
def test_it_learns_handwritten_digits(name: WorldName, accuracy: float, regret: float) -> None:
    """Real data, four ways for the frozen model to be wrong; the last 500 of 3000 rounds and the regret against the frozen model."""
    world = make_world(name, 3)
    router = Router(world.arms)
    rows = world.rows(0, 3000)
    frozen = router.predict(world.x[rows], model="frozen") == world.y[rows]
    right = np.empty(3000)
    for t, row in enumerate(rows):
        d = router.route(world.x[row])
        right[t] = d.arm == world.y[row]
        router.feedback(d.id, right[t])
    assert right[-500:].mean() >= accuracy
    assert (1 - right).sum() <= regret * (1 - frozen).sum()


@pytest.mark.parametrize(("precondition", "least"), [("full", 0.945), ("identity", 0.92)])
def test_embeddings_that_point_much_the_same_way_are_learned(precondition: Any, least: float) -> None:
    """Digits with one common vector added to all of them, arms too: two of them have a cosine of .8 on average."""
    world = make_world("few", 3)
    common = 2 * unit(np.random.default_rng(0).normal(size=world.x.shape[1]))
    x = world.x + common
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert np.square(x.mean(axis=0)).sum() > 0.75
    router = Router(world.arms + common, precondition=precondition)
    right = []
    for row in world.rows(0, 2000):
        d = router.route(x[row])
        right.append(d.arm == world.y[row])
        router.feedback(d.id, float(right[-1]))
    assert np.mean(right[-500:]) > least


@pytest.mark.parametrize("wrong", ["half", "all"])
def test_a_frozen_model_that_is_certain_and_wrong_is_unlearned(wrong: str) -> None:
    """Six tight clusters: the frozen model gives .99 and more to an arm that never succeeds, for half of the requests or for all."""
    late = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        centres = np.stack([unit(row) for row in rng.normal(size=(6, 32))]).astype(np.float32)
        moved = rng.permutation(6)[: 6 if wrong == "all" else 3]
        arms = centres.copy()
        arms[moved] = centres[np.roll(moved, 1)]
        router = Router(arms, seed=seed)
        right = []
        for _ in range(1500):
            k = int(rng.integers(6))
            d = router.route(centres[k] + 0.03 * normal(rng, 32))
            right.append(float(d.index == k))
            router.feedback(d.id, right[-1])
        late.append(np.mean(right[-500:]))
        assert 0.05 <= router.stats()["trust"] < 1
    assert np.mean(late) > 0.97
    assert min(late) > 0.9


@pytest.mark.parametrize(("success", "least"), [((0.95, 0.85), 1.0), ((0.5, 0.2), 1.0), ((0.2, 0.05), 1.0)])
def test_rewards_that_are_not_clean_do_no_harm(success: tuple[float, float], least: float) -> None:
    """Right arms that fail and wrong ones that succeed: never much worse than the frozen model, whose regret is the unit."""
    regret, frozen = 0.0, 0.0
    for seed in range(6):
        world, rng = make_world("few", seed), np.random.default_rng(seed + 70)
        router = Router(world.arms, seed=seed)
        rows = world.rows(0, 3000)
        frozen += float((router.predict(world.x[rows], model="frozen") != world.y[rows]).sum())
        for row in rows:
            d = router.route(world.x[row])
            right = d.arm == world.y[row]
            regret += not right
            router.feedback(d.id, float(rng.random() < success[0 if right else 1]))
    assert regret <= 1.05 * least * frozen


@pytest.mark.parametrize("names_only", [False, True])
def test_one_arm_best_everywhere_is_learned_from_centred_inputs(names_only: bool) -> None:
    rng = np.random.default_rng(0)
    arms: Any = ["a", "b", "c", "d"] if names_only else {name: normal(rng, DIM) for name in "abcd"}
    accuracy = []
    for bias in (True, False):
        router = Router(arms, dim=DIM, bias=bias, guard=False)
        right = []
        for _ in range(600):
            d = router.route(normal(rng, DIM))
            right.append(d.arm == "c")
            router.feedback(d.id, float(right[-1]))
        accuracy.append(np.mean(right[-200:]))
    assert accuracy[0] > 0.9
    assert accuracy[0] > accuracy[1] + 0.1


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_only_good_or_only_bad_feedback_leads_to_no_collapse(reward: float) -> None:
    """Nothing to learn: weights stay bounded, and the learner still learns when there is something."""
    world = Clusters(4, noise=0.3)
    router = Router(world.arms)
    for _ in range(2000):
        router.feedback(router.route(world.draw()[0]).id, reward)
    assert np.isfinite(looks(router)).all()
    assert np.abs(looks(router)).max() < 100
    serve(router, world, 2500)
    assert serve(router, world, 300) > 0.8


# ---- never much worse than the frozen model ----


@pytest.mark.parametrize("success", [(1.0, 0.0), (0.5, 0.2)])
@pytest.mark.parametrize("name", ["few", "shift"])
def test_the_guard_keeps_what_a_right_frozen_model_earns(name: WorldName, success: tuple[float, float]) -> None:
    """The frozen model is right everywhere: without the guard the learner loses more than it may, with it less than 1.5 %."""

    def loss(guard: bool) -> float:
        world, rng = make_world(name, 7), np.random.default_rng(8)
        router = Router(world.arms, guard=guard, seed=2)
        right = router.predict(world.x, model="frozen")
        earned = 0.0
        for row in world.rows(0, 8000):
            d = router.route(world.x[row])
            expected = success[0 if d.index == right[row] else 1]
            earned += expected
            router.feedback(d.id, float(rng.random() < expected))
        return 1 - earned / (8000 * success[0])

    assert loss(guard=True) < 0.015
    assert loss(guard=False) > 0.015


def test_the_guard_costs_little_where_learning_helps() -> None:
    rewards = []
    for guard in (False, True):
        world = make_world("shift", 5)
        router = Router(world.arms, guard=guard)
        total = 0.0
        for row in world.rows(0, 3000):
            d = router.route(world.x[row])
            total += d.arm == world.y[row]
            router.feedback(d.id, float(d.arm == world.y[row]))
        rewards.append(total)
    assert rewards[1] > 0.96 * rewards[0]


# ---- feedback however it comes ----


@pytest.mark.parametrize("delay", [100, 500])
@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_delayed_feedback(delay: int, precondition: Any) -> None:
    world = Clusters(6)
    router = Router(world.arms, precondition=precondition)
    waiting: list[tuple[int, float]] = []
    right = []
    for _ in range(3000):
        x, best = world.draw()
        d = router.route(x)
        right.append(d.index == best)
        waiting.append((d.id, float(right[-1])))
        if len(waiting) > delay:
            assert router.feedback(*waiting.pop(0))
    assert np.mean(right[-500:]) > 0.9
    assert np.isfinite(looks(router)).all()


def test_feedback_out_of_order_and_repeated() -> None:
    world, rng = Clusters(6), np.random.default_rng(0)
    router = Router(world.arms)
    waiting: list[tuple[int, float]] = []
    right = []
    for _ in range(2500):
        x, best = world.draw()
        d = router.route(x)
        right.append(d.index == best)
        waiting.append((d.id, float(right[-1])))
        if len(waiting) > 50:
            id, reward = waiting.pop(int(rng.integers(50)))
            for _ in range(rng.integers(1, 4)):
                assert router.feedback(id, reward)
    assert np.mean(right[-500:]) > 0.95
    stats = router.stats()
    assert stats["learned"] == 2500 - len(waiting)
    assert stats["revised"] == 0


@pytest.mark.parametrize(("delay", "wrong_first"), [(0, 1.0), (20, 0.15), (200, 0.15)])
@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_the_last_of_several_rewards_counts(delay: int, wrong_first: float, precondition: Any) -> None:
    """Rewards that come the wrong way round are put right later, before and after the truncation that their step went into."""
    world, rng = Clusters(6), np.random.default_rng(3)
    router = Router(world.arms, precondition=precondition, guard=wrong_first < 1)  # the guard goes by first rewards
    waiting: list[tuple[int, float]] = []
    wrong = 0
    for _ in range(2000):
        x, best = world.draw()
        d = router.route(x)
        reward = float(d.index == best)
        turned = rng.random() < wrong_first
        wrong += turned
        assert router.feedback(d.id, 1 - reward if turned else reward)
        waiting.append((d.id, reward))
        if len(waiting) > delay:
            assert router.feedback(*waiting.pop(0))
    assert [router.feedback(*late) for late in waiting] == [True] * delay
    assert router.stats()["revised"] == wrong
    assert router.stats()["learned"] == 2000
    x, best = zip(*(world.draw() for _ in range(300)), strict=True)
    assert (router.predict(np.stack(x)) == np.array(best)).mean() > 0.95


def test_unknown_and_expired_decisions_are_a_soft_no() -> None:
    rng = np.random.default_rng(0)
    router = Router(normal(rng, 3, DIM), pending=8)
    ids = [router.route(normal(rng, DIM)).id for _ in range(20)]
    before = learned(router)
    strangers = [ids[0], ids[11], ids[-1] + 1, 0, -1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 80)]
    assert [router.feedback(id, 1.0) for id in strangers] == [False] * len(strangers)
    assert learned(router) == before
    assert router.stats()["unknown_feedback"] == len(strangers)
    assert all(router.feedback(np.int64(id), np.float32(1.0)) for id in ids[-8:])
    for wrong in ("1", None, 1.5):
        with pytest.raises(TypeError):
            router.feedback(wrong, 1.0)


BAD_REWARDS: list[tuple[Any, type[Exception]]] = [
    (math.nan, SonaValueError),
    (math.inf, SonaValueError),
    (-math.inf, SonaValueError),
    (1e38, SonaValueError),
    (1e300, SonaValueError),
    (10**400, SonaValueError),
    (1.0001, SonaValueError),
    (-0.0001, SonaValueError),
    ("1", SonaTypeError),
    ("good", SonaTypeError),
    (b"1", SonaTypeError),
    (None, SonaTypeError),
    ([1.0], SonaTypeError),
    (1j, SonaTypeError),
]


@pytest.mark.parametrize(("reward", "error"), BAD_REWARDS)
def test_a_bad_reward_is_refused_counted_and_changes_nothing(reward: Any, error: type[Exception]) -> None:
    rng = np.random.default_rng(0)
    router = Router(normal(rng, 3, DIM))
    for _ in range(20):
        router.feedback(router.route(normal(rng, DIM)).id, 1.0)
    d = router.route(normal(rng, DIM))
    before = learned(router)
    with pytest.raises(error, match="reward: expected a"):
        router.feedback(d.id, reward)
    assert learned(router) == before
    assert router.stats()["engine"]["rejected"] == 1
    assert router.feedback(d.id, 1.0)


@given(reward=st.floats(allow_nan=False), low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
@settings(max_examples=60)
def test_clip_moves_rewards_to_the_ends(reward: float, low: float, width: float) -> None:
    high = low + width
    scores = []
    for given_reward in (reward, min(max(reward, low), high)):
        router = Router(np.eye(3, dtype=np.float32), reward_range=(low, high), clip=True)
        d = router.route(np.float32([1, 2, 3]))
        if math.isinf(given_reward):
            with pytest.raises(SonaValueError, match="finite"):
                router.feedback(d.id, given_reward)
            return
        assert router.feedback(d.id, given_reward)
        scores.append(router.route(np.float32([1, 2, 3])).scores)
        assert router.stats()["engine"]["clipped"] == (given_reward != min(max(given_reward, low), high))
    np.testing.assert_array_equal(scores[0], scores[1])


def test_rewards_in_another_range_teach_the_same() -> None:
    finals = []
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-100.0, 50.0)):
        world = Clusters(2)
        router = Router(world.arms, reward_range=(low, high))
        for _ in range(300):
            x, best = world.draw()
            d = router.route(x)
            router.feedback(d.id, high if d.index == best else low)
        finals.append(looks(router))
    np.testing.assert_array_equal(finals[0], finals[1])
    np.testing.assert_array_equal(finals[0], finals[2])


def test_feedback_batch_is_feedback_in_order() -> None:
    finals = []
    for batched in (False, True):
        world = Clusters(2)
        router = Router(world.arms)
        for _ in range(30):
            drawn = [world.draw() for _ in range(10)]
            x = [x for x, _ in drawn]
            decisions = router.route_batch(np.stack(x)) if batched else [router.route(row) for row in x]
            rewards = [float(d.index == best) for d, (_, best) in zip(decisions, drawn, strict=True)]
            ids = [d.id for d in decisions]
            if batched:
                assert router.feedback_batch([*ids, 1 << 60], np.array([*rewards, 1.0])) == 10
            else:
                for id, reward in zip(ids, rewards, strict=True):
                    router.feedback(id, reward)
        finals.append((learned(router), [d.arm for d in decisions], [d.scores.tobytes() for d in decisions]))
    assert finals[0] == finals[1]


@pytest.mark.parametrize(("reward", "error"), BAD_REWARDS)
def test_a_bad_reward_in_a_batch_leaves_the_whole_batch_unlearned(reward: Any, error: type[Exception]) -> None:
    rng = np.random.default_rng(0)
    router = Router(normal(rng, 3, DIM))
    ids = [d.id for d in router.route_batch(normal(rng, 5, DIM))]
    before = learned(router)
    with pytest.raises(error, match="reward: expected a"):
        router.feedback_batch(ids, [1.0, 1.0, 1.0, 1.0, reward])
    with pytest.raises(SonaValueError, match="as many rewards as ids, got 2 and 5"):
        router.feedback_batch(ids, [1.0, 1.0])
    with pytest.raises(TypeError):
        router.feedback_batch([*ids[:4], "5"], [1.0] * 5)
    assert learned(router) == before
    assert router.stats()["learned"] == 0
    assert router.feedback_batch(iter(ids), iter([1.0] * 5)) == 5
    assert router.feedback_batch([], []) == 0


# ---- requests ----

BAD_INPUTS: list[tuple[Any, type[Exception]]] = [
    (np.full(DIM, np.nan, np.float32), SonaValueError),
    (np.r_[np.zeros(DIM - 1), np.inf].astype(np.float32), SonaValueError),
    (np.r_[np.zeros(DIM - 1), -np.inf], SonaValueError),
    (np.full(DIM, 1e300), SonaValueError),
    (np.zeros(DIM - 1), SonaValueError),
    (np.zeros((1, DIM)), SonaValueError),
    (np.zeros((1, 1, DIM)), SonaValueError),
    (np.float32(1), SonaValueError),
    (np.zeros(0), SonaValueError),
    (np.zeros(DIM, object), SonaTypeError),
    (["x"] * DIM, SonaTypeError),
    (np.zeros(DIM, complex), SonaTypeError),
    (None, SonaTypeError),
]


@pytest.mark.parametrize(("x", "error"), BAD_INPUTS)
def test_a_bad_request_is_refused_counted_and_leaves_no_trace(x: Any, error: type[Exception]) -> None:
    rng = np.random.default_rng(0)
    router = Router(normal(rng, 3, DIM))
    router.feedback(router.route(normal(rng, DIM)).id, 1.0)
    before, requests = learned(router), router.stats()["requests"]
    with pytest.raises(error, match="x: expected"):
        router.route(x)
    assert router.stats()["rejected"] == 1
    with pytest.raises(error):
        router.route(x, [1])
    with pytest.raises(error):
        router.route_batch([x, x])
    with pytest.raises(error):
        router.predict([x])
    with pytest.raises(error):
        router.warm_start([(x, 1, 1.0)])
    assert (learned(router), router.stats()["requests"]) == (before, requests)


def test_requests_in_any_layout_get_the_same_answer() -> None:
    rng = np.random.default_rng(0)
    router = Router(normal(rng, 5, DIM))
    x = normal(rng, DIM).astype(np.float16).astype(np.float32)
    want = router.route(x).scores
    frozen = x.copy()
    frozen.flags.writeable = False
    for same in (frozen, x.astype(">f8"), x.astype(np.float16), np.repeat(x, 2)[::2], x[::-1].copy()[::-1], x.tolist()):
        np.testing.assert_allclose(router.route(same).scores, want, atol=1e-6)
    np.testing.assert_array_equal(frozen, x)


def test_route_batch_is_as_many_routes() -> None:
    x = normal(np.random.default_rng(1), 40, DIM)
    answers = []
    for batched in (True, False):
        router = Router(normal(np.random.default_rng(0), 4, DIM), explore="thompson", seed=3)
        decisions = router.route_batch(x) if batched else [router.route(row) for row in x]
        answers.append([(d.id, d.arm, d.index, d.propensity, d.scores.tobytes(), d.candidates) for d in decisions])
    assert answers[0] == answers[1]
    with pytest.raises(SonaValueError, match="at least one row"):
        router.route_batch(np.zeros((0, DIM)))


def test_predict_and_explain_and_stats_leave_no_trace() -> None:
    def run(look: bool) -> list[Any]:
        world = Clusters(3)
        router = Router(world.arms, explore="softmax")
        seen: list[Any] = []
        for _ in range(150):
            x, best = world.draw()
            d = router.route(x)
            if look:
                router.predict(x[None])
                router.predict(x[None], model="frozen", candidates=[1, 2])
                router.explain(d)
                router.stats()
                router.apply_batch(x[None])
                assert router.state_bytes > 0
            router.feedback(d.id, float(d.index == best))
            seen.append((d.id, d.arm, d.propensity))
        return [*seen, learned(router)]

    assert run(look=True) == run(look=False)


def test_predict_is_what_greedy_serves() -> None:
    world = Clusters(3)
    router = Router(world.arms, guard=False)
    serve(router, world, 300)
    x = np.stack([world.draw()[0] for _ in range(100)])
    np.testing.assert_array_equal(router.predict(x), [router.route(row).index for row in x])
    frozen = router.predict(x, model="frozen")
    np.testing.assert_array_equal(frozen, (x @ world.arms.T).argmax(axis=1))
    assert frozen.dtype == np.int64
    assert (frozen != router.predict(x)).mean() > 0.1


def test_explain_adds_up_to_the_scores() -> None:
    world = Clusters(3)
    router = Router({f"arm{k}": e for k, e in enumerate(world.arms)}, cost={"arm3": 0.1}, guard=False)
    for _ in range(100):
        x, best = world.draw()
        d = router.route(x)
        router.feedback(d.id, float(d.index == best))
    d = router.route(x)
    parts = router.explain(d)
    assert tuple(parts) == router.arms
    logits = []
    for k, part in enumerate(parts.values()):
        assert set(part) == {"frozen", "base", "micro", "bias", "cost", "score"}
        assert part["score"] == pytest.approx(part["frozen"] + part["base"] + part["micro"] + part["bias"], abs=1e-5)
        assert part["frozen"] == pytest.approx(router.stats()["trust"] * float(world.arms[k] @ unit(x)), abs=1e-5)
        logits.append(part["score"] / 0.1)
    assert parts["arm3"]["cost"] == pytest.approx(0.1)
    pi = np.exp(np.array(logits) - max(logits))
    np.testing.assert_allclose(d.scores, pi / pi.sum(), atol=1e-4)
    assert any(part["base"] for part in parts.values())
    assert any(part["micro"] for part in parts.values())
    assert any(part["bias"] for part in parts.values())
    json.dumps(parts)


def test_a_decision_says_what_happened() -> None:
    router = Router(["small", "large"], dim=3)
    d = router.route([1.0, 0.0, 0.0])
    assert repr(d) == f"Decision(id={d.id}, arm={d.arm!r}, propensity=1)"
    with pytest.raises(AttributeError):
        d.arm = "large"
    assert repr(router) == "<Router 2 arms, dim=3>"


# ---- propensities ----


@pytest.mark.parametrize("explore", ["softmax", "thompson"])
def test_propensities_are_frequencies(explore: Any) -> None:
    """One request again and again: inverse propensity weighting recovers how often each arm was served."""
    world = Clusters(8, noise=1.5)
    router = Router(world.arms, explore=explore, guard=True)
    serve(router, world, 100)
    x = world.draw()[0]
    served = np.zeros(6)
    weighted = np.zeros(6)
    for _ in range(8000):
        d = router.route(x)
        served[d.index] += 1 / 8000
        weighted[d.index] += 1 / d.propensity / 8000
    for k in np.flatnonzero(served > 0.02):
        assert weighted[k] == pytest.approx(1, abs=0.1 / math.sqrt(served[k] / 0.5))


# ---- arms that come and go ----


def test_arms_are_added_and_removed_while_serving() -> None:
    world = Clusters(10, arms=8)
    router = Router({f"arm{k}": e for k, e in enumerate(world.arms[:6])})

    def run(rounds: int) -> float:
        right = 0
        for _ in range(rounds):
            x, best = world.draw()
            while f"arm{best}" not in router.arms:
                x, best = world.draw()
            d = router.route(x)
            right += d.arm == f"arm{best}"
            router.feedback(d.id, float(d.arm == f"arm{best}"))
        return right / rounds

    run(600)
    assert run(200) > 0.9
    late = router.route(world.draw()[0])
    router.remove_arm(late.arm)
    assert router.feedback(late.id, 1.0) is False
    assert late.arm not in router.arms
    router.add_arm("arm6", world.arms[6])
    router.add_arm("arm7", world.arms[7] * 100, cost=0.01)
    assert router.arms[-1] == "arm7" or "arm7" in router.arms
    run(800)
    assert run(300) > 0.85
    assert late.id not in {router.route(world.draw()[0]).id}


def test_arm_changes_are_checked() -> None:
    router = Router({"a": [1.0, 0.0], "b": [0.0, 1.0]})
    for name, vector, error in [
        ("a", [1.0, 1.0], SonaValueError),
        ("c", [0.0, 0.0], SonaValueError),
        ("c", [1.0, 0.0], SonaValueError),
        ("c", [7.0, 0.0], SonaValueError),
        ("c", [1.0], SonaValueError),
        ("c", [np.nan, 1.0], SonaValueError),
        ("c", ["x", "y"], SonaTypeError),
        (None, [1.0, 1.0], SonaValueError),
    ]:
        with pytest.raises(error):
            router.add_arm(name, vector)
    with pytest.raises(SonaValueError):
        router.add_arm("c", [1.0, 1.0], cost=math.nan)
    with pytest.raises(SonaValueError, match="expected one of 'a', 'b', got 'c'"):
        router.remove_arm("c")
    router.remove_arm("a")
    with pytest.raises(SonaValueError, match="at least one arm to stay"):
        router.remove_arm("b")
    assert router.arms == ("b",)
    router.add_arm("a", [1.0, 0.0])
    router.add_arm(7, [1.0, 1.0])
    with pytest.raises(SonaValueError, match="differ as text, got 7 and '7'"):
        router.add_arm("7", [1.0, -1.0])
    assert set(router.arms) == {"a", "b", 7}


def test_a_new_arm_starts_with_what_the_correction_says_about_its_vector() -> None:
    """An arm near one that was learned to be good is served at once where that one is."""
    rng = np.random.default_rng(0)
    arms = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:4].astype(np.float32)
    router = Router({k: arms[k] for k in range(4)}, guard=False)
    for _ in range(300):
        d = router.route(normal(rng, DIM))
        router.feedback(d.id, float(d.arm == 2))
    router.remove_arm(2)
    router.add_arm("twin", unit(arms[2] + 0.1 * normal(rng, DIM)))
    assert np.mean([router.route(normal(rng, DIM)).arm == "twin" for _ in range(200)]) > 0.9


# ---- logs ----


def test_warm_start_learns_from_another_policy() -> None:
    world, rng = Clusters(12), np.random.default_rng(0)
    log: list[Any] = []
    for t in range(3000):
        x, best = world.draw()
        arm = int(rng.integers(6))
        log.append((x, arm, float(arm == best)) if t % 2 else LoggedDecision(x=x, arm=arm, reward=float(arm == best), candidates=None))
    router = Router(world.arms, guard=False)
    assert router.warm_start(iter(log)) == 3000
    x, best = zip(*(world.draw() for _ in range(300)), strict=True)
    assert (router.predict(np.stack(x)) == np.array(best)).mean() > 0.9
    assert router.stats()["requests"] == 0


def test_warm_start_of_own_choices_is_learning_them() -> None:
    finals = []
    for logged in (False, True):
        world = Clusters(12)
        router = Router(world.arms, guard=False)
        for _ in range(200):
            x, best = world.draw()
            d = router.route(x)
            if logged:
                router.warm_start([LoggedDecision(x=x, arm=d.arm, reward=float(d.index == best))])
            else:
                router.feedback(d.id, float(d.index == best))
        finals.append(looks(router))
    np.testing.assert_allclose(finals[0], finals[1], atol=1e-5)


def test_warm_start_checks_its_rows() -> None:
    rng = np.random.default_rng(0)
    router = Router({name: normal(rng, DIM) for name in "abc"})
    x = normal(rng, DIM)
    before = learned(router)
    for row, error in [
        ((x, "z", 1.0), SonaValueError),
        ((x, "a", math.nan), SonaValueError),
        ((x, "a", 2.0), SonaValueError),
        (LoggedDecision(x=x, arm="a", reward=1.0, candidates=["b", "c"]), SonaValueError),
        (LoggedDecision(x=x, arm="a", reward=1.0, candidates=["a", "z"]), SonaValueError),
        ({"x": x, "arm": "a", "reward": 1.0}, SonaTypeError),
        ((x, "a"), SonaTypeError),
    ]:
        with pytest.raises(error):
            router.warm_start([row])
    assert learned(router) == before
    with pytest.raises(SonaTypeError, match=r"row 1: expected a LoggedDecision or \(x, arm, reward\), got tuple"):
        router.warm_start([(x, "a", 1.0), (x, "a")])
    assert router.engine.unlogged == 1  # the row before it


def test_prices_and_rewards_of_other_kinds_are_refused() -> None:
    with pytest.raises(SonaTypeError, match=r"cost: expected prices by name of arm, got \[1, 2\]"):
        Router(["a", "b"], dim=2, cost=[1, 2])  # type: ignore[arg-type]
    router = Router(["a", "b"], dim=2)
    id = router.route([1.0, 0.0]).id
    with pytest.raises(SonaTypeError, match="rewards: expected one per decision, got 1"):
        router.feedback_batch([id], 1)  # type: ignore[arg-type]
    assert router.stats()["learned"] == 0


def test_warm_start_counts_its_rows() -> None:
    rng = np.random.default_rng(0)
    router = Router({name: normal(rng, DIM) for name in "abc"})
    x = normal(rng, DIM)
    assert router.warm_start([LoggedDecision(x=x, arm="a", reward=1.0, candidates=["a", "b"])]) == 1
    assert router.warm_start([]) == 0


# ---- the same again ----


@pytest.mark.parametrize("explore", ["greedy", "softmax", "thompson"])
def test_same_seed_same_decisions(explore: Any) -> None:
    def run(seed: int) -> list[Any]:
        world = Clusters(1)
        router = Router([f"arm{k}" for k in range(6)], dim=DIM, explore=explore, seed=seed)
        seen: list[Any] = []
        for _ in range(300):
            x, best = world.draw()
            d = router.route(x)
            router.feedback(d.id, float(d.index == best))
            seen.append((d.id, d.arm, d.propensity, d.scores.tobytes()))
        return [*seen, *learned(router)]

    assert run(1) == run(1)
    assert [row[1] for row in run(1)[:300]] != [row[1] for row in run(2)[:300]]


SAME_ON_ANY_TABLE = """
import numpy as np, sona, sys
from reference import Clusters
world = Clusters(1)
router = sona.Router(world.arms, explore="softmax", seed=3)
assert router.stats()["engine"]["isa"] == sys.argv[1]
arms = []
for _ in range(400):
    x, best = world.draw()
    d = router.route(x)
    router.feedback(d.id, float(d.index == best))
    arms.append(d.index)
np.savez(sys.argv[2], arms=arms, scores=[router.route(world.draw()[0]).scores for _ in range(50)])
"""


def test_seeds_are_reproducible_across_instruction_sets(run_python: RunPython, tmp_path: Any) -> None:
    """SONA_ISA chooses the kernels; decisions agree, and after 400 outcomes no score differs by more than 1e-3."""
    runs = []
    for isa in sona.isas():
        run_python(SAME_ON_ANY_TABLE, isa, tmp_path / f"{isa}.npz", SONA_ISA=isa)
        runs.append(np.load(tmp_path / f"{isa}.npz"))
    for run in runs[1:]:
        np.testing.assert_array_equal(run["arms"], runs[0]["arms"])
        np.testing.assert_allclose(run["scores"], runs[0]["scores"], atol=1e-3)
    run_python("import sona; sona.Router(['a'], dim=2)", code=1, SONA_ISA="mmx")


# ---- the kill switch ----

DISABLED = """
import numpy as np, sona, sys
from reference import Clusters
world = Clusters(1)
store = sys.argv[1] if len(sys.argv) > 1 else None
for explore in ("greedy", "softmax", "thompson"):
    router = sona.Router(world.arms, explore=explore, store=store)
    assert router.engine.enabled is False
    assert router.stats()["engine"]["enabled"] is False
    for _ in range(100):
        x, best = world.draw()
        d = router.route(x)
        assert d.index == (world.arms @ x).argmax() and d.propensity == 1
        assert router.feedback(d.id, float(d.index == best))
        assert not router.feedback(12345, 1.0)
        np.testing.assert_array_equal(router.engine.apply(x), x)
        out = np.empty_like(x)
        np.testing.assert_array_equal(router.engine.apply(x, out=out), x)
        np.testing.assert_array_equal(router.engine.apply_micro_lora(x), x)
        np.testing.assert_array_equal(router.engine.apply_base_lora(x), x)
        np.testing.assert_array_equal(router.apply_batch(x[None]), x[None])
    assert router.stats()["learned"] == 0 and router.engine.adapters[0].info()["total"] == 0
    router.close()
"""


def test_the_kill_switch(run_python: RunPython, tmp_path: Any) -> None:
    """SONA_DISABLE=1: outputs are the inputs bit for bit, and the frozen model's first choice is served; a stored state stays as it is."""
    run_python(DISABLED, SONA_DISABLE="1")
    world = Clusters(1)
    with Router(world.arms, store=tmp_path / "s.db") as router:
        serve(router, world, 200)
        before = looks(router)
    run_python(DISABLED, tmp_path / "s.db", SONA_DISABLE="1")
    with Router(world.arms, store=tmp_path / "s.db") as router:
        assert router.engine.enabled
        assert router.stats()["engine"]["store"]["replayed"] == 300  # rewards that came meanwhile are learned now
        assert np.abs(looks(router) - before).max() > 1e-3


def test_the_kill_switch_can_be_thrown_while_serving() -> None:
    world = Clusters(1)
    router = Router(world.arms)
    serve(router, world, 200)
    x = np.stack([world.draw()[0] for _ in range(50)])
    on = router.apply_batch(x)
    router.engine.enabled = False
    np.testing.assert_array_equal(router.apply_batch(x), x)
    np.testing.assert_array_equal([d.index for d in router.route_batch(x)], (x @ world.arms.T).argmax(axis=1))
    d = router.route(x[0])
    assert router.feedback(d.id, 1.0)
    router.engine.enabled = True
    np.testing.assert_array_equal(router.apply_batch(x), on)  # nothing was learned meanwhile


# ---- stats and end ----


def test_stats_are_plain_numbers() -> None:
    world = Clusters(1)
    router = Router(world.arms)
    serve(router, world, 50)
    router.feedback(0, 1.0)
    stats = router.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["arms"], stats["requests"], stats["learned"], stats["unknown_feedback"]) == (6, 50, 50, 1)
    assert sum(stats["guard_weights"].values()) == pytest.approx(1)
    assert 0 < stats["confidence"] <= 1
    assert stats["state_bytes"] == router.state_bytes


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    world = Clusters(1)
    router = Router(world.arms, pending=64)
    serve(router, world, 1500)
    bytes_before = router.state_bytes + router.stats()["pending_bytes"]
    serve(router, world, 3000)
    assert router.state_bytes + router.stats()["pending_bytes"] == bytes_before


USES: dict[str, Callable[[Router], Any]] = {
    "route": lambda r: r.route(np.ones(DIM)),
    "route_batch": lambda r: r.route_batch(np.ones((1, DIM))),
    "predict": lambda r: r.predict(np.ones((1, DIM))),
    "apply_batch": lambda r: r.apply_batch(np.ones((1, DIM))),
    "feedback": lambda r: r.feedback(1, 1.0),
    "feedback_batch": lambda r: r.feedback_batch([1], [1.0]),
    "warm_start": lambda r: r.warm_start([]),
    "add_arm": lambda r: r.add_arm("new", np.ones(DIM)),
    "remove_arm": lambda r: r.remove_arm(1),
    "explain": lambda r: r.explain(r.first),
    "tick": lambda r: r.tick(),
    "flush": lambda r: r.flush(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("stored", [False, True])
def test_use_after_close_says_so(use: str, stored: bool, tmp_path: Any) -> None:
    router = Router(Clusters(1).arms, store=tmp_path / "s.db" if stored else None)
    router.first = router.route(np.ones(DIM))
    USES[use if use not in ("feedback",) else "route"](router)
    router.close()
    router.close()
    with pytest.raises(SonaClosedError, match="closed"):
        USES[use](router)
    router.stats()


def test_the_with_statement_closes() -> None:
    with Router(Clusters(1).arms) as router:
        router.route(np.ones(DIM))
    with pytest.raises(SonaClosedError):
        router.route(np.ones(DIM))


@pytest.mark.parametrize("make_copy", [pickle.dumps, copy.deepcopy, copy.copy])
def test_a_live_router_is_not_copied_behind_its_back(make_copy: Callable[[Any], Any]) -> None:
    """A copy would learn from half of the rewards and write to the same store; the message names what to do."""
    router = Router(Clusters(1).arms)
    for thing in (router, router.engine):
        with pytest.raises(SonaTypeError, match="save"):
            make_copy(thing)
    for thing in (router._policy, router.engine.adapters[0], router.engine.instants[0]):
        with pytest.raises(TypeError):
            make_copy(thing)
    router.route(np.ones(DIM))
