/* Record: what a program puts into a shared ring for a learner in another process: trajectories and rewards, as bytes.
 *
 * A trajectory has the format of the Python module (little-endian, "STRJ", version 1) with a checksum of 0, which says "not computed": a
 * ring in memory needs none, and a checksum in software would cost more than the copy.  Its id is 0 in a ring: there the ring's sequence
 * number names it.  A reward that comes later names that number in a feedback message of its own.
 *
 *   sona_record_step step = {.timestamp = now, .reward = NAN, .expected = NAN, .activations = x};
 *   size_t size = sona_record_size(dim, &step, 1);
 *   void *room;
 *   uint64_t sequence;
 *   if (sona_shared_ring_reserve(ring, size, &room) == SONA_OK) {
 *     sona_record_write(room, size, 0, latency_us, NAN, x, dim, &step, 1);
 *     sona_shared_ring_commit(ring, size, &sequence);
 *   }
 *
 * Numbers are not looked at here: whoever reads a record checks them.  Any function from any thread. */
#ifndef SONA_RECORD_H
#define SONA_RECORD_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sona_record_step {
  double timestamp;         /* seconds */
  double reward, expected;  /* NaN: none */
  uint32_t layer;           /* whose input and output it was */
  const float *activations; /* (dim) */
  const float *attention;   /* (attention_size), or NULL for none */
  size_t attention_size;
  const float *x; /* (dim), the layer's input; or NULL for none */
} sona_record_step;

/* Bytes of a trajectory of `count` steps; steps may be NULL when count is 0.  0: dim is 0, a step has no activations or an attention_size
 * without attention, or it would take 4 GiB. */
SONA_API size_t sona_record_size(size_t dim, const sona_record_step *steps, size_t count);

/* Writes that many bytes to any address.  query: (dim), the embedding of the request; quality: of the whole, NaN for none.
 * SONA_EINVAL: where sona_record_size is 0, or query is NULL; SONA_EFULL: it takes more than `room`.  Nothing is written on failure. */
SONA_API sona_status sona_record_write(void *to, size_t room, uint64_t id, uint64_t latency_us, double quality, const float *query,
                                       size_t dim, const sona_record_step *steps, size_t count);

/* A reward for the trajectory with that number, little-endian: "SFBK", uint32 24, uint64 id, float64 reward. */
#define SONA_FEEDBACK_SIZE 24
SONA_API void sona_feedback_write(void *to, uint64_t id, double reward);

#ifdef __cplusplus
}
#endif
#endif
