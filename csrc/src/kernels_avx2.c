/* x86-64 with AVX2 and FMA: 8 floats a vector. */
#include "target.h"

#if SONA_BUILD_AVX2
#include <immintrin.h>

SONA_TARGET_BEGIN("avx2,fma")

typedef __m256 vf;
#define VF_WIDTH 8
#define VF_TABLE sona_kernels_avx2
#define VF_ISA "avx2"

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_set1(float s) { return _mm256_set1_ps(s); }
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline float vf_first(vf v) { return _mm256_cvtss_f32(v); }

#define VF_KEEP(v) __asm__("" : "+x"(v))

/* All ones in the first k lanes.  A masked-off lane is neither read nor written and cannot fault. */
static inline __m256i first_lanes(size_t k) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)k), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf vf_load_part(const float *p, size_t k) { return _mm256_maskload_ps(p, first_lanes(k)); }
static inline void vf_store_part(float *p, vf v, size_t k) { _mm256_maskstore_ps(p, first_lanes(k), v); }

/* Shuffles inside the vector domain: a round trip through a scalar would cost the request path its latency twice. */
static inline vf vf_sum(vf v) {
  v = _mm256_add_ps(v, _mm256_permute2f128_ps(v, v, 1));
  v = _mm256_add_ps(v, _mm256_permute_ps(v, 0x4e));
  return _mm256_add_ps(v, _mm256_permute_ps(v, 0xb1));
}

#include "kernels_body.h"

SONA_TARGET_END
#endif
