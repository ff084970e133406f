"""The fields of the records of types.py: checked, arrays copied, and set once on an object that is frozen for everyone else."""

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.object cimport PyObject_GenericSetAttr as put
from libc.float cimport FLT_MAX

from sona._vector cimport frozen

from operator import index

import numpy as np

from sona.errors import SonaTypeError, SonaValueError


cpdef object number(value, str name):
    """
    A real number as a float, infinity where it is beyond float64.

    Of numpy's scalars text and dates are none, though they would become one, nor are complex numbers, which would lose a part.
    """
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in "fiub":
        raise SonaTypeError(f"{name}: expected a number, got {value.dtype}")
    try:
        return float(value.__float__())
    except (AttributeError, TypeError):
        raise SonaTypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    except OverflowError:
        return float("inf")
    except ValueError:  # a signalling NaN of decimal
        return float("nan")


cpdef object whole(value, str name):
    """An int of any size; a bool is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise SonaTypeError(f"{name}: expected an int, got {type(value).__name__}") from None


cpdef object finite(value, str name):
    """
    A number as a float.

    Raises
    ------
    SonaTypeError
        Not a number.
    SonaValueError
        NaN, infinity or beyond the range of float32.
    """
    if PyFloat_CheckExact(value) and -FLT_MAX <= PyFloat_AS_DOUBLE(value) <= FLT_MAX:  # the usual case, several times a step
        return value
    result = number(value, name)
    if not -FLT_MAX <= result <= FLT_MAX:
        raise SonaValueError(f"{name}: expected a finite number up to 3.4e38, got {result}")
    return result


cdef object natural(value, int bits, str name):
    """An int in [0, 2**bits)."""
    result = value if type(value) is int else whole(value, name)
    if not 0 <= result or result >> bits:
        raise SonaValueError(f"{name}: expected an int in [0, 2**{bits}), got {result}")
    return int(result)


cdef bint is_empty(weights) except -1:
    """Some callers say "no attention weights" with an empty list."""
    try:
        return len(weights) == 0
    except TypeError:  # no sequence: its check says so
        return False


cpdef int set_step(step, activations, attention_weights, reward, timestamp, expected, layer, x) except -1:
    """Fill a new TrajectoryStep."""
    activations = frozen(activations, None, "activations")
    if attention_weights is not None:
        attention_weights = None if is_empty(attention_weights) else frozen(attention_weights, None, "attention_weights")
    if reward is not None:
        reward = finite(reward, "reward")
    timestamp = finite(timestamp, "timestamp")
    if expected is not None:
        expected = finite(expected, "expected")
    layer = natural(layer, 32, "layer")
    if x is not None:
        x = frozen(x, len(activations), "x")
    put(step, "activations", activations)
    put(step, "attention_weights", attention_weights)
    put(step, "reward", reward)
    put(step, "timestamp", timestamp)
    put(step, "expected", expected)
    put(step, "layer", layer)
    put(step, "x", x)
    return 0


cpdef int set_trajectory(trajectory, type step_type, id, query_embedding, steps, final_quality, latency_us) except -1:
    """Fill a new QueryTrajectory, whose steps are of `step_type`."""
    cdef Py_ssize_t d
    id = natural(id, 64, "id")
    query_embedding = frozen(query_embedding, None, "query_embedding")
    steps = tuple(steps)
    d = len(query_embedding)
    for number, step in enumerate(steps):
        if not isinstance(step, step_type):
            raise SonaTypeError(f"steps[{number}]: expected a TrajectoryStep, got {type(step).__name__}")
        if len(step.activations) != d:
            raise SonaValueError(f"steps[{number}].activations: expected shape ({d},) like query_embedding, got {step.activations.shape}")
    if final_quality is not None:
        final_quality = finite(final_quality, "final_quality")
    latency_us = natural(latency_us, 64, "latency_us")
    put(trajectory, "id", id)
    put(trajectory, "query_embedding", query_embedding)
    put(trajectory, "steps", steps)
    put(trajectory, "final_quality", final_quality)
    put(trajectory, "latency_us", latency_us)
    return 0
