/* A policy with all that stands beside it: arms come and go, requests and rewards arrive in any order and for decisions of any age, with a
 * rival, a partner, rehearsal and a restored state.  Numbers stay numbers: what is served is a probability, what is learned is finite. */
#include "fuzz.h"
#include "sona/pending.h"
#include "sona/rehearse.h"

enum { DIM = 4, KEPT = 8, MOST_ARMS = 24 };

typedef struct learner {
  sona_adapter *adapter;
  sona_instant *instant;
  sona_policy *policy;
} learner;

static learner make(input *in) {
  learner l = {0};
  const sona_kernels *kernels = sona_kernels_at(choose(in, sona_kernels_count()));
  const sona_adapter_options a = {.dim = DIM,
                                  .rank = 1 + choose(in, 3),
                                  .rank_max = 3 + choose(in, 3),
                                  .micro = 1 + choose(in, 2),
                                  .max_discard = 0.05,
                                  .scale = 1,
                                  .kernels = kernels};
  const sona_instant_options i = {.dim = DIM,
                                  .p0 = 0.2f,
                                  .constant = choose(in, 2) ? 0.3f : 0,
                                  .precision_scale = 0.5f,
                                  .precondition = choose(in, 2) ? SONA_FULL : SONA_IDENTITY,
                                  .kernels = kernels};
  const sona_policy_options p = {.dim = DIM,
                                 .tau = choose(in, 2) ? 0.1f : 0.01f,
                                 .thompson_scale = (float)choose(in, 3),
                                 .off_policy_step = 0.3f,
                                 .anchor_every = choose(in, 4),
                                 .seed = take(in, 1),
                                 .explore = (sona_explore)choose(in, 3),
                                 .guard = (int)choose(in, 2),
                                 .odds = (float)choose(in, 3),
                                 .kernels = kernels};
  PROMISE(sona_adapter_create(&a, &l.adapter) == SONA_OK);
  PROMISE(sona_instant_create(&i, &l.instant) == SONA_OK);
  PROMISE(sona_policy_create(&p, l.adapter, l.instant, &l.policy) == SONA_OK);
  return l;
}

static void destroy(learner l) {
  sona_policy_destroy(l.policy);
  sona_instant_destroy(l.instant);
  sona_adapter_destroy(l.adapter);
}

static void check_probabilities(const float *probability, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; i++) {
    PROMISE(probability[i] >= 0 && probability[i] <= 1.0001f);
    sum += probability[i];
  }
  PROMISE(fabs(sum - 1) < 1e-3);
}

static void check_calibration(const learner *l) {
  const float c = sona_policy_confidence(l->policy);
  PROMISE(c >= 0 && c <= 1);
  const sona_policy_state state = sona_policy_get_state(l->policy);
  PROMISE(state.trust.value >= 0.05 && state.trust.value <= 1 && state.trust.variance > 0);
  for (int k = 0; k < SONA_GUARD_MODELS; k++) PROMISE(isfinite(state.guard.log_weight[k]));
  const double own = sona_policy_own_share(l->policy);
  PROMISE(own >= 0 && own <= 1);
}

static void run(input *in) {
  learner l = make(in), other = make(in);
  const sona_instant_options identity = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 0.5f};
  sona_rehearsal rehearsal = {.rows = choose(in, 3), .window = 1 + choose(in, 8), .strength = 1};
  sona_pending *pending = NULL;
  PROMISE(sona_instant_create(&identity, &rehearsal.step) == SONA_OK);
  PROMISE(sona_pending_create(KEPT, DIM, 64 * choose(in, 40), &pending) == SONA_OK || !pending);
  if (!pending) PROMISE(sona_pending_create(KEPT, DIM, 0, &pending) == SONA_OK);
  uint64_t id = 0;
  for (int steps = 0; in->left && steps < 300; steps++) {
    float x[DIM], vector[DIM], probability[4 * MOST_ARMS], parts[4][MOST_ARMS], expected;
    int32_t candidates[MOST_ARMS], row = -7;
    const size_t rows = sona_policy_rows(l.policy);
    sona_status status;
    sona_decision decision;
    sona_record *record = sona_pending_get(pending, id - choose(in, KEPT));
    switch (choose(in, 16)) {
      case 0: {
        take_floats(in, vector, DIM);
        const float cost = choose(in, 4) ? 0 : take_float(in);
        if (rows == MOST_ARMS) break;
        status = sona_policy_add_arm(l.policy, vector, cost, &row);
        PROMISE(status == SONA_OK ? sona_policy_alive(l.policy, row) : status == SONA_ENONFINITE && row == -7);
        break;
      }
      case 1: {
        const int32_t gone = (int32_t)choose(in, MOST_ARMS) - 2;
        const int alive = sona_policy_alive(l.policy, gone);
        PROMISE(sona_policy_remove_arm(l.policy, gone) == (alive ? SONA_OK : SONA_EINVAL));
        PROMISE(!sona_policy_alive(l.policy, gone));
        break;
      }
      case 2:
      case 3:
      case 4: {
        take_unit(in, x, DIM);
        const size_t count = choose(in, 3) ? 0 : 1 + choose(in, MOST_ARMS - 1);
        for (size_t i = 0; i < count; i++) candidates[i] = (int32_t)choose(in, MOST_ARMS + 2) - 1;
        float earned[MOST_ARMS], seen[MOST_ARMS];
        for (size_t i = 0; i < MOST_ARMS; i++) seen[i] = 2 * (earned[i] = (float)(i % 3));
        const sona_evidence evidence = {earned, seen, 1};
        const int beside = choose(in, 4) == 0;
        status = sona_policy_route_beside(l.policy, beside ? &evidence : NULL, x, count ? candidates : NULL, count, probability, &decision);
        PROMISE(status == SONA_OK || status == SONA_EINVAL || status == SONA_ENONFINITE);
        if (status != SONA_OK) break;
        check_probabilities(probability, count ? count : rows);
        PROMISE(sona_policy_alive(l.policy, decision.arm));
        PROMISE(isnan(decision.propensity) || (decision.propensity >= 0 && decision.propensity <= 1.0001f));
        record = sona_pending_put(pending, ++id, (uint32_t)count);
        if (!record) break;
        memcpy(record->x, x, sizeof x);
        if (count) memcpy(sona_record_candidates(record), candidates, count * sizeof *candidates);
        record->decision = decision;
        PROMISE(sona_pending_get(pending, id) == record);
        break;
      }
      case 5:
      case 6:
      case 7: {
        if (!record) break;
        const float reward = take_float(in), weight = choose(in, 2) ? 1 : take_float(in);
        const int fits = reward >= 0 && reward <= 1 && weight > 0 && weight <= 1;
        if (record->learned)
          status = sona_policy_revise(l.policy, record->x, sona_record_candidates(record), record->count, &record->decision, reward,
                                      &record->outcome, NULL);
        else
          status = sona_policy_learn(l.policy, record->x, sona_record_candidates(record), record->count, &record->decision, reward, weight,
                                     &record->outcome, NULL);
        PROMISE(status == SONA_OK || status == SONA_EINVAL || status == SONA_ENONFINITE);
        if (!record->learned && !fits) PROMISE(status != SONA_OK);
        if (status == SONA_OK) record->learned = 1;
        break;
      }
      case 8: {
        if (!record) break;
        status = sona_policy_expect(l.policy, record->x, sona_record_candidates(record), record->count, &record->decision, &expected);
        PROMISE(status != SONA_OK || (expected >= 0 && expected <= 1.0001f));
        break;
      }
      case 9:
        if (id) (void)sona_rehearse(&rehearsal, pending, l.policy, id > KEPT ? id - KEPT : 1, id);
        break;
      case 10: {
        status = choose(in, 2) ? sona_policy_set_rival(l.policy, other.policy, 0.3f, 1) : sona_policy_set_rival(l.policy, NULL, 0.3f, 1);
        PROMISE(status == SONA_OK || status == SONA_EINVAL);
        break;
      }
      case 11: {
        status = sona_policy_set_partner(l.policy, choose(in, 2) ? other.policy : NULL);
        PROMISE(status == SONA_OK || status == SONA_EINVAL);
        break;
      }
      case 12:
        if (choose(in, 2)) {
          (void)sona_policy_set_rival(l.policy, NULL, 0.3f, 1);
          (void)sona_policy_set_partner(l.policy, NULL);
          PROMISE(sona_policy_take_arms(other.policy, l.policy) == SONA_OK);
        } else {
          sona_policy_set_enabled(l.policy, (int)choose(in, 2));
        }
        break;
      case 13: {
        take_unit(in, x, DIM);
        if (rows) sona_policy_explain(l.policy, x, parts[0], parts[1], parts[2], parts[3]);
        status = sona_policy_best(l.policy, (sona_model)choose(in, 3), x, NULL, 0, &row);
        PROMISE(status == SONA_OK ? sona_policy_alive(l.policy, row) : row == -7);
        break;
      }
      case 14: {
        const sona_lora w = sona_adapter_view(l.adapter);
        PROMISE(sona_policy_set_copy(l.policy, (int)choose(in, 2), w.down, w.up, w.ld, w.offset, w.rank) == SONA_OK);
        sona_policy_set_state(l.policy, sona_policy_get_state(l.policy));
        break;
      }
      case 15: {
        if (choose(in, 2)) {
          sona_instant_soften(l.instant, (float)choose(in, 3) / 2);
        } else {
          PROMISE(sona_adapter_truncate(l.adapter) == SONA_OK);
        }
        break;
      }
    }
    check_calibration(&l);
  }
  destroy(l);
  destroy(other);
  sona_instant_destroy(rehearsal.step);
  sona_pending_destroy(pending);
}
