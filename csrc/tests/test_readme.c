/* A router in C: it learns which of two arms is right from the reward of the one it served. */
#include <math.h>
#include <stdio.h>

#include "sona/policy.h"

enum { DIM = 8, ARMS = 2, REQUESTS = 1000 };

/* The next request: a random direction. */
static void request(uint32_t *seed, float x[DIM]) {
  float square = 0;
  for (int i = 0; i < DIM; i++) {
    *seed = *seed * 1664525u + 1013904223u;
    x[i] = (float)(*seed >> 8) / 8388608.0f - 1;
    square += x[i] * x[i];
  }
  for (int i = 0; i < DIM; i++) x[i] /= sqrtf(square);
}

int main(void) {
  const sona_adapter_options a = {.dim = DIM, .rank = ARMS - 1, .rank_max = ARMS - 1, .micro = 2, .max_discard = 0.05, .scale = 1};
  const sona_instant_options i = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 3.0f / ARMS, .precondition = SONA_FULL};
  const sona_policy_options p = {.dim = DIM, .tau = 0.1f, .off_policy_step = 0.3f, .anchor_every = 500, .guard = 1};
  sona_adapter *adapter = NULL;
  sona_instant *instant = NULL;
  sona_policy *policy = NULL;
  int first = 0, last = 0, failed = 0;
  uint32_t seed = 1;

  if (sona_adapter_create(&a, &adapter) || sona_instant_create(&i, &instant) || sona_policy_create(&p, adapter, instant, &policy)) return 1;
  for (int arm = 0; arm < ARMS; arm++) {
    float vector[DIM] = {0};
    int32_t row;
    vector[arm] = 1;
    if (sona_policy_add_arm(policy, vector, 0, &row)) return 1;
  }
  for (int t = 0; t < REQUESTS; t++) {
    float x[DIM], probability[ARMS];
    sona_decision decision;
    sona_outcome outcome;
    sona_step step;
    request(&seed, x);
    failed |= sona_policy_route(policy, x, NULL, 0, probability, &decision) != SONA_OK;
    const float reward = decision.arm == (x[2] > x[3]); /* what nobody told the policy */
    failed |= sona_policy_learn(policy, x, NULL, 0, &decision, reward, 1, &outcome, &step) != SONA_OK;
    first += t < 100 && reward > 0;
    last += t >= REQUESTS - 100 && reward > 0;
  }
  printf("readme: first 100: %d right, last 100: %d right\n", first, last);

  sona_policy_destroy(policy);
  sona_instant_destroy(instant);
  sona_adapter_destroy(adapter);
  return failed || last < 90;
}
