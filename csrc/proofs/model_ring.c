/* The ring between a producer, a consumer and a third thread that looks at its counters: the code of ring.c and ring_inline.h. */
#include <string.h>

#include "model.h"
#include "sona/ring.h"

const char *const model_name = "ring";
const char *const model_unneeded[] = {NULL};
const int model_weakens = 1;

enum { RECORDS = 5 };

/* Rings that are soon full, of records of two sizes, of one that divides the capacity and of one that does not; then two with room. */
static const struct {
  size_t capacity, record;
} shapes[] = {{32, 0}, {32, 8}, {32, 16}, {64, 24}, {64, 0}, {64, 8}};

static sona_ring *ring;
static size_t fixed;                              /* bytes of all records, or 0 */
static size_t taken[RECORDS], given[RECORDS + 1]; /* numbers of the records that went in and came out, each written by its side */
static size_t took, gave;

/* Record number n is n words of n, or `fixed` bytes. */
static size_t words_of(size_t n) { return fixed ? fixed / 8 : n % 2; }

void model_before(void) {
  const unsigned shape = model_choose(6);
  const size_t wraps = (size_t)0 - 16; /* two small records before the indices wrap */
  const sona_ring_options options = {
      .capacity = shapes[shape].capacity, .first = model_choose(2) ? wraps : 0, .max_records = model_choose(4) ? 0 : 2};
  fixed = shapes[shape].record;
  took = gave = 0;
  MODEL_CHECK((fixed ? sona_ring_create_fixed(&options, fixed, &ring) : sona_ring_create(&options, &ring)) == SONA_OK);
}

static void produce(void) {
  for (size_t n = 0; n < RECORDS; n++) {
    size_t size = 8 * words_of(n), record[3];
    void *room;
    sona_status status;
    if (model_choose(2)) {
      for (size_t i = 0; i < size / 8; i++) record[i] = n;
      status = sona_ring_push(ring, record, size);
    } else {
      status = sona_ring_reserve(ring, size, &room);
      if (status == SONA_OK) {
        for (size_t i = 0; i < size / 8; i++) ((size_t *)room)[i] = n;
        MODEL_CHECK(sona_ring_commit(ring, size) == SONA_OK);
      }
    }
    if (status == SONA_OK) taken[took++] = n;
    MODEL_CHECK(status == SONA_OK || status == SONA_EFULL);
  }
}

static int consume(void) {
  size_t size;
  const size_t *record = sona_ring_peek(ring, &size);
  if (!record) return 0;
  const size_t n = size ? record[0] : 0;
  for (size_t i = 0; i < size / 8; i++) MODEL_CHECK(record[i] == n);
  MODEL_CHECK(n < RECORDS && size == 8 * words_of(n));
  MODEL_CHECK(gave < RECORDS);
  given[gave++] = size;
  sona_ring_release(ring);
  return 1;
}

void model_thread(unsigned thread) {
  if (thread == 0) {
    produce();
  } else if (thread == 1) {
    for (int i = 0; i < RECORDS + 1; i++)
      if (!consume()) model_yield();
  } else {
    const size_t used = sona_ring_used(ring), records = sona_ring_records(ring);
    MODEL_CHECK(used <= sona_ring_capacity(ring));
    MODEL_CHECK(records <= RECORDS);
    MODEL_CHECK(sona_ring_dropped(ring) <= RECORDS);
  }
}

/* What went in came out, in order; what did not is counted. */
void model_after(void) {
  while (consume()) continue;
  MODEL_CHECK(gave == took);
  for (size_t i = 0; i < took; i++) MODEL_CHECK(given[i] == 8 * words_of(taken[i]));
  MODEL_CHECK(sona_ring_dropped(ring) == RECORDS - took);
  MODEL_CHECK(sona_ring_used(ring) == 0 && sona_ring_records(ring) == 0);
  sona_ring_destroy(ring);
}
