/* SPSC ring.  Indices run freely through size_t and are compared by unsigned difference; capacity divides SIZE_MAX + 1, so an index masks
 * to the same offset before and after it wraps. */
#include "sona/ring.h"

#include <stdatomic.h>
#include <string.h>

#define LINE 128         /* bytes: two cache lines, because adjacent lines are prefetched in pairs */
#define SKIP SIZE_MAX    /* in place of a record's size: unused up to the end of the ring, the record is at the front */
#define NOTHING SIZE_MAX /* no reservation */
#define COLD __attribute__((noinline, cold)) /* keeps the hot path beside it free of saved registers */

struct sona_ring {
  /* Written at creation only. */
  char *data;                    /* (capacity) */
  size_t mask;                   /* capacity - 1 */
  size_t min_record, max_record; /* bytes; equal when all records have one size */
  size_t header;                 /* bytes in front of a record */
  size_t max_records;
  int guarded; /* max_records or own_producer is on */
  int own_producer;
  _Atomic(const void *) owner; /* the producer thread, see here() */
  void *block;                 /* what this struct was carved from */

  /* What the producer publishes. */
  _Alignas(LINE) atomic_size_t tail; /* end of the newest record */
  atomic_size_t pushed;              /* records */

  /* The producer's own, away from tail, whose line the consumer keeps taking. */
  _Alignas(LINE) size_t next; /* where the next record starts: tail, or the front of the ring behind it */
  size_t limit;               /* head as last seen, plus the capacity */
  size_t reserved;            /* bytes, or NOTHING */
  _Atomic uint64_t dropped;

  /* What the consumer publishes. */
  _Alignas(LINE) atomic_size_t head; /* end of the newest released record */
  atomic_size_t popped;              /* records */

  /* The consumer's own, away from head. */
  _Alignas(LINE) size_t front; /* head */
  size_t seen;                 /* tail as last seen */
  size_t after;                /* end of the peeked record, or front */
};

static size_t round_up(size_t size) { return (size + 7) & ~(size_t)7; }

/* The header at an index. */
static size_t *size_at(const sona_ring *ring, size_t index) { return (size_t *)(void *)(ring->data + (index & ring->mask)); }

/* An address that differs between running threads. */
static const void *here(void) {
  static _Thread_local char mark;
  return &mark;
}

sona_status sona_ring_create(const sona_ring_options *options, sona_ring **out) {
  size_t capacity = options->capacity, first = options->first;
  if (capacity < 2 * SONA_RING_HEADER || (capacity & (capacity - 1)) || options->record > capacity / 2 || first % 8) return SONA_EINVAL;
  if (capacity > PTRDIFF_MAX) return SONA_ENOMEM; /* no object is that large */
  /* sona_calloc aligns to 64: one line more lets the struct start on a line of its own. */
  char *block = sona_calloc(1, sizeof(sona_ring) + LINE);
  char *data = sona_calloc(capacity, 1);
  if (!block || !data) {
    sona_free(block);
    sona_free(data);
    return SONA_ENOMEM;
  }
  sona_ring *ring = (sona_ring *)(void *)(block + (LINE - (uintptr_t)block % LINE) % LINE);
  ring->data = data;
  ring->mask = capacity - 1;
  ring->header = options->record ? 0 : SONA_RING_HEADER;
  ring->min_record = options->record;
  ring->max_record = options->record ? options->record : capacity / 2 - SONA_RING_HEADER;
  ring->max_records = options->max_records;
  ring->own_producer = options->own_producer;
  ring->guarded = options->own_producer || options->max_records;
  ring->block = block;
  ring->next = ring->front = ring->seen = ring->after = first;
  ring->limit = first + capacity;
  ring->reserved = NOTHING;
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

/* Whether a reservation passes what has nothing to do with bytes. */
static COLD sona_status admit(sona_ring *ring) {
  if (ring->own_producer && !owns_producer(ring)) return SONA_EINVAL;
  /* relaxed: pushed is the own counter, popped only a number; the bytes of the records it counts are guarded by head. */
  size_t records = atomic_load_explicit(&ring->pushed, memory_order_relaxed) - atomic_load_explicit(&ring->popped, memory_order_relaxed);
  return ring->max_records && records >= ring->max_records ? drop(ring) : SONA_OK;
}

/* Room for `need` bytes at ring->next: moves to the front of the ring and asks the consumer how far it is, as necessary. */
static COLD sona_status make_room(sona_ring *ring, size_t need) {
  size_t to_end = ring->mask + 1 - (ring->next & ring->mask); /* >= 8: a mark fits */
  size_t skip = need > to_end ? to_end : 0;
  if (ring->limit - ring->next < skip + need) {
    /* acquire, with the release store of head in sona_ring_release: its reads are done before these bytes are written again. */
    ring->limit = atomic_load_explicit(&ring->head, memory_order_acquire) + ring->mask + 1;
    if (ring->limit - ring->next < skip + need) return drop(ring);
  }
  if (skip && ring->header) *size_at(ring, ring->next) = SKIP;
  ring->next += skip; /* for good: a later reservation need not fit in front of the mark */
  return SONA_OK;
}

sona_status sona_ring_reserve(sona_ring *ring, size_t size, void **record) {
  if (size < ring->min_record || size > ring->max_record) return SONA_EINVAL;
  if (ring->guarded) {
    sona_status status = admit(ring);
    if (status != SONA_OK) return status;
  }
  size_t need = ring->header + round_up(size);
  if ((ring->next & ring->mask) + need > ring->mask + 1 || ring->limit - ring->next < need) {
    sona_status status = make_room(ring, need);
    if (status != SONA_OK) return status;
  }
  ring->reserved = size;
  *record = ring->data + (ring->next & ring->mask) + ring->header;
  return SONA_OK;
}

sona_status sona_ring_commit(sona_ring *ring, size_t size) {
  if (ring->reserved == NOTHING || size > ring->reserved || size < ring->min_record) return SONA_EINVAL;
  ring->reserved = NOTHING;
  size_t next = ring->next;
  if (ring->header) *size_at(ring, next) = size;
  next += ring->header + round_up(size);
  ring->next = next;
  /* relaxed: own counter, and the release below orders it. */
  atomic_store_explicit(&ring->pushed, atomic_load_explicit(&ring->pushed, memory_order_relaxed) + 1, memory_order_relaxed);
  /* release, with the acquire load of tail in sona_ring_peek: the record and its header are written before they can be seen. */
  atomic_store_explicit(&ring->tail, next, memory_order_release);
  return SONA_OK;
}

sona_status sona_ring_push(sona_ring *ring, const void *data, size_t size) {
  void *record;
  sona_status status = sona_ring_reserve(ring, size, &record);
  if (status != SONA_OK) return status;
  if (size) memcpy(record, data, size);
  return sona_ring_commit(ring, size);
}

const void *sona_ring_peek(sona_ring *ring, size_t *size) {
  size_t front = ring->front;
  if (front == ring->seen) {
    /* acquire, with the release store of tail in sona_ring_commit. */
    ring->seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
    if (front == ring->seen) return NULL;
  }
  size_t to_end = ring->mask + 1 - (front & ring->mask);
  size_t bytes = ring->max_record;
  if (ring->header) {
    bytes = *size_at(ring, front);
    if (bytes == SKIP) { /* published together with the record behind it, so there is one at the front */
      front += to_end;
      bytes = *size_at(ring, front);
    }
  } else if (round_up(bytes) > to_end) {
    front += to_end;
  }
  ring->after = front + ring->header + round_up(bytes);
  *size = bytes;
  return ring->data + (front & ring->mask) + ring->header;
}

void sona_ring_release(sona_ring *ring) {
  size_t after = ring->after;
  if (after == ring->front) return;
  ring->front = after;
  /* release, with the acquire load of popped in sona_ring_records; relaxed load: own counter. */
  atomic_store_explicit(&ring->popped, atomic_load_explicit(&ring->popped, memory_order_relaxed) + 1, memory_order_release);
  /* release, with the acquire load of head in make_room: the record has been read before its bytes are free. */
  atomic_store_explicit(&ring->head, after, memory_order_release);
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
  size_t most = ring->max_records ? ring->max_records : (ring->mask + 1) / 8;
  return records < most ? records : most;
}

uint64_t sona_ring_dropped(const sona_ring *ring) {
  return atomic_load_explicit(&ring->dropped, memory_order_relaxed); /* relaxed: only a number */
}
