"""What comes next: counted, predicted, and claimed to help only where it does."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError
from sona.patterns import Transitions
from sona.patterns.temporal import _wealth


def observed(chain: Any, **options: Any) -> Transitions:
    result = Transitions(**options)
    for a, b in pairwise(chain):
        result.observe(int(a), int(b))
    return result


def markov(n: int, states: int, stay: float, rng: np.random.Generator) -> list[int]:
    """With probability `stay` the successor of a state on a ring, else any state."""
    chain = [0]
    for _ in range(n):
        chain.append((chain[-1] + 1) % states if rng.uniform() < stay else int(rng.integers(states)))
    return chain


def test_a_planted_chain_is_predicted_better_than_by_popularity() -> None:
    for seed in range(10):
        found = observed(markov(500, 8, 0.6, np.random.default_rng(seed)))
        gain = found.gain
        assert found.helps
        assert gain["accuracy"] > gain["popularity"] + 0.2
        assert [found.predict(s)[0][0] for s in range(8)] == [(s + 1) % 8 for s in range(8)]


@pytest.mark.parametrize("shares", [np.ones(8) / 8, np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]), np.array([0.35, 0.35, 0.3])])
def test_on_independent_patterns_no_gain_is_claimed(shares: np.ndarray[Any, Any]) -> None:
    """200 streams, looked at all the way: the claim is made in at most 5 %, plus 2.6 % for the chance of the draw."""
    claims = 0
    for seed in range(200):
        rng = np.random.default_rng([seed, len(shares)])
        found, chain = Transitions(), rng.choice(len(shares), p=shares, size=301)
        claimed = False
        for step, (a, b) in enumerate(pairwise(chain)):
            found.observe(int(a), int(b))
            claimed |= step % 25 == 0 and found.helps
        claims += claimed
    assert claims / 200 <= 0.05 + 0.026


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (7, 3), (30, 12), (3, 9), (0, 40)])
def test_the_evidence_is_a_mean_likelihood_ratio_over_chances_above_a_half(won: int, lost: int) -> None:
    chance = 0.5 + (np.arange(100_000) + 0.5) / 200_000
    expected = np.mean(chance**won * (1 - chance) ** lost) * 2.0 ** (won + lost)
    assert _wealth(won, lost) == pytest.approx(expected, rel=1e-6)
    assert lost <= won or expected < 1
    assert _wealth(10_000, 0) > 1e100
    assert _wealth(0, 10_000) < 1


def test_probabilities_are_the_documented_blend() -> None:
    """Against sums over the whole history."""
    rng = np.random.default_rng(3)
    chain, decay, kappa = markov(120, 5, 0.5, rng), 0.97, 2.0
    found = observed(chain, decay=decay, kappa=kappa)
    age = np.arange(len(chain) - 1, 0, -1)
    count = np.zeros((6, 5))
    for (a, b), weight in zip(pairwise(chain), decay**age, strict=True):
        count[a, b] += weight
    overall = count.sum(axis=0) / count.sum()
    for state in range(6):  # the last was never seen
        expected = (count[state] + kappa * overall) / (count[state].sum() + kappa)
        prediction = found.predict(state)
        assert sum(p for _, p in prediction) == pytest.approx(1)
        assert dict(prediction) == pytest.approx(dict(enumerate(expected)))
        assert [p for _, p in prediction] == sorted((p for _, p in prediction), reverse=True)


def test_gain_is_about_the_future_of_what_had_been_seen() -> None:
    """Two alternating patterns: the first of each kind could not be known."""
    gain = observed([0, 1, 0, 1, 0, 1]).gain
    assert gain["count"] == 4  # nothing could be predicted before the first
    assert gain["accuracy"] == 0.5  # the first 0 after 1 and the 1 after that were; then popularity is level


def test_old_transitions_fade() -> None:
    found = observed([0, 1] * 200, decay=0.95)
    assert found.predict(0)[0][0] == 1
    for _ in range(60):
        found.observe(0, 2)
    assert found.predict(0)[0][0] == 2
    assert Transitions().predict(0) == []


def test_counts_stay_finite_and_bounded() -> None:
    rng = np.random.default_rng(0)
    found = Transitions(decay=0.8, max_transitions=100)
    for step in range(5000):  # 0.8^-5000 is far beyond the range of a float
        found.observe(int(rng.integers(40)), int(rng.integers(1000)) if step % 3 else 7)
        assert len(found) <= 100
    assert len(found._popular) <= 100
    prediction = found.predict(3)
    assert prediction[0][0] == 7
    assert all(np.isfinite(p) and p >= 0 for _, p in prediction)
    assert len(found) == sum(len(after) for after in found._after.values())


def test_patterns_that_are_gone_are_forgotten(rng: np.random.Generator) -> None:
    """As if nothing had ever come from or to them; what the predictions were worth stays."""
    chain = rng.integers(6, size=300).tolist()
    found, want = observed(chain, decay=1.0), Transitions(decay=1.0)
    gain = found.gain
    found.keep([0, 2, 3])
    for a, b in pairwise(chain):
        if {a, b} <= {0, 2, 3}:
            want.observe(a, b)
    assert found._after == want._after
    assert len(found) == len(want) <= 9
    assert set(found._popular) == {0, 2, 3}
    assert found.gain == gain
    for pattern in range(6):
        assert {id for id, _ in found.predict(pattern)} == {0, 2, 3}
        assert sum(chance for _, chance in found.predict(pattern)) == pytest.approx(1)
    found.keep([])
    assert found.predict(0) == []
    assert len(found) == 0


def test_it_goes_on_from_its_state() -> None:
    chain = markov(300, 6, 0.5, np.random.default_rng(1))
    options = {"decay": 0.99, "max_transitions": 30, "kappa": 3.0}
    whole, half = observed(chain, **options), observed(chain[:151], **options)
    again = Transitions.from_state(half.state(), **options)
    assert again.gain == half.gain
    for a, b in pairwise(chain[150:]):
        again.observe(a, b)
    assert again.gain == whole.gain
    for state in range(6):
        assert dict(again.predict(state)) == pytest.approx(dict(whole.predict(state)))
    assert Transitions.from_state(Transitions().state()).predict(0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": None}, "expected an array 'pairs'"),
        ({"counts": np.ones(2)}, "expected 2 pairs"),
        ({"counts": np.full(4, np.nan)}, "expected finite counts"),
        ({"outcomes": np.zeros(3)}, "expected 4 pairs"),
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any], message: str) -> None:
    state = observed([0, 1, 2, 0, 2]).state()
    assert len(state["counts"]) == 4
    with pytest.raises(SonaCorruptError, match=message):
        Transitions.from_state({name: array for name, array in (state | change).items() if array is not None})


def test_what_is_refused_changes_nothing() -> None:
    found = observed([0, 1])
    with pytest.raises(SonaTypeError, match="next_pattern: expected an int, got float"):
        found.observe(0, 1.5)  # type: ignore[arg-type]
    assert len(found) == 1
    for options, message in (
        ({"decay": 0.0}, r"decay: expected a number in \(0, 1\], got 0"),
        ({"max_transitions": 1}, "max_transitions: expected an int of at least 2"),
        ({"kappa": 0.0}, "kappa: expected a positive finite number"),
    ):
        with pytest.raises(SonaValueError, match=message):
            Transitions(**options)  # type: ignore[arg-type]
