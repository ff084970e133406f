/* How close the best kernel table comes to the memory traffic it cannot avoid.
 *
 *   bench_kernels          an aligned table
 *   bench_kernels --json   one object a line: bench, case, ns, ratio, target, pass
 *
 * ".../limit" rows: its time divided by that of a loop that loads every input once, adds it to something and, where the kernel updates an
 * array, reads, adds to and writes that array; smaller is better.  ".../one_accumulator" rows: how many times faster than the plain
 * AVX2 loop with one accumulator, a scalar horizontal sum and the scale applied to every element; larger is better.
 * The variants of a case are timed in turns, in rotated order, on the same buffers; a ratio is the median of the per-round ratios,
 * because on a shared machine nanoseconds wander by half while such ratios repeat to a few percent. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sona/kernels.h"
#include "sona/sona.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define TARGET __attribute__((target("avx2,fma")))
#define HAVE_ONE_ACCUMULATOR 1
#else
#define TARGET
#define HAVE_ONE_ACCUMULATOR 0
#endif

enum { ROUNDS = 201, MAX_VARIANTS = 3 };

/* Eight floats at any alignment; the compiler splits them where registers are narrower. */
typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias));
#define AT(p, i) (*(lanes *)((p) + (i)))
#define AT_CONST(p, i) (*(const lanes *)((p) + (i)))

typedef struct bench_case {
  const sona_kernels *kernels;
  sona_lora w;
  float *x, *y, *a, *b; /* inputs and, in y, what is updated */
  size_t n, rows, k;
  size_t *index;
} bench_case;

typedef void variant(bench_case *c, size_t repeat);

static volatile float sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values, size_t count) {
  qsort(values, count, sizeof *values, by_value);
  return values[count / 2];
}

/* Nanoseconds of one call of each variant, for each round. */
static void measure(bench_case *c, variant *const *variants, size_t count, double times[MAX_VARIANTS][ROUNDS]) {
  size_t repeat = 1;
  for (double took = 0; took < 20e3 && repeat < 1u << 16; repeat *= 2) {
    double start = now();
    variants[0](c, repeat);
    took = now() - start;
  }
  for (size_t round = 0; round < ROUNDS; round++) {
    for (size_t turn = 0; turn < count; turn++) {
      size_t v = (turn + round) % count;
      double start = now();
      variants[v](c, repeat);
      times[v][round] = (now() - start) / (double)repeat;
    }
  }
}

static int json;

/* Ratio of times[over] to times[under]; a target that is a ceiling passes below it, a floor above. */
static void report(const char *bench, const char *what, double times[MAX_VARIANTS][ROUNDS], size_t over, size_t under, double target,
                   int ceiling) {
  double ratios[ROUNDS], ns[ROUNDS];
  for (size_t i = 0; i < ROUNDS; i++) ratios[i] = times[over][i] / times[under][i];
  memcpy(ns, times[0], sizeof ns);
  double ratio = median(ratios, ROUNDS), typical = median(ns, ROUNDS);
  int pass = ceiling ? ratio <= target : ratio >= target;
  if (json) {
    printf("{\"bench\":\"%s\",\"case\":\"%s\",\"ns\":%.1f,\"ratio\":%.3f,\"target\":%.2f,\"pass\":%s}\n", bench, what, typical, ratio,
           target, pass ? "true" : "false");
  } else {
    printf("%-28s %-18s %12.1f ns %7.2f  %s %.2f  %s\n", bench, what, typical, ratio, ceiling ? "<=" : ">=", target,
           pass ? "ok" : "MISSED");
  }
  fflush(stdout);
}

/* ---- the kernels under test ---- */

static void run_lora(bench_case *c, size_t repeat) {
  while (repeat--) c->kernels->lora_forward(&c->w, c->x, c->y);
}

static void run_fisher(bench_case *c, size_t repeat) {
  while (repeat--) c->kernels->fisher_update(c->y, c->x, 0.01f, c->n);
}

static void run_pull(bench_case *c, size_t repeat) {
  while (repeat--) c->kernels->ewc_pull(c->y, c->x, c->a, c->b, 1e-6f, c->n);
}

/* One call halves and the next doubles, so that y never fades into denormals. */
static void run_scale(bench_case *c, size_t repeat) {
  for (; repeat > 0; repeat--) c->kernels->ewc_scale(c->y, c->x, repeat % 2 ? 1.0f : -0.5f, c->n);
}

static void run_gemv(bench_case *c, size_t repeat) {
  while (repeat--) c->kernels->gemv(c->a, c->n, c->x, c->y, c->rows, c->n);
}

static void run_top_k(bench_case *c, size_t repeat) {
  while (repeat--) c->kernels->top_k(c->a, c->n, c->x, c->rows, c->n, c->k, c->index, c->y);
}

/* ---- what they are compared with; every n is a multiple of 64 ---- */

TARGET static void keep(lanes s) {
  float sum = 0;
  for (int i = 0; i < 8; i++) sum += s[i];
  sink = sum;
}

/* Eight sums, so that no chain of additions is what the limit measures. */
TARGET static void limit_lora_1(const float *x, const float *a, const float *b, float *y, size_t n) {
  lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, t0 = {0}, t1 = {0}, t2 = {0}, t3 = {0}, step = s0 + 1e-6f;
  for (size_t i = 0; i < n; i += 32) {
    s0 += AT_CONST(x, i);
    t0 += AT_CONST(a, i);
    s1 += AT_CONST(x, i + 8);
    t1 += AT_CONST(a, i + 8);
    s2 += AT_CONST(x, i + 16);
    t2 += AT_CONST(a, i + 16);
    s3 += AT_CONST(x, i + 24);
    t3 += AT_CONST(a, i + 24);
  }
  for (size_t i = 0; i < n; i += 32) {
    s0 += AT_CONST(b, i);
    s1 += AT_CONST(b, i + 8);
    s2 += AT_CONST(b, i + 16);
    s3 += AT_CONST(b, i + 24);
    AT(y, i) += step;
    AT(y, i + 8) += step;
    AT(y, i + 16) += step;
    AT(y, i + 24) += step;
  }
  keep(s0 + s1 + s2 + s3 + t0 + t1 + t2 + t3);
}

TARGET static void limit_lora_2(const float *x, const float *a, const float *b, float *y, size_t n) {
  lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, t0 = {0}, t1 = {0}, t2 = {0}, t3 = {0}, step = s0 + 1e-6f;
  for (size_t i = 0; i < n; i += 16) {
    s0 += AT_CONST(x, i);
    s1 += AT_CONST(x, i + 8);
    t0 += AT_CONST(a, i);
    t1 += AT_CONST(a, i + 8);
    t2 += AT_CONST(a, n + i);
    t3 += AT_CONST(a, n + i + 8);
  }
  for (size_t i = 0; i < n; i += 16) {
    s0 += AT_CONST(b, i);
    s1 += AT_CONST(b, i + 8);
    s2 += AT_CONST(b, n + i);
    s3 += AT_CONST(b, n + i + 8);
    AT(y, i) += step;
    AT(y, i + 8) += step;
  }
  keep(s0 + s1 + s2 + s3 + t0 + t1 + t2 + t3);
}

static void run_limit_lora(bench_case *c, size_t repeat) {
  while (repeat--) (c->w.rank == 1 ? limit_lora_1 : limit_lora_2)(c->x, c->w.down, c->w.up, c->y, c->n);
}

/* y += x */
TARGET static void run_limit_update(bench_case *c, size_t repeat) {
  const float *x = c->x;
  float *y = c->y;
  size_t n = c->n;
  while (repeat--) {
    for (size_t i = 0; i < n; i += 16) {
      AT(y, i) += AT_CONST(x, i);
      AT(y, i + 8) += AT_CONST(x, i + 8);
    }
  }
}

/* y /= a, then y /= b = 1 / a: what ewc_scale can reach while every quotient is rounded correctly.  AVX2 divides eight
 * floats in about three cycles, more than the second-level cache needs to stream them. */
TARGET static void run_limit_divide(bench_case *c, size_t repeat) {
  float *y = c->y;
  size_t n = c->n;
  for (; repeat > 0; repeat--) {
    const float *x = repeat % 2 ? c->a : c->b;
    for (size_t i = 0; i < n; i += 16) {
      AT(y, i) /= AT_CONST(x, i);
      AT(y, i + 8) /= AT_CONST(x, i + 8);
    }
  }
}

/* y += x + a + b */
TARGET static void run_limit_update_3(bench_case *c, size_t repeat) {
  const float *x = c->x, *a = c->a, *b = c->b;
  float *y = c->y;
  size_t n = c->n;
  while (repeat--) {
    for (size_t i = 0; i < n; i += 8) AT(y, i) += AT_CONST(x, i) + AT_CONST(a, i) + AT_CONST(b, i);
  }
}

TARGET static void run_limit_read(bench_case *c, size_t repeat) {
  const float *a = c->a;
  size_t n = c->rows * c->n;
  while (repeat--) {
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, t0 = {0}, t1 = {0}, t2 = {0}, t3 = {0};
    for (size_t i = 0; i < n; i += 64) {
      s0 += AT_CONST(a, i);
      s1 += AT_CONST(a, i + 8);
      s2 += AT_CONST(a, i + 16);
      s3 += AT_CONST(a, i + 24);
      t0 += AT_CONST(a, i + 32);
      t1 += AT_CONST(a, i + 40);
      t2 += AT_CONST(a, i + 48);
      t3 += AT_CONST(a, i + 56);
    }
    keep(s0 + s1 + s2 + s3 + t0 + t1 + t2 + t3);
  }
}

#if HAVE_ONE_ACCUMULATOR
TARGET static void one_accumulator(const sona_lora *w, const float *x, float *y) {
  float z[2] = {0};
  for (size_t r = 0; r < w->rank; r++) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t i = 0; i < w->dim; i += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(w->down + r * w->ld + i), sum);
    float part[8];
    _mm256_storeu_ps(part, sum);
    for (int i = 0; i < 8; i++) z[r] += part[i];
  }
  for (size_t i = 0; i < w->dim; i += 8) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t r = 0; r < w->rank; r++) sum = _mm256_fmadd_ps(_mm256_set1_ps(z[r]), _mm256_loadu_ps(w->up + r * w->ld + i), sum);
    sum = _mm256_mul_ps(sum, _mm256_set1_ps(w->scale));
    _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), sum));
  }
}

static void run_one_accumulator(bench_case *c, size_t repeat) {
  while (repeat--) one_accumulator(&c->w, c->x, c->y);
}
#endif

/* ---- the cases ---- */

/* Uniform in [-1, 1). */
static void fill(float *p, size_t n) {
  static uint32_t state = 1;
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    p[i] = (float)(int32_t)state * 0x1p-31f;
  }
}

static float *arena(size_t floats) {
  float *p = sona_calloc(floats, sizeof *p);
  if (!p) {
    fprintf(stderr, "bench_kernels: out of memory\n");
    exit(1);
  }
  fill(p, floats);
  return p;
}

static void bench_lora(const sona_kernels *kernels, size_t rank, size_t d) {
  /* One arena [x | y | down | up]: buffers a multiple of 4 KiB apart would measure the store queue instead. */
  float *p = arena((2 + 2 * rank) * d);
  bench_case c = {.kernels = kernels, .x = p, .y = p + d, .n = d};
  c.w = (sona_lora){.down = p + 2 * d, .up = p + (2 + rank) * d, .ld = d, .dim = d, .rank = rank, .scale = 1e-4f};
  double times[MAX_VARIANTS][ROUNDS];
  char what[64];
  snprintf(what, sizeof what, "r=%zu d=%zu", rank, d);
  double ceiling = rank == 2 || d >= 1024 ? 1.10 : d >= 384 ? 1.20 : 1.40;
#if HAVE_ONE_ACCUMULATOR
  variant *const variants[] = {run_lora, run_limit_lora, run_one_accumulator};
  measure(&c, variants, 3, times);
  report("lora_forward/limit", what, times, 0, 1, ceiling, 1);
  /* Beyond the first-level cache both loops wait for memory. */
  report("lora_forward/one_accumulator", what, times, 2, 0, d <= 1024 ? 2.0 : 1.5, 0);
#else
  variant *const variants[] = {run_lora, run_limit_lora};
  measure(&c, variants, 2, times);
  report("lora_forward/limit", what, times, 0, 1, ceiling, 1);
#endif
  sona_free(p);
}

static void bench_update(const sona_kernels *kernels, const char *name, variant *kernel, variant *limit, size_t n, double target) {
  size_t gap = n + 16;
  float *p = arena(4 * gap);
  bench_case c = {.kernels = kernels, .x = p, .y = p + gap, .a = p + 2 * gap, .b = p + 3 * gap, .n = n};
  for (size_t i = 0; i < n; i++) {
    c.x[i] = 1.0f;
    c.a[i] = 2.0f;
    c.b[i] = 0.5f;
  }
  double times[MAX_VARIANTS][ROUNDS];
  char what[64];
  snprintf(what, sizeof what, "n=%zu", n);
  variant *const variants[] = {kernel, limit};
  measure(&c, variants, 2, times);
  report(name, what, times, 0, 1, target, 1);
  sona_free(p);
}

static void bench_scan(const sona_kernels *kernels, const char *name, variant *kernel, size_t rows, size_t n, double target) {
  float *p = arena(rows * n + n + rows);
  size_t index[10];
  bench_case c = {.kernels = kernels, .a = p, .x = p + rows * n, .y = p + rows * n + n, .n = n, .rows = rows, .k = 10, .index = index};
  double times[MAX_VARIANTS][ROUNDS];
  char what[64];
  snprintf(what, sizeof what, "%zux%zu", rows, n);
  variant *const variants[] = {kernel, run_limit_read};
  measure(&c, variants, 2, times);
  report(name, what, times, 0, 1, target, 1);
  sona_free(p);
}

int main(int argc, char **argv) {
  json = argc > 1 && strcmp(argv[1], "--json") == 0;
  const sona_kernels *kernels = sona_kernels_get(NULL);
  if (!json) printf("table: %s; median of %d rounds\n", kernels->isa, ROUNDS);
#if HAVE_ONE_ACCUMULATOR
  if (strcmp(kernels->isa, "scalar") == 0) {
    fprintf(stderr, "bench_kernels: the limits need a CPU with AVX2 and FMA\n");
    return 1;
  }
#endif
  static const size_t dims[] = {256, 384, 768, 1024, 2048, 4096};
  for (size_t rank = 1; rank <= 2; rank++) {
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) bench_lora(kernels, rank, dims[i]);
  }
  static const size_t sizes[] = {1024, 10240, 102400};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    double target = sizes[i] < 10000 ? 1.50 : 1.15;
    bench_update(kernels, "fisher_update/limit", run_fisher, run_limit_update, sizes[i], target);
    bench_update(kernels, "ewc_pull/limit", run_pull, run_limit_update_3, sizes[i], target);
    bench_update(kernels, "ewc_scale/limit", run_scale, run_limit_update, sizes[i], target);
    bench_update(kernels, "ewc_scale/divider", run_scale, run_limit_divide, sizes[i], target);
  }
  /* Routing reads 20 to 60 rows at a time: no target of the design, a guard against losing what the two-row loop gains. */
  bench_scan(kernels, "gemv/limit", run_gemv, 20, 384, 1.75);
  bench_scan(kernels, "gemv/limit", run_gemv, 1000, 384, 1.25);
  bench_scan(kernels, "gemv/limit", run_gemv, 10000, 384, 1.25);
  bench_scan(kernels, "top_k/limit", run_top_k, 10000, 384, 1.25);
  return 0;
}
