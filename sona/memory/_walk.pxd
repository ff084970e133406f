from sona._c cimport sona_walk_graph


cdef int rows_of(csr, sona_walk_graph *graph) except -1
