/* The kernels in plain loops.  This table runs everywhere and is the oracle that every other table is tested against, so it is written
 * on its own and shares no text with them. */
#include "target.h"

#define RANKS 32 /* how many inner products lora_forward holds before it writes y; the promise about y == x */

static float dot(const loose_float *a, const loose_float *b, size_t n) {
  float sum = 0.0f;
  for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static void axpy(float alpha, const loose_float *x, loose_float *y, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

static void gemv(const loose_float *a, size_t lda, const loose_float *x, loose_float *out, size_t rows, size_t n) {
  for (size_t i = 0; i < rows; i++) out[i] = dot(a + i * lda, x, n);
}

static void gemv_t(const loose_float *a, size_t lda, const loose_float *coef, loose_float *y, size_t rows, size_t n) {
  for (size_t i = 0; i < rows; i++) axpy(coef[i], a + i * lda, y, n);
}

static void ger(float alpha, const loose_float *x, const loose_float *y, loose_float *m, size_t ldm, size_t rows, size_t n) {
  for (size_t i = 0; i < rows; i++) axpy(alpha * x[i], y, m + i * ldm, n);
}

static float inner(const sona_lora *w, size_t r, const loose_float *x) {
  return dot(w->down + r * w->ld, x, w->dim) + (w->offset ? ((const loose_float *)w->offset)[r] : 0.0f);
}

static void lora_forward(const sona_lora *w, const loose_float *x, loose_float *y) {
  float coef[RANKS];
  for (size_t from = 0; from < w->rank; from += RANKS) {
    size_t ranks = w->rank - from < RANKS ? w->rank - from : RANKS;
    for (size_t r = 0; r < ranks; r++) coef[r] = w->scale * inner(w, from + r, x);
    gemv_t(w->up + from * w->ld, w->ld, coef, y, ranks, w->dim);
  }
}

static void lora_forward_batch(const sona_lora *w, const loose_float *x, size_t ldx, loose_float *y, size_t ldy, size_t rows) {
  for (size_t i = 0; i < rows; i++) lora_forward(w, x + i * ldx, y + i * ldy);
}

static void lora_gradient(const sona_lora *w, const loose_float *x, const loose_float *g, loose_float *d_down, loose_float *d_up) {
  for (size_t r = 0; r < w->rank; r++) {
    axpy(w->scale * inner(w, r, x), g, d_up + r * w->ld, w->dim);
    axpy(w->scale * dot(w->up + r * w->ld, g, w->dim), x, d_down + r * w->ld, w->dim);
  }
}

static void fisher_update(loose_float *f, const loose_float *g, float decay, size_t n) {
  for (size_t i = 0; i < n; i++) f[i] += decay * (g[i] * g[i] - f[i]);
}

static void ewc_pull(loose_float *g, const loose_float *f, const loose_float *w, const loose_float *anchor, float lambda, size_t n) {
  for (size_t i = 0; i < n; i++) g[i] -= lambda * f[i] * (w[i] - anchor[i]);
}

static void ewc_scale(loose_float *g, const loose_float *f, float lambda, size_t n) {
  for (size_t i = 0; i < n; i++) g[i] /= 1.0f + lambda * f[i];
}

/* Insertion into a sorted list: a later row goes behind an earlier one of the same score. */
static size_t top_k(const loose_float *a, size_t lda, const loose_float *x, size_t rows, size_t n, size_t k, size_t *index,
                    loose_float *score) {
  size_t found = 0;
  for (size_t i = 0; i < rows && k > 0; i++) {
    float s = dot(a + i * lda, x, n);
    if (s != s || (found == k && !(s > score[k - 1]))) continue;
    size_t at = found < k ? found++ : k - 1;
    for (; at > 0 && s > score[at - 1]; at--) {
      index[at] = index[at - 1];
      score[at] = score[at - 1];
    }
    index[at] = i;
    score[at] = s;
  }
  return found;
}

const sona_kernels sona_kernels_scalar = {
    .isa = "scalar",
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
