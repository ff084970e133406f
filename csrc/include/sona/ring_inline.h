/* Private: the ring's layout, and the bodies of the calls that sona/ring.h promises inline.  Included by sona/ring.h only.
 *
 * Indices run freely through size_t and are compared by unsigned difference; the capacity divides SIZE_MAX + 1, so an index masks to the
 * same offset before and after it wraps. */
#ifndef SONA_RING_INLINE_H
#define SONA_RING_INLINE_H

#include <stdatomic.h>

#define SONA_RING_LINE 128      /* bytes: two cache lines, because adjacent lines are prefetched in pairs */
#define SONA_RING_SKIP SIZE_MAX /* in place of a record's size: unused up to the end of the ring, the record is at the front */

struct sona_ring {
  /* Written at creation only. */
  char *data;                    /* (capacity) */
  size_t mask;                   /* capacity - 1 */
  size_t min_record, max_record; /* bytes; equal when all records have one size */
  size_t header;                 /* bytes in front of a record */
  int guarded;                   /* max_records or own_producer is on */
  int own_producer;
  size_t max_records;
  _Atomic(const void *) owner; /* the producer thread, when own_producer is on */
  void *block;                 /* what this struct was carved from */

  /* What the producer publishes. */
  _Alignas(SONA_RING_LINE) atomic_size_t tail; /* end of the newest record */

  /* The producer's own, away from tail, whose line the consumer keeps taking. */
  _Alignas(SONA_RING_LINE) size_t next; /* where the next record starts: tail, or the front of the ring behind it */
  size_t room;                          /* end of the reservation; next when there is none */
  size_t limit;                         /* head as last seen, plus the capacity */
  atomic_size_t pushed;                 /* records */
  _Atomic uint64_t dropped;

  /* What the consumer publishes. */
  _Alignas(SONA_RING_LINE) atomic_size_t head; /* end of the newest released record */

  /* The consumer's own, away from head. */
  _Alignas(SONA_RING_LINE) size_t front; /* head */
  size_t after;                          /* end of the peeked record; front when there is none */
  size_t seen;                           /* tail as last seen */
  atomic_size_t popped;                  /* records */
};

sona_status sona_ring_admit(sona_ring *ring);                  /* what has nothing to do with bytes */
sona_status sona_ring_make_room(sona_ring *ring, size_t need); /* at ring->next: turns to the front, looks where the consumer is */

static inline size_t sona_ring_round_up(size_t size) { return (size + 7) & ~(size_t)7; }

/* The header at an index. */
static inline size_t *sona_ring_size_at(const sona_ring *ring, size_t index) {
  return (size_t *)(void *)(ring->data + (index & ring->mask));
}

SONA_RING_CALL sona_status sona_ring_reserve(sona_ring *ring, size_t size, void **record) {
  if (size < ring->min_record || size > ring->max_record) return SONA_EINVAL;
  if (ring->guarded) {
    sona_status status = sona_ring_admit(ring);
    if (status != SONA_OK) return status;
  }
  size_t need = ring->header + sona_ring_round_up(size);
  if ((ring->next & ring->mask) + need > ring->mask + 1 || ring->limit - ring->next < need) {
    sona_status status = sona_ring_make_room(ring, need);
    if (status != SONA_OK) return status;
  }
  ring->room = ring->next + need;
  *record = ring->data + (ring->next & ring->mask) + ring->header;
  return SONA_OK;
}

SONA_RING_CALL sona_status sona_ring_commit(sona_ring *ring, size_t size) {
  size_t next = ring->next;
  size_t need = ring->header + sona_ring_round_up(size);
  if (size < ring->min_record || size > ring->max_record || need > ring->room - next) return SONA_EINVAL;
  if (ring->header) *sona_ring_size_at(ring, next) = size;
  next += need;
  ring->next = next;
  if (ring->room != next) ring->room = next;
  /* relaxed: own counter, and the release below orders it. */
  atomic_store_explicit(&ring->pushed, atomic_load_explicit(&ring->pushed, memory_order_relaxed) + 1, memory_order_relaxed);
  /* release, with the acquire load of tail in sona_ring_peek: the record and its header are written before they can be seen. */
  atomic_store_explicit(&ring->tail, next, memory_order_release);
  return SONA_OK;
}

SONA_RING_CALL const void *sona_ring_peek(sona_ring *ring, size_t *size) {
  size_t front = ring->front;
  if (front == ring->seen) {
    /* acquire, with the release store of tail in sona_ring_commit. */
    ring->seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
    if (front == ring->seen) return NULL;
  }
  size_t to_end = ring->mask + 1 - (front & ring->mask);
  size_t bytes = ring->max_record;
  if (ring->header) {
    bytes = *sona_ring_size_at(ring, front);
    if (bytes == SONA_RING_SKIP) { /* published together with the record behind it, so there is one at the front */
      front += to_end;
      bytes = *sona_ring_size_at(ring, front);
    }
  } else if (bytes > to_end) {
    front += to_end;
  }
  ring->after = front + ring->header + sona_ring_round_up(bytes);
  *size = bytes;
  return ring->data + (front & ring->mask) + ring->header;
}

SONA_RING_CALL void sona_ring_release(sona_ring *ring) {
  size_t after = ring->after;
  if (after == ring->front) return;
  ring->front = after;
  /* release, with the acquire load of popped in sona_ring_records; relaxed load: own counter. */
  atomic_store_explicit(&ring->popped, atomic_load_explicit(&ring->popped, memory_order_relaxed) + 1, memory_order_release);
  /* release, with the acquire load of head in sona_ring_make_room: the record has been read before its bytes are free. */
  atomic_store_explicit(&ring->head, after, memory_order_release);
}

#endif
