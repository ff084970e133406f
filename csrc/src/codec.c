#include "codec.h"

#include <math.h>
#include <string.h>

#include "bytes.h"

static const char magic[8] = "sonafac1"; /* without the final 0 */

size_t sona_factors_size(size_t rank, size_t dim) {
  if (dim > SIZE_MAX / 16 || (rank && 2 * dim + 1 > (SIZE_MAX - SONA_FACTORS_HEAD) / 4 / rank)) return 0;
  return SONA_FACTORS_HEAD + 4 * rank * (2 * dim + 1);
}

sona_status sona_factors_find(const void *from, size_t room, sona_factors *out) {
  const unsigned char *bytes = from;
  if (room < SONA_FACTORS_HEAD || memcmp(bytes, magic, sizeof magic) != 0) return SONA_ECORRUPT;
  const size_t rank = (size_t)sona_get_int(bytes + 8, 4), dim = (size_t)sona_get_int(bytes + 12, 4);
  const size_t size = sona_factors_size(rank, dim);
  if (!size || size > room) return SONA_ECORRUPT;
  *out = (sona_factors){.numbers = bytes + SONA_FACTORS_HEAD, .rank = rank, .dim = dim, .size = size};
  return SONA_OK;
}

/* Looks at the exponents: a loop that the compiler makes wide. */
int sona_factors_are_finite(const sona_factors *f) {
  const size_t n = f->rank * (2 * f->dim + 1);
  uint32_t found = 0;
  for (size_t i = 0; i < n; i++) {
    uint32_t bits;
    sona_copy_floats(&bits, f->numbers + 4 * i, 1);
    found |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !found;
}

sona_status sona_factors_stage(const sona_factors *f, sona_adapter *adapter, sona_adapter_rows *rows) {
  const sona_kernels *k = sona_adapter_kernels(adapter);
  const float scale = sona_adapter_view(adapter).scale;
  const size_t dim = f->dim, rank = f->rank;
  const sona_status status = sona_adapter_stage(adapter, rank, rows);
  if (status != SONA_OK) return status;
  sona_copy_floats(rows->offset, f->numbers + 8 * rank * dim, rank);
  for (size_t r = 0; r < rank; r++) {
    float *down = rows->down + r * rows->ld, *up = rows->up + r * rows->ld;
    sona_copy_floats(down, f->numbers + 4 * r * dim, dim);
    sona_copy_floats(up, f->numbers + 4 * (rank + r) * dim, dim);
    for (size_t i = 0; i < dim; i++) up[i] /= scale;
    if (!isfinite(k->dot(up, up, dim)) || !isfinite(k->dot(down, down, dim)) || !isfinite(rows->offset[r])) return SONA_ENONFINITE;
  }
  return SONA_OK;
}

size_t sona_adapter_encoded_size(const sona_adapter *adapter) {
  const sona_lora w = sona_adapter_view(adapter);
  return sona_factors_size(w.rank, w.dim);
}

sona_status sona_adapter_encode(const sona_adapter *adapter, void *to, size_t room, size_t *size) {
  const sona_lora w = sona_adapter_view(adapter);
  const size_t all = sona_factors_size(w.rank, w.dim);
  if (all > room) return SONA_EFULL;
  for (size_t r = 0; r < w.rank; r++)
    for (size_t i = 0; i < w.dim; i++)
      if (!isfinite(w.up[r * w.ld + i] * w.scale)) return SONA_ENONFINITE;
  unsigned char *bytes = to;
  memcpy(bytes, magic, sizeof magic);
  sona_put_int(bytes + 8, w.rank, 4);
  sona_put_int(bytes + 12, w.dim, 4);
  unsigned char *down = bytes + SONA_FACTORS_HEAD, *up = down + 4 * w.rank * w.dim;
  for (size_t r = 0; r < w.rank; r++) {
    sona_copy_floats(down + 4 * r * w.dim, w.down + r * w.ld, w.dim);
    for (size_t i = 0; i < w.dim; i++) {
      const float scaled = w.up[r * w.ld + i] * w.scale;
      sona_copy_floats(up + 4 * (r * w.dim + i), &scaled, 1);
    }
  }
  sona_copy_floats(up + 4 * w.rank * w.dim, w.offset, w.rank);
  *size = all;
  return SONA_OK;
}

sona_status sona_adapter_decode(sona_adapter *adapter, const void *from, size_t size) {
  sona_factors factors;
  sona_adapter_rows rows;
  sona_status status = sona_factors_find(from, size, &factors);
  if (status == SONA_OK && factors.size != size) status = SONA_ECORRUPT;
  if (status == SONA_OK && factors.dim != sona_adapter_view(adapter).dim) status = SONA_EVERSION;
  if (status == SONA_OK) status = sona_factors_stage(&factors, adapter, &rows);
  if (status == SONA_OK) sona_adapter_show(adapter, &rows, factors.rank, factors.rank);
  return status;
}
