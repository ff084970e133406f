/* The server without learning, to compare with: embeddings pass through, requests go to the nearest arm. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef struct plain {
  model base;
  const arms *arms;
  float *probability; /* (workers, arms) */
  _Atomic uint64_t next_id;
} plain;

static sona_status embed(model *m, size_t worker, const float *x, float *y) {
  (void)worker;
  memcpy(y, x, ((plain *)m)->arms->dim * sizeof *y);
  return SONA_OK;
}

static sona_status choose(model *m, size_t worker, const float *x, route *out) {
  plain *const p = (plain *)m;
  float *const probability = p->probability + worker * p->arms->count;
  out->arm = arms_choose(p->arms, x, probability);
  out->probability = probability[out->arm];
  out->propensity = 1;
  out->id = atomic_fetch_add_explicit(&p->next_id, 1, memory_order_relaxed); /* a number, nothing is ordered by it */
  return SONA_OK;
}

static sona_status feedback(model *m, uint64_t id, float reward) {
  (void)reward;
  return id && id < atomic_load_explicit(&((plain *)m)->next_id, memory_order_relaxed) ? SONA_OK : SONA_EINVAL;
}

static int stats(model *m, char *to, size_t room) {
  (void)m, (void)to, (void)room;
  return 0;
}

static void destroy(model *m) {
  free(((plain *)m)->probability);
  free(m);
}

int plain_create(const arms *a, size_t workers, model **out) {
  plain *const p = calloc(1, sizeof *p);
  if (!p) return ENOMEM;
  p->base = (model){"plain", embed, choose, feedback, NULL, stats, destroy};
  p->arms = a;
  atomic_init(&p->next_id, 1);
  p->probability = calloc(workers * a->count, sizeof *p->probability);
  if (!p->probability) {
    destroy(&p->base);
    return ENOMEM;
  }
  *out = &p->base;
  return 0;
}
