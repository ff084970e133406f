/* Kernels: one table of functions per instruction set.
 *
 * sona_kernels_get(NULL) is the best table that this CPU and operating system can run; sona_kernels_get("scalar") is a named one, for
 * tests and bug reports.  Tables are const and live as long as the process; an object keeps the table it was built with.
 *
 * Contract of every kernel: pointers may be unaligned; n, rows and rank may be 0; inputs and outputs do not overlap unless a
 * comment says so; NaN and infinity propagate as in the scalar table; no allocation, no failure, safe from any thread.
 * Tables agree to float32 rounding of a reordered sum (each test states the bound); axpy, ger, fisher_update, ewc_pull and ewc_scale
 * agree bit for bit.  Within a table a row's inner product is the same whatever rows stand around it, in dot, gemv and top_k: equal
 * rows tie, and a subset scores as the whole did.  So it is for a vector of lora_forward_batch and the vectors beside it; batch and
 * single vector agree to rounding. */
#ifndef SONA_KERNELS_H
#define SONA_KERNELS_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A view of one low-rank adapter: delta(x) = scale * up^T (down x + offset). */
typedef struct sona_lora {
  const float *down;   /* (rank, dim), rows ld apart */
  const float *up;     /* (rank, dim), rows ld apart */
  const float *offset; /* (rank), or NULL for none: the learned constant input */
  size_t ld, dim, rank;
  float scale;
} sona_lora;

typedef struct sona_kernels {
  const char *isa; /* "scalar", "avx2", "neon", ... */

  /* <a, b> */
  float (*dot)(const float *a, const float *b, size_t n);

  /* y += alpha x */
  void (*axpy)(float alpha, const float *x, float *y, size_t n);

  /* out[i] = <a_i, x> for the rows a_i (rows, n) of a, lda apart */
  void (*gemv)(const float *a, size_t lda, const float *x, float *out, size_t rows, size_t n);

  /* y += sum_i coef[i] a_i; y (n) */
  void (*gemv_t)(const float *a, size_t lda, const float *coef, float *y, size_t rows, size_t n);

  /* m_i += alpha x[i] y for the rows m_i (rows, n) of m, ldm apart: the outer product */
  void (*ger)(float alpha, const float *x, const float *y, float *m, size_t ldm, size_t rows, size_t n);

  /* y += delta(x).  y == x is allowed when rank <= 32; other overlaps are not. */
  void (*lora_forward)(const sona_lora *w, const float *x, float *y);

  /* The same for `rows` vectors, ldx and ldy apart; x and y do not overlap. */
  void (*lora_forward_batch)(const sona_lora *w, const float *x, size_t ldx, float *y, size_t ldy, size_t rows);

  /* Adds the gradient of <g, delta(x)> to d_down and d_up (rank, dim), rows ld apart:
   * d_up_r += scale z_r g,  d_down_r += scale <up_r, g> x,  z = down x + offset. */
  void (*lora_gradient)(const sona_lora *w, const float *x, const float *g, float *d_down, float *d_up);

  /* f += decay (g^2 - f): exponential mean of squared gradients, decay in [0, 1] */
  void (*fisher_update)(float *f, const float *g, float decay, size_t n);

  /* g -= lambda f (w - anchor) */
  void (*ewc_pull)(float *g, const float *f, const float *w, const float *anchor, float lambda, size_t n);

  /* g /= 1 + lambda f */
  void (*ewc_scale)(float *g, const float *f, float lambda, size_t n);

  /* The k largest <a_i, x>, largest first, ties to the smaller row: index (k), score (k).  Rows whose score is NaN are skipped.
   * Returns how many were written, min(k, rows without NaN). */
  size_t (*top_k)(const float *a, size_t lda, const float *x, size_t rows, size_t n, size_t k, size_t *index, float *score);
} sona_kernels;

/* The tables that can run here, slowest first: index 0 is "scalar". */
SONA_API size_t sona_kernels_count(void);
SONA_API const sona_kernels *sona_kernels_at(size_t index); /* NULL past the end */

/* By name; NULL asks for the best.  NULL when the name is unknown or this machine cannot run it. */
SONA_API const sona_kernels *sona_kernels_get(const char *isa);

#ifdef __cplusplus
}
#endif
#endif
