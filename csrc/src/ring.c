/* The ring's cold half.  The calls that every record passes are in sona/ring_inline.h; here they get their external definitions. */
#define SONA_RING_CALL extern
#include "sona/ring.h"

#include <string.h>

/* An address that differs between running threads. */
static const void *here(void) {
  static _Thread_local char mark;
  return &mark;
}

/* record: the size of all records, or 0. */
static sona_status create(const sona_ring_options *options, size_t record, sona_ring **out) {
  size_t capacity = options->capacity, first = options->first;
  if (capacity < 2 * SONA_RING_HEADER || (capacity & (capacity - 1)) || record > capacity / 2 || first % 8) return SONA_EINVAL;
  if (capacity > PTRDIFF_MAX) return SONA_ENOMEM; /* no object is that large */
  /* sona_calloc aligns to 64: one line more lets the struct start on a line of its own. */
  char *block = sona_calloc(1, sizeof(sona_ring) + SONA_RING_LINE);
  char *data = sona_calloc(capacity, 1);
  if (!block || !data) {
    sona_free(block);
    sona_free(data);
    return SONA_ENOMEM;
  }
  sona_ring *ring = (sona_ring *)(void *)(block + (SONA_RING_LINE - (uintptr_t)block % SONA_RING_LINE) % SONA_RING_LINE);
  ring->data = data;
  ring->mask = capacity - 1;
  ring->header = record ? 0 : SONA_RING_HEADER;
  ring->min_record = record;
  ring->max_record = record ? record : capacity / 2 - SONA_RING_HEADER;
  ring->max_records = options->max_records;
  ring->own_producer = options->own_producer;
  ring->guarded = options->own_producer || options->max_records;
  ring->block = block;
  ring->next = ring->room = first;
  ring->limit = first + capacity;
  ring->front = ring->after = ring->seen = first;
  /* Plain initialisation: whatever hands the ring to the second thread publishes it. */
  atomic_init(&ring->owner, NULL);
  atomic_init(&ring->tail, first);
  atomic_init(&ring->head, first);
  atomic_init(&ring->pushed, first);
  atomic_init(&ring->popped, first);
  atomic_init(&ring->dropped, 0);
  *out = ring;
  return SONA_OK;
}

sona_status sona_ring_create(const sona_ring_options *options, sona_ring **out) { return create(options, 0, out); }

sona_status sona_ring_create_fixed(const sona_ring_options *options, size_t record, sona_ring **out) {
  return record ? create(options, record, out) : SONA_EINVAL;
}

void sona_ring_destroy(sona_ring *ring) {
  if (!ring) return;
  sona_free(ring->data);
  sona_free(ring->block);
}

/* True when this thread is, or has just become, the producer.  Relaxed throughout: the thread compares only with itself, and no other
 * memory is published through `owner`. */
static int owns_producer(sona_ring *ring) {
  const void *owner = atomic_load_explicit(&ring->owner, memory_order_relaxed);
  if (owner) return owner == here();
  return atomic_compare_exchange_strong_explicit(&ring->owner, &owner, here(), memory_order_relaxed, memory_order_relaxed);
}

static sona_status drop(sona_ring *ring) {
  /* Relaxed load and store rather than an add: the producer is the only writer, and a reader wants just the number. */
  atomic_store_explicit(&ring->dropped, atomic_load_explicit(&ring->dropped, memory_order_relaxed) + 1, memory_order_relaxed);
  return SONA_EFULL;
}

sona_status sona_ring_admit(sona_ring *ring) {
  if (ring->own_producer && !owns_producer(ring)) return SONA_EINVAL;
  /* relaxed: pushed is the own counter, popped only a number; the bytes of the records it counts are guarded by head. */
  size_t records = atomic_load_explicit(&ring->pushed, memory_order_relaxed) - atomic_load_explicit(&ring->popped, memory_order_relaxed);
  return ring->max_records && records >= ring->max_records ? drop(ring) : SONA_OK;
}

sona_status sona_ring_make_room(sona_ring *ring, size_t need) {
  size_t to_end = ring->mask + 1 - (ring->next & ring->mask); /* >= 8: a mark fits */
  size_t skip = need > to_end ? to_end : 0;
  if (ring->limit - ring->next < skip + need) {
    /* acquire, with the release store of head in sona_ring_release: its reads are done before these bytes are written again. */
    ring->limit = atomic_load_explicit(&ring->head, memory_order_acquire) + ring->mask + 1;
    if (ring->limit - ring->next < skip + need) return drop(ring);
  }
  if (skip && ring->header) *sona_ring_size_at(ring, ring->next) = SONA_RING_SKIP;
  ring->next += skip; /* for good, even if this reservation is forgotten */
  return SONA_OK;
}

sona_status sona_ring_push(sona_ring *ring, const void *data, size_t size) {
  void *record;
  sona_status status = sona_ring_reserve(ring, size, &record);
  if (status != SONA_OK) return status;
  if (size) memcpy(record, data, size);
  return sona_ring_commit(ring, size);
}

int sona_ring_pop(sona_ring *ring, void *data, size_t room, size_t *size) {
  *size = 0;
  const void *record = sona_ring_peek(ring, size);
  if (!record || *size > room) return 0;
  if (*size) memcpy(data, record, *size);
  sona_ring_release(ring);
  return 1;
}

size_t sona_ring_capacity(const sona_ring *ring) { return ring->mask + 1; }

size_t sona_ring_max_record(const sona_ring *ring) { return ring->max_record; }

size_t sona_ring_used(const sona_ring *ring) {
  /* acquire, with the release store of head in sona_ring_release: tail, read next, is then not older.  It may be newer by several turns
   * of the ring, hence the bound.  relaxed: only a number. */
  size_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
  size_t used = atomic_load_explicit(&ring->tail, memory_order_relaxed) - head;
  return used <= ring->mask ? used : ring->mask + 1;
}

size_t sona_ring_records(const sona_ring *ring) {
  /* acquire, with the release store of popped in sona_ring_release: pushed, read next, is then not older.  relaxed: only a number. */
  size_t popped = atomic_load_explicit(&ring->popped, memory_order_acquire);
  size_t records = atomic_load_explicit(&ring->pushed, memory_order_relaxed) - popped;
  size_t most = ring->max_records ? ring->max_records : (ring->mask + 1) / 8; /* every record takes at least 8 bytes */
  return records < most ? records : most;
}

uint64_t sona_ring_dropped(const sona_ring *ring) {
  return atomic_load_explicit(&ring->dropped, memory_order_relaxed); /* relaxed: only a number */
}
