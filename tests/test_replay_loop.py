"""Promises of the replay: it is the documented step once more, on a copy, of rows that say nothing but what happened."""

from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from hypothesis import given
from hypothesis import strategies as st
from reference import CONSTANT, P0, Clusters, InstantRule, PolicyRule, Shown, unit

from sona import Adapter, Instant
from sona.adapters import Factors
from sona.errors import SonaCorruptError, SonaValueError, SonaVersionError
from sona.loops._policy import Policy
from sona.loops.replay import Mark, Replay, Rows
from sona.loops.reservoir import MAX_TASKS, Reservoir, Tasks

Array = np.ndarray[Any, Any]
DIM, ARMS = 12, 5


def make_policy(seed: int = 0, *, precondition: str = "identity", rank: int = DIM, **options: Any) -> Policy:
    """A policy whose adapter loses nothing."""
    rng = np.random.default_rng(seed)
    policy = Policy(Adapter(DIM, rank=rank, window=64), Instant(DIM, P0, CONSTANT, precondition), **({"guard": False} | options))
    for k in range(ARMS):
        policy.add_arm(f"arm{k}", unit(rng.normal(size=DIM)).astype(np.float32))
    return policy


def serve(policy: Policy, rng: np.random.Generator, rounds: int, best: str = "arm2") -> list[int]:
    """Requests with all arms or some; one arm is rewarded everywhere. Returns the ids."""
    ids = []
    for _ in range(rounds):
        some = None if rng.random() < 0.6 else list(rng.permutation(policy.arms)[: rng.integers(2, len(policy.arms))])
        d = policy.route(rng.normal(size=DIM).astype(np.float32), some)
        assert policy.learn(d.id, float(d.arm == best))
        ids.append(d.id)
    return ids


def dense(factors: Factors) -> tuple[Array, Array]:
    """(delta as a matrix, what the constant input adds)"""
    up = factors.up.astype(np.float64)
    return factors.down.T.astype(np.float64) @ up, factors.offset.astype(np.float64) @ up


def state_of(policy: Policy) -> dict[str, Array]:
    return {
        **policy.state(),
        **policy.instant.state(),
        "down": policy.adapter.down,
        "up": policy.adapter.up,
        "offset": policy.adapter.offset,
    }


# ---- against the rule ----


@given(st.integers(0, 2**32 - 1), st.sampled_from(["identity", "full"]), st.integers(1, 2))
def test_a_replay_is_the_instant_step_again_with_calibration_and_trust_held(seed: int, precondition: str, passes: int) -> None:
    rng = np.random.default_rng(seed)
    policy = make_policy(seed, precondition=precondition, explore="softmax")  # so that not every choice is its own
    serve(policy, rng, 40)
    rows = Rows.remembered(policy, 30)
    replay = Replay(policy)
    found = replay.run(rows, passes=passes, step=0.3, seed=seed)

    rule = PolicyRule({f"arm{k}": v for k, v in enumerate(policy.vectors())}, p0=P0)  # identity P, whatever the policy has
    down, up, offset = policy.adapter.rows()
    for one in zip(up, down, offset, strict=True):
        rule.delta.append(one[0], one[1], 1.0, float(one[2]))
    calibration = policy.instant.state()["calibration"]
    rule.instant.rewarded, rule.instant.shown = calibration[:2]
    inputs = policy.instant.state()["inputs"]
    rule.instant.middle, rule.instant.inputs, rule.instant.square = inputs[:-2], int(inputs[-2]), float(inputs[-1])
    rule.instant.count = lambda x: None  # type: ignore[method-assign]
    rule.trust.value = policy.trust
    for name, row in zip(policy.arms, policy.state()["arm_calibration"], strict=True):
        rule.records[name] = row.tolist()
    order_of = np.random.default_rng(seed)
    for _ in range(passes):
        for i in order_of.permutation(len(rows)):
            some = rows.candidates[rows.start[i] : rows.start[i + 1]]
            names = [policy.arms[k] for k in some] if len(some) else list(policy.arms)
            d = Shown(rows.x[i].astype(np.float64), tuple(names), policy.arms[rows.arm[i]], own=False)
            pi, v = rule._direction(d)
            weight = 0.3 if rows.own[i] else 0.3 * 0.3
            InstantRule.step(rule.instant, rule.delta, d.x, v, float(rows.reward[i]), pi, rate=rule.best_rate(), weight=weight, own=False)
    want = PolicyRule.probabilities(rule, rows.x[0], list(policy.arms))
    matrix, constant = dense(found)
    y = policy.trust * rows.x[0] + rows.x[0] @ matrix + constant
    scores = np.exp(policy.vectors() @ y / 0.1)
    np.testing.assert_allclose(scores / scores.sum(), want, atol=2e-4)


def test_a_replay_changes_nothing_of_the_policy() -> None:
    policy = make_policy()
    serve(policy, np.random.default_rng(1), 60)
    before = state_of(policy)
    replay = Replay(policy)
    replay.run(Rows.remembered(policy, 60), passes=2)
    replay.score(Rows.remembered(policy, 60))
    after = state_of(policy)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_replay_starts_from_calibration_and_trust_of_its_mark_and_leaves_them() -> None:
    policy = make_policy()
    serve(policy, np.random.default_rng(1), 150, best="none")  # nothing is ever rewarded: both have moved
    assert policy.trust < 1
    replay = Replay(policy)
    inner = replay._policy
    assert inner.instant.precondition == "identity"
    for _ in range(2):
        assert inner.trust == policy.trust
        np.testing.assert_array_equal(inner.instant.state()["calibration"][:2], policy.instant.state()["calibration"][:2])
        np.testing.assert_array_equal(inner.state()["arm_calibration"], policy.state()["arm_calibration"])
        replay.run(Rows.remembered(policy, 150))


def test_a_seed_gives_the_same_factors_and_another_seed_others() -> None:
    policy = make_policy()
    serve(policy, np.random.default_rng(1), 100)
    rows, replay = Rows.remembered(policy, 100), Replay(policy)
    one, again, other = (replay.run(rows, seed=seed).to_bytes() for seed in (1, 1, 2))
    assert one == again != other
    assert Replay(policy).run(rows, seed=1).to_bytes() == one


def test_the_result_has_the_rank_of_the_base() -> None:
    policy = make_policy(rank=3)
    serve(policy, np.random.default_rng(1), 100)
    found = Replay(policy, max_discard=0.99).run(Rows.remembered(policy, 100))
    assert found.down.shape == (3, DIM)


def test_scores_are_those_of_the_policy() -> None:
    policy = make_policy()
    rng = np.random.default_rng(3)
    serve(policy, rng, 80)
    rows = Rows.remembered(policy, 80)
    probability, choice = Replay(policy).score(rows)
    for i in range(len(rows)):
        some = rows.candidates[rows.start[i] : rows.start[i + 1]]
        d = policy.route(rows.x[i], [policy.arms[k] for k in some] if len(some) else None)
        names = list(d.candidates)
        assert d.scores[names.index(policy.arms[rows.arm[i]])] == pytest.approx(probability[i], abs=1e-5)
        assert choice[i] == d.index


def test_replay_learns_what_one_pass_has_not() -> None:
    for seed in range(8):
        world = Clusters(seed)
        policy = Policy(Adapter(20, rank=5), Instant(20, P0, CONSTANT, "identity"), guard=False)
        for k, arm in enumerate(world.arms):
            policy.add_arm(k, arm)
        for _ in range(60):
            x, k = world.draw()
            d = policy.route(x)
            policy.learn(d.id, float(d.arm == k))
        factors = Replay(policy).run(Rows.remembered(policy, 60), passes=2)
        x, right = zip(*(world.draw() for _ in range(400)), strict=True)
        held = Rows.of(x, right, [1.0] * 400)
        ours, theirs = (Replay(policy).score(held, each)[0].mean() for each in (factors, None))
        assert ours > theirs + 0.005


# ---- rows ----


def test_remembered_rows_are_what_happened() -> None:
    policy = make_policy(explore="softmax", seed=5)
    rng = np.random.default_rng(2)
    seen = []
    for n in range(50):
        some = None if n % 3 else list(policy.arms[:3])
        d = policy.route(rng.normal(size=DIM).astype(np.float32), some)
        if n % 5:
            policy.learn(d.id, n / 50)
            seen.append((d, n / 50))
    policy.learn(seen[0][0].id, 1.0)  # revised: the last one counts
    rows = Rows.remembered(policy, 1000)
    assert rows.id.tolist() == [d.id for d, _ in seen]
    np.testing.assert_allclose(rows.reward, [1.0, *(r for _, r in seen[1:])], rtol=1e-6)
    assert rows.arm.tolist() == [d.index for d, _ in seen]
    np.testing.assert_allclose(rows.propensity, [d.propensity for d, _ in seen], rtol=1e-6)
    assert [int(n) for n in np.diff(rows.start)] == [0 if len(d.candidates) == ARMS else 3 for d, _ in seen]
    assert Rows.remembered(policy, 7).id.tolist() == [d.id for d, _ in seen[-7:]]
    assert Rows.remembered(policy, 99, since=seen[20][0].id).id.tolist() == [d.id for d, _ in seen[20:]]


def test_remembered_rows_are_bounded_by_the_memory_of_decisions() -> None:
    policy = make_policy(pending=16)
    ids = serve(policy, np.random.default_rng(0), 100)
    found = Rows.remembered(policy, 1000).id.tolist()
    assert found == ids[-len(found) :]
    assert 8 <= len(found) <= 16


def test_rows_of_arms_that_are_gone_are_left_out_and_new_arms_were_no_candidates() -> None:
    policy = make_policy(explore="softmax")
    serve(policy, np.random.default_rng(0), 60)
    policy.remove_arm("arm1")
    policy.add_arm("other", unit(np.ones(DIM)).astype(np.float32))  # in the row of arm1
    policy.add_arm("sixth", unit(np.arange(DIM)).astype(np.float32))
    rows = Rows.remembered(policy, 100)
    assert 0 < len(rows) < 60
    assert 1 not in rows.arm
    assert not {1, ARMS} & set(rows.candidates.tolist())
    assert (np.diff(rows.start) > 0).all()
    Replay(policy).run(rows)


def test_a_gap_among_the_arms_stays_a_gap() -> None:
    policy = make_policy()
    serve(policy, np.random.default_rng(0), 40)
    policy.remove_arm("arm0")
    rows = Rows.remembered(policy, 100)
    _, choice = Replay(policy).score(rows)
    assert 0 not in choice
    np.testing.assert_array_equal(
        Replay(policy).score(rows.take(np.diff(rows.start) == 4))[1], policy.predict(rows.x)[np.diff(rows.start) == 4]
    )


@given(st.integers(0, 2**32 - 1))
def test_rows_can_be_taken_joined_and_renumbered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy = make_policy(seed, explore="softmax")
    serve(policy, rng, 20)
    rows = Rows.remembered(policy, 20)

    def plain(rows: Rows, names: list[str]) -> list[Any]:
        def all_or(i: int) -> list[str]:
            return sorted(names[k] for k in rows.candidates[rows.start[i] : rows.start[i + 1]]) or sorted(names)

        return [(int(rows.id[i]), rows.x[i].tobytes(), names[rows.arm[i]], float(rows.reward[i]), all_or(i)) for i in range(len(rows))]

    names = list(policy.arms)
    at = rng.integers(len(rows), size=rng.integers(0, 10))
    assert plain(rows.take(at), names) == [plain(rows, names)[i] for i in at]
    assert plain(rows.take(at).joined(rows), names) == plain(rows.take(at), names) + plain(rows, names)
    now = list(rng.permutation(names))
    assert plain(rows.renumbered(names, now), now) == plain(rows, names)
    fewer = now[:-1]
    kept = [row for row in plain(rows, names) if row[2] != now[-1]]
    want = [(*row[:4], [name for name in row[4] if name != now[-1]]) for row in kept]
    assert plain(rows.renumbered(names, fewer), fewer) == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": [0.0, 2.0]}, "reward"),
        ({"reward": [0.0, np.nan]}, "reward"),
        ({"arm": [0, -1]}, "candidates"),
        ({"x": [[1.0, np.inf], [0, 1]]}, "x"),
        ({"candidates": [[0, 0], None]}, "candidates"),
        ({"candidates": [[1], None]}, "candidates"),
        ({"candidates": [[0, 1, 1], None]}, "candidates"),
        ({"candidates": [None]}, "candidates: expected 2 sequences"),
        ({"reward": [0.0]}, "reward: expected float32 of shape"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, Any], message: str) -> None:
    sound = {"x": [[1.0, 0.0], [0.0, 1.0]], "arm": [0, 1], "reward": [0.0, 1.0]}
    Rows.of(**sound)
    with pytest.raises(SonaValueError, match=message):
        Rows.of(**(sound | change))


def test_bad_arguments_of_a_replay_are_refused() -> None:
    policy = make_policy()
    replay = Replay(policy)
    rows = Rows.of(np.eye(DIM)[:2], [0, 1], [0.0, 1.0])
    for arguments in ({"passes": 0}, {"step": 0.0}, {"step": 1.5}):
        with pytest.raises(SonaValueError, match=next(iter(arguments))):
            replay.run(rows, **arguments)
    with pytest.raises(SonaValueError, match="arm"):
        replay.run(Rows.of(np.eye(DIM)[:2], [0, ARMS], [0.0, 1.0]))
    with pytest.raises(SonaValueError, match="x"):
        replay.score(Rows.of(np.eye(3), [0, 0, 0], [0.0, 1.0, 0.0]))
    policy.remove_arm("arm0")
    with pytest.raises(SonaValueError, match="open arms"):
        Replay(policy).run(rows)


# ---- marks and factors ----


def test_a_mark_is_the_learner_of_its_moment() -> None:
    policy = make_policy()
    rng = np.random.default_rng(4)
    serve(policy, rng, 50)
    mark, probe = Mark.of(policy), Rows.of(rng.normal(size=(30, DIM)), [0] * 30, [0.0] * 30)
    then = Replay(policy).score(probe)
    later = serve(policy, rng, 50)
    assert later[0] == mark.before
    found = Replay(policy, mark).score(probe)
    np.testing.assert_array_equal(found[0], then[0])
    assert (Replay(policy).score(probe)[0] != then[0]).any()


@given(st.integers(0, 20), st.integers(1, 9))
def test_factors_come_back_from_their_bytes(rank: int, dim: int) -> None:
    rng = np.random.default_rng(rank)
    one = Factors(*(rng.normal(size=shape).astype(np.float32) for shape in ((rank, dim), (rank, dim), (rank,))))
    back = Factors.from_bytes(one.to_bytes())
    for name in ("down", "up", "offset"):
        np.testing.assert_array_equal(getattr(one, name), getattr(back, name))
    assert back.digest == one.digest
    for damaged in (one.to_bytes()[:-1], one.to_bytes() + b"0000", b"", b"x" * 20):
        with pytest.raises(SonaCorruptError):
            Factors.from_bytes(damaged)


def test_factors_that_are_no_correction_are_refused() -> None:
    down, offset = np.ones((2, 3), np.float32), np.ones(2, np.float32)
    for bad in ((down, down[:1], offset), (down, down, offset[:1]), (down * np.nan, down, offset), (down.astype(np.float64), down, offset)):
        with pytest.raises(SonaValueError, match="factors"):
            Factors(*bad)
    with pytest.raises(SonaVersionError, match="4 numbers, got 3"):
        Factors(down, down, offset).check(4, "v")
    with pytest.raises(SonaVersionError, match="finite"):
        Factors(down * np.float32(1e18), down * np.float32(1e18), offset).check(3, "v")


# ---- shards ----


def shards_of(replay: Replay, rows: Rows, count: int, **options: Any) -> list[Factors]:
    return [replay.run(rows.take(np.arange(at, len(rows), count)), **options) for at in range(count)]


def test_one_shard_is_one_pass_and_the_reduction_of_one_is_itself() -> None:
    rng = np.random.default_rng(3)
    policy = make_policy(3)
    serve(policy, rng, 60)
    rows, replay = Rows.remembered(policy, 60), Replay(policy)
    whole = replay.run(rows, passes=2, seed=4)
    assert replay.run(rows, passes=2, seed=4, shards=1).to_bytes() == whole.to_bytes()
    assert replay.reduce([whole]).to_bytes() == whole.to_bytes()


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_shards_are_replayed_from_one_start_and_their_mean_is_taken_on_the_products(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    policy = make_policy(seed)  # of full rank: nothing is truncated away
    serve(policy, rng, 40)
    rows, replay = Rows.remembered(policy, 40), Replay(policy)
    parts = shards_of(replay, rows, count, passes=2, seed=seed)
    found = replay.run(rows, passes=2, seed=seed, shards=count)
    for got, want in zip(dense(found), zip(*map(dense, parts), strict=True), strict=True):
        mean = np.mean(want, axis=0)
        np.testing.assert_allclose(got, mean, atol=1e-4 * max(1.0, float(np.abs(mean).max())))
    assert replay.reduce(parts).to_bytes() == found.to_bytes()


def test_reduced_corrections_have_the_rank_of_the_base() -> None:
    rng = np.random.default_rng(5)
    policy = make_policy(5, rank=3)
    serve(policy, rng, 80)
    replay = Replay(policy, max_discard=0.99)
    found = replay.run(Rows.remembered(policy, 80), shards=4)
    assert len(found.down) == policy.adapter.info()["rank"] == 3


def test_no_shards_are_refused() -> None:
    policy = make_policy()
    serve(policy, np.random.default_rng(0), 5)
    replay = Replay(policy)
    with pytest.raises(SonaValueError, match="at least one correction, got none"):
        replay.reduce([])
    with pytest.raises(SonaValueError, match="shards: expected an int of at least 1, got 0"):
        replay.run(Rows.remembered(policy, 5), shards=0)


# ---- reservoirs ----


def test_every_decision_has_the_same_chance_to_be_in_the_reservoir() -> None:
    counts = np.zeros(50)
    for seed in range(2000):
        one = Reservoir(10)
        one.offer(range(50), np.random.default_rng(seed))
        counts[one.ids] += 1
    assert counts.sum() == 2000 * 10
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)


def test_merged_reservoirs_are_a_sample_of_both() -> None:
    share = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        one, two = Reservoir(10), Reservoir(10)
        one.offer(range(30), rng)
        two.offer(range(100, 190), rng)
        both = one.merged(two, rng)
        assert (len(both.ids), len(set(both.ids)), both.seen) == (10, 10, 120)
        share += sum(id < 100 for id in both.ids)
    assert share / 5000 == pytest.approx(0.25, abs=0.03)


def test_tasks_are_bounded_and_come_back() -> None:
    tasks = Tasks(20)
    for n in range(MAX_TASKS + 4):
        tasks.begin(f"task{n}")
        tasks.offer(range(1000 * n, 1000 * n + 100))
    assert len(tasks.kept) == MAX_TASKS
    assert len(tasks.ids) == 20 * MAX_TASKS
    assert any(id < 5000 for id in tasks.ids)
    assert Tasks.restore(tasks.state()).state() == tasks.state()
    tasks.begin("task7")  # goes on
    assert list(tasks.kept)[-1] == "task7"
    assert tasks.kept["task7"].seen == 100


def test_a_task_keeps_its_tolerance_and_the_stricter_one_stays_when_two_merge() -> None:
    tasks = Tasks(20)
    tasks.begin("a", 0.1)
    tasks.begin("b", 0.3)
    tasks.begin("a")
    assert [each.tolerance for each in tasks.kept.values()] == [0.3, 0.1]
    for n in range(MAX_TASKS - 1):
        tasks.begin(f"more {n}")
    assert next(iter(tasks.kept.values())).tolerance == 0.1
    again = Tasks.restore(tasks.state())
    assert again.state() == tasks.state()
    before = {"size": 20, "tasks": [["a", 3, [1, 2, 3]]]}  # as it was written before tasks had one
    assert Tasks.restore(before).kept["a"].tolerance is None


FORGOTTEN = """
    import gc
    import numpy as np
    from sona import Router
    from sona.loops.rows import Rows

    def read(turn):
        router, seen = Router(np.eye(3, 8), pending=64), []
        for number in range(64):
            router.feedback(router.route(np.ones(8)).id, number % 2)

        def elsewhere(phase, info):  # a collection may run whatever somebody has hung on an object, and let other threads in
            seen.append(phase == "start")
            if sum(seen) == turn and seen[-1]:
                for _ in range(40):
                    router.route(np.ones(8))

        gc.callbacks.append(elsewhere)
        gc.set_threshold(1)
        rows = Rows.remembered(router.engine.policy, 64)
        gc.set_threshold(700)
        gc.callbacks.clear()
        assert len(rows.x) == len(rows.arm) == len(rows.start) - 1 == len(rows.id)
        assert set(rows.reward) <= {0, 1}
        return len(rows.id), sum(seen) >= turn

    found = {read(turn) for turn in range(1, 20)}
    assert (24, True) in found and found <= {(24, True), (64, True), (64, False)}, found
"""


def test_what_is_forgotten_while_it_is_read_is_left_out(run_python: RunPython) -> None:
    run_python(FORGOTTEN)


TORN = """
    import gc
    import numpy as np
    from sona import Router

    def read(turn):
        router, seen = Router(np.eye(3, 8), pending=4), []
        policy = router.engine.policy
        first = router.route(np.eye(8)[0], [0, 1]).id
        router.feedback(first, 1.0)

        def elsewhere(phase, info):
            seen.append(phase == "start")
            if sum(seen) == turn and seen[-1]:
                for _ in range(8):
                    router.route(np.eye(8)[5])

        held = [([], {}, tuple([n, n, n])) for n in range(3000)]  # else they come from where nothing is counted
        gc.callbacks.append(elsewhere)
        gc.set_threshold(1)
        found = policy.recorded(first)
        gc.set_threshold(700)
        gc.callbacks.clear()
        assert found["x"].tolist() == np.eye(8)[0].tolist(), found
        assert (found["reward"], found["candidates"], found["own"]) == (1.0, [0, 1], True), found
        return sum(seen) >= turn

    assert any([read(turn) for turn in range(1, 5)])
"""


def test_a_decision_that_is_forgotten_while_it_is_read_is_read_as_it_was(run_python: RunPython) -> None:
    run_python(TORN)
