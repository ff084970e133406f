/* Trust: how far the frozen model's own scores count, learned from the rewards of a policy that corrects them.
 *
 * The policy's logits are  l = trust f + correction,  f being the frozen model's.  A frozen model may be wrong and certain: then pi is near
 * 1, every step of the correction is proportional to the doubt 1 - pi that is left, and nothing is ever unlearned.  One factor common to
 * all requests needs few failures to fall, and then the doubt is back everywhere.
 *
 *   m = log(pi_a / (1 - pi_a)),  g = f_a - sum_{k != a} pi_k f_k / (1 - pi_a)     margins of the shown action over the rest: l's and f's
 *   D = c V g^2,  k = 1 / sqrt(1 + pi D / 8),  s = 1 / (1 + exp(-k m))            its success, averaged over the doubt about trust
 *   trust += c V g k [ r (1 - s) - (1 - r) c s (1 - s) / (1 - c s) ]              clipped to [0.05, 1]
 *   V     -= (V g)^2 h / (1 + h D),  V >= 0.003                                    h: minus the second derivative of the log-likelihood
 *
 * which is assumed-density filtering (Opper 1998) of a Bernoulli reward of probability c sigmoid(m), with MacKay's approximation (1992) of
 * the averaged sigmoid.  c is what a confident choice earns.
 *
 * A plain struct without allocation; one thread at a time. */
#ifndef SONA_TRUST_H
#define SONA_TRUST_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sona_trust {
  double value;     /* in [0.05, 1]; 1 at the start */
  double variance;  /* V */
  int64_t barren;   /* own choices since the start or the last doubt, all without a reward; -1 once there was one */
  int64_t patience; /* so many of them raise the next doubt */
} sona_trust;

SONA_API void sona_trust_init(sona_trust *trust);

/* margin: m; frozen: g; confidence: c in [0, 1]; reward in [0, 1]; weight in (0, 1] scales the step. */
SONA_API void sona_trust_update(sona_trust *trust, double margin, double frozen, double confidence, double reward, double weight);

/* Takes back what an update changed: `value` and `variance` are what it added to them. */
SONA_API void sona_trust_take_back(sona_trust *trust, double value, double variance);

/* Counts an own choice of the policy.  Nonzero when none has ever been rewarded and the patience of 64, 128, 256, ... choices is over: c
 * has fallen to zero by then and explains every failure, so the caller starts c anew; the doubt about trust has been raised here. */
SONA_API int sona_trust_barren(sona_trust *trust, double reward);

#ifdef __cplusplus
}
#endif
#endif
