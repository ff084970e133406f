"""A corrected forward: where memory allows it the core works on the tensors as they lie, everything else goes to `Attached`."""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from sona._c cimport (
    SONA_BOTH, sona_adapter_forward_batch, sona_lora, sona_reader, sona_reader_acquire, sona_reader_release, sona_reader_view,
)
from sona.adapters._lora cimport Adapter

import copy

import torch

from sona.errors import SonaTypeError

cnp.import_array()

# ---- DLPack: how it describes a tensor, and the table of functions in which torch (since 2.10) fills one in without an allocation ----

cdef struct Device:
    int32_t kind
    int32_t index

cdef struct Dtype:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct Described:
    void *data
    Device device
    int32_t ndim
    Dtype dtype
    int64_t *shape
    int64_t *strides
    uint64_t offset

cdef struct Exchange:
    uint32_t major
    uint32_t minor
    Exchange *older
    void *allocate
    void *hand_out
    void *take_in
    int (*describe)(void *tensor, Described *out) except -1
    void *stream

cdef enum:
    CPU = 1
    FLOAT = 2
    LONG = 200_000  # multiplications: about 10 microseconds, from where on the GIL is released
    AT_ONCE = 64

cdef Exchange *exchange = NULL
cdef object Tensor = torch.Tensor, grad_enabled = torch.is_grad_enabled, linear = torch.nn.functional.linear

if hasattr(Tensor, "__dlpack_c_exchange_api__"):
    exchange = <Exchange *> PyCapsule_GetPointer(Tensor.__dlpack_c_exchange_api__, "dlpack_exchange_api")
    if exchange.major != 1:
        exchange = NULL

# How many `using` are open, in any thread: with none there is no need to look for this thread's. The GIL guards it.
cdef Py_ssize_t usings = 0


def count_using(int change):
    """One `using` more (1) or less (-1) is open."""
    global usings
    usings += change


cdef struct Rows:
    float *data  # NULL: nothing that can be worked on where it lies
    Py_ssize_t count, width


cdef Rows rows_of(object tensor, bint by_exchange) except *:
    """A contiguous float32 tensor of the CPU as rows."""
    cdef Rows result = Rows(NULL, 0, 0)
    cdef Described d
    cdef cnp.ndarray a
    cdef int64_t run = 1
    cdef int i
    if type(tensor) is not Tensor:  # subclasses may have no memory, or a meaning of their own
        return result
    if not by_exchange:
        try:
            a = tensor.numpy()
        except (TypeError, RuntimeError):  # another device or type, or a parameter
            return result
        if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT32 and cnp.PyArray_NDIM(a) > 0 and cnp.PyArray_ISCARRAY(a) and cnp.PyArray_SIZE(a) > 0:
            result.data = <float *> cnp.PyArray_DATA(a)
            result.width = cnp.PyArray_DIM(a, cnp.PyArray_NDIM(a) - 1)
            result.count = cnp.PyArray_SIZE(a) // result.width
        return result
    try:
        exchange.describe(<void *> tensor, &d)
    except (BufferError, RuntimeError, TypeError, NotImplementedError):
        return result
    if d.device.kind != CPU or d.dtype.code != FLOAT or d.dtype.bits != 32 or d.dtype.lanes != 1 or d.ndim < 1 or d.data == NULL:
        return result
    for i in range(d.ndim - 1, -1, -1):
        if d.shape[i] == 0 or (d.strides != NULL and d.shape[i] != 1 and d.strides[i] != run):
            return result
        run *= d.shape[i]
    result.data = <float *> (<char *> d.data + d.offset)
    result.width = d.shape[d.ndim - 1]
    result.count = run // result.width
    return result


cdef void add_part(Adapter adapter, const sona_lora *w, const float *x, Py_ssize_t ldx, float *y, Py_ssize_t ldy,
                   Py_ssize_t rows) noexcept nogil:
    """The correction of a layer that is narrower than its adapter on one side: x of ldx numbers, y of ldy."""
    cdef float coef[AT_ONCE]
    cdef size_t first, count, r
    cdef Py_ssize_t i
    for i in range(rows):
        first = 0
        while first < w.rank:
            count = min(w.rank - first, <size_t> AT_ONCE)
            adapter.kernels.gemv(w.down + first * w.ld, w.ld, x + i * ldx, coef, count, ldx)
            for r in range(count):
                coef[r] = w.scale * (coef[r] + w.offset[first + r])
            adapter.kernels.gemv_t(w.up + first * w.ld, w.ld, coef, y + i * ldy, count, ldy)
            first += count


cdef void add_rows(Adapter adapter, sona_reader *reader, Rows x, Rows y) noexcept nogil:
    cdef sona_lora w
    if x.width == adapter.dim and y.width == adapter.dim:
        sona_adapter_forward_batch(reader, SONA_BOTH, x.data, x.width, y.data, y.width, x.count)
    else:
        w = sona_reader_view(reader, SONA_BOTH)
        add_part(adapter, &w, x.data, x.width, y.data, y.width, x.count)


cdef void add(Adapter adapter, Rows x, Rows y):
    """y += delta(x) row by row."""
    cdef Py_ssize_t rank = sona_reader_view(adapter.reader, SONA_BOTH).rank
    cdef sona_reader *reader
    if x.count * rank * (x.width + y.width) < LONG or (reader := sona_reader_acquire(adapter.handle)) == NULL:
        add_rows(adapter, adapter.reader, x, y)
        return
    with nogil:
        add_rows(adapter, reader, x, y)
        sona_reader_release(reader)


cdef class Place:
    """
    Where an adapter adds to a model.

    Parameters
    ----------
    attached : Attached
        Answers what is not served here, in `_corrected` and `_added`.
    number : int
        Of the layer.
    adapter : Adapter
    layer : Layer
        What a linear one returns is a new tensor that nobody else has, and is corrected where it lies.

    Thread-safety
    -------------
    Any thread.
    """

    def __init__(self, attached, int number, Adapter adapter not None, layer):
        self.attached, self.number, self.adapter = attached, number, adapter
        self.n_in, self.n_out, self.fresh = layer.in_features, layer.out_features, layer.kind == "linear"
        self.by_exchange = exchange != NULL
        self.on = True

    cpdef object corrected(self, object x, object y):
        """y + delta(x): in y itself where it is fresh, y untouched where nothing is added."""
        if usings or grad_enabled():
            return self.attached._corrected(self, x, y)
        return self.alone(x, y)

    cpdef object alone(self, object x, object y):
        """`corrected` where no gradient is wanted and the thread has opened no `using`."""
        cdef Rows a, b
        if not self.attached.engine.enabled or sona_reader_view(self.adapter.reader, SONA_BOTH).rank == 0:
            return y
        a = rows_of(x, self.by_exchange)
        if a.data != NULL and a.width == self.n_in:
            if not self.fresh:
                y = y.clone(memory_format=torch.contiguous_format)
            b = rows_of(y, self.by_exchange)
            if b.data != NULL and b.width == self.n_out and b.count == a.count:
                add(self.adapter, a, b)
                return y
        return self.attached._added(self.attached.engine, self.number, x, y)

    def each_corrected(self, tuple engines not None, object x, object y):
        """`corrected` with an engine, or None, for each part of the first axis, of as many; None where that is not served here."""
        cdef Rows a = rows_of(x, self.by_exchange), b
        cdef Py_ssize_t i, count = len(engines)
        if grad_enabled() or a.data == NULL or a.width != self.n_in:
            return None
        if not self.fresh:
            y = y.clone(memory_format=torch.contiguous_format)
        b = rows_of(y, self.by_exchange)
        if b.data == NULL or b.width != self.n_out or b.count != a.count:
            return None
        a.count //= count
        b.count = a.count
        for i in range(count):
            if engines[i] is not None and engines[i].enabled:
                add(<Adapter?> engines[i].adapters[self.number], a, b)
            a.data += a.count * a.width
            b.data += b.count * b.width
        return y


cdef class Forward:
    """
    Stands in for a module's `forward` until `detach`: torch calls it as it would the module's own, which costs nothing, where a hook
    sends every call of the module through another path.

    Parameters
    ----------
    module : nn.Module
    place : Place
    reads_input : bool
        Whether the adapter reads what the module is given (a linear layer) or what it returns (a block; of a tuple the first).

    Thread-safety
    -------------
    Calls: any thread.
    """

    def __init__(self, module, Place place not None, bint reads_input):
        self.module, self.place, self.reads_input = module, place, reads_input
        self.before = vars(module).get("forward")  # of somebody else who replaced it
        self.inner = module.forward
        self.plain = self.before is None and type(module) is torch.nn.Linear
        module.forward = self

    def __call__(self, *args, **kwargs):
        cdef object x, y
        cdef dict parameters
        if self.plain and len(args) == 1:  # what nn.Linear does, without the detours of its attributes
            x = args[0]
            parameters = self.module._parameters
            y = linear(x, parameters["weight"], parameters["bias"])
            return self.place.corrected(x, y) if self.place.on else y
        y = self.inner(*args, **kwargs)
        if not self.place.on:
            return y
        if self.reads_input:
            return self.place.corrected(args[0] if args else next(iter(kwargs.values())), y)
        if isinstance(y, tuple):
            x = y[0]
            return (self.place.corrected(x, x), *y[1:])
        return self.place.corrected(y, y)

    def detach(self):
        """Give the module its own forward back. Where somebody has replaced it since, this one stays below and adds nothing."""
        self.place.on = False
        if vars(self.module).get("forward") is self:
            if self.before is None:
                del self.module.forward
            else:
                self.module.forward = self.before

    def __deepcopy__(self, memo):
        """Of the copied module, with the same adapter."""
        cdef Forward result = Forward.__new__(Forward)
        result.module = module = copy.deepcopy(self.module, memo)
        result.place, result.reads_input, result.plain = self.place, self.reads_input, self.plain
        result.before = copy.deepcopy(self.before, memo)
        result.inner = type(module).forward.__get__(module) if result.before is None else result.before
        return result

    def __reduce__(self):
        raise SonaTypeError("model: expected one without adapters to pickle, got one with; detach() first, attach() where it arrives")
