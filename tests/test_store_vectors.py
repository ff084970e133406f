"""The vectors of a state, in a store of either kind: they come and go with it, and the nearest are found."""

import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import Place

from sona.errors import SonaTypeError, SonaValueError
from sona.store import Store


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as opened:
        yield opened


def test_vectors_come_and_go_with_their_state(place):
    with place.open() as store:
        store.put_state("graph", b"1", 0, vectors=[(7, b"seven"), (2, b"two")])
        store.put_state("other", b"1", 0, vectors=[(2, b"zwei")])
        store.put_state("graph", b"2", 0, vectors=[(2, b"deux"), (3, b"three")], drop=[7, 99])
        store.put_state("graph", b"3", 0)
        bytes_now = store.bytes()
    with place.open() as store:
        assert store.get_state("graph") == (b"3", 0)
        assert list(store.vectors_of("graph")) == [(2, b"deux"), (3, b"three")]
        assert list(store.vectors_of("other")) == [(2, b"zwei")]
        assert list(store.vectors_of("none")) == []
        assert store.bytes() == bytes_now
        assert store.integrity() == []


def test_more_vectors_than_are_read_at_a_time(store):
    rows = [(id, b"%d" % id) for id in range(0, 2000, 2)]
    store.put_state("graph", b"1", 0, vectors=reversed(rows))
    assert list(store.vectors_of("graph")) == rows


def test_a_state_that_cannot_be_written_leaves_its_vectors(place, store):
    store.put_state("graph", b"1", 0, vectors=[(1, b"one")])

    def fails():
        yield 1, b"uno"
        raise SonaValueError("no more")

    with pytest.raises(SonaValueError, match="no more"):
        store.put_state("graph", b"2", 0, vectors=fails(), drop=[1])
    assert store.get_state("graph") == (b"1", 0)
    assert list(store.vectors_of("graph")) == [(1, b"one")]


def test_a_damaged_vector_is_left_out_and_found(place, store):
    store.put_state("graph", b"1", 0, vectors=[(1, b"one"), (2, b"two")])
    place.raw("UPDATE vectors SET vector = ? WHERE id = 1", b"\0")
    assert list(store.vectors_of("graph")) == [(2, b"two")]
    assert "vector 1 of 'graph': does not match its checksum" in store.integrity()


# -- the nearest ---------------------------------------------------------------------------------------------------


def oracle(vectors: dict[int, bytes], x: np.ndarray, k: int) -> list[tuple[int, float]]:
    """By numpy, one at a time."""
    found = []
    x = np.asarray(x, np.float32).astype(np.float64)
    for id, raw in vectors.items():
        v = np.frombuffer(raw, "<f4").astype(np.float64) if len(raw) == 4 * len(x) else np.zeros(len(x))
        length = np.linalg.norm(v)
        if np.isfinite(v).all() and length > 0:
            found.append((id, float(v @ x / length / np.linalg.norm(x))))
    return sorted(found, key=lambda each: (-each[1], each[0]))[:k]


def same(found: list[tuple[int, float]], want: list[tuple[int, float]]) -> None:
    """Equal but for the order of those that rounding cannot tell apart."""
    np.testing.assert_allclose([s for _, s in found], [s for _, s in want], atol=1e-9)
    for (id, similarity), (other, _) in zip(found, want, strict=True):
        assert id == other or sum(abs(s - similarity) < 1e-9 for _, s in want) > 1 or similarity == pytest.approx(want[-1][1], abs=1e-9)


def some(rng: np.random.Generator, count: int, dim: int) -> dict[int, bytes]:
    """Vectors with what else there may be: copies, zero, other lengths, what is no number, and no floats at all."""
    made = {3 * n: rng.standard_normal(dim).astype("<f4").tobytes() for n in range(count)}
    made |= {1: made[0], 2: bytes(4 * dim), 4: made[0] + made[0], 5: b"abc", 7: b"", 8: struct.pack("<f", np.nan) * dim}
    return made


@pytest.mark.parametrize("dim", [1, 3, 384])
def test_the_nearest_are_those_that_numpy_finds(store, rng, dim):
    vectors = some(rng, 600, dim)
    store.put_state("graph", b"1", 0, vectors=vectors.items())
    store.put_state("other", b"1", 0, vectors=[(0, np.ones(dim, "<f4").tobytes())])
    assert dict(store.vectors_of("graph")) == vectors
    for k in (0, 1, 10, 250, 5000):
        for x in (rng.standard_normal(dim), np.frombuffer(vectors[0], "<f4") * 7.5):
            same(store.nearest("graph", x, k), oracle(vectors, x, k))
    if dim > 1:  # of the copies
        assert {id for id, _ in store.nearest("graph", np.frombuffer(vectors[0], "<f4"), 2)} == {0, 1}
    assert store.nearest("none", np.ones(dim)) == []
    assert store.integrity() == []


def test_the_nearest_of_whatever_there_is(store):
    """Drawn: few values, so that equal ones and zeros are frequent."""

    @settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1e-30, 1e30]), min_size=1, max_size=3), max_size=12),
        st.lists(st.sampled_from([-2.0, 0.0, 1.0]), min_size=1, max_size=3).filter(any),
        st.integers(0, 6),
    )
    def check(rows, x, k):
        vectors = {n: np.array(row, "<f4").tobytes() for n, row in enumerate(rows)}
        store.put_state("graph", b"", 0, vectors=vectors.items(), drop=None)
        assert dict(store.vectors_of("graph")) == vectors
        same(store.nearest("graph", x, k), oracle(vectors, np.array(x), k))

    check()


@pytest.mark.parametrize("dim", [2000, 2001, 16_000, 16_001])
def test_no_length_is_too_long(store, rng, dim):
    vectors = {n: rng.standard_normal(dim).astype("<f4").tobytes() for n in range(5)}
    store.put_state("graph", b"", 0, vectors=vectors.items())
    assert dict(store.vectors_of("graph")) == vectors
    x = rng.standard_normal(dim)
    same(store.nearest("graph", x, 3), oracle(vectors, x, 3))
    assert store.integrity() == []


def test_a_damaged_vector_is_never_the_nearest(place, store, rng):
    vectors = {n: rng.standard_normal(4).astype("<f4").tobytes() for n in range(30)}
    store.put_state("graph", b"", 0, vectors=vectors.items())
    x = rng.standard_normal(4)
    best = oracle(vectors, x, 1)[0][0]
    place.raw("UPDATE vectors SET crc = 1 WHERE id = ?", best)
    del vectors[best]
    same(store.nearest("graph", x, 5), oracle(vectors, x, 5))


def test_what_is_not_a_direction_is_refused(store):
    for bad in (np.zeros(3), [], [[1.0]], [np.nan]):
        with pytest.raises(SonaValueError, match="x"):
            store.nearest("graph", bad)
    with pytest.raises(SonaTypeError, match="x"):
        store.nearest("graph", ["a"])
    with pytest.raises(SonaValueError, match="k"):
        store.nearest("graph", [1.0], -1)


def test_an_index_finds_nearly_all_of_the_nearest_and_those_that_come_later(place, store, rng):
    centres = rng.standard_normal((20, 32))
    clumped = (centres[rng.integers(20, size=3000)] + 0.5 * rng.standard_normal((3000, 32))).astype("<f4")
    vectors = {n: row.tobytes() for n, row in enumerate(clumped)}
    store.put_state("graph", b"", 0, vectors=list(vectors.items())[:2500])
    indexed = place.kind == "postgres" and store.pgvector
    assert store.index_vectors("graph", 32) is indexed
    assert store.index_vectors("graph", 32) is indexed  # once more does nothing
    assert store.index_vectors("graph", 2001) is False
    store.put_state("graph", b"", 0, vectors=list(vectors.items())[2500:], drop=[0])
    del vectors[0]
    hits = 0
    for x in clumped[::100]:
        found = store.nearest("graph", x, 10)
        assert len(found) == 10
        hits += len({id for id, _ in found} & {id for id, _ in oracle(vectors, x, 10)})
    assert hits >= 0.95 * 10 * 30
    assert len(store.nearest("graph", clumped[1], 2999)) == 2999
    if indexed:
        with store._db.reading() as link:
            plan = link.execute(
                "EXPLAIN SELECT id FROM vectors WHERE ns = 1 AND name = 'graph' AND size = 128 AND embedding IS NOT NULL"
                " ORDER BY embedding::vector(32) <=> ?, id LIMIT 18",
                (clumped[0],),
            ).fetchall()
        assert any("vectors_near_" in line for (line,) in plan), plan
