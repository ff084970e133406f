/* Instant step (Loop A): one outcome becomes one rank-one pair of an adapter.
 *
 *   c   = min(1, max(R / Q, rate))      what a confident choice earns; rate: the caller's success rate of its best action, 0 for none
 *   p   = c pi                          expected reward of the shown action
 *   adv = (r - p)(1 - pi)/(1 - p),      h = max(p (1 - pi)^2/(1 - p), .01)
 *   q   = P x',  sigma = x' . q,        g = c adv / (1 + c h |v|^2 sigma),   append the pair (up = g v, down = q)
 *   R  <- .99 R + pi^.5 r,  Q <- .99 Q + pi^1.5 over the policy's own choices, R = Q = 1 at the start
 *
 * x' is x followed by a constant input, whose weight becomes the pair's offset.  Where there is a constant, x stands in x' as (x - m) s:
 * m is the mean of the inputs learned from, as far as it is longer than chance makes it, and s makes them as long as they were.  So inputs
 * that point much the same way are learned from like any others.  The pair that is appended is one of x itself.
 * v is the score direction d log pi(action) / d y.
 * There is no learning rate: p0 c is a prior variance, and the denominator keeps one step from passing the outcome it fits.
 * With SONA_FULL, P is the inverse covariance of recursive least squares over successes, P -= w q q^T / (1 + w sigma),
 * w = r h |v|^2 scale: a failure says nothing about the other actions at x and must not settle x for them.  Failures that were not expected
 * widen it again, P <- (1 - s) P + s p0 I with s the sum of .003 p (1 - r) since the last time, whenever it reaches .03: P shrinks as 1/t,
 * and an action that is good most of the time would otherwise be settled for ever where another one is better.  With SONA_IDENTITY P stays
 * p0 I and costs O(dim). */
#ifndef SONA_INSTANT_H
#define SONA_INSTANT_H

#include "sona/adapter.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sona_instant sona_instant;

typedef enum sona_precondition { SONA_IDENTITY = 0, SONA_FULL = 1 } sona_precondition;

typedef struct sona_instant_options {
  size_t dim;
  float p0;              /* > 0: prior variance of a weight, for unit-norm x */
  float constant;        /* the constant input, >= 0; 0 for none */
  float precision_scale; /* > 0: how much one success shrinks P: 3 / number of actions; SONA_FULL only */
  sona_precondition precondition;
  const sona_kernels *kernels; /* NULL: the best of this machine */
} sona_instant_options;

/* What one step did; for metrics and for taking it back. */
typedef struct sona_step {
  float expected;   /* p */
  float confidence; /* c */
  float advantage;  /* adv */
  float curvature;  /* h */
  float sigma;
  float gain;      /* g times the weight: the coefficient of v */
  double surprise; /* r - p, zero-mean while calibrated */
} sona_step;

/* Scalars that a checkpoint keeps beside P. */
typedef struct sona_calibration {
  double rewarded, shown; /* R, Q */
  double mean_reward;     /* momentum .02, for callers without an expectation */
  uint64_t steps;         /* own choices seen */
  double restore;         /* share of P's prior that unexpected failures have earned back and P has not received yet; SONA_FULL */
} sona_calibration;

SONA_API sona_status sona_instant_create(const sona_instant_options *options, sona_instant **out);
SONA_API void sona_instant_destroy(sona_instant *instant); /* accepts NULL */

enum { SONA_STEP_OWN = 1, SONA_STEP_AGAIN = 2 };

/* Learns from one outcome.  x and v (dim); probability is pi of the shown action in [0, 1], or NaN when the caller has none: then the
 * running mean of the rewards stands in for p, which is weaker.  rate in [0, 1], see above.  reward in [0, 1].  weight in (0, 1] scales the
 * step.  flags: SONA_STEP_OWN, the policy would have chosen the action itself (only such outcomes calibrate); SONA_STEP_AGAIN, the outcome
 * has been counted before: P, the mean and the calibration stay.  report may be NULL. SONA_EINVAL, SONA_ENONFINITE and SONA_ENOMEM leave
 * everything as it was. */
SONA_API sona_status sona_instant_step(sona_instant *instant, sona_adapter *adapter, const float *x, const float *v, float probability,
                                       float rate, float reward, float weight, unsigned flags, sona_step *report);

/* The reward of an outcome that is already learned from changes by `change` in [-1, 1]: applies the difference once, at the current
 * weights.  P, the mean and the calibration do not move; see sona_instant_recalibrate. */
SONA_API sona_status sona_instant_revise(sona_instant *instant, sona_adapter *adapter, const float *x, const float *v, float probability,
                                         float rate, float change, float weight, sona_step *report);

/* Makes the calibration what it would be had the own choice of `probability`, learned as number `step` (sona_calibration.steps right
 * after it), been rewarded by `change` more. */
SONA_API void sona_instant_recalibrate(sona_instant *instant, float probability, float change, uint64_t step);

/* min(1, R / Q), and the same after another own choice of probability `pi` with a reward: how a caller keeps R and Q per action. */
SONA_API float sona_instant_confidence(const sona_instant *instant);
SONA_API void sona_calibration_add(double *rewarded, double *shown, float probability, float reward);
/* R as if the choice made `age` own choices ago had been rewarded by `change` more. */
SONA_API void sona_calibration_correct(double *rewarded, float probability, float change, uint64_t age);

/* x'^T P x': the posterior variance of a weighting of x (dim) */
SONA_API float sona_instant_variance(sona_instant *instant, const float *x);

/* P <- keep P + (1 - keep) p0 I, after a drift alarm; keep in [0, 1].  Nothing to do for SONA_IDENTITY. */
SONA_API void sona_instant_soften(sona_instant *instant, float keep);

/* The number of actions has changed: how much one outcome shrinks P from now on. */
SONA_API void sona_instant_set_precision_scale(sona_instant *instant, float scale);

SONA_API sona_calibration sona_instant_calibration(const sona_instant *instant);
SONA_API void sona_instant_set_calibration(sona_instant *instant, sona_calibration calibration);

/* P (side, side) with rows ld apart, side = dim + 1; NULL for SONA_IDENTITY.  The writer may overwrite it when restoring. */
SONA_API float *sona_instant_covariance(sona_instant *instant, size_t *side, size_t *ld);

/* The mean of the inputs (dim) with one input more that is 0, of how many, and the mean of |x|^2: what a checkpoint keeps beside P. */
SONA_API const float *sona_instant_inputs(const sona_instant *instant, double *count, double *square);
/* count in [0, 1000], square >= 0; else SONA_EINVAL or SONA_ENONFINITE, and nothing changes.  mean may be the one of another instant. */
SONA_API sona_status sona_instant_set_inputs(sona_instant *instant, const float *mean, double count, double square);

SONA_API size_t sona_instant_bytes(const sona_instant *instant);

#ifdef __cplusplus
}
#endif
#endif
