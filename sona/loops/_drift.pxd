from libc.stdint cimport uint64_t

from sona._c cimport sona_adwin


cdef class Watch:
    cdef sona_adwin adwin
    cdef int add(self, uint64_t id, double surprise) noexcept
