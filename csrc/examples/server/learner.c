/* Loop A in this process: every request is answered by a policy over an adapter, every reward changes it at once. */
#define _POSIX_C_SOURCE 200809L
#include "learner.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  REMEMBERED = 8192, /* decisions that wait for their reward */
  FULL_UP_TO = 512,  /* floats of a vector: the instant step keeps (dim + 1)^2 more */
  RANK = 8,          /* of the adapter, where that keeps 95 % of what was learned */
  RANK_MAX = 64,
  WINDOW = 4, /* rewards between truncations: a reward costs more with few, a request costs more with many */
};

/* Reads an immutable snapshot: no lock, whatever is being learned. */
static sona_status embed(model *m, size_t worker, const float *x, float *y) {
  learner *const l = (learner *)m;
  memcpy(y, x, l->arms->dim * sizeof *y);
  sona_adapter_forward(l->readers[worker], SONA_BOTH, x, y);
  return SONA_OK;
}

static sona_status decide(model *m, size_t worker, const float *x, route *out) {
  learner *const l = (learner *)m;
  (void)worker;
  pthread_mutex_lock(&l->lock);
  sona_decision decision;
  sona_status status = sona_policy_route(l->policy, x, NULL, 0, l->probability, &decision);
  if (!status) {
    sona_record *const record = sona_pending_put(l->pending, l->next_id, 0);
    record->decision = decision;
    memcpy(record->x, x, l->arms->dim * sizeof *x);
    *out = (route){l->next_id++, (size_t)decision.arm, l->probability[decision.arm], decision.propensity};
  }
  pthread_mutex_unlock(&l->lock);
  return status;
}

/* The first reward is learned from, another one replaces it. */
static sona_status feedback(model *m, uint64_t id, float reward) {
  learner *const l = (learner *)m;
  sona_step step;
  sona_status status = SONA_EINVAL;
  pthread_mutex_lock(&l->lock);
  sona_record *const r = sona_pending_get(l->pending, id);
  if (r && r->learned) {
    status = sona_policy_revise(l->policy, r->x, NULL, 0, &r->decision, reward, &r->outcome, &step);
  } else if (r) {
    status = sona_policy_learn(l->policy, r->x, NULL, 0, &r->decision, reward, 1, &r->outcome, &step);
    r->learned = !status;
    l->learned += !status;
  }
  pthread_mutex_unlock(&l->lock);
  return status;
}

static int save(model *m) { return learner_save((learner *)m); }

static int stats(model *m, char *to, size_t room) {
  learner *const l = (learner *)m;
  pthread_mutex_lock(&l->lock);
  const sona_adapter_info info = sona_adapter_describe(l->adapter);
  const int n = snprintf(to, room, ",\"learned\":%llu,\"rows\":%zu,\"truncations\":%llu,\"confidence\":%.6g,\"trust\":%.6g",
                         (unsigned long long)l->learned, info.total, (unsigned long long)info.truncations,
                         sona_policy_confidence(l->policy), sona_policy_get_state(l->policy).trust.value);
  pthread_mutex_unlock(&l->lock);
  return n;
}

static void destroy(model *m) {
  learner *const l = (learner *)m;
  for (size_t i = 0; i < l->workers; i++) sona_reader_release(l->readers[i]);
  sona_pending_destroy(l->pending);
  sona_policy_destroy(l->policy);
  sona_instant_destroy(l->instant);
  sona_adapter_destroy(l->adapter);
  pthread_mutex_destroy(&l->saving);
  pthread_mutex_destroy(&l->lock);
  free(l->probability);
  free(l);
}

static sona_status build(learner *l) {
  const size_t dim = l->arms->dim, count = l->arms->count;
  const int full = dim <= FULL_UP_TO;
  const sona_adapter_options a = {
      .dim = dim, .rank = RANK, .rank_max = RANK_MAX, .micro = 2, .window = WINDOW, .max_discard = 0.05, .scale = 1};
  const sona_instant_options i = {.dim = dim,
                                  .p0 = full ? 0.2f : 0.1f,
                                  .constant = 0.3f,
                                  .precision_scale = 3.0f / (float)count,
                                  .precondition = full ? SONA_FULL : SONA_IDENTITY};
  const sona_policy_options p = {.dim = dim, .tau = TAU, .off_policy_step = 0.3f, .anchor_every = 500, .guard = 1};
  sona_status status = sona_adapter_create(&a, &l->adapter);
  if (!status) status = sona_instant_create(&i, &l->instant);
  if (!status) status = sona_policy_create(&p, l->adapter, l->instant, &l->policy);
  if (!status) status = sona_pending_create(REMEMBERED, dim, 0, &l->pending);
  for (size_t k = 0; !status && k < count; k++) {
    int32_t row; /* k */
    status = sona_policy_add_arm(l->policy, l->arms->vectors + k * dim, 0, &row);
  }
  for (size_t w = 0; !status && w < l->workers; w++)
    if (!(l->readers[w] = sona_reader_acquire(l->adapter))) status = SONA_EFULL;
  l->probability = calloc(count, sizeof *l->probability);
  if (!l->probability) status = SONA_ENOMEM;
  l->next_id = (uint64_t)time(NULL) << 20; /* never one of an earlier process: feedback for those is refused, not mistaken */
  return status;
}

int learner_create(const arms *a, size_t workers, const char *state, model **out) {
  learner *const l = calloc(1, sizeof *l);
  if (!l) return ENOMEM;
  l->base = (model){"learn", embed, decide, feedback, state ? save : NULL, stats, destroy};
  l->arms = a;
  l->path = state;
  l->workers = workers;
  pthread_mutex_init(&l->saving, NULL); /* with default attributes neither can fail on Linux or macOS */
  pthread_mutex_init(&l->lock, NULL);
  const sona_status status = build(l);
  if (status && status != SONA_ENOMEM) fprintf(stderr, "learner: %s\n", sona_status_str(status));
  int error = status == SONA_ENOMEM ? ENOMEM : status ? EINVAL : 0;
  if (!error && state) error = learner_load(l);
  if (error) {
    destroy(&l->base);
    return error;
  }
  *out = &l->base;
  return 0;
}
