/* What the fuzz targets read their operations from: bytes, then zeros when those are used up.  A target reads whatever it is given as a
 * program over the C API, and checks after each step what the headers promise; what breaks a promise traps.
 *
 * A target defines run().  With libFuzzer (make fuzz) it is fed mutations; without (make seeds) fuzz_replay.c feeds it files. */
#ifndef SONA_FUZZ_H
#define SONA_FUZZ_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct input {
  const uint8_t *at;
  size_t left;
} input;

#define PROMISE(condition)                                                      \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                                  \
    }                                                                           \
  } while (0)

static void run(input *in);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input in = {data, size};
  run(&in);
  return 0;
}

static inline uint64_t take(input *in, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes && in->left; i++, in->at++, in->left--) value |= (uint64_t)*in->at << (8 * i);
  return value;
}

/* One of 0 to count - 1, count <= 256. */
static inline size_t choose(input *in, size_t count) { return take(in, 1) % count; }

/* Any float there is: one in eight by its bits, with NaN, infinities, denormals; else a small one. */
static inline float take_float(input *in) {
  const uint8_t kind = (uint8_t)take(in, 1);
  if (kind >= 224) {
    const uint32_t bits = (uint32_t)take(in, 4);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
  return (float)(kind - 112) / 56;
}

/* Of norm 1, or zero. */
static inline void take_unit(input *in, float *x, size_t n) {
  float square = 0;
  for (size_t i = 0; i < n; i++) {
    x[i] = (float)((int)take(in, 1) - 128);
    square += x[i] * x[i];
  }
  for (size_t i = 0; i < n && square > 0; i++) x[i] /= sqrtf(square);
}

static inline void take_floats(input *in, float *x, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] = take_float(in);
}

#endif
