/* Policy: softmax over arm vectors seen through an adapter.
 *
 *   score_k = <e_k, trust x + delta(x)>,   pi = softmax(score / tau),   v = d log pi_a / d y = (e_a - sum_k pi_k e_k) / tau
 *
 * The adapter enters through arm_rows[j][k] = <up_j, e_k>, kept up to date as rows are appended, so that a request costs
 * (arms + rows) dim multiplications and never forms y.  trust is 1 until rewards say that the frozen model is wrong, see trust.h.  Arms
 * live in rows that keep their number: a removed arm leaves a gap that a later one may take.  `version` counts changes of the arms; a
 * decision is learned from over the arms that were alive at its version.
 *
 * x is unit-norm (or zero) everywhere.  One thread at a time uses a policy; the adapter's own readers are free. */
#ifndef SONA_POLICY_H
#define SONA_POLICY_H

#include "sona/adapter.h"
#include "sona/guard.h"
#include "sona/instant.h"
#include "sona/trust.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sona_policy sona_policy;

typedef enum sona_explore { SONA_GREEDY = 0, SONA_THOMPSON = 1, SONA_SOFTMAX = 2 } sona_explore;
typedef enum sona_model { SONA_CURRENT = 0, SONA_FROZEN = 1, SONA_ANCHOR = 2 } sona_model;

typedef struct sona_policy_options {
  size_t dim;
  float tau;             /* > 0 */
  float thompson_scale;  /* >= 0: posterior samples are this many standard deviations wide */
  float off_policy_step; /* in (0, 1]: step size where the served arm is not the learner's own choice */
  uint64_t anchor_every; /* requests between refreshes of the older copy; 0: never */
  uint64_t seed;
  sona_explore explore;
  int guard;  /* 0: serve the learner alone */
  float odds; /* of the learner against each other model of the guard at the start; 0 for 2 */
  const sona_kernels *kernels;
} sona_policy_options;

typedef struct sona_decision {
  int32_t arm;                     /* row */
  float propensity;                /* probability with which it was served; NaN where that is not known (Thompson with costs) */
  float chance[SONA_GUARD_MODELS]; /* of each model to serve this arm */
  uint8_t own;                     /* the learner's own first choice */
  uint8_t agreed;                  /* all models chose it: nothing for the guard to learn */
  uint8_t trial;                   /* number of the trial that it counts for, 0 for none; see sona_policy_set_rival */
  uint8_t rival;                   /* SONA_RIVAL_ bits of that trial */
  uint8_t partner;                 /* the partner's own first choice; see sona_policy_set_partner */
  uint8_t reserved[3];
  uint32_t version; /* of the arms */
} sona_decision;

/* SONA_RIVAL_CHOICE: the rival's own first choice is this arm; SONA_RIVAL_DIFFERS: and it is not the learner's. */
enum { SONA_RIVAL_CHOICE = 1, SONA_RIVAL_DIFFERS = 2 };

/* What is remembered of a decision that has been learned from. */
typedef struct sona_outcome {
  float reward, probability, weight; /* as given; pi of the arm when the reward arrived */
  uint32_t row;                      /* of the adapter, valid while generation is the adapter's */
  uint64_t generation;
  uint64_t step;      /* sona_calibration.steps right after it */
  uint64_t arm_step;  /* the same count of its arm */
  float trust, doubt; /* what it added to trust and to its variance */
} sona_outcome;

/* adapter and instant outlive the policy and belong to the caller. */
SONA_API sona_status sona_policy_create(const sona_policy_options *options, sona_adapter *adapter, sona_instant *instant,
                                        sona_policy **out);
SONA_API void sona_policy_destroy(sona_policy *policy); /* accepts NULL */

/* Puts an arm into a free row (returned in *row).  vector (dim), finite, of a norm that tau is meant for: 1, as a rule;
 * cost in units of reward. */
SONA_API sona_status sona_policy_add_arm(sona_policy *policy, const float *vector, float cost, int32_t *row);
/* SONA_EINVAL when the row holds no arm. */
SONA_API sona_status sona_policy_remove_arm(sona_policy *policy, int32_t row);

SONA_API size_t sona_policy_rows(const sona_policy *policy);            /* rows in use or removed: the length of a full score vector */
SONA_API int sona_policy_alive(const sona_policy *policy, int32_t row); /* 0 for removed and for rows out of range */
/* Whether a decision made at that version meant by this row the arm that is in it today; 0 too where that arm has been removed. */
SONA_API int sona_policy_knew(const sona_policy *policy, int32_t row, uint32_t version);
SONA_API uint32_t sona_policy_version(const sona_policy *policy);
SONA_API const float *sona_policy_vector(const sona_policy *policy, int32_t row);
SONA_API float sona_policy_cost(const sona_policy *policy, int32_t row);

/* Another learner on trial beside this one, a policy over an adapter and an instant step of its own, which belongs to the caller and
 * outlives the trial; NULL ends it.  It learns every reward that this one learns.  Where a greedy policy and its rival choose different
 * arms, the rival's is served with the share (in (0, 1)) of the learner's probability, which is 1 without a guard, and the decision counts
 * for the trial with that number (1..255).  While the guard gives the learner less than SONA_RIVAL_LEAST, nothing is drawn and nothing
 * counts: so the rival's arm has at least share * SONA_RIVAL_LEAST and the learner's (1 - share) * SONA_RIVAL_LEAST.
 * SONA_EINVAL unless both have the same dim and the same arms in the same rows with the same history, see sona_policy_take_arms. */
#define SONA_RIVAL_LEAST 0.5f
SONA_API sona_status sona_policy_set_rival(sona_policy *policy, sona_policy *rival, float share, uint8_t trial);

/* A pool of two: another learner, a policy over an adapter and an instant step of its own, which belongs to the caller; NULL ends it.  It
 * learns every reward, and what a greedy policy serves is the arm with the largest mixed forecast,
 *
 *   sum_m w_m c_m pi_m - cost,   w_m = exp(-0.3 (L_m - min L)) + 0.001, scaled to sum 1,
 *   L_m <- 0.99 L_m - log Bernoulli(r | c_m pi_m of the shown arm), at each first reward, before it is learned
 *
 * Probabilities that a request reports are mixed too.  SONA_EINVAL as for sona_policy_set_rival, which excludes a partner, and for a policy
 * that explores. */
SONA_API sona_status sona_policy_set_partner(sona_policy *policy, sona_policy *partner);
/* w of the policy itself; 1 without a partner. */
SONA_API double sona_policy_own_share(const sona_policy *policy);

/* Learns an outcome once more with a step of the identity, `step`, whose calibration is overwritten: neither calibration, trust nor P of
 * the policy move, nor guard, rival and partner.  weight in (0, 1].  SONA_EINVAL as for sona_policy_learn. */
SONA_API sona_status sona_policy_rehearse(sona_policy *policy, sona_instant *step, const float *x, const int32_t *candidates, size_t count,
                                          const sona_decision *decision, float reward, float weight);

/* The same arms in the same rows, with their history; what `policy` knew of others is dropped, its adapter stays.  From then on add and
 * remove reach the rival of a policy too. */
SONA_API sona_status sona_policy_take_arms(sona_policy *policy, const sona_policy *source);

/* The kill switch: a disabled policy serves the frozen model's first choice, with propensity 1. On at creation. */
SONA_API int sona_policy_enabled(const sona_policy *policy);
SONA_API void sona_policy_set_enabled(sona_policy *policy, int enabled);

/* Chooses an arm.  candidates (count) are rows that are alive, or NULL for all; probability (count, or rows when NULL) receives pi, 0
 * for removed arms.  SONA_ENONFINITE when a score is not finite, SONA_EINVAL when there is nothing to choose from. */
SONA_API sona_status sona_policy_route(sona_policy *policy, const float *x, const int32_t *candidates, size_t count, float *probability,
                                       sona_decision *decision);

/* What similar decisions earned, by row: sums of w r and of w, which says how similar. */
typedef struct sona_evidence {
  const float *earned, *seen; /* (rows), >= 0 */
  float prior;                /* > 0: successes of a confident choice that the learner's own expectation counts for */
} sona_evidence;

/* sona_policy_route of a learner that proposes, in place of its own first choice, the arm with the largest
 * (prior pi + earned) / (prior / c + seen) - cost.  decision->own still speaks of its own choice, chance and propensity of what was
 * proposed. Exploration and a disabled policy leave the evidence aside; NULL is none. */
SONA_API sona_status sona_policy_route_beside(sona_policy *policy, const sona_evidence *evidence, const float *x, const int32_t *candidates,
                                              size_t count, float *probability, sona_decision *decision);

/* The first choice of one model, without exploration, recording or learning. */
SONA_API sona_status sona_policy_best(sona_policy *policy, sona_model model, const float *x, const int32_t *candidates, size_t count,
                                      int32_t *arm);

/* What each tier adds to the score of each row: frozen (times trust), base, micro and bias (rows each). */
SONA_API void sona_policy_explain(sona_policy *policy, const float *x, float *frozen, float *base, float *micro, float *bias);

/* p: the reward in [0, 1] that today's weights expect of a decision; nothing is learned.  SONA_EINVAL as in sona_policy_learn. */
SONA_API sona_status sona_policy_expect(sona_policy *policy, const float *x, const int32_t *candidates, size_t count,
                                        const sona_decision *decision, float *expected);

/* The first reward of a decision; weight in (0, 1] scales the step and what the guard makes of it.  SONA_EINVAL when its arm is gone or
 * nothing else was alive then, and for a reward or a weight out of range. */
SONA_API sona_status sona_policy_learn(sona_policy *policy, const float *x, const int32_t *candidates, size_t count,
                                       const sona_decision *decision, float reward, float weight, sona_outcome *outcome, sona_step *step);

/* Another reward for a decision already learned from: takes the old step back exactly while its row still stands, else applies the
 * difference once.  The guard keeps the first reward; the same reward again changes nothing.  SONA_EINVAL as above. */
SONA_API sona_status sona_policy_revise(sona_policy *policy, const float *x, const int32_t *candidates, size_t count,
                                        const sona_decision *decision, float reward, sona_outcome *outcome, sona_step *step);

/* c: what a confident choice earns, the success rate of the best arm or of all choices, whichever is higher; in [0, 1]. */
SONA_API float sona_policy_confidence(const sona_policy *policy);

/* ---- state ---- */

/* R and Q of one arm, and how often it was the own choice. */
SONA_API void sona_policy_get_calibration(const sona_policy *policy, int32_t row, double *rewarded, double *shown, uint64_t *choices);
SONA_API void sona_policy_set_calibration(sona_policy *policy, int32_t row, double rewarded, double shown, uint64_t choices);

typedef struct sona_policy_state {
  sona_guard guard;
  sona_trust trust;
  uint64_t random[4];
  uint64_t requests, refreshed; /* decisions so far, and when the anchor was last refreshed */
  double loss[2];               /* L of the policy itself and of its partner */
} sona_policy_state;

SONA_API sona_policy_state sona_policy_get_state(const sona_policy *policy);
SONA_API void sona_policy_set_state(sona_policy *policy, sona_policy_state state);

/* The older copies: 0 is the anchor, 1 the one that becomes the anchor next.  The view is valid until the next learning call. */
SONA_API sona_lora sona_policy_copy(const sona_policy *policy, int which);
SONA_API sona_status sona_policy_set_copy(sona_policy *policy, int which, const float *down, const float *up, size_t ld,
                                          const float *offset, size_t rows);

SONA_API size_t sona_policy_bytes(const sona_policy *policy);

#ifdef __cplusplus
}
#endif
#endif
