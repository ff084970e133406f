/* Private: the best low-rank approximation of a sum of rank-one pairs. */
#ifndef SONA_TRUNCATE_H
#define SONA_TRUNCATE_H

#include "sona/kernels.h"

/* doubles of scratch for n rows */
size_t sona_truncate_scratch(size_t n);

/* M = sum_j [down_j, offset_j]^T up_j over w->rank rows.  Writes the leading singular triplets of M, sqrt(S) to both sides, as rows of
 * down, up (rows w->ld apart) and offset, and returns how many: the smallest r in [rank, rank_max] whose tail is at most max_discard of
 * the energy |M|_F^2, less any that are zero to rounding.  *discarded is the share that was dropped.  w must not alias the outputs. */
size_t sona_truncate(const sona_kernels *k, const sona_lora *w, size_t rank, size_t rank_max, double max_discard, double *scratch,
                     float *down, float *up, float *offset, double *discarded);

#endif
