cimport numpy as cnp
from libc.stdint cimport uint64_t


cdef class TrajectoryBuilder:
    cdef object clock
    cdef double start
    cdef uint64_t id
    cdef size_t d, steps
    cdef char *data         # the record but for its prelude and head, which are written at the end
    cdef size_t size, room  # bytes used and allocated
    cdef bint ended
    cdef char *reserve(self, size_t more) except NULL
    cdef void fill(self, char *record, double reward) noexcept
