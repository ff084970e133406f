/* sona: online adapters beside a frozen model.  The whole C API is in this directory; what is not declared here is private.
 *
 * Conventions of every header:
 *   float is 32 bits; matrices are row-major; `ld` is the distance between rows in floats.
 *   Functions that can fail return sona_status and leave their arguments unchanged on failure.
 *   Functions named *_destroy accept NULL.
 *   Nothing here aborts, prints, or keeps mutable global state, but for the counter behind sona_allocations. */
#ifndef SONA_SONA_H
#define SONA_SONA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_VERSION_MAJOR 0
#define SONA_VERSION_MINOR 1
#define SONA_VERSION_PATCH 0

typedef enum sona_status {
  SONA_OK = 0,
  SONA_EINVAL = 1,     /* an argument is outside its documented range */
  SONA_ENOMEM = 2,     /* allocation failed, or a size would overflow */
  SONA_EFULL = 3,      /* no room: a bounded structure is at capacity */
  SONA_ENONFINITE = 4, /* an input holds NaN or infinity */
  SONA_ESTOPPED = 5    /* the caller's own function asked to stop */
} sona_status;

/* "0.1.0": the version of the library that is linked, to compare with the macros of the header that was compiled. */
const char *sona_version(void);

/* One lower-case sentence for a status; never NULL. */
const char *sona_status_str(sona_status status);

/* Zeroed memory aligned to 64 bytes, NULL when out of memory or when count * size overflows; never NULL for zero bytes that fit.
 * Pages of a large block are untouched until written.  Release with sona_free. */
void *sona_calloc(size_t count, size_t size);
void sona_free(void *memory); /* accepts NULL */

/* How many times sona_calloc has succeeded in this copy of the library (every extension module that links it statically has its own);
 * lets a test prove that a path does not allocate. */
uint64_t sona_allocations(void);

#ifdef __cplusplus
}
#endif
#endif
