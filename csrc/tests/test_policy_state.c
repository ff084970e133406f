/* What a policy tells and takes back: its state goes on in another one, its scores add up, costs count, and what is out of range is refused
 * without a trace. */
#include <stdlib.h>

#include "../src/random.h"
#include "check.h"
#include "sona/policy.h"
#include "sona/rehearse.h"

enum { DIM = 8, ARMS = 20 };

typedef struct learner {
  sona_adapter *adapter;
  sona_instant *instant;
  sona_policy *policy;
} learner;

static sona_random rng;

static void unit(float *x) {
  float square = 0;
  for (size_t i = 0; i < DIM; i++) {
    x[i] = (float)sona_random_normal(&rng);
    square += x[i] * x[i];
  }
  for (size_t i = 0; i < DIM; i++) x[i] /= sqrtf(square);
}

static float vectors[ARMS][DIM];

static learner make(sona_explore explore, const float *cost) {
  learner l = {0};
  const sona_adapter_options a = {.dim = DIM, .rank = 6, .rank_max = 6, .micro = 2, .max_discard = 0.05, .scale = 0.5f};
  const sona_instant_options i = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 0.5f, .precondition = SONA_FULL};
  const sona_policy_options p = {
      .dim = DIM, .tau = 0.1f, .thompson_scale = 1, .off_policy_step = 0.3f, .anchor_every = 20, .seed = 5, .explore = explore, .guard = 1};
  CHECK_EQ(sona_adapter_create(&a, &l.adapter), SONA_OK);
  CHECK_EQ(sona_instant_create(&i, &l.instant), SONA_OK);
  CHECK_EQ(sona_policy_create(&p, l.adapter, l.instant, &l.policy), SONA_OK);
  for (int k = 0; k < ARMS; k++) { /* more than there is room for at first */
    int32_t row = -1;
    CHECK_EQ(sona_policy_add_arm(l.policy, vectors[k], cost ? cost[k] : 0, &row), SONA_OK);
    CHECK_EQ(row, k);
  }
  return l;
}

static void destroy(learner l) {
  sona_policy_destroy(l.policy);
  sona_instant_destroy(l.instant);
  sona_adapter_destroy(l.adapter);
}

/* Arm (k + 1) % 5 is right at vector k of the first five. */
static sona_decision ask(learner *l, int t, float *x, float *probability) {
  sona_decision d = {.arm = -1};
  memcpy(x, vectors[t % 5], DIM * sizeof *x);
  CHECK_EQ(sona_policy_route(l->policy, x, NULL, 0, probability, &d), SONA_OK);
  return d;
}

static void teach(learner *l, int rounds) {
  float x[DIM], probability[ARMS];
  for (int t = 0; t < rounds; t++) {
    sona_outcome outcome;
    const sona_decision d = ask(l, t, x, probability);
    CHECK_EQ(sona_policy_learn(l->policy, x, NULL, 0, &d, d.arm == (t % 5 + 1) % 5, 1, &outcome, NULL), SONA_OK);
  }
}

static void test_a_state_goes_on_in_another_policy(void) {
  learner from = make(SONA_GREEDY, NULL), to = make(SONA_GREEDY, NULL);
  teach(&from, 300);
  const sona_lora w = sona_adapter_view(from.adapter);
  const sona_adapter_info info = sona_adapter_describe(from.adapter);
  CHECK_EQ(sona_adapter_assign(to.adapter, w.down, w.up, w.ld, w.offset, info.base, info.total), SONA_OK);
  for (int which = 0; which < 2; which++) {
    const sona_lora c = sona_policy_copy(from.policy, which);
    CHECK(c.rank > 0);
    CHECK_EQ(sona_policy_set_copy(to.policy, which, c.down, c.up, c.ld, c.offset, c.rank), SONA_OK);
  }
  for (int32_t row = 0; row < ARMS; row++) {
    double rewarded, shown, again[2];
    uint64_t choices, same;
    sona_policy_get_calibration(from.policy, row, &rewarded, &shown, &choices);
    sona_policy_set_calibration(to.policy, row, rewarded, shown, choices);
    sona_policy_get_calibration(to.policy, row, &again[0], &again[1], &same);
    CHECK(again[0] == rewarded && again[1] == shown && same == choices);
  }
  sona_policy_set_state(to.policy, sona_policy_get_state(from.policy));
  sona_instant_set_calibration(to.instant, sona_instant_calibration(from.instant));
  size_t side, ld;
  const float *covariance = sona_instant_covariance(from.instant, &side, &ld);
  memcpy(sona_instant_covariance(to.instant, &side, &ld), covariance, side * ld * sizeof *covariance);
  double count, square, count_then, square_then;
  const float *const mean = sona_instant_inputs(from.instant, &count, &square), nan[DIM] = {NAN};
  CHECK_EQ(sona_instant_set_inputs(to.instant, mean, count, square), SONA_OK);
  CHECK_EQ(sona_instant_set_inputs(to.instant, nan, count, square), SONA_ENONFINITE);
  CHECK_EQ(sona_instant_set_inputs(to.instant, mean, 1001, square), SONA_EINVAL);
  CHECK_EQ(sona_instant_set_inputs(to.instant, mean, count, -1), SONA_EINVAL);
  CHECK(memcmp(sona_instant_inputs(to.instant, &count_then, &square_then), mean, DIM * sizeof *mean) == 0);
  CHECK(count > 0 && count_then == count && square_then == square);
  CHECK(sona_policy_confidence(to.policy) == sona_policy_confidence(from.policy));
  for (int t = 0; t < 60; t++) {
    float x[DIM], p[2][ARMS];
    sona_outcome o[2];
    const sona_decision a = ask(&from, t, x, p[0]), b = ask(&to, t, x, p[1]);
    CHECK_EQ(a.arm, b.arm);
    CHECK(memcmp(p[0], p[1], sizeof p[0]) == 0);
    const float reward = (float)(t % 3 == 0);
    CHECK_EQ(sona_policy_learn(from.policy, x, NULL, 0, &a, reward, 1, &o[0], NULL), SONA_OK);
    CHECK_EQ(sona_policy_learn(to.policy, x, NULL, 0, &b, reward, 1, &o[1], NULL), SONA_OK);
    CHECK(o[0].probability == o[1].probability && o[0].trust == o[1].trust);
  }
  CHECK(sona_policy_bytes(to.policy) > sizeof(sona_policy_state) && sona_instant_bytes(to.instant) > side * ld * sizeof(float));
  destroy(from);
  destroy(to);
}

/* The parts that explain gives, over tau, are the logits whose softmax route gives. */
static void test_what_is_explained_adds_up(void) {
  learner l = make(SONA_GREEDY, NULL);
  teach(&l, 200);
  float x[DIM], probability[ARMS], frozen[ARMS], base[ARMS], micro[ARMS], bias[ARMS];
  const sona_decision d = ask(&l, 1, x, probability);
  sona_policy_explain(l.policy, x, frozen, base, micro, bias);
  double logit[ARMS], sum = 0;
  for (int k = 0; k < ARMS; k++) sum += logit[k] = exp((frozen[k] + base[k] + micro[k] + bias[k]) / 0.1);
  int best = 0;
  for (int k = 0; k < ARMS; k++) {
    CHECK_NEAR(probability[k], logit[k] / sum, 1e-3);
    if (logit[k] > logit[best]) best = k;
  }
  int32_t arm = -1, other = -1;
  CHECK_EQ(sona_policy_best(l.policy, SONA_CURRENT, x, NULL, 0, &arm), SONA_OK);
  CHECK_EQ(arm, best);
  CHECK_EQ(sona_policy_best(l.policy, SONA_FROZEN, x, NULL, 0, &arm), SONA_OK);
  CHECK_EQ(arm, 1); /* the nearest vector is x itself */
  CHECK_EQ(sona_policy_best(l.policy, SONA_ANCHOR, x, NULL, 0, &arm), SONA_OK);
  const int32_t some[] = {7, 3}, gone[] = {ARMS};
  CHECK_EQ(sona_policy_best(l.policy, SONA_CURRENT, x, some, 2, &other), SONA_OK);
  CHECK(other == 7 || other == 3);
  CHECK_EQ(sona_policy_best(l.policy, SONA_CURRENT, x, gone, 1, &other), SONA_EINVAL);
  float expected = -1;
  CHECK_EQ(sona_policy_expect(l.policy, x, NULL, 0, &d, &expected), SONA_OK);
  CHECK_NEAR(expected, sona_policy_confidence(l.policy) * probability[d.arm], 1e-6);
  sona_decision unknown = d;
  unknown.arm = ARMS;
  CHECK_EQ(sona_policy_expect(l.policy, x, NULL, 0, &unknown, &expected), SONA_EINVAL);
  destroy(l);
}

/* An arm that costs more than any reward is not served, however near it is; the others are. */
static void test_costs_count(sona_explore explore) {
  float cost[ARMS] = {[2] = 2};
  learner l = make(explore, cost);
  CHECK_NEAR(sona_policy_cost(l.policy, 2), 2, 0);
  CHECK(memcmp(sona_policy_vector(l.policy, 2), vectors[2], sizeof vectors[2]) == 0);
  for (int t = 0; t < 200; t++) {
    float x[DIM], probability[ARMS];
    const sona_decision d = ask(&l, 2, x, probability);
    if (explore == SONA_SOFTMAX) CHECK(d.arm != 2);
    if (explore == SONA_GREEDY && d.own) CHECK(d.arm != 2);
    CHECK(explore == SONA_THOMPSON ? isnan(d.propensity) || d.propensity > 0 : d.propensity > 0 && d.propensity <= 1);
  }
  destroy(l);
}

static void test_what_is_out_of_range_changes_nothing(void) {
  learner l = make(SONA_GREEDY, NULL);
  const sona_instant_options identity = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f};
  sona_instant *step = NULL;
  CHECK_EQ(sona_instant_create(&identity, &step), SONA_OK);
  teach(&l, 30);
  float x[DIM], probability[ARMS];
  sona_decision d = ask(&l, 0, x, probability);
  sona_outcome outcome = {.reward = 0.5f, .probability = 0.5f, .weight = 1};
  const sona_outcome given = outcome;
  const sona_adapter_info before = sona_adapter_describe(l.adapter);
  const float confidence = sona_policy_confidence(l.policy);
  const struct {
    float reward, weight;
    sona_status status;
  } bad[] = {{NAN, 1, SONA_ENONFINITE}, {INFINITY, 1, SONA_ENONFINITE}, {-0.1f, 1, SONA_EINVAL}, {1.1f, 1, SONA_EINVAL},
             {1, 0, SONA_EINVAL},       {1, -1, SONA_EINVAL},           {1, 1.01f, SONA_EINVAL}, {1, NAN, SONA_EINVAL}};
  for (int own = 0; own < 2; own++) { /* the weight of what the learner would not have chosen is smaller, not its range wider */
    d.own = (uint8_t)own;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
      CHECK_EQ(sona_policy_learn(l.policy, x, NULL, 0, &d, bad[i].reward, bad[i].weight, &outcome, NULL), bad[i].status);
      CHECK_EQ(sona_policy_rehearse(l.policy, step, x, NULL, 0, &d, bad[i].reward, bad[i].weight), bad[i].status);
      if (bad[i].weight == 1) CHECK_EQ(sona_policy_revise(l.policy, x, NULL, 0, &d, bad[i].reward, &outcome, NULL), bad[i].status);
    }
  }
  CHECK_EQ(sona_policy_remove_arm(l.policy, d.arm), SONA_OK);
  CHECK_EQ(sona_policy_remove_arm(l.policy, d.arm), SONA_EINVAL);
  CHECK_EQ(sona_policy_remove_arm(l.policy, -1), SONA_EINVAL);
  CHECK(!sona_policy_knew(l.policy, d.arm, d.version) && !sona_policy_alive(l.policy, ARMS));
  CHECK_EQ(sona_policy_learn(l.policy, x, NULL, 0, &d, 1, 1, &outcome, NULL), SONA_EINVAL);
  CHECK_EQ(sona_policy_revise(l.policy, x, NULL, 0, &d, 1, &outcome, NULL), SONA_EINVAL);
  CHECK_EQ(sona_policy_rehearse(l.policy, step, x, NULL, 0, &d, 1, 1), SONA_EINVAL);
  CHECK_EQ(sona_policy_route(l.policy, x, &d.arm, 1, probability, &d), SONA_EINVAL);
  CHECK(memcmp(&outcome, &given, sizeof given) == 0);
  CHECK_EQ(sona_adapter_describe(l.adapter).total, before.total);
  CHECK_NEAR(sona_policy_confidence(l.policy), confidence, 0.05); /* over the arms that are left */
  float bad_vector[DIM] = {NAN};
  int32_t row = -5;
  CHECK_EQ(sona_policy_add_arm(l.policy, bad_vector, 0, &row), SONA_ENONFINITE);
  CHECK_EQ(sona_policy_add_arm(l.policy, vectors[0], INFINITY, &row), SONA_ENONFINITE);
  CHECK_EQ(row, -5);
  CHECK_EQ(sona_policy_add_arm(l.policy, vectors[0], 0, &row), SONA_OK); /* into the gap */
  CHECK_EQ(row, d.arm);
  sona_instant_destroy(step);
  destroy(l);
}

static void test_bad_options(void) {
  learner l = make(SONA_GREEDY, NULL);
  const sona_policy_options good = {.dim = DIM, .tau = 0.1f, .off_policy_step = 0.3f};
  sona_policy_options bad[9];
  for (size_t i = 0; i < 9; i++) bad[i] = good;
  bad[0].dim = DIM + 1;
  bad[1].tau = 0;
  bad[2].tau = INFINITY;
  bad[3].thompson_scale = -1;
  bad[4].off_policy_step = 0;
  bad[5].off_policy_step = 1.5f;
  bad[6].odds = -1;
  bad[7].explore = (sona_explore)9;
  bad[8].odds = NAN;
  sona_policy *p = NULL;
  for (size_t i = 0; i < 9; i++) CHECK_EQ(sona_policy_create(&bad[i], l.adapter, l.instant, &p), SONA_EINVAL);
  CHECK_EQ(sona_policy_create(&good, NULL, l.instant, &p), SONA_EINVAL);
  CHECK_EQ(sona_policy_create(&good, l.adapter, NULL, &p), SONA_EINVAL);
  CHECK(p == NULL);
  const sona_instant_options fine = {.dim = DIM, .p0 = 0.2f, .precision_scale = 1, .precondition = SONA_FULL};
  sona_instant_options wrong[6];
  for (size_t i = 0; i < 6; i++) wrong[i] = fine;
  wrong[0].dim = 0;
  wrong[1].p0 = 0;
  wrong[2].p0 = INFINITY;
  wrong[3].constant = -1;
  wrong[4].constant = NAN;
  wrong[5].precision_scale = 0;
  sona_instant *instant = NULL;
  for (size_t i = 0; i < 6; i++) CHECK_EQ(sona_instant_create(&wrong[i], &instant), SONA_EINVAL);
  CHECK(instant == NULL);
  sona_pending *pending = NULL;
  CHECK_EQ(sona_pending_create(0, DIM, 0, &pending), SONA_EINVAL);
  CHECK_EQ(sona_pending_create(4, 0, 0, &pending), SONA_EINVAL);
  CHECK_EQ(sona_pending_create(4, DIM, 1, &pending), SONA_EINVAL); /* not even one */
  CHECK_EQ(sona_pending_create(UINT32_MAX, UINT32_MAX, 0, &pending), SONA_ENOMEM);
  CHECK(pending == NULL);
  CHECK_EQ(sona_pending_create(4, DIM, 4096, &pending), SONA_OK);
  CHECK(sona_pending_put(pending, 1, 4096) == NULL && sona_pending_bytes(pending) > 4096);
  sona_pending_destroy(pending);
  destroy(l);
}

/* Without a probability the mean of the rewards stands for what was expected: a reward like the others teaches little. */
static void test_a_step_without_a_probability(void) {
  learner l = make(SONA_GREEDY, NULL);
  float x[DIM], v[DIM], nan_vector[DIM] = {NAN};
  sona_step step = {0}, last = {0};
  unit(x);
  unit(v);
  for (int t = 0; t < 400; t++) CHECK_EQ(sona_instant_step(l.instant, l.adapter, x, v, NAN, 0, 1, 1, 0, &step), SONA_OK);
  CHECK(step.confidence == 1 && step.expected > 0.99f && fabs(step.surprise) < 0.01);
  CHECK_EQ(sona_instant_revise(l.instant, l.adapter, x, v, NAN, 0, -1, 1, &last), SONA_OK);
  CHECK(last.surprise == -1 && last.gain < 0);
  CHECK_EQ(sona_instant_revise(l.instant, l.adapter, x, v, NAN, 0, NAN, 1, NULL), SONA_ENONFINITE);
  CHECK_EQ(sona_instant_revise(l.instant, l.adapter, x, v, NAN, 0, 1.5f, 1, NULL), SONA_EINVAL);
  CHECK_EQ(sona_instant_revise(l.instant, l.adapter, nan_vector, v, NAN, 0, 1, 1, NULL), SONA_ENONFINITE);
  CHECK_EQ(sona_instant_step(l.instant, l.adapter, x, nan_vector, 0.5f, 0, 1, 1, 0, NULL), SONA_ENONFINITE);
  CHECK_EQ(sona_instant_step(l.instant, l.adapter, x, v, 1.5f, 0, 1, 1, 0, NULL), SONA_EINVAL);
  CHECK_EQ(sona_instant_step(l.instant, l.adapter, x, v, 0.5f, 2, 1, 1, 0, NULL), SONA_EINVAL);
  CHECK_EQ(sona_instant_step(l.instant, l.adapter, x, v, 0.5f, 0, 1, 2, 0, NULL), SONA_EINVAL);
  const sona_calibration calibration = sona_instant_calibration(l.instant);
  const sona_adapter_info learned = sona_adapter_describe(l.adapter);
  static const float no_rewards[] = {NAN, INFINITY, -INFINITY, -0.01f, 1.01f};
  for (size_t i = 0; i < sizeof no_rewards / sizeof *no_rewards; i++)
    CHECK_EQ(sona_instant_step(l.instant, l.adapter, x, v, 0.5f, 0, no_rewards[i], 1, 0, NULL), i < 3 ? SONA_ENONFINITE : SONA_EINVAL);
  const sona_calibration still = sona_instant_calibration(l.instant);
  CHECK(still.rewarded == calibration.rewarded && still.shown == calibration.shown && still.steps == calibration.steps);
  CHECK_EQ(sona_adapter_describe(l.adapter).total, learned.total);
  const float variance = sona_instant_variance(l.instant, x);
  sona_instant_soften(l.instant, 0); /* all is forgotten */
  CHECK(sona_instant_variance(l.instant, x) > variance);
  const sona_calibration before = sona_instant_calibration(l.instant);
  sona_instant_recalibrate(l.instant, NAN, 1, 0);
  sona_instant_recalibrate(l.instant, 0.5f, 1, before.steps + 1); /* of the future */
  CHECK(sona_instant_calibration(l.instant).rewarded == before.rewarded);
  destroy(l);
}

int main(void) {
  sona_random_seed(&rng, 3);
  for (int k = 0; k < ARMS; k++) unit(vectors[k]);
  test_a_state_goes_on_in_another_policy();
  test_what_is_explained_adds_up();
  test_costs_count(SONA_GREEDY);
  test_costs_count(SONA_SOFTMAX);
  test_costs_count(SONA_THOMPSON);
  test_what_is_out_of_range_changes_nothing();
  test_bad_options();
  test_a_step_without_a_probability();
  return check_done("policy_state");
}
