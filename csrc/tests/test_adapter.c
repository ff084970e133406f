/* The adapter against dense double matrices: what it adds is the sum of the pairs, whatever was folded or truncated in between. */
#include <stdlib.h>

#include "../src/random.h"
#include "check.h"
#include "sona/adapter.h"

enum { DIM = 37, PAIRS = 200 };

static sona_random rng;

static void fill(float *x, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] = (float)sona_random_normal(&rng);
}

static sona_adapter *make(size_t rank, size_t rank_max, size_t micro, size_t window, float scale, const sona_kernels *k) {
  sona_adapter *a = NULL;
  const sona_adapter_options o = {DIM, rank, rank_max, micro, window, 0.05, scale, k};
  CHECK_EQ(sona_adapter_create(&o, &a), SONA_OK);
  return a;
}

/* dense (DIM + 1, DIM) += coef [down, offset]^T up */
static void add_dense(double *dense, double coef, const float *up, const float *down, double offset) {
  for (size_t i = 0; i <= DIM; i++)
    for (size_t j = 0; j < DIM; j++) dense[i * DIM + j] += coef * (i < DIM ? down[i] : offset) * up[j];
}

static void check_forward(sona_reader *reader, const double *dense, double bound) {
  float x[DIM], y[DIM] = {0};
  fill(x, DIM);
  sona_adapter_forward(reader, SONA_BOTH, x, y);
  for (size_t j = 0; j < DIM; j++) {
    double want = dense[DIM * DIM + j];
    for (size_t i = 0; i < DIM; i++) want += x[i] * dense[i * DIM + j];
    CHECK_NEAR(y[j], want, bound);
  }
}

/* Pairs whose up vectors span `span` directions: a base of that rank loses nothing. */
static void test_sum(const sona_kernels *k, size_t span, size_t rank, float scale) {
  float basis[16][DIM], up[DIM], down[DIM];
  double *dense = calloc((DIM + 1) * DIM, sizeof *dense);
  for (size_t s = 0; s < span; s++) fill(basis[s], DIM);
  sona_adapter *a = make(rank, rank, 2, 0, scale, k);
  sona_reader *reader = sona_reader_acquire(a);
  for (int t = 0; t < PAIRS; t++) {
    const float offset = (float)sona_random_normal(&rng), coef = 0.1f * (float)sona_random_normal(&rng);
    fill(down, DIM);
    memset(up, 0, sizeof up);
    for (size_t s = 0; s < span; s++) {
      const float weight = (float)sona_random_normal(&rng);
      for (size_t j = 0; j < DIM; j++) up[j] += weight * basis[s][j];
    }
    CHECK_EQ(sona_adapter_append(a, coef, up, down, offset), SONA_OK);
    add_dense(dense, coef, up, down, offset);
    const sona_adapter_info info = sona_adapter_describe(a);
    CHECK(info.total - info.base <= 2);
    if (t % 17 == 0) sona_adapter_fold(a);
    if (t % 23 == 0) check_forward(reader, dense, 2e-3);
  }
  check_forward(reader, dense, 2e-3);
  CHECK(sona_adapter_describe(a).discarded_sum < 1e-9);
  CHECK(sona_adapter_describe(a).truncations > 5);
  free(dense);
  sona_reader_release(reader);
  sona_adapter_destroy(a);
}

static void test_tiers(void) {
  sona_adapter *a = make(4, 4, 2, 0, 1, NULL);
  sona_reader *r = sona_reader_acquire(a);
  float up[DIM], down[DIM], x[DIM], both[DIM] = {0}, parts[DIM] = {0};
  fill(x, DIM);
  for (int t = 0; t < 7; t++) {
    fill(up, DIM);
    fill(down, DIM);
    CHECK_EQ(sona_adapter_append(a, 1, up, down, 0.5f), SONA_OK);
  }
  CHECK_EQ(sona_adapter_describe(a).base, 6);
  CHECK_EQ(sona_reader_view(r, SONA_MICRO).rank, 1);
  CHECK_EQ(sona_reader_view(r, SONA_BASE).rank, 6);
  sona_adapter_forward(r, SONA_BOTH, x, both);
  sona_adapter_forward(r, SONA_BASE, x, parts);
  sona_adapter_forward(r, SONA_MICRO, x, parts);
  for (size_t j = 0; j < DIM; j++) CHECK_NEAR(both[j], parts[j], 1e-3);
  sona_adapter_fold(a);
  CHECK_EQ(sona_reader_view(r, SONA_MICRO).rank, 0);
  sona_reader_release(r);
  sona_adapter_destroy(a);
}

/* More directions than the rank: the rank grows to hold 95 % of the energy, and past rank_max the loss is reported. */
static void test_growth(void) {
  sona_adapter *grows = make(2, 30, 2, 0, 1, NULL), *capped = make(2, 3, 2, 0, 1, NULL);
  float up[DIM], down[DIM];
  for (int t = 0; t < PAIRS; t++) {
    fill(up, DIM);
    fill(down, DIM);
    CHECK_EQ(sona_adapter_append(grows, 1, up, down, 0), SONA_OK);
    CHECK_EQ(sona_adapter_append(capped, 1, up, down, 0), SONA_OK);
  }
  CHECK(sona_adapter_describe(grows).rank > 2);
  CHECK_EQ(sona_adapter_describe(capped).rank, 3);
  CHECK(sona_adapter_describe(capped).over_budget > 0);
  CHECK(sona_adapter_describe(capped).discarded > 0.05);
  sona_adapter_destroy(grows);
  sona_adapter_destroy(capped);
}

/* Repeated inputs, zero vectors and cancelling pairs leave the Gram matrices singular. */
static void test_degenerate(void) {
  sona_adapter *a = make(3, 3, 1, 4, 1, NULL);
  float up[DIM], down[DIM], zero[DIM] = {0}, x[DIM], y[DIM] = {0};
  fill(up, DIM);
  fill(down, DIM);
  fill(x, DIM);
  for (int t = 0; t < 50; t++) {
    CHECK_EQ(sona_adapter_append(a, 1, up, down, 0), SONA_OK);
    CHECK_EQ(sona_adapter_append(a, -1, up, down, 0), SONA_OK);
    CHECK_EQ(sona_adapter_append(a, 1, zero, down, 0), SONA_OK);
    CHECK_EQ(sona_adapter_append(a, 1, up, zero, 0), SONA_OK);
  }
  CHECK_EQ(sona_adapter_truncate(a), SONA_OK);
  sona_reader *r = sona_reader_acquire(a);
  sona_adapter_forward(r, SONA_BOTH, x, y);
  for (size_t j = 0; j < DIM; j++) CHECK_NEAR(y[j], 0, 1e-3);
  sona_reader_release(r);
  sona_adapter_destroy(a);
}

static void test_bad_input(void) {
  sona_adapter *a = NULL;
  const sona_adapter_options good = {DIM, 2, 4, 2, 0, 0.05, 1, NULL};
  sona_adapter_options bad[] = {good, good, good, good, good, good, good};
  bad[0].dim = 0;
  bad[1].rank = 0;
  bad[2].rank_max = 1;
  bad[3].micro = 0;
  bad[4].max_discard = 1;
  bad[5].scale = 0;
  bad[6].max_discard = NAN;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_EQ(sona_adapter_create(&bad[i], &a), SONA_EINVAL);
  CHECK(a == NULL);
  a = make(2, 4, 2, 0, 1, NULL);
  float up[DIM] = {1}, down[DIM] = {1};
  CHECK_EQ(sona_adapter_append(a, NAN, up, down, 0), SONA_ENONFINITE);
  CHECK_EQ(sona_adapter_append(a, 1, up, down, INFINITY), SONA_ENONFINITE);
  CHECK_EQ(sona_adapter_describe(a).total, 0);
  CHECK_EQ(sona_adapter_assign(a, up, up, DIM, NULL, 2, 1), SONA_EINVAL);
  sona_reader *readers[SONA_MAX_READERS];
  for (int i = 0; i < SONA_MAX_READERS; i++) CHECK((readers[i] = sona_reader_acquire(a)) != NULL);
  CHECK(sona_reader_acquire(a) == NULL);
  for (int i = 0; i < SONA_MAX_READERS; i++) sona_reader_release(readers[i]);
  sona_adapter_destroy(a);
  sona_adapter_destroy(NULL);
  sona_reader_release(NULL);
}

static void test_no_allocation(void) {
  sona_adapter *a = make(4, 4, 2, 0, 1, NULL);
  sona_reader *r = sona_reader_acquire(a);
  float up[DIM], down[DIM], x[DIM], y[DIM] = {0};
  fill(x, DIM);
  uint64_t before = 0;
  for (int t = 0; t < PAIRS; t++) {
    fill(up, DIM);
    fill(down, DIM);
    CHECK_EQ(sona_adapter_append(a, 0.1f, up, down, 0), SONA_OK);
    sona_adapter_forward(r, SONA_BOTH, x, y);
    if (t == PAIRS / 4) before = sona_allocations();
  }
  CHECK_EQ(sona_allocations(), before);
  sona_reader_release(r);
  sona_adapter_destroy(a);
}

int main(void) {
  sona_random_seed(&rng, 7);
  for (size_t i = 0; i < sona_kernels_count(); i++) {
    test_sum(sona_kernels_at(i), 3, 3, 1);
    test_sum(sona_kernels_at(i), 16, 16, 0.5f);
  }
  test_tiers();
  test_growth();
  test_degenerate();
  test_bad_input();
  test_no_allocation();
  return check_done("adapter");
}
