/* Private: xoshiro256++ (Blackman and Vigna 2019), seeded by splitmix64.  Same seed, same stream on every machine. */
#ifndef SONA_RANDOM_H
#define SONA_RANDOM_H

#include <math.h>
#include <stdint.h>

typedef struct sona_random {
  uint64_t s[4];
} sona_random;

static inline void sona_random_seed(sona_random *r, uint64_t seed) {
  for (int i = 0; i < 4; i++) {
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    r->s[i] = z ^ (z >> 31);
  }
}

static inline uint64_t sona_random_next(sona_random *r) {
  uint64_t *s = r->s, sum = s[0] + s[3], shifted = s[1] << 17;
  const uint64_t result = ((sum << 23) | (sum >> 41)) + s[0];
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= shifted;
  s[3] = (s[3] << 45) | (s[3] >> 19);
  return result;
}

/* uniform in [0, 1) */
static inline double sona_random_uniform(sona_random *r) { return (double)(sona_random_next(r) >> 11) * 0x1p-53; }

/* standard normal by Box and Muller */
static inline double sona_random_normal(sona_random *r) {
  const double u = 1 - sona_random_uniform(r), angle = 6.283185307179586 * sona_random_uniform(r);
  return sqrt(-2 * log(u)) * cos(angle);
}

#endif
