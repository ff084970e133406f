/* Walkers on a graph: where they are in the long run, and how the occupancies of a step tell of those of the next. */
#include <math.h>
#include <string.h>

#include "phi_internal.h"

/* Rows of w become chances.  Each is divided by its largest weight first, so that its sum neither overflows nor underflows; a row of
 * zeros stays. */
static void chances(double *w, size_t n) {
  for (size_t i = 0; i < n; i++) {
    double *row = w + i * n, most = 0, sum = 0;
    for (size_t j = 0; j < n; j++) most = row[j] > most ? row[j] : most;
    if (most == 0) continue;
    for (size_t j = 0; j < n; j++) sum += row[j] /= most;
    for (size_t j = 0; j < n; j++) row[j] /= sum;
  }
}

/* Detailed balance: S_ij = sqrt(P_ij P_ji). */
static void symmetric(const double *p, double alpha, phi_model *model) {
  const size_t n = model->n;
  double *m = model->m;
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j <= i; j++) {
      const double s = alpha * sqrt(p[i * n + j] * p[j * n + i]), one = i == j;
      double *ij = m + 2 * (i * n + j), *ji = m + 2 * (j * n + i);
      ij[0] = ji[0] = one - s;
      ij[1] = ji[1] = one + s;
    }
}

/* reach[i]: the nodes that walkers from i come to, i itself only where they come back. */
static void reachable(const uint64_t *out, uint64_t *reach, size_t n) {
  memcpy(reach, out, n * sizeof *reach);
  for (size_t k = 0; k < n; k++)
    for (size_t i = 0; i < n; i++)
      if (reach[i] >> k & 1) reach[i] |= reach[k];
}

/* Stationary distribution of the closed class `set` up to a factor, in pi: the elimination of Grassmann, Taksar and Heyman 1985.  It
 * subtracts nothing, so each share keeps its digits, and periodic chains are like any other. */
static void stationary(const double *p, size_t n, uint64_t set, double *pi, double *room) {
  size_t node[SONA_PHI_NODES], count = 0;
  for (uint64_t rest = set; rest; rest &= rest - 1) node[count++] = phi_first(rest);
  for (size_t i = 0; i < count; i++)
    for (size_t j = 0; j < count; j++) room[i * count + j] = p[node[i] * n + node[j]];
  for (size_t k = count - 1; k > 0; k--) {
    const double *from = room + k * count;
    double leaving = 0;
    for (size_t j = 0; j < k; j++) leaving += from[j];
    for (size_t i = 0; i < k; i++) {
      const double rate = room[i * count + k] /= leaving;
      for (size_t j = 0; j < k; j++) room[i * count + j] += rate * from[j];
    }
  }
  pi[node[0]] = 1;
  for (size_t k = 1; k < count; k++) {
    double share = 0;
    for (size_t i = 0; i < k; i++) share += pi[node[i]] * room[i * count + k];
    pi[node[k]] = share;
  }
}

/* S_ij = sqrt(pi_i / pi_j) P_ij within each closed class.  Elsewhere 0: nobody is there, or nobody passes. */
static sona_status directed(const double *p, double alpha, phi_model *model) {
  const size_t n = model->n, side = model->side;
  double *m = model->m, pi[SONA_PHI_NODES];
  uint64_t reach[SONA_PHI_NODES], done = 0;
  reachable(model->linked, reach, n);
  memset(model->linked, 0, n * sizeof *model->linked);
  for (size_t i = 0; i < n; i++) {
    const uint64_t class = reach[i];
    if (done >> i & 1 || !(class >> i & 1)) continue;
    int closed = 1;
    for (uint64_t rest = class; rest && closed; rest &= rest - 1) closed = reach[phi_first(rest)] == class;
    if (!closed) continue;
    stationary(p, n, class, pi, m); /* m is filled below */
    for (uint64_t rest = class; rest; rest &= rest - 1) model->linked[phi_first(rest)] = class;
    done |= class;
  }
  memset(m, 0, side * side * sizeof *m);
  for (size_t i = 0; i < n; i++) {
    double *now = m + 2 * i * side, *next = now + side;
    now[2 * i] = next[2 * i + 1] = 1;
    for (uint64_t rest = model->linked[i]; rest; rest &= rest - 1) {
      const size_t j = phi_first(rest);
      const double s = sqrt(pi[i] / pi[j]) * p[i * n + j];
      if (!(s <= 1 + 1e-6)) return SONA_EINVAL; /* a share of pi is 0, infinite or denormal */
      now[2 * j + 1] = m[(2 * j + 1) * side + 2 * i] = alpha * s;
    }
  }
  return SONA_OK;
}

sona_status phi_walkers(double *w, double alpha, phi_model *model) {
  const size_t n = model->n;
  for (size_t i = 0; i < n; i++) {
    uint64_t to = 0;
    for (size_t j = 0; j < n; j++) to |= (uint64_t)(w[i * n + j] > 0) << j;
    model->linked[i] = to;
  }
  chances(w, n);
  if (model->rows == 2) return directed(w, alpha, model);
  symmetric(w, alpha, model);
  return SONA_OK;
}

/* Row by row: L D L^T of each kind, packed below the diagonal; the pivots of all kinds are multiplied before their logarithm is taken. */
double phi_log_det(const phi_model *model, uint64_t part, double *room) {
  const size_t side = model->side, kinds = model->kinds, rows = model->rows;
  size_t index[2 * SONA_PHI_NODES], count = 0;
  for (uint64_t rest = part; rest; rest &= rest - 1)
    for (size_t r = 0; r < rows; r++) index[count++] = rows * phi_first(rest) + r;
  double sum = 0;
  for (size_t kind = 0; kind < kinds; kind++) {
    double *row = room, product = 1;
    for (size_t i = 0; i < count; row += ++i) {
      const double *other = room;
      double pivot = model->m[(index[i] * side + index[i]) * kinds + kind];
      for (size_t j = 0; j < i; other += ++j) { /* row[j] = l_ij sqrt(d_j) */
        double value = model->m[(index[i] * side + index[j]) * kinds + kind];
        for (size_t k = 0; k < j; k++) value -= row[k] * other[k];
        row[j] = value / other[j];
        pivot -= row[j] * row[j];
      }
      row[i] = sqrt(pivot);
      product *= pivot;
      if (product < 1e-200) { /* rare: alpha near 1 and many weak links */
        sum += log2(product);
        product = 1;
      }
    }
    sum += log2(product);
  }
  return sum;
}
