"""The window over surprises that the drift alarm looks at, over sona/adwin.h."""

cimport numpy as cnp
from libc.stdint cimport uint64_t

from sona._c cimport (
    SONA_ADWIN_BUCKET, SONA_ADWIN_LIKE, SONA_ADWIN_MEMORY, SONA_ADWIN_SIZES,
    sona_adwin_add, sona_adwin_first, sona_adwin_init, sona_adwin_mean,
)

import numpy as np

from sona.errors import SonaValueError

cnp.import_array()

BUCKET, MEMORY = SONA_ADWIN_BUCKET, SONA_ADWIN_MEMORY


cdef class Watch:
    """
    `sona.Adwin` with buckets of 16 values, a look after each and a memory of 1024, for a tenth of its time.

    Parameters
    ----------
    delta : float
        Bound on the chance of a false alarm, in (0, 1).
    """

    def __cinit__(self, double delta=1e-3):
        if not 0 < delta < 1:
            raise SonaValueError(f"delta: expected a number in (0, 1), got {delta}")
        sona_adwin_init(&self.adwin, delta)

    cdef int add(self, uint64_t id, double surprise) noexcept:
        return sona_adwin_add(&self.adwin, id, min(max(surprise, -1.0), 1.0))

    def update(self, uint64_t id, double surprise):
        """Take a value in [-1, 1] into account; -1 where the window was cut because the mean fell below 0, 1 where it rose, else 0."""
        if not -1 <= surprise <= 1:
            raise SonaValueError(f"surprise: expected a number in [-1, 1], got {surprise}")
        return self.add(id, surprise)

    def reset(self):
        """Forget the values, not how many there have been: what comes next is another world, and nothing has fallen."""
        cdef uint64_t added = self.adwin.added, changed = self.adwin.changed
        cdef double level = self.adwin.level
        sona_adwin_init(&self.adwin, self.adwin.delta)
        self.adwin.added, self.adwin.changed, self.adwin.level = added, changed, level

    @property
    def width(self):
        """Values in the window, without those of a bucket that is not full yet."""
        return self.adwin.width

    @property
    def added(self):
        """Values since the start."""
        return self.adwin.added

    @property
    def mean(self):
        """Mean of the window; 0 where it is empty."""
        return sona_adwin_mean(&self.adwin)

    @property
    def first(self):
        """Id that the oldest value of the window came with; 0 before the first."""
        return sona_adwin_first(&self.adwin)

    @property
    def changed(self):
        """Id that the first value after the last change came with, by the strongest cut; 0 before a change."""
        return self.adwin.changed

    @property
    def level(self):
        """Mean of the values after that cut, when it was found."""
        return self.adwin.level

    def state(self):
        """Arrays that `restore` takes: window (6,), buckets (n, 3) of size, sum and squared deviations, ids (n + 1,)."""
        buckets, ids = [], []
        for size in reversed(range(SONA_ADWIN_SIZES)):
            for i in range(self.adwin.count[size]):
                buckets.append((size, self.adwin.bucket[size][i].sum, self.adwin.bucket[size][i].squares))
                ids.append(self.adwin.bucket[size][i].id)
        window = (self.adwin.total, self.adwin.squares, self.adwin.added, self.adwin.waiting, self.adwin.open.sum,
                  self.adwin.open.squares)
        return {
            "window": np.array(window, dtype=np.float64),
            "buckets": np.array(buckets, dtype=np.float64).reshape(-1, 3),
            "ids": np.array([*ids, self.adwin.open.id], dtype=np.uint64),
        }

    def restore(self, arrays):
        """Put back what `state` returned. SonaValueError or KeyError for anything else; nothing has changed then."""
        window, buckets = (np.asarray(arrays[name], dtype=np.float64) for name in ("window", "buckets"))
        ids = np.asarray(arrays["ids"], dtype=np.uint64)
        if window.shape != (6,) or buckets.shape[1:] != (3,) or ids.shape != (len(buckets) + 1,):
            raise SonaValueError(f"drift: expected window (6,), buckets (n, 3), ids (n + 1,), got shapes {window.shape}, {buckets.shape} "
                                 f"and {ids.shape}")
        sizes, sums, squares = buckets.T
        counts = [int((sizes == size).sum()) for size in range(SONA_ADWIN_SIZES)]
        sound = sum(counts) == len(sizes) and max(counts) <= SONA_ADWIN_LIKE and (np.diff(sizes) <= 0).all()
        values = BUCKET * 2.0**sizes if sound else sizes
        sound = sound and values.sum() <= MEMORY and (np.abs(sums) <= values).all() and ((0 <= squares) & (squares <= values)).all()
        sound = sound and np.isclose(window[0], sums.sum(), rtol=1e-6, atol=1e-3) and np.isfinite(window[1])
        sound = sound and window[1] >= -1 and window[2] >= values.sum()
        sound = sound and 0 <= window[3] < BUCKET and abs(window[4]) <= window[3] and 0 <= window[5] <= window[3]
        if not sound:
            raise SonaValueError(f"drift: expected up to {SONA_ADWIN_LIKE} buckets of a size, the largest first, of values in [-1, 1], got "
                                 f"something else")
        sona_adwin_init(&self.adwin, self.adwin.delta)
        self.adwin.total, self.adwin.squares, self.adwin.added, self.adwin.waiting = window[0], window[1], int(window[2]), int(window[3])
        self.adwin.open.sum, self.adwin.open.squares, self.adwin.open.id = window[4], window[5], ids[len(ids) - 1]
        self.adwin.width = int(values.sum())
        for (size, own, square), id in zip(buckets.tolist(), ids.tolist()):
            i, at = int(size), self.adwin.count[int(size)]
            self.adwin.bucket[i][at].sum, self.adwin.bucket[i][at].squares, self.adwin.bucket[i][at].id = own, square, id
            self.adwin.count[i] = at + 1
