"""Ended trajectories on their way from requests to the learning loops."""

from sona.errors import SonaTypeError, SonaValueError
from sona.trajectory._record import decode, encode, measure_record
from sona.trajectory._ring import Ring
from sona.types import QueryTrajectory

_LEAST_BYTES = 1024  # of a ring: less holds no trajectory worth the name


class TrajectoryBuffer:
    """
    Bounded queue of trajectories, first in, first out, kept as bytes: no objects wait in it.

    Parameters
    ----------
    capacity : int
        Trajectories.
    max_bytes : int
        Bound on the memory of all of them; the ring inside is the largest power of two that it allows, and takes its memory as it fills.
        A trajectory takes about 4 d (1 + steps) + 50 (1 + steps) bytes, and may take at most half of the ring.

    Raises
    ------
    SonaValueError
        capacity below 1 or max_bytes below 1024.

    Thread-safety
    -------------
    Any thread may call any method; each holds the GIL while it touches the ring and none waits for another.
    """

    def __init__(self, capacity: int, *, max_bytes: int = 32 << 20) -> None:
        for name, value, least in (("capacity", capacity, 1), ("max_bytes", max_bytes, _LEAST_BYTES)):
            if type(value) is not int:
                raise SonaTypeError(f"{name}: expected an int, got {type(value).__name__}")
            if value < least:
                raise SonaValueError(f"{name}: expected at least {least}, got {value}")
        self.capacity = capacity
        self._ring = Ring(1 << (max_bytes.bit_length() - 1), max_records=capacity)

    def record(self, trajectory: QueryTrajectory) -> bool:
        """
        Put a trajectory in; never waits. False, and counted, when there is no room for it: `capacity` are waiting, their bytes fill the
        ring, or it takes more than half of the ring by itself.
        """
        return self._ring.push(encode(trajectory))

    def put(self, record: bytes) -> bool:
        """
        `record` of a trajectory that is bytes already: what `TrajectoryBuilder.end` and `sona.trajectory.encode` return.

        Raises
        ------
        SonaCorruptError, SonaVersionError
            They are something else.
        """
        measure_record(record)
        return self._ring.push(record)

    def drain(self) -> list[QueryTrajectory]:
        """The trajectories inside at the time of the call, oldest first; they are taken out."""
        result = []
        for _ in range(len(self)):  # a producer that goes on meanwhile cannot keep this from ending
            data = self._ring.pop()
            if data is None:
                break
            result.append(decode(data))
        return result

    def __len__(self) -> int:
        """Trajectories inside."""
        return self._ring.record_count

    @property
    def used_bytes(self) -> int:
        """Bytes of the ring in use."""
        return len(self._ring)

    @property
    def dropped_count(self) -> int:
        """Trajectories refused so far."""
        return self._ring.dropped_count
