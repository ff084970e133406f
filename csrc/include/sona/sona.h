/* sona: online adapters beside a frozen model.  The whole C API is in this directory; what is not declared here is private.
 *
 * Conventions of every header:
 *   float is 32 bits; matrices are row-major; `ld` is the distance between rows in floats.
 *   Functions that can fail return sona_status and leave their arguments unchanged on failure.
 *   Functions named *_destroy accept NULL.
 *   Nothing here aborts, prints, or keeps mutable global state, but for the allocator and the counter behind sona_allocations. */
#ifndef SONA_SONA_H
#define SONA_SONA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* In front of what the shared library exports.  Only the objects of that library are compiled with SONA_SHARED; with -fvisibility=hidden
 * everything else keeps to itself: a static library does not show through the shared object that it is linked into. */
#if defined(SONA_SHARED) && defined(__GNUC__)
#define SONA_API __attribute__((visibility("default")))
#else
#define SONA_API
#endif

/* In front of what C11 has and C++17 has only as an extension of every compiler: flexible arrays. */
#ifdef __GNUC__
#define SONA_EXTENSION __extension__
#else
#define SONA_EXTENSION
#endif

/* ---- version ---- */

/* The one place where the version of the C library stands; the builds read it here.  Programs compiled with 1.2.0 run with 1.2.1 and 1.3.0;
 * while the major version is 0, a new minor version is a new interface: 0.1.0 goes with 0.1.1, not with 0.2.0. */
#define SONA_VERSION_MAJOR 0
#define SONA_VERSION_MINOR 1
#define SONA_VERSION_PATCH 0
#define SONA_VERSION_NUMBER (SONA_VERSION_MAJOR * 10000 + SONA_VERSION_MINOR * 100 + SONA_VERSION_PATCH)

typedef enum sona_status {
  SONA_OK = 0,
  SONA_EINVAL = 1,     /* an argument is outside its documented range */
  SONA_ENOMEM = 2,     /* allocation failed, or a size would overflow */
  SONA_EFULL = 3,      /* no room: a bounded structure is at capacity */
  SONA_ENONFINITE = 4, /* an input holds NaN or infinity */
  SONA_ESTOPPED = 5,   /* the caller's own function asked to stop */
  SONA_EIO = 6,        /* the operating system refused; errno holds why */
  SONA_EBUSY = 7,      /* another process, or another handle, has that side of the file */
  SONA_ECORRUPT = 8,   /* a file or bytes that are not what they should be */
  SONA_EVERSION = 9,   /* intact, but of a format, width or model that is not the one asked for */
  SONA_EAGAIN = 10     /* not now: try again later */
} sona_status;

/* Of the library that is linked, where the macros above are of the headers that were compiled: "0.1.0", and its SONA_VERSION_NUMBER. */
SONA_API const char *sona_version(void);
SONA_API int sona_version_number(void);

/* 1 when a program compiled with the headers of that SONA_VERSION_NUMBER can use the library that is linked, else 0: another interface, or
 * an older library.  Programs that load the library at run time ask before anything else:
 *   if (!sona_version_fits(SONA_VERSION_NUMBER)) return refuse(sona_version()); */
SONA_API int sona_version_fits(int number);

/* One lower-case sentence for a status; never NULL. */
SONA_API const char *sona_status_str(sona_status status);

/* ---- memory: everything that the library allocates comes from sona_calloc ---- */

/* Zeroed memory aligned to 64 bytes, NULL when out of memory or when count * size overflows; never NULL for zero bytes that fit.
 * Pages of a large block are untouched until written.  Release with sona_free. */
SONA_API void *sona_calloc(size_t count, size_t size);
SONA_API void sona_free(void *memory); /* accepts NULL */

/* What sona_calloc and sona_free stand on: calloc and free of the C library, unless a program names its own.
 *   allocate  (count, size): zeroed memory aligned as malloc aligns, or NULL
 *   release   takes what allocate returned, never NULL
 * Any thread that calls the library may call them, several at once.  No lock is held meanwhile; they must not call the library. */
typedef struct sona_allocator {
  void *(*allocate)(size_t count, size_t size);
  void (*release)(void *memory);
} sona_allocator;

/* Names the allocator of this copy of the library, once and before its first allocation: what one pair allocated no other could release.
 * *allocator is kept, not copied: it must stay as it is while the library is used.  Naming the same one again is SONA_OK.  SONA_EINVAL:
 * NULL, a NULL function, or too late, because something was allocated or another one was named; nothing changes then.  Any thread: of
 * several that name one or allocate for the first time at once, one comes first and decides for all. */
SONA_API sona_status sona_set_allocator(const sona_allocator *allocator);

/* How many times sona_calloc has succeeded in this copy of the library (every extension module that links it statically has its own);
 * lets a test prove that a path does not allocate. */
SONA_API uint64_t sona_allocations(void);

#ifdef __cplusplus
}
#endif
#endif
