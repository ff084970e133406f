/* Private: what the parts of Phi share.
 *
 *   phi.c            the entries: checks, one allocation, the bits of a cut
 *   phi_walkers.c    from weights to correlations
 *   phi_tree.c       every subset
 *   phi_queyranne.c  the smallest cut of a submodular function
 *
 * Rooms are counted in doubles. */
#ifndef SONA_PHI_INTERNAL_H
#define SONA_PHI_INTERNAL_H

#include "sona/phi.h"

/* The correlations of the occupancies now and a step later.  I(A) = -1/2 log2 of the product over the kinds of det m_AA:
 *   S symmetric   2 kinds, I - alpha S and I + alpha S, of 1 row a node
 *   any S         1 kind, [I, alpha S; alpha S^T, I], in which the 2 rows of a node are neighbours */
typedef struct phi_model {
  size_t n, kinds, rows, side; /* kinds rows = 2, side = rows n */
  double *m;                   /* (side, side, kinds) */
  uint64_t *linked;            /* (n): which nodes a node shares bits with */
} phi_model;

static inline uint64_t phi_all(size_t n) { return n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0; }

/* The least node of a set that is not empty. */
static inline size_t phi_first(uint64_t set) { return (size_t)__builtin_ctzll(set); }

/* Fills model->m and linked from checked weights w (n, n), which it overwrites; model->rows says whether they are directed.
 * SONA_EINVAL where the stationary distribution leaves float64. */
sona_status phi_walkers(double *w, double alpha, phi_model *model);

/* log2 of the product over the kinds of det m_AA; the room is side (side + 1) / 2. */
double phi_log_det(const phi_model *model, uint64_t part, double *room);

/* The side of node 0 in the smallest cut of two nodes or more. */
size_t phi_tree_room(size_t n, size_t rows);
uint64_t phi_tree(const phi_model *model, int normalise, double *room);
size_t phi_queyranne_room(size_t n, size_t rows);
uint64_t phi_queyranne(const phi_model *model, double *room);

#endif
