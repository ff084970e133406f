/* Exact transport of small dense problems: what the distances of iit3.c are made of. */
#ifndef SONA_TRANSPORT_H
#define SONA_TRANSPORT_H

#define SONA_TRANSPORT_SIDE 128 /* most rows, most columns */

typedef struct sona_transport {
  int rows, cols;
  double supply[SONA_TRANSPORT_SIDE], demand[SONA_TRANSPORT_SIDE];                                            /* (rows), (cols), positive */
  double cost[SONA_TRANSPORT_SIDE * SONA_TRANSPORT_SIDE], flow[SONA_TRANSPORT_SIDE * SONA_TRANSPORT_SIDE]; /* (rows, cols), cost >= 0 */
} sona_transport;

/* The least sum of flow * cost that moves every supply to a demand, given rows, cols, supply, demand and cost; supplies and demands have the
 * same sum up to rounding.  flow becomes the one that costs it; supply and demand become what rounding left, near 0. */
double sona_transport_solve(sona_transport *t);

#endif
