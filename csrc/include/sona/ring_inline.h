/* Private: the ring's layout, and the bodies of the calls that sona/ring.h promises inline.  Included by sona/ring.h only.
 *
 * Indices run freely through size_t and are compared by unsigned difference; the capacity divides SIZE_MAX + 1, so an index masks to the
 * same offset before and after it wraps. */
#ifndef SONA_RING_INLINE_H
#define SONA_RING_INLINE_H

#include <stdatomic.h>
#include <string.h>

#define SONA_RING_LINE 128      /* bytes: two cache lines, because adjacent lines are prefetched in pairs */
#define SONA_RING_SKIP SIZE_MAX /* in place of a record's size: unused up to the end of the ring, the record is at the front */

/* Bytes ahead of itself that the consumer asks for.  A line comes from the other core in the time of many small records; without this a
 * burst of 8-byte records takes half as long again, and twice as long where sizes differ, because only a header tells where the next one
 * is.  Lines that are less than as far again behind tail are left to the producer, which writes there. */
#define SONA_RING_AHEAD 256

/* Macros, because gcc drops a call of an inline function that does nothing but prefetch. */
#ifdef __GNUC__
#define SONA_RING_PREFETCH(p) __builtin_prefetch(p)
#define SONA_RING_LIKELY(condition) __builtin_expect(!!(condition), 1)
#else
#define SONA_RING_PREFETCH(p) ((void)(p))
#define SONA_RING_LIKELY(condition) (condition)
#endif

struct sona_ring {
  /* Written at creation only. */
  char *data;                    /* (capacity) */
  size_t mask;                   /* capacity - 1 */
  size_t min_record, max_record; /* bytes; equal when all records have one size */
  size_t quick_min;              /* min_record; SIZE_MAX where a reservation is more than a look at bytes */
  size_t header;                 /* bytes in front of a record: SONA_RING_HEADER, or 0 when all have one size */
  size_t slot;                   /* bytes that the smallest record takes */
  size_t max_records;
  int own_producer;
  _Atomic(const void *) owner; /* the producer thread, when own_producer is on */
  void *block;                 /* what this struct was carved from */

  /* What the producer publishes. */
  _Alignas(SONA_RING_LINE) atomic_size_t tail; /* end of the newest record */

  /* The producer's own, away from tail, whose line the consumer keeps taking.  While it is away, stores pile up in the store buffer;
   * hence a push of a record of the one size stores nothing but the record and tail, and a reservation only `reserved` besides. */
  _Alignas(SONA_RING_LINE) size_t reserved; /* where the reservation starts; tail has moved on when there is none */
  size_t room;                              /* its bytes, with the header */
  size_t skip;                              /* bytes between tail and it: up to the end of the ring, or 0 */
  size_t run;                               /* end of what is free, in one piece and starts at tail; tail while skip is not 0 */
  size_t limit;                             /* head as last seen, plus the capacity */
  atomic_size_t pushed;                     /* records; not kept when they have one size */
  _Atomic uint64_t dropped;

  /* What the consumer publishes. */
  _Alignas(SONA_RING_LINE) atomic_size_t head; /* end of the newest released record */

  /* The consumer's own, away from head. */
  _Alignas(SONA_RING_LINE) size_t after; /* end of the peeked record; head when there is none */
  size_t ready;                          /* records lie side by side from head to here; where sizes differ, a skip may be among them */
  size_t seen;                           /* tail as last seen */
  atomic_size_t popped;                  /* records; not kept when they have one size */
};

/* Whatever sona_ring_reserve and sona_ring_push leave: looks where the consumer is, turns to the front, counts, refuses. */
SONA_API sona_status sona_ring_reserve_slowly(sona_ring *ring, size_t size, void **record);
SONA_API sona_status sona_ring_push_slowly(sona_ring *ring, const void *data, size_t size);

/* What sona_ring_peek does at ring->ready: looks where the producer is, turns to the front.  0 when the ring is empty. */
SONA_API int sona_ring_look(sona_ring *ring);

static inline size_t sona_ring_round_up(size_t size) { return (size + 7) & ~(size_t)7; }

/* The header at an index. */
static inline size_t *sona_ring_size_at(const sona_ring *ring, size_t index) {
  return (size_t *)(void *)(ring->data + (index & ring->mask));
}

/* One more in a counter that this side alone writes; order says what the store publishes. */
#define SONA_RING_COUNT(counter, order) \
  atomic_store_explicit(&(counter), atomic_load_explicit(&(counter), memory_order_relaxed) + 1, (order))

/* Shows the record between two indices to the consumer. */
static inline void sona_ring_publish(sona_ring *ring, size_t start, size_t next, size_t size) {
  if (ring->header) {
    *sona_ring_size_at(ring, start) = size;
    SONA_RING_COUNT(ring->pushed, memory_order_relaxed); /* the release below orders it */
  }
  /* release, with the acquire load of tail in sona_ring_look: the record and its header are written before they can be seen. */
  atomic_store_explicit(&ring->tail, next, memory_order_release);
}

SONA_RING_CALL sona_status sona_ring_reserve(sona_ring *ring, size_t size, void **record) {
  size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* relaxed: own index */
  size_t need = ring->header + sona_ring_round_up(size);
  if (size < ring->quick_min || size > ring->max_record || ring->run - tail < need) return sona_ring_reserve_slowly(ring, size, record);
  ring->reserved = tail;
  if (ring->room != need) ring->room = need;
  *record = ring->data + (tail & ring->mask) + ring->header;
  return SONA_OK;
}

SONA_RING_CALL sona_status sona_ring_commit(sona_ring *ring, size_t size) {
  size_t start = atomic_load_explicit(&ring->tail, memory_order_relaxed) + ring->skip; /* relaxed: own index */
  size_t need = ring->header + sona_ring_round_up(size);
  if (size < ring->min_record || size > ring->max_record || start != ring->reserved || need > ring->room) return SONA_EINVAL;
  if (ring->skip) {
    ring->skip = 0;
    ring->run = start + need;
  }
  sona_ring_publish(ring, start, start + need, size);
  return SONA_OK;
}

SONA_RING_CALL sona_status sona_ring_push(sona_ring *ring, const void *data, size_t size) {
  size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* relaxed: own index */
  size_t need = ring->header + sona_ring_round_up(size);
  if (size < ring->quick_min || size > ring->max_record || ring->run - tail < need) return sona_ring_push_slowly(ring, data, size);
  if (size) memcpy(ring->data + (tail & ring->mask) + ring->header, data, size);
  sona_ring_publish(ring, tail, tail + need, size); /* and a reservation is forgotten, because tail has moved on */
  return SONA_OK;
}

SONA_RING_CALL const void *sona_ring_peek(sona_ring *ring, size_t *size) {
  size_t front = atomic_load_explicit(&ring->head, memory_order_relaxed); /* relaxed: own index */
  if (front == ring->ready) {
    if (!sona_ring_look(ring)) return NULL;
    front = atomic_load_explicit(&ring->head, memory_order_relaxed);
  }
  if (ring->ready - front > 2 * SONA_RING_AHEAD) SONA_RING_PREFETCH(ring->data + ((front + SONA_RING_AHEAD) & ring->mask));
  if (SONA_RING_LIKELY(!ring->header)) { /* where sizes differ, a branch more does not show */
    ring->after = front + ring->slot;
    *size = ring->max_record;
    return ring->data + (front & ring->mask);
  }
  size_t bytes = *sona_ring_size_at(ring, front);
  if (bytes == SONA_RING_SKIP) { /* published together with the record behind it, so there is one at the front */
    front = (front | ring->mask) + 1;
    bytes = *sona_ring_size_at(ring, front);
  }
  ring->after = front + SONA_RING_HEADER + sona_ring_round_up(bytes);
  *size = bytes;
  return ring->data + (front & ring->mask) + SONA_RING_HEADER;
}

SONA_RING_CALL void sona_ring_release(sona_ring *ring) {
  size_t after = ring->after;
  if (ring->header) {
    if (after == atomic_load_explicit(&ring->head, memory_order_relaxed)) return; /* relaxed: own index */
    SONA_RING_COUNT(ring->popped, memory_order_release);                          /* with the acquire load in sona_ring_records */
  }
  /* release, with the acquire load of head in sona_ring_reserve_slowly: the record has been read before its bytes are free.  Without a
   * peeked record this changes nothing. */
  atomic_store_explicit(&ring->head, after, memory_order_release);
}

#endif
