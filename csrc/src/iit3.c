#include "iit3_internal.h"

/* Room for a search, and its parts, in one block. */
static search *allocate(uint32_t n) {
  const size_t states = (size_t)1 << n;
  size_t powers = 1;
  for (uint32_t i = 0; i < n; i++) powers *= 3;
  const size_t causes = states * powers, marginals = states * states * n, pairs = states * states;
  const size_t doubles = n * powers + 2 * causes + 2 * marginals;
  const size_t size = sizeof(search) + doubles * sizeof(double) + 2 * states * sizeof(sona_iit3_concept) +
                      pairs * (states - 1) * sizeof(found) + pairs * sizeof(uint32_t);
  search *s = sona_calloc(1, size);
  if (!s) return NULL;
  double *next = (double *)(void *)(s + 1);
  s->n = n;
  s->states = (uint32_t)states;
  s->likelihood = next;
  s->whole.cause = next += n * powers;
  s->cut.cause = next += causes;
  s->whole.ones = next += causes;
  s->cut.ones = next += marginals;
  s->whole.concept = (sona_iit3_concept *)(void *)(next + marginals);
  s->cut.concept = s->whole.concept + states;
  s->memo = (found *)(void *)(s->cut.concept + states);
  s->kept = (uint32_t *)(void *)(s->memo + pairs * (states - 1));
  return s;
}

sona_status sona_iit3(uint32_t n, const double *tpm, const uint8_t *cm, uint32_t state, uint64_t most, int (*stop)(void *context),
                      void *context, sona_iit3_result *result) {
  sona_status status = sona_iit3_check(n, tpm, cm);
  if (status != SONA_OK) return status;
  if (state >> n || !sona_iit3_reachable(n, tpm, state)) return SONA_EINVAL;
  const int whole = n > 1 && sona_iit3_strongly_connected(n, cm);
  if (whole && sona_iit3_work(n, tpm) > most) return SONA_EFULL;
  search *s = whole ? allocate(n) : NULL;
  if (whole && !s) return SONA_ENOMEM;
  result->phi = 0;
  result->concepts = result->cuts = 0;
  if (!whole) return SONA_OK;
  s->state = state;
  sona_iit3_arrange(s);
  sona_iit3_find_whole(s, tpm);
  sona_iit3_find_concepts(s, &s->whole);
  for (int size = 1; size <= (int)n; size++)
    for (const mask *m = s->order; *m; m++)
      if (bits(*m) == size && s->whole.concept[*m].phi > 0) result->concept[result->concepts++] = s->whole.concept[*m];
  if (result->concepts) status = sona_iit3_find_cut(s, stop, context, result);
  sona_free(s);
  return status;
}

sona_status sona_iit3_distance(uint32_t k, const double *p, const double *q, double *distance) {
  if (k > NODES) return SONA_EINVAL;
  sona_transport *t = sona_calloc(1, sizeof *t);
  if (!t) return SONA_ENOMEM;
  *distance = sona_transport_states(t, k, p, q);
  sona_free(t);
  return SONA_OK;
}
