#include "sona/rehearse.h"

#include <math.h>

/* splitmix64 (Steele, Lea and Flood 2014) */
static uint64_t next(uint64_t *state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

size_t sona_rehearse(sona_rehearsal *r, sona_pending *pending, sona_policy *policy, uint64_t oldest, uint64_t newest) {
  const float reliable = fmaxf(2 * sona_policy_confidence(policy) - 1, 0), weight = r->strength * reliable * reliable;
  if (!(weight > 0) || newest < oldest) return 0;
  const uint64_t count = newest - oldest + 1, among = r->window < count ? r->window : count;
  size_t learned = 0;
  for (size_t i = 0; i < r->rows && among; i++) {
    sona_record *record = sona_pending_get(pending, newest - next(&r->random) % among);
    if (!record || !record->learned) continue;
    learned += !sona_policy_rehearse(policy, r->step, record->x, sona_record_candidates(record), record->count, &record->decision,
                                     record->outcome.reward, weight);
  }
  return learned;
}
