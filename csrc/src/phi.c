#include "sona/phi.h"

#include <math.h>
#include <string.h>

#include "phi_internal.h"

/* ---- checks ---- */

static sona_status check_options(const sona_phi_options *o, size_t n) {
  if (!o || n == 0 || n > SONA_PHI_NODES || !(o->alpha > 0 && o->alpha <= SONA_PHI_ALPHA)) return SONA_EINVAL;
  if (o->method != SONA_PHI_AUTO && o->method != SONA_PHI_EXHAUSTIVE && o->method != SONA_PHI_QUEYRANNE) return SONA_EINVAL;
  if (o->normalise && o->method == SONA_PHI_QUEYRANNE) return SONA_EINVAL;
  if ((o->normalise || o->method == SONA_PHI_EXHAUSTIVE) && n > SONA_PHI_EXHAUSTED) return SONA_EINVAL;
  return SONA_OK;
}

/* Weights that are not directed become symmetric to the last bit. */
static sona_status check_weights(double *w, size_t n, int directed) {
  double sum = 0;
  int negative = 0;
  for (size_t i = 0; i < n * n; i++) {
    sum += w[i] * 0; /* NaN where a weight is not finite */
    negative |= w[i] < 0;
  }
  if (sum != 0) return SONA_ENONFINITE;
  if (negative) return SONA_EINVAL;
  if (directed) return SONA_OK;
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < i; j++) {
      const double a = w[i * n + j], b = w[j * n + i];
      if (a == b) continue;
      if (fabs(a - b) > SONA_PHI_ASYMMETRY * fmax(a, b)) return SONA_EINVAL;
      w[i * n + j] = w[j * n + i] = a / 2 + b / 2;
    }
  return SONA_OK;
}

/* ---- one graph, in a room that is large enough ---- */

static sona_phi_method method_for(const sona_phi_options *o, size_t n) {
  if (o->method != SONA_PHI_AUTO) return o->method;
  return o->normalise || n <= SONA_PHI_CROSSOVER ? SONA_PHI_EXHAUSTIVE : SONA_PHI_QUEYRANNE;
}

static size_t rows_of(const sona_phi_options *o) { return o->directed ? 2 : 1; }

/* The room of one graph: weights (n, n), links (n), model (side, side, kinds), and what the search or a determinant takes. */
typedef struct layout {
  size_t linked, m, search, size;
} layout;

static layout layout_for(const sona_phi_options *o, size_t n) {
  const size_t rows = rows_of(o), side = rows * n, packed = side * (side + 1) / 2;
  size_t search = 0;
  if (n > 1) search = method_for(o, n) == SONA_PHI_EXHAUSTIVE ? phi_tree_room(n, rows) : phi_queyranne_room(n, rows);
  layout at;
  at.linked = n * n;
  at.m = at.linked + n;
  at.search = at.m + side * side * (2 / rows);
  at.search += -at.search & 7; /* whole cache lines */
  at.size = at.search + (search > packed ? search : packed);
  return at;
}

/* The weights in the room become a model. */
static sona_status model_of(double *room, const layout *at, size_t n, const sona_phi_options *o, phi_model *model) {
  const sona_status status = check_weights(room, n, o->directed);
  if (status) return status;
  const size_t rows = rows_of(o);
  *model = (phi_model){
      .n = n,
      .kinds = 2 / rows,
      .rows = rows,
      .side = rows * n,
      .m = room + at->m,
      .linked = (uint64_t *)(void *)(room + at->linked),
  };
  return phi_walkers(room, o->alpha, model);
}

/* The nodes that node 0 is connected with. */
static uint64_t component(const phi_model *model) {
  uint64_t seen = 1;
  for (uint64_t next = 1; next;) {
    const uint64_t fresh = model->linked[phi_first(next)] & ~seen;
    seen |= fresh;
    next = (next & (next - 1)) | fresh;
  }
  return seen;
}

static double cut_bits(const phi_model *model, uint64_t part, double whole, double *room) {
  const uint64_t rest = phi_all(model->n) & ~part;
  const double bits = (phi_log_det(model, part, room) + phi_log_det(model, rest, room) - whole) / 2;
  return bits > 0 ? bits : 0;
}

static sona_status solve(double *room, const layout *at, size_t n, const sona_phi_options *o, sona_phi *out) {
  phi_model model;
  const sona_status status = model_of(room, at, n, o, &model);
  if (status) return status;
  double *search = room + at->search;
  const double whole = phi_log_det(&model, phi_all(n), search);
  sona_phi found = {.total = fmax(-whole / 2, 0), .part = component(&model), .method = SONA_PHI_AUTO};
  if (found.part == phi_all(n) && n > 1) {
    found.method = method_for(o, n);
    found.part = found.method == SONA_PHI_EXHAUSTIVE ? phi_tree(&model, o->normalise, search) : phi_queyranne(&model, search);
    found.value = cut_bits(&model, found.part, whole, search);
  }
  *out = found;
  return SONA_OK;
}

sona_status sona_phi_compute(const double *w, size_t n, const sona_phi_options *options, sona_phi *out) {
  const sona_status bad = check_options(options, n);
  if (bad || !w || !out) return SONA_EINVAL;
  const layout at = layout_for(options, n);
  double *room = sona_calloc(at.size, sizeof *room);
  if (!room) return SONA_ENOMEM;
  memcpy(room, w, n * n * sizeof *w);
  const sona_status status = solve(room, &at, n, options, out);
  sona_free(room);
  return status;
}

sona_status sona_phi_cut(const double *w, size_t n, const sona_phi_options *options, uint64_t part, double *bits, double *total) {
  if (!w || !bits || !total || !options) return SONA_EINVAL;
  const sona_phi_options o = {.alpha = options->alpha, .directed = options->directed, .method = SONA_PHI_QUEYRANNE};
  if (check_options(&o, n) || part == 0 || part == phi_all(n) || part & ~phi_all(n)) return SONA_EINVAL;
  const layout at = layout_for(&o, n);
  double *room = sona_calloc(at.size, sizeof *room);
  if (!room) return SONA_ENOMEM;
  double *search = room + at.search;
  memcpy(room, w, n * n * sizeof *w);
  phi_model model;
  const sona_status status = model_of(room, &at, n, &o, &model);
  if (!status) {
    const double whole = phi_log_det(&model, phi_all(n), search);
    *bits = cut_bits(&model, part, whole, search);
    *total = fmax(-whole / 2, 0);
  }
  sona_free(room);
  return status;
}

/* ---- subgraphs ---- */

/* The different members, ascending, in node; how many there are, 0 where one is not in the graph or they are too many. */
static size_t distinct(const sona_phi_graph *graph, const int64_t *member, int64_t count, int64_t *node) {
  size_t n = 0;
  for (int64_t k = 0; k < count; k++) {
    const int64_t id = member[k]; /* read once: what was checked is what is used */
    if (id < 0) continue;
    if ((uint64_t)id >= graph->nodes) return 0;
    size_t at = n;
    while (at > 0 && node[at - 1] > id) at--;
    if (at > 0 && node[at - 1] == id) continue;
    if (n == SONA_PHI_NODES) return 0;
    memmove(node + at + 1, node + at, (n++ - at) * sizeof *node);
    node[at] = id;
  }
  return n;
}

static size_t place(const int64_t *node, size_t n, int64_t id) {
  size_t low = 0;
  for (size_t width = n; width > 1; width -= width / 2)
    if (node[low + width / 2] <= id) low += width / 2;
  return node[low] == id ? low : n;
}

/* The weights among the nodes, into w (n, n) of zeros. */
static sona_status gather(const sona_phi_graph *graph, const int64_t *node, size_t n, double *w) {
  for (size_t i = 0; i < n; i++) {
    const int64_t first = graph->start[node[i]], end = graph->stop[node[i]];
    if (first < 0 || end < first || (uint64_t)end > graph->entries) return SONA_EINVAL;
    for (int64_t e = first; e < end; e++) {
      const size_t j = place(node, n, graph->column[e]);
      if (j < n) w[i * n + j] += (double)graph->weight[e];
    }
  }
  return SONA_OK;
}

static sona_status subgraph(const sona_phi_graph *graph, const int64_t *member, int64_t count, const sona_phi_options *o, double *room,
                            sona_phi *out) {
  int64_t node[SONA_PHI_NODES];
  const size_t n = distinct(graph, member, count, node);
  sona_status status = check_options(o, n);
  if (status) return status;
  const layout at = layout_for(o, n);
  memset(room, 0, n * n * sizeof *room);
  status = gather(graph, node, n, room);
  return status ? status : solve(room, &at, n, o, out);
}

sona_status sona_phi_subgraphs(const sona_phi_graph *graph, const int64_t *member, const int64_t *offset, size_t count,
                               const sona_phi_options *options, sona_phi *out, size_t *failed) {
  if (!graph || !failed) return SONA_EINVAL;
  *failed = 0;
  if (!count) return check_options(options, 1);
  if (!member || !offset || !out || check_options(options, 1)) return SONA_EINVAL;
  size_t most = 1, size = 0;
  for (size_t k = 0; k < count; k++) {
    *failed = k;
    if (offset[k] < 0 || offset[k + 1] < offset[k]) return SONA_EINVAL;
    const size_t members = (size_t)(offset[k + 1] - offset[k]);
    most = members > most ? members : most;
  }
  *failed = 0;
  const size_t bound = options->normalise || options->method == SONA_PHI_EXHAUSTIVE ? SONA_PHI_EXHAUSTED : SONA_PHI_NODES;
  for (size_t n = 1; n <= most && n <= bound; n++) { /* the search of fewer nodes may take more room than that of more */
    const size_t room = layout_for(options, n).size;
    size = room > size ? room : size;
  }
  double *room = sona_calloc(size, sizeof *room);
  if (!room) return SONA_ENOMEM;
  sona_status status = SONA_OK;
  for (size_t k = 0; k < count && !status; k++) {
    *failed = k;
    status = subgraph(graph, member + offset[k], offset[k + 1] - offset[k], options, room, out + k);
  }
  sona_free(room);
  return status;
}
