/* What a scenario sees of the checker in model.cpp: a scenario is a few threads over the library's own code, small enough to be run with
 * very many interleavings and, for each, with every old value that the C11 memory model lets a load return.
 *
 * Both are compiled by gcc -fsanitize=thread, which turns each atomic operation and each access to memory into a call; model.cpp answers
 * those calls with Relacy in place of the thread sanitizer.  Nothing of the code under test is rewritten. */
#ifndef SONA_MODEL_H
#define SONA_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a scenario defines.  Threads 0 to THREADS - 1 run between before and after, which see all that they did. */
extern const char *const model_name;
void model_before(void);
void model_thread(unsigned thread);
void model_after(void);

/* Orders of which one need not be found necessary, as the report names them ("acquire load in look"), NULL at the end.  Each has a reason
 * beside it.
 */
extern const char *const model_unneeded[];
extern const int model_weakens; /* 0: the orders are shown to be needed by another scenario */

/* One of 0 to count - 1, another one in each run. */
unsigned model_choose(unsigned count);

/* Lets the others go first: in a loop that waits. */
void model_yield(void);

/* No thread stores to the atomics here, so loading them is nothing to interleave; a store is reported. */
void model_quiet(const void *from, size_t size);

/* A process that may be killed: runs life() and returns 1 when it ended, 0 when it was cut off before one of its atomic operations, the
 * first `operations` of them.  What it had stored stays. */
int model_process(void (*life)(void), unsigned operations);

void model_fail(const char *what, const char *file, int line);
#define MODEL_CHECK(condition)                                    \
  do {                                                            \
    if (!(condition)) model_fail(#condition, __FILE__, __LINE__); \
  } while (0)

/* In place of memcpy, whose accesses the compiler does not report. */
void *model_memcpy(void *to, const void *from, size_t size);

#ifdef __cplusplus
}
#endif
#endif
