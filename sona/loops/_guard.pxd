from sona._c cimport sona_guard


cdef class Guard:
    cdef sona_guard guard
    cdef object random
