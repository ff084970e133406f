"""The fast side of _arrays.py: an argument that is already right costs a few comparisons."""

cimport numpy as cnp

cdef extern from *:
    """
    static inline int sona_is_input(PyArrayObject *a, int ndim) {
      return PyArray_TYPE(a) == NPY_FLOAT32 && PyArray_NDIM(a) == ndim && PyArray_ISCARRAY_RO(a);
    }
    static inline int sona_is_output(PyArrayObject *a, int ndim) {
      return PyArray_TYPE(a) == NPY_FLOAT32 && PyArray_NDIM(a) == ndim && PyArray_ISCARRAY(a);
    }
    """
    bint sona_is_input(cnp.ndarray a, int ndim)
    bint sona_is_output(cnp.ndarray a, int ndim)
