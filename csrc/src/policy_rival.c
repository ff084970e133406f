#include <math.h>

#include "policy_internal.h"

static int comparable(const sona_policy *p) { return p->rival && p->rival->version == p->version; }

sona_status sona_policy_set_rival(sona_policy *p, sona_policy *rival, float share, uint8_t trial) {
  if (!rival) {
    p->rival = NULL;
    p->trial = 0;
    return SONA_OK;
  }
  if (rival == p || rival->rival || rival->o.dim != p->o.dim || rival->arms != p->arms || rival->version != p->version) return SONA_EINVAL;
  if (!(share > 0 && share < 1) || !trial) return SONA_EINVAL;
  for (size_t i = 0; i < p->arms; i++)
    if (rival->born[i] != p->born[i] || rival->died[i] != p->died[i]) return SONA_EINVAL;
  p->rival = rival;
  p->rival_share = share;
  p->trial = trial;
  return SONA_OK;
}

int64_t sona_policy_rival_choice(sona_policy *p, const float *x, const int32_t *candidates, size_t count) {
  int32_t row;
  if (p->disabled || !comparable(p) || sona_policy_best(p->rival, SONA_CURRENT, x, candidates, count, &row)) return -1;
  if (!candidates) return row;
  for (size_t i = 0; i < count; i++)
    if (candidates[i] == row) return (int64_t)i;
  return -1;
}

/* Whether the rival would have served this arm: known for decisions of this trial, else what it would do today. */
static int rival_own(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d) {
  int32_t row;
  if (d->trial == p->trial) return (d->rival & SONA_RIVAL_CHOICE) != 0;
  return !sona_policy_best(p->rival, SONA_CURRENT, x, candidates, count, &row) && row == d->arm;
}

void sona_policy_teach_rival(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d, float reward,
                             float weight) {
  if (!comparable(p)) return;
  sona_decision theirs = *d;
  sona_outcome outcome;
  sona_step step;
  theirs.own = (uint8_t)rival_own(p, x, candidates, count, d);
  (void)sona_policy_learn(p->rival, x, candidates, count, &theirs, reward, weight, &outcome, &step); /* what it cannot learn, it misses */
}

void sona_policy_correct_rival(sona_policy *p, const float *x, const int32_t *candidates, size_t count, const sona_decision *d,
                               float reward, const sona_outcome *before) {
  if (!comparable(p)) return;
  const float full = d->own ? before->weight : before->weight / p->o.off_policy_step;
  sona_outcome outcome = {
      .reward = before->reward,
      .probability = NAN, /* not remembered: only the difference of the rewards is applied */
      .weight = rival_own(p, x, candidates, count, d) ? full : full * p->rival->o.off_policy_step,
  };
  sona_step step;
  (void)sona_policy_revise(p->rival, x, candidates, count, d, reward, &outcome, &step);
}
