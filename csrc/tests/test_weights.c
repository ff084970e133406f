/* The weight file in one process: what is published is what is adopted, whole or not at all; files that are not what they should be. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>

#include "../src/random.h"
#include "../src/weights_core.h"
#include "check.h"
#include "scratch.h"
#include "sona/weights.h"

enum { HEAD = 4096, EPOCH_AT = 128, LAYERS = 3, DIM = 5, RANK = 4, SLOTS = 4, FACTORS = 16 + 4 * RANK * (2 * DIM + 1) };

static const sona_weights_options usual = {.layers = LAYERS, .dim = DIM, .max_rank = RANK, .fingerprint = 0xfee1600d};

typedef struct layers {
  sona_adapter *at[LAYERS];
} layers;

static layers make_layers(void) {
  const sona_adapter_options options = {.dim = DIM, .rank = 2, .rank_max = 4, .micro = 2, .max_discard = 0.05, .scale = 0.5f};
  layers l;
  for (int i = 0; i < LAYERS; i++) CHECK_EQ(sona_adapter_create(&options, &l.at[i]), SONA_OK);
  return l;
}

static void destroy_layers(layers *l) {
  for (int i = 0; i < LAYERS; i++) sona_adapter_destroy(l->at[i]);
}

/* Rows that only `seed` and the layer decide, as bytes. */
typedef struct publication {
  unsigned char bytes[LAYERS][FACTORS];
  const void *factors[LAYERS];
  size_t sizes[LAYERS];
} publication;

static void fill(publication *p, uint64_t seed) {
  sona_random rng;
  sona_random_seed(&rng, seed);
  layers l = make_layers();
  for (int i = 0; i < LAYERS; i++) {
    float rows[2][RANK * DIM], offset[RANK];
    for (int k = 0; k < RANK * DIM; k++) rows[0][k] = (float)sona_random_normal(&rng), rows[1][k] = (float)sona_random_normal(&rng);
    for (int r = 0; r < RANK; r++) offset[r] = (float)sona_random_normal(&rng);
    const size_t rank = (seed + (uint64_t)i) % (RANK + 1);
    CHECK_EQ(sona_adapter_assign(l.at[i], rows[0], rows[1], DIM, offset, rank, rank), SONA_OK);
    CHECK_EQ(sona_adapter_encode(l.at[i], p->bytes[i], FACTORS, &p->sizes[i]), SONA_OK);
    p->factors[i] = p->bytes[i];
  }
  destroy_layers(&l);
}

static sona_status publish(sona_weights *w, uint64_t seed) {
  publication p;
  fill(&p, seed);
  return sona_weights_publish(w, p.factors, p.sizes, seed);
}

/* Whether the adapters hold the rows of that seed. */
static int hold(const layers *l, uint64_t seed) {
  publication p;
  unsigned char bytes[FACTORS];
  fill(&p, seed);
  int equal = 1;
  for (int i = 0; i < LAYERS; i++) {
    size_t size = 0;
    CHECK_EQ(sona_adapter_encode(l->at[i], bytes, sizeof bytes, &size), SONA_OK);
    equal &= size == p.sizes[i] && memcmp(bytes, p.bytes[i], size) == 0;
  }
  return equal;
}

/* ---- opening ---- */

static void options_out_of_range_are_refused(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL;
  static const sona_weights_options bad[] = {{0, 1, 1, 0},
                                             {1, 0, 1, 0},
                                             {1, 1, 0, 0},
                                             {SIZE_MAX, 1, 1, 0},
                                             {1, SIZE_MAX, 1, 0},
                                             {1, 1, SIZE_MAX, 0},
                                             {1, SIZE_MAX / 16, 1, 0},
                                             {SIZE_MAX / 60, 1, 1, 0},
                                             {1, UINT32_MAX, UINT32_MAX / 4, 0},
                                             {1, 1, UINT32_MAX, 0},
                                             {UINT32_MAX, UINT32_MAX, 1, 0}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_EQ(sona_weights_create(path, &bad[i], &w), SONA_EINVAL);
  CHECK_EQ(sona_weights_create(NULL, &usual, &w), SONA_EINVAL);
  CHECK_EQ(sona_weights_open(path, &bad[0], &w), SONA_EINVAL);
  CHECK_EQ(scratch_size(path), SIZE_MAX);
  CHECK(w == NULL);
  sona_weights_close(NULL);
}

static void a_file_is_taken_up_with_equal_options_only(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *other = NULL;
  errno = 0;
  CHECK_EQ(sona_weights_open(path, &usual, &w), SONA_EIO);
  CHECK_EQ(errno, ENOENT);
  CHECK_EQ(scratch_size(path), SIZE_MAX);
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  struct stat found;
  CHECK_EQ(stat(path, &found), 0);
  CHECK_EQ(found.st_mode & 0777, 0600);
  CHECK_EQ(sona_weights_create(path, &usual, &other), SONA_EBUSY);
  CHECK_EQ(publish(w, 1), SONA_OK);
  sona_weights_close(w);
  sona_weights_options o[5] = {usual, usual, usual, usual, usual};
  o[0].layers++, o[1].dim++, o[2].max_rank++, o[3].fingerprint++, o[4].fingerprint = 0;
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(sona_weights_create(path, &o[i], &other), SONA_EVERSION);
    CHECK_EQ(sona_weights_open(path, &o[i], &other), i == 2 || i == 4 ? SONA_OK : SONA_EVERSION);
    sona_weights_close(other);
    other = NULL;
  }
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  CHECK_EQ(sona_weights_epoch(w), 1); /* goes on */
  CHECK_EQ(publish(w, 2), SONA_OK);
  CHECK_EQ(sona_weights_epoch(w), 2);
  sona_weights_close(w);
}

static void a_file_that_says_no_model_fits_all(void) {
  const char *path = scratch_path();
  sona_weights_options silent = usual;
  silent.fingerprint = 0;
  sona_weights *w = NULL, *r = NULL;
  CHECK_EQ(sona_weights_create(path, &silent, &w), SONA_OK);
  CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
  sona_weights_close(r);
  sona_weights_close(w);
}

/* ---- publications ---- */

static void what_is_published_is_adopted(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *r = NULL;
  layers l = make_layers();
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
  CHECK_EQ(sona_weights_epoch(r), 0);
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_EAGAIN);
  CHECK_EQ(sona_weights_adopt(w, l.at, NULL), SONA_EINVAL);
  CHECK_EQ(publish(r, 1), SONA_EINVAL);
  sona_weights_info info = {0}, last = {0};
  uint64_t allocated = 0;
  for (uint64_t seed = 1; seed < 40; seed++) {
    CHECK_EQ(publish(w, seed), SONA_OK);
    CHECK_EQ(sona_weights_epoch(r), seed);
    CHECK_EQ(sona_weights_epoch(w), seed);
    if (seed % 7 == 0) continue; /* one is left out */
    const uint64_t before = sona_allocations();
    CHECK_EQ(sona_weights_adopt(r, l.at, &info), SONA_OK);
    allocated = sona_allocations() - before;
    CHECK(info.epoch == seed && info.version == seed && info.published_ns > last.published_ns);
    CHECK(hold(&l, seed));
    CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_OK); /* again is the same */
    last = info;
  }
  CHECK_EQ(allocated, 0);
  sona_weights_close(w);
  sona_weights_close(r);
  destroy_layers(&l);
}

static void what_cannot_be_adopted_is_not_published(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL;
  publication p;
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  fill(&p, 3); /* ranks 3, 4, 0 */
  CHECK_EQ(sona_weights_publish(w, p.factors, p.sizes, 1), SONA_OK);
  p.sizes[0]--;
  CHECK_EQ(sona_weights_publish(w, p.factors, p.sizes, 2), SONA_ECORRUPT);
  p.sizes[0] += 2;
  CHECK_EQ(sona_weights_publish(w, p.factors, p.sizes, 2), SONA_ECORRUPT);
  p.sizes[0]--;
  const float nan = NAN;
  memcpy(p.bytes[1] + p.sizes[1] - 4, &nan, sizeof nan);
  CHECK_EQ(sona_weights_publish(w, p.factors, p.sizes, 2), SONA_ENONFINITE);
  fill(&p, 3);
  unsigned char narrow[16 + 4 * 3] = {'s', 'o', 'n', 'a', 'f', 'a', 'c', '1', 1, 0, 0, 0, 1};
  p.factors[2] = narrow;
  p.sizes[2] = sizeof narrow;
  CHECK_EQ(sona_weights_publish(w, p.factors, p.sizes, 2), SONA_EVERSION);
  static unsigned char tall[16 + 4 * (RANK + 1) * (2 * DIM + 1)] = {'s', 'o', 'n', 'a', 'f', 'a', 'c', '1', RANK + 1, 0, 0, 0, DIM};
  p.factors[2] = tall;
  p.sizes[2] = sizeof tall;
  CHECK_EQ(sona_weights_publish(w, p.factors, p.sizes, 2), SONA_EFULL);
  CHECK_EQ(sona_weights_epoch(w), 1);
  sona_weights_close(w);
}

static void adapters_that_do_not_fit_are_refused(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *r = NULL;
  layers l = make_layers();
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
  CHECK_EQ(publish(w, 1), SONA_OK);
  const sona_adapter_options wide = {.dim = DIM + 1, .rank = 2, .rank_max = 2, .micro = 2, .scale = 1};
  sona_adapter *kept = l.at[2];
  CHECK_EQ(sona_adapter_create(&wide, &l.at[2]), SONA_OK);
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_EINVAL);
  CHECK_EQ(sona_adapter_describe(l.at[0]).total, 0);
  sona_adapter_destroy(l.at[2]);
  /* Two layers cannot be shown by one adapter. */
  for (int i = 0; i < 2; i++) {
    l.at[2] = l.at[i];
    CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_EINVAL);
    CHECK_EQ(sona_adapter_describe(l.at[i]).generation, 1);
  }
  l.at[2] = kept;
  /* A scale that takes one layer out of float32: then none of them changes. */
  const sona_adapter_options tiny = {.dim = DIM, .rank = 2, .rank_max = 2, .micro = 2, .scale = 1e-30f};
  CHECK_EQ(sona_adapter_create(&tiny, &l.at[2]), SONA_OK);
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_ENONFINITE);
  CHECK_EQ(sona_adapter_describe(l.at[0]).total, 0);
  CHECK_EQ(sona_adapter_describe(l.at[0]).generation, 1);
  sona_adapter_destroy(l.at[2]);
  l.at[2] = kept;
  sona_weights_close(w);
  sona_weights_close(r);
  destroy_layers(&l);
}

static void epochs_end_before_they_come_again(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *r = NULL;
  layers l = make_layers();
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  sona_weights_close(w);
  size_t size;
  unsigned char *bytes = scratch_map(path, &size);
  sona_epoch_write((sona_word *)(void *)(bytes + EPOCH_AT), SONA_SEALED_MAX - 1);
  munmap(bytes, size);
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
  CHECK_EQ(publish(w, 1), SONA_OK);
  CHECK(sona_weights_epoch(w) == SONA_SEALED_MAX);
  CHECK_EQ(publish(w, 2), SONA_EFULL);
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_OK);
  CHECK(hold(&l, 1));
  sona_weights_close(w);
  sona_weights_close(r);
  destroy_layers(&l);
}

static void a_child_of_fork_reads_and_does_not_write(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *r = NULL;
  layers l = make_layers();
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
  CHECK_EQ(publish(w, 1), SONA_OK);
  const pid_t child = fork();
  if (child == 0) {
    const int right = publish(w, 2) == SONA_EINVAL && sona_weights_adopt(r, l.at, NULL) == SONA_OK && hold(&l, 1);
    sona_weights_close(w);
    _exit(right ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  CHECK_EQ(publish(w, 2), SONA_OK);
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_OK);
  CHECK(hold(&l, 2));
  sona_weights_close(w);
  sona_weights_close(r);
  destroy_layers(&l);
}

/* ---- a writer that is overtaken, or dies ---- */

static sona_slot *slot_of(unsigned char *bytes, size_t size, uint64_t epoch) {
  return (sona_slot *)(void *)(bytes + HEAD + epoch % SLOTS * ((size - HEAD) / SLOTS));
}

/* Every place where a writer can die in the middle of epoch 6, played by writing as far as that: epoch 5 stays, and the next writer goes
 * on. */
static void a_torn_publication_is_never_seen(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *r = NULL;
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  for (uint64_t seed = 1; seed <= 5; seed++) CHECK_EQ(publish(w, seed), SONA_OK);
  size_t size;
  unsigned char *bytes = scratch_map(path, &size), *five = malloc(size), *six = malloc(size);
  memcpy(five, bytes, size);
  CHECK_EQ(publish(w, 6), SONA_OK);
  memcpy(six, bytes, size);
  sona_weights_close(w);
  const size_t start = (size_t)((unsigned char *)slot_of(bytes, size, 6) - bytes), words = (size - HEAD) / SLOTS / 8;
  for (size_t done = 0; done <= words; done++) {
    memcpy(bytes, five, size);
    memcpy(bytes + start, six + start, 8 * done);
    sona_slot *slot = slot_of(bytes, size, 6);
    if (done < words) atomic_fetch_or(&slot->sequence, 1);
    layers l = make_layers();
    sona_weights_info info;
    CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
    CHECK_EQ(sona_weights_adopt(r, l.at, &info), SONA_OK);
    CHECK_EQ(info.epoch, 5);
    CHECK(hold(&l, 5));
    CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
    CHECK_EQ(publish(w, 77), SONA_OK);
    CHECK_EQ(sona_weights_adopt(r, l.at, &info), SONA_OK);
    CHECK_EQ(info.epoch, 6);
    CHECK(hold(&l, 77));
    CHECK_EQ(atomic_load(&slot->sequence) % 2, 0);
    sona_weights_close(w);
    sona_weights_close(r);
    destroy_layers(&l);
  }
  munmap(bytes, size);
  free(five);
  free(six);
}

/* A reader that comes for an epoch whose slot is being written again, while the epoch moves on: bounded tries, then SONA_EAGAIN. */
static void a_reader_that_is_overtaken_gives_up(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *r = NULL;
  layers l = make_layers();
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
  for (uint64_t seed = 1; seed <= 8; seed++) CHECK_EQ(publish(w, seed), SONA_OK);
  size_t size, count = 0;
  unsigned char *bytes = scratch_map(path, &size);
  const size_t room = (size - HEAD) / SLOTS / 8;
  uint64_t *words = malloc(8 * room);
  sona_slot *slot = slot_of(bytes, size, 8);
  CHECK_EQ(sona_slot_read(slot, words, room, &count), SONA_COPIED);
  CHECK_EQ(sona_slot_read(slot, words, count - 1, &count), SONA_SPOILED);
  atomic_fetch_add(&slot->sequence, 1);
  CHECK_EQ(sona_slot_read(slot, words, room, &count), SONA_OVERTAKEN);
  /* The epoch stands still: that is damage, and no writer. */
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_ECORRUPT);
  atomic_fetch_add(&slot->sequence, 1);
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_OK);
  CHECK(hold(&l, 8));
  free(words);
  munmap(bytes, size);
  sona_weights_close(w);
  sona_weights_close(r);
  destroy_layers(&l);
}

/* A writer that is always there: while a reader copies a slot, all slots are written and the epoch moves on. */
static struct {
  unsigned char *bytes;
  size_t size;
  atomic_int stopped;
} hurry;

static void *write_on(void *unused) {
  (void)unused;
  for (uint64_t e = SLOTS + 1; !atomic_load(&hurry.stopped); e++) {
    atomic_fetch_add(&slot_of(hurry.bytes, hurry.size, e)->sequence, 2);
    sona_epoch_write((sona_word *)(void *)(hurry.bytes + EPOCH_AT), e);
  }
  return NULL;
}

static void a_reader_tries_a_bounded_number_of_times(void) {
  enum { WIDE = 4096, TALL = 8 }; /* a quarter of a megabyte: longer than many turns of the writer */
  const char *path = scratch_path();
  const sona_weights_options options = {.layers = 1, .dim = WIDE, .max_rank = TALL};
  const sona_adapter_options shape = {.dim = WIDE, .rank = TALL, .rank_max = TALL, .micro = 2, .scale = 1};
  sona_weights *w = NULL, *r = NULL;
  sona_adapter *adapter = NULL;
  const size_t size = 16 + 4 * TALL * (2 * WIDE + 1);
  unsigned char *rows = calloc(1, size);
  const void *factors = rows;
  memcpy(rows, (unsigned char[]){'s', 'o', 'n', 'a', 'f', 'a', 'c', '1', TALL, 0, 0, 0, 0, WIDE / 256}, 14);
  CHECK_EQ(sona_adapter_create(&shape, &adapter), SONA_OK);
  CHECK_EQ(sona_weights_create(path, &options, &w), SONA_OK);
  CHECK_EQ(sona_weights_open(path, &options, &r), SONA_OK);
  for (uint64_t e = 1; e <= SLOTS; e++) CHECK_EQ(sona_weights_publish(w, &factors, &size, e), SONA_OK);
  hurry.bytes = scratch_map(path, &hurry.size);
  pthread_t thread;
  pthread_create(&thread, NULL, write_on, NULL);
  int gave_up = sysconf(_SC_NPROCESSORS_ONLN) < 2 || getenv("SONA_TEST_ONE_THREAD_AT_A_TIME"); /* it takes two that run at once */
  const time_t end = time(NULL) + 20;
  while (!gave_up && time(NULL) < end) {
    const sona_status status = sona_weights_adopt(r, &adapter, NULL);
    /* While the other thread does not run nobody overtakes: then the slot is whole before it starts, and later does not hold what the
     * epoch says. */
    CHECK(status == SONA_EAGAIN || status == SONA_ECORRUPT || status == SONA_OK);
    gave_up = status == SONA_EAGAIN;
  }
  CHECK(gave_up);
  atomic_store(&hurry.stopped, 1);
  pthread_join(thread, NULL);
  munmap(hurry.bytes, hurry.size);
  sona_weights_close(w);
  sona_weights_close(r);
  sona_adapter_destroy(adapter);
  free(rows);
}

/* ---- files that are not what they should be ---- */

/* Every byte of the file changed in three ways: new weights, old weights with a status, or no file at all; never others. */
static void every_byte_counts(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL, *r = NULL;
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  for (uint64_t seed = 1; seed <= 2; seed++) CHECK_EQ(publish(w, seed), SONA_OK);
  sona_weights_close(w);
  size_t size, refused = 0, old = 0;
  unsigned char *bytes = scratch_map(path, &size), *kept = malloc(size);
  memcpy(kept, bytes, size);
  CHECK_EQ(sona_weights_open(path, &usual, &r), SONA_OK);
  layers l = make_layers();
  publication first;
  fill(&first, 1);
  const size_t slot = (size - HEAD) / SLOTS, start = HEAD + 2 * slot;
  for (size_t at = 0; at < size; at++) {
    if (at >= EPOCH_AT + 8 && at < HEAD) continue; /* nothing is there */
    for (int f = 0; f < 3; f++) {
      bytes[at] = kept[at] ^ (unsigned char[]) { 0x01, 0x80, 0xff }[f];
      for (int i = 0; i < LAYERS; i++) CHECK_EQ(sona_adapter_decode(l.at[i], first.bytes[i], first.sizes[i]), SONA_OK);
      sona_status status = sona_weights_adopt(r, l.at, NULL); /* opened before */
      CHECK(status == SONA_OK || status == SONA_ECORRUPT);
      CHECK(hold(&l, status == SONA_OK ? 2 : 1));
      old += status != SONA_OK;
      const int is_new = at >= EPOCH_AT && (at < HEAD || (at >= start + 8 && at < start + 16)); /* the epoch, and the count of words */
      if (is_new) CHECK_EQ(status, SONA_ECORRUPT);
      sona_weights *again = NULL;
      status = sona_weights_open(path, &usual, &again);
      CHECK_EQ(status != SONA_OK, at < 56 || (at >= EPOCH_AT && at < HEAD));
      CHECK(status == SONA_OK || status == SONA_ECORRUPT);
      refused += status != SONA_OK;
      sona_weights_close(again);
      bytes[at] = kept[at];
    }
  }
  CHECK_EQ(refused, 3 * (56 + 8));
  CHECK(old > 3 * 100);
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_OK);
  sona_epoch_write((sona_word *)(void *)(bytes + EPOCH_AT), 1); /* a reader does not go back */
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_ECORRUPT);
  sona_epoch_write((sona_word *)(void *)(bytes + EPOCH_AT), 3); /* never written */
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_ECORRUPT);
  sona_epoch_write((sona_word *)(void *)(bytes + EPOCH_AT), 2 + SLOTS); /* its slot holds another */
  CHECK_EQ(sona_weights_adopt(r, l.at, NULL), SONA_ECORRUPT);
  bytes[EPOCH_AT] ^= 1;
  CHECK_EQ(sona_weights_epoch(r), 0);
  CHECK(hold(&l, 2));
  munmap(bytes, size);
  free(kept);
  sona_weights_close(r);
  destroy_layers(&l);
}

/* Written down as bytes were on the day of format 1: files outlive the program that made them, and a newer format is not taken for damage.
 */
static void formats_are_told_apart(void) {
  static const uint64_t heads[][7] = {
      {0x73746777616e6f73, 1, LAYERS, DIM, RANK, 0xfee1600d, 0x6c5e71733fc38de4},
      {0x73746777616e6f73, 2, LAYERS, DIM, RANK, 0xfee1600d, 0xbb6e8d7fc25d0d46},
  };
  for (int format = 1; format <= 2; format++) {
    const char *path = scratch_path();
    sona_weights *w = NULL;
    CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
    CHECK_EQ(publish(w, 1), SONA_OK);
    sona_weights_close(w);
    w = NULL;
    size_t size;
    unsigned char *bytes = scratch_map(path, &size);
    memcpy(bytes, heads[format - 1], sizeof heads[0]);
    munmap(bytes, size);
    CHECK_EQ(sona_weights_open(path, &usual, &w), format == 1 ? SONA_OK : SONA_EVERSION);
    if (w) CHECK_EQ(sona_weights_epoch(w), 1);
    sona_weights_close(w);
  }
}

/* Nothing of an earlier publication is left behind the last number of a layer. */
static void equal_rows_are_equal_words(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL;
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  static const uint64_t seeds[] = {1, 2, 1};
  for (int i = 0; i < 3; i++) CHECK_EQ(publish(w, seeds[i]), SONA_OK);
  size_t size;
  unsigned char *bytes = scratch_map(path, &size);
  sona_slot *first = slot_of(bytes, size, 1), *third = slot_of(bytes, size, 3);
  const uint64_t count = atomic_load(&first->count);
  CHECK(count > 4 && count == atomic_load(&third->count));
  for (uint64_t i = 4; i < count; i++) CHECK(atomic_load(&sona_slot_words(first)[i]) == atomic_load(&sona_slot_words(third)[i]));
  munmap(bytes, size);
  sona_weights_close(w);
}

static void other_files_are_refused(void) {
  static unsigned char bytes[3 * HEAD];
  sona_weights *w = NULL;
  const size_t sizes[] = {1, 8, 4095, HEAD, sizeof bytes};
  for (int fill_with = 0; fill_with < 2; fill_with++) {
    memset(bytes, fill_with ? 0xa5 : 0, sizeof bytes);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      const char *path = scratch_path();
      scratch_write(path, bytes, sizes[i]);
      CHECK_EQ(sona_weights_open(path, &usual, &w), SONA_ECORRUPT);
      CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_ECORRUPT);
      CHECK_EQ(scratch_size(path), sizes[i]);
    }
  }
  const char *pipe = scratch_path();
  CHECK_EQ(mkfifo(pipe, 0600), 0);
  alarm(60); /* in place of waiting for ever */
  CHECK_EQ(sona_weights_open(pipe, &usual, &w), SONA_ECORRUPT);
  alarm(0);
  const char *path = scratch_path();
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  sona_weights_close(w);
  w = NULL;
  const size_t whole = scratch_size(path);
  for (size_t size = 0; size < whole; size += 509) {
    CHECK_EQ(truncate(path, (off_t)(whole - 1 - size)), 0);
    CHECK_EQ(sona_weights_open(path, &usual, &w), SONA_ECORRUPT);
    CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_ECORRUPT);
  }
  CHECK(w == NULL);
}

static void no_room_is_an_error_at_creation(void) {
  const char *path = scratch_path();
  sona_weights *w = NULL;
  struct rlimit before, none;
  signal(SIGXFSZ, SIG_IGN);
  getrlimit(RLIMIT_FSIZE, &before);
  none = before;
  none.rlim_cur = HEAD;
  setrlimit(RLIMIT_FSIZE, &none);
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_EIO);
  CHECK_EQ(errno, EFBIG);
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK_EQ(scratch_size(path), 0);
  CHECK_EQ(sona_weights_open(path, &usual, &w), SONA_EIO);
  CHECK_EQ(errno, ENOENT);
  CHECK_EQ(sona_weights_create(path, &usual, &w), SONA_OK);
  sona_weights_close(w);
}

int main(void) {
  options_out_of_range_are_refused();
  a_file_is_taken_up_with_equal_options_only();
  a_file_that_says_no_model_fits_all();
  what_is_published_is_adopted();
  what_cannot_be_adopted_is_not_published();
  adapters_that_do_not_fit_are_refused();
  epochs_end_before_they_come_again();
  a_child_of_fork_reads_and_does_not_write();
  a_torn_publication_is_never_seen();
  a_reader_that_is_overtaken_gives_up();
  a_reader_tries_a_bounded_number_of_times();
  every_byte_counts();
  formats_are_told_apart();
  equal_rows_are_equal_words();
  other_files_are_refused();
  no_room_is_an_error_at_creation();
  return check_done("weights");
}
