/* Integrated information of a small discrete system in a state: Phi of IIT 3.0, exact (Oizumi, Albantakis and Tononi 2014, PLoS Comput
 * Biol 10(5) e1003588).
 *
 * A system has n binary nodes.  Sets of nodes, and states, are bit masks: bit i is node i.  A repertoire over k nodes has 2^k
 * probabilities; its index holds the state of the first of the nodes in its lowest bit.
 *
 *   repertoires   cause: chance of a past state of the purview given the mechanism's state, effect: of a future one.  Whatever is
 *                 outside is noise, independent for each element (virtual elements); without a mechanism they are unconstrained.
 *   phi           of a mechanism over a purview: least distance of its repertoire from a product over two parts, over all
 *                 bipartitions of (mechanism, purview).  The distance is the earth mover's with the Hamming distance between states.
 *   concept       a mechanism whose phi is above 0 on both sides, each at the purview where it is largest; of purviews that tie, the one
 *                 with more nodes, then the first in lexicographic order.
 *   cut           connections from one set of nodes to the rest become noise, in one direction.
 *   Phi           least distance between the concepts of the whole and those of a cut system: the earth mover's, where phi is the mass
 *                 and the place is cause and effect repertoire over all nodes.  What one side has more goes to the null concept.
 *
 * Values that differ by less than SONA_IIT3_RESOLUTION are equal.  Functions keep no state: any thread. */
#ifndef SONA_IIT3_H
#define SONA_IIT3_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_IIT3_NODES 7
#define SONA_IIT3_STATES 128 /* 2^7 */
#define SONA_IIT3_RESOLUTION 1e-12
#define SONA_IIT3_WORK 100000000000u /* for `most`: any six nodes, or seven with about three inputs each; a quarter of a minute */

typedef struct sona_iit3_side {
  double phi;
  uint8_t purview;
  uint8_t part_mechanism, part_purview; /* one part of the bipartition that costs phi; the other is the rest */
  double repertoire[SONA_IIT3_STATES];  /* (2^nodes of purview) */
} sona_iit3_side;

typedef struct sona_iit3_concept {
  double phi; /* the lesser of both sides */
  uint8_t mechanism;
  sona_iit3_side cause, effect;
} sona_iit3_concept;

typedef struct sona_iit3_result {
  double phi;
  uint32_t concepts;             /* of the whole, by mechanism: fewer nodes first, then lexicographic */
  uint32_t cuts;                 /* that cost phi, 0 where nothing was cut */
  uint8_t cut[SONA_IIT3_STATES]; /* the sets that they sever the rest from */
  sona_iit3_concept concept[SONA_IIT3_STATES];
} sona_iit3_result;

/* tpm: (2^n, n), chance that node i is 1 after state s; cm: (n, n) bytes, cm[i n + j] is not 0 where i connects to j.  1 <= n <= 7.
 *
 * SONA_OK, SONA_ENONFINITE, or SONA_EINVAL: n or a chance outside of its range, or a node whose chance depends on one that cm does not
 * connect to it. */
SONA_API sona_status sona_iit3_check(uint32_t n, const double *tpm, const uint8_t *cm);

/* 1 where some state leads to this one with a chance of at least 1e-200, else 0. */
SONA_API int sona_iit3_reachable(uint32_t n, const double *tpm, uint32_t state);

/* How much there is to do for the system in any state: bipartitions of mechanisms and purviews that are connected, over the whole and all
 * cuts without those that a cut does not touch, each times the square of the purview's states.  Cheap. */
SONA_API uint64_t sona_iit3_work(uint32_t n, const double *tpm);

/* Fills result, which the caller owns; of its concepts as many as there are.  A system that cm does not connect strongly, or of one node,
 * has Phi 0 and its concepts are not looked for.  Without concepts Phi is 0 and nothing is cut.  Further cuts are not looked at after one
 * that costs nothing.  Before each cut `stop` is asked with `context`, where it is not NULL: what is not 0 ends the search.
 *
 * SONA_EINVAL also for a state that nothing leads to, SONA_EFULL where sona_iit3_work is above `most`, SONA_ENOMEM; SONA_ESTOPPED where
 * stop said so: result is unspecified then. */
SONA_API sona_status sona_iit3(uint32_t n, const double *tpm, const uint8_t *cm, uint32_t state, uint64_t most, int (*stop)(void *context),
                               void *context, sona_iit3_result *result);

/* Earth mover's distance between two distributions over the states of k nodes, (2^k) each, where a node that differs costs 1.  SONA_EINVAL
 * for k above 7, SONA_ENOMEM. */
SONA_API sona_status sona_iit3_distance(uint32_t k, const double *p, const double *q, double *distance);

#ifdef __cplusplus
}
#endif
#endif
