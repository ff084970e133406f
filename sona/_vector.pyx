"""A caller's array as one that nobody writes to: checked, copied and frozen in one call."""

cimport numpy as cnp
from libc.string cimport memcpy

from sona._arrays cimport sona_is_input

from sona._arrays import coerce

cnp.import_array()

cpdef cnp.ndarray checked(value, length, str name):
    """The same numbers as a C-contiguous float32 array of shape (length,), or (n,) for None: `value` itself where it is one."""
    cdef cnp.ndarray array
    if not cnp.PyArray_CheckExact(value) or not sona_is_input(value, 1):
        value = coerce(value, (length,), name)
    array = value
    cdef size_t n = cnp.PyArray_DIM(array, 0)
    if n == 0 or (length is not None and <object> n != length) or not sona_all_finite(cnp.PyArray_DATA(array), n):
        coerce(array, (length,), name)  # raises: what is wrong, in the words of every other check
    return array


cpdef cnp.ndarray frozen(value, length, str name):
    """
    A read-only float32 array of shape (length,), or (n,) for None.

    An array that is read-only and owns its memory is returned as it is, any other is copied. Refuses what `sona._arrays.coerce` refuses.
    """
    cdef cnp.ndarray array = checked(value, length, name), copy
    if not cnp.PyArray_ISWRITEABLE(array) and cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_OWNDATA):
        return array
    copy = cnp.PyArray_EMPTY(1, cnp.PyArray_DIMS(array), cnp.NPY_FLOAT32, 0)
    memcpy(cnp.PyArray_DATA(copy), cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array))
    cnp.PyArray_CLEARFLAGS(copy, cnp.NPY_ARRAY_WRITEABLE)
    return copy
