/* Shared ring: a bounded queue of variable-length byte records between two processes, in a file that both map.
 *
 * The promises of sona/ring.h hold between processes: nothing is allocated after opening, no call waits, what is in the ring is never
 * overwritten, a full ring loses the newest record and counts it, records come out whole, in order, each exactly once.  On top of that:
 *
 *   Death.  A record is committed when sona_shared_ring_commit returns.  Either process may be killed at any moment: what was committed is
 *     there for whoever opens the file next, and the other side goes on meanwhile.  The file is not flushed to the disk: a power loss, or a
 *     crash of the operating system, may lose or damage all of it.
 *   Trust.  Nothing in the file is believed.  Sizes and places are private copies, checked against the file when it is opened; an index or
 *     a record's header is checked before it is used.  Damage is an error status or is counted, never a crash.  The bytes of a record are
 *     whatever the producer wrote: check them, and copy what must not change while it is checked.  One thing cannot be fended off: a file
 *     that is cut while it is mapped raises SIGBUS in both processes, so nothing but this library may write to it.
 *   Sequence.  Every record has a number: 1, 2, ... over the life of the file, never given twice; a killed producer may leave a gap.
 *
 * One process at a time has each side; locks on the file, which end with the process, see to that.  A child of fork cannot use its
 * parent's handle (it shares the locks with it until it closes the handle or ends), and the parent's is unaffected.  For low latency put
 * the file where files live in memory (/dev/shm).  POSIX only; both processes must be of one machine.
 *
 * Threads.  One thread at a time uses a handle; [any] functions may run beside.  One process may open both sides, as two handles. */
#ifndef SONA_SHARED_RING_H
#define SONA_SHARED_RING_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_SHARED_RING_HEADER 16   /* bytes in front of each record, whose size is rounded up to a multiple of as many */
#define SONA_SHARED_RING_IDENTITY 16 /* bytes */

typedef struct sona_shared_ring sona_shared_ring;

typedef enum sona_side { SONA_PRODUCER = 0, SONA_CONSUMER = 1 } sona_side;

/* Opens one side.  Whoever comes first makes the file, or takes an empty one: for its owner only (mode 0600), with all of its room on the
 * disk.  capacity: bytes, a power of two from 4096; 0: that of the file, which must be there.
 *   SONA_EINVAL    a capacity out of range, or another one than the file's
 *   SONA_EIO       errno says why; ENOENT: capacity is 0 and nobody has made the file.  A symbolic link is not followed (ELOOP).
 *   SONA_EBUSY     the side is taken
 *   SONA_ECORRUPT  not a ring, or a damaged one: it stays so until it is removed
 *   SONA_EVERSION  a ring of another format
 *   SONA_ENOMEM
 * *out is untouched on failure.  May wait for another process that is making the file. */
SONA_API sona_status sona_shared_ring_open(const char *path, sona_side side, size_t capacity, sona_shared_ring **out);

/* Gives the side back; the file and what is in it stay.  Records that the consumer has not released come again.  Accepts NULL. */
SONA_API void sona_shared_ring_close(sona_shared_ring *ring);

/* ---- producer; SONA_EINVAL on a consumer's handle and in a child of fork ---- */

/* [producer] Sets *record to room for `size` bytes, aligned to 16, that the consumer cannot see before sona_shared_ring_commit.  Reserving
 * again without a commit forgets the first reservation.  SONA_EFULL: no room now, and the drop counter is one higher; SONA_EINVAL: size is
 * above sona_shared_ring_max_record.  *record is untouched on failure.  size may be 0. */
SONA_API sona_status sona_shared_ring_reserve(sona_shared_ring *ring, size_t size, void **record);

/* [producer] Publishes the first `size` bytes of the reservation as one record; *sequence, which may be NULL, is its number.  SONA_EINVAL
 * without a reservation, or when size exceeds it; nothing is published then. */
SONA_API sona_status sona_shared_ring_commit(sona_shared_ring *ring, size_t size, uint64_t *sequence);

/* [producer] Reserve, copy, commit in one.  data may be NULL when size is 0. */
SONA_API sona_status sona_shared_ring_push(sona_shared_ring *ring, const void *data, size_t size, uint64_t *sequence);

/* ---- consumer; they do nothing on a producer's handle and in a child of fork ---- */

/* [consumer] The oldest record that this handle has not returned yet, not NULL even if it is empty, with its size and number; NULL when
 * there is none.  It stays valid until sona_shared_ring_release.  Damage ends in NULL and is counted: a damaged header drops the records
 * from there on that the consumer knows of, a damaged index of the producer drops none and is mended by its next commit. */
SONA_API const void *sona_shared_ring_next(sona_shared_ring *ring, size_t *size, uint64_t *sequence);

/* [consumer] Frees all records that sona_shared_ring_next has returned.  A consumer that ends before gets them again. */
SONA_API void sona_shared_ring_release(sona_shared_ring *ring);

/* [consumer] A mark behind the records that sona_shared_ring_next has returned until now, for a consumer that keeps them in the ring while
 * it reads on: release_to frees what was returned before the mark, and does nothing with one that is not of what is still kept. */
SONA_API uint64_t sona_shared_ring_mark(const sona_shared_ring *ring);
SONA_API void sona_shared_ring_release_to(sona_shared_ring *ring, uint64_t mark);

/* ---- both ---- */

/* [any] SONA_SHARED_RING_IDENTITY random bytes, drawn when the file was made: its sequence numbers count within them. */
SONA_API const uint8_t *sona_shared_ring_identity(const sona_shared_ring *ring);

/* [any] Bytes of the ring, and the largest record it takes. */
SONA_API size_t sona_shared_ring_capacity(const sona_shared_ring *ring);
SONA_API size_t sona_shared_ring_max_record(const sona_shared_ring *ring);

/* [any] A snapshot: bytes in use, with headers and skipped bytes, also those returned and not released; never above the capacity. */
SONA_API size_t sona_shared_ring_used(const sona_shared_ring *ring);

/* [any] Over the life of the file: reservations that were answered SONA_EFULL, and damages that consumers have met. */
SONA_API uint64_t sona_shared_ring_dropped(const sona_shared_ring *ring);
SONA_API uint64_t sona_shared_ring_damaged(const sona_shared_ring *ring);

#ifdef __cplusplus
}
#endif
#endif
