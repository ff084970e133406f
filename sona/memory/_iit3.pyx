"""IIT 3.0 over sona/iit3.h: arrays in, sets of nodes as bit masks out. sona.memory.iit3 checks what comes in and names the nodes."""

cimport numpy as cnp
from libc.stdint cimport uint32_t, uint64_t

from sona._c cimport (
    SONA_EFULL, SONA_IIT3_NODES, SONA_IIT3_RESOLUTION, SONA_IIT3_WORK, sona_calloc, sona_free, sona_iit3, sona_iit3_concept,
    sona_iit3_distance, sona_iit3_reachable, sona_iit3_result, sona_iit3_side, sona_iit3_work, sona_status,
)
from sona._status cimport check

import numpy as np

from sona.errors import SonaValueError

cnp.import_array()

NODES, RESOLUTION, WORK = SONA_IIT3_NODES, SONA_IIT3_RESOLUTION, SONA_IIT3_WORK


cdef const void *data(object array, object dtype, tuple shape) except NULL:
    """IN, C-contiguous."""
    if not isinstance(array, cnp.ndarray) or array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise SonaValueError(f"expected a C-contiguous {dtype} array of shape {shape}, got {array!r}")
    return cnp.PyArray_DATA(array)


cdef const double *table(object tpm, uint32_t *n) except NULL:
    """IN (2^n, n)"""
    if not isinstance(tpm, cnp.ndarray) or tpm.ndim != 2 or not 1 <= tpm.shape[1] <= SONA_IIT3_NODES:
        raise SonaValueError(f"tpm: expected 1 to {SONA_IIT3_NODES} nodes, got {tpm!r}")
    n[0] = tpm.shape[1]
    return <const double *> data(tpm, np.float64, (1 << n[0], n[0]))


cdef tuple side(const sona_iit3_side *s):
    """(phi, purview, mechanism and purview of one part, repertoire)"""
    cdef cnp.npy_intp count = 1 << int(s.purview).bit_count()
    cdef cnp.ndarray repertoire = cnp.PyArray_SimpleNew(1, &count, cnp.NPY_FLOAT64)
    cdef double *p = <double *> cnp.PyArray_DATA(repertoire)
    for i in range(count):
        p[i] = s.repertoire[i]
    repertoire.flags.writeable = False
    return s.phi, s.purview, s.part_mechanism, s.part_purview, repertoire


def solve(tpm, cm, uint32_t state):
    """
    (phi, sets severed from the rest, concepts as (mechanism, phi, cause, effect)) for tpm (2^n, n) float64, cm (n, n) uint8.

    SonaValueError for more than WORK to do, and for what `sona_iit3` refuses; MemoryError.
    """
    cdef uint32_t n = 0
    cdef const double *chances = table(tpm, &n)
    cdef const unsigned char *connections = <const unsigned char *> data(cm, np.uint8, (n, n))
    cdef sona_status status
    cdef const sona_iit3_concept *c
    cdef sona_iit3_result *result = <sona_iit3_result *> sona_calloc(1, sizeof(sona_iit3_result))
    if result == NULL:
        raise MemoryError("iit3: no room for the result")
    try:
        with nogil:
            status = sona_iit3(n, chances, connections, state, SONA_IIT3_WORK, result)
        if status == SONA_EFULL:
            raise SonaValueError(f"tpm: expected at most {WORK:.1e} steps of work, got {work(tpm):.1e}: "
                                 f"{n} nodes need fewer connections")
        check(status, "iit3")
        concepts = []
        for i in range(result.concepts):
            c = &result.concept[i]
            concepts.append((c.mechanism, c.phi, side(&c.cause), side(&c.effect)))
        return result.phi, [result.cut[i] for i in range(result.cuts)], concepts
    finally:
        sona_free(result)


def reachable(tpm, uint32_t state):
    """Whether some state leads to this one."""
    cdef uint32_t n = 0
    cdef const double *chances = table(tpm, &n)
    return bool(sona_iit3_reachable(n, chances, state))


def work(tpm):
    """Steps that `solve` may need for any state, as sona_iit3_work counts them."""
    cdef uint32_t n = 0
    cdef uint64_t steps
    cdef const double *chances = table(tpm, &n)
    with nogil:
        steps = sona_iit3_work(n, chances)
    return steps


def distance(p, q):
    """Earth mover's distance of two distributions over the states of k nodes, (2^k,) float64 each, where a node that differs costs 1."""
    cdef uint32_t k = max(len(p).bit_length() - 1, 0)
    cdef double found = 0
    cdef const double *a = <const double *> data(p, np.float64, (1 << k,))
    cdef const double *b = <const double *> data(q, np.float64, (1 << k,))
    check(sona_iit3_distance(k, a, b, &found), "distance")
    return found
