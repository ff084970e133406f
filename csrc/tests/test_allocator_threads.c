/* Threads that name an allocator and allocate for the first time at once: one decides for all, and every block goes back where it is from.
 */
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "sona/sona.h"

enum { THREADS = 6, PAIRS = 2, RUNS = 100 };

static atomic_int taken[PAIRS], given_back[PAIRS], named, go;

static void *take_0(size_t count, size_t size) { return atomic_fetch_add(&taken[0], 1), calloc(count, size); }
static void *take_1(size_t count, size_t size) { return atomic_fetch_add(&taken[1], 1), calloc(count, size); }
static void give_0(void *memory) { atomic_fetch_add(&given_back[0], 1), free(memory); }
static void give_1(void *memory) { atomic_fetch_add(&given_back[1], 1), free(memory); }

/* Written by the thread that names it: naming has to publish it. */
static sona_allocator pair[PAIRS];

static void *race(void *argument) {
  const int me = *(int *)argument;
  while (!atomic_load(&go)) continue;
  if (me < PAIRS) {
    pair[me] = me ? (sona_allocator){take_1, give_1} : (sona_allocator){take_0, give_0};
    atomic_fetch_add(&named, sona_set_allocator(&pair[me]) == SONA_OK);
  }
  for (int i = 0; i < 10; i++) sona_free(sona_calloc(1, 8));
  return NULL;
}

/* In a process of its own, which has not allocated yet. */
static int run_once(void) {
  pthread_t thread[THREADS];
  int number[THREADS];
  for (int i = 0; i < THREADS; i++) {
    number[i] = i;
    if (pthread_create(&thread[i], NULL, race, &number[i])) return 2;
  }
  atomic_store(&go, 1);
  for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
  CHECK(named <= 1);
  CHECK_EQ(taken[0] + taken[1], named ? 10 * THREADS : 0);
  for (int k = 0; k < PAIRS; k++) {
    CHECK(taken[k] == 0 || taken[k] == 10 * THREADS);
    CHECK_EQ(given_back[k], taken[k]);
  }
  return atomic_load(&check_failures) ? 1 : 0;
}

static void test_one_thread_decides_for_all(void) {
  for (int run = 0; run < RUNS; run++) {
    int status = -1;
    const pid_t child = fork();
    if (child == 0) _exit(run_once());
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
  }
}

int main(void) {
  test_one_thread_decides_for_all();
  return check_done("allocator_threads");
}
