from sona._c cimport sona_adapter, sona_shared_ring, sona_weights


cdef class SharedRing:
    cdef sona_shared_ring *ring
    cdef readonly str path
    cdef readonly bytes identity
    cdef sona_shared_ring *opened(self) except NULL


cdef class Weights:
    cdef sona_weights *weights
    cdef readonly str path
    cdef readonly size_t layers, dim
    cdef sona_adapter **handles   # (layers)
    cdef void **rows              # (layers) encoded adapters
    cdef size_t *sizes            # (layers) of them
    cdef size_t *rooms            # (layers) bytes that they have
    cdef sona_weights *opened(self) except NULL
    cdef int take(self, tuple adapters) except -1
