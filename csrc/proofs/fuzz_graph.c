/* Walks, Phi and IIT 3.0 over any arrays: rows, neighbours and numbers that lie outside are refused, and nothing beside the arrays is read.
 * The arrays are of their exact size on the heap, so that the address sanitizer sees their ends. */
#include "fuzz.h"
#include "sona/iit3.h"
#include "sona/phi.h"
#include "sona/walk.h"

enum { NODES = 7, ENTRIES = 24, WALKS = 3 };

static void *copy_of(const void *data, size_t size) {
  void *copy = malloc(size ? size : 1);
  PROMISE(copy != NULL);
  if (size) memcpy(copy, data, size);
  return copy;
}

static void walk(input *in, const sona_walk_graph *graph) {
  const sona_walk_options options = {.length = choose(in, 9),
                                     .seed = take(in, 1),
                                     .temperature = (double)take_float(in),
                                     .revisit = (double)take_float(in),
                                     .restart = (double)take_float(in),
                                     .jump = (double)take_float(in)};
  int32_t starts[WALKS], *out = malloc((WALKS * options.length + 1) * sizeof *out);
  PROMISE(out != NULL);
  for (int i = 0; i < WALKS; i++) starts[i] = (int32_t)choose(in, NODES + 2) - 1;
  if (sona_walk(graph, &options, starts, 0, WALKS, out) == SONA_OK)
    for (size_t i = 0; i < WALKS * options.length; i++) PROMISE(out[i] >= -1 && (out[i] == -1 || (size_t)out[i] < graph->nodes));
  free(out);
}

static void check_phi(const sona_phi *phi, size_t n) {
  PROMISE(phi->value >= 0 && isfinite(phi->value) && isfinite(phi->total));
  PROMISE(n == 1 || (phi->part & 1 && phi->part < (uint64_t)1 << n));
}

static void run(input *in) {
  const size_t nodes = choose(in, NODES + 1), entries = choose(in, ENTRIES + 1);
  int64_t start[NODES] = {0}, stop[NODES] = {0};
  int32_t column[ENTRIES] = {0};
  float weight[ENTRIES] = {0};
  int ordered = 1;
  for (size_t i = 0; i < nodes; i++) {
    start[i] = (int64_t)choose(in, ENTRIES + 3) - 1;
    stop[i] = choose(in, 8) ? start[i] + (int64_t)choose(in, 6) : (int64_t)take(in, 8);
    ordered &= start[i] >= 0 && stop[i] >= start[i] && (uint64_t)stop[i] <= entries;
  }
  for (size_t j = 0; j < entries; j++) {
    column[j] = choose(in, 16) ? (int32_t)choose(in, NODES) : (int32_t)take(in, 4);
    weight[j] = take_float(in);
  }
  int64_t *const starts = copy_of(start, nodes * sizeof *start), *const stops = copy_of(stop, nodes * sizeof *stop);
  int32_t *const columns = copy_of(column, entries * sizeof *column);
  float *const weights = copy_of(weight, entries * sizeof *weight), *const cumulative = copy_of(weight, entries * sizeof *weight);
  if (ordered) sona_walk_cumulate(starts, stops, nodes, weights, cumulative);
  const sona_walk_graph graph = {nodes, entries, starts, stops, columns, weights, cumulative};
  walk(in, &graph);

  const sona_phi_graph with = {.nodes = nodes, .entries = entries, .start = starts, .stop = stops, .column = columns, .weight = weights};
  const sona_phi_options options = {.alpha = choose(in, 4) ? 0.9 : (double)take_float(in),
                                    .directed = (int)choose(in, 2),
                                    .normalise = choose(in, 4) == 0,
                                    .method = (sona_phi_method)choose(in, 4)};
  int64_t member[6], *const members = malloc(sizeof member);
  PROMISE(members != NULL);
  for (int i = 0; i < 6; i++) members[i] = (int64_t)choose(in, NODES + 2) - 1;
  const int64_t offset[] = {0, (int64_t)choose(in, 7), 6};
  sona_phi phi[2];
  size_t failed = 2;
  if (sona_phi_subgraphs(&with, members, offset, 2, &options, phi, &failed) == SONA_OK)
    for (int k = 0; k < 2; k++) check_phi(&phi[k], 6);
  else
    PROMISE(failed < 2);
  free(members);

  double w[NODES * NODES];
  const size_t n = 1 + choose(in, NODES);
  for (size_t i = 0; i < n * n; i++) w[i] = (double)take_float(in);
  if (choose(in, 2))
    for (size_t i = 0; i < n; i++)
      for (size_t j = 0; j < i; j++) w[i * n + j] = w[j * n + i] = fabs(w[i * n + j]);
  if (sona_phi_compute(w, n, &options, &phi[0]) == SONA_OK) check_phi(&phi[0], n);

  static sona_iit3_result result;
  const uint32_t size = 1 + (uint32_t)choose(in, 3);
  double tpm[8 * 3];
  uint8_t cm[9];
  for (size_t i = 0; i < (size_t)size << size; i++) tpm[i] = choose(in, 4) ? (double)choose(in, 2) : (double)take_float(in);
  for (size_t i = 0; i < 9; i++) cm[i] = (uint8_t)choose(in, 2);
  if (sona_iit3(size, tpm, cm, (uint32_t)choose(in, 9), 10000, NULL, NULL, &result) == SONA_OK)
    PROMISE(result.phi >= 0 && isfinite(result.phi));
  free(starts), free(stops), free(columns), free(weights), free(cumulative);
}
