/* What learning from one outcome costs.
 *
 *   bench_instant          an aligned table
 *   bench_instant --json   one object a line: bench, case, ns, target_ns, pass; null where a row has none
 *
 * ns is the median over the rounds, each long enough for the clock and shorter than a time slice. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../src/random.h"
#include "sona/instant.h"
#include "sona/ring.h"

enum { ROUNDS = 201, ARMS = 20, INPUTS = 64 };

static sona_random rng;
static int json;
static volatile float sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values, size_t count) {
  qsort(values, count, sizeof *values, ascending);
  return values[count / 2];
}

static void must(sona_status status) {
  if (status == SONA_OK) return;
  fprintf(stderr, "bench_instant: %s\n", sona_status_str(status));
  exit(1);
}

static void *must_have(void *memory) {
  if (!memory) must(SONA_ENOMEM);
  return memory;
}

/* target_ns: 0 for none */
static void report(const char *bench, const char *what, double *ns, double target_ns) {
  const double typical = median(ns, ROUNDS);
  if (json) {
    printf("{\"bench\":\"%s\",\"case\":\"%s\",\"ns\":%.1f", bench, what, typical);
    target_ns > 0 ? printf(",\"target_ns\":%.0f,\"pass\":%s}\n", target_ns, typical <= target_ns ? "true" : "false")
                  : printf(",\"target_ns\":null,\"pass\":null}\n");
  } else {
    printf("%-22s %-34s %12.1f ns", bench, what, typical);
    if (target_ns > 0) printf("  <= %.0f ns  %s", target_ns, typical <= target_ns ? "ok" : "MISSED");
    printf("\n");
  }
  fflush(stdout);
}

/* Rows (count, dim) of about unit norm. */
static float *random_rows(size_t count, size_t dim) {
  float *rows = must_have(sona_calloc(count * dim, sizeof *rows));
  const float norm = sqrtf((float)dim);
  for (size_t i = 0; i < count * dim; i++) rows[i] = (float)sona_random_normal(&rng) / norm;
  return rows;
}

/* An adapter, its instant step, and inputs with score directions as a policy over ARMS arms has them. */
typedef struct learner {
  sona_adapter *adapter;
  sona_instant *instant;
  float *x, *v; /* (INPUTS, dim) */
  size_t dim, at;
} learner;

static learner make(size_t dim, size_t rank, sona_precondition precondition) {
  learner l = {.dim = dim, .x = random_rows(INPUTS, dim), .v = random_rows(INPUTS, dim)};
  float *arms = random_rows(ARMS, dim);
  for (size_t i = 0; i < INPUTS; i++)
    for (size_t j = 0; j < dim; j++) l.v[i * dim + j] = 10 * (arms[i % ARMS * dim + j] - arms[(i + 1 + i % 7) % ARMS * dim + j]);
  sona_free(arms);
  const sona_adapter_options adapter = {.dim = dim, .rank = rank, .rank_max = rank, .micro = 2, .max_discard = 0.05, .scale = 1};
  const sona_instant_options instant = {
      .dim = dim, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 3.0f / ARMS, .precondition = precondition};
  must(sona_adapter_create(&adapter, &l.adapter));
  must(sona_instant_create(&instant, &l.instant));
  return l;
}

static void destroy(learner *l) {
  sona_adapter_destroy(l->adapter);
  sona_instant_destroy(l->instant);
  sona_free(l->x);
  sona_free(l->v);
}

static void step(learner *l) {
  const size_t i = l->at++ % INPUTS;
  must(sona_instant_step(l->instant, l->adapter, l->x + i * l->dim, l->v + i * l->dim, 0.4f, 0.5f, i % 3 == 0, 1, SONA_STEP_OWN, NULL));
}

static void forget_rows(learner *l) { must(sona_adapter_assign(l->adapter, l->x, l->v, l->dim, NULL, 0, 0)); }

/* The step alone: as many as fit before a truncation. */
static void bench_step(void) {
  enum { STEPS = 32 };
  double ns[ROUNDS];
  learner l = make(384, 16, SONA_IDENTITY);
  for (size_t round = 0; round < ROUNDS; round++) {
    forget_rows(&l);
    const double start = now();
    for (int i = 0; i < STEPS; i++) step(&l);
    ns[round] = (now() - start) / STEPS;
  }
  report("instant step", "d=384 identity, v given", ns, 1000);
  destroy(&l);
}

/* Steps with the truncations that they cause. */
static void bench_amortised(const char *what, size_t rank, sona_precondition precondition, double target_ns) {
  double ns[ROUNDS];
  learner l = make(384, rank, precondition);
  const int steps = (int)(rank > 16 ? rank : 16);
  for (int i = 0; i < 4 * steps; i++) step(&l);
  for (size_t round = 0; round < ROUNDS; round++) {
    const double start = now();
    for (int i = 0; i < steps; i++) step(&l);
    ns[round] = (now() - start) / steps;
  }
  report("instant step", what, ns, target_ns);
  destroy(&l);
}

/* One truncation of rank + window rows whose up rows span more than the rank, so that none is free. */
static void bench_truncate(const char *what, size_t rank) {
  double ns[ROUNDS];
  learner l = make(384, rank, SONA_IDENTITY);
  const size_t rows = 2 * rank;
  float *down = random_rows(rows, l.dim), *up = random_rows(rows, l.dim);
  for (size_t round = 0; round < ROUNDS; round++) {
    must(sona_adapter_assign(l.adapter, down, up, l.dim, NULL, rows, rows));
    const double start = now();
    must(sona_adapter_truncate(l.adapter));
    ns[round] = now() - start;
  }
  report("truncation", what, ns, 0);
  sona_free(down);
  sona_free(up);
  destroy(&l);
}

/* What ending a trajectory of two steps takes natively: its record into the ring, the signal's gradient and its norm, two steps. */
static void bench_trajectory(void) {
  enum { DIM = 256, HEAD = 48, STEP_HEAD = 40, RECORD = HEAD + 3 * DIM * 4 + 2 * STEP_HEAD, TRAJECTORIES = 8 };
  double ns[ROUNDS];
  learner l = make(DIM, 16, SONA_IDENTITY);
  const sona_kernels *k = sona_adapter_kernels(l.adapter);
  const sona_ring_options options = {.capacity = 1 << 20};
  sona_ring *ring = NULL;
  must(sona_ring_create(&options, &ring));
  float *gradient = random_rows(1, DIM);
  for (size_t round = 0; round < ROUNDS; round++) {
    forget_rows(&l);
    const double start = now();
    for (int t = 0; t < TRAJECTORIES; t++) {
      void *record;
      const size_t i = l.at % (INPUTS - 1);
      must(sona_ring_reserve(ring, RECORD, &record));
      memset(record, 0, HEAD + 2 * STEP_HEAD);
      memcpy((char *)record + HEAD + 2 * STEP_HEAD, l.x + i * DIM, DIM * sizeof(float));
      memcpy((char *)record + HEAD + 2 * STEP_HEAD + DIM * sizeof(float), l.v + i * DIM, 2 * DIM * sizeof(float));
      must(sona_ring_commit(ring, RECORD));
      memset(gradient, 0, DIM * sizeof *gradient);
      k->axpy(0.3f, l.v + i * DIM, gradient, DIM);
      k->axpy(-0.2f, l.v + (i + 1) * DIM, gradient, DIM);
      sink = sqrtf(k->dot(gradient, gradient, DIM));
      step(&l);
      step(&l);
    }
    ns[round] = (now() - start) / TRAJECTORIES;
    size_t size;
    while (sona_ring_peek(ring, &size)) sona_ring_release(ring);
  }
  report("trajectory, 2 steps", "d=256 record + signal + accumulate", ns, 2200);
  sona_free(gradient);
  sona_ring_destroy(ring);
  destroy(&l);
}

int main(int argc, char **argv) {
  json = argc > 1 && strcmp(argv[1], "--json") == 0;
  sona_random_seed(&rng, 1);
  if (!json) printf("table: %s; median of %d rounds\n", sona_kernels_get(NULL)->isa, ROUNDS);
  bench_step();
  bench_amortised("d=384 identity, folded into rank 16", 16, SONA_IDENTITY, 50e3);
  bench_amortised("d=384 full, folded into rank 16", 16, SONA_FULL, 60e3);
  bench_amortised("d=384 full, folded into rank 64", 64, SONA_FULL, 0);
  bench_truncate("d=384 rank 16, all directions new", 16);
  bench_truncate("d=384 rank 64, all directions new", 64);
  bench_trajectory();
  return 0;
}
