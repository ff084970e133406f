cimport numpy as cnp

cdef extern from *:
    """
    #ifndef SONA_ALL_FINITE
    #define SONA_ALL_FINITE
    #include <stdint.h>
    #include <string.h>

    /* On the bits, two floats at a time: NaN and infinity are the numbers whose exponent is all ones, and only there does adding one to
     * it carry into the sign. */
    static inline int sona_all_finite(const void *x, size_t n) {
      const char *at = (const char *)x;
      uint64_t found = 0, two;
      uint32_t last = 0;
      for (size_t i = 0; i < n / 2; i++, at += 8) {
        memcpy(&two, at, 8);
        found |= (two & 0x7f8000007f800000u) + 0x0080000000800000u;
      }
      if (n % 2) memcpy(&last, at, 4);
      return !(found & 0x8000000080000000u) && (last & 0x7f800000u) != 0x7f800000u;
    }
    #endif
    """
    bint sona_all_finite(const void *x, size_t n) noexcept

cpdef cnp.ndarray checked(value, length, str name)
cpdef cnp.ndarray frozen(value, length, str name)
