"""A trajectory that was recorded elsewhere, as one of an engine."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport isfinite, isnan

from sona._fields cimport natural
from sona._vector cimport sona_all_finite
from sona.trajectory._record cimport (
    HEAD, PRELUDE, STEP, measure_bytes, or_none, read_step, seal, sona_copy_floats, sona_get_double, sona_get_int, sona_put_double,
    sona_put_int, step_head, step_size, write_step,
)

from zlib import crc32

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError

cdef enum:
    CHECKSUM = 8  # offsets in a record
    ID = PRELUDE + 4
    QUALITY = PRELUDE + 20


def admitted(data, id, dim, layers, unit):
    """
    Check every length and number of a trajectory as bytes, and make it what an engine would have recorded.

    Parameters
    ----------
    data : bytes-like
        In the format of `sona.trajectory.encode`; a checksum of 0 says that the recorder computed none.
    id : int or None
        Takes the place of the one inside, unless None.
    dim, layers : int
        Of the engine.
    unit : callable
        Maps a reward of the recorder's range to [0, 1].

    Returns
    -------
    id : int
        Below 2**63.
    record : bytes
        With the id, with rewards in [0, 1], of the final quality where a step has none, and with a checksum.
    quality : float or None
        In [0, 1].

    Raises
    ------
    SonaCorruptError, SonaVersionError
        The bytes are truncated, changed, followed by others, not a trajectory, or of a newer version.
    SonaValueError
        Another width, a layer that the engine does not have, or a number, the id among them, that is not finite or outside its range.
    """
    cdef Py_buffer view
    cdef bytes record
    cdef char *at
    cdef size_t d = 0, count = 0, floats, i
    cdef size_t width = dim, depth = layers
    cdef step_head head
    cdef double quality
    cdef float *room
    try:
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    except (TypeError, ValueError, BufferError):
        raise SonaTypeError(f"trajectory: expected contiguous bytes, got {type(data).__name__}") from None
    try:
        record = PyBytes_FromStringAndSize(<const char *> view.buf, view.len)  # of our own: the recorder may not hold still
    finally:
        PyBuffer_Release(&view)
    measure_bytes(record, &d, &count)
    at = PyBytes_AS_STRING(record)
    want, got = sona_get_int(at + CHECKSUM, 4), crc32(memoryview(record)[PRELUDE:])
    if want and want != got:
        raise SonaCorruptError(f"trajectory: expected CRC-32 {want:08x}, got {got:08x}")
    if d != width:
        raise SonaValueError(f"trajectory: expected vectors of {dim} numbers, got {d}")
    if id is not None:
        sona_put_int(at + ID, natural(id, 63, "id"), 8)
    id = natural(sona_get_int(at + ID, 8), 63, "id")
    quality = sona_get_double(at + QUALITY)
    if not isnan(quality):
        quality = unit(quality)
        sona_put_double(at + QUALITY, quality)
    room = <float *> PyMem_Malloc(len(record))
    if room == NULL:
        raise MemoryError(f"trajectory of {len(record)} bytes")
    try:
        at += PRELUDE + HEAD
        sona_copy_floats(room, at, d)  # aligned, and in the order of this machine
        if not sona_all_finite(room, d):
            raise SonaValueError("trajectory: expected a finite query, got NaN or infinity")
        at += 4 * d
        for i in range(count):
            head = read_step(at)
            if head.layer >= depth:
                raise SonaValueError(f"trajectory: expected a layer of 0 to {layers - 1} in step {i}, got {head.layer}")
            if not isfinite(head.timestamp):
                raise SonaValueError(f"trajectory: expected a finite timestamp in step {i}, got {head.timestamp}")
            if not isnan(head.expected) and not 0 <= head.expected <= 1:
                raise SonaValueError(f"trajectory: expected a probability in step {i}, got {head.expected}")
            floats = (step_size(&head, d) - STEP) // 4
            sona_copy_floats(room, at + STEP, floats)
            if not sona_all_finite(room, floats):
                raise SonaValueError(f"trajectory: expected finite vectors in step {i}, got NaN or infinity")
            head.reward = quality if isnan(head.reward) else unit(head.reward)
            write_step(at, &head)
            at += step_size(&head, d)
    finally:
        PyMem_Free(room)
    seal(record)
    return id, record, or_none(quality)
