/* Walks: seeded random walks over the rows of a weighted graph.
 *
 * From node i a walk goes to column[j], start[i] <= j < stop[i], with probability weight[j] over the sum of the row.  That plain step is a
 * binary search in the running sums; the options change it:
 *
 *   temperature  weights count as weight^(1 / temperature): below 1 the strong edges get stronger, at infinity all are equal.  Entries
 *                of one column that stand side by side are one edge, their weights are added first.
 *   revisit      factor on the weight of nodes that this walk has visited.
 *   restart      probability of going back to the walk's start instead.
 *   jump         probability of going to any node instead, all alike.
 *
 * Where there is no way on (no edge, or none with a weight left) a walk jumps if jump > 0, else it restarts if restart > 0 and it is not
 * at its start, else it ends.
 *
 * Every walk has a generator of its own, seeded by the seed and its number, and nothing rounds differently from machine to machine: the
 * same arguments give the same walks everywhere, however they are shared out over calls and threads. */
#ifndef SONA_WALK_H
#define SONA_WALK_H

#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SONA_WALK_LONGEST (1u << 24) /* positions */

/* The caller's arrays; rows may stand in any order and with gaps between them. */
typedef struct sona_walk_graph {
  size_t nodes;            /* below 2^31 */
  size_t entries;          /* length of column, weight and cumulative */
  const int64_t *start;    /* (nodes,) */
  const int64_t *stop;     /* (nodes,) */
  const int32_t *column;   /* (entries,) neighbours */
  const float *weight;     /* (entries,) finite, >= 0 */
  const float *cumulative; /* (entries,) running sums of weight within each row, see sona_walk_cumulate; infinity beyond FLT_MAX */
} sona_walk_graph;

typedef struct sona_walk_options {
  size_t length; /* positions of a walk, its start included; 1 to SONA_WALK_LONGEST */
  uint64_t seed;
  double temperature; /* > 0, infinity allowed */
  double revisit;     /* in [0, 1] */
  double restart;     /* >= 0 */
  double jump;        /* >= 0, restart + jump <= 1 */
} sona_walk_options;

/* The walks number first to first + count - 1, from starts[0] to starts[count - 1], into out (count, length) row by row: nodes in the order
 * visited, -1 after a walk's end.
 *
 * SONA_EINVAL for options outside their range, a start, row or neighbour outside of the graph: out is unspecified then, and nothing
 * beside the arrays was read.  SONA_ENOMEM without the memory for what a few walks have visited.  Any number of threads. */
SONA_API sona_status sona_walk(const sona_walk_graph *graph, const sona_walk_options *options, const int32_t *starts, size_t first,
                               size_t count, int32_t *out);

/* Fills cumulative for the rows start[i] to stop[i] of weight, i below rows.  Summed in double precision. */
SONA_API void sona_walk_cumulate(const int64_t *start, const int64_t *stop, size_t rows, const float *weight, float *cumulative);

#ifdef __cplusplus
}
#endif
#endif
