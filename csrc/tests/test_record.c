/* Trajectories and rewards as bytes, equal to those of the Python module. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "sona/record.h"

/* sona.trajectory._record.encode of the trajectory below, with the checksum 0. */
static const unsigned char golden[] = {
    0x53, 0x54, 0x52, 0x4a, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x88, 0x77, 0x66, 0x55, /*   0 */
    0x44, 0x33, 0x22, 0x11, 0xdc, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf8, 0x7f, /*  20 */
    0x03, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x3f, 0x00, 0x00, 0xa0, 0xbf, 0x00, 0x00, 0x40, 0x40, /*  40 */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x4a, 0x93, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xe0, 0x3f, 0x00, 0x00, 0x00, 0x00, /*  60 */
    0x00, 0x00, 0xf8, 0x7f, 0x07, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, /*  80 */
    0x00, 0x00, 0x80, 0x3f, 0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x40, 0x40, 0x00, 0x00, 0x80, 0x3e, 0x00, 0x00, 0x40, 0x3f, /* 100 */
    0x00, 0x00, 0x80, 0xbf, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x00, 0x40, 0xc0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x4d, 0x93, 0x40, /* 120 */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf8, 0x7f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc0, 0xbf, 0x00, 0x00, 0x00, 0x00, /* 140 */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x80, 0x40, 0x00, 0x00, 0xa0, 0x40, /* 160 */
    0x00, 0x00, 0xc0, 0x40};

static const float query[] = {0.5f, -1.25f, 3}, one[] = {1, 2, 3}, weights[] = {0.25f, 0.75f}, x[] = {-1, -2, -3}, two[] = {4, 5, 6};

static void fill_steps(sona_record_step steps[2]) {
  steps[0] = (sona_record_step){1234.5, 0.5, NAN, 7, one, weights, 2, x};
  steps[1] = (sona_record_step){1235.25, -(double)NAN, -0.125, 0, two, NULL, 0, NULL};
}

static void a_trajectory_has_the_bytes_of_the_python_module(void) {
  sona_record_step steps[2];
  fill_steps(steps);
  CHECK_EQ(sona_record_size(3, steps, 2), sizeof golden);
  for (size_t offset = 0; offset < 9; offset++) { /* at any address */
    unsigned char bytes[sizeof golden + 16];
    memset(bytes, 0xaa, sizeof bytes);
    const uint64_t id = 0x1122334455667788u;
    CHECK_EQ(sona_record_write(bytes + offset, sizeof golden, id, 1500, NAN, query, 3, steps, 2), SONA_OK);
    for (size_t i = 0; i < sizeof bytes; i++) {
      const int inside = i >= offset && i < offset + sizeof golden;
      CHECK_EQ(bytes[i], inside ? golden[i - offset] : 0xaa);
    }
  }
}

static void what_does_not_fit_is_refused(void) {
  sona_record_step steps[2];
  fill_steps(steps);
  unsigned char bytes[sizeof golden], before[sizeof golden];
  memset(bytes, 0xaa, sizeof bytes);
  memcpy(before, bytes, sizeof bytes);
  for (size_t room = 0; room < sizeof golden; room++) CHECK_EQ(sona_record_write(bytes, room, 0, 0, NAN, query, 3, steps, 2), SONA_EFULL);
  CHECK_EQ(sona_record_write(bytes, sizeof bytes, 0, 0, NAN, NULL, 3, steps, 2), SONA_EINVAL);
  CHECK_EQ(sona_record_write(bytes, sizeof bytes, 0, 0, NAN, query, 0, steps, 2), SONA_EINVAL);
  steps[1].activations = NULL;
  CHECK_EQ(sona_record_size(3, steps, 2), 0);
  CHECK_EQ(sona_record_write(bytes, sizeof bytes, 0, 0, NAN, query, 3, steps, 2), SONA_EINVAL);
  CHECK(memcmp(bytes, before, sizeof bytes) == 0);
}

static void sizes_are_those_of_the_format(void) {
  sona_record_step steps[3];
  for (size_t dim = 1; dim < 40; dim += 13) {
    for (unsigned which = 0; which < 64; which++) {
      size_t want = 48 + 4 * dim;
      for (int i = 0; i < 3; i++) {
        const int has_x = which >> i & 1, has_attention = which >> (3 + i) & 1;
        steps[i] = (sona_record_step){.activations = one, .x = has_x ? x : NULL};
        steps[i].attention = weights;
        steps[i].attention_size = has_attention ? 5 : 0;
        CHECK_EQ(sona_record_size(dim, steps, (size_t)i), want);
        want += 40 + 4 * dim + (has_x ? 4 * dim : 0) + (has_attention ? 20 : 0);
      }
      CHECK_EQ(sona_record_size(dim, steps, 3), want);
    }
  }
  CHECK_EQ(sona_record_size(7, NULL, 0), 48 + 28);
}

static void sizes_do_not_wrap(void) {
  sona_record_step step = {.activations = one, .x = x}, full = {.activations = one, .attention = weights};
  const size_t most = (UINT32_MAX - 48 - 40) / 12; /* dim of a trajectory of one step with x */
  CHECK_EQ(sona_record_size(most, &step, 1), 48 + 40 + 12 * most);
  CHECK_EQ(sona_record_size(most + 1, &step, 1), 0);
  CHECK_EQ(sona_record_size(SIZE_MAX, &step, 1), 0);
  CHECK_EQ(sona_record_size(SIZE_MAX / 4 + 1, NULL, 0), 0);
  CHECK_EQ(sona_record_size(UINT32_MAX / 4, NULL, 0), 0);
  CHECK_EQ(sona_record_size(UINT32_MAX / 4 - 12, NULL, 0), UINT32_MAX - 3);
  CHECK_EQ(sona_record_size(1, &step, SIZE_MAX), 0);
  CHECK_EQ(sona_record_size(1, &step, UINT32_MAX / 40 + 1), 0);
  const size_t sizes[] = {SIZE_MAX, SIZE_MAX / 4 + 1, UINT32_MAX, UINT32_MAX / 4};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    full.attention_size = sizes[i];
    CHECK_EQ(sona_record_size(1, &full, 1), 0);
  }
  full.attention_size = 1;
  full.attention = NULL;
  CHECK_EQ(sona_record_size(1, &full, 1), 0);
}

static void a_reward_has_its_bytes(void) {
  static const unsigned char want[SONA_FEEDBACK_SIZE] = {'S',  'F',  'B',  'K',  24, 0, 0, 0, 0x88, 0x77, 0x66, 0x55,
                                                         0x44, 0x33, 0x22, 0x11, 0,  0, 0, 0, 0,    0,    0xe0, 0x3f};
  unsigned char bytes[SONA_FEEDBACK_SIZE + 2] = {0};
  sona_feedback_write(bytes + 1, 0x1122334455667788u, 0.5);
  CHECK(memcmp(bytes + 1, want, sizeof want) == 0);
  CHECK_EQ(bytes[0] | bytes[SONA_FEEDBACK_SIZE + 1], 0);
}

int main(void) {
  a_trajectory_has_the_bytes_of_the_python_module();
  what_does_not_fit_is_refused();
  sizes_are_those_of_the_format();
  sizes_do_not_wrap();
  a_reward_has_its_bytes();
  return check_done("record");
}
