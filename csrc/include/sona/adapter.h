/* Adapter: the low-rank correction of one layer, W' = W + up^T down, that grows by one pair per learning step.
 *
 * Tiers.  Rows 0..base are the base, rows base..total the micro tier (at most `micro` of them).  Folding micro into base moves the
 * border; no weight is touched.  When `window` rows have piled up above `rank`, the sum is truncated: the best rank-`rank`
 * approximation (truncated SVD of the sum, sqrt(S) to both sides) replaces all rows, and the discarded share of the energy is reported.
 *
 * Threads.  Any number of readers and one writer at a time.  Published rows never change: a writer fills the next free row and then
 * publishes the new count, or fills another block and publishes its address, so a reader sees the adapter before or after a step and
 * nothing between.  A reader never waits.  Each reading thread has its own sona_reader; a block is recycled when no reader holds it.
 * After warm-up (two blocks of the final rank) neither reading nor learning allocates. */
#ifndef SONA_ADAPTER_H
#define SONA_ADAPTER_H

#include "sona/kernels.h"
#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_MAX_READERS 64

typedef struct sona_adapter sona_adapter;
typedef struct sona_reader sona_reader;

typedef struct sona_adapter_options {
  size_t dim;                  /* >= 1 */
  size_t rank;                 /* kept by a truncation, >= 1 */
  size_t rank_max;             /* the rank grows to at most this when a truncation would discard more than max_discard; >= rank */
  size_t micro;                /* pairs of the micro tier, >= 1 (the roadmap: 1 or 2) */
  size_t window;               /* rows appended between truncations; 0: max(16, rank) */
  double max_discard;          /* share of the squared Frobenius norm, in [0, 1) */
  float scale;                 /* > 0: delta(x) = scale up^T (down x + offset); rows of up are stored without it */
  const sona_kernels *kernels; /* NULL: the best of this machine */
} sona_adapter_options;

typedef enum sona_tier { SONA_BASE = 1, SONA_MICRO = 2, SONA_BOTH = 3 } sona_tier;

typedef struct sona_adapter_info {
  size_t dim, ld, rank, rank_max, capacity; /* ld: floats between rows of the views below */
  size_t base, total;                       /* rows */
  uint64_t generation;                      /* counts published blocks: rows of one generation never change */
  uint64_t truncations;
  double discarded;     /* share of the energy that the latest truncation dropped */
  double discarded_sum; /* sum of the shares over all truncations */
  uint64_t over_budget; /* truncations that had to discard more than max_discard at rank_max */
  size_t bytes;         /* of all blocks */
} sona_adapter_info;

/* SONA_EINVAL for a size out of range, SONA_ENOMEM; *out is untouched on failure. */
SONA_API sona_status sona_adapter_create(const sona_adapter_options *options, sona_adapter **out);

/* No reader may be in use. Accepts NULL. */
SONA_API void sona_adapter_destroy(sona_adapter *adapter);

/* A reading thread's handle, NULL when SONA_MAX_READERS are taken.  One thread at a time uses a reader.  While it is not released it
 * keeps at most one block alive. */
SONA_API sona_reader *sona_reader_acquire(sona_adapter *adapter);
SONA_API void sona_reader_release(sona_reader *reader); /* accepts NULL */

/* The adapter as the reader sees it now; valid until the reader's next call.  tier chooses the rows. */
SONA_API sona_lora sona_reader_view(sona_reader *reader, sona_tier tier);

/* y += delta(x); x and y (dim), not overlapping.  Any thread, with its own reader; never waits, never fails. */
SONA_API void sona_adapter_forward(sona_reader *reader, sona_tier tier, const float *x, float *y);
SONA_API void sona_adapter_forward_batch(sona_reader *reader, sona_tier tier, const float *x, size_t ldx, float *y, size_t ldy,
                                         size_t rows);

/* ---- writer ---- */

/* Appends the pair delta(x) += coef up (down . x + offset), whatever the scale; up and down (dim).  Truncates first when the block is full.
 * SONA_ENONFINITE, for NaN, infinity and rows whose squared norm leaves float32, leaves the correction as it was. */
SONA_API sona_status sona_adapter_append(sona_adapter *adapter, float coef, const float *up, const float *down, float offset);

/* Truncates now unless `rows` more pairs fit without it; after SONA_OK that many appends need no memory.  rows <= window. */
SONA_API sona_status sona_adapter_make_room(sona_adapter *adapter, size_t rows);

/* Moves the micro rows into the base. */
SONA_API void sona_adapter_fold(sona_adapter *adapter);

/* Truncates now, whatever the window holds.  SONA_ENOMEM leaves the adapter as it was. */
SONA_API sona_status sona_adapter_truncate(sona_adapter *adapter);

/* Replaces all rows in one publication: down and up (total, dim) with rows ld apart, offset (total) or NULL; base <= total.
 * `total` may exceed the rank: the block grows to hold it. */
SONA_API sona_status sona_adapter_assign(sona_adapter *adapter, const float *down, const float *up, size_t ld, const float *offset,
                                         size_t base, size_t total);

/* ---- as bytes: what the Python module calls Factors ----
 *
 * Little-endian: "sonafac1", uint32 rank, uint32 dim, then float32 down (rank, dim), up (rank, dim) with the scale in it, offset (rank).
 * Equal rows have equal bytes. */

/* How many bytes sona_adapter_encode writes now. */
SONA_API size_t sona_adapter_encoded_size(const sona_adapter *adapter);

/* All rows into `to`, at any address; *size is how many bytes that took.  SONA_EFULL: more than `room`; SONA_ENONFINITE: a row leaves
 * float32 once the scale is in it. */
SONA_API sona_status sona_adapter_encode(const sona_adapter *adapter, void *to, size_t room, size_t *size);

/* Replaces all rows, in one publication, by those in exactly `size` bytes, which may come from anywhere; they are of the base tier then.
 * SONA_ECORRUPT: not such bytes; SONA_EVERSION: rows of another width; SONA_ENONFINITE: NaN, infinity or rows whose squared norm leaves
 * float32; SONA_ENOMEM.  On failure the adapter is as it was. */
SONA_API sona_status sona_adapter_decode(sona_adapter *adapter, const void *from, size_t size);

/* Writer's own view and counters; valid until the next writer call. */
SONA_API sona_lora sona_adapter_view(const sona_adapter *adapter);
SONA_API sona_adapter_info sona_adapter_describe(const sona_adapter *adapter);
SONA_API const sona_kernels *sona_adapter_kernels(const sona_adapter *adapter);

#ifdef __cplusplus
}
#endif
#endif
