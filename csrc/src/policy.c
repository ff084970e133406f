#include <math.h>
#include <string.h>

#include "policy_internal.h"

/* Rows get another length with the arms: all of it moves, or nothing. */
static sona_status reserve_arms(sona_policy *p, size_t arms) {
  if (arms <= p->arm_capacity) return SONA_OK;
  const size_t capacity = sona_policy_padded(arms + arms / 2), per_arm = 7 * sizeof(float) + 2 * sizeof(uint32_t);
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
  uint32_t *born = (uint32_t *)(row + 7 * capacity), *died = born + capacity;
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
  p->theirs = row + 5 * capacity;
  p->born = born;
  p->died = died;
  p->arm_capacity = p->arm_ld = capacity;
  return SONA_OK;
}

sona_status sona_policy_create(const sona_policy_options *options, sona_adapter *adapter, sona_instant *instant, sona_policy **out) {
  const sona_policy_options o = *options;
  if (!adapter || !instant || o.dim != sona_adapter_describe(adapter).dim) return SONA_EINVAL;
  if (!(o.tau > 0) || !isfinite(o.tau) || !(o.thompson_scale >= 0) || !isfinite(o.thompson_scale)) return SONA_EINVAL;
  if (!(o.odds >= 0) || !isfinite(o.odds)) return SONA_EINVAL;
  if (!(o.off_policy_step > 0 && o.off_policy_step <= 1) || o.explore < SONA_GREEDY || o.explore > SONA_SOFTMAX) return SONA_EINVAL;
  sona_policy *p = sona_calloc(1, sizeof *p);
  if (!p) return SONA_ENOMEM;
  p->o = o;
  if (!p->o.kernels) p->o.kernels = sona_adapter_kernels(adapter);
  p->adapter = adapter;
  p->instant = instant;
  p->ld = sona_policy_padded(o.dim);
  sona_guard_init(&p->guard, o.odds > 0 ? o.odds : 2);
  sona_trust_init(&p->trust);
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
  if (!status) status = sona_policy_follow(p, &w);
  sona_policy *const peers[] = {p->rival, p->partner};
  for (size_t i = 0; i < 2 && !status; i++) {
    int32_t theirs;
    if (sona_policy_has(p, peers[i])) status = sona_policy_add_arm(peers[i], vector, cost, &theirs);
  }
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
  sona_policy_project_arm(p, &w, slot);
  *row = (int32_t)slot;
  return SONA_OK;
}

sona_status sona_policy_remove_arm(sona_policy *p, int32_t row) {
  if (!sona_policy_alive(p, row)) return SONA_EINVAL;
  if (sona_policy_has(p, p->rival)) (void)sona_policy_remove_arm(p->rival, row);
  if (sona_policy_has(p, p->partner)) (void)sona_policy_remove_arm(p->partner, row);
  p->died[row] = ++p->version;
  p->gaps++;
  share_precision(p);
  return SONA_OK;
}

sona_status sona_policy_take_arms(sona_policy *p, const sona_policy *source) {
  if (p == source || p->o.dim != source->o.dim) return SONA_EINVAL;
  sona_status status = reserve_arms(p, source->arms);
  if (status) return status;
  memcpy(p->vectors, source->vectors, source->arms * p->ld * sizeof *p->vectors);
  memcpy(p->cost, source->cost, source->arms * sizeof *p->cost);
  memcpy(p->born, source->born, source->arms * sizeof *p->born);
  memcpy(p->died, source->died, source->arms * sizeof *p->died);
  memset(p->records, 0, p->arm_capacity * sizeof *p->records);
  p->arms = source->arms;
  p->gaps = source->gaps;
  p->has_cost = source->has_cost;
  p->version = source->version;
  share_precision(p);
  p->seen.rows = 0; /* other vectors: what the arms see of the models is computed anew */
  p->seen_generation = 0;
  for (int i = 0; i < COPIES; i++) p->copies[i].rows = p->copies[i].seen.rows = 0;
  sona_lora w;
  return sona_policy_follow(p, &w);
}

size_t sona_policy_rows(const sona_policy *p) { return p->arms; }
int sona_policy_alive(const sona_policy *p, int32_t row) { return row >= 0 && (size_t)row < p->arms && p->died[row] == UINT32_MAX; }
int sona_policy_knew(const sona_policy *p, int32_t row, uint32_t version) {
  return sona_policy_alive(p, row) && sona_policy_known_at(p, row, version);
}
uint32_t sona_policy_version(const sona_policy *p) { return p->version; }
const float *sona_policy_vector(const sona_policy *p, int32_t row) { return p->vectors + (size_t)row * p->ld; }
float sona_policy_cost(const sona_policy *p, int32_t row) { return p->cost[row]; }
int sona_policy_enabled(const sona_policy *p) { return !p->disabled; }
void sona_policy_set_enabled(sona_policy *p, int enabled) { p->disabled = !enabled; }

float sona_policy_best_rate(const sona_policy *p) {
  const double all = sona_instant_confidence(p->instant);
  double best = 0;
  for (size_t i = 0; i < p->arms; i++)
    if (p->died[i] == UINT32_MAX) best = fmax(best, (p->records[i].rewarded + PRIOR * all) / (p->records[i].shown + PRIOR));
  return (float)fmin(best, 1);
}

float sona_policy_confidence(const sona_policy *p) { return fmaxf(sona_instant_confidence(p->instant), sona_policy_best_rate(p)); }

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
  sona_policy_state state = {.guard = p->guard, .trust = p->trust, .requests = p->requests, .refreshed = p->refreshed};
  memcpy(state.random, p->random.s, sizeof state.random);
  memcpy(state.loss, p->loss, sizeof state.loss);
  return state;
}

void sona_policy_set_state(sona_policy *p, sona_policy_state state) {
  p->guard = state.guard;
  p->trust = state.trust;
  p->requests = state.requests;
  p->refreshed = state.refreshed;
  memcpy(p->random.s, state.random, sizeof state.random);
  memcpy(p->loss, state.loss, sizeof state.loss);
}

size_t sona_policy_bytes(const sona_policy *p) {
  size_t floats = p->arm_capacity * (p->ld + 9) + p->coef_capacity + 3 * p->ld + p->seen.capacity * p->arm_ld;
  for (int i = 0; i < COPIES; i++) floats += p->copies[i].capacity * (2 * p->ld + 1) + p->copies[i].seen.capacity * p->arm_ld;
  return sizeof *p + floats * sizeof(float);
}
