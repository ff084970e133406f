#include <math.h>
#include <string.h>

#include "iit3_internal.h"

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
static void cause_phi(search *s, const view *v, mask mechanism, mask purview, double floor, found *result) {
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
      distance = sona_transport_states(&s->masses, k, p, q);
    }
    s->bound[best] = HUGE_VAL;
    if (distance >= result->phi) continue;
    result->phi = distance;
    result->part_mechanism = (uint8_t)m;
    result->part_purview = (uint8_t)z;
    if (distance <= floor) break;
  }
  result->exact = result->phi > floor;
}

/* As cause_phi, by what was found for another cut that severs the same. */
static const found *recall(search *s, const view *v, mask mechanism, mask purview, double floor) {
  const uint32_t pair = mechanism * s->states + purview;
  found *memo = s->memo + pair * (s->states - 1);
  const uint64_t severed =
      sona_iit3_edges(s->n, s->whole.inputs, mechanism, purview) & ~sona_iit3_edges(s->n, v->inputs, mechanism, purview);
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
    if (!sona_iit3_connected(v->inputs, mechanism, *z)) continue;
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
    if (!sona_iit3_connected(v->inputs, *z, mechanism)) continue;
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

void sona_iit3_find_concepts(search *s, view *v) {
  for (mask m = 1; m < s->states; m++) {
    sona_iit3_concept *c = v->concept + m;
    c->phi = 0;
    c->mechanism = (uint8_t)m;
    find_effect(s, v, m, &c->effect);
    if (c->effect.phi > 0) find_cause(s, v, m, &c->cause);
    if (c->effect.phi > 0) c->phi = fmin(c->cause.phi, c->effect.phi);
  }
}
