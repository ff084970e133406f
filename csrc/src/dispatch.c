/* Which kernel tables this machine can run. */
#include <string.h>

#include "target.h"

#if SONA_BUILD_AVX2
/* The compiler's CPU model counts avx2 and fma only when the operating system saves the ymm registers (OSXSAVE, then XGETBV). */
static int can_run_avx2(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

const sona_kernels *sona_kernels_at(size_t index) {
  const sona_kernels *tables[3] = {&sona_kernels_scalar}; /* slowest first; the rest NULL */
  size_t count = 1;
#if SONA_BUILD_AVX2
  if (can_run_avx2()) tables[count++] = &sona_kernels_avx2;
#endif
#if SONA_BUILD_NEON
  tables[count++] = &sona_kernels_neon; /* every aarch64 CPU has it */
#endif
  return index < count ? tables[index] : NULL;
}

size_t sona_kernels_count(void) {
  size_t count = 0;
  while (sona_kernels_at(count)) count++;
  return count;
}

const sona_kernels *sona_kernels_get(const char *isa) {
  if (!isa) return sona_kernels_at(sona_kernels_count() - 1);
  const sona_kernels *table;
  for (size_t i = 0; (table = sona_kernels_at(i)) != NULL; i++) {
    if (strcmp(table->isa, isa) == 0) return table;
  }
  return NULL;
}
