"""Promises of the presets: each has one of its own, which the defaults do not keep."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from conftest import RunPython

from sona import SonaConfig, SonaEngine
from sona.adapters import Adapter
from sona.demo.world import World, make_world

Array = np.ndarray[Any, Any]
TAU = 0.1
PRESETS = ("max_throughput", "max_quality", "edge", "batch", "ephemeral", "coordinator")


def unit(v: Array) -> Array:
    return np.asarray(v / np.linalg.norm(v), np.float32)


def teach(engine: SonaEngine, rng: np.random.Generator, outcomes: int, *, rewarded: bool = True) -> list[int]:
    """Outcomes in all directions: nothing about them is of low rank."""
    d, ids = engine.config.hidden_dim, []
    for _ in range(outcomes):
        tid = engine.begin_trajectory(unit(rng.normal(size=d)))
        v = unit(rng.normal(size=d)) / np.float32(TAU)
        engine.add_step(tid, activations=v, reward=float(rng.random() < 0.5) if rewarded else None, expected=0.5)
        engine.end_trajectory(tid)
        ids.append(tid)
    return ids


def state_bytes(engine: SonaEngine) -> int:
    return sum(value.nbytes for value in engine.state().values())


def same(one: SonaEngine, two: SonaEngine) -> bool:
    a, b = one.state(), two.state()
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


# ---- max_throughput ----


def test_max_throughput_has_nothing_that_grows_with_the_square_of_the_dim() -> None:
    small, large = (SonaEngine(SonaConfig.max_throughput(hidden_dim=d)).state_bytes for d in (256, 512))
    assert large <= 2 * small
    assert SonaEngine(SonaConfig(hidden_dim=512)).state_bytes > 512 * 512 * 4


def test_max_throughput_bounds_the_rows_that_a_request_passes(rng: np.random.Generator) -> None:
    def most(config: SonaConfig) -> int:
        engine, rows = SonaEngine(config), 0
        for _ in range(40):
            teach(engine, rng, 10)
            rows = max(rows, engine.adapters[0].info()["total"])
        return rows

    assert most(SonaConfig.max_throughput(hidden_dim=64)) <= 24
    assert most(SonaConfig(hidden_dim=64)) > 24


# ---- max_quality ----


def after_another_task(config: SonaConfig, world: World) -> float:
    """Accuracy on the first five digits after the last five were learned; the digits' 64 numbers are followed by zeros."""
    engine, d = SonaEngine(config), config.hidden_dim

    def wide(rows: Array) -> Array:
        return np.pad(rows, ((0, 0), (0, d - rows.shape[1]))).astype(np.float32)

    arms, order = wide(world.arms), world.rows(0, 1500)
    for task in (0, 1):
        for row in order[world.y[order] // 5 == task][:400]:
            x = wide(world.x[row : row + 1])[0]
            logits = arms @ engine.apply(x) / TAU
            p = np.exp(logits - logits.max())
            p /= p.sum()
            arm = int(p.argmax())
            tid = engine.begin_trajectory(x)
            reward = float(arm == world.y[row])
            engine.add_step(tid, activations=(arms[arm] - p @ arms) / TAU, reward=reward, expected=min(float(p[arm]), 1.0))
            engine.end_trajectory(tid)
    first = world.held_y < 5
    choice = (engine.apply_batch(wide(world.held_x[first])) @ arms.T).argmax(axis=1)
    return float((choice == world.held_y[first]).mean())


def test_max_quality_keeps_more_of_what_was_learned_where_the_default_has_no_matrix() -> None:
    worlds = [make_world("shift", seed) for seed in range(4)]
    best, default = (
        np.mean([after_another_task(config, world) for world in worlds])
        for config in (SonaConfig.max_quality(hidden_dim=576), SonaConfig(hidden_dim=576))
    )
    assert best > default + 0.02


def test_max_quality_drops_a_hundredth_at_most(rng: np.random.Generator) -> None:
    def dropped(config: SonaConfig) -> float:
        engine, most = SonaEngine(config), 0.0
        for _ in range(40):
            teach(engine, rng, 10)
            most = max(most, engine.adapters[0].info()["discarded"])
        return most

    assert dropped(SonaConfig.max_quality(hidden_dim=96)) <= 0.01 < dropped(SonaConfig(hidden_dim=96))


# ---- edge ----


def edge_bytes(config: SonaConfig, rng: np.random.Generator) -> int:
    engine = SonaEngine(config)
    tracemalloc.start()
    teach(engine, rng, 600)  # what Python holds: the trajectories that may get another reward
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    buffer = engine.loop_a.buffer
    return engine.state_bytes + buffer.used_bytes + held


def test_edge_takes_less_than_a_megabyte(rng: np.random.Generator) -> None:
    assert edge_bytes(SonaConfig.edge(hidden_dim=384), rng) < 1_000_000
    assert edge_bytes(SonaConfig(hidden_dim=384), rng) > 4_000_000


def test_ended_trajectories_are_bounded_in_bytes_as_well(rng: np.random.Generator) -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=64, trajectory_bytes=100_000))
    ids = teach(engine, rng, 400)
    known = [engine.feedback(tid, 1.0) for tid in ids]
    size = 4 * 64 * 2 + 150
    assert known == sorted(known)  # the newest ones are known
    assert 0.8 * 100_000 < sum(known) * size < 1.2 * 100_000


# ---- batch ----


def test_batch_waits_for_rewards_in_groups_and_learns_what_it_would_have_learned_one_by_one() -> None:
    config = SonaConfig.batch(hidden_dim=6)
    grouped, single, default = SonaEngine(config), SonaEngine(config), SonaEngine(SonaConfig(hidden_dim=6))
    count = 12_000
    rewards = np.random.default_rng(1).random(count).round(2)
    ids, early = (teach(engine, np.random.default_rng(2), count, rewarded=False) for engine in (grouped, default))
    assert all(grouped.feedback(tid, reward) for tid, reward in zip(ids, rewards, strict=True))
    assert sum(default.feedback(tid, reward) for tid, reward in zip(early, rewards, strict=True)) == 10_000
    again = np.random.default_rng(2)
    for reward in rewards:
        single.feedback(teach(single, again, 1, rewarded=False)[0], reward)
    assert same(grouped, single)


# ---- ephemeral ----


def test_ephemeral_hands_over_what_it_learned_in_few_bytes(rng: np.random.Generator) -> None:
    config = SonaConfig.ephemeral(hidden_dim=384)
    worker, heir = SonaEngine(config), SonaEngine(config)
    teach(worker, rng, 200)
    assert state_bytes(worker) < 80_000
    default = SonaEngine(SonaConfig(hidden_dim=384))
    teach(default, rng, 200)
    assert state_bytes(default) > 80_000
    heir.restore(worker.state())
    assert same(worker, heir)
    for engine in (worker, heir):
        teach(engine, np.random.default_rng(5), 20)
    assert same(worker, heir)


def test_ephemeral_writes_nothing_to_disk(run_python: RunPython) -> None:
    run_python(
        """
        import os, sys
        import numpy as np, sona
        engine = sona.SonaEngine(sona.SonaConfig.ephemeral(hidden_dim=8))
        written = []
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def watch(event, args):
            if event == "open" and isinstance(args[2], int) and args[2] & writing:
                written.append(args[0])

        sys.addaudithook(watch)
        for n in range(50):
            tid = engine.begin_trajectory(np.ones(8, np.float32))
            engine.add_step(tid, activations=np.ones(8, np.float32), reward=1.0)
            engine.end_trajectory(tid)
            engine.tick()
        engine.background_learn()
        engine.flush()
        engine.close()
        assert not written, written
        open("seen", "w").close()
        assert written
        """
    )


# ---- coordinator ----


def test_a_coordinator_holds_the_trajectories_of_many_workers_until_they_are_drained(rng: np.random.Generator) -> None:
    config = SonaConfig.coordinator(hidden_dim=384)
    engine = SonaEngine(config)
    teach(engine, rng, 1)
    record = engine.loop_a.buffer.used_bytes
    assert config.trajectory_capacity == 50_000
    assert config.trajectory_capacity * record <= config.trajectory_bytes
    assert SonaConfig(hidden_dim=384).trajectory_bytes < config.trajectory_capacity * record
    narrow = SonaEngine(SonaConfig.coordinator(hidden_dim=4))
    teach(narrow, rng, 12_000)
    assert (len(narrow.loop_a.drain_trajectories()), narrow.loop_a.metrics.dropped) == (12_000, 0)
    default = SonaEngine(SonaConfig(hidden_dim=4))
    teach(default, rng, 12_000)
    assert default.loop_a.metrics.dropped == 2_000


def test_a_coordinator_keeps_what_a_hundred_arms_teach() -> None:
    def kept(config: SonaConfig) -> float:
        """Share of a correction of rank 100 that the base keeps."""
        rng, d = np.random.default_rng(3), 128
        down, up = (np.linalg.qr(rng.normal(size=(d, d)))[0][:100].astype(np.float32) for _ in range(2))
        adapter = Adapter(d, rank=config.base_lora_rank, rank_max=config.base_lora_rank_max, max_discard=config.max_discard)
        for pair in zip(up, down, strict=True):
            adapter.append(*pair)
        adapter.truncate()
        return float(np.linalg.norm(adapter.delta()) ** 2 / np.linalg.norm(down.T @ up) ** 2)

    assert kept(SonaConfig.coordinator()) >= 0.98
    assert kept(SonaConfig()) < 0.7


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_changes(preset: str) -> None:
    changed = getattr(SonaConfig, preset)(hidden_dim=12, base_lora_rank=3, trajectory_capacity=7)
    assert (changed.hidden_dim, changed.base_lora_rank, changed.trajectory_capacity) == (12, 3, 7)
    assert len({getattr(SonaConfig, each)() for each in PRESETS} | {SonaConfig()}) == len(PRESETS) + 1
