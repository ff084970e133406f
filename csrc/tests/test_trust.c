/* Trust: its step is the gradient of the averaged likelihood, its variance shrinks by the curvature, and nothing leaves the bounds. */
#include <stdint.h>

#include "check.h"
#include "sona/trust.h"

static double uniform(uint64_t *seed, double low, double high) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return low + (high - low) * (double)(*seed >> 11) / 9007199254740992.0;
}

/* Log-likelihood of the reward where the margin moves by `more`, at the shrinkage k. */
static double likelihood(double margin, double k, double c, double r, double more) {
  const double s = c / (1 + exp(-k * (margin + more)));
  return r * log(s) + (1 - r) * log(1 - s);
}

static void test_a_step_is_the_gradient_and_the_variance_falls_by_the_curvature(void) {
  uint64_t seed = 1;
  for (int i = 0; i < 2000; i++) {
    const double margin = uniform(&seed, -4, 4), frozen = uniform(&seed, -3, 3), c = uniform(&seed, 0.02, 0.95);
    const double r = i % 2, weight = uniform(&seed, 0.1, 1);
    sona_trust t;
    sona_trust_init(&t);
    t.value = 0.5;
    const double v = t.variance, spread = c * v * frozen * frozen, k = 1 / sqrt(1 + acos(-1) * spread / 8), h = 1e-4;
    const double up = likelihood(margin, k, c, r, h), at = likelihood(margin, k, c, r, 0), down = likelihood(margin, k, c, r, -h);
    sona_trust_update(&t, margin, frozen, c, r, weight);
    CHECK_NEAR(t.value, fmin(fmax(0.5 + weight * c * v * frozen * (up - down) / (2 * h), 0.05), 1), 1e-6);
    const double curvature = fmax(-(up - 2 * at + down) / (h * h), 0) * weight;
    CHECK_NEAR(t.variance, v - curvature * v * v * frozen * frozen / (1 + curvature * spread), 1e-5);
  }
}

static void test_nothing_leaves_the_bounds(void) {
  uint64_t seed = 2;
  sona_trust t;
  sona_trust_init(&t);
  for (int i = 0; i < 100000; i++) {
    const double scale = pow(10, uniform(&seed, -3, 4));
    sona_trust_update(&t, uniform(&seed, -scale, scale), uniform(&seed, -scale, scale), uniform(&seed, 0, 1), uniform(&seed, 0, 1),
                      uniform(&seed, 0.01, 1));
    CHECK(t.value >= 0.05 && t.value <= 1);
    CHECK(t.variance >= 0.003 && t.variance <= 0.5);
  }
  sona_trust_update(&t, 0, 0, 1, 1, 1); /* one arm alone: no margin, nothing to learn */
  const sona_trust before = t;
  sona_trust_update(&t, 0, 0, 1, 0, 1);
  CHECK_NEAR(t.value, before.value, 0);
  CHECK_NEAR(t.variance, before.variance, 0);
}

static void test_certain_failures_take_trust_and_successes_give_it_back(void) {
  sona_trust t;
  sona_trust_init(&t);
  for (int i = 0; i < 4; i++) sona_trust_update(&t, 8 * t.value, 8, 1, 0, 1);
  CHECK(t.value < 0.3);
  const double low = t.value;
  for (int i = 0; i < 400; i++) sona_trust_update(&t, 8 * t.value, 8, 1, 1, 1);
  CHECK(t.value > low + 0.2);
}

static void test_a_step_is_taken_back(void) {
  sona_trust t;
  sona_trust_init(&t);
  sona_trust_update(&t, 2, 3, 1, 0, 1);
  const sona_trust before = t;
  sona_trust_update(&t, 1, 2, 1, 0, 1);
  CHECK(t.value < before.value && t.variance < before.variance);
  sona_trust_take_back(&t, t.value - before.value, t.variance - before.variance);
  CHECK_NEAR(t.value, before.value, 1e-15);
  CHECK_NEAR(t.variance, before.variance, 1e-15);
}

static void test_choices_that_were_never_rewarded_raise_doubt_ever_more_rarely(void) {
  sona_trust t;
  sona_trust_init(&t);
  int count = 0;
  for (int choice = 1; choice <= 64 + 128 + 256; choice++) {
    const int doubt = sona_trust_barren(&t, 0);
    CHECK_EQ(doubt != 0, choice == 64 || choice == 64 + 128 || choice == 64 + 128 + 256);
    if (doubt) CHECK_NEAR(t.variance, 0.5, 0);
    count += doubt != 0;
  }
  CHECK_EQ(count, 3);
  CHECK_EQ(sona_trust_barren(&t, 0.01), 0);
  for (int choice = 0; choice < 10000; choice++) CHECK_EQ(sona_trust_barren(&t, 0), 0);
}

int main(void) {
  test_a_step_is_the_gradient_and_the_variance_falls_by_the_curvature();
  test_nothing_leaves_the_bounds();
  test_certain_failures_take_trust_and_successes_give_it_back();
  test_a_step_is_taken_back();
  test_choices_that_were_never_rewarded_raise_doubt_ever_more_rarely();
  return check_done("trust");
}
