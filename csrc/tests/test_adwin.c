/* Adwin: sums that are those of its values, silence while nothing changes, a fall found soon, and no write beside its arrays. */
#include <stdint.h>

#include "check.h"
#include "sona/adwin.h"

enum { N = 20000 };

static double uniform(uint64_t *seed) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (double)(*seed >> 11) / 9007199254740992.0;
}

static void test_the_window_has_the_sums_of_its_values(void) {
  static double value[N];
  sona_adwin a;
  uint64_t seed = 1;
  sona_adwin_init(&a, 0.5);
  for (int i = 0; i < N; i++) {
    value[i] = (uniform(&seed) < (i / 700 % 2 ? 0.9 : 0.2)) - 0.5; /* changes all the time */
    sona_adwin_add(&a, (uint64_t)i, value[i]);
    if (a.waiting) continue;
    const int first = (int)sona_adwin_first(&a);
    CHECK_EQ(a.width, (uint64_t)(i + 1 - first));
    CHECK(a.width <= SONA_ADWIN_MEMORY);
    double sum = 0, squares = 0;
    for (int j = first; j <= i; j++) sum += value[j];
    for (int j = first; j <= i; j++) squares += pow(value[j] - sum / (double)a.width, 2);
    CHECK(fabs(a.total - sum) < 1e-9);
    CHECK(fabs(a.squares - squares) < 1e-9);
  }
}

static void test_a_fall_is_found_and_nothing_else(void) {
  for (uint64_t seed = 1; seed <= 20; seed++) {
    sona_adwin a;
    uint64_t draws = seed;
    sona_adwin_init(&a, 1e-3);
    for (int i = 0; i < 10000; i++) CHECK_EQ(sona_adwin_add(&a, (uint64_t)i, (uniform(&draws) < 0.9) - 0.9), 0);
    int found = 0, after = 0;
    while (!found && after < 64) found = sona_adwin_add(&a, (uint64_t)(10000 + after++), (uniform(&draws) < 0.2) - 0.9);
    CHECK_EQ(found, -1);
    CHECK(a.changed >= 10000 - 2 * SONA_ADWIN_BUCKET);
    CHECK(a.level < -0.3);
    CHECK(a.changed <= 10000 + 2 * SONA_ADWIN_BUCKET);
  }
}

static void test_a_rise_is_told_from_a_fall(void) {
  sona_adwin a;
  int found = 0;
  sona_adwin_init(&a, 1e-3);
  for (int i = 0; i < 200 && !found; i++) found = sona_adwin_add(&a, (uint64_t)i, i < 100 ? -0.8 : 0.1);
  CHECK_EQ(found, 1);
}

int main(void) {
  test_the_window_has_the_sums_of_its_values();
  test_a_fall_is_found_and_nothing_else();
  test_a_rise_is_told_from_a_fall();
  return check_done("adwin");
}
