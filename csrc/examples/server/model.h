/* What the server does with an embedding.  Three of them: plain.c leaves it as it is, learner.c learns in this process, sidecar.c tells
 * `sona learn` what happened and takes over what that publishes. */
#ifndef SERVER_MODEL_H
#define SERVER_MODEL_H

#include "arms.h"
#include "sona/sona.h"

typedef struct model model;

typedef struct route {
  uint64_t id; /* what feedback names, below 2^53 */
  size_t arm;
  float probability; /* that the arm is right, as far as the weights know */
  float propensity;  /* with which it was served */
} route;

/* worker: number of the calling thread; each has a reader of its own.  x (dim), finite. */
struct model {
  const char *mode;

  /* y (dim) = x + delta(x).  Never waits. */
  sona_status (*embed)(model *m, size_t worker, const float *x, float *y);

  /* x of norm 1. */
  sona_status (*route)(model *m, size_t worker, const float *x, route *out);

  /* reward in [0, 1].  SONA_EINVAL: the id is unknown, or forgotten. */
  sona_status (*feedback)(model *m, uint64_t id, float reward);

  /* 0, or an errno; NULL where there is nothing to save. */
  int (*save)(model *m);

  /* Members of a JSON object, each after a comma, at most 512 bytes; the number of bytes. */
  int (*stats)(model *m, char *to, size_t room);

  void (*destroy)(model *m);
};

/* 0, ENOMEM, or another errno after a line on standard error that says what is wrong.  *a is kept and must outlive the model. */
int plain_create(const arms *a, size_t workers, model **out);

/* state: the file that save writes, read now if it is there; NULL for none. */
int learner_create(const arms *a, size_t workers, const char *state, model **out);

/* ring, weights: files that `sona learn` is given too; whoever comes first makes the ring, the learner makes the weights. */
int sidecar_create(const arms *a, size_t workers, const char *ring, const char *weights, model **out);

#endif
