/* Private: what the parts of the search for Phi share.
 *
 *   iit3.c              one block of memory, and the order of things
 *   iit3_network.c      what depends on what, and how much work that makes
 *   iit3_repertoires.c  cause and effect repertoires of a system, whole or cut
 *   iit3_concepts.c     bipartitions of mechanisms and purviews
 *   iit3_cuts.c         what a cut costs
 *   transport.c         the distances of both */
#ifndef SONA_IIT3_INTERNAL_H
#define SONA_IIT3_INTERNAL_H

#include "sona/iit3.h"
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
  mask from;                    /* severed from the rest; 0 for the whole */
  mask inputs[NODES];           /* nodes that a node depends on */
  double effect[NODES][STATES]; /* chance that a node is 1 next, given the states of a mechanism */
  double *cause;                /* repertoire of mechanism M over purview Z at (M, offset[Z]) of (2^n, 3^n) */
  double *ones;                 /* (2^n, 2^n, n) chance of a 1 under each of them, by node; 0 outside of Z */
  sona_iit3_concept *concept;   /* (2^n) by mechanism; phi 0 where there is none */
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
  double *likelihood;           /* (n, 3^n) chance that a node is in its state, given the states of a purview */
  found *memo;                  /* (2^n, 2^n, CUTS of n) */
  uint32_t *kept;               /* (2^n, 2^n) how many of them */
  sona_transport masses, moves; /* between the states of two repertoires, between concepts */
} search;

static inline int bits(mask set) { return sona_count_bits(set); }

static inline int first(mask set) { return __builtin_ctz(set); }

/* ---- the network: dependences are sets of inputs, by node ---- */

/* Which nodes the chance of each depends on, by more than `ignored`. */
void sona_iit3_dependences(uint32_t n, const double *tpm, double ignored, mask *inputs);

/* Every node is reached from node 0, along connections and against them. */
int sona_iit3_strongly_connected(uint32_t n, const uint8_t *cm);

/* inputs without the connections that a cut severs. */
void sona_iit3_sever(uint32_t n, const mask *whole, mask from, mask *inputs);

/* The dependences of `ends` on `starts`, as one number. */
uint64_t sona_iit3_edges(uint32_t n, const mask *inputs, mask ends, mask starts);

/* Whether dependences hold ends and starts together.  Where they do not, a bipartition along the gap costs nothing. */
int sona_iit3_connected(const mask *inputs, mask ends, mask starts);

/* ---- repertoires ---- */

static inline double *cause(const search *s, const view *v, mask mechanism, mask purview) {
  return v->cause + mechanism * s->powers + s->offset[purview];
}

static inline const double *ones(const search *s, const view *v, mask mechanism, mask purview) {
  return v->ones + (mechanism * s->states + purview) * s->n;
}

/* Tables of n alone. */
void sona_iit3_arrange(search *s);

/* Everything of s->whole but its concepts, and the likelihoods that a cut starts from. */
void sona_iit3_find_whole(search *s, const double *tpm);

/* Everything of s->cut but its concepts. */
void sona_iit3_find_severed(search *s, mask from);

/* ---- concepts and cuts ---- */

void sona_iit3_find_concepts(search *s, view *v);

/* Phi and the cuts that cost it, once the whole has its concepts.  SONA_OK or SONA_ESTOPPED. */
sona_status sona_iit3_find_cut(search *s, int (*stop)(void *context), void *context, sona_iit3_result *result);

#endif
