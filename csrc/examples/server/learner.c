/* Loop A in this process: every request is answered by a policy over an adapter, and every reward changes it, beside the requests: see
 * teacher.c. */
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
  sona_status status = sona_policy_route(l->front->mind.policy, x, NULL, 0, l->probability, &decision);
  if (!status) {
    sona_record *const record = sona_pending_put(l->pending, l->next_id, 0);
    record->decision = decision;
    memcpy(record->x, x, l->arms->dim * sizeof *x);
    *out = (route){l->next_id++, (size_t)decision.arm, l->probability[decision.arm], decision.propensity};
  }
  pthread_mutex_unlock(&l->lock);
  return status;
}

/* Takes it down for the teacher. */
static sona_status feedback(model *m, uint64_t id, float reward) {
  learner *const l = (learner *)m;
  pthread_mutex_lock(&l->lock);
  while (l->taken - l->begun == WAITING) pthread_cond_wait(&l->room, &l->lock); /* rewards come faster than they can be learned */
  const sona_status status = sona_pending_get(l->pending, id) ? SONA_OK : SONA_EINVAL;
  if (!status) {
    l->waiting[l->taken++ % WAITING] = (lesson){id, reward};
    pthread_cond_signal(&l->come);
  }
  pthread_mutex_unlock(&l->lock);
  return status;
}

static int save(model *m) { return learner_save((learner *)m); }

static int stats(model *m, char *to, size_t room) {
  learner *const l = (learner *)m;
  pthread_mutex_lock(&l->lock);
  const sona_policy *const p = l->front->mind.policy;
  const int n = snprintf(
      to, room, ",\"learned\":%llu,\"waiting\":%llu,\"failed\":%llu,\"rows\":%zu,\"truncations\":%llu,\"confidence\":%.6g,\"trust\":%.6g",
      (unsigned long long)l->learned_shown, (unsigned long long)(l->taken - l->shown), (unsigned long long)l->failed_shown,
      l->front->info.total, (unsigned long long)l->front->info.truncations, sona_policy_confidence(p),
      sona_policy_get_state(p).trust.value);
  pthread_mutex_unlock(&l->lock);
  return n;
}

static void mind_destroy(mind *m) {
  sona_policy_destroy(m->policy);
  sona_instant_destroy(m->instant);
  sona_adapter_destroy(m->adapter);
}

static void destroy(model *m) {
  learner *const l = (learner *)m;
  teacher_stop(l);
  for (size_t i = 0; i < l->workers; i++) sona_reader_release(l->readers[i]);
  mind_destroy(&l->teacher);
  for (int i = 0; i < 2; i++) mind_destroy(&l->minds[i].mind);
  sona_pending_destroy(l->pending);
  pthread_mutex_destroy(&l->saving);
  pthread_mutex_destroy(&l->lock);
  pthread_cond_destroy(&l->come);
  pthread_cond_destroy(&l->room);
  free(l->copy);
  free(l->probability);
  free(l);
}

/* learns: otherwise it has room for whatever one that learns may come to. */
static sona_status mind_create(const arms *set, int learns, mind *m) {
  const size_t dim = set->dim, count = set->count;
  const int full = dim <= FULL_UP_TO;
  const sona_adapter_options a = {
      .dim = dim, .rank = learns ? RANK : RANK_MAX, .rank_max = RANK_MAX, .micro = 2, .window = WINDOW, .max_discard = 0.05, .scale = 1};
  const sona_instant_options i = {.dim = dim,
                                  .p0 = full ? 0.2f : 0.1f,
                                  .constant = 0.3f,
                                  .precision_scale = 3.0f / (float)count,
                                  .precondition = full && learns ? SONA_FULL : SONA_IDENTITY};
  const sona_policy_options p = {.dim = dim, .tau = TAU, .off_policy_step = 0.3f, .anchor_every = 500, .guard = 1};
  sona_status status = sona_adapter_create(&a, &m->adapter);
  if (!status) status = sona_instant_create(&i, &m->instant);
  if (!status) status = sona_policy_create(&p, m->adapter, m->instant, &m->policy);
  for (size_t k = 0; !status && k < count; k++) {
    int32_t row; /* k */
    status = sona_policy_add_arm(m->policy, set->vectors + k * dim, 0, &row);
  }
  return status;
}

static sona_status build(learner *l) {
  const size_t dim = l->arms->dim;
  sona_status status = mind_create(l->arms, 1, &l->teacher);
  for (int i = 0; !status && i < 2; i++) status = mind_create(l->arms, 0, &l->minds[i].mind);
  if (!status) status = sona_pending_create(REMEMBERED, dim, 0, &l->pending);
  for (size_t w = 0; !status && w < l->workers; w++)
    if (!(l->readers[w] = sona_reader_acquire(l->teacher.adapter))) status = SONA_EFULL;
  l->probability = calloc(l->arms->count, sizeof *l->probability);
  l->copy = malloc(sizeof *l->copy + dim * sizeof(float));
  if (!l->probability || !l->copy) status = SONA_ENOMEM;
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
  pthread_mutex_init(&l->saving, NULL); /* with default attributes none of them can fail on Linux or macOS */
  pthread_mutex_init(&l->lock, NULL);
  pthread_cond_init(&l->come, NULL);
  pthread_cond_init(&l->room, NULL);
  const sona_status status = build(l);
  if (status && status != SONA_ENOMEM) fprintf(stderr, "learner: %s\n", sona_status_str(status));
  int error = status == SONA_ENOMEM ? ENOMEM : status ? EINVAL : 0;
  if (!error && state) error = learner_load(l);
  if (!error) error = teacher_start(l);
  if (error) {
    destroy(&l->base);
    return error;
  }
  *out = &l->base;
  return 0;
}
