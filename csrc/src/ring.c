/* The ring's cold half.  The calls that every record passes are in sona/ring_inline.h; here they get their external definitions. */
#define SONA_RING_CALL SONA_API
#include "sona/ring.h"

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
  ring->slot = record ? sona_ring_round_up(record) : SONA_RING_HEADER;
  ring->min_record = record;
  ring->max_record = record ? record : capacity / 2 - SONA_RING_HEADER;
  ring->max_records = options->max_records;
  ring->own_producer = options->own_producer;
  ring->quick_min = options->own_producer || options->max_records ? SIZE_MAX : record;
  ring->block = block;
  ring->run = first + (capacity - (first & ring->mask));
  ring->limit = first + capacity;
  ring->after = ring->ready = ring->seen = first;
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

sona_status sona_ring_reserve_slowly(sona_ring *ring, size_t size, void **record) {
  if (size < ring->min_record || size > ring->max_record) return SONA_EINVAL;
  if (ring->own_producer && !owns_producer(ring)) return SONA_EINVAL;
  if (ring->max_records && sona_ring_records(ring) >= ring->max_records) return drop(ring);
  size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* relaxed: own index */
  size_t need = ring->header + sona_ring_round_up(size);
  size_t to_end = ring->mask + 1 - (tail & ring->mask); /* >= 8: a mark fits */
  size_t skip = need > to_end ? to_end : 0;
  if (ring->limit - tail < skip + need) {
    /* acquire, with the release store of head in sona_ring_release: its reads are done before these bytes are written again. */
    ring->limit = atomic_load_explicit(&ring->head, memory_order_acquire) + ring->mask + 1;
    if (ring->limit - tail < skip + need) return drop(ring);
  }
  if (skip && ring->header) *sona_ring_size_at(ring, tail) = SONA_RING_SKIP;
  ring->skip = skip;
  ring->run = skip ? tail : ring->limit - tail < to_end ? ring->limit : tail + to_end;
  ring->reserved = tail + skip;
  ring->room = need;
  *record = ring->data + ((tail + skip) & ring->mask) + ring->header;
  return SONA_OK;
}

sona_status sona_ring_push_slowly(sona_ring *ring, const void *data, size_t size) {
  void *record;
  sona_status status = sona_ring_reserve_slowly(ring, size, &record);
  if (status != SONA_OK) return status;
  if (size) memcpy(record, data, size);
  return sona_ring_commit(ring, size);
}

int sona_ring_look(sona_ring *ring) {
  size_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); /* relaxed: own index */
  if (head == ring->seen) {
    /* acquire, with the release store of tail in sona_ring_publish. */
    ring->seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
    if (head == ring->seen) return 0;
  }
  ring->ready = ring->seen;
  size_t to_end = ring->mask + 1 - (head & ring->mask);
  if (ring->header || ring->seen - head <= to_end) return 1;
  if (ring->slot <= to_end) {
    ring->ready = head + to_end / ring->slot * ring->slot;
  } else {
    /* What was skipped is free at once.  release, with the acquire load of head in sona_ring_reserve_slowly, as in sona_ring_release. */
    atomic_store_explicit(&ring->head, head + to_end, memory_order_release);
  }
  return 1;
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
  size_t most = ring->max_records ? ring->max_records : (ring->mask + 1) / ring->slot, records;
  if (ring->header) {
    /* acquire, with the release store of popped in sona_ring_release: pushed, read next, is then not older.  relaxed: only a number. */
    size_t popped = atomic_load_explicit(&ring->popped, memory_order_acquire);
    records = atomic_load_explicit(&ring->pushed, memory_order_relaxed) - popped;
  } else {
    records = sona_ring_used(ring) / ring->slot; /* what is skipped at the end of the ring is less than a slot */
  }
  return records < most ? records : most;
}

uint64_t sona_ring_dropped(const sona_ring *ring) {
  return atomic_load_explicit(&ring->dropped, memory_order_relaxed); /* relaxed: only a number */
}
