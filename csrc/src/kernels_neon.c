/* aarch64, whose baseline includes Advanced SIMD: 4 floats a vector. */
#include "target.h"

#if SONA_BUILD_NEON
#include <arm_neon.h>

typedef float32x4_t vf;
#define VF_WIDTH 4
#define VF_TABLE sona_kernels_neon
#define VF_ISA "neon"

static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }
static inline vf vf_set1(float s) { return vdupq_n_f32(s); }
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf v) { vst1q_f32(p, v); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline float vf_first(vf v) { return vgetq_lane_f32(v, 0); }

#define VF_KEEP(v) ((void)0) /* arithmetic takes no memory operands here */

/* No masked loads here: at most three lanes go one by one. */
static inline vf vf_load_part(const float *p, size_t k) {
  vf v = vf_zero();
  if (k > 0) v = vld1q_lane_f32(p, v, 0);
  if (k > 1) v = vld1q_lane_f32(p + 1, v, 1);
  if (k > 2) v = vld1q_lane_f32(p + 2, v, 2);
  return v;
}

static inline void vf_store_part(float *p, vf v, size_t k) {
  if (k > 0) vst1q_lane_f32(p, v, 0);
  if (k > 1) vst1q_lane_f32(p + 1, v, 1);
  if (k > 2) vst1q_lane_f32(p + 2, v, 2);
}

static inline vf vf_sum(vf v) { return vdupq_n_f32(vaddvq_f32(v)); }

#include "kernels_body.h"

#endif
