/* Bytes that should be an adapter's rows: refused without a trace, or taken and given back as they were. */
#include "fuzz.h"
#include "sona/adapter.h"
#include "sona/record.h"

enum { DIM = 3 };

static void run(input *in) {
  const sona_adapter_options options = {
      .dim = DIM, .rank = 2, .rank_max = 4, .micro = 1, .max_discard = 0.05, .scale = choose(in, 2) ? 1 : take_float(in)};
  sona_adapter *adapter = NULL;
  if (sona_adapter_create(&options, &adapter) != SONA_OK) return;
  const float row[DIM] = {1, 2, 3};
  (void)sona_adapter_append(adapter, 1, row, row, 0.5f);
  const sona_adapter_info before = sona_adapter_describe(adapter);

  /* Half of the time a head that fits the bytes. */
  unsigned char *bytes = malloc(in->left + 16);
  PROMISE(bytes != NULL);
  size_t size = in->left;
  if (choose(in, 2)) {
    const uint32_t rank = (uint32_t)(in->left / 4 / (2 * DIM + 1)), dim = DIM;
    memcpy(bytes, "sonafac1", 8);
    memcpy(bytes + 8, &rank, 4);
    memcpy(bytes + 12, &dim, 4);
    size = 16 + 4 * (size_t)rank * (2 * DIM + 1);
    memcpy(bytes + 16, in->at, size - 16);
  } else {
    size = in->left;
    memcpy(bytes, in->at, size);
  }
  unsigned char *exact = malloc(size ? size : 1); /* so that the address sanitizer sees its end */
  PROMISE(exact != NULL);
  memcpy(exact, bytes, size);
  const sona_status status = sona_adapter_decode(adapter, exact, size);
  const sona_adapter_info after = sona_adapter_describe(adapter);
  if (status != SONA_OK) {
    PROMISE(status == SONA_ECORRUPT || status == SONA_EVERSION || status == SONA_ENONFINITE);
    PROMISE(after.total == before.total && after.generation == before.generation);
  } else {
    const size_t want = sona_adapter_encoded_size(adapter);
    unsigned char *back = malloc(want);
    size_t wrote = 0;
    PROMISE(back != NULL && want == size);
    PROMISE(want == 0 || sona_adapter_encode(adapter, back, want - 1, &wrote) != SONA_OK);
    const sona_status encoded = sona_adapter_encode(adapter, back, want, &wrote);
    PROMISE(encoded == SONA_OK || encoded == SONA_ENONFINITE); /* scale times a stored row may round to infinity */
    if (encoded == SONA_OK && options.scale == 1) PROMISE(wrote == size && memcmp(back, exact, size) == 0);
    free(back);
  }
  free(bytes), free(exact);
  sona_adapter_destroy(adapter);

  /* What is written fits into what was measured, whatever the sizes. */
  float numbers[8] = {0};
  const size_t dim = choose(in, 9), attention = choose(in, 9);
  const sona_record_step step = {.reward = (double)take_float(in),
                                 .activations = numbers,
                                 .attention = choose(in, 2) ? numbers : NULL,
                                 .attention_size = attention,
                                 .x = choose(in, 2) ? numbers : NULL};
  const size_t record = sona_record_size(dim, &step, choose(in, 2));
  if (record) {
    unsigned char *to = malloc(record);
    PROMISE(to != NULL);
    (void)sona_record_write(to, record, take(in, 8), 0, 0.5, numbers, dim, &step, 1);
    free(to);
  }
}
