/* Truncated SVD of M = D^T U from the n x n Gram matrices of the rows, in double:
 *
 *   U U^T = R^T R                      semi-definite Cholesky: R has one row for each of the m directions that the rows of U span
 *   R (D D^T) R^T = Z^T S^2 Z          m x m; S are the singular values of M
 *   down' = S^-1/2 Z R D               sqrt(S) times the left singular vectors, without inverting R
 *   up'   = S^-1 (down' D^T) U         sqrt(S) times the right ones
 *
 * The up rows of a policy over K arms span K - 1 directions, however many there are: m is then about half of n and the eigenproblem
 * an eighth.  Only the two Gram matrices and the two recombinations touch rows of length dim.  Double keeps the squares harmless: a
 * singular value of 1e-7 of the largest is still told from rounding. */
#include "truncate.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "target.h"

/* Compiled for each target that pays.  The order of every sum is written out, so all targets give the same bits. */
#define HOT static inline __attribute__((always_inline))

/* ---- rows of length dim ---- */

/* Four lanes at any alignment; the compiler splits them where registers are narrower. */
typedef double doubles __attribute__((vector_size(32), aligned(8), may_alias));
#define LANES ((size_t)4)
#define WIDE(p) ((doubles){(p)[0], (p)[1], (p)[2], (p)[3]}) /* one instruction, where __builtin_convertvector takes gcc four */
#define SUM(v) (((v)[0] + (v)[1]) + ((v)[2] + (v)[3]))

/* <a0, b0>, <a0, b1>, <a1, b0>, <a1, b1>: a row is converted half as often as alone.  Products of floats are exact in double. */
HOT void dot_2x2(const float *a0, const float *a1, const float *b0, const float *b1, size_t n, double out[4]) {
  doubles s00 = {0}, s01 = {0}, s10 = {0}, s11 = {0};
  size_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    const doubles x0 = WIDE(a0 + i), x1 = WIDE(a1 + i), y0 = WIDE(b0 + i), y1 = WIDE(b1 + i);
    s00 += x0 * y0;
    s01 += x0 * y1;
    s10 += x1 * y0;
    s11 += x1 * y1;
  }
  for (; i < n; i++) {
    s00[0] += (double)a0[i] * b0[i];
    s01[0] += (double)a0[i] * b1[i];
    s10[0] += (double)a1[i] * b0[i];
    s11[0] += (double)a1[i] * b1[i];
  }
  out[0] = SUM(s00), out[1] = SUM(s01), out[2] = SUM(s10), out[3] = SUM(s11);
}

/* g (n, n) = rows rows^T, plus the outer product of extra (n) unless it is NULL */
HOT void gram(const float *rows, size_t ld, size_t n, size_t dim, const float *extra, double *g) {
  for (size_t i = 0; i < n; i += 2) {
    const size_t i1 = i + 1 < n ? i + 1 : i;
    for (size_t j = 0; j <= i; j += 2) {
      const size_t j1 = j + 1 < n ? j + 1 : j, at[4][2] = {{i, j}, {i, j1}, {i1, j}, {i1, j1}};
      double block[4];
      dot_2x2(rows + i * ld, rows + i1 * ld, rows + j * ld, rows + j1 * ld, dim, block);
      for (size_t c = 0; c < 4; c++) {
        const size_t r = at[c][0], s = at[c][1];
        g[r * n + s] = g[s * n + r] = extra ? block[c] + (double)extra[r] * extra[s] : block[c];
      }
    }
  }
}

/* ---- small matrices: the inner loop runs along a row ---- */

/* <a, b> */
HOT double dot(const double *a, const double *b, size_t n) {
  doubles sum = {0};
  size_t i = 0;
  for (; i + LANES <= n; i += LANES) sum += *(const doubles *)(a + i) * *(const doubles *)(b + i);
  for (; i < n; i++) sum[0] += a[i] * b[i];
  return SUM(sum);
}

/* y += c x */
HOT void add(double c, const double *restrict x, double *restrict y, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += c * x[i];
}

/* c (rows, columns) = a (rows, inner) b (inner, columns) */
HOT void multiply(const double *a, const double *b, double *c, size_t rows, size_t inner, size_t columns) {
  memset(c, 0, rows * columns * sizeof *c);
  for (size_t i = 0; i < rows; i++)
    for (size_t k = 0; k < inner; k++) add(a[i * inner + k], b + k * columns, c + i * columns, columns);
}

HOT void transpose(const double *a, double *t, size_t rows, size_t columns) {
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < columns; j++) t[j * rows + i] = a[i * columns + j];
}

/* g (n, n) = r^T r; returns the rows of r (., n).  A row of g that the ones before it explain but for rounding gives none.  Overwrites
 * g; diagonal (n) is scratch. */
HOT size_t cholesky(double *g, size_t n, double *r, double *diagonal) {
  size_t m = 0;
  for (size_t j = 0; j < n; j++) diagonal[j] = g[j * n + j];
  for (size_t j = 0; j < n; j++) {
    const double pivot = g[j * n + j];
    if (pivot <= 1e-12 * diagonal[j]) continue;
    double *row = r + m++ * n;
    memset(row, 0, j * sizeof *row);
    for (size_t i = j; i < n; i++) row[i] = g[j * n + i] / sqrt(pivot);
    for (size_t i = j + 1; i < n; i++) add(-row[i], row + i, g + i * n + i, n - i);
  }
  return m;
}

/* Householder: a (n, n) = z^T T z with T tridiagonal, d (n) on its diagonal, e (n) beside it.  Overwrites a; w (n) is scratch. */
HOT void tridiagonalise(double *a, size_t n, double *d, double *e, double *z, double *w) {
  for (size_t k = 0; k + 1 < n; k++) {
    const size_t m = n - k - 1;
    double *v = a + k * n + k + 1; /* (m) */
    const double square = dot(v, v, m), norm = sqrt(square), first = v[0];
    d[k] = v[-1];
    e[k] = first > 0 ? -norm : norm;
    v[0] -= e[k];
    const double beta = square > 0 ? 1 / (square + fabs(first) * norm) : 0; /* I - beta v v^T reflects the row onto e[k] */
    v[-1] = beta;
    memset(w, 0, m * sizeof *w);
    double *rest = v + n; /* (m, m) */
    for (size_t i = 0; i < m; i++) add(beta * v[i], rest + i * n, w, m);
    add(-0.5 * beta * dot(w, v, m), v, w, m);
    for (size_t i = 0; i < m; i++) {
      add(-v[i], w, rest + i * n, m);
      add(-w[i], v, rest + i * n, m);
    }
  }
  d[n - 1] = a[n * n - 1];
  e[n - 1] = 0;
  /* z = H(n-2) ... H(0), from the last reflection on: what is left of it is the identity but for rows and columns behind k. */
  memset(z, 0, n * n * sizeof *z);
  z[n * n - 1] = 1;
  for (size_t k = n - 1; k-- > 0;) {
    const size_t m = n - k - 1;
    const double *v = a + k * n + k + 1;
    z[k * n + k] = 1;
    for (size_t i = k + 1; i < n; i++) add(-v[-1] * dot(v, z + i * n + k + 1, m), v, z + i * n + k + 1, m);
  }
}

/* Implicit QR with Wilkinson's shift (Golub and Van Loan, section 8.3): T becomes diagonal; the rotations go to the rows of z (n, n). */
HOT void diagonalise(double *d, double *e, size_t n, double *z) {
  size_t last = n - 1; /* the rows behind it are done */
  for (size_t turn = 0; last > 0 && turn < 60 * n; turn++) {
    size_t first = last;
    while (first > 0 && fabs(e[first - 1]) > DBL_EPSILON * (fabs(d[first - 1]) + fabs(d[first]))) first--;
    if (first == last) {
      last--;
      continue;
    }
    const double delta = 0.5 * (d[last - 1] - d[last]), off = e[last - 1];
    double x = d[first] - (d[last] - off * off / (delta + copysign(hypot(delta, off), delta))), bulge = e[first];
    for (size_t k = first; k < last; k++) {
      const double r = sqrt(x * x + bulge * bulge), c = r > 0 ? x / r : 1, s = r > 0 ? bulge / r : 0;
      const double above = d[k], below = d[k + 1], beside = e[k];
      if (k > first) e[k - 1] = r;
      d[k] = c * c * above + 2 * c * s * beside + s * s * below;
      d[k + 1] = s * s * above - 2 * c * s * beside + c * c * below;
      e[k] = x = (c * c - s * s) * beside + c * s * (below - above);
      if (k + 1 < last) {
        bulge = s * e[k + 1];
        e[k + 1] *= c;
      }
      double *restrict upper = z + k * n, *restrict lower = upper + n;
      for (size_t i = 0; i < n; i++) {
        const double u = upper[i];
        upper[i] = c * u + s * lower[i];
        lower[i] = c * lower[i] - s * u;
      }
    }
  }
}

/* order (n): indices of value, largest first */
static void sort_values(const double *value, size_t n, size_t *order) {
  for (size_t i = 0; i < n; i++) {
    size_t j = i;
    for (; j > 0 && value[order[j - 1]] < value[i]; j--) order[j] = order[j - 1];
    order[j] = i;
  }
}

size_t sona_truncate_scratch(size_t n) { return 5 * n * n + 4 * n; }

/* Everything but the rows of length dim: how the old rows mix into the kept new ones.  Leaves the mixture of up (kept, n) at the front of
 * scratch and that of down (kept, n) behind 4 n^2. */
HOT size_t decompose(const sona_lora *w, size_t rank, size_t rank_max, double max_discard, double *scratch, double *discarded) {
  const size_t n = w->rank;
  double *up = scratch, *down = up + n * n, *r = down + n * n, *work = r + n * n, *a = work + n * n;
  double *value = a + n * n, *beside = value + n, *vector = beside + n;
  size_t *order = (size_t *)(vector + n);

  gram(w->up, w->ld, n, w->dim, NULL, up);
  gram(w->down, w->ld, n, w->dim, w->offset, down);
  const size_t m = cholesky(up, n, r, vector);
  *discarded = 0;
  if (m == 0) return 0;
  double *columns = up, *z = work; /* (n, m) and (m, m), where what was there has served */
  transpose(r, columns, m, n);
  multiply(down, columns, work, n, n, m);
  multiply(r, work, a, m, n, m);
  tridiagonalise(a, m, value, beside, z, vector);
  diagonalise(value, beside, m, z);
  sort_values(value, m, order);

  double energy = 0;
  for (size_t i = 0; i < m; i++) energy += fmax(value[i], 0);
  size_t kept = 0;
  double tail = energy;
  while (kept < m && kept < rank_max) {
    const double square = value[order[kept]];
    if (square <= 1e-14 * value[order[0]] || (kept >= rank && tail <= max_discard * energy)) break;
    tail -= square;
    kept++;
  }
  *discarded = energy > 0 ? fmax(tail, 0) / energy : 0;

  double *of_down = a, *of_up = up;
  memset(of_down, 0, kept * n * sizeof *of_down);
  for (size_t i = 0; i < kept; i++) {
    const double scale = 1 / sqrt(sqrt(value[order[i]]));
    for (size_t j = 0; j < m; j++) add(scale * z[order[i] * m + j], r + j * n, of_down + i * n, n);
  }
  multiply(of_down, down, of_up, kept, n, n);
  for (size_t i = 0; i < kept; i++) {
    const double scale = 1 / sqrt(value[order[i]]);
    for (size_t j = 0; j < n; j++) of_up[i * n + j] *= scale;
  }
  return kept;
}

static size_t decompose_portable(const sona_lora *w, size_t rank, size_t rank_max, double max_discard, double *scratch, double *discarded) {
  return decompose(w, rank, rank_max, max_discard, scratch, discarded);
}

#if SONA_BUILD_AVX2
SONA_TARGET_BEGIN("avx2")
static size_t decompose_avx2(const sona_lora *w, size_t rank, size_t rank_max, double max_discard, double *scratch, double *discarded) {
  return decompose(w, rank, rank_max, max_discard, scratch, discarded);
}
SONA_TARGET_END
#endif

size_t sona_truncate(const sona_kernels *k, const sona_lora *w, size_t rank, size_t rank_max, double max_discard, double *scratch,
                     float *down, float *up, float *offset, double *discarded) {
  const size_t n = w->rank, ld = w->ld;
  *discarded = 0;
  if (!n) return 0; /* nor was there a need for scratch */
#if SONA_BUILD_AVX2
  const int avx2 = strcmp(k->isa, "avx2") == 0; /* a table of that name exists where dispatch.c says that it can run */
  const size_t kept = (avx2 ? decompose_avx2 : decompose_portable)(w, rank, rank_max, max_discard, scratch, discarded);
#else
  const size_t kept = decompose_portable(w, rank, rank_max, max_discard, scratch, discarded);
#endif
  const double *of_up = scratch, *of_down = scratch + 4 * n * n;
  float *mixture = (float *)(scratch + 5 * n * n);
  for (size_t r = 0; r < kept; r++) {
    float *to_up = up + r * ld, *to_down = down + r * ld;
    memset(to_up, 0, ld * sizeof *to_up);
    memset(to_down, 0, ld * sizeof *to_down);
    for (size_t i = 0; i < n; i++) mixture[i] = (float)of_up[r * n + i];
    k->gemv_t(w->up, ld, mixture, to_up, n, w->dim);
    double constant = 0;
    for (size_t i = 0; i < n; i++) {
      mixture[i] = (float)of_down[r * n + i];
      if (w->offset) constant += of_down[r * n + i] * w->offset[i];
    }
    k->gemv_t(w->down, ld, mixture, to_down, n, w->dim);
    offset[r] = (float)constant;
  }
  return kept;
}
