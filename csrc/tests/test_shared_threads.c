/* The protocols of shared_ring_core.h and weights_core.h over one memory, so that the thread sanitizer sees both sides: two processes map a
 * file at two addresses, and what happens at the one is hidden from whoever watches the other. */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "../src/shared_ring_core.h"
#include "../src/weights_core.h"
#include "check.h"

/* ---- the ring ---- */

enum { UNITS = 64, RECORDS = 200000 };

static sona_shared_words words;
static _Alignas(64) unsigned char data[UNITS * SONA_UNIT];
static const sona_shared_memory memory = {.words = &words, .data = data, .units = UNITS, .max_record = UNITS * SONA_UNIT / 2 - SONA_UNIT};

static size_t size_of(uint64_t sequence) { return (size_t)(sequence * 0x9e3779b97f4a7c15u >> 40) % (memory.max_record + 1); }

static void *produce(void *unused) {
  (void)unused;
  sona_shared_producer p = {0};
  CHECK(sona_shared_producer_begin(&memory, &p));
  for (uint64_t i = 1; i <= RECORDS;) {
    void *record;
    uint64_t sequence = 0;
    const size_t size = size_of(i);
    if (sona_shared_reserve(&memory, &p, size, &record) != SONA_OK) {
      sched_yield();
      continue;
    }
    memset(record, (int)(i & 255), size);
    CHECK_EQ(sona_shared_commit(&memory, &p, size, &sequence), SONA_OK);
    CHECK_EQ(sequence, i++);
  }
  return NULL;
}

static void *consume(void *unused) {
  (void)unused;
  sona_shared_consumer c = {0};
  CHECK(sona_shared_consumer_begin(&memory, &c));
  for (uint64_t want = 1; want <= RECORDS;) {
    size_t size = 0;
    uint64_t sequence = 0;
    const unsigned char *record = sona_shared_next(&memory, &c, &size, &sequence);
    if (!record) {
      sona_shared_release(&memory, &c);
      sched_yield();
      continue;
    }
    CHECK_EQ(sequence, want);
    CHECK_EQ(size, size_of(want));
    int differ = 0;
    for (size_t i = 0; i < size; i++) differ += record[i] != (want & 255);
    CHECK_EQ(differ, 0);
    if (want++ % 3 == 0) sona_shared_release(&memory, &c);
  }
  sona_shared_release(&memory, &c);
  return NULL;
}

/* ---- the slots ---- */

enum { SLOTS = 4, WORDS = 40, EPOCHS = 30000, READERS = 2 };

static struct slot {
  sona_slot head;
  sona_word words[WORDS];
} slots[SLOTS];
static sona_word epoch;
static atomic_long copied, overtaken;

static void *write_slots(void *unused) {
  (void)unused;
  uint64_t content[WORDS];
  for (uint64_t e = 1; e <= EPOCHS; e++) {
    for (size_t i = 0; i < WORDS; i++) content[i] = e * 1000 + i;
    sona_slot_write(&slots[e % SLOTS].head, content, 1 + e % WORDS);
    sona_epoch_write(&epoch, e);
    if (e % 64 == 0) sched_yield();
  }
  return NULL;
}

static void *read_slots(void *unused) {
  (void)unused;
  for (uint64_t e = 0, before = 0; e < EPOCHS; before = e) {
    uint64_t content[WORDS], later = 0;
    size_t count = 0;
    CHECK(sona_epoch_read(&epoch, &e));
    CHECK(e >= before);
    if (!e) continue;
    const sona_copied result = sona_slot_read(&slots[e % SLOTS].head, content, WORDS, &count);
    CHECK(result != SONA_SPOILED);
    if (result == SONA_COPIED) {
      const uint64_t found = content[0] / 1000;
      CHECK(found >= e && found % SLOTS == e % SLOTS);
      CHECK_EQ(count, 1 + found % WORDS);
      int differ = 0;
      for (size_t i = 0; i < count; i++) differ += content[i] != found * 1000 + i;
      CHECK_EQ(differ, 0);
      atomic_fetch_add(&copied, 1);
    } else {
      CHECK(sona_epoch_read(&epoch, &later) && later > e); /* as sona_weights_adopt concludes */
      atomic_fetch_add(&overtaken, 1);
    }
  }
  return NULL;
}

int main(void) {
  atomic_store(&words.tail, sona_seal(SONA_SEALED_MAX - 999));
  atomic_store(&words.head, sona_seal(SONA_SEALED_MAX - 999));
  atomic_store(&words.sequence, sona_seal(0));
  atomic_store(&epoch, sona_seal(0));
  pthread_t threads[READERS + 1];
  pthread_create(&threads[0], NULL, produce, NULL);
  pthread_create(&threads[1], NULL, consume, NULL);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  CHECK_EQ(atomic_load(&words.damaged), 0);
  CHECK_EQ(sona_shared_used(&memory), 0);
  pthread_create(&threads[0], NULL, write_slots, NULL);
  for (int i = 1; i <= READERS; i++) pthread_create(&threads[i], NULL, read_slots, NULL);
  for (int i = 0; i <= READERS; i++) pthread_join(threads[i], NULL);
  CHECK(atomic_load(&copied) > 0);
  return check_done("shared_threads");
}
