#include "sona/adapter.h"

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "adapter_rows.h"
#include "truncate.h"

/* Rows 0..total are immutable once counts says so; the writer fills row `total` and then publishes. */
typedef struct block {
  float *down, *up; /* (capacity, ld), 64-byte aligned rows of one arena */
  float *offset;    /* (capacity) */
  size_t capacity;
  _Atomic uint64_t counts; /* base << 32 | total, in one word so that a fold is one store */
} block;

struct sona_reader {
  _Alignas(64) _Atomic(block *) held; /* hazard pointer: a block found here is not recycled */
  sona_adapter *adapter;
  atomic_bool taken;
  /* Its last view, good for as long as block, counts and tier stay: the request path hands it on and stores nothing. */
  sona_tier tier;
  uint64_t counts;
  _Alignas(64) sona_lora view; /* in one cache line, because a kernel reads its fields at once */
};

/* At most one block per reader can be pinned, one is current and one is being filled. */
enum { BLOCKS = SONA_MAX_READERS + 2 };

struct sona_adapter {
  _Atomic(block *) current;
  sona_reader readers[SONA_MAX_READERS];
  block *blocks[BLOCKS];
  size_t dim, ld, rank, rank_max, micro, window;
  double max_discard;
  float scale;
  const sona_kernels *kernels;
  double *scratch;
  size_t scratch_rows;
  uint64_t generation, truncations, over_budget;
  double discarded, discarded_sum;
};

static uint64_t pack(size_t base, size_t total) { return (uint64_t)base << 32 | total; }
static size_t base_of(uint64_t counts) { return counts >> 32; }
static size_t total_of(uint64_t counts) { return counts & UINT32_MAX; }

/* The writer is the only thread that stores current and counts, so it may read them relaxed. */
static block *own_block(const sona_adapter *a) { return atomic_load_explicit(&a->current, memory_order_relaxed); }
static uint64_t own_counts(const block *b) { return atomic_load_explicit(&b->counts, memory_order_relaxed); }

static size_t row_limit(const sona_adapter *a) { return a->rank + a->window; }

static void block_destroy(block *b) {
  if (!b) return;
  sona_free(b->down);
  sona_free(b);
}

static block *block_create(size_t capacity, size_t ld) {
  block *b = sona_calloc(1, sizeof *b);
  if (!b) return NULL;
  const size_t offsets = (capacity + 15) / 16 * 16;
  if (capacity > SIZE_MAX / 4 / sizeof(float) / ld || !(b->down = sona_calloc(2 * capacity * ld + offsets, sizeof(float)))) {
    sona_free(b);
    return NULL;
  }
  b->up = b->down + capacity * ld;
  b->offset = b->up + capacity * ld;
  b->capacity = capacity;
  return b;
}

sona_status sona_adapter_create(const sona_adapter_options *options, sona_adapter **out) {
  const sona_adapter_options o = *options;
  if (o.dim < 1 || o.rank < 1 || o.micro < 1 || o.rank_max < o.rank || !(o.max_discard >= 0 && o.max_discard < 1)) return SONA_EINVAL;
  if (!(o.scale > 0) || !isfinite(o.scale)) return SONA_EINVAL;
  if (o.dim > UINT32_MAX || o.rank_max > UINT32_MAX / 4 || o.window > UINT32_MAX / 4) return SONA_EINVAL;
  sona_adapter *a = sona_calloc(1, sizeof *a);
  if (!a) return SONA_ENOMEM;
  a->dim = o.dim;
  a->ld = (o.dim + 15) / 16 * 16;
  a->rank = o.rank;
  a->rank_max = o.rank_max;
  a->micro = o.micro;
  a->window = o.window ? o.window : (o.rank > 16 ? o.rank : 16);
  if (a->window < o.micro) a->window = o.micro;
  a->max_discard = o.max_discard;
  a->scale = o.scale;
  a->kernels = o.kernels ? o.kernels : sona_kernels_get(NULL);
  for (size_t i = 0; i < SONA_MAX_READERS; i++) a->readers[i].adapter = a;
  a->blocks[0] = block_create(row_limit(a), a->ld);
  if (!a->blocks[0]) {
    sona_adapter_destroy(a);
    return SONA_ENOMEM;
  }
  atomic_store_explicit(&a->current, a->blocks[0], memory_order_release);
  a->generation = 1;
  *out = a;
  return SONA_OK;
}

void sona_adapter_destroy(sona_adapter *a) {
  if (!a) return;
  for (size_t i = 0; i < BLOCKS; i++) block_destroy(a->blocks[i]);
  sona_free(a->scratch);
  sona_free(a);
}

/* ---- readers ---- */

sona_reader *sona_reader_acquire(sona_adapter *a) {
  for (size_t i = 0; i < SONA_MAX_READERS; i++) {
    bool taken = false;
    /* acquire pairs with the release of sona_reader_release: the slot is clean */
    if (atomic_compare_exchange_strong_explicit(&a->readers[i].taken, &taken, true, memory_order_acquire, memory_order_relaxed))
      return &a->readers[i];
  }
  return NULL;
}

void sona_reader_release(sona_reader *reader) {
  if (!reader) return;
  /* release pairs with the seq_cst scan in spare_block: our reads of the block are over before it sees NULL */
  atomic_store_explicit(&reader->held, NULL, memory_order_release);
  atomic_store_explicit(&reader->taken, false, memory_order_release);
}

/* Branches rather than products with 0: the request path waits for the pointers. */
static inline sona_lora view_of(const sona_adapter *a, const block *b, uint64_t counts, sona_tier tier) {
  sona_lora w = {.down = b->down, .up = b->up, .offset = b->offset, .ld = a->ld, .dim = a->dim, .scale = a->scale};
  w.rank = tier == SONA_BASE ? base_of(counts) : total_of(counts);
  if (tier == SONA_MICRO) {
    const size_t first = base_of(counts);
    w.down += first * a->ld;
    w.up += first * a->ld;
    w.offset += first;
    w.rank -= first;
  }
  return w;
}

/* Pins the current block and makes a view of it. */
static const sona_lora *look(sona_reader *reader, sona_tier tier) {
  block *held = atomic_load_explicit(&reader->held, memory_order_relaxed);
  /* acquire pairs with the store in publish: the rows of the block are visible */
  block *seen = atomic_load_explicit(&reader->adapter->current, memory_order_acquire);
  while (held != seen) {
    held = seen;
    /* seq_cst on both sides: either the writer's scan sees our hazard, or we see its newer block and try again */
    atomic_store_explicit(&reader->held, held, memory_order_seq_cst);
    seen = atomic_load_explicit(&reader->adapter->current, memory_order_seq_cst);
  }
  /* acquire pairs with the release in sona_adapter_append: rows below total are complete */
  reader->counts = atomic_load_explicit(&held->counts, memory_order_acquire);
  reader->tier = tier;
  reader->view = view_of(reader->adapter, held, reader->counts, tier);
  return &reader->view;
}

/* The rows that are current now.  The steady state is three loads and three comparisons: a block that is held is not filled anew, and its
 * counts only grow, so equal ones are the same rows. */
static inline const sona_lora *pinned_view(sona_reader *reader, sona_tier tier) {
  const block *held = atomic_load_explicit(&reader->held, memory_order_relaxed);
  /* acquire, both, as in look */
  if (held != atomic_load_explicit(&reader->adapter->current, memory_order_acquire)) return look(reader, tier);
  if (reader->counts != atomic_load_explicit(&held->counts, memory_order_acquire) || reader->tier != tier) return look(reader, tier);
  return &reader->view;
}

sona_lora sona_reader_view(sona_reader *reader, sona_tier tier) { return *pinned_view(reader, tier); }

void sona_adapter_forward(sona_reader *reader, sona_tier tier, const float *x, float *y) {
  reader->adapter->kernels->lora_forward(pinned_view(reader, tier), x, y);
}

void sona_adapter_forward_batch(sona_reader *reader, sona_tier tier, const float *x, size_t ldx, float *y, size_t ldy, size_t rows) {
  reader->adapter->kernels->lora_forward_batch(pinned_view(reader, tier), x, ldx, y, ldy, rows);
}

/* ---- writer ---- */

static bool is_among(const block *const kept[SONA_MAX_READERS + 1], const block *b) {
  for (size_t i = 0; i <= SONA_MAX_READERS; i++)
    if (kept[i] == b) return true;
  return false;
}

/* A block of at least `capacity` rows that no reader can see, NULL when out of memory.  Each hazard is loaded once: a reader that moves on
 * meanwhile counts for one block, so one of BLOCKS is always free.  It can only move to the current block. */
static block *spare_block(sona_adapter *a, size_t capacity) {
  const block *kept[SONA_MAX_READERS + 1]; /* pinned or current */
  for (size_t i = 0; i < SONA_MAX_READERS; i++) kept[i] = atomic_load_explicit(&a->readers[i].held, memory_order_seq_cst); /* with pin */
  kept[SONA_MAX_READERS] = own_block(a);
  size_t slot = BLOCKS;
  for (size_t i = 0; i < BLOCKS; i++) {
    block *b = a->blocks[i];
    if (b && is_among(kept, b)) continue;
    if (b && b->capacity >= capacity) return b;
    if (slot == BLOCKS || (b && !a->blocks[slot])) slot = i; /* reuse a slot whose block is too small before an empty one */
  }
  block *fresh = block_create(capacity, a->ld);
  if (!fresh) return NULL;
  block_destroy(a->blocks[slot]);
  a->blocks[slot] = fresh;
  return fresh;
}

static void publish(sona_adapter *a, block *b, size_t base, size_t total) {
  atomic_store_explicit(&b->counts, pack(base, total), memory_order_relaxed);
  /* seq_cst (which is also the release that pin acquires): ordered against the hazards, see pin */
  atomic_store_explicit(&a->current, b, memory_order_seq_cst);
  a->generation++;
}

sona_status sona_adapter_truncate(sona_adapter *a) {
  block *old = own_block(a);
  const size_t rows = total_of(own_counts(old));
  const sona_lora w = view_of(a, old, own_counts(old), SONA_BOTH);
  const size_t most = rows < a->rank_max ? rows : a->rank_max;
  if (a->scratch_rows < rows) {
    double *scratch = sona_calloc(sona_truncate_scratch(rows), sizeof *scratch);
    if (!scratch) return SONA_ENOMEM;
    sona_free(a->scratch);
    a->scratch = scratch;
    a->scratch_rows = rows;
  }
  block *next = spare_block(a, (most > a->rank ? most : a->rank) + a->window);
  if (!next) return SONA_ENOMEM;
  const size_t kept =
      sona_truncate(a->kernels, &w, a->rank, a->rank_max, a->max_discard, a->scratch, next->down, next->up, next->offset, &a->discarded);
  if (kept > a->rank) a->rank = kept;
  if (a->discarded > a->max_discard) a->over_budget++;
  a->discarded_sum += a->discarded;
  a->truncations++;
  publish(a, next, kept, kept);
  return SONA_OK;
}

sona_status sona_adapter_make_room(sona_adapter *a, size_t rows) {
  return total_of(own_counts(own_block(a))) + rows > row_limit(a) ? sona_adapter_truncate(a) : SONA_OK;
}

sona_status sona_adapter_append(sona_adapter *a, float coef, const float *up, const float *down, float offset) {
  if (!isfinite(coef) || !isfinite(offset)) return SONA_ENONFINITE;
  if (total_of(own_counts(own_block(a))) >= row_limit(a)) {
    const sona_status status = sona_adapter_truncate(a);
    if (status) return status;
  }
  block *b = own_block(a);
  size_t base = base_of(own_counts(b)), total = total_of(own_counts(b));
  float *to_up = b->up + total * a->ld;
  for (size_t i = 0; i < a->dim; i++) to_up[i] = coef / a->scale * up[i];
  /* the row does not count yet, so nothing has changed */
  if (!isfinite(a->kernels->dot(to_up, to_up, a->dim)) || !isfinite(a->kernels->dot(down, down, a->dim))) return SONA_ENONFINITE;
  memcpy(b->down + total * a->ld, down, a->dim * sizeof *down);
  b->offset[total] = offset;
  if (total - base >= a->micro) base = total; /* the micro tier is full: it becomes base */
  /* release pairs with the acquire in sona_reader_view: the row is complete before it counts */
  atomic_store_explicit(&b->counts, pack(base, total + 1), memory_order_release);
  return SONA_OK;
}

void sona_adapter_fold(sona_adapter *a) {
  block *b = own_block(a);
  const size_t total = total_of(own_counts(b));
  atomic_store_explicit(&b->counts, pack(total, total), memory_order_release); /* pairs with sona_reader_view */
}

sona_status sona_adapter_stage(sona_adapter *a, size_t total, sona_adapter_rows *rows) {
  if (total > UINT32_MAX / 4) return SONA_EINVAL;
  const size_t rank = total < a->rank_max ? total : a->rank_max;
  const size_t limit = (rank > a->rank ? rank : a->rank) + a->window;
  block *next = spare_block(a, limit > total ? limit : total);
  if (!next) return SONA_ENOMEM;
  *rows = (sona_adapter_rows){.down = next->down, .up = next->up, .offset = next->offset, .ld = a->ld, .block = next};
  return SONA_OK;
}

void sona_adapter_show(sona_adapter *a, const sona_adapter_rows *rows, size_t base, size_t total) { publish(a, rows->block, base, total); }

sona_status sona_adapter_assign(sona_adapter *a, const float *down, const float *up, size_t ld, const float *offset, size_t base,
                                size_t total) {
  if (base > total || ld < a->dim) return SONA_EINVAL;
  sona_adapter_rows next;
  const sona_status status = sona_adapter_stage(a, total, &next);
  if (status != SONA_OK) return status;
  for (size_t r = 0; r < total; r++) {
    memcpy(next.down + r * a->ld, down + r * ld, a->dim * sizeof *down);
    memcpy(next.up + r * a->ld, up + r * ld, a->dim * sizeof *up);
    next.offset[r] = offset ? offset[r] : 0;
  }
  sona_adapter_show(a, &next, base, total);
  return SONA_OK;
}

sona_lora sona_adapter_view(const sona_adapter *a) { return view_of(a, own_block(a), own_counts(own_block(a)), SONA_BOTH); }

sona_adapter_info sona_adapter_describe(const sona_adapter *a) {
  const block *b = own_block(a);
  size_t bytes = 0;
  for (size_t i = 0; i < BLOCKS; i++)
    if (a->blocks[i]) bytes += (2 * a->blocks[i]->capacity * a->ld + a->blocks[i]->capacity) * sizeof(float);
  return (sona_adapter_info){
      .dim = a->dim,
      .ld = a->ld,
      .rank = a->rank,
      .rank_max = a->rank_max,
      .capacity = b->capacity,
      .base = base_of(own_counts(b)),
      .total = total_of(own_counts(b)),
      .generation = a->generation,
      .truncations = a->truncations,
      .discarded = a->discarded,
      .discarded_sum = a->discarded_sum,
      .over_budget = a->over_budget,
      .bytes = bytes,
  };
}

uint64_t sona_adapter_generation(const sona_adapter *a) { return a->generation; }

const sona_kernels *sona_adapter_kernels(const sona_adapter *a) { return a->kernels; }
