/* Private: what the parts of the policy share.
 *
 *   policy.c         arms, their calibration, and the state
 *   policy_models.c  the adapter and its older copies as the arms see them
 *   policy_scores.c  logits, softmax and first choice
 *   policy_route.c   requests: exploration, the guard's draw, explanations
 *   policy_learn.c   outcomes: the first reward, and another one
 *   policy_peers.c   other learners beside it: a rival on trial, a partner in a pool
 *
 * candidates (count) are rows, or NULL for all of them: count is then p->arms. */
#ifndef SONA_POLICY_INTERNAL_H
#define SONA_POLICY_INTERNAL_H

#include "random.h"
#include "sona/policy.h"

enum { ANCHOR = 0, NEXT = 1, COPIES = 2 };

/* Success rate of one arm over the learner's own choices of it, shrunk towards the rate of all by PRIOR pseudo-choices. */
typedef struct arm_record {
  double rewarded, shown;
  uint64_t choices;
} arm_record;

static const double PRIOR = 30;

/* Seen through the arms: arm_rows[j][k] = <up_j, e_k> for the rows j of a model. */
typedef struct projection {
  float *arm_rows; /* (capacity, arm_ld) */
  size_t capacity, rows;
} projection;

/* An older adapter, owned. */
typedef struct copy {
  float *down, *up, *offset; /* (capacity, ld), (capacity, ld), (capacity): one arena */
  size_t capacity, rows;
  float scale;
  projection seen;
} copy;

struct sona_policy {
  sona_policy_options o;
  sona_adapter *adapter;
  sona_instant *instant;
  size_t ld, arms, arm_capacity, arm_ld;
  float *vectors;        /* (arm_capacity, ld): e_k */
  float *cost;           /* (arm_ld) */
  arm_record *records;   /* (arm_ld) */
  uint32_t *born, *died; /* (arm_ld): versions; died is UINT32_MAX while alive */
  size_t gaps;           /* removed arms */
  int has_cost, disabled;
  uint32_t version;
  projection seen; /* of the adapter */
  uint64_t seen_generation;
  copy copies[COPIES];
  sona_guard guard;
  sona_trust trust;
  sona_random random;
  sona_policy *rival, *partner; /* not owned */
  float rival_share;
  uint8_t trial;
  double loss[2]; /* discounted, of this one and of the partner */
  uint64_t requests, refreshed;
  float *frozen, *current, *anchor, *work; /* (arm_ld): scores / tau of each model, and scratch */
  float *theirs;                           /* (arm_ld): pi of the partner */
  float *coef;                             /* (coef_capacity): down x + offset */
  size_t coef_capacity;
  float *direction; /* (ld): v */
  float *old_up, *old_down;
};

static inline size_t sona_policy_padded(size_t n) { return (n + 15) / 16 * 16; }

/* ---- arms ---- */

/* Whether the arm that a decision of `version` knew by this row is still the one in it. */
static inline int sona_policy_known_at(const sona_policy *p, int32_t row, uint32_t version) {
  return row >= 0 && (size_t)row < p->arms && p->born[row] <= version && p->died[row] > version;
}

static inline float sona_policy_cost_at(const sona_policy *p, const int32_t *candidates, size_t i) {
  return p->cost[candidates ? (size_t)candidates[i] : i];
}

/* The success rate of the best arm: a wrong choice must not look as if rewards were rare. */
float sona_policy_best_rate(const sona_policy *p);

/* ---- models ---- */

/* Room for a model of that many rows: in what the arms see of it, and in the scratch that all models share. */
sona_status sona_policy_reserve_rows(sona_policy *p, projection *seen, size_t rows);

/* *w is the adapter.  It may have learned without us (another loop, a restored state): catches up by generation and row count. */
sona_status sona_policy_follow(sona_policy *p, sona_lora *w);

/* The new arm in row `slot`, seen by everything that is up to date for the others; w is the adapter that was followed. */
void sona_policy_project_arm(const sona_policy *p, const sona_lora *w, size_t slot);

/* ---- peers: nothing happens without one, or while it has other arms ---- */

static inline int sona_policy_has(const sona_policy *p, const sona_policy *peer) { return peer && peer->version == p->version; }

/* Which of the candidates the rival would serve, -1 where it is not asked. */
int64_t sona_policy_rival_choice(sona_policy *p, const float *x, const int32_t *candidates, size_t count);

/* The partner's pi from the frozen model's logits, into p->theirs; returns its first choice, -1 where it is not asked. */
int64_t sona_policy_ask_partner(sona_policy *p, const float *frozen, const float *x, const int32_t *candidates, size_t count);

/* The candidate with the largest mixed forecast, and that forecast less its cost; pi (count) becomes the mixture of both. */
int64_t sona_policy_mix(const sona_policy *p, const int32_t *candidates, size_t count, float *pi, float *utility);

/* Peers learn what the policy learns: the first reward of a decision, and another one in the place of that in `before`. */
void sona_policy_teach_peers(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, float reward,
                             float weight);
void sona_policy_correct_peers(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d,
                               float reward, const sona_outcome *before);

/* L of both after a reward of an arm that the policy expected with p and the partner with its pi. */
void sona_policy_score_members(sona_policy *p, double expected, double theirs, double reward, double weight);

/* ---- scores: logit (count) over candidates, or (arms) over all rows with -inf for rows that are not of `version` ---- */

void sona_policy_frozen_logits(const sona_policy *p, const float *x, const int32_t *candidates, size_t count, uint32_t version,
                               float *logit);

/* logit = what the learner and its older copies make of the frozen model's logits, before they add to them */
void sona_policy_trusted_logits(const sona_policy *p, const float *frozen, size_t count, float *logit);

/* logit += what the model w adds, seen through the arms */
void sona_policy_adapt_logits(const sona_policy *p, const sona_lora *w, const projection *seen, const float *x, const int32_t *candidates,
                              size_t count, float *logit);

/* Softmax of logit into pi; returns the index of the largest, or -1 when there is none or one is NaN. */
int64_t sona_policy_softmax(const float *logit, size_t count, float *pi);

/* First choice: the largest logit, or with costs the largest c pi - cost.  pi (count) is scratch unless `filled`. */
int64_t sona_policy_first_choice(const sona_policy *p, const float *logit, const int32_t *candidates, size_t count, float *pi, int filled);

#endif
