cimport numpy as cnp

cpdef cnp.ndarray checked(value, length, str name)
cpdef cnp.ndarray frozen(value, length, str name)
