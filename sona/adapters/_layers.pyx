"""The adapters of all layers in one call."""

cimport numpy as cnp

from sona._arrays cimport sona_is_input, sona_is_output
from sona.adapters._lora cimport Adapter

from sona._arrays import coerce, output

cnp.import_array()


def forward_layers(tuple layers not None, x, out):
    """
    out[i] += delta_i(x[i]) for each Adapter i; x and out are float32 of shape (layers, dim).

    Anything else that numpy can read as numbers is accepted as x and copied.
    """
    cdef Py_ssize_t count = len(layers), dim = (<Adapter?> layers[0]).dim, i
    if not (cnp.PyArray_CheckExact(x) and sona_is_input(x, 2) and cnp.PyArray_DIM(x, 0) == count and cnp.PyArray_DIM(x, 1) == dim):
        x = coerce(x, (count, dim), "x")
    if not (isinstance(out, cnp.ndarray) and sona_is_output(out, 2) and cnp.PyArray_DIM(out, 0) == count
            and cnp.PyArray_DIM(out, 1) == dim):
        out = output(out, (count, dim), "out")
    cdef const float *a = <const float *> cnp.PyArray_DATA(x)
    cdef float *b = <float *> cnp.PyArray_DATA(out)
    if a < b + count * dim and b < a + count * dim:  # overlapping: the input is what it was at the call
        x = x.copy()
        a = <const float *> cnp.PyArray_DATA(x)
    for i in range(count):
        (<Adapter> layers[i]).forward_ptr(a + i * dim, b + i * dim)
