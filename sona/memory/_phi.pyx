"""Phi of arrays that have the right types, over sona/phi.h."""

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t

from sona._c cimport (
    SONA_ENOMEM, SONA_OK, SONA_PHI_ALPHA, SONA_PHI_ASYMMETRY, SONA_PHI_CROSSOVER, SONA_PHI_EXHAUSTED, SONA_PHI_NODES,
    sona_calloc, sona_free, sona_phi, sona_phi_compute, sona_phi_graph, sona_phi_method, sona_phi_options, sona_phi_subgraphs, sona_status,
)
from sona._status cimport check

import numpy as np

cnp.import_array()

cdef size_t AT_ONCE = 16  # parts between two looks at signals: a part of 64 nodes takes 4 ms

NODES, EXHAUSTED, CROSSOVER = SONA_PHI_NODES, SONA_PHI_EXHAUSTED, SONA_PHI_CROSSOVER
ALPHA, ASYMMETRY = SONA_PHI_ALPHA, SONA_PHI_ASYMMETRY


def compute(cnp.ndarray weights, double alpha, bint directed, bint normalise, int method):
    """
    Phi of checked arguments: weights (n, n) float64 and C-contiguous, 1 <= n <= NODES; method 0 auto, 1 exhaustive, 2 Queyranne.

    Returns value, total, the nodes beside node 0 and the others as tuples, method; None where the weights are refused.
    """
    cdef sona_phi_options options = sona_phi_options(alpha, directed, normalise, <sona_phi_method> method)
    cdef const double *w = <const double *> cnp.PyArray_DATA(weights)
    cdef size_t n = cnp.PyArray_DIM(weights, 0)
    cdef sona_phi found
    cdef sona_status status
    with nogil:
        status = sona_phi_compute(w, n, &options, &found)
    if status == SONA_ENOMEM:
        check(status, "phi")
    if status != SONA_OK:
        return None
    cdef list near = [], far = []
    cdef size_t i
    for i in range(n):
        (near if found.part >> i & 1 else far).append(i)
    return found.value, found.total, tuple(near), tuple(far), <int> found.method


def subgraphs(
    cnp.ndarray start, cnp.ndarray stop, cnp.ndarray column, cnp.ndarray weight, cnp.ndarray member, cnp.ndarray offset,
    double alpha, bint directed, bint normalise,
):
    """
    Phi of parts of a graph, float64 (count,), and -1; where a part is refused, its number instead and what stands there is unspecified.

    start, stop (nodes,) int64, column (entries,) int32, weight (entries,) float32, member int64, offset (count + 1,) int64, C-contiguous;
    offset ascends from 0 to the length of member.
    """
    cdef sona_phi_options options = sona_phi_options(alpha, directed, normalise, <sona_phi_method> 0)
    cdef sona_phi_graph graph
    cdef size_t count = cnp.PyArray_DIM(offset, 0) - 1, failed = 0, first, some, i
    cdef const int64_t *members = <const int64_t *> cnp.PyArray_DATA(member)
    cdef const int64_t *offsets = <const int64_t *> cnp.PyArray_DATA(offset)
    cdef cnp.ndarray result = np.empty(count, dtype=np.float64)
    cdef double *value = <double *> cnp.PyArray_DATA(result)
    graph.nodes, graph.entries = cnp.PyArray_DIM(start, 0), cnp.PyArray_DIM(column, 0)
    graph.start, graph.stop = <const int64_t *> cnp.PyArray_DATA(start), <const int64_t *> cnp.PyArray_DATA(stop)
    graph.column, graph.weight = <const int32_t *> cnp.PyArray_DATA(column), <const float *> cnp.PyArray_DATA(weight)
    cdef sona_phi *found = <sona_phi *> sona_calloc(AT_ONCE, sizeof(sona_phi))
    cdef sona_status status = SONA_ENOMEM if found == NULL else SONA_OK
    try:
        for first in range(0, count, AT_ONCE):
            if status != SONA_OK:
                break
            some = min(count - first, AT_ONCE)
            with nogil:
                status = sona_phi_subgraphs(&graph, members, offsets + first, some, &options, found, &failed)
                for i in range(some):
                    value[first + i] = found[i].value
            failed += first
            PyErr_CheckSignals()  # Ctrl-C
    finally:
        sona_free(found)
    if status == SONA_ENOMEM:
        check(status, "phi_of_subgraphs")
    return result, -1 if status == SONA_OK else failed
