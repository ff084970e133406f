/* Every table against a double-precision reference or the scalar table: all lengths through several unrolled blocks, odd strides,
 * unaligned pointers, special values.  Buffers end at an unreadable page and are surrounded by NaN, so a kernel that reads or writes
 * where it should not crashes or shows. */
#define _DEFAULT_SOURCE
#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "sona/kernels.h"

enum { MAX_N = 130, MAX_RANK = 70, SLOTS = 8, SLOT_FLOATS = 1 << 15, MARGIN = 40 };
#define SURROUND 0x7fc0beefu /* a NaN that no arithmetic makes */

/* UNIT: uniform in [-1, 1).  SMALL_INTEGER: sums are exact in any order.  DENORMAL: products vanish, sums do not.
 * SPECIAL: UNIT with zeros, NaN and infinities. */
typedef enum kind { UNIT, SMALL_INTEGER, DENORMAL, SPECIAL, KINDS } kind;

/* AT_END: the last element touches the unreadable page.  OFF_BY_FOUR: starts 4 bytes behind a page boundary. */
typedef enum place { AT_END, OFF_BY_FOUR, PLACES } place;

typedef struct matrix {
  float *p; /* (rows, n), rows ld apart */
  size_t rows, n, ld;
} matrix;

/* ---- buffers ---- */

static float *slot_start[SLOTS];

static void map_slots(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = SLOT_FLOATS * sizeof(float);
  for (int s = 0; s < SLOTS; s++) {
    char *start = mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + bytes, page, PROT_NONE) != 0) {
      perror("test_kernels: mmap");
      exit(1);
    }
    slot_start[s] = (float *)(void *)start;
  }
}

static size_t span(const matrix *m) { return m->rows && m->n ? (m->rows - 1) * m->ld + m->n : 0; }

static uint64_t random_state = 88172645463325252u;

static uint32_t random_bits(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)(random_state >> 32);
}

static float random_value(kind kind) {
  float unit = (float)(int32_t)random_bits() * 0x1p-31f;
  switch (kind) {
    case SMALL_INTEGER: return (float)((int)(random_bits() % 7) - 3);
    case DENORMAL: return unit * 0x1p-70f; /* products near 2^-140 */
    case SPECIAL: {
      static const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 0x1p-130f};
      uint32_t pick = random_bits() % 200;
      return pick < 6 ? special[pick] : unit;
    }
    default: return unit;
  }
}

static matrix make(int slot, size_t rows, size_t n, size_t ld, place place, kind kind) {
  matrix m = {.rows = rows, .n = n, .ld = ld};
  float *start = slot_start[slot], *end = start + SLOT_FLOATS;
  size_t used = span(&m);
  CHECK(used + 2 * MARGIN < SLOT_FLOATS);
  m.p = place == AT_END ? end - used : start + MARGIN + 1;
  static const uint32_t surround = SURROUND;
  for (float *f = m.p - MARGIN; f < m.p + used + MARGIN && f < end; f++) memcpy(f, &surround, sizeof *f);
  for (size_t i = 0; i < rows; i++) {
    for (size_t j = 0; j < n; j++) m.p[i * ld + j] = random_value(kind);
  }
  return m;
}

static void copy_values(const matrix *to, const matrix *from) {
  for (size_t i = 0; i < to->rows; i++) memcpy(to->p + i * to->ld, from->p + i * from->ld, to->n * sizeof(float));
}

/* Nothing around the rows or between them was written. */
static void check_surround(const matrix *m) {
  const float *end = m->p + span(m), *start = m->p - MARGIN;
  for (const float *f = start; f < end + MARGIN; f++) {
    if (f == end && (uintptr_t)f % (uintptr_t)sysconf(_SC_PAGESIZE) == 0) break;
    ptrdiff_t at = f - m->p;
    if (at >= 0 && f < end && (size_t)at % m->ld < m->n) continue;
    uint32_t bits;
    memcpy(&bits, f, sizeof bits);
    CHECK_EQ(bits, SURROUND);
  }
}

/* ---- the reference ---- */

typedef struct sum {
  double value;
  double size; /* of the terms without their signs */
} sum;

static sum exact_dot(const float *a, const float *b, size_t n) {
  sum s = {0, 0};
  for (size_t i = 0; i < n; i++) {
    s.value += (double)a[i] * b[i];
    s.size += fabs((double)a[i] * b[i]);
  }
  return s;
}

/* How far `terms` float32 products added in any order may be from their sum: one rounding a term and a few for scales and offsets,
 * doubled for what the first order neglects; each product may lose one smallest denormal. */
static double rounding(size_t terms, double size) { return 2.0 * (double)(terms + 4) * (0x1p-24 * size + 0x1p-149); }

static int same(float a, float b) {
  if (isnan(a) || isnan(b)) return isnan(a) && isnan(b);
  return memcmp(&a, &b, sizeof a) == 0;
}

#define CHECK_SAME(got, want)                                                                                               \
  do {                                                                                                                      \
    float same_got = (got), same_want = (want);                                                                             \
    if (!same(same_got, same_want) && check_failed())                                                                       \
      fprintf(stderr, "%s:%d: %s is %.9g, want %s = %.9g\n", __FILE__, __LINE__, #got, same_got, #want, (double)same_want); \
  } while (0)

static const sona_kernels *scalar;

/* ---- sums ---- */

static void check_gemv(const sona_kernels *k, size_t rows, size_t n, size_t gap, kind kind, place place) {
  matrix a = make(0, rows, n, n + gap, place, kind), x = make(1, 1, n, n, place, kind), out = make(2, 1, rows, rows, place, UNIT);
  k->gemv(a.p, a.ld, x.p, out.p, rows, n);
  check_surround(&out);
  for (size_t i = 0; i < rows; i++) {
    sum want = exact_dot(a.p + i * a.ld, x.p, n);
    double bound = kind == SMALL_INTEGER ? 0 : rounding(n, want.size);
    CHECK_NEAR(out.p[i], want.value, bound);
    float alone = 0;
    k->gemv(a.p + i * a.ld, a.ld, x.p, &alone, 1, n);
    CHECK_SAME(alone, out.p[i]); /* a row scores the same without its neighbours */
    CHECK_SAME(k->dot(a.p + i * a.ld, x.p, n), out.p[i]);
  }
}

static void check_gemv_t(const sona_kernels *k, size_t rows, size_t n, size_t gap, kind kind, place place) {
  matrix a = make(0, rows, n, n + gap, place, kind), coef = make(1, 1, rows, rows, place, kind), y = make(2, 1, n, n, place, kind);
  matrix before = make(3, 1, n, n, AT_END, UNIT);
  copy_values(&before, &y);
  k->gemv_t(a.p, a.ld, coef.p, y.p, rows, n);
  check_surround(&y);
  for (size_t j = 0; j < n; j++) {
    sum want = {before.p[j], fabs((double)before.p[j])};
    for (size_t i = 0; i < rows; i++) {
      want.value += (double)coef.p[i] * a.p[i * a.ld + j];
      want.size += fabs((double)coef.p[i] * a.p[i * a.ld + j]);
    }
    double bound = kind == SMALL_INTEGER ? 0 : rounding(rows, want.size);
    CHECK_NEAR(y.p[j], want.value, bound);
  }
}

static void test_sums(const sona_kernels *k) {
  for (int kind = 0; kind < KINDS; kind++) {
    for (int place = 0; place < PLACES; place++) {
      for (size_t n = 0; n <= MAX_N; n++) {
        check_gemv(k, n % 8, n, n % 5, kind, place);
        check_gemv_t(k, n % 11, n, n % 5, kind, place);
      }
      for (size_t rows = 0; rows <= 40; rows++) check_gemv(k, rows, 70 + rows, 3, kind, place);
    }
  }
}

/* A NaN or an infinity is seen wherever it stands. */
static void test_dot_sees_every_element(const sona_kernels *k) {
  for (size_t n = 1; n <= MAX_N; n++) {
    matrix a = make(0, 1, n, n, AT_END, UNIT), b = make(1, 1, n, n, AT_END, UNIT);
    for (size_t i = 0; i < n; i++) b.p[i] = 1.0f;
    for (size_t i = 0; i < n; i++) {
      float kept = a.p[i];
      a.p[i] = NAN;
      CHECK(isnan(k->dot(a.p, b.p, n)));
      a.p[i] = -INFINITY;
      CHECK_SAME(k->dot(a.p, b.p, n), -INFINITY);
      a.p[i] = kept;
    }
  }
}

/* ---- element-wise kernels: every table does the same operations on an element, so the bits agree ---- */

typedef struct operands {
  matrix y, a, b, c; /* y is updated */
  float s;
} operands;

static void call_axpy(const sona_kernels *k, const operands *o) { k->axpy(o->s, o->a.p, o->y.p, o->y.n); }
static void call_fisher(const sona_kernels *k, const operands *o) { k->fisher_update(o->y.p, o->a.p, o->s, o->y.n); }
static void call_pull(const sona_kernels *k, const operands *o) { k->ewc_pull(o->y.p, o->a.p, o->b.p, o->c.p, o->s, o->y.n); }
static void call_scale(const sona_kernels *k, const operands *o) { k->ewc_scale(o->y.p, o->a.p, o->s, o->y.n); }

/* The same in double precision, from the operands and y before the call; *size is the largest magnitude on the way. */
static double exact_axpy(const operands *o, double y, size_t i, double *size) {
  double product = (double)o->s * o->a.p[i];
  *size = fabs(product) + fabs(y);
  return y + product;
}

static double exact_fisher(const operands *o, double y, size_t i, double *size) {
  double g = o->a.p[i];
  *size = g * g + fabs(y);
  return y + o->s * (g * g - y);
}

static double exact_pull(const operands *o, double y, size_t i, double *size) {
  double pull = (double)o->s * o->a.p[i] * ((double)o->b.p[i] - o->c.p[i]);
  *size = fabs(y) + fabs(pull);
  return y - pull;
}

static double exact_scale(const operands *o, double y, size_t i, double *size) {
  double divisor = 1 + (double)o->s * o->a.p[i];
  *size = fabs(y / divisor) * (1 + fabs(divisor - 1)) / fabs(divisor);
  return y / divisor;
}

typedef struct element_wise {
  void (*call)(const sona_kernels *k, const operands *o);
  double (*exact)(const operands *o, double y, size_t i, double *size);
} element_wise;

static void check_element_wise(const sona_kernels *k, const element_wise *kernel, size_t n, kind kind, place place) {
  operands o = {.a = make(0, 1, n, n, place, kind), .b = make(1, 1, n, n, place, kind), .c = make(2, 1, n, n, place, kind)};
  o.s = kind == SMALL_INTEGER ? 0.5f : 0.37f;
  matrix before = make(3, 1, n, n, AT_END, kind), wanted = make(4, 1, n, n, AT_END, UNIT);
  copy_values(&wanted, &before);
  o.y = wanted;
  kernel->call(scalar, &o);
  o.y = make(5, 1, n, n, place, UNIT);
  copy_values(&o.y, &before);
  kernel->call(k, &o);
  check_surround(&o.y);
  for (size_t i = 0; i < n; i++) {
    CHECK_SAME(o.y.p[i], wanted.p[i]);
    double size, exact = kernel->exact(&o, before.p[i], i, &size);
    if (fabs(exact) < (double)FLT_MAX) CHECK_NEAR(o.y.p[i], exact, rounding(2, size)); /* beyond, and at x / 0, the scalar table rules */
  }
}

static void test_element_wise(const sona_kernels *k) {
  static const element_wise kernels[] = {
      {call_axpy, exact_axpy}, {call_fisher, exact_fisher}, {call_pull, exact_pull}, {call_scale, exact_scale}};
  for (size_t e = 0; e < sizeof kernels / sizeof *kernels; e++) {
    for (int kind = 0; kind < KINDS; kind++) {
      for (int place = 0; place < PLACES; place++) {
        for (size_t n = 0; n <= MAX_N; n++) check_element_wise(k, &kernels[e], n, kind, place);
      }
    }
  }
}

static void test_ger(const sona_kernels *k) {
  for (int kind = 0; kind < KINDS; kind++) {
    for (size_t n = 0; n <= MAX_N; n++) {
      size_t rows = n % 6;
      matrix x = make(0, 1, rows, rows, AT_END, kind), y = make(1, 1, n, n, AT_END, kind);
      matrix m = make(2, rows, n, n + n % 3, AT_END, kind), wanted = make(3, rows, n, n, AT_END, UNIT);
      copy_values(&wanted, &m);
      k->ger(0.37f, x.p, y.p, m.p, m.ld, rows, n);
      check_surround(&m);
      for (size_t i = 0; i < rows; i++) {
        scalar->axpy(0.37f * x.p[i], y.p, wanted.p + i * n, n);
        for (size_t j = 0; j < n; j++) CHECK_SAME(m.p[i * m.ld + j], wanted.p[i * n + j]);
      }
    }
  }
}

/* ---- low-rank adapters ---- */

static sona_lora make_lora(size_t rank, size_t dim, size_t gap, int offset, kind kind, place place) {
  matrix down = make(0, rank, dim, dim + gap, place, kind), up = make(1, rank, dim, dim + gap, place, kind);
  sona_lora w = {.down = down.p, .up = up.p, .ld = dim + gap, .dim = dim, .rank = rank};
  w.scale = kind == SMALL_INTEGER ? 0.5f : 0.37f;
  if (offset) w.offset = make(2, 1, rank, rank, place, kind).p;
  return w;
}

static double offset_of(const sona_lora *w, size_t r) { return w->offset ? w->offset[r] : 0.0; }

/* got = y + delta(x) to rounding */
static void check_delta(const sona_lora *w, const float *x, const float *y, const float *got, kind kind) {
  double coef[MAX_RANK], coef_off[MAX_RANK];
  for (size_t r = 0; r < w->rank; r++) {
    sum z = exact_dot(w->down + r * w->ld, x, w->dim);
    coef[r] = w->scale * (z.value + offset_of(w, r));
    coef_off[r] = w->scale * rounding(w->dim + 2, z.size + fabs(offset_of(w, r)));
  }
  for (size_t j = 0; j < w->dim; j++) {
    sum want = {y[j], fabs((double)y[j])};
    double off = 0;
    for (size_t r = 0; r < w->rank; r++) {
      double up = w->up[r * w->ld + j];
      want.value += coef[r] * up;
      want.size += fabs(coef[r] * up);
      off += coef_off[r] * fabs(up);
    }
    double bound = kind == SMALL_INTEGER ? 0 : off + rounding(w->rank, want.size);
    CHECK_NEAR(got[j], want.value, bound);
  }
}

static void check_forward(const sona_kernels *k, const sona_lora *w, kind kind, place place) {
  matrix x = make(3, 1, w->dim, w->dim, place, kind), y = make(4, 1, w->dim, w->dim, place, kind);
  matrix before = make(5, 1, w->dim, w->dim, AT_END, UNIT);
  copy_values(&before, &y);
  k->lora_forward(w, x.p, y.p);
  check_surround(&y);
  check_delta(w, x.p, before.p, y.p, kind);
  if (w->rank > 32) return;
  copy_values(&y, &x); /* y == x gives what a separate y of the same value gives */
  copy_values(&before, &x);
  k->lora_forward(w, x.p, y.p);
  k->lora_forward(w, before.p, before.p);
  for (size_t j = 0; j < w->dim; j++) CHECK_SAME(before.p[j], y.p[j]);
}

static void check_batch(const sona_kernels *k, const sona_lora *w, size_t rows, kind kind, place place) {
  size_t d = w->dim, ldx = d + rows % 3, ldy = d + rows % 4;
  matrix x = make(3, rows, d, ldx, place, kind), y = make(4, rows, d, ldy, place, kind);
  matrix before = make(5, rows, d, d, AT_END, UNIT), alone = make(6, rows, d, d, AT_END, UNIT);
  copy_values(&before, &y);
  copy_values(&alone, &y);
  k->lora_forward_batch(w, x.p, ldx, y.p, ldy, rows);
  check_surround(&y);
  for (size_t i = 0; i < rows; i++) {
    check_delta(w, x.p + i * ldx, before.p + i * d, y.p + i * ldy, kind);
    k->lora_forward_batch(w, x.p + i * ldx, ldx, alone.p + i * d, d, 1);
    for (size_t j = 0; j < d; j++) CHECK_SAME(alone.p[i * d + j], y.p[i * ldy + j]); /* the neighbours do not matter */
  }
}

static void check_gradient(const sona_kernels *k, const sona_lora *w, kind kind, place place) {
  size_t d = w->dim, rank = w->rank, ld = w->ld;
  matrix x = make(3, 1, d, d, place, kind), g = make(4, 1, d, d, place, kind);
  matrix d_down = make(5, rank, d, ld, place, kind), d_up = make(6, rank, d, ld, place, kind);
  matrix before = make(7, 2 * rank, d, d, AT_END, UNIT); /* d_down, then d_up */
  matrix before_down = {before.p, rank, d, d}, before_up = {before.p + rank * d, rank, d, d};
  copy_values(&before_down, &d_down);
  copy_values(&before_up, &d_up);
  k->lora_gradient(w, x.p, g.p, d_down.p, d_up.p);
  check_surround(&d_down);
  check_surround(&d_up);
  for (size_t r = 0; r < rank; r++) {
    sum z = exact_dot(w->down + r * ld, x.p, d), u = exact_dot(w->up + r * ld, g.p, d);
    double for_up = w->scale * (z.value + offset_of(w, r)), for_down = w->scale * u.value;
    double up_off = w->scale * rounding(d + 2, z.size + fabs(offset_of(w, r))), down_off = w->scale * rounding(d + 2, u.size);
    for (size_t j = 0; j < d; j++) {
      double was = before_up.p[r * d + j], added = for_up * g.p[j];
      double bound = kind == SMALL_INTEGER ? 0 : up_off * fabs((double)g.p[j]) + rounding(2, fabs(was) + fabs(added));
      CHECK_NEAR(d_up.p[r * ld + j], was + added, bound);
      was = before_down.p[r * d + j], added = for_down * x.p[j];
      bound = kind == SMALL_INTEGER ? 0 : down_off * fabs((double)x.p[j]) + rounding(2, fabs(was) + fabs(added));
      CHECK_NEAR(d_down.p[r * ld + j], was + added, bound);
    }
  }
}

static void test_lora(const sona_kernels *k) {
  static const size_t dims[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 71, 96, 127, 128, 130};
  static const size_t ranks[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 32, 33, 67};
  for (int kind = 0; kind < KINDS; kind++) {
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
      for (size_t j = 0; j < sizeof dims / sizeof *dims; j++) {
        place place = (i + j) % 2 ? AT_END : OFF_BY_FOUR;
        sona_lora w = make_lora(ranks[i], dims[j], j % 4, (i + j / 2) % 2, kind, place);
        check_forward(k, &w, kind, place);
        check_gradient(k, &w, kind, place);
        check_batch(k, &w, (i + j) % 10, kind, place);
      }
    }
    for (size_t n = 0; n <= MAX_N; n++) { /* the request path: every length, with and without an offset */
      for (size_t rank = 1; rank <= 2; rank++) {
        sona_lora w = make_lora(rank, n, 0, n % 2, kind, AT_END);
        check_forward(k, &w, kind, AT_END);
      }
    }
    for (size_t rows = 0; rows <= 9; rows++) {
      for (size_t rank = 0; rank <= 5; rank++) {
        sona_lora w = make_lora(rank, 77, 1, 1, kind, AT_END);
        check_batch(k, &w, rows, kind, AT_END);
      }
    }
  }
}

/* ---- top_k ---- */

/* Small integers tie all the time and are exact, so indices and scores must be the scalar table's. */
static void check_top_k(const sona_kernels *k, size_t rows, size_t n, size_t count, int nans) {
  matrix a = make(0, rows, n, n + 1, AT_END, SMALL_INTEGER), x = make(1, 1, n, n, AT_END, SMALL_INTEGER);
  for (int i = 0; i < nans && rows && n; i++) a.p[random_bits() % rows * a.ld + random_bits() % n] = i % 3 ? NAN : -INFINITY;
  matrix score = make(2, 1, count, count, AT_END, UNIT);
  size_t *index = malloc((count + 1) * sizeof *index), *wanted_index = malloc((count + 1) * sizeof *index);
  float *wanted_score = malloc((count + 1) * sizeof *wanted_score);
  size_t found = k->top_k(a.p, a.ld, x.p, rows, n, count, index, score.p);
  CHECK_EQ(found, scalar->top_k(a.p, a.ld, x.p, rows, n, count, wanted_index, wanted_score));
  check_surround(&score);
  for (size_t i = 0; i < found; i++) {
    CHECK_EQ(index[i], wanted_index[i]);
    CHECK_SAME(score.p[i], wanted_score[i]);
  }
  free(index);
  free(wanted_index);
  free(wanted_score);
}

/* What the header says, checked without another table. */
static void check_top_k_contract(const sona_kernels *k, size_t rows, size_t n, size_t count) {
  matrix a = make(0, rows, n, n, AT_END, SMALL_INTEGER), x = make(1, 1, n, n, AT_END, SMALL_INTEGER),
         all = make(2, 1, rows, rows, AT_END, UNIT);
  size_t index[256], skipped = 0;
  float score[256];
  for (size_t i = 0; n && i < rows; i += 7) a.p[i * n] = NAN;
  k->gemv(a.p, n, x.p, all.p, rows, n);
  for (size_t i = 0; i < rows; i++) skipped += isnan(all.p[i]) != 0;
  size_t found = k->top_k(a.p, n, x.p, rows, n, count, index, score);
  CHECK_EQ(found, count < rows - skipped ? count : rows - skipped);
  for (size_t i = 0; i < found; i++) {
    CHECK_SAME(score[i], all.p[index[i]]);
    if (i > 0) CHECK(score[i - 1] > score[i] || (score[i - 1] == score[i] && index[i - 1] < index[i]));
  }
  for (size_t row = 0; found == count && found > 0 && row < rows; row++) { /* nothing better was left out */
    int taken = 0;
    for (size_t i = 0; i < found; i++) taken |= index[i] == row;
    if (!taken) CHECK(isnan(all.p[row]) || all.p[row] < score[found - 1] || (all.p[row] == score[found - 1] && row > index[found - 1]));
  }
}

static void test_top_k(const sona_kernels *k) {
  for (size_t trial = 0; trial < 600; trial++) {
    size_t rows = random_bits() % (trial % 3 ? 200 : 700), n = random_bits() % 40;
    check_top_k(k, rows, n, random_bits() % 24, (int)(random_bits() % 12));
    check_top_k(k, rows, n, rows + 3, (int)(random_bits() % 12));
    check_top_k_contract(k, rows, n, random_bits() % 250);
  }
  matrix a = make(0, 9, 5, 5, AT_END, SMALL_INTEGER), x = make(1, 1, 5, 5, AT_END, SMALL_INTEGER);
  size_t index[9];
  float score[9];
  x.p[2] = NAN;
  CHECK_EQ(k->top_k(a.p, 5, x.p, 9, 5, 4, index, score), 0);
}

/* A matrix too large for the cache takes another path: the same bits, and equal rows still tie. */
static void test_long_scan(const sona_kernels *k) {
  enum { ROWS = 2100, N = 129, K = 5 };
  float *a = malloc(ROWS * N * sizeof *a), x[N], out[ROWS], score[K];
  size_t index[K];
  for (size_t i = 0; i < (size_t)ROWS * N; i++) a[i] = random_value(UNIT);
  for (size_t i = 0; i < N; i++) x[i] = random_value(UNIT);
  static const size_t twins[K] = {3, 64, 901, 1500, 2099};
  for (int i = 0; i < K; i++) {
    for (size_t j = 0; j < N; j++) a[twins[i] * N + j] = 3.0f * x[j];
  }
  k->gemv(a, N, x, out, ROWS, N);
  for (size_t i = 0; i < ROWS; i++) CHECK_SAME(out[i], k->dot(a + i * N, x, N));
  CHECK_EQ(k->top_k(a, N, x, ROWS, N, K, index, score), K);
  for (int i = 0; i < K; i++) {
    CHECK_EQ(index[i], twins[i]);
    CHECK_SAME(score[i], out[3]);
  }
  free(a);
}

/* ---- the list of tables ---- */

static void test_dispatch(void) {
  size_t count = sona_kernels_count();
  CHECK(count >= 1);
  CHECK_STR(sona_kernels_at(0)->isa, "scalar");
  CHECK(sona_kernels_at(count) == NULL);
  CHECK(sona_kernels_get(NULL) == sona_kernels_at(count - 1));
  CHECK(sona_kernels_get("") == NULL);
  CHECK(sona_kernels_get("SCALAR") == NULL);
  for (size_t i = 0; i < count; i++) CHECK(sona_kernels_get(sona_kernels_at(i)->isa) == sona_kernels_at(i));
}

/* Floats at an odd address: the same numbers come out. */
static void test_any_address(const sona_kernels *k) {
  enum { ROWS = 7, N = 21, ALL = ROWS * N };
  unsigned char raw[4][4 * ALL + 1]; /* a, x, y, and what comes out */
  float a[ALL], x[N], y[N], out[ALL], want[ALL];
  float *const odd_a = (float *)(void *)(raw[0] + 1), *const odd_x = (float *)(void *)(raw[1] + 1);
  float *const odd_y = (float *)(void *)(raw[2] + 1), *const odd_out = (float *)(void *)(raw[3] + 1);
  for (int i = 0; i < ALL; i++) a[i] = (float)(i % 11) / 11 - 0.4f;
  for (int i = 0; i < N; i++) x[i] = (float)(i % 5) / 5 - 0.3f, y[i] = (float)(i % 3);
  memcpy(raw[0] + 1, a, sizeof a);
  memcpy(raw[1] + 1, x, sizeof x);
  CHECK(k->dot(odd_a, odd_x, N) == k->dot(a, x, N));
#define SAME(call, odd_call, size)                       \
  do {                                                   \
    memset(want, 0, sizeof want);                        \
    memset(raw[3], 0, sizeof raw[3]);                    \
    memcpy(raw[2] + 1, y, sizeof y);                     \
    call;                                                \
    odd_call;                                            \
    memcpy(out, raw[3] + 1, sizeof out);                 \
    CHECK(memcmp(out, want, (size) * sizeof *out) == 0); \
  } while (0)
  SAME(k->axpy(0.5f, x, want, N), k->axpy(0.5f, odd_x, odd_out, N), N);
  SAME(k->gemv(a, N, x, want, ROWS, N), k->gemv(odd_a, N, odd_x, odd_out, ROWS, N), ROWS);
  SAME(k->gemv_t(a, N, x, want, ROWS, N), k->gemv_t(odd_a, N, odd_x, odd_out, ROWS, N), N);
  SAME(k->ger(0.5f, x, y, want, N, ROWS, N), k->ger(0.5f, odd_x, odd_y, odd_out, N, ROWS, N), ALL);
  SAME(k->fisher_update(want, x, 0.1f, N), k->fisher_update(odd_out, odd_x, 0.1f, N), N);
  SAME(k->ewc_pull(want, y, x, a, 2, N), k->ewc_pull(odd_out, odd_y, odd_x, odd_a, 2, N), N);
  SAME(k->ewc_scale(want, y, 2, N), k->ewc_scale(odd_out, odd_y, 2, N), N);
  const sona_lora w = {.down = a, .up = a + 2 * N, .offset = x, .ld = N, .dim = N, .rank = 2, .scale = 2};
  const sona_lora odd_w = {.down = odd_a, .up = odd_a + 2 * N, .offset = odd_x, .ld = N, .dim = N, .rank = 2, .scale = 2};
  SAME(k->lora_forward(&w, x, want), k->lora_forward(&odd_w, odd_x, odd_out), N);
  SAME(k->lora_forward_batch(&w, a, N, want, N, ROWS), k->lora_forward_batch(&odd_w, odd_a, N, odd_out, N, ROWS), ALL);
  SAME(k->lora_gradient(&w, x, y, want, want + 3 * N), k->lora_gradient(&odd_w, odd_x, odd_y, odd_out, odd_out + 3 * N), ALL);
  size_t index[3], odd_index[3];
  SAME(CHECK_EQ(k->top_k(a, N, x, ROWS, N, 3, index, want), 3), CHECK_EQ(k->top_k(odd_a, N, odd_x, ROWS, N, 3, odd_index, odd_out), 3), 3);
  CHECK(memcmp(index, odd_index, sizeof index) == 0);
#undef SAME
}

int main(void) {
  map_slots();
  test_dispatch();
  scalar = sona_kernels_get("scalar");
  const sona_kernels *k;
  for (size_t i = 0; (k = sona_kernels_at(i)) != NULL; i++) {
    test_sums(k);
    test_dot_sees_every_element(k);
    test_element_wise(k);
    test_ger(k);
    test_lora(k);
    test_top_k(k);
    test_long_scan(k);
    test_any_address(k);
  }
  char name[64] = "kernels";
  for (size_t i = 0; (k = sona_kernels_at(i)) != NULL; i++) {
    strncat(name, " ", sizeof name - strlen(name) - 1);
    strncat(name, k->isa, sizeof name - strlen(name) - 1);
  }
  return check_done(name);
}
