/* Learning in another process: decisions and rewards go into a ring in a file, where `sona learn` finds them, and the weights that it
 * publishes are taken up between two requests.  Neither side waits for the other, and each may be restarted at any time. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model.h"
#include "sona/adapter.h"
#include "sona/record.h"
#include "sona/shared_ring.h"
#include "sona/weights.h"

enum { RING_BYTES = 1 << 24 }; /* of a ring that this process makes */

typedef struct sidecar {
  model base;
  const arms *arms;
  const char *weights_path;
  size_t workers, ld; /* ld: floats of a row of the scratch below */
  sona_adapter *adapter;
  sona_reader *readers[SONA_MAX_READERS];
  float *scratch; /* (workers, 2, ld): probabilities, and a vector */

  pthread_mutex_t producing; /* for the ring and `last` */
  sona_shared_ring *ring;
  uint64_t last; /* number of the latest record, 0 while there is none of this process */

  pthread_mutex_t adopting;        /* for what follows, where it is written, and for the adapter */
  _Atomic(sona_weights *) weights; /* NULL until somebody has made the file; release and acquire: the handle behind it */
  _Atomic uint64_t epoch;          /* that has been taken up; relaxed: the adapter publishes by itself */
  int64_t tried;                   /* seconds */
  uint64_t adoptions, failures, version, delay_ns;
} sidecar;

static int64_t now_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- weights ---- */

/* Under the lock.  While there is no file it is looked for once a second. */
static void open_weights(sidecar *s) {
  const sona_weights_options options = {.layers = 1, .dim = s->arms->dim};
  const int64_t second = now_ns(CLOCK_MONOTONIC) / 1000000000;
  if (s->tried == second) return;
  s->tried = second;
  sona_weights *opened = NULL;
  const sona_status status = sona_weights_open(s->weights_path, &options, &opened);
  if (!status)
    atomic_store_explicit(&s->weights, opened, memory_order_release);
  else if (status != SONA_EIO || errno != ENOENT)
    s->failures++;
}

static void adopt(sidecar *s, sona_weights *weights) {
  sona_weights_info info;
  const uint64_t epoch = sona_weights_epoch(weights);
  const sona_status status = sona_weights_adopt(weights, &s->adapter, &info);
  if (status == SONA_EAGAIN) return;
  s->failures += status != SONA_OK;
  if (!status) {
    s->adoptions++;
    s->version = info.version;
    s->delay_ns = (uint64_t)now_ns(CLOCK_MONOTONIC) - info.published_ns;
  }
  atomic_store_explicit(&s->epoch, status ? epoch : info.epoch, memory_order_relaxed); /* what failed is not tried again */
}

/* Before each request: one load where nothing is new.  Where another worker is at it, this one goes on with the rows that it has. */
static void follow(sidecar *s) {
  sona_weights *const weights = atomic_load_explicit(&s->weights, memory_order_acquire);
  if (weights && sona_weights_epoch(weights) == atomic_load_explicit(&s->epoch, memory_order_relaxed)) return;
  if (pthread_mutex_trylock(&s->adopting)) return;
  if (weights)
    adopt(s, weights);
  else
    open_weights(s);
  pthread_mutex_unlock(&s->adopting);
}

/* ---- records ---- */

/* v = d log pi_arm / d y = (e_arm - sum_k pi_k e_k) / TAU */
static void direction_of(const arms *a, size_t arm, float *probability, float *v) {
  for (size_t k = 0; k < a->count; k++) probability[k] = ((float)(k == arm) - probability[k]) / TAU;
  memset(v, 0, a->dim * sizeof *v);
  sona_kernels_get(NULL)->gemv_t(a->vectors, a->dim, probability, v, a->count, a->dim);
}

/* Bytes of a decision. */
static size_t record_size(const sidecar *s) {
  static const float some;
  return sona_record_size(s->arms->dim, &(sona_record_step){.activations = &some}, 1);
}

/* Its number, or 0 when the ring is full: then the request is answered all the same and nobody can reward it. */
static uint64_t record(sidecar *s, const float *x, const sona_record_step *step) {
  const size_t dim = s->arms->dim, size = sona_record_size(dim, step, 1);
  uint64_t number = 0;
  void *room;
  pthread_mutex_lock(&s->producing);
  if (sona_shared_ring_reserve(s->ring, size, &room) == SONA_OK && sona_record_write(room, size, 0, 0, NAN, x, dim, step, 1) == SONA_OK &&
      sona_shared_ring_commit(s->ring, size, &number) == SONA_OK)
    s->last = number;
  pthread_mutex_unlock(&s->producing);
  return number;
}

/* ---- requests ---- */

static sona_status embed(model *m, size_t worker, const float *x, float *y) {
  sidecar *const s = (sidecar *)m;
  follow(s);
  memcpy(y, x, s->arms->dim * sizeof *y);
  sona_adapter_forward(s->readers[worker], SONA_BOTH, x, y);
  return SONA_OK;
}

static sona_status choose(model *m, size_t worker, const float *x, route *out) {
  sidecar *const s = (sidecar *)m;
  float *const probability = s->scratch + 2 * worker * s->ld, *const vector = probability + s->ld;
  embed(m, worker, x, vector);
  out->arm = arms_choose(s->arms, vector, probability);
  out->probability = probability[out->arm];
  out->propensity = 1;
  direction_of(s->arms, out->arm, probability, vector);
  const sona_record_step step = {
      .timestamp = 1e-9 * (double)now_ns(CLOCK_REALTIME), .reward = NAN, .expected = out->probability, .activations = vector};
  out->id = record(s, x, &step);
  return SONA_OK;
}

/* Whether the learner still knows that decision, only the learner knows. */
static sona_status feedback(model *m, uint64_t id, float reward) {
  sidecar *const s = (sidecar *)m;
  unsigned char message[SONA_FEEDBACK_SIZE];
  sona_feedback_write(message, id, reward);
  pthread_mutex_lock(&s->producing);
  sona_status status = id == 0 || (s->last && id > s->last) ? SONA_EINVAL : SONA_OK;
  uint64_t number;
  if (!status) status = sona_shared_ring_push(s->ring, message, sizeof message, &number);
  if (!status) s->last = number;
  pthread_mutex_unlock(&s->producing);
  return status;
}

static int stats(model *m, char *to, size_t room) {
  sidecar *const s = (sidecar *)m;
  pthread_mutex_lock(&s->adopting);
  const int n = snprintf(
      to, room,
      ",\"waiting_bytes\":%zu,\"dropped\":%llu,\"epoch\":%llu,\"version\":%llu,\"adoptions\":%llu,\"adoption_us\":%.1f,\"failures\":%llu",
      sona_shared_ring_used(s->ring), (unsigned long long)sona_shared_ring_dropped(s->ring),
      (unsigned long long)atomic_load_explicit(&s->epoch, memory_order_relaxed), (unsigned long long)s->version,
      (unsigned long long)s->adoptions, 1e-3 * (double)s->delay_ns, (unsigned long long)s->failures);
  pthread_mutex_unlock(&s->adopting);
  return n;
}

static void destroy(model *m) {
  sidecar *const s = (sidecar *)m;
  for (size_t i = 0; i < s->workers; i++) sona_reader_release(s->readers[i]);
  sona_shared_ring_close(s->ring);
  sona_weights_close(atomic_load_explicit(&s->weights, memory_order_relaxed));
  sona_adapter_destroy(s->adapter);
  pthread_mutex_destroy(&s->producing);
  pthread_mutex_destroy(&s->adopting);
  free(s->scratch);
  free(s);
}

static sona_status build(sidecar *s, const char *ring) {
  const sona_adapter_options a = {.dim = s->arms->dim, .rank = 64, .rank_max = 64, .micro = 2, .max_discard = 0.05, .scale = 1};
  sona_status status = sona_adapter_create(&a, &s->adapter);
  for (size_t w = 0; !status && w < s->workers; w++)
    if (!(s->readers[w] = sona_reader_acquire(s->adapter))) status = SONA_EFULL;
  s->ld = s->arms->count > s->arms->dim ? s->arms->count : s->arms->dim;
  s->scratch = calloc(2 * s->workers * s->ld, sizeof *s->scratch);
  if (!status && !s->scratch) status = SONA_ENOMEM;
  if (!status) status = sona_shared_ring_open(ring, SONA_PRODUCER, 0, &s->ring); /* of whatever size it is */
  if (status == SONA_EIO && errno == ENOENT) status = sona_shared_ring_open(ring, SONA_PRODUCER, RING_BYTES, &s->ring);
  if (status == SONA_EINVAL) status = sona_shared_ring_open(ring, SONA_PRODUCER, 0, &s->ring); /* the learner has made it meanwhile */
  if (!status && sona_shared_ring_max_record(s->ring) < record_size(s)) status = SONA_EFULL;   /* of any record, always */
  return status;
}

int sidecar_create(const arms *a, size_t workers, const char *ring, const char *weights, model **out) {
  sidecar *const s = calloc(1, sizeof *s);
  if (!s) return ENOMEM;
  s->base = (model){"sidecar", embed, choose, feedback, NULL, stats, destroy};
  s->arms = a;
  s->weights_path = weights;
  s->workers = workers;
  s->tried = -1;
  pthread_mutex_init(&s->producing, NULL);
  pthread_mutex_init(&s->adopting, NULL);
  const sona_status status = build(s, ring);
  if (status) {
    if (status != SONA_ENOMEM) fprintf(stderr, "%s: %s\n", ring, status == SONA_EIO ? strerror(errno) : sona_status_str(status));
    destroy(&s->base);
    return status == SONA_ENOMEM ? ENOMEM : EINVAL;
  }
  *out = &s->base;
  return 0;
}
