#include <math.h>
#include <string.h>

#include "policy_internal.h"

/* pi over the decision's own candidates at today's weights; direction = v.  Returns pi of the arm, or -1 when it is not among them. */
static float rescore(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, sona_status *status) {
  const sona_kernels *k = p->o.kernels;
  sona_lora w;
  if (!candidates) count = p->arms;
  *status = sona_policy_follow(p, &w);
  if (*status) return -1;
  sona_policy_frozen_logits(p, x, candidates, count, d->version, p->current);
  sona_policy_adapt_logits(p, &w, &p->seen, x, candidates, count, p->current);
  if (sona_policy_softmax(p->current, count, p->work) < 0) {
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
  if (sona_policy_set_copy(p, NEXT, w.down, w.up, w.ld, w.offset, w.rank)) return; /* out of memory: try again next time */
  if (p->copies[ANCHOR].rows) sona_guard_admit(&p->guard);
}

sona_status sona_policy_learn(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, float reward,
                              float weight, sona_outcome *outcome, sona_step *step) {
  if (!isfinite(reward)) return SONA_ENONFINITE;
  if (!sona_policy_alive(p, d->arm) || !sona_policy_known_at(p, d->arm, d->version)) return SONA_EINVAL;
  sona_status status;
  const float probability = rescore(p, x, candidates, count, d, &status);
  if (status) return status;
  if (probability < 0) return SONA_EINVAL;
  if (!d->own) weight *= p->o.off_policy_step;
  status = sona_instant_step(p->instant, p->adapter, x, p->direction, probability, sona_policy_best_rate(p), reward, weight,
                             d->own ? SONA_STEP_OWN : 0, step);
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
  (void)sona_policy_follow(p, &w); /* so that the next request does not pay for it; without memory it will */
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
  if (reward < 0 || reward > 1 || !sona_policy_alive(p, d->arm) || !sona_policy_known_at(p, d->arm, d->version)) return SONA_EINVAL;
  const float change = reward - outcome->reward;
  if (change == 0) return SONA_OK;
  sona_status status = SONA_OK;
  int stands = still_stands(p, outcome);
  if (stands) { /* room for everything first: once the old step is taken back, the new one may not fail */
    const size_t rows = sona_adapter_describe(p->adapter).total + 2;
    status = sona_adapter_make_room(p->adapter, 2);
    if (!status) status = sona_policy_reserve_rows(p, &p->seen, rows);
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
  const float rate = sona_policy_best_rate(p);
  status =
      stands ? sona_instant_step(p->instant, p->adapter, x, p->direction, probability, rate, reward, outcome->weight, SONA_STEP_AGAIN, step)
             : sona_instant_revise(p->instant, p->adapter, x, p->direction, probability, rate, change, outcome->weight, step);
  if (status) return status;
  const sona_adapter_info after = sona_adapter_describe(p->adapter);
  outcome->reward = reward;
  outcome->row = (uint32_t)(after.total - 1);
  outcome->generation = stands ? after.generation : 0;
  sona_lora w;
  (void)sona_policy_follow(p, &w);
  return SONA_OK;
}
