/* Runs a scenario (model.h) under Relacy: the calls that gcc -fsanitize=thread puts in front of memory accesses and in place of atomic
 * operations end here.
 *
 *   model_ring [--runs N] [--mutants N]
 *
 * First the scenario as it is, N times: nothing may be found.  Then once for each place whose memory order is stronger than relaxed, with
 * that one order weakened by a step (seq_cst to acquire or release, acquire and release to relaxed), up to `mutants` times: something has
 * to be found, or the order is not needed, or the scenario does not show what it is for.  Exit status 0 when both hold. */
#include <relacy/relacy.hpp>
#undef new
#undef delete
#undef malloc
#undef calloc
#undef realloc
#undef free
#undef assert
#undef errno
#undef memory_order_relaxed
#undef memory_order_consume
#undef memory_order_acquire
#undef memory_order_release
#undef memory_order_acq_rel
#undef memory_order_seq_cst

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <streambuf>

#include "model.h"

namespace {

typedef uintptr_t address;
#define HERE ((address)__builtin_return_address(0))

/* ---- places: one for each atomic operation in the code ---- */

enum kind { LOAD, STORE, RMW };
const char *const kind_name[] = {"load", "store", "read-modify-write"};
const char *const order_name[] = {"relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst"};

struct place {
  address at; /* return address */
  kind what;
  int order;
};

enum { MOST_PLACES = 256 };
place places[MOST_PLACES];
size_t place_count;
int weak_place = -1, weak_order; /* the mutant */
bool in_threads;                 /* not in before and after */

/* What that operation does in this mutant. */
int order_at(address at, kind what, int order) {
  if (!in_threads) return order;
  size_t i = 0;
  while (i < place_count && places[i].at != at) i++;
  if (i == place_count && place_count < MOST_PLACES) places[place_count++] = {at, what, order};
  return (int)i == weak_place ? weak_order : order;
}

/* "ring.c:98" or the name of the function.  In a buffer: Relacy replaces operator new while a scenario runs. */
const char *where(address at, bool function = false) {
  static char lines[2][512];
  char command[128];
  lines[0][0] = lines[1][0] = 0;
  std::snprintf(command, sizeof command, "addr2line -sf -e /proc/%d/exe %#lx", (int)getpid(), (unsigned long)at - 1);
  if (FILE *pipe = popen(command, "r")) {
    for (char *line : {lines[0], lines[1]})
      if (std::fgets(line, sizeof lines[0], pipe)) line[std::strcspn(line, " \n")] = 0;
    pclose(pipe);
  }
  return lines[!function];
}

/* ---- what happened in this run, for the report ---- */

struct event {
  unsigned thread;
  const char *what;
  address where, object;
  uint64_t value;
};
enum { MOST_EVENTS = 4096 };
event events[MOST_EVENTS];
size_t event_count;

void note(const char *what, address where, address object, uint64_t value) {
  event &e = events[event_count++ % MOST_EVENTS];
  e = {rl::ctx().threadx_->index_, what, where, object, value};
}

char found[512]; /* why the run failed */

void fail(const char *why, rl::test_result_e result, address at) {
  std::snprintf(found, sizeof found, "%s%s%s", why, at ? " at " : "", at ? where(at) : "");
  rl::ctx().fail_test(why, result, $);
}

/* ---- memory: a cell for each atomic and for each four bytes of plain memory that were touched ---- */

struct cell {
  address at;
  unsigned run;            /* of this run, else free */
  rl::atomic_data *atomic; /* or NULL */
  rl::var_data *plain;     /* or NULL */
  bool written;            /* an atomic, by a thread */
  uint64_t value[rl::atomic_history_size];
  unsigned newest;
};
enum { CELLS = 1 << 16, GRAIN = 4 };
cell cells[CELLS];
unsigned run; /* number of this run */
unsigned used[CELLS], used_count;

struct range {
  address from, to;
};
enum { MOST_RANGES = 64 };
range quiet[MOST_RANGES], freed[MOST_RANGES], blocks[MOST_RANGES];
size_t quiet_count, freed_count, block_count;

bool within(const range *ranges, size_t count, address at) {
  for (size_t i = 0; i < count; i++)
    if (at >= ranges[i].from && at < ranges[i].to) return true;
  return false;
}

void add(range *ranges, size_t &count, const void *from, size_t size) {
  if (count == MOST_RANGES) std::abort();
  ranges[count++] = {(address)from, (address)from + size};
}

cell &cell_at(address at) {
  size_t i = (at / GRAIN * 0x9E3779B97F4A7C15u) >> 48;
  while (cells[i].run == run && cells[i].at != at) i = (i + 1) % CELLS;
  cell &c = cells[i];
  if (c.run != run) {
    c = cell();
    c.at = at;
    c.run = run;
    used[used_count++] = (unsigned)i;
  }
  return c;
}

/* Threads that are processes, see model_process. */
struct mortal {
  unsigned left; /* atomic operations until it is killed; 0: it is not */
  void *death[5];
};
mortal mortals[THREADS];

/* Before each atomic operation. */
void step() {
  if (!in_threads) return;
  mortal &m = mortals[rl::ctx().threadx_->index_];
  if (m.left && --m.left == 0) __builtin_longjmp(m.death, 1);
}

void check_freed(address at, address from) {
  if (freed_count && within(freed, freed_count, at)) fail("use after free", rl::test_result_access_to_freed_memory, from);
}

/* The atomic at an address, whose value before is what the memory holds. */
cell &atomic_at(address at, size_t size) {
  cell &c = cell_at(at);
  if (!c.atomic) {
    uint64_t value = 0;
    std::memcpy(&value, (const void *)at, size);
    rl::context &context = rl::ctx();
    c.atomic = context.atomic_ctor(&c);
    c.newest = context.threadx_->atomic_init(c.atomic);
    rl::atomic_data_impl<THREADS> &data = *static_cast<rl::atomic_data_impl<THREADS> *>(c.atomic);
    for (unsigned i = 0; i < THREADS; i++) data.history_[c.newest].first_seen_order_[i] = (rl::timestamp_t)-1;
    for (unsigned i = 0; i < rl::atomic_history_size; i++)
      if (i != c.newest) data.history_[i].busy_ = false;
    c.value[c.newest] = value;
  }
  return c;
}

void put(cell &c, unsigned index, uint64_t value, size_t size) {
  c.newest = index;
  c.value[index] = value;
  c.written = c.written || in_threads;
  std::memcpy((void *)c.at, &value, size); /* for after, and for whoever looks with a debugger */
  if (in_threads && within(quiet, quiet_count, c.at)) fail("a store to what is declared quiet", rl::test_result_user_assert_failed, 0);
}

uint64_t load(address at, size_t size, int order, address from) {
  step();
  rl::context &context = rl::ctx();
  check_freed(at, from);
  if (!(quiet_count && within(quiet, quiet_count, at))) context.sched();
  cell &c = atomic_at(at, size);
  rl::thread_info_base &thread = *context.threadx_;
  unsigned index = order == __ATOMIC_SEQ_CST   ? thread.atomic_load_seq_cst(c.atomic)
                   : order == __ATOMIC_RELAXED ? thread.atomic_load_relaxed(c.atomic)
                                               : thread.atomic_load_acquire(c.atomic);
  if (index == (unsigned)-1) fail("uninitialised", rl::test_result_unitialized_access, from);
  note(index == c.newest ? "load" : "load of an old value", from, at, c.value[index]);
  return c.value[index];
}

void store(address at, size_t size, uint64_t value, int order, address from) {
  step();
  rl::context &context = rl::ctx();
  check_freed(at, from);
  context.sched();
  cell &c = atomic_at(at, size);
  rl::thread_info_base &thread = *context.threadx_;
  note("store", from, at, value);
  /* A store continues no release sequence, as in C++20, which promises less than C11: Relacy must not know that the last was ours too. */
  rl::atomic_data_impl<THREADS>::history_record &last = static_cast<rl::atomic_data_impl<THREADS> *>(c.atomic)->history_[c.newest];
  const rl::thread_id_t writer = last.thread_id_;
  last.thread_id_ = (thread.index_ + 1) % THREADS;
  const unsigned index = order == __ATOMIC_SEQ_CST   ? thread.atomic_store_seq_cst(c.atomic)
                         : order == __ATOMIC_RELAXED ? thread.atomic_store_relaxed(c.atomic)
                                                     : thread.atomic_store_release(c.atomic);
  last.thread_id_ = writer;
  put(c, index, value, size);
}

void rmw(cell &c, size_t size, uint64_t value, int order) {
  rl::thread_info_base &thread = *rl::ctx().threadx_;
  bool aba;
  put(c,
      order == __ATOMIC_SEQ_CST   ? thread.atomic_rmw_seq_cst(c.atomic, aba)
      : order == __ATOMIC_RELAXED ? thread.atomic_rmw_relaxed(c.atomic, aba)
      : order == __ATOMIC_ACQ_REL ? thread.atomic_rmw_acq_rel(c.atomic, aba)
      : order == __ATOMIC_RELEASE ? thread.atomic_rmw_release(c.atomic, aba)
                                  : thread.atomic_rmw_acquire(c.atomic, aba),
      value, size);
}

/* What an operation makes of the newest value; returns the value before. */
template <class operation>
uint64_t change(address at, size_t size, int order, address from, operation next) {
  step();
  check_freed(at, from);
  rl::ctx().sched();
  cell &c = atomic_at(at, size);
  const uint64_t before = c.value[c.newest];
  note("read-modify-write", from, at, next(before));
  rmw(c, size, next(before), order);
  return before;
}

bool compare_exchange(address at, size_t size, uint64_t &expected, uint64_t wanted, int order, int failure, address from) {
  step();
  check_freed(at, from);
  rl::ctx().sched();
  cell &c = atomic_at(at, size);
  const uint64_t before = c.value[c.newest];
  note(before == expected ? "compare-exchange" : "compare-exchange fails", from, at, before);
  if (before == expected) {
    rmw(c, size, wanted, order);
    return true;
  }
  rl::thread_info_base &thread = *rl::ctx().threadx_;
  if (failure == __ATOMIC_RELAXED)
    thread.atomic_load_relaxed_rmw(c.atomic);
  else if (failure == __ATOMIC_SEQ_CST)
    thread.atomic_load_seq_cst_rmw(c.atomic);
  else
    thread.atomic_load_acquire_rmw(c.atomic);
  expected = before;
  return false;
}

void plain(address at, size_t size, bool write, address from) {
  if (!rl::is_ctx()) return;
  rl::context &context = rl::ctx();
  for (address a = at / GRAIN * GRAIN; a < at + size; a += GRAIN) {
    check_freed(a < at ? at : a, from);
    cell &c = cell_at(a);
    if (!c.plain) c.plain = context.var_ctor();
    if (!(write ? c.plain->store(*context.threadx_) : c.plain->load(*context.threadx_))) {
      note(write ? "race: write" : "race: read", from, at, 0);
      fail("data race", rl::test_result_data_race, from);
    }
  }
}

/* ---- one run ---- */

struct scenario : rl::test_suite<scenario, THREADS> {
  void before() {
    run++;
    used_count = 0;
    quiet_count = freed_count = block_count = event_count = 0;
    model_before();
    for (mortal &m : mortals) m.left = 0;
    in_threads = true;
  }
  void thread(unsigned index) { model_thread(index); }
  void after() {
    in_threads = false;
    model_after();
    for (unsigned i = 0; i < used_count; i++) {
      cell &c = cells[used[i]];
      if (c.atomic) rl::ctx().atomic_dtor(c.atomic);
      if (c.plain) rl::ctx().var_dtor(c.plain);
    }
    if (block_count > freed_count) fail("a leak", rl::test_result_memory_leak, 0);
    for (size_t i = 0; i < freed_count; i++) (std::free)((void *)freed[i].from);
  }
};

void show_events() {
  const size_t first = event_count > 60 ? event_count - 60 : 0;
  for (size_t i = first; i < event_count; i++) {
    const event &e = events[i % MOST_EVENTS];
    std::fprintf(stderr, "  thread %u: %s of %#lx: %lu (%s)\n", e.thread, e.what, (unsigned long)e.object, (unsigned long)e.value,
                 where(e.where));
  }
}

/* Takes what Relacy prints; a buffer of the standard library would be allocated in a run and freed after it. */
struct nowhere : std::streambuf {
  int overflow(int c) { return c == EOF ? 0 : c; }
};

/* The number of the run that failed, 0 when none did. */
unsigned long simulate(unsigned long runs) {
  nowhere buffer;
  std::ostream out(&buffer);
  rl::test_params parameters;
  parameters.iteration_count = runs;
  parameters.output_stream = parameters.progress_stream = &out;
  parameters.execution_depth_limit = 20000;
  parameters.collect_history = true; /* or a failing run is run again for its history, which is kept here */
  parameters.output_history = true;
  found[0] = 0;
  in_threads = false;
  rl::simulate<scenario>(parameters);
  if (parameters.test_result == rl::test_result_success) return 0;
  if (!found[0]) std::snprintf(found, sizeof found, "%s", rl::test_result_str(parameters.test_result));
  return parameters.stop_iteration;
}

/* What of model_unneeded has been seen to be so. */
bool seen_unneeded[MOST_PLACES];

/* Whether something is found when the order of that place is `order`, or need not be; says so. */
bool check_mutant(size_t index, int order, unsigned long runs) {
  const place p = places[index];
  char name[256];
  std::snprintf(name, sizeof name, "%s %s in %s", order_name[p.order], kind_name[p.what], where(p.at, true));
  weak_place = (int)index;
  weak_order = order;
  const unsigned long at = simulate(runs);
  weak_place = -1;
  bool unneeded = false;
  for (size_t i = 0; !at && model_unneeded[i]; i++)
    if (!std::strcmp(name, model_unneeded[i])) unneeded = seen_unneeded[i] = true;
  std::printf("%s: %s, %s as %s: ", model_name, where(p.at), name, order_name[order]);
  if (at)
    std::printf("%s, run %lu\n", found, at);
  else
    std::printf(unneeded ? "nothing found, as declared\n" : "NOTHING FOUND in %lu runs\n", runs);
  std::fflush(stdout);
  return at || unneeded;
}

unsigned long number_after(const char *name, int argc, char **argv, unsigned long otherwise) {
  for (int i = 1; i + 1 < argc; i++)
    if (!std::strcmp(argv[i], name)) return std::strtoul(argv[i + 1], NULL, 10);
  return otherwise;
}

}  // namespace

/* ---- what a scenario calls ---- */

extern "C" {

unsigned model_choose(unsigned count) { return rl::rand(count); }
void model_yield(void) { rl::ctx().yield(1, $); }
void model_quiet(const void *from, size_t size) { add(quiet, quiet_count, from, size); }

int __attribute__((noinline)) model_process(void (*life)(void), unsigned operations) {
  mortal &m = mortals[rl::thread_index()];
  m.left = 1 + rl::rand(operations + 1);
  if (__builtin_setjmp(m.death)) {
    note("killed", HERE, 0, 0);
    return 0;
  }
  life();
  m.left = 0;
  return 1;
}

void model_fail(const char *what, const char *file, int line) {
  const char *name = std::strrchr(file, '/');
  std::snprintf(found, sizeof found, "not true: %s at %s:%d", what, name ? name + 1 : file, line);
  rl::ctx().fail_test("not true", rl::test_result_user_assert_failed, $);
}

/* The library's allocator: freed memory stays, so that whoever touches it is found. */
void *sona_calloc(size_t count, size_t size) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, count * size + 64)) return NULL;
  std::memset(memory, 0, count * size + 64);
  add(blocks, block_count, memory, count * size + 64);
  return memory;
}

void sona_free(void *memory) {
  if (!memory) return;
  const address from = (address)__builtin_return_address(0);
  for (size_t i = 0; i < block_count; i++) {
    if (blocks[i].from != (address)memory) continue;
    for (unsigned k = 0; k < used_count; k++) { /* whoever read or wrote it has finished */
      cell &c = cells[used[k]];
      if (c.at < blocks[i].from || c.at >= blocks[i].to || !c.plain) continue;
      if (!c.plain->store(*rl::ctx().threadx_)) fail("freed while in use", rl::test_result_data_race, from);
    }
    check_freed((address)memory, from);
    add(freed, freed_count, memory, blocks[i].to - blocks[i].from);
    return;
  }
  fail("not a block", rl::test_result_double_free, from);
}

/* ---- what the compiler calls ---- */

void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}

#define ACCESS(name, size)                                                    \
  void __tsan_read##name(void *at) { plain((address)at, size, false, HERE); } \
  void __tsan_write##name(void *at) { plain((address)at, size, true, HERE); }
ACCESS(1, 1)
ACCESS(2, 2)
ACCESS(4, 4)
ACCESS(8, 8)
ACCESS(16, 16)
#define UNALIGNED(size)                                                                 \
  void __tsan_unaligned_read##size(void *at) { plain((address)at, size, false, HERE); } \
  void __tsan_unaligned_write##size(void *at) { plain((address)at, size, true, HERE); }
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)
void __tsan_read_range(void *at, size_t size) { plain((address)at, size, false, HERE); }
void __tsan_write_range(void *at, size_t size) { plain((address)at, size, true, HERE); }

void *model_memcpy(void *to, const void *from, size_t size) {
  plain((address)from, size, false, HERE);
  plain((address)to, size, true, HERE);
  return std::memcpy(to, from, size);
}

#define ATOMIC(bits, type)                                                                                                       \
  type __tsan_atomic##bits##_load(const volatile type *at, int order) {                                                          \
    return (type)load((address)at, sizeof(type), order_at(HERE, LOAD, order), HERE);                                             \
  }                                                                                                                              \
  void __tsan_atomic##bits##_store(volatile type *at, type value, int order) {                                                   \
    store((address)at, sizeof(type), value, order_at(HERE, STORE, order), HERE);                                                 \
  }                                                                                                                              \
  type __tsan_atomic##bits##_exchange(volatile type *at, type value, int order) {                                                \
    return (type)change((address)at, sizeof(type), order_at(HERE, RMW, order), HERE, [=](uint64_t) { return (uint64_t)value; }); \
  }                                                                                                                              \
  type __tsan_atomic##bits##_fetch_add(volatile type *at, type value, int order) {                                               \
    return (type)change((address)at, sizeof(type), order_at(HERE, RMW, order), HERE,                                             \
                        [=](uint64_t v) { return (uint64_t)(type)(v + value); });                                                \
  }                                                                                                                              \
  type __tsan_atomic##bits##_fetch_sub(volatile type *at, type value, int order) {                                               \
    return (type)change((address)at, sizeof(type), order_at(HERE, RMW, order), HERE,                                             \
                        [=](uint64_t v) { return (uint64_t)(type)(v - value); });                                                \
  }                                                                                                                              \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type *at, type *expected, type wanted, int order, int failure) {    \
    uint64_t before = *expected;                                                                                                 \
    const int now = order_at(HERE, RMW, order);                                                                                  \
    if (now < failure) failure = now == __ATOMIC_RELEASE ? __ATOMIC_RELAXED : now;                                               \
    const bool done = compare_exchange((address)at, sizeof(type), before, wanted, now, failure, HERE);                           \
    *expected = (type)before;                                                                                                    \
    return done;                                                                                                                 \
  }                                                                                                                              \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type *at, type *expected, type wanted, int order, int failure) {      \
    return __tsan_atomic##bits##_compare_exchange_strong(at, expected, wanted, order, failure);                                  \
  }
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)

void __tsan_atomic_thread_fence(int order) {
  rl::context &context = rl::ctx();
  order = order_at(HERE, RMW, order);
  if (order == __ATOMIC_SEQ_CST)
    context.atomic_thread_fence_seq_cst();
  else if (order == __ATOMIC_ACQ_REL)
    context.atomic_thread_fence_acq_rel();
  else if (order == __ATOMIC_RELEASE)
    context.atomic_thread_fence_release();
  else if (order != __ATOMIC_RELAXED)
    context.atomic_thread_fence_acquire();
}
void __tsan_atomic_signal_fence(int) {}
}

int main(int argc, char **argv) {
  const unsigned long runs = number_after("--runs", argc, argv, 20000), mutants = number_after("--mutants", argc, argv, runs);
  const unsigned long failed = simulate(runs);
  if (failed) {
    std::printf("%s: %s, run %lu; its last steps:\n", model_name, found, failed);
    std::fflush(stdout);
    show_events();
    return 1;
  }
  std::printf("%s: %lu runs, nothing found\n", model_name, runs);
  std::fflush(stdout);
  if (!mutants || !model_weakens) return 0;
  const size_t count = place_count;
  size_t survived = 0, tried = 0;
  for (size_t i = 0; i < count; i++) {
    const place p = places[i];
    int weaker[2], n = 0;
    if (p.order == __ATOMIC_SEQ_CST || p.order == __ATOMIC_ACQ_REL) {
      if (p.what != LOAD) weaker[n++] = __ATOMIC_RELEASE;
      if (p.what != STORE) weaker[n++] = __ATOMIC_ACQUIRE;
    } else if (p.order != __ATOMIC_RELAXED) {
      weaker[n++] = __ATOMIC_RELAXED;
    }
    for (int k = 0; k < n; k++, tried++) survived += !check_mutant(i, weaker[k], mutants);
  }
  for (size_t i = 0; model_unneeded[i]; i++)
    if (!seen_unneeded[i]) std::printf("%s: %s is DECLARED as not needed, and is\n", model_name, model_unneeded[i]), survived++;
  std::printf("%s: %zu weaker orders, %zu not told from the right ones\n", model_name, tried, survived);
  return survived != 0;
}
