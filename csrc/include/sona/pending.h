/* Pending: decisions that wait for their outcome, found again by id.
 *
 * A ring of bytes holds the latest decisions with their inputs; the oldest are overwritten, so memory is bounded and nothing is allocated
 * after creation.  Ids are handed out in sequence by the caller (the low bits index the table).  One thread at a time. */
#ifndef SONA_PENDING_H
#define SONA_PENDING_H

#include "sona/policy.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sona_pending sona_pending;

/* A decision with its input.  The bytes from here on, `size` of them, are what a store keeps. */
SONA_EXTENSION typedef struct sona_record {
  uint64_t id;
  uint64_t size; /* bytes with x and candidates */
  double time;   /* seconds since the epoch: a label, not used for intervals */
  sona_decision decision;
  sona_outcome outcome; /* valid when learned */
  uint32_t dim, count;  /* floats of x; candidates, 0 for all arms */
  uint32_t learned, reserved;
  float x[]; /* (dim), unit-norm, followed by candidates (count) */
} sona_record;

/* capacity: decisions, rounded up to a power of two; dim: floats of x; bytes: of the ring, 0 for room for `capacity` decisions over all
 * arms.  SONA_EINVAL, SONA_ENOMEM. */
SONA_API sona_status sona_pending_create(size_t capacity, size_t dim, size_t bytes, sona_pending **out);
SONA_API void sona_pending_destroy(sona_pending *pending); /* accepts NULL */

/* Room for a decision with `count` explicit candidates; id, size, dim and count are filled in, the rest is zero.  NULL when it could never
 * fit.  Valid until the next put. */
SONA_API sona_record *sona_pending_put(sona_pending *pending, uint64_t id, uint32_t count);

/* NULL when the id is unknown or has been overwritten. */
SONA_API sona_record *sona_pending_get(sona_pending *pending, uint64_t id);

static inline int32_t *sona_record_candidates(sona_record *record) { return record->count ? (int32_t *)(record->x + record->dim) : NULL; }

SONA_API size_t sona_pending_bytes(const sona_pending *pending);

#ifdef __cplusplus
}
#endif
#endif
