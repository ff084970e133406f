cimport numpy as cnp
from libc.stdint cimport uint64_t

from sona._c cimport sona_adapter, sona_kernels, sona_reader, sona_tier


cdef class Adapter:
    cdef sona_adapter *handle
    cdef sona_reader *reader          # of calls that hold the GIL
    cdef const sona_kernels *kernels
    cdef readonly Py_ssize_t dim
    cdef readonly double scale
    cdef float *gradient              # (2, micro rows, ld) sums of accumulate_gradient, or NULL
    cdef size_t gradient_rows
    cdef uint64_t gradient_generation  # of the rows that the sums belong to
    cdef Py_ssize_t count
    cdef bint _has_gradient(self) noexcept
    cdef bint _is_short(self, const float *x) noexcept
    cdef void forward_ptr(self, const float *x, float *y) noexcept nogil


cdef cnp.ndarray rows_of(const float *rows, size_t count, size_t ld, size_t dim)
