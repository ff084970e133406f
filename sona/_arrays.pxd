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

    /* The numbers of a vector of n that is right as it is, else NULL.  No subclass: its check takes a walk. */
    static inline const float *sona_input(PyObject *o, npy_intp n) {
      PyArrayObject *a = (PyArrayObject *)o;
      return PyArray_CheckExact(o) && sona_is_input(a, 1) && PyArray_DIM(a, 0) == n ? (const float *)PyArray_DATA(a) : NULL;
    }
    static inline float *sona_output(PyObject *o, npy_intp n) {
      PyArrayObject *a = (PyArrayObject *)o;
      return PyArray_CheckExact(o) && sona_is_output(a, 1) && PyArray_DIM(a, 0) == n ? (float *)PyArray_DATA(a) : NULL;
    }
    """
    bint sona_is_input(cnp.ndarray a, int ndim)
    bint sona_is_output(cnp.ndarray a, int ndim)
    const float *sona_input(object a, Py_ssize_t n)
    float *sona_output(object a, Py_ssize_t n)
