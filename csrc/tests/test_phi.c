/* Phi: both searches find the least of all cuts, whose bits come from determinants of their own; graphs in pieces; refusals; subgraphs. */
#include <float.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "sona/phi.h"

enum { N = 9 };

static double uniform(uint64_t *seed) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (double)(*seed >> 11) / 9007199254740992.0;
}

static void draw(double *w, size_t n, double density, int directed, uint64_t *seed) {
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j <= i; j++) {
      w[i * n + j] = uniform(seed) < density ? exp(4 * uniform(seed)) : 0;
      w[j * n + i] = !directed ? w[i * n + j] : uniform(seed) < density ? uniform(seed) : 0;
    }
}

static void test_the_searches_find_the_least_of_all_cuts(void) {
  uint64_t seed = 1;
  double w[N * N];
  for (int round = 0; round < 300; round++) {
    const size_t n = 2 + (size_t)round % (N - 1);
    const int directed = round / 8 % 2, normalise = round % 3 == 2;
    sona_phi_options o = {.alpha = 0.3 + 0.69 * uniform(&seed), .directed = directed, .normalise = normalise};
    draw(w, n, 0.3 + 0.7 * uniform(&seed), directed, &seed);
    sona_phi tree, other;
    o.method = SONA_PHI_EXHAUSTIVE;
    CHECK_EQ(sona_phi_compute(w, n, &o, &tree), SONA_OK);
    double least = INFINITY, bits, total;
    const uint64_t all = ((uint64_t)1 << n) - 1;
    for (uint64_t part = 1; part < all; part++) {
      CHECK_EQ(sona_phi_cut(w, n, &o, part, &bits, &total), SONA_OK);
      const int size = __builtin_popcountll(part);
      const double each = normalise ? bits / fmin(size, (double)n - size) : bits;
      least = fmin(least, each);
      if (part == tree.part) CHECK_NEAR(tree.value, bits, 1e-12);
    }
    const int size = __builtin_popcountll(tree.part);
    CHECK(tree.part & 1 && tree.part < all + 1);
    CHECK_NEAR(tree.value / (normalise ? fmin(size, (double)n - size) : 1), least, 1e-11);
    CHECK_NEAR(tree.total, total, 1e-12);
    if (normalise) continue;
    o.method = SONA_PHI_QUEYRANNE;
    CHECK_EQ(sona_phi_compute(w, n, &o, &other), SONA_OK);
    CHECK_NEAR(other.value, tree.value, 1e-11);
    CHECK_EQ(other.method, tree.method == SONA_PHI_AUTO ? SONA_PHI_AUTO : SONA_PHI_QUEYRANNE);
  }
}

static void test_closed_forms(void) {
  const sona_phi_options o = {.alpha = 0.85};
  sona_phi found;
  const double edge[4] = {0, 3, 3, 0};
  CHECK_EQ(sona_phi_compute(edge, 2, &o, &found), SONA_OK);
  CHECK_NEAR(found.value, -log2(1 - 0.85 * 0.85), 1e-14);
  static double w[SONA_PHI_NODES * SONA_PHI_NODES];
  for (size_t n = 3; n <= SONA_PHI_NODES; n++) { /* complete graphs: the eigenvalues of S are 1 and -1/(n - 1) */
    for (size_t i = 0; i < n * n; i++) w[i] = i % (n + 1) != 0;
    CHECK_EQ(sona_phi_compute(w, n, &o, &found), SONA_OK);
    const double step = 0.85 / (double)(n - 1), low = log2(1 - step * step);
    const double whole = log2(1 - 0.85 * 0.85) + (double)(n - 1) * low;
    const double rest = log2(1 - pow((double)(n - 2) * step, 2)) + (double)(n - 2) * low;
    CHECK_NEAR(found.value, (rest - whole) / 2, 1e-12);
    CHECK_NEAR(found.total, -whole / 2, 1e-12);
  }
}

static void test_graphs_in_pieces_lose_nothing(void) {
  double w[N * N] = {0};
  sona_phi found;
  sona_phi_options o = {.alpha = 0.85};
  CHECK_EQ(sona_phi_compute(w, 1, &o, &found), SONA_OK); /* one node, nothing to cut */
  CHECK_EQ(found.part, 1);
  CHECK(found.value == 0 && found.total == 0);
  CHECK_EQ(sona_phi_compute(w, N, &o, &found), SONA_OK); /* no edge */
  CHECK_EQ(found.part, 1);
  CHECK(found.value == 0 && found.total == 0);
  w[0 * N + 7] = w[7 * N + 0] = w[7 * N + 3] = w[3 * N + 7] = w[1 * N + 2] = w[2 * N + 1] = 1;
  CHECK_EQ(sona_phi_compute(w, N, &o, &found), SONA_OK);
  CHECK_EQ(found.part, 1 | 1 << 7 | 1 << 3);
  CHECK(found.value == 0 && found.total > 0);
  CHECK_EQ(found.method, SONA_PHI_AUTO);
  o.directed = 1;
  const double chain[9] = {0, 1, 0, 0, 0, 1, 0, 0, 0}, cycle[9] = {0, 1, 0, 0, 0, 1, 1, 0, 0}, trap[9] = {0, 1, 1, 0, 0, 1, 0, 1, 0};
  CHECK_EQ(sona_phi_compute(chain, 3, &o, &found), SONA_OK);
  CHECK(found.value == 0 && found.total == 0);
  CHECK_EQ(sona_phi_compute(trap, 3, &o, &found), SONA_OK); /* walkers leave node 0 for good */
  CHECK_EQ(found.part, 1);
  CHECK(found.value == 0);
  CHECK_NEAR(found.total, -log2(1 - 0.85 * 0.85), 1e-14);
  CHECK_EQ(sona_phi_compute(cycle, 3, &o, &found), SONA_OK);
  CHECK_NEAR(found.value, -log2(1 - 0.85 * 0.85), 1e-14); /* each cut parts two steps of three, of -1/2 log2(1 - alpha^2) bits each */
  CHECK_NEAR(found.total, -1.5 * log2(1 - 0.85 * 0.85), 1e-14);
}

static void test_extreme_weights(void) {
  const double scales[] = {DBL_TRUE_MIN, DBL_MIN, 1, DBL_MAX};
  sona_phi_options o = {.alpha = SONA_PHI_ALPHA};
  sona_phi found;
  for (size_t k = 0; k < 4; k++) {
    const double s = scales[k], w[9] = {0, s, s, s, 0, s, s, s, 0};
    for (o.directed = 0; o.directed < 2; o.directed++) {
      CHECK_EQ(sona_phi_compute(w, 3, &o, &found), SONA_OK);
      CHECK_NEAR(found.value, -0.5 * log2(1 - o.alpha * o.alpha), 1e-9); /* the eigenvalues -1/2 are those of the edge that is left */
    }
  }
  static double lazy[SONA_PHI_NODES * SONA_PHI_NODES]; /* walkers that stay: determinants of (1 - alpha)^64 */
  for (size_t i = 0; i < SONA_PHI_NODES * SONA_PHI_NODES; i++) lazy[i] = i % (SONA_PHI_NODES + 1) ? 1e-12 : 1;
  for (o.directed = 0; o.directed < 2; o.directed++) {
    CHECK_EQ(sona_phi_compute(lazy, SONA_PHI_NODES, &o, &found), SONA_OK);
    CHECK_NEAR(found.total, -0.5 * SONA_PHI_NODES * log2(1 - o.alpha * o.alpha), 0.1);
    CHECK(found.value >= 0 && found.value < 1e-3);
  }
  o.directed = 1; /* pi of one node is 1e-600 of another's */
  const double steep[9] = {0, 1e-300, 1, 1, 0, 1e-300, 1, 1, 0}, lost[9] = {1, 1e-300, 0, 1, 0, 1e-300, 1, 1, 0};
  CHECK_EQ(sona_phi_compute(steep, 3, &o, &found), SONA_OK);
  found.part = 77;
  CHECK_EQ(sona_phi_compute(lost, 3, &o, &found), SONA_EINVAL);
  CHECK_EQ(found.part, 77);
}

static void test_refusals(void) {
  static double w[65 * 65];
  sona_phi found = {.part = 77};
  const sona_phi_options good = {.alpha = 0.85};
  sona_phi_options o = good;
  for (size_t i = 0; i < 65 * 65; i++) w[i] = 1;
#define REFUSED(call, status) \
  CHECK_EQ(call, status);     \
  CHECK_EQ(found.part, 77)
  REFUSED(sona_phi_compute(NULL, 2, &good, &found), SONA_EINVAL);
  REFUSED(sona_phi_compute(w, 2, NULL, &found), SONA_EINVAL);
  REFUSED(sona_phi_compute(w, 2, &good, NULL), SONA_EINVAL);
  REFUSED(sona_phi_compute(w, 0, &good, &found), SONA_EINVAL);
  REFUSED(sona_phi_compute(w, 65, &good, &found), SONA_EINVAL);
  REFUSED(sona_phi_compute(w, SIZE_MAX, &good, &found), SONA_EINVAL);
  const double alphas[] = {0, -0.5, 1, 1.5, NAN, INFINITY};
  for (size_t k = 0; k < 6; k++) {
    o.alpha = alphas[k];
    REFUSED(sona_phi_compute(w, 2, &o, &found), SONA_EINVAL);
  }
  o = (sona_phi_options){.alpha = 0.85, .method = (sona_phi_method)3};
  REFUSED(sona_phi_compute(w, 2, &o, &found), SONA_EINVAL);
  o.method = SONA_PHI_EXHAUSTIVE;
  REFUSED(sona_phi_compute(w, SONA_PHI_EXHAUSTED + 1, &o, &found), SONA_EINVAL);
  o = (sona_phi_options){.alpha = 0.85, .normalise = 1};
  REFUSED(sona_phi_compute(w, SONA_PHI_EXHAUSTED + 1, &o, &found), SONA_EINVAL);
  o.method = SONA_PHI_QUEYRANNE;
  REFUSED(sona_phi_compute(w, 4, &o, &found), SONA_EINVAL);
  const double values[] = {NAN, INFINITY, -INFINITY, -1e-300, 1 + 1e-5};
  for (size_t k = 0; k < 5; k++) {
    w[1] = values[k];
    REFUSED(sona_phi_compute(w, 3, &good, &found), k < 3 ? SONA_ENONFINITE : SONA_EINVAL);
  }
  w[2] = w[6] = 3;
  w[1] = 1 + 1e-7; /* rounding of float32 */
  CHECK_EQ(sona_phi_compute(w, 3, &good, &found), SONA_OK);
  const double value = found.value;
  w[1] = w[3] = 1 + 0.5e-7; /* their mean counts */
  CHECK_EQ(sona_phi_compute(w, 3, &good, &found), SONA_OK);
  CHECK_NEAR(found.value, value, 1e-15);
  w[1] = w[3] = 1;
  double bits, total;
  CHECK_EQ(sona_phi_cut(w, 3, &good, 0, &bits, &total), SONA_EINVAL);
  CHECK_EQ(sona_phi_cut(w, 3, &good, 7, &bits, &total), SONA_EINVAL);
  CHECK_EQ(sona_phi_cut(w, 3, &good, 9, &bits, &total), SONA_EINVAL);
  CHECK_EQ(sona_phi_cut(w, 3, &good, 3, &bits, &total), SONA_OK);
#undef REFUSED
}

static void test_subgraphs_are_graphs(void) {
  enum { NODES = 40, DEGREE = 6, PARTS = 30 };
  static float weight[2 * NODES * DEGREE];
  static int32_t column[2 * NODES * DEGREE];
  int64_t start[NODES], stop[NODES], member[PARTS * 20], offset[PARTS + 1] = {0};
  static double dense[NODES * NODES];
  uint64_t seed = 3;
  for (int k = 0; k < NODES * DEGREE; k++) {
    const size_t i = (size_t)(uniform(&seed) * NODES), j = (size_t)(uniform(&seed) * NODES);
    dense[i * NODES + j] = dense[j * NODES + i] = (float)uniform(&seed);
  }
  int64_t entries = 0;
  for (size_t i = 0; i < NODES; i++) {
    start[i] = entries;
    for (size_t j = NODES; j-- > 0;) {
      if (dense[i * NODES + j] == 0) continue;
      column[entries] = (int32_t)j;
      weight[entries++] = (float)dense[i * NODES + j];
    }
    stop[i] = entries;
  }
  for (size_t k = 0; k < PARTS; k++) {
    const int64_t length = 1 + (int64_t)(uniform(&seed) * 20);
    for (int64_t at = offset[k]; at < offset[k] + length; at++) member[at] = (int64_t)(uniform(&seed) * (NODES + 3)) - 3;
    member[offset[k]] = 5; /* one node at least */
    offset[k + 1] = offset[k] + length;
  }
  const sona_phi_graph graph = {NODES, (size_t)entries, start, stop, column, weight};
  const sona_phi_options o = {.alpha = 0.85};
  sona_phi out[PARTS], one;
  size_t failed = 99;
  CHECK_EQ(sona_phi_subgraphs(&graph, member, offset, PARTS, &o, out, &failed), SONA_OK);
  for (size_t k = 0; k < PARTS; k++) {
    size_t node[NODES], n = 0;
    double w[NODES * NODES];
    for (size_t id = 0; id < NODES; id++)
      for (int64_t at = offset[k]; at < offset[k + 1]; at++)
        if (member[at] == (int64_t)id) {
          node[n++] = id;
          break;
        }
    for (size_t i = 0; i < n; i++)
      for (size_t j = 0; j < n; j++) w[i * n + j] = dense[node[i] * NODES + node[j]];
    CHECK_EQ(sona_phi_compute(w, n, &o, &one), SONA_OK);
    CHECK(out[k].value == one.value && out[k].total == one.total);
    CHECK_EQ(out[k].part, one.part);
  }
  CHECK_EQ(sona_phi_subgraphs(&graph, NULL, NULL, 0, &o, NULL, &failed), SONA_OK);
  member[offset[7]] = NODES;
  CHECK_EQ(sona_phi_subgraphs(&graph, member, offset, PARTS, &o, out, &failed), SONA_EINVAL);
  CHECK_EQ(failed, 7);
  for (int64_t at = offset[7]; at < offset[8]; at++) member[at] = -1; /* nobody */
  CHECK_EQ(sona_phi_subgraphs(&graph, member, offset, PARTS, &o, out, &failed), SONA_EINVAL);
  CHECK_EQ(failed, 7);
  member[offset[7]] = 3;
  const int64_t end = stop[3];
  stop[3] = entries + 1;
  CHECK_EQ(sona_phi_subgraphs(&graph, member, offset, PARTS, &o, out, &failed), SONA_EINVAL);
  stop[3] = end;
  weight[start[3]] = NAN;
  member[offset[7]] = column[start[3]];
  CHECK_EQ(sona_phi_subgraphs(&graph, member, offset, 8, &o, out, &failed), SONA_OK); /* the other end is no member */
  offset[8] = offset[7] - 1;
  CHECK_EQ(sona_phi_subgraphs(&graph, member, offset, PARTS, &o, out, &failed), SONA_EINVAL);
  CHECK_EQ(failed, 7);
}

static void test_what_lies_beside_the_lists_is_not_read(void) {
  enum { NODES = SONA_PHI_NODES + 1 };
  const int32_t column[2] = {0, 0};
  const float weight[2] = {1, 1};
  int64_t many[NODES], start[NODES] = {0}, stop[NODES] = {0};
  for (int64_t k = 0; k < NODES; k++) many[k] = k;
  const int64_t all[2] = {0, NODES}, three[2] = {0, 3}, before[2] = {-1, 3}, back[2] = {3, 2};
  const sona_phi_graph graph = {NODES, 1, start, stop, column + 1, weight + 1};
  const sona_phi_options o = {.alpha = 0.85};
  sona_phi out;
  size_t failed;
  CHECK_EQ(sona_phi_subgraphs(&graph, many, all, 1, &o, &out, &failed), SONA_EINVAL); /* 65 */
  many[3] = 2;
  CHECK_EQ(sona_phi_subgraphs(&graph, many, all, 1, &o, &out, &failed), SONA_OK);
  CHECK_EQ(sona_phi_subgraphs(&graph, many, three, 1, &o, &out, &failed), SONA_OK);
  CHECK_EQ(sona_phi_subgraphs(&graph, many + 1, before, 1, &o, &out, &failed), SONA_EINVAL);
  CHECK_EQ(sona_phi_subgraphs(&graph, many, back, 1, &o, &out, &failed), SONA_EINVAL);
  start[0] = -1; /* where there is a weight on the diagonal */
  CHECK_EQ(sona_phi_subgraphs(&graph, many, three, 1, &o, &out, &failed), SONA_EINVAL);
  start[0] = 1; /* behind its end */
  CHECK_EQ(sona_phi_subgraphs(&graph, many, three, 1, &o, &out, &failed), SONA_EINVAL);
}

int main(void) {
  test_the_searches_find_the_least_of_all_cuts();
  test_closed_forms();
  test_graphs_in_pieces_lose_nothing();
  test_extreme_weights();
  test_refusals();
  test_subgraphs_are_graphs();
  test_what_lies_beside_the_lists_is_not_read();
  return check_done("phi");
}
