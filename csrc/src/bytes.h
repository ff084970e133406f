/* Private: numbers as bytes, little-endian on every machine, at any address. */
#ifndef SONA_BYTES_H
#define SONA_BYTES_H

#include <stdint.h>
#include <string.h>

static inline void sona_put_int(unsigned char *to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) to[i] = (unsigned char)(value >> 8 * i);
}

static inline uint64_t sona_get_int(const unsigned char *from, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)from[i] << 8 * i;
  return value;
}

static inline void sona_put_double(unsigned char *to, double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  sona_put_int(to, bits, 8);
}

/* Either way: on a big-endian machine the bytes of each float change places. */
static inline void sona_copy_floats(void *to, const void *from, size_t n) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  for (size_t i = 0; i < 4 * n; i++) ((unsigned char *)to)[i] = ((const unsigned char *)from)[i ^ 3];
#else
  if (n) memcpy(to, from, 4 * n);
#endif
}

#endif
