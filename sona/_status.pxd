from sona._c cimport sona_status

cdef int check(sona_status status, str what) except -1
