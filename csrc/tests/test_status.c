/* Version, status texts and sona_calloc. */
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "sona/sona.h"

static void test_version(void) {
  char compiled[32];
  snprintf(compiled, sizeof compiled, "%d.%d.%d", SONA_VERSION_MAJOR, SONA_VERSION_MINOR, SONA_VERSION_PATCH);
  CHECK_STR(sona_version(), compiled);
}

static void test_a_version_fits_its_own_interface_and_what_came_before(void) {
  CHECK_EQ(sona_version_number(), SONA_VERSION_NUMBER);
  CHECK_EQ(sona_version_fits(SONA_VERSION_NUMBER), 1);
  CHECK_EQ(sona_version_fits(SONA_VERSION_NUMBER + 1), 0); /* compiled with newer headers */
  CHECK_EQ(sona_version_fits(SONA_VERSION_NUMBER + 100), 0);
  CHECK_EQ(sona_version_fits(SONA_VERSION_NUMBER + 10000), 0);
  CHECK_EQ(sona_version_fits(SONA_VERSION_NUMBER - SONA_VERSION_PATCH), 1);
  CHECK_EQ(sona_version_fits(SONA_VERSION_NUMBER - SONA_VERSION_PATCH - 1), SONA_VERSION_MAJOR > 0 && SONA_VERSION_MINOR > 0);
  CHECK_EQ(sona_version_fits(SONA_VERSION_MAJOR * 10000 - 1), 0); /* the last of the major version before */
  CHECK_EQ(sona_version_fits(0), 0);
  CHECK_EQ(sona_version_fits(-1), 0);
  CHECK_EQ(sona_version_fits(INT_MAX), 0);
}

static void test_status_texts(void) {
  static const sona_status all[] = {SONA_OK,  SONA_EINVAL, SONA_ENOMEM,   SONA_EFULL,    SONA_ENONFINITE, SONA_ESTOPPED,
                                    SONA_EIO, SONA_EBUSY,  SONA_ECORRUPT, SONA_EVERSION, SONA_EAGAIN};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    CHECK_EQ(all[i], i);
    for (size_t j = 0; j < i; j++) CHECK(strcmp(sona_status_str(all[i]), sona_status_str(all[j])) != 0);
  }
  CHECK_STR(sona_status_str((sona_status)99), "unknown status");
}

static void test_calloc_aligns_and_clears(void) {
  void *kept[300];
  for (size_t size = 0; size < 300; size++) {
    unsigned char *p = kept[size] = sona_calloc(size, 3);
    CHECK(p != NULL);
    CHECK_EQ((uintptr_t)p % 64, 0);
    for (size_t i = 0; i < 3 * size; i++) {
      CHECK_EQ(p[i], 0);
      p[i] = 0xff; /* what is freed dirty must come back clean */
    }
    if (size % 3 == 0) {
      sona_free(p);
      kept[size] = NULL;
    }
  }
  for (size_t size = 0; size < 300; size++) sona_free(kept[size]);
}

static void test_calloc_refuses_overflow(void) {
  uint64_t before = sona_allocations();
  CHECK(sona_calloc(SIZE_MAX, 1) == NULL);
  CHECK(sona_calloc(1, SIZE_MAX / 2 - 62) == NULL); /* the largest object, before the room to align it */
  CHECK(sona_calloc(SIZE_MAX / 2 + 1, 2) == NULL);
  CHECK(sona_calloc((size_t)1 << (sizeof(size_t) * 4), (size_t)1 << (sizeof(size_t) * 4)) == NULL);
  CHECK_EQ(sona_allocations(), before);
}

static void test_allocations_are_counted(void) {
  uint64_t before = sona_allocations();
  void *p = sona_calloc(4, 4);
  CHECK_EQ(sona_allocations(), before + 1);
  sona_free(p);
  sona_free(NULL);
  CHECK_EQ(sona_allocations(), before + 1);
}

static void test_another_allocator_comes_too_late_after_the_first_allocation(void) {
  static const sona_allocator same_functions = {calloc, free};
  sona_free(sona_calloc(1, 1));
  CHECK_EQ(sona_set_allocator(&same_functions), SONA_EINVAL);
  CHECK_EQ(sona_set_allocator(NULL), SONA_EINVAL);
}

int main(void) {
  test_version();
  test_a_version_fits_its_own_interface_and_what_came_before();
  test_status_texts();
  test_calloc_aligns_and_clears();
  test_calloc_refuses_overflow();
  test_allocations_are_counted();
  test_another_allocator_comes_too_late_after_the_first_allocation();
  return check_done("status");
}
