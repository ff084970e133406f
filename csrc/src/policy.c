#include "sona/policy.h"

#include <math.h>
#include <string.h>

#include "random.h"

enum { ANCHOR = 0, NEXT = 1, COPIES = 2 };

/* Success rate of one arm over the learner's own choices of it, shrunk towards the rate of all by PRIOR pseudo-choices. */
typedef struct arm_record {
  double rewarded, shown;
  uint64_t choices;
} arm_record;

static const double PRIOR = 30;

/* Seen through the arms: arm_rows[j][k] = <up_j, e_k> for the rows j that `lora` names. */
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
  sona_random random;
  uint64_t requests, refreshed;
  float *frozen, *current, *anchor, *work; /* (arm_ld): scores / tau of each model, and scratch */
  float *coef;                             /* (coef_capacity): down x + offset */
  size_t coef_capacity;
  float *direction; /* (ld): v */
  float *old_up, *old_down;
};

static size_t padded(size_t n) { return (n + 15) / 16 * 16; }

/* ---- memory ---- */

static sona_status reserve_coef(sona_policy *p, size_t rows) {
  if (rows <= p->coef_capacity) return SONA_OK;
  float *fresh = sona_calloc(padded(rows), sizeof *fresh);
  if (!fresh) return SONA_ENOMEM;
  sona_free(p->coef);
  p->coef = fresh;
  p->coef_capacity = padded(rows);
  return SONA_OK;
}

static sona_status reserve_projection(const sona_policy *p, projection *seen, size_t rows) {
  if (rows <= seen->capacity) return SONA_OK;
  float *fresh = sona_calloc(padded(rows), p->arm_ld * sizeof *fresh);
  if (!fresh) return SONA_ENOMEM;
  if (seen->arm_rows) memcpy(fresh, seen->arm_rows, seen->rows * p->arm_ld * sizeof *fresh);
  sona_free(seen->arm_rows);
  seen->arm_rows = fresh;
  seen->capacity = padded(rows);
  return SONA_OK;
}

/* Rows get another length with the arms: all of it moves, or nothing. */
static sona_status reserve_arms(sona_policy *p, size_t arms) {
  if (arms <= p->arm_capacity) return SONA_OK;
  const size_t capacity = padded(arms + arms / 2), per_arm = 5 * sizeof(float) + 2 * sizeof(uint32_t);
  projection *seen[] = {&p->seen, &p->copies[ANCHOR].seen, &p->copies[NEXT].seen};
  float *arm_rows[] = {NULL, NULL, NULL};
  float *vectors = sona_calloc(capacity, p->ld * sizeof *vectors);
  float *row = sona_calloc(capacity, per_arm);
  arm_record *records = sona_calloc(capacity, sizeof *records);
  int complete = vectors && row && records;
  for (size_t i = 0; i < 3; i++)
    if (seen[i]->capacity) complete &= (arm_rows[i] = sona_calloc(seen[i]->capacity, capacity * sizeof *arm_rows[i])) != NULL;
  if (!complete) {
    sona_free(vectors);
    sona_free(row);
    sona_free(records);
    for (size_t i = 0; i < 3; i++) sona_free(arm_rows[i]);
    return SONA_ENOMEM;
  }
  uint32_t *born = (uint32_t *)(row + 5 * capacity), *died = born + capacity;
  if (p->arms) {
    memcpy(vectors, p->vectors, p->arms * p->ld * sizeof *vectors);
    memcpy(row, p->cost, p->arms * sizeof *row);
    memcpy(records, p->records, p->arms * sizeof *records);
    memcpy(born, p->born, p->arms * sizeof *born);
    memcpy(died, p->died, p->arms * sizeof *died);
  }
  for (size_t i = 0; i < 3; i++) {
    for (size_t j = 0; j < seen[i]->rows; j++)
      memcpy(arm_rows[i] + j * capacity, seen[i]->arm_rows + j * p->arm_ld, p->arms * sizeof *arm_rows[i]);
    sona_free(seen[i]->arm_rows);
    seen[i]->arm_rows = arm_rows[i];
  }
  sona_free(p->vectors);
  sona_free(p->cost);
  sona_free(p->records);
  p->vectors = vectors;
  p->records = records;
  p->cost = row;
  p->frozen = row + capacity;
  p->current = row + 2 * capacity;
  p->anchor = row + 3 * capacity;
  p->work = row + 4 * capacity;
  p->born = born;
  p->died = died;
  p->arm_capacity = p->arm_ld = capacity;
  return SONA_OK;
}

sona_status sona_policy_create(const sona_policy_options *options, sona_adapter *adapter, sona_instant *instant, sona_policy **out) {
  const sona_policy_options o = *options;
  if (!adapter || !instant || o.dim != sona_adapter_describe(adapter).dim) return SONA_EINVAL;
  if (!(o.tau > 0) || !isfinite(o.tau) || !(o.thompson_scale >= 0) || !isfinite(o.thompson_scale)) return SONA_EINVAL;
  if (!(o.off_policy_step > 0 && o.off_policy_step <= 1) || o.explore < SONA_GREEDY || o.explore > SONA_SOFTMAX) return SONA_EINVAL;
  sona_policy *p = sona_calloc(1, sizeof *p);
  if (!p) return SONA_ENOMEM;
  p->o = o;
  if (!p->o.kernels) p->o.kernels = sona_adapter_kernels(adapter);
  p->adapter = adapter;
  p->instant = instant;
  p->ld = padded(o.dim);
  sona_guard_init(&p->guard, 2);
  sona_random_seed(&p->random, o.seed);
  p->direction = sona_calloc(3 * p->ld, sizeof(float));
  if (!p->direction || reserve_arms(p, 16)) {
    sona_policy_destroy(p);
    return SONA_ENOMEM;
  }
  p->old_up = p->direction + p->ld;
  p->old_down = p->direction + 2 * p->ld;
  *out = p;
  return SONA_OK;
}

void sona_policy_destroy(sona_policy *p) {
  if (!p) return;
  for (int i = 0; i < COPIES; i++) {
    sona_free(p->copies[i].down);
    sona_free(p->copies[i].seen.arm_rows);
  }
  sona_free(p->seen.arm_rows);
  sona_free(p->vectors);
  sona_free(p->cost);
  sona_free(p->records);
  sona_free(p->coef);
  sona_free(p->direction);
  sona_free(p);
}

/* ---- the adapter as the arms see it ---- */

/* Brings seen up to w: rows before `from` are already there. */
static sona_status project(sona_policy *p, projection *seen, const sona_lora *w, size_t from) {
  const sona_status status = reserve_projection(p, seen, w->rank);
  if (status) return status;
  for (size_t j = from; j < w->rank; j++)
    p->o.kernels->gemv(p->vectors, p->ld, w->up + j * w->ld, seen->arm_rows + j * p->arm_ld, p->arms, p->o.dim);
  seen->rows = w->rank;
  return SONA_OK;
}

static sona_lora copy_view(const sona_policy *p, const copy *c) {
  return (sona_lora){.down = c->down, .up = c->up, .offset = c->offset, .ld = p->ld, .dim = p->o.dim, .rank = c->rows, .scale = c->scale};
}

/* The adapter may have learned without us (another loop, a restored state): catch up by generation and row count. */
static sona_status follow_adapter(sona_policy *p, sona_lora *w) {
  *w = sona_adapter_view(p->adapter);
  const uint64_t generation = sona_adapter_describe(p->adapter).generation;
  if (generation == p->seen_generation && w->rank == p->seen.rows) return SONA_OK;
  sona_status status = reserve_coef(p, w->rank);
  if (!status) status = project(p, &p->seen, w, generation == p->seen_generation ? p->seen.rows : 0);
  if (!status) p->seen_generation = generation;
  return status;
}

/* The new arm in row `slot`, seen by everything that is up to date for the others. */
static void project_arm(const sona_policy *p, projection *seen, const sona_lora *w, size_t slot) {
  for (size_t j = 0; j < w->rank; j++)
    p->o.kernels->gemv(p->vectors + slot * p->ld, p->ld, w->up + j * w->ld, seen->arm_rows + j * p->arm_ld + slot, 1, p->o.dim);
}

/* ---- arms ---- */

/* One success shrinks P by its share: P is common to all arms. */
static void share_precision(sona_policy *p) {
  if (p->arms > p->gaps) sona_instant_set_precision_scale(p->instant, 3.0f / (float)(p->arms - p->gaps));
}

sona_status sona_policy_add_arm(sona_policy *p, const float *vector, float cost, int32_t *row) {
  if (!isfinite(p->o.kernels->dot(vector, vector, p->o.dim)) || !isfinite(cost)) return SONA_ENONFINITE;
  size_t slot = 0;
  while (slot < p->arms && p->died[slot] == UINT32_MAX) slot++;
  if (slot >= INT32_MAX) return SONA_EINVAL;
  sona_status status = reserve_arms(p, slot + 1);
  sona_lora w;
  if (!status) status = follow_adapter(p, &w);
  if (status) return status;
  if (slot < p->arms) p->gaps--;
  memcpy(p->vectors + slot * p->ld, vector, p->o.dim * sizeof *vector);
  p->cost[slot] = cost;
  p->records[slot] = (arm_record){0};
  p->born[slot] = ++p->version;
  p->died[slot] = UINT32_MAX;
  if (slot == p->arms) p->arms++;
  p->has_cost |= cost != 0;
  share_precision(p);
  project_arm(p, &p->seen, &w, slot);
  for (int i = 0; i < COPIES; i++) {
    w = copy_view(p, &p->copies[i]);
    project_arm(p, &p->copies[i].seen, &w, slot);
  }
  *row = (int32_t)slot;
  return SONA_OK;
}

sona_status sona_policy_remove_arm(sona_policy *p, int32_t row) {
  if (!sona_policy_alive(p, row)) return SONA_EINVAL;
  p->died[row] = ++p->version;
  p->gaps++;
  share_precision(p);
  return SONA_OK;
}

size_t sona_policy_rows(const sona_policy *p) { return p->arms; }
int sona_policy_alive(const sona_policy *p, int32_t row) { return row >= 0 && (size_t)row < p->arms && p->died[row] == UINT32_MAX; }
uint32_t sona_policy_version(const sona_policy *p) { return p->version; }
const float *sona_policy_vector(const sona_policy *p, int32_t row) { return p->vectors + (size_t)row * p->ld; }
float sona_policy_cost(const sona_policy *p, int32_t row) { return p->cost[row]; }
int sona_policy_enabled(const sona_policy *p) { return !p->disabled; }
void sona_policy_set_enabled(sona_policy *p, int enabled) { p->disabled = !enabled; }

/* Whether the arm that a decision of `version` knew by this row is still the one in it. */
static int known_at(const sona_policy *p, int32_t row, uint32_t version) {
  return row >= 0 && (size_t)row < p->arms && p->born[row] <= version && p->died[row] > version;
}

/* The success rate of the best arm: a wrong choice must not look as if rewards were rare. */
static float best_rate(const sona_policy *p) {
  const double all = sona_instant_confidence(p->instant);
  double best = 0;
  for (size_t i = 0; i < p->arms; i++)
    if (p->died[i] == UINT32_MAX) best = fmax(best, (p->records[i].rewarded + PRIOR * all) / (p->records[i].shown + PRIOR));
  return (float)fmin(best, 1);
}

float sona_policy_confidence(const sona_policy *p) { return fmaxf(sona_instant_confidence(p->instant), best_rate(p)); }

/* ---- scores: logit (count) over candidates, or (arms) over all rows with -inf for rows that are not of `version` ---- */

static void frozen_logits(const sona_policy *p, const float *x, const int32_t *candidates, size_t count, uint32_t version, float *logit) {
  const sona_kernels *k = p->o.kernels;
  if (!candidates) k->gemv(p->vectors, p->ld, x, logit, p->arms, p->o.dim);
  for (size_t i = 0; i < count; i++) {
    const int32_t row = candidates ? candidates[i] : (int32_t)i;
    if (candidates) logit[i] = k->dot(p->vectors + (size_t)row * p->ld, x, p->o.dim);
    logit[i] = (candidates || p->gaps || version != p->version) && !known_at(p, row, version) ? -INFINITY : logit[i] / p->o.tau;
  }
}

/* logit += what the adapter adds */
static void adapt_logits(const sona_policy *p, const sona_lora *w, const projection *seen, const float *x, const int32_t *candidates,
                         size_t count, float *logit) {
  const sona_kernels *k = p->o.kernels;
  if (!w->rank) return;
  k->gemv(w->down, w->ld, x, p->coef, w->rank, w->dim);
  for (size_t j = 0; j < w->rank; j++) p->coef[j] = (p->coef[j] + w->offset[j]) * w->scale / p->o.tau;
  if (!candidates) {
    k->gemv_t(seen->arm_rows, p->arm_ld, p->coef, logit, w->rank, p->arms);
    return;
  }
  for (size_t i = 0; i < count; i++) {
    const float *column = seen->arm_rows + candidates[i];
    float sum = 0;
    for (size_t j = 0; j < w->rank; j++) sum += p->coef[j] * column[j * p->arm_ld];
    logit[i] += sum;
  }
}

/* Softmax of logit into pi; returns the index of the largest, or -1 when there is none or one is NaN. */
static int64_t softmax(const float *logit, size_t count, float *pi) {
  int64_t best = -1;
  float largest = -INFINITY, sum = 0;
  for (size_t i = 0; i < count; i++) {
    if (isnan(logit[i]) || logit[i] == INFINITY) return -1;
    if (logit[i] > largest) {
      largest = logit[i];
      best = (int64_t)i;
    }
  }
  if (best < 0) return -1;
  for (size_t i = 0; i < count; i++) sum += pi[i] = logit[i] == -INFINITY ? 0 : expf(logit[i] - largest);
  const float scale = 1 / sum;
  for (size_t i = 0; i < count; i++) pi[i] *= scale;
  return best;
}

static float cost_at(const sona_policy *p, const int32_t *candidates, size_t i) { return p->cost[candidates ? (size_t)candidates[i] : i]; }

/* First choice: the largest logit, or with costs the largest c pi - cost.  pi (count) is scratch unless `filled`. */
static int64_t first_choice(const sona_policy *p, const float *logit, const int32_t *candidates, size_t count, float *pi, int filled) {
  if (!p->has_cost) {
    int64_t best = -1;
    for (size_t i = 0; i < count; i++)
      if (logit[i] > (best < 0 ? -INFINITY : logit[best])) best = (int64_t)i;
    return best;
  }
  int64_t best = filled ? 0 : softmax(logit, count, pi);
  if (best < 0) return -1;
  const float c = sona_policy_confidence(p);
  float top = -INFINITY;
  for (size_t i = 0; i < count; i++) {
    const float utility = logit[i] == -INFINITY ? -INFINITY : c * pi[i] - cost_at(p, candidates, i);
    if (utility > top) {
      top = utility;
      best = (int64_t)i;
    }
  }
  return top == -INFINITY ? -1 : best;
}

/* ---- exploration: the learner's own proposal and its chance ---- */

/* Samples in proportion to pi, with costs to the positive part of c pi - cost; *chance is the probability of the draw. */
static int64_t sample_softmax(sona_policy *p, const float *pi, const int32_t *candidates, size_t count, int64_t best, float *mass) {
  const float c = sona_policy_confidence(p);
  double sum = 0;
  for (size_t i = 0; i < count; i++) {
    mass[i] = pi[i];
    if (p->has_cost) mass[i] = pi[i] > 0 ? fmaxf(c * pi[i] - cost_at(p, candidates, i), 0) : 0;
    sum += mass[i];
  }
  if (!(sum > 0)) {
    memset(mass, 0, count * sizeof *mass);
    mass[best] = 1;
    return best;
  }
  double left = sona_random_uniform(&p->random) * sum;
  int64_t drawn = best;
  for (size_t i = 0; i < count; i++)
    if (mass[i] > 0) {
      drawn = (int64_t)i;
      left -= mass[i];
      if (left < 0) break;
    }
  for (size_t i = 0; i < count; i++) mass[i] = (float)(mass[i] / sum);
  return drawn;
}

/* Deviation of each logit: that of x under P; with the identity, whose P never shrinks, the arm's count takes its place. */
static void posterior_deviation(sona_policy *p, const float *x, const int32_t *candidates, size_t count, float *deviation) {
  size_t side, ld;
  const int shrinks = sona_instant_covariance(p->instant, &side, &ld) != NULL;
  const float all = p->o.thompson_scale * sqrtf(fmaxf(sona_instant_variance(p->instant, x), 0)) / p->o.tau;
  for (size_t i = 0; i < count; i++) {
    const arm_record *record = &p->records[candidates ? (size_t)candidates[i] : i];
    deviation[i] = shrinks ? all : all * (float)sqrt(PRIOR / (PRIOR + (double)record->choices));
  }
}

/* P(arm has the largest logit) when each is off by an independent normal: trapezoid over the arm's own error. */
static float chance_of_largest(const float *logit, const float *deviation, size_t count, int64_t arm) {
  enum { STEPS = 48 };
  const double reach = 6, width = 2 * reach / STEPS;
  double sum = 0;
  for (int s = 0; s <= STEPS; s++) {
    const double z = -reach + s * width, own = logit[arm] + deviation[arm] * z;
    double product = exp(-0.5 * z * z) * 0.3989422804014327 * width;
    for (size_t i = 0; i < count && product > 1e-12; i++)
      if ((int64_t)i != arm && logit[i] != -INFINITY) product *= 0.5 * erfc(-(own - logit[i]) / deviation[i] * 0.7071067811865476);
    sum += product;
  }
  return (float)fmin(sum, 1);
}

/* ---- requests ---- */

/* The three models' logits and first choices; which[j] indexes the candidates. */
static sona_status score_models(sona_policy *p, const float *x, const int32_t *candidates, size_t count, float *probability,
                                int64_t which[SONA_GUARD_MODELS]) {
  sona_lora w;
  const sona_status status = follow_adapter(p, &w);
  if (status) return status;
  frozen_logits(p, x, candidates, count, p->version, p->frozen);
  memcpy(p->current, p->frozen, count * sizeof *p->current);
  if (!p->disabled) adapt_logits(p, &w, &p->seen, x, candidates, count, p->current);
  if (softmax(p->current, count, probability) < 0) return SONA_ENONFINITE;
  which[SONA_CURRENT] = first_choice(p, p->current, candidates, count, probability, 1);
  which[SONA_FROZEN] = which[SONA_ANCHOR] = which[SONA_CURRENT];
  if (!p->o.guard || p->disabled) return SONA_OK;
  which[SONA_FROZEN] = which[SONA_ANCHOR] = first_choice(p, p->frozen, candidates, count, p->work, 0);
  const copy *anchor = &p->copies[ANCHOR];
  if (p->guard.models < SONA_GUARD_MODELS) return SONA_OK;
  memcpy(p->anchor, p->frozen, count * sizeof *p->anchor);
  w = copy_view(p, anchor);
  adapt_logits(p, &w, &anchor->seen, x, candidates, count, p->anchor);
  which[SONA_ANCHOR] = first_choice(p, p->anchor, candidates, count, p->work, 0);
  if (which[SONA_ANCHOR] < 0) which[SONA_ANCHOR] = which[SONA_FROZEN];
  return SONA_OK;
}

static int candidates_alive(const sona_policy *p, const int32_t *candidates, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (!sona_policy_alive(p, candidates[i])) return 0;
  return 1;
}

sona_status sona_policy_route(sona_policy *p, const float *x, const int32_t *candidates, size_t count, float *probability,
                              sona_decision *decision) {
  if (!candidates) count = p->arms;
  if (count == 0 || count > p->arm_capacity || p->arms == p->gaps) return SONA_EINVAL;
  if (candidates && !candidates_alive(p, candidates, count)) return SONA_EINVAL;
  int64_t which[SONA_GUARD_MODELS];
  const sona_status status = score_models(p, x, candidates, count, probability, which);
  if (status) return status;

  const int64_t own = which[SONA_CURRENT];
  const sona_explore explore = p->disabled ? SONA_GREEDY : p->o.explore;
  const float *mass = NULL; /* the learner's distribution, where it is one */
  if (explore == SONA_SOFTMAX) {
    which[SONA_CURRENT] = sample_softmax(p, probability, candidates, count, own, p->work);
    mass = p->work;
  } else if (explore == SONA_THOMPSON) {
    posterior_deviation(p, x, candidates, count, p->anchor);
    for (size_t i = 0; i < count; i++) p->work[i] = p->current[i] + p->anchor[i] * (float)sona_random_normal(&p->random);
    which[SONA_CURRENT] = first_choice(p, p->work, candidates, count, p->frozen, 0);
  }

  double weight[SONA_GUARD_MODELS] = {1};
  int64_t arm = which[SONA_CURRENT];
  const int agreed = explore == SONA_GREEDY && which[0] == which[1] && which[0] == which[2];
  if (p->o.guard && !agreed) {
    sona_guard_weights(&p->guard, weight);
    const double draw = sona_random_uniform(&p->random);
    arm = which[draw < weight[0] ? 0 : draw < weight[0] + weight[1] ? 1 : SONA_GUARD_MODELS - 1];
  }
  float chance = arm == which[SONA_CURRENT];
  if (mass) chance = mass[arm];
  if (explore == SONA_THOMPSON && p->o.thompson_scale > 0)
    chance = p->has_cost ? NAN : chance_of_largest(p->current, p->anchor, count, arm);
  *decision = (sona_decision){
      .arm = candidates ? candidates[arm] : (int32_t)arm,
      .chance = {chance, arm == which[SONA_FROZEN], p->guard.models == SONA_GUARD_MODELS && arm == which[SONA_ANCHOR]},
      .own = arm == own,
      .agreed = (uint8_t)agreed,
      .version = p->version,
  };
  decision->propensity =
      agreed || !p->o.guard ? chance : (float)(weight[0] * chance + weight[1] * decision->chance[1] + weight[2] * decision->chance[2]);
  p->requests++;
  return SONA_OK;
}

sona_status sona_policy_best(sona_policy *p, sona_model model, const float *x, const int32_t *candidates, size_t count, int32_t *arm) {
  if (!candidates) count = p->arms;
  if (count == 0 || count > p->arm_capacity || p->arms == p->gaps || (candidates && !candidates_alive(p, candidates, count)))
    return SONA_EINVAL;
  sona_lora w;
  const sona_status status = follow_adapter(p, &w);
  if (status) return status;
  frozen_logits(p, x, candidates, count, p->version, p->frozen);
  if (model == SONA_CURRENT) adapt_logits(p, &w, &p->seen, x, candidates, count, p->frozen);
  if (model == SONA_ANCHOR) {
    w = copy_view(p, &p->copies[ANCHOR]);
    adapt_logits(p, &w, &p->copies[ANCHOR].seen, x, candidates, count, p->frozen);
  }
  const int64_t best = first_choice(p, p->frozen, candidates, count, p->work, 0);
  if (best < 0) return SONA_ENONFINITE;
  *arm = candidates ? candidates[best] : (int32_t)best;
  return SONA_OK;
}

void sona_policy_explain(sona_policy *p, const float *x, float *frozen, float *base, float *micro, float *bias) {
  const sona_kernels *k = p->o.kernels;
  sona_lora w;
  k->gemv(p->vectors, p->ld, x, frozen, p->arms, p->o.dim);
  memset(base, 0, p->arms * sizeof *base);
  memset(micro, 0, p->arms * sizeof *micro);
  memset(bias, 0, p->arms * sizeof *bias);
  if (follow_adapter(p, &w)) return;
  const size_t border = sona_adapter_describe(p->adapter).base;
  for (size_t j = 0; j < w.rank; j++) {
    const float *row = p->seen.arm_rows + j * p->arm_ld;
    k->axpy(w.scale * k->dot(w.down + j * w.ld, x, w.dim), row, j < border ? base : micro, p->arms);
    k->axpy(w.scale * w.offset[j], row, bias, p->arms);
  }
}

/* ---- outcomes ---- */

/* pi over the decision's own candidates at today's weights; direction = v.  Returns pi of the arm, or -1 when it is not among them. */
static float rescore(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, sona_status *status) {
  const sona_kernels *k = p->o.kernels;
  sona_lora w;
  if (!candidates) count = p->arms;
  *status = follow_adapter(p, &w);
  if (*status) return -1;
  frozen_logits(p, x, candidates, count, d->version, p->current);
  adapt_logits(p, &w, &p->seen, x, candidates, count, p->current);
  if (softmax(p->current, count, p->work) < 0) {
    *status = SONA_ENONFINITE;
    return -1;
  }
  float probability = -1;
  memset(p->direction, 0, p->ld * sizeof *p->direction);
  for (size_t i = 0; i < count; i++) {
    const int shown = (candidates ? candidates[i] : (int32_t)i) == d->arm;
    if (shown) probability = p->work[i];
    p->work[i] = ((float)shown - p->work[i]) / p->o.tau;
  }
  if (candidates)
    for (size_t i = 0; i < count; i++) k->axpy(p->work[i], p->vectors + (size_t)candidates[i] * p->ld, p->direction, p->o.dim);
  else
    k->gemv_t(p->vectors, p->ld, p->work, p->direction, count, p->o.dim);
  return probability;
}

static sona_status take_copy(sona_policy *p, copy *c, const sona_lora *w) {
  c->rows = 0; /* until it is complete */
  if (w->rank > c->capacity) {
    const size_t capacity = padded(w->rank);
    float *fresh = sona_calloc(2 * capacity * p->ld + capacity, sizeof *fresh);
    if (!fresh) return SONA_ENOMEM;
    sona_free(c->down);
    c->down = fresh;
    c->up = fresh + capacity * p->ld;
    c->offset = c->up + capacity * p->ld;
    c->capacity = capacity;
  }
  sona_status status = reserve_coef(p, w->rank);
  if (!status) status = reserve_projection(p, &c->seen, w->rank);
  if (status) return status;
  for (size_t j = 0; j < w->rank; j++) {
    memcpy(c->down + j * p->ld, w->down + j * w->ld, p->o.dim * sizeof(float));
    memcpy(c->up + j * p->ld, w->up + j * w->ld, p->o.dim * sizeof(float));
    c->offset[j] = w->offset ? w->offset[j] : 0;
  }
  c->rows = w->rank;
  c->scale = w->scale;
  return project(p, &c->seen, w, 0); /* has room */
}

/* The anchor is a copy that is one to two periods old, and it is only refreshed while the learner holds the evidence: a copy taken in the
 * middle of bad feedback would be no refuge. */
static void refresh_anchor(sona_policy *p) {
  if (!p->o.guard || !p->o.anchor_every || p->requests - p->refreshed < p->o.anchor_every) return;
  p->refreshed = p->requests;
  const double *lw = p->guard.log_weight;
  const double other = p->guard.models == 3 ? fmax(lw[SONA_FROZEN], lw[SONA_ANCHOR]) : lw[SONA_FROZEN];
  if (lw[SONA_CURRENT] < other - 0.7) return;
  const copy old = p->copies[ANCHOR];
  p->copies[ANCHOR] = p->copies[NEXT];
  p->copies[NEXT] = old;
  const sona_lora w = sona_adapter_view(p->adapter);
  if (take_copy(p, &p->copies[NEXT], &w)) return; /* out of memory: try again next time */
  if (p->copies[ANCHOR].rows) sona_guard_admit(&p->guard);
}

sona_status sona_policy_learn(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, float reward,
                              float weight, sona_outcome *outcome, sona_step *step) {
  if (!isfinite(reward)) return SONA_ENONFINITE;
  if (!sona_policy_alive(p, d->arm) || !known_at(p, d->arm, d->version)) return SONA_EINVAL;
  sona_status status;
  const float probability = rescore(p, x, candidates, count, d, &status);
  if (status) return status;
  if (probability < 0) return SONA_EINVAL;
  if (!d->own) weight *= p->o.off_policy_step;
  status = sona_instant_step(p->instant, p->adapter, x, p->direction, probability, best_rate(p), reward, weight, d->own ? SONA_STEP_OWN : 0,
                             step);
  if (status) return status;
  arm_record *record = &p->records[d->arm];
  if (d->own) {
    sona_calibration_add(&record->rewarded, &record->shown, probability, reward);
    record->choices++;
  }
  const sona_adapter_info info = sona_adapter_describe(p->adapter);
  *outcome = (sona_outcome){
      .reward = reward,
      .probability = probability,
      .weight = weight,
      .row = (uint32_t)(info.total - 1),
      .generation = info.generation,
      .step = sona_instant_calibration(p->instant).steps,
      .arm_step = record->choices,
  };
  if (p->o.guard && !d->agreed && d->propensity > 0 && !isnan(d->chance[0]))
    sona_guard_update(&p->guard, d->chance, d->propensity, reward - p->cost[d->arm]);
  refresh_anchor(p);
  sona_lora w;
  (void)follow_adapter(p, &w); /* so that the next request does not pay for it; without memory it will */
  return SONA_OK;
}

/* Whether the pair of an outcome is still a row of its own. */
static int still_stands(const sona_policy *p, const sona_outcome *outcome) {
  const sona_adapter_info info = sona_adapter_describe(p->adapter);
  return outcome->generation == info.generation && outcome->row < info.total;
}

sona_status sona_policy_revise(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d,
                               float reward, sona_outcome *outcome, sona_step *step) {
  if (!isfinite(reward)) return SONA_ENONFINITE;
  if (reward < 0 || reward > 1 || !sona_policy_alive(p, d->arm) || !known_at(p, d->arm, d->version)) return SONA_EINVAL;
  const float change = reward - outcome->reward;
  if (change == 0) return SONA_OK;
  sona_status status = SONA_OK;
  int stands = still_stands(p, outcome);
  if (stands) { /* room for everything first: once the old step is taken back, the new one may not fail */
    const size_t rows = sona_adapter_describe(p->adapter).total + 2;
    status = sona_adapter_make_room(p->adapter, 2);
    if (!status) status = reserve_coef(p, rows);
    if (!status) status = reserve_projection(p, &p->seen, rows);
    if (status) return status;
    stands = still_stands(p, outcome);
  }
  if (stands) {
    const sona_lora w = sona_adapter_view(p->adapter);
    memcpy(p->old_up, w.up + outcome->row * w.ld, w.dim * sizeof(float));
    memcpy(p->old_down, w.down + outcome->row * w.ld, w.dim * sizeof(float));
    status = sona_adapter_append(p->adapter, -w.scale, p->old_up, p->old_down, w.offset[outcome->row]);
    if (status) return status;
  }
  const float probability = rescore(p, x, candidates, count, d, &status);
  if (status) return status;
  if (probability < 0) return SONA_EINVAL;
  if (d->own && !isnan(outcome->probability)) { /* first, so that the new step sees the calibration it would have seen */
    arm_record *record = &p->records[d->arm];
    sona_instant_recalibrate(p->instant, outcome->probability, change, outcome->step);
    if (record->choices >= outcome->arm_step)
      sona_calibration_correct(&record->rewarded, outcome->probability, change, record->choices - outcome->arm_step);
  }
  const float rate = best_rate(p);
  status =
      stands ? sona_instant_step(p->instant, p->adapter, x, p->direction, probability, rate, reward, outcome->weight, SONA_STEP_AGAIN, step)
             : sona_instant_revise(p->instant, p->adapter, x, p->direction, probability, rate, change, outcome->weight, step);
  if (status) return status;
  const sona_adapter_info after = sona_adapter_describe(p->adapter);
  outcome->reward = reward;
  outcome->row = (uint32_t)(after.total - 1);
  outcome->generation = stands ? after.generation : 0;
  sona_lora w;
  (void)follow_adapter(p, &w);
  return SONA_OK;
}

/* ---- state ---- */

void sona_policy_get_calibration(const sona_policy *p, int32_t row, double *rewarded, double *shown, uint64_t *choices) {
  *rewarded = p->records[row].rewarded;
  *shown = p->records[row].shown;
  *choices = p->records[row].choices;
}

void sona_policy_set_calibration(sona_policy *p, int32_t row, double rewarded, double shown, uint64_t choices) {
  p->records[row] = (arm_record){.rewarded = rewarded, .shown = shown, .choices = choices};
}

sona_policy_state sona_policy_get_state(const sona_policy *p) {
  sona_policy_state state = {.guard = p->guard, .requests = p->requests, .refreshed = p->refreshed};
  memcpy(state.random, p->random.s, sizeof state.random);
  return state;
}

void sona_policy_set_state(sona_policy *p, sona_policy_state state) {
  p->guard = state.guard;
  p->requests = state.requests;
  p->refreshed = state.refreshed;
  memcpy(p->random.s, state.random, sizeof state.random);
}

sona_lora sona_policy_copy(const sona_policy *p, int which) { return copy_view(p, &p->copies[which ? NEXT : ANCHOR]); }

sona_status sona_policy_set_copy(sona_policy *p, int which, const float *down, const float *up, size_t ld, const float *offset,
                                 size_t rows) {
  const float scale = sona_adapter_view(p->adapter).scale;
  const sona_lora w = {.down = down, .up = up, .offset = offset, .ld = ld, .dim = p->o.dim, .rank = rows, .scale = scale};
  return take_copy(p, &p->copies[which ? NEXT : ANCHOR], &w);
}

size_t sona_policy_bytes(const sona_policy *p) {
  size_t floats = p->arm_capacity * (p->ld + 7) + p->coef_capacity + 3 * p->ld + p->seen.capacity * p->arm_ld;
  for (int i = 0; i < COPIES; i++) floats += p->copies[i].capacity * (2 * p->ld + 1) + p->copies[i].seen.capacity * p->arm_ld;
  return sizeof *p + floats * sizeof(float);
}
