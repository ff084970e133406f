#include "sona/iit3.h"

#include <math.h>
#include <string.h>

#include "transport.h"

enum { NODES = SONA_IIT3_NODES, STATES = SONA_IIT3_STATES, CUTS = STATES - 1 }; /* the whole, and every set that is severed from the rest */

typedef uint32_t mask;

/* What a bipartition search over one mechanism and purview has found, for the connections between them that a cut severs. */
typedef struct found {
  uint64_t severed;
  double phi; /* exact, or not less than what it is */
  uint8_t part_mechanism, part_purview, exact;
} found;

/* A system, whole or cut. */
typedef struct view {
  mask from;                     /* severed from the rest; 0 for the whole */
  mask inputs[NODES];            /* nodes that a node depends on */
  double effect[NODES][STATES];  /* chance that a node is 1 next, given the states of a mechanism */
  double *cause;                 /* repertoire of mechanism M over purview Z at (M, offset[Z]) of (2^n, 3^n) */
  double *ones;                  /* (2^n, 2^n, n) chance of a 1 under each of them, by node; 0 outside of Z */
  sona_iit3_concept *concept;    /* (2^n) by mechanism; phi 0 where there is none */
} view;

typedef struct search {
  uint32_t n, states, powers; /* nodes, 2^n, 3^n */
  mask state;
  uint32_t offset[STATES];           /* where the states of a set of nodes start */
  mask order[STATES];                /* sets of nodes, largest first, then lexicographic; the empty one last */
  uint8_t extract[STATES][STATES];   /* [set][state]: the bits of state that are in set, moved together */
  double bound[STATES * STATES / 2]; /* of the bipartitions under way */
  uint16_t part[STATES * STATES / 2];
  view whole, cut;
  double *likelihood; /* (n, 3^n) chance that a node is in its state, given the states of a purview */
  found *memo;        /* (2^n, 2^n, CUTS of n) */
  uint32_t *kept;     /* (2^n, 2^n) how many of them */
  sona_transport masses, moves; /* between the states of two repertoires, between concepts */
} search;

/* Of a set of up to eight nodes; inline, where popcount is a call for lack of an instruction that every machine has. */
static int bits(mask set) {
  set -= set >> 1 & 0x55;
  set = (set & 0x33) + (set >> 2 & 0x33);
  return (int)((set + (set >> 4)) & 15);
}

static int first(mask set) { return __builtin_ctz(set); }

/* ---- distances ---- */

static double between(sona_transport *t, uint32_t k, const double *p, const double *q) {
  if (k == 0) return 0;
  if (k == 1) return fabs(p[1] - q[1]);
  uint8_t row[STATES], col[STATES];
  t->rows = t->cols = 0;
  for (uint32_t s = 0; s < 1u << k; s++) {
    const double gap = p[s] - q[s];
    if (gap > 1e-15) {
      row[t->rows] = (uint8_t)s;
      t->supply[t->rows++] = gap;
    } else if (gap < -1e-15) {
      col[t->cols] = (uint8_t)s;
      t->demand[t->cols++] = -gap;
    }
  }
  for (int i = 0; i < t->rows; i++)
    for (int j = 0; j < t->cols; j++) t->cost[i * t->cols + j] = bits(row[i] ^ col[j]);
  return sona_transport_solve(t);
}

sona_status sona_iit3_distance(uint32_t k, const double *p, const double *q, double *distance) {
  if (k > NODES) return SONA_EINVAL;
  sona_transport *t = sona_calloc(1, sizeof *t);
  if (!t) return SONA_ENOMEM;
  *distance = between(t, k, p, q);
  sona_free(t);
  return SONA_OK;
}

/* ---- the network ---- */

/* Which nodes each depends on. */
static void dependences(uint32_t n, const double *tpm, mask *inputs) {
  for (uint32_t j = 0; j < n; j++) {
    inputs[j] = 0;
    for (uint32_t i = 0; i < n; i++)
      for (uint32_t s = 0; s < 1u << n; s++)
        if (fabs(tpm[s * n + j] - tpm[(s ^ 1u << i) * n + j]) > SONA_IIT3_RESOLUTION) inputs[j] |= 1u << i;
  }
}

sona_status sona_iit3_check(uint32_t n, const double *tpm, const uint8_t *cm) {
  if (n < 1 || n > NODES) return SONA_EINVAL;
  for (uint32_t k = 0; k < n << n; k++)
    if (!isfinite(tpm[k])) return SONA_ENONFINITE;
  for (uint32_t k = 0; k < n << n; k++)
    if (!(tpm[k] >= 0 && tpm[k] <= 1)) return SONA_EINVAL;
  mask inputs[NODES];
  dependences(n, tpm, inputs);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t j = 0; j < n; j++)
      if (!cm[i * n + j] && inputs[j] >> i & 1) return SONA_EINVAL;
  return SONA_OK;
}

int sona_iit3_reachable(uint32_t n, const double *tpm, uint32_t state) {
  for (uint32_t s = 0; s < 1u << n; s++) {
    double chance = 1;
    for (uint32_t i = 0; i < n; i++) chance *= state >> i & 1 ? tpm[s * n + i] : 1 - tpm[s * n + i];
    if (chance >= 1e-200) return 1; /* products of seven means over 128 states stay normal numbers */
  }
  return 0;
}

/* Every node is reached from node 0, along connections and against them. */
static int strongly_connected(uint32_t n, const uint8_t *cm) {
  for (int against = 0; against < 2; against++) {
    mask seen = 1, old = 0;
    while (seen != old) {
      old = seen;
      for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++)
          if (seen >> i & 1 && cm[against ? j * n + i : i * n + j]) seen |= 1u << j;
    }
    if (seen != (1u << n) - 1) return 0;
  }
  return 1;
}

/* inputs without the connections that a cut severs. */
static void sever(uint32_t n, const mask *whole, mask from, mask *inputs) {
  for (uint32_t i = 0; i < n; i++) inputs[i] = from >> i & 1 ? whole[i] : whole[i] & ~from;
}

/* The dependences of `ends` on `starts`, as one number. */
static uint64_t edges(uint32_t n, const mask *inputs, mask ends, mask starts) {
  uint64_t found = 0;
  for (; ends; ends &= ends - 1) found |= (uint64_t)(inputs[first(ends)] & starts) << (n * (uint32_t)first(ends));
  return found;
}

/* Whether dependences hold ends and starts together.  Where they do not, a bipartition along the gap costs nothing. */
static int connected(const mask *inputs, mask ends, mask starts) {
  mask reached = starts & -starts, left = ends, before;
  do {
    before = reached;
    for (mask rest = left; rest; rest &= rest - 1) {
      const mask in = inputs[first(rest)] & starts;
      if (!(in & reached)) continue;
      reached |= in;
      left &= ~(rest & -rest);
    }
  } while (reached != before);
  return reached == starts && !left;
}

uint64_t sona_iit3_work(uint32_t n, const double *tpm) {
  mask whole[NODES], inputs[NODES];
  dependences(n, tpm, whole);
  uint64_t work = 0;
  for (mask m = 1; m < 1u << n; m++)
    for (mask z = 1; z < 1u << n; z++) {
      uint64_t seen[CUTS];
      uint32_t kept = 0, i;
      for (mask from = 0; from + 1 < 1u << n; from++) {
        sever(n, whole, from, inputs);
        const uint64_t left = edges(n, inputs, m, z);
        for (i = 0; i < kept && seen[i] != left; i++) {}
        if (i < kept) continue;
        seen[kept++] = left;
        if (connected(inputs, m, z)) work += ((uint64_t)1 << (bits(m) + bits(z) - 1)) * ((uint64_t)1 << 2 * bits(z));
      }
    }
  return work;
}

/* ---- repertoires ---- */

/* Tables of n alone. */
static void arrange(search *s) {
  s->powers = 0;
  for (mask set = 0; set < s->states; set++) {
    s->offset[set] = s->powers;
    s->powers += 1u << bits(set);
    for (mask state = 0; state < s->states; state++) {
      uint32_t together = 0, at = 0;
      for (mask rest = set; rest; rest &= rest - 1) together |= (state >> first(rest) & 1) << at++;
      s->extract[set][state] = (uint8_t)together;
    }
  }
  uint32_t count = 0;
  for (int size = (int)s->n; size >= 0; size--)
    for (mask back = s->states; back-- > 0;) { /* node 0 in the highest bit: falling numbers are lexicographic */
      mask set = 0;
      for (uint32_t i = 0; i < s->n; i++) set |= (back >> (s->n - 1 - i) & 1) << i;
      if (bits(set) == size) s->order[count++] = set;
    }
}

/* likelihood[i][Z]: a mean over the states of all nodes outside of Z.  Node by node is taken out of Z. */
static void find_likelihoods(search *s, const double *tpm) {
  for (uint32_t i = 0; i < s->n; i++) {
    double *own = s->likelihood + i * s->powers;
    for (mask x = 0; x < s->states; x++) own[s->offset[s->states - 1] + x] = s->state >> i & 1 ? tpm[x * s->n + i] : 1 - tpm[x * s->n + i];
    for (mask set = s->states - 1; set-- > 0;) {
      const int out = first(~set); /* set | 1 << out holds one node more, and the bits below `out` are all in it */
      const double *more = own + s->offset[set | 1u << out];
      for (mask x = 0; x < 1u << bits(set); x++) {
        const mask low = x & ((1u << out) - 1), at = low | (x - low) << 1;
        own[s->offset[set] + x] = (more[at] + more[at | 1u << out]) / 2;
      }
    }
  }
}

/* Chance that a node is 1 after a state that agrees with the current one on the mechanism. */
static void find_effects(const search *s, const double *tpm, double (*effect)[STATES]) {
  for (uint32_t j = 0; j < s->n; j++)
    for (mask m = 0; m < s->states; m++) {
      double sum = 0;
      for (mask x = 0; x < s->states; x++)
        if (!((x ^ s->state) & m)) sum += tpm[x * s->n + j];
      effect[j][m] = sum / (double)(s->states >> bits(m));
    }
}

static double *cause(const search *s, const view *v, mask mechanism, mask purview) {
  return v->cause + mechanism * s->powers + s->offset[purview];
}

static const double *ones(const search *s, const view *v, mask mechanism, mask purview) {
  return v->ones + (mechanism * s->states + purview) * s->n;
}

/* Product of the likelihoods of the mechanism's nodes, normalised; what does not reach a node is not asked. */
static void find_causes(const search *s, view *v) {
  for (mask z = 0; z < s->states; z++) {
    const uint32_t count = 1u << bits(z);
    for (mask x = 0; x < count; x++) cause(s, v, 0, z)[x] = 1.0 / count;
    for (mask m = 1; m < s->states; m++) {
      const uint32_t i = (uint32_t)first(m);
      const mask seen = v->from >> i & 1 ? z : z & ~v->from;
      const double *likelihood = s->likelihood + i * s->powers + s->offset[seen], *rest = cause(s, v, m & (m - 1), z);
      const uint8_t *extract = s->extract[s->extract[z][seen]]; /* the place of `seen` among the nodes of z */
      double *p = cause(s, v, m, z), sum = 0;
      for (mask x = 0; x < count; x++) sum += p[x] = rest[x] * likelihood[extract[x]];
      for (mask x = 0; x < count; x++) p[x] /= sum;
    }
    for (mask m = 0; m < s->states; m++) {
      const double *p = cause(s, v, m, z);
      double *one = v->ones + (m * s->states + z) * s->n;
      memset(one, 0, s->n * sizeof *one);
      uint32_t at = 0;
      for (mask left = z; left; left &= left - 1, at++)
        for (mask x = 0; x < count; x++) one[first(left)] += x >> at & 1 ? p[x] : 0;
    }
  }
}

static void cut(const search *s, mask from, view *v) {
  v->from = from;
  sever(s->n, s->whole.inputs, from, v->inputs);
  for (uint32_t j = 0; j < s->n; j++)
    for (mask m = 0; m < s->states; m++) v->effect[j][m] = s->whole.effect[j][from >> j & 1 ? m : m & ~from];
  find_causes(s, v);
}

/* ---- concepts ---- */

/* phi of a mechanism over an effect purview.  Repertoires are products over nodes, so the distance is the sum of the nodes' own, and each
 * node of the purview may choose the cheaper part; only that all follow the whole mechanism is no partition. */
static double effect_phi(const view *v, mask mechanism, mask purview, double floor, sona_iit3_side *side) {
  double least = HUGE_VAL;
  const mask low = mechanism & -mechanism;
  for (mask part = mechanism; part; part = (part - 1) & mechanism) {
    if (!(part & low)) continue;
    const mask other = mechanism & ~part;
    double sum = other ? 0 : HUGE_VAL;
    mask with = 0;
    for (mask rest = purview; rest; rest &= rest - 1) {
      const double *p = v->effect[first(rest)], here = fabs(p[mechanism] - p[part]), there = fabs(p[mechanism] - p[other]);
      if (!other) {
        if (there < sum) with = purview & ~(rest & -rest);
        sum = fmin(sum, there);
      } else {
        sum += fmin(here, there);
        if (here <= there) with |= rest & -rest;
      }
    }
    if (sum >= least) continue;
    least = sum;
    side->part_mechanism = (uint8_t)part;
    side->part_purview = (uint8_t)with;
    if (least <= floor) break;
  }
  return least;
}

/* phi of a mechanism over a cause purview, or a bound on it that is not above `floor`.  The distance of two distributions is at least that
 * of their nodes one by one, which costs little: bipartitions are solved in that order until the next could not be below the least. */
static double cause_phi(search *s, const view *v, mask mechanism, mask purview, double floor, found *result) {
  const uint32_t k = (uint32_t)bits(purview), n = s->n;
  const double *p = cause(s, v, mechanism, purview), *one = ones(s, v, mechanism, purview);
  const mask low = mechanism & -mechanism;
  uint32_t count = 0;
  for (mask m = mechanism; m; m = (m - 1) & mechanism) {
    if (!(m & low)) continue;
    for (mask z = purview;; z = (z - 1) & purview) {
      if (m != mechanism || z != purview) {
        const double *a = ones(s, v, m, z), *b = ones(s, v, mechanism & ~m, purview & ~z);
        double sum = 0;
        for (uint32_t j = 0; j < n; j++) sum += fabs(one[j] - a[j] - b[j]);
        s->bound[count] = sum;
        s->part[count++] = (uint16_t)(m << 8 | z);
      }
      if (!z) break;
    }
  }
  result->phi = HUGE_VAL;
  for (;;) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
      if (s->bound[i] < s->bound[best]) best = i;
    if (s->bound[best] >= result->phi) break;
    const mask m = s->part[best] >> 8, z = s->part[best] & 255;
    double distance = s->bound[best];
    if (k > 1) {
      double q[STATES];
      const double *a = cause(s, v, m, z), *b = cause(s, v, mechanism & ~m, purview & ~z);
      const uint8_t *here = s->extract[s->extract[purview][z]], *there = s->extract[s->extract[purview][purview & ~z]];
      for (mask x = 0; x < 1u << k; x++) q[x] = a[here[x]] * b[there[x]];
      distance = between(&s->masses, k, p, q);
    }
    s->bound[best] = HUGE_VAL;
    if (distance >= result->phi) continue;
    result->phi = distance;
    result->part_mechanism = (uint8_t)m;
    result->part_purview = (uint8_t)z;
    if (distance <= floor) break;
  }
  result->exact = result->phi > floor;
  return result->phi;
}

/* As cause_phi, by what was found for another cut that severs the same. */
static const found *recall(search *s, const view *v, mask mechanism, mask purview, double floor) {
  const uint32_t pair = mechanism * s->states + purview;
  found *memo = s->memo + pair * (s->states - 1);
  const uint64_t severed = edges(s->n, s->whole.inputs, mechanism, purview) & ~edges(s->n, v->inputs, mechanism, purview);
  uint32_t i = 0;
  while (i < s->kept[pair] && memo[i].severed != severed) i++;
  if (i == s->kept[pair]) {
    s->kept[pair]++;
    memo[i] = (found){.severed = severed, .phi = HUGE_VAL};
  }
  if (!memo[i].exact && memo[i].phi > floor) cause_phi(s, v, mechanism, purview, floor, &memo[i]);
  return &memo[i];
}

static void find_cause(search *s, const view *v, mask mechanism, sona_iit3_side *side) {
  side->phi = 0;
  for (const mask *z = s->order; *z; z++) {
    if (!connected(v->inputs, mechanism, *z)) continue;
    const double floor = side->phi + SONA_IIT3_RESOLUTION;
    const found *now = recall(s, v, mechanism, *z, floor);
    if (now->phi <= floor) continue;
    side->phi = now->phi;
    side->purview = (uint8_t)*z;
    side->part_mechanism = now->part_mechanism;
    side->part_purview = now->part_purview;
  }
  if (side->phi > 0) memcpy(side->repertoire, cause(s, v, mechanism, side->purview), sizeof(double) << bits(side->purview));
}

static void find_effect(const search *s, const view *v, mask mechanism, sona_iit3_side *side) {
  side->phi = 0;
  for (const mask *z = s->order; *z; z++) {
    if (!connected(v->inputs, *z, mechanism)) continue;
    sona_iit3_side now = {0};
    const double floor = side->phi + SONA_IIT3_RESOLUTION, phi = effect_phi(v, mechanism, *z, floor, &now);
    if (phi <= floor) continue;
    side->phi = phi;
    side->purview = (uint8_t)*z;
    side->part_mechanism = now.part_mechanism;
    side->part_purview = now.part_purview;
  }
  for (mask x = 0; side->phi > 0 && x < 1u << bits(side->purview); x++) {
    uint32_t at = 0;
    side->repertoire[x] = 1;
    for (mask rest = side->purview; rest; rest &= rest - 1, at++) {
      const double p = v->effect[first(rest)][mechanism];
      side->repertoire[x] *= x >> at & 1 ? p : 1 - p;
    }
  }
}

static void find_concepts(search *s, view *v) {
  for (mask m = 1; m < s->states; m++) {
    sona_iit3_concept *c = v->concept + m;
    c->phi = 0;
    c->mechanism = (uint8_t)m;
    find_effect(s, v, m, &c->effect);
    if (c->effect.phi > 0) find_cause(s, v, m, &c->cause);
    if (c->effect.phi > 0) c->phi = fmin(c->cause.phi, c->effect.phi);
  }
}

/* ---- cuts ---- */

/* Where a concept is: a cause repertoire, uniform outside of its purview, and each node's chance of having been 1 and of being 1 next. */
typedef struct place {
  mask purview;
  const double *cause;
  double before[NODES], next[NODES];
} place;

/* Of a mechanism's concept, or of the null concept for no mechanism. */
static place place_of(const search *s, const view *v, mask mechanism) {
  static const double certain = 1;
  const sona_iit3_concept *c = v->concept + mechanism;
  const mask causes = mechanism ? c->cause.purview : 0, effects = mechanism ? c->effect.purview : 0;
  place at = {.purview = causes, .cause = mechanism ? c->cause.repertoire : &certain};
  const double *one = ones(s, v, mechanism, causes);
  for (uint32_t j = 0; j < s->n; j++) {
    at.before[j] = causes >> j & 1 ? one[j] : 0.5;
    at.next[j] = v->effect[j][effects >> j & 1 ? mechanism : 0];
  }
  return at;
}

/* Distance of the effect repertoires, which is the sum over nodes since both are products, and what that of the causes is at least. */
static double at_least(const search *s, const place *a, const place *b) {
  double sum = 0;
  for (uint32_t j = 0; j < s->n; j++) sum += fabs(a->next[j] - b->next[j]) + fabs(a->before[j] - b->before[j]);
  return sum;
}

static double apart(search *s, const place *a, const place *b) {
  double sum = 0;
  for (uint32_t j = 0; j < s->n; j++) sum += fabs(a->next[j] - b->next[j]);
  const mask both = a->purview | b->purview;
  const int k = bits(both);
  const uint8_t *of_a = s->extract[s->extract[both][a->purview]], *of_b = s->extract[s->extract[both][b->purview]];
  double p[STATES], q[STATES];
  for (mask x = 0; x < 1u << k; x++) {
    p[x] = a->cause[of_a[x]] / (double)(1u << (k - bits(a->purview)));
    q[x] = b->cause[of_b[x]] / (double)(1u << (k - bits(b->purview)));
  }
  return sum + between(&s->masses, (uint32_t)k, p, q);
}

static int same_place(search *s, const place *a, const place *b) {
  return at_least(s, a, b) <= SONA_IIT3_RESOLUTION && apart(s, a, b) <= SONA_IIT3_RESOLUTION;
}

/* Cost of the cheapest transport from `from` to `to`, or a bound on it above `most`.  Costs are what they are at least until something
 * flows there: a transport that is cheapest under bounds, and meets them, is cheapest. */
static double transport(search *s, const place *from, const place *to, double most) {
  sona_transport *t = &s->moves;
  char exact[STATES * STATES];
  double supply[STATES], demand[STATES], cost;
  memcpy(supply, t->supply, sizeof supply);
  memcpy(demand, t->demand, sizeof demand);
  memset(exact, 0, (size_t)(t->rows * t->cols));
  for (int i = 0; i < t->rows; i++)
    for (int j = 0; j < t->cols; j++) t->cost[i * t->cols + j] = at_least(s, &from[i], &to[j]);
  for (int more = 1; more;) {
    memcpy(t->supply, supply, sizeof supply);
    memcpy(t->demand, demand, sizeof demand);
    cost = sona_transport_solve(t);
    if (cost > most) break;
    more = 0;
    for (int k = 0; k < t->rows * t->cols; k++) {
      if (exact[k] || !(t->flow[k] > 0)) continue;
      t->cost[k] = apart(s, &from[k / t->cols], &to[k % t->cols]);
      exact[k] = 1;
      more = 1;
    }
  }
  return cost;
}

/* What a cut changes, or a bound on it above `most`.  A concept that stays where it is keeps what mass both have there: distances are
 * metric, so some cheapest transport leaves it. */
static double cut_distance(search *s, double most) {
  place from[STATES], to[STATES];
  sona_transport *t = &s->moves;
  double excess = 0;
  t->rows = t->cols = 0;
  for (mask m = 1; m < s->states; m++) {
    double lost = s->whole.concept[m].phi, gained = s->cut.concept[m].phi;
    excess += lost - gained;
    if (lost > 0) from[t->rows] = place_of(s, &s->whole, m);
    if (gained > 0) to[t->cols] = place_of(s, &s->cut, m);
    if (lost > 0 && gained > 0 && same_place(s, &from[t->rows], &to[t->cols])) {
      const double same = fmin(lost, gained);
      lost -= same;
      gained -= same;
    }
    if (lost > SONA_IIT3_RESOLUTION) t->supply[t->rows++] = lost;
    if (gained > SONA_IIT3_RESOLUTION) t->demand[t->cols++] = gained;
  }
  if (excess > SONA_IIT3_RESOLUTION) {
    to[t->cols] = place_of(s, &s->cut, 0);
    t->demand[t->cols++] = excess;
  } else if (excess < -SONA_IIT3_RESOLUTION) {
    from[t->rows] = place_of(s, &s->whole, 0);
    t->supply[t->rows++] = -excess;
  }
  return t->rows && t->cols ? transport(s, from, to, most) : 0;
}

static void find_cut(search *s, sona_iit3_result *result) {
  result->phi = HUGE_VAL;
  for (mask from = 1; from + 1 < s->states && result->phi > 0; from++) {
    cut(s, from, &s->cut);
    find_concepts(s, &s->cut);
    double distance = cut_distance(s, result->phi + SONA_IIT3_RESOLUTION);
    if (distance <= SONA_IIT3_RESOLUTION) distance = 0;
    if (distance > result->phi + SONA_IIT3_RESOLUTION) continue;
    if (distance < result->phi - SONA_IIT3_RESOLUTION) result->cuts = 0;
    result->phi = fmin(result->phi, distance);
    result->cut[result->cuts++] = (uint8_t)from;
  }
}

/* ---- the whole ---- */

/* Room for a search, and its parts, in one block. */
static search *allocate(uint32_t n) {
  const size_t states = (size_t)1 << n;
  size_t powers = 1;
  for (uint32_t i = 0; i < n; i++) powers *= 3;
  const size_t causes = states * powers, marginals = states * states * n, pairs = states * states;
  const size_t doubles = n * powers + 2 * causes + 2 * marginals;
  const size_t size = sizeof(search) + doubles * sizeof(double) + 2 * states * sizeof(sona_iit3_concept) +
                      pairs * (states - 1) * sizeof(found) + pairs * sizeof(uint32_t);
  search *s = sona_calloc(1, size);
  if (!s) return NULL;
  double *next = (double *)(void *)(s + 1);
  s->n = n;
  s->states = (uint32_t)states;
  s->likelihood = next;
  s->whole.cause = next += n * powers;
  s->cut.cause = next += causes;
  s->whole.ones = next += causes;
  s->cut.ones = next += marginals;
  s->whole.concept = (sona_iit3_concept *)(void *)(next + marginals);
  s->cut.concept = s->whole.concept + states;
  s->memo = (found *)(void *)(s->cut.concept + states);
  s->kept = (uint32_t *)(void *)(s->memo + pairs * (states - 1));
  return s;
}

sona_status sona_iit3(uint32_t n, const double *tpm, const uint8_t *cm, uint32_t state, uint64_t most, sona_iit3_result *result) {
  const sona_status status = sona_iit3_check(n, tpm, cm);
  if (status != SONA_OK) return status;
  if (state >> n || !sona_iit3_reachable(n, tpm, state)) return SONA_EINVAL;
  const int whole = n > 1 && strongly_connected(n, cm);
  if (whole && sona_iit3_work(n, tpm) > most) return SONA_EFULL;
  search *s = whole ? allocate(n) : NULL;
  if (whole && !s) return SONA_ENOMEM;
  result->phi = 0;
  result->concepts = result->cuts = 0;
  if (!whole) return SONA_OK;
  s->state = state;
  arrange(s);
  find_likelihoods(s, tpm);
  find_effects(s, tpm, s->whole.effect);
  dependences(n, tpm, s->whole.inputs);
  find_causes(s, &s->whole);
  find_concepts(s, &s->whole);
  for (int size = 1; size <= (int)n; size++)
    for (const mask *m = s->order; *m; m++)
      if (bits(*m) == size && s->whole.concept[*m].phi > 0) result->concept[result->concepts++] = s->whole.concept[*m];
  if (result->concepts) find_cut(s, result);
  sona_free(s);
  return SONA_OK;
}
