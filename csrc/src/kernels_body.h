/* The vector kernels, written once.  kernels_<isa>.c defines the primitives below and includes this file inside its target region:
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
 * it, so <a_i, x> does not depend on how many rows were asked for: equal rows tie, and a subset scores as the whole did. */
#include <math.h>

#define BLOCK ((size_t)4 * VF_WIDTH)
#define CACHED ((size_t)1 << 18) /* floats: 1 MiB */
#define RANKS 32 /* how many inner products lora_forward holds before it writes y; the promise about y == x */

/* k is VF_WIDTH, known to the compiler, everywhere but in the tail. */
static inline vf load(const float *p, size_t k) { return k < VF_WIDTH ? vf_load_part(p, k) : vf_load(p); }

static inline void store(float *p, vf v, size_t k) {
  if (k < VF_WIDTH) {
    vf_store_part(p, v, k);
  } else {
    vf_store(p, v);
  }
}

/* STEP(i, k) handles elements i .. i + k - 1.  Unrolled by hand: compilers at -O3 do not, and it is worth up to a third. */
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
    if (i < (n)) STEP(i, (n)-i);                 \
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

static inline void scores(const float *a, size_t lda, const float *x, float *out, size_t rows, size_t n, int in_pairs) {
  size_t i = 0;
  for (; in_pairs && i + 2 <= rows; i += 2) {
    vf s, t;
    dot_2(a + i * lda, a + (i + 1) * lda, x, n, &s, &t);
    out[i] = vf_first(s);
    out[i + 1] = vf_first(t);
  }
  for (; i < rows; i++) out[i] = vf_first(dot_1(a + i * lda, x, n));
}

static void gemv(const float *a, size_t lda, const float *x, float *out, size_t rows, size_t n) {
  scores(a, lda, x, out, rows, n, pairs_pay(rows, n));
}

/* ---- element-wise ---- */

static void axpy(float alpha, const float *x, float *y, size_t n) {
  const vf c = vf_set1(alpha);
#define STEP(i, k) store(y + (i), vf_add(load(y + (i), k), vf_mul(c, load(x + (i), k))), k)
  SWEEP(n, STEP);
#undef STEP
}

static void ger(float alpha, const float *x, const float *y, float *m, size_t ldm, size_t rows, size_t n) {
  for (size_t i = 0; i < rows; i++) axpy(alpha * x[i], y, m + i * ldm, n);
}

static void fisher_update(float *f, const float *g, float decay, size_t n) {
  const vf d = vf_set1(decay);
#define STEP(i, k)                                                       \
  do {                                                                   \
    vf f_i = load(f + (i), k), g_i = load(g + (i), k);                   \
    f_i = vf_add(f_i, vf_mul(d, vf_sub(vf_mul(g_i, g_i), f_i)));         \
    store(f + (i), f_i, k);                                              \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

static void ewc_pull(float *g, const float *f, const float *w, const float *anchor, float lambda, size_t n) {
  const vf l = vf_set1(lambda);
#define STEP(i, k)                                                       \
  do {                                                                   \
    vf away = vf_sub(load(w + (i), k), load(anchor + (i), k));           \
    vf pull = vf_mul(vf_mul(l, load(f + (i), k)), away);                 \
    store(g + (i), vf_sub(load(g + (i), k), pull), k);                   \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

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

static inline void add_4(const float *coef, const float *a, size_t lda, float *y, size_t n) {
  const vf c0 = vf_set1(coef[0]), c1 = vf_set1(coef[1]), c2 = vf_set1(coef[2]), c3 = vf_set1(coef[3]);
  const float *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda;
#define STEP(i, k)                                                                                           \
  do {                                                                                                       \
    vf s = vf_fma(c1, load(a1 + (i), k), vf_fma(c0, load(a + (i), k), load(y + (i), k)));                    \
    store(y + (i), vf_fma(c3, load(a3 + (i), k), vf_fma(c2, load(a2 + (i), k), s)), k);                      \
  } while (0)
  SWEEP(n, STEP);
#undef STEP
}

static void gemv_t(const float *a, size_t lda, const float *coef, float *y, size_t rows, size_t n) {
  for (; rows >= 4; rows -= 4, a += 4 * lda, coef += 4) add_4(coef, a, lda, y, n);
  if (rows >= 2) add_2(vf_set1(coef[0]), vf_set1(coef[1]), a, a + lda, y, n);
  if (rows % 2) add_1(vf_set1(coef[rows - 1]), a + (rows - 1) * lda, y, n);
}

/* ---- low-rank adapters ---- */

/* scale * (sum + offset[r]), in every lane as sum is */
static inline vf coefficient(const sona_lora *w, size_t r, vf sum) {
  if (w->offset) sum = vf_add(sum, vf_set1(w->offset[r]));
  return vf_mul(sum, vf_set1(w->scale));
}

/* Ranks 1 and 2 are the request path.  `dim` is a multiple of BLOCK where the caller says so, and the tails vanish. */
static inline void lora_1(const sona_lora *w, const float *x, float *y, size_t dim) {
  add_1(coefficient(w, 0, dot_1(w->down, x, dim)), w->up, y, dim);
}

static inline void lora_2(const sona_lora *w, const float *x, float *y, size_t dim) {
  vf s, t;
  dot_2(w->down, w->down + w->ld, x, dim, &s, &t);
  add_2(coefficient(w, 0, s), coefficient(w, 1, t), w->up, w->up + w->ld, y, dim);
}

__attribute__((noinline)) static void lora_many(const sona_lora *w, const float *x, float *y) {
  float coef[RANKS];
  for (size_t from = 0; from < w->rank; from += RANKS) {
    size_t ranks = w->rank - from < RANKS ? w->rank - from : RANKS;
    gemv(w->down + from * w->ld, w->ld, x, coef, ranks, w->dim);
    for (size_t r = 0; r < ranks; r++) coef[r] = w->scale * (coef[r] + (w->offset ? w->offset[from + r] : 0.0f));
    gemv_t(w->up + from * w->ld, w->ld, coef, y, ranks, w->dim);
  }
}

static void lora_forward(const sona_lora *w, const float *x, float *y) {
  if (w->rank == 1) {
    lora_1(w, x, y, w->dim);
  } else if (w->rank == 2) {
    lora_2(w, x, y, w->dim);
  } else {
    lora_many(w, x, y);
  }
}

static void lora_forward_batch(const sona_lora *w, const float *x, size_t ldx, float *y, size_t ldy, size_t rows) {
  for (size_t i = 0; i < rows; i++) lora_forward(w, x + i * ldx, y + i * ldy);
}

static void lora_gradient(const sona_lora *w, const float *x, const float *g, float *d_down, float *d_up) {
  const vf scale = vf_set1(w->scale);
  for (size_t r = 0; r < w->rank; r++) {
    add_1(coefficient(w, r, dot_1(w->down + r * w->ld, x, w->dim)), g, d_up + r * w->ld, w->dim);
    add_1(vf_mul(scale, dot_1(w->up + r * w->ld, g, w->dim)), x, d_down + r * w->ld, w->dim);
  }
}

/* ---- search ---- */

/* index and score hold a heap with the worst pair on top: the smaller score, or at equal scores the later row. */
static inline int worse(float score_a, size_t index_a, float score_b, size_t index_b) {
  return score_a < score_b || (score_a == score_b && index_a > index_b);
}

/* Puts the pair at position `at`, whose place is free, or below it. */
static void sift_down(float *score, size_t *index, size_t at, size_t count, float s, size_t row) {
  for (size_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && worse(score[child + 1], index[child + 1], score[child], index[child])) child++;
    if (!worse(score[child], index[child], s, row)) break;
    score[at] = score[child];
    index[at] = index[child];
  }
  score[at] = s;
  index[at] = row;
}

static void sift_up(float *score, size_t *index, size_t at, float s, size_t row) {
  for (size_t parent; at > 0; at = parent) {
    parent = (at - 1) / 2;
    if (!worse(s, row, score[parent], index[parent])) break;
    score[at] = score[parent];
    index[at] = index[parent];
  }
  score[at] = s;
  index[at] = row;
}

static size_t top_k(const float *a, size_t lda, const float *x, size_t rows, size_t n, size_t k, size_t *index, float *score) {
  float some[64];
  const int in_pairs = pairs_pay(rows, n);
  size_t found = 0;
  if (k == 0) return 0;
  for (size_t from = 0; from < rows; from += 64) {
    size_t count = rows - from < 64 ? rows - from : 64;
    scores(a + from * lda, lda, x, some, count, n, in_pairs);
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

#undef SWEEP
#undef RANKS
#undef BLOCK
