/* The smallest cut by Queyranne 1998, "Minimizing symmetric submodular functions".  Nodes start as groups of one.  A round
 * builds a set W, by adding the group u with the least cut(W + u) - cut(u) until one is left; no cut that parts the two last groups loses
 * less than that of the last one alone.  It is noted, the two become one group, and the next round starts.
 *
 * With M and M^-1, det(M_(V \ A)) = det(M) det((M^-1)_A), so that 4^cut(A) = det(M_A) det((M^-1)_A) over both kinds.  Adding a group to W
 * takes its rows out of M and M^-1, which leaves their Schur complements; the determinants of a group's block in them are those of
 * W + u over those of W.  So a step is an elimination and one small determinant a group, and products are compared, not logarithms. */
#include <math.h>
#include <string.h>

#include "phi_internal.h"

enum { MOST = 2 * SONA_PHI_NODES }; /* rows */

/* Groups of rows; those of one are neighbours in the order of a round. */
typedef struct group {
  uint64_t nodes;
  size_t size;    /* rows */
  double own;     /* 4^cut of it alone */
  double inverse; /* 1 / own */
} group;

static size_t packed(size_t side) { return side * (side + 1) / 2; }

/* M and M^-1 of each kind as lanes (side, side, lanes), packed below the diagonal: all of them, one round, one group. */
size_t phi_queyranne_room(size_t n, size_t rows) {
  const size_t side = rows * n, lanes = 2 * (2 / rows);
  return side * side * lanes + 2 * packed(side) * lanes;
}

/* Element (i, j), i >= j. */
static inline size_t at(size_t i, size_t j, size_t lanes) { return (packed(i) + j) * lanes; }

/* Takes row p away from m (side, side): what is left is the Schur complement, in place; an element never moves up. */
static inline void eliminate_lanes(double *m, size_t side, size_t p, size_t lanes) {
  double column[MOST * 4], factor[4];
  for (size_t i = 0; i < side; i++) memcpy(column + i * lanes, m + (i < p ? at(p, i, lanes) : at(i, p, lanes)), lanes * sizeof *m);
  double inverse[4], *to = m;
  for (size_t l = 0; l < lanes; l++) inverse[l] = 1 / column[p * lanes + l];
  for (size_t i = 0; i < side; i++) {
    if (i == p) continue;
    for (size_t l = 0; l < lanes; l++) factor[l] = column[i * lanes + l] * inverse[l];
    const double *from = m + at(i, 0, lanes);
    const size_t before = i < p ? i + 1 : p;
    for (size_t j = 0; j < before; j++, from += lanes, to += lanes)
      for (size_t l = 0; l < lanes; l++) to[l] = from[l] - factor[l] * column[j * lanes + l];
    from += lanes;
    for (size_t j = p + 1; j <= i; j++, from += lanes, to += lanes)
      for (size_t l = 0; l < lanes; l++) to[l] = from[l] - factor[l] * column[j * lanes + l];
  }
}

static void eliminate(double *m, size_t side, size_t p, size_t lanes) {
  if (lanes == 4) {
    eliminate_lanes(m, side, p, 4);
  } else {
    eliminate_lanes(m, side, p, 2);
  }
}

static double pivots(const double *m, size_t lanes) {
  double product = 1;
  for (size_t l = 0; l < lanes; l++) product *= m[l];
  return product;
}

/* The product over the lanes of the determinants of the rows first to first + size - 1. */
static double block_determinant(const double *m, size_t first, size_t size, size_t lanes, double *room) {
  if (size == 1) return pivots(m + at(first, first, lanes), lanes);
  for (size_t i = 0; i < size; i++) memcpy(room + at(i, 0, lanes), m + at(first + i, first, lanes), (i + 1) * lanes * sizeof *m);
  double product = 1;
  for (size_t left = size; left > 0; left--) {
    product *= pivots(room + at(left - 1, left - 1, lanes), lanes);
    eliminate(room, left, left - 1, lanes);
  }
  return product;
}

/* The elements of the rows of some groups, in their order, from all of them. */
static void arrange(const double *all, size_t side, size_t rows, const group *groups, size_t count, size_t lanes, double *to) {
  size_t index[MOST], size = 0;
  for (size_t g = 0; g < count; g++)
    for (uint64_t rest = groups[g].nodes; rest; rest &= rest - 1)
      for (size_t r = 0; r < rows; r++) index[size++] = rows * phi_first(rest) + r;
  for (size_t i = 0; i < size; i++)
    for (size_t j = 0; j <= i; j++, to += lanes) memcpy(to, all + (index[i] * side + index[j]) * lanes, lanes * sizeof *to);
}

/* m (side, side) becomes its inverse: an exchange step a row, without pivoting since it is positive definite. */
static void invert(double *m, size_t side, size_t stride) {
  for (size_t k = 0; k < side; k++) {
    double *row = m + k * side * stride;
    const double inverse = 1 / row[k * stride];
    for (size_t j = 0; j < side; j++) row[j * stride] *= inverse;
    row[k * stride] = inverse;
    for (size_t i = 0; i < side; i++) {
      if (i == k) continue;
      double *other = m + i * side * stride;
      const double factor = other[k * stride];
      other[k * stride] = 0;
      for (size_t j = 0; j < side; j++) other[j * stride] -= factor * row[j * stride];
    }
  }
}

/* One round; on return the last two groups have changed places with the two that became the last.  The first group is W at the start. */
static void order(group *groups, size_t count, size_t side, double *m, size_t lanes, double *room) {
  for (size_t left = groups[0].size; left > 0; left--) eliminate(m, side--, 0, lanes);
  for (size_t next = 1; next + 1 < count; next++) {
    double least = INFINITY;
    size_t chosen = next, place = 0, first = 0;
    for (size_t g = next; g < count; g++) {
      const double key = block_determinant(m, first, groups[g].size, lanes, room) * groups[g].inverse;
      if (key < least) {
        least = key;
        chosen = g;
        place = first;
      }
      first += groups[g].size;
    }
    const group taken = groups[chosen];
    memmove(groups + next + 1, groups + next, (chosen - next) * sizeof *groups); /* the order of the others is that of their rows */
    groups[next] = taken;
    if (next + 2 == count) return;
    for (size_t left = taken.size; left > 0; left--) eliminate(m, side--, place, lanes);
  }
}

static double own_cut(const double *all, size_t side, size_t rows, const group *g, size_t lanes, double *room) {
  arrange(all, side, rows, g, 1, lanes, room);
  double product = 1;
  for (size_t left = g->size; left > 0; left--) {
    product *= pivots(room + at(left - 1, left - 1, lanes), lanes);
    eliminate(room, left, left - 1, lanes);
  }
  return product;
}

uint64_t phi_queyranne(const phi_model *model, double *room) {
  const size_t n = model->n, side = model->side, kinds = model->kinds, rows = model->rows, lanes = 2 * kinds;
  double *all = room, *m = all + side * side * lanes, *block = m + packed(side) * lanes;
  for (size_t i = 0; i < side * side; i++)
    for (size_t kind = 0; kind < kinds; kind++) all[i * lanes + kind] = all[i * lanes + kinds + kind] = model->m[i * kinds + kind];
  for (size_t kind = 0; kind < kinds; kind++) invert(all + kinds + kind, side, lanes);
  group groups[SONA_PHI_NODES];
  for (size_t i = 0; i < n; i++) {
    groups[i] = (group){.nodes = (uint64_t)1 << i, .size = rows};
    groups[i].own = own_cut(all, side, rows, groups + i, lanes, block);
    groups[i].inverse = 1 / groups[i].own;
  }
  double least = INFINITY;
  uint64_t best = 1;
  for (size_t count = n; count > 1; count--) {
    for (size_t g = 1; g < count; g++) /* the largest first: no determinant of it is asked for in this round */
      if (groups[g].size > groups[0].size) {
        const group largest = groups[g];
        groups[g] = groups[0];
        groups[0] = largest;
      }
    arrange(all, side, rows, groups, count, lanes, m);
    order(groups, count, side, m, lanes, block);
    group *last = groups + count - 1, *before = last - 1;
    if (last->own < least) {
      least = last->own;
      best = last->nodes;
    }
    if (count == 2) break;
    before->nodes |= last->nodes;
    before->size += last->size;
    before->own = own_cut(all, side, rows, before, lanes, block);
    before->inverse = 1 / before->own;
  }
  return best & 1 ? best : phi_all(n) & ~best;
}
