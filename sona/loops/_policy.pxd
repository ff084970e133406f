cimport numpy as cnp
from libc.stdint cimport uint64_t

from sona._c cimport sona_decision, sona_evidence, sona_kernels, sona_pending, sona_policy, sona_record, sona_rehearsal, sona_ring
from sona.adapters._lora cimport Adapter
from sona.loops._drift cimport Watch
from sona.loops._instant cimport Instant


cdef struct sona_times:                # of every 16th call
    uint64_t count[31]                # between 2^(n - 1) and 2^n nanoseconds, n = 0 .. 30; the last one holds all above as well
    double seconds                    # in all


cdef class Decision:
    cdef readonly uint64_t id
    cdef readonly object arm
    cdef readonly Py_ssize_t index
    cdef readonly double propensity
    cdef readonly object candidates
    cdef cnp.ndarray probability
    cdef object positions


cdef class Policy:
    cdef sona_policy *handle
    cdef sona_pending *pending
    cdef sona_ring *log               # decisions on their way to a store, or NULL
    cdef const sona_kernels *kernels
    cdef readonly Adapter adapter
    cdef readonly Instant instant
    cdef readonly Py_ssize_t dim, capacity    # capacity: decisions that are remembered, a power of two
    cdef readonly double tau
    cdef float off_policy_step
    cdef readonly str explore
    cdef readonly bint guarded
    cdef float *unit                  # (dim): x / |x|
    cdef list names                   # by row; None for a removed arm
    cdef dict rows                    # name -> row
    cdef readonly tuple arms          # names in row order
    cdef object positions             # rows of `arms`, or None while there are no gaps
    cdef public uint64_t next_id
    cdef readonly uint64_t first_id
    cdef readonly uint64_t learned, revised, unknown, rejected
    cdef sona_times routed, taught    # what route and learn took
    cdef readonly Policy rival        # on trial beside this one, or None
    cdef readonly object judge        # what its trial tells about each reward
    cdef readonly int trial           # number of the trial
    cdef readonly Policy partner      # in a pool with this one, or None
    cdef readonly Instant rehearser   # the step by which decisions are rehearsed, or None
    cdef sona_rehearsal rehearsal
    cdef public uint64_t since        # id of the first decision that may be rehearsed
    cdef public Watch watch           # of the first rewards of own choices, or None
    cdef public object on_alarm       # called where it sees a fall
    cdef readonly double surprise, last_surprise    # decayed mean of r - p; r - p of the newest first reward, NaN before it
    cdef const float *_unit(self, object x) except NULL
    cdef object _candidates(self, object candidates)
    cdef int _judge(self, const sona_decision *d, double reward, object source) except -1
    cdef Decision _route(self, const float *x, object candidates, object rows, const sona_evidence *evidence)
