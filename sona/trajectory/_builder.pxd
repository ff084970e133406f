cdef class TrajectoryBuilder:
    cdef object id, query, clock, start
    cdef list steps
    cdef bint built
