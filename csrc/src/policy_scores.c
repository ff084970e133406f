#include <math.h>

#include "policy_internal.h"

void sona_policy_frozen_logits(const sona_policy *p, const float *x, const int32_t *candidates, size_t count, uint32_t version,
                               float *logit) {
  const sona_kernels *k = p->o.kernels;
  if (!candidates) k->gemv(p->vectors, p->ld, x, logit, p->arms, p->o.dim);
  for (size_t i = 0; i < count; i++) {
    const int32_t row = candidates ? candidates[i] : (int32_t)i;
    if (candidates) logit[i] = k->dot(p->vectors + (size_t)row * p->ld, x, p->o.dim);
    logit[i] = (candidates || p->gaps || version != p->version) && !sona_policy_known_at(p, row, version) ? -INFINITY : logit[i] / p->o.tau;
  }
}

void sona_policy_trusted_logits(const sona_policy *p, const float *frozen, size_t count, float *logit) {
  const float trust = (float)p->trust.value;
  for (size_t i = 0; i < count; i++) logit[i] = trust * frozen[i];
}

void sona_policy_adapt_logits(const sona_policy *p, const sona_lora *w, const projection *seen, const float *x, const int32_t *candidates,
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

int64_t sona_policy_softmax(const float *logit, size_t count, float *pi) {
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

int64_t sona_policy_first_choice(const sona_policy *p, const float *logit, const int32_t *candidates, size_t count, float *pi, int filled) {
  if (!p->has_cost) {
    int64_t best = -1;
    for (size_t i = 0; i < count; i++)
      if (logit[i] > (best < 0 ? -INFINITY : logit[best])) best = (int64_t)i;
    return best;
  }
  int64_t best = filled ? 0 : sona_policy_softmax(logit, count, pi);
  if (best < 0) return -1;
  const float c = sona_policy_confidence(p);
  float top = -INFINITY;
  for (size_t i = 0; i < count; i++) {
    const float utility = logit[i] == -INFINITY ? -INFINITY : c * pi[i] - sona_policy_cost_at(p, candidates, i);
    if (utility > top) {
      top = utility;
      best = (int64_t)i;
    }
  }
  return top == -INFINITY ? -1 : best;
}
