"""What two processes share: a ring of records and the published weights, over sona/shared_ring.h and sona/weights.h."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOENT, errno
from libc.stdint cimport uint64_t

from sona._c cimport (
    SONA_CONSUMER, SONA_EAGAIN, SONA_EBUSY, SONA_ECORRUPT, SONA_EFULL, SONA_EIO, SONA_EVERSION, SONA_OK, SONA_PRODUCER,
    SONA_SHARED_RING_IDENTITY,
    sona_adapter, sona_adapter_encode, sona_adapter_encoded_size, sona_calloc, sona_free,
    sona_shared_ring, sona_shared_ring_capacity, sona_shared_ring_close, sona_shared_ring_damaged, sona_shared_ring_dropped,
    sona_shared_ring_identity, sona_shared_ring_mark, sona_shared_ring_max_record, sona_shared_ring_next, sona_shared_ring_open,
    sona_shared_ring_push, sona_shared_ring_release_to, sona_shared_ring_used, sona_side, sona_status,
    sona_weights, sona_weights_adopt, sona_weights_close, sona_weights_create, sona_weights_epoch, sona_weights_info, sona_weights_open,
    sona_weights_options, sona_weights_publish,
)
from sona._status cimport check
from sona.adapters._lora cimport Adapter

import os

from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaValueError, SonaVersionError


def _raise(int status, int number, str path, str busy, str version):
    """What opening a file has come to; `number` is its errno."""
    if status == SONA_EIO:
        raise SonaStoreError(number, os.strerror(number), path)
    if status == SONA_EBUSY:
        raise SonaStoreError(f"{path}: {busy}")
    if status == SONA_ECORRUPT:
        raise SonaCorruptError(f"{path}: expected a file of sona for this use, got a damaged or another one; one that is gone is made anew")
    if status == SONA_EVERSION:
        raise SonaVersionError(f"{path}: {version}")
    check(<sona_status> status, path)


cdef class SharedRing:
    """
    One side of a ring of byte records in a file that two processes map.

    Parameters
    ----------
    path : path
        Made when absent; best in /dev/shm.
    side : {"producer", "consumer"}
    capacity : int
        Bytes, a power of two of at least 4096; 0: that of the file, which must be there.

    Attributes
    ----------
    path : str
    identity : bytes
        16 random ones of the file; its sequence numbers count within them.

    Raises
    ------
    SonaStoreError
        Another process has that side, or the file cannot be opened.
    SonaCorruptError, SonaVersionError
        It is something else, or of another format.
    SonaValueError
        A capacity out of range, or another one than the file's.

    Thread-safety
    -------------
    One thread at a time uses an object; `used`, `dropped` and `damaged` are any's.
    """

    def __cinit__(self, path, side, capacity=0):
        if side not in ("producer", "consumer"):
            raise SonaValueError(f"side: expected 'producer' or 'consumer', got {side!r}")
        if type(capacity) is not int or not 0 <= capacity < 1 << 63:
            raise SonaValueError(f"capacity: expected 0 or a power of two of at least 4096, got {capacity!r}")
        self.path = os.fsdecode(path)
        cdef bytes name = os.fsencode(path)
        cdef sona_side which = SONA_PRODUCER if side == "producer" else SONA_CONSUMER
        cdef sona_status status = sona_shared_ring_open(name, which, capacity, &self.ring)
        cdef int number = errno
        if status != SONA_OK:
            _raise(status, number, self.path, f"another process is the {side} of this ring", "a ring of another format")
        self.identity = PyBytes_FromStringAndSize(<const char *> sona_shared_ring_identity(self.ring), SONA_SHARED_RING_IDENTITY)

    @classmethod
    def consumer(cls, path, capacity):
        """The consumer's side, of whatever capacity the file has; with this one where there is no file."""
        try:
            return cls(path, "consumer")
        except SonaStoreError as error:
            if error.errno != ENOENT:
                raise
        try:
            return cls(path, "consumer", capacity)
        except SonaValueError:  # the producer has made it meanwhile
            return cls(path, "consumer")

    def __dealloc__(self):
        sona_shared_ring_close(self.ring)

    def close(self):
        """Give the side back; what was not released comes again. A second call does nothing."""
        sona_shared_ring_close(self.ring)
        self.ring = NULL

    cdef sona_shared_ring *opened(self) except NULL:
        if self.ring == NULL:
            raise SonaClosedError(f"{self.path}: the ring is closed")
        return self.ring

    def push(self, const unsigned char[::1] data):
        """[producer] Copy bytes in; the record's number, or None, and counted, where there is no room."""
        cdef uint64_t sequence = 0
        cdef const unsigned char *start = &data[0] if data.shape[0] else NULL
        cdef sona_status status = sona_shared_ring_push(self.opened(), start, data.shape[0], &sequence)
        if status == SONA_EFULL:
            return None
        check(status, f"{self.path}: a record of {data.shape[0]} bytes")
        return sequence

    def next(self):
        """[consumer] (bytes, number) of the oldest record that was not returned yet, or None."""
        cdef size_t size = 0
        cdef uint64_t sequence = 0
        cdef const void *record = sona_shared_ring_next(self.opened(), &size, &sequence)
        if record == NULL:
            return None
        return PyBytes_FromStringAndSize(<const char *> record, size), sequence

    def mark(self):
        """[consumer] What stands for the records that `next` has returned until now."""
        return sona_shared_ring_mark(self.opened())

    def release(self, uint64_t mark):
        """[consumer] Free the records up to a mark."""
        sona_shared_ring_release_to(self.opened(), mark)

    @property
    def capacity(self):
        """Bytes."""
        return sona_shared_ring_capacity(self.opened())

    @property
    def max_record(self):
        """Bytes of the largest record that it takes."""
        return sona_shared_ring_max_record(self.opened())

    @property
    def used(self):
        """Bytes, with headers, also of what was returned and not released."""
        return sona_shared_ring_used(self.opened())

    @property
    def dropped(self):
        """Records that found no room, over the life of the file."""
        return sona_shared_ring_dropped(self.opened())

    @property
    def damaged(self):
        """Damages that consumers have met."""
        return sona_shared_ring_damaged(self.opened())

    def __repr__(self):
        return f"<SharedRing {self.path!r}{' closed' if self.ring == NULL else ''}>"


cdef class Weights:
    """
    The rows of some adapters in a file that one process publishes and others adopt.

    Parameters
    ----------
    path : path
    role : {"writer", "reader"}
        A writer makes the file when absent.
    layers, dim : int
        Of all adapters.
    max_rank : int
        The most rows that can be published; a reader's is ignored.
    fingerprint : int
        64 bits that identify the frozen model; 0: not said.

    Raises
    ------
    SonaStoreError
        Another process writes, or the file cannot be opened.
    SonaCorruptError
        It is something else.
    SonaVersionError
        It has other layers, another dim or rank, or belongs to another model.

    Thread-safety
    -------------
    One thread at a time uses an object; `epoch` is any's.
    """

    def __cinit__(self, path, role, *, layers, dim, max_rank=1, fingerprint=0):
        if role not in ("writer", "reader"):
            raise SonaValueError(f"role: expected 'writer' or 'reader', got {role!r}")
        self.path = os.fsdecode(path)
        cdef bytes name = os.fsencode(path)
        cdef sona_weights_options options
        options.layers, options.dim, options.max_rank, options.fingerprint = layers, dim, max_rank, fingerprint
        cdef sona_status status
        if role == "writer":
            status = sona_weights_create(name, &options, &self.weights)
        else:
            status = sona_weights_open(name, &options, &self.weights)
        cdef int number = errno
        if status != SONA_OK:
            expected = f"expected {layers} layer{'s' * (layers != 1)} of {dim} numbers"
            expected += f" and at most {max_rank} rows" if role == "writer" else ""
            expected += f" of the model {fingerprint:#x}" if fingerprint else ""
            _raise(status, number, self.path, "another process writes these weights", f"{expected}, got the weights of others")
        self.layers, self.dim = layers, dim
        self.handles = <sona_adapter **> sona_calloc(self.layers, sizeof(void *))
        self.rows = <void **> sona_calloc(self.layers, sizeof(void *))
        self.sizes = <size_t *> sona_calloc(self.layers, sizeof(size_t))
        self.rooms = <size_t *> sona_calloc(self.layers, sizeof(size_t))
        if self.handles == NULL or self.rows == NULL or self.sizes == NULL or self.rooms == NULL:
            raise MemoryError(f"weights of {layers} layers")

    @classmethod
    def writer(cls, path, *, layers, dim, max_rank, fingerprint=0):
        return cls(path, "writer", layers=layers, dim=dim, max_rank=max_rank, fingerprint=fingerprint)

    @classmethod
    def reader(cls, path, *, layers, dim, fingerprint=0):
        return cls(path, "reader", layers=layers, dim=dim, fingerprint=fingerprint)

    def __dealloc__(self):
        cdef size_t layer
        sona_weights_close(self.weights)
        if self.rows != NULL:
            for layer in range(self.layers):
                sona_free(self.rows[layer])
        sona_free(self.handles)
        sona_free(self.rows)
        sona_free(self.sizes)
        sona_free(self.rooms)

    def close(self):
        """A second call does nothing."""
        sona_weights_close(self.weights)
        self.weights = NULL

    cdef sona_weights *opened(self) except NULL:
        if self.weights == NULL:
            raise SonaClosedError(f"{self.path}: the weights are closed")
        return self.weights

    cdef int take(self, tuple adapters) except -1:
        """Their handles; the caller keeps the adapters."""
        if len(adapters) != <Py_ssize_t> self.layers:
            raise SonaValueError(f"adapters: expected {self.layers}, got {len(adapters)}")
        cdef size_t layer
        for layer in range(self.layers):
            self.handles[layer] = (<Adapter?> adapters[layer]).handle
        return 0

    def publish(self, adapters, version=0):
        """
        [writer] Publish the rows of one adapter per layer, all at once.

        Parameters
        ----------
        adapters : sequence of Adapter
        version : int
            Of the store that they are kept in; 0: none.
        """
        cdef size_t layer, need
        cdef tuple kept = tuple(adapters)
        self.opened()
        self.take(kept)
        for layer in range(self.layers):
            need = sona_adapter_encoded_size(self.handles[layer])
            if need > self.rooms[layer]:
                sona_free(self.rows[layer])
                self.rooms[layer] = 0
                self.rows[layer] = sona_calloc(2 * need, 1)
                if self.rows[layer] == NULL:
                    raise MemoryError(f"weights of {need} bytes")
                self.rooms[layer] = 2 * need
            check(sona_adapter_encode(self.handles[layer], self.rows[layer], self.rooms[layer], &self.sizes[layer]), f"layer {layer}")
        check(sona_weights_publish(self.weights, <const void *const *> self.rows, self.sizes, version), f"{self.path}: publish")

    def adopt(self, adapters):
        """
        [reader] Replace the rows of one adapter per layer by the latest publication; (epoch, version, its CLOCK_MONOTONIC ns).

        None, with nothing changed, where nothing is published yet or the writer came between again and again.

        Raises
        ------
        SonaCorruptError
            The file is damaged; nothing has changed.
        """
        cdef sona_weights_info info
        cdef tuple kept = tuple(adapters)
        self.opened()
        self.take(kept)
        if len(set(map(id, kept))) < len(kept):
            raise SonaValueError("adapters: expected different ones, got one for several layers")
        cdef sona_status status = sona_weights_adopt(self.weights, self.handles, &info)
        if status == SONA_EAGAIN:
            return None
        if status == SONA_ECORRUPT:
            raise SonaCorruptError(f"{self.path}: damaged")
        check(status, f"{self.path}: adopt")
        return info.epoch, info.version, info.published_ns

    @property
    def epoch(self):
        """Of the latest publication; 0 before the first."""
        return sona_weights_epoch(self.opened())

    def __repr__(self):
        return f"<Weights {self.path!r} layers={self.layers} dim={self.dim}{' closed' if self.weights == NULL else ''}>"
