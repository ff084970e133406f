/* Every subset: the minors of all 2^n sets of nodes, each node once taken (eliminated, which leaves the Schur complement of the rest) and
 * once left out (its rows skipped).  A minor is the product of the pivots on its way.  The subsets of the first three nodes are
 * made one by one and then go down the tree side by side, as the lanes of one matrix.
 *
 * minor[A] is the product over both kinds; the cut that loses the fewest bits has the least minor[A] minor[V \ A], so no logarithm is
 * taken.  With less than six nodes the rest is nodes without links, whose minors are 1. */
#include <math.h>
#include <string.h>

#include "phi_internal.h"

enum {
  BESIDE = 3, /* nodes whose subsets lie side by side */
  LANES = 1 << BESIDE,
  LEAF = 3, /* nodes whose minors are written out, where S is symmetric */
  LEAST = BESIDE + LEAF
};

static size_t packed(size_t side) { return side * (side + 1) / 2; }

static size_t padded(size_t n) { return n < LEAST ? LEAST : n; }

/* minor (2^n), the root of the tree and below it each level once, and a matrix of one lane. */
size_t phi_tree_room(size_t n, size_t rows) {
  const size_t most = padded(n), side = rows * (most - BESIDE), width = LANES * (2 / rows);
  size_t matrices = 0;
  for (size_t s = 1; s <= side; s++) matrices += packed(s);
  return ((size_t)1 << most) + matrices * width + packed(rows * most);
}

/* A matrix is packed above its diagonal: row 0, then row 1 without its first element, ...; each element is a block of lanes.  Takes the
 * first row of m (side, side) away and leaves the Schur complement in `to`, and returns where to ends. */
static inline double *eliminate(const double *restrict m, size_t side, size_t lanes, double *restrict to) {
  double inverse[2 * LANES], factor[2 * LANES];
  for (size_t l = 0; l < lanes; l++) inverse[l] = 1 / m[l];
  const double *from = m + side * lanes;
  for (size_t i = 1; i < side; i++) {
    for (size_t l = 0; l < lanes; l++) factor[l] = m[i * lanes + l] * inverse[l];
    for (size_t j = i; j < side; j++, from += lanes, to += lanes)
      for (size_t l = 0; l < lanes; l++) to[l] = from[l] - factor[l] * m[j * lanes + l];
  }
  return to;
}

/* The minors of the three last nodes: a b c in the first row, then d e, then f; the last node is the lowest bit of a set. */
static void write_leaf(const double *restrict m, const double *restrict lead, double *restrict minor) {
  for (size_t l = 0; l < LANES; l++) {
    double product[8];
    for (size_t kind = 0; kind < 2; kind++) {
      const double *x = m + kind * LANES + l;
      const double a = x[0], b = x[2 * LANES], c = x[4 * LANES], d = x[6 * LANES], e = x[8 * LANES], f = x[10 * LANES];
      const double df = d * f - e * e, af = a * f - c * c, ad = a * d - b * b;
      const double adf = a * df - b * (b * f - c * e) + c * (b * e - c * d);
      const double each[8] = {1, f, d, df, a, af, ad, adf};
      for (size_t set = 0; set < 8; set++) product[set] = kind ? product[set] * each[set] : each[set] * lead[l];
    }
    for (size_t set = 0; set < 8; set++) minor[set * LANES + l] = product[set];
  }
}

/* The minors of all sets of the `left` nodes of m; minor points at the set without any of them, lead are the pivots before. */
static void descend_symmetric(const double *m, size_t left, const double *lead, double *minor, double *room) {
  enum { WIDTH = 2 * LANES };
  if (left == LEAF) {
    write_leaf(m, lead, minor);
    return;
  }
  descend_symmetric(m + left * WIDTH, left - 1, lead, minor, room);
  double product[LANES];
  for (size_t l = 0; l < LANES; l++) product[l] = lead[l] * m[l] * m[LANES + l];
  double *below = eliminate(m, left, WIDTH, room);
  descend_symmetric(room, left - 1, product, minor + ((size_t)LANES << (left - 1)), below);
}

static void descend_directed(const double *m, size_t left, const double *lead, double *minor, double *room) {
  const size_t side = 2 * left;
  double *const taken = minor + ((size_t)LANES << (left - 1)), product[LANES];
  if (left == 1) {
    memcpy(minor, lead, sizeof product);
    for (size_t l = 0; l < LANES; l++) taken[l] = lead[l] * (m[l] * m[2 * LANES + l] - m[LANES + l] * m[LANES + l]);
    return;
  }
  descend_directed(m + (2 * side - 1) * LANES, left - 1, lead, minor, room);
  double *between = room, *rest = eliminate(m, side, LANES, between), *below = eliminate(between, side - 1, LANES, rest);
  for (size_t l = 0; l < LANES; l++) product[l] = lead[l] * m[l] * between[l];
  descend_directed(rest, left - 1, product, taken, below);
}

/* One lane of one kind of the root: the model without the first three nodes, of which those of `set` are taken and the others left out. The
 * last node comes first.  Returns the product of the pivots. */
static double plant(const phi_model *model, size_t nodes, size_t kind, size_t set, double *to, size_t width, double *room) {
  const size_t side = model->rows * nodes, kinds = model->kinds;
  size_t index[2 * SONA_PHI_EXHAUSTED], count = 0, taken = 0;
  for (size_t node = 0; node < BESIDE; node++)
    for (size_t r = 0; r < model->rows && set >> node & 1; r++) index[count++] = model->rows * node + r;
  taken = count;
  for (size_t i = side; i-- > model->rows * BESIDE;) index[count++] = i;
  double *row = room, lead = 1;
  for (size_t i = 0; i < count; i++)
    for (size_t j = i; j < count; j++) {
      const int known = index[i] < model->side && index[j] < model->side;
      *row++ = known ? model->m[(index[i] * model->side + index[j]) * kinds + kind] : i == j;
    }
  double *first = room;
  for (size_t left = count; left > count - taken; left--) {
    double *other = first + left;
    lead *= *first;
    for (size_t i = 1; i < left; i++) {
      const double factor = first[i] / *first;
      for (size_t j = i; j < left; j++) *other++ -= factor * first[j];
    }
    first += left;
  }
  for (size_t i = 0; i < packed(count - taken); i++) to[i * width] = first[i];
  return lead;
}

/* Every cut once: sets without the last node, which may hold node 0 or not. */
static uint64_t smallest(double *minor, size_t n) {
  const size_t cuts = (size_t)1 << (n - 1), last = 2 * cuts - 1;
  double least[LANES];
  for (size_t l = 0; l < LANES; l++) least[l] = INFINITY;
  minor[0] = INFINITY; /* no cut */
  if (cuts < LANES) {
    for (size_t i = 1; i < cuts; i++) least[0] = fmin(least[0], minor[i] * minor[last - i]);
  } else {
    for (size_t i = 0; i < cuts; i += LANES)
      for (size_t l = 0; l < LANES; l++) {
        const double product = minor[i + l] * minor[last - i - l];
        least[l] = product < least[l] ? product : least[l];
      }
  }
  for (size_t l = 1; l < LANES; l++) least[0] = fmin(least[0], least[l]);
  for (size_t i = 1; i < cuts; i++)
    if (minor[i] * minor[last - i] == least[0]) return i;
  return 1;
}

/* The same with the least bits per node of the smaller side: the least product of each size, and one logarithm a size. */
static uint64_t smallest_by_size(const double *minor, size_t n) {
  const size_t cuts = (size_t)1 << (n - 1), last = 2 * cuts - 1;
  double least[SONA_PHI_EXHAUSTED + 1];
  size_t at[SONA_PHI_EXHAUSTED + 1] = {0}, best = 1;
  for (size_t size = 0; size <= n; size++) least[size] = INFINITY;
  for (size_t i = 1; i < cuts; i++) {
    const size_t size = (size_t)__builtin_popcountll(i);
    const double product = minor[i] * minor[last - i];
    if (product < least[size]) {
      least[size] = product;
      at[size] = i;
    }
  }
  double fewest = INFINITY;
  for (size_t size = 1; size < n; size++) {
    const double bits = log2(least[size] / minor[last]) / (double)(size < n - size ? size : n - size);
    if (bits < fewest) {
      fewest = bits;
      best = at[size];
    }
  }
  return best;
}

uint64_t phi_tree(const phi_model *model, int normalise, double *room) {
  const size_t n = model->n, nodes = padded(n), width = LANES * model->kinds, left = nodes - BESIDE;
  double *minor = room, *root = minor + ((size_t)1 << nodes), *below = root + packed(model->rows * left) * width;
  double lead[LANES];
  for (size_t set = 0; set < LANES; set++) {
    lead[set] = 1;
    for (size_t kind = 0; kind < model->kinds; kind++) lead[set] *= plant(model, nodes, kind, set, root + kind * LANES + set, width, below);
  }
  if (model->rows == 1) {
    descend_symmetric(root, left, lead, minor, below);
  } else {
    descend_directed(root, left, lead, minor, below);
  }
  const uint64_t set = normalise ? smallest_by_size(minor, n) : smallest(minor, n);
  return set & 1 ? set : phi_all(n) & ~set;
}
