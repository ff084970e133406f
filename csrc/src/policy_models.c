#include <string.h>

#include "adapter_rows.h"
#include "policy_internal.h"

static sona_status reserve_coef(sona_policy *p, size_t rows) {
  if (rows <= p->coef_capacity) return SONA_OK;
  float *fresh = sona_calloc(sona_policy_padded(rows), sizeof *fresh);
  if (!fresh) return SONA_ENOMEM;
  sona_free(p->coef);
  p->coef = fresh;
  p->coef_capacity = sona_policy_padded(rows);
  return SONA_OK;
}

static sona_status reserve_projection(const sona_policy *p, projection *seen, size_t rows) {
  if (rows <= seen->capacity) return SONA_OK;
  float *fresh = sona_calloc(sona_policy_padded(rows), p->arm_ld * sizeof *fresh);
  if (!fresh) return SONA_ENOMEM;
  if (seen->arm_rows) memcpy(fresh, seen->arm_rows, seen->rows * p->arm_ld * sizeof *fresh);
  sona_free(seen->arm_rows);
  seen->arm_rows = fresh;
  seen->capacity = sona_policy_padded(rows);
  return SONA_OK;
}

sona_status sona_policy_reserve_rows(sona_policy *p, projection *seen, size_t rows) {
  const sona_status status = reserve_coef(p, rows);
  return status ? status : reserve_projection(p, seen, rows);
}

/* Brings seen, which has room, up to w: rows before `from` are already there. */
static void project(const sona_policy *p, projection *seen, const sona_lora *w, size_t from) {
  for (size_t j = from; j < w->rank; j++)
    p->o.kernels->gemv(p->vectors, p->ld, w->up + j * w->ld, seen->arm_rows + j * p->arm_ld, p->arms, p->o.dim);
  seen->rows = w->rank;
}

sona_status sona_policy_follow(sona_policy *p, sona_lora *w) {
  *w = sona_adapter_view(p->adapter);
  const uint64_t generation = sona_adapter_generation(p->adapter);
  if (generation == p->seen_generation && w->rank == p->seen.rows) return SONA_OK;
  const sona_status status = sona_policy_reserve_rows(p, &p->seen, w->rank);
  if (status) return status;
  project(p, &p->seen, w, generation == p->seen_generation ? p->seen.rows : 0);
  p->seen_generation = generation;
  return SONA_OK;
}

static void project_arm(const sona_policy *p, const projection *seen, const sona_lora *w, size_t slot) {
  for (size_t j = 0; j < w->rank; j++)
    p->o.kernels->gemv(p->vectors + slot * p->ld, p->ld, w->up + j * w->ld, seen->arm_rows + j * p->arm_ld + slot, 1, p->o.dim);
}

void sona_policy_project_arm(const sona_policy *p, const sona_lora *w, size_t slot) {
  project_arm(p, &p->seen, w, slot);
  for (int i = 0; i < COPIES; i++) {
    const sona_lora older = sona_policy_copy(p, i);
    project_arm(p, &p->copies[i].seen, &older, slot);
  }
}

/* ---- older copies ---- */

sona_lora sona_policy_copy(const sona_policy *p, int which) {
  const copy *c = &p->copies[which ? NEXT : ANCHOR];
  return (sona_lora){.down = c->down, .up = c->up, .offset = c->offset, .ld = p->ld, .dim = p->o.dim, .rank = c->rows, .scale = c->scale};
}

sona_status sona_policy_set_copy(sona_policy *p, int which, const float *down, const float *up, size_t ld, const float *offset,
                                 size_t rows) {
  copy *c = &p->copies[which ? NEXT : ANCHOR];
  c->rows = 0; /* until it is complete */
  if (rows > c->capacity) {
    const size_t capacity = sona_policy_padded(rows);
    float *fresh = sona_calloc(2 * capacity * p->ld + capacity, sizeof *fresh);
    if (!fresh) return SONA_ENOMEM;
    sona_free(c->down);
    c->down = fresh;
    c->up = fresh + capacity * p->ld;
    c->offset = c->up + capacity * p->ld;
    c->capacity = capacity;
  }
  const sona_status status = sona_policy_reserve_rows(p, &c->seen, rows);
  if (status) return status;
  for (size_t j = 0; j < rows; j++) {
    memcpy(c->down + j * p->ld, down + j * ld, p->o.dim * sizeof *down);
    memcpy(c->up + j * p->ld, up + j * ld, p->o.dim * sizeof *up);
    c->offset[j] = offset ? offset[j] : 0;
  }
  c->rows = rows;
  c->scale = sona_adapter_view(p->adapter).scale;
  const sona_lora w = sona_policy_copy(p, which);
  project(p, &c->seen, &w, 0);
  return SONA_OK;
}
