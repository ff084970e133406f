#include "sona/instant.h"

#include <math.h>
#include <string.h>

/* Measured on held-out streams: see docs/learning.md. */
static const double MEMORY = 0.99; /* of R and Q: about 100 own choices */
static const double OPTIMISM = 1;  /* R = Q at the start: c stays near 1 until failures outweigh it */
static const float CURVATURE_FLOOR = 0.01f;
static const double RESTORED = 0.003;  /* of the prior, by a failure that was expected to succeed */
static const double RESTORE_AT = 0.03; /* about ten of them: P is rewritten that rarely */
static const float ODDS_FLOOR = 0.01f; /* 1 - p */
static const float MEAN_MOMENTUM = 0.02f;
static const float VARIANCE_FLOOR = 1e-3f; /* of p0 |x'|^2: below it P stops shrinking, or a long-lived learner would freeze */
static const double CENTRE_NOISE = 4;      /* squared errors of the mean that its squared length must be above before it counts */
static const double CENTRE_MEMORY = 1000;  /* inputs that the mean is of, about */
static const double LEAST_SPREAD = 1e-3;   /* of the mean square: inputs that hardly differ are stretched no further */

struct sona_instant {
  sona_instant_options o;
  sona_calibration calibration;
  size_t side, ld;   /* of P: dim + 1 */
  float *covariance; /* (side, ld), or NULL */
  float *input;      /* (ld): x' */
  float *direction;  /* (ld): q = P x' */
  float *down;       /* (ld): what q is to x itself */
  float *mean;       /* (ld): of the inputs and of one more that is 0 */
  double inputs;     /* how many, at most CENTRE_MEMORY */
  double square;     /* mean of |x|^2 */
  float centre;      /* share of the mean that is taken off; 0 while it may be chance */
  float stretch;     /* makes what is left as long as x was */
};

sona_status sona_instant_create(const sona_instant_options *options, sona_instant **out) {
  const sona_instant_options o = *options;
  if (o.dim < 1 || o.dim > UINT32_MAX || !(o.p0 > 0) || !isfinite(o.p0) || !(o.constant >= 0) || !isfinite(o.constant)) return SONA_EINVAL;
  if (o.precondition == SONA_FULL && !(o.precision_scale > 0 && isfinite(o.precision_scale))) return SONA_EINVAL;
  sona_instant *s = sona_calloc(1, sizeof *s);
  if (!s) return SONA_ENOMEM;
  s->o = o;
  if (!s->o.kernels) s->o.kernels = sona_kernels_get(NULL);
  s->side = o.dim + 1;
  s->ld = (s->side + 15) / 16 * 16;
  s->calibration = (sona_calibration){.rewarded = OPTIMISM, .shown = OPTIMISM, .mean_reward = 0.5};
  s->stretch = 1;
  s->input = sona_calloc(4 * s->ld, sizeof(float));
  if (o.precondition == SONA_FULL) s->covariance = sona_calloc(s->side, s->ld * sizeof(float));
  if (!s->input || (o.precondition == SONA_FULL && !s->covariance)) {
    sona_instant_destroy(s);
    return SONA_ENOMEM;
  }
  s->direction = s->input + s->ld;
  s->down = s->direction + s->ld;
  s->mean = s->down + s->ld;
  sona_instant_soften(s, 0);
  *out = s;
  return SONA_OK;
}

void sona_instant_destroy(sona_instant *s) {
  if (!s) return;
  sona_free(s->input);
  sona_free(s->covariance);
  sona_free(s);
}

/* direction = P x', returns x' . P x' */
static float precondition(sona_instant *s, const float *x) {
  const sona_kernels *k = s->o.kernels;
  memcpy(s->input, x, s->o.dim * sizeof *x);
  if (s->centre > 0)
    for (size_t i = 0; i < s->o.dim; i++) s->input[i] = s->stretch * (x[i] - s->centre * s->mean[i]);
  s->input[s->o.dim] = s->o.constant;
  if (s->covariance) {
    k->gemv(s->covariance, s->ld, s->input, s->direction, s->side, s->side);
  } else {
    memset(s->direction, 0, s->side * sizeof *s->direction);
    k->axpy(s->o.p0, s->input, s->direction, s->side);
  }
  return k->dot(s->input, s->direction, s->side);
}

/* How much of the mean to take off, and what to stretch the rest by.  The share is the one of James and Stein: the mean of inputs that
 * point all ways is about one standard error long by chance, and nothing of that is taken off. */
static void place_centre(sona_instant *s) {
  const double length = s->o.kernels->dot(s->mean, s->mean, s->o.dim), noise = (s->square - length) / (s->inputs + 1);
  const double share = length > 0 ? 1 - CENTRE_NOISE * fmax(noise, 0) / length : 0;
  const int counts = share > 0 && s->o.constant > 0; /* what is taken off comes back in the offset, which is the constant's */
  const double left = fmax(s->square - share * (2 - share) * length, LEAST_SPREAD * s->square);
  s->centre = counts ? (float)share : 0;
  s->stretch = counts ? (float)sqrt(s->square / left) : 1;
}

/* Another input counts in the mean. */
static void count_input(sona_instant *s, const float *x) {
  if (s->inputs < CENTRE_MEMORY) s->inputs++;
  const float share = (float)(1 / (s->inputs + 1));
  for (size_t i = 0; i < s->o.dim; i++) s->mean[i] += share * (x[i] - s->mean[i]);
  s->square += (s->o.kernels->dot(x, x, s->o.dim) - s->square) / s->inputs;
  place_centre(s);
}

/* P -= w q q^T / (1 + w sigma) unless it has shrunk to its floor along x' */
static void shrink(sona_instant *s, float sigma, float w) {
  if (!s->covariance) return;
  const float length = s->o.kernels->dot(s->input, s->input, s->side);
  if (sigma > VARIANCE_FLOOR * s->o.p0 * length)
    s->o.kernels->ger(-w / (1 + w * sigma), s->direction, s->direction, s->covariance, s->ld, s->side, s->side);
}

float sona_instant_confidence(const sona_instant *s) {
  const double c = s->calibration.rewarded / s->calibration.shown;
  return c < 1 ? (float)c : 1.0f;
}

void sona_calibration_add(double *rewarded, double *shown, float probability, float reward) {
  const double root = sqrt(probability);
  *rewarded = MEMORY * *rewarded + root * reward;
  *shown = MEMORY * *shown + root * probability;
}

void sona_calibration_correct(double *rewarded, float probability, float change, uint64_t age) {
  *rewarded += pow(MEMORY, (double)age) * sqrt(probability) * change;
}

/* step->expected, confidence and curvature; returns the factor of the surprise in adv */
static float expect(const sona_instant *s, float probability, float rate, sona_step *step) {
  if (isnan(probability)) {
    const float p = (float)s->calibration.mean_reward;
    step->expected = p;
    step->confidence = 1;
    step->curvature = fmaxf(p * (1 - p), CURVATURE_FLOOR);
    return 1;
  }
  step->confidence = fminf(1, fmaxf(sona_instant_confidence(s), rate));
  const float p = step->confidence * probability;
  const float odds = fmaxf(1 - p, ODDS_FLOOR), rest = 1 - probability;
  step->expected = p;
  step->curvature = fmaxf(p * rest * rest / odds, CURVATURE_FLOOR);
  return rest / odds;
}

static sona_status check(const sona_instant *s, const float *x, const float *v, float probability, float rate, float weight) {
  const sona_kernels *k = s->o.kernels;
  const float reach = s->centre > 0 ? 4 * s->stretch * s->stretch : 1; /* of |x'|^2 over |x|^2 */
  if (!isfinite(reach * k->dot(x, x, s->o.dim)) || !isfinite(k->dot(v, v, s->o.dim))) return SONA_ENONFINITE;
  if (!isnan(probability) && !(probability >= 0 && probability <= 1)) return SONA_EINVAL;
  if (!(rate >= 0 && rate <= 1) || !(weight > 0 && weight <= 1)) return SONA_EINVAL;
  return SONA_OK;
}

/* appends weight c adv / (1 + c h |v|^2 sigma) times v q^T */
static sona_status append(sona_instant *s, sona_adapter *adapter, const float *x, const float *v, float weight, sona_step *step) {
  const float length = s->o.kernels->dot(v, v, s->o.dim);
  step->sigma = precondition(s, x);
  if (!(step->sigma > 0) && s->covariance && s->o.kernels->dot(x, x, s->o.dim) > 0) { /* rounding cost P its positive definiteness */
    sona_instant_soften(s, 0.2f);
    step->sigma = precondition(s, x);
  }
  step->gain = weight * step->confidence * step->advantage / (1 + step->confidence * step->curvature * length * step->sigma);
  const float offset = s->direction[s->o.dim] * s->o.constant;
  if (!(s->centre > 0)) return sona_adapter_append(adapter, step->gain, v, s->direction, offset);
  for (size_t i = 0; i < s->o.dim; i++) s->down[i] = s->stretch * s->direction[i];
  return sona_adapter_append(adapter, step->gain, v, s->down, offset - s->centre * s->o.kernels->dot(s->down, s->mean, s->o.dim));
}

sona_status sona_instant_step(sona_instant *s, sona_adapter *adapter, const float *x, const float *v, float probability, float rate,
                              float reward, float weight, unsigned flags, sona_step *report) {
  if (!isfinite(reward)) return SONA_ENONFINITE;
  if (reward < 0 || reward > 1) return SONA_EINVAL;
  sona_status status = check(s, x, v, probability, rate, weight);
  if (status) return status;
  sona_step step;
  const float factor = expect(s, probability, rate, &step);
  step.surprise = (double)reward - step.expected;
  step.advantage = (float)step.surprise * factor;
  status = append(s, adapter, x, v, weight, &step);
  if (status) return status;
  if (!(flags & SONA_STEP_AGAIN)) {
    const float length = s->o.kernels->dot(v, v, s->o.dim);
    shrink(s, step.sigma, weight * reward * step.curvature * length * s->o.precision_scale);
    sona_calibration *c = &s->calibration;
    if (s->covariance) c->restore += RESTORED * step.expected * (1 - reward) * weight;
    if (c->restore >= RESTORE_AT) {
      sona_instant_soften(s, (float)(1 - c->restore));
      c->restore = 0;
    }
    if (flags & SONA_STEP_OWN) {
      if (!isnan(probability)) sona_calibration_add(&c->rewarded, &c->shown, probability, reward);
      c->steps++;
    }
    c->mean_reward += MEAN_MOMENTUM * (reward - c->mean_reward);
    count_input(s, x);
  }
  if (report) *report = step;
  return SONA_OK;
}

sona_status sona_instant_revise(sona_instant *s, sona_adapter *adapter, const float *x, const float *v, float probability, float rate,
                                float change, float weight, sona_step *report) {
  if (!isfinite(change)) return SONA_ENONFINITE;
  if (change < -1 || change > 1) return SONA_EINVAL;
  sona_status status = check(s, x, v, probability, rate, weight);
  if (status) return status;
  sona_step step;
  const float factor = expect(s, probability, rate, &step);
  step.surprise = change;
  step.advantage = change * factor;
  status = append(s, adapter, x, v, weight, &step);
  if (status == SONA_OK && report) *report = step;
  return status;
}

void sona_instant_recalibrate(sona_instant *s, float probability, float change, uint64_t step) {
  if (isnan(probability) || s->calibration.steps < step) return;
  sona_calibration_correct(&s->calibration.rewarded, probability, change, s->calibration.steps - step);
}

float sona_instant_variance(sona_instant *s, const float *x) { return precondition(s, x); }

void sona_instant_soften(sona_instant *s, float keep) {
  if (!s->covariance) return;
  for (size_t i = 0; i < s->side; i++) {
    float *row = s->covariance + i * s->ld;
    for (size_t j = 0; j < s->side; j++) row[j] *= keep;
    row[i] += (1 - keep) * s->o.p0;
  }
}

void sona_instant_set_precision_scale(sona_instant *s, float scale) {
  if (scale > 0 && isfinite(scale)) s->o.precision_scale = scale;
}

sona_calibration sona_instant_calibration(const sona_instant *s) { return s->calibration; }
void sona_instant_set_calibration(sona_instant *s, sona_calibration calibration) { s->calibration = calibration; }

float *sona_instant_covariance(sona_instant *s, size_t *side, size_t *ld) {
  *side = s->side;
  *ld = s->ld;
  return s->covariance;
}

const float *sona_instant_inputs(const sona_instant *s, double *count, double *square) {
  *count = s->inputs;
  *square = s->square;
  return s->mean;
}

sona_status sona_instant_set_inputs(sona_instant *s, const float *mean, double count, double square) {
  if (!isfinite(s->o.kernels->dot(mean, mean, s->o.dim))) return SONA_ENONFINITE;
  if (!(count >= 0 && count <= CENTRE_MEMORY) || !(square >= 0 && isfinite(square))) return SONA_EINVAL;
  memcpy(s->mean, mean, s->o.dim * sizeof *mean);
  s->inputs = count;
  s->square = square;
  place_centre(s);
  return SONA_OK;
}

size_t sona_instant_bytes(const sona_instant *s) {
  return sizeof *s + 4 * s->ld * sizeof(float) + (s->covariance ? s->side * s->ld * sizeof(float) : 0);
}
