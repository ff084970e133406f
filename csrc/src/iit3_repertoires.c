#include <string.h>

#include "iit3_internal.h"

void sona_iit3_arrange(search *s) {
  s->powers = 0;
  for (mask set = 0; set < s->states; set++) {
    s->offset[set] = s->powers;
    s->powers += 1u << bits(set);
    for (mask state = 0; state < s->states; state++) {
      uint32_t together = 0, at = 0;
      for (mask rest = set; rest; rest &= rest - 1) together |= (state >> first(rest) & 1) << at++;
      s->extract[set][state] = (uint8_t)together;
    }
  }
  uint32_t count = 0;
  for (int size = (int)s->n; size >= 0; size--)
    for (mask back = s->states; back-- > 0;) { /* node 0 in the highest bit: falling numbers are lexicographic */
      mask set = 0;
      for (uint32_t i = 0; i < s->n; i++) set |= (back >> (s->n - 1 - i) & 1) << i;
      if (bits(set) == size) s->order[count++] = set;
    }
}

/* likelihood[i][Z]: a mean over the states of all nodes outside of Z.  Node by node is taken out of Z. */
static void find_likelihoods(search *s, const double *tpm) {
  for (uint32_t i = 0; i < s->n; i++) {
    double *own = s->likelihood + i * s->powers;
    for (mask x = 0; x < s->states; x++) own[s->offset[s->states - 1] + x] = s->state >> i & 1 ? tpm[x * s->n + i] : 1 - tpm[x * s->n + i];
    for (mask set = s->states - 1; set-- > 0;) {
      const int out = first(~set); /* set | 1 << out holds one node more, and the bits below `out` are all in it */
      const double *more = own + s->offset[set | 1u << out];
      for (mask x = 0; x < 1u << bits(set); x++) {
        const mask low = x & ((1u << out) - 1), at = low | (x - low) << 1;
        own[s->offset[set] + x] = (more[at] + more[at | 1u << out]) / 2;
      }
    }
  }
}

/* Chance that a node is 1 after a state that agrees with the current one on the mechanism. */
static void find_effects(const search *s, const double *tpm, double (*effect)[STATES]) {
  for (uint32_t j = 0; j < s->n; j++)
    for (mask m = 0; m < s->states; m++) {
      double sum = 0;
      for (mask x = 0; x < s->states; x++)
        if (!((x ^ s->state) & m)) sum += tpm[x * s->n + j];
      effect[j][m] = sum / (double)(s->states >> bits(m));
    }
}

/* Product of the likelihoods of the mechanism's nodes, normalised; what does not reach a node is not asked. */
static void find_causes(const search *s, view *v) {
  for (mask z = 0; z < s->states; z++) {
    const uint32_t count = 1u << bits(z);
    for (mask x = 0; x < count; x++) cause(s, v, 0, z)[x] = 1.0 / count;
    for (mask m = 1; m < s->states; m++) {
      const uint32_t i = (uint32_t)first(m);
      const mask seen = v->from >> i & 1 ? z : z & ~v->from;
      const double *likelihood = s->likelihood + i * s->powers + s->offset[seen], *rest = cause(s, v, m & (m - 1), z);
      const uint8_t *extract = s->extract[s->extract[z][seen]]; /* the place of `seen` among the nodes of z */
      double *p = cause(s, v, m, z), sum = 0;
      for (mask x = 0; x < count; x++) sum += p[x] = rest[x] * likelihood[extract[x]];
      for (mask x = 0; x < count; x++) p[x] /= sum;
    }
    for (mask m = 0; m < s->states; m++) {
      const double *p = cause(s, v, m, z);
      double *one = v->ones + (m * s->states + z) * s->n;
      memset(one, 0, s->n * sizeof *one);
      uint32_t at = 0;
      for (mask left = z; left; left &= left - 1, at++)
        for (mask x = 0; x < count; x++) one[first(left)] += x >> at & 1 ? p[x] : 0;
    }
  }
}

void sona_iit3_find_whole(search *s, const double *tpm) {
  find_likelihoods(s, tpm);
  find_effects(s, tpm, s->whole.effect);
  sona_iit3_dependences(s->n, tpm, 0, s->whole.inputs); /* a rare cause counts as much as a frequent one */
  find_causes(s, &s->whole);
}

void sona_iit3_find_severed(search *s, mask from) {
  view *v = &s->cut;
  v->from = from;
  sona_iit3_sever(s->n, s->whole.inputs, from, v->inputs);
  for (uint32_t j = 0; j < s->n; j++)
    for (mask m = 0; m < s->states; m++) v->effect[j][m] = s->whole.effect[j][from >> j & 1 ? m : m & ~from];
  find_causes(s, v);
}
