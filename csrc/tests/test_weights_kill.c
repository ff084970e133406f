/* A writer that publishes as fast as it can and is killed at random moments, readers beside it: each sees whole publications only, of
 * growing epochs, and never waits for a writer that is gone.  SONA_TEST_ROUNDS=50 kills fifty times as often. */
#define _GNU_SOURCE
#include <signal.h>
#include <time.h>

#include "../src/random.h"
#include "check.h"
#include "scratch.h"
#include "sona/weights.h"

enum { LAYERS = 2, DIM = 64, RANK = 8, ROWS_BYTES = 16 + 4 * RANK * (2 * DIM + 1) };

static const sona_weights_options options = {.layers = LAYERS, .dim = DIM, .max_rank = RANK};

/* Publishes rows that are all equal to their version. */
static void write_for_ever(const char *path) {
  static unsigned char bytes[ROWS_BYTES] = {'s', 'o', 'n', 'a', 'f', 'a', 'c', '1', RANK, 0, 0, 0, DIM};
  const void *factors[LAYERS] = {bytes, bytes};
  const size_t sizes[LAYERS] = {sizeof bytes, sizeof bytes};
  sona_weights *w = NULL;
  while (sona_weights_create(path, &options, &w) != SONA_OK) continue;
  for (uint64_t version = sona_weights_epoch(w) + 1;; version++) {
    const float value = (float)(version % 65536);
    for (size_t at = 16; at < sizeof bytes; at += 4) memcpy(bytes + at, &value, 4);
    if (sona_weights_publish(w, factors, sizes, version) != SONA_OK) _exit(1);
  }
}

static pid_t start(const char *path) {
  const pid_t child = fork();
  if (child == 0) write_for_ever(path);
  return child;
}

static uint64_t adopted, overtaken, last;

static void look(sona_weights *r, sona_adapter *const adapters[LAYERS]) {
  sona_weights_info info = {0};
  const sona_status status = sona_weights_adopt(r, adapters, &info);
  CHECK(status == SONA_OK || status == SONA_EAGAIN);
  overtaken += status == SONA_EAGAIN;
  if (status != SONA_OK) return;
  adopted++;
  CHECK(info.epoch >= last);
  CHECK_EQ(info.version, info.epoch);
  last = info.epoch;
  int differ = 0;
  for (int layer = 0; layer < LAYERS; layer++) {
    const sona_lora v = sona_adapter_view(adapters[layer]);
    CHECK_EQ(v.rank, RANK);
    for (size_t r_ = 0; r_ < v.rank; r_++)
      for (size_t i = 0; i < DIM; i++)
        differ += v.down[r_ * v.ld + i] != (float)(info.version % 65536) || v.up[r_ * v.ld + i] != v.down[r_ * v.ld + i];
  }
  CHECK_EQ(differ, 0);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(void) {
  const char *path = scratch_path();
  const sona_adapter_options shape = {.dim = DIM, .rank = RANK, .rank_max = RANK, .micro = 2, .scale = 1};
  sona_adapter *adapters[LAYERS];
  for (int i = 0; i < LAYERS; i++) CHECK_EQ(sona_adapter_create(&shape, &adapters[i]), SONA_OK);
  sona_random rng;
  sona_random_seed(&rng, (uint64_t)time(NULL));
  pid_t writer = start(path);
  sona_weights *r = NULL;
  while (sona_weights_open(path, &options, &r) == SONA_EIO) continue; /* not there yet, or not whole */
  CHECK(r != NULL);
  const int rounds = scratch_rounds(60);
  for (int round = 0; r && round < rounds; round++) {
    const uint64_t until = now_ns() + sona_random_next(&rng) % 3000000;
    do look(r, adapters);
    while (now_ns() < until);
    kill(writer, SIGKILL);
    waitpid(writer, NULL, 0);
    for (int i = 0; i < 3; i++) { /* nobody overtakes now */
      const uint64_t before = overtaken;
      look(r, adapters);
      CHECK(overtaken == before || last == 0);
    }
    writer = start(path);
  }
  kill(writer, SIGKILL);
  waitpid(writer, NULL, 0);
  CHECK(adopted > (uint64_t)rounds);
  CHECK(sona_weights_epoch(r) >= last);
  sona_weights_close(r);
  for (int i = 0; i < LAYERS; i++) sona_adapter_destroy(adapters[i]);
  return check_done("weights_kill");
}
