"""Trajectories as bytes, for Cython: see _record.pyx for the layout."""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef SONA_RECORD_BYTES
    #define SONA_RECORD_BYTES
    #include <stdint.h>
    #include <string.h>

    /* Little-endian on every machine, at any address. */
    static inline void sona_put_int(char *to, uint64_t value, int bytes) {
      for (int i = 0; i < bytes; i++) to[i] = (char)(value >> 8 * i);
    }

    static inline uint64_t sona_get_int(const char *from, int bytes) {
      uint64_t value = 0;
      for (int i = 0; i < bytes; i++) value |= (uint64_t)(unsigned char)from[i] << 8 * i;
      return value;
    }

    static inline void sona_put_double(char *to, double value) {
      uint64_t bits;
      memcpy(&bits, &value, 8);
      sona_put_int(to, bits, 8);
    }

    static inline double sona_get_double(const char *from) {
      uint64_t bits = sona_get_int(from, 8);
      double value;
      memcpy(&value, &bits, 8);
      return value;
    }

    /* Either way: on a big-endian machine the bytes of each float change places. */
    static inline void sona_copy_floats(void *to, const void *from, size_t n) {
    #if PY_LITTLE_ENDIAN
      memcpy(to, from, 4 * n);
    #else
      for (size_t i = 0; i < 4 * n; i++) ((char *)to)[i] = ((const char *)from)[i ^ 3];
    #endif
    }
    #endif
    """
    void sona_put_int(char *to, uint64_t value, int size) noexcept
    uint64_t sona_get_int(const char *source, int size) noexcept
    void sona_put_double(char *to, double value) noexcept
    double sona_get_double(const char *source) noexcept
    void sona_copy_floats(void *to, const void *source, size_t n) noexcept

cdef enum:
    PRELUDE = 12  # bytes
    HEAD = 36
    STEP = 40

cdef struct step_head:
    double timestamp, reward, expected  # NaN: None
    uint64_t layer
    size_t weights                      # length of attention_weights
    bint has_x

cdef void write_head(char *to, uint64_t id, uint64_t latency_us, double quality, size_t d, size_t steps) noexcept
cdef void write_step(char *to, const step_head *step) noexcept
cdef step_head read_step(const char *source) noexcept
cdef uint64_t step_size(const step_head *step, size_t d) noexcept
cdef int seal(bytes record) except -1
cdef double or_nan(object value) except? -1.0
cdef object or_none(double value)
cdef int measure_bytes(bytes record, size_t *d, size_t *steps) except -1
cdef object decoded(const char *record, uint64_t size)
