/* The policy as an embedder meets it: it learns which arm is right, its propensities are what happens, and it does not allocate. */
#include "../src/random.h"
#include "check.h"
#include "sona/pending.h"
#include "sona/policy.h"
#include "sona/rehearse.h"

enum { DIM = 24, ARMS = 5 };

typedef struct setup {
  sona_adapter *adapter;
  sona_instant *instant;
  sona_policy *policy;
} setup;

static sona_random rng;

static void unit(float *x) {
  float square = 0;
  for (size_t i = 0; i < DIM; i++) {
    x[i] = (float)sona_random_normal(&rng);
    square += x[i] * x[i];
  }
  for (size_t i = 0; i < DIM; i++) x[i] /= sqrtf(square);
}

static setup make(sona_explore explore, int guard, sona_precondition precondition) {
  setup s = {0};
  const sona_adapter_options a = {DIM, ARMS - 1, 16, 2, 0, 0.05, 1, NULL};
  const sona_instant_options i = {DIM, 0.2f, 0.3f, 3.0f / ARMS, precondition, NULL};
  const sona_policy_options p = {DIM, 0.1f, 0.3f, 0.3f, 500, 11, explore, guard, 2, NULL};
  CHECK_EQ(sona_adapter_create(&a, &s.adapter), SONA_OK);
  CHECK_EQ(sona_instant_create(&i, &s.instant), SONA_OK);
  CHECK_EQ(sona_policy_create(&p, s.adapter, s.instant, &s.policy), SONA_OK);
  for (int k = 0; k < ARMS; k++) {
    float e[DIM];
    int32_t row = -1;
    unit(e);
    CHECK_EQ(sona_policy_add_arm(s.policy, e, 0, &row), SONA_OK);
    CHECK_EQ(row, k);
  }
  return s;
}

static void destroy(setup s) {
  sona_policy_destroy(s.policy);
  sona_instant_destroy(s.instant);
  sona_adapter_destroy(s.adapter);
}

/* Contexts come in ARMS clusters; cluster k wants arm (k + 1) % ARMS, whatever the vectors say. */
static void test_learns(sona_precondition precondition) {
  setup s = make(SONA_GREEDY, 0, precondition);
  float centre[ARMS][DIM], x[DIM], probability[ARMS];
  int right = 0;
  uint64_t before = 0;
  for (int k = 0; k < ARMS; k++) unit(centre[k]);
  for (int t = 0; t < 1500; t++) {
    const int k = (int)(sona_random_uniform(&rng) * ARMS);
    float noise[DIM], square = 0;
    unit(noise);
    for (size_t i = 0; i < DIM; i++) {
      x[i] = centre[k][i] + 0.3f * noise[i];
      square += x[i] * x[i];
    }
    for (size_t i = 0; i < DIM; i++) x[i] /= sqrtf(square);
    sona_decision d;
    sona_outcome o;
    CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability, &d), SONA_OK);
    CHECK_NEAR(d.propensity, 1, 0);
    const float reward = d.arm == (k + 1) % ARMS;
    CHECK_EQ(sona_policy_learn(s.policy, x, NULL, 0, &d, reward, 1, &o, NULL), SONA_OK);
    if (t >= 1000) right += reward > 0;
    if (t == 999) before = sona_allocations();
  }
  CHECK(right > 480);
  CHECK_EQ(sona_allocations(), before);
  destroy(s);
}

/* Over many draws at one x the share of each arm is its logged propensity. */
static void test_propensity(sona_explore explore, int guard) {
  setup s = make(explore, guard, SONA_FULL);
  float x[DIM], probability[ARMS];
  int counts[ARMS] = {0};
  double propensity[ARMS] = {0};
  unit(x);
  for (int t = 0; t < 300; t++) { /* learn something, so that the models differ */
    float z[DIM];
    sona_decision d;
    sona_outcome o;
    unit(z);
    CHECK_EQ(sona_policy_route(s.policy, z, NULL, 0, probability, &d), SONA_OK);
    CHECK_EQ(sona_policy_learn(s.policy, z, NULL, 0, &d, d.arm == 2, 1, &o, NULL), SONA_OK);
  }
  enum { DRAWS = 40000 };
  for (int t = 0; t < DRAWS; t++) {
    sona_decision d;
    CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability, &d), SONA_OK);
    counts[d.arm]++;
    propensity[d.arm] = d.propensity;
  }
  double sum = 0;
  for (int k = 0; k < ARMS; k++) {
    sum += probability[k];
    CHECK_NEAR((double)counts[k] / DRAWS, propensity[k], 5 * sqrt(propensity[k] * (1 - propensity[k]) / DRAWS) + 1e-3);
  }
  CHECK_NEAR(sum, 1, 1e-5);
  destroy(s);
}

/* A reward that is corrected leaves what the right one would have left, step for step. */
static void test_revision(void) {
  float x[DIM], probability[2][ARMS];
  sona_decision d;
  sona_outcome o;
  for (int which = 0; which < 2; which++) {
    sona_random_seed(&rng, 21);
    setup s = make(SONA_GREEDY, 0, SONA_IDENTITY);
    unit(x);
    CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability[which], &d), SONA_OK);
    CHECK_EQ(sona_policy_learn(s.policy, x, NULL, 0, &d, (float)which, 1, &o, NULL), SONA_OK);
    if (!which) {
      CHECK_EQ(sona_policy_revise(s.policy, x, NULL, 0, &d, 0.25f, &o, NULL), SONA_OK);
      CHECK_EQ(sona_policy_revise(s.policy, x, NULL, 0, &d, 1, &o, NULL), SONA_OK);
      CHECK_EQ(sona_adapter_describe(s.adapter).total, 5); /* step, its negation, step, its negation, step */
    }
    CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability[which], &d), SONA_OK);
    destroy(s);
  }
  for (int k = 0; k < ARMS; k++) CHECK_NEAR(probability[0][k], probability[1][k], 1e-5);
}

static void test_arms(void) {
  setup s = make(SONA_GREEDY, 1, SONA_FULL);
  float x[DIM], e[DIM], probability[ARMS + 1];
  int32_t row;
  unit(x);
  sona_decision old, d;
  sona_outcome o;
  CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability, &old), SONA_OK);
  CHECK_EQ(sona_policy_remove_arm(s.policy, old.arm), SONA_OK);
  CHECK_EQ(sona_policy_remove_arm(s.policy, old.arm), SONA_EINVAL);
  CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability, &d), SONA_OK);
  CHECK(d.arm != old.arm);
  CHECK_NEAR(probability[old.arm], 0, 0);
  CHECK_EQ(sona_policy_learn(s.policy, x, NULL, 0, &old, 1, 1, &o, NULL), SONA_EINVAL);
  const int32_t gone[] = {old.arm, d.arm};
  CHECK_EQ(sona_policy_route(s.policy, x, gone, 2, probability, &d), SONA_EINVAL);
  unit(e);
  CHECK_EQ(sona_policy_add_arm(s.policy, e, 0, &row), SONA_OK);
  CHECK_EQ(row, old.arm); /* the gap is taken, and the old decision still does not count for it */
  CHECK_EQ(sona_policy_learn(s.policy, x, NULL, 0, &old, 1, 1, &o, NULL), SONA_EINVAL);
  const int32_t one[] = {row};
  CHECK_EQ(sona_policy_route(s.policy, x, one, 1, probability, &d), SONA_OK);
  CHECK_EQ(d.arm, row);
  CHECK_NEAR(probability[0], 1, 1e-6);
  CHECK_EQ(sona_policy_learn(s.policy, x, one, 1, &d, 1, 1, &o, NULL), SONA_OK);
  CHECK_EQ(sona_policy_learn(s.policy, x, one, 1, &d, NAN, 1, &o, NULL), SONA_ENONFINITE);
  CHECK_EQ(sona_policy_learn(s.policy, x, one, 1, &d, 2, 1, &o, NULL), SONA_EINVAL);
  x[3] = NAN;
  CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability, &d), SONA_ENONFINITE);
  destroy(s);
}

/* Where the learner and its rival differ, the share of each arm over many draws is its logged propensity. */
static void test_draws(setup s, setup other) {
  enum { DRAWS = 40000 };
  for (int n = 0; n < 3; n++) {
    int counts[ARMS] = {0};
    int32_t ours, theirs;
    double propensity[ARMS] = {0};
    float x[DIM], probability[ARMS];
    sona_decision d;
    do {
      unit(x);
      CHECK_EQ(sona_policy_best(s.policy, SONA_CURRENT, x, NULL, 0, &ours), SONA_OK);
      CHECK_EQ(sona_policy_best(other.policy, SONA_CURRENT, x, NULL, 0, &theirs), SONA_OK);
    } while (ours == theirs);
    for (int t = 0; t < DRAWS; t++) {
      CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability, &d), SONA_OK);
      counts[d.arm]++;
      propensity[d.arm] = d.propensity;
    }
    CHECK(counts[theirs] > DRAWS / 10);
    for (int k = 0; k < ARMS; k++)
      CHECK_NEAR((double)counts[k] / DRAWS, propensity[k], 5 * sqrt(propensity[k] * (1 - propensity[k]) / DRAWS) + 1e-3);
  }
}

/* A rival is drawn where the arms differ, with the propensity that is logged, learns what it is shown, and follows the arms. */
static void test_rival(int guard) {
  sona_random_seed(&rng, 31);
  setup s = make(SONA_GREEDY, guard, SONA_FULL), other = make(SONA_GREEDY, 0, SONA_FULL), alone = make(SONA_GREEDY, 0, SONA_FULL);
  float x[DIM], probability[2][ARMS + 1];
  sona_decision d;
  sona_outcome o;
  CHECK_EQ(sona_policy_set_rival(s.policy, other.policy, 0.5f, 1), SONA_OK); /* the histories agree, if not the vectors */
  CHECK_EQ(sona_policy_set_rival(s.policy, s.policy, 0.5f, 1), SONA_EINVAL);
  CHECK_EQ(sona_policy_set_rival(s.policy, other.policy, 1, 1), SONA_EINVAL);
  CHECK_EQ(sona_policy_set_rival(s.policy, other.policy, 0.5f, 0), SONA_EINVAL);
  CHECK_EQ(sona_policy_take_arms(other.policy, s.policy), SONA_OK);
  CHECK_EQ(sona_policy_take_arms(alone.policy, s.policy), SONA_OK);
  CHECK_EQ(sona_policy_set_rival(s.policy, NULL, 0, 0), SONA_OK);

  for (int t = 0; t < 200; t++) { /* the rival learns something else beforehand */
    unit(x);
    CHECK_EQ(sona_policy_route(other.policy, x, NULL, 0, probability[0], &d), SONA_OK);
    CHECK_EQ(sona_policy_learn(other.policy, x, NULL, 0, &d, d.arm == 3, 1, &o, NULL), SONA_OK);
    CHECK_EQ(sona_policy_learn(alone.policy, x, NULL, 0, &d, d.arm == 3, 1, &o, NULL), SONA_OK);
  }
  CHECK_EQ(sona_policy_set_rival(s.policy, other.policy, 0.4f, 7), SONA_OK);
  test_draws(s, other);
  int differ = 0;
  for (int t = 0; t < 200; t++) {
    int32_t theirs, ours;
    unit(x);
    CHECK_EQ(sona_policy_best(other.policy, SONA_CURRENT, x, NULL, 0, &theirs), SONA_OK);
    CHECK_EQ(sona_policy_best(s.policy, SONA_CURRENT, x, NULL, 0, &ours), SONA_OK);
    CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability[0], &d), SONA_OK);
    CHECK_EQ(d.trial, 7);
    CHECK_EQ(d.rival, (d.arm == theirs ? SONA_RIVAL_CHOICE : 0) | (ours != theirs ? SONA_RIVAL_DIFFERS : 0));
    if (ours != theirs) {
      differ++;
      const float least = (d.arm == theirs ? 0.4f : 0.6f) * SONA_RIVAL_LEAST;
      CHECK((d.arm != theirs && d.arm != ours) || d.propensity >= least);
    } else if (!guard) {
      CHECK_NEAR(d.propensity, 1, 0);
    }
    const float reward = d.arm == 2;
    CHECK_EQ(sona_policy_learn(s.policy, x, NULL, 0, &d, reward, 1, &o, NULL), SONA_OK);
    sona_decision logged = d;
    logged.own = d.arm == theirs;
    logged.agreed = 1;
    CHECK_EQ(sona_policy_learn(alone.policy, x, NULL, 0, &logged, reward, 1, &o, NULL), SONA_OK);
  }
  CHECK(differ > 10);
  unit(x);
  CHECK_EQ(sona_policy_route(other.policy, x, NULL, 0, probability[0], &d), SONA_OK);
  CHECK_EQ(sona_policy_route(alone.policy, x, NULL, 0, probability[1], &d), SONA_OK);
  for (int k = 0; k < ARMS; k++) CHECK_NEAR(probability[0][k], probability[1][k], 1e-6);

  test_draws(s, other);

  float e[DIM];
  int32_t row;
  CHECK_EQ(sona_policy_remove_arm(s.policy, 1), SONA_OK);
  CHECK(!sona_policy_alive(other.policy, 1));
  unit(e);
  CHECK_EQ(sona_policy_add_arm(s.policy, e, 0, &row), SONA_OK);
  CHECK(sona_policy_alive(other.policy, row));
  CHECK_EQ(sona_policy_version(other.policy), sona_policy_version(s.policy));
  CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability[0], &d), SONA_OK);
  CHECK_EQ(d.trial, 7);
  CHECK_EQ(sona_policy_learn(s.policy, x, NULL, 0, &d, 1, 1, &o, NULL), SONA_OK);
  CHECK_EQ(sona_policy_revise(s.policy, x, NULL, 0, &d, 0, &o, NULL), SONA_OK);
  sona_policy_set_enabled(s.policy, 0);
  CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability[0], &d), SONA_OK);
  CHECK_EQ(d.trial, 0);
  sona_policy_set_enabled(s.policy, 1);
  CHECK_EQ(sona_policy_set_rival(s.policy, NULL, 0, 0), SONA_OK);
  CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability[0], &d), SONA_OK);
  CHECK_EQ(d.trial, 0);
  destroy(s);
  destroy(other);
  destroy(alone);
}

/* A pool serves what one of its members wants or both want most, learns in both, rehearses, and does not allocate. */
static void test_pool(void) {
  sona_random_seed(&rng, 41);
  setup s = make(SONA_GREEDY, 1, SONA_FULL), other = make(SONA_GREEDY, 0, SONA_IDENTITY), explorer = make(SONA_SOFTMAX, 0, SONA_FULL);
  const sona_instant_options options = {DIM, 0.2f, 0.3f, 3.0f / ARMS, SONA_IDENTITY, NULL};
  sona_rehearsal rehearsal = {.rows = 4, .window = 500, .strength = 0.1f};
  sona_pending *pending = NULL;
  CHECK_EQ(sona_instant_create(&options, &rehearsal.step), SONA_OK);
  CHECK_EQ(sona_pending_create(1024, DIM, 0, &pending), SONA_OK);
  CHECK_EQ(sona_policy_set_partner(s.policy, s.policy), SONA_EINVAL);
  CHECK_EQ(sona_policy_set_partner(explorer.policy, other.policy), SONA_EINVAL);
  CHECK_EQ(sona_policy_take_arms(other.policy, s.policy), SONA_OK);
  CHECK_NEAR(sona_policy_own_share(s.policy), 1, 0);
  CHECK_EQ(sona_policy_set_partner(s.policy, other.policy), SONA_OK);
  CHECK_EQ(sona_policy_set_rival(s.policy, other.policy, 0.5f, 1), SONA_EINVAL);
  CHECK_NEAR(sona_policy_own_share(s.policy), 0.5, 1e-12);
  CHECK_EQ(sona_rehearse(&rehearsal, pending, s.policy, 1, 0), 0); /* nothing is remembered yet */

  float centre[ARMS][DIM], probability[ARMS];
  int right = 0;
  size_t rehearsed = 0;
  uint64_t before = 0;
  for (int k = 0; k < ARMS; k++) unit(centre[k]);
  for (uint64_t id = 1; id <= 1500; id++) {
    const int k = (int)(sona_random_uniform(&rng) * ARMS);
    float noise[DIM], square = 0;
    unit(noise);
    sona_record *record = sona_pending_put(pending, id, 0);
    for (size_t i = 0; i < DIM; i++) {
      record->x[i] = centre[k][i] + 0.3f * noise[i];
      square += record->x[i] * record->x[i];
    }
    for (size_t i = 0; i < DIM; i++) record->x[i] /= sqrtf(square);
    sona_step step;
    CHECK_EQ(sona_policy_route(s.policy, record->x, NULL, 0, probability, &record->decision), SONA_OK);
    const float reward = record->decision.arm == (k + 1) % ARMS;
    CHECK_EQ(sona_policy_learn(s.policy, record->x, NULL, 0, &record->decision, reward, 1, &record->outcome, &step), SONA_OK);
    record->learned = 1;
    rehearsed += sona_rehearse(&rehearsal, pending, s.policy, 1, id);
    if (id > 1000) right += reward > 0;
    if (id == 1000) before = sona_allocations();
  }
  CHECK(right > 480);
  CHECK(rehearsed > 4000);
  CHECK_EQ(sona_allocations(), before);
  CHECK(sona_adapter_describe(other.adapter).total > 0);
  const sona_policy_state state = sona_policy_get_state(s.policy);
  CHECK(state.loss[0] > 0 && state.loss[1] > 0);
  CHECK_EQ(sona_policy_set_partner(s.policy, NULL), SONA_OK);
  sona_pending_destroy(pending);
  sona_instant_destroy(rehearsal.step);
  destroy(s);
  destroy(other);
  destroy(explorer);
}

/* Similar decisions overrule the learner where they earned more than it expects; what is recorded as its own stays its own. */
static void test_evidence(void) {
  setup s = make(SONA_GREEDY, 1, SONA_IDENTITY);
  float x[DIM], probability[ARMS], earned[ARMS] = {0}, seen[ARMS] = {0};
  const sona_evidence evidence = {earned, seen, 2};
  sona_decision d;
  unit(x);
  CHECK_EQ(sona_policy_route(s.policy, x, NULL, 0, probability, &d), SONA_OK);
  const int32_t own = d.arm, other = (own + 1) % ARMS;
  CHECK_EQ(sona_policy_route_beside(s.policy, &evidence, x, NULL, 0, probability, &d), SONA_OK);
  CHECK(d.arm == own && d.own && d.agreed); /* nothing was seen: the learner's own choice */

  /* (2 pi + earned) / (2 / c + seen), with c = 1 before any reward */
  seen[other] = 10;
  earned[other] = 11.9f * probability[own] - 2 * probability[other];
  CHECK_EQ(sona_policy_route_beside(s.policy, &evidence, x, NULL, 0, probability, &d), SONA_OK);
  CHECK_EQ(d.arm, own);
  earned[other] = 12.1f * probability[own] - 2 * probability[other];
  int shown = 0;
  for (int t = 0; t < 200; t++) { /* the guard draws between the proposal and the frozen model, which is the learner's own choice here */
    CHECK_EQ(sona_policy_route_beside(s.policy, &evidence, x, NULL, 0, probability, &d), SONA_OK);
    CHECK(!d.agreed && d.own == (d.arm == own) && d.chance[SONA_CURRENT] == (d.arm == other) && d.chance[SONA_FROZEN] == (d.arm == own));
    double weight[SONA_GUARD_MODELS];
    const sona_policy_state state = sona_policy_get_state(s.policy);
    sona_guard_weights(&state.guard, weight);
    CHECK_NEAR(d.propensity, weight[d.arm == other ? SONA_CURRENT : SONA_FROZEN], 1e-6);
    shown += d.arm == other;
  }
  CHECK(shown > 50 && shown < 200);

  const int32_t without[2] = {own, (own + 2) % ARMS};
  CHECK_EQ(sona_policy_route_beside(s.policy, &evidence, x, without, 2, probability, &d), SONA_OK);
  CHECK_EQ(d.arm, own);
  sona_policy_set_enabled(s.policy, 0);
  CHECK_EQ(sona_policy_route_beside(s.policy, &evidence, x, NULL, 0, probability, &d), SONA_OK);
  CHECK(d.arm == own && d.propensity == 1);
  destroy(s);
}

static void test_pending(void) {
  sona_pending *p = NULL;
  CHECK_EQ(sona_pending_create(0, DIM, 0, &p), SONA_EINVAL);
  CHECK_EQ(sona_pending_create(4, DIM, 0, &p), SONA_OK);
  const uint64_t session = (uint64_t)9 << 40;
  for (uint64_t id = session + 1; id <= session + 100; id++) {
    sona_record *r = sona_pending_put(p, id, id % 3);
    CHECK(r != NULL && r->id == id && r->count == id % 3);
    for (uint32_t c = 0; c < r->count; c++) sona_record_candidates(r)[c] = (int32_t)c;
    r->x[DIM - 1] = (float)(id - session);
    CHECK(sona_pending_get(p, id) == r);
    CHECK(sona_pending_get(p, id + 1) == NULL);
    if (id > session + 2) {
      sona_record *before = sona_pending_get(p, id - 1);
      CHECK(before != NULL && before->x[DIM - 1] == (float)(id - 1 - session));
    }
    if (id > session + 4) CHECK(sona_pending_get(p, id - 4) == NULL);
  }
  CHECK(sona_pending_put(p, 1, 100000) == NULL);
  sona_pending_destroy(p);
  sona_pending_destroy(NULL);
}

int main(void) {
  sona_random_seed(&rng, 5);
  test_learns(SONA_IDENTITY);
  test_learns(SONA_FULL);
  test_propensity(SONA_SOFTMAX, 0);
  test_propensity(SONA_SOFTMAX, 1);
  test_propensity(SONA_THOMPSON, 0);
  test_propensity(SONA_THOMPSON, 1);
  test_propensity(SONA_GREEDY, 1);
  test_revision();
  test_arms();
  test_rival(0);
  test_rival(1);
  test_pool();
  test_evidence();
  test_pending();
  return check_done("policy");
}
