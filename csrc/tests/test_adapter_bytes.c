/* Adapters as bytes: those of the Python module, back and forth, and bytes that come from anywhere. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "../src/random.h"
#include "check.h"
#include "sona/adapter.h"

/* sona.adapters.factors.Factors.to_bytes of two rows of three. */
static const unsigned char golden[] = {
    0x73, 0x6f, 0x6e, 0x61, 0x66, 0x61, 0x63, 0x31, 0x02, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x80, 0x3f, /*  0 */
    0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x40, 0x40, 0x00, 0x00, 0x80, 0x40, 0x00, 0x00, 0xa0, 0x40, 0x00, 0x00, 0xc0, 0x40, /* 20 */
    0x00, 0x00, 0x00, 0x3f, 0x00, 0x00, 0x80, 0x3e, 0x00, 0x00, 0x80, 0xbf, 0x00, 0x00, 0xe0, 0x40, 0x00, 0x00, 0x00, 0x41, /* 40 */
    0x00, 0x00, 0x10, 0x41, 0x00, 0x00, 0x00, 0x3e, 0x00, 0x00, 0x00, 0xbf};
static const float down[] = {1, 2, 3, 4, 5, 6}, up[] = {0.5f, 0.25f, -1, 7, 8, 9}, offset[] = {0.125f, -0.5f};

static sona_adapter *adapter_of(size_t dim, float scale) {
  const sona_adapter_options options = {.dim = dim, .rank = 2, .rank_max = 4, .micro = 2, .max_discard = 0.05, .scale = scale};
  sona_adapter *adapter = NULL;
  CHECK_EQ(sona_adapter_create(&options, &adapter), SONA_OK);
  return adapter;
}

static void rows_have_the_bytes_of_the_python_module(void) {
  for (int i = 0; i < 2; i++) {
    const float scale = i ? 4 : 1;
    float scaled[6];
    for (int k = 0; k < 6; k++) scaled[k] = up[k] / scale;
    sona_adapter *adapter = adapter_of(3, scale);
    CHECK_EQ(sona_adapter_assign(adapter, down, scaled, 3, offset, 2, 2), SONA_OK);
    CHECK_EQ(sona_adapter_encoded_size(adapter), sizeof golden);
    unsigned char bytes[sizeof golden + 8] = {0};
    size_t size = 0;
    for (size_t room = 0; room < sizeof golden; room++) CHECK_EQ(sona_adapter_encode(adapter, bytes, room, &size), SONA_EFULL);
    CHECK_EQ(size, 0);
    CHECK_EQ(sona_adapter_encode(adapter, bytes + 3, sizeof golden, &size), SONA_OK);
    CHECK_EQ(size, sizeof golden);
    CHECK(memcmp(bytes + 3, golden, sizeof golden) == 0);
    CHECK_EQ(bytes[2] | bytes[3 + sizeof golden], 0);
    sona_adapter_destroy(adapter);
  }
}

static void what_is_decoded_computes_the_same(void) {
  sona_random rng;
  sona_random_seed(&rng, 5);
  for (size_t dim = 1; dim < 70; dim += 17) {
    sona_adapter *from = adapter_of(dim, 0.5f), *to = adapter_of(dim, 0.5f);
    float vectors[4][70];
    for (int pair = 0; pair < 30; pair++) { /* through truncations; before the first there are no rows */
      const size_t room = sona_adapter_encoded_size(from);
      unsigned char *bytes = malloc(room + 1);
      size_t size = 0;
      const uint64_t generation = sona_adapter_describe(to).generation;
      CHECK_EQ(sona_adapter_encode(from, bytes + 1, room, &size), SONA_OK);
      CHECK_EQ(sona_adapter_decode(to, bytes + 1, size), SONA_OK);
      CHECK_EQ(sona_adapter_describe(to).generation, generation + 1); /* one publication */
      CHECK_EQ(sona_adapter_describe(to).base, sona_adapter_describe(from).total);
      CHECK_EQ(sona_adapter_describe(to).total, sona_adapter_describe(from).total);
      const sona_lora a = sona_adapter_view(from), b = sona_adapter_view(to);
      for (size_t r = 0; r < a.rank; r++) { /* a scale of a power of two is exact */
        CHECK(memcmp(a.down + r * a.ld, b.down + r * b.ld, dim * sizeof(float)) == 0);
        CHECK(memcmp(a.up + r * a.ld, b.up + r * b.ld, dim * sizeof(float)) == 0);
        CHECK(a.offset[r] == b.offset[r]);
      }
      free(bytes);
      for (size_t i = 0; i < dim; i++)
        for (int v = 0; v < 2; v++) vectors[v][i] = (float)sona_random_normal(&rng);
      CHECK_EQ(sona_adapter_append(from, 0.3f, vectors[0], vectors[1], (float)sona_random_normal(&rng)), SONA_OK);
    }
    sona_adapter_destroy(from);
    sona_adapter_destroy(to);
  }
}

/* Whatever the bytes say: a status, and on failure the rows that were there. */
static void expect(const unsigned char *bytes, size_t size, sona_status want) {
  sona_adapter *adapter = adapter_of(3, 2);
  CHECK_EQ(sona_adapter_assign(adapter, up, down, 3, offset, 1, 2), SONA_OK);
  unsigned char before[200], after[200];
  size_t length = 0, again = 0;
  CHECK_EQ(sona_adapter_encode(adapter, before, sizeof before, &length), SONA_OK);
  sona_reader *reader = sona_reader_acquire(adapter);
  const float *held = sona_reader_view(reader, SONA_BOTH).down;
  unsigned char *exact = malloc(size + 1); /* whatever is read behind the end is found */
  memcpy(exact, bytes, size);
  exact = realloc(exact, size ? size : 1);
  const sona_status got = sona_adapter_decode(adapter, exact, size);
  CHECK_EQ(got, want);
  if (got != SONA_OK) {
    CHECK_EQ(sona_adapter_encode(adapter, after, sizeof after, &again), SONA_OK);
    CHECK(again == length && memcmp(before, after, length) == 0);
    CHECK(sona_reader_view(reader, SONA_BOTH).down == held);
    CHECK_EQ(sona_adapter_describe(adapter).base, 1);
  }
  free(exact);
  sona_reader_release(reader);
  sona_adapter_destroy(adapter);
}

static void put_float(unsigned char *to, float value) { memcpy(to, &value, sizeof value); }

static void bytes_from_anywhere_do_no_harm(void) {
  unsigned char bytes[sizeof golden + 4] = {0};
  expect(golden, sizeof golden, SONA_OK);
  for (size_t size = 0; size < sizeof golden; size++) expect(golden, size, SONA_ECORRUPT);
  memcpy(bytes, golden, sizeof golden);
  expect(bytes, sizeof golden + 1, SONA_ECORRUPT);
  expect(bytes, sizeof golden + 4, SONA_ECORRUPT);
  for (size_t at = 0; at < 16; at++) {
    for (int bit = 0; bit < 8; bit++) {
      memcpy(bytes, golden, sizeof golden);
      bytes[at] ^= (unsigned char)(1 << bit);
      expect(bytes, sizeof golden, SONA_ECORRUPT);
    }
  }
  memset(bytes + 8, 0xff, 8); /* rank and dim whose product overflows */
  expect(bytes, sizeof golden, SONA_ECORRUPT);
  memcpy(bytes, golden, 8);
  memset(bytes + 8, 0, 8);
  bytes[8] = 2, bytes[12] = 2; /* two rows of two, whole */
  expect(bytes, 16 + 4 * 2 * 5, SONA_EVERSION);
  bytes[8] = 0, bytes[12] = 3; /* none */
  expect(bytes, 16, SONA_OK);
  expect(bytes, 20, SONA_ECORRUPT);
}

static void numbers_that_are_not_finite_are_refused(void) {
  static const float bad[] = {NAN, INFINITY, -INFINITY, 1e30f};
  unsigned char bytes[sizeof golden];
  for (size_t at = 16; at < sizeof golden; at += 4) {
    for (size_t i = 0; i < 4; i++) {
      memcpy(bytes, golden, sizeof golden);
      put_float(bytes + at, bad[i]);
      const int is_offset = at >= sizeof golden - 8;
      expect(bytes, sizeof golden, i == 3 && is_offset ? SONA_OK : SONA_ENONFINITE); /* the square of 1e30 leaves float32 */
    }
  }
  /* A scale that takes rows out of float32, on the way out and on the way in. */
  sona_adapter *large = adapter_of(3, 1e30f), *small = adapter_of(3, 1e-30f);
  const float rows[] = {1e10f, 0, 0};
  size_t size = 0;
  CHECK_EQ(sona_adapter_assign(large, rows, rows, 3, NULL, 1, 1), SONA_OK);
  CHECK_EQ(sona_adapter_encode(large, bytes, sizeof bytes, &size), SONA_ENONFINITE);
  CHECK_EQ(size, 0);
  CHECK_EQ(sona_adapter_decode(small, golden, sizeof golden), SONA_ENONFINITE);
  CHECK_EQ(sona_adapter_describe(small).total, 0);
  sona_adapter_destroy(large);
  sona_adapter_destroy(small);
}

int main(void) {
  rows_have_the_bytes_of_the_python_module();
  what_is_decoded_computes_the_same();
  bytes_from_anywhere_do_no_harm();
  numbers_that_are_not_finite_are_refused();
  return check_done("adapter_bytes");
}
