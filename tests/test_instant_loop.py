"""Loop A and the engine around it: trajectories in, adapter rows out, rewards whenever they come."""

import json
from pathlib import Path

import numpy as np
import pytest

import sona

DIM = 12


def vectors(seed: int, count: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def trajectory(rewards: list[float | None], expected: float | None = 0.4) -> sona.QueryTrajectory:
    x, *directions = vectors(1, 1 + len(rewards))
    builder = sona.TrajectoryBuilder(7, x)
    for v, reward in zip(directions, rewards, strict=True):
        builder.add_step(v, None, reward, expected=expected)
    return builder.build(0.5)


def test_a_trajectory_is_recorded_and_each_step_becomes_the_pair_of_the_instant_step() -> None:
    loop = sona.InstantLoop(DIM)
    t = trajectory([1.0, 0.0])
    assert loop.on_inference(t) == [1.0, 0.0]
    adapter, instant = sona.Adapter(DIM, micro=1), sona.Instant(DIM)
    for step in t.steps:
        instant.step(adapter, t.query_embedding, step.activations, step.reward, step.expected)
    np.testing.assert_array_equal(loop.adapters[0].up, adapter.up)
    np.testing.assert_array_equal(loop.adapters[0].down, adapter.down)
    assert [kept.id for kept in loop.drain_trajectories()] == [7]
    assert loop.drain_trajectories() == []
    assert (loop.metrics.processed, loop.metrics.accumulated, loop.metrics.dropped) == (1, 2, 0)


def test_one_step_learns_although_its_own_mean_is_its_reward() -> None:
    loop = sona.InstantLoop(DIM)
    loop.on_inference(trajectory([1.0], expected=None))
    assert np.abs(loop.adapters[0].delta()).max() > 0


def test_no_steps_and_steps_without_a_reward_are_recorded_and_teach_nothing() -> None:
    loop = sona.InstantLoop(DIM)
    assert loop.on_inference(trajectory([])) == []
    assert loop.on_inference(trajectory([None])) == [None]
    assert len(loop.adapters[0].up) == 0
    assert loop.metrics.rejected == 1
    assert len(loop.drain_trajectories()) == 2


def test_a_full_buffer_drops_the_record_and_counts_but_still_learns() -> None:
    loop = sona.InstantLoop(DIM, sona.InstantLoopConfig(max_pending_signals=2))
    for _ in range(5):
        loop.on_inference(trajectory([1.0]))
    assert (loop.metrics.processed, loop.metrics.dropped, loop.metrics.accumulated) == (5, 3, 5)


def test_flush_folds_and_does_not_change_the_output() -> None:
    loop = sona.InstantLoop(DIM)
    loop.on_inference(trajectory([1.0, 0.0]))
    before = loop.adapters[0].delta()
    assert loop.adapters[0].info()["base"] < 2
    loop.flush_updates()
    assert loop.adapters[0].info()["base"] == 2
    np.testing.assert_array_equal(loop.adapters[0].delta(), before)
    assert loop.metrics.flushes == 1
    often = sona.InstantLoop(DIM, sona.InstantLoopConfig(flush_every=1))
    often.on_inference(trajectory([1.0, 0.0]))
    assert often.metrics.flushes == 2
    np.testing.assert_allclose(often.adapters[0].delta(), before, atol=1e-6)


def test_defaults_are_the_roadmaps_where_they_still_mean_something() -> None:
    config = sona.InstantLoopConfig()
    assert (config.micro_lora_rank, config.max_pending_signals) == (1, 1000)


def test_layers_need_one_adapter_and_one_step_each() -> None:
    with pytest.raises(sona.SonaValueError, match="one adapter and one instant step"):
        sona.InstantLoop(DIM, adapters=[sona.Adapter(DIM)], instants=[sona.Instant(DIM), sona.Instant(DIM)])
    with pytest.raises(sona.SonaValueError, match="of dim 12"):
        sona.InstantLoop(DIM, adapters=[sona.Adapter(DIM + 1)], instants=[sona.Instant(DIM)])


def engine(**changes: object) -> sona.SonaEngine:
    return sona.SonaEngine(sona.SonaConfig(hidden_dim=DIM, **changes))


def test_feedback_after_the_end_is_what_a_reward_in_the_step_would_have_been() -> None:
    x, v = vectors(2, 2)
    at_once, later, revised = engine(), engine(), engine()
    for e, reward in ((at_once, 1.0), (later, None), (revised, None)):
        tid = e.begin_trajectory(x)
        e.add_step(tid, activations=v, reward=reward, expected=0.3)
        e.end_trajectory(tid)
        if e is not at_once:
            assert e.feedback(tid, 1.0)
            assert e.feedback(tid, 1.0)
    np.testing.assert_array_equal(later.apply(x), at_once.apply(x))
    assert np.abs(later.apply(x) - x).max() > 0
    assert revised.feedback(tid, 0.0)
    assert np.dot(revised.apply(x) - x, v) < np.dot(later.apply(x) - x, v)


def test_quality_is_the_reward_of_steps_without_one() -> None:
    x, v = vectors(3, 2)
    given, own = engine(), engine()
    for e, reward, quality in ((given, None, 0.8), (own, 0.8, None)):
        tid = e.begin_trajectory(x)
        e.add_step(tid, activations=v, reward=reward, expected=0.3)
        e.end_trajectory(tid, quality)
    np.testing.assert_array_equal(given.apply(x), own.apply(x))


def test_feedback_for_open_and_unknown_trajectories() -> None:
    x, v = vectors(4, 2)
    e = engine()
    tid = e.begin_trajectory(x)
    e.add_step(tid, activations=v)
    with pytest.raises(sona.SonaValueError, match="still open"):
        e.feedback(tid, 1.0)
    e.end_trajectory(tid)
    with pytest.raises(sona.SonaValueError, match="begun and not ended"):
        e.end_trajectory(tid)
    with pytest.raises(sona.SonaValueError, match="begun and not ended"):
        e.add_step(tid, activations=v)
    assert not e.feedback(12345, 1.0)
    assert e.stats()["unknown_feedback"] == 1
    for bad in (float("nan"), float("inf"), 1.5, -0.1):
        with pytest.raises(sona.SonaValueError, match="reward"):
            e.feedback(tid, bad)
    assert e.stats()["rejected"] == 4
    np.testing.assert_array_equal(e.apply(x), x)


def test_rewards_of_another_range_are_mapped_and_clipped_on_request() -> None:
    x, v = vectors(5, 2)
    unit, signed = engine(), engine(reward_range=(-1.0, 1.0), clip=True)
    for e, reward in ((unit, 1.0), (signed, 3.0)):
        tid = e.begin_trajectory(x)
        e.add_step(tid, activations=v, reward=reward, expected=0.3)
        e.end_trajectory(tid)
    np.testing.assert_array_equal(unit.apply(x), signed.apply(x))
    assert signed.stats()["clipped"] == 1


def test_apply_writes_in_place_by_tier_and_in_batches() -> None:
    x, *vs = vectors(6, 5)
    e = engine(num_layers=2)
    for v in vs:
        tid = e.begin_trajectory(x)
        e.add_step(tid, activations=v, reward=1.0, expected=0.2, layer=1)
        e.end_trajectory(tid)
    np.testing.assert_array_equal(e.apply(x), x)
    whole = e.apply(x, layer=1)
    parts = e.apply_micro_lora(x, layer=1) + e.apply_base_lora(x, layer=1) - x
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    out = np.empty(DIM, np.float32)
    assert e.apply(x, out, layer=1) is out
    same = x.copy()
    e.apply(same, same, layer=1)
    np.testing.assert_array_equal(out, whole)
    np.testing.assert_array_equal(same, whole)
    np.testing.assert_allclose(e.apply_batch(np.stack([x, 2 * x]), layer=1)[0], whole, atol=1e-6)
    with pytest.raises(sona.SonaValueError, match="layer: expected 0 to 1, got 2"):
        e.apply(x, layer=2)
    out.flags.writeable = False
    with pytest.raises(sona.SonaValueError, match="read-only"):
        e.apply(x, out)


def test_save_and_load(tmp_path: Path) -> None:
    x, v = vectors(7, 2)
    e = engine(precondition="full")
    tid = e.begin_trajectory(x)
    e.add_step(tid, activations=v, reward=1.0, expected=0.2)
    e.end_trajectory(tid)
    e.save(tmp_path / "snapshot")
    again = sona.SonaEngine.load(tmp_path / "snapshot")
    assert again.config == e.config
    for one in (e, again):
        tid = one.begin_trajectory(v)
        one.add_step(tid, activations=x, reward=0.0, expected=0.7)
        one.end_trajectory(tid)
    np.testing.assert_array_equal(again.apply(x), e.apply(x))


def test_a_store_keeps_trajectories_and_what_they_taught(tmp_path: Path) -> None:
    x, v = vectors(8, 2)
    with sona.SonaEngine(sona.SonaConfig(hidden_dim=DIM), store=tmp_path / "sona.db") as e:
        tid = e.begin_trajectory(x)
        e.add_step(tid, activations=v, reward=1.0, expected=0.2)
        e.end_trajectory(tid)
        e.flush()
        learned = e.apply(x)
        json.dumps(e.stats())
    e.close()
    with pytest.raises(sona.SonaClosedError):
        e.apply(x)
    with sona.SonaEngine(sona.SonaConfig(hidden_dim=DIM), store=tmp_path / "sona.db") as again:
        np.testing.assert_array_equal(again.apply(x), learned)
        assert [row.id for row in again.store.trajectories()] == [tid]


def test_begun_and_never_ended_trajectories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.engine._OPEN_TRAJECTORIES", 3)
    e = engine()
    for _ in range(5):
        e.begin_trajectory(vectors(9, 1)[0])
    assert (e.stats()["open_trajectories"], e.stats()["abandoned"]) == (3, 2)


@pytest.mark.parametrize("preset", ["max_throughput", "max_quality", "edge", "batch", "ephemeral", "coordinator"])
def test_presets_make_working_engines(preset: str) -> None:
    x = vectors(10, 1)[0]
    config = getattr(sona.SonaConfig, preset)(hidden_dim=DIM)
    np.testing.assert_array_equal(sona.SonaEngine(config).apply(x), x)
    with pytest.raises(TypeError):
        getattr(sona.SonaConfig, preset)(hidden_dim=DIM, no_such_field=1)


@pytest.mark.parametrize(
    "bad",
    [{"hidden_dim": 0}, {"micro_lora_rank": 3}, {"base_lora_rank_max": 4}, {"p0": 0.0}, {"p0": float("inf")}, {"bias_input": -1.0},
     {"max_discard": 1.0}, {"precondition": "half"}, {"reward_range": (1.0, 0.0)}, {"num_layers": 0}],
)  # fmt: skip
def test_a_bad_config_says_what_it_wants(bad: dict[str, object]) -> None:
    with pytest.raises(sona.SonaValueError, match=f"{next(iter(bad))}: expected"):
        sona.SonaConfig(**bad)
