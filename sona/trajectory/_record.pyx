"""
Trajectories as bytes: what a builder fills, the ring carries, the loops learn from and the store keeps.

Little-endian, in this order::

    offset  type     prelude, the same in every version
    0       4 bytes  b"STRJ"
    4       uint32   size of the whole record in bytes
    8       uint32   CRC-32 of everything from offset 12
    12      uint16   version, 1
    14      uint16   0
    16      uint64   id
    24      uint64   latency_us
    32      float64  final_quality; NaN: None
    40      uint32   d, length of query_embedding
    44      uint32   number of steps
    48      float32  query_embedding (d)
    then for each step
    0       float64  timestamp
    8       float64  reward; NaN: None
    16      float64  expected; NaN: None
    24      uint32   layer
    28      uint32   a, length of attention_weights; 0: None
    32      uint32   1 when x follows, else 0
    36      uint32   0
    40      float32  activations (d), attention_weights (a), x (d or none)
"""

cimport numpy as cnp
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.type cimport PyType_GenericNew
from libc.math cimport NAN, isnan
from libc.stdint cimport uint64_t

from sona._arrays cimport sona_is_input
from sona._fields cimport set_step, set_trajectory

from zlib import crc32

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError, SonaVersionError
from sona.types import QueryTrajectory, TrajectoryStep

cnp.import_array()

cdef enum:
    MAGIC = 0x4a525453  # b"STRJ"
    VERSION = 1


# ---- parts of a record; what is read here is inside it: the caller has looked ----

cdef void write_head(char *to, uint64_t id, uint64_t latency_us, double quality, size_t d, size_t steps) noexcept:
    """HEAD bytes, which follow the prelude."""
    sona_put_int(to, VERSION, 4)
    sona_put_int(to + 4, id, 8)
    sona_put_int(to + 12, latency_us, 8)
    sona_put_double(to + 20, quality)
    sona_put_int(to + 28, d, 4)
    sona_put_int(to + 32, steps, 4)


cdef size_t read_head(const char *record, size_t *steps) noexcept:
    """d and the number of steps of a whole record."""
    steps[0] = sona_get_int(record + PRELUDE + 32, 4)
    return sona_get_int(record + PRELUDE + 28, 4)


cdef void write_step(char *to, const step_head *step) noexcept:
    """STEP bytes, which the vectors follow."""
    sona_put_double(to, step.timestamp)
    sona_put_double(to + 8, step.reward)
    sona_put_double(to + 16, step.expected)
    sona_put_int(to + 24, step.layer, 4)
    sona_put_int(to + 28, step.weights, 4)
    sona_put_int(to + 32, step.has_x, 8)


cdef step_head read_step(const char *source) noexcept:
    cdef step_head step
    step.timestamp = sona_get_double(source)
    step.reward = sona_get_double(source + 8)
    step.expected = sona_get_double(source + 16)
    step.layer = sona_get_int(source + 24, 4)
    step.weights = sona_get_int(source + 28, 4)
    step.has_x = sona_get_int(source + 32, 4) != 0
    return step


cdef uint64_t step_size(const step_head *step, size_t d) noexcept:
    """Bytes of a step with its vectors."""
    return STEP + 4 * (<uint64_t> d + step.weights + (d if step.has_x else 0))


cdef int seal(bytes record) except -1:
    """Write the prelude of a record whose rest is complete."""
    cdef char *data = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record)
    sona_put_int(data, MAGIC, 4)
    sona_put_int(data + 4, size, 4)
    sona_put_int(data + 8, crc32(PyMemoryView_FromMemory(data + PRELUDE, size - PRELUDE, PyBUF_READ)), 4)
    return 0


cdef double or_nan(object value) except? -1.0:
    return NAN if value is None else <double> value


cdef object or_none(double value):
    return None if isnan(value) else value


# ---- objects to bytes ----

cdef size_t length(object vector) except? 0:
    """Of an array, or 0 for None."""
    if vector is None:
        return 0
    if not (cnp.PyArray_CheckExact(vector) and sona_is_input(vector, 1)):
        raise SonaTypeError(f"trajectory: expected float32 vectors, got {type(vector).__name__}")
    return cnp.PyArray_DIM(vector, 0)


cdef char *put(char *to, object vector) except NULL:
    """Where the next one goes."""
    cdef size_t n = length(vector)
    if n:
        sona_copy_floats(to, cnp.PyArray_DATA(vector), n)
    return to + 4 * n


def encode(trajectory):
    """
    The trajectory as bytes, equal for equal trajectories.

    Raises
    ------
    SonaValueError
        It would take 4 GiB or more.
    """
    cdef tuple steps = trajectory.steps
    cdef list vectors = [trajectory.query_embedding]  # and activations, attention_weights and x of each step
    cdef size_t size = PRELUDE + HEAD + STEP * len(steps), i = 1
    for step in steps:
        vectors.append(step.activations)
        vectors.append(step.attention_weights)
        vectors.append(step.x)
    for vector in vectors:
        size += 4 * length(vector)
    if size >= <size_t> 1 << 32:
        raise SonaValueError(f"trajectory: expected less than 4 GiB, got {size} bytes")
    cdef bytes record = PyBytes_FromStringAndSize(NULL, size)
    cdef char *at = PyBytes_AS_STRING(record) + PRELUDE
    cdef step_head head
    write_head(at, trajectory.id, trajectory.latency_us, or_nan(trajectory.final_quality), length(vectors[0]), len(steps))
    at = put(at + HEAD, vectors[0])
    for step in steps:
        head.timestamp, head.reward, head.expected = step.timestamp, or_nan(step.reward), or_nan(step.expected)
        head.layer, head.weights, head.has_x = step.layer, length(vectors[i + 1]), vectors[i + 2] is not None
        write_step(at, &head)
        at = put(put(put(at + STEP, vectors[i]), vectors[i + 1]), vectors[i + 2])
        i += 3
    seal(record)
    return record


# ---- bytes to objects ----

cdef cnp.ndarray vector_of(const char *source, size_t n):
    """A read-only copy, (n,)."""
    cdef cnp.npy_intp shape = n
    cdef cnp.ndarray vector = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_FLOAT32, 0)
    sona_copy_floats(cnp.PyArray_DATA(vector), source, n)
    cnp.PyArray_CLEARFLAGS(vector, cnp.NPY_ARRAY_WRITEABLE)
    return vector


def decode(data):
    """
    The trajectory in `data`, which may come from anywhere: nothing outside it is read, and no more memory is taken than its size.

    Raises
    ------
    SonaCorruptError
        The bytes are truncated, changed, followed by others, or not a trajectory.
    SonaVersionError
        They are intact and of a newer version.
    """
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    except (TypeError, ValueError, BufferError):
        raise SonaTypeError(f"trajectory: expected contiguous bytes, got {type(data).__name__}") from None
    try:
        return intact(<const char *> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef int check_prelude(const char *record, uint64_t size) except -1:
    """All of it but the checksum."""
    if size < PRELUDE:
        raise SonaCorruptError(f"trajectory: expected at least {PRELUDE} bytes, got {size}")
    if sona_get_int(record, 4) != MAGIC:
        raise SonaCorruptError(f"trajectory: expected the bytes b'STRJ' at the start, got {record[:4]!r}")
    if sona_get_int(record + 4, 4) != size:
        raise SonaCorruptError(f"trajectory: expected {sona_get_int(record + 4, 4)} bytes as its head says, got {size}")
    return 0


cdef object intact(const char *record, uint64_t size):
    check_prelude(record, size)
    cdef uint64_t want = sona_get_int(record + 8, 4)
    cdef uint64_t got = crc32(PyMemoryView_FromMemory(<char *> record + PRELUDE, size - PRELUDE, PyBUF_READ))
    if want != got:
        raise SonaCorruptError(f"trajectory: expected CRC-32 {want:08x}, got {got:08x}")
    try:
        return decoded(record, size)
    except (SonaValueError, SonaTypeError) as error:
        raise SonaCorruptError(f"trajectory: {error}") from None


def measure_record(bytes record not None):
    """
    (d, number of steps) of a trajectory as bytes.

    Raises
    ------
    SonaCorruptError, SonaVersionError
        They are not what `encode` returns, as far as that shows without the checksum and the numbers.
    """
    cdef size_t d = 0, steps = 0
    measure_bytes(record, &d, &steps)
    return d, steps


cdef int measure_bytes(bytes record, size_t *d, size_t *steps) except -1:
    check_prelude(PyBytes_AS_STRING(record), len(record))
    measure(PyBytes_AS_STRING(record), len(record), d, steps)
    return 0


cdef int has(uint64_t at, uint64_t more, uint64_t size) except -1:
    if more > size - at:
        raise SonaCorruptError(f"trajectory: expected {more} bytes from {at}, got {size - at}")
    return 0


cdef int measure(const char *record, uint64_t size, size_t *d, size_t *steps) except -1:
    """d and the number of steps behind an intact prelude. A checksum protects against accidents only, so every length is checked."""
    cdef uint64_t at = PRELUDE
    cdef size_t i
    cdef step_head head
    has(at, 2, size)
    if sona_get_int(record + at, 2) > VERSION:
        raise SonaVersionError(f"trajectory: expected version {VERSION} or older, got {sona_get_int(record + at, 2)}")
    has(at, HEAD, size)
    if sona_get_int(record + at, 4) != VERSION:
        raise SonaCorruptError(f"trajectory: expected version {VERSION} and a zero, got {record[at:at + 4]!r}")
    d[0] = read_head(record, steps)
    at += HEAD
    has(at, 4 * <uint64_t> d[0], size)
    at += 4 * <uint64_t> d[0]
    for i in range(steps[0]):  # ends with the bytes, whatever the head says
        has(at, STEP, size)
        if sona_get_int(record + at + 32, 8) > 1:
            raise SonaCorruptError(f"trajectory: expected 0 or 1 and a zero in step {i}, got {record[at + 32:at + 40]!r}")
        head = read_step(record + at)
        has(at, step_size(&head, d[0]), size)
        at += step_size(&head, d[0])
    if at != size:
        raise SonaCorruptError(f"trajectory: expected its end after {at} bytes, got {size}")
    return 0


cdef object decoded(const char *record, uint64_t size):
    """The trajectory behind an intact prelude."""
    cdef size_t d = 0, count = 0, _
    cdef step_head head
    cdef list steps = []
    measure(record, size, &d, &count)
    cdef const char *at = record + PRELUDE + HEAD + 4 * d
    for _ in range(count):
        head = read_step(at)
        step = PyType_GenericNew(TrajectoryStep, None, None)
        set_step(
            step,
            vector_of(at + STEP, d),
            vector_of(at + STEP + 4 * d, head.weights) if head.weights else None,
            or_none(head.reward),
            head.timestamp,
            or_none(head.expected),
            head.layer,
            vector_of(at + STEP + 4 * (d + head.weights), d) if head.has_x else None,
        )
        steps.append(step)
        at += step_size(&head, d)
    trajectory = PyType_GenericNew(QueryTrajectory, None, None)
    set_trajectory(
        trajectory,
        TrajectoryStep,
        sona_get_int(record + PRELUDE + 4, 8),
        vector_of(record + PRELUDE + HEAD, d),
        steps,
        or_none(sona_get_double(record + PRELUDE + 20)),
        sona_get_int(record + PRELUDE + 12, 8),
    )
    return trajectory
