#include "sona/trust.h"

#include <math.h>

/* Measured on held-out streams: see docs/learning.md. */
static const double VARIANCE = 0.1;         /* at the start */
static const double VARIANCE_LEAST = 0.003; /* trust goes on following */
static const double LEAST = 0.05;
static const double ODDS_FLOOR = 0.01; /* 1 - c s */
static const double DOUBT = 0.5;       /* variance after choices that were never rewarded */
static const int64_t PATIENCE = 64;    /* own choices */

void sona_trust_init(sona_trust *t) { *t = (sona_trust){.value = 1, .variance = VARIANCE, .patience = PATIENCE}; }

void sona_trust_update(sona_trust *t, double margin, double frozen, double c, double r, double weight) {
  const double spread = c * t->variance * frozen * frozen;
  const double shrink = 1 / sqrt(1 + 0.39269908169872414 * spread); /* pi / 8 */
  const double s = 1 / (1 + exp(-shrink * margin)), odds = fmax(1 - c * s, ODDS_FLOOR);
  const double slope = shrink * (r * (1 - s) - (1 - r) * c * s * (1 - s) / odds);
  const double curvature = r * s * (1 - s) + (1 - r) * fmax(c * s * (1 - s) * (1 - 2 * s + c * s * s) / (odds * odds), 0);
  const double h = weight * shrink * shrink * curvature, reach = t->variance * frozen;
  t->value = fmin(fmax(t->value + weight * c * reach * slope, LEAST), 1);
  t->variance = fmax(t->variance - h * reach * reach / (1 + h * spread), VARIANCE_LEAST);
}

void sona_trust_take_back(sona_trust *t, double value, double variance) {
  t->value = fmin(fmax(t->value - value, LEAST), 1);
  t->variance = fmax(t->variance - variance, VARIANCE_LEAST);
}

int sona_trust_barren(sona_trust *t, double reward) {
  if (t->barren < 0) return 0;
  t->barren = reward > 0 ? -1 : t->barren + 1;
  if (reward > 0 || t->barren < t->patience) return 0;
  t->barren = 0;
  t->patience *= 2;
  t->variance = fmax(t->variance, DOUBT);
  return 1;
}
