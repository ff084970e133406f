"""The byte ring as a Python object, over sona/ring.h."""

cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_CheckExact, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from sona._c cimport (
    SONA_EINVAL, SONA_OK,
    sona_ring_capacity, sona_ring_create, sona_ring_destroy, sona_ring_dropped, sona_ring_max_record, sona_ring_options, sona_ring_peek,
    sona_ring_pop, sona_ring_push, sona_ring_records, sona_ring_release, sona_ring_used, sona_status,
)
from sona._status cimport check

from sona.errors import SonaTypeError, SonaValueError

cnp.import_array()


cdef size_t positive(object value, str name, size_t least) except? 0:
    """A size that a caller passes: an int from `least` up."""
    if type(value) is not int:
        raise SonaTypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not least <= value < 1 << 63:
        raise SonaValueError(f"{name}: expected an int of at least {least} and below 2**63, got {value}")
    return value


cdef bint plain_array(object value) noexcept:
    """An array whose memory is its numbers, one after the other: no subclass, no references to objects."""
    return cnp.PyArray_CheckExact(value) and cnp.PyArray_IS_C_CONTIGUOUS(value) and cnp.PyTypeNum_ISNUMBER(cnp.PyArray_TYPE(value))


cdef class Ring:
    """
    Bounded queue of byte records, first in, first out; a full ring refuses the newest and never waits.

    Parameters
    ----------
    capacity_bytes : int
        A power of two, at least 16. A record takes its size, rounded up to 8, and 8 bytes more.
    max_records : int
        The ring is also full at this many records; 0: only bytes count.

    Raises
    ------
    SonaValueError
        For a capacity or count out of range.
    MemoryError

    Thread-safety
    -------------
    The C ring has one producer and one consumer thread. Here both ends are one object, because the GIL lets one method run at a time: any
    Python thread may call any method. C code that works on the ring without the GIL takes one end, and then no Python thread may use it.
    """

    def __cinit__(self, capacity_bytes, *, max_records=0):
        cdef sona_ring_options options
        options.capacity = positive(capacity_bytes, "capacity_bytes", 1)
        options.max_records = positive(max_records, "max_records", 0)
        options.first = 0
        options.own_producer = 0  # under the GIL, producers on several threads are no mistake
        cdef sona_status status = sona_ring_create(&options, &self.ring)
        if status == SONA_EINVAL:
            raise SonaValueError(f"capacity_bytes: expected a power of two of at least 16, got {capacity_bytes}")
        check(status, f"ring of {capacity_bytes} bytes")

    def __dealloc__(self):
        sona_ring_destroy(self.ring)

    def push(self, data):
        """
        Copy a bytes-like object in. False, and counted, when there is no room for it: now, or ever for more than `max_record_bytes`.

        Raises
        ------
        SonaTypeError, SonaValueError
            Not bytes-like; not contiguous.
        """
        if PyBytes_CheckExact(data):
            return self._push(PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data))
        if plain_array(data):  # without the detour of the buffer protocol, which costs more than the copy of a kilobyte
            return self._push(<const char *> cnp.PyArray_DATA(data), cnp.PyArray_NBYTES(data))
        cdef Py_buffer view
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except TypeError:
            raise SonaTypeError(f"data: expected a bytes-like object, got {type(data).__name__}") from None
        except (BufferError, ValueError) as error:
            raise SonaValueError(f"data: expected contiguous bytes ({error})") from None
        try:
            return self._push(<const char *> view.buf, <size_t> view.len)
        finally:
            PyBuffer_Release(&view)

    cdef bint _push(self, const char *data, size_t size) noexcept:
        cdef sona_status status = sona_ring_push(self.ring, data, size)
        self.oversized += status == SONA_EINVAL  # nothing but the size can be out of range
        return status == SONA_OK

    def pop(self):
        """The oldest record as bytes, or None when the ring is empty."""
        cdef size_t size = 0
        cdef const void *record = sona_ring_peek(self.ring, &size)
        if record == NULL:
            return None
        result = PyBytes_FromStringAndSize(<const char *> record, <Py_ssize_t> size)  # may raise: the record stays
        sona_ring_release(self.ring)
        return result

    def pop_into(self, out):
        """
        Copy the oldest record to the start of `out`, a bytearray or a writeable C-contiguous array of numbers, and return its size in
        bytes; None when the ring is empty. Nothing is allocated.

        Raises
        ------
        SonaValueError
            `out` is too small; the record stays.
        SonaTypeError
            `out` is something else.
        """
        cdef char *to
        cdef size_t room, size = 0
        if plain_array(out) and cnp.PyArray_ISWRITEABLE(out):
            to, room = <char *> cnp.PyArray_DATA(out), cnp.PyArray_NBYTES(out)
        elif PyByteArray_CheckExact(out):
            to, room = PyByteArray_AS_STRING(out), <size_t> PyByteArray_GET_SIZE(out)
        else:
            raise SonaTypeError(f"out: expected a bytearray or a writeable C-contiguous array of numbers, got {type(out).__name__}")
        if sona_ring_pop(self.ring, to, room, &size):
            return size
        if size == 0:  # a record of no bytes would have been popped
            return None
        raise SonaValueError(f"out: expected room for {size} bytes, got {room}")

    def __len__(self):
        """Bytes in use, with the records' headers and the bytes skipped at the end of the ring."""
        return sona_ring_used(self.ring)

    def __repr__(self):
        return f"Ring({self.capacity}: {self.record_count} records, {len(self)} bytes, {self.dropped_count} dropped)"

    @property
    def capacity(self):
        """Bytes."""
        return sona_ring_capacity(self.ring)

    @property
    def max_record_bytes(self):
        """The largest record that an empty ring takes: half of the capacity less 8."""
        return sona_ring_max_record(self.ring)

    @property
    def record_count(self):
        """Records inside."""
        return sona_ring_records(self.ring)

    @property
    def dropped_count(self):
        """Records refused so far, those of C producers included."""
        return sona_ring_dropped(self.ring) + self.oversized
