/* A writer of weights that may be killed while it publishes, and two readers: the code of weights.c over memory in the place of a file. */
#include "../src/weights.c"
#include "model.h"

const char *const model_name = "weights";
const char *const model_unneeded[] = {NULL};
const int model_weakens = 0; /* a checksum stands behind the orders: model_seqlock.c shows what each is for */

enum { EPOCHS = 9, LOOKS = 3, LIVES = 3, STEPS = 120 };

/* What weights.c asks of the operating system and of an adapter. */
sona_status sona_file_open(const sona_file_request *request, sona_file *out) { return (void)request, (void)out, SONA_EIO; }
void sona_file_settle(sona_file *file, uint64_t magic) { (void)file, (void)magic; }
void sona_file_close(sona_file *file) { (void)file; }
bool sona_file_is_of_this_process(const sona_file *file) { return (void)file, true; }
uint64_t sona_monotonic_ns(void) { return 1; }
sona_lora sona_adapter_view(const sona_adapter *adapter) { return (void)adapter, (sona_lora){.dim = 1, .scale = 1}; }
const sona_kernels *sona_adapter_kernels(const sona_adapter *adapter) { return (void)adapter, NULL; }
sona_status sona_adapter_stage(sona_adapter *a, size_t total, sona_adapter_rows *rows) {
  return (void)a, (void)total, (void)rows, SONA_ENOMEM;
}
void sona_adapter_show(sona_adapter *a, const sona_adapter_rows *rows, size_t base, size_t total) {
  (void)a, (void)rows, (void)base, (void)total;
}

static unsigned char *file;
static size_t file_size;
static sona_weights handle[3]; /* the writer's, and each reader's */
static uint64_t published;     /* epoch that sona_weights_publish has returned for; the writer alone writes it */
static uint64_t seen[3];
static unsigned lives;

/* A handle as sona_weights_create and sona_weights_open leave it. */
static void open_handle(sona_weights *w, bool writes) {
  *w = (sona_weights){.options = {.layers = 1, .dim = 1, .max_rank = 1}, .writes = writes};
  const size_t size = measure(w);
  w->file.bytes = file;
  w->file.size = size;
  MODEL_CHECK(size == file_size);
  MODEL_CHECK(allocate(w) == SONA_OK);
  w->shared_epoch = &((weights_head *)(void *)file)->epoch;
  MODEL_CHECK(sona_epoch_read(w->shared_epoch, &w->epoch));
  if (!writes) w->epoch = 0;
}

void model_before(void) {
  for (int i = 0; i < 3; i++) {
    handle[i] = (sona_weights){.options = {.layers = 1, .dim = 1, .max_rank = 1}};
    seen[i] = 0;
  }
  file_size = measure(&handle[0]);
  file = sona_calloc(file_size, 1);
  fill((weights_head *)(void *)file, &handle[0].options);
  published = 0;
  lives = 0;
  for (int i = 0; i < 3; i++) open_handle(&handle[i], i == 0);
}

/* Every number of publication e of this life is 100 life + e: none of another publication passes for one of it. */
static void write_epochs(void) {
  sona_weights *w = &handle[0];
  MODEL_CHECK(sona_epoch_read(w->shared_epoch, &w->epoch)); /* the next writer goes on from there */
  MODEL_CHECK(w->epoch >= published);
  while (w->epoch < EPOCHS) {
    const float v = (float)(100 * lives + w->epoch + 1);
    unsigned char bytes[28] = "sonafac1\1\0\0\0\1";
    const void *factors = bytes;
    const size_t size = sizeof bytes;
    for (int i = 0; i < 3; i++) memcpy(bytes + 16 + 4 * i, &v, sizeof v);
    MODEL_CHECK(sona_weights_publish(w, &factors, &size, (uint64_t)v) == SONA_OK);
    published = w->epoch;
  }
}

static void read_epochs(unsigned me) {
  sona_weights *w = &handle[me];
  for (int look = 0; look < LOOKS; look++) {
    size_t count = 0;
    const uint64_t before = sona_weights_epoch(w);
    const sona_status status = copy(w, &count);
    MODEL_CHECK(status == SONA_OK || status == SONA_EAGAIN);
    if (status != SONA_OK) continue;
    MODEL_CHECK(take_apart(w, count) == SONA_OK);
    float numbers[3];
    memcpy(numbers, w->factors[0].numbers, sizeof numbers);
    for (int i = 0; i < 3; i++) MODEL_CHECK(numbers[i] == (float)w->words[VERSION]);
    MODEL_CHECK(w->words[VERSION] % 100 == w->words[EPOCH]);
    MODEL_CHECK(w->words[EPOCH] >= before && w->words[EPOCH] >= seen[me]);
    w->epoch = seen[me] = w->words[EPOCH];
  }
}

void model_thread(unsigned thread) {
  if (thread) {
    read_epochs(thread);
  } else {
    for (lives = 0; lives < LIVES; lives++) model_process(write_epochs, STEPS);
  }
}

void model_after(void) {
  size_t count = 0;
  const sona_status status = copy(&handle[1], &count);
  MODEL_CHECK(status == SONA_OK || (status == SONA_EAGAIN && !published));
  if (status == SONA_OK) MODEL_CHECK(handle[1].words[EPOCH] >= published);
  for (int i = 0; i < 3; i++) {
    sona_free(handle[i].words);
    sona_free(handle[i].factors);
    sona_free(handle[i].rows);
  }
  sona_free(file);
}
