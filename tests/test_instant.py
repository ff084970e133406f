"""Promises of the instant step: it is the documented rule, it never breaks, and a restored one goes on as if nothing had happened."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Dense, InstantRule, softmax, unit

from sona import Adapter, Instant, isas
from sona.errors import SonaTypeError, SonaValueError

Array = np.ndarray[Any, Any]

DIM = 13


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def added(adapter: Adapter, x: Array) -> Array:
    out = np.zeros_like(x)
    adapter.forward(x, out)
    return out


def everything(instant: Instant, adapter: Adapter) -> bytes:
    """All bits that a step may change."""
    parts = [*instant.state().values(), adapter.down, adapter.up, adapter.offset]
    return b"".join(np.ascontiguousarray(p).tobytes() for p in parts) + json.dumps(adapter.info()).encode()


# ---- the rule ----

OUTCOME = st.tuples(
    st.floats(0, 1, width=32),  # reward
    st.one_of(st.none(), st.floats(0, 1, width=32)),  # expected
    st.sampled_from([1.0, 0.3, 1e-3]),  # weight
    st.booleans(),  # own
)


@given(
    dim=st.integers(1, 40),
    full=st.booleans(),
    constant=st.sampled_from([0.0, 0.3, 2.0]),
    p0=st.sampled_from([0.01, 0.2, 3.0]),
    actions=st.integers(1, 20),
    outcomes=st.lists(OUTCOME, min_size=1, max_size=25),
    isa=st.sampled_from(isas()),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150)
def test_a_step_is_the_documented_rule(
    dim: int,
    full: bool,
    constant: float,
    p0: float,
    actions: int,
    outcomes: list[tuple[float, float | None, float, bool]],
    isa: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    adapter, dense = Adapter(dim, rank=30, isa=isa), Dense(dim)
    instant = Instant(dim, p0, constant, "full" if full else "identity", actions, isa)
    rule = InstantRule(dim, p0=p0, constant=constant, full=full, actions=actions)
    probe = normal(rng, dim)
    for reward, expected, weight, own in outcomes:
        x, v = unit(rng.normal(size=dim)).astype(np.float32), normal(rng, dim) * np.float32(rng.uniform(0, 10))
        got = instant.step(adapter, x, v, reward, expected, weight, own)
        want, _ = rule.step(dense, x, v, reward, expected, weight=weight, own=own)
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
        size = np.abs(probe) @ np.abs(dense.matrix).max(axis=1) + np.abs(dense.constant).max()
        np.testing.assert_allclose(added(adapter, probe), dense(probe), rtol=0, atol=2e-3 * size + 1e-6)
    state = instant.state()
    np.testing.assert_allclose(state["calibration"], [rule.rewarded, rule.shown, rule.mean, rule.steps, rule.restore], rtol=1e-5, atol=1e-9)
    assert instant.confidence == pytest.approx(rule.confidence, rel=1e-5)
    assert instant.mean_reward == pytest.approx(rule.mean, rel=1e-5)
    if full:
        np.testing.assert_allclose(state["covariance"], rule.covariance, atol=2e-3 * p0)


def test_a_revision_applies_the_difference_once(rng: np.random.Generator) -> None:
    adapter, dense, instant, rule = Adapter(DIM), Dense(DIM), Instant(DIM, precondition="full"), InstantRule(DIM, full=True)
    for _ in range(5):
        x, v = unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM)
        instant.step(adapter, x, v, 1.0, 0.4)
        rule.step(dense, x, v, 1.0, 0.4)
    kept = instant.state()
    got = instant.revise(adapter, x, v, -0.75, 0.4, 0.5)
    want, _ = rule.revise(dense, x, v, -0.75, 0.4, weight=0.5)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    np.testing.assert_allclose(added(adapter, x), dense(x), atol=1e-5)
    for name, array in instant.state().items():  # an outcome shrinks P and moves the calibration once, when it comes
        np.testing.assert_array_equal(array, kept[name])


def test_one_outcome_is_never_overshot(rng: np.random.Generator) -> None:
    """Binary choice, repeated success: the probability rises towards 1 and the step shrinks with it, however large p0 is."""
    arms = np.eye(2, DIM, dtype=np.float32)
    for p0 in (0.01, 0.2, 100.0):
        adapter, instant, x = Adapter(DIM), Instant(DIM, p0, precondition="identity"), unit(normal(rng, DIM)).astype(np.float32)
        last = 0.0
        for _ in range(30):
            pi = softmax(arms @ (x + added(adapter, x)) / 0.1)
            assert pi[0] >= last - 1e-6
            last = pi[0]
            instant.step(adapter, x, (arms[0] - pi @ arms).astype(np.float32) / np.float32(0.1), 1.0, float(pi[0]))
        assert np.abs(added(adapter, x)).max() < 3
        assert last > 0.8


def test_the_constant_input_learns_what_does_not_depend_on_x(rng: np.random.Generator) -> None:
    """Inputs come in pairs x, -x with the same outcome: only the constant can tell."""
    shifts = []
    for constant in (0.0, 0.3):
        adapter, instant = Adapter(DIM), Instant(DIM, constant=constant, precondition="identity")
        for _ in range(50):
            x, v = unit(normal(rng, DIM)).astype(np.float32), np.eye(1, DIM, dtype=np.float32)[0]
            for signed in (x, -x):
                instant.step(adapter, signed, v, 1.0, 0.5)
        shifts.append(added(adapter, np.zeros(DIM, np.float32))[0])
    assert shifts[0] == 0
    assert shifts[1] > 0.4


def learned_apart(inputs: Array, right: npt.NDArray[np.int64], precondition: str, constant: float = 0.3) -> float:
    """Share of right answers in the second half: two actions, the shown one rewarded where it is right."""
    d = inputs.shape[1]
    arms = np.eye(2, d, dtype=np.float32)
    adapter, instant = Adapter(d), Instant(d, precondition=precondition, constant=constant, actions=2)
    correct = np.zeros(len(inputs), bool)
    y = np.empty(d, np.float32)
    for t, x in enumerate(inputs):
        y[:] = x
        adapter.forward(x, y)
        pi = softmax((arms @ y).astype(np.float64) / 0.1)
        arm = int(pi.argmax())
        correct[t] = arm == right[t]
        v = (np.eye(2)[arm] - pi) @ arms / 0.1
        instant.step(adapter, x, v.astype(np.float32), float(correct[t]), float(min(pi[arm], 1)))
    return float(correct[len(inputs) // 2 :].mean())


@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_inputs_that_point_much_the_same_way_are_learned_like_any_others(precondition: str) -> None:
    rng = np.random.default_rng(3)
    d, n = 16, 1200
    spread = normal(rng, n, d) / np.float32(np.sqrt(d))
    middle = np.zeros(d, np.float32)
    middle[5] = 4  # in favour of neither action
    right = (spread[:, 2] > 0).astype(np.int64)
    far = middle + spread
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    assert (far @ far.T).mean() > 0.9
    assert learned_apart(far.astype(np.float32), right, precondition) > 0.85
    assert learned_apart(far.astype(np.float32), right, precondition, constant=0.0) < 0.7  # nothing can stand in for the mean then


def test_inputs_without_a_direction_of_their_own_are_taken_as_they_are(rng: np.random.Generator) -> None:
    adapter, instant = Adapter(32), Instant(32, precondition="identity")
    for _ in range(40):
        x = unit(normal(rng, 32)).astype(np.float32)
        instant.step(adapter, x, normal(rng, 32), 1.0, 0.5)
        np.testing.assert_array_equal(adapter.down[-1], np.float32(0.1) * x)  # P x, and nothing is taken off


def test_a_state_from_before_inputs_were_counted_is_taken(rng: np.random.Generator) -> None:
    adapter, instant = Adapter(DIM), Instant(DIM, precondition="identity")
    for _ in range(20):
        instant.step(adapter, unit(1 + normal(rng, DIM)).astype(np.float32), normal(rng, DIM), 1.0, 0.5)
    instant.restore({"calibration": instant.state()["calibration"]})
    assert not instant.state()["inputs"].any()


def test_calibration_counts_own_choices_only(rng: np.random.Generator) -> None:
    adapter, instant = Adapter(DIM), Instant(DIM)
    x, v = normal(rng, 2, DIM)
    for _ in range(200):
        instant.step(adapter, x, v, 0.0, 0.9, own=False)
    assert instant.confidence == 1.0
    assert instant.mean_reward < 0.05
    for _ in range(200):
        instant.step(adapter, x, v, 0.0, 0.9)
    assert instant.confidence < 0.3


def test_auto_is_full_while_it_is_cheap() -> None:
    assert Instant(512).precondition == "full"
    assert Instant(513).precondition == "identity"
    assert Instant(512).bytes > 513 * 513 * 4
    assert Instant(4096, precondition="identity").bytes < 100_000


def test_soften_moves_the_covariance_towards_its_start(rng: np.random.Generator) -> None:
    adapter, instant = Adapter(DIM), Instant(DIM, 0.2, precondition="full")
    for _ in range(100):
        instant.step(adapter, unit(normal(rng, DIM)).astype(np.float32), 10 * normal(rng, DIM), 1.0, 0.5)
    before = instant.state()["covariance"]
    assert np.trace(before) < 0.1 * 0.2 * (DIM + 1)
    instant.soften(0.25)
    np.testing.assert_allclose(instant.state()["covariance"], 0.25 * before + 0.75 * 0.2 * np.eye(DIM + 1), atol=1e-6)
    instant.soften(1.0)
    np.testing.assert_allclose(instant.state()["covariance"], 0.25 * before + 0.75 * 0.2 * np.eye(DIM + 1), atol=1e-6)
    for keep in (-0.1, 1.1, np.nan):
        with pytest.raises(SonaValueError, match="expected a number in \\[0, 1\\]"):
            instant.soften(keep)


# ---- bad input ----

BAD_STEPS: dict[str, dict[str, Any]] = {
    "NaN reward": {"reward": np.nan},
    "infinite reward": {"reward": np.inf},
    "huge reward": {"reward": 1e38},
    "reward beyond float32": {"reward": 1e300},
    "negative reward": {"reward": -1e-3},
    "reward above 1": {"reward": 1.001},
    "reward as text": {"reward": "1"},
    "no reward": {"reward": None},
    "NaN x": {"x": np.full(DIM, np.nan, np.float32)},
    "one NaN in x": {"x": np.r_[np.ones(DIM - 1), np.nan].astype(np.float32)},
    "infinite x": {"x": np.full(DIM, np.inf, np.float32)},
    "NaN in a list": {"x": [np.nan] * DIM},
    "x whose square overflows": {"x": np.full(DIM, 1e25, np.float32)},
    "short x": {"x": np.ones(DIM - 1, np.float32)},
    "object x": {"x": np.ones(DIM, object)},
    "NaN v": {"v": np.full(DIM, np.nan, np.float32)},
    "infinite v": {"v": np.full(DIM, -np.inf, np.float32)},
    "v whose square overflows": {"v": np.full(DIM, 1e25, np.float32)},
    "long v": {"v": np.ones(DIM + 1, np.float32)},
    "NaN expected": {"expected": np.nan},
    "negative expected": {"expected": -0.1},
    "expected above 1": {"expected": 1.1},
    "no weight": {"weight": 0.0},
    "negative weight": {"weight": -1.0},
    "weight above 1": {"weight": 1.5},
    "NaN weight": {"weight": np.nan},
    "another dim": {"adapter": Adapter(DIM + 1)},
    "no adapter": {"adapter": None},
}


@pytest.mark.parametrize("kind", BAD_STEPS)
@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_bad_input_changes_no_bit(kind: str, precondition: str, rng: np.random.Generator) -> None:
    adapter, instant = Adapter(DIM), Instant(DIM, precondition=precondition)
    for _ in range(20):
        instant.step(adapter, unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM), 1.0, 0.5)
    before = everything(instant, adapter)
    good: dict[str, Any] = {
        "adapter": adapter,
        "x": np.ones(DIM, np.float32),
        "v": np.ones(DIM, np.float32),
        "reward": 1.0,
        "expected": 0.5,
        "weight": 1.0,
    }
    with pytest.raises((SonaValueError, SonaTypeError, TypeError)):
        instant.step(**(good | BAD_STEPS[kind]))
    revision = {"change" if name == "reward" else name: value for name, value in (good | BAD_STEPS[kind]).items()}
    if kind != "negative reward":  # a change may be negative
        with pytest.raises((SonaValueError, SonaTypeError, TypeError)):
            instant.revise(**revision)
    assert everything(instant, adapter) == before


@given(x=st.floats(width=32), v=st.floats(width=32), reward=st.floats(), expected=st.floats(), weight=st.floats())
@settings(max_examples=300)
def test_no_number_makes_a_weight_that_is_not_finite(x: float, v: float, reward: float, expected: float, weight: float) -> None:
    adapter, instant = Adapter(3), Instant(3, precondition="full")
    before = everything(instant, adapter)
    try:
        instant.step(adapter, np.full(3, x, np.float32), np.full(3, v, np.float32), reward, expected, weight)
    except SonaValueError:
        assert everything(instant, adapter) == before
    for array in (adapter.down, adapter.up, adapter.offset, instant.state()["covariance"], instant.state()["calibration"]):
        assert np.isfinite(array).all()


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 0},
        {"dim": -3},
        {"dim": 1 << 40, "precondition": "identity"},
        {"p0": 0.0},
        {"p0": -0.1},
        {"p0": np.nan},
        {"p0": np.inf},
        {"p0": 1e300},
        {"constant": -0.1},
        {"constant": np.nan},
        {"constant": np.inf},
        {"precondition": "diagonal"},
        {"precondition": None},
        {"actions": 0},
        {"actions": -1},
        {"isa": "mmx"},
    ],
)
def test_construction_refuses_what_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError):
        Instant(**({"dim": DIM} | options))


def test_memory_that_does_not_exist_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        Instant((1 << 32) - 1, precondition="full")


# ---- a long life ----


@pytest.mark.parametrize(("precondition", "steps"), [("full", 100_000), ("identity", 30_000)])
def test_a_long_life_stays_finite_and_keeps_learning(precondition: str, steps: int) -> None:
    """Four kinds of input, each with a right action of its own; the fourth comes late. With the identity, where nothing is ever settled
    for good, the first kind then wants another action, which it finds for some seeds only: nothing here doubts what is certain."""
    rng = np.random.default_rng(3)
    d, k = 4, 4
    arms = np.eye(k, d, dtype=np.float32)
    adapter, instant = Adapter(d, rank=3), Instant(d, precondition=precondition, actions=k)
    directions = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
    kind = rng.integers(k - 1, size=steps)
    kind[-9000:] = rng.integers(k, size=9000)
    inputs = directions[kind] + 0.1 * normal(rng, steps, d)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    right = (kind + 1) % k
    if precondition == "identity":
        right[-6000:][kind[-6000:] == 0] = 3
    correct = np.zeros(steps, bool)
    y = np.empty(d, np.float32)
    for t in range(steps):
        x = inputs[t]
        y[:] = x
        adapter.forward(x, y)
        logits = (arms @ y) * np.float32(10)
        pi = np.exp(logits - logits.max())
        pi /= pi.sum()
        arm = int(pi.argmax())
        correct[t] = arm == right[t]
        v = -10 * pi  # (e_arm - sum pi_k e_k) / tau with arms that are unit vectors
        v[arm] += 10
        instant.step(adapter, x, v, float(correct[t]), float(min(pi[arm], 1)))
    for last in (steps - 9000, steps - 6000, steps):
        recent = slice(last - 1000, last)
        accuracy = {number: correct[recent][kind[recent] == number].mean() for number in set(kind[recent])}
        assert min(accuracy.values()) > 0.9, accuracy
    assert np.isfinite(adapter.up).all()
    assert np.isfinite(adapter.down).all()
    if precondition == "full":
        covariance = instant.state()["covariance"].astype(np.float64)
        assert np.isfinite(covariance).all()
        np.testing.assert_allclose(covariance, covariance.T, atol=1e-6)
        assert np.linalg.eigvalsh((covariance + covariance.T) / 2).min() > -1e-6


# ---- state ----


@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_a_restored_step_goes_on_bit_for_bit(precondition: str, rng: np.random.Generator) -> None:
    adapter, instant = Adapter(DIM), Instant(DIM, precondition=precondition, actions=3)

    def go_on(instant: Instant, adapter: Adapter, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            instant.step(adapter, unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM), float(rng.random()), float(rng.random()))
        return everything(instant, adapter)

    go_on(instant, adapter, 1)
    adapter.truncate()
    kept = instant.state()
    twin = Instant(DIM, precondition=precondition, actions=3)
    twin.restore(kept)
    other = Adapter(DIM)
    other.assign(adapter.down, adapter.up, adapter.offset, adapter.info()["base"])
    go_on(instant, adapter, 2)
    go_on(twin, other, 2)
    for a, b in ((adapter.down, other.down), (adapter.up, other.up), (adapter.offset, other.offset)):
        np.testing.assert_array_equal(a, b)
    for name, array in instant.state().items():
        np.testing.assert_array_equal(twin.state()[name], array)


def _without_covariance(state: dict[str, Array]) -> dict[str, Array]:
    return {"calibration": state["calibration"]}


def _with(name: str, value: Any) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    "damage",
    [
        _without_covariance,
        _with("covariance", np.zeros((DIM, DIM), np.float32)),
        _with("covariance", np.full((DIM + 1, DIM + 1), np.nan, np.float32)),
        _with("calibration", np.zeros(3)),
        _with("calibration", np.array([np.nan, 1, 0.5, 0, 0])),
        _with("calibration", np.array([1.0, 0.0, 0.5, 0, 0])),
        _with("calibration", np.array([1.0, 1.0, 0.5, -1, 0])),
        _with("inputs", np.zeros(DIM)),
        _with("inputs", np.append(np.zeros(DIM), [1001, 1])),
        _with("inputs", np.append(np.zeros(DIM), [1, -1])),
        _with("inputs", np.append(np.full(DIM, np.nan), [1, 1])),
    ],
)
def test_restore_refuses_another_state(damage: Callable[[dict[str, Array]], dict[str, Array]], rng: np.random.Generator) -> None:
    adapter, instant = Adapter(DIM), Instant(DIM, precondition="full")
    instant.step(adapter, unit(normal(rng, DIM)).astype(np.float32), normal(rng, DIM), 1.0, 0.5)
    before = everything(instant, adapter)
    with pytest.raises(SonaValueError):
        instant.restore(damage(instant.state()))
    assert everything(instant, adapter) == before


def test_a_state_of_the_other_kind_is_refused() -> None:
    with pytest.raises(SonaValueError, match="expected identity, got a state of the other kind"):
        Instant(DIM, precondition="identity").restore(Instant(DIM, precondition="full").state())
