/* Version, status texts and memory. */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "sona/sona.h"

#define ALIGNMENT 64 /* one cache line, and at least one vector register */

#define TEXT(number) #number
#define VERSION_TEXT(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)

/* The two mutable globals of the library.  `allocations` counts and decides nothing.  Relaxed: no other memory is published through it.
 * `allocator` is NULL until one is named or needed, and never changes again. */
static _Atomic uint64_t allocations;
static _Atomic(const sona_allocator *) allocator;

static const sona_allocator c_library = {calloc, free};

const char *sona_version(void) { return VERSION_TEXT(SONA_VERSION_MAJOR, SONA_VERSION_MINOR, SONA_VERSION_PATCH); }

int sona_version_number(void) { return SONA_VERSION_NUMBER; }

/* What must be equal for an interface to be the same: the major version, and the minor one while that is 0. */
static int interface_of(int number) { return number < 10000 ? number / 100 : number / 10000 * 100; }

int sona_version_fits(int number) {
  return number > 0 && number <= SONA_VERSION_NUMBER && interface_of(number) == interface_of(SONA_VERSION_NUMBER);
}

const char *sona_status_str(sona_status status) {
  switch (status) {
    case SONA_OK: return "success";
    case SONA_EINVAL: return "an argument is outside its documented range";
    case SONA_ENOMEM: return "out of memory, or a size that overflows";
    case SONA_EFULL: return "a bounded structure is full";
    case SONA_ENONFINITE: return "an input holds NaN or infinity";
    case SONA_ESTOPPED: return "stopped by the caller";
    case SONA_EIO: return "the operating system refused, see errno";
    case SONA_EBUSY: return "in use by another process";
    case SONA_ECORRUPT: return "a file or bytes that are not what they should be";
    case SONA_EVERSION: return "of another format, width or model";
    case SONA_EAGAIN: return "not now, try again later";
  }
  return "unknown status";
}

/* The allocator that counts from now on: `wanted`, unless another came first.  Release, with the acquire of those who find it: what it
 * points to was written before. */
static const sona_allocator *settle(const sona_allocator *wanted) {
  const sona_allocator *found = NULL;
  return atomic_compare_exchange_strong_explicit(&allocator, &found, wanted, memory_order_acq_rel, memory_order_acquire) ? wanted : found;
}

sona_status sona_set_allocator(const sona_allocator *wanted) {
  if (!wanted || !wanted->allocate || !wanted->release) return SONA_EINVAL;
  return settle(wanted) == wanted ? SONA_OK : SONA_EINVAL;
}

/* Layout: [slack | address of the whole block | ALIGNMENT-aligned memory].  calloc rather than aligned_alloc and memset, because it
 * hands out large blocks as untouched zero pages: a big ring costs resident memory only as it fills. */
void *sona_calloc(size_t count, size_t size) {
  if (size && count > (PTRDIFF_MAX - ALIGNMENT) / size) return NULL; /* no object may be larger than PTRDIFF_MAX */
  const sona_allocator *from = atomic_load_explicit(&allocator, memory_order_acquire);
  if (!from) from = settle(&c_library);
  char *block = from->allocate(1, count * size + ALIGNMENT);
  if (!block) return NULL;
  /* malloc aligns to at least a pointer, so at least sizeof(void *) of the 1..ALIGNMENT skipped bytes lie before `memory`. */
  char *memory = block + (ALIGNMENT - (uintptr_t)block % ALIGNMENT);
  ((void **)(void *)memory)[-1] = block;
  atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
  return memory;
}

void sona_free(void *memory) {
  if (memory) atomic_load_explicit(&allocator, memory_order_acquire)->release(((void **)memory)[-1]);
}

uint64_t sona_allocations(void) { return atomic_load_explicit(&allocations, memory_order_relaxed); }
