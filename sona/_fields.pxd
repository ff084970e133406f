cpdef object finite(value, str name)
cpdef object natural(value, int bits, str name)
