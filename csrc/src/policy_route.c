#include <math.h>
#include <string.h>

#include "policy_internal.h"

/* ---- exploration: the learner's own proposal and its chance ---- */

/* Samples in proportion to pi, with costs to the positive part of c pi - cost; mass (count) receives the chance of each draw. */
static int64_t sample_softmax(sona_policy *p, const float *pi, const int32_t *candidates, size_t count, int64_t best, float *mass) {
  const float c = sona_policy_confidence(p);
  double sum = 0;
  for (size_t i = 0; i < count; i++) {
    mass[i] = pi[i];
    if (p->has_cost) mass[i] = pi[i] > 0 ? fmaxf(c * pi[i] - sona_policy_cost_at(p, candidates, i), 0) : 0;
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

/* The three models' logits and first choices; which[j] indexes the candidates.  With a partner, the learner's choice is the pool's, and
 * *own and *theirs are those of its members. */
static sona_status score_models(sona_policy *p, const float *x, const int32_t *candidates, size_t count, float *probability,
                                int64_t which[SONA_GUARD_MODELS], int64_t *own, int64_t *theirs) {
  sona_lora w;
  const sona_status status = sona_policy_follow(p, &w);
  if (status) return status;
  sona_policy_frozen_logits(p, x, candidates, count, p->version, p->frozen);
  if (p->disabled) {
    memcpy(p->current, p->frozen, count * sizeof *p->current);
  } else {
    sona_policy_trusted_logits(p, p->frozen, count, p->current);
    sona_policy_adapt_logits(p, &w, &p->seen, x, candidates, count, p->current);
  }
  if (sona_policy_softmax(p->current, count, probability) < 0) return SONA_ENONFINITE;
  which[SONA_CURRENT] = *own = sona_policy_first_choice(p, p->current, candidates, count, probability, 1);
  *theirs = p->partner && !p->disabled ? sona_policy_ask_partner(p, p->frozen, x, candidates, count) : -1;
  float utility;
  if (*theirs >= 0) which[SONA_CURRENT] = sona_policy_mix(p, candidates, count, probability, &utility);
  which[SONA_FROZEN] = which[SONA_ANCHOR] = which[SONA_CURRENT];
  if (!p->o.guard || p->disabled) return SONA_OK;
  which[SONA_FROZEN] = which[SONA_ANCHOR] = sona_policy_first_choice(p, p->frozen, candidates, count, p->work, 0);
  if (p->guard.models < SONA_GUARD_MODELS) return SONA_OK;
  sona_policy_trusted_logits(p, p->frozen, count, p->anchor);
  w = sona_policy_copy(p, ANCHOR);
  sona_policy_adapt_logits(p, &w, &p->copies[ANCHOR].seen, x, candidates, count, p->anchor);
  which[SONA_ANCHOR] = sona_policy_first_choice(p, p->anchor, candidates, count, p->work, 0);
  if (which[SONA_ANCHOR] < 0) which[SONA_ANCHOR] = which[SONA_FROZEN];
  return SONA_OK;
}

static int candidates_alive(const sona_policy *p, const int32_t *candidates, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (!sona_policy_alive(p, candidates[i])) return 0;
  return 1;
}

/* Expected reward where similar decisions are asked beside the learner, less the cost; a tie goes to the first. */
static int64_t choice_beside(const sona_policy *p, const sona_evidence *evidence, const int32_t *candidates, size_t count, const float *pi,
                             int64_t own) {
  const float beside = evidence->prior / fmaxf(sona_policy_confidence(p), 0.01f);
  float top = -INFINITY;
  for (size_t i = 0; i < count; i++) {
    if (p->current[i] == -INFINITY) continue;
    const size_t row = candidates ? (size_t)candidates[i] : i;
    const float utility = (evidence->prior * pi[i] + evidence->earned[row]) / (beside + evidence->seen[row]) - p->cost[row];
    if (utility > top) {
      top = utility;
      own = (int64_t)i;
    }
  }
  return own;
}

sona_status sona_policy_route(sona_policy *p, const float *x, const int32_t *candidates, size_t count, float *probability,
                              sona_decision *decision) {
  return sona_policy_route_beside(p, NULL, x, candidates, count, probability, decision);
}

sona_status sona_policy_route_beside(sona_policy *p, const sona_evidence *evidence, const float *x, const int32_t *candidates, size_t count,
                                     float *probability, sona_decision *decision) {
  if (!candidates) count = p->arms;
  if (count == 0 || count > p->arm_capacity || p->arms == p->gaps) return SONA_EINVAL;
  if (candidates && !candidates_alive(p, candidates, count)) return SONA_EINVAL;
  int64_t which[SONA_GUARD_MODELS], own, theirs;
  const sona_status status = score_models(p, x, candidates, count, probability, which, &own, &theirs);
  if (status) return status;

  const sona_explore explore = p->disabled ? SONA_GREEDY : p->o.explore;
  const float *mass = NULL; /* the learner's distribution, where it is one */
  if (explore == SONA_SOFTMAX) {
    which[SONA_CURRENT] = sample_softmax(p, probability, candidates, count, own, p->work);
    mass = p->work;
  } else if (explore == SONA_THOMPSON) {
    posterior_deviation(p, x, candidates, count, p->anchor);
    for (size_t i = 0; i < count; i++) p->work[i] = p->current[i] + p->anchor[i] * (float)sona_random_normal(&p->random);
    which[SONA_CURRENT] = sona_policy_first_choice(p, p->work, candidates, count, p->frozen, 0);
  } else if (evidence && !p->disabled) {
    which[SONA_CURRENT] = choice_beside(p, evidence, candidates, count, probability, own);
  }

  double weight[SONA_GUARD_MODELS] = {1};
  int64_t arm = which[SONA_CURRENT];
  const int agreed = explore == SONA_GREEDY && which[0] == which[1] && which[0] == which[2];
  /* Where similar decisions overrule the learner there is nothing to compare: they would overrule the rival as well. */
  const int64_t other = explore == SONA_GREEDY && which[SONA_CURRENT] == own ? sona_policy_rival_choice(p, x, candidates, count) : -1;
  int differs = other >= 0 && other != own;
  if (p->o.guard && (!agreed || other >= 0)) sona_guard_weights(&p->guard, weight);
  const int counts = other >= 0 && weight[SONA_CURRENT] >= SONA_RIVAL_LEAST;
  differs &= counts;
  const double share = differs ? p->rival_share * weight[SONA_CURRENT] : 0; /* of the rival, out of the learner's */
  if ((p->o.guard && !agreed) || differs) {
    const double draw = sona_random_uniform(&p->random);
    if (draw < weight[0])
      arm = draw < share ? other : which[0];
    else
      arm = which[draw < weight[0] + weight[1] ? 1 : SONA_GUARD_MODELS - 1];
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
      .trial = counts ? p->trial : 0,
      .rival = (uint8_t)((counts && arm == other ? SONA_RIVAL_CHOICE : 0) | (differs ? SONA_RIVAL_DIFFERS : 0)),
      .partner = arm == theirs,
      .version = p->version,
  };
  const double models = (weight[0] - share) * chance + weight[1] * decision->chance[1] + weight[2] * decision->chance[2];
  decision->propensity = (float)(differs ? models + share * (arm == other) : agreed || !p->o.guard ? chance : models);
  p->requests++;
  return SONA_OK;
}

sona_status sona_policy_best(sona_policy *p, sona_model model, const float *x, const int32_t *candidates, size_t count, int32_t *arm) {
  if (!candidates) count = p->arms;
  if (count == 0 || count > p->arm_capacity || p->arms == p->gaps || (candidates && !candidates_alive(p, candidates, count)))
    return SONA_EINVAL;
  sona_lora w;
  const sona_status status = sona_policy_follow(p, &w);
  if (status) return status;
  sona_policy_frozen_logits(p, x, candidates, count, p->version, p->frozen);
  if (model == SONA_CURRENT && p->partner && sona_policy_ask_partner(p, p->frozen, x, candidates, count) >= 0) {
    float utility;
    sona_policy_trusted_logits(p, p->frozen, count, p->current);
    sona_policy_adapt_logits(p, &w, &p->seen, x, candidates, count, p->current);
    const int64_t best =
        sona_policy_softmax(p->current, count, p->work) < 0 ? -1 : sona_policy_mix(p, candidates, count, p->work, &utility);
    if (best < 0) return SONA_ENONFINITE;
    *arm = candidates ? candidates[best] : (int32_t)best;
    return SONA_OK;
  }
  if (model != SONA_FROZEN) sona_policy_trusted_logits(p, p->frozen, count, p->frozen);
  if (model == SONA_CURRENT) sona_policy_adapt_logits(p, &w, &p->seen, x, candidates, count, p->frozen);
  if (model == SONA_ANCHOR) {
    w = sona_policy_copy(p, ANCHOR);
    sona_policy_adapt_logits(p, &w, &p->copies[ANCHOR].seen, x, candidates, count, p->frozen);
  }
  const int64_t best = sona_policy_first_choice(p, p->frozen, candidates, count, p->work, 0);
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
  if (sona_policy_follow(p, &w)) return;
  for (size_t i = 0; i < p->arms; i++) frozen[i] *= (float)p->trust.value;
  const size_t border = sona_adapter_describe(p->adapter).base;
  for (size_t j = 0; j < w.rank; j++) {
    const float *row = p->seen.arm_rows + j * p->arm_ld;
    k->axpy(w.scale * k->dot(w.down + j * w.ld, x, w.dim), row, j < border ? base : micro, p->arms);
    k->axpy(w.scale * w.offset[j], row, bias, p->arms);
  }
}
