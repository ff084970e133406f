from sona._c cimport sona_kernels, sona_lora

cdef const sona_kernels *kernels_named(object isa) except NULL

cdef class Kernels:
    cdef const sona_kernels *table
    cdef sona_lora adapter(self, object down, object up, double scale, object offset) except *
    cdef int apart_from(self, const sona_lora *w, const float *out, Py_ssize_t size, str name) except -1
