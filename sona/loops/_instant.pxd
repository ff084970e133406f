from sona._c cimport sona_instant, sona_step
from sona.adapters._lora cimport Adapter


cdef class Instant:
    cdef sona_instant *handle
    cdef readonly Py_ssize_t dim
    cdef readonly str precondition
    cdef readonly double prior_variance, constant
    cdef bint learn(self, Adapter adapter, const float *x, const float *v, float probability, double reward, object old) except -1


cdef object step_dict(const sona_step *s)
