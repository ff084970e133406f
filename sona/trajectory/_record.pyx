"""Trajectories written as bytes, in the layout that record.py describes and reads."""

cimport numpy as cnp
from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.math cimport NAN
from libc.stdint cimport uint32_t, uint64_t

from sona._arrays cimport sona_is_input

from zlib import crc32

from sona.errors import SonaTypeError, SonaValueError

cnp.import_array()

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Little-endian on every machine; each returns where the next value goes. */
    static inline char *sona_put_int(char *to, uint64_t value, int bytes) {
      for (int i = 0; i < bytes; i++) to[i] = (char)(value >> 8 * i);
      return to + bytes;
    }

    static inline char *sona_put_double(char *to, double value) {
      uint64_t bits;
      memcpy(&bits, &value, 8);
      return sona_put_int(to, bits, 8);
    }

    static inline char *sona_put_floats(char *to, const void *from, size_t n) {
    #if PY_LITTLE_ENDIAN
      memcpy(to, from, 4 * n);
    #else
      uint32_t bits;
      for (size_t i = 0; i < n; i++) {
        memcpy(&bits, (const char *)from + 4 * i, 4);
        sona_put_int(to + 4 * i, bits, 4);
      }
    #endif
      return to + 4 * n;
    }
    """
    char *sona_put_int(char *to, uint64_t value, int size)
    char *sona_put_double(char *to, double value)
    char *sona_put_floats(char *to, const void *source, size_t n)

VERSION = 1

cdef enum:
    PRELUDE = 12
    HEAD = 36
    STEP = 40


cdef Py_ssize_t length(object array) except -1:
    """Of a field that is None or a vector."""
    if array is None:
        return 0
    if not (isinstance(array, cnp.ndarray) and sona_is_input(array, 1)):
        raise SonaTypeError(f"trajectory: expected float32 vectors, got {array!r}")
    return cnp.PyArray_DIM(array, 0)


cdef double or_nan(object value) except? -1.0:
    return NAN if value is None else <double> value


def encode(trajectory):
    """
    The trajectory as bytes, equal for equal trajectories.

    Raises
    ------
    SonaValueError
        It would take 4 GiB or more.
    """
    cdef object query = trajectory.query_embedding, array
    cdef tuple steps = trajectory.steps
    cdef list vectors = [query]  # (1 + 3 steps): activations, attention_weights and x of each, or None
    for step in steps:
        vectors += (step.activations, step.attention_weights, step.x)
    cdef Py_ssize_t size = PRELUDE + HEAD + STEP * len(steps), i = 1
    for array in vectors:
        size += 4 * length(array)
    if size >= <Py_ssize_t> 1 << 32:
        raise SonaValueError(f"trajectory: expected less than 4 GiB, got {size} bytes")

    cdef bytes record = PyBytes_FromStringAndSize(NULL, size)
    cdef char *at = PyBytes_AS_STRING(record) + PRELUDE
    at = sona_put_int(at, VERSION, 4)
    at = sona_put_int(at, trajectory.id, 8)
    at = sona_put_int(at, trajectory.latency_us, 8)
    at = sona_put_double(at, or_nan(trajectory.final_quality))
    at = sona_put_int(at, length(query), 4)
    at = sona_put_int(at, len(steps), 4)
    at = put_vector(at, query)
    for step in steps:
        at = sona_put_double(at, step.timestamp)
        at = sona_put_double(at, or_nan(step.reward))
        at = sona_put_double(at, or_nan(step.expected))
        at = sona_put_int(at, step.layer, 4)
        at = sona_put_int(at, length(vectors[i + 1]), 4)
        at = sona_put_int(at, vectors[i + 2] is not None, 8)
        at = put_vector(put_vector(put_vector(at, vectors[i]), vectors[i + 1]), vectors[i + 2])
        i += 3

    at = PyBytes_AS_STRING(record)
    cdef uint32_t checksum = crc32(PyMemoryView_FromMemory(at + PRELUDE, size - PRELUDE, PyBUF_READ))
    at = sona_put_int(at, 0x4a525453, 4)  # b"STRJ"
    at = sona_put_int(at, size, 4)
    sona_put_int(at, checksum, 4)
    return record


cdef char *put_vector(char *to, object array) except NULL:
    return to if array is None else sona_put_floats(to, cnp.PyArray_DATA(array), length(array))
