"""Promises of the drift alarm: silent while the world stays, soon when it turns, and what was learned is doubted, not lost."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Clusters

from sona import Adwin, Router
from sona.errors import SonaValueError, SonaVersionError
from sona.loops._drift import BUCKET, MEMORY, Watch
from sona.loops.background import BackgroundLoopConfig
from sona.loops.drift import Drift
from sona.patterns import PatternConfig


class Turning(Clusters):
    """From `turn` on the right arm of each cluster is another one."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.turn = False

    def draw(self) -> tuple[Any, int]:
        x, k = super().draw()
        return x, (k + 1) % len(self.arms) if self.turn else k


def serve(router: Router, world: Clusters, rounds: int) -> list[float]:
    rewards = []
    for _ in range(rounds):
        x, best = world.draw()
        d = router.route(x)
        rewards.append(float(d.index == best))
        router.feedback(d.id, rewards[-1])
    return rewards


def alarms(router: Router) -> int:
    return int(router.stats()["drift"]["alarms"])


def drift_of(router: Router) -> Drift:
    assert router.engine.drift is not None
    return router.engine.drift


# ---- the window against Adwin ----


@given(st.lists(st.tuples(st.integers(1, 400), st.floats(0, 1), st.floats(-1, 0)), max_size=8), st.integers(0, 2**32))
def test_the_window_is_that_of_adwin(parts: list[tuple[int, float, float]], seed: int) -> None:
    """Stretches of some length, success rate and expectation."""
    rng = np.random.default_rng(seed)
    watch, slow = Watch(0.05), Adwin(0.05, bucket=BUCKET, clock=BUCKET, memory=MEMORY)
    values: list[float] = []
    for length, rate, offset in parts:
        values += ((rng.random(length) < rate) + offset).tolist()
    for id, value in enumerate(values):
        found, cut = watch.update(id, value), slow.update(value)
        fell = cut and slow.change < 0 and slow.mean + (slow.mean - slow.change) < 0  # below 0, not back to it
        assert found == (-1 if fell else 1 if cut and slow.change > 0 else 0)
        assert watch.width == slow.width <= MEMORY
        assert watch.mean == pytest.approx(slow.mean, abs=1e-12)
        assert watch.first == (id + 1) // BUCKET * BUCKET - watch.width


def test_a_window_goes_on_after_a_restart_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    values = [*((rng.random(1500) < 0.9) - 0.9), *((rng.random(500) < 0.3) - 0.9), *((rng.random(500) < 0.9) - 0.9)]
    undisturbed, restarted = Watch(), Watch()
    found = []
    for id, value in enumerate(values):
        if id % 97 == 0:
            kept = {name: array.copy() for name, array in restarted.state().items()}
            restarted = Watch()
            restarted.restore(kept)
        found.append((undisturbed.update(id, value), restarted.update(id, value)))
        assert found[-1][0] == found[-1][1]
    assert {-1, 1} <= {first for first, _ in found}
    for name, array in undisturbed.state().items():
        np.testing.assert_array_equal(restarted.state()[name], array)


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("window", 0, 99.0),
        ("window", 0, math.nan),
        ("window", 1, -2.0),
        ("window", 2, 0.0),
        ("window", 3, 16.0),
        ("window", 4, 17.0),
        ("window", 5, math.nan),
        ("buckets", (0, 0), 0.0),
        ("buckets", (0, 0), 7.0),
        ("buckets", (0, 0), math.nan),
        ("buckets", (0, 1), 9e9),
        ("buckets", (0, 2), -1.0),
    ],
)
def test_a_damaged_window_is_refused(name: str, at: Any, value: float) -> None:
    watch = Watch()
    for id in range(200):
        watch.update(id, 0.1 if id % 3 else -0.2)
    before = watch.state()
    damaged = {key: array.copy() for key, array in before.items()}
    damaged[name][at] = value
    with pytest.raises(SonaValueError, match="drift: expected"):
        watch.restore(damaged)
    with pytest.raises(SonaValueError, match="drift: expected"):
        watch.restore(before | {name: before[name][:-1]})
    for key, array in before.items():
        np.testing.assert_array_equal(watch.state()[key], array)


def test_what_is_no_surprise_is_refused() -> None:
    with pytest.raises(SonaValueError, match=r"surprise: expected a number in \[-1, 1\], got 2"):
        Watch().update(1, 2.0)
    with pytest.raises(SonaValueError, match="delta"):
        Watch(1.0)


# ---- a router ----


@pytest.mark.parametrize("seed", range(3))
def test_a_router_is_silent_until_the_rewards_turn_and_finds_it_within_64_requests(seed: int) -> None:
    world = Turning(seed)
    router = Router(world.arms, seed=seed)
    serve(router, world, 3000)
    assert alarms(router) == 0
    assert router.stats()["drift"]["time"] == router.stats()["drift"]["since"] == 0
    turned = router.engine.policy.next_id  # type: ignore[union-attr]
    world.turn = True
    serve(router, world, 64)
    assert alarms(router) == 1
    assert router.stats()["drift"]["time"] > 1e9
    assert abs(router.stats()["drift"]["since"] - turned) <= 2 * BUCKET
    serve(router, world, 1000)
    assert alarms(router) == 1


def test_a_router_that_doubts_learns_a_turned_world_sooner() -> None:
    right = {}
    for drift in (True, False):
        found = []
        for seed in range(4):
            world = Turning(seed)
            router = Router(world.arms, seed=seed, drift=drift)
            serve(router, world, 2000)
            world.turn = True
            found.append(sum(serve(router, world, 600)))
        right[drift] = np.mean(found)
    assert right[True] > right[False] + 60
    assert router.stats()["drift"] is None


def test_an_alarm_makes_it_less_certain_and_resets_nothing() -> None:
    """Around the one reward that raises it: much less certain, of what it would have chosen before."""
    world = Turning(1)
    router = Router(world.arms)
    serve(router, world, 1500)
    x = np.stack([world.draw()[0] for _ in range(100)])
    world.turn = True
    for _ in range(64):
        choices, sure = router.predict(x), np.mean([d.scores.max() for d in router.route_batch(x)])
        learned = router.stats()["learned"]
        serve(router, world, 1)
        if alarms(router):
            break
    assert alarms(router) == 1
    assert np.mean([d.scores.max() for d in router.route_batch(x)]) < sure - 0.2
    assert (router.predict(x) == choices).mean() > 0.95
    assert router.stats()["learned"] == learned + 1
    assert np.abs(router.apply_batch(x) - x).max() > 1e-3


def test_doubt_changes_no_first_choice_and_every_probability() -> None:
    world = Turning(1)
    router = Router(world.arms)
    serve(router, world, 500)
    x = np.stack([world.draw()[0] for _ in range(200)])
    policy = router.engine.policy
    assert policy is not None
    choice = router.predict(x)
    sure = np.array([d.scores.max() for d in router.route_batch(x)])
    policy.doubt(0.3)
    np.testing.assert_array_equal(router.predict(x), choice)
    doubted = np.array([d.scores.max() for d in router.route_batch(x)])
    assert (doubted < sure).all()
    assert doubted.mean() < sure.mean() - 0.2
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(SonaValueError, match=r"share: expected a number in \(0, 1\]"):
            policy.doubt(share)


def test_the_surprise_of_the_newest_first_reward_is_known() -> None:
    world = Turning(1)
    router = Router(world.arms)
    policy = router.engine.policy
    assert policy is not None
    assert math.isnan(policy.last_surprise)
    d = router.route(world.draw()[0])
    router.feedback(d.id, 1.0)
    surprise = policy.last_surprise
    assert surprise == pytest.approx(1 - d.scores[d.index], abs=1e-6)
    router.feedback(d.id, 0.0)  # another reward of the same decision is no first one
    assert policy.last_surprise == surprise
    before = drift_of(router).state()["window"][2]
    assert before == 1


def test_a_rise_is_no_alarm() -> None:
    world = Turning(2)
    router = Router(world.arms)
    rng = np.random.default_rng(0)
    for rate in (0.3, 1.0):  # the right arm succeeds more often from one day on
        for _ in range(1500):
            x, best = world.draw()
            d = router.route(x)
            router.feedback(d.id, float(d.index == best and rng.random() < rate))
    assert alarms(router) == 0


# ---- kept ----


def test_alarms_and_the_window_survive_a_restart_and_a_crash(tmp_path: Path) -> None:
    """The copy of the file is what a crash leaves: its state is older than the alarm, which is raised again from the stored rewards."""
    world = Turning(3)
    with Router(world.arms, store=tmp_path / "s.db", seed=1) as router:
        serve(router, world, 700)
        router.flush()
        router.engine.journal.save()  # type: ignore[union-attr]
        world.turn = True
        serve(router, world, 200)
        router.flush()
        assert alarms(router) == 1
        kept = drift_of(router).state()
        delta = router.engine.adapters[0].delta()
        for file in tmp_path.glob("s.db*"):
            shutil.copy(file, tmp_path / file.name.replace("s.db", "crash.db"))
    for name in ("s.db", "crash.db"):
        with Router(world.arms, store=tmp_path / name, seed=1) as router:
            for key, array in kept.items():
                if key not in ("time", "times"):  # of the learning process
                    np.testing.assert_array_equal(drift_of(router).state()[key], array)
            np.testing.assert_array_equal(router.engine.adapters[0].delta(), delta)
            assert router.stats()["drift"]["time"] > 1e9


def test_states_without_an_alarm_are_read_and_damaged_ones_refused() -> None:
    world = Turning(4)
    router = Router(world.arms)
    serve(router, world, 300)
    state = router.engine.state()
    older = {name: array for name, array in state.items() if not name.startswith("drift.")}
    router.engine.restore(older)
    assert drift_of(router).stats() == {"alarms": 0, "time": 0.0, "since": 0, "width": 0, "surprise": 0.0}
    router.engine.restore(state)
    assert drift_of(router).stats()["width"] > 200
    for change in ({"drift.alarms": np.zeros(1)}, {"drift.time": np.array([math.nan])}, {"drift.window": np.zeros(3)}):
        with pytest.raises(SonaVersionError, match="drift: expected"):
            router.engine.restore(state | change)
    assert drift_of(router).stats()["width"] > 200
    Router(world.arms, drift=False).engine.restore(state)


# ---- what the background loop replays ----


def test_a_cycle_replays_what_came_after_the_change_and_the_reservoirs_of_earlier_tasks(tmp_path: Path) -> None:
    config = BackgroundLoopConfig(
        patterns=PatternConfig(embedding_dim=20, k_clusters=6), min_trajectories=50, reservoir_rows=30, trial=False
    )
    for store in (None, tmp_path / "s.db"):
        world = Turning(5)
        with Router(world.arms, store=store, background=config) as router:
            serve(router, world, 300)
            router.engine.loop_b.start_task("second")
            serve(router, world, 700)
            assert router.background_learn().trajectories_processed == 1000
            world.turn = True
            serve(router, world, 200)
            assert alarms(router) == 1
            result = router.background_learn()
            since = router.stats()["drift"]["since"]
            assert result.status == "completed"
            assert 200 - BUCKET <= result.trajectories_processed <= 200 + 2 * BUCKET
            assert result.version is not None
            assert result.version.window["reservoir"] == 30  # of the first task alone
            assert result.version.window["first_id"] < since <= result.version.window["last_id"]


def test_a_task_that_is_declared_is_no_alarm() -> None:
    """The same turn of the world, with and without the word that another task begins."""
    found = []
    for declared in (False, True):
        world = Turning(40)
        router = Router(world.arms)
        serve(router, world, 1000)
        if declared:
            router.engine.loop_b.start_task("another")
            assert drift_of(router).stats()["width"] == 0
        world.turn = True
        serve(router, world, 300)
        found.append(alarms(router))
    assert found == [1, 0]


def test_a_later_change_is_found_in_a_declared_task() -> None:
    world = Turning(41)
    router = Router(world.arms)
    serve(router, world, 500)
    router.engine.loop_b.start_task("another")
    serve(router, world, 500)
    world.turn = True
    serve(router, world, 200)
    assert alarms(router) == 1
