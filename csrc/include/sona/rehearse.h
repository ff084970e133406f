/* Rehearsal: remembered rewards are learned again, a few with each new one, as far as rewards can be relied on.
 *
 *   step = strength max(0, 2 c - 1)^2 of the instant step,   c: what a confident choice earns, see policy.h
 *
 * Where the right action succeeds half of the time or less, repeating rewards would fit their noise: nothing is rehearsed. */
#ifndef SONA_REHEARSE_H
#define SONA_REHEARSE_H

#include "sona/pending.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sona_rehearsal {
  sona_instant *step; /* of the identity, with the dim and constant input of the policy's own; its calibration is overwritten */
  size_t rows;        /* drawn each time, with replacement */
  uint64_t window;    /* of how many of the newest ids */
  float strength;     /* in (0, 1] */
  uint64_t random;    /* state of the draws */
} sona_rehearsal;

/* Rehearses decisions with ids from `oldest` to `newest` that are remembered and rewarded, with their last reward; returns how many.  What
 * cannot be learned is left out. */
SONA_API size_t sona_rehearse(sona_rehearsal *rehearsal, sona_pending *pending, sona_policy *policy, uint64_t oldest, uint64_t newest);

#ifdef __cplusplus
}
#endif
#endif
