#include <math.h>

#include "policy_internal.h"

/* Measured on held-out streams: see docs/learning.md. */
static const double POOL_MEMORY = 0.99; /* of the log-loss */
static const double POOL_RATE = 0.3;
static const double POOL_FLOOR = 0.001;
static const double POOL_CERTAIN = 0.002; /* no forecast counts as surer than this */

static int same_arms(const sona_policy *p, const sona_policy *peer) {
  if (peer == p || peer->rival || peer->partner || peer->o.dim != p->o.dim || peer->arms != p->arms || peer->version != p->version)
    return 0;
  for (size_t i = 0; i < p->arms; i++)
    if (peer->born[i] != p->born[i] || peer->died[i] != p->died[i]) return 0;
  return 1;
}

/* ---- a rival on trial ---- */

sona_status sona_policy_set_rival(sona_policy *p, sona_policy *rival, float share, uint8_t trial) {
  if (!rival) {
    p->rival = NULL;
    p->trial = 0;
    return SONA_OK;
  }
  if (p->partner || !same_arms(p, rival) || !(share > 0 && share < 1) || !trial) return SONA_EINVAL;
  p->rival = rival;
  p->rival_share = share;
  p->trial = trial;
  return SONA_OK;
}

int64_t sona_policy_rival_choice(sona_policy *p, const float *x, const int32_t *candidates, size_t count) {
  int32_t row;
  if (p->disabled || !sona_policy_has(p, p->rival) || sona_policy_best(p->rival, SONA_CURRENT, x, candidates, count, &row)) return -1;
  if (!candidates) return row;
  for (size_t i = 0; i < count; i++)
    if (candidates[i] == row) return (int64_t)i;
  return -1;
}

/* Whether the rival would have served this arm: known for decisions of this trial, else what it would do today. */
static int rival_own(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d) {
  int32_t row;
  if (d->trial == p->trial) return (d->rival & SONA_RIVAL_CHOICE) != 0;
  return !sona_policy_best(p->rival, SONA_CURRENT, x, candidates, count, &row) && row == d->arm;
}

/* ---- a partner in a pool ---- */

sona_status sona_policy_set_partner(sona_policy *p, sona_policy *partner) {
  if (partner && (p->rival || p->o.explore != SONA_GREEDY || !same_arms(p, partner))) return SONA_EINVAL;
  p->partner = partner;
  p->loss[0] = p->loss[1] = 0;
  return SONA_OK;
}

double sona_policy_own_share(const sona_policy *p) {
  if (!p->partner) return 1;
  const double least = fmin(p->loss[0], p->loss[1]);
  const double own = exp(-POOL_RATE * (p->loss[0] - least)) + POOL_FLOOR, other = exp(-POOL_RATE * (p->loss[1] - least)) + POOL_FLOOR;
  return own / (own + other);
}

int64_t sona_policy_ask_partner(sona_policy *p, const float *frozen, const float *x, const int32_t *candidates, size_t count) {
  sona_policy *other = p->partner;
  sona_lora w;
  if (!sona_policy_has(p, other) || sona_policy_follow(other, &w)) return -1;
  sona_policy_trusted_logits(other, frozen, count, other->current);
  sona_policy_adapt_logits(other, &w, &other->seen, x, candidates, count, other->current);
  return sona_policy_softmax(other->current, count, p->theirs);
}

int64_t sona_policy_mix(const sona_policy *p, const int32_t *candidates, size_t count, float *pi, float *utility) {
  const float own = (float)sona_policy_own_share(p), c = own * sona_policy_confidence(p);
  const float theirs = (1 - own) * sona_policy_confidence(p->partner);
  int64_t best = -1;
  for (size_t i = 0; i < count; i++) {
    if (p->current[i] == -INFINITY) continue;
    const float value = c * pi[i] + theirs * p->theirs[i] - sona_policy_cost_at(p, candidates, i);
    if (best < 0 || value > *utility) {
      best = (int64_t)i;
      *utility = value;
    }
    pi[i] = own * pi[i] + (1 - own) * p->theirs[i];
  }
  return best;
}

static double log_loss(double expected, double reward) {
  const double p = fmin(fmax(expected, POOL_CERTAIN), 1 - POOL_CERTAIN);
  return -(reward * log(p) + (1 - reward) * log(1 - p));
}

void sona_policy_score_members(sona_policy *p, double expected, double theirs, double reward, double weight) {
  p->loss[0] = POOL_MEMORY * p->loss[0] + weight * log_loss(expected, reward);
  p->loss[1] = POOL_MEMORY * p->loss[1] + weight * log_loss(theirs, reward);
}

/* ---- what both learn: whatever they cannot learn, they miss ---- */

static void teach(sona_policy *peer, int own, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, float reward,
                  float weight) {
  sona_decision theirs = *d;
  sona_outcome outcome;
  sona_step step;
  theirs.own = (uint8_t)own;
  (void)sona_policy_learn(peer, x, candidates, count, &theirs, reward, weight, &outcome, &step);
}

void sona_policy_teach_peers(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, float reward,
                             float weight) {
  if (sona_policy_has(p, p->rival)) teach(p->rival, rival_own(p, x, candidates, count, d), x, candidates, count, d, reward, weight);
  if (sona_policy_has(p, p->partner)) teach(p->partner, d->partner, x, candidates, count, d, reward, weight);
}

static void correct(sona_policy *peer, float weight, const float *x, const int32_t *candidates, size_t count, const sona_decision *d,
                    float reward, float before) {
  /* What it made of the reward before is not remembered: only the difference is applied. */
  sona_outcome outcome = {.reward = before, .probability = NAN, .weight = weight};
  sona_step step;
  (void)sona_policy_revise(peer, x, candidates, count, d, reward, &outcome, &step);
}

void sona_policy_correct_peers(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d,
                               float reward, const sona_outcome *before) {
  const float full = d->own ? before->weight : fminf(before->weight / p->o.off_policy_step, 1);
  if (sona_policy_has(p, p->rival)) {
    const float weight = rival_own(p, x, candidates, count, d) ? full : full * p->rival->o.off_policy_step;
    correct(p->rival, weight, x, candidates, count, d, reward, before->reward);
  }
  if (sona_policy_has(p, p->partner)) {
    const float weight = d->partner ? full : full * p->partner->o.off_policy_step;
    correct(p->partner, weight, x, candidates, count, d, reward, before->reward);
  }
}
