"""Records the steps of one request while it runs."""

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.math cimport isnan
from libc.stdint cimport uint64_t

from sona._fields cimport finite, is_empty, natural
from sona._vector cimport checked
from sona.trajectory._record cimport (
    HEAD, PRELUDE, STEP, decoded, or_nan, read_step, seal, sona_copy_floats, step_head, step_size, write_head, write_step,
)

import time

from sona.errors import SonaClosedError, SonaValueError

cnp.import_array()


cdef class TrajectoryBuilder:
    """
    Collects steps and becomes a QueryTrajectory, or the bytes of one.

    Parameters
    ----------
    id : int
        Unsigned, 64 bits.
    query_embedding : array of shape (d,)
    clock : callable
        Seconds, never going back; the latency is counted from here.

    Thread-safety
    -------------
    One builder per request, one thread at a time.
    """

    def __cinit__(self, id, query_embedding, *, clock=time.monotonic):
        cdef cnp.ndarray query
        self.id = natural(id, 64, "id")
        query = checked(query_embedding, None, "query_embedding")
        self.d = cnp.PyArray_DIM(query, 0)
        self.size = PRELUDE + HEAD
        sona_copy_floats(self.reserve(4 * self.d), cnp.PyArray_DATA(query), self.d)
        self.size += 4 * self.d
        self.clock = clock
        self.start = clock()

    def __dealloc__(self):
        PyMem_Free(self.data)

    def __len__(self):
        return self.steps

    cdef char *reserve(self, size_t more) except NULL:
        """Room for that many bytes at the end; `size` is not changed."""
        cdef size_t room
        cdef char *data
        if more > self.room - self.size or self.data == NULL:
            if more >= (<uint64_t> 1 << 32) - self.size:
                raise SonaValueError(f"trajectory: expected less than 4 GiB, got {self.size + more} bytes")
            room = max(self.size + more + STEP + 4 * self.d, 2 * self.room)  # for one more step at least
            data = <char *> PyMem_Realloc(self.data, room)
            if data == NULL:
                raise MemoryError(f"trajectory of {room} bytes")
            self.data, self.room = data, room
        return self.data + self.size

    def add_step(self, activations, attention_weights=None, reward=None, *, expected=None, layer=0, x=None):
        """
        Record a step now; see `TrajectoryStep` for what is copied and what is refused.

        Raises
        ------
        SonaValueError, SonaTypeError
            The step is not recorded.
        SonaClosedError
            After the end.
        """
        cdef step_head head
        cdef cnp.ndarray v, w = None, input = None
        cdef char *at
        if self.ended:
            raise SonaClosedError(f"trajectory {self.id} is built and takes no further step")
        head.timestamp = finite(self.clock(), "timestamp")
        head.reward = or_nan(None if reward is None else finite(reward, "reward"))
        head.expected = or_nan(None if expected is None else finite(expected, "expected"))
        head.layer = natural(layer, 32, "layer")
        if attention_weights is not None and not is_empty(attention_weights):
            w = checked(attention_weights, None, "attention_weights")
        if x is not None:
            input = checked(x, self.d, "x")
        v = checked(activations, self.d, "activations")
        head.weights = 0 if w is None else cnp.PyArray_DIM(w, 0)
        head.has_x = x is not None
        at = self.reserve(step_size(&head, self.d))
        write_step(at, &head)
        sona_copy_floats(at + STEP, cnp.PyArray_DATA(v), self.d)
        if w is not None:
            sona_copy_floats(at + STEP + 4 * self.d, cnp.PyArray_DATA(w), head.weights)
        if input is not None:
            sona_copy_floats(at + STEP + 4 * (self.d + head.weights), cnp.PyArray_DATA(input), self.d)
        self.size += step_size(&head, self.d)
        self.steps += 1

    def end(self, final_quality=None, *, default_reward=None):
        """
        End the trajectory and return it as bytes, `sona.trajectory.encode` of what `build` would have returned.

        Parameters
        ----------
        final_quality : float, optional
            How good the outcome was; None: not known yet.
        default_reward : float, optional
            For the steps that were recorded without a reward.

        Raises
        ------
        SonaValueError, SonaTypeError
            A number is not finite; the trajectory goes on.
        SonaClosedError
            The second time.
        """
        cdef bytes record
        if self.ended:
            raise SonaClosedError(f"trajectory {self.id} is built already")
        cdef uint64_t latency_us = natural(round((self.clock() - self.start) * 1e6), 64, "latency_us")
        cdef double quality = or_nan(None if final_quality is None else finite(final_quality, "final_quality"))
        if default_reward is not None:
            default_reward = finite(default_reward, "reward")
        record = PyBytes_FromStringAndSize(self.data, self.size)
        write_head(PyBytes_AS_STRING(record) + PRELUDE, self.id, latency_us, quality, self.d, self.steps)
        if default_reward is not None:
            self.fill(PyBytes_AS_STRING(record), default_reward)
        seal(record)
        self.ended = True
        return record

    cdef void fill(self, char *record, double reward) noexcept:
        """Give it to the steps that have none."""
        cdef char *at = record + PRELUDE + HEAD + 4 * self.d
        cdef step_head head
        cdef size_t _
        for _ in range(self.steps):
            head = read_step(at)
            head.reward = reward if isnan(head.reward) else head.reward
            write_step(at, &head)
            at += step_size(&head, self.d)

    def build(self, final_quality=None, *, default_reward=None):
        """End the trajectory; takes and refuses what `end` does."""
        cdef bytes record = self.end(final_quality, default_reward=default_reward)
        return decoded(record, len(record))
