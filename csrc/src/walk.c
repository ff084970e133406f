#include "sona/walk.h"

#include <float.h>
#include <string.h>

#include "random.h"

/* Walks that take turns, step by step: while one waits for memory the others go on. */
#define LANES 8

/* Temperature and visits are met by drawing again; after so many draws in vain the row is summed as they leave it. */
#define TRIES 8

/* Below this temperature nothing but the heaviest edges is left, and its inverse might be infinite. */
#define COLDEST 1e-9

#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define PREFETCH(p) ((void)(p))
#endif

enum { NOWHERE = -1, OUTSIDE = -2, NO_MEMORY = -3 };

typedef struct lane {
  sona_random random;
  int32_t *path;    /* (length,) */
  int32_t *visited; /* hash set of `mask + 1` places, -1 where empty; NULL when revisits cost nothing */
  int32_t at;       /* node, or NOWHERE after the end */
} lane;

typedef struct walker {
  const sona_walk_graph *graph;
  const sona_walk_options *options;
  double exponent; /* 1 / temperature */
  uint32_t mask;   /* places of a hash set, minus 1 */
  double *sums;    /* (room,) running sums of one row as temperature and visits leave it; made when needed */
  size_t room;
} walker;

static uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static uint32_t place(int32_t node) { return (uint32_t)node * 0x9e3779b9u >> 7; }

static int visited(const lane *l, uint32_t mask, int32_t node) {
  uint32_t i = place(node) & mask;
  while (l->visited[i] >= 0 && l->visited[i] != node) i = (i + 1) & mask;
  return l->visited[i] == node;
}

static void visit(lane *l, uint32_t mask, int32_t node) {
  uint32_t i = place(node) & mask;
  while (l->visited[i] >= 0 && l->visited[i] != node) i = (i + 1) & mask;
  l->visited[i] = node;
}

/* Uniform below n, by Lemire's multiplication (2019). */
static int32_t below(sona_random *r, uint32_t n) {
  uint64_t product = (sona_random_next(r) >> 32) * n;
  if ((uint32_t)product < n) {
    const uint32_t least = (0u - n) % n;
    while ((uint32_t)product < least) product = (sona_random_next(r) >> 32) * n;
  }
  return (int32_t)(product >> 32);
}

/* x^y for 0 < x <= 1 and y >= 0 by additions, multiplications and divisions alone, which round alike everywhere; pow does not.
 * Relative error below 1e-9 where the result is above 1e-300; 0 below. */
static double power(double x, double y) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int exponent = (int)(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
  double m;
  memcpy(&m, &bits, sizeof m);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    exponent++;
  }
  const double z = (m - 1) / (m + 1), a = z * z; /* ln m = 2 atanh z, |z| <= 0.172 */
  const double series = 1 + a * (1.0 / 3 + a * (1.0 / 5 + a * (1.0 / 7 + a * (1.0 / 9 + a * (1.0 / 11 + a * (1.0 / 13))))));
  const double t = y * (exponent + 2.8853900817779268 * z * series);
  if (!(t > -1000)) return 0;
  const int whole = (int)(t - 0.5); /* the nearest, as t <= 0 but for rounding */
  const double f = 0.6931471805599453 * (t - whole);
  const double e =
      1 +
      f * (1 + f * (1.0 / 2 +
                    f * (1.0 / 6 +
                         f * (1.0 / 24 + f * (1.0 / 120 + f * (1.0 / 720 + f * (1.0 / 5040 + f * (1.0 / 40320 + f * (1.0 / 362880)))))))));
  bits = (uint64_t)(whole + 1023) << 52;
  memcpy(&m, &bits, sizeof m);
  return e * m;
}

/* The first entry of a row of n whose running sum is above u; u is below the last one. */
static size_t search(const float *cumulative, size_t n, double u) {
  const float *base = cumulative;
  while (n > 1) {
    const size_t half = n / 2;
    base += ((double)base[half - 1] <= u) * half; /* no branch: it would be a coin */
    n -= half;
  }
  return (size_t)(base - cumulative);
}

static int make_room(walker *w, size_t entries) {
  if (entries <= w->room) return 1;
  sona_free(w->sums);
  w->room = 2 * entries;
  w->sums = sona_calloc(w->room, sizeof *w->sums);
  if (!w->sums) w->room = 0;
  return w->sums != NULL;
}

/* Weight of the edge whose first entry is *j; moves *j behind its last one. */
static double edge_weight(const sona_walk_graph *g, int64_t *j, int64_t stop) {
  const int32_t node = g->column[*j];
  double weight = 0;
  for (; *j < stop && g->column[*j] == node; ++*j) weight += (double)g->weight[*j];
  return weight;
}

static int32_t inside(const sona_walk_graph *g, int32_t node) { return (uint32_t)node < g->nodes ? node : OUTSIDE; }

static double largest_weight(const sona_walk_graph *g, int64_t start, int64_t stop) {
  double largest = 0;
  for (int64_t j = start; j < stop;) {
    const double weight = edge_weight(g, &j, stop);
    if (weight > largest) largest = weight;
  }
  return largest;
}

/* A draw from the row as temperature and visits leave it, by summing it. */
static int32_t from_sum(walker *w, lane *l, int64_t start, int64_t stop, double largest) {
  const sona_walk_graph *g = w->graph;
  if (!make_room(w, (size_t)(stop - start))) return NO_MEMORY;
  double sum = 0;
  for (int64_t j = start, first = start; j < stop; first = j) {
    const int32_t node = g->column[j];
    double mass = edge_weight(g, &j, stop);
    if (mass > 0 && w->exponent != 1) mass = power(mass / largest, w->exponent);
    if (l->visited && visited(l, w->mask, node)) mass *= w->options->revisit;
    sum += mass;
    for (int64_t k = first; k < j; k++) w->sums[k - start] = sum;
  }
  if (!(sum > 0)) return NOWHERE;
  const double u = sona_random_uniform(&l->random) * sum;
  int64_t j = 0;
  while (j + 1 < stop - start && w->sums[j] <= u) j++;
  return inside(g, g->column[start + j]);
}

/* Chance to keep entry j, drawn alike when the temperature is above 1 and else by weight, so that edges come by weight^exponent. */
static double heat(const walker *w, int64_t start, int64_t stop, int64_t j, double largest) {
  const int32_t *column = w->graph->column;
  int64_t first = j;
  while (first > start && column[first - 1] == column[j]) first--;
  int64_t behind = first;
  const double weight = edge_weight(w->graph, &behind, stop);
  if (!(weight > 0 && largest > 0)) return 0;
  return w->exponent > 1 ? power(weight / largest, w->exponent - 1) : power(weight / largest, w->exponent) / (double)(behind - first);
}

static int32_t along_an_edge(walker *w, lane *l) {
  const sona_walk_graph *g = w->graph;
  const int64_t start = g->start[l->at], stop = g->stop[l->at];
  if (start < 0 || stop < start || (uint64_t)stop > g->entries) return OUTSIDE;
  if (start == stop) return NOWHERE;
  const double total = (double)g->cumulative[stop - 1], count = (double)(stop - start);
  if (!(total > 0)) return NOWHERE;
  const double largest = w->exponent == 1 ? 0 : largest_weight(g, start, stop);
  if (total > (double)FLT_MAX) return from_sum(w, l, start, stop, largest); /* running sums are infinite, those in double are not */
  for (int tries = 0; tries < TRIES; tries++) {
    const double u = sona_random_uniform(&l->random);
    const int64_t j = start + (w->exponent < 1 ? (int64_t)(u * count) : (int64_t)search(g->cumulative + start, (size_t)count, u * total));
    const int32_t node = inside(g, g->column[j]);
    if (node == OUTSIDE) return OUTSIDE;
    double chance = w->exponent == 1 ? 1 : heat(w, start, stop, j, largest);
    if (l->visited && visited(l, w->mask, node)) chance *= w->options->revisit;
    if (chance == 1 || sona_random_uniform(&l->random) < chance) return node;
  }
  return from_sum(w, l, start, stop, largest);
}

static int32_t next_node(walker *w, lane *l) {
  const sona_walk_options *o = w->options;
  const uint32_t nodes = (uint32_t)w->graph->nodes;
  if (o->restart > 0 || o->jump > 0) {
    const double u = sona_random_uniform(&l->random);
    if (u < o->jump) return below(&l->random, nodes);
    if (u < o->jump + o->restart) return l->path[0];
  }
  const int32_t node = along_an_edge(w, l);
  if (node != NOWHERE) return node;
  if (o->jump > 0) return below(&l->random, nodes);
  return o->restart > 0 && l->at != l->path[0] ? l->path[0] : NOWHERE;
}

static sona_status run(walker *w, lane *lanes, size_t count) {
  const sona_walk_graph *g = w->graph;
  for (size_t t = 1; t < w->options->length; t++) {
    for (size_t i = 0; i < count; i++)
      if (lanes[i].at >= 0) {
        const int64_t start = g->start[lanes[i].at], stop = g->stop[lanes[i].at];
        if (start < 0 || stop <= start || (uint64_t)stop > g->entries) continue;
        PREFETCH(g->cumulative + (start + stop) / 2);
        PREFETCH(g->cumulative + stop - 1);
        PREFETCH(g->column + (start + stop) / 2);
      }
    for (size_t i = 0; i < count; i++) {
      lane *l = lanes + i;
      if (l->at >= 0) {
        l->at = next_node(w, l);
        if (l->at < NOWHERE) return l->at == NO_MEMORY ? SONA_ENOMEM : SONA_EINVAL;
        if (l->at >= 0) {
          PREFETCH(g->start + l->at);
          PREFETCH(g->stop + l->at);
          if (l->visited) visit(l, w->mask, l->at);
        }
      }
      l->path[t] = l->at;
    }
  }
  return SONA_OK;
}

static int valid(const sona_walk_graph *g, const sona_walk_options *o) {
  return g->nodes <= INT32_MAX && o->length >= 1 && o->length <= SONA_WALK_LONGEST && o->temperature > 0 && o->revisit >= 0 &&
         o->revisit <= 1 && o->restart >= 0 && o->jump >= 0 && o->restart + o->jump <= 1;
}

sona_status sona_walk(const sona_walk_graph *g, const sona_walk_options *o, const int32_t *starts, size_t first, size_t count,
                      int32_t *out) {
  if (!valid(g, o)) return SONA_EINVAL;
  for (size_t i = 0; i < count; i++)
    if (starts[i] < 0 || (size_t)starts[i] >= g->nodes) return SONA_EINVAL;
  uint32_t places = 8;
  while (places < 2 * o->length) places *= 2;
  int32_t *sets = NULL;
  if (o->revisit < 1 && count) {
    sets = sona_calloc((size_t)LANES * places, sizeof *sets);
    if (!sets) return SONA_ENOMEM;
  }
  walker w = {.graph = g, .options = o, .exponent = o->temperature > COLDEST ? 1 / o->temperature : 1 / COLDEST, .mask = places - 1};
  sona_status status = SONA_OK;
  for (size_t i = 0; i < count && status == SONA_OK; i += LANES) {
    lane lanes[LANES];
    const size_t n = count - i < LANES ? count - i : LANES;
    if (sets) memset(sets, 0xff, n * places * sizeof *sets);
    for (size_t k = 0; k < n; k++) {
      lane *l = lanes + k;
      *l = (lane){.path = out + (i + k) * o->length, .visited = sets ? sets + k * places : NULL, .at = starts[i + k]};
      sona_random_seed(&l->random, mix(mix(o->seed + 0x9e3779b97f4a7c15u) + first + i + k));
      l->path[0] = l->at;
      if (sets) visit(l, w.mask, l->at);
    }
    status = run(&w, lanes, n);
  }
  sona_free(w.sums);
  sona_free(sets);
  return status;
}

void sona_walk_cumulate(const int64_t *start, const int64_t *stop, size_t rows, const float *weight, float *cumulative) {
  for (size_t i = 0; i < rows; i++) {
    double sum = 0;
    for (int64_t j = start[i]; j < stop[i]; j++) cumulative[j] = (float)(sum += (double)weight[j]);
  }
}
