/* Loop A in C: an adapter learns from one reward after the other, becomes bytes, and comes back. */
#include <math.h>
#include <stdio.h>

#include "sona/instant.h"

enum { DIM = 4, REWARDS = 20 };

static const float TAU = 0.1f, X[DIM] = {1}, UP[DIM] = {0, 1}, DOWN[DIM] = {0, -1}; /* a request, and two answers to it */

/* pi of UP, and v = d log pi / d y */
static float probability(sona_reader *reader, float v[DIM]) {
  float y[DIM] = {1}, margin = 0;
  sona_adapter_forward(reader, SONA_BOTH, X, y); /* y = x + delta(x) */
  for (int i = 0; i < DIM; i++) margin += (UP[i] - DOWN[i]) * y[i] / TAU;
  const float pi = 1 / (1 + expf(-margin));
  for (int i = 0; i < DIM; i++) v[i] = (1 - pi) * (UP[i] - DOWN[i]) / TAU;
  return pi;
}

int main(void) {
  const sona_adapter_options a = {.dim = DIM, .rank = 1, .rank_max = 1, .micro = 2, .max_discard = 0.05, .scale = 1};
  const sona_instant_options i = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 1.5f, .precondition = SONA_FULL};
  sona_adapter *learner = NULL, *copy = NULL;
  sona_instant *instant = NULL;
  if (sona_adapter_create(&a, &learner) || sona_adapter_create(&a, &copy) || sona_instant_create(&i, &instant)) return 1;
  sona_reader *reader = sona_reader_acquire(learner), *other = sona_reader_acquire(copy);
  unsigned char bytes[1024];
  float v[DIM];
  size_t size = 0;

  const float before = probability(reader, v);
  int failed = 0;
  for (int t = 0; t < REWARDS; t++) { /* UP was shown and earned 1 */
    const float pi = probability(reader, v);
    failed |= sona_instant_step(instant, learner, X, v, pi, 0, 1, 1, SONA_STEP_OWN, NULL) != SONA_OK;
  }
  sona_adapter_fold(learner); /* the micro tier goes into the base: nothing changes in what is answered */
  failed |= sona_adapter_encode(learner, bytes, sizeof bytes, &size) || sona_adapter_decode(copy, bytes, size);
  printf("loop: %.2f at first, %.2f after %d rewards, ", before, probability(reader, v), REWARDS);
  printf("%.2f from %zu bytes\n", probability(other, v), size);

  sona_reader_release(other);
  sona_reader_release(reader);
  sona_instant_destroy(instant);
  sona_adapter_destroy(copy);
  sona_adapter_destroy(learner);
  return failed;
}
