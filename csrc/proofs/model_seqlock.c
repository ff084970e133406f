/* The sequence lock of weights_core.h alone, with two slots and without the checksum that stands behind it in weights.c: a writer that may
 * be killed at any of its steps, and two readers. */
#include "../src/weights_core.h"
#include "model.h"
#include "sona/sona.h"

const char *const model_name = "sequence lock";
const char *const model_unneeded[] = {NULL};
const int model_weakens = 1;

enum { SLOTS = 2, EPOCHS = 5, WORDS = 2, LOOKS = 3, LIVES = 3, STEPS = 30 };

static sona_slot *slots[SLOTS];
static sona_word *epoch;
static uint64_t published; /* the writer's */

static uint64_t count_of(uint64_t value) { return 1 + value % 2; }

void model_before(void) {
  for (int i = 0; i < SLOTS; i++) slots[i] = sona_calloc(1, sizeof(sona_slot) + WORDS * sizeof(sona_word));
  epoch = sona_calloc(1, sizeof *epoch);
  sona_epoch_write(epoch, 0);
  published = 0;
}

/* All words of a publication are alike, and no two publications are, also of one epoch. */
static void write_epochs(void) {
  uint64_t now = 0;
  MODEL_CHECK(sona_epoch_read(epoch, &now) && now >= published);
  while (now < EPOCHS) {
    const uint64_t value = 16 * ++now + model_choose(16), words[WORDS] = {value, value};
    sona_slot_write(slots[now % SLOTS], words, count_of(value));
    sona_epoch_write(epoch, now);
    published = now;
  }
}

static void read_epochs(void) {
  for (int look = 0; look < LOOKS; look++) {
    uint64_t now = 0, later = 0, words[WORDS] = {0};
    size_t count = 0;
    MODEL_CHECK(sona_epoch_read(epoch, &now));
    if (!now) continue;
    const sona_copied copied = sona_slot_read(slots[now % SLOTS], words, WORDS, &count);
    MODEL_CHECK(copied != SONA_SPOILED);
    if (copied == SONA_COPIED) {
      MODEL_CHECK(count == count_of(words[0]));
      for (size_t i = 1; i < count; i++) MODEL_CHECK(words[i] == words[0]);
    }
    /* Nothing else than having been overtaken keeps a reader from what it came for. */
    if (copied != SONA_COPIED || words[0] / 16 != now) MODEL_CHECK(sona_epoch_read(epoch, &later) && later > now);
  }
}

void model_thread(unsigned thread) {
  if (thread) {
    read_epochs();
  } else {
    for (int life = 0; life < LIVES; life++) model_process(write_epochs, STEPS);
  }
}

void model_after(void) {
  read_epochs();
  for (int i = 0; i < SLOTS; i++) sona_free(slots[i]);
  sona_free(epoch);
}
