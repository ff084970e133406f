"""Promises of the trajectory station: what is recorded comes back exactly, bounded, and becomes the gradient of the textbook."""

import math
import pickle
import resource
import struct
import threading
import time
import zlib
from collections import deque
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sona.errors import SonaClosedError, SonaCorruptError, SonaTypeError, SonaValueError, SonaVersionError
from sona.trajectory import RunningBaseline, TrajectoryBuffer, TrajectoryBuilder, decode, encode, extract_signals
from sona.types import LearningSignal, QueryTrajectory, SignalMetadata, TrajectoryStep

BIGGEST = float(np.finfo(np.float32).max)
numbers = st.floats(-BIGGEST, BIGGEST)
maybe = st.none() | numbers


STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def vectors(length: int) -> st.SearchStrategy[Any]:
    return arrays(np.float32, length, elements=st.floats(-BIGGEST, BIGGEST, width=32))


@st.composite
def trajectories(draw: st.DrawFn, most_steps: int = 4) -> QueryTrajectory:
    d = draw(st.integers(1, 9))
    steps = [
        TrajectoryStep(
            draw(vectors(d)),
            draw(st.none() | st.integers(0, 5).flatmap(vectors)),
            draw(maybe),
            draw(numbers),
            draw(maybe),
            draw(st.integers(0, 2**32 - 1)),
            draw(st.none() | vectors(d)),
        )
        for _ in range(draw(st.integers(0, most_steps)))
    ]
    return QueryTrajectory(draw(st.integers(0, 2**64 - 1)), draw(vectors(d)), tuple(steps), draw(maybe), draw(st.integers(0, 2**64 - 1)))


def plain(value: Any) -> Any:
    """Nested tuples that compare by value, arrays by their bits."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if hasattr(value, "__slots__"):
        return tuple(plain(getattr(value, name)) for name in value.__slots__)
    return value


def step(reward: float | None = 0.5, activations: Any = (1.0, 2.0), **options: Any) -> TrajectoryStep:
    return TrajectoryStep(activations, None, reward, 0.0, **options)


def trajectory(*steps: TrajectoryStep, d: int = 2, id: int = 7) -> QueryTrajectory:
    return QueryTrajectory(id, np.ones(d, np.float32), steps, 0.8, 1000)


def build_with(field: str, value: Any) -> None:
    """A trajectory of one step, right but for one field of one of the two."""
    good: dict[str, Any] = {"activations": np.ones(2), "attention_weights": None, "reward": 0.5, "timestamp": 0.0}
    head: dict[str, Any] = {"id": 1, "query_embedding": np.ones(2), "final_quality": 0.5, "latency_us": 0}
    (head if field in head else good)[field] = value
    QueryTrajectory(steps=(TrajectoryStep(**good),), **head)


# ---- types ----


def test_arrays_are_copied_and_read_only() -> None:
    mine = np.ones(3, np.float32)
    view = mine[:]
    view.flags.writeable = False
    s = step(activations=mine, x=view)
    mine[:] = 9
    assert s.x is not None
    for kept in (s.activations, s.x):
        np.testing.assert_array_equal(kept, [1, 1, 1])
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 2
    with pytest.raises(FrozenInstanceError):
        s.reward = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "value",
    [[1, 2], (1.0, 2.0), np.array([1, 2], np.int8), np.array([1, 2], ">f4"), np.array([1.0, 9.0, 2.0])[::2], np.float16([1, 2])],
    ids=["list", "tuple", "int8", "big-endian", "strided float64", "float16"],
)
def test_any_real_numbers_become_float32(value: Any) -> None:
    kept = step(activations=value).activations
    assert kept.dtype == np.float32
    assert kept.flags.c_contiguous
    np.testing.assert_array_equal(kept, [1, 2])


BAD_VECTORS = [
    ([1.0, math.nan], SonaValueError, "finite"),
    (np.array([1, np.inf], np.float32), SonaValueError, "finite"),
    (np.array([1, 1e300]), SonaValueError, "finite"),
    (np.float32(1), SonaValueError, r"expected shape \(.*\), got \(\)"),
    (np.zeros((2, 1), np.float32), SonaValueError, r"got \(2, 1\)"),
    (["a", "b"], SonaTypeError, "real numbers"),
    (np.array([1, None]), SonaTypeError, "real numbers"),
    ([1j, 2], SonaTypeError, "real numbers"),
    ([[1], [1, 2]], SonaTypeError, "numbers"),
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_VECTORS)
@pytest.mark.parametrize("field", ["activations", "attention_weights", "x", "query_embedding"])
def test_bad_vectors_are_refused_by_name(field: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{field}: .*{message}"):
        build_with(field, value)


def test_a_read_only_array_is_checked_as_well() -> None:
    poisoned = np.array([1, math.nan], np.float32)
    poisoned.flags.writeable = False
    with pytest.raises(SonaValueError, match="finite"):
        step(activations=poisoned)


@pytest.mark.parametrize("field", ["activations", "x", "query_embedding"])
def test_an_empty_vector_is_refused(field: str) -> None:
    with pytest.raises(SonaValueError, match=f"^{field}: expected"):
        build_with(field, np.zeros(0, np.float32))


def test_numbers_near_the_end_of_float32_are_accepted() -> None:
    huge = np.full(300, BIGGEST, np.float32)  # the sum of their squares is not finite
    np.testing.assert_array_equal(step(activations=huge).activations, huge)


def test_empty_attention_weights_are_none() -> None:
    assert TrajectoryStep([1.0], [], 0.5, 0.0).attention_weights is None


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, SonaValueError),
        (math.inf, SonaValueError),
        (1e39, SonaValueError),
        (10**400, SonaValueError),
        ("0.5", SonaTypeError),
        ([0.5, 1.0], SonaTypeError),
    ],
    ids=str,
)
@pytest.mark.parametrize("field", ["reward", "timestamp", "expected", "final_quality"])
def test_bad_numbers_are_refused_by_name(field: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{field}: expected"):
        build_with(field, value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: step(layer=-1), SonaValueError, "layer"),
        (lambda: step(layer=1.5), SonaTypeError, "layer"),
        (lambda: step(x=[1.0]), SonaValueError, r"x: expected shape \(2,\), got \(1,\)"),
        (lambda: QueryTrajectory(-1, [1.0], (), 0.5, 0), SonaValueError, "id"),
        (lambda: QueryTrajectory(2**64, [1.0], (), 0.5, 0), SonaValueError, "id"),
        (lambda: QueryTrajectory(1, [1.0], (), 0.5, -1), SonaValueError, "latency_us"),
        (lambda: trajectory(step(), d=3), SonaValueError, r"steps\[0\].activations: expected shape \(3,\) .*got \(2,\)"),
        (lambda: trajectory(step(), "no step"), SonaTypeError, r"steps\[1\]"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_together_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_numpy_numbers_are_numbers() -> None:
    s = step(np.float32(0.5), layer=np.int64(3))  # type: ignore[arg-type]
    assert (type(s.reward), type(s.layer)) == (float, int)


def test_rewarded_fills_the_gaps_only() -> None:
    t = trajectory(step(None), step(0.25)).rewarded(1.0)
    assert [s.reward for s in t.steps] == [1.0, 0.25]


def test_records_are_dataclasses_whose_changes_are_checked() -> None:
    t = trajectory(step(0.25))
    assert [f.name for f in fields(t)] == ["id", "query_embedding", "steps", "final_quality", "latency_us"]
    changed = replace(t, steps=(replace(t.steps[0], layer=2),), final_quality=None)
    assert (changed.steps[0].layer, changed.steps[0].reward, changed.final_quality, changed.id) == (2, 0.25, None, 7)
    assert changed.query_embedding is t.query_embedding  # nobody can write to it
    with pytest.raises(SonaValueError, match="layer"):
        replace(t.steps[0], layer=-1)
    with pytest.raises(SonaValueError, match="latency_us"):
        replace(t, latency_us=-1)


@given(st.lists(st.floats(-BIGGEST, BIGGEST, width=32), min_size=1, max_size=20), st.data())
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(finite: list[float], data: st.DataObject) -> None:
    kept = step(activations=np.array(finite, np.float32)).activations
    np.testing.assert_array_equal(kept, np.array(finite, np.float32))
    finite[data.draw(st.integers(0, len(finite) - 1))] = data.draw(st.sampled_from([math.nan, -math.nan, math.inf, -math.inf]))
    with pytest.raises(SonaValueError, match="activations: expected finite"):
        step(activations=np.array(finite, np.float32))


@given(trajectories())
def test_trajectories_survive_pickling(t: QueryTrajectory) -> None:
    assert plain(pickle.loads(pickle.dumps(t))) == plain(t)


# ---- the signal ----


def oracle(t: QueryTrajectory, baseline: float | None) -> np.ndarray[Any, Any]:
    """The roadmap's estimate in float64, with the baselines of the docstring."""
    steps = [s for s in t.steps if s.reward is not None]
    gradient = np.zeros(len(t.query_embedding))
    for s in steps:
        own = baseline if baseline is not None else np.mean([s.reward for s in steps if s.reward is not None])
        assert s.reward is not None
        gradient += (s.reward - (s.expected if s.expected is not None else own)) * np.float64(s.activations)
    norm = np.linalg.norm(gradient)
    return gradient / norm if norm > 1e-6 else gradient


small = st.floats(-4, 4, width=32)


@given(st.data(), st.none() | small)
def test_from_trajectory_is_reinforce_with_a_baseline(data: st.DataObject, baseline: float | None) -> None:
    d = data.draw(st.integers(1, 6))
    steps = data.draw(
        st.lists(
            st.builds(step, st.none() | small, arrays(np.float32, d, elements=st.integers(-8, 8)), expected=st.none() | small),
            max_size=5,
        )
    )
    t = trajectory(*steps, d=d)
    signal = LearningSignal.from_trajectory(t, baseline, timestamp=3.5)
    want = oracle(t, baseline)
    if not 1e-7 < np.linalg.norm(want) < 1e-5:  # where rounding decides whether it is scaled
        np.testing.assert_allclose(signal.gradient_estimate, want, atol=1e-6)
    assert signal.gradient_estimate.dtype == np.float32
    np.testing.assert_array_equal(signal.query_embedding, t.query_embedding)
    assert (signal.quality_score, signal.timestamp, signal.metadata) == (0.8, 3.5, SignalMetadata(7, len(steps)))


def test_the_roadmaps_example() -> None:
    t = QueryTrajectory(1, [0.1, 0.2, 0.3], (TrajectoryStep([0.5, 0.3, 0.2], [0.4, 0.4, 0.2], 0.8, 0.0),), 0.8, 1000)
    signal = LearningSignal.from_trajectory(t)
    assert signal.quality_score == 0.8
    assert len(signal.gradient_estimate) == 3


def test_no_step_and_no_reward_give_a_zero_gradient() -> None:
    for t in (trajectory(), trajectory(step(None), step(None))):
        np.testing.assert_array_equal(LearningSignal.from_trajectory(t).gradient_estimate, [0, 0])
        np.testing.assert_array_equal(LearningSignal.from_trajectory(t, 0.5).gradient_estimate, [0, 0])


def test_one_step_needs_a_baseline_from_elsewhere() -> None:
    direction = np.array([3, 4]) / 5
    one = trajectory(step(1.0, [3.0, 4.0]))
    np.testing.assert_array_equal(LearningSignal.from_trajectory(one).gradient_estimate, [0, 0])
    np.testing.assert_allclose(LearningSignal.from_trajectory(one, 0.5).gradient_estimate, direction, rtol=1e-6)
    np.testing.assert_allclose(LearningSignal.from_trajectory(one, 2.0).gradient_estimate, -direction, rtol=1e-6)
    expected = trajectory(step(1.0, [3.0, 4.0], expected=0.9))
    np.testing.assert_allclose(LearningSignal.from_trajectory(expected, 5.0).gradient_estimate, direction, rtol=1e-6)


def test_the_largest_numbers_do_not_overflow() -> None:
    t = trajectory(step(BIGGEST, [BIGGEST, -BIGGEST]), step(-BIGGEST, [-BIGGEST, BIGGEST]))
    np.testing.assert_allclose(LearningSignal.from_trajectory(t).gradient_estimate, [math.sqrt(0.5), -math.sqrt(0.5)], rtol=1e-6)


@pytest.mark.parametrize("baseline", [math.nan, math.inf, 1e39])
def test_a_baseline_is_finite(baseline: float) -> None:
    with pytest.raises(SonaValueError, match="baseline"):
        LearningSignal.from_trajectory(trajectory(step()), baseline)


def test_running_baseline_is_an_exponential_average() -> None:
    baseline = RunningBaseline()
    assert baseline.value == 0.5
    want, momentum = 0.5, 0.02
    for reward in (1.0, 0.0, 1.0):
        baseline.update(reward)
        want = (1 - momentum) * want + momentum * reward
    assert baseline.value == pytest.approx(want, rel=1e-12)
    with pytest.raises(SonaValueError, match="reward"):
        baseline.update(math.nan)
    assert baseline.value == pytest.approx(want, rel=1e-12)
    for momentum in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(SonaValueError, match="momentum"):
            RunningBaseline(momentum=momentum)


def test_signals_are_compared_with_earlier_rewards_only() -> None:
    baseline = RunningBaseline(0.5, momentum=1.0)  # the last reward
    signals = extract_signals([trajectory(step(1.0)), trajectory(step(1.0), id=8), trajectory(step(None)), trajectory(step(0.0))], baseline)
    up = np.array([1, 2]) / math.sqrt(5)
    for signal, want in zip(signals, (up, 0 * up, 0 * up, -up), strict=True):
        np.testing.assert_allclose(signal.gradient_estimate, want, atol=1e-6)
    assert [s.metadata.trajectory_id for s in signals] == [7, 8, 7, 7]
    assert baseline.value == 0.0


# ---- the builder ----


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_builder_records_in_order_and_times_by_its_clock() -> None:
    clock = Clock()
    builder = TrajectoryBuilder(3, [1.0, 0.0], clock=clock)
    clock.now += 0.25
    builder.add_step([1.0, 2.0], [0.5], 0.75, expected=0.5, layer=2, x=[3.0, 4.0])
    clock.now += 0.25
    builder.add_step([5.0, 6.0])
    assert len(builder) == 2
    clock.now += 0.0000015
    t = builder.build(0.5)
    assert (t.id, t.final_quality, t.latency_us) == (3, 0.5, 500_002)
    first, second = t.steps
    assert (first.reward, first.timestamp, first.expected, first.layer) == (0.75, 1000.25, 0.5, 2)
    assert first.x is not None
    np.testing.assert_array_equal(first.x, [3, 4])
    assert (second.reward, second.timestamp, second.expected, second.layer, second.x) == (None, 1000.5, None, 0, None)


@given(st.data())
def test_a_builder_holds_what_the_types_hold(data: st.DataObject) -> None:
    """Step by step, in memory of its own: the caller may write over an array as soon as the call is over."""
    draw = data.draw
    d, id = draw(st.integers(1, 9)), draw(st.integers(0, 2**64 - 1))
    times = draw(st.lists(st.floats(0, 1e6), min_size=8, max_size=8))
    built, ended = (iter(sorted(times)) for _ in range(2))
    query, steps = draw(vectors(d)), []
    mine = query.copy()
    builders = [TrajectoryBuilder(id, mine, clock=lambda times=times: next(times)) for times in (built, ended)]
    mine[:] = math.nan
    for now in sorted(times)[1 : 1 + draw(st.integers(0, 6))]:
        step = TrajectoryStep(
            draw(vectors(d)),
            draw(st.none() | st.integers(0, 5).flatmap(vectors)),
            draw(maybe),
            now,
            draw(maybe),
            draw(st.integers(0, 2**32 - 1)),
            draw(st.none() | vectors(d)),
        )
        steps.append(step)
        for builder in builders:
            v, w, x = (None if a is None else a.copy() for a in (step.activations, step.attention_weights, step.x))
            builder.add_step(v, w, step.reward, expected=step.expected, layer=step.layer, x=x)
            for a in (v, w, x):
                if a is not None:
                    a[:] = math.nan
    quality, default = draw(maybe), draw(maybe)
    want = QueryTrajectory(id, query, steps, quality, round((sorted(times)[1 + len(steps)] - min(times)) * 1e6))
    if default is not None:
        want = want.rewarded(default)
    assert [len(builder) for builder in builders] == [len(steps)] * 2
    assert plain(builders[0].build(quality, default_reward=default)) == plain(want)
    assert builders[1].end(quality, default_reward=default) == encode(want)


def test_a_builder_grows_with_its_steps() -> None:
    builder = TrajectoryBuilder(3, np.zeros(2, np.float32), clock=Clock())
    for i in range(1000):
        builder.add_step([i, -i], range(i % 50), None, x=[i, i] if i % 3 else None)
    t = builder.build()
    assert [(s.activations.tolist(), 0 if s.attention_weights is None else len(s.attention_weights)) for s in t.steps] == [
        ([i, -i], i % 50) for i in range(1000)
    ]


def test_the_real_clock_runs() -> None:
    assert 0 <= TrajectoryBuilder(1, [1.0]).build(1.0).latency_us < 60_000_000


def test_a_default_reward_is_for_steps_without_one() -> None:
    builder = TrajectoryBuilder(3, [1.0])
    builder.add_step([1.0], None, 0.25)
    builder.add_step([2.0])
    t = builder.build(default_reward=1.0)
    assert [s.reward for s in t.steps] == [0.25, 1.0]
    assert t.final_quality is None


def test_a_refused_step_leaves_the_trajectory_as_it_was() -> None:
    builder = TrajectoryBuilder(3, [1.0, 2.0])
    builder.add_step([1.0, 2.0], None, 0.5)
    for activations, reward in (([1.0], 0.5), ([1.0, math.nan], 0.5), ([1.0, 2.0], math.nan)):
        with pytest.raises(SonaValueError):
            builder.add_step(activations, None, reward)
    for end in (builder.build, builder.end):
        with pytest.raises(SonaValueError, match="final_quality"):
            end(math.nan)
        with pytest.raises(SonaValueError, match="reward"):
            end(0.5, default_reward=math.inf)
    assert len(builder.build(0.5).steps) == 1


def test_what_is_built_is_closed() -> None:
    builder = TrajectoryBuilder(3, [1.0])
    builder.build(0.5)
    with pytest.raises(SonaClosedError, match="trajectory 3"):
        builder.add_step([1.0], None, 0.5)
    for end in (builder.build, builder.end):
        with pytest.raises(SonaClosedError, match="trajectory 3"):
            end(0.5)


def test_a_bad_query_is_refused_at_the_start() -> None:
    with pytest.raises(SonaValueError, match="query_embedding"):
        TrajectoryBuilder(1, [math.nan])
    with pytest.raises(SonaValueError, match="id"):
        TrajectoryBuilder(-1, [1.0])


# ---- the record ----


@given(trajectories(), st.sampled_from([bytes, bytearray, memoryview]))
def test_decode_inverts_encode(t: QueryTrajectory, kind: type) -> None:
    data = encode(t)
    back = decode(kind(data))
    assert plain(back) == plain(t)
    assert encode(back) == data


@given(trajectories())
def test_encode_writes_the_layout_field_by_field(t: QueryTrajectory) -> None:
    assert encode(t) == reference.encode(t)


def test_decode_reads_at_any_address() -> None:
    data = encode(trajectory(step(), step()))
    for offset in range(1, 8):
        assert encode(decode(memoryview(bytes(offset) + data)[offset:])) == data


@given(trajectories(), st.data())
def test_any_changed_byte_is_noticed(t: QueryTrajectory, data: st.DataObject) -> None:
    encoded = bytearray(encode(t))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SonaCorruptError):
        decode(encoded)


@given(trajectories(), st.data())
def test_any_other_length_is_noticed(t: QueryTrajectory, data: st.DataObject) -> None:
    encoded = encode(t)
    with pytest.raises(SonaCorruptError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(SonaCorruptError):
        decode(encoded + data.draw(st.binary(min_size=1, max_size=40)))


@given(st.binary(max_size=200))
def test_noise_is_no_trajectory(noise: bytes) -> None:
    with pytest.raises(SonaCorruptError):
        decode(noise)


def sealed(body: bytes) -> bytes:
    """A record with a right size and checksum, as an attacker would write it."""
    return struct.pack("<4sII", b"STRJ", 12 + len(body), zlib.crc32(body)) + body


@given(trajectories(), st.data())
def test_no_forged_record_reads_beyond_its_end_or_breaks_a_promise(t: QueryTrajectory, data: st.DataObject) -> None:
    body = bytearray(encode(t)[12:])
    at = data.draw(st.integers(0, len(body) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    body[at : at + len(patch)] = patch
    try:
        forged = decode(sealed(bytes(body)))
    except (SonaCorruptError, SonaVersionError):
        return
    assert plain(decode(encode(forged))) == plain(forged)


@pytest.mark.parametrize(
    ("offset", "patch"),
    [
        (40, b"\xff\xff\xff\xff"),  # d
        (40, b"\0\0\0\0"),
        (44, b"\xff\xff\xff\xff"),  # steps
        (44, b"\0\0\0\0"),
        (14, b"\1"),  # reserved
        (48, struct.pack("<f", math.nan)),  # query_embedding
        (32, struct.pack("<d", math.inf)),  # final_quality
        (56 + 28, b"\xff\xff\xff\xff"),  # attention_weights
        (56 + 32, b"\2"),  # x
        (56 + 36, b"\1"),  # reserved
        (56 + 0, struct.pack("<d", math.nan)),  # timestamp
        (12, b"\0\0"),  # version
    ],
)
def test_a_forged_field_is_corruption(offset: int, patch: bytes) -> None:
    encoded = bytearray(encode(trajectory(step())))
    encoded[offset : offset + len(patch)] = patch
    with pytest.raises(SonaCorruptError, match=r"^trajectory: "):
        decode(sealed(bytes(encoded[12:])))


def test_a_newer_version_is_named() -> None:
    with pytest.raises(SonaVersionError, match="version 1 or older, got 2"):
        decode(sealed(b"\2\0" + b"whatever version 2 looks like"))


def test_only_bytes_are_decoded() -> None:
    for data in ("text", None, 3):
        with pytest.raises(SonaTypeError, match="contiguous bytes"):
            decode(data)  # type: ignore[arg-type]


def test_the_layout_of_version_1_is_fixed() -> None:
    t = QueryTrajectory(258, [1.0, -2.0], (TrajectoryStep([0.5, 0.25], [1.0], 1.0, 2.0, None, 3, [4.0, 5.0]),), None, 77)
    assert encode(t).hex() == (
        "5354524a" "74000000" "SUM" "0100" "0000" "0201000000000000" "4d00000000000000" "000000000000f87f" "02000000" "01000000"
        "0000803f" "000000c0"
        "0000000000000040" "000000000000f03f" "000000000000f87f" "03000000" "01000000" "01000000" "00000000"
        "0000003f" "0000803e" "0000803f" "00008040" "0000a040"
    ).replace("SUM", encode(t)[8:12].hex())  # fmt: skip


# ---- the buffer ----


class BufferMachine(RuleBasedStateMachine):
    """The buffer beside a deque: what went in comes out, and only a full one refuses."""

    @initialize(capacity=st.integers(1, 6), log_bytes=st.sampled_from([10, 11, 14]))
    def create(self, capacity: int, log_bytes: int) -> None:
        self.buffer = TrajectoryBuffer(capacity, max_bytes=1 << log_bytes)
        self.bytes = 1 << log_bytes
        self.model: deque[Any] = deque()
        self.dropped = 0

    @rule(t=trajectories(most_steps=3))
    def record(self, t: QueryTrajectory) -> None:
        size = len(encode(t)) + 16
        free = self.bytes - self.buffer.used_bytes
        if self.buffer.record(t):
            self.model.append(plain(t))
        else:
            self.dropped += 1
            assert len(self.model) == self.buffer.capacity or free < 2 * size or 2 * size > self.bytes

    @rule()
    def drain(self) -> None:
        assert [plain(t) for t in self.buffer.drain()] == list(self.model)
        self.model.clear()
        assert self.buffer.used_bytes == 0

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "buffer"):
            assert len(self.buffer) == len(self.model) <= self.buffer.capacity
            assert self.buffer.dropped_count == self.dropped
            assert self.buffer.used_bytes <= self.bytes


TestBuffer = BufferMachine.TestCase


def test_a_full_buffer_refuses_the_newest_and_counts() -> None:
    buffer = TrajectoryBuffer(2)
    assert [buffer.record(trajectory(step(), id=i)) for i in range(4)] == [True, True, False, False]
    assert (len(buffer), buffer.capacity, buffer.dropped_count) == (2, 2, 2)
    assert [t.id for t in buffer.drain()] == [0, 1]
    assert buffer.record(trajectory(step()))
    assert buffer.dropped_count == 2


@given(trajectories())
def test_a_record_is_kept_as_its_trajectory_is(t: QueryTrajectory) -> None:
    buffer = TrajectoryBuffer(2)
    assert buffer.put(encode(t))
    assert buffer.record(t)
    assert not buffer.put(encode(t))
    assert [plain(back) for back in buffer.drain()] == [plain(t)] * 2


@given(trajectories(), st.data())
def test_bytes_that_are_no_record_are_refused(t: QueryTrajectory, data: st.DataObject) -> None:
    """By every length they name; numbers and checksum are looked at when they come out."""
    buffer, encoded = TrajectoryBuffer(2), encode(t)
    with pytest.raises(SonaCorruptError):
        buffer.put(data.draw(st.binary(max_size=100)))
    with pytest.raises(SonaCorruptError):
        buffer.put(sealed(encoded[12 : data.draw(st.integers(12, len(encoded) - 1))]))
    with pytest.raises(SonaCorruptError):
        buffer.put(sealed(encoded[12:] + data.draw(st.binary(min_size=1, max_size=40))))
    with pytest.raises(SonaVersionError):
        buffer.put(sealed(b"\2\0" + encoded[14:]))
    assert (len(buffer), buffer.used_bytes, buffer.dropped_count) == (0, 0, 0)


def test_bytes_bound_it_too() -> None:
    buffer = TrajectoryBuffer(1000, max_bytes=1500)  # a ring of 1024
    assert not buffer.record(trajectory(*[step()] * 20))  # more than half of it: never fits
    t = trajectory(step())
    held = 0
    while buffer.record(t):
        held += 1
    assert held == 1024 // (len(encode(t)) + 8)
    assert buffer.dropped_count == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0,), SonaValueError), ((-1,), SonaValueError), ((2.0,), SonaTypeError), ((1, 1023), SonaValueError), ((1, None), SonaTypeError)],
)
def test_bounds_of_the_buffer(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        TrajectoryBuffer(arguments[0], **({"max_bytes": arguments[1]} if len(arguments) > 1 else {}))


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc")
def test_an_empty_buffer_takes_no_memory_for_its_bound() -> None:
    before = resident_bytes()
    held = [TrajectoryBuffer(10_000, max_bytes=32 << 20) for _ in range(8)]
    assert resident_bytes() - before < 16 << 20
    assert all(len(buffer) == 0 for buffer in held)


def test_record_and_drain_on_two_threads() -> None:
    buffer, count = TrajectoryBuffer(16), 500
    received: list[int] = []

    def consume() -> None:
        while len(received) < count:
            received.extend(t.id for t in buffer.drain())
            time.sleep(0)

    consumer = threading.Thread(target=consume)
    consumer.start()
    for i in range(count):
        while not buffer.record(trajectory(step(), id=i)):
            time.sleep(0)
    consumer.join()
    assert received == list(range(count))
