"""Promises of the change detectors: silent while nothing changes, quick when something does, bounded, and the same after a restart."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import SonaTypeError, SonaValueError
from sona.ewc.boundary import MAX_BUCKETS, WARM_UP, Adwin, PageHinkley

SEEDS = 20
DETECTORS: list[Callable[[], Any]] = [Adwin, lambda: Adwin(bucket=16, clock=16, memory=1024), PageHinkley]


def surprises(seed: int, n: int, success: float, expected: float) -> list[float]:
    """r - expected for n rewards that come with probability `success`."""
    rewards = np.random.default_rng(seed).random(n) < success
    values: list[float] = (rewards - expected).tolist()
    return values


def alarms(detector: Any, values: list[float]) -> list[int]:
    return [i for i, value in enumerate(values) if detector.update(value)]


# ---- what they are for ----


@pytest.mark.parametrize("make", DETECTORS)
def test_ten_thousand_requests_without_a_change_raise_no_alarm(make: Callable[[], Any]) -> None:
    assert [alarms(make(), surprises(seed, 10_000, 0.9, 0.9)) for seed in range(SEEDS)] == [[]] * SEEDS


@pytest.mark.parametrize("success", [0.5, 0.7, 0.99])
def test_adwin_is_silent_at_any_success_rate(success: float) -> None:
    assert [alarms(Adwin(), surprises(seed, 10_000, success, success)) for seed in range(SEEDS)] == [[]] * SEEDS


@pytest.mark.parametrize("make", DETECTORS)
def test_a_fall_from_nine_in_ten_to_two_is_found_within_64_requests(make: Callable[[], Any]) -> None:
    for seed in range(SEEDS):
        detector = make()
        assert not alarms(detector, surprises(seed, 10_000, 0.9, 0.9))
        found = alarms(detector, surprises(seed + SEEDS, 64, 0.2, 0.9))
        assert found, seed
        assert found[0] < 64


def test_adwin_finds_a_rise_and_page_hinkley_does_not_look_for_one() -> None:
    calm, better = surprises(0, 2000, 0.3, 0.3), surprises(1, 500, 0.9, 0.3)
    assert alarms(Adwin(), calm + better)
    assert not alarms(PageHinkley(), calm + better)


def test_a_constant_offset_is_no_change() -> None:
    values = surprises(0, 10_000, 0.6, 0.9)  # the policy expects too much, all the time
    assert not alarms(Adwin(), values)
    assert not alarms(PageHinkley(delta=0.05), values)


def test_adwin_drops_what_was_before_the_change() -> None:
    detector = Adwin()
    alarms(detector, [0.0] * 4000 + [-0.7] * 200)
    assert detector.width < 400
    assert detector.mean < -0.5


def test_page_hinkley_starts_anew_after_an_alarm() -> None:
    detector = PageHinkley()
    found = alarms(detector, [0.0] * 100 + [-0.5] * 400 + [-1.0] * 100)
    assert len(found) == 2
    assert 100 <= found[0] < 200
    assert 500 <= found[1] < 600


def test_page_hinkley_waits_until_its_mean_is_one() -> None:
    values = [1.0] * 3 + [-1.0] * 30
    assert alarms(PageHinkley(0.0, 0.5), values)[0] == WARM_UP - 1


# ---- the window of Adwin against the list of its values ----


@given(st.lists(st.floats(-1, 1, width=16), max_size=300), st.integers(0, 300))
def test_adwin_keeps_mean_and_variance_of_its_window(values: list[float], calm: int) -> None:
    values = [*values, *[-1.0] * calm]
    detector = Adwin(delta=0.5)
    alarms(detector, values)
    window = np.array(values[len(values) - detector.width :])
    if len(window):
        assert detector.mean == pytest.approx(window.mean(), abs=1e-12)
        assert detector.variance == pytest.approx(window.var(), abs=1e-12)


def test_adwin_keeps_mean_and_variance_when_it_drops_values() -> None:
    values = surprises(0, 1000, 0.9, 0.9) + surprises(1, 300, 0.3, 0.9)
    detector = Adwin()
    assert alarms(detector, values)
    window = np.array(values[-detector.width :])
    assert detector.mean == pytest.approx(window.mean(), abs=1e-12)
    assert detector.variance == pytest.approx(window.var(), abs=1e-12)


def test_adwin_drops_all_that_was_before_however_little_is_left() -> None:
    detector = Adwin(delta=0.9)
    assert alarms(detector, [0.0] * 32 + [1.0] * 16 + [-1.0] * 16) == [63]
    assert (detector.width, detector.mean, detector.variance) == (16, -1.0, 0.0)


def test_adwin_takes_logarithmically_many_numbers() -> None:
    detector = Adwin()
    alarms(detector, [0.25, -0.25] * 20_000)
    assert detector.width == 40_000
    assert len(detector.state()["sums"]) <= MAX_BUCKETS * math.log2(40_000)


def test_adwin_cuts_where_the_bound_of_the_paper_says() -> None:
    """Two halves of constants: the smallest difference of means that is a change, from the formula and from the detector."""
    n, delta = 256, 1e-3
    scale = math.log(2 * math.log(n) / delta)

    def is_change(gap: float) -> bool:
        variance = gap**2 / 4
        return gap > math.sqrt(2 * variance * scale * 4 / n) + 2 / 3 * scale * 4 / n

    gaps = np.linspace(0.05, 0.4, 36).tolist()
    expected = [is_change(gap) for gap in gaps]
    assert True in expected
    assert False in expected
    for gap, change in zip(gaps, expected, strict=True):
        detector = Adwin(delta)
        alarms(detector, [0.0] * (n // 2) + [gap] * (n // 2))
        if change:  # cuts elsewhere, and earlier looks, may find a smaller one
            assert detector.width < n, gap
        elif gap < 0.7 * gaps[expected.index(True)]:
            assert detector.width == n, gap


@given(st.lists(st.floats(-1, 1, width=16), max_size=300), st.integers(1, 20), st.integers(1, 3), st.integers(2, 9))
def test_adwin_with_larger_buckets_keeps_mean_and_variance_within_its_memory(
    values: list[float], bucket: int, clock: int, memory: int
) -> None:
    detector = Adwin(0.05, bucket=bucket, clock=bucket * clock, memory=bucket * memory)
    for i, value in enumerate(values):
        before = detector.mean
        cut = detector.update(value)
        assert detector.waiting == (i + 1) % bucket
        assert detector.width <= bucket * memory
        assert not cut or ((i + 1) % (bucket * clock) == 0 and (detector.change != 0 or detector.mean == before))
        full = values[: i + 1 - detector.waiting]
        window = np.array(full[len(full) - detector.width :])
        if len(window):
            assert detector.mean == pytest.approx(window.mean(), abs=1e-12)
            assert detector.variance == pytest.approx(window.var(), abs=1e-12)


def test_adwin_says_which_way_the_mean_moved() -> None:
    detector = Adwin(bucket=16, clock=16)
    assert detector.change == 0
    assert alarms(detector, [0.0] * 320 + [-0.5] * 160)
    assert detector.change < 0
    alarms(detector, [0.5] * 160)
    assert detector.change > 0


def test_a_bounded_memory_does_not_see_what_shows_over_many_values_only() -> None:
    values = surprises(0, 6000, 0.9, 0.9) + surprises(1, 6000, 0.87, 0.9)
    assert alarms(Adwin(bucket=16, clock=16), values)
    assert not alarms(Adwin(bucket=16, clock=16, memory=512), values)


# ---- an independent implementation ----


def test_page_hinkley_alarms_where_river_does() -> None:
    drift = pytest.importorskip("river.drift", reason="river is not installed: pip install river")
    for seed in range(10):
        values = surprises(seed, 2000, 0.8, 0.8) + surprises(seed + 100, 300, 0.3, 0.8) + surprises(seed + 200, 1500, 0.1, 0.8)
        peer = drift.PageHinkley(min_instances=WARM_UP, delta=0.02, threshold=20, alpha=1.0, mode="down")
        theirs = []
        for i, value in enumerate(values):
            peer.update(value)
            if peer.drift_detected:
                theirs.append(i)
        assert alarms(PageHinkley(0.02, 20.0), values) == theirs


def test_adwin_alarms_where_river_does() -> None:
    """River leaves five values out of either side of the harmonic mean, which cuts a little later."""
    drift = pytest.importorskip("river.drift", reason="river is not installed: pip install river")
    for seed in range(10):
        values = surprises(seed, 2000, 0.9, 0.9) + surprises(seed + 100, 1000, 0.3, 0.9)
        peer, ours = drift.ADWIN(delta=1e-3, clock=32, max_buckets=MAX_BUCKETS), Adwin(1e-3)
        theirs, own = [], []
        for i, value in enumerate(values):
            peer.update(value)
            if peer.drift_detected:
                theirs.append(i)
            if ours.update(value):
                own.append(i)
        assert abs(own[0] - theirs[0]) <= 32, (seed, own, theirs)
        assert ours.mean == pytest.approx(peer.estimation, abs=0.05)


# ---- restart ----


@pytest.mark.parametrize("make", DETECTORS)
def test_a_detector_goes_on_after_a_restart_bit_for_bit(make: Callable[[], Any]) -> None:
    values = surprises(0, 1500, 0.9, 0.9) + surprises(1, 500, 0.3, 0.9)
    undisturbed, restarted = make(), make()
    found = []
    for i, value in enumerate(values):
        if i % 97 == 0:
            saved = json.dumps(restarted.state())
            restarted = make()
            restarted.restore(json.loads(saved))
        if restarted.update(value):
            found.append(i)
    assert found == alarms(undisturbed, values) != []
    assert restarted.state() == undisturbed.state()


@pytest.mark.parametrize("make", DETECTORS)
def test_reset_is_a_new_detector_with_the_same_settings(make: Callable[[], Any]) -> None:
    detector = make()
    alarms(detector, surprises(0, 500, 0.9, 0.9))
    detector.reset()
    assert detector.state() == make().state()


ADWIN = {"updates": 3, "total": 1.5, "deviations": 0.0, "rows": [1, 0], "sums": [1.0, 0.5], "squares": [0.0, 0.0]}
PAGE = {"count": 3, "mean": 0.1, "sum": 0.1, "largest": 0.2}


@pytest.mark.parametrize(
    ("cls", "state", "change"),
    [
        (Adwin, ADWIN, {"updates": None}),
        (Adwin, ADWIN, {"deviations": -2.0}),
        (Adwin, ADWIN, {"updates": -1}),
        (Adwin, ADWIN, {"total": math.nan}),
        (Adwin, ADWIN, {"total": 9.0}),
        (Adwin, ADWIN, {"deviations": math.inf}),
        (Adwin, ADWIN, {"sums": [1.0]}),
        (Adwin, ADWIN, {"sums": [math.nan, 0.5]}),
        (Adwin, ADWIN, {"sums": [3.0, 0.5]}),
        (Adwin, ADWIN, {"squares": [-1.0, 0.0]}),
        (Adwin, ADWIN, {"rows": [0, 1]}),
        (Adwin, ADWIN, {"rows": [1, 0.5]}),
        (Adwin, ADWIN, {"rows": [99, 0]}),
        (Adwin, ADWIN, {"open": [1, 0.0, 0.0]}),
        (Adwin, ADWIN, {"open": [0, 0.0]}),
        (Adwin, ADWIN, {"open": [-1, 0.0, 0.0]}),
        (Adwin, ADWIN, {"rows": [0] * 6, "sums": [0.25] * 6, "squares": [0.0] * 6}),
        (PageHinkley, PAGE, {"count": "3"}),
        (PageHinkley, PAGE, {"count": None}),
        (PageHinkley, PAGE, {"mean": math.nan}),
        (PageHinkley, PAGE, {"sum": True}),
        (PageHinkley, PAGE, {"largest": 0.05}),
    ],
)
def test_a_damaged_state_is_refused(cls: Any, state: dict[str, Any], change: dict[str, Any]) -> None:
    detector = cls()
    detector.restore(state)
    assert detector.state() == state
    with pytest.raises(SonaValueError, match="expected"):
        detector.restore(state | change)
    assert detector.state() == state


# ---- refusals ----


@pytest.mark.parametrize("make", DETECTORS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.5, -2, "0.5", None])
def test_what_is_no_surprise_is_refused_and_changes_nothing(make: Callable[[], Any], value: Any) -> None:
    detector = make()
    alarms(detector, surprises(0, 100, 0.9, 0.9))
    before = detector.state()
    with pytest.raises((SonaValueError, SonaTypeError), match="surprise: expected"):
        detector.update(value)
    assert detector.state() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Adwin(0), r"delta: expected a number in \(0, 1\), got 0"),
        (lambda: Adwin(1.5), r"delta: expected a number in \(0, 1\), got 1.5"),
        (lambda: Adwin(math.nan), "delta"),
        (lambda: Adwin(bucket=0), "clock: expected a multiple of bucket >= 1, got 32 and 0"),
        (lambda: Adwin(bucket=16, clock=24), "clock: expected a multiple of bucket >= 1, got 24 and 16"),
        (lambda: Adwin(bucket=16, clock=16, memory=31), "memory: expected at least two buckets of 16 values, got 31"),
        (lambda: PageHinkley(-1), "delta: expected a number of at least 0, got -1"),
        (lambda: PageHinkley(0.1, 0), "threshold: expected a positive number, got 0"),
        (lambda: PageHinkley(0.1, math.inf), "threshold"),
    ],
)
def test_settings_that_cannot_be_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        call()
