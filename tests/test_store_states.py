"""What was learned, in a store of either kind: states, and arm sets."""

from collections.abc import Iterator

import pytest
from stores import Place

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError, SonaWarning
from sona.store import Store


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as opened:
        yield opened


def test_state_comes_back_after_a_restart(place):
    with place.open() as store:
        assert store.get_state("adapter") is None
        for n in range(5):
            store.put_state("adapter", b"weights" * n, n)
            store.put_state("guard", b"", 7)
        assert store.get_state("adapter") == (b"weights" * 4, 4)
    assert place.raw("SELECT name, generation FROM state ORDER BY 1, 2") == [("adapter", 4), ("adapter", 5), ("guard", 4), ("guard", 5)]
    with place.open() as store:
        assert store.get_state("adapter") == (b"weights" * 4, 4)
        assert store.get_state("guard") == (b"", 7)


@pytest.mark.parametrize("damage", [("blob", b"\0"), ("applied_seq", 9), ("sha256", b"")])
def test_a_damaged_state_falls_back_to_the_one_before_it(place, store, damage):
    store.put_state("adapter", b"first", 1)
    store.put_state("adapter", b"second", 2)
    place.raw(f"UPDATE state SET {damage[0]} = ? WHERE generation = 2", damage[1])
    with pytest.warns(SonaWarning, match="going back"):
        assert store.get_state("adapter") == (b"first", 1)
    assert any("generation 2" in finding for finding in store.integrity())
    # The damaged one never becomes the fall-back.
    store.put_state("adapter", b"third", 3)
    place.raw("UPDATE state SET blob = ? WHERE generation = 3", b"\0")
    with pytest.warns(SonaWarning, match="going back"):
        assert store.get_state("adapter") == (b"first", 1)
    place.raw("UPDATE state SET blob = ?", b"\0")
    with pytest.raises(SonaCorruptError, match="no kept state 'adapter'"):
        store.get_state("adapter")


def test_put_state_checks_its_arguments(store):
    for bad in ("text", bytearray(b"x"), None):
        with pytest.raises(SonaTypeError, match="bytes"):
            store.put_state("adapter", bad, 0)
    for bad in (-1, 0.5, 2**63):
        with pytest.raises(SonaValueError, match="applied_seq"):
            store.put_state("adapter", b"", bad)
    assert store.get_state("adapter") is None


def test_the_same_arms_have_the_same_version(store):
    assert store.latest_arms() is None
    a, b = (["x", "y"], b"vectors", b"costs"), (["x"], b"vectors", b"costs")
    assert [store.put_arms(*a), store.put_arms(*b), store.put_arms(*a), store.put_arms(*b), store.put_arms(*a)] == [1, 2, 1, 2, 1]
    assert store.latest_arms() == (1, ("x", "y"), b"vectors", b"costs")
    assert store.arms(2) == (("x",), b"vectors", b"costs")
    # Moving a byte from one part to the next is another content.
    assert store.put_arms(["x"], b"vectorsc", b"osts") == 3


def test_put_arms_checks_its_arguments(store):
    for bad in ("xy", [1]):
        with pytest.raises(SonaTypeError, match="arm names"):
            store.put_arms(bad, b"", b"")
    with pytest.raises(SonaTypeError, match="got str and bytes"):
        store.put_arms(["x"], "v", b"")


def test_damaged_arms_are_not_handed_out(place, store):
    store.put_arms(["x"], b"vectors", b"")
    place.raw("UPDATE arms SET vectors = ?", b"\0")
    with pytest.raises(SonaCorruptError, match="arm set 1"):
        store.arms(1)
    assert any("arm set 1" in finding for finding in store.integrity())
