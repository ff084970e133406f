/* Private: the protocol of a weight file, over words in memory; weights.c finds the memory and knows what the words mean.
 *
 * Epoch e lies in slot e % slots.  A slot's sequence is odd while its words change; a reader copies them between two looks at it.  There
 * are no fences: every store of a word is a release and every load an acquire, which costs nothing on x86 and makes the reasoning short. If
 * a reader has loaded a word that a writer stored after it made the sequence odd, the load synchronises with that store, so the reader's
 * second look finds the odd sequence or a later one. */
#ifndef SONA_WEIGHTS_CORE_H
#define SONA_WEIGHTS_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "shared_words.h"

/* At the start of a slot; the words follow. */
typedef struct sona_slot {
  sona_word sequence;
  sona_word count; /* of words */
} sona_slot;

typedef enum sona_copied { SONA_COPIED, SONA_OVERTAKEN, SONA_SPOILED } sona_copied;

static inline sona_word *sona_slot_words(sona_slot *slot) { return (sona_word *)(slot + 1); }

/* Writer: a slot that no reader needs holds these words from now on.  A killed writer leaves the sequence odd; the next one goes on. */
static inline void sona_slot_write(sona_slot *slot, const uint64_t *from, size_t count) {
  sona_word *to = sona_slot_words(slot);
  const uint64_t odd = atomic_load_explicit(&slot->sequence, memory_order_relaxed) | 1; /* relaxed: own word */
  /* release, with both looks in sona_slot_read: whoever sees it sees the epochs published until now. */
  atomic_store_explicit(&slot->sequence, odd, memory_order_release);
  /* release, with the acquire loads in sona_slot_read: whoever sees one of these sees the odd sequence. */
  atomic_store_explicit(&slot->count, count, memory_order_release);
  for (size_t i = 0; i < count; i++) atomic_store_explicit(&to[i], from[i], memory_order_release);
  /* release, with the first acquire load in sona_slot_read: whoever sees this sees all words. */
  atomic_store_explicit(&slot->sequence, odd + 1, memory_order_release);
}

/* Reader: copies a slot of at most `room` words, whose number it says in *count.  When it was overtaken, the writer has published later
 * epochs than the one that the reader came for, and the reader sees that they are. */
static inline sona_copied sona_slot_read(sona_slot *slot, uint64_t *to, size_t room, size_t *count) {
  sona_word *from = sona_slot_words(slot);
  const uint64_t before = atomic_load_explicit(&slot->sequence, memory_order_acquire);
  const uint64_t words = atomic_load_explicit(&slot->count, memory_order_acquire);
  if (before & 1) return SONA_OVERTAKEN;
  const size_t some = words <= room ? (size_t)words : 0;
  for (size_t i = 0; i < some; i++) to[i] = atomic_load_explicit(&from[i], memory_order_acquire);
  /* The acquire loads before it keep it last; acquire itself, with the release store of the odd sequence. */
  if (atomic_load_explicit(&slot->sequence, memory_order_acquire) != before) return SONA_OVERTAKEN;
  *count = some;
  return words <= room ? SONA_COPIED : SONA_SPOILED;
}

/* Writer: the slot of that epoch is written.  release, with the acquire load in sona_epoch_read. */
static inline void sona_epoch_write(sona_word *epoch, uint64_t value) {
  atomic_store_explicit(epoch, sona_seal(value), memory_order_release);
}

static inline bool sona_epoch_read(const sona_word *epoch, uint64_t *value) {
  return sona_unseal(atomic_load_explicit(epoch, memory_order_acquire), value);
}

#endif
