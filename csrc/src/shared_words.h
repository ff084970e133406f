/* Private: numbers in memory that other processes may write.
 *
 * An index, a counter or an epoch lies there sealed: 48 bits of value and 16 of check, in the one word that an atomic store publishes.  A
 * word in which one byte has changed, and a word of zeros, have no value. */
#ifndef SONA_SHARED_WORDS_H
#define SONA_SHARED_WORDS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Between processes only what needs no lock is atomic: a lock would lie in one of them. */
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free");
typedef _Atomic uint64_t sona_word;

#define SONA_SEALED_MAX ((UINT64_C(1) << 48) - 1) /* the largest value; numbers that run freely wrap behind it */

/* The three 16-bit parts of a value, folded, and not 0 for 0. */
static inline uint64_t sona_seal_check(uint64_t value) { return (value ^ value >> 16 ^ value >> 32 ^ 0x5ea1) & 0xffff; }

static inline uint64_t sona_seal(uint64_t value) { return value | sona_seal_check(value) << 48; }

static inline bool sona_unseal(uint64_t word, uint64_t *value) {
  const uint64_t inside = word & SONA_SEALED_MAX;
  if (sona_seal(inside) != word) return false;
  *value = inside;
  return true;
}

/* How far index b is ahead of index a. */
static inline uint64_t sona_ahead(uint64_t a, uint64_t b) { return (b - a) & SONA_SEALED_MAX; }

#endif
