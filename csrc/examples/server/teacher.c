/* Learning beside the requests: one thread takes the rewards, in order, and learns them with a policy of its own.  Requests are answered by
 * one of two others: while one of them serves, the other is brought up to date, and then they change places.  So a request waits for a
 * change of places at most, and never for learning. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <string.h>

#include "learner.h"

enum { AT_ONCE = 16 }; /* lessons before requests see them, where more are waiting */

/* What the serving mind has not yet seen of the teacher.  Nobody else uses either. */
static sona_status catch_up(learner *l, server_mind *s) {
  const mind *const t = &l->teacher;
  const sona_lora w = sona_adapter_view(t->adapter);
  const uint64_t refreshed = sona_policy_get_state(t->policy).refreshed;
  s->info = sona_adapter_describe(t->adapter);
  sona_status status = SONA_OK;
  if (s->generation != s->info.generation) {
    status = sona_adapter_assign(s->mind.adapter, w.down, w.up, w.ld, w.offset, s->info.base, w.rank);
  } else {
    for (size_t j = s->rows; !status && j < w.rank; j++)
      status = sona_adapter_append(s->mind.adapter, w.scale, w.up + j * w.ld, w.down + j * w.ld, w.offset[j]);
  }
  if (!status && s->refreshed != refreshed) {
    const sona_lora c = sona_policy_copy(t->policy, 0);
    status = sona_policy_set_copy(s->mind.policy, 0, c.down, c.up, c.ld, c.offset, c.rank);
  }
  if (status) {
    s->generation = 0; /* all of it, next time */
    return status;
  }
  s->generation = s->info.generation;
  s->rows = w.rank;
  s->refreshed = refreshed;
  for (size_t k = 0; k < l->arms->count; k++) {
    double rewarded, shown;
    uint64_t choices;
    sona_policy_get_calibration(t->policy, (int32_t)k, &rewarded, &shown, &choices);
    sona_policy_set_calibration(s->mind.policy, (int32_t)k, rewarded, shown, choices);
  }
  sona_instant_set_calibration(s->mind.instant, sona_instant_calibration(t->instant));
  int32_t arm; /* any request will do: rows are new to the arms only once */
  return sona_policy_best(s->mind.policy, SONA_CURRENT, l->arms->vectors, NULL, 0, &arm);
}

/* Under the lock.  The random numbers and the count of requests are the serving one's own. */
static void change_places(learner *l) {
  server_mind *const next = l->back;
  sona_policy_state state = sona_policy_get_state(l->teacher.policy);
  const sona_policy_state now = sona_policy_get_state(l->front->mind.policy);
  state.requests = now.requests;
  memcpy(state.random, now.random, sizeof state.random);
  sona_policy_set_state(next->mind.policy, state);
  l->back = l->front;
  l->front = next;
  l->learned_shown = l->learned;
  l->failed_shown = l->failed;
}

/* The first reward of a decision is learned from, another one replaces it. */
static sona_status learn(learner *l, sona_record *r, float reward) {
  sona_policy *const p = l->teacher.policy;
  sona_step step;
  if (r->learned) return sona_policy_revise(p, r->x, NULL, 0, &r->decision, reward, &r->outcome, &step);
  const sona_status status = sona_policy_learn(p, r->x, NULL, 0, &r->decision, reward, 1, &r->outcome, &step);
  r->learned = !status;
  l->learned += !status;
  return status;
}

/* Under the lock, which is open while the teacher learns. */
static void take_lesson(learner *l, sona_record *copy) {
  const lesson one = l->waiting[l->begun++ % WAITING];
  sona_record *r = sona_pending_get(l->pending, one.id);
  if (!r) {
    l->failed++;
    return;
  }
  memcpy(copy, r, r->size); /* its place is taken by a later decision some time */
  sona_policy_state state = sona_policy_get_state(l->teacher.policy);
  state.requests = sona_policy_get_state(l->front->mind.policy).requests; /* the age of the anchor is counted in them */
  sona_policy_set_state(l->teacher.policy, state);
  pthread_mutex_unlock(&l->lock);
  if (learn(l, copy, one.reward)) l->failed++;
  pthread_mutex_lock(&l->lock);
  r = sona_pending_get(l->pending, one.id);
  if (r) {
    r->learned = copy->learned;
    r->outcome = copy->outcome;
  }
}

static int may_begin(const learner *l) { return l->begun < l->taken && l->begun < l->until; }

static void *teach(void *argument) {
  learner *const l = argument;
  pthread_mutex_lock(&l->lock);
  for (;;) {
    while (!may_begin(l) && !l->ends) pthread_cond_wait(&l->come, &l->lock);
    if (!may_begin(l)) break;
    do take_lesson(l, l->copy);
    while (may_begin(l) && l->begun - l->shown < AT_ONCE);
    pthread_mutex_unlock(&l->lock);
    const sona_status status = catch_up(l, l->back);
    pthread_mutex_lock(&l->lock);
    if (!status) change_places(l); /* out of memory: requests go on with what they have, and the next lesson tries again */
    l->shown = l->begun;
    pthread_cond_broadcast(&l->room);
  }
  pthread_mutex_unlock(&l->lock);
  return NULL;
}

int teacher_start(learner *l) {
  const sona_policy_state state = sona_policy_get_state(l->teacher.policy);
  for (int i = 0; i < 2; i++) {
    l->minds[i].refreshed = state.refreshed + 1; /* not yet: whatever is there has to be copied */
    if (catch_up(l, &l->minds[i])) return ENOMEM;
    sona_policy_set_state(l->minds[i].mind.policy, state);
  }
  l->front = &l->minds[0];
  l->back = &l->minds[1];
  l->learned_shown = l->learned;
  l->until = UINT64_MAX;
  const int error = pthread_create(&l->thread, NULL, teach, l);
  l->runs = !error;
  return error;
}

void teacher_stop(learner *l) {
  if (!l->runs) return;
  pthread_mutex_lock(&l->lock);
  l->ends = 1;
  pthread_cond_signal(&l->come);
  pthread_mutex_unlock(&l->lock);
  pthread_join(l->thread, NULL);
}
