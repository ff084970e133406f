/* The vector kernels, written once.  kernels_<isa>.c defines the primitives below and includes this file inside its target region:
 *   VF_TABLE, VF_ISA                 the sona_kernels that this file defines, and its name
 *   vf, VF_WIDTH                     a vector of VF_WIDTH floats
 *   vf_zero() vf_set1(s)             all lanes
 *   vf_load(p) vf_store(p, v)        VF_WIDTH floats, any alignment
 *   vf_load_part(p, k)               k < VF_WIDTH floats, the other lanes 0; touches nothing behind p[k - 1]
 *   vf_store_part(p, v, k)           the first k lanes
 *   vf_add vf_sub vf_mul vf_div      lane by lane
 *   vf_fma(a, b, c)                  a * b + c, rounded once
 *   vf_sum(v)                        the sum of the lanes, in every lane
 *   vf_first(v)                      lane 0
 *   VF_KEEP(v)                       a statement: v stays in its register and is not loaded again
 *
 * Two promises shape the code.  Element-wise kernels multiply and add separately, as the scalar table does, and agree with it bit for
 * bit; memory bounds them, so a fused operation would gain nothing.  An inner product adds in the same order whatever stands around
 * it: <a_i, x> does not depend on how many rows were asked for, so equal rows tie and a subset scores as the whole did, and a vector
 * of a batch does not depend on the vectors beside it. */
#include <math.h>

#define BLOCK ((size_t)4 * VF_WIDTH)
#define CACHED ((size_t)1 << 18) /* floats: 1 MiB */
#define RANKS 32                 /* how many inner products lora_forward holds before it writes y; the promise about y == x */

/* k is VF_WIDTH, known to the compiler, everywhere but in the tail. */
static inline vf load(const float *p, size_t k) { return k < VF_WIDTH ? vf_load_part(p, k) : vf_load(p); }

static inline void store(float *p, vf v, size_t k) {
  if (k < VF_WIDTH) {
    vf_store_part(p, v, k);
  } else {
    vf_store(p, v);
  }
}

/* STEP(i, k) handles elements i .. i + k - 1.  Unrolled by hand: compilers at -O3 do not, and it is worth up to a quarter. */
#define SWEEP(n, STEP)                           \
  do {                                           \
    size_t i = 0;                                \
    for (; i + BLOCK <= (n); i += BLOCK) {       \
      STEP(i, VF_WIDTH);                         \
      STEP(i + VF_WIDTH, VF_WIDTH);              \
      STEP(i + 2 * VF_WIDTH, VF_WIDTH);          \
      STEP(i + 3 * VF_WIDTH, VF_WIDTH);          \
    }                                            \
    for (; i + VF_WIDTH <= (n); i += VF_WIDTH) { \
      STEP(i, VF_WIDTH);                         \
    }                                            \
    if (i < (n)) STEP(i, (n) - i);               \
  } while (0)

/* ---- inner products ---- */

static inline vf dot_1(const float *a, const float *x, size_t n) {
  vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero();
  size_t i = 0;
  for (; i + BLOCK <= n; i += BLOCK) {
    s0 = vf_fma(vf_load(a + i), vf_load(x + i), s0);
    s1 = vf_fma(vf_load(a + i + VF_WIDTH), vf_load(x + i + VF_WIDTH), s1);
    s2 = vf_fma(vf_load(a + i + 2 * VF_WIDTH), vf_load(x + i + 2 * VF_WIDTH), s2);
    s3 = vf_fma(vf_load(a + i + 3 * VF_WIDTH), vf_load(x + i + 3 * VF_WIDTH), s3);
  }
  for (; i + VF_WIDTH <= n; i += VF_WIDTH) s0 = vf_fma(vf_load(a + i), vf_load(x + i), s0);
  if (i < n) s1 = vf_fma(vf_load_part(a + i, n - i), vf_load_part(x + i, n - i), s1);
  return vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)));
}

/* dot_1 of two rows, x loaded once; the same order of additions in each.  Without VF_KEEP gcc folds the loads of x into the
 * multiplications and makes each of them twice: 54 instead of 41 ns for four rows of 384. */
static inline void dot_2(const float *a, const float *b, const float *x, size_t n, vf *sum_a, vf *sum_b) {
  vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero();
  vf t0 = vf_zero(), t1 = vf_zero(), t2 = vf_zero(), t3 = vf_zero();
  size_t i = 0;
  for (; i + BLOCK <= n; i += BLOCK) {
    vf x0 = vf_load(x + i), x1 = vf_load(x + i + VF_WIDTH), x2 = vf_load(x + i + 2 * VF_WIDTH), x3 = vf_load(x + i + 3 * VF_WIDTH);
    VF_KEEP(x0);
    VF_KEEP(x1);
    VF_KEEP(x2);
    VF_KEEP(x3);
    s0 = vf_fma(vf_load(a + i), x0, s0);
    t0 = vf_fma(vf_load(b + i), x0, t0);
    s1 = vf_fma(vf_load(a + i + VF_WIDTH), x1, s1);
    t1 = vf_fma(vf_load(b + i + VF_WIDTH), x1, t1);
    s2 = vf_fma(vf_load(a + i + 2 * VF_WIDTH), x2, s2);
    t2 = vf_fma(vf_load(b + i + 2 * VF_WIDTH), x2, t2);
    s3 = vf_fma(vf_load(a + i + 3 * VF_WIDTH), x3, s3);
    t3 = vf_fma(vf_load(b + i + 3 * VF_WIDTH), x3, t3);
  }
  for (; i + VF_WIDTH <= n; i += VF_WIDTH) {
    vf x0 = vf_load(x + i);
    s0 = vf_fma(vf_load(a + i), x0, s0);
    t0 = vf_fma(vf_load(b + i), x0, t0);
  }
  if (i < n) {
    vf x0 = vf_load_part(x + i, n - i);
    s1 = vf_fma(vf_load_part(a + i, n - i), x0, s1);
    t1 = vf_fma(vf_load_part(b + i, n - i), x0, t1);
  }
  *sum_a = vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)));
  *sum_b = vf_sum(vf_add(vf_add(t0, t1), vf_add(t2, t3)));
}

static float dot(const float *a, const float *b, size_t n) { return vf_first(dot_1(a, b, n)); }

/* Two rows at a time are faster while the matrix comes out of the second-level cache; a longer scan is faster as one stream. */
static inline int pairs_pay(size_t rows, size_t n) { return rows * n <= CACHED; }

static inline void scores(const float *a, size_t lda, const float *x, loose_float *out, size_t rows, size_t n, int in_pairs) {
  size_t i = 0;
  for (; in_pairs && i + 2 <= rows; i += 2) {
    vf s, t;
    dot_2(a + i * lda, a + (i + 1) * lda, x, n, &s, &t);
    out[i] = vf_first(s);
    out[i + 1] = vf_first(t);
  }
  for (; i < rows; i++) out[i] = vf_first(dot_1(a + i * lda, x, n));
}

static void gemv(const float *a, size_t lda, const float *x, loose_float *out, size_t rows, size_t n) {
  scores(a, lda, x, out, rows, n, pairs_pay(rows, n));
}

/* ---- element-wise ---- */

static void axpy(float alpha, const float *x, float *y, size_t n) {
  const vf c = vf_set1(alpha);
#define STEP(i, k) store(y + (i), vf_add(load(y + (i), k), vf_mul(c, load(x + (i), k))), k)
  SWEEP(n, STEP);
#undef STEP
}

static void ger(float alpha, const loose_float *x, const float *y, float *m, size_t ldm, size_t rows, size_t n) {
  for (size_t i = 0; i < rows; i++) axpy(alpha * x[i], y, m + i * ldm, n);
}

static void fisher_update(float *f, const float *g, float decay, size_t n) {
  const vf d = vf_set1(decay);
#define STEP(i, k)                                               \
  do {                                                           \
    vf f_i = load(f + (i), k), g_i = load(g + (i), k);           \
    f_i = vf_add(f_i, vf_mul(d, vf_sub(vf_mul(g_i, g_i), f_i))); \
    store(f + (i), f_i, k);                                      \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

static void ewc_pull(float *g, const float *f, const float *w, const float *anchor, float lambda, size_t n) {
  const vf l = vf_set1(lambda);
#define STEP(i, k)                                             \
  do {                                                         \
    vf away = vf_sub(load(w + (i), k), load(anchor + (i), k)); \
    vf pull = vf_mul(vf_mul(l, load(f + (i), k)), away);       \
    store(g + (i), vf_sub(load(g + (i), k), pull), k);         \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

/* Bound by the divider.  A reciprocal estimate and a Newton step would take 0.88 of the time, but miss the quotient by up to 3 ulp, and
 * infinity by a NaN; with a second step that mends the rounding it takes 1.28. */
static void ewc_scale(float *g, const float *f, float lambda, size_t n) {
  const vf l = vf_set1(lambda), one = vf_set1(1.0f);
#define STEP(i, k) store(g + (i), vf_div(load(g + (i), k), vf_add(one, vf_mul(l, load(f + (i), k)))), k)
  SWEEP(n, STEP);
#undef STEP
}

/* ---- y += sum of scaled rows ---- */

static inline void add_1(vf c, const float *a, float *y, size_t n) {
#define STEP(i, k) store(y + (i), vf_fma(c, load(a + (i), k), load(y + (i), k)), k)
  SWEEP(n, STEP);
#undef STEP
}

static inline void add_2(vf c, vf d, const float *a, const float *b, float *y, size_t n) {
#define STEP(i, k) store(y + (i), vf_fma(d, load(b + (i), k), vf_fma(c, load(a + (i), k), load(y + (i), k))), k)
  SWEEP(n, STEP);
#undef STEP
}

static inline void add_4(const loose_float *coef, const float *a, size_t lda, float *y, size_t n) {
  const vf c0 = vf_set1(coef[0]), c1 = vf_set1(coef[1]), c2 = vf_set1(coef[2]), c3 = vf_set1(coef[3]);
  const float *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda;
#define STEP(i, k)                                                                        \
  do {                                                                                    \
    vf s = vf_fma(c1, load(a1 + (i), k), vf_fma(c0, load(a + (i), k), load(y + (i), k))); \
    store(y + (i), vf_fma(c3, load(a3 + (i), k), vf_fma(c2, load(a2 + (i), k), s)), k);   \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

static void gemv_t(const float *a, size_t lda, const loose_float *coef, float *y, size_t rows, size_t n) {
  for (; rows >= 4; rows -= 4, a += 4 * lda, coef += 4) add_4(coef, a, lda, y, n);
  if (rows >= 2) add_2(vf_set1(coef[0]), vf_set1(coef[1]), a, a + lda, y, n);
  if (rows % 2) add_1(vf_set1(coef[rows - 1]), a + (rows - 1) * lda, y, n);
}

/* ---- low-rank adapters ---- */

/* scale * (sum + offset[r]), in every lane as sum is */
static inline vf coefficient(const sona_lora *w, size_t r, vf sum) {
  if (w->offset) sum = vf_add(sum, vf_set1(((const loose_float *)w->offset)[r]));
  return vf_mul(sum, vf_set1(w->scale));
}

/* Not inlined, because ranks 1 and 2 would then pay for its stack frame. */
__attribute__((noinline)) static void lora_many(const sona_lora *w, const float *x, float *y) {
  float coef[RANKS];
  for (size_t from = 0; from < w->rank; from += RANKS) {
    size_t ranks = w->rank - from < RANKS ? w->rank - from : RANKS;
    gemv(w->down + from * w->ld, w->ld, x, coef, ranks, w->dim);
    for (size_t r = 0; r < ranks; r++) coef[r] = w->scale * (coef[r] + (w->offset ? ((const loose_float *)w->offset)[from + r] : 0.0f));
    gemv_t(w->up + from * w->ld, w->ld, coef, y, ranks, w->dim);
  }
}

/* y += (c a) sum.  The products are made while sum is still on its way, so that nothing but the last step waits for it: 6 % of a call at
 * d=1024. */
static inline void add_scaled(vf c, vf sum, const float *a, float *y, size_t n) {
#define STEP(i, k) store(y + (i), vf_fma(sum, vf_mul(c, load(a + (i), k)), load(y + (i), k)), k)
  SWEEP(n, STEP);
#undef STEP
}

/* Two sweeps: the request path is bound by its loads and stores, and this makes each of them once. */
static void lora_forward(const sona_lora *w, const float *x, float *y) {
  const size_t n = w->dim, ld = w->ld;
  if (w->rank == 1) {
    vf s = dot_1(w->down, x, n);
    if (w->offset) s = vf_add(s, vf_set1(((const loose_float *)w->offset)[0]));
    add_scaled(vf_set1(w->scale), s, w->up, y, n);
  } else if (w->rank == 2) {
    vf s, t;
    dot_2(w->down, w->down + ld, x, n, &s, &t);
    add_2(coefficient(w, 0, s), coefficient(w, 1, t), w->up, w->up + ld, y, n);
  } else {
    lora_many(w, x, y);
  }
}

static void lora_gradient(const sona_lora *w, const float *x, const float *g, float *d_down, float *d_up) {
  const vf scale = vf_set1(w->scale);
  for (size_t r = 0; r < w->rank; r++) {
    add_1(coefficient(w, r, dot_1(w->down + r * w->ld, x, w->dim)), g, d_up + r * w->ld, w->dim);
    add_1(vf_mul(scale, dot_1(w->up + r * w->ld, g, w->dim)), x, d_down + r * w->ld, w->dim);
  }
}

/* ---- four input vectors at a time: a row of the adapter is loaded once for all of them ---- */

/* <x_j, a>, two chains of additions each */
static inline void dot_4x1(const float *const x[4], const float *a, size_t n, vf sum[4]) {
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero();
  vf t0 = vf_zero(), t1 = vf_zero(), t2 = vf_zero(), t3 = vf_zero();
  size_t i = 0;
  for (; i + 2 * VF_WIDTH <= n; i += 2 * VF_WIDTH) {
    vf front = vf_load(a + i), back = vf_load(a + i + VF_WIDTH);
    VF_KEEP(front);
    VF_KEEP(back);
    s0 = vf_fma(front, vf_load(x0 + i), s0);
    t0 = vf_fma(back, vf_load(x0 + i + VF_WIDTH), t0);
    s1 = vf_fma(front, vf_load(x1 + i), s1);
    t1 = vf_fma(back, vf_load(x1 + i + VF_WIDTH), t1);
    s2 = vf_fma(front, vf_load(x2 + i), s2);
    t2 = vf_fma(back, vf_load(x2 + i + VF_WIDTH), t2);
    s3 = vf_fma(front, vf_load(x3 + i), s3);
    t3 = vf_fma(back, vf_load(x3 + i + VF_WIDTH), t3);
  }
  for (; i < n; i += VF_WIDTH) { /* at most twice */
    vf a_i = load(a + i, n - i);
    s0 = vf_fma(a_i, load(x0 + i, n - i), s0);
    s1 = vf_fma(a_i, load(x1 + i, n - i), s1);
    s2 = vf_fma(a_i, load(x2 + i, n - i), s2);
    s3 = vf_fma(a_i, load(x3 + i, n - i), s3);
  }
  sum[0] = vf_sum(vf_add(s0, t0)), sum[1] = vf_sum(vf_add(s1, t1));
  sum[2] = vf_sum(vf_add(s2, t2)), sum[3] = vf_sum(vf_add(s3, t3));
}

/* s += a x, t += b x */
static inline void add_products(vf a, vf b, const float *x, size_t k, vf *s, vf *t) {
  vf x_i = load(x, k);
  VF_KEEP(x_i);
  *s = vf_fma(a, x_i, *s);
  *t = vf_fma(b, x_i, *t);
}

/* <x_j, a> and <x_j, b>: eight chains, as many as two multipliers of latency four can keep busy */
static inline void dot_4x2(const float *const x[4], const float *a, const float *b, size_t n, vf sum_a[4], vf sum_b[4]) {
  const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero();
  vf t0 = vf_zero(), t1 = vf_zero(), t2 = vf_zero(), t3 = vf_zero();
#define STEP(i, k)                                     \
  do {                                                 \
    vf a_i = load(a + (i), k), b_i = load(b + (i), k); \
    VF_KEEP(a_i);                                      \
    VF_KEEP(b_i);                                      \
    add_products(a_i, b_i, x0 + (i), k, &s0, &t0);     \
    add_products(a_i, b_i, x1 + (i), k, &s1, &t1);     \
    add_products(a_i, b_i, x2 + (i), k, &s2, &t2);     \
    add_products(a_i, b_i, x3 + (i), k, &s3, &t3);     \
  } while (0)
  size_t i = 0; /* not SWEEP: unrolling costs a few percent here */
  for (; i + VF_WIDTH <= n; i += VF_WIDTH) STEP(i, VF_WIDTH);
  if (i < n) STEP(i, n - i);
#undef STEP
  sum_a[0] = vf_sum(s0), sum_a[1] = vf_sum(s1), sum_a[2] = vf_sum(s2), sum_a[3] = vf_sum(s3);
  sum_b[0] = vf_sum(t0), sum_b[1] = vf_sum(t1), sum_b[2] = vf_sum(t2), sum_b[3] = vf_sum(t3);
}

/* y_j += c_j a */
static inline void add_4x1(const float c[4], const float *a, float *y, size_t ldy, size_t n) {
  const vf c0 = vf_set1(c[0]), c1 = vf_set1(c[1]), c2 = vf_set1(c[2]), c3 = vf_set1(c[3]);
  float *y1 = y + ldy, *y2 = y1 + ldy, *y3 = y2 + ldy;
#define STEP(i, k)                                          \
  do {                                                      \
    vf a_i = load(a + (i), k);                              \
    VF_KEEP(a_i);                                           \
    store(y + (i), vf_fma(c0, a_i, load(y + (i), k)), k);   \
    store(y1 + (i), vf_fma(c1, a_i, load(y1 + (i), k)), k); \
    store(y2 + (i), vf_fma(c2, a_i, load(y2 + (i), k)), k); \
    store(y3 + (i), vf_fma(c3, a_i, load(y3 + (i), k)), k); \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

/* y_j += c_j a + d_j b */
static inline void add_4x2(const float c[4], const float d[4], const float *a, const float *b, float *y, size_t ldy, size_t n) {
  const vf c0 = vf_set1(c[0]), c1 = vf_set1(c[1]), c2 = vf_set1(c[2]), c3 = vf_set1(c[3]);
  const vf d0 = vf_set1(d[0]), d1 = vf_set1(d[1]), d2 = vf_set1(d[2]), d3 = vf_set1(d[3]);
  float *y1 = y + ldy, *y2 = y1 + ldy, *y3 = y2 + ldy;
#define STEP(i, k)                                                           \
  do {                                                                       \
    vf a_i = load(a + (i), k), b_i = load(b + (i), k);                       \
    VF_KEEP(a_i);                                                            \
    VF_KEEP(b_i);                                                            \
    store(y + (i), vf_fma(d0, b_i, vf_fma(c0, a_i, load(y + (i), k))), k);   \
    store(y1 + (i), vf_fma(d1, b_i, vf_fma(c1, a_i, load(y1 + (i), k))), k); \
    store(y2 + (i), vf_fma(d2, b_i, vf_fma(c2, a_i, load(y2 + (i), k))), k); \
    store(y3 + (i), vf_fma(d3, b_i, vf_fma(c3, a_i, load(y3 + (i), k))), k); \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

/* coef[j] = scale * (sum[j] + offset[r]) */
static inline void coefficients(const sona_lora *w, size_t r, const vf sum[4], float coef[4]) {
  for (size_t j = 0; j < 4; j++) coef[j] = vf_first(coefficient(w, r, sum[j]));
}

/* rows <= 4 of y; x always holds four.  The sums of a row do not depend on the rows beside it, and neither do the additions to y:
 * what is left of a batch comes out as it would inside a block of four. */
static void lora_block(const sona_lora *w, const float *const x[4], float *y, size_t ldy, size_t rows) {
  const size_t n = w->dim, ld = w->ld;
  float coef[RANKS][4];
  for (size_t from = 0; from < w->rank; from += RANKS) {
    const size_t ranks = w->rank - from < RANKS ? w->rank - from : RANKS;
    const float *down = w->down + from * ld, *up = w->up + from * ld;
    vf s[4], t[4];
    for (size_t r = 0; r + 2 <= ranks; r += 2) {
      dot_4x2(x, down + r * ld, down + (r + 1) * ld, n, s, t);
      coefficients(w, from + r, s, coef[r]);
      coefficients(w, from + r + 1, t, coef[r + 1]);
    }
    if (ranks % 2) {
      dot_4x1(x, down + (ranks - 1) * ld, n, s);
      coefficients(w, from + ranks - 1, s, coef[ranks - 1]);
    }
    if (rows == 4) {
      for (size_t r = 0; r + 2 <= ranks; r += 2) add_4x2(coef[r], coef[r + 1], up + r * ld, up + (r + 1) * ld, y, ldy, n);
      if (ranks % 2) add_4x1(coef[ranks - 1], up + (ranks - 1) * ld, y, ldy, n);
    } else {
      for (size_t r = 0; r < ranks; r++) {
        for (size_t j = 0; j < rows; j++) add_1(vf_set1(coef[r][j]), up + r * ld, y + j * ldy, n);
      }
    }
  }
}

static void lora_forward_batch(const sona_lora *w, const float *x, size_t ldx, float *y, size_t ldy, size_t rows) {
  for (; rows >= 4; rows -= 4, x += 4 * ldx, y += 4 * ldy) {
    const float *const four[4] = {x, x + ldx, x + 2 * ldx, x + 3 * ldx};
    lora_block(w, four, y, ldy, 4);
  }
  if (rows > 0) {
    const float *const some[4] = {x, rows > 1 ? x + ldx : x, rows > 2 ? x + 2 * ldx : x, x};
    lora_block(w, some, y, ldy, rows);
  }
}

/* ---- search ---- */

/* index and score hold a heap with the worst pair on top: the smaller score, or at equal scores the later row. */
static inline int worse(float score_a, size_t index_a, float score_b, size_t index_b) {
  return score_a < score_b || (score_a == score_b && index_a > index_b);
}

/* Puts the pair at position `at`, whose place is free, or below it. */
static void sift_down(loose_float *score, size_t *index, size_t at, size_t count, float s, size_t row) {
  for (size_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && worse(score[child + 1], index[child + 1], score[child], index[child])) child++;
    if (!worse(score[child], index[child], s, row)) break;
    score[at] = score[child];
    index[at] = index[child];
  }
  score[at] = s;
  index[at] = row;
}

static void sift_up(loose_float *score, size_t *index, size_t at, float s, size_t row) {
  for (size_t parent; at > 0; at = parent) {
    parent = (at - 1) / 2;
    if (!worse(s, row, score[parent], index[parent])) break;
    score[at] = score[parent];
    index[at] = index[parent];
  }
  score[at] = s;
  index[at] = row;
}

static inline int any_above(const float *s, size_t n, float bar) {
  int any = 0;
  for (size_t i = 0; i < n; i++) any |= s[i] > bar;
  return any;
}

static size_t top_k(const float *a, size_t lda, const float *x, size_t rows, size_t n, size_t k, size_t *index, loose_float *score) {
  enum { SOME = 256 };
  float some[SOME];
  const int in_pairs = pairs_pay(rows, n);
  size_t found = 0;
  for (size_t from = 0; k > 0 && from < rows; from += SOME) {
    const size_t count = rows - from < SOME ? rows - from : SOME;
    scores(a + from * lda, lda, x, some, count, n, in_pairs);
    if (found == k && !any_above(some, count, score[0])) continue; /* most of a long scan */
    for (size_t i = 0; i < count; i++) {
      if (isnan(some[i])) continue;
      if (found < k) {
        sift_up(score, index, found++, some[i], from + i);
      } else if (some[i] > score[0]) {
        sift_down(score, index, 0, k, some[i], from + i);
      }
    }
  }
  /* Take the worst off the heap into the place it leaves: largest first at the end. */
  for (size_t last = found; last-- > 1;) {
    float s = score[last];
    size_t row = index[last];
    score[last] = score[0];
    index[last] = index[0];
    sift_down(score, index, 0, last, s, row);
  }
  return found;
}

const sona_kernels VF_TABLE = {
    .isa = VF_ISA,
    .dot = dot,
    .axpy = axpy,
    .gemv = gemv,
    .gemv_t = gemv_t,
    .ger = ger,
    .lora_forward = lora_forward,
    .lora_forward_batch = lora_forward_batch,
    .lora_gradient = lora_gradient,
    .fisher_update = fisher_update,
    .ewc_pull = ewc_pull,
    .ewc_scale = ewc_scale,
    .top_k = top_k,
};
