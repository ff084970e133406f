/* The shared ring and the weight file: whatever another process writes into them, each side answers with a status or counts it, and
 * reads nothing outside.  A program of calls on both sides, with bytes of the files changed in between. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../src/shared_ring_core.h"
#include "fuzz.h"
#include "sona/shared_ring.h"
#include "sona/weights.h"

enum { CAPACITY = 4096, HEAD = 4096, DIM = 2, LAYERS = 2, RANK = 2, FACTORS = 16 + 4 * RANK * (2 * DIM + 1) };

static char ring_path[64], weights_path[64];

static void name_files(void) {
  if (ring_path[0]) return;
  snprintf(ring_path, sizeof ring_path, "/dev/shm/sona-fuzz-%ld-ring", (long)getpid());
  snprintf(weights_path, sizeof weights_path, "/dev/shm/sona-fuzz-%ld-weights", (long)getpid());
}

/* A few bytes of a file become others, mostly in the words that matter. */
static void spoil(input *in, const char *path) {
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  const off_t size = lseek(fd, 0, SEEK_END);
  static const off_t near[] = {0, 8, 16, 24, 40, 128, 136, 256, 264, 384, HEAD, HEAD + 8, HEAD + 16};
  const off_t at = choose(in, 4) ? near[choose(in, sizeof near / sizeof *near)] + (off_t)choose(in, 8) : (off_t)take(in, 2);
  unsigned char bytes[8];
  const size_t count = 1 + choose(in, 8);
  for (size_t i = 0; i < count; i++) bytes[i] = (unsigned char)take(in, 1);
  if (at + (off_t)count <= size) PROMISE(pwrite(fd, bytes, count, at) == (ssize_t)count);
  close(fd);
}

/* A liar that knows the format: an index, or a header, whose check is right. */
static void forge(input *in, const char *path) {
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  if (lseek(fd, 0, SEEK_END) == HEAD + CAPACITY) {
    static const off_t indices[] = {128, 136, 256};
    const uint64_t small = take(in, 2), value = choose(in, 4) ? small : SONA_SEALED_MAX - small;
    if (choose(in, 2)) {
      const uint64_t word = sona_seal(value);
      PROMISE(pwrite(fd, &word, sizeof word, indices[choose(in, 3)]) == sizeof word);
    } else {
      const uint64_t index = take(in, 1), size = choose(in, 4) ? take(in, 2) : SONA_SHARED_SKIP;
      const uint64_t header[2] = {size | sona_shared_check(index, size, value) << 32, value};
      PROMISE(pwrite(fd, header, sizeof header, HEAD + (off_t)index * SONA_UNIT) == sizeof header);
    }
  }
  close(fd);
}

static void check_ring(input *in) {
  sona_shared_ring *side[2] = {NULL, NULL};
  int spoiled = 0;
  uint64_t mark = 0;
  for (int steps = 0; in->left && steps < 200; steps++) {
    const int which = (int)choose(in, 2);
    unsigned char data[CAPACITY / 2];
    size_t size = 0;
    uint64_t sequence = 0;
    switch (choose(in, 8)) {
      case 0: {
        if (side[which]) {
          sona_shared_ring_close(side[which]);
          side[which] = NULL;
        }
        const sona_status status = sona_shared_ring_open(ring_path, (sona_side)which, choose(in, 4) ? CAPACITY : 0, &side[which]);
        PROMISE((status == SONA_OK) == (side[which] != NULL));
        PROMISE(status == SONA_OK || status == SONA_ECORRUPT || status == SONA_EVERSION || status == SONA_EIO);
        PROMISE(spoiled || status != SONA_ECORRUPT);
        break;
      }
      case 1:
      case 2: {
        size = choose(in, 4) * 600 + choose(in, 232);
        if (!side[0] || size > sizeof data) break;
        memset(data, (int)size, size);
        const sona_status status = sona_shared_ring_push(side[0], data, size, &sequence);
        PROMISE(status == SONA_OK || status == SONA_EFULL || size > sona_shared_ring_max_record(side[0]));
        break;
      }
      case 3:
      case 4: {
        if (!side[1]) break;
        const unsigned char *record = sona_shared_ring_next(side[1], &size, &sequence);
        if (!record) break;
        PROMISE(size <= sona_shared_ring_max_record(side[1]));
        unsigned char sum = 0;
        for (size_t i = 0; i < size; i++) sum ^= record[i]; /* all of it can be read */
        if (!spoiled) {
          for (size_t i = 0; i < size; i++) PROMISE(record[i] == (unsigned char)size);
          PROMISE(sequence >= 1);
        }
        (void)sum;
        break;
      }
      case 5:
        if (!side[1]) break;
        switch (choose(in, 4)) {
          case 0: mark = sona_shared_ring_mark(side[1]); break;
          case 1: sona_shared_ring_release_to(side[1], mark); break;
          default: sona_shared_ring_release(side[1]);
        }
        break;
      case 6:
        if (choose(in, 4)) break;
        choose(in, 2) ? spoil(in, ring_path) : forge(in, ring_path);
        spoiled = 1;
        break;
      case 7:
        for (int i = 0; i < 2; i++)
          if (side[i]) PROMISE(sona_shared_ring_used(side[i]) <= CAPACITY);
        break;
    }
  }
  for (int i = 0; i < 2; i++) sona_shared_ring_close(side[i]);
}

static void check_weights(input *in) {
  const sona_weights_options options = {.layers = LAYERS, .dim = DIM, .max_rank = RANK, .fingerprint = choose(in, 3)};
  const sona_adapter_options a = {.dim = DIM, .rank = 1, .rank_max = 2, .micro = 1, .max_discard = 0.05, .scale = 1};
  sona_adapter *adapters[LAYERS] = {NULL};
  sona_weights *writer = NULL, *reader = NULL;
  int spoiled = 0;
  uint64_t version = 0;
  for (int i = 0; i < LAYERS; i++) PROMISE(sona_adapter_create(&a, &adapters[i]) == SONA_OK);
  for (int steps = 0; in->left && steps < 60; steps++) {
    switch (choose(in, 6)) {
      case 0: {
        sona_weights_close(writer);
        writer = NULL;
        const sona_status status = sona_weights_create(weights_path, &options, &writer);
        PROMISE(status == SONA_OK || (spoiled && (status == SONA_ECORRUPT || status == SONA_EVERSION)));
        break;
      }
      case 1: {
        sona_weights_close(reader);
        reader = NULL;
        sona_weights_options mine = options;
        if (!choose(in, 4)) mine.dim = 1 + choose(in, 3);
        (void)sona_weights_open(weights_path, &mine, &reader);
        if (reader && mine.dim != DIM) {
          PROMISE(spoiled);
          sona_weights_close(reader);
          reader = NULL;
        }
        break;
      }
      case 2:
      case 3: {
        if (!writer) break;
        unsigned char bytes[LAYERS][FACTORS];
        const void *factors[LAYERS];
        size_t sizes[LAYERS];
        for (uint32_t i = 0; i < LAYERS; i++) {
          const uint32_t head[2] = {(uint32_t)choose(in, RANK + 1), choose(in, 16) ? DIM : (uint32_t)choose(in, 4)};
          memcpy(bytes[i], "sonafac1", 8);
          memcpy(bytes[i] + 8, head, 8);
          for (size_t k = 16; k < FACTORS; k += 4) {
            const float value = take_float(in);
            memcpy(bytes[i] + k, &value, 4);
          }
          factors[i] = bytes[i];
          sizes[i] = choose(in, 16) ? 16 + 4 * (size_t)head[0] * (2 * DIM + 1) : choose(in, FACTORS);
        }
        const uint64_t before = sona_weights_epoch(writer);
        const sona_status status = sona_weights_publish(writer, factors, sizes, version + 1);
        version += status == SONA_OK;
        if (!spoiled) PROMISE(sona_weights_epoch(writer) == before + (status == SONA_OK));
        break;
      }
      case 4: {
        if (!reader) break;
        sona_weights_info info = {0};
        const uint64_t generation = sona_adapter_describe(adapters[0]).generation;
        const sona_status status = sona_weights_adopt(reader, adapters, &info);
        if (status != SONA_OK) PROMISE(sona_adapter_describe(adapters[0]).generation == generation);
        if (!spoiled) PROMISE(status == SONA_OK ? info.version == version : status == SONA_EAGAIN || status == SONA_ENONFINITE);
        for (int i = 0; i < LAYERS; i++) {
          const sona_lora w = sona_adapter_view(adapters[i]);
          for (size_t r = 0; r < w.rank; r++)
            for (size_t k = 0; k < DIM; k++) PROMISE(isfinite(w.down[r * w.ld + k]) && isfinite(w.up[r * w.ld + k]));
        }
        break;
      }
      case 5:
        if (choose(in, 3)) break;
        spoil(in, weights_path);
        spoiled = 1;
        break;
    }
  }
  sona_weights_close(writer);
  sona_weights_close(reader);
  for (int i = 0; i < LAYERS; i++) sona_adapter_destroy(adapters[i]);
}

static void run(input *in) {
  name_files();
  if (choose(in, 2)) {
    check_ring(in);
  } else {
    check_weights(in);
  }
  unlink(ring_path);
  unlink(weights_path);
}
