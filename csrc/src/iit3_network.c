#include <math.h>

#include "iit3_internal.h"

void sona_iit3_dependences(uint32_t n, const double *tpm, double ignored, mask *inputs) {
  for (uint32_t j = 0; j < n; j++) {
    inputs[j] = 0;
    for (uint32_t i = 0; i < n; i++)
      for (uint32_t s = 0; s < 1u << n; s++)
        if (fabs(tpm[s * n + j] - tpm[(s ^ 1u << i) * n + j]) > ignored) inputs[j] |= 1u << i;
  }
}

sona_status sona_iit3_check(uint32_t n, const double *tpm, const uint8_t *cm) {
  if (n < 1 || n > NODES) return SONA_EINVAL;
  for (uint32_t k = 0; k < n << n; k++)
    if (!isfinite(tpm[k])) return SONA_ENONFINITE;
  for (uint32_t k = 0; k < n << n; k++)
    if (!(tpm[k] >= 0 && tpm[k] <= 1)) return SONA_EINVAL;
  mask inputs[NODES];
  sona_iit3_dependences(n, tpm, SONA_IIT3_RESOLUTION, inputs);
  for (uint32_t i = 0; i < n; i++)
    for (uint32_t j = 0; j < n; j++)
      if (!cm[i * n + j] && inputs[j] >> i & 1) return SONA_EINVAL;
  return SONA_OK;
}

int sona_iit3_reachable(uint32_t n, const double *tpm, uint32_t state) {
  for (uint32_t s = 0; s < 1u << n; s++) {
    double chance = 1;
    for (uint32_t i = 0; i < n; i++) chance *= state >> i & 1 ? tpm[s * n + i] : 1 - tpm[s * n + i];
    if (chance >= 1e-200) return 1; /* products of seven means over 128 states stay normal numbers */
  }
  return 0;
}

int sona_iit3_strongly_connected(uint32_t n, const uint8_t *cm) {
  for (int against = 0; against < 2; against++) {
    mask seen = 1, old = 0;
    while (seen != old) {
      old = seen;
      for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++)
          if (seen >> i & 1 && cm[against ? j * n + i : i * n + j]) seen |= 1u << j;
    }
    if (seen != (1u << n) - 1) return 0;
  }
  return 1;
}

void sona_iit3_sever(uint32_t n, const mask *whole, mask from, mask *inputs) {
  for (uint32_t i = 0; i < n; i++) inputs[i] = from >> i & 1 ? whole[i] : whole[i] & ~from;
}

uint64_t sona_iit3_edges(uint32_t n, const mask *inputs, mask ends, mask starts) {
  uint64_t found = 0;
  for (; ends; ends &= ends - 1) found |= (uint64_t)(inputs[first(ends)] & starts) << (n * (uint32_t)first(ends));
  return found;
}

int sona_iit3_connected(const mask *inputs, mask ends, mask starts) {
  mask reached = starts & -starts, left = ends, before;
  do {
    before = reached;
    for (mask rest = left; rest; rest &= rest - 1) {
      const mask in = inputs[first(rest)] & starts;
      if (!(in & reached)) continue;
      reached |= in;
      left &= ~(rest & -rest);
    }
  } while (reached != before);
  return reached == starts && !left;
}

uint64_t sona_iit3_work(uint32_t n, const double *tpm) {
  mask whole[NODES], inputs[NODES];
  sona_iit3_dependences(n, tpm, 0, whole);
  uint64_t work = 0;
  for (mask m = 1; m < 1u << n; m++)
    for (mask z = 1; z < 1u << n; z++) {
      uint64_t seen[CUTS];
      uint32_t kept = 0, i;
      for (mask from = 0; from + 1 < 1u << n; from++) {
        sona_iit3_sever(n, whole, from, inputs);
        const uint64_t left = sona_iit3_edges(n, inputs, m, z);
        for (i = 0; i < kept && seen[i] != left; i++) {
        }
        if (i < kept) continue;
        seen[kept++] = left;
        if (sona_iit3_connected(inputs, m, z)) work += ((uint64_t)1 << (bits(m) + bits(z) - 1)) * ((uint64_t)1 << 2 * bits(z));
      }
    }
  return work;
}
