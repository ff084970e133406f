/* Exact transport of small dense problems: what the distances of iit3.c are made of. */
#ifndef SONA_TRANSPORT_H
#define SONA_TRANSPORT_H

#include <stdint.h>

#define SONA_TRANSPORT_SIDE 128 /* most rows, most columns */

/* Of a set of up to eight.  Inline, where popcount is a call for lack of an instruction that every machine has. */
static inline int sona_count_bits(uint32_t set) {
  set -= set >> 1 & 0x55;
  set = (set & 0x33) + (set >> 2 & 0x33);
  return (int)((set + (set >> 4)) & 15);
}

typedef struct sona_transport {
  int rows, cols;
  double supply[SONA_TRANSPORT_SIDE], demand[SONA_TRANSPORT_SIDE];                                         /* (rows), (cols), positive */
  double cost[SONA_TRANSPORT_SIDE * SONA_TRANSPORT_SIDE], flow[SONA_TRANSPORT_SIDE * SONA_TRANSPORT_SIDE]; /* (rows, cols), cost >= 0 */
} sona_transport;

/* The least sum of flow * cost that moves every supply to a demand, given rows, cols, supply, demand and cost; supplies and demands have
 * the same sum up to rounding.  flow becomes the one that costs it; supply and demand become what rounding left, near 0. */
double sona_transport_solve(sona_transport *t);

/* That between two distributions over the states of k nodes, (2^k) each, where a node that differs costs 1. */
double sona_transport_states(sona_transport *t, uint32_t k, const double *p, const double *q);

#endif
