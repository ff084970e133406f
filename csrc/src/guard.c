#include "sona/guard.h"

#include <math.h>

static const double MEMORY = 0.99; /* of the mean reward on disagreements */
static const double HANDICAP = 5;  /* of a fresh copy, in log weight */

void sona_guard_init(sona_guard *g, double odds) {
  *g = (sona_guard){.log_weight = {log(odds)}, .models = 2, .floor = 0.002, .rate = 0.3, .share = 1e-4, .limit = 2};
}

void sona_guard_admit(sona_guard *g) {
  const double most = g->log_weight[0] - HANDICAP;
  g->log_weight[2] = g->models == 3 ? fmin(g->log_weight[2], most) : most;
  g->models = 3;
}

static void softmax(const double *logit, int n, double *out) {
  double largest = logit[0], sum = 0;
  for (int j = 1; j < n; j++) largest = fmax(largest, logit[j]);
  for (int j = 0; j < n; j++) sum += out[j] = exp(logit[j] - largest);
  for (int j = 0; j < n; j++) out[j] /= sum;
}

void sona_guard_weights(const sona_guard *g, double weight[SONA_GUARD_MODELS]) {
  softmax(g->log_weight, g->models, weight);
  for (int j = 0; j < g->models; j++) weight[j] = (1 - g->models * g->floor) * weight[j] + g->floor;
  for (int j = g->models; j < SONA_GUARD_MODELS; j++) weight[j] = 0;
}

void sona_guard_update(sona_guard *g, const float chance[SONA_GUARD_MODELS], double propensity, double reward, double expected,
                       double weight) {
  const double mean = g->outcomes > 0 ? g->rewards / g->outcomes : 0.5;
  const double baseline = isfinite(expected) ? expected : mean;
  double share[SONA_GUARD_MODELS];
  for (int j = 0; j < g->models; j++) {
    const double gain = g->rate * chance[j] * (reward - baseline) / propensity;
    g->log_weight[j] += weight * fmax(-g->limit, fmin(g->limit, gain));
  }
  softmax(g->log_weight, g->models, share);
  for (int j = 0; j < g->models; j++) g->log_weight[j] = log((1 - g->share) * share[j] + g->share / g->models);
  g->rewards = MEMORY * g->rewards + weight * reward;
  g->outcomes = MEMORY * g->outcomes + weight;
  g->updates++;
}
