/* A program's own allocator sees every byte that the library asks for, and gets every one back; when it has none left, every function says
 * so and keeps nothing. */
#define _GNU_SOURCE
#include "check.h"
#include "scratch.h"
#include "sona/iit3.h"
#include "sona/phi.h"
#include "sona/rehearse.h"
#include "sona/ring.h"
#include "sona/shared_ring.h"
#include "sona/walk.h"
#include "sona/weights.h"

enum { DIM = 6, ARMS = 4, NODES = 5, EDGES = 2 * NODES };

/* Each block begins with its size. */
#define HEAD 64
static size_t bytes, blocks, calls, failing = SIZE_MAX;
static size_t most; /* of bytes */

static void *counted(size_t count, size_t size) {
  if (calls++ == failing) return NULL;
  unsigned char *block = calloc(1, HEAD + count * size);
  if (!block) return NULL;
  *(size_t *)(void *)block = count * size;
  bytes += count * size;
  if (bytes > most) most = bytes;
  blocks++;
  return block + HEAD;
}

static void returned(void *memory) {
  unsigned char *block = (unsigned char *)memory - HEAD;
  bytes -= *(size_t *)(void *)block;
  blocks--;
  free(block);
}

static const sona_allocator counting = {counted, returned};

/* What each function that allocates answers; objects that could be made are gone when it returns. */
typedef sona_status (*life)(void);

#define TRY(call)                           \
  do {                                      \
    if (status == SONA_OK) status = (call); \
  } while (0)

static sona_status a_policy_that_learns(void) {
  const sona_adapter_options a = {.dim = DIM, .rank = 2, .rank_max = 4, .micro = 2, .max_discard = 0.05, .scale = 1};
  const sona_instant_options i = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 0.5f, .precondition = SONA_FULL};
  const sona_instant_options identity = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 0.5f};
  const sona_policy_options p = {.dim = DIM, .tau = 0.1f, .off_policy_step = 0.3f, .anchor_every = 100, .guard = 1};
  sona_adapter *adapter = NULL;
  sona_rehearsal rehearsal = {.rows = 2, .window = 8, .strength = 1};
  sona_instant *instant = NULL;
  sona_policy *policy = NULL;
  sona_pending *pending = NULL;
  sona_status status = SONA_OK;
  TRY(sona_adapter_create(&a, &adapter));
  TRY(sona_instant_create(&i, &instant));
  TRY(sona_instant_create(&identity, &rehearsal.step));
  TRY(sona_policy_create(&p, adapter, instant, &policy));
  TRY(sona_pending_create(8, DIM, 0, &pending));
  for (int arm = 0; arm < ARMS; arm++) {
    float vector[DIM] = {0};
    int32_t row;
    vector[arm] = 1;
    TRY(sona_policy_add_arm(policy, vector, 0, &row));
  }
  for (uint64_t t = 0; t < 30 && status == SONA_OK; t++) {
    float x[DIM] = {0}, probability[ARMS];
    sona_decision decision;
    x[t % DIM] = 0.8f, x[(t + 1) % DIM] = 0.6f;
    TRY(sona_policy_route(policy, x, NULL, 0, probability, &decision));
    if (status != SONA_OK) break;
    sona_record *record = sona_pending_put(pending, t, 0);
    memcpy(record->x, x, sizeof x);
    record->decision = decision;
    TRY(sona_policy_learn(policy, x, NULL, 0, &decision, 1, 1, &record->outcome, NULL));
    record->learned = status == SONA_OK;
    if (status == SONA_OK) sona_rehearse(&rehearsal, pending, policy, 0, t);
  }
  TRY(sona_adapter_truncate(adapter));
  sona_policy_destroy(policy);
  sona_instant_destroy(instant);
  sona_instant_destroy(rehearsal.step);
  sona_adapter_destroy(adapter);
  sona_pending_destroy(pending);
  return status;
}

/* ---- an object that grows: what fails changes nothing, and what is tried again succeeds ---- */

enum { MANY = 40 };
static float wide[MANY * DIM];

typedef struct grown {
  sona_adapter *adapter;
  sona_instant *instant, *other_instant;
  sona_policy *policy, *other;
  sona_adapter *other_adapter;
} grown;

static void destroy_grown(grown *g) {
  sona_policy_destroy(g->policy);
  sona_policy_destroy(g->other);
  sona_instant_destroy(g->instant);
  sona_instant_destroy(g->other_instant);
  sona_adapter_destroy(g->adapter);
  sona_adapter_destroy(g->other_adapter);
}

static void make_grown(grown *g) {
  const sona_adapter_options a = {.dim = DIM, .rank = 2, .rank_max = 4, .micro = 2, .max_discard = 0.05, .scale = 1};
  const sona_instant_options i = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 0.5f, .precondition = SONA_FULL};
  const sona_policy_options p = {.dim = DIM, .tau = 0.1f, .off_policy_step = 0.3f, .anchor_every = 2, .guard = 1};
  CHECK_EQ(sona_adapter_create(&a, &g->adapter), SONA_OK);
  CHECK_EQ(sona_adapter_create(&a, &g->other_adapter), SONA_OK);
  CHECK_EQ(sona_instant_create(&i, &g->instant), SONA_OK);
  CHECK_EQ(sona_instant_create(&i, &g->other_instant), SONA_OK);
  CHECK_EQ(sona_policy_create(&p, g->adapter, g->instant, &g->policy), SONA_OK);
  CHECK_EQ(sona_policy_create(&p, g->other_adapter, g->other_instant, &g->other), SONA_OK);
  for (int arm = 0; arm < 16; arm++) { /* as many as there is room for */
    int32_t row;
    CHECK_EQ(sona_policy_add_arm(g->policy, wide + arm * DIM, 0, &row), SONA_OK);
  }
  CHECK_EQ(sona_adapter_append(g->adapter, 1, wide, wide + DIM, 0.5f), SONA_OK);
  const sona_lora w = sona_adapter_view(g->adapter);
  for (int which = 0; which < 2; which++) CHECK_EQ(sona_policy_set_copy(g->policy, which, w.down, w.up, w.ld, w.offset, w.rank), SONA_OK);
}

/* What an object says of itself. */
typedef struct looks {
  sona_adapter_info adapter;
  size_t rows, copies;
  uint32_t version;
  unsigned char bytes[2048];
  size_t size;
} looks;

static looks look(const grown *g) {
  looks l;
  memset(&l, 0, sizeof l); /* also between the fields: all of it is compared */
  l.adapter = sona_adapter_describe(g->adapter);
  l.rows = sona_policy_rows(g->policy);
  l.version = sona_policy_version(g->policy);
  l.adapter.bytes = 0; /* a block that was had before the next allocation failed stays for later */
  l.copies = sona_policy_copy(g->policy, 0).rank;
  CHECK_EQ(sona_adapter_encode(g->adapter, l.bytes, sizeof l.bytes, &l.size), SONA_OK);
  return l;
}

static sona_status assigns(grown *g) { return sona_adapter_assign(g->adapter, wide, wide, DIM, NULL, 3, MANY - 1); }
static sona_status truncates(grown *g) { return sona_adapter_truncate(g->adapter); }
static sona_status adds_an_arm(grown *g) {
  int32_t row;
  return sona_policy_add_arm(g->policy, wide + DIM, 0.1f, &row);
}
static sona_status routes(grown *g) {
  float x[DIM] = {1}, probability[MANY];
  sona_decision decision;
  return sona_policy_route(g->policy, x, NULL, 0, probability, &decision);
}
static sona_status takes_arms(grown *g) {
  const sona_status status = adds_an_arm(g); /* more than the other has room for */
  return status ? status : sona_policy_take_arms(g->other, g->policy);
}
static sona_status copies(grown *g) { return sona_policy_set_copy(g->other, 0, wide, wide, DIM, wide, MANY); }
static sona_status decodes(grown *g) {
  unsigned char bytes[16 + 4 * MANY * (2 * DIM + 1)] = "sonafac1";
  bytes[8] = MANY, bytes[12] = DIM;
  return sona_adapter_decode(g->adapter, bytes, sizeof bytes);
}

static void test_growth_that_fails_changes_nothing(void) {
  static const struct {
    const char *name;
    sona_status (*grow)(grown *);
  } growths[] = {{"assign", assigns},       {"truncate", truncates}, {"add an arm", adds_an_arm}, {"route", routes},
                 {"take arms", takes_arms}, {"set a copy", copies},  {"decode", decodes}};
  for (int i = 0; i < MANY * DIM; i++) wide[i] = (float)(i % 7) / 7;
  for (size_t k = 0; k < sizeof growths / sizeof *growths; k++) {
    size_t refused = 0;
    for (size_t n = 0;; n++) {
      grown g = {0};
      make_grown(&g);
      const looks before = look(&g);
      calls = 0;
      failing = n;
      const sona_status status = growths[k].grow(&g);
      const int reached = calls > n;
      failing = SIZE_MAX;
      CHECK_EQ(status, reached ? SONA_ENOMEM : SONA_OK);
      if (reached) {
        const looks after = look(&g);
        const int grew = growths[k].grow == takes_arms && after.rows > before.rows; /* its first half came through */
        CHECK(grew || memcmp(&before, &after, sizeof before) == 0);
        CHECK_EQ(growths[k].grow(&g), SONA_OK);
        refused++;
      }
      destroy_grown(&g);
      CHECK_EQ(bytes, 0);
      if (!reached) break;
    }
    if (!refused) printf("%s: allocates nothing\n", growths[k].name);
    CHECK(refused > 0);
  }
}

static sona_status two_rings(void) {
  const sona_ring_options options = {.capacity = 256};
  sona_ring *ring = NULL, *fixed = NULL;
  sona_status status = sona_ring_create(&options, &ring);
  TRY(sona_ring_create_fixed(&options, 8, &fixed));
  TRY(sona_ring_push(fixed, "01234567", 8));
  sona_ring_destroy(ring);
  sona_ring_destroy(fixed);
  return status;
}

static sona_status a_shared_ring(void) {
  const char *path = scratch_path();
  sona_shared_ring *producer = NULL, *consumer = NULL;
  sona_status status = sona_shared_ring_open(path, SONA_PRODUCER, 4096, &producer);
  TRY(sona_shared_ring_open(path, SONA_CONSUMER, 4096, &consumer));
  TRY(sona_shared_ring_push(producer, "01234567", 8, NULL));
  sona_shared_ring_close(producer);
  sona_shared_ring_close(consumer);
  return status;
}

/* From one adapter through bytes and a file into two others, which grow. */
static sona_status weights_between_processes(void) {
  enum { LAYERS = 2, RANK = 40 };
  const char *path = scratch_path();
  const sona_adapter_options a = {.dim = DIM, .rank = 2, .rank_max = 4, .micro = 2, .max_discard = 0.05, .scale = 1};
  const sona_weights_options o = {.layers = LAYERS, .dim = DIM, .max_rank = RANK};
  static float rows[RANK * DIM];
  static unsigned char encoded[16 + 4 * RANK * (2 * DIM + 1)];
  const void *factors[LAYERS] = {encoded, encoded};
  sona_adapter *from = NULL, *to[LAYERS] = {NULL, NULL};
  sona_weights *writer = NULL, *reader = NULL;
  size_t size = 0;
  sona_status status = sona_adapter_create(&a, &from);
  for (int i = 0; i < LAYERS; i++) TRY(sona_adapter_create(&a, &to[i]));
  TRY(sona_adapter_assign(from, rows, rows, DIM, NULL, RANK, RANK));
  TRY(sona_adapter_encode(from, encoded, sizeof encoded, &size));
  TRY(sona_weights_create(path, &o, &writer));
  TRY(sona_weights_open(path, &o, &reader));
  TRY(sona_weights_publish(writer, factors, (size_t[]){size, size}, 1));
  TRY(sona_weights_adopt(reader, to, NULL));
  for (int i = 0; i < LAYERS; i++) /* all of them or none */
    if (to[0] && to[1]) CHECK_EQ(sona_adapter_describe(to[i]).total, status == SONA_OK ? RANK : 0);
  sona_weights_close(writer);
  sona_weights_close(reader);
  sona_adapter_destroy(from);
  for (int i = 0; i < LAYERS; i++) sona_adapter_destroy(to[i]);
  return status;
}

/* A circle of NODES nodes by rows, an edge each way. */
static int64_t start[NODES], stop[NODES];
static int32_t column[EDGES];
static float weight[EDGES];

static void make_circle(void) {
  for (int i = 0; i < NODES; i++) {
    start[i] = 2 * i, stop[i] = 2 * i + 2;
    column[2 * i] = (i + 1) % NODES, column[2 * i + 1] = (i + NODES - 1) % NODES;
    weight[2 * i] = weight[2 * i + 1] = 1;
  }
}

static sona_status phi_of(sona_phi_method method, int normalise) {
  const sona_phi_options options = {.alpha = 0.9, .normalise = normalise, .method = method};
  double w[NODES * NODES] = {0};
  sona_phi phi;
  double cut, total;
  for (int i = 0; i < EDGES; i++) w[i / 2 * NODES + column[i]] = 1;
  sona_status status = sona_phi_compute(w, NODES, &options, &phi);
  TRY(sona_phi_cut(w, NODES, &options, 3, &cut, &total));
  return status;
}

static sona_status phi_by_every_cut(void) { return phi_of(SONA_PHI_EXHAUSTIVE, 1); }
static sona_status phi_by_queyranne(void) { return phi_of(SONA_PHI_QUEYRANNE, 0); }

static sona_status phi_of_subgraphs(void) {
  const sona_phi_graph graph = {.nodes = NODES, .entries = EDGES, .start = start, .stop = stop, .column = column, .weight = weight};
  const sona_phi_options options = {.alpha = 0.9};
  const int64_t member[] = {0, 1, 2, 1, 2, 3}, offset[] = {0, 3, 6};
  sona_phi phi[2];
  size_t failed;
  return sona_phi_subgraphs(&graph, member, offset, 2, &options, phi, &failed);
}

static sona_status walks_that_remember(void) {
  float cumulative[EDGES];
  int32_t out[4 * 3];
  const int32_t starts[] = {0, 1, 2};
  sona_walk_cumulate(start, stop, NODES, weight, cumulative);
  const sona_walk_graph graph = {NODES, EDGES, start, stop, column, weight, cumulative};
  const sona_walk_options options = {.length = 4, .temperature = 0.5, .revisit = 0.5, .restart = 0.1, .jump = 0.1};
  return sona_walk(&graph, &options, starts, 0, 3, out);
}

static sona_status integrated_information(void) {
  static sona_iit3_result result;
  double tpm[8][3];
  const uint8_t cm[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  for (int s = 0; s < 8; s++) {
    const int a = s & 1, b = s >> 1 & 1, c = s >> 2 & 1;
    tpm[s][0] = (a + b + c) % 2, tpm[s][1] = a & c, tpm[s][2] = a | b;
  }
  const double p[] = {0.5, 0, 0.5, 0}, q[] = {0, 0.25, 0.25, 0.5};
  double distance;
  sona_status status = sona_iit3(3, &tpm[0][0], cm, 0, SONA_IIT3_WORK, NULL, NULL, &result);
  TRY(sona_iit3_distance(2, p, q, &distance));
  return status;
}

static const struct {
  const char *name;
  life run;
} lives[] = {{"a policy that learns", a_policy_that_learns},
             {"two rings", two_rings},
             {"a shared ring", a_shared_ring},
             {"weights between processes", weights_between_processes},
             {"phi by every cut", phi_by_every_cut},
             {"phi by Queyranne", phi_by_queyranne},
             {"phi of subgraphs", phi_of_subgraphs},
             {"walks that remember", walks_that_remember},
             {"integrated information", integrated_information}};

enum { LIVES = sizeof lives / sizeof *lives };

static void test_an_allocator_without_a_function_is_refused(void) {
  static const sona_allocator no_allocate = {NULL, returned}, no_release = {counted, NULL};
  CHECK_EQ(sona_set_allocator(NULL), SONA_EINVAL);
  CHECK_EQ(sona_set_allocator(&no_allocate), SONA_EINVAL);
  CHECK_EQ(sona_set_allocator(&no_release), SONA_EINVAL);
}

static void test_the_first_one_that_is_named_stays(void) {
  static const sona_allocator other = {calloc, free};
  CHECK(sona_calloc(SIZE_MAX, 2) == NULL); /* asks nobody, so it decides nothing */
  CHECK_EQ(sona_set_allocator(&counting), SONA_OK);
  CHECK_EQ(sona_set_allocator(&other), SONA_EINVAL);
  CHECK_EQ(sona_set_allocator(&counting), SONA_OK);
}

static void test_memory_is_aligned_whatever_the_allocator(void) {
  for (size_t size = 0; size < 200; size += 7) {
    unsigned char *memory = sona_calloc(1, size);
    CHECK(memory != NULL && bytes >= size);
    CHECK_EQ((uintptr_t)memory % 64, 0);
    sona_free(memory);
    CHECK_EQ(bytes, 0);
  }
}

static void test_every_byte_comes_back(void) {
  for (int k = 0; k < LIVES; k++) {
    most = calls = 0;
    CHECK_STR(sona_status_str(lives[k].run()), "success");
    CHECK(calls > 0 && most > 0);
    if (bytes || blocks) printf("%s: %zu bytes in %zu blocks are still there\n", lives[k].name, bytes, blocks);
    CHECK_EQ(bytes, 0);
    CHECK_EQ(blocks, 0);
  }
}

static void test_what_fails_for_want_of_memory_keeps_none(void) {
  for (int k = 0; k < LIVES; k++) {
    size_t refused = 0;
    calls = 0;
    failing = SIZE_MAX;
    CHECK_EQ(lives[k].run(), SONA_OK);
    const size_t total = calls;
    for (size_t n = 0; n < total; n++) {
      calls = 0;
      failing = n;
      const sona_status status = lives[k].run();
      CHECK(status == SONA_ENOMEM || status == SONA_OK); /* a copy that is put off does not fail */
      refused += status == SONA_ENOMEM;
      if (bytes) printf("%s: allocation %zu fails: %zu bytes are still there\n", lives[k].name, n, bytes);
      CHECK_EQ(bytes, 0);
    }
    CHECK(refused > 0);
    failing = SIZE_MAX;
  }
}

int main(void) {
  make_circle();
  test_an_allocator_without_a_function_is_refused();
  test_the_first_one_that_is_named_stays();
  test_memory_is_aligned_whatever_the_allocator();
  test_every_byte_comes_back();
  test_what_fails_for_want_of_memory_keeps_none();
  test_growth_that_fails_changes_nothing();
  return check_done("allocator");
}
