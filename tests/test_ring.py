"""Promises of the byte ring: first in, first out, whole, bounded, and every refusal counted."""

import threading
import time
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sona.errors import SonaTypeError, SonaValueError
from sona.trajectory import Ring

HEADER = 8


def room_for(size: int) -> int:
    """Bytes that a record takes."""
    return HEADER + (size + 7) // 8 * 8


class RingMachine(RuleBasedStateMachine):
    """The ring beside a deque: the same records come out, and only a ring without room refuses."""

    @initialize(log_capacity=st.integers(4, 9), max_records=st.sampled_from([0, 0, 1, 3]))
    def create(self, log_capacity: int, max_records: int) -> None:
        self.ring = Ring(1 << log_capacity, max_records=max_records)
        self.max_records = max_records
        self.model: deque[bytes] = deque()
        self.dropped = 0

    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        most = self.ring.max_record_bytes
        record = data.draw(st.binary(max_size=most + 8) | st.binary(min_size=most, max_size=most))
        before = len(self.ring)
        if self.ring.push(record):
            assert len(record) <= most
            self.model.append(record)
            assert room_for(len(record)) <= len(self.ring) - before < 2 * room_for(len(record))  # a skip is shorter than the record
        else:
            self.dropped += 1
            free = self.ring.capacity - before
            assert len(record) > most or free < 2 * room_for(len(record)) or len(self.model) == self.max_records > 0
            assert len(record) > most or self.model, "an empty ring refused a record that fits"
            assert len(self.ring) == before

    @rule()
    def pop(self) -> None:
        assert self.ring.pop() == (self.model.popleft() if self.model else None)

    @rule(room=st.integers(0, 300))
    def pop_into(self, room: int) -> None:
        out = bytearray(room)
        if not self.model:
            assert self.ring.pop_into(out) is None
        elif len(self.model[0]) > room:
            with pytest.raises(SonaValueError, match=f"room for {len(self.model[0])} bytes, got {room}"):
                self.ring.pop_into(out)
        else:
            record = self.model.popleft()
            assert self.ring.pop_into(out) == len(record)
            assert out == record.ljust(room, b"\0")

    @precondition(lambda self: len(self.model) > 2)
    @rule()
    def empty(self) -> None:
        while self.model:
            assert self.ring.pop() == self.model.popleft()
        assert len(self.ring) == 0

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "ring"):
            assert self.ring.record_count == len(self.model)
            assert self.ring.dropped_count == self.dropped
            assert sum(map(len, self.model)) <= len(self.ring) <= self.ring.capacity


TestRing = RingMachine.TestCase


@pytest.mark.parametrize("capacity", [0, -1, 1, 8, 15, 17, 24, 1000, 2**63, 2**70])
def test_a_capacity_that_is_no_power_of_two_from_16_up_is_refused(capacity: int) -> None:
    with pytest.raises(SonaValueError, match=f"capacity_bytes: .*got {capacity}"):
        Ring(capacity)


def test_a_capacity_that_no_machine_has_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="ring of"):
        Ring(2**62)


@pytest.mark.parametrize("arguments", [{"capacity_bytes": 64.0}, {"capacity_bytes": "64"}, {"capacity_bytes": 64, "max_records": None}])
def test_sizes_are_ints(arguments: dict[str, Any]) -> None:
    with pytest.raises(SonaTypeError, match="expected an int"):
        Ring(**arguments)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError):
        Ring(64, records=3)  # type: ignore[call-arg]
    with pytest.raises(SonaValueError, match="max_records"):
        Ring(64, max_records=-1)


def test_a_record_may_take_half_of_the_ring() -> None:
    ring = Ring(64)
    assert (ring.capacity, ring.max_record_bytes) == (64, 24)
    assert ring.push(bytes(24))
    assert not ring.push(bytes(25))
    assert ring.dropped_count == 1
    assert repr(ring) == "Ring(64: 1 records, 32 bytes, 1 dropped)"


@pytest.mark.parametrize(
    "data",
    [b"12345678", bytearray(b"12345678"), memoryview(b"12345678"), np.frombuffer(b"12345678", np.uint16), np.frombuffer(b"12345678", "S4")],
    ids=["bytes", "bytearray", "memoryview", "array of numbers", "array of strings"],
)
def test_anything_bytes_like_goes_in(data: Any) -> None:
    ring = Ring(64)
    assert ring.push(data)
    assert ring.pop() == b"12345678"


@pytest.mark.parametrize("data", ["text", None, 3, [1, 2]])
def test_what_is_not_bytes_like_is_refused(data: Any) -> None:
    ring = Ring(64)
    with pytest.raises(SonaTypeError, match=f"bytes-like object, got {type(data).__name__}"):
        ring.push(data)
    assert len(ring) == ring.dropped_count == 0


@pytest.mark.parametrize("data", [np.zeros((4, 4), np.uint8).T[::2], memoryview(b"12345678")[::2]], ids=["array", "memoryview"])
def test_scattered_bytes_are_refused(data: Any) -> None:
    ring = Ring(64)
    with pytest.raises(SonaValueError, match="contiguous"):
        ring.push(data)
    assert len(ring) == 0


def test_pop_into_an_array() -> None:
    ring, numbers = Ring(64), np.arange(3, dtype=np.float64)
    out = np.full(4, 9.0)
    assert ring.push(numbers)
    assert ring.pop_into(out) == 24
    np.testing.assert_array_equal(out, [0, 1, 2, 9])


@pytest.mark.parametrize(
    "out",
    [b"1234", np.zeros(4, object), np.zeros((4, 4)).T, np.frombuffer(b"1234", np.uint8), memoryview(bytearray(4)), None],
    ids=["bytes", "objects", "scattered", "read-only", "memoryview", "None"],
)
def test_pop_into_what_cannot_be_written_as_bytes_is_refused(out: Any) -> None:
    ring = Ring(64)
    ring.push(b"12")
    with pytest.raises(SonaTypeError, match="out: expected a bytearray or a writeable"):
        ring.pop_into(out)
    assert ring.pop() == b"12"


def test_python_threads_may_share_both_ends() -> None:
    """The GIL makes several producers one: nothing is lost, torn or doubled, and each thread's records stay in order."""
    ring, each, threads = Ring(1024), 500, 3
    received: list[bytes] = []

    def produce(name: int) -> None:
        for i in range(each):
            record = bytes([name]) + i.to_bytes(4, "little") * (i % 7)
            while not ring.push(record):
                time.sleep(0)

    def consume() -> None:
        while len(received) < each * threads:
            record = ring.pop()
            if record is None:
                time.sleep(0)
            else:
                received.append(record)

    workers = [threading.Thread(target=produce, args=(name,)) for name in range(threads)] + [threading.Thread(target=consume)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name in range(threads):
        assert [r[1:] for r in received if r[0] == name] == [i.to_bytes(4, "little") * (i % 7) for i in range(each)]
