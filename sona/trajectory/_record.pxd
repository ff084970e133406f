cdef Py_ssize_t length(object array) except -1
cdef double or_nan(object value) except? -1.0
cdef char *put_vector(char *to, object array) except NULL
