/* The ring between two threads: every record arrives once, whole and in order, while a third thread reads the counters.  Under the thread
 * sanitizer this also proves the orders of the atomics: with a relaxed store in sona_ring_commit or sona_ring_release it reports a race. */
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "sona/ring.h"

enum { RECORDS = 100000, WORDS = 24 };

typedef struct run {
  sona_ring *ring;
  int copy;        /* push and pop instead of the calls without a copy */
  size_t one_size; /* words of every record; 0: any */
  atomic_int done;
} run;

/* Record i holds one_size or else (i % WORDS) + 1 words: i, i + 1, i + 2, ... */
static size_t words_of(const run *r, uint64_t i) { return r->one_size ? r->one_size : (size_t)(i % WORDS) + 1; }

static void *produce(void *argument) {
  run *r = argument;
  uint64_t refused = 0;
  for (uint64_t i = 0; i < RECORDS;) {
    uint64_t words[WORDS];
    void *record = words;
    size_t size = words_of(r, i) * sizeof *words;
    sona_status status = r->copy ? SONA_OK : sona_ring_reserve(r->ring, size, &record);
    if (status == SONA_OK) {
      for (size_t w = 0; w < words_of(r, i); w++) ((uint64_t *)record)[w] = i + w;
      status = r->copy ? sona_ring_push(r->ring, words, size) : sona_ring_commit(r->ring, size);
    }
    if (status == SONA_OK) {
      i++;
    } else {
      CHECK_EQ(status, SONA_EFULL);
      refused++;
      sched_yield();
    }
  }
  CHECK_EQ(sona_ring_dropped(r->ring), refused);
  return NULL;
}

static void *consume(void *argument) {
  run *r = argument;
  for (uint64_t i = 0; i < RECORDS;) {
    uint64_t words[WORDS];
    const uint64_t *record = words;
    size_t size;
    if (r->copy) {
      if (!sona_ring_pop(r->ring, words, sizeof words, &size)) record = NULL;
    } else {
      record = sona_ring_peek(r->ring, &size);
    }
    if (!record) {
      sched_yield();
      continue;
    }
    CHECK_EQ(size, words_of(r, i) * sizeof *words);
    for (size_t w = 0; w < words_of(r, i); w++) CHECK_EQ(record[w], i + w);
    if (!r->copy) sona_ring_release(r->ring);
    i++;
  }
  return NULL;
}

static void *watch(void *argument) {
  run *r = argument;
  while (!atomic_load_explicit(&r->done, memory_order_relaxed)) { /* relaxed: a flag, no memory is read because of it */
    CHECK(sona_ring_used(r->ring) <= sona_ring_capacity(r->ring));
    CHECK(sona_ring_records(r->ring) <= sona_ring_capacity(r->ring) / SONA_RING_HEADER);
    CHECK(sona_ring_dropped(r->ring) < UINT64_MAX / 2);
    sched_yield();
  }
  return NULL;
}

static void records_arrive_once_and_in_order(int copy, size_t one_size, size_t max_records, size_t first) {
  sona_ring_options options = {.capacity = 1024, .max_records = max_records, .first = first, .own_producer = 1};
  run r = {.copy = copy, .one_size = one_size};
  CHECK_EQ(one_size ? sona_ring_create_fixed(&options, one_size * 8, &r.ring) : sona_ring_create(&options, &r.ring), SONA_OK);
  pthread_t producer, consumer, watcher;
  pthread_create(&watcher, NULL, watch, &r);
  pthread_create(&producer, NULL, produce, &r);
  pthread_create(&consumer, NULL, consume, &r);
  pthread_join(producer, NULL);
  pthread_join(consumer, NULL);
  atomic_store_explicit(&r.done, 1, memory_order_relaxed);
  pthread_join(watcher, NULL);
  CHECK_EQ(sona_ring_used(r.ring), 0);
  CHECK_EQ(sona_ring_records(r.ring), 0);
  sona_ring_destroy(r.ring);
}

static void *push_once(void *argument) {
  sona_status *status = (sona_status *)((void **)argument)[1];
  *status = sona_ring_push(((void **)argument)[0], "x", 1);
  return NULL;
}

/* What a second producer thread gets, after the first has pushed. */
static void a_second_producer(int own_producer, sona_status want) {
  sona_ring *ring = NULL;
  sona_ring_options options = {.capacity = 64, .own_producer = own_producer};
  CHECK_EQ(sona_ring_create(&options, &ring), SONA_OK);
  CHECK_EQ(sona_ring_push(ring, "x", 1), SONA_OK);
  sona_status status = SONA_ENOMEM;
  void *argument[] = {ring, &status};
  pthread_t second;
  pthread_create(&second, NULL, push_once, argument);
  pthread_join(second, NULL);
  CHECK_EQ(status, want);
  CHECK_EQ(sona_ring_records(ring), want == SONA_OK ? 2 : 1);
  CHECK_EQ(sona_ring_push(ring, "x", 1), SONA_OK); /* the owner goes on */
  sona_ring_destroy(ring);
}

int main(void) {
  records_arrive_once_and_in_order(0, 0, 0, 0);
  records_arrive_once_and_in_order(1, 0, 0, (size_t)0 - 1024 * 1024);
  records_arrive_once_and_in_order(0, 0, 3, (size_t)0 - 1024);
  records_arrive_once_and_in_order(0, 1, 0, 0);
  records_arrive_once_and_in_order(1, 5, 0, (size_t)0 - 1024 * 1024); /* slots that do not divide the ring */
  a_second_producer(1, SONA_EINVAL);
  a_second_producer(0, SONA_OK); /* handed over by the join, so allowed */
  return check_done("ring_threads");
}
