"""IIT 3.0 over sona/iit3.h: arrays in, sets of nodes as bit masks out. sona.memory.iit3 checks what comes in and names the nodes."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from sona._c cimport (
    SONA_EFULL, SONA_ESTOPPED, SONA_IIT3_NODES, SONA_IIT3_RESOLUTION, SONA_IIT3_WORK, sona_calloc, sona_free, sona_iit3, sona_iit3_concept,
    sona_iit3_distance, sona_iit3_reachable, sona_iit3_result, sona_iit3_side, sona_iit3_work, sona_status,
)
from sona._status cimport check

import numpy as np

from sona.errors import SonaValueError

NODES, RESOLUTION, WORK = SONA_IIT3_NODES, SONA_IIT3_RESOLUTION, SONA_IIT3_WORK


cdef int _interrupted(void *context) noexcept nogil:
    """1 where a signal raised something, which is put into the list `context`."""
    with gil:
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            (<list> context).append(error)
            return 1
    return 0


def _nodes(Py_ssize_t states, Py_ssize_t n):
    """n, where (states, n) is the shape of a state-by-node table."""
    if not 1 <= n <= SONA_IIT3_NODES or states != 1 << n:
        raise SonaValueError(f"tpm: expected shape (2^n, n) for 1 to {SONA_IIT3_NODES} nodes, got ({states}, {n})")
    return n


def solve(const double[:, ::1] tpm not None, const uint8_t[:, ::1] cm not None, uint32_t state):
    """
    (phi, sets severed from the rest, concepts) for tpm (2^n, n) and cm (n, n).

    A concept is (mechanism, phi, cause, effect), a side of it (phi, purview, mechanism and purview of one part, repertoire). SonaValueError
    for more than WORK to do, and for what `sona_iit3` refuses; MemoryError; between two cuts what a handler of signals raises.
    """
    cdef uint32_t n = _nodes(tpm.shape[0], tpm.shape[1])
    if cm.shape[0] != n or cm.shape[1] != n:
        raise SonaValueError(f"cm: expected shape ({n}, {n}), got ({cm.shape[0]}, {cm.shape[1]})")
    cdef const double *chances = &tpm[0, 0]
    cdef const uint8_t *connections = &cm[0, 0]
    cdef list raised = []
    cdef void *context = <void *> raised
    cdef int (*stop)(void *) noexcept nogil
    stop = NULL
    if n > 4:  # smaller ones are done before anybody presses a key
        stop = _interrupted
    cdef sona_status status
    cdef const sona_iit3_concept *c
    cdef const sona_iit3_side *s
    cdef double[::1] repertoire
    cdef Py_ssize_t i, k, x, count
    cdef sona_iit3_result *result = <sona_iit3_result *> sona_calloc(1, sizeof(sona_iit3_result))
    if result == NULL:
        raise MemoryError("iit3: no room for the result")
    try:
        with nogil:
            status = sona_iit3(n, chances, connections, state, SONA_IIT3_WORK, stop, context, result)
        if status == SONA_ESTOPPED:
            raise raised[0]
        if status == SONA_EFULL:
            raise SonaValueError(f"tpm: expected at most {WORK:.1e} steps of work, got {work(tpm):.1e}: "
                                 f"{n} nodes need fewer connections")
        check(status, "iit3")
        concepts = []
        for i in range(result.concepts):
            c = &result.concept[i]
            sides = []
            for k in range(2):
                s = &c.cause if k == 0 else &c.effect
                count = 1 << int(s.purview).bit_count()
                found = np.empty(count)
                repertoire = found
                for x in range(count):
                    repertoire[x] = s.repertoire[x]
                found.flags.writeable = False
                sides.append((s.phi, s.purview, s.part_mechanism, s.part_purview, found))
            concepts.append((c.mechanism, c.phi, *sides))
        return result.phi, [result.cut[i] for i in range(result.cuts)], concepts
    finally:
        sona_free(result)


def reachable(const double[:, ::1] tpm not None, uint32_t state):
    """Whether some state leads to this one."""
    return bool(sona_iit3_reachable(_nodes(tpm.shape[0], tpm.shape[1]), &tpm[0, 0], state))


def work(const double[:, ::1] tpm not None):
    """Steps that `solve` may need for any state, as sona_iit3_work counts them."""
    cdef uint32_t n = _nodes(tpm.shape[0], tpm.shape[1])
    cdef const double *chances = &tpm[0, 0]
    cdef uint64_t steps
    with nogil:
        steps = sona_iit3_work(n, chances)
    return steps


def distance(const double[::1] p not None, const double[::1] q not None):
    """Earth mover's distance of two distributions over the states of k nodes, (2^k,) each, where a node that differs costs 1."""
    cdef uint32_t k = int(p.shape[0]).bit_length() - 1 if p.shape[0] else 0
    cdef double found = 0
    if p.shape[0] != 1 << k or q.shape[0] != 1 << k:
        raise SonaValueError(f"expected two distributions over 2^k states, got {p.shape[0]} and {q.shape[0]}")
    check(sona_iit3_distance(k, &p[0], &q[0], &found), "distance")
    return found
