cimport numpy as cnp

cpdef cnp.ndarray frozen(value, length, str name)
