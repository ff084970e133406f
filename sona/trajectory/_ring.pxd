from libc.stdint cimport uint64_t

from sona._c cimport sona_ring


cdef class Ring:
    cdef sona_ring *ring     # for C code that reserves and commits, or peeks and releases; valid while this object lives
    cdef uint64_t oversized  # records refused because they never fit
    cdef bint _push(self, const char *data, size_t size) noexcept
