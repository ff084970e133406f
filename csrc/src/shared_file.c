/* Locks for open file descriptions, and pages that fork empties, are there only when asked for. */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "shared_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* In place of the magic while a file is being made. */
#define MAKING UINT64_C(0x676e696b616d0a01)

/* The byte that is locked while a file is opened for writing; bytes 0 and 1 are the sides. */
enum { OPENING = 2 };

/* Locks that belong to the handle end with its last descriptor and so with the process.  Where there are none the lock belongs to the
 * process: it ends with it too, but does not keep two handles of one process apart. */
#ifdef F_OFD_SETLK
static const int lock_now[] = {F_OFD_SETLK, F_SETLK}, lock_wait[] = {F_OFD_SETLKW, F_SETLKW};
#else
static const int lock_now[] = {F_SETLK, F_SETLK}, lock_wait[] = {F_SETLKW, F_SETLKW};
#endif

static sona_status set_lock(int fd, short type, off_t byte, const int commands[2]) {
  for (int i = 0;;) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, commands[i], &lock) == 0) return SONA_OK;
    if (errno == EAGAIN || errno == EACCES) return SONA_EBUSY;
    if (errno == EINVAL && i == 0) { /* a kernel older than the headers */
      i = 1;
    } else if (errno != EINTR) {
      return SONA_EIO;
    }
  }
}

static bool write_all(int fd, const void *from, size_t size, off_t at) {
  while (size > 0) {
    const ssize_t done = pwrite(fd, from, size, at);
    if (done < 0 && errno != EINTR) return false;
    if (done > 0) {
      from = (const char *)from + done;
      size -= (size_t)done;
      at += done;
    }
  }
  return true;
}

/* Room on the disk for `size` bytes, zero behind the first word: a full disk is an error now and not a signal later. */
static bool make(int fd, size_t size) {
  static const char zeros[1 << 16];
  const uint64_t making = MAKING;
  /* What an earlier attempt left goes first; from the next line on the file is known as ours. */
  if (ftruncate(fd, 0) != 0 || !write_all(fd, &making, sizeof making, 0)) return false;
#if defined(_POSIX_ADVISORY_INFO) && _POSIX_ADVISORY_INFO > 0
  const int refused = posix_fallocate(fd, 0, (off_t)size);
  if (!refused) return true;
  errno = refused;
  /* A file in memory gives up at a signal, and would again at the next one: zeros keep what they have come to. */
  if (refused != EINVAL && refused != EOPNOTSUPP && refused != EINTR) return false;
#endif
  for (size_t at = sizeof making; at < size;) {
    const size_t more = size - at < sizeof zeros ? size - at : sizeof zeros;
    if (!write_all(fd, zeros, more, (off_t)at)) return false;
    at += more;
  }
  return true;
}

/* Whether the file has yet to be made: it is new, or who made it did not come to an end.  -1: it cannot be read. */
static int is_unmade(int fd) {
  uint64_t word;
  const ssize_t got = pread(fd, &word, sizeof word, 0);
  return got < 0 ? -1 : got == 0 || (got == sizeof word && word == MAKING);
}

/* A page with one word that is not 0, but is 0 in a child of fork; NULL where there is none to be had. */
static sona_word *page_of_the_parent(void) {
#ifdef MADV_WIPEONFORK
  const size_t size = (size_t)sysconf(_SC_PAGESIZE);
  void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return NULL;
  /* qemu answers every advice with success and follows none: only who refuses a wrong one is believed. */
  if (madvise(page, size, -1) != 0 && madvise(page, size, MADV_WIPEONFORK) == 0) {
    atomic_store_explicit((sona_word *)page, 1, memory_order_relaxed);
    return page;
  }
  munmap(page, size);
#endif
  return NULL;
}

bool sona_file_is_of_this_process(const sona_file *file) { return (uint64_t)getpid() == file->process; }

static sona_status map(const sona_file_request *request, sona_file *file) {
#ifdef MAP_POPULATE
  enum { SHARED = MAP_SHARED | MAP_POPULATE }; /* the first records do not wait for pages */
#else
  enum { SHARED = MAP_SHARED };
#endif
  void *bytes = mmap(NULL, file->size, request->writes ? PROT_READ | PROT_WRITE : PROT_READ, SHARED, file->fd, 0);
  if (bytes == MAP_FAILED) return errno == ENOMEM ? SONA_ENOMEM : SONA_EIO;
  file->bytes = bytes;
  /* acquire, with the release store in sona_file_settle: what the maker wrote is there. */
  return file->made || atomic_load_explicit((sona_word *)bytes, memory_order_acquire) == request->magic ? SONA_OK : SONA_ECORRUPT;
}

static sona_status open_and_map(const sona_file_request *request, sona_file *file) {
  /* O_NONBLOCK: a pipe in place of the file answers at once. */
  const int flags =
      (request->writes ? O_RDWR : O_RDONLY) | (request->make_size ? O_CREAT : 0) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  struct stat found;
  file->fd = open(request->path, flags, S_IRUSR | S_IWUSR);
  if (file->fd < 0 || fstat(file->fd, &found) != 0) return SONA_EIO;
  if (!S_ISREG(found.st_mode)) return SONA_ECORRUPT;
  if (request->writes) {
    sona_status status = set_lock(file->fd, F_WRLCK, (off_t)request->side, lock_now);
    if (status == SONA_OK) status = set_lock(file->fd, F_WRLCK, OPENING, lock_wait);
    if (status != SONA_OK) return status;
  }
  const int unmade = is_unmade(file->fd);
  if (unmade < 0) return SONA_EIO;
  if (unmade) {
    if (!request->make_size) {
      errno = ENOENT;
      return SONA_EIO;
    }
    if (!make(file->fd, request->make_size)) {
      const int reason = errno;
      if (ftruncate(file->fd, 0) != 0) errno = reason; /* gives the room back if it can */
      errno = reason;
      return SONA_EIO;
    }
    file->made = true;
    file->size = request->make_size;
  } else {
    if (fstat(file->fd, &found) != 0) return SONA_EIO; /* again: a file that was being made is whole now */
    if (found.st_size < SONA_FILE_HEAD) return SONA_ECORRUPT;
    if ((uintmax_t)found.st_size > SIZE_MAX) return SONA_ENOMEM;
    file->size = (size_t)found.st_size;
  }
  const sona_status status = map(request, file);
  if (status == SONA_OK) file->parents = page_of_the_parent();
  return status;
}

sona_status sona_file_open(const sona_file_request *request, sona_file *out) {
  sona_file file = {.fd = -1, .process = (uint64_t)getpid()};
  const sona_status status = open_and_map(request, &file);
  if (status == SONA_OK) {
    *out = file;
  } else {
    const int reason = errno;
    sona_file_close(&file);
    errno = reason;
  }
  return status;
}

void sona_file_settle(sona_file *file, uint64_t magic) {
  /* release, with the acquire load in map */
  if (file->made) atomic_store_explicit((sona_word *)(void *)file->bytes, magic, memory_order_release);
  set_lock(file->fd, F_UNLCK, OPENING, lock_now);
}

/* Closing lets the locks go; in a child of fork the parent keeps them. */
void sona_file_close(sona_file *file) {
  if (file->bytes) munmap(file->bytes, file->size);
  if (file->parents) munmap(file->parents, (size_t)sysconf(_SC_PAGESIZE));
  if (file->fd >= 0) close(file->fd);
}

bool sona_random_bytes(void *to, size_t size) {
  const int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool whole = read(fd, to, size) == (ssize_t)size; /* a few bytes come whole */
  const int reason = errno;
  close(fd);
  errno = reason;
  return whole;
}

uint64_t sona_monotonic_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
