/* The operating system refuses: every call that opening a file makes fails in turn.  Each time the answer is SONA_EIO (or what the call
 * stands for) with its errno, no descriptor, lock or file that passes for a whole one is left, and the next attempt succeeds. The functions
 * below stand in front of those of the C library. */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "check.h"
#include "scratch.h"
#include "sona/shared_ring.h"
#include "sona/weights.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

enum call { OPEN, FSTAT, FCNTL, PREAD, PWRITE, FTRUNCATE, FALLOCATE, MADVISE, READ, MMAP, CALLS };

static const char *const names[CALLS] = {"open",      "fstat",           "fcntl",   "pread", "pwrite",
                                         "ftruncate", "posix_fallocate", "madvise", "read",  "mmap"};

/* From call number `from` on, `times` calls of that function fail with `reason`. */
static struct fault {
  enum call call;
  int from, times, reason;
} fault;
static int made[CALLS];  /* calls since the fault was set */
static int short_writes; /* pwrite writes half of what it is asked to */
static int unheeded;     /* madvise succeeds and does nothing */

static int fails(enum call call) {
  const int number = made[call]++;
  if (call != fault.call || number < fault.from || number >= fault.from + fault.times) return 0;
  errno = fault.reason;
  return 1;
}

static void set(enum call call, int from, int times, int reason) {
  fault = (struct fault){call, from, times, reason};
  memset(made, 0, sizeof made);
}

static void clear(void) { set(OPEN, 0, 0, 0); }

/* `real`: the function of the C library. */
#define REAL(name)                                \
  static __typeof__(&name) real;                  \
  if (!real) {                                    \
    void *found_##name = dlsym(RTLD_NEXT, #name); \
    memcpy(&real, &found_##name, sizeof real);    \
  }

int open(const char *path, int flags, ...) {
  REAL(open)
  va_list rest;
  va_start(rest, flags);
  const int mode = flags & O_CREAT ? va_arg(rest, int) : 0;
  va_end(rest);
  return fails(OPEN) ? -1 : real(path, flags, mode);
}

int fstat(int fd, struct stat *found) {
  REAL(fstat)
  return fails(FSTAT) ? -1 : real(fd, found);
}

int fcntl(int fd, int command, ...) {
  REAL(fcntl)
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  return fails(FCNTL) ? -1 : real(fd, command, argument);
}

ssize_t pread(int fd, void *to, size_t size, off_t at) {
  REAL(pread)
  return fails(PREAD) ? -1 : real(fd, to, size, at);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
  REAL(pwrite)
  return fails(PWRITE) ? -1 : real(fd, from, short_writes && size > 5 ? size / 2 : size, at);
}

int ftruncate(int fd, off_t size) {
  REAL(ftruncate)
  return fails(FTRUNCATE) ? -1 : real(fd, size);
}

int posix_fallocate(int fd, off_t at, off_t size) {
  REAL(posix_fallocate)
  return fails(FALLOCATE) ? fault.reason : real(fd, at, size);
}

int madvise(void *memory, size_t size, int advice) {
  REAL(madvise)
  if (fails(MADVISE)) return -1;
  return unheeded ? 0 : real(memory, size, advice);
}

ssize_t read(int fd, void *to, size_t size) {
  REAL(read)
  return fails(READ) ? -1 : real(fd, to, size);
}

#if defined(__linux__) && !defined(SANITIZED) /* sanitizers map before dlsym works */
void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t at) {
  return fails(MMAP) ? MAP_FAILED : (void *)syscall(SYS_mmap, where, size, protection, flags, fd, at);
}
#endif

enum { CAPACITY = 8192, WHOLE = 4096 + CAPACITY };

/* The lowest descriptor that is free: it grows when one is left open. */
static int next_descriptor(void) {
  const int fd = dup(0);
  close(fd);
  return fd;
}

static sona_status open_ring(const char *path, sona_side side, size_t capacity) {
  sona_shared_ring *ring = NULL;
  const sona_status status = sona_shared_ring_open(path, side, capacity, &ring);
  CHECK_EQ(ring != NULL, status == SONA_OK);
  if (ring) CHECK_EQ(sona_shared_ring_capacity(ring), CAPACITY);
  const int reason = errno;
  sona_shared_ring_close(ring);
  errno = reason;
  return status;
}

static const sona_weights_options options = {.layers = 1, .dim = 4, .max_rank = 2};

static sona_status open_weights(const char *path, int writes) {
  sona_weights *w = NULL;
  const sona_status status = writes ? sona_weights_create(path, &options, &w) : sona_weights_open(path, &options, &w);
  CHECK_EQ(w != NULL, status == SONA_OK);
  const int reason = errno;
  sona_weights_close(w);
  errno = reason;
  return status;
}

/* Makes or opens something at a path. */
static sona_status attempt(int kind, const char *path) {
  switch (kind) {
    case 0: return open_ring(path, SONA_PRODUCER, CAPACITY);
    case 1: return open_ring(path, SONA_CONSUMER, 0);
    case 2: return open_weights(path, 1);
    default: return open_weights(path, 0);
  }
}

static void every_call_fails_in_turn(void) {
  const int before = next_descriptor();
  for (int kind = 0; kind < 4; kind++) {
    for (enum call call = 0; call < CALLS; call++) {
      int refused = 0, count = 1;
      for (int number = 0; number < count; number++) {
        const char *path = scratch_path();
        clear();
        if (kind == 1) CHECK_EQ(open_ring(path, SONA_PRODUCER, CAPACITY), SONA_OK);
        if (kind == 3) CHECK_EQ(open_weights(path, 1), SONA_OK);
        set(call, number, 1, ENOLCK);
        const sona_status status = attempt(kind, path);
        const int reason = errno;
        count = made[call];
        if (status == SONA_OK) {
          /* What can be missed: the page that notices forks, and letting go of a lock that the descriptor takes along. */
          CHECK(number >= count || call == MADVISE || call == FCNTL || call == MMAP);
        } else {
          CHECK_EQ(status, SONA_EIO);
          CHECK_EQ(reason, ENOLCK);
          refused++;
        }
        clear();
        CHECK_EQ(next_descriptor(), before);
        CHECK_EQ(attempt(kind, path), SONA_OK);
      }
      const int makes = kind == 0 || kind == 2;
      const int asked = call == OPEN || call == FSTAT || call == PREAD || (call == FCNTL && kind != 3) ||
                        (makes && (call == PWRITE || call == FTRUNCATE || call == FALLOCATE)) || (call == READ && kind == 0);
      if (asked && !refused) fprintf(stderr, "%s, kind %d: never refused\n", names[call], kind);
      CHECK(!asked || refused > 0);
    }
  }
}

static void a_mapping_that_finds_no_memory_says_so(void) {
#if defined(__linux__) && !defined(SANITIZED)
  const char *path = scratch_path();
  set(MMAP, 0, 1, ENOMEM);
  CHECK_EQ(open_ring(path, SONA_PRODUCER, CAPACITY), SONA_ENOMEM);
  clear();
  CHECK_EQ(open_ring(path, SONA_PRODUCER, CAPACITY), SONA_OK);
#endif
}

/* A file system that cannot set room aside gets zeros, in pieces when it must be; so does one that lets a signal stop it. */
static void zeros_are_written_where_room_cannot_be_set_aside(void) {
  static const int reasons[] = {EOPNOTSUPP, EINVAL, EINTR};
  for (int i = 0; i < 6; i++) {
    const char *path = scratch_path();
    set(FALLOCATE, 0, 1, reasons[i % 3]);
    short_writes = i / 3;
    CHECK_EQ(open_ring(path, SONA_PRODUCER, CAPACITY), SONA_OK);
    CHECK(made[PWRITE] > 1 + 2 * short_writes);
    CHECK_EQ(scratch_size(path), WHOLE);
    struct stat found;
    clear();
    CHECK_EQ(stat(path, &found), 0);
    CHECK(found.st_blocks * 512 >= CAPACITY);
    short_writes = 0;
  }
  /* A disk that fills up meanwhile. */
  const char *path = scratch_path();
  sona_shared_ring *ring = NULL;
  set(FALLOCATE, 0, 1, EOPNOTSUPP);
  CHECK_EQ(sona_shared_ring_open(path, SONA_PRODUCER, 1 << 20, &ring), SONA_OK);
  const int writes = made[PWRITE];
  sona_shared_ring_close(ring);
  CHECK(writes > 4);
}

static void what_is_interrupted_is_done_again(void) {
  for (int number = 0; number < 3; number++) {
    const char *path = scratch_path();
    set(FCNTL, number, 3, EINTR);
    CHECK_EQ(open_ring(path, SONA_PRODUCER, CAPACITY), SONA_OK);
    set(PWRITE, 0, 3, EINTR);
    CHECK_EQ(open_ring(scratch_path(), SONA_PRODUCER, CAPACITY), SONA_OK);
    clear();
    CHECK_EQ(open_ring(path, SONA_CONSUMER, 0), SONA_OK);
  }
}

/* Where a lock cannot belong to a handle it belongs to the process, and other processes are kept out all the same. */
static void older_kernels_lock_by_process(void) {
  const char *path = scratch_path();
  sona_shared_ring *ring = NULL;
  set(FCNTL, 0, 1, EINVAL);
  CHECK_EQ(sona_shared_ring_open(path, SONA_PRODUCER, CAPACITY, &ring), SONA_OK);
  clear();
  for (int whose = 0; whose < 2; whose++) {
    const pid_t child = fork();
    if (child == 0) {
      if (whose) set(FCNTL, 0, 1, EINVAL);
      _exit(open_ring(path, SONA_PRODUCER, 0) == SONA_EBUSY ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
  }
  sona_shared_ring_close(ring);
  CHECK_EQ(open_ring(path, SONA_PRODUCER, 0), SONA_OK);
  set(FCNTL, 0, 2, EINVAL); /* and a file system that has no locks at all */
  CHECK_EQ(open_ring(path, SONA_PRODUCER, 0), SONA_EIO);
  CHECK_EQ(errno, EINVAL);
  set(FCNTL, 0, 1, EACCES);
  CHECK_EQ(open_ring(path, SONA_PRODUCER, 0), SONA_EBUSY);
  clear();
}

/* Without the page that fork empties, or where it cannot be relied on, a child is known by its process number. */
static void a_child_is_known_without_the_page(void) {
  for (int way = 0; way < 2; way++) {
    const char *path = scratch_path();
    sona_shared_ring *ring = NULL;
    if (way == 0) set(MADVISE, 0, 2, EINVAL);
    unheeded = way == 1;
    CHECK_EQ(sona_shared_ring_open(path, SONA_PRODUCER, CAPACITY, &ring), SONA_OK);
    unheeded = 0;
    clear();
    CHECK_EQ(sona_shared_ring_push(ring, "x", 1, NULL), SONA_OK);
    const pid_t child = fork();
    if (child == 0) _exit(sona_shared_ring_push(ring, "y", 1, NULL) == SONA_EINVAL ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
    CHECK_EQ(sona_shared_ring_push(ring, "z", 1, NULL), SONA_OK);
    sona_shared_ring_close(ring);
  }
}

int main(void) {
  sona_free(sona_calloc(1, 1)); /* dlsym and stdio have what they need from now on */
  every_call_fails_in_turn();
  a_mapping_that_finds_no_memory_says_so();
  zeros_are_written_where_room_cannot_be_set_aside();
  what_is_interrupted_is_done_again();
  older_kernels_lock_by_process();
  a_child_is_known_without_the_page();
  return check_done("shared_file");
}
