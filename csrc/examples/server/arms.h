/* The frozen side: one vector for each arm (a label, a model to route to), read from a file of little-endian float32. */
#ifndef SERVER_ARMS_H
#define SERVER_ARMS_H

#include <stddef.h>
#include <stdint.h>

#define TAU 0.1f /* of the softmax over scores, in every mode */

typedef struct arms {
  size_t count, dim;
  float *vectors;       /* (count, dim), of norm 1 */
  uint64_t fingerprint; /* of the file: what was learned for other arms is of no use for these */
} arms;

/* 0, or an errno; EINVAL: not count * dim finite numbers, or a vector without a direction. */
int arms_read(const char *path, size_t count, size_t dim, arms *out);
void arms_free(arms *a);

/* pi = softmax(E y / TAU) into probability (count); returns the arm with the largest. */
size_t arms_choose(const arms *a, const float *y, float *probability);

#endif
