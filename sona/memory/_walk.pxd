from sona._c cimport sona_walk_graph


cdef tuple rows_of(csr, sona_walk_graph *graph)
