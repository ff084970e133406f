from sona.adapters._lora cimport Adapter


cdef class Place:
    cdef readonly object attached
    cdef readonly int number
    cdef readonly Adapter adapter
    cdef Py_ssize_t n_in, n_out
    cdef bint fresh               # y may be corrected where it lies
    cdef public bint by_exchange  # of DLPack; else by numpy, as in torch before 2.10
    cdef public bint on           # False: after `detach`
    cpdef object corrected(self, object x, object y)
    cpdef object alone(self, object x, object y)


cdef class Forward:
    cdef object module, before, inner
    cdef readonly Place place
    cdef bint reads_input, plain
