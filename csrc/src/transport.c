/* Successive shortest paths over reduced costs, as Jonker and Volgenant (1987) do for assignment, here with masses: a row that has supply
 * left grows a tree of shortest alternating paths until it meets a column with demand left, and as much as fits goes along that path. */
#include "transport.h"

#include <math.h>

#define ROUNDING 1e-15 /* of a difference of chances */

typedef struct prices {
  double row[SONA_TRANSPORT_SIDE], col[SONA_TRANSPORT_SIDE]; /* cost - row - col >= 0, and 0 where there is flow */
} prices;

static double least(double a, double b) { return a < b ? a : b; }

static void push(sona_transport *t, int row, int col) {
  const double mass = least(t->supply[row], t->demand[col]);
  t->flow[row * t->cols + col] += mass;
  t->supply[row] -= mass;
  t->demand[col] -= mass;
}

/* Prices that make an arc of each row and of each column free, and flow along the free arcs as it comes. */
static void start(sona_transport *t, prices *price) {
  for (int i = 0; i < t->rows; i++) {
    const double *cost = t->cost + i * t->cols;
    double low = cost[0];
    for (int j = 1; j < t->cols; j++) low = least(low, cost[j]);
    price->row[i] = low;
  }
  for (int j = 0; j < t->cols; j++) {
    double low = HUGE_VAL;
    for (int i = 0; i < t->rows; i++) low = least(low, t->cost[i * t->cols + j] - price->row[i]);
    price->col[j] = low;
  }
  for (int k = 0; k < t->rows * t->cols; k++) t->flow[k] = 0;
  for (int i = 0; i < t->rows; i++)
    for (int j = 0; j < t->cols && t->supply[i] > 0; j++)
      if (t->demand[j] > 0 && t->cost[i * t->cols + j] - price->row[i] - price->col[j] <= 0) push(t, i, j);
}

/* Sends supply of a row along one shortest path; 0 where no demand is left. */
static int augment(sona_transport *t, prices *price, int from) {
  const int rows = t->rows, cols = t->cols;
  double distance[SONA_TRANSPORT_SIDE], reached[SONA_TRANSPORT_SIDE]; /* of columns, of rows */
  int parent[SONA_TRANSPORT_SIDE], entry[SONA_TRANSPORT_SIDE];        /* row before a column, column before a row */
  char scanned[SONA_TRANSPORT_SIDE] = {0}, visited[SONA_TRANSPORT_SIDE] = {0};
  for (int j = 0; j < cols; j++) {
    distance[j] = t->cost[from * cols + j] - price->row[from] - price->col[j];
    parent[j] = from;
  }
  visited[from] = 1;
  reached[from] = 0;
  int last;
  for (;;) {
    last = -1;
    for (int j = 0; j < cols; j++)
      if (!scanned[j] && (last < 0 || distance[j] < distance[last] || (distance[j] == distance[last] && t->demand[j] > t->demand[last])))
        last = j;
    if (last < 0) return 0;
    if (t->demand[last] > 0) break;
    scanned[last] = 1;
    for (int i = 0; i < rows; i++) {
      if (visited[i] || !(t->flow[i * cols + last] > 0)) continue;
      visited[i] = 1;
      reached[i] = distance[last];
      entry[i] = last;
      const double base = distance[last] - price->row[i];
      for (int j = 0; j < cols; j++) {
        const double through = base + t->cost[i * cols + j] - price->col[j];
        if (!scanned[j] && through < distance[j]) {
          distance[j] = through;
          parent[j] = i;
        }
      }
    }
  }
  const double length = distance[last];
  for (int j = 0; j < cols; j++)
    if (scanned[j]) price->col[j] += distance[j] - length;
  for (int i = 0; i < rows; i++)
    if (visited[i]) price->row[i] += length - reached[i];
  double mass = least(t->supply[from], t->demand[last]);
  for (int i = parent[last]; i != from; i = parent[entry[i]]) mass = least(mass, t->flow[i * cols + entry[i]]);
  t->supply[from] -= mass;
  t->demand[last] -= mass;
  for (int i = parent[last], j = last;; i = parent[j]) {
    t->flow[i * cols + j] += mass;
    if (i == from) return 1;
    j = entry[i];
    t->flow[i * cols + j] -= mass;
  }
}

double sona_transport_solve(sona_transport *t) {
  if (!t->rows || !t->cols) return 0;
  prices price;
  start(t, &price);
  for (int i = 0; i < t->rows; i++)
    while (t->supply[i] > 0 && augment(t, &price, i)) {
    }
  double sum = 0;
  for (int k = 0; k < t->rows * t->cols; k++) sum += t->flow[k] * t->cost[k];
  return sum;
}

double sona_transport_states(sona_transport *t, uint32_t k, const double *p, const double *q) {
  if (k == 0) return 0;
  if (k == 1) return fabs(p[1] - q[1]);
  uint8_t row[SONA_TRANSPORT_SIDE], col[SONA_TRANSPORT_SIDE];
  t->rows = t->cols = 0;
  for (uint32_t s = 0; s < 1u << k; s++) {
    const double gap = p[s] - q[s];
    if (gap > ROUNDING) {
      row[t->rows] = (uint8_t)s;
      t->supply[t->rows++] = gap;
    } else if (gap < -ROUNDING) {
      col[t->cols] = (uint8_t)s;
      t->demand[t->cols++] = -gap;
    }
  }
  for (int i = 0; i < t->rows; i++)
    for (int j = 0; j < t->cols; j++) t->cost[i * t->cols + j] = sona_count_bits(row[i] ^ col[j]);
  return sona_transport_solve(t);
}
