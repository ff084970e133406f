#define _POSIX_C_SOURCE 200809L
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, void **bytes, size_t *size) {
  struct stat about;
  char *read_bytes = NULL;
  size_t done = 0;
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  int error = fd < 0 || fstat(fd, &about) ? errno : 0;
  if (!error && !S_ISREG(about.st_mode)) error = EINVAL;
  if (!error && !(read_bytes = malloc((size_t)about.st_size + 1))) error = ENOMEM;
  while (!error && done < (size_t)about.st_size) {
    const ssize_t n = read(fd, read_bytes + done, (size_t)about.st_size - done);
    if (n < 0 && errno != EINTR) error = errno;
    if (n == 0) error = EIO; /* it has become shorter */
    if (n > 0) done += (size_t)n;
  }
  if (fd >= 0) close(fd);
  if (error) {
    free(read_bytes);
    return error;
  }
  *bytes = read_bytes;
  *size = done;
  return 0;
}

static int write_all(int fd, const char *at, size_t size) {
  while (size) {
    const ssize_t n = write(fd, at, size);
    if (n < 0 && errno != EINTR) return errno;
    if (n > 0) {
      at += n;
      size -= (size_t)n;
    }
  }
  return 0;
}

/* A rename is durable when its directory is. */
static int sync_directory(const char *path, char *room) {
  const char *const slash = strrchr(path, '/');
  if (slash)
    snprintf(room, (size_t)(slash - path) + 2, "%s", path);
  else
    strcpy(room, ".");
  const int fd = open(room, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int error = fsync(fd) ? errno : 0;
  close(fd);
  return error;
}

int file_replace(const char *path, const void *bytes, size_t size) {
  const size_t room = strlen(path) + 5;
  char *const fresh = malloc(room);
  if (!fresh) return ENOMEM;
  snprintf(fresh, room, "%s.new", path);
  const int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  int error = fd < 0 ? errno : write_all(fd, bytes, size);
  if (!error && fsync(fd)) error = errno;
  if (fd >= 0 && close(fd) && !error) error = errno;
  if (!error && rename(fresh, path)) error = errno;
  if (error && fd >= 0) unlink(fresh);
  if (!error) error = sync_directory(path, fresh);
  free(fresh);
  return error;
}

uint64_t file_hash(const void *bytes, size_t size) {
  const unsigned char *const at = bytes;
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; i++) hash = (hash ^ at[i]) * 0x100000001b3u;
  return hash;
}
