/* Private: the protocol of the shared ring, over words and bytes in memory; shared_ring.c finds the memory.
 *
 * Indices count units of 16 bytes, run freely through 48 bits and are compared by distance; a capacity divides 2^48 units.  Each side
 * works with its own copies: what it reads from the other is an index, believed only where it could stand, and, on the consumer's side,
 * headers.  A header is bound to its place by its check, so what an earlier turn of the ring has left does not pass for a record. */
#ifndef SONA_SHARED_RING_CORE_H
#define SONA_SHARED_RING_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "shared_words.h"
#include "sona/sona.h"

enum { SONA_UNIT = 16 };            /* bytes of a header, and of the unit that indices count */
#define SONA_SHARED_SKIP UINT32_MAX /* in place of a record's size: unused up to the end of the ring, the record is at the front */

/* What both processes write, in lines of their own. */
typedef struct sona_shared_words {
  /* The producer's. */
  _Alignas(128) sona_word tail; /* sealed: end of the newest record */
  sona_word sequence;           /* sealed: of the newest record */
  sona_word dropped;
  /* The consumer's. */
  _Alignas(128) sona_word head; /* sealed: end of the newest released record */
  sona_word damaged;
} sona_shared_words;

/* In front of a record. */
typedef struct sona_shared_header {
  sona_word size; /* and the check above it */
  sona_word sequence;
} sona_shared_header;

/* What both sides know: where things are. */
typedef struct sona_shared_memory {
  sona_shared_words *words;
  unsigned char *data;
  uint64_t units;      /* of the ring, a power of two */
  uint64_t max_record; /* bytes */
} sona_shared_memory;

typedef struct sona_shared_producer {
  uint64_t tail, sequence; /* of the newest record */
  uint64_t head;           /* as last seen */
  uint64_t skip, room; /* units between tail and the reservation, and of the reservation with its header; room is 0 when there is none */
} sona_shared_producer;

typedef struct sona_shared_consumer {
  uint64_t head;     /* released up to here */
  uint64_t read;     /* returned up to here */
  uint64_t tail;     /* as last seen */
  uint64_t sequence; /* of the record returned last; 0 before the first */
  uint64_t spoiled;  /* the damaged word of tail that was counted last */
} sona_shared_consumer;

/* Units of a record with its header. */
static inline uint64_t sona_shared_need(uint64_t size) { return 1 + (size + SONA_UNIT - 1) / SONA_UNIT; }

static inline sona_shared_header *sona_shared_at(const sona_shared_memory *m, uint64_t index) {
  return (sona_shared_header *)(void *)(m->data + (index & (m->units - 1)) * SONA_UNIT);
}

/* Units from an index to the end of the ring, 1 at least. */
static inline uint64_t sona_shared_to_end(const sona_shared_memory *m, uint64_t index) { return m->units - (index & (m->units - 1)); }

/* The upper half of a mix of all three; the multipliers are those of splitmix64 and of MurmurHash3's finaliser. */
static inline uint64_t sona_shared_check(uint64_t index, uint64_t size, uint64_t sequence) {
  uint64_t h = index * 0x9e3779b97f4a7c15u;
  h = (h ^ h >> 32 ^ size) * 0xff51afd7ed558ccdu;
  h = (h ^ h >> 32 ^ sequence) * 0xc4ceb9fe1a85ec53u;
  return h >> 32;
}

/* One more in a counter that this process alone writes.  Relaxed: only a number. */
static inline void sona_shared_count(sona_word *counter) {
  atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1, memory_order_relaxed);
}

/* ---- producer ---- */

/* Goes on where the file says that the last producer ended.  False: it cannot be so. */
static inline bool sona_shared_producer_begin(const sona_shared_memory *m, sona_shared_producer *p) {
  /* relaxed: this side's own words.  acquire, with the release store of head in sona_shared_release. */
  const uint64_t tail = atomic_load_explicit(&m->words->tail, memory_order_relaxed);
  const uint64_t sequence = atomic_load_explicit(&m->words->sequence, memory_order_relaxed);
  const uint64_t head = atomic_load_explicit(&m->words->head, memory_order_acquire);
  p->skip = p->room = 0;
  return sona_unseal(tail, &p->tail) && sona_unseal(sequence, &p->sequence) && sona_unseal(head, &p->head) &&
         sona_ahead(p->head, p->tail) <= m->units;
}

static inline bool sona_shared_fits(const sona_shared_memory *m, const sona_shared_producer *p, uint64_t need) {
  return m->units - sona_ahead(p->head, p->tail) >= need;
}

/* Looks where the consumer is.  An index that is not between head as last seen and tail frees nothing. */
static inline void sona_shared_look_at_head(const sona_shared_memory *m, sona_shared_producer *p) {
  uint64_t head = 0;
  /* acquire, with the release store of head in sona_shared_release: its reads are done before these bytes are written again. */
  const uint64_t word = atomic_load_explicit(&m->words->head, memory_order_acquire);
  if (sona_unseal(word, &head) && sona_ahead(p->head, head) <= sona_ahead(p->head, p->tail)) p->head = head;
}

static inline sona_status sona_shared_reserve(const sona_shared_memory *m, sona_shared_producer *p, uint64_t size, void **record) {
  if (size > m->max_record) return SONA_EINVAL;
  const uint64_t need = sona_shared_need(size), to_end = sona_shared_to_end(m, p->tail), skip = need > to_end ? to_end : 0;
  if (!sona_shared_fits(m, p, skip + need)) sona_shared_look_at_head(m, p);
  if (!sona_shared_fits(m, p, skip + need) || p->sequence == SONA_SEALED_MAX) {
    sona_shared_count(&m->words->dropped);
    return SONA_EFULL;
  }
  p->skip = skip;
  p->room = need;
  *record = sona_shared_at(m, p->tail + skip) + 1;
  return SONA_OK;
}

/* Relaxed: the release store of tail in sona_shared_commit publishes a header. */
static inline void sona_shared_put_header(const sona_shared_memory *m, uint64_t index, uint64_t size, uint64_t sequence) {
  sona_shared_header *header = sona_shared_at(m, index);
  const uint64_t check = sona_shared_check(index & SONA_SEALED_MAX, size, sequence);
  atomic_store_explicit(&header->size, size | check << 32, memory_order_relaxed);
  atomic_store_explicit(&header->sequence, sequence, memory_order_relaxed);
}

static inline sona_status sona_shared_commit(const sona_shared_memory *m, sona_shared_producer *p, uint64_t size, uint64_t *sequence) {
  if (size > m->max_record || !p->room || sona_shared_need(size) > p->room) return SONA_EINVAL;
  const uint64_t start = p->tail + p->skip;
  if (p->skip) sona_shared_put_header(m, p->tail, SONA_SHARED_SKIP, 0);
  sona_shared_put_header(m, start, size, ++p->sequence);
  p->tail = (start + sona_shared_need(size)) & SONA_SEALED_MAX;
  p->room = 0;
  /* Before tail, so that a producer that is killed in between leaves a gap and no number is given twice.  The release orders it. */
  atomic_store_explicit(&m->words->sequence, sona_seal(p->sequence), memory_order_relaxed);
  /* release, with the acquire load of tail in sona_shared_look_at_tail: the record and its header are written before they can be seen. */
  atomic_store_explicit(&m->words->tail, sona_seal(p->tail), memory_order_release);
  if (sequence) *sequence = p->sequence;
  return SONA_OK;
}

/* ---- consumer ---- */

static inline bool sona_shared_consumer_begin(const sona_shared_memory *m, sona_shared_consumer *c) {
  uint64_t tail = 0;
  /* relaxed: this side's own word.  acquire, with the release store of tail in sona_shared_commit. */
  const uint64_t head = atomic_load_explicit(&m->words->head, memory_order_relaxed);
  const uint64_t word = atomic_load_explicit(&m->words->tail, memory_order_acquire);
  c->sequence = 0;
  c->spoiled = word;
  if (!sona_unseal(head, &c->head) || !sona_unseal(word, &tail) || sona_ahead(c->head, tail) > m->units) return false;
  c->read = c->tail = c->head;
  return true;
}

/* Looks where the producer is.  An index that is not between what was returned and a whole turn behind head shows nothing, and is counted
 * once: the producer mends it with its next record. */
static inline void sona_shared_look_at_tail(const sona_shared_memory *m, sona_shared_consumer *c) {
  uint64_t tail = 0;
  /* acquire, with the release store of tail in sona_shared_commit. */
  const uint64_t word = atomic_load_explicit(&m->words->tail, memory_order_acquire);
  if (sona_unseal(word, &tail) && sona_ahead(c->head, tail) <= m->units && sona_ahead(c->head, tail) >= sona_ahead(c->head, c->tail)) {
    c->tail = tail;
  } else if (word != c->spoiled) {
    c->spoiled = word;
    sona_shared_count(&m->words->damaged);
  }
}

/* Frees what was returned before `read` was at `mark`. */
static inline void sona_shared_release_to(const sona_shared_memory *m, sona_shared_consumer *c, uint64_t mark) {
  if (mark == c->head || mark > SONA_SEALED_MAX || sona_ahead(c->head, mark) > sona_ahead(c->head, c->read)) return;
  c->head = mark;
  /* release, with the acquire load of head in sona_shared_look_at_head: the records have been read before their bytes are free. */
  atomic_store_explicit(&m->words->head, sona_seal(c->head), memory_order_release);
}

/* Frees what was returned. */
static inline void sona_shared_release(const sona_shared_memory *m, sona_shared_consumer *c) { sona_shared_release_to(m, c, c->read); }

/* A header at c->read that stands for at least one unit before tail: its size, loaded once, and its number; false when it is damaged. */
static inline bool sona_shared_get_header(const sona_shared_memory *m, const sona_shared_consumer *c, uint64_t *size, uint64_t *sequence) {
  const sona_shared_header *header = sona_shared_at(m, c->read);
  /* relaxed: ordered by the acquire load of tail in sona_shared_look_at_tail. */
  const uint64_t word = atomic_load_explicit(&header->size, memory_order_relaxed);
  *sequence = atomic_load_explicit(&header->sequence, memory_order_relaxed);
  *size = word & UINT32_MAX;
  return word >> 32 == sona_shared_check(c->read, *size, *sequence);
}

/* A whole record at c->read, and units to step over it; false when there is damage. */
static inline bool sona_shared_get(const sona_shared_memory *m, sona_shared_consumer *c, uint64_t *size, uint64_t *sequence) {
  if (!sona_shared_get_header(m, c, size, sequence)) return false;
  if (*size == SONA_SHARED_SKIP) { /* published together with the record behind it, so there is one at the front */
    const uint64_t skip = sona_shared_to_end(m, c->read);
    if (skip >= sona_ahead(c->read, c->tail)) return false;
    c->read = (c->read + skip) & SONA_SEALED_MAX;
    if (!sona_shared_get_header(m, c, size, sequence)) return false;
  }
  const uint64_t need = sona_shared_need(*size);
  return *size <= m->max_record && need <= sona_shared_to_end(m, c->read) && need <= sona_ahead(c->read, c->tail) &&
         *sequence > c->sequence && *sequence <= SONA_SEALED_MAX;
}

static inline const void *sona_shared_next(const sona_shared_memory *m, sona_shared_consumer *c, size_t *size, uint64_t *sequence) {
  if (c->read == c->tail) sona_shared_look_at_tail(m, c);
  if (c->read == c->tail) return NULL;
  uint64_t bytes = 0, number = 0;
  const bool has_returned = c->read != c->head;
  if (!sona_shared_get(m, c, &bytes, &number)) {
    sona_shared_count(&m->words->damaged);
    c->read = c->tail;
    if (!has_returned) sona_shared_release(m, c); /* else with the records that the caller still holds */
    return NULL;
  }
  const void *record = sona_shared_at(m, c->read) + 1;
  c->read = (c->read + sona_shared_need(bytes)) & SONA_SEALED_MAX;
  c->sequence = number;
  *size = (size_t)bytes;
  if (sequence) *sequence = number;
  return record;
}

/* ---- both ---- */

/* Units between head and tail, none where one of them is damaged. */
static inline uint64_t sona_shared_used(const sona_shared_memory *m) {
  uint64_t head = 0, tail = 0;
  /* acquire, with the release store of head in sona_shared_release: tail, read next, is then not older.  It may be newer by several turns
   * of the ring, hence the bound.  relaxed: only a number. */
  const uint64_t released = atomic_load_explicit(&m->words->head, memory_order_acquire);
  const uint64_t committed = atomic_load_explicit(&m->words->tail, memory_order_relaxed);
  if (!sona_unseal(released, &head) || !sona_unseal(committed, &tail)) return 0;
  return sona_ahead(head, tail) < m->units ? sona_ahead(head, tail) : m->units;
}

#endif
