/* The shared ring in one process: what it promises, against a plain list; files that are not what they should be. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>

#include "../src/random.h"
#include "../src/shared_ring_core.h"
#include "check.h"
#include "scratch.h"
#include "sona/shared_ring.h"

enum { HEAD = 4096, CAPACITY = 4096, WORDS = 128 }; /* of the file; where the shared words lie in it */

typedef struct pair {
  const char *path;
  sona_shared_ring *producer, *consumer;
} pair;

static pair open_pair(size_t capacity) {
  pair p = {.path = scratch_path()};
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, capacity, &p.producer), SONA_OK);
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_CONSUMER, capacity, &p.consumer), SONA_OK);
  return p;
}

static void close_pair(pair *p) {
  sona_shared_ring_close(p->producer);
  sona_shared_ring_close(p->consumer);
}

static sona_shared_words *words_of(unsigned char *bytes) { return (sona_shared_words *)(void *)(bytes + WORDS); }

/* A ring whose indices and numbers stand there. */
static pair pair_at(size_t capacity, uint64_t index, uint64_t sequence) {
  pair p = open_pair(capacity);
  close_pair(&p);
  size_t size;
  unsigned char *bytes = scratch_map(p.path, &size);
  sona_shared_words *words = words_of(bytes);
  CHECK_EQ(atomic_load(&words->tail), sona_seal(0));
  CHECK_EQ(atomic_load(&words->head), sona_seal(0));
  CHECK_EQ(atomic_load(&words->sequence), sona_seal(0));
  atomic_store(&words->tail, sona_seal(index & SONA_SEALED_MAX));
  atomic_store(&words->head, sona_seal(index & SONA_SEALED_MAX));
  atomic_store(&words->sequence, sona_seal(sequence));
  munmap(bytes, size);
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, 0, &p.producer), SONA_OK);
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_CONSUMER, 0, &p.consumer), SONA_OK);
  return p;
}

/* ---- opening ---- */

static void capacities_out_of_range_are_refused(void) {
  const char *path = scratch_path();
  sona_shared_ring *ring = NULL;
  static const size_t bad[] = {1, 16, 2048, 4095, 4097, 6144, SIZE_MAX, SIZE_MAX / 2 + 1};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_EQ(sona_shared_ring_open(path, SONA_PRODUCER, bad[i], &ring), SONA_EINVAL);
  CHECK_EQ(sona_shared_ring_open(path, (sona_side)2, CAPACITY, &ring), SONA_EINVAL);
  CHECK_EQ(sona_shared_ring_open(NULL, SONA_PRODUCER, CAPACITY, &ring), SONA_EINVAL);
  CHECK_EQ(scratch_size(path), SIZE_MAX);
  CHECK(ring == NULL);
}

static void either_side_makes_the_file(void) {
  for (int first = 0; first < 2; first++) {
    const char *path = scratch_path();
    sona_shared_ring *one = NULL, *other = NULL, *none = NULL;
    errno = 0;
    CHECK_EQ(sona_shared_ring_open(path, (sona_side)first, 0, &one), SONA_EIO);
    CHECK_EQ(errno, ENOENT);
    CHECK_EQ(scratch_size(path), SIZE_MAX);
    CHECK_EQ(sona_shared_ring_open(path, (sona_side)first, 8192, &one), SONA_OK);
    struct stat found;
    CHECK_EQ(stat(path, &found), 0);
    CHECK_EQ(found.st_mode & 0777, 0600);
    CHECK_EQ(found.st_size, HEAD + 8192);
    CHECK_EQ(sona_shared_ring_open(path, (sona_side)!first, 4096, &none), SONA_EINVAL);
    CHECK_EQ(sona_shared_ring_open(path, (sona_side)!first, 0, &other), SONA_OK);
    CHECK_EQ(sona_shared_ring_capacity(one), 8192);
    CHECK_EQ(sona_shared_ring_capacity(other), 8192);
    CHECK_EQ(sona_shared_ring_max_record(one), 4096 - SONA_SHARED_RING_HEADER);
    CHECK(memcmp(sona_shared_ring_identity(one), sona_shared_ring_identity(other), SONA_SHARED_RING_IDENTITY) == 0);
    CHECK(none == NULL);
    sona_shared_ring_close(one);
    sona_shared_ring_close(other);
  }
  sona_shared_ring_close(NULL);
}

static void two_files_have_two_identities(void) {
  pair a = open_pair(CAPACITY), b = open_pair(CAPACITY);
  CHECK(memcmp(sona_shared_ring_identity(a.producer), sona_shared_ring_identity(b.producer), SONA_SHARED_RING_IDENTITY) != 0);
  close_pair(&a);
  close_pair(&b);
}

static void a_side_is_held_by_one(void) {
  pair p = open_pair(CAPACITY);
  sona_shared_ring *second = NULL;
  for (int side = 0; side < 2; side++) {
    CHECK_EQ(sona_shared_ring_open(p.path, (sona_side)side, 0, &second), SONA_EBUSY);
    const pid_t child = fork();
    if (child == 0) {
      const int busy = sona_shared_ring_open(p.path, (sona_side)side, CAPACITY, &second) == SONA_EBUSY;
      _exit(busy ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
  }
  CHECK(second == NULL);
  CHECK_EQ(sona_shared_ring_push(p.producer, "still", 5, NULL), SONA_OK);
  sona_shared_ring_close(p.producer);
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, 0, &p.producer), SONA_OK);
  close_pair(&p);
}

static void a_child_of_fork_cannot_use_the_handle(void) {
  pair p = open_pair(CAPACITY);
  void *record = NULL;
  size_t size;
  uint64_t sequence;
  CHECK_EQ(sona_shared_ring_push(p.producer, "before", 6, NULL), SONA_OK);
  CHECK_EQ(sona_shared_ring_reserve(p.producer, 8, &record), SONA_OK);
  const pid_t child = fork();
  if (child == 0) {
    int refused = sona_shared_ring_reserve(p.producer, 1, &record) == SONA_EINVAL;
    refused &= sona_shared_ring_push(p.producer, "x", 1, NULL) == SONA_EINVAL;
    refused &= sona_shared_ring_commit(p.producer, 8, NULL) == SONA_EINVAL;
    refused &= sona_shared_ring_next(p.consumer, &size, &sequence) == NULL;
    sona_shared_ring_release(p.consumer);
    refused &= sona_shared_ring_capacity(p.producer) == CAPACITY;
    close_pair(&p);
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  memcpy(record, "12345678", 8);
  CHECK_EQ(sona_shared_ring_commit(p.producer, 8, &sequence), SONA_OK);
  CHECK_EQ(sequence, 2);
  const char *bytes = sona_shared_ring_next(p.consumer, &size, &sequence);
  CHECK(bytes && size == 6 && memcmp(bytes, "before", 6) == 0);
  sona_shared_ring *second = NULL;
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, 0, &second), SONA_EBUSY); /* the child that closed did not let go for us */
  close_pair(&p);
}

static void each_side_has_its_own_functions(void) {
  pair p = open_pair(CAPACITY);
  void *record = NULL;
  size_t size;
  CHECK_EQ(sona_shared_ring_reserve(p.consumer, 1, &record), SONA_EINVAL);
  CHECK_EQ(sona_shared_ring_push(p.consumer, "x", 1, NULL), SONA_EINVAL);
  CHECK_EQ(sona_shared_ring_commit(p.consumer, 1, NULL), SONA_EINVAL);
  CHECK_EQ(sona_shared_ring_push(p.producer, "x", 1, NULL), SONA_OK);
  CHECK(sona_shared_ring_next(p.producer, &size, NULL) == NULL);
  sona_shared_ring_release(p.producer);
  CHECK_EQ(sona_shared_ring_mark(p.producer), 0);
  sona_shared_ring_release_to(p.producer, 2);
  CHECK(sona_shared_ring_used(p.producer) > 0);
  CHECK(sona_shared_ring_next(p.consumer, &size, NULL) != NULL);
  CHECK(record == NULL);
  close_pair(&p);
}

/* ---- records ---- */

static void a_record_is_invisible_until_committed(void) {
  pair p = open_pair(CAPACITY);
  void *record = NULL;
  size_t size = 77;
  uint64_t sequence = 77;
  CHECK_EQ(sona_shared_ring_commit(p.producer, 0, NULL), SONA_EINVAL);
  CHECK_EQ(sona_shared_ring_reserve(p.producer, 100, &record), SONA_OK);
  CHECK_EQ((uintptr_t)record % 16, 0);
  CHECK(sona_shared_ring_next(p.consumer, &size, &sequence) == NULL);
  CHECK_EQ(size, 77);
  CHECK_EQ(sona_shared_ring_commit(p.producer, 113, NULL), SONA_EINVAL);
  memset(record, 'a', 100);
  CHECK_EQ(sona_shared_ring_commit(p.producer, 50, &sequence), SONA_OK);
  CHECK_EQ(sequence, 1);
  CHECK_EQ(sona_shared_ring_commit(p.producer, 50, &sequence), SONA_EINVAL);
  const char *bytes = sona_shared_ring_next(p.consumer, &size, &sequence);
  CHECK_EQ(size, 50);
  CHECK_EQ(sequence, 1);
  CHECK(bytes && bytes[0] == 'a' && bytes[49] == 'a');
  CHECK(sona_shared_ring_next(p.consumer, &size, &sequence) == NULL);
  CHECK_EQ(sona_shared_ring_push(p.producer, NULL, 0, &sequence), SONA_OK);
  CHECK_EQ(sequence, 2);
  CHECK(sona_shared_ring_next(p.consumer, &size, NULL) != NULL);
  CHECK_EQ(size, 0);
  sona_shared_ring_release(p.consumer);
  CHECK_EQ(sona_shared_ring_used(p.consumer), 0);
  CHECK_EQ(sona_shared_ring_reserve(p.producer, sona_shared_ring_max_record(p.producer) + 1, &record), SONA_EINVAL);
  CHECK_EQ(sona_shared_ring_dropped(p.producer), 0);
  close_pair(&p);
}

static void what_is_not_released_comes_again(void) {
  pair p = open_pair(CAPACITY);
  size_t size;
  uint64_t sequence;
  for (int i = 0; i < 5; i++) CHECK_EQ(sona_shared_ring_push(p.producer, &i, sizeof i, NULL), SONA_OK);
  for (uint64_t i = 1; i <= 2; i++) {
    CHECK(sona_shared_ring_next(p.consumer, &size, &sequence) != NULL);
    CHECK_EQ(sequence, i);
  }
  sona_shared_ring_release(p.consumer);
  CHECK(sona_shared_ring_next(p.consumer, &size, &sequence) != NULL);
  sona_shared_ring_close(p.consumer);
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_CONSUMER, 0, &p.consumer), SONA_OK);
  for (uint64_t i = 3; i <= 5; i++) {
    const int *number = sona_shared_ring_next(p.consumer, &size, &sequence);
    CHECK_EQ(sequence, i);
    CHECK(number && *number == (int)i - 1);
  }
  CHECK(sona_shared_ring_next(p.consumer, &size, &sequence) == NULL);
  close_pair(&p);
}

static void a_mark_frees_what_came_before_it(void) {
  pair p = open_pair(CAPACITY);
  size_t size;
  for (int i = 0; i < 4; i++) CHECK_EQ(sona_shared_ring_push(p.producer, &i, sizeof i, NULL), SONA_OK);
  for (int i = 0; i < 2; i++) CHECK(sona_shared_ring_next(p.consumer, &size, NULL) != NULL);
  const uint64_t mark = sona_shared_ring_mark(p.consumer);
  const int *third = sona_shared_ring_next(p.consumer, &size, NULL);
  const uint64_t beyond[] = {mark + 1000, UINT64_MAX, mark - 1000, sona_shared_ring_mark(p.consumer) + 2};
  for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) sona_shared_ring_release_to(p.consumer, beyond[i]);
  CHECK_EQ(sona_shared_ring_used(p.consumer), 4 * 32);
  sona_shared_ring_release_to(p.consumer, mark);
  sona_shared_ring_release_to(p.consumer, mark);
  CHECK_EQ(sona_shared_ring_used(p.consumer), 2 * 32);
  CHECK(third && *third == 2);
  const int *fourth = sona_shared_ring_next(p.consumer, &size, NULL); /* and reading goes on */
  CHECK(fourth && *fourth == 3);
  sona_shared_ring_close(p.consumer);
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_CONSUMER, 0, &p.consumer), SONA_OK);
  third = sona_shared_ring_next(p.consumer, &size, NULL);
  CHECK(third && *third == 2);
  close_pair(&p);
}

static void a_full_ring_refuses_and_counts(void) {
  pair p = open_pair(CAPACITY);
  char bytes[240] = {0};
  uint64_t sequence = 0, pushed = 0;
  size_t size;
  while (sona_shared_ring_push(p.producer, bytes, sizeof bytes, &sequence) == SONA_OK) pushed++;
  CHECK_EQ(pushed, CAPACITY / 256);
  CHECK_EQ(sequence, pushed);
  CHECK_EQ(sona_shared_ring_used(p.consumer), CAPACITY);
  CHECK_EQ(sona_shared_ring_dropped(p.consumer), 1);
  CHECK_EQ(sona_shared_ring_push(p.producer, bytes, 0, &sequence), SONA_EFULL);
  CHECK_EQ(sona_shared_ring_dropped(p.consumer), 2);
  CHECK(sona_shared_ring_next(p.consumer, &size, &sequence) != NULL);
  CHECK_EQ(sona_shared_ring_push(p.producer, bytes, 0, &sequence), SONA_EFULL); /* returned is not released */
  sona_shared_ring_release(p.consumer);
  CHECK_EQ(sona_shared_ring_push(p.producer, bytes, sizeof bytes, &sequence), SONA_OK);
  CHECK_EQ(sequence, pushed + 1);
  close_pair(&p);
  CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, 0, &p.producer), SONA_OK);
  CHECK_EQ(sona_shared_ring_dropped(p.producer), 3); /* over the life of the file */
  sona_shared_ring_close(p.producer);
}

/* A random mix of sizes, reservations, batches and new handles against a plain list, across the wrap of the indices. */
static void order_and_bytes_survive_the_wrap(uint64_t seed) {
  enum { QUEUE = CAPACITY / SONA_SHARED_RING_HEADER };
  struct {
    size_t size;
    unsigned char first;
    uint64_t sequence;
  } queue[QUEUE];
  sona_random rng;
  sona_random_seed(&rng, seed);
  const uint64_t start = 1 + sona_random_next(&rng) % 1000000;
  /* 200 turns before the wrap */
  pair p = pair_at(CAPACITY, (uint64_t)0 - 200 * (CAPACITY / 16) - seed % 97, start);
  uint64_t released = 0, returned = 0, pushed = 0, dropped = 0, sequence = start;
  uint64_t mark = sona_shared_ring_mark(p.consumer), marked = 0; /* returned when it was taken */
  const int steps = scratch_rounds(20000);
  for (int step = 0; step < steps; step++) {
    const uint64_t random = sona_random_next(&rng);
    const unsigned what = random >> 60;
    if (what < 8) {
      const size_t most = sona_shared_ring_max_record(p.producer), size = (random >> 8) % ((random & 64 ? most : most / 16) + 1);
      void *record = NULL;
      uint64_t number = 0;
      if (random & 128) CHECK(sona_shared_ring_reserve(p.producer, size / 2, &record) != SONA_EINVAL); /* forgotten */
      const uint64_t refused = sona_shared_ring_dropped(p.producer);
      dropped = refused;
      const sona_status status = sona_shared_ring_reserve(p.producer, size, &record);
      if (status == SONA_OK) {
        for (size_t i = 0; i < size; i++) ((unsigned char *)record)[i] = (unsigned char)(random + i);
        const size_t kept = size - (random >> 32) % (size / 4 + 1);
        CHECK_EQ(sona_shared_ring_commit(p.producer, kept, &number), SONA_OK);
        CHECK_EQ(number, ++sequence);
        queue[pushed % QUEUE].size = kept;
        queue[pushed % QUEUE].sequence = number;
        queue[pushed++ % QUEUE].first = (unsigned char)random;
      } else {
        CHECK_EQ(status, SONA_EFULL);
        CHECK_EQ(sona_shared_ring_dropped(p.consumer), ++dropped);
        CHECK(pushed > released); /* an empty ring never refuses */
      }
    } else if (what < 14) {
      size_t size = 0;
      uint64_t number = 0;
      const unsigned char *bytes = sona_shared_ring_next(p.consumer, &size, &number);
      CHECK_EQ(bytes != NULL, pushed > returned);
      if (bytes) {
        CHECK_EQ(size, queue[returned % QUEUE].size);
        CHECK_EQ(number, queue[returned % QUEUE].sequence);
        int differ = 0;
        for (size_t i = 0; i < size; i++) differ += bytes[i] != (unsigned char)(queue[returned % QUEUE].first + i);
        CHECK_EQ(differ, 0);
        returned++;
      }
      if (random & 1) {
        sona_shared_ring_release(p.consumer);
        released = returned;
      } else if (random & 2) {
        mark = sona_shared_ring_mark(p.consumer);
        marked = returned;
      } else if (random & 4) {
        sona_shared_ring_release_to(p.consumer, mark); /* which may be behind what is released: nothing happens */
        if (marked > released) released = marked;
      }
    } else if (random & 1) {
      sona_shared_ring_close(p.producer);
      CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, 0, &p.producer), SONA_OK);
    } else if (random & 2) {
      sona_shared_ring_close(p.consumer);
      CHECK_EQ(sona_shared_ring_open(p.path, SONA_CONSUMER, 0, &p.consumer), SONA_OK);
      returned = marked = released;
      mark = sona_shared_ring_mark(p.consumer);
    }
    const size_t used = sona_shared_ring_used(p.consumer);
    CHECK(used <= CAPACITY && used % 16 == 0 && (used > 0) == (pushed > released));
  }
  CHECK(dropped > 0 && pushed > 1000);
  CHECK_EQ(sona_shared_ring_damaged(p.producer), 0);
  close_pair(&p);
}

static void any_allowed_record_fits_an_empty_ring(void) {
  static char bytes[CAPACITY];
  size_t size;
  for (uint64_t at = 0; at < CAPACITY / 16; at++) {
    pair p = pair_at(CAPACITY, at, 0);
    CHECK_EQ(sona_shared_ring_push(p.producer, bytes, sona_shared_ring_max_record(p.producer), NULL), SONA_OK);
    CHECK(sona_shared_ring_next(p.consumer, &size, NULL) != NULL);
    CHECK_EQ(size, sona_shared_ring_max_record(p.consumer));
    sona_shared_ring_release(p.consumer);
    CHECK_EQ(sona_shared_ring_used(p.consumer), 0);
    close_pair(&p);
  }
}

static void numbers_end_before_they_come_again(void) {
  pair p = pair_at(CAPACITY, 0, SONA_SEALED_MAX - 1);
  uint64_t sequence = 0;
  size_t size;
  CHECK_EQ(sona_shared_ring_push(p.producer, "x", 1, &sequence), SONA_OK);
  CHECK(sequence == SONA_SEALED_MAX);
  CHECK_EQ(sona_shared_ring_push(p.producer, "x", 1, &sequence), SONA_EFULL);
  CHECK(sona_shared_ring_next(p.consumer, &size, &sequence) && sequence == SONA_SEALED_MAX);
  close_pair(&p);
}

/* ---- files that are not what they should be ---- */

/* Whatever the file says, both sides answer; true when the side that was opened still gives what the file held. */
static int survives(const char *path, const unsigned char *want, size_t size) {
  sona_shared_ring *ring = NULL;
  size_t got = 0;
  uint64_t sequence;
  sona_status status = sona_shared_ring_open(path, SONA_CONSUMER, 0, &ring);
  CHECK(status == SONA_OK || status == SONA_ECORRUPT || status == SONA_EVERSION);
  CHECK_EQ(ring != NULL, status == SONA_OK);
  int whole = 0;
  for (int i = 0; ring && i < 4; i++) {
    const unsigned char *bytes = sona_shared_ring_next(ring, &got, &sequence);
    if (bytes) CHECK(got == size || got == 0);
    if (bytes) whole += got == size && memcmp(bytes, want, size) == 0;
  }
  if (ring) CHECK(whole == 3 || sona_shared_ring_damaged(ring) > 0 || sona_shared_ring_used(ring) == 0);
  sona_shared_ring_close(ring);
  ring = NULL;
  status = sona_shared_ring_open(path, SONA_PRODUCER, 0, &ring);
  CHECK(status == SONA_OK || status == SONA_ECORRUPT || status == SONA_EVERSION);
  if (ring) CHECK_EQ(sona_shared_ring_push(ring, want, size, &sequence), SONA_OK);
  sona_shared_ring_close(ring);
  return whole;
}

/* Three records of which nothing is released; every byte of the head and of their headers, changed in three ways. */
static void every_byte_of_a_header_counts(void) {
  unsigned char record[64], *kept;
  for (size_t i = 0; i < sizeof record; i++) record[i] = (unsigned char)(i * 7);
  pair p = open_pair(CAPACITY);
  for (int i = 0; i < 3; i++) CHECK_EQ(sona_shared_ring_push(p.producer, record, sizeof record, NULL), SONA_OK);
  close_pair(&p);
  size_t size;
  unsigned char *bytes = scratch_map(p.path, &size);
  kept = malloc(size);
  memcpy(kept, bytes, size);
  CHECK_EQ(survives(p.path, record, sizeof record), 3);
  int damaged = 0, refused = 0;
  for (size_t at = 0; at < HEAD + 3 * 80; at++) {
    if (at >= 512 && at < HEAD) continue; /* nothing is there */
    if (at >= HEAD && (at - HEAD) % 80 >= 16) continue;
    static const unsigned char flips[] = {0x01, 0x80, 0xff};
    for (size_t f = 0; f < 3; f++) {
      memcpy(bytes, kept, size);
      bytes[at] ^= flips[f];
      sona_shared_ring *ring = NULL;
      const sona_status status = sona_shared_ring_open(p.path, SONA_CONSUMER, 0, &ring);
      sona_shared_ring_close(ring);
      refused += status != SONA_OK;
      const int is_index = (at >= WORDS && at < WORDS + 8) || (at >= 2 * WORDS && at < 2 * WORDS + 8);
      const int is_number = at >= WORDS + 8 && at < WORDS + 16; /* the producer's alone */
      if (at < 48 || is_index) CHECK(status == SONA_ECORRUPT);  /* magic, format, capacity, identity, check; tail, head */
      ring = NULL;
      if (at < 48 || is_index || is_number) CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, 0, &ring), SONA_ECORRUPT);
      sona_shared_ring_close(ring);
      const int whole = survives(p.path, record, sizeof record);
      damaged += whole < 3;
      if (at >= HEAD) CHECK_EQ(whole, (at - HEAD) / 80); /* those in front of the damage */
    }
  }
  CHECK(refused >= 3 * 48 && damaged > refused);
  munmap(bytes, size);
  free(kept);
}

/* The other side writes nonsense while this one runs. */
static void a_damaged_index_is_mended_by_its_owner(void) {
  pair p = open_pair(CAPACITY);
  size_t size, got;
  uint64_t sequence;
  unsigned char *bytes = scratch_map(p.path, &size);
  sona_shared_words *words = words_of(bytes);
  const uint64_t beyond = sona_seal(CAPACITY / 16 + 1), behind = sona_seal(SONA_SEALED_MAX), ragged = sona_seal(3) ^ 4;
  const uint64_t nonsense[] = {0, UINT64_MAX, ragged, beyond, behind};
  for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
    const uint64_t before = sona_shared_ring_damaged(p.consumer);
    atomic_store(&words->tail, nonsense[i]);
    CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) == NULL);
    CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) == NULL);
    CHECK_EQ(sona_shared_ring_damaged(p.consumer), before + 1); /* once */
    CHECK_EQ(sona_shared_ring_push(p.producer, "mended", 6, NULL), SONA_OK);
    const char *record = sona_shared_ring_next(p.consumer, &got, &sequence);
    CHECK(record && got == 6 && memcmp(record, "mended", 6) == 0);
    CHECK_EQ(sequence, i + 1);
    CHECK(sona_shared_ring_used(p.consumer) > 0);
    sona_shared_ring_release(p.consumer);
    /* and back at the start, so that `beyond` and `behind` are */
    close_pair(&p);
    munmap(bytes, size);
    bytes = scratch_map(p.path, &size);
    words = words_of(bytes);
    atomic_store(&words->tail, sona_seal(0));
    atomic_store(&words->head, sona_seal(0));
    CHECK_EQ(sona_shared_ring_open(p.path, SONA_PRODUCER, 0, &p.producer), SONA_OK);
    CHECK_EQ(sona_shared_ring_open(p.path, SONA_CONSUMER, 0, &p.consumer), SONA_OK);
  }
  /* A damaged head frees nothing. */
  char record[240] = {0};
  while (sona_shared_ring_push(p.producer, record, sizeof record, NULL) == SONA_OK) continue;
  for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
    atomic_store(&words->head, nonsense[i]);
    CHECK_EQ(sona_shared_ring_push(p.producer, record, sizeof record, NULL), SONA_EFULL);
    CHECK(sona_shared_ring_used(p.producer) <= CAPACITY);
  }
  CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) != NULL);
  sona_shared_ring_release(p.consumer);
  CHECK_EQ(sona_shared_ring_push(p.producer, record, sizeof record, NULL), SONA_OK);
  munmap(bytes, size);
  close_pair(&p);
}

static void a_damaged_header_drops_what_is_in_the_ring(void) {
  for (int held = 0; held < 2; held++) {
    pair p = open_pair(CAPACITY);
    size_t size, got;
    uint64_t sequence;
    unsigned char *bytes = scratch_map(p.path, &size);
    for (int i = 0; i < 6; i++) CHECK_EQ(sona_shared_ring_push(p.producer, "0123456789abcdef", 16, NULL), SONA_OK);
    bytes[HEAD + (size_t)held * 32] ^= 1; /* the first or the second */
    const char *first = held ? sona_shared_ring_next(p.consumer, &got, &sequence) : NULL;
    CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) == NULL);
    CHECK_EQ(sona_shared_ring_damaged(p.producer), 1);
    if (held) {
      CHECK(sona_shared_ring_used(p.consumer) == 6 * 32);
      CHECK(first && memcmp(first, "0123456789abcdef", 16) == 0);
      sona_shared_ring_release(p.consumer);
    }
    CHECK_EQ(sona_shared_ring_used(p.consumer), 0);
    CHECK_EQ(sona_shared_ring_push(p.producer, "next", 4, NULL), SONA_OK);
    CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) != NULL);
    CHECK_EQ(sequence, 7);
    CHECK_EQ(sona_shared_ring_damaged(p.producer), 1);
    munmap(bytes, size);
    close_pair(&p);
  }
}

/* Headers whose check is right and whose words are not: what a producer with a defect could write. */
static void a_consistent_lie_is_found_too(void) {
  const struct {
    uint64_t size, sequence;
  } lies[] = {{CAPACITY / 2, 1}, {UINT32_MAX - 1, 1}, {64, 1}, {SONA_SHARED_SKIP, 0}, {8, 0}, {8, UINT64_MAX}};
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
    for (uint64_t at = 0; at < CAPACITY / 16; at += CAPACITY / 16 - 2) {
      pair p = pair_at(CAPACITY, at, 0);
      size_t size, got;
      uint64_t sequence;
      unsigned char *bytes = scratch_map(p.path, &size);
      sona_shared_memory m = {.words = words_of(bytes), .data = bytes + HEAD, .units = CAPACITY / 16};
      CHECK_EQ(sona_shared_ring_push(p.producer, "12345678", 8, NULL), SONA_OK);
      sona_shared_put_header(&m, at, lies[i].size, lies[i].sequence);
      CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) == NULL);
      CHECK_EQ(sona_shared_ring_damaged(p.consumer), 1);
      CHECK_EQ(sona_shared_ring_used(p.consumer), 0);
      munmap(bytes, size);
      close_pair(&p);
    }
  }
}

/* The same where much is committed behind the lie; records of two units, from two units before the end of the ring on or from its start. */
static void a_lie_in_a_full_ring_is_found_too(void) {
  for (int which = 0; which < 3; which++) {
    const uint64_t units = CAPACITY / 16, at = which == 1 ? 0 : which == 2 ? units - 4 : units - 2;
    pair p = pair_at(CAPACITY, at, 0);
    size_t size, got;
    uint64_t sequence;
    unsigned char *bytes = scratch_map(p.path, &size);
    sona_shared_memory m = {.words = words_of(bytes), .data = bytes + HEAD, .units = CAPACITY / 16};
    const int pushed = which == 2 ? 1 : 100;
    for (int i = 0; i < pushed; i++) CHECK_EQ(sona_shared_ring_push(p.producer, "0123456789abcdef", 16, NULL), SONA_OK);
    if (which == 0) sona_shared_put_header(&m, at, 64, 1);           /* across the end */
    if (which == 1) sona_shared_put_header(&m, at, CAPACITY / 2, 1); /* larger than any */
    if (which == 2) { /* a skip past tail, and something that looks like a record behind it */
      sona_shared_put_header(&m, at, SONA_SHARED_SKIP, 0);
      sona_shared_put_header(&m, units, 16, 2);
    }
    CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) == NULL);
    CHECK_EQ(sona_shared_ring_damaged(p.consumer), 1);
    CHECK_EQ(sona_shared_ring_used(p.consumer), 0);
    munmap(bytes, size);
    close_pair(&p);
  }
}

/* An end of what is committed that lies before what was returned: nothing comes twice. */
static void a_tail_that_goes_back_is_damage(void) {
  pair p = open_pair(CAPACITY);
  size_t size, got;
  uint64_t sequence;
  unsigned char *bytes = scratch_map(p.path, &size);
  for (int i = 0; i < 3; i++) CHECK_EQ(sona_shared_ring_push(p.producer, "0123456789abcdef", 16, NULL), SONA_OK);
  for (uint64_t i = 1; i <= 3; i++) CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) && sequence == i);
  atomic_store(&words_of(bytes)->tail, sona_seal(2));
  CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) == NULL);
  CHECK_EQ(sona_shared_ring_damaged(p.consumer), 1);
  CHECK_EQ(sona_shared_ring_push(p.producer, "mended", 6, NULL), SONA_OK);
  CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) && sequence == 4 && got == 6);
  CHECK_EQ(sona_shared_ring_damaged(p.consumer), 1);
  munmap(bytes, size);
  close_pair(&p);
}

static void a_lie_behind_a_skip_is_found_too(void) {
  pair p = pair_at(CAPACITY, CAPACITY / 16 - 2, 0);
  size_t size, got;
  uint64_t sequence;
  unsigned char *bytes = scratch_map(p.path, &size);
  static char record[100];
  CHECK_EQ(sona_shared_ring_push(p.producer, record, sizeof record, NULL), SONA_OK);
  bytes[HEAD] ^= 1;
  CHECK(sona_shared_ring_next(p.consumer, &got, &sequence) == NULL);
  CHECK_EQ(sona_shared_ring_damaged(p.consumer), 1);
  CHECK_EQ(sona_shared_ring_used(p.consumer), 0);
  munmap(bytes, size);
  close_pair(&p);
}

static void other_files_are_refused(void) {
  static unsigned char bytes[3 * HEAD];
  sona_shared_ring *ring = NULL;
  const size_t sizes[] = {1, 7, 8, 4095, HEAD, HEAD + CAPACITY, sizeof bytes};
  for (int fill = 0; fill < 2; fill++) {
    memset(bytes, fill ? 0xa5 : 0, sizeof bytes);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      const char *path = scratch_path();
      scratch_write(path, bytes, sizes[i]);
      CHECK_EQ(sona_shared_ring_open(path, SONA_CONSUMER, CAPACITY, &ring), SONA_ECORRUPT);
      CHECK_EQ(scratch_size(path), sizes[i]); /* and left alone */
    }
  }
  const char *path = scratch_path();
  CHECK_EQ(mkdir(path, 0700), 0);
  CHECK_EQ(sona_shared_ring_open(path, SONA_CONSUMER, 0, &ring), SONA_EIO);
  CHECK_EQ(errno, EISDIR);
  const char *pipe = scratch_path();
  CHECK_EQ(mkfifo(pipe, 0600), 0);
  CHECK_EQ(sona_shared_ring_open(pipe, SONA_CONSUMER, 0, &ring), SONA_ECORRUPT);
  pair p = open_pair(CAPACITY);
  close_pair(&p);
  const char *link = scratch_path();
  CHECK_EQ(symlink(p.path, link), 0);
  CHECK_EQ(sona_shared_ring_open(link, SONA_CONSUMER, CAPACITY, &ring), SONA_EIO);
  CHECK_EQ(errno, ELOOP);
  CHECK(ring == NULL);
}

/* Written down as bytes were on the day of format 1: files outlive the program that made them, and a newer format is not taken for damage.
 */
static void formats_are_told_apart(void) {
  static const uint64_t heads[][6] = {
      {0x676e6972616e6f73, 1, CAPACITY, 0x0123456789abcdef, 0xfedcba9876543210, 0xb99d477de3c43fb1},
      {0x676e6972616e6f73, 2, CAPACITY, 0x0123456789abcdef, 0xfedcba9876543210, 0x7deb48c43d92498b},
  };
  for (int format = 1; format <= 2; format++) {
    static unsigned char bytes[HEAD + CAPACITY];
    const uint64_t zero = 0x5ea1000000000000;
    const char *path = scratch_path();
    sona_shared_ring *ring = NULL;
    memcpy(bytes, heads[format - 1], sizeof heads[0]);
    memcpy(bytes + WORDS, (uint64_t[]){zero, zero}, 16); /* tail, sequence */
    memcpy(bytes + 2 * WORDS, &zero, 8);                 /* head */
    scratch_write(path, bytes, sizeof bytes);
    CHECK_EQ(sona_shared_ring_open(path, SONA_PRODUCER, 0, &ring), format == 1 ? SONA_OK : SONA_EVERSION);
    if (ring) CHECK(memcmp(sona_shared_ring_identity(ring), &heads[0][3], SONA_SHARED_RING_IDENTITY) == 0);
    if (ring) CHECK_EQ(sona_shared_ring_push(ring, "x", 1, NULL), SONA_OK);
    sona_shared_ring_close(ring);
  }
}

static void a_ring_that_was_cut_or_grown_is_refused(void) {
  sona_shared_ring *ring = NULL;
  static const long sizes[] = {0, 1, 100, HEAD, HEAD + CAPACITY - 1, HEAD + CAPACITY + 1, HEAD + 2 * CAPACITY};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    pair p = open_pair(CAPACITY);
    close_pair(&p);
    CHECK_EQ(truncate(p.path, sizes[i]), 0);
    CHECK_EQ(sona_shared_ring_open(p.path, SONA_CONSUMER, 0, &ring), sizes[i] ? SONA_ECORRUPT : SONA_EIO);
  }
  CHECK(ring == NULL);
}

/* A maker that was killed leaves the word "making": whoever comes next with a capacity begins anew. */
static void a_half_made_file_is_made_anew(void) {
  unsigned char bytes[HEAD + 100] = {1, 10, 'm', 'a', 'k', 'i', 'n', 'g', 99};
  const size_t sizes[] = {8, 9, HEAD, sizeof bytes};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    const char *path = scratch_path();
    sona_shared_ring *ring = NULL;
    scratch_write(path, bytes, sizes[i]);
    CHECK_EQ(sona_shared_ring_open(path, SONA_CONSUMER, 0, &ring), SONA_EIO);
    CHECK_EQ(errno, ENOENT);
    CHECK_EQ(sona_shared_ring_open(path, SONA_CONSUMER, CAPACITY, &ring), SONA_OK);
    CHECK_EQ(scratch_size(path), HEAD + CAPACITY);
    sona_shared_ring_close(ring);
  }
}

/* No room on the disk, by the limit of the process. */
static void no_room_is_an_error_at_open(void) {
  const char *path = scratch_path();
  sona_shared_ring *ring = NULL;
  struct rlimit before, none;
  signal(SIGXFSZ, SIG_IGN);
  getrlimit(RLIMIT_FSIZE, &before);
  none = before;
  none.rlim_cur = HEAD + CAPACITY - 1;
  setrlimit(RLIMIT_FSIZE, &none);
  errno = 0;
  CHECK_EQ(sona_shared_ring_open(path, SONA_PRODUCER, CAPACITY, &ring), SONA_EIO);
  CHECK_EQ(errno, EFBIG);
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK_EQ(scratch_size(path), 0);
  CHECK_EQ(sona_shared_ring_open(path, SONA_PRODUCER, CAPACITY, &ring), SONA_OK);
  sona_shared_ring_close(ring);
}

static void nothing_is_allocated_after_opening(void) {
  pair p = open_pair(CAPACITY);
  const uint64_t before = sona_allocations();
  size_t size;
  char bytes[100] = {0};
  for (int turn = 0; turn < 1000; turn++) {
    sona_shared_ring_push(p.producer, bytes, (size_t)turn % sizeof bytes, NULL);
    sona_shared_ring_next(p.consumer, &size, NULL);
    if (turn % 5) sona_shared_ring_release(p.consumer);
  }
  CHECK_EQ(sona_allocations(), before);
  close_pair(&p);
}

int main(void) {
  capacities_out_of_range_are_refused();
  either_side_makes_the_file();
  two_files_have_two_identities();
  a_side_is_held_by_one();
  a_child_of_fork_cannot_use_the_handle();
  each_side_has_its_own_functions();
  a_record_is_invisible_until_committed();
  what_is_not_released_comes_again();
  a_mark_frees_what_came_before_it();
  a_full_ring_refuses_and_counts();
  for (uint64_t seed = 1; seed <= 5; seed++) order_and_bytes_survive_the_wrap(seed);
  any_allowed_record_fits_an_empty_ring();
  numbers_end_before_they_come_again();
  every_byte_of_a_header_counts();
  a_damaged_index_is_mended_by_its_owner();
  a_damaged_header_drops_what_is_in_the_ring();
  a_consistent_lie_is_found_too();
  a_lie_in_a_full_ring_is_found_too();
  a_tail_that_goes_back_is_damage();
  a_lie_behind_a_skip_is_found_too();
  other_files_are_refused();
  formats_are_told_apart();
  a_ring_that_was_cut_or_grown_is_refused();
  a_half_made_file_is_made_anew();
  no_room_is_an_error_at_open();
  nothing_is_allocated_after_opening();
  return check_done("shared_ring");
}
