"""Random walks over a `Csr`, over sona/walk.h."""

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t

from sona._c cimport SONA_OK, SONA_WALK_LONGEST, sona_status, sona_walk, sona_walk_cumulate, sona_walk_graph, sona_walk_options
from sona._status cimport check

from operator import index

import numpy as np

from sona.errors import SonaTypeError, SonaValueError

cnp.import_array()

cdef size_t AT_ONCE = 100_000  # positions between two looks at signals: milliseconds, but for rows of thousands that are heated


cdef tuple rows_of(csr, sona_walk_graph *graph):
    """Points graph at the arrays of a Csr, which it returns: they have to be held while graph is in use."""
    cdef const int64_t[::1] start, stop
    cdef const int32_t[::1] column
    cdef const float[::1] weight, cumulative
    try:
        held = csr.start, csr.stop, csr.column, csr.weight, csr.cumulative
        start, stop, column, weight, cumulative = held
    except (AttributeError, BufferError, TypeError, ValueError) as error:
        raise SonaTypeError(f"csr: expected a Csr of contiguous arrays of its types, got {type(csr).__name__} ({error})") from None
    if stop.shape[0] != start.shape[0] or not (column.shape[0] == weight.shape[0] == cumulative.shape[0]):
        raise SonaValueError(f"csr: expected start and stop, and column, weight and cumulative of one length, got {start.shape[0]}, "
                             f"{stop.shape[0]}, {column.shape[0]}, {weight.shape[0]} and {cumulative.shape[0]}")
    graph.nodes, graph.entries = start.shape[0], column.shape[0]
    if graph.nodes:
        graph.start, graph.stop = &start[0], &stop[0]
    if graph.entries:
        graph.column, graph.weight, graph.cumulative = &column[0], &weight[0], &cumulative[0]
    return held


def walks(csr, starts, Py_ssize_t length, *, seed, double temperature=1.0, double revisit=0.5, double restart=0.0, double jump=0.0):
    """
    Seeded random walks; the lock of the interpreter is released meanwhile, and Ctrl-C ends them.

    Parameters
    ----------
    csr : Csr
    starts : (w,) ints
        Positions.
    length : int
        Positions of a walk, its start included.
    seed : int in [0, 2**64)
        Same arguments, same walks, on every machine. A walk depends on the seed, its number and its start, not on the other walks.
    temperature : float
        Above 0; edges count as weight ** (1 / temperature). Above 1 the weak ones come into play, at infinity all are equal.
    revisit : float in [0, 1]
        Factor on the weight of nodes that the walk has visited.
    restart, jump : float
        Probability of going back to the start, and of going to any node at all, instead of along an edge; their sum is at most 1.

    Returns
    -------
    (w, length) int32
        Positions in the order visited; -1 after the end of a walk that had nowhere to go: no edge, jump 0, and restart 0 or at its start.

    Raises
    ------
    SonaValueError
        For an argument outside of its range, or a graph with rows or neighbours outside of itself.
    SonaTypeError
        For starts, a length or a seed that are not ints, and for what is not a Csr.
    """
    cdef sona_walk_graph graph
    cdef sona_walk_options options
    cdef sona_status status = SONA_OK
    cdef size_t done = 0, now, step
    cdef const int32_t *first
    cdef int32_t *to
    graph.start = graph.stop = NULL
    graph.column = NULL
    graph.weight = graph.cumulative = NULL
    try:
        seed, given = index(seed), np.asarray(starts)
    except (TypeError, ValueError) as error:
        raise SonaTypeError(f"seed, starts: expected an int, and ints of shape (w,), got something else ({error})") from None
    if given.ndim != 1 or given.dtype.kind not in "iu" and given.size:
        raise SonaTypeError(f"starts: expected ints of shape (w,), got {given.dtype} of shape {given.shape}")
    if length < 1 or length > SONA_WALK_LONGEST:
        raise SonaValueError(f"length: expected an int in [1, {SONA_WALK_LONGEST}], got {length}")
    if not temperature > 0:
        raise SonaValueError(f"temperature: expected a number above 0, got {temperature}")
    if not 0 <= revisit <= 1:
        raise SonaValueError(f"revisit: expected a number in [0, 1], got {revisit}")
    if not (restart >= 0 and jump >= 0 and restart + jump <= 1):
        raise SonaValueError(f"restart, jump: expected probabilities with a sum of at most 1, got {restart} and {jump}")
    if not 0 <= seed < 1 << 64:
        raise SonaValueError(f"seed: expected an int in [0, 2**64), got {seed}")
    held = rows_of(csr, &graph)
    if given.size and not (0 <= given.min() and given.max() < graph.nodes):
        raise SonaValueError(f"starts: expected positions in [0, {graph.nodes}), got {given.min()} to {given.max()}")
    cdef cnp.ndarray begin = np.array(given, dtype=np.int32)  # a copy: whoever writes to starts meanwhile does not change what was checked
    cdef cnp.ndarray out = np.empty((given.size, length), dtype=np.int32)
    cdef size_t count = begin.shape[0]
    options.length, options.seed = length, seed
    options.temperature, options.revisit, options.restart, options.jump = temperature, revisit, restart, jump
    first, to = <const int32_t *> cnp.PyArray_DATA(begin), <int32_t *> cnp.PyArray_DATA(out)
    step = 8 * (1 + AT_ONCE // (8 * length))  # eight walks take turns in C
    while done < count:
        now = min(step, count - done)
        with nogil:
            status = sona_walk(&graph, &options, first + done, done, now, to + done * length)
        if status != SONA_OK:
            break
        done += now
        PyErr_CheckSignals()
    if status != SONA_OK:
        check(status, "csr: rows or neighbours outside of the graph")
    del held
    return out


def cumulate(const int64_t[::1] start, const int64_t[::1] stop, const float[::1] weight, float[::1] cumulative):
    """Running sums of `weight` within the rows start[i] : stop[i], into `cumulative`. SonaValueError for rows that reach beyond it."""
    cdef Py_ssize_t i, entries = weight.shape[0]
    if stop.shape[0] != start.shape[0] or cumulative.shape[0] != entries:
        raise SonaValueError(f"rows: expected start and stop, and weight and cumulative of one length, got {start.shape[0]}, "
                             f"{stop.shape[0]}, {entries} and {cumulative.shape[0]}")
    for i in range(start.shape[0]):
        if not 0 <= start[i] <= stop[i] <= entries:
            raise SonaValueError(f"rows: expected them within {entries} entries, got {start[i]} to {stop[i]} for row {i}")
    if start.shape[0] and entries:
        sona_walk_cumulate(&start[0], &stop[0], start.shape[0], &weight[0], &cumulative[0])
