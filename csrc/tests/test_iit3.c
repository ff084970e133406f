/* Iit3: values known from the literature's gates, distances that are metric, refusals that change nothing, and one allocation a call. */
#include <stdint.h>

#include "check.h"
#include "sona/iit3.h"

enum { THREE = 8 };

static const uint8_t every[SONA_IIT3_NODES * SONA_IIT3_NODES] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                                 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static sona_iit3_result result;

static double uniform(uint64_t *seed) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (double)(*seed >> 11) / 9007199254740992.0;
}

/* OR of the others, copy of the third, XOR of the others. */
static void gates(double *tpm) {
  for (int s = 0; s < THREE; s++) {
    const int a = s & 1, b = s >> 1 & 1, c = s >> 2;
    tpm[3 * s] = b | c;
    tpm[3 * s + 1] = c;
    tpm[3 * s + 2] = a ^ b;
  }
}

static void test_known_values(void) {
  double tpm[3 * THREE];
  gates(tpm);
  CHECK_EQ(sona_iit3(3, tpm, every, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_OK);
  CHECK_NEAR(result.phi, 2.3125, 1e-12);
  CHECK_EQ(result.concepts, 4);
  CHECK_EQ(result.cuts, 1);
  CHECK_EQ(result.cut[0], 6); /* from nodes 1 and 2 to node 0 */
  const int mechanism[] = {2, 4, 3, 7}, cause[] = {4, 3, 6, 7}, effect[] = {1, 2, 4, 7};
  for (int i = 0; i < 4; i++) {
    CHECK_EQ(result.concept[i].mechanism, mechanism[i]);
    CHECK_EQ(result.concept[i].cause.purview, cause[i]);
    CHECK_EQ(result.concept[i].effect.purview, effect[i]);
  }
  CHECK_NEAR(result.concept[2].phi, 1.0 / 3, 1e-12);
  for (int s = 0; s < THREE; s++)
    for (int i = 0; i < 3; i++) tpm[3 * s + i] = (s >> (i + 1) % 3 ^ s >> (i + 2) % 3) & 1;
  CHECK_EQ(sona_iit3(3, tpm, every, 0, SONA_IIT3_WORK, NULL, NULL, &result), SONA_OK);
  CHECK_NEAR(result.phi, 1.875, 1e-12);
  CHECK_EQ(result.cuts, 6);
}

static void test_what_is_not_connected_has_none(void) {
  double tpm[3 * THREE], alone[] = {0, 1};
  uint8_t chain[9] = {0, 1, 0, 0, 0, 1, 0, 0, 0};
  for (int s = 0; s < THREE; s++) {
    tpm[3 * s] = 0.5;
    tpm[3 * s + 1] = s & 1;
    tpm[3 * s + 2] = s >> 1 & 1;
  }
  result.phi = result.concepts = result.cuts = 9;
  CHECK_EQ(sona_iit3(3, tpm, chain, 5, SONA_IIT3_WORK, NULL, NULL, &result), SONA_OK);
  CHECK(result.phi == 0 && !result.concepts && !result.cuts);
  CHECK_EQ(sona_iit3(3, tpm, every, 5, SONA_IIT3_WORK, NULL, NULL, &result), SONA_OK);
  CHECK(result.phi == 0 && result.concepts);
  CHECK_EQ(sona_iit3(1, alone, every, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_OK);
  CHECK(result.phi == 0 && !result.concepts && !result.cuts);
}

static void test_refusals_change_nothing(void) {
  double tpm[3 * THREE];
  uint8_t lacks[9] = {1, 1, 1, 1, 1, 1, 1, 0, 1}; /* from node 2 to node 1 */
  gates(tpm);
  result.phi = -1;
  const uint64_t before = sona_allocations();
  CHECK_EQ(sona_iit3(0, tpm, every, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_EINVAL);
  CHECK_EQ(sona_iit3(SONA_IIT3_NODES + 1, tpm, every, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_EINVAL);
  CHECK_EQ(sona_iit3(3, tpm, every, 2, SONA_IIT3_WORK, NULL, NULL, &result), SONA_EINVAL); /* nothing leads there */
  CHECK_EQ(sona_iit3(3, tpm, every, 8, SONA_IIT3_WORK, NULL, NULL, &result), SONA_EINVAL);
  CHECK_EQ(sona_iit3(3, tpm, lacks, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_EINVAL);
  CHECK_EQ(sona_iit3(3, tpm, every, 1, sona_iit3_work(3, tpm) - 1, NULL, NULL, &result), SONA_EFULL);
  tpm[7] = 1.5;
  CHECK_EQ(sona_iit3(3, tpm, every, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_EINVAL);
  tpm[7] = NAN;
  CHECK_EQ(sona_iit3(3, tpm, every, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_ENONFINITE);
  CHECK_EQ(sona_allocations(), before);
  CHECK(result.phi == -1);
}

static int countdown(void *context) {
  int *left = context;
  return (*left)-- == 0;
}

static void test_the_caller_may_stop_it_before_any_cut(void) {
  double tpm[3 * THREE];
  gates(tpm);
  for (int cuts = 0; cuts < 8; cuts++) {
    int left = cuts;
    CHECK_EQ(sona_iit3(3, tpm, every, 1, SONA_IIT3_WORK, countdown, &left, &result), cuts < 6 ? SONA_ESTOPPED : SONA_OK);
    CHECK_EQ(left, cuts < 6 ? -1 : cuts - 6); /* asked once a cut, of which there are 2^3 - 2 */
  }
  CHECK_NEAR(result.phi, 2.3125, 1e-12);
}

/* Every size runs, within its one block: up to four nodes dense, more in a noisy ring. */
static void test_sizes(void) {
  static double tpm[SONA_IIT3_NODES * SONA_IIT3_STATES];
  uint64_t seed = 3;
  for (uint32_t n = 2; n <= SONA_IIT3_NODES; n++) {
    double chance[2] = {uniform(&seed), uniform(&seed)};
    for (uint32_t s = 0; s < 1u << n; s++)
      for (uint32_t i = 0; i < n; i++) tpm[s * n + i] = n <= 4 ? uniform(&seed) : chance[s >> (i + 1) % n & 1];
    const uint64_t before = sona_allocations();
    CHECK_EQ(sona_iit3(n, tpm, every, 1, SONA_IIT3_WORK, NULL, NULL, &result), SONA_OK);
    CHECK_EQ(sona_allocations(), before + 1);
    CHECK(result.phi > 0);
    for (uint32_t c = 0; c < result.concepts; c++) {
      double sum = 0;
      for (uint32_t x = 0; x < 1u << __builtin_popcount(result.concept[c].cause.purview); x++) sum += result.concept[c].cause.repertoire[x];
      CHECK_NEAR(sum, 1, 1e-12);
    }
  }
}

static double distance(uint32_t k, const double *p, const double *q) {
  double found = -1;
  CHECK_EQ(sona_iit3_distance(k, p, q, &found), SONA_OK);
  return found;
}

static void test_distances_are_metric(void) {
  static double p[3][SONA_IIT3_STATES];
  uint64_t seed = 1;
  for (uint32_t k = 0; k <= SONA_IIT3_NODES; k++)
    for (int round = 0; round < 4; round++) {
      for (int i = 0; i < 3; i++) {
        double sum = 0;
        for (uint32_t s = 0; s < 1u << k; s++) sum += p[i][s] = s && uniform(&seed) < 0.4 ? 0 : uniform(&seed) + 0.01;
        for (uint32_t s = 0; s < 1u << k; s++) p[i][s] /= sum;
      }
      double nodes = 0, moved = 0;
      for (uint32_t s = 0; s < 1u << k; s++) moved += fabs(p[0][s] - p[1][s]) / 2;
      for (uint32_t i = 0; i < k; i++) {
        double gap = 0;
        for (uint32_t s = 0; s < 1u << k; s++) gap += s >> i & 1 ? p[0][s] - p[1][s] : 0;
        nodes += fabs(gap);
      }
      const double d = distance(k, p[0], p[1]);
      CHECK(d >= fmax(nodes, moved) - 1e-12);
      CHECK(d <= k * moved + 1e-12);
      CHECK_NEAR(d, distance(k, p[1], p[0]), 1e-12);
      CHECK(d <= distance(k, p[0], p[2]) + distance(k, p[2], p[1]) + 1e-12);
      CHECK(distance(k, p[0], p[0]) == 0);
    }
  const double ends[] = {0.5, 0, 0, 0.5}, middle[] = {0, 0.5, 0.5, 0}, one[] = {1, 0, 0, 0};
  CHECK_NEAR(distance(2, ends, middle), 1, 1e-15);
  CHECK_NEAR(distance(2, one, ends), 1, 1e-15);
  double untouched = -1;
  CHECK_EQ(sona_iit3_distance(SONA_IIT3_NODES + 1, ends, middle, &untouched), SONA_EINVAL);
  CHECK(untouched == -1);
}

int main(void) {
  test_known_values();
  test_what_is_not_connected_has_none();
  test_refusals_change_nothing();
  test_the_caller_may_stop_it_before_any_cut();
  test_sizes();
  test_distances_are_metric();
  return check_done("iit3");
}
