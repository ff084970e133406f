"""The kernel tables by name, and the kernels as methods. Objects keep the table they were built with; SONA_ISA chooses the default."""

import os

cimport numpy as cnp

from sona._arrays cimport sona_is_input, sona_is_output
from sona._c cimport sona_kernels, sona_kernels_at, sona_kernels_count, sona_kernels_get, sona_lora

from sona.errors import SonaTypeError, SonaValueError

cnp.import_array()

_default = os.environ.get("SONA_ISA") or None


def isas():
    """Names of the kernel tables that this machine can run, slowest first; the last one is the default."""
    return tuple(sona_kernels_at(i).isa.decode() for i in range(sona_kernels_count()))


cdef const sona_kernels *kernels_named(object isa) except NULL:
    """The table of that name; None is SONA_ISA or the best of this machine."""
    cdef const sona_kernels *table
    name = isa if isa is not None else _default
    table = sona_kernels_get(NULL) if name is None else sona_kernels_get(name.encode())
    if table == NULL:
        raise SonaValueError(f"isa: expected one of {', '.join(isas())}, got {name!r}")
    return table


# ---- checks: a few comparisons for what is right, words only for what is not ----

cdef int refuse(object a, tuple shape, str name) except -1:
    """Raises what keeps an array from being float32, C-contiguous and of this shape (-1: any length), or writeable."""
    if not isinstance(a, cnp.ndarray):
        raise SonaTypeError(f"{name}: expected a float32 array, got {type(a).__name__}")
    if a.dtype != "=f4":
        raise SonaTypeError(f"{name}: expected dtype float32, got {a.dtype}")
    if a.ndim != len(shape) or any(0 <= want != got for want, got in zip(shape, a.shape)):
        expected = ", ".join("n" if want < 0 else str(want) for want in shape) + ("," if len(shape) == 1 else "")
        raise SonaValueError(f"{name}: expected shape ({expected}), got {a.shape}")
    if not a.flags.c_contiguous or not a.flags.aligned:
        raise SonaValueError(f"{name}: expected a C-contiguous aligned array, got strides {a.strides}")
    raise SonaValueError(f"{name}: expected a writeable array, got a read-only one")


cdef inline const float *vector(object a, Py_ssize_t n, str name) except? NULL:
    """IN (n,); n = -1 accepts any length."""
    if not (isinstance(a, cnp.ndarray) and sona_is_input(a, 1) and (n < 0 or cnp.PyArray_DIM(a, 0) == n)):
        refuse(a, (n,), name)
    return <const float *> cnp.PyArray_DATA(a)


cdef inline const float *matrix(object a, Py_ssize_t rows, Py_ssize_t n, str name) except? NULL:
    """IN (rows, n)"""
    if not (isinstance(a, cnp.ndarray) and sona_is_input(a, 2) and (rows < 0 or cnp.PyArray_DIM(a, 0) == rows)
            and (n < 0 or cnp.PyArray_DIM(a, 1) == n)):
        refuse(a, (rows, n), name)
    return <const float *> cnp.PyArray_DATA(a)


cdef inline float *vector_out(object a, Py_ssize_t n, str name) except? NULL:
    """INOUT (n,)"""
    if not (isinstance(a, cnp.ndarray) and sona_is_output(a, 1) and (n < 0 or cnp.PyArray_DIM(a, 0) == n)):
        refuse(a, (n,), name)
    return <float *> cnp.PyArray_DATA(a)


cdef inline float *matrix_out(object a, Py_ssize_t rows, Py_ssize_t n, str name) except? NULL:
    """INOUT (rows, n)"""
    if not (isinstance(a, cnp.ndarray) and sona_is_output(a, 2) and (rows < 0 or cnp.PyArray_DIM(a, 0) == rows)
            and (n < 0 or cnp.PyArray_DIM(a, 1) == n)):
        refuse(a, (rows, n), name)
    return <float *> cnp.PyArray_DATA(a)


cdef inline int apart(const float *out, Py_ssize_t size, const float *other, Py_ssize_t other_size, str names) except -1:
    """What is written must not overlap what is read."""
    if out < other + other_size and other < out + size:
        raise SonaValueError(f"{names}: expected arrays that do not overlap")
    return 0


cdef inline Py_ssize_t length(object a, int axis) noexcept:
    return cnp.PyArray_DIM(a, axis)


def _kernels_like(isa):
    """Of a copy: the same table, or the best one where it was pickled on another machine."""
    return Kernels(isa if isa in isas() else None)


cdef class Kernels:
    """
    One kernel table; every method is one call of sona/kernels.h.

    Arrays are float32, C-contiguous and aligned, nothing is converted; what is written does not overlap what is read. NaN and infinity
    propagate. Tables agree to the rounding of a reordered float32 sum.

    Parameters
    ----------
    isa : str, optional
        One of `sona.isas()`; None is the environment's SONA_ISA or the best of this machine.

    Raises
    ------
    SonaTypeError
        For anything but a float32 array.
    SonaValueError
        For another shape or layout, a read-only array to write to, or overlapping arrays. Nothing has been written.

    Thread-safety
    -------------
    Any thread. `top_k` and `lora_forward_batch` release the GIL.
    """

    def __cinit__(self, isa=None):
        self.table = kernels_named(isa)

    @property
    def isa(self):
        return self.table.isa.decode()

    def __reduce__(self):
        return _kernels_like, (self.isa,)

    def dot(self, a, b):
        """<a, b> for a, b (n,)."""
        cdef const float *pa = vector(a, -1, "a")
        cdef Py_ssize_t n = length(a, 0)
        return self.table.dot(pa, vector(b, n, "b"), n)

    def axpy(self, double alpha, x, y):
        """y += alpha x for x, y (n,)."""
        cdef const float *px = vector(x, -1, "x")
        cdef Py_ssize_t n = length(x, 0)
        cdef float *py = vector_out(y, n, "y")
        apart(py, n, px, n, "x and y")
        self.table.axpy(<float> alpha, px, py, n)

    def gemv(self, a, x, out):
        """out = a x for a (rows, n), x (n,), out (rows,)."""
        cdef const float *pa = matrix(a, -1, -1, "a")
        cdef Py_ssize_t rows = length(a, 0), n = length(a, 1)
        cdef const float *px = vector(x, n, "x")
        cdef float *to = vector_out(out, rows, "out")
        apart(to, rows, pa, rows * n, "a and out")
        apart(to, rows, px, n, "x and out")
        self.table.gemv(pa, n, px, to, rows, n)

    def gemv_t(self, a, coef, y):
        """y += a^T coef for a (rows, n), coef (rows,), y (n,)."""
        cdef const float *pa = matrix(a, -1, -1, "a")
        cdef Py_ssize_t rows = length(a, 0), n = length(a, 1)
        cdef const float *pc = vector(coef, rows, "coef")
        cdef float *py = vector_out(y, n, "y")
        apart(py, n, pa, rows * n, "a and y")
        apart(py, n, pc, rows, "coef and y")
        self.table.gemv_t(pa, n, pc, py, rows, n)

    def ger(self, double alpha, x, y, m):
        """m += alpha x y^T for x (rows,), y (n,), m (rows, n): the outer product."""
        cdef const float *px = vector(x, -1, "x")
        cdef const float *py = vector(y, -1, "y")
        cdef Py_ssize_t rows = length(x, 0), n = length(y, 0)
        cdef float *pm = matrix_out(m, rows, n, "m")
        apart(pm, rows * n, px, rows, "x and m")
        apart(pm, rows * n, py, n, "y and m")
        self.table.ger(<float> alpha, px, py, pm, n, rows, n)

    cdef sona_lora adapter(self, object down, object up, double scale, object offset) except *:
        cdef sona_lora w
        w.down = matrix(down, -1, -1, "down")
        w.rank, w.dim = length(down, 0), length(down, 1)
        w.up = matrix(up, w.rank, w.dim, "up")
        w.offset = NULL
        if offset is not None:
            w.offset = vector(offset, w.rank, "offset")
        w.ld, w.scale = w.dim, <float> scale
        return w

    cdef int apart_from(self, const sona_lora *w, const float *out, Py_ssize_t size, str name) except -1:
        cdef Py_ssize_t weights = w.rank * w.dim
        apart(out, size, w.down, weights, f"down and {name}")
        apart(out, size, w.up, weights, f"up and {name}")
        if w.offset != NULL:
            apart(out, size, w.offset, w.rank, f"offset and {name}")
        return 0

    def lora_forward(self, down, up, x, out, double scale=1.0, offset=None):
        """out += scale up^T (down x + offset) for down, up (rank, dim), x, out (dim,), offset (rank,) or None."""
        cdef sona_lora w = self.adapter(down, up, scale, offset)
        cdef const float *px = vector(x, w.dim, "x")
        cdef float *to = vector_out(out, w.dim, "out")
        apart(to, w.dim, px, w.dim, "x and out")
        self.apart_from(&w, to, w.dim, "out")
        self.table.lora_forward(&w, px, to)

    def lora_forward_batch(self, down, up, x, out, double scale=1.0, offset=None):
        """`lora_forward` for each row of x and out (rows, dim)."""
        cdef sona_lora w = self.adapter(down, up, scale, offset)
        cdef const float *px = matrix(x, -1, w.dim, "x")
        cdef Py_ssize_t rows = length(x, 0)
        cdef float *to = matrix_out(out, rows, w.dim, "out")
        apart(to, rows * w.dim, px, rows * w.dim, "x and out")
        self.apart_from(&w, to, rows * w.dim, "out")
        with nogil:
            self.table.lora_forward_batch(&w, px, w.dim, to, w.dim, rows)

    def lora_gradient(self, down, up, x, g, d_down, d_up, double scale=1.0, offset=None):
        """
        Add the gradient of <g, scale up^T (down x + offset)> to d_down and d_up (rank, dim); x and g (dim,).

        d_up_r += scale z_r g and d_down_r += scale <up_r, g> x with z = down x + offset.
        """
        cdef sona_lora w = self.adapter(down, up, scale, offset)
        cdef const float *px = vector(x, w.dim, "x")
        cdef const float *pg = vector(g, w.dim, "g")
        cdef float *to_down = matrix_out(d_down, w.rank, w.dim, "d_down")
        cdef float *to_up = matrix_out(d_up, w.rank, w.dim, "d_up")
        cdef Py_ssize_t size = w.rank * w.dim
        apart(to_down, size, to_up, size, "d_down and d_up")
        self.apart_from(&w, to_down, size, "d_down")
        self.apart_from(&w, to_up, size, "d_up")
        apart(to_down, size, px, w.dim, "x and d_down")
        apart(to_up, size, px, w.dim, "x and d_up")
        apart(to_down, size, pg, w.dim, "g and d_down")
        apart(to_up, size, pg, w.dim, "g and d_up")
        self.table.lora_gradient(&w, px, pg, to_down, to_up)

    def fisher_update(self, f, g, double decay):
        """f += decay (g^2 - f) for f, g (n,) and decay in [0, 1]: exponential mean of squared gradients."""
        cdef float *pf = vector_out(f, -1, "f")
        cdef Py_ssize_t n = length(f, 0)
        cdef const float *pg = vector(g, n, "g")
        if not 0 <= decay <= 1:
            raise SonaValueError(f"decay: expected a number in [0, 1], got {decay}")
        apart(pf, n, pg, n, "f and g")
        self.table.fisher_update(pf, pg, <float> decay, n)

    def ewc_pull(self, g, f, w, anchor, double strength):
        """g -= strength f (w - anchor), all (n,): the gradient of the quadratic penalty."""
        cdef float *pg = vector_out(g, -1, "g")
        cdef Py_ssize_t n = length(g, 0)
        cdef const float *pf = vector(f, n, "f")
        cdef const float *pw = vector(w, n, "w")
        cdef const float *pa = vector(anchor, n, "anchor")
        apart(pg, n, pf, n, "f and g")
        apart(pg, n, pw, n, "w and g")
        apart(pg, n, pa, n, "anchor and g")
        self.table.ewc_pull(pg, pf, pw, pa, <float> strength, n)

    def ewc_scale(self, g, f, double strength):
        """g /= 1 + strength f, both (n,): a proximal step, stable for any strength >= 0."""
        cdef float *pg = vector_out(g, -1, "g")
        cdef Py_ssize_t n = length(g, 0)
        cdef const float *pf = vector(f, n, "f")
        apart(pg, n, pf, n, "f and g")
        self.table.ewc_scale(pg, pf, <float> strength, n)

    def top_k(self, a, x, Py_ssize_t k):
        """
        The k largest <a_i, x> over the rows of a (rows, n), x (n,).

        Returns
        -------
        (index, score)
            intp and float32 arrays, largest first, ties to the smaller row. Rows whose score is NaN are skipped, so that they hold
            min(k, rows without NaN) entries.
        """
        cdef const float *pa = matrix(a, -1, -1, "a")
        cdef size_t rows = length(a, 0), n = length(a, 1), found
        cdef const float *px = vector(x, n, "x")
        if k < 0:
            raise SonaValueError(f"k: expected at least 0, got {k}")
        cdef cnp.npy_intp room = min(k, <Py_ssize_t> rows)
        cdef cnp.ndarray index = cnp.PyArray_EMPTY(1, &room, cnp.NPY_INTP, 0)
        cdef cnp.ndarray score = cnp.PyArray_EMPTY(1, &room, cnp.NPY_FLOAT32, 0)
        cdef size_t *to_index = <size_t *> cnp.PyArray_DATA(index)
        cdef float *to_score = <float *> cnp.PyArray_DATA(score)
        with nogil:
            found = self.table.top_k(pa, n, px, rows, n, room, to_index, to_score)
        return index[:found], score[:found]
