/* Readers beside a writer.  The writer appends a pair and then its negation, folding and truncating on the way, so the correction is at
 * every published moment either nothing or exactly one pair: a reader that sees anything else has seen a torn or half-folded adapter. */
#include <pthread.h>
#include <stdatomic.h>

#include "../src/random.h"
#include "check.h"
#include "sona/adapter.h"

enum { DIM = 67, STEPS = 20000, READERS = 3 };

static sona_adapter *adapter;
static float up[DIM], down[DIM], x[DIM];
static float added; /* what the pair adds to y[0] */
static atomic_int done;
static atomic_long seen[2]; /* how often the correction was nothing, and one pair */

static void *read_loop(void *unused) {
  (void)unused;
  sona_reader *reader = sona_reader_acquire(adapter);
  long rounds = 0;
  while (!atomic_load_explicit(&done, memory_order_relaxed)) {
    float y[2][DIM] = {{0}};
    if (rounds % 5 == 4) { /* a batch is one moment too */
      float rows[2][DIM];
      memcpy(rows[0], x, sizeof x);
      memcpy(rows[1], x, sizeof x);
      sona_adapter_forward_batch(reader, SONA_BOTH, rows[0], DIM, y[0], DIM, 2);
      CHECK_NEAR(y[0][0], y[1][0], 1e-4);
    } else {
      sona_adapter_forward(reader, SONA_BOTH, x, y[0]);
    }
    const int is_full = y[0][0] > added / 2;
    CHECK_NEAR(y[0][0], is_full ? added : 0, 2e-3 * added);
    atomic_fetch_add_explicit(&seen[is_full], 1, memory_order_relaxed);
    if (++rounds % 1000 == 0) { /* another thread's life */
      sona_reader_release(reader);
      reader = sona_reader_acquire(adapter);
    }
  }
  sona_reader_release(reader);
  return NULL;
}

int main(void) {
  sona_random rng;
  sona_random_seed(&rng, 3);
  const sona_adapter_options options = {DIM, 2, 2, 2, 5, 0.05, 1, NULL};
  CHECK_EQ(sona_adapter_create(&options, &adapter), SONA_OK);
  for (size_t i = 0; i < DIM; i++) {
    up[i] = (float)sona_random_normal(&rng);
    x[i] = down[i] = (float)sona_random_normal(&rng);
  }
  up[0] = 1;
  for (size_t i = 0; i < DIM; i++) added += x[i] * down[i];

  pthread_t threads[READERS];
  for (int i = 0; i < READERS; i++) pthread_create(&threads[i], NULL, read_loop, NULL);
  for (int step = 0; step < STEPS || (step < 200 * STEPS && !(atomic_load(&seen[0]) && atomic_load(&seen[1]))); step++) {
    CHECK_EQ(sona_adapter_append(adapter, step % 2 ? -1 : 1, up, down, 0), SONA_OK);
    if (step % 7 == 0) sona_adapter_fold(adapter);
    if (step % 31 == 0) CHECK_EQ(sona_adapter_truncate(adapter), SONA_OK);
  }
  atomic_store(&done, 1);
  for (int i = 0; i < READERS; i++) pthread_join(threads[i], NULL);
  CHECK(atomic_load(&seen[0]) > 0 && atomic_load(&seen[1]) > 0);
  CHECK(sona_adapter_describe(adapter).truncations > STEPS / 31);
  sona_adapter_destroy(adapter);
  return check_done("adapter_threads");
}
