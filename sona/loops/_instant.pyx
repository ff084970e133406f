"""The instant step: one outcome becomes one pair of an adapter, over sona/instant.h."""

cimport numpy as cnp
from libc.math cimport NAN
from libc.string cimport memcpy

from sona._arrays cimport sona_is_input
from sona._c cimport (
    SONA_ENOMEM, SONA_FULL, SONA_IDENTITY, SONA_OK, SONA_STEP_OWN,
    sona_calibration, sona_instant_bytes, sona_instant_calibration, sona_instant_confidence, sona_instant_covariance, sona_instant_create,
    sona_instant_destroy, sona_instant_inputs, sona_instant_options, sona_instant_revise, sona_instant_set_calibration,
    sona_instant_set_inputs, sona_instant_soften, sona_instant_step,
    sona_status, sona_step,
)
from sona._kernels cimport kernels_named
from sona._status cimport check
from sona.adapters._lora cimport Adapter

import numpy as np

from sona._arrays import coerce
from sona.errors import SonaValueError

cnp.import_array()

# Up to this dim one outcome with the full inverse covariance costs less than about 150 microseconds (measured: benchmarks "instant").
FULL_UP_TO = 512

# Prior variance of a weight. The identity never shrinks it, so it starts at half (measured: docs/learning.md).
P0_FULL = 0.2
P0_IDENTITY = 0.1


cdef object step_dict(const sona_step *s):
    return {"expected": s.expected, "confidence": s.confidence, "advantage": s.advantage, "curvature": s.curvature, "sigma": s.sigma,
            "gain": s.gain, "surprise": s.surprise}


cdef class Instant:
    """
    Turns outcomes into adapter rows without a learning rate.

    Parameters
    ----------
    dim : int
        Length of x and of the score direction v.
    p0 : float, optional
        Prior variance of a weight, for unit-norm x; default 0.2 with the full inverse covariance, 0.1 with the identity.
    constant : float
        The learned constant input (its weights become a bias); 0 for none.
    precondition : {"auto", "identity", "full"}
        "identity" costs O(dim) per outcome. "full" keeps the (dim + 1)^2 inverse covariance of recursive least squares: O(dim^2) per
        outcome, less regret on most text streams, and it protects what was learned on other inputs. "auto" is full up to dim 512.
    actions : int
        How many actions compete; one outcome shrinks the inverse covariance by its share.
    isa : str, optional
        Kernel table.

    Thread-safety
    -------------
    One thread at a time.
    """

    def __cinit__(self, Py_ssize_t dim, p0=None, double constant=0.3, precondition="auto", Py_ssize_t actions=1, isa=None):
        cdef sona_instant_options options
        if precondition not in ("auto", "identity", "full"):
            raise SonaValueError(f"precondition: expected 'auto', 'identity' or 'full', got {precondition!r}")
        if dim < 1 or actions < 1:
            raise SonaValueError(f"instant: expected dim and actions >= 1, got dim={dim}, actions={actions}")
        if precondition == "auto":
            precondition = "full" if dim <= FULL_UP_TO else "identity"
        if p0 is None:
            p0 = P0_FULL if precondition == "full" else P0_IDENTITY
        options.dim, options.p0, options.constant = dim, <float> p0, <float> constant
        options.precision_scale = 3.0 / actions
        options.precondition = SONA_FULL if precondition == "full" else SONA_IDENTITY
        options.kernels = kernels_named(isa)
        check(sona_instant_create(&options, &self.handle), f"instant step with p0={p0}, constant={constant}")
        self.dim = dim
        self.precondition = precondition
        self.prior_variance, self.constant = p0, constant

    def __dealloc__(self):
        sona_instant_destroy(self.handle)

    def step(self, Adapter adapter not None, x, v, reward, expected=None, double weight=1.0, bint own=True):
        """
        Learn from one outcome.

        Parameters
        ----------
        adapter : Adapter
            Receives the pair.
        x, v : array of shape (dim,)
            The input, and the score direction d log pi(action) / d y.
        reward : float in [0, 1]
        expected : float in [0, 1], optional
            pi of the shown action. Without it the running mean of the rewards stands in, which learns noticeably slower.
        weight : float in (0, 1]
        own : bool
            Whether the policy would have chosen the action itself.

        Returns
        -------
        dict
            expected (p), confidence (c), advantage, curvature (h), sigma, gain (the coefficient of v) and surprise (reward - p).
        """
        cdef sona_step report
        cdef float probability = NAN if expected is None else <float> expected
        if adapter.dim != self.dim:
            raise SonaValueError(f"adapter: expected dim {self.dim}, got {adapter.dim}")
        if not (cnp.PyArray_CheckExact(x) and sona_is_input(x, 1) and cnp.PyArray_DIM(x, 0) == self.dim):
            x = coerce(x, (self.dim,), "x")
        if not (cnp.PyArray_CheckExact(v) and sona_is_input(v, 1) and cnp.PyArray_DIM(v, 0) == self.dim):
            v = coerce(v, (self.dim,), "v")
        if expected is not None and probability != probability:
            raise SonaValueError("expected: expected a number in [0, 1], got NaN")
        cdef sona_status status = sona_instant_step(
            self.handle, adapter.handle, <const float *> cnp.PyArray_DATA(x), <const float *> cnp.PyArray_DATA(v), probability,
            0, <float> reward, <float> weight, SONA_STEP_OWN if own else 0, &report)
        if status:
            check(status, f"step with finite x and v, reward in [0, 1], expected in [0, 1] and weight in (0, 1], got reward={reward}, "
                          f"expected={expected}, weight={weight}")
        return step_dict(&report)

    def revise(self, Adapter adapter not None, x, v, change, expected=None, double weight=1.0):
        """Apply once the difference that `change` in [-1, 1] of an outcome's reward makes, at today's weights."""
        cdef sona_step report
        cdef float probability = NAN if expected is None else <float> expected
        if adapter.dim != self.dim:
            raise SonaValueError(f"adapter: expected dim {self.dim}, got {adapter.dim}")
        x = coerce(x, (self.dim,), "x")
        v = coerce(v, (self.dim,), "v")
        if expected is not None and probability != probability:
            raise SonaValueError("expected: expected a number in [0, 1], got NaN")
        check(sona_instant_revise(self.handle, adapter.handle, <const float *> cnp.PyArray_DATA(x), <const float *> cnp.PyArray_DATA(v),
                                  probability, 0, <float> change, <float> weight, &report),
              f"revise with change in [-1, 1], got change={change}, expected={expected}, weight={weight}")
        return step_dict(&report)

    cdef bint learn(self, Adapter adapter, const float *x, const float *v, float probability, double reward, object old) except -1:
        """`step`, or `revise` where `old` is what was learned before. False, with nothing changed, where the numbers cannot be learned."""
        cdef sona_status status
        if old is None:
            status = sona_instant_step(self.handle, adapter.handle, x, v, probability, 0, <float> reward, 1, SONA_STEP_OWN, NULL)
        else:
            status = sona_instant_revise(self.handle, adapter.handle, x, v, probability, 0, <float> (reward - <double> old), 1, NULL)
        if status == SONA_ENOMEM:
            check(status, "learn")
        return status == SONA_OK

    @property
    def confidence(self):
        """c in (0, 1]: success rate where the policy is confident over what it promised there."""
        return sona_instant_confidence(self.handle)

    @property
    def mean_reward(self):
        return sona_instant_calibration(self.handle).mean_reward

    @property
    def bytes(self):
        return sona_instant_bytes(self.handle)

    def soften(self, double keep=0.2):
        """P <- keep P + (1 - keep) p0 I: what a drift alarm calls for. Never a full reset: P remembers which inputs are settled."""
        if not 0 <= keep <= 1:
            raise SonaValueError(f"keep: expected a number in [0, 1], got {keep}")
        sona_instant_soften(self.handle, <float> keep)

    def state(self):
        """
        Arrays that `restore` takes: calibration (5,) float64, inputs (dim + 2,) float64 (their mean, how many, their mean square length)
        and, with precondition="full", covariance (dim + 1, dim + 1).
        """
        cdef sona_calibration c = sona_instant_calibration(self.handle)
        cdef size_t side = 0, ld = 0
        cdef float *p = sona_instant_covariance(self.handle, &side, &ld)
        cdef cnp.ndarray covariance
        cdef size_t i
        arrays = {"calibration": np.array([c.rewarded, c.shown, c.mean_reward, c.steps, c.restore], dtype=np.float64)}
        cdef double count = 0, square = 0
        cdef const float *mean = sona_instant_inputs(self.handle, &count, &square)
        cdef cnp.ndarray place = np.empty(self.dim + 2, dtype=np.float64)
        for i in range(<size_t> self.dim):
            (<double *> cnp.PyArray_DATA(place))[i] = mean[i]
        place[self.dim], place[self.dim + 1] = count, square
        arrays["inputs"] = place
        if p != NULL:
            covariance = np.empty((side, side), dtype=np.float32)
            for i in range(side):
                memcpy(<float *> cnp.PyArray_DATA(covariance) + i * side, p + i * ld, side * sizeof(float))
            arrays["covariance"] = covariance
        return arrays

    def restore(self, arrays):
        """Put back what `state` returned; without inputs, a state of an older version, their mean is learned anew."""
        cdef sona_calibration c
        cdef size_t side = 0, ld = 0
        cdef float *p = sona_instant_covariance(self.handle, &side, &ld)
        cdef const float *data = NULL
        cdef size_t i
        values = np.asarray(arrays["calibration"], dtype=np.float64)
        if values.shape != (5,) or not np.isfinite(values).all() or not (values[1] > 0 and (values[[0, 3, 4]] >= 0).all()):
            raise SonaValueError(f"calibration: expected five finite numbers with a positive second one, got {values}")
        if (p != NULL) != ("covariance" in arrays):
            raise SonaValueError(f"precondition: expected {self.precondition}, got a state of the other kind")
        inputs = np.asarray(arrays.get("inputs", np.zeros(self.dim + 2)), dtype=np.float64)
        if inputs.shape != (self.dim + 2,):
            raise SonaValueError(f"inputs: expected shape ({self.dim + 2},), got {inputs.shape}")
        mean = coerce(inputs[:-2], (self.dim,), "inputs")
        if p != NULL:
            covariance = coerce(arrays["covariance"], (side, side), "covariance")
            data = <const float *> cnp.PyArray_DATA(covariance)
        check(sona_instant_set_inputs(self.handle, <const float *> cnp.PyArray_DATA(mean), inputs[-2], inputs[-1]),
              f"inputs with a count in [0, 1000] and a mean square of at least 0, got {inputs[-2:]}")
        if p != NULL:
            for i in range(side):
                memcpy(p + i * ld, data + i * side, side * sizeof(float))
        c.rewarded, c.shown, c.mean_reward, c.steps, c.restore = values[0], values[1], values[2], int(values[3]), values[4]
        sona_instant_set_calibration(self.handle, c)
