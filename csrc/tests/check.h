/* What every C test is written with.  A failed check prints file, line and both values and the test goes on; main ends with
 *   return check_done("ring");
 * Checks may run on several threads. */
#ifndef SONA_CHECK_H
#define SONA_CHECK_H

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define CHECK_SHOWN 20 /* failures printed in full; the rest are only counted */

static atomic_int check_failures;

/* Counts a failure; true when it should still be printed. */
static inline int check_failed(void) { return atomic_fetch_add_explicit(&check_failures, 1, memory_order_relaxed) < CHECK_SHOWN; }

#define CHECK(condition)                                                                                          \
  do {                                                                                                            \
    if (!(condition) && check_failed()) fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
  } while (0)

/* Integers of any type and size. */
#define CHECK_EQ(got, want)                                                                                           \
  do {                                                                                                                \
    long long check_got = (long long)(got), check_want = (long long)(want);                                           \
    if (check_got != check_want && check_failed())                                                                    \
      fprintf(stderr, "%s:%d: %s is %lld, want %s = %lld\n", __FILE__, __LINE__, #got, check_got, #want, check_want); \
  } while (0)

#define CHECK_STR(got, want)                                                                                  \
  do {                                                                                                        \
    const char *check_got = (got), *check_want = (want);                                                      \
    if (strcmp(check_got, check_want) != 0 && check_failed())                                                 \
      fprintf(stderr, "%s:%d: %s is \"%s\", want \"%s\"\n", __FILE__, __LINE__, #got, check_got, check_want); \
  } while (0)

/* |got - want| <= bound; two NaNs and two equal infinities are near. */
static inline int check_near(double got, double want, double bound) {
  if (isnan(got) || isnan(want)) return isnan(got) && isnan(want);
  return got == want || fabs(got - want) <= bound;
}

#define CHECK_NEAR(got, want, bound)                                                                                             \
  do {                                                                                                                           \
    double check_got = (got), check_want = (want), check_bound = (bound);                                                        \
    if (!check_near(check_got, check_want, check_bound) && check_failed())                                                       \
      fprintf(stderr, "%s:%d: %s is %.9g, want %s = %.9g within %.3g\n", __FILE__, __LINE__, #got, check_got, #want, check_want, \
              check_bound);                                                                                                      \
  } while (0)

/* One line for the whole test, and what main returns. */
static inline int check_done(const char *name) {
  int failures = atomic_load_explicit(&check_failures, memory_order_relaxed);
  if (failures) {
    printf("%s: %d failed\n", name, failures);
  } else {
    printf("%s: ok\n", name);
  }
  return failures != 0;
}

#endif
