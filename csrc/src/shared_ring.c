/* The shared ring's file: its layout, and what has to be true before the protocol in shared_ring_core.h goes over it. */
#include "sona/shared_ring.h"

#include <errno.h>
#include <string.h>

#include "shared_file.h"
#include "shared_ring_core.h"

#define MAGIC UINT64_C(0x676e6972616e6f73) /* "sonaring" in the order of this machine */
enum { FORMAT = 1, MIN_CAPACITY = 4096 };

/* The first SONA_FILE_HEAD bytes; the ring follows. */
typedef struct ring_head {
  sona_word magic;
  uint64_t format;
  uint64_t capacity;
  uint64_t identity[SONA_SHARED_RING_IDENTITY / 8];
  uint64_t check; /* of the four words before it */
  sona_shared_words words;
} ring_head;

_Static_assert(sizeof(ring_head) <= SONA_FILE_HEAD, "the head has its room");
_Static_assert(sizeof(sona_shared_header) == SONA_SHARED_RING_HEADER && (int)SONA_SHARED_RING_HEADER == (int)SONA_UNIT, "one unit");

struct sona_shared_ring {
  sona_file file;
  sona_side side;
  sona_shared_memory memory;
  sona_shared_producer producer;
  sona_shared_consumer consumer;
  uint8_t identity[SONA_SHARED_RING_IDENTITY];
};

static uint64_t check_of(const ring_head *head) {
  uint64_t h = MAGIC;
  const uint64_t words[] = {head->format, head->capacity, head->identity[0], head->identity[1]};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) h = ((h ^ words[i]) * 0xff51afd7ed558ccdu) ^ h >> 32;
  return h;
}

static bool is_capacity(size_t capacity) {
  return capacity >= MIN_CAPACITY && !(capacity & (capacity - 1)) && capacity <= PTRDIFF_MAX - SONA_FILE_HEAD &&
         (uint64_t)capacity / SONA_UNIT <= SONA_SEALED_MAX / 2;
}

static sona_status fill(ring_head *head, size_t capacity) {
  if (!sona_random_bytes(head->identity, sizeof head->identity)) return SONA_EIO;
  head->format = FORMAT;
  head->capacity = capacity;
  head->check = check_of(head);
  /* relaxed: sona_file_settle publishes them */
  atomic_store_explicit(&head->words.tail, sona_seal(0), memory_order_relaxed);
  atomic_store_explicit(&head->words.sequence, sona_seal(0), memory_order_relaxed);
  atomic_store_explicit(&head->words.head, sona_seal(0), memory_order_relaxed);
  return SONA_OK;
}

/* Takes what the rest relies on out of the file, whose first word is right. */
static sona_status take(sona_shared_ring *ring, size_t capacity) {
  ring_head *shared = (ring_head *)(void *)ring->file.bytes;
  ring_head head = {.format = shared->format, .capacity = shared->capacity, .check = shared->check};
  memcpy(head.identity, shared->identity, sizeof head.identity);
  if (head.check != check_of(&head)) return SONA_ECORRUPT;
  if (head.format != FORMAT) return SONA_EVERSION;
  const size_t bytes = ring->file.size - SONA_FILE_HEAD;
  if (head.capacity != bytes || !is_capacity(bytes)) return SONA_ECORRUPT;
  if (capacity && capacity != bytes) return SONA_EINVAL;
  memcpy(ring->identity, head.identity, sizeof ring->identity);
  ring->memory.words = &shared->words;
  ring->memory.data = ring->file.bytes + SONA_FILE_HEAD;
  ring->memory.units = bytes / SONA_UNIT;
  ring->memory.max_record = bytes / 2 - SONA_UNIT < SONA_SHARED_SKIP ? bytes / 2 - SONA_UNIT : SONA_SHARED_SKIP - 1;
  const bool begun = ring->side == SONA_PRODUCER ? sona_shared_producer_begin(&ring->memory, &ring->producer)
                                                 : sona_shared_consumer_begin(&ring->memory, &ring->consumer);
  return begun ? SONA_OK : SONA_ECORRUPT;
}

sona_status sona_shared_ring_open(const char *path, sona_side side, size_t capacity, sona_shared_ring **out) {
  if (!path || (side != SONA_PRODUCER && side != SONA_CONSUMER) || (capacity && !is_capacity(capacity))) return SONA_EINVAL;
  sona_shared_ring *ring = sona_calloc(1, sizeof *ring);
  if (!ring) return SONA_ENOMEM;
  ring->side = side;
  const sona_file_request request = {
      .path = path, .magic = MAGIC, .writes = true, .side = side, .make_size = capacity ? SONA_FILE_HEAD + capacity : 0};
  sona_status status = sona_file_open(&request, &ring->file);
  if (status != SONA_OK) {
    sona_free(ring);
    return status;
  }
  if (ring->file.made) status = fill((ring_head *)(void *)ring->file.bytes, capacity);
  if (status == SONA_OK) status = take(ring, capacity);
  if (status != SONA_OK) {
    const int reason = errno;
    sona_shared_ring_close(ring);
    errno = reason;
    return status;
  }
  sona_file_settle(&ring->file, MAGIC);
  *out = ring;
  return SONA_OK;
}

void sona_shared_ring_close(sona_shared_ring *ring) {
  if (!ring) return;
  sona_file_close(&ring->file);
  sona_free(ring);
}

static inline bool is(const sona_shared_ring *ring, sona_side side) { return ring->side == side && sona_file_is_ours(&ring->file); }

/* ---- producer ---- */

sona_status sona_shared_ring_reserve(sona_shared_ring *ring, size_t size, void **record) {
  return is(ring, SONA_PRODUCER) ? sona_shared_reserve(&ring->memory, &ring->producer, size, record) : SONA_EINVAL;
}

sona_status sona_shared_ring_commit(sona_shared_ring *ring, size_t size, uint64_t *sequence) {
  return is(ring, SONA_PRODUCER) ? sona_shared_commit(&ring->memory, &ring->producer, size, sequence) : SONA_EINVAL;
}

sona_status sona_shared_ring_push(sona_shared_ring *ring, const void *data, size_t size, uint64_t *sequence) {
  void *record;
  const sona_status status = sona_shared_ring_reserve(ring, size, &record);
  if (status != SONA_OK) return status;
  if (size) memcpy(record, data, size);
  return sona_shared_commit(&ring->memory, &ring->producer, size, sequence);
}

/* ---- consumer ---- */

const void *sona_shared_ring_next(sona_shared_ring *ring, size_t *size, uint64_t *sequence) {
  return is(ring, SONA_CONSUMER) ? sona_shared_next(&ring->memory, &ring->consumer, size, sequence) : NULL;
}

void sona_shared_ring_release(sona_shared_ring *ring) {
  if (is(ring, SONA_CONSUMER)) sona_shared_release(&ring->memory, &ring->consumer);
}

uint64_t sona_shared_ring_mark(const sona_shared_ring *ring) { return is(ring, SONA_CONSUMER) ? ring->consumer.read : 0; }

void sona_shared_ring_release_to(sona_shared_ring *ring, uint64_t mark) {
  if (is(ring, SONA_CONSUMER)) sona_shared_release_to(&ring->memory, &ring->consumer, mark);
}

/* ---- both ---- */

const uint8_t *sona_shared_ring_identity(const sona_shared_ring *ring) { return ring->identity; }

size_t sona_shared_ring_capacity(const sona_shared_ring *ring) { return (size_t)ring->memory.units * SONA_UNIT; }

size_t sona_shared_ring_max_record(const sona_shared_ring *ring) { return (size_t)ring->memory.max_record; }

size_t sona_shared_ring_used(const sona_shared_ring *ring) { return (size_t)sona_shared_used(&ring->memory) * SONA_UNIT; }

uint64_t sona_shared_ring_dropped(const sona_shared_ring *ring) {
  return atomic_load_explicit(&ring->memory.words->dropped, memory_order_relaxed); /* relaxed: only a number */
}

uint64_t sona_shared_ring_damaged(const sona_shared_ring *ring) {
  return atomic_load_explicit(&ring->memory.words->damaged, memory_order_relaxed); /* relaxed: only a number */
}
