/* A writer and two readers of an adapter: readers pin the block that they read, the writer publishes blocks and uses them again.  The code
 * of adapter.c; what it computes with (kernels, the truncated sum) is replaced by something small that touches the same memory. */
#include "sona/adapter.h"

#undef SONA_MAX_READERS
#define SONA_MAX_READERS 2 /* and so four blocks */
#include "../src/adapter.c"
#include "model.h"

const char *const model_name = "adapter";
/* What the reader holds already, with the rows that it has seen, it has acquired before: block and counts are compared only.  Anything else
 * it loads once more in look, seq_cst the block and acquire the counts. */
const char *const model_unneeded[] = {"acquire load in pinned_view", "acquire load in look", NULL};
const int model_weakens = 1;

enum { LOOKS = 3, STEPS = 5 };

static sona_adapter *adapter;
static sona_reader *readers[2];
static float seen[2]; /* newest version that each has read */

static float one(const float *a, const float *b, size_t n) { return n ? a[0] * b[0] : 0; }
static const sona_kernels few = {.isa = "model", .dot = one};
const sona_kernels *sona_kernels_get(const char *isa) { return isa ? NULL : &few; }

size_t sona_truncate_scratch(size_t rows) { return rows; }

/* Keeps the newest row. */
size_t sona_truncate(const sona_kernels *kernels, const sona_lora *w, size_t rank, size_t rank_max, double max_discard, double *scratch,
                     float *down, float *up, float *offset, double *discarded) {
  (void)kernels, (void)rank, (void)rank_max, (void)max_discard, (void)scratch;
  *discarded = 0;
  if (!w->rank) return 0;
  down[0] = w->down[(w->rank - 1) * w->ld];
  up[0] = w->up[(w->rank - 1) * w->ld];
  offset[0] = w->offset[w->rank - 1];
  return 1;
}

void model_before(void) {
  const sona_adapter_options options = {.dim = 1, .rank = 1, .rank_max = 2, .micro = 1, .window = 1, .scale = 1};
  adapter = NULL;
  MODEL_CHECK(sona_adapter_create(&options, &adapter) == SONA_OK);
  for (int i = 0; i < 2; i++) {
    MODEL_CHECK((readers[i] = sona_reader_acquire(adapter)) != NULL);
    seen[i] = 0;
  }
}

/* Row r of version v holds v everywhere; versions only grow. */
static void write_versions(void) {
  for (int step = 1; step <= STEPS; step++) {
    const float v = (float)step, rows[3] = {v, v, v};
    switch (model_choose(4)) {
      case 0: MODEL_CHECK(sona_adapter_append(adapter, 1, &v, &v, v) == SONA_OK); break;
      case 1: MODEL_CHECK(sona_adapter_assign(adapter, rows, rows, 1, rows, 1, 1 + model_choose(3)) == SONA_OK); break;
      case 2: MODEL_CHECK(sona_adapter_truncate(adapter) == SONA_OK); break;
      case 3: sona_adapter_fold(adapter); break;
    }
  }
}

/* Rows belong together: all of the rows before the last are of versions in order, and a row is of one version. */
static float newest_of(sona_lora w) {
  float newest = 0;
  for (size_t r = 0; r < w.rank; r++) {
    const float v = w.down[r * w.ld];
    MODEL_CHECK(w.up[r * w.ld] == v && w.offset[r] == v);
    MODEL_CHECK(v >= newest);
    newest = v;
  }
  return newest;
}

static void read_versions(int me) {
  for (int look = 0; look < LOOKS; look++) {
    const sona_lora w = sona_reader_view(readers[me], SONA_BOTH);
    const float v = newest_of(w);
    MODEL_CHECK(v >= seen[me]);
    seen[me] = v;
    if (model_choose(4) == 0) { /* another handle, perhaps the one that the other has let go */
      sona_reader_release(readers[me]);
      MODEL_CHECK((readers[me] = sona_reader_acquire(adapter)) != NULL);
    }
  }
}

void model_thread(unsigned thread) {
  if (thread == 0) {
    write_versions();
  } else {
    read_versions((int)thread - 1);
  }
}

void model_after(void) {
  for (int i = 0; i < 2; i++) {
    const float v = newest_of(sona_reader_view(readers[i], SONA_BOTH));
    MODEL_CHECK(v >= seen[i]);
    sona_reader_release(readers[i]);
  }
  sona_adapter_destroy(adapter);
}
