"""Promises of the engine and of Loop A: outputs are input plus correction, an outcome is learned from once, what is learned can be kept."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import Dense, InstantRule, unit

import sona
from sona import InstantLoop, InstantLoopConfig, InstantLoopMetrics, SonaConfig, SonaEngine, TrajectoryBuilder
from sona.config import Precondition
from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError
from sona.store import SqliteStore
from sona.trajectory import decode, encode
from sona.types import QueryTrajectory, TrajectoryStep

Array = np.ndarray[Any, Any]

DIM = 12


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def make(store: Any = None, **options: Any) -> SonaEngine:
    return SonaEngine(SonaConfig(**({"hidden_dim": DIM} | options)), store=store)


def trained(rng: np.random.Generator, store: Any = None, steps: int = 30, **options: Any) -> SonaEngine:
    engine = make(store, **options)
    for _ in range(steps):
        for layer in range(engine.config.num_layers):
            step(engine, rng, layer=layer)
    return engine


def step(engine: SonaEngine, rng: np.random.Generator, reward: float | None = None, layer: int = 0) -> int:
    tid = engine.begin_trajectory(unit(normal(rng, DIM)))
    engine.add_step(tid, activations=normal(rng, DIM), reward=rng.random() if reward is None else reward, expected=0.5, layer=layer)
    engine.end_trajectory(tid)
    return tid


def everything(engine: SonaEngine) -> list[bytes]:
    return [name.encode() + array.tobytes() for name, array in engine.state().items()]


# ---- requests ----


@pytest.mark.parametrize("layer", [0, 1])
def test_apply_is_the_input_plus_the_tiers(layer: int, rng: np.random.Generator) -> None:
    engine = trained(rng, num_layers=2)
    x = normal(rng, DIM)
    adapter = engine.adapters[layer]
    want = x + x @ adapter.delta() + adapter.scale * adapter.offset @ adapter.up
    np.testing.assert_allclose(engine.apply(x, layer=layer), want, atol=1e-5)
    base, micro = engine.apply_base_lora(x, layer=layer), engine.apply_micro_lora(x, layer=layer)
    np.testing.assert_allclose((base - x) + (micro - x), want - x, atol=1e-5)
    assert np.abs(base - x).max() > 1e-3
    assert np.abs(micro - x).max() > 1e-3
    np.testing.assert_allclose(engine.apply_batch(np.stack([x, 2 * x]), layer=layer)[0], want, atol=1e-5)


def test_a_fresh_engine_returns_its_input_bit_for_bit(rng: np.random.Generator) -> None:
    engine, x = make(), normal(rng, 4, DIM)
    np.testing.assert_array_equal(engine.apply(x[0]), x[0])
    np.testing.assert_array_equal(engine.apply_batch(x), x)
    assert engine.apply(x[0]) is not x[0]


def test_apply_into_an_array(rng: np.random.Generator) -> None:
    engine = trained(rng)
    x = normal(rng, DIM)
    want, kept, out = engine.apply(x), x.copy(), np.empty(DIM, np.float32)
    assert engine.apply(x, out=out) is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(x, kept)
    assert engine.apply(x, out=x) is x
    np.testing.assert_array_equal(x, want)
    rows = normal(rng, 3, DIM)
    batch = engine.apply_batch(rows)
    assert engine.apply_batch(rows, out=rows) is rows
    np.testing.assert_allclose(rows, batch, atol=1e-6)


@pytest.mark.parametrize("shift", [-5, -1, 1, 5, DIM - 1])
def test_input_and_output_may_overlap(shift: int, rng: np.random.Generator) -> None:
    engine = trained(rng)
    memory = normal(rng, 3 * DIM)
    x = memory[DIM : 2 * DIM]
    want = engine.apply(x.copy())
    np.testing.assert_array_equal(engine.apply(x, out=memory[DIM + shift : 2 * DIM + shift]), want)
    rows = normal(rng, 5, DIM)
    batch = engine.apply_batch(rows[1:4].copy())
    np.testing.assert_allclose(engine.apply_batch(rows[1:4], out=rows[2:5]), batch, atol=1e-6)


def test_bad_requests_are_refused(rng: np.random.Generator) -> None:
    engine = trained(rng)
    before = everything(engine)
    x = normal(rng, DIM)
    for bad, error in [
        (np.full(DIM, np.nan), SonaValueError),
        (np.full(DIM, np.inf, np.float32), SonaValueError),
        (np.zeros(DIM + 1), SonaValueError),
        (np.zeros((1, DIM)), SonaValueError),
        (np.zeros(DIM, object), SonaTypeError),
        ("x", SonaTypeError),
    ]:
        for call in (engine.apply, engine.apply_micro_lora, engine.apply_base_lora, engine.begin_trajectory):
            with pytest.raises(error):
                call(bad)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(engine.apply(frozen), engine.apply(x))
    for out, error in [(frozen, SonaValueError), (np.zeros(DIM), SonaTypeError), (np.zeros(DIM + 1, np.float32), SonaValueError)]:
        with pytest.raises(error):
            engine.apply(x, out=out)
    for layer in (-1, 1):
        with pytest.raises(SonaValueError, match="layer: expected 0 to 0"):
            engine.apply(x, layer=layer)
    with pytest.raises(SonaValueError, match="expected shape"):
        engine.apply_batch(x)
    assert everything(engine) == before


BIGGEST = float(np.finfo(np.float32).max)
TIERS = {"both": SonaEngine.apply, "micro": SonaEngine.apply_micro_lora, "base": SonaEngine.apply_base_lora}
tiers = st.sampled_from(sorted(TIERS))
requests = arrays(np.float32, DIM, elements=st.floats(-BIGGEST, BIGGEST, width=32) | st.floats(-2, 2, width=32))


class Vector(np.ndarray[Any, Any]):
    """Somebody's subclass."""


def misaligned(x: Array) -> Array:
    there = np.empty(4 * DIM + 1, np.uint8)[1:].view(np.float32)
    there[:] = x
    return there


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


# Ways to pass the same float32 numbers; the first is the one without a detour.
FORMS: dict[str, Callable[[Array], Any]] = {
    "float32": np.copy,
    "read-only": read_only,
    "subclass": lambda x: x.copy().view(Vector),
    "strided": lambda x: np.repeat(x, 2)[::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "misaligned": misaligned,
    "big-endian": lambda x: x.astype(">f4"),
    "float64": lambda x: x.astype(np.float64),
    "list": np.ndarray.tolist,
}


@pytest.fixture(scope="module")
def learned() -> SonaEngine:
    return trained(np.random.default_rng(7), num_layers=2)


@given(x=requests, form=st.sampled_from(sorted(FORMS)), tier=tiers, where=st.sampled_from(["new", "out", "x"]), enabled=st.booleans())
def test_every_way_to_ask_gives_the_same_bits(learned: SonaEngine, x: Array, form: str, tier: str, where: str, enabled: bool) -> None:
    """Any kind of array, any output: the input, plus what the adapter adds unless it is switched off; x is left alone."""
    want = x.copy()
    if enabled:
        learned.adapters[1].forward_tier(x, want, tier)
    given_x = FORMS[form](x)
    out = {"new": None, "out": np.full(DIM, np.nan, np.float32), "x": given_x}[where]
    if where == "x" and form not in ("float32", "subclass"):
        out = None
    learned.enabled = enabled
    try:
        y = TIERS[tier](learned, given_x, out, 1)
    finally:
        learned.enabled = True
    assert y.tobytes() == want.tobytes()
    if out is not None:
        assert y is out
    else:
        assert (type(y), y.dtype, y.flags.writeable, y.flags.owndata) == (np.ndarray, np.dtype(np.float32), True, True)
    if where != "x" or out is None:
        assert np.asarray(given_x, np.float32).tobytes() == x.tobytes()


@given(
    x=requests,
    bad=st.sampled_from([math.nan, -math.nan, math.inf, -math.inf]),
    at=st.integers(0, DIM - 1),
    form=st.sampled_from(sorted(FORMS)),
    tier=tiers,
    enabled=st.booleans(),
)
def test_one_number_that_is_not_finite_is_refused_and_nothing_is_written(
    learned: SonaEngine, x: Array, bad: float, at: int, form: str, tier: str, enabled: bool
) -> None:
    x[at] = bad
    given_x, out = FORMS[form](x), np.arange(DIM, dtype=np.float32)
    before = out.tobytes()
    learned.enabled = enabled
    try:
        for target in (out, given_x, None):
            with pytest.raises(SonaValueError, match="x: expected finite float32 values, got NaN"):
                TIERS[tier](learned, given_x, target, 1)
    finally:
        learned.enabled = True
    assert out.tobytes() == before
    assert np.asarray(given_x, np.float32).tobytes() == x.tobytes()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("tier", sorted(TIERS))
@pytest.mark.parametrize(
    ("x", "out", "error", "message"),
    [
        (np.zeros(DIM + 1, np.float32), None, SonaValueError, r"x: expected shape \(12,\), got \(13,\)"),
        (np.zeros((1, DIM), np.float32), None, SonaValueError, r"x: expected shape \(12,\), got \(1, 12\)"),
        (np.float32(1), None, SonaValueError, r"x: expected shape \(12,\), got \(\)"),
        (np.zeros(DIM, bool), None, SonaTypeError, "x: expected an array of real numbers, got dtype bool"),
        (np.zeros(DIM, np.complex64), None, SonaTypeError, "x: expected an array of real numbers, got dtype complex64"),
        (None, None, SonaTypeError, "x: expected an array of real numbers, got dtype object"),
        (np.ones(DIM, np.float32), [0.0] * DIM, SonaTypeError, "out: expected a float32 array to write to, got list"),
        (np.ones(DIM, np.float32), np.zeros(DIM), SonaTypeError, "out: expected dtype float32, got float64"),
        (np.ones(DIM, np.float32), np.zeros(DIM, ">f4"), SonaTypeError, "out: expected dtype float32, got >f4"),
        (np.ones(DIM, np.float32), np.zeros(DIM - 1, np.float32), SonaValueError, r"out: expected shape \(12,\), got \(11,\)"),
        (np.ones(DIM, np.float32), np.zeros((DIM, 1), np.float32), SonaValueError, r"out: expected shape \(12,\), got \(12, 1\)"),
        (np.ones(DIM, np.float32), np.zeros(2 * DIM, np.float32)[::2], SonaValueError, "out: expected a C-contiguous aligned array"),
        (np.ones(DIM, np.float32), misaligned(np.zeros(DIM, np.float32)), SonaValueError, "out: expected a C-contiguous aligned array"),
        (np.ones(DIM, np.float32), read_only(np.zeros(DIM, np.float32)), SonaValueError, "out: expected a writeable array"),
    ],
)
def test_a_wrong_request_says_what_was_expected_and_writes_nothing(
    learned: SonaEngine, x: Any, out: Any, error: type[Exception], message: str, tier: str, enabled: bool
) -> None:
    before = bytes(np.asarray(out)) if out is not None else b""
    learned.enabled = enabled
    try:
        with pytest.raises(error, match=f"^{message}"):
            TIERS[tier](learned, x, out, 1)
        with pytest.raises(SonaValueError, match="layer: expected 0 to 1, got 2"):  # first of all
            TIERS[tier](learned, x, out, 2)
    finally:
        learned.enabled = True
    assert (bytes(np.asarray(out)) if out is not None else b"") == before


def test_a_closed_engine_answers_no_request(rng: np.random.Generator) -> None:
    engine, x = trained(rng), normal(rng, DIM)
    engine.close()
    out = x.copy()
    for apply in TIERS.values():
        with pytest.raises(SonaClosedError, match="the engine is closed"):
            apply(engine, x, out)
    assert out.tobytes() == x.tobytes()


# ---- outcomes ----


@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_each_rewarded_step_is_one_instant_step(precondition: Precondition, rng: np.random.Generator) -> None:
    """Rewards of steps, of the end, with and without an expectation, on two layers: the equations of the instant step, in order."""
    engine = make(num_layers=2, precondition=precondition, base_lora_rank=12)
    rules = [InstantRule(DIM, full=precondition == "full") for _ in range(2)]
    dense = [Dense(DIM) for _ in range(2)]
    for t in range(40):
        query = unit(normal(rng, DIM)).astype(np.float32)
        tid = engine.begin_trajectory(query)
        steps: list[tuple[int, Any, Array, float | None, float | None]] = []
        for number in range(t % 4):
            layer = number % 2
            x = unit(normal(rng, DIM)).astype(np.float32) if rng.random() < 0.5 else None
            v = normal(rng, DIM)
            reward = float(np.float32(rng.random())) if rng.random() < 0.5 else None
            expected = float(np.float32(rng.random())) if rng.random() < 0.5 else None
            steps.append((layer, x, v, reward, expected))
            engine.add_step(tid, activations=v, attention_weights=[0.5, 0.5], reward=reward, expected=expected, layer=layer, x=x)
        quality = float(np.float32(rng.random()))
        engine.end_trajectory(tid, quality)
        for layer, x, v, reward, expected in steps:
            rules[layer].step(dense[layer], query if x is None else x, v, quality if reward is None else reward, expected)
    probe = normal(rng, DIM)
    for layer in range(2):
        np.testing.assert_allclose(engine.apply(probe, layer=layer) - probe, dense[layer](probe), atol=1e-3)
        assert engine.instants[layer].confidence == pytest.approx(rules[layer].confidence, rel=1e-4)
    assert engine.stats()["loop_a"]["processed"] == 40
    assert engine.stats()["loop_a"]["accumulated"] == 60


def test_a_trajectory_without_steps_is_recorded_and_teaches_nothing(rng: np.random.Generator) -> None:
    engine = make()
    tid = engine.begin_trajectory(normal(rng, DIM))
    engine.end_trajectory(tid, quality=1.0)
    assert engine.feedback(tid, 0.5)
    np.testing.assert_array_equal(engine.apply(np.ones(DIM)), np.ones(DIM))
    (recorded,) = engine.loop_a.drain_trajectories()
    assert (recorded.id, len(recorded.steps), recorded.final_quality) == (tid, 0, 1.0)


def test_one_step_teaches(rng: np.random.Generator) -> None:
    """The advantage of a single step is not measured against itself: without an expectation the running mean stands in."""
    for expected in (None, 0.5):
        engine = make()
        x, v = unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM)
        tid = engine.begin_trajectory(x)
        engine.add_step(tid, activations=v, reward=1.0, expected=expected)
        engine.end_trajectory(tid)
        assert (engine.apply(x) - x) @ v > 1e-3


def test_equal_rewards_stop_teaching_only_when_they_are_expected(rng: np.random.Generator) -> None:
    engine = make(precondition="identity")
    x, v = unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM)
    moves = []
    for _ in range(400):
        before = engine.apply(x)
        tid = engine.begin_trajectory(x)
        engine.add_step(tid, activations=v, reward=0.8)
        engine.end_trajectory(tid)
        moves.append(float(np.abs(engine.apply(x) - before).max()))
    assert moves[0] > 0
    assert moves[-1] < 0.01 * moves[0]


def test_the_caller_may_reuse_its_arrays(rng: np.random.Generator) -> None:
    """What is recorded is what was passed, whatever becomes of the arrays, up to feedback that comes later."""
    query, v, w, x = unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM), normal(rng, 3), normal(rng, DIM)
    outs = []
    for reuse in (False, True):
        engine = make()
        mine = [a.copy() for a in (query, v, w, x)]
        tid = engine.begin_trajectory(mine[0])
        engine.add_step(tid, activations=mine[1], attention_weights=mine[2], expected=0.5, x=mine[3])
        engine.add_step(tid, activations=mine[1], expected=0.5)
        if reuse:
            for a in mine:
                a[:] = 7
        engine.end_trajectory(tid)
        assert engine.feedback(tid, 0.9)
        (recorded,) = engine.loop_a.drain_trajectories()
        outs.append((everything(engine), recorded.query_embedding.tobytes(), [s.activations.tobytes() for s in recorded.steps]))
    assert outs[0] == outs[1]


def test_rewards_that_come_later(rng: np.random.Generator) -> None:
    """Feedback for an ended trajectory is what the same reward at its end would have been."""
    x, v = unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM)
    outs = []
    for late in (False, True):
        engine = make()
        tid = engine.begin_trajectory(x)
        engine.add_step(tid, activations=v, expected=0.5)
        if late:
            engine.end_trajectory(tid)
            np.testing.assert_array_equal(engine.apply(x), x)
            assert engine.stats()["loop_a"]["rejected"] == 1
            assert engine.feedback(tid, 0.9)
        else:
            engine.end_trajectory(tid, quality=0.9)
        outs.append(engine.apply(x))
    np.testing.assert_array_equal(outs[0], outs[1])


def test_a_second_reward_replaces_the_first(rng: np.random.Generator) -> None:
    x, v = unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM)
    engine = make(precondition="identity")
    tid = engine.begin_trajectory(x)
    engine.add_step(tid, activations=v, reward=0.2, expected=0.5)
    engine.end_trajectory(tid)
    first = engine.apply(x)
    assert engine.feedback(tid, 0.2)
    np.testing.assert_array_equal(engine.apply(x), first)  # the same one again
    assert engine.stats()["loop_a"]["revised"] == 0
    assert engine.feedback(tid, 0.9)
    assert (engine.apply(x) - first) @ v > 0
    assert engine.feedback(tid, 0.2)
    np.testing.assert_allclose(engine.apply(x), first, atol=1e-5)
    assert engine.stats()["loop_a"]["revised"] == 2


def test_a_trajectory_ends_once_and_is_rewarded_after_it(rng: np.random.Generator) -> None:
    engine = make()
    tid = engine.begin_trajectory(normal(rng, DIM))
    with pytest.raises(SonaValueError, match=f"feedback: expected an ended trajectory, got id {tid}, which is still open"):
        engine.feedback(tid, 1.0)
    engine.end_trajectory(tid)
    for call in (lambda: engine.end_trajectory(tid), lambda: engine.add_step(tid, activations=np.ones(DIM))):
        with pytest.raises(SonaValueError, match=f"begun and not ended, got id {tid}"):
            call()
    for stranger in (tid + 1, 0, -1, 1 << 70):
        assert engine.feedback(stranger, 1.0) is False
        with pytest.raises(SonaValueError):
            engine.end_trajectory(stranger)
    assert engine.stats()["unknown_feedback"] == 4


BAD_STEPS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"activations": np.full(DIM, np.nan)}, SonaValueError),
    ({"activations": np.zeros(DIM - 1)}, SonaValueError),
    ({"activations": np.zeros(0)}, SonaValueError),
    ({"activations": np.zeros((1, DIM))}, SonaValueError),
    ({"activations": ["x"] * DIM}, SonaTypeError),
    ({"reward": math.nan}, SonaValueError),
    ({"reward": math.inf}, SonaValueError),
    ({"reward": 1.5}, SonaValueError),
    ({"reward": -0.1}, SonaValueError),
    ({"reward": "1"}, SonaTypeError),
    ({"expected": math.nan}, SonaValueError),
    ({"expected": 1.5}, SonaValueError),
    ({"expected": -0.5}, SonaValueError),
    ({"expected": "1"}, SonaTypeError),
    ({"x": np.full(DIM, np.inf)}, SonaValueError),
    ({"x": np.zeros(DIM + 1)}, SonaValueError),
    ({"attention_weights": [math.nan]}, SonaValueError),
    ({"layer": 1}, SonaValueError),
    ({"layer": -1}, SonaValueError),
]


@pytest.mark.parametrize(("bad", "error"), BAD_STEPS)
def test_a_bad_step_is_refused_and_the_trajectory_goes_on(bad: dict[str, Any], error: type[Exception], rng: np.random.Generator) -> None:
    outs = []
    for tried in (True, False):
        engine = make()
        x, v = np.ones(DIM, np.float32) / 4, np.arange(DIM, dtype=np.float32)
        tid = engine.begin_trajectory(x)
        if tried:
            with pytest.raises(error):
                engine.add_step(tid, **({"activations": np.ones(DIM)} | bad))
            with pytest.raises(SonaValueError):
                engine.end_trajectory(tid, quality=math.nan)
        engine.add_step(tid, activations=v, reward=1.0, expected=0.3)
        engine.end_trajectory(tid)
        outs.append(everything(engine))
    assert outs[0] == outs[1]


def test_a_step_too_large_to_learn_from_is_counted_and_the_others_are_learned_once(rng: np.random.Generator) -> None:
    """Finite, but its square is not: no weight may see it, at the end or at any later feedback."""
    engine = make()
    x = unit(normal(rng, DIM)).astype(np.float32)
    tid = engine.begin_trajectory(x)
    engine.add_step(tid, activations=normal(rng, DIM), expected=0.5)
    engine.add_step(tid, activations=np.full(DIM, 1e30), expected=0.5)
    engine.add_step(tid, activations=normal(rng, DIM), expected=0.5)
    engine.end_trajectory(tid, quality=1.0)
    assert engine.stats()["loop_a"]["accumulated"] == 2
    assert engine.stats()["loop_a"]["rejected"] == 1
    rows = engine.adapters[0].info()["total"]
    assert engine.feedback(tid, 1.0)
    assert engine.adapters[0].info()["total"] == rows
    assert engine.feedback(tid, 0.0)
    assert engine.adapters[0].info()["total"] == rows + 2
    assert all(np.isfinite(array).all() for array in engine.state().values())


@given(low=st.floats(-100, 99), width=st.floats(0.01, 100), share=st.floats(0, 1))
def test_rewards_in_any_range(low: float, width: float, share: float) -> None:
    high = low + width
    reward = min(low + share * width, high)
    outs = []
    for options, given_reward in (({"reward_range": (low, high)}, reward), ({}, (reward - low) / (high - low))):
        engine = make(**options)
        tid = engine.begin_trajectory(np.ones(DIM))
        engine.add_step(tid, activations=np.ones(DIM), reward=given_reward, expected=0.5)
        engine.end_trajectory(tid)
        outs.append(engine.apply(np.ones(DIM)))
    np.testing.assert_array_equal(outs[0], outs[1])


def test_clipped_rewards_are_counted() -> None:
    engine = make(clip=True, reward_range=(-1.0, 1.0))
    tid = engine.begin_trajectory(np.ones(DIM))
    for reward in (-7.0, 1.0, 1e30):
        engine.add_step(tid, activations=np.ones(DIM), reward=reward)
    engine.end_trajectory(tid, quality=2.0)
    assert engine.feedback(tid, 0.0)
    assert engine.stats()["clipped"] == 3
    with pytest.raises(SonaValueError):
        engine.feedback(tid, math.nan)
    assert engine.stats()["rejected"] == 1


# ---- bounds ----


def test_trajectories_that_never_end_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.engine._OPEN_TRAJECTORIES", 5)
    engine = make()
    ids = [engine.begin_trajectory(np.ones(DIM)) for _ in range(8)]
    assert len(set(ids)) == 8
    stats = engine.stats()
    assert (stats["open_trajectories"], stats["abandoned"]) == (5, 3)
    with pytest.raises(SonaValueError, match="begun and not ended"):
        engine.end_trajectory(ids[2])
    engine.end_trajectory(ids[3])


def test_ended_trajectories_are_remembered_up_to_the_capacity(rng: np.random.Generator) -> None:
    engine = make(trajectory_capacity=4)
    ids = [step(engine, rng, 1.0) for _ in range(7)]
    assert [engine.feedback(id, 0.0) for id in ids] == [False, False, False, True, True, True, True]
    assert len(engine.loop_a.buffer) == 4
    assert engine.stats()["loop_a"]["dropped"] == 3  # the buffer refuses the newest; they were learned from all the same
    assert engine.stats()["loop_a"]["accumulated"] == 7


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
@pytest.mark.parametrize("stored", [False, True])
def test_an_engine_with_ten_thousand_trajectories_takes_less_than_100_mb(stored: bool, tmp_path: Path, run_python: RunPython) -> None:
    """Of a process, as the operating system counts it, beyond what the imports take."""
    script = """
        import resource, sys
        import numpy as np
        import sona

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        with sona.SonaEngine(sona.SonaConfig(hidden_dim=8), store=f"{sys.argv[1]}-imports" if sys.argv[1] else None):
            pass
        before, rng = resident(), np.random.default_rng(0)
        engine = sona.SonaEngine(sona.SonaConfig(hidden_dim=256), store=sys.argv[1] or None)
        for _ in range(10_000):
            x = rng.standard_normal(256, np.float32)
            tid = engine.begin_trajectory(x)
            engine.add_step(tid, activations=x, reward=1.0, expected=0.5)
            engine.end_trajectory(tid)
        assert engine.stats()["loop_a"]["processed"] == 10_000
        print(resident() - before)
        engine.close()
    """
    assert 1e6 < int(run_python(script, tmp_path / "s.db" if stored else "").stdout) < 100e6


def test_ended_trajectories_are_bounded_in_bytes_too() -> None:
    """Long trajectories: the buffer's bound in bytes comes before its bound in number."""
    engine = make(trajectory_capacity=1000, trajectory_bytes=1 << 16)
    for _ in range(100):
        tid = engine.begin_trajectory(np.ones(DIM))
        for _ in range(20):
            engine.add_step(tid, activations=np.ones(DIM))
        engine.end_trajectory(tid)
    assert 0 < len(engine.loop_a.buffer) < 60
    assert engine.loop_a.buffer.used_bytes <= 1 << 16


# ---- the instant loop alone ----


def trajectory(rng: np.random.Generator, *rewards: float | None, layer: int = 0) -> QueryTrajectory:
    builder = TrajectoryBuilder(1, unit(normal(rng, DIM)))
    for reward in rewards:
        builder.add_step(normal(rng, DIM), None, reward, expected=0.5, layer=layer)
    return builder.build()


def test_the_loop_works_alone(rng: np.random.Generator) -> None:
    loop = InstantLoop(DIM)
    assert loop.config == InstantLoopConfig()
    assert loop.on_inference(trajectory(rng, 1.0, None, 0.25)) == [1.0, None, 0.25]
    assert loop.metrics == InstantLoopMetrics(processed=1, accumulated=2, rejected=1)
    assert loop.adapters[0].info()["total"] == 2
    (drained,) = loop.drain_trajectories()
    assert [s.reward for s in drained.steps] == [1.0, None, 0.25]
    assert loop.drain_trajectories() == []


def one_by_one(adapters: Any, instants: Any, t: QueryTrajectory, before: list[float | None] | None, reward: float | None) -> Any:
    """What learning from a trajectory is: (rewards learned, accumulated, revised, rejected), with the calls for a single outcome."""
    after: list[float | None] = []
    counts = [0, 0, 0]
    for number, s in enumerate(t.steps):
        old, new = (None, s.reward) if before is None else (before[number], reward)
        after.append(old)
        if old is not None and old == new:
            continue
        x = t.query_embedding if s.x is None else s.x
        try:
            if new is None or s.layer >= len(adapters):
                raise SonaValueError("nothing to learn")
            if old is None:
                instants[s.layer].step(adapters[s.layer], x, s.activations, new, s.expected)
            else:
                instants[s.layer].revise(adapters[s.layer], x, s.activations, new - old, s.expected)
        except SonaValueError:
            counts[2] += 1
            continue
        after[-1] = new
        counts[old is not None] += 1
    return after, *counts


def weights(adapters: Any, instants: Any) -> list[bytes]:
    arrays = [a for adapter in adapters for a in (adapter.down, adapter.up, adapter.offset)]
    return [a.tobytes() for a in [*arrays, *(v for instant in instants for v in instant.state().values())]]


rewards = st.none() | st.floats(0, 1, width=32) | st.sampled_from([-0.5, 0.5, 1.5])
learnable = arrays(np.float32, DIM, elements=st.floats(-2, 2, width=32))
steps_to_learn = st.builds(
    TrajectoryStep,
    learnable | st.just(np.full(DIM, 1e30, np.float32)),
    st.none() | st.just(np.ones(3, np.float32)),
    rewards,
    st.just(0.0),
    rewards,
    st.integers(0, 2),
    st.none() | learnable,
)


@given(
    query=learnable,
    steps=st.lists(steps_to_learn, max_size=5),
    later=st.lists(rewards.filter(lambda r: r is not None), max_size=3),
    flush_every=st.integers(0, 2),
    precondition=st.sampled_from(["identity", "full"]),
)
def test_a_record_teaches_what_its_steps_teach_one_by_one(
    query: Array, steps: list[TrajectoryStep], later: list[float], flush_every: int, precondition: Precondition
) -> None:
    """Own rewards first, then others for all steps, over two layers: the same weights, rewards and counts as the calls for one outcome."""
    loops = [[sona.Adapter(DIM, rank=4), sona.Adapter(DIM, rank=4)] for _ in range(2)]
    rules = [[sona.Instant(DIM, precondition=precondition) for _ in range(2)] for _ in range(2)]
    loop = InstantLoop(DIM, InstantLoopConfig(flush_every=flush_every), adapters=loops[0], instants=rules[0])
    t = QueryTrajectory(1, query, steps, None, 0)
    learned = loop.on_inference(t)
    want, *counts = one_by_one(loops[1], rules[1], t, None, None)
    assert learned == want
    for reward in later:
        learned = loop.revise(t, learned, reward)
        want, *more = one_by_one(loops[1], rules[1], t, want, reward)
        assert learned == want
        counts = [a + b for a, b in zip(counts, more, strict=True)]
    m = loop.metrics
    assert [m.accumulated, m.revised, m.rejected] == counts
    assert m.flushes == (sum(counts[:2]) // flush_every if flush_every else 0)
    if not flush_every:  # which folds earlier, and so may truncate elsewhere
        assert weights(loops[0], rules[0]) == weights(loops[1], rules[1])


def test_a_trajectory_of_another_length_teaches_nothing(rng: np.random.Generator) -> None:
    loop = InstantLoop(DIM)
    for d in (DIM - 1, DIM + 1):
        builder = TrajectoryBuilder(1, normal(rng, d))
        builder.add_step(normal(rng, d), None, 1.0)
        assert loop.on_inference(builder.build()) == [None]
    assert loop.metrics == InstantLoopMetrics(processed=2, rejected=2)
    assert loop.adapters[0].info()["total"] == 0


def test_bytes_that_are_no_trajectory_change_nothing(rng: np.random.Generator) -> None:
    loop = InstantLoop(DIM)
    record = encode(trajectory(rng, 1.0, 0.5))
    assert loop.on_record(record) == [1.0, 0.5]
    before = weights(loop.adapters, loop.instants)
    for bad in (b"", record[:-1], record + b"\0", bytes(len(record))):
        with pytest.raises(SonaCorruptError, match=r"^trajectory: "):
            loop.on_record(bad)
        with pytest.raises(SonaCorruptError, match=r"^trajectory: "):
            loop.revise_record(bad, [1.0, 0.5], 0.0)
    with pytest.raises(SonaValueError, match="learned: expected 2 rewards, got 1"):
        loop.revise_record(record, [1.0], 0.0)
    assert weights(loop.adapters, loop.instants) == before
    assert loop.metrics == InstantLoopMetrics(processed=1, accumulated=2)
    assert len(loop.drain_trajectories()) == 1


@pytest.mark.parametrize(("every", "flushes"), [(0, 0), (1, 6), (2, 3), (4, 1)])
def test_folding_on_a_schedule_changes_no_output(every: int, flushes: int) -> None:
    outs = []
    for flush_every in (0, every):
        rng = np.random.default_rng(3)
        loop = InstantLoop(DIM, InstantLoopConfig(micro_lora_rank=2, flush_every=flush_every))
        loop.on_inference(trajectory(rng, *[0.9] * 6))
        x, out = np.ones(DIM, np.float32), np.zeros(DIM, np.float32)
        loop.adapters[0].forward(x, out)
        outs.append(out)
    np.testing.assert_array_equal(outs[0], outs[1])
    assert loop.metrics.flushes == flushes
    loop.flush_updates()
    assert loop.adapters[0].info()["base"] == loop.adapters[0].info()["total"] == 6


def test_a_full_buffer_drops_the_record_and_not_the_lesson(rng: np.random.Generator) -> None:
    loop = InstantLoop(DIM, InstantLoopConfig(max_pending_signals=2))
    for _ in range(5):
        loop.on_inference(trajectory(rng, 1.0))
    assert loop.metrics == InstantLoopMetrics(processed=5, accumulated=5, dropped=3)


def test_unusable_steps_are_rejected_one_by_one(rng: np.random.Generator) -> None:
    loop = InstantLoop(DIM)
    assert loop.on_inference(trajectory(rng, 2.0, 0.5, -1.0)) == [None, 0.5, None]
    elsewhere = trajectory(rng, 0.5, layer=3)
    assert loop.on_inference(elsewhere) == [None]
    assert loop.revise(elsewhere, [None], 0.5) == [None]
    assert loop.metrics.rejected == 4


def test_the_loop_checks_its_parts() -> None:
    with pytest.raises(SonaValueError, match="one adapter and one instant step of dim 12 per layer"):
        InstantLoop(DIM, adapters=[sona.Adapter(DIM)] * 2, instants=[sona.Instant(DIM)])
    with pytest.raises(SonaValueError, match="of dim 12 per layer"):
        InstantLoop(DIM, adapters=[sona.Adapter(DIM + 1)])
    with pytest.raises(SonaValueError, match="of dim 12 per layer"):
        InstantLoop(DIM, instants=[sona.Instant(DIM + 1)])
    with pytest.raises(SonaValueError):
        InstantLoop(DIM, InstantLoopConfig(max_pending_signals=0))


# ---- configuration ----


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_dim": 0},
        {"hidden_dim": -1},
        {"hidden_dim": 2.0},
        {"hidden_dim": "8"},
        {"hidden_dim": True},
        {"num_layers": 0},
        {"micro_lora_rank": 0},
        {"micro_lora_rank": 3},
        {"base_lora_rank": 0},
        {"base_lora_rank": 65},
        {"base_lora_rank_max": 4},
        {"max_discard": 1.0},
        {"max_discard": -0.1},
        {"max_discard": math.nan},
        {"p0": 0.0},
        {"p0": math.nan},
        {"p0": math.inf},
        {"bias_input": -1.0},
        {"bias_input": math.inf},
        {"precondition": "none"},
        {"trajectory_capacity": 0},
        {"trajectory_bytes": 0},
        {"reward_range": (1.0, 0.0)},
        {"reward_range": (0.0, math.nan)},
        {"reward_range": (0.0,)},
    ],
)
def test_the_configuration_is_checked(options: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError):
        SonaConfig(**options)


@pytest.mark.parametrize("preset", ["max_throughput", "max_quality", "edge", "batch", "ephemeral", "coordinator"])
def test_presets_are_configurations(preset: str) -> None:
    config = getattr(SonaConfig, preset)(hidden_dim=8, p0=0.5)
    assert (config.hidden_dim, config.p0) == (8, 0.5)
    assert config != SonaConfig(hidden_dim=8, p0=0.5)
    assert SonaConfig(**config.as_dict()) == config
    json.dumps(config.as_dict())
    SonaEngine(config).apply(np.ones(8))
    with pytest.raises(TypeError):
        getattr(SonaConfig, preset)(learning_rate=0.1)
    with pytest.raises(AttributeError):
        config.p0 = 0.1


# ---- state ----


@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_a_saved_engine_goes_on_bit_for_bit(precondition: Precondition, rng: np.random.Generator, tmp_path: Path) -> None:
    engine = trained(rng, num_layers=2, precondition=precondition)
    engine.save(tmp_path / "snapshot")
    loaded = SonaEngine.load(tmp_path / "snapshot")
    assert loaded.config == engine.config
    assert everything(loaded) == everything(engine)
    for each in (engine, loaded):
        again = np.random.default_rng(5)
        for _ in range(5):
            step(each, again, layer=1)
    assert everything(loaded) == everything(engine)


def test_a_snapshot_of_another_model_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    engine = SonaEngine(SonaConfig(hidden_dim=DIM), model_fingerprint="minilm-v1")
    engine.save(tmp_path / "snapshot")
    assert SonaEngine.load(tmp_path / "snapshot", model_fingerprint="minilm-v1").config == engine.config
    with pytest.raises(SonaVersionError, match="minilm-v2"):
        SonaEngine.load(tmp_path / "snapshot", model_fingerprint="minilm-v2")


def test_a_damaged_snapshot_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    trained(rng).save(tmp_path / "snapshot")
    with pytest.raises((SonaCorruptError, SonaStoreError)):
        SonaEngine.load(tmp_path / "nothing")
    largest = max((p for p in (tmp_path / "snapshot").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(SonaCorruptError):
        SonaEngine.load(tmp_path / "snapshot")


def _drop(name: str) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _put(name: str, value: Any) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: {},
        _drop("layer1.up"),
        _drop("layer0.calibration"),
        _drop("layer1.base"),
        _put("layer1.down", np.zeros((3, DIM + 1), np.float32)),
        _put("layer1.up", np.zeros((3, DIM), np.float32)),
        _put("layer1.up", np.full((2, DIM), np.nan, np.float32)),
        _put("layer1.base", np.array([1000])),
        _put("layer1.base", np.array([])),
        _put("layer1.calibration", np.array([np.nan, 1, 1, 1, 0])),
        _put("layer1.covariance", np.zeros((2, 2), np.float32)),
    ],
)
def test_restore_takes_all_or_nothing(damage: Callable[[dict[str, Array]], dict[str, Array]], rng: np.random.Generator) -> None:
    engine = trained(rng, num_layers=2)
    kept = engine.state()
    step(engine, rng)
    step(engine, rng, layer=1)
    before = everything(engine)
    with pytest.raises((SonaValueError, SonaVersionError)):
        engine.restore(damage(kept))
    assert everything(engine) == before
    engine.restore(kept)
    assert everything(engine) != before


def test_a_state_of_other_layers_or_another_kind_is_refused(rng: np.random.Generator) -> None:
    engine = trained(rng)
    before = everything(engine)
    for options in ({"hidden_dim": DIM + 1}, {"precondition": "identity"}):
        with pytest.raises((SonaValueError, SonaVersionError), match="expected"):
            engine.restore(make(**options).state())
    with pytest.raises(SonaVersionError, match="expected 2 layers"):
        make(num_layers=2).restore(engine.state())
    with pytest.raises(SonaVersionError, match=f"expected 1 layer of dim {DIM}, got 2 layers of dim {DIM}"):
        engine.restore(make(num_layers=2).state())
    assert everything(engine) == before


# ---- with a store ----


def test_trajectories_reach_the_store(rng: np.random.Generator, tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        with make(store) as engine:
            ids = [step(engine, rng, 0.75) for _ in range(3)]
            late = engine.begin_trajectory(np.ones(DIM))
            engine.end_trajectory(late, quality=0.5)
            assert engine.feedback(ids[0], 0.25)
            engine.flush()
            rows = list(store.trajectories())
            assert [row.id for row in rows] == [*ids, late]
            assert [row.quality for row in rows] == [None, None, None, 0.5]
            recorded = decode(rows[0].payload)
            assert recorded.steps[0].reward == 0.75
            assert store.reward(ids[0]) == 0.25
        assert not store.closed  # it is the caller's
        assert engine.store is store


def test_ids_differ_between_engines_of_one_store(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        with make(tmp_path / "s.db") as engine:
            seen |= {engine.begin_trajectory(np.ones(DIM)) for _ in range(5)}
    assert len(seen) == 15


def test_what_an_engine_learned_is_there_after_a_restart(rng: np.random.Generator, tmp_path: Path) -> None:
    with trained(rng, tmp_path / "s.db", num_layers=2) as engine:
        kept = everything(engine)
    with make(tmp_path / "s.db", num_layers=2) as engine:
        assert everything(engine) == kept


def test_an_engine_of_another_shape_is_refused_by_the_state_it_finds(rng: np.random.Generator, tmp_path: Path) -> None:
    trained(rng, tmp_path / "s.db").close()
    for options in ({"hidden_dim": DIM + 1}, {"num_layers": 2}, {"precondition": "identity"}):
        with pytest.raises((SonaVersionError, SonaValueError), match="expected"):
            make(tmp_path / "s.db", **options)
    with make(tmp_path / "s.db") as engine:  # and the refused ones left nothing locked
        assert engine.stats()["store"]["leading"] is True


# ---- time, stats, end ----


def test_flush_folds_and_changes_no_output(rng: np.random.Generator) -> None:
    engine = trained(rng)
    x = normal(rng, DIM)
    y = engine.apply(x)
    assert np.abs(engine.apply_micro_lora(x) - x).max() > 0
    engine.tick()
    engine.flush()
    np.testing.assert_array_equal(engine.apply_micro_lora(x), x)
    np.testing.assert_array_equal(engine.apply(x), y)
    assert engine.stats()["loop_a"]["flushes"] == 1


@pytest.mark.parametrize("stored", [False, True])
def test_stats_are_plain_numbers(stored: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    engine = trained(rng, tmp_path / "s.db" if stored else None, num_layers=2)
    stats = engine.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert stats["enabled"] is True
    assert stats["isa"] in sona.isas()
    assert len(stats["layers"]) == len(stats["confidence"]) == 2
    assert ("store" in stats) == stored
    assert engine.state_bytes > 2 * (DIM + 1) ** 2 * 4
    engine.close()


@pytest.mark.parametrize("stored", [False, True])
def test_close_is_the_end(stored: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    with trained(rng, tmp_path / "s.db" if stored else None) as engine:
        open_one = engine.begin_trajectory(np.ones(DIM))
    engine.close()
    for use in (
        lambda: engine.apply(np.ones(DIM)),
        lambda: engine.apply_micro_lora(np.ones(DIM)),
        lambda: engine.apply_batch(np.ones((1, DIM))),
        lambda: engine.begin_trajectory(np.ones(DIM)),
        lambda: engine.add_step(open_one, activations=np.ones(DIM)),
        lambda: engine.end_trajectory(open_one),
        lambda: engine.feedback(open_one, 1.0),
        lambda: engine.tick(),
        lambda: engine.flush(),
        lambda: engine.save(tmp_path / "snapshot"),
    ):
        with pytest.raises(SonaClosedError, match="the engine is closed"):
            use()
    engine.stats()
    assert ("memory" in repr(engine)) != stored


def test_switching_off_leaves_everything_as_it_is(rng: np.random.Generator) -> None:
    engine = trained(rng)
    x = normal(rng, DIM)
    y, before = engine.apply(x), everything(engine)
    engine.enabled = False
    np.testing.assert_array_equal(engine.apply(x), x)
    np.testing.assert_array_equal(engine.apply_batch(x[None]), x[None])
    tid = step(engine, rng, 1.0)
    assert engine.feedback(tid, 0.0)
    assert everything(engine) == before
    engine.enabled = True
    np.testing.assert_array_equal(engine.apply(x), y)


def test_the_roadmaps_loop(rng: np.random.Generator) -> None:
    """Begin, step, end, apply: an action rewarded for a kind of request becomes more likely there, and not elsewhere."""
    engine = SonaEngine(SonaConfig(hidden_dim=DIM))
    actions = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:3].astype(np.float32)
    kinds = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:2].astype(np.float32)
    for _ in range(200):
        kind = int(rng.integers(2))
        x = unit(kinds[kind] + 0.1 * normal(rng, DIM)).astype(np.float32)
        logits = actions @ engine.apply(x) / 0.1
        pi = np.exp(logits - logits.max())
        pi /= pi.sum()
        action = int(rng.choice(3, p=pi / pi.sum()))
        tid = engine.begin_trajectory(x)
        engine.add_step(tid, activations=(actions[action] - pi @ actions) / 0.1, reward=float(action == kind + 1), expected=pi[action])
        engine.end_trajectory(tid)
    for kind in range(2):
        assert (actions @ engine.apply(kinds[kind])).argmax() == kind + 1


def test_what_trajectories_taught_survives_a_crash_after_flush(tmp_path: Path) -> None:
    code = f"""
import os, numpy as np, sona
rng = np.random.default_rng(0)
engine = sona.SonaEngine(sona.SonaConfig(hidden_dim=8), store={str(tmp_path / "sona.db")!r})
for _ in range(20):
    tid = engine.begin_trajectory(rng.normal(size=8))
    engine.add_step(tid, activations=rng.normal(size=8), reward=1.0, expected=0.3)
    engine.end_trajectory(tid)
engine.flush()
np.save({str(tmp_path / "delta.npy")!r}, engine.adapters[0].delta())
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    with sona.SonaEngine(sona.SonaConfig(hidden_dim=8), store=tmp_path / "sona.db") as engine:
        np.testing.assert_array_equal(engine.adapters[0].delta(), np.load(tmp_path / "delta.npy"))


def rewarded(engine: SonaEngine, quality: float | None) -> int:
    tid = engine.begin_trajectory(np.ones(engine.config.hidden_dim))
    engine.add_step(tid, activations=np.ones(engine.config.hidden_dim))
    engine.end_trajectory(tid, quality=quality)
    return tid


def test_a_flush_whose_state_could_not_be_written_is_done_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SonaEngine(store=tmp_path / "s.db") as engine:
        engine.flush()
        rewarded(engine, 1.0)
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "put_state", _full)
            with pytest.raises(SonaStoreError, match="full"):
                engine.flush()
        assert engine.store is not None
        assert engine.store.get_state("default") is None
        engine.flush()
        assert engine.store.get_state("default") is not None


def _full(*_: Any, **__: Any) -> None:
    raise SonaStoreError("database or disk is full")


@pytest.mark.parametrize("ended", ["before the new state", "after it"])
def test_feedback_finds_a_trajectory_that_is_not_yet_written_though_another_state_was_taken_up(
    ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SonaEngine(store=tmp_path / "s.db") as leader, SonaEngine(store=tmp_path / "s.db") as follower:
        assert follower.journal is not None
        rewarded(leader, 1.0)
        leader.flush()
        restores = follower.journal.restores
        with monkeypatch.context() as patch:
            patch.setattr(follower.store, "append", _full)
            tid = rewarded(follower, None) if ended.startswith("before") else None
            follower.journal.poll()
            assert follower.journal.restores == restores + 1
            tid = rewarded(follower, None) if tid is None else tid
            assert follower.feedback(tid, 1.0)
        follower.flush()
        assert leader.journal is not None
        leader.journal.poll()
        leader.journal.save()
        follower.journal.poll()
        x = np.ones(leader.config.hidden_dim)
        np.testing.assert_array_equal(leader.apply(x), follower.apply(x))
        assert leader.loop_a.metrics.accumulated == 2
