/* An adapter, its readers and its writer on one thread: sizes and counters stay as the header says, what is refused changes nothing, and a
 * reader sees what the writer has. */
#include "fuzz.h"
#include "sona/adapter.h"

enum { DIM = 5, READERS = 3, ROWS = 40 };

static int same(const sona_lora *a, const sona_lora *b) {
  if (a->rank != b->rank) return 0;
  for (size_t r = 0; r < a->rank; r++)
    if (memcmp(a->down + r * a->ld, b->down + r * b->ld, DIM * sizeof(float)) ||
        memcmp(a->up + r * a->ld, b->up + r * b->ld, DIM * sizeof(float)) || memcmp(a->offset + r, b->offset + r, sizeof(float)))
      return 0;
  return 1;
}

static void run(input *in) {
  const sona_adapter_options options = {.dim = DIM,
                                        .rank = choose(in, 5),
                                        .rank_max = choose(in, 9),
                                        .micro = choose(in, 4),
                                        .window = choose(in, 6),
                                        .max_discard = (double)take_float(in),
                                        .scale = take_float(in),
                                        .kernels = sona_kernels_at(choose(in, sona_kernels_count()))};
  sona_adapter *adapter = NULL;
  if (sona_adapter_create(&options, &adapter) != SONA_OK) {
    PROMISE(adapter == NULL);
    return;
  }
  const size_t window = sona_adapter_describe(adapter).capacity - options.rank;
  sona_reader *reader[READERS] = {NULL};
  for (int steps = 0; in->left && steps < 400; steps++) {
    const sona_adapter_info before = sona_adapter_describe(adapter);
    float up[ROWS * DIM], down[ROWS * DIM], offset[ROWS], x[DIM], y[DIM] = {0};
    sona_status status;
    const size_t r = choose(in, READERS);
    switch (choose(in, 8)) {
      case 0:
      case 1: {
        take_floats(in, up, DIM);
        take_floats(in, down, DIM);
        const float coef = take_float(in), by = take_float(in);
        status = sona_adapter_append(adapter, coef, up, down, by);
        PROMISE(status == SONA_OK || status == SONA_ENONFINITE);
        const sona_adapter_info after = sona_adapter_describe(adapter);
        if (status == SONA_OK) {
          PROMISE(after.total - after.base >= 1 && after.total - after.base <= (options.micro > 0 ? options.micro : 1));
          PROMISE(after.total == before.total + 1 || after.truncations == before.truncations + 1);
        } else if (after.truncations == before.truncations) {
          PROMISE(after.total == before.total && after.base == before.base);
        }
        break;
      }
      case 2:
        sona_adapter_fold(adapter);
        PROMISE(sona_adapter_describe(adapter).base == before.total);
        break;
      case 3:
        PROMISE(sona_adapter_truncate(adapter) == SONA_OK);
        PROMISE(sona_adapter_describe(adapter).total <= options.rank_max);
        break;
      case 4: {
        const size_t total = choose(in, ROWS), base = choose(in, ROWS);
        take_floats(in, up, total * DIM < 32 ? total * DIM : 32);
        for (size_t i = 32; i < total * DIM; i++) up[i] = up[i - 7];
        for (size_t i = 0; i < total * DIM; i++) down[i] = up[total * DIM - 1 - i];
        for (size_t i = 0; i < total; i++) offset[i] = up[i];
        const float *const offsets = choose(in, 2) ? offset : NULL;
        status = sona_adapter_assign(adapter, down, up, DIM, offsets, base, total);
        PROMISE(status == (base <= total ? SONA_OK : SONA_EINVAL));
        const sona_lora now = sona_adapter_view(adapter), want = {.down = down, .up = up, .offset = offset, .ld = DIM, .rank = total};
        if (!offsets) memset(offset, 0, sizeof offset);
        PROMISE(status != SONA_OK || same(&now, &want));
        break;
      }
      case 5: {
        const size_t rows = choose(in, 4);
        if (rows > window) break;
        PROMISE(sona_adapter_make_room(adapter, rows) == SONA_OK);
        const sona_adapter_info after = sona_adapter_describe(adapter);
        PROMISE(after.total + rows <= after.rank + window);
        break;
      }
      case 6: {
        if (reader[r]) {
          sona_reader_release(reader[r]);
          reader[r] = NULL;
        } else {
          PROMISE((reader[r] = sona_reader_acquire(adapter)) != NULL);
        }
        break;
      }
      case 7: {
        if (!reader[r]) break;
        const sona_lora mine = sona_adapter_view(adapter), theirs = sona_reader_view(reader[r], SONA_BOTH);
        PROMISE(same(&mine, &theirs));
        take_floats(in, x, DIM);
        sona_adapter_forward(reader[r], (sona_tier)(1 + choose(in, 3)), x, y);
        sona_adapter_forward_batch(reader[r], SONA_BOTH, x, DIM, y, DIM, 1);
        break;
      }
    }
    const sona_adapter_info now = sona_adapter_describe(adapter);
    PROMISE(now.base <= now.total && now.total <= now.capacity && now.rank <= now.rank_max && now.dim == DIM);
    PROMISE(now.generation >= before.generation);
  }
  for (size_t r = 0; r < READERS; r++) sona_reader_release(reader[r]);
  sona_adapter_destroy(adapter);
}
