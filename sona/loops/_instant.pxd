from sona._c cimport sona_instant, sona_step


cdef class Instant:
    cdef sona_instant *handle
    cdef readonly Py_ssize_t dim
    cdef readonly str precondition


cdef object step_dict(const sona_step *s)
