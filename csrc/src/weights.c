/* The weight file: its layout, and what has to be true before a publication reaches an adapter. */
#include "sona/weights.h"

#include <errno.h>
#include <string.h>

#include "codec.h"
#include "shared_file.h"
#include "weights_core.h"

#define MAGIC UINT64_C(0x73746777616e6f73) /* "sonawgts" in the order of this machine */

/* A reader has the time of SLOTS - 1 publications to copy one, and tries again when it was not enough. */
enum { FORMAT = 1, SLOTS = 4, TRIES = 8 };

/* The first SONA_FILE_HEAD bytes; the slots follow. */
typedef struct weights_head {
  sona_word magic;
  uint64_t format;
  uint64_t layers, dim, max_rank, fingerprint;
  uint64_t check;                /* of the five words before it */
  _Alignas(128) sona_word epoch; /* sealed: the newest one that is whole */
} weights_head;

_Static_assert(sizeof(weights_head) <= SONA_FILE_HEAD, "the head has its room");

/* The words of a publication, in front of the rows of each layer, which start at whole words. */
enum { EPOCH, VERSION, PUBLISHED_NS, CHECKSUM, ROWS };

struct sona_weights {
  sona_file file;
  sona_weights_options options; /* of the file */
  bool writes;
  sona_word *shared_epoch;
  uint64_t epoch; /* published or adopted last */
  size_t room;    /* words of a publication, at most */
  size_t slot_bytes;
  uint64_t *words;         /* (room): one publication, put together or copied */
  sona_factors *factors;   /* (layers): where they are in `words` */
  sona_adapter_rows *rows; /* (layers) */
};

static uint64_t mix(uint64_t h, uint64_t word) {
  h = (h ^ word) * 0xff51afd7ed558ccdu;
  return h << 31 | h >> 33;
}

/* Any change within one word changes it.  Four sums side by side, because each step of one waits for the step before it. */
static uint64_t checksum(const uint64_t *words, size_t count) {
  uint64_t a = count, b = 1, c = 2, d = 3;
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    a = mix(a, words[i]);
    b = mix(b, words[i + 1]);
    c = mix(c, words[i + 2]);
    d = mix(d, words[i + 3]);
  }
  for (; i < count; i++) a = mix(a, words[i]);
  return mix(mix(mix(a, b), c), d);
}

static uint64_t check_of(const weights_head *head) {
  const uint64_t words[] = {head->format, head->layers, head->dim, head->max_rank, head->fingerprint};
  return checksum(words, sizeof words / sizeof *words);
}

static sona_slot *slot_of(const sona_weights *w, uint64_t epoch) {
  return (sona_slot *)(void *)(w->file.bytes + SONA_FILE_HEAD + epoch % SLOTS * w->slot_bytes);
}

/* Sets room and slot_bytes for the options.  The size of the file; 0 when they are out of range or it overflows. */
static size_t measure(sona_weights *w) {
  const sona_weights_options *o = &w->options;
  if (o->layers < 1 || o->dim < 1 || o->max_rank < 1 || o->dim > UINT32_MAX || o->max_rank > UINT32_MAX / 4) return 0;
  const size_t most = (PTRDIFF_MAX - 2 * SONA_FILE_HEAD) / SLOTS / 8; /* words of a slot */
  const size_t layer = sona_factors_size(o->max_rank, o->dim) / 8 + 1;
  if (layer == 1 || o->layers > (most - ROWS) / layer) return 0;
  w->room = ROWS + o->layers * layer;
  w->slot_bytes = (sizeof(sona_slot) + 8 * w->room + 127) / 128 * 128;
  return SONA_FILE_HEAD + SLOTS * w->slot_bytes;
}

static void fill(weights_head *head, const sona_weights_options *o) {
  head->format = FORMAT;
  head->layers = o->layers;
  head->dim = o->dim;
  head->max_rank = o->max_rank;
  head->fingerprint = o->fingerprint;
  head->check = check_of(head);
  sona_epoch_write(&head->epoch, 0);
}

static bool fits(const sona_weights *w, const weights_head *head) {
  const sona_weights_options *o = &w->options;
  if (head->layers != o->layers || head->dim != o->dim) return false;
  if (w->writes) return head->max_rank == o->max_rank && head->fingerprint == o->fingerprint;
  return !head->fingerprint || !o->fingerprint || head->fingerprint == o->fingerprint;
}

/* Takes what the rest relies on out of the file, whose first word is right. */
static sona_status take(sona_weights *w) {
  weights_head *shared = (weights_head *)(void *)w->file.bytes;
  const weights_head head = {.format = shared->format,
                             .layers = shared->layers,
                             .dim = shared->dim,
                             .max_rank = shared->max_rank,
                             .fingerprint = shared->fingerprint};
  if (shared->check != check_of(&head)) return SONA_ECORRUPT;
  if (head.format != FORMAT || !fits(w, &head)) return SONA_EVERSION;
  w->options.max_rank = (size_t)head.max_rank;
  if (measure(w) != w->file.size) return SONA_ECORRUPT;
  w->shared_epoch = &shared->epoch;
  return sona_epoch_read(w->shared_epoch, &w->epoch) ? SONA_OK : SONA_ECORRUPT;
}

static sona_status allocate(sona_weights *w) {
  w->words = sona_calloc(w->room, sizeof *w->words);
  w->factors = sona_calloc(w->options.layers, sizeof *w->factors);
  w->rows = sona_calloc(w->options.layers, sizeof *w->rows);
  return w->words && w->factors && w->rows ? SONA_OK : SONA_ENOMEM;
}

static sona_status open_weights(const char *path, const sona_weights_options *options, bool writes, sona_weights **out) {
  if (!path) return SONA_EINVAL;
  sona_weights *w = sona_calloc(1, sizeof *w);
  if (!w) return SONA_ENOMEM;
  w->file.fd = -1;
  w->options = *options;
  w->writes = writes;
  if (!writes) w->options.max_rank = 1; /* whatever it is */
  const size_t size = measure(w);
  const sona_file_request request = {.path = path, .magic = MAGIC, .writes = writes, .make_size = writes ? size : 0};
  sona_status status = size ? SONA_OK : SONA_EINVAL;
  if (status == SONA_OK) status = sona_file_open(&request, &w->file);
  if (status == SONA_OK) {
    if (w->file.made) fill((weights_head *)(void *)w->file.bytes, &w->options);
    status = take(w);
  }
  if (status == SONA_OK) status = allocate(w);
  if (status != SONA_OK) {
    const int reason = errno;
    sona_weights_close(w);
    errno = reason;
    return status;
  }
  if (writes) {
    sona_file_settle(&w->file, MAGIC);
  } else {
    w->epoch = 0; /* nothing is adopted yet */
  }
  *out = w;
  return SONA_OK;
}

sona_status sona_weights_create(const char *path, const sona_weights_options *options, sona_weights **out) {
  return open_weights(path, options, true, out);
}

sona_status sona_weights_open(const char *path, const sona_weights_options *options, sona_weights **out) {
  return open_weights(path, options, false, out);
}

void sona_weights_close(sona_weights *w) {
  if (!w) return;
  sona_file_close(&w->file);
  sona_free(w->words);
  sona_free(w->factors);
  sona_free(w->rows);
  sona_free(w);
}

uint64_t sona_weights_epoch(const sona_weights *w) {
  uint64_t epoch = 0;
  return sona_epoch_read(w->shared_epoch, &epoch) ? epoch : 0;
}

/* ---- writer ---- */

/* Puts the rows of a layer behind `count` words. */
static sona_status put_together(sona_weights *w, const void *from, size_t size, size_t *count) {
  sona_factors f;
  const sona_status status = sona_factors_find(from, size, &f);
  if (status != SONA_OK) return status;
  if (f.size != size) return SONA_ECORRUPT;
  if (f.dim != w->options.dim) return SONA_EVERSION;
  if (f.rank > w->options.max_rank) return SONA_EFULL;
  if (!sona_factors_are_finite(&f)) return SONA_ENONFINITE;
  const size_t words = (size + 7) / 8;
  w->words[*count + words - 1] = 0; /* behind the last number */
  memcpy(w->words + *count, from, size);
  *count += words;
  return SONA_OK;
}

sona_status sona_weights_publish(sona_weights *w, const void *const *factors, const size_t *sizes, uint64_t version) {
  if (!w->writes || !sona_file_is_ours(&w->file)) return SONA_EINVAL;
  if (w->epoch == SONA_SEALED_MAX) return SONA_EFULL;
  size_t count = ROWS;
  for (size_t layer = 0; layer < w->options.layers; layer++) {
    const sona_status status = put_together(w, factors[layer], sizes[layer], &count);
    if (status != SONA_OK) return status;
  }
  w->words[EPOCH] = ++w->epoch;
  w->words[VERSION] = version;
  w->words[PUBLISHED_NS] = sona_monotonic_ns();
  w->words[CHECKSUM] = 0;
  w->words[CHECKSUM] = checksum(w->words, count);
  sona_slot_write(slot_of(w, w->epoch), w->words, count);
  sona_epoch_write(w->shared_epoch, w->epoch);
  return SONA_OK;
}

/* ---- reader ---- */

/* Whether w->words are the whole of that epoch. */
static bool is_whole(sona_weights *w, size_t count, uint64_t epoch) {
  if (count < ROWS || w->words[EPOCH] != epoch) return false;
  const uint64_t want = w->words[CHECKSUM];
  w->words[CHECKSUM] = 0;
  return checksum(w->words, count) == want;
}

/* Copies the newest publication into w->words, *count of them. */
static sona_status copy(sona_weights *w, size_t *count) {
  for (int i = 0; i < TRIES; i++) {
    uint64_t epoch = 0, later = 0;
    if (!sona_epoch_read(w->shared_epoch, &epoch) || epoch < w->epoch) return SONA_ECORRUPT;
    if (!epoch) return SONA_EAGAIN;
    const sona_copied copied = sona_slot_read(slot_of(w, epoch), w->words, w->room, count);
    if (copied == SONA_COPIED && is_whole(w, *count, epoch)) return SONA_OK;
    /* Overtaken, or it is damaged: then the epoch is still the same. */
    if (!sona_epoch_read(w->shared_epoch, &later) || later == epoch) return SONA_ECORRUPT;
  }
  return SONA_EAGAIN;
}

/* Finds the rows of every layer in `count` words of w->words. */
static sona_status take_apart(sona_weights *w, size_t count) {
  size_t at = ROWS;
  for (size_t layer = 0; layer < w->options.layers; layer++) {
    sona_factors *f = &w->factors[layer];
    if (sona_factors_find(w->words + at, 8 * (count - at), f) != SONA_OK || f->dim != w->options.dim) return SONA_ECORRUPT;
    at += (f->size + 7) / 8;
  }
  return at == count ? SONA_OK : SONA_ECORRUPT;
}

/* Whether they are different ones: each is to be filled before any is shown. */
static bool are_different(sona_adapter *const *adapters, size_t n) {
  for (size_t i = 1; i < n; i++)
    for (size_t k = 0; k < i; k++)
      if (adapters[i] == adapters[k]) return false;
  return true;
}

sona_status sona_weights_adopt(sona_weights *w, sona_adapter *const *adapters, sona_weights_info *info) {
  const size_t layers = w->options.layers;
  if (w->writes || !are_different(adapters, layers)) return SONA_EINVAL;
  for (size_t layer = 0; layer < layers; layer++)
    if (sona_adapter_view(adapters[layer]).dim != w->options.dim) return SONA_EINVAL;
  size_t count = 0;
  sona_status status = copy(w, &count);
  if (status == SONA_OK) status = take_apart(w, count);
  for (size_t layer = 0; status == SONA_OK && layer < layers; layer++)
    status = sona_factors_stage(&w->factors[layer], adapters[layer], &w->rows[layer]);
  if (status != SONA_OK) return status;
  for (size_t layer = 0; layer < layers; layer++)
    sona_adapter_show(adapters[layer], &w->rows[layer], w->factors[layer].rank, w->factors[layer].rank);
  w->epoch = w->words[EPOCH];
  if (info) *info = (sona_weights_info){.epoch = w->epoch, .version = w->words[VERSION], .published_ns = w->words[PUBLISHED_NS]};
  return SONA_OK;
}
