/* Truncated SVD of M = D^T U from the n x n Gram matrices of the rows, in double:
 *
 *   D D^T = L L^T                      semi-definite Cholesky: repeated inputs give zero pivots, not failures
 *   L^T (U U^T) L = Y S^2 Y^T          Jacobi; S are the singular values of M
 *   up'   = S^-1/2 Y^T L^T U           sqrt(S) times the right singular vectors
 *   down' = S^-1 (up' U^T) D           sqrt(S) times the left ones, without inverting L
 *
 * Only the two Gram matrices and the two recombinations touch rows of length dim; the rest is n x n.  Double keeps the squares
 * harmless: a singular value of 1e-7 of the largest is still told from rounding. */
#include "truncate.h"

#include <math.h>
#include <string.h>

/* Products of floats are exact in double; eight chains hide the latency of the sum. */
static double dot_double(const float *a, const float *b, size_t n) {
  double sum[8] = {0};
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (size_t j = 0; j < 8; j++) sum[j] += (double)a[i + j] * b[i + j];
  for (; i < n; i++) sum[0] += (double)a[i] * b[i];
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* g (n, n) = rows rows^T, plus the outer product of extra (n) unless it is NULL */
static void gram(const float *rows, size_t ld, size_t n, size_t dim, const float *extra, double *g) {
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j <= i; j++) {
      double value = dot_double(rows + i * ld, rows + j * ld, dim);
      if (extra) value += (double)extra[i] * extra[j];
      g[i * n + j] = g[j * n + i] = value;
    }
}

/* g (n, n) -> lower l (n, n), g = l l^T; a pivot below rounding of the largest diagonal gives a zero column. */
static void cholesky(const double *g, size_t n, double *l) {
  double largest = 0;
  for (size_t i = 0; i < n; i++) largest = fmax(largest, g[i * n + i]);
  memset(l, 0, n * n * sizeof *l);
  for (size_t j = 0; j < n; j++) {
    double pivot = g[j * n + j];
    for (size_t k = 0; k < j; k++) pivot -= l[j * n + k] * l[j * n + k];
    if (pivot <= 1e-14 * largest) continue;
    pivot = sqrt(pivot);
    l[j * n + j] = pivot;
    for (size_t i = j + 1; i < n; i++) {
      double value = g[i * n + j];
      for (size_t k = 0; k < j; k++) value -= l[i * n + k] * l[j * n + k];
      l[i * n + j] = value / pivot;
    }
  }
}

/* Cyclic Jacobi: a (n, n) symmetric becomes diagonal, the rows of v its eigenvectors. */
static void jacobi(double *a, size_t n, double *v) {
  memset(v, 0, n * n * sizeof *v);
  double norm = 0;
  for (size_t i = 0; i < n; i++) v[i * n + i] = 1;
  for (size_t i = 0; i < n * n; i++) norm += a[i] * a[i];
  for (int sweep = 0; sweep < 30; sweep++) {
    double off = 0;
    for (size_t p = 0; p + 1 < n; p++)
      for (size_t q = p + 1; q < n; q++) off += a[p * n + q] * a[p * n + q];
    if (off <= 1e-28 * norm) return;
    for (size_t p = 0; p + 1 < n; p++)
      for (size_t q = p + 1; q < n; q++) {
        double apq = a[p * n + q];
        if (apq * apq <= 1e-34 * norm) continue;
        double theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        double t = copysign(1, theta) / (fabs(theta) + sqrt(theta * theta + 1));
        double c = 1 / sqrt(t * t + 1), s = t * c;
        double *ap = a + p * n, *aq = a + q * n, *vp = v + p * n, *vq = v + q * n;
        for (size_t k = 0; k < n; k++) {
          double x = ap[k], y = aq[k];
          ap[k] = c * x - s * y;
          aq[k] = s * x + c * y;
        }
        for (size_t k = 0; k < n; k++) {
          double x = a[k * n + p], y = a[k * n + q];
          a[k * n + p] = c * x - s * y;
          a[k * n + q] = s * x + c * y;
        }
        for (size_t k = 0; k < n; k++) {
          double x = vp[k], y = vq[k];
          vp[k] = c * x - s * y;
          vq[k] = s * x + c * y;
        }
      }
  }
}

/* order (n): indices of the diagonal of a, largest first */
static void sort_diagonal(const double *a, size_t n, double *order) {
  for (size_t i = 0; i < n; i++) {
    size_t j = i;
    for (; j > 0 && a[(size_t)order[j - 1] * (n + 1)] < a[i * (n + 1)]; j--) order[j] = order[j - 1];
    order[j] = (double)i;
  }
}

size_t sona_truncate_scratch(size_t n) { return 5 * n * n + 3 * n; }

size_t sona_truncate(const sona_kernels *k, const sona_lora *w, size_t rank, size_t rank_max, double max_discard, double *scratch,
                     float *down, float *up, float *offset, double *discarded) {
  const size_t n = w->rank, ld = w->ld, dim = w->dim;
  double *gu = scratch, *l = gu + n * n, *a = l + n * n, *y = a + n * n, *t = y + n * n;
  double *order = t + n * n, *coef = order + n, *mixed = coef + n;

  gram(w->down, ld, n, dim, w->offset, a);
  cholesky(a, n, l);
  gram(w->up, ld, n, dim, NULL, gu);
  for (size_t i = 0; i < n; i++) /* t = gu l */
    for (size_t j = 0; j < n; j++) {
      double value = 0;
      for (size_t m = j; m < n; m++) value += gu[i * n + m] * l[m * n + j];
      t[i * n + j] = value;
    }
  for (size_t i = 0; i < n; i++) /* a = l^T t */
    for (size_t j = 0; j < n; j++) {
      double value = 0;
      for (size_t m = i; m < n; m++) value += l[m * n + i] * t[m * n + j];
      a[i * n + j] = value;
    }
  jacobi(a, n, y);
  sort_diagonal(a, n, order);

  double energy = 0, largest = n ? fmax(a[(size_t)order[0] * (n + 1)], 0) : 0;
  for (size_t i = 0; i < n; i++) energy += fmax(a[i * (n + 1)], 0);
  size_t kept = 0;
  double tail = energy;
  while (kept < n && kept < rank_max) {
    double s2 = a[(size_t)order[kept] * (n + 1)];
    if (s2 <= 1e-14 * largest || (kept >= rank && tail <= max_discard * energy)) break;
    tail -= s2;
    kept++;
  }
  *discarded = energy > 0 ? fmax(tail, 0) / energy : 0;

  for (size_t r = 0; r < kept; r++) {
    const double *row = y + (size_t)order[r] * n;
    const double s = sqrt(a[(size_t)order[r] * (n + 1)]);
    for (size_t i = 0; i < n; i++) { /* coef = s^-1/2 l y_r: the mixture of up rows */
      double value = 0;
      for (size_t m = 0; m <= i; m++) value += l[i * n + m] * row[m];
      coef[i] = value / sqrt(s);
    }
    for (size_t i = 0; i < n; i++) { /* mixed = gu coef / s: the mixture of down rows */
      double value = 0;
      for (size_t m = 0; m < n; m++) value += gu[i * n + m] * coef[m];
      mixed[i] = value / s;
    }
    float *to_up = up + r * ld, *to_down = down + r * ld;
    memset(to_up, 0, ld * sizeof *to_up);
    memset(to_down, 0, ld * sizeof *to_down);
    double constant = 0;
    for (size_t i = 0; i < n; i++) {
      k->axpy((float)coef[i], w->up + i * ld, to_up, dim);
      k->axpy((float)mixed[i], w->down + i * ld, to_down, dim);
      if (w->offset) constant += mixed[i] * w->offset[i];
    }
    offset[r] = (float)constant;
  }
  return kept;
}
