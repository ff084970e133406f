/* Ring: a bounded queue of variable-length byte records between exactly one producer thread and one consumer thread.
 *
 * The capacity is fixed at creation and nothing is allocated afterwards.  Every call returns at once: a full ring answers SONA_EFULL and
 * counts a drop, an empty one answers NULL, and no call waits, spins or takes a lock.  What is in the ring is never overwritten, so the
 * newest record is the one that is lost.  Records come out whole, in order, each exactly once.
 *
 * A record lies contiguous in the ring, aligned to 8 bytes, so it can be written and read in place: reserve, fill, commit on one side;
 * peek, read, release on the other.  It occupies SONA_RING_HEADER bytes and its size rounded up to 8; a record that would cross the end
 * of the ring starts again at the front and the bytes it skipped are lost until it is released.  That is why a record may take at most
 * half of the ring (sona_ring_max_record): any such record fits into an empty ring, wherever its indices stand.  Where all
 * records have one size, sona_ring_create_fixed leaves the headers out, which for small ones halves the traffic between the cores.
 *
 * Threads.  [producer] functions belong to one thread at a time, [consumer] functions to one thread at a time, [any] to every thread.
 * The two sides run concurrently.  Handing a side to another thread needs a synchronisation of the caller's (a join, a lock); two
 * producer threads without one are undefined behaviour: make one ring per producer thread.  Option `own_producer` finds that mistake. */
#ifndef SONA_RING_H
#define SONA_RING_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_RING_HEADER 8 /* bytes in front of each record */

/* In C the five calls that every record passes are inline (sona/ring_inline.h, private, like the fields of the struct): a call costs
 * about as much as their work.  C++ links them from the library.  Recompile what includes this header when the library changes. */
#ifndef SONA_RING_CALL
#ifdef __cplusplus
#define SONA_RING_CALL SONA_API
#else
#define SONA_RING_CALL static inline
#endif
#endif

typedef struct sona_ring sona_ring;

/* Zero-initialise, then set what is needed. */
typedef struct sona_ring_options {
  size_t capacity;    /* bytes, a power of two >= 16 */
  size_t max_records; /* also full at this many records; 0: only bytes count */
  size_t first;       /* where the free-running byte and record counters start, a multiple of 8: lets a test reach SIZE_MAX */
  int own_producer;   /* debugging: the first thread to reserve owns the producer side, any other gets SONA_EINVAL.  Costs one relaxed
                       * load a record; a thread that starts after the owner has ended may be taken for it. */
} sona_ring_options;

/* SONA_EINVAL for an option out of range; SONA_ENOMEM when the memory cannot be had.  *out is untouched on failure. */
SONA_API sona_status sona_ring_create(const sona_ring_options *options, sona_ring **out);

/* The same for records of exactly `record` bytes, 1 to half of the capacity, without headers. */
SONA_API sona_status sona_ring_create_fixed(const sona_ring_options *options, size_t record, sona_ring **out);

/* Neither side may be in use.  Records that are still inside are gone.  Accepts NULL. */
SONA_API void sona_ring_destroy(sona_ring *ring);

/* ---- producer ---- */

/* [producer] Sets *record to room for `size` bytes, aligned to 8, that the consumer cannot see before sona_ring_commit.  Reserving again
 * without a commit forgets the first reservation.  SONA_EFULL: no room now, and the drop counter is one higher; SONA_EINVAL: size is above
 * sona_ring_max_record or not the fixed one (never fits, not counted).  *record is untouched on failure.  size may be 0. */
SONA_RING_CALL sona_status sona_ring_reserve(sona_ring *ring, size_t size, void **record);

/* [producer] Publishes the first `size` bytes of the reservation as one record.  SONA_EINVAL without a reservation, or when size exceeds
 * it (rounded up to 8) or is not the fixed one; nothing is published then. */
SONA_RING_CALL sona_status sona_ring_commit(sona_ring *ring, size_t size);

/* [producer] Reserve, copy, commit in one: a little faster for small records.  data may be NULL when size is 0. */
SONA_RING_CALL sona_status sona_ring_push(sona_ring *ring, const void *data, size_t size);

/* ---- consumer ---- */

/* [consumer] The oldest record, not NULL even if it is empty, and its size; NULL when the ring holds none.  The bytes belong to the ring
 * and stay valid until sona_ring_release.  Peeking again returns the same record. */
SONA_RING_CALL const void *sona_ring_peek(sona_ring *ring, size_t *size);

/* [consumer] Frees the record that sona_ring_peek returned; without one, does nothing. */
SONA_RING_CALL void sona_ring_release(sona_ring *ring);

/* [consumer] Peek, copy, release: 1 when a record was copied, 0 when the ring is empty or when the record is larger than `room` and stays.
 * *size is the size of the record in both cases that met one, 0 when the ring is empty. */
SONA_API int sona_ring_pop(sona_ring *ring, void *data, size_t room, size_t *size);

/* ---- both ---- */

/* [any] Fixed at creation: bytes of the ring, and the largest record it takes. */
SONA_API size_t sona_ring_capacity(const sona_ring *ring);
SONA_API size_t sona_ring_max_record(const sona_ring *ring);

/* [any] A snapshot: bytes in use, with headers and skipped bytes, and records inside.  Exact on a thread that is one of the two sides
 * while the other rests; otherwise true of some moment during the call or close to it, and never above the capacity. */
SONA_API size_t sona_ring_used(const sona_ring *ring);
SONA_API size_t sona_ring_records(const sona_ring *ring);

/* [any] How many reservations were answered SONA_EFULL. */
SONA_API uint64_t sona_ring_dropped(const sona_ring *ring);

#ifdef __cplusplus
}
#else
#include "sona/ring_inline.h"
#endif
#endif
