#include <math.h>
#include <string.h>

#include "policy_internal.h"

static const double ANEW = 3; /* R = Q where nothing was ever rewarded: see docs/learning.md */

/* A decision over its own candidates, at today's weights. */
typedef struct view {
  float probability;     /* pi of the shown arm */
  float expected;        /* of the learner's own first choice, with a partner of the pool's: c pi - cost */
  float theirs;          /* pi of the shown arm for the partner, NaN without one */
  double margin, frozen; /* of the shown arm over the rest, in the learner's logits and in the frozen model's; see trust.h */
} view;

/* How far row `shown` of the candidates is above the mean of the others, weighted by pi, in both models' logits. */
static void measure_margins(const sona_policy *p, size_t shown, size_t count, const float *pi, view *out) {
  double rest = 0, frozen = 0;
  size_t second = shown;
  for (size_t i = 0; i < count; i++) {
    if (i == shown || p->current[i] == -INFINITY) continue;
    if (second == shown || p->current[i] > p->current[second]) second = i;
    if (!(pi[i] > 0)) continue;
    rest += pi[i];
    frozen += (double)pi[i] * p->frozen[i];
  }
  if (rest > 0 && pi[shown] > 0) {
    out->margin = log(pi[shown] / rest);
    out->frozen = p->frozen[shown] - frozen / rest;
  } else { /* one arm alone, or so certain that the rest underflows: its best stands for it */
    out->margin = (double)p->current[shown] - p->current[second];
    out->frozen = (double)p->frozen[shown] - p->frozen[second];
  }
}

/* Fills *out and direction = v.  SONA_EINVAL when the arm is not among the candidates. */
static sona_status rescore(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, view *out) {
  const sona_kernels *k = p->o.kernels;
  sona_lora w;
  if (!candidates) count = p->arms;
  const sona_status status = sona_policy_follow(p, &w);
  if (status) return status;
  sona_policy_frozen_logits(p, x, candidates, count, d->version, p->frozen);
  sona_policy_trusted_logits(p, p->frozen, count, p->current);
  sona_policy_adapt_logits(p, &w, &p->seen, x, candidates, count, p->current);
  if (sona_policy_softmax(p->current, count, p->work) < 0) return SONA_ENONFINITE;
  size_t shown = 0;
  while (shown < count && (candidates ? candidates[shown] : (int32_t)shown) != d->arm) shown++;
  if (shown == count) return SONA_EINVAL;
  const size_t own = (size_t)sona_policy_first_choice(p, p->current, candidates, count, p->work, 1);
  out->probability = p->work[shown];
  out->expected = sona_policy_confidence(p) * p->work[own] - sona_policy_cost_at(p, candidates, own);
  measure_margins(p, shown, count, p->work, out);
  out->theirs = NAN;
  if (p->partner && sona_policy_ask_partner(p, p->frozen, x, candidates, count) >= 0) {
    out->theirs = p->theirs[shown];
    memcpy(p->theirs + p->arm_ld, p->work, count * sizeof *p->work); /* mixing overwrites pi */
    (void)sona_policy_mix(p, candidates, count, p->theirs + p->arm_ld, &out->expected);
  }
  for (size_t i = 0; i < count; i++) p->work[i] = ((float)(i == shown) - p->work[i]) / p->o.tau;
  memset(p->direction, 0, p->ld * sizeof *p->direction);
  if (candidates)
    for (size_t i = 0; i < count; i++) k->axpy(p->work[i], p->vectors + (size_t)candidates[i] * p->ld, p->direction, p->o.dim);
  else
    k->gemv_t(p->vectors, p->ld, p->work, p->direction, count, p->o.dim);
  return SONA_OK;
}

sona_status sona_policy_expect(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d,
                               float *expected) {
  if (!sona_policy_alive(p, d->arm) || !sona_policy_known_at(p, d->arm, d->version)) return SONA_EINVAL;
  view v;
  const sona_status status = rescore(p, x, candidates, count, d, &v);
  if (!status) *expected = sona_policy_confidence(p) * v.probability;
  return status;
}

/* Nothing was ever rewarded: what a confident choice earns is estimated anew, from the belief that it is rewarded. */
static void expect_anew(sona_policy *p) {
  sona_calibration c = sona_instant_calibration(p->instant);
  c.rewarded = c.shown = ANEW;
  sona_instant_set_calibration(p->instant, c);
  for (size_t i = 0; i < p->arms; i++) p->records[i].rewarded = p->records[i].shown = 0;
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
  if (!(weight > 0 && weight <= 1)) return SONA_EINVAL; /* before it shrinks to an off-policy one */
  if (!sona_policy_alive(p, d->arm) || !sona_policy_known_at(p, d->arm, d->version)) return SONA_EINVAL;
  view v;
  sona_status status = rescore(p, x, candidates, count, d, &v);
  if (status) return status;
  const float given = weight, theirs = p->partner ? sona_policy_confidence(p->partner) : 0;
  if (!d->own) weight *= p->o.off_policy_step;
  const float confidence = sona_policy_confidence(p);
  status = sona_instant_step(p->instant, p->adapter, x, p->direction, v.probability, sona_policy_best_rate(p), reward, weight,
                             d->own ? SONA_STEP_OWN : 0, step);
  if (status) return status;
  const sona_trust before = p->trust;
  sona_trust_update(&p->trust, v.margin, v.frozen, confidence, reward, weight);
  const sona_trust after = p->trust;
  arm_record *record = &p->records[d->arm];
  if (d->own) {
    sona_calibration_add(&record->rewarded, &record->shown, v.probability, reward);
    record->choices++;
    if (sona_trust_barren(&p->trust, reward)) expect_anew(p);
  }
  const sona_adapter_info info = sona_adapter_describe(p->adapter);
  *outcome = (sona_outcome){
      .reward = reward,
      .probability = v.probability,
      .weight = weight,
      .row = (uint32_t)(info.total - 1),
      .generation = info.generation,
      .step = sona_instant_calibration(p->instant).steps,
      .arm_step = record->choices,
      .trust = (float)(after.value - before.value),
      .doubt = (float)(after.variance - before.variance),
  };
  if (p->o.guard && !d->agreed && d->propensity > 0 && !isnan(d->chance[0]))
    sona_guard_update(&p->guard, d->chance, d->propensity, reward - p->cost[d->arm], v.expected, given);
  refresh_anchor(p);
  if (!isnan(v.theirs)) sona_policy_score_members(p, (double)confidence * v.probability, (double)theirs * v.theirs, reward, given);
  sona_policy_teach_peers(p, x, candidates, count, d, reward, given);
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
  const sona_trust now = p->trust;
  sona_trust_take_back(&p->trust, outcome->trust, outcome->doubt);
  view v;
  status = rescore(p, x, candidates, count, d, &v);
  if (status) {
    p->trust = now;
    return status;
  }
  const int forgotten = isnan(outcome->probability); /* what the old reward did to calibration and trust: a restart lay between */
  /* Before the step: it is to see the calibration that it would have seen. */
  if (d->own && !forgotten) {
    arm_record *record = &p->records[d->arm];
    sona_instant_recalibrate(p->instant, outcome->probability, change, outcome->step);
    if (record->choices >= outcome->arm_step)
      sona_calibration_correct(&record->rewarded, outcome->probability, change, record->choices - outcome->arm_step);
  }
  const float rate = sona_policy_best_rate(p), confidence = sona_policy_confidence(p);
  status = stands ? sona_instant_step(p->instant, p->adapter, x, p->direction, v.probability, rate, reward, outcome->weight,
                                      SONA_STEP_AGAIN, step)
                  : sona_instant_revise(p->instant, p->adapter, x, p->direction, v.probability, rate, change, outcome->weight, step);
  if (status) {
    p->trust = now;
    return status;
  }
  const sona_trust before = p->trust;
  if (!forgotten) sona_trust_update(&p->trust, v.margin, v.frozen, confidence, reward, outcome->weight);
  outcome->trust = (float)(p->trust.value - before.value);
  outcome->doubt = (float)(p->trust.variance - before.variance);
  if (reward > 0) p->trust.barren = -1;
  const sona_adapter_info after = sona_adapter_describe(p->adapter);
  sona_policy_correct_peers(p, x, candidates, count, d, reward, outcome);
  outcome->reward = reward;
  outcome->row = (uint32_t)(after.total - 1);
  outcome->generation = stands ? after.generation : 0;
  sona_lora w;
  (void)sona_policy_follow(p, &w);
  return SONA_OK;
}

sona_status sona_policy_rehearse(sona_policy *p, sona_instant *step, const float *x, const int32_t *candidates, size_t count,
                                 const sona_decision *d, float reward, float weight) {
  if (!isfinite(reward)) return SONA_ENONFINITE;
  if (!(weight > 0 && weight <= 1)) return SONA_EINVAL;
  if (!sona_policy_alive(p, d->arm) || !sona_policy_known_at(p, d->arm, d->version)) return SONA_EINVAL;
  sona_policy *const partner = p->partner;
  p->partner = NULL;
  view v;
  const sona_status status = rescore(p, x, candidates, count, d, &v);
  p->partner = partner;
  if (status) return status;
  double inputs, square;
  const float *const mean = sona_instant_inputs(p->instant, &inputs, &square);
  (void)sona_instant_set_inputs(step, mean, inputs, square); /* what one has counted the other can take */
  sona_instant_set_calibration(step, sona_instant_calibration(p->instant));
  return sona_instant_step(step, p->adapter, x, p->direction, v.probability, sona_policy_best_rate(p), reward,
                           d->own ? weight : weight * p->o.off_policy_step, SONA_STEP_AGAIN, NULL);
}
