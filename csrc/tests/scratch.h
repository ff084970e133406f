/* Files of a test: names below a directory of its own, which goes when the test ends.  The test defines
 * _GNU_SOURCE before its first #include. */
#ifndef SONA_SCRATCH_H
#define SONA_SCRATCH_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char scratch_directory[256];
static pid_t scratch_owner;
static unsigned scratch_names;

static void scratch_remove(void) {
  if (getpid() != scratch_owner) return; /* a child of fork */
  char path[300];
  for (unsigned i = 0; i < scratch_names; i++) {
    snprintf(path, sizeof path, "%s/%u", scratch_directory, i);
    remove(path);
  }
  rmdir(scratch_directory);
}

/* A path where nothing is yet; valid for the next 7 calls. */
static const char *scratch_path(void) {
  static char paths[8][300];
  if (!scratch_owner) {
    const char *base = getenv("TMPDIR");
    snprintf(scratch_directory, sizeof scratch_directory, "%s/sona-test-XXXXXX", base && *base ? base : "/tmp");
    scratch_owner = getpid();
    if (!mkdtemp(scratch_directory)) {
      perror(scratch_directory);
      exit(1);
    }
    atexit(scratch_remove);
  }
  char *path = paths[scratch_names % 8];
  snprintf(path, sizeof paths[0], "%s/%u", scratch_directory, scratch_names++);
  return path;
}

static inline size_t scratch_size(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 ? (size_t)found.st_size : SIZE_MAX;
}

/* The file, mapped for a test that plays the other process: everything it writes is seen at once.  Release with munmap. */
static inline unsigned char *scratch_map(const char *path, size_t *size) {
  const int fd = open(path, O_RDWR);
  *size = scratch_size(path);
  void *bytes = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (bytes == MAP_FAILED) {
    perror(path);
    exit(1);
  }
  return bytes;
}

static inline void scratch_write(const char *path, const void *bytes, size_t size) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
    perror(path);
    exit(1);
  }
}

/* How often something is repeated: SONA_TEST_ROUNDS times as often when that is set. */
static inline int scratch_rounds(int rounds) {
  const char *times = getenv("SONA_TEST_ROUNDS");
  return times && *times ? rounds * atoi(times) : rounds;
}

#endif
