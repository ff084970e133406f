#include "arms.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "file.h"
#include "sona/kernels.h"

/* To norm 1: what one score is worth beside another, the temperature is for that.  0 where there is none. */
static int normalize(float *x, size_t dim) {
  double square = 0;
  for (size_t i = 0; i < dim; i++) square += (double)x[i] * x[i];
  if (!(square > 1e-30 && square < 1e38)) return 0; /* NaN is neither */
  for (size_t i = 0; i < dim; i++) x[i] = (float)(x[i] / sqrt(square));
  return 1;
}

int arms_read(const char *path, size_t count, size_t dim, arms *out) {
  void *bytes;
  size_t size;
  const int error = file_read(path, &bytes, &size);
  if (error) return error;
  float *const numbers = bytes;
  int fits = size == count * dim * sizeof *numbers;
  const uint64_t fingerprint = file_hash(bytes, size);
  for (size_t k = 0; fits && k < count; k++) fits = normalize(numbers + k * dim, dim);
  if (!fits) {
    free(bytes);
    return EINVAL;
  }
  *out = (arms){count, dim, bytes, fingerprint};
  return 0;
}

void arms_free(arms *a) {
  free(a->vectors);
  a->vectors = NULL;
}

size_t arms_choose(const arms *a, const float *y, float *probability) {
  size_t best = 0;
  float sum = 0;
  sona_kernels_get(NULL)->gemv(a->vectors, a->dim, y, probability, a->count, a->dim);
  for (size_t k = 1; k < a->count; k++)
    if (probability[k] > probability[best]) best = k;
  const float top = probability[best];
  for (size_t k = 0; k < a->count; k++) sum += probability[k] = expf((probability[k] - top) / TAU);
  for (size_t k = 0; k < a->count; k++) probability[k] /= sum;
  return best;
}
