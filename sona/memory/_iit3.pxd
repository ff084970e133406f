cdef int _interrupted(void *context) noexcept nogil
