from sona._c cimport sona_kernels

cdef const sona_kernels *kernels_named(object isa) except NULL

cdef class Kernels:
    cdef const sona_kernels *table
