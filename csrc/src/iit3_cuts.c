#include <math.h>
#include <string.h>

#include "iit3_internal.h"

#define ROUNDING 1e-15 /* of a difference of masses */

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
  return sum + sona_transport_states(&s->masses, (uint32_t)k, p, q);
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
    if (lost > ROUNDING) t->supply[t->rows++] = lost;
    if (gained > ROUNDING) t->demand[t->cols++] = gained;
  }
  if (excess > ROUNDING) {
    to[t->cols] = place_of(s, &s->cut, 0);
    t->demand[t->cols++] = excess;
  } else if (excess < -ROUNDING) {
    from[t->rows] = place_of(s, &s->whole, 0);
    t->supply[t->rows++] = -excess;
  }
  return t->rows && t->cols ? transport(s, from, to, most) : 0;
}

sona_status sona_iit3_find_cut(search *s, int (*stop)(void *context), void *context, sona_iit3_result *result) {
  result->phi = HUGE_VAL;
  for (mask from = 1; from + 1 < s->states && result->phi > 0; from++) {
    if (stop && stop(context)) return SONA_ESTOPPED;
    sona_iit3_find_severed(s, from);
    sona_iit3_find_concepts(s, &s->cut);
    double distance = cut_distance(s, result->phi + SONA_IIT3_RESOLUTION);
    if (distance <= SONA_IIT3_RESOLUTION) distance = 0;
    if (distance > result->phi + SONA_IIT3_RESOLUTION) continue;
    if (distance < result->phi - SONA_IIT3_RESOLUTION) result->cuts = 0;
    result->phi = fmin(result->phi, distance);
    result->cut[result->cuts++] = (uint8_t)from;
  }
  return SONA_OK;
}
