/* Guard: which of a few models to trust where they disagree (Exp3.S: Auer, Cesa-Bianchi, Freund and Schapire 2002).
 *
 * Model 0 is the learner, the others are what it must not fall behind: the frozen model and an older copy of itself.  Where all choose
 * the same action nothing is drawn and nothing is learned.  Elsewhere a model is drawn by weight, the probability P of the served
 * action is logged, and its reward moves the weights of the models that would have served it.
 *
 *   weights  w = (1 - n floor) softmax(log_weight) + floor
 *   reward   log_weight_j += weight clip(rate chance_j (r - expected) / P, +-limit);
 *            expected: by the learner, else the decayed mean of such rewards
 *   share    w <- (1 - share) w + share / n, so that no model is ever out of reach
 *
 * A plain struct without allocation; one thread at a time. */
#ifndef SONA_GUARD_H
#define SONA_GUARD_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_GUARD_MODELS 3

typedef struct sona_guard {
  double log_weight[SONA_GUARD_MODELS];
  int models;               /* the first 2 until there is an older copy, then 3 */
  double rewards, outcomes; /* decayed sums: mean = rewards / outcomes */
  double floor, rate, share, limit;
  uint64_t updates;
} sona_guard;

/* odds > 0: of model 0 against each other one at the start. Two models: the third joins with sona_guard_admit. */
SONA_API void sona_guard_init(sona_guard *guard, double odds);

/* A fresh copy of model 0 becomes model 2. It ties with model 0, so it starts well behind: otherwise it would take half of the draws. */
SONA_API void sona_guard_admit(sona_guard *guard);

SONA_API void sona_guard_weights(const sona_guard *guard, double weight[SONA_GUARD_MODELS]);

/* chance[j]: probability with which model j would have served the action that was served; propensity: the probability with which it was
 * served, in (0, 1]; reward in [0, 1]; expected: what the learner's own choice was to earn, NaN when that is not known.  The baseline may
 * depend on the request, not on the model: it changes no expectation, and a calibrated one leaves only the surprise as noise.
 * weight in (0, 1]: what the reward counts for as evidence. */
SONA_API void sona_guard_update(sona_guard *guard, const float chance[SONA_GUARD_MODELS], double propensity, double reward, double expected,
                                double weight);

#ifdef __cplusplus
}
#endif
#endif
