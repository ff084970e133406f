/* Phi: how much of what a graph's walkers carry from one step to the next is lost when the graph is cut in two.
 *
 * Walkers move by P = D^-1 W; after each step one is kept with probability alpha, else a fresh one starts from the stationary pi.  With
 * many walkers the occupancies of the nodes are Gaussian, independent at one time, and correlated by alpha S with those a step later:
 *
 *   S      = Pi^1/2 P Pi^-1/2                        which is D^-1/2 W D^-1/2 where W is symmetric
 *   I(A)   = -1/2 log2 det(I - alpha^2 S_AA S_AA^T)   bits that the nodes of A hold now about themselves a step later
 *   cut    = I(V) - I(A) - I(V \ A)                   never negative, and submodular in A
 *   Phi    = the smallest cut over all bipartitions
 *
 * Graphs with a smallest cut of 0 are told before any arithmetic: those that are not connected, and directed ones that are not strongly
 * connected.  A node that no walker stays at (no weight leaves it, or walkers leave it for good) holds no bits; the others of S and I are
 * those of the closed classes.  A weight on the diagonal is a walker that may stay where it is.
 *
 * Everything is float64.  Cuts are right to about 1e-15 / (1 - alpha) bits; cuts closer than that are ties, and any may be returned.
 * No state: any function from any thread.  Each allocates once and frees what it took; time is bounded by n, see the methods. */
#ifndef SONA_PHI_H
#define SONA_PHI_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_PHI_NODES 64       /* most nodes: a set of nodes is the bits of a uint64_t */
#define SONA_PHI_EXHAUSTED 18   /* most nodes that all subsets are looked at for */
#define SONA_PHI_CROSSOVER 13   /* most nodes for which that takes less time than Queyranne's algorithm does */
#define SONA_PHI_ALPHA 0.999999 /* most alpha: nearer to 1 the logarithms keep too few digits */
#define SONA_PHI_ASYMMETRY 1e-6 /* two weights of one undirected edge may differ by that share of the larger; their mean counts */

typedef enum sona_phi_method {
  SONA_PHI_AUTO = 0,       /* the faster one */
  SONA_PHI_EXHAUSTIVE = 1, /* every subset, O(2^n) */
  SONA_PHI_QUEYRANNE = 2   /* about n^4 operations, O(n^5) at most; exact because a cut is submodular */
} sona_phi_method;

typedef struct sona_phi_options {
  double alpha; /* in (0, SONA_PHI_ALPHA]: the chance that a walker is kept */
  int directed; /* 0: w is symmetric */
  /* Not 0: the cut with the least bits per node of its smaller side is looked for; its bits are returned.  Not submodular, so only by
   * SONA_PHI_EXHAUSTIVE, and only up to SONA_PHI_EXHAUSTED nodes. */
  int normalise;
  sona_phi_method method;
} sona_phi_options;

typedef struct sona_phi {
  double value;           /* bits a step */
  double total;           /* I(V), bits a step */
  uint64_t part;          /* nodes on the side of node 0 */
  sona_phi_method method; /* that found it; SONA_PHI_AUTO where there was nothing to look for: one node, or a graph in pieces */
} sona_phi;

/* Phi of w (n, n), row-major, w[i n + j] the weight from i to j.
 * SONA_EINVAL: n is 0 or too large for the method, an option is outside its range, a weight is negative, w is not symmetric where it has to
 * be, or the weights of a directed graph differ by more than float64 holds.  SONA_ENONFINITE: a weight is.  *out is unchanged on failure.
 */
SONA_API sona_status sona_phi_compute(const double *w, size_t n, const sona_phi_options *options, sona_phi *out);

/* The bits that one cut loses, and I(V): any proper part of the n nodes.  Fails as sona_phi_compute, and with SONA_EINVAL for another
 * part.  The method is not looked at. */
SONA_API sona_status sona_phi_cut(const double *w, size_t n, const sona_phi_options *options, uint64_t part, double *bits, double *total);

/* A graph by rows: the weights from node i are weight[start[i]] to weight[stop[i] - 1], to the nodes in `column`. */
typedef struct sona_phi_graph {
  size_t nodes, entries;
  const int64_t *start, *stop; /* (nodes,): rows may stand in any order and with gaps between them */
  const int32_t *column;       /* (entries,) in any order; weights of one pair are added */
  const float *weight;         /* (entries,) */
} sona_phi_graph;

/* Phi of `count` subgraphs: number k is that of the nodes member[offset[k]] to member[offset[k + 1] - 1], in any order; a node that comes
 * again counts once, and numbers below 0 are none.  out[k].part has a bit for each different member, the least first.  Only the rows of
 * members are read.  Fails as sona_phi_compute, also with SONA_EINVAL where a member or its row is outside of the graph; *failed says at
 * which k, and the results before it have been written. */
SONA_API sona_status sona_phi_subgraphs(const sona_phi_graph *graph, const int64_t *member, const int64_t *offset, size_t count,
                                        const sona_phi_options *options, sona_phi *out, size_t *failed);

#ifdef __cplusplus
}
#endif
#endif
