"""A pool of two learners: what is served is their mixed forecast, weighted by how well each has predicted; one of them rehearses."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from reference import PRIOR, Clusters

from sona import Adapter, Instant, Router, SonaValueError, SonaVersionError
from sona.loops._policy import Policy
from sona.loops.learner import learned, partner_of, put_learned

Array = npt.NDArray[np.float64]

# csrc/src/policy_peers.c
MEMORY, RATE, FLOOR, CERTAIN = 0.99, 0.3, 0.001, 0.002


def member(world: Clusters, precondition: Any, **options: Any) -> Policy:
    arms, dim = world.arms.shape
    policy = Policy(Adapter(dim, rank=arms - 1), Instant(dim, precondition=precondition), **({"guard": False} | options))
    for k, vector in enumerate(world.arms):
        policy.add_arm(k, vector)
    return policy


def confidence(policy: Policy) -> float:
    """c: the success rate of the best arm, or of all choices."""
    rewarded, shown, *_ = policy.instant.state()["calibration"]
    everything = min(1.0, rewarded / shown)
    arms = policy.state()["arm_calibration"]
    return max(everything, min(1.0, max((r + PRIOR * everything) / (q + PRIOR) for r, q, _ in arms)))


def share(loss: Array) -> float:
    weight = np.exp(-RATE * (loss - loss.min())) + FLOOR
    return float(weight[0] / weight.sum())


def log_loss(p: float, r: float) -> float:
    p = min(max(p, CERTAIN), 1 - CERTAIN)
    return float(-(r * np.log(p) + (1 - r) * np.log(1 - p)))


@pytest.mark.parametrize(("right", "wrong"), [(1.0, 0.0), (0.5, 0.2)])
def test_a_pool_is_its_members_and_their_mixture(right: float, wrong: float) -> None:
    world, rng = Clusters(1), np.random.default_rng(0)
    pool, partner = member(world, "full"), member(world, "identity")
    pool.join(partner)
    twins = [member(world, "full"), member(world, "identity")]
    loss = np.zeros(2)
    for _ in range(300):
        x, k = world.draw()
        pi = [twin.route(x).scores.astype(np.float64) for twin in twins]
        c = [confidence(twin) for twin in twins]
        own = share(loss)
        value = own * c[0] * pi[0] + (1 - own) * c[1] * pi[1]
        d = pool.route(x)
        assert pool.own_share == pytest.approx(own, abs=1e-4)
        np.testing.assert_allclose(d.scores, own * pi[0] + (1 - own) * pi[1], atol=1e-3)
        assert value[d.index] > value.max() - 1e-3
        reward = float(rng.random() < (right if d.index == k else wrong))
        pool.learn(d.id, reward)
        for twin in twins:
            twin.learn_logged(x, d.arm, reward)
        loss = MEMORY * loss + [log_loss(c[m] * pi[m][d.index], reward) for m in range(2)]
        np.testing.assert_allclose(pool.state()["loss"], loss, atol=1e-2)
    for mine, twin in zip((pool, partner), twins, strict=True):
        np.testing.assert_allclose(mine.adapter.delta(), twin.adapter.delta(), atol=1e-4)
    assert 0 < pool.own_share < 1
    assert int(pool.predict(x[None])[0]) == pool.route(x).index


def test_a_warm_start_teaches_both_members_their_own_choices() -> None:
    world = Clusters(14)
    pool, partner = member(world, "full"), member(world, "identity")
    pool.join(partner)
    for _ in range(60):
        x, k = world.draw()
        pool.learn_logged(x, k, 1.0)
    assert partner.instant.state()["calibration"][3] > 10  # own choices that have calibrated it


def test_the_member_that_predicts_better_gets_the_weight() -> None:
    world = Clusters(2)
    pool, partner = member(world, "full"), member(world, "identity")
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(2, 5, 20)).astype(np.float32) * 3
    partner.adapter.assign(noise[0], noise[1])
    pool.join(partner)
    for _ in range(100):
        x, k = world.draw()
        d = pool.route(x)
        pool.learn(d.id, float(d.index == k))
    assert pool.own_share > 0.9


def test_rehearsal_moves_the_correction_alone() -> None:
    world = Clusters(3)
    policy, plain = member(world, "full"), member(world, "full")
    policy.rehearse(Instant(20, 0.2, 0.3, "identity"), 16, 4000, 0.1)
    for t in range(200):
        x, k = world.draw()
        arm = (k + (t % 3 == 0)) % 6
        for each in (policy, plain):
            each.recall(t + 1, x, arm, 1.0)
            each.next_id = t + 2
            each.learn(t + 1, float(arm == k))
        if t == 0:  # what was rewarded but once differs by the rehearsals of it alone
            assert policy.instant.state()["calibration"][3] == plain.instant.state()["calibration"][3]
    assert not np.allclose(policy.adapter.delta(), plain.adapter.delta(), atol=1e-2)
    assert policy.instant.state()["calibration"][3] == plain.instant.state()["calibration"][3] == 200  # steps
    x = np.stack([world.draw()[0] for _ in range(300)])
    assert np.mean(policy.predict(x) == plain.predict(x)) > 0.9


def test_nothing_is_rehearsed_where_rewards_cannot_be_relied_on() -> None:
    world, rng = Clusters(4), np.random.default_rng(0)
    policy, plain = member(world, "full"), member(world, "full")
    for _ in range(400):
        x, k = world.draw()
        arm = int(rng.integers(6))
        reward = float(rng.random() < (0.3 if arm == k else 0.1))
        for each in (policy, plain):
            each.recall(each.next_id, x, arm, 1.0)
            each.next_id += 1
            each.learn(each.next_id - 1, reward)
    assert confidence(policy) < 0.5
    policy.rehearse(Instant(20, 0.2, 0.3, "identity"), 16, 4000, 1.0)
    for each in (policy, plain):
        each.recall(each.next_id, x, 0, 1.0)
        each.next_id += 1
        each.learn(each.next_id - 1, 1.0)
    np.testing.assert_array_equal(policy.adapter.delta(), plain.adapter.delta())


# ---- in a router ----


def serve(router: Router, world: Clusters, rounds: int) -> float:
    right = 0
    for _ in range(rounds):
        x, k = world.draw()
        d = router.route(x)
        right += d.arm == k
        assert router.feedback(d.id, float(d.arm == k))
    return right / rounds


def arrays(router: Router) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(value).tobytes() for name, value in router.engine.state().items()}


@pytest.mark.parametrize("precondition", ["full", "identity"])
def test_a_router_with_a_pool_learns(precondition: Any) -> None:
    world = Clusters(5)
    router = Router(world.arms, pool=True, precondition=precondition)
    serve(router, world, 500)
    assert serve(router, world, 200) > 0.95
    assert 0 < router.stats()["pool"] < 1
    assert Router(world.arms).stats()["pool"] is None


@pytest.mark.parametrize("where", ["snapshot", "store"])
def test_a_pool_goes_on_where_it_was(where: str, tmp_path: Path) -> None:
    world = Clusters(6)
    path = tmp_path / "s.db" if where == "store" else None
    first = Router(world.arms, pool=True, store=path)
    serve(first, world, 80)
    kept = arrays(first)
    assert "partner.down" in kept
    if where == "store":
        first.close()
        second = Router(world.arms, pool=True, store=path)
    else:
        second = Router(world.arms, pool=True)
        second.engine.restore(first.engine.state())
    assert arrays(second) == kept
    serve(second, world, 20)
    second.close()


def test_a_state_without_a_pool_may_be_taken_into_one_and_back() -> None:
    world = Clusters(7)
    pool, plain = Router(world.arms, pool=True), Router(world.arms)
    serve(plain, world, 50)
    pool.engine.restore(plain.engine.state())
    serve(pool, world, 50)
    plain.engine.restore(pool.engine.state())
    serve(plain, world, 10)


def test_late_revised_and_removed() -> None:
    world = Clusters(8)
    router = Router(world.arms, pool=True)
    early = [router.route(world.draw()[0]) for _ in range(20)]
    for d in early:
        router.feedback(d.id, 1.0)
    for d in early:
        router.feedback(d.id, 0.0)
    router.remove_arm(1)
    router.add_arm("new", np.ones(20))
    policy = router.engine.policy
    assert policy is not None
    assert policy.partner is not None
    assert policy.partner.arms == router.arms
    assert {router.route(world.draw()[0]).arm for _ in range(200)} <= set(router.arms)
    assert all(router.feedback(d.id, 0.0) == (d.arm != 1) for d in early)
    assert router.feedback(router.route(world.draw()[0]).id, 1.0)


def test_costs_are_taken_from_the_mixed_forecast() -> None:
    world = Clusters(9)
    router = Router(world.arms, pool=True, cost=dict.fromkeys(range(1, 6), 0.99), guard=False)
    assert {router.route(world.draw()[0]).arm for _ in range(100)} == {0}


def test_candidates_are_not_put_on_trial_in_a_pool() -> None:
    world = Clusters(10)
    router = Router(world.arms, pool=True)
    serve(router, world, 300)
    result = router.background_learn()
    assert result.verdict == "undecided"
    assert result.version is not None
    assert router.engine.trial is None
    with pytest.raises(SonaValueError, match="pool=False"):
        router.engine.start_trial(result.version)


def test_what_does_not_fit_is_refused() -> None:
    world = Clusters(11)
    for explore in ("thompson", "softmax"):
        with pytest.raises(SonaValueError, match=f"explore: expected 'greedy' with pool=True, got '{explore}'"):
            Router(world.arms, pool=True, explore=explore)
    policy, other = member(world, "full"), member(Clusters(12, arms=4), "identity")
    with pytest.raises(SonaValueError, match="same arms"):
        policy.join(other)
    with pytest.raises(SonaValueError, match="expected one of the identity for dim 20, got full for 20"):
        policy.rehearse(Instant(20, precondition="full"), 1, 1, 0.1)
    with pytest.raises(SonaValueError, match="rows and window >= 1"):
        policy.rehearse(Instant(20, precondition="identity"), 0, 1, 0.1)
    router = Router(world.arms, pool=True)
    state = router.engine.state()
    before = arrays(router)
    for damage in ({"policy.loss": np.array([np.nan, 0])}, {"partner.down": np.zeros((1, 3), np.float32)}):
        with pytest.raises(SonaVersionError, match="an engine of this configuration keeps"):
            router.engine.restore(state | damage)
        assert arrays(router) == before


def test_what_a_learner_keeps_is_what_it_gets_back() -> None:
    world = Clusters(13)
    policy = member(world, "full")
    for _ in range(50):
        x, k = world.draw()
        policy.learn_logged(x, k, 1.0)
    other = partner_of(policy, Adapter(20, rank=5), Instant(20, precondition="full"))
    put_learned(other, learned(policy))
    for name, value in learned(policy).items():
        np.testing.assert_array_equal(learned(other)[name], value, err_msg=name)
    with pytest.raises(SonaValueError, match="what a learner keeps"):
        put_learned(other, {})
