/* Version, status texts and memory. */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "sona/sona.h"

#define ALIGNMENT 64 /* one cache line, and at least one vector register */

#define TEXT(number) #number
#define VERSION_TEXT(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)

/* The one mutable global of the library: it counts and decides nothing.  Relaxed: no other memory is published through it. */
static _Atomic uint64_t allocations;

const char *sona_version(void) { return VERSION_TEXT(SONA_VERSION_MAJOR, SONA_VERSION_MINOR, SONA_VERSION_PATCH); }

const char *sona_status_str(sona_status status) {
  switch (status) {
    case SONA_OK: return "success";
    case SONA_EINVAL: return "an argument is outside its documented range";
    case SONA_ENOMEM: return "out of memory, or a size that overflows";
    case SONA_EFULL: return "a bounded structure is full";
    case SONA_ENONFINITE: return "an input holds NaN or infinity";
    case SONA_ESTOPPED: return "stopped by the caller";
  }
  return "unknown status";
}

/* Layout: [slack | address of the whole block | ALIGNMENT-aligned memory].  calloc rather than aligned_alloc and memset, because it
 * hands out large blocks as untouched zero pages: a big ring costs resident memory only as it fills. */
void *sona_calloc(size_t count, size_t size) {
  if (size && count > (PTRDIFF_MAX - ALIGNMENT) / size) return NULL; /* no object may be larger than PTRDIFF_MAX */
  char *block = calloc(1, count * size + ALIGNMENT);
  if (!block) return NULL;
  /* calloc aligns to at least a pointer, so at least sizeof(void *) of the 1..ALIGNMENT skipped bytes lie before `memory`. */
  char *memory = block + (ALIGNMENT - (uintptr_t)block % ALIGNMENT);
  ((void **)(void *)memory)[-1] = block;
  atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
  return memory;
}

void sona_free(void *memory) {
  if (memory) free(((void **)memory)[-1]);
}

uint64_t sona_allocations(void) { return atomic_load_explicit(&allocations, memory_order_relaxed); }
