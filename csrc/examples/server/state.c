/* What a learner has learned, as a file: `saved`, the arms' calibrations, the mean input, P, the adapter.  Structs are written as this
 * version of the library lays them out; another one refuses them. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "learner.h"

typedef struct saved {
  char magic[8];
  uint64_t hash; /* of all that follows */
  uint64_t library, size, dim, arms, fingerprint, side;
  uint64_t next_id, learned;
  double inputs, square; /* of the mean input */
  sona_calibration calibration;
  sona_policy_state policy;
} saved;

typedef struct saved_arm {
  double rewarded, shown;
  uint64_t choices;
} saved_arm;

static const char MAGIC[8] = "sonasrv2";
enum { HASHED = sizeof(char[8]) + sizeof(uint64_t) }; /* where the hash begins */

static void put(char **at, const void *from, size_t size) {
  memcpy(*at, from, size);
  *at += size;
}

static void take(const char **at, void *to, size_t size) {
  memcpy(to, *at, size);
  *at += size;
}

/* Bytes in front of the adapter's. */
static size_t front_size(const learner *l, size_t *side, size_t *ld) {
  if (!sona_instant_covariance(l->teacher.instant, side, ld)) *side = 0;
  return sizeof(saved) + l->arms->count * sizeof(saved_arm) + l->arms->dim * sizeof(float) + *side * *side * sizeof(float);
}

/* Under the lock, while nothing is being learned.  What the file is to hold, from malloc. */
static int snapshot(learner *l, char **bytes, size_t *size) {
  size_t side, ld;
  const size_t front = front_size(l, &side, &ld), room = sona_adapter_encoded_size(l->teacher.adapter);
  char *const start = malloc(front + room), *at = start;
  if (!start) return ENOMEM;
  saved head = {.library = SONA_VERSION_NUMBER,
                .size = sizeof head,
                .dim = l->arms->dim,
                .arms = l->arms->count,
                .fingerprint = l->arms->fingerprint,
                .side = side,
                .next_id = l->next_id,
                .learned = l->learned,
                .calibration = sona_instant_calibration(l->teacher.instant),
                .policy = sona_policy_get_state(l->front->mind.policy)};
  const float *const mean = sona_instant_inputs(l->teacher.instant, &head.inputs, &head.square);
  memcpy(head.magic, MAGIC, sizeof MAGIC);
  put(&at, &head, sizeof head);
  for (size_t k = 0; k < l->arms->count; k++) {
    saved_arm arm;
    sona_policy_get_calibration(l->teacher.policy, (int32_t)k, &arm.rewarded, &arm.shown, &arm.choices);
    put(&at, &arm, sizeof arm);
  }
  put(&at, mean, l->arms->dim * sizeof *mean);
  const float *const p = sona_instant_covariance(l->teacher.instant, &side, &ld);
  for (size_t i = 0; p && i < side; i++) put(&at, p + i * ld, side * sizeof *p);
  size_t encoded = 0;
  if (sona_adapter_encode(l->teacher.adapter, at, room, &encoded)) {
    free(start);
    return EIO;
  }
  *bytes = start;
  *size = front + encoded;
  return 0;
}

int learner_save(learner *l) {
  char *bytes = NULL;
  size_t size = 0;
  pthread_mutex_lock(&l->saving);
  pthread_mutex_lock(&l->lock);
  l->until = l->taken; /* rewards that come from now on wait */
  while (l->shown < l->until) pthread_cond_wait(&l->room, &l->lock);
  int error = snapshot(l, &bytes, &size);
  l->until = UINT64_MAX;
  pthread_cond_signal(&l->come);
  pthread_mutex_unlock(&l->lock); /* requests go on while the disk is busy */
  if (!error) {
    const uint64_t hash = file_hash(bytes + HASHED, size - HASHED);
    memcpy(bytes + offsetof(saved, hash), &hash, sizeof hash);
    error = file_replace(l->path, bytes, size);
  }
  pthread_mutex_unlock(&l->saving);
  free(bytes);
  return error;
}

/* Before the first request.  EINVAL: not such a file, or of other arms; nothing has changed then. */
static int restore(learner *l, const char *bytes, size_t size) {
  size_t side, ld;
  const size_t front = front_size(l, &side, &ld);
  const char *at = bytes;
  saved head;
  if (size < front) return EINVAL;
  take(&at, &head, sizeof head);
  if (memcmp(head.magic, MAGIC, sizeof MAGIC) != 0 || head.library != SONA_VERSION_NUMBER || head.size != sizeof head) return EINVAL;
  if (head.dim != l->arms->dim || head.arms != l->arms->count || head.fingerprint != l->arms->fingerprint || head.side != side)
    return EINVAL;
  if (head.hash != file_hash(bytes + HASHED, size - HASHED)) return EINVAL;
  if (sona_adapter_decode(l->teacher.adapter, bytes + front, size - front)) return EINVAL;
  for (size_t k = 0; k < l->arms->count; k++) {
    saved_arm arm;
    take(&at, &arm, sizeof arm);
    sona_policy_set_calibration(l->teacher.policy, (int32_t)k, arm.rewarded, arm.shown, arm.choices);
  }
  if (sona_instant_set_inputs(l->teacher.instant, (const float *)(const void *)at, head.inputs, head.square)) return EINVAL;
  at += l->arms->dim * sizeof(float);
  float *const p = sona_instant_covariance(l->teacher.instant, &side, &ld);
  for (size_t i = 0; p && i < side; i++) take(&at, p + i * ld, side * sizeof *p);
  sona_instant_set_calibration(l->teacher.instant, head.calibration);
  sona_policy_set_state(l->teacher.policy, head.policy);
  const sona_lora w = sona_adapter_view(l->teacher.adapter); /* is the older copy now that the guard falls back to */
  for (int copy = 0; copy < 2; copy++)
    if (sona_policy_set_copy(l->teacher.policy, copy, w.down, w.up, w.ld, w.offset, w.rank)) return ENOMEM;
  if (l->next_id < head.next_id) l->next_id = head.next_id;
  l->learned = head.learned;
  return 0;
}

int learner_load(learner *l) {
  void *bytes;
  size_t size;
  int error = file_read(l->path, &bytes, &size);
  if (error == ENOENT) return 0; /* the first start */
  if (!error) {
    error = restore(l, bytes, size);
    free(bytes);
  }
  if (error) fprintf(stderr, "%s: expected a state that was saved for these arms: %s\n", l->path, strerror(error));
  return error;
}
