cpdef object number(value, str name)
cpdef object whole(value, str name)
cpdef object finite(value, str name)
cdef object natural(value, int bits, str name)
cdef bint is_empty(weights) except -1
cpdef int set_step(step, activations, attention_weights, reward, timestamp, expected, layer, x) except -1
cpdef int set_trajectory(trajectory, type step_type, id, query_embedding, steps, final_quality, latency_us) except -1
