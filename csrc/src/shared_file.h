/* Private: files that processes share: made once, locked, mapped.  No other part of the library asks the operating system for anything
 * but memory. */
#ifndef SONA_SHARED_FILE_H
#define SONA_SHARED_FILE_H

#include <stdbool.h>

#include "shared_words.h"
#include "sona/sona.h"

enum { SONA_FILE_HEAD = 4096 }; /* bytes in front of what a file is for */

/* The first word of a file says what it is; it is the last that its maker writes. */
typedef struct sona_file_request {
  const char *path;
  uint64_t magic;
  bool writes;      /* maps it for writing, and holds the lock `side` */
  unsigned side;    /* 0 or 1 */
  size_t make_size; /* bytes of the file when it has to be made, with its head; 0: it must be there */
} sona_file_request;

typedef struct sona_file {
  int fd;
  unsigned char *bytes; /* (size), mapped */
  size_t size;
  bool made;          /* all zero but for the first word: the caller fills it in */
  sona_word *parents; /* a page that a child of fork finds empty; NULL where there is no such page */
  uint64_t process;   /* who opened it */
} sona_file;

/* Opens and maps.  A writer has the file to itself until sona_file_settle or sona_file_close; a reader never sees one that is half made.
 * SONA_EIO, SONA_EBUSY, SONA_ENOMEM; SONA_ECORRUPT: no regular file, shorter than its head, or another magic. */
sona_status sona_file_open(const sona_file_request *request, sona_file *out);

/* [writer] Says that the file is whole and lets others open it. */
void sona_file_settle(sona_file *file, uint64_t magic);

void sona_file_close(sona_file *file);

/* The slow half of sona_file_is_ours. */
bool sona_file_is_of_this_process(const sona_file *file);

/* False in a child of fork.  Relaxed: nothing is published through the page. */
static inline bool sona_file_is_ours(const sona_file *file) {
  return file->parents ? atomic_load_explicit(file->parents, memory_order_relaxed) != 0 : sona_file_is_of_this_process(file);
}

/* Random bytes of the operating system; false: errno says why there are none. */
bool sona_random_bytes(void *to, size_t size);

uint64_t sona_monotonic_ns(void);

#endif
