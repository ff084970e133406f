/* See sona/trajectory/_record.pyx for the layout of a trajectory. */
#include "sona/record.h"

#include <math.h>

#include "bytes.h"

enum { PRELUDE = 12, HEAD = 36, STEP = 40, VERSION = 1 };

size_t sona_record_size(size_t dim, const sona_record_step *steps, size_t count) {
  const uint64_t most = UINT32_MAX;
  if (dim < 1 || dim > most / 4 || count > most / STEP) return 0;
  uint64_t size = PRELUDE + HEAD + 4 * (uint64_t)dim;
  for (size_t i = 0; i < count; i++) {
    const sona_record_step *step = &steps[i];
    if (!step->activations || (step->attention_size && !step->attention) || step->attention_size > most / 4) return 0;
    size += STEP + 4 * (uint64_t)(step->x ? 2 * (uint64_t)dim : dim) + 4 * (uint64_t)step->attention_size;
    if (size > most) return 0;
  }
  return size <= most ? (size_t)size : 0;
}

/* One NaN for all: equal trajectories are equal bytes. */
static void put_optional(unsigned char *to, double value) { sona_put_double(to, isnan(value) ? (double)NAN : value); }

static unsigned char *put_floats(unsigned char *to, const float *from, size_t n) {
  sona_copy_floats(to, from, n);
  return to + 4 * n;
}

static unsigned char *put_step(unsigned char *to, const sona_record_step *step, size_t dim) {
  sona_put_double(to, step->timestamp);
  put_optional(to + 8, step->reward);
  put_optional(to + 16, step->expected);
  sona_put_int(to + 24, step->layer, 4);
  sona_put_int(to + 28, step->attention_size, 4);
  sona_put_int(to + 32, step->x != NULL, 8);
  to = put_floats(to + STEP, step->activations, dim);
  to = put_floats(to, step->attention, step->attention_size);
  return put_floats(to, step->x, step->x ? dim : 0);
}

sona_status sona_record_write(void *to, size_t room, uint64_t id, uint64_t latency_us, double quality, const float *query, size_t dim,
                              const sona_record_step *steps, size_t count) {
  const size_t size = sona_record_size(dim, steps, count);
  if (!size || !query) return SONA_EINVAL;
  if (size > room) return SONA_EFULL;
  unsigned char *at = to;
  memcpy(at, "STRJ", 4);
  sona_put_int(at + 4, size, 4);
  sona_put_int(at + 8, 0, 4); /* the checksum */
  at += PRELUDE;
  sona_put_int(at, VERSION, 4);
  sona_put_int(at + 4, id, 8);
  sona_put_int(at + 12, latency_us, 8);
  put_optional(at + 20, quality);
  sona_put_int(at + 28, dim, 4);
  sona_put_int(at + 32, count, 4);
  at = put_floats(at + HEAD, query, dim);
  for (size_t i = 0; i < count; i++) at = put_step(at, &steps[i], dim);
  return SONA_OK;
}

void sona_feedback_write(void *to, uint64_t id, double reward) {
  unsigned char *at = to;
  memcpy(at, "SFBK", 4);
  sona_put_int(at + 4, SONA_FEEDBACK_SIZE, 4);
  sona_put_int(at + 8, id, 8);
  sona_put_double(at + 16, reward);
}
