"""The steps of a trajectory, learned from one by one where they lie in its record."""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free, PyMem_Malloc

from sona.adapters._lora cimport Adapter
from sona.loops._instant cimport Instant
from sona.trajectory._record cimport HEAD, PRELUDE, STEP, measure_bytes, or_none, read_step, sona_copy_floats, step_head, step_size

from sona.errors import SonaValueError


def learn_steps(loop, bytes record not None, learned, reward):
    """
    Learn from each step of a record, in order, and count in the metrics of the loop what was learned and what could not be.

    Parameters
    ----------
    loop : InstantLoop
    record : bytes
        A trajectory, from `sona.trajectory.encode` or `TrajectoryBuilder.end`.
    learned : sequence or None
        The reward that was learned from each step before, or None where there was nothing to learn from. None: the first time.
    reward : float or None
        What every step's reward is now; not used the first time, when each step has its own.

    Returns
    -------
    list of float or None
        The reward that has been learned from each step afterwards.

    Raises
    ------
    SonaCorruptError, SonaVersionError
        Not a record; nothing is learned.
    """
    cdef tuple adapters = loop.adapters, instants = loop.instants
    cdef Py_ssize_t flush_every = loop.config.flush_every
    cdef const char *query = PyBytes_AS_STRING(record) + PRELUDE + HEAD
    cdef const char *at
    cdef size_t count = 0, i, d = 0, accumulated = 0, revised = 0, rejected = 0
    cdef step_head head
    cdef const char *vectors
    cdef float *x
    cdef float *v
    measure_bytes(record, &d, &count)
    if learned is not None and <size_t> len(learned) != count:
        raise SonaValueError(f"learned: expected {count} rewards, got {len(learned)}")
    cdef bint fits = d == <size_t> (<Instant?> instants[0]).dim
    cdef list result = []
    x = <float *> PyMem_Malloc(2 * d * sizeof(float))
    if x == NULL:
        raise MemoryError("learn_steps")
    v = x + d
    at = query + 4 * d
    try:
        for i in range(count):
            head = read_step(at)
            vectors = at + STEP
            at += step_size(&head, d)
            old = None if learned is None else learned[i]
            new = or_none(head.reward) if learned is None else reward
            result.append(old)
            if old is not None and new == old:
                continue
            if new is None or not fits or head.layer >= <size_t> len(adapters):
                rejected += 1
                continue
            sona_copy_floats(v, vectors, d)
            sona_copy_floats(x, vectors + 4 * (d + head.weights) if head.has_x else query, d)
            if not (<Instant?> instants[head.layer]).learn(<Adapter?> adapters[head.layer], x, v, <float> head.expected, new, old):
                rejected += 1
                continue
            result[i] = new
            accumulated += old is None
            revised += old is not None
            if flush_every:
                loop._since_flush += 1
                if loop._since_flush >= flush_every:
                    loop.flush_updates()
    finally:
        PyMem_Free(x)
        metrics = loop.metrics
        metrics.accumulated += accumulated
        metrics.revised += revised
        metrics.rejected += rejected
    return result
