"""The set of trajectory ids in a state is that of a plain set, whatever the order; positions in rings are kept with it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.loops import taught
from sona.loops.taught import SEQUENCES, Taught

ids = st.integers(0, 40) | st.integers(1 << 62, (1 << 62) + 10)


def again(one: Taught) -> Taught:
    other = Taught()
    other.restore(one.state())
    return other


@given(st.lists(ids))
def test_it_is_a_set(added: list[int]) -> None:
    ours = Taught()
    for id in added:
        ours.add(id)
    for one in (ours, again(ours)):
        assert [id for id in (*range(43), *range((1 << 62) - 2, (1 << 62) + 13)) if id in one] == sorted(set(added))
    spans = ours.state().get("ids", np.empty((2, 0), np.uint64))
    assert (spans[0][1:] > spans[1][:-1] + np.uint64(1)).all()  # what can be one span is one


def test_positions_in_rings_are_ids(rng: np.random.Generator) -> None:
    ours = Taught()
    names = [rng.bytes(16) for _ in range(3)]
    for n, name in enumerate(names):
        assert ours.ring(name, (n + 1) * SEQUENCES) == ((n + 1) * SEQUENCES, 0)
        assert ours.ring(name, 99 * SEQUENCES) == ((n + 1) * SEQUENCES, 0)  # the first one stays
    ours.read(names[1], 5)
    ours.owed[7] = 0.25, 3
    for one in (ours, again(ours)):
        assert [id for id in range(2 * SEQUENCES - 2, 2 * SEQUENCES + 9) if id in one] == [2 * SEQUENCES + n for n in range(1, 6)]
        assert SEQUENCES + 1 not in one
        assert one.ring(names[1], 0) == (2 * SEQUENCES, 5)
        assert one.owed == {7: (0.25, 3)}
    assert again(Taught()).state() == {}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taught, "SPANS", 4)
    monkeypatch.setattr(taught, "RINGS", 2)
    ours = Taught()
    for id in range(0, 200, 10):
        ours.add(id)
    assert ours.state()["ids"].tolist() == [[0, 170, 180, 190], [160, 170, 180, 190]]
    for n in range(5):
        ours.ring(bytes([n] * 16), (n + 1) * SEQUENCES)
    assert ours.state()["read"][:, 0].tolist() == [4 * SEQUENCES, 5 * SEQUENCES]
