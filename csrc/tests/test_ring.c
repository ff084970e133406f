/* The ring on one thread: what fits, what is refused, and that nothing changes where the counters wrap. */
#include "check.h"
#include "sona/ring.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
/* The sanitizer aborts on a huge allocation unless told that the program handles NULL. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }
#endif
#ifdef __SANITIZE_THREAD__
__attribute__((visibility("default"))) const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "allocator_may_return_null=1"; }
#endif

static sona_ring *ring_with(size_t capacity, size_t max_records, size_t first) {
  sona_ring *ring = NULL;
  sona_ring_options options = {.capacity = capacity, .max_records = max_records, .first = first};
  CHECK_EQ(sona_ring_create(&options, &ring), SONA_OK);
  return ring;
}

static void options_out_of_range_are_refused(void) {
  static const size_t bad[] = {0, 1, 8, 15, 17, 24, 1000, SIZE_MAX, SIZE_MAX - 7};
  sona_ring *const untouched = (sona_ring *)(void *)&bad;
  sona_ring *ring = untouched;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    sona_ring_options options = {.capacity = bad[i]};
    CHECK_EQ(sona_ring_create(&options, &ring), SONA_EINVAL);
  }
  for (size_t first = 1; first < 8; first++) {
    sona_ring_options options = {.capacity = 64, .first = first};
    CHECK_EQ(sona_ring_create(&options, &ring), SONA_EINVAL);
  }
  /* Above PTRDIFF_MAX, and a size that no machine has: the struct is allocated before the bytes and must be given back. */
  for (int shift = 1; shift <= 2; shift++) {
    sona_ring_options options = {.capacity = SIZE_MAX / 2 / (size_t)shift + 1};
    CHECK_EQ(sona_ring_create(&options, &ring), SONA_ENOMEM);
  }
  CHECK(ring == untouched);
  sona_ring_destroy(NULL);
}

static void an_empty_ring_gives_nothing(void) {
  sona_ring *ring = ring_with(64, 0, 0);
  size_t size = 7;
  char byte;
  CHECK(sona_ring_peek(ring, &size) == NULL);
  CHECK_EQ(sona_ring_pop(ring, &byte, 1, &size), 0);
  CHECK_EQ(size, 0);
  sona_ring_release(ring); /* nothing was peeked */
  CHECK_EQ(sona_ring_used(ring), 0);
  CHECK_EQ(sona_ring_records(ring), 0);
  CHECK_EQ(sona_ring_dropped(ring), 0);
  CHECK_EQ(sona_ring_capacity(ring), 64);
  CHECK_EQ(sona_ring_max_record(ring), 24);
  sona_ring_destroy(ring);
}

static void a_full_ring_refuses_and_counts(void) {
  sona_ring *ring = ring_with(64, 0, 0);
  for (uint64_t i = 0; i < 4; i++) CHECK_EQ(sona_ring_push(ring, &i, sizeof i), SONA_OK);
  CHECK_EQ(sona_ring_used(ring), 64);
  uint64_t value = 9;
  void *const untouched = &value;
  void *record = untouched;
  CHECK_EQ(sona_ring_reserve(ring, 0, &record), SONA_EFULL);
  CHECK(record == untouched);
  CHECK_EQ(sona_ring_push(ring, &value, sizeof value), SONA_EFULL);
  CHECK_EQ(sona_ring_dropped(ring), 2);
  volatile size_t most = SIZE_MAX, more = 25;                /* hidden from the compiler, which would see the copy behind the check */
  CHECK_EQ(sona_ring_push(ring, &value, more), SONA_EINVAL); /* can never fit: the caller's error, not a drop */
  CHECK_EQ(sona_ring_push(ring, &value, most), SONA_EINVAL);
  CHECK_EQ(sona_ring_dropped(ring), 2);
  size_t size;
  for (uint64_t i = 0; i < 4; i++) {
    CHECK_EQ(sona_ring_pop(ring, &value, sizeof value, &size), 1);
    CHECK_EQ(size, sizeof value);
    CHECK_EQ(value, i); /* the oldest were kept */
  }
  CHECK(sona_ring_peek(ring, &size) == NULL);
  sona_ring_destroy(ring);
}

/* Records without a byte take 8 each and so fill the ring to the last byte, wherever its indices stand. */
static void full_is_full_across_the_wrap(void) {
  for (size_t before = 0; before <= 128; before += 8) {
    sona_ring *ring = ring_with(64, 0, (size_t)0 - before);
    size_t size;
    for (int i = 0; i < 8; i++) CHECK_EQ(sona_ring_push(ring, NULL, 0), SONA_OK);
    CHECK_EQ(sona_ring_push(ring, NULL, 0), SONA_EFULL);
    CHECK_EQ(sona_ring_used(ring), 64);
    for (int i = 0; i < 8; i++) CHECK_EQ(sona_ring_pop(ring, NULL, 0, &size), 1);
    CHECK_EQ(sona_ring_pop(ring, NULL, 0, &size), 0);
    sona_ring_destroy(ring);
  }
}

static void a_record_limit_makes_it_full_too(void) {
  sona_ring *ring = ring_with(1024, 2, SIZE_MAX - 7); /* the record counters wrap as well */
  char byte = 'a';
  size_t size;
  for (int turn = 0; turn < 20; turn++) {
    CHECK_EQ(sona_ring_push(ring, &byte, 1), SONA_OK);
    CHECK_EQ(sona_ring_push(ring, &byte, 1), SONA_OK);
    CHECK_EQ(sona_ring_records(ring), 2);
    CHECK_EQ(sona_ring_push(ring, &byte, 1), SONA_EFULL);
    CHECK_EQ(sona_ring_dropped(ring), turn + 1);
    CHECK_EQ(sona_ring_pop(ring, &byte, 1, &size), 1);
    CHECK_EQ(sona_ring_pop(ring, &byte, 1, &size), 1);
    CHECK_EQ(sona_ring_records(ring), 0);
  }
  sona_ring_destroy(ring);
}

static void a_reservation_is_invisible_until_committed(void) {
  sona_ring *ring = ring_with(64, 0, 0);
  void *record;
  size_t size;
  CHECK_EQ(sona_ring_commit(ring, 0), SONA_EINVAL); /* nothing reserved */
  CHECK_EQ(sona_ring_commit(ring, SIZE_MAX), SONA_EINVAL);
  CHECK_EQ(sona_ring_reserve(ring, 16, &record), SONA_OK);
  memcpy(record, "0123456789abcdef", 16);
  CHECK(sona_ring_peek(ring, &size) == NULL);
  CHECK_EQ(sona_ring_commit(ring, 17), SONA_EINVAL);       /* more than was reserved, which stays */
  CHECK_EQ(sona_ring_reserve(ring, 10, &record), SONA_OK); /* forgets the first */
  CHECK_EQ(sona_ring_commit(ring, 17), SONA_EINVAL);
  CHECK(sona_ring_peek(ring, &size) == NULL);
  CHECK_EQ(sona_ring_commit(ring, 3), SONA_OK);     /* less than was reserved: the rest is free again */
  CHECK_EQ(sona_ring_commit(ring, 3), SONA_EINVAL); /* once only */
  CHECK_EQ(sona_ring_commit(ring, 0), SONA_EINVAL);
  CHECK_EQ(sona_ring_used(ring), 16);
  const char *bytes = sona_ring_peek(ring, &size);
  CHECK_EQ(size, 3);
  CHECK(memcmp(bytes, "012", 3) == 0);
  CHECK(sona_ring_peek(ring, &size) == bytes); /* peeking takes nothing away */
  char small[2];
  CHECK_EQ(sona_ring_pop(ring, small, sizeof small, &size), 0); /* too small a room: the record stays, its size is told */
  CHECK_EQ(size, 3);
  sona_ring_release(ring);
  sona_ring_release(ring); /* the second has nothing to free */
  CHECK_EQ(sona_ring_used(ring), 0);
  sona_ring_destroy(ring);
}

/* Every size 0..capacity at every offset of the empty ring, starting just before the indices wrap: it fits exactly when it is at most
 * max_record, comes back unchanged, aligned, and inside the ring. */
static void any_allowed_record_fits_an_empty_ring(void) {
  enum { CAPACITY = 256 };
  unsigned char bytes[CAPACITY];
  for (size_t i = 0; i < CAPACITY; i++) bytes[i] = (unsigned char)(i * 37 + 11);
  for (size_t offset = 0; offset < CAPACITY; offset += 8) {
    for (size_t size = 0; size <= CAPACITY; size++) {
      sona_ring *ring = ring_with(CAPACITY, 0, (size_t)0 - CAPACITY + offset);
      void *probe = NULL;
      CHECK_EQ(sona_ring_reserve(ring, 0, &probe), SONA_OK);
      const char *front = (const char *)probe - SONA_RING_HEADER - offset;
      sona_status status = sona_ring_push(ring, bytes, size);
      CHECK_EQ(status, size <= sona_ring_max_record(ring) ? SONA_OK : SONA_EINVAL);
      size_t got = 0;
      const void *record = sona_ring_peek(ring, &got);
      CHECK_EQ(record != NULL, status == SONA_OK);
      if (record) {
        CHECK_EQ(got, size);
        CHECK_EQ((uintptr_t)record % 8, 0);
        CHECK((const char *)record > front && (const char *)record + size <= front + CAPACITY);
        CHECK(memcmp(record, bytes, size) == 0);
        sona_ring_release(ring);
      }
      CHECK_EQ(sona_ring_used(ring), 0);
      CHECK_EQ(sona_ring_dropped(ring), 0);
      sona_ring_destroy(ring);
    }
  }
}

static void a_forgotten_reservation_at_the_end_costs_no_record(void) {
  sona_ring *ring = ring_with(64, 0, 48); /* 16 bytes to the end */
  void *record, *front;
  size_t size;
  CHECK_EQ(sona_ring_reserve(ring, 24, &front), SONA_OK); /* goes to the front, and is forgotten there */
  CHECK(sona_ring_peek(ring, &size) == NULL);
  CHECK_EQ(sona_ring_used(ring), 0);
  CHECK_EQ(sona_ring_reserve(ring, 24, &record), SONA_OK);
  CHECK(record == front);
  memcpy(record, "abcdefghijklmnopqrstuvwx", 24);
  CHECK_EQ(sona_ring_commit(ring, 24), SONA_OK);
  CHECK_EQ(sona_ring_used(ring), 16 + 32);
  const char *bytes = sona_ring_peek(ring, &size);
  CHECK_EQ(size, 24);
  CHECK(bytes && memcmp(bytes, "abcdefghijklmnopqrstuvwx", 24) == 0);
  sona_ring_destroy(ring);
}

static void what_is_no_longer_reserved_cannot_be_committed(void) {
  static const size_t starts[] = {0, 48}; /* 48: the reservation goes to the front, the record that comes instead fits before the end */
  for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
    for (int push = 0; push <= 1; push++) {
      sona_ring *ring = ring_with(64, 0, starts[i]);
      void *record;
      size_t size = 0;
      CHECK_EQ(sona_ring_reserve(ring, 24, &record), SONA_OK);
      if (push) {
        CHECK_EQ(sona_ring_push(ring, "abc", 3), SONA_OK);
      } else {
        CHECK_EQ(sona_ring_reserve(ring, 3, &record), SONA_OK);
        CHECK_EQ(sona_ring_commit(ring, 24), SONA_EINVAL);
        memcpy(record, "abc", 3);
        CHECK_EQ(sona_ring_commit(ring, 3), SONA_OK);
      }
      for (size_t again = 0; again <= 24; again += 8) CHECK_EQ(sona_ring_commit(ring, again), SONA_EINVAL);
      CHECK_EQ(sona_ring_used(ring), 16);
      const char *bytes = sona_ring_peek(ring, &size);
      CHECK_EQ(size, 3);
      CHECK(bytes && memcmp(bytes, "abc", 3) == 0);
      sona_ring_release(ring);
      CHECK(sona_ring_peek(ring, &size) == NULL);
      CHECK_EQ(sona_ring_push(ring, "0123456789abcdef01234567", 24), SONA_OK); /* turns to the front or not: the ring is whole */
      bytes = sona_ring_peek(ring, &size);
      CHECK_EQ(size, 24);
      CHECK(bytes && memcmp(bytes, "0123456789abcdef01234567", 24) == 0);
      sona_ring_destroy(ring);
    }
  }
}

static void a_refused_reservation_leaves_the_first(void) {
  sona_ring *ring = ring_with(64, 0, 0);
  void *record, *refused = NULL;
  size_t size = 0;
  CHECK_EQ(sona_ring_push(ring, "0123456789abcdef01234567", 24), SONA_OK);
  CHECK_EQ(sona_ring_reserve(ring, 16, &record), SONA_OK);
  CHECK_EQ(sona_ring_push(ring, NULL, 0), SONA_OK); /* forgets it */
  CHECK_EQ(sona_ring_reserve(ring, 8, &record), SONA_OK);
  CHECK_EQ(sona_ring_reserve(ring, 24, &refused), SONA_EFULL);
  CHECK(refused == NULL);
  memcpy(record, "12345678", 8);
  CHECK_EQ(sona_ring_commit(ring, 8), SONA_OK);
  for (size_t want = 24;; want = want == 24 ? 0 : 8) {
    const char *bytes = sona_ring_peek(ring, &size);
    CHECK_EQ(size, want);
    if (want == 8) CHECK(bytes && memcmp(bytes, "12345678", 8) == 0);
    sona_ring_release(ring);
    if (want == 8) break;
  }
  CHECK_EQ(sona_ring_used(ring), 0);
  sona_ring_destroy(ring);
}

/* No headers: as many records as multiples of 8 fit between the ends of the ring, again and again across the wrap. */
static void records_of_one_size_need_no_header(void) {
  static const size_t sizes[] = {1, 7, 8, 24, 40, 100, 128};
  enum { CAPACITY = 256 };
  unsigned char bytes[CAPACITY] = {0}, got[CAPACITY];
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    size_t size = sizes[i], room = CAPACITY / ((size + 7) / 8 * 8), got_size;
    sona_ring *ring = NULL;
    sona_ring_options options = {.capacity = CAPACITY, .first = (size_t)0 - 2 * CAPACITY};
    CHECK_EQ(sona_ring_create_fixed(&options, size, &ring), SONA_OK);
    CHECK_EQ(sona_ring_max_record(ring), size);
    CHECK_EQ(sona_ring_push(ring, bytes, size - 1), SONA_EINVAL);
    CHECK_EQ(sona_ring_push(ring, bytes, size + 1), SONA_EINVAL);
    void *record;
    CHECK_EQ(sona_ring_reserve(ring, size, &record), SONA_OK);
    CHECK_EQ(sona_ring_commit(ring, size - 1), SONA_EINVAL);
    for (int turn = 0; turn < 10; turn++) {
      for (size_t k = 0; k < room; k++) {
        memset(bytes, (int)k + turn, size);
        CHECK_EQ(sona_ring_push(ring, bytes, size), SONA_OK);
      }
      CHECK_EQ(sona_ring_push(ring, bytes, size), SONA_EFULL);
      CHECK_EQ(sona_ring_records(ring), room);
      for (size_t k = 0; k < room; k++) {
        memset(bytes, (int)k + turn, size);
        CHECK_EQ(sona_ring_pop(ring, got, sizeof got, &got_size), 1);
        CHECK_EQ(got_size, size);
        CHECK(memcmp(got, bytes, size) == 0);
      }
      CHECK_EQ(sona_ring_pop(ring, got, sizeof got, &got_size), 0);
    }
    CHECK_EQ(sona_ring_dropped(ring), 10);
    sona_ring_destroy(ring);
  }
  sona_ring *none = NULL;
  sona_ring_options options = {.capacity = CAPACITY};
  CHECK_EQ(sona_ring_create_fixed(&options, CAPACITY / 2 + 1, &none), SONA_EINVAL);
  CHECK_EQ(sona_ring_create_fixed(&options, 0, &none), SONA_EINVAL);
  CHECK(none == NULL);
}

/* Slots that do or do not divide the ring, from every place to start: a random mix of pushes and pops against two counters. */
static void records_of_one_size_are_counted(void) {
  static const size_t sizes[] = {8, 24, 40, 104, 128};
  enum { CAPACITY = 256, STEPS = 400 };
  uint32_t random = 1;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    for (size_t offset = 0; offset < CAPACITY; offset += 8) {
      size_t size = sizes[i], slots = CAPACITY / size, got;
      sona_ring *ring = NULL;
      sona_ring_options options = {
          .capacity = CAPACITY, .first = (size_t)0 - 2 * CAPACITY + offset, .max_records = offset % 16 ? slots / 2 : 0};
      CHECK_EQ(sona_ring_create_fixed(&options, size, &ring), SONA_OK);
      size_t most = options.max_records ? options.max_records : slots;
      uint64_t pushed = 0, popped = 0, words[CAPACITY / 16] = {0};
      for (int step = 0; step < STEPS; step++) {
        random = random * 1664525u + 1013904223u;
        if (random >> 31) {
          words[0] = pushed;
          sona_status status = sona_ring_push(ring, words, size);
          CHECK(status == SONA_OK || pushed - popped + 1 >= most); /* a turn to the front may cost one slot */
          pushed += status == SONA_OK;
        } else {
          CHECK_EQ(sona_ring_pop(ring, words, sizeof words, &got), pushed > popped);
          if (pushed > popped) CHECK_EQ(words[0], popped++);
        }
        CHECK_EQ(sona_ring_records(ring), pushed - popped);
        CHECK(pushed - popped <= most);
        CHECK(sona_ring_used(ring) >= (pushed - popped) * size && sona_ring_used(ring) <= CAPACITY);
      }
      sona_ring_destroy(ring);
    }
  }
}

/* A random mix of sizes against a plain list, far past the wrap of the indices. */
static void order_and_bytes_survive_the_wrap(void) {
  enum { CAPACITY = 512, STEPS = 100000, QUEUE = CAPACITY / SONA_RING_HEADER };
  struct {
    size_t size;
    unsigned char seed;
  } queue[QUEUE];
  size_t oldest = 0, newest = 0; /* of the list */
  uint64_t dropped = 0;
  unsigned char bytes[CAPACITY];
  uint32_t random = 12345;
  sona_ring *ring = ring_with(CAPACITY, 0, SIZE_MAX - 7 - 1000 * CAPACITY);
  for (int step = 0; step < STEPS; step++) {
    random = random * 1664525u + 1013904223u;
    if (random >> 31) {
      size_t size = (random >> 8) % (sona_ring_max_record(ring) + 1);
      unsigned char seed = (unsigned char)(random >> 20);
      for (size_t i = 0; i < size; i++) bytes[i] = (unsigned char)(seed + i);
      size_t used = sona_ring_used(ring);
      if (sona_ring_push(ring, bytes, size) == SONA_OK) {
        queue[newest % QUEUE].size = size;
        queue[newest++ % QUEUE].seed = seed;
      } else {
        CHECK_EQ(sona_ring_dropped(ring), ++dropped);
        CHECK_EQ(sona_ring_used(ring), used);
        CHECK(newest > oldest); /* an empty ring never refuses */
      }
    } else {
      size_t size;
      int popped = sona_ring_pop(ring, bytes, sizeof bytes, &size);
      CHECK_EQ(popped, newest > oldest);
      if (popped) {
        CHECK_EQ(size, queue[oldest % QUEUE].size);
        for (size_t i = 0; i < size; i++) CHECK_EQ(bytes[i], (unsigned char)(queue[oldest % QUEUE].seed + i));
        oldest++;
      }
    }
    CHECK_EQ(sona_ring_records(ring), newest - oldest);
    CHECK(sona_ring_used(ring) <= CAPACITY);
  }
  CHECK(dropped > 0);
  sona_ring_destroy(ring);
}

static void nothing_is_allocated_after_creation(void) {
  sona_ring *ring = ring_with(128, 0, 0);
  uint64_t before = sona_allocations();
  char bytes[40] = {0};
  size_t size;
  for (int turn = 0; turn < 1000; turn++) {
    sona_ring_push(ring, bytes, (size_t)turn % sizeof bytes);
    if (turn % 3) sona_ring_pop(ring, bytes, sizeof bytes, &size);
  }
  CHECK_EQ(sona_allocations(), before);
  sona_ring_destroy(ring);
}

int main(void) {
  options_out_of_range_are_refused();
  an_empty_ring_gives_nothing();
  a_full_ring_refuses_and_counts();
  full_is_full_across_the_wrap();
  a_record_limit_makes_it_full_too();
  a_reservation_is_invisible_until_committed();
  any_allowed_record_fits_an_empty_ring();
  a_forgotten_reservation_at_the_end_costs_no_record();
  what_is_no_longer_reserved_cannot_be_committed();
  a_refused_reservation_leaves_the_first();
  records_of_one_size_need_no_header();
  records_of_one_size_are_counted();
  order_and_bytes_survive_the_wrap();
  nothing_is_allocated_after_creation();
  return check_done("ring");
}
