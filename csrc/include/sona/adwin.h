/* Adwin over surprises: keeps the values since the last change of their mean (Bifet and Gavalda 2007, algorithm ADWIN2).
 *
 * Values are kept in buckets of 16 2^i values, at most five of each size; a sixth merges the two oldest.  Whenever 16 values are complete,
 * every cut between buckets into n0 older and n1 newer values is looked at, and while the means on its sides differ by more than
 *
 *   sqrt(2 v L / m) + 2 L / (3 m),   1/m = 1/n0 + 1/n1,   v: variance of all,   L = ln(2 ln(n0 + n1) / delta)
 *
 * the oldest bucket is dropped.  No more than 1024 values are kept: over more, slow learning itself looks like a change.
 *
 * A plain struct without allocation; one thread at a time. */
#ifndef SONA_ADWIN_H
#define SONA_ADWIN_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_ADWIN_BUCKET 16   /* values of the smallest bucket */
#define SONA_ADWIN_MEMORY 1024 /* most values */
#define SONA_ADWIN_SIZES 6     /* 16 to 512: five of each but the last hold more than the memory */
#define SONA_ADWIN_LIKE 5      /* most buckets of one size */

typedef struct sona_adwin_bucket {
  double sum, squares; /* of its values, and of their deviations from their mean */
  uint64_t id;         /* that its first value came with */
} sona_adwin_bucket;

typedef struct sona_adwin {
  double delta;
  uint32_t count[SONA_ADWIN_SIZES];
  sona_adwin_bucket bucket[SONA_ADWIN_SIZES][SONA_ADWIN_LIKE + 1]; /* by size, oldest first */
  double total, squares;                                           /* of all full buckets, as in one */
  uint64_t width;                                                  /* values in full buckets */
  sona_adwin_bucket open;                                          /* the bucket that is not full */
  uint64_t waiting;                                                /* values in it */
  uint64_t added;                                                  /* values since the start */
  uint64_t changed; /* the id of the first value after the last change, which is the cut that passed its bound the most */
  double level;     /* mean of the values after that cut, when it was found */
} sona_adwin;

/* delta in (0, 1) bounds the chance of a false alarm. */
SONA_API void sona_adwin_init(sona_adwin *adwin, double delta);

/* Takes a finite value in [-1, 1].  -1 when the window was cut because the mean fell, 1 when it rose, 0 when nothing was found, and when
 * the mean fell from further above 0 than it is below now: surprises are 0 on average, so that is only the end of a rise. */
SONA_API int sona_adwin_add(sona_adwin *adwin, uint64_t id, double value);

/* Mean of the full buckets, 0 where there are none. */
SONA_API double sona_adwin_mean(const sona_adwin *adwin);

/* The id that the first value of the window came with; of the bucket that is not full where there is no other, else 0. A few values of
 * before a change stay until there are more new ones: */
SONA_API uint64_t sona_adwin_first(const sona_adwin *adwin);

#ifdef __cplusplus
}
#endif
#endif
