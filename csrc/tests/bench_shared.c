/* What embedding costs: a request's forward pass, its record into the shared ring, and new weights from another process.
 *
 *   bench_shared          an aligned table
 *   bench_shared --json   one object a line: bench, case, ns, then ratio, target, pass; or target_ns, pass, null where a row has none
 *
 * ns is the median over the rounds.  The files lie in /dev/shm where there is one, as they should where latency counts, else in the
 * current directory. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../src/random.h"
#include "sona/record.h"
#include "sona/shared_ring.h"
#include "sona/weights.h"

enum { ROUNDS = 201 };

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
  fprintf(stderr, "bench_shared: %s\n", sona_status_str(status));
  exit(1);
}

static const char *verdict(int pass) { return pass ? "ok" : "MISSED"; }

/* target_ns: 0 for none */
static void report(const char *bench, const char *what, double *ns, double target_ns) {
  const double typical = median(ns, ROUNDS);
  const int pass = typical <= target_ns;
  if (json) {
    printf("{\"bench\":\"%s\",\"case\":\"%s\",\"ns\":%.1f", bench, what, typical);
    target_ns > 0 ? printf(",\"target_ns\":%.0f,\"pass\":%s}\n", target_ns, pass ? "true" : "false")
                  : printf(",\"target_ns\":null,\"pass\":null}\n");
  } else {
    printf("%-22s %-34s %12.1f ns", bench, what, typical);
    target_ns > 0 ? printf("   <= %.0f ns  %s\n", target_ns, verdict(pass)) : printf("\n");
  }
}

static void report_ratio(const char *bench, const char *what, double *ns, double *ratios, double target) {
  const double typical = median(ns, ROUNDS), ratio = median(ratios, ROUNDS);
  const int pass = ratio <= target;
  if (json) {
    printf("{\"bench\":\"%s\",\"case\":\"%s\",\"ns\":%.1f,\"ratio\":%.3f,\"target\":%.2f,\"pass\":%s}\n", bench, what, typical, ratio,
           target, pass ? "true" : "false");
  } else {
    printf("%-22s %-34s %12.1f ns   %.2fx  <= %.2f  %s\n", bench, what, typical, ratio, target, verdict(pass));
  }
}

static float *random_floats(size_t n) {
  float *p = sona_calloc(n, sizeof *p);
  if (!p) must(SONA_ENOMEM);
  for (size_t i = 0; i < n; i++) p[i] = (float)sona_random_normal(&rng);
  return p;
}

/* A name where nothing is. */
static const char *new_path(void) {
  static char path[100];
  static int count;
  struct stat found;
  const char *base = stat("/dev/shm", &found) == 0 && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : ".";
  snprintf(path, sizeof path, "%s/sona-bench-%ld-%d", base, (long)getpid(), count++);
  return path;
}

/* ---- the request ---- */

/* A reader's forward pass over the bare kernel on the same rows, in turns. */
static void bench_forward(void) {
  enum { CALLS = 512, DIM = 256, RANK = 2 };
  double ns[ROUNDS], ratios[ROUNDS];
  const sona_adapter_options options = {.dim = DIM, .rank = RANK, .rank_max = RANK, .micro = RANK, .scale = 1e-4f};
  sona_adapter *adapter = NULL;
  must(sona_adapter_create(&options, &adapter));
  float *rows = random_floats(2 * RANK * DIM), *x = random_floats(2 * DIM), *y = x + DIM;
  must(sona_adapter_assign(adapter, rows, rows + RANK * DIM, DIM, NULL, 0, RANK));
  sona_reader *reader = sona_reader_acquire(adapter);
  const sona_kernels *k = sona_adapter_kernels(adapter);
  const sona_lora w = sona_adapter_view(adapter);
  for (size_t round = 0; round < ROUNDS; round++) {
    double took[2];
    for (size_t turn = 0; turn < 2; turn++) {
      const size_t which = (turn + round) % 2;
      const double start = now();
      if (which == 0) {
        for (int i = 0; i < CALLS; i++) sona_adapter_forward(reader, SONA_BOTH, x, y);
      } else {
        for (int i = 0; i < CALLS; i++) k->lora_forward(&w, x, y);
      }
      took[which] = (now() - start) / CALLS;
    }
    ns[round] = took[0];
    ratios[round] = took[0] / took[1];
  }
  sink = y[0];
  report_ratio("reader/kernel", "r=2 d=256", ns, ratios, 1.15);
  sona_reader_release(reader);
  sona_adapter_destroy(adapter);
  sona_free(rows);
  sona_free(x);
}

/* ---- the record ---- */

static void drain(sona_shared_ring *ring) {
  size_t size;
  uint64_t sequence;
  for (const char *record; (record = sona_shared_ring_next(ring, &size, &sequence));) sink = record[size / 2];
  sona_shared_ring_release(ring);
}

/* One step with x, 1.5 KB, written in place.  consumer: another process takes the records meanwhile. */
static void bench_record(int consumer) {
  enum { RECORDS = 64, DIM = 120, CAPACITY = 1 << 20 };
  double ns[ROUNDS];
  const char *path = new_path();
  sona_shared_ring *producer = NULL, *other = NULL;
  must(sona_shared_ring_open(path, SONA_PRODUCER, CAPACITY, &producer));
  pid_t child = 0;
  if (consumer) {
    child = fork();
    if (child == 0) {
      must(sona_shared_ring_open(path, SONA_CONSUMER, 0, &other));
      for (;;) drain(other);
    }
  } else {
    must(sona_shared_ring_open(path, SONA_CONSUMER, 0, &other));
  }
  float *values = random_floats(3 * DIM);
  sona_record_step step = {.reward = 0.5, .expected = 0.25, .activations = values + DIM, .x = values + 2 * DIM};
  const size_t size = sona_record_size(DIM, &step, 1);
  for (size_t round = 0; round < ROUNDS; round++) {
    while (sona_shared_ring_used(producer) > CAPACITY / 2) continue;
    const double start = now();
    for (int i = 0; i < RECORDS; i++) {
      void *record;
      uint64_t sequence;
      step.timestamp = (double)i;
      must(sona_shared_ring_reserve(producer, size, &record));
      must(sona_record_write(record, size, 0, 1000, 0.5, values, DIM, &step, 1));
      must(sona_shared_ring_commit(producer, size, &sequence));
    }
    ns[round] = (now() - start) / RECORDS;
    if (other) drain(other);
  }
  char what[64];
  snprintf(what, sizeof what, consumer ? "%zu B, another process reads" : "%zu B", size);
  report("shared ring, record", what, ns, 1000);
  if (child) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
  }
  sona_shared_ring_close(producer);
  sona_shared_ring_close(other);
  remove(path);
  sona_free(values);
}

/* ---- the weights ---- */

/* From encoding the rows of `layers` adapters to adapters that have them, as two processes do it one after the other. */
static void bench_weights(size_t layers) {
  enum { DIM = 384, RANK = 20, MOST = 12 };
  static double ns[4][ROUNDS];
  const char *path = new_path();
  const sona_adapter_options shape = {.dim = DIM, .rank = RANK, .rank_max = RANK, .micro = 2, .scale = 0.5f};
  const sona_weights_options options = {.layers = layers, .dim = DIM, .max_rank = RANK};
  sona_adapter *from[MOST], *to[MOST];
  const void *factors[MOST];
  void *bytes[MOST];
  size_t sizes[MOST];
  float *rows = random_floats(2 * RANK * DIM);
  for (size_t i = 0; i < layers; i++) {
    must(sona_adapter_create(&shape, &from[i]));
    must(sona_adapter_create(&shape, &to[i]));
    must(sona_adapter_assign(from[i], rows, rows + RANK * DIM, DIM, NULL, RANK, RANK));
    factors[i] = bytes[i] = sona_calloc(sona_adapter_encoded_size(from[i]), 1);
  }
  sona_weights *writer = NULL, *reader = NULL;
  must(sona_weights_create(path, &options, &writer));
  must(sona_weights_open(path, &options, &reader));
  for (size_t round = 0; round < ROUNDS; round++) {
    const double start = now();
    for (size_t i = 0; i < layers; i++) must(sona_adapter_encode(from[i], bytes[i], sona_adapter_encoded_size(from[i]), &sizes[i]));
    const double encoded = now();
    must(sona_weights_publish(writer, factors, sizes, round));
    const double published = now();
    must(sona_weights_adopt(reader, to, NULL));
    const double adopted = now();
    ns[0][round] = encoded - start;
    ns[1][round] = published - encoded;
    ns[2][round] = adopted - published;
    ns[3][round] = adopted - start;
  }
  static const char *const names[] = {"weights, encode", "weights, publish", "weights, adopt", "weights, in all"};
  char what[64];
  snprintf(what, sizeof what, "%zu layer%s, rank %d, d=%d", layers, layers == 1 ? "" : "s", RANK, DIM);
  for (int i = 0; i < 4; i++) report(names[i], what, ns[i], i == 3 ? 10e6 : 0);
  sona_weights_close(writer);
  sona_weights_close(reader);
  remove(path);
  for (size_t i = 0; i < layers; i++) {
    sona_adapter_destroy(from[i]);
    sona_adapter_destroy(to[i]);
    sona_free(bytes[i]);
  }
  sona_free(rows);
}

int main(int argc, char **argv) {
  json = argc > 1 && strcmp(argv[1], "--json") == 0;
  sona_random_seed(&rng, 1);
  bench_forward();
  for (int consumer = 0; consumer < 2; consumer++) bench_record(consumer);
  bench_weights(1);
  bench_weights(12);
  return 0;
}
