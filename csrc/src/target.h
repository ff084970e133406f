/* Which instruction-set tables this compiler can build, and how a source file asks for one.
 *
 * The library is compiled with portable flags only; a file that needs more says so around its own code:
 *   SONA_TARGET_BEGIN("avx2,fma")  ...  SONA_TARGET_END
 * Whether the CPU and the operating system can run the result is decided at run time, in dispatch.c alone. */
#ifndef SONA_TARGET_H
#define SONA_TARGET_H

#include "sona/kernels.h"

#define SONA_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define SONA_TARGET_BEGIN(features) SONA_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SONA_TARGET_END SONA_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define SONA_TARGET_BEGIN(features) SONA_PRAGMA(GCC push_options) SONA_PRAGMA(GCC target(features))
#define SONA_TARGET_END SONA_PRAGMA(GCC pop_options)
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define SONA_BUILD_AVX2 1
#else
#define SONA_BUILD_AVX2 0
#endif

#if defined(__GNUC__) && defined(__aarch64__)
#define SONA_BUILD_NEON 1
#else
#define SONA_BUILD_NEON 0
#endif

/* A float at any address: the contract of the kernels.  Vector loads take any address anyway. */
#ifdef __GNUC__
typedef float loose_float __attribute__((aligned(1)));
#else
typedef float loose_float;
#endif

/* Each is defined in kernels_<isa>.c, and only where SONA_BUILD_<ISA> is 1. */
extern const sona_kernels sona_kernels_scalar;
extern const sona_kernels sona_kernels_avx2;
extern const sona_kernels sona_kernels_neon;

#endif
