"""A low-rank adapter that learns one pair at a time, over sona/adapter.h."""

cimport numpy as cnp
from libc.math cimport isfinite
from libc.string cimport memcpy

from sona._arrays cimport sona_input, sona_is_input, sona_output
from sona._c cimport (
    SONA_BASE, SONA_BOTH, SONA_MICRO,
    sona_adapter_append, sona_adapter_assign, sona_adapter_create, sona_adapter_describe, sona_adapter_destroy, sona_adapter_fold,
    sona_adapter_forward, sona_adapter_forward_batch, sona_adapter_info, sona_adapter_options, sona_adapter_truncate, sona_adapter_view,
    sona_calloc, sona_free, sona_lora, sona_reader, sona_reader_acquire, sona_reader_release, sona_tier,
)
from sona._kernels cimport kernels_named
from sona._status cimport check

import numpy as np

from sona._arrays import coerce, output
from sona.errors import SonaError, SonaValueError

cnp.import_array()

_TIERS = {"base": SONA_BASE, "micro": SONA_MICRO, "both": SONA_BOTH}


cdef sona_tier tier_named(object tier) except *:
    try:
        return _TIERS[tier]
    except (KeyError, TypeError):
        raise SonaValueError(f"tier: expected 'base', 'micro' or 'both', got {tier!r}") from None


cdef cnp.ndarray rows_of(const float *rows, size_t count, size_t ld, size_t dim):
    """A fresh (count, dim) copy of rows that are ld apart."""
    cdef cnp.ndarray result = np.empty((count, dim), dtype=np.float32)
    cdef float *to = <float *> cnp.PyArray_DATA(result)
    cdef size_t i
    for i in range(count if dim else 0):  # of no numbers there may be no address either
        memcpy(to + i * dim, rows + i * ld, dim * sizeof(float))
    return result


cdef inline int add(Adapter self, object x, object out, sona_tier tier) except -1:
    """out += delta of the tier: at once for arrays that are right as they are."""
    cdef const float *a = sona_input(x, self.dim)
    cdef float *b = sona_output(out, self.dim)
    if a == NULL or b == NULL or (a < b + self.dim and b < a + self.dim):
        return add_anything(self, x, out, tier)
    sona_adapter_forward(self.reader, tier, a, b)
    return 0


cdef int add_anything(Adapter self, object x, object out, sona_tier tier) except -1:
    if not (cnp.PyArray_CheckExact(x) and sona_is_input(x, 1) and cnp.PyArray_DIM(x, 0) == self.dim):
        x = coerce(x, (self.dim,), "x")
    out = output(out, (self.dim,), "out")
    cdef const float *a = <const float *> cnp.PyArray_DATA(x)
    cdef float *b = <float *> cnp.PyArray_DATA(out)
    if a < b + self.dim and b < a + self.dim:  # overlapping: the input is what it was at the call
        x = x.copy()
        a = <const float *> cnp.PyArray_DATA(x)
    sona_adapter_forward(self.reader, tier, a, b)
    return 0


cdef class Adapter:
    """
    Low-rank correction of one layer: delta(x) = scale * up^T (down x + offset), y = x + delta(x).

    Rows 0..base are the base tier, rows base..total the micro tier; learning appends rows, and when `window` rows have piled up above
    `rank` their sum is truncated to its best rank-`rank` approximation.

    Parameters
    ----------
    dim : int
        Length of x and y.
    rank : int
        Rows kept by a truncation.
    rank_max : int, optional
        The rank grows to at most this when a truncation would discard more than `max_discard` of the energy; default max(rank, 64).
    micro : int
        Rows of the micro tier (1 or 2 in the roadmap); a further one folds them into the base.
    window : int
        Rows appended between truncations; 0 means max(16, rank).
    max_discard : float
        Share of the squared Frobenius norm that a truncation may drop without growing the rank.
    scale : float
        Factor of delta.
    isa : str, optional
        Kernel table; None is the best of this machine or the environment's SONA_ISA.

    Thread-safety
    -------------
    Any number of threads may call forward methods while one thread at a time learns: rows that a reader can see never change.
    """

    def __cinit__(self, Py_ssize_t dim, Py_ssize_t rank=8, rank_max=None, Py_ssize_t micro=2, Py_ssize_t window=0,
                  double max_discard=0.05, double scale=1.0, isa=None):
        cdef sona_adapter_options options
        cdef Py_ssize_t most = max(rank, 64) if rank_max is None else rank_max
        if dim < 1 or rank < 1 or most < rank or micro < 1 or window < 0:
            raise SonaValueError(f"adapter: expected dim, rank, micro >= 1, rank_max >= rank and window >= 0, got dim={dim}, "
                                 f"rank={rank}, rank_max={most}, micro={micro}, window={window}")
        options.dim, options.rank, options.rank_max, options.micro, options.window = dim, rank, most, micro, window
        options.max_discard, options.scale = max_discard, <float> scale
        options.kernels = self.kernels = kernels_named(isa)
        check(sona_adapter_create(&options, &self.handle),
              f"adapter with dim={dim}, rank={rank}, max_discard={max_discard}, scale={scale}")
        self.reader = sona_reader_acquire(self.handle)
        self.dim = dim
        self.scale = scale

    def __dealloc__(self):
        sona_adapter_destroy(self.handle)
        sona_free(self.gradient)

    # ---- reading ----

    cdef void forward_ptr(self, const float *x, float *y) noexcept nogil:
        """y += delta(x) for x, y (dim) that do not overlap. Hold the GIL, or make sure that no other thread uses this method."""
        sona_adapter_forward(self.reader, SONA_BOTH, x, y)

    def forward(self, x, out):
        """
        out += delta(x), in place; x and out are float32 of shape (dim,).

        Anything else that numpy can read as numbers is accepted as x and copied. NaN in x gives NaN in out and changes nothing else.
        """
        add(self, x, out, SONA_BOTH)

    def forward_tier(self, x, out, tier):
        """out += the part of delta(x) that tier 'base', 'micro' or 'both' adds."""
        add(self, x, out, tier_named(tier))

    def apply(self, x, out=None, tier="both"):
        """
        x + the part of delta(x) that tier 'base', 'micro' or 'both' adds, or x alone for None: shape (dim,), in `out`, which may be x, or
        in a new array.

        Unlike `forward` it refuses NaN and infinity, and writes nothing then.
        """
        cdef sona_tier which = SONA_BOTH if tier is None else tier_named(tier)
        cdef const float *a = sona_input(x, self.dim)
        if a == NULL or not self._is_short(a):
            x = coerce(x, (self.dim,), "x")
            a = <const float *> cnp.PyArray_DATA(x)
        if out is None:
            out = cnp.PyArray_EMPTY(1, <cnp.npy_intp *> &self.dim, cnp.NPY_FLOAT32, 0)
        cdef float *b = sona_output(out, self.dim)
        if b == NULL:
            out = output(out, (self.dim,), "out")
            b = <float *> cnp.PyArray_DATA(out)
        if a < b + self.dim and b < a + self.dim:  # overlapping: the input is what it was at the call
            x = x.copy()
            a = <const float *> cnp.PyArray_DATA(x)
        memcpy(b, a, self.dim * sizeof(float))
        if tier is not None:
            sona_adapter_forward(self.reader, which, a, b)
        return out

    cdef bint _is_short(self, const float *x) noexcept:
        """Whether |x|^2 is a float32: true of no x with NaN or infinity, and of every other up to a length of 1.8e19."""
        return isfinite(self.kernels.dot(x, x, self.dim))

    def forward_batch(self, x, out, tier="both"):
        """out += delta of each row; x and out are (n, dim) float32. Releases the GIL."""
        if not (cnp.PyArray_CheckExact(x) and sona_is_input(x, 2) and cnp.PyArray_DIM(x, 0) > 0 and cnp.PyArray_DIM(x, 1) == self.dim):
            x = coerce(x, (None, self.dim), "x")
        cdef Py_ssize_t rows = cnp.PyArray_DIM(x, 0)
        out = output(out, (rows, self.dim), "out")
        cdef const float *a = <const float *> cnp.PyArray_DATA(x)
        cdef float *b = <float *> cnp.PyArray_DATA(out)
        if a < b + rows * self.dim and b < a + rows * self.dim:  # overlapping: the input is what it was at the call
            x = x.copy()
            a = <const float *> cnp.PyArray_DATA(x)
        cdef sona_tier which = tier_named(tier)
        cdef sona_reader *reader = sona_reader_acquire(self.handle)
        if reader == NULL:
            raise SonaError("forward_batch: more than 63 threads are reading this adapter")
        with nogil:
            sona_adapter_forward_batch(reader, which, a, self.dim, b, self.dim, rows)
            sona_reader_release(reader)

    def delta(self):
        """The correction as a dense (dim, dim) matrix D: x @ D is delta(x) without the learned constant."""
        return self.scale * (self.down.T @ self.up)

    # ---- rows ----

    @property
    def down(self):
        """Copy of all rows, (total, dim)."""
        cdef sona_lora w = sona_adapter_view(self.handle)
        return rows_of(w.down, w.rank, w.ld, w.dim)

    @property
    def up(self):
        """Copy of all rows, (total, dim)."""
        cdef sona_lora w = sona_adapter_view(self.handle)
        return rows_of(w.up, w.rank, w.ld, w.dim)

    @property
    def offset(self):
        """Copy of the weights of the learned constant, (total,)."""
        cdef sona_lora w = sona_adapter_view(self.handle)
        return rows_of(w.offset, 1, w.rank, w.rank)[0]

    def rows(self):
        """(down, up, offset) of one moment, as the properties give them one by one."""
        cdef sona_lora w = sona_adapter_view(self.handle)
        return (rows_of(w.down, w.rank, w.ld, w.dim), rows_of(w.up, w.rank, w.ld, w.dim), rows_of(w.offset, 1, w.rank, w.rank)[0])

    @property
    def isa(self):
        return self.kernels.isa.decode()

    def info(self):
        """Counters: rows of each tier, rank, truncations, shares of energy discarded, bytes."""
        cdef sona_adapter_info i = sona_adapter_describe(self.handle)
        return {
            "dim": i.dim, "rank": i.rank, "rank_max": i.rank_max, "base": i.base, "total": i.total, "generation": i.generation,
            "truncations": i.truncations, "discarded": i.discarded, "discarded_sum": i.discarded_sum, "over_budget": i.over_budget,
            "bytes": i.bytes,
        }

    # ---- learning: one thread at a time ----

    def append(self, up, down, double coef=1.0, double offset=0.0):
        """delta(x) += coef * up * (down . x + offset); up and down have shape (dim,)."""
        up = coerce(up, (self.dim,), "up")
        down = coerce(down, (self.dim,), "down")
        check(sona_adapter_append(self.handle, <float> coef, <const float *> cnp.PyArray_DATA(up),
                                  <const float *> cnp.PyArray_DATA(down), <float> offset), f"append with coef={coef}, offset={offset}")

    def fold(self):
        """Make the micro rows base rows. The output does not change."""
        sona_adapter_fold(self.handle)

    def truncate(self):
        """Replace all rows by the best approximation of at most `rank` rows; returns the share of the energy that it discards."""
        check(sona_adapter_truncate(self.handle), "truncate")
        return sona_adapter_describe(self.handle).discarded

    def assign(self, down, up, offset=None, base=None):
        """Replace all rows at once: down and up (n, dim), offset (n,), base <= n rows of the base tier (default all)."""
        cdef Py_ssize_t rows = len(down)
        if rows == 0:
            down = up = np.zeros((1, self.dim), dtype=np.float32)
        down = coerce(down, (None if rows == 0 else rows, self.dim), "down")
        up = coerce(up, (None if rows == 0 else rows, self.dim), "up")
        offsets = np.zeros(max(rows, 1), dtype=np.float32) if offset is None or rows == 0 else coerce(offset, (rows,), "offset")
        cdef Py_ssize_t border = rows if base is None else base
        if not 0 <= border <= rows:
            raise SonaValueError(f"base: expected 0 to {rows}, got {border}")
        check(sona_adapter_assign(self.handle, <const float *> cnp.PyArray_DATA(down), <const float *> cnp.PyArray_DATA(up), self.dim,
                                  <const float *> cnp.PyArray_DATA(offsets), border, rows), f"assign of {rows} rows")

    def accumulate_gradient(self, x, g):
        """
        Add the exact gradient of <g, delta(x)> with respect to every row: dUp_r = s z_r g, dDown_r = s <up_r, g> x, z = down x + offset.

        x and g have shape (dim,). Sums are applied and cleared by `apply_accumulated`; any other change of the rows clears them.
        """
        x = coerce(x, (self.dim,), "x")
        g = coerce(g, (self.dim,), "g")
        cdef sona_lora w = sona_adapter_view(self.handle)
        if not self._has_gradient():
            sona_free(self.gradient)
            self.count = 0
            self.gradient = <float *> sona_calloc(2 * w.rank * w.ld + 1, sizeof(float))
            if self.gradient == NULL:
                raise MemoryError("accumulate_gradient: out of memory")
            self.gradient_rows = w.rank
            self.gradient_generation = sona_adapter_describe(self.handle).generation
        self.kernels.lora_gradient(&w, <const float *> cnp.PyArray_DATA(x), <const float *> cnp.PyArray_DATA(g),
                                   self.gradient, self.gradient + w.rank * w.ld)
        self.count += 1

    cdef bint _has_gradient(self) noexcept:
        cdef sona_adapter_info i = sona_adapter_describe(self.handle)
        return self.count > 0 and i.total == self.gradient_rows and i.generation == self.gradient_generation

    @property
    def accumulated(self):
        """Gradients summed since the rows last changed."""
        return self.count if self._has_gradient() else 0

    def gradients(self):
        """Sums so far: (d_down, d_up), each (total, dim); zeros when nothing is accumulated."""
        cdef sona_lora w = sona_adapter_view(self.handle)
        if self.accumulated == 0:
            return np.zeros((w.rank, w.dim), dtype=np.float32), np.zeros((w.rank, w.dim), dtype=np.float32)
        return rows_of(self.gradient, w.rank, w.ld, w.dim), rows_of(self.gradient + w.rank * w.ld, w.rank, w.ld, w.dim)

    def apply_accumulated(self, double learning_rate):
        """Move every row by learning_rate times the mean accumulated gradient, in one publication, and clear the sums."""
        if self.accumulated == 0:
            return
        cdef float step = <float> (learning_rate / self.accumulated)
        if not isfinite(step):
            raise SonaValueError(f"learning_rate: expected a number within the range of float32, got {learning_rate}")
        d_down, d_up = self.gradients()
        with np.errstate(over="ignore", invalid="ignore"):  # a sum that is not finite is refused by assign
            down, up = self.down + np.float32(step) * d_down, self.up + np.float32(step) * d_up
        self.assign(down, up, self.offset, sona_adapter_describe(self.handle).base)
        self.count = 0
