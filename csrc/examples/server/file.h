/* Whole files: read at once, replaced at once. */
#ifndef SERVER_FILE_H
#define SERVER_FILE_H

#include <stddef.h>
#include <stdint.h>

/* 0, or an errno.  *bytes comes from malloc and belongs to the caller. */
int file_read(const char *path, void **bytes, size_t *size);

/* Writes <path>.new, waits for the disk, renames: whoever reads finds the old file or the new one, after a power loss too.  0, or an errno,
 * and then the old file stands; the new one only where the disk refused no more than to make the rename durable.  One caller at a time for
 * each path. */
int file_replace(const char *path, const void *bytes, size_t size);

/* FNV-1a, 64 bits: against accidents, not against people. */
uint64_t file_hash(const void *bytes, size_t size);

#endif
