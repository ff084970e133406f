/* The shared ring between two processes, each of which may be killed at any of its steps and started again: the protocol of
 * shared_ring_core.h over a ring of eight units. */
#include <string.h>

#include "../src/shared_ring_core.h"
#include "model.h"

const char *const model_name = "shared ring";
/* It bounds what is in the ring; whatever is read is acquired by the first look. */
const char *const model_unneeded[] = {"acquire load in sona_shared_consumer_begin", NULL};
const int model_weakens = 1;

enum { UNITS = 8, RECORDS = 4, LIVES = 2, STEPS = 40 };

static sona_shared_memory memory;
static sona_shared_producer producer;
static sona_shared_consumer consumer;

/* What each side knows for certain, whatever became of it: kept outside of the processes. */
static uint64_t tried;                      /* records, by number; a record of 1 or 2 words holds its own */
static uint64_t accepted[RECORDS], numbers; /* sequence of each that commit has returned for, 0 else */
static uint64_t last_number;                /* largest sequence given */
static uint64_t released;                   /* largest sequence that release has returned for */
static uint64_t returned;                   /* largest that next has returned */
static uint64_t got[4 * RECORDS];           /* got[sequence]: 1 + the record that came with it */
static uint64_t refused;

static uint64_t words_of(uint64_t record) { return 1 + 2 * (record % 2); } /* of one unit, or of two */

static void check_record(const uint64_t *words, size_t size, uint64_t sequence) {
  const uint64_t record = words[0];
  MODEL_CHECK(record < RECORDS && size == 8 * words_of(record));
  for (uint64_t i = 0; i < words_of(record); i++) MODEL_CHECK(words[i] == record);
  MODEL_CHECK(sequence > released && sequence < 4 * RECORDS);
  MODEL_CHECK(!got[sequence] || got[sequence] == 1 + record);
  got[sequence] = 1 + record;
}

void model_before(void) {
  memory.words = sona_calloc(1, sizeof *memory.words);
  memory.data = sona_calloc(UNITS, SONA_UNIT);
  memory.units = UNITS;
  memory.max_record = UNITS / 2 * SONA_UNIT - SONA_UNIT;
  const uint64_t start = model_choose(2) ? SONA_SEALED_MAX - 3 : 0; /* soon wraps */
  atomic_store_explicit(&memory.words->tail, sona_seal(start), memory_order_relaxed);
  atomic_store_explicit(&memory.words->head, sona_seal(start), memory_order_relaxed);
  atomic_store_explicit(&memory.words->sequence, sona_seal(0), memory_order_relaxed);
  tried = numbers = last_number = released = returned = refused = 0;
  memset(accepted, 0, sizeof accepted);
  memset(got, 0, sizeof got);
}

static void produce(void) {
  MODEL_CHECK(sona_shared_producer_begin(&memory, &producer));
  while (tried < RECORDS) {
    const uint64_t record = tried++;
    void *room = NULL;
    uint64_t sequence = 0;
    if (sona_shared_reserve(&memory, &producer, 8 * words_of(record), &room) != SONA_OK) {
      refused++;
      continue;
    }
    for (uint64_t i = 0; i < words_of(record); i++) ((uint64_t *)room)[i] = record;
    MODEL_CHECK(sona_shared_commit(&memory, &producer, 8 * words_of(record), &sequence) == SONA_OK);
    MODEL_CHECK(sequence > last_number);
    last_number = accepted[record] = sequence;
  }
}

static void consume(void) {
  MODEL_CHECK(sona_shared_consumer_begin(&memory, &consumer));
  for (int looks = 0; looks < RECORDS; looks++) {
    size_t size = 0;
    uint64_t sequence = 0;
    const uint64_t *record = sona_shared_next(&memory, &consumer, &size, &sequence);
    if (record) {
      check_record(record, size, sequence);
      returned = sequence;
    } else {
      model_yield();
    }
    if (model_choose(2)) {
      const uint64_t sure = returned;
      sona_shared_release(&memory, &consumer);
      released = sure;
    }
  }
}

void model_thread(unsigned thread) {
  for (int life = 0; life < LIVES; life++) model_process(thread ? consume : produce, STEPS);
}

/* Every record that was accepted came or is still there, nothing came that was not tried, nothing was damaged. */
void model_after(void) {
  returned = released;
  MODEL_CHECK(sona_shared_consumer_begin(&memory, &consumer));
  size_t size = 0;
  uint64_t sequence = 0;
  const uint64_t *record;
  while ((record = sona_shared_next(&memory, &consumer, &size, &sequence)) != NULL) check_record(record, size, sequence);
  sona_shared_release(&memory, &consumer);
  for (uint64_t i = 0; i < RECORDS; i++) MODEL_CHECK(!accepted[i] || got[accepted[i]] == 1 + i);
  for (uint64_t i = 1, latest = 0; i < 4 * RECORDS; i++) {
    MODEL_CHECK(got[i] == 0 || got[i] > latest);
    latest = got[i] ? got[i] : latest;
  }
  MODEL_CHECK(atomic_load_explicit(&memory.words->damaged, memory_order_relaxed) == 0);
  MODEL_CHECK(atomic_load_explicit(&memory.words->dropped, memory_order_relaxed) <= refused + LIVES);
  MODEL_CHECK(sona_shared_used(&memory) == 0);
  sona_free(memory.words);
  sona_free(memory.data);
}
