/* Nanoseconds a record from one thread to another, ours against other queues: short bursts, one queue after the other in rotating order,
 * and the median over the rounds of peer / ours, because load on a shared machine slows all of them together.
 * Whether the two cores share a cache decides as much as the queue does: a line takes 25 ns to the other one or 160, and a virtual machine
 * may change between the two while this runs.
 *
 *   bench_ring [--json] [--rounds N]
 *
 * A queue that is not part of this program joins when SONA_RING_PEER names a shared object that exports `struct queue sona_ring_peer`,
 * laid out as below.  Its targets are meant for a good SPSC queue of fixed slots. */
#define _GNU_SOURCE /* CPU affinity; POSIX clocks and threads */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sona/ring.h"

/* A queue of `slots` records of `size` bytes, size a multiple of 8.  produce sends `count` copies of `record`, whose first word it sets to
 * 0, 1, 2, ...; consume returns the sum over the received records of sum_record.  Whole loops, so that a queue's own inlining counts. */
struct queue {
  const char *name;
  void *(*create)(size_t size, size_t slots);
  void (*destroy)(void *queue);
  void (*produce)(void *queue, uint64_t *record, size_t size, size_t count);
  uint64_t (*consume)(void *queue, size_t size, size_t count);
};

/* One word of each 64-byte line: a consumer that looks at the whole record and computes little. */
static inline uint64_t sum_record(const uint64_t *record, size_t size) {
  uint64_t sum = 0;
  for (size_t w = 0; w < size / 8; w += 8) sum += record[w];
  return sum;
}

/* Spins, but gives the core away when the other side seems to need it. */
static inline void wait_a_little(unsigned *turns) {
  if (++*turns % 4096 == 0) sched_yield();
}

/* ---- ours: copied in, read in place; with records of one size, as the peers have, and of any ---- */

static void *ours_create(size_t capacity, size_t record) {
  sona_ring_options options = {.capacity = 16};
  while (options.capacity * 2 <= capacity) options.capacity *= 2; /* never more room than the peers have */
  sona_ring *ring = NULL;
  sona_status status = record ? sona_ring_create_fixed(&options, record, &ring) : sona_ring_create(&options, &ring);
  return status == SONA_OK ? ring : NULL;
}

static void *one_size_create(size_t size, size_t slots) { return ours_create(size * slots, size); }
static void *any_size_create(size_t size, size_t slots) { return ours_create((size + SONA_RING_HEADER) * slots, 0); }
static void ours_destroy(void *queue) { sona_ring_destroy(queue); }

/* Inlined with a constant size, which a caller with a struct to send or one size to receive has too; 0: known to the ring alone. */
static inline void ours_send(sona_ring *ring, uint64_t *record, size_t size, size_t count) {
  unsigned turns = 0;
  for (size_t i = 0; i < count; i++) {
    record[0] = i;
    while (sona_ring_push(ring, record, size) != SONA_OK) wait_a_little(&turns);
  }
}

static void ours_produce(void *queue, uint64_t *record, size_t size, size_t count) {
  if (size == 8) ours_send(queue, record, 8, count);
  if (size == 1024) ours_send(queue, record, 1024, count);
}

static inline uint64_t ours_receive(sona_ring *ring, size_t known, size_t count) {
  unsigned turns = 0;
  uint64_t sum = 0;
  for (size_t i = 0; i < count; i++) {
    const void *record;
    size_t size;
    while (!(record = sona_ring_peek(ring, &size))) wait_a_little(&turns);
    sum += sum_record(record, known ? known : size);
    sona_ring_release(ring);
  }
  return sum;
}

static uint64_t one_size_consume(void *queue, size_t size, size_t count) {
  if (size == 8) return ours_receive(queue, 8, count);
  if (size == 1024) return ours_receive(queue, 1024, count);
  return 0;
}

static uint64_t any_size_consume(void *queue, size_t size, size_t count) {
  (void)size;
  return ours_receive(queue, 0, count);
}

/* ---- what the atomics and the layout buy: the same queue with sequentially consistent indices, side by side, never cached ---- */

struct plain {
  atomic_size_t tail, head;
  size_t slots; /* a power of two */
  char *data;   /* (slots, size) */
};

static void *plain_create(size_t size, size_t slots) {
  struct plain *plain = malloc(sizeof *plain);
  atomic_init(&plain->tail, 0);
  atomic_init(&plain->head, 0);
  plain->slots = slots;
  plain->data = calloc(slots, size);
  return plain;
}

static void plain_destroy(void *queue) {
  free(((struct plain *)queue)->data);
  free(queue);
}

static void plain_produce(void *queue, uint64_t *record, size_t size, size_t count) {
  struct plain *plain = queue;
  unsigned turns = 0;
  for (size_t i = 0; i < count; i++) {
    record[0] = i;
    while (atomic_load(&plain->tail) - atomic_load(&plain->head) == plain->slots) wait_a_little(&turns);
    memcpy(plain->data + (atomic_load(&plain->tail) & (plain->slots - 1)) * size, record, size);
    atomic_store(&plain->tail, atomic_load(&plain->tail) + 1);
  }
}

static uint64_t plain_consume(void *queue, size_t size, size_t count) {
  struct plain *plain = queue;
  unsigned turns = 0;
  uint64_t sum = 0;
  for (size_t i = 0; i < count; i++) {
    while (atomic_load(&plain->tail) == atomic_load(&plain->head)) wait_a_little(&turns);
    const void *record = plain->data + (atomic_load(&plain->head) & (plain->slots - 1)) * size;
    sum += sum_record(record, size);
    atomic_store(&plain->head, atomic_load(&plain->head) + 1);
  }
  return sum;
}

/* ---- what most programs use: a deque behind a mutex ---- */

struct locked {
  pthread_mutex_t mutex;
  size_t tail, head, slots;
  char *data; /* (slots, size) */
};

static void *locked_create(size_t size, size_t slots) {
  struct locked *locked = malloc(sizeof *locked);
  pthread_mutex_init(&locked->mutex, NULL);
  locked->tail = locked->head = 0;
  locked->slots = slots;
  locked->data = calloc(slots, size);
  return locked;
}

static void locked_destroy(void *queue) {
  struct locked *locked = queue;
  pthread_mutex_destroy(&locked->mutex);
  free(locked->data);
  free(locked);
}

static void locked_produce(void *queue, uint64_t *record, size_t size, size_t count) {
  struct locked *locked = queue;
  unsigned turns = 0;
  for (size_t i = 0; i < count;) {
    record[0] = i;
    pthread_mutex_lock(&locked->mutex);
    int room = locked->tail - locked->head < locked->slots;
    if (room) memcpy(locked->data + locked->tail++ % locked->slots * size, record, size);
    pthread_mutex_unlock(&locked->mutex);
    i += (size_t)room;
    if (!room) wait_a_little(&turns);
  }
}

static uint64_t locked_consume(void *queue, size_t size, size_t count) {
  struct locked *locked = queue;
  unsigned turns = 0;
  uint64_t sum = 0;
  for (size_t i = 0; i < count;) {
    pthread_mutex_lock(&locked->mutex);
    int any = locked->tail != locked->head;
    if (any) sum += sum_record((const void *)(locked->data + locked->head++ % locked->slots * size), size);
    pthread_mutex_unlock(&locked->mutex);
    i += (size_t)any;
    if (!any) wait_a_little(&turns);
  }
  return sum;
}

/* ---- the measurement ---- */

enum { OURS = 2, QUEUES = 5, MAX_ROUNDS = 1001 };

static const struct queue own_queues[] = {
    {"one size", one_size_create, ours_destroy, ours_produce, one_size_consume},
    {"any size", any_size_create, ours_destroy, ours_produce, any_size_consume},
    {"seq_cst ring", plain_create, plain_destroy, plain_produce, plain_consume},
    {"mutex deque", locked_create, locked_destroy, locked_produce, locked_consume},
};

/* Bursts of a fraction of a millisecond: shorter than a time slice of a busy machine.  The targets are the least peer / ours, with
 * records of one size on both sides; 0: none. */
static const struct shape {
  const char *name;
  size_t size, slots, count; /* of a burst */
  double targets[QUEUES];
} shapes[] = {
    {"8 B", 8, 1024, 20000, {0, 0, 0, 0, 1.0}},
    {"1 KB", 1024, 256, 2000, {0, 0, 0, 0, 0.95}},
};

/* What the producer thread does next; `turn` counts bursts and is odd while one runs. */
static struct burst {
  const struct queue *queue;
  void *instance;
  size_t size, count;
  atomic_size_t turn;
} burst;

static void pin(int cpu) {
#ifdef __linux__
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  for (int i = 0; i < CPU_SETSIZE; i++) {
    if (!CPU_ISSET(i, &allowed) || cpu-- > 0) continue;
    CPU_ZERO(&one);
    CPU_SET(i, &one);
    sched_setaffinity(0, sizeof one, &one);
    return;
  }
#else
  (void)cpu;
#endif
}

static void *producer(void *unused) {
  (void)unused;
  static uint64_t record[128];
  pin(1);
  for (size_t turn = 1;; turn += 2) {
    unsigned turns = 0;
    while (atomic_load(&burst.turn) != turn) wait_a_little(&turns);
    if (!burst.queue) return NULL;
    burst.queue->produce(burst.instance, record, burst.size, burst.count);
    atomic_store(&burst.turn, turn + 1);
  }
}

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds a record. */
static double run_burst(const struct queue *queue, void *instance, const struct shape *shape) {
  burst.queue = queue;
  burst.instance = instance;
  burst.size = shape->size;
  burst.count = shape->count;
  uint64_t want = (uint64_t)shape->count * (shape->count - 1) / 2;
  double start = now_ns();
  atomic_fetch_add(&burst.turn, 1);
  uint64_t sum = queue->consume(instance, shape->size, shape->count);
  double elapsed = now_ns() - start;
  unsigned turns = 0;
  while (atomic_load(&burst.turn) % 2) wait_a_little(&turns);
  if (sum != want) {
    fprintf(stderr, "bench_ring: %s lost or changed a record\n", queue->name);
    exit(1);
  }
  return elapsed / (double)shape->count;
}

static int ascending(const void *a, const void *b) {
  return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static double median(double *values, size_t count) {
  qsort(values, count, sizeof *values, ascending);
  return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static void print_row(int json, const char *name, const char *mode, double ours, const char *peer, double ratio, double target) {
  const char *verdict = target == 0 ? "" : ratio >= target ? "ok" : "MISSED";
  char goal[32] = "";
  if (target > 0) snprintf(goal, sizeof goal, json ? "%.2f" : ">= %.2f", target);
  if (json) {
    printf("{\"bench\":\"ring\",\"case\":\"%s, %s\",\"ns\":%.2f,\"peer\":\"%s\",\"ratio\":%.3f,\"target\":%s,\"pass\":%s}\n", name, mode,
           ours, peer, ratio, *goal ? goal : "null", ratio >= target ? "true" : "false");
  } else {
    printf("ring  %4s, %s  %8.1f ns   %-18s %7.2fx  %s %s\n", name, mode, ours, peer, ratio, goal, verdict);
  }
}

int main(int argc, char **argv) {
  int json = 0;
  size_t rounds = 101;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--json") == 0) {
      json = 1;
    } else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
      rounds = (size_t)strtoul(argv[++i], NULL, 10);
    } else {
      rounds = 0;
    }
  }
  if (rounds < 1 || rounds > MAX_ROUNDS) {
    fprintf(stderr, "usage: bench_ring [--json] [--rounds 1..%d]\n", MAX_ROUNDS);
    return 2;
  }

  struct queue queues[QUEUES];
  size_t queue_count = sizeof own_queues / sizeof *own_queues;
  memcpy(queues, own_queues, sizeof own_queues);
  const char *path = getenv("SONA_RING_PEER");
  if (path && *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct queue *peer = library ? dlsym(library, "sona_ring_peer") : NULL;
    if (!peer) {
      fprintf(stderr, "bench_ring: SONA_RING_PEER: %s\n", dlerror());
      return 2;
    }
    queues[queue_count++] = *peer;
  }

  pthread_t thread;
  if (pthread_create(&thread, NULL, producer, NULL) != 0) return 1;
  pin(0);

  static double ns[QUEUES][MAX_ROUNDS];
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    const struct shape *shape = &shapes[s];
    void *instances[QUEUES];
    for (size_t q = 0; q < queue_count; q++) {
      instances[q] = queues[q].create(shape->size, shape->slots);
      if (!instances[q]) {
        fprintf(stderr, "bench_ring: %s cannot be created\n", queues[q].name);
        return 1;
      }
      run_burst(&queues[q], instances[q], shape); /* touches its memory */
    }
    for (size_t round = 0; round < rounds; round++) {
      for (size_t i = 0; i < queue_count; i++) {
        size_t q = (round + i) % queue_count;
        ns[q][round] = run_burst(&queues[q], instances[q], shape);
      }
    }
    for (size_t q = 0; q < queue_count; q++) queues[q].destroy(instances[q]);
    for (size_t ours = 0; ours < OURS; ours++) {
      for (size_t q = OURS; q < queue_count; q++) {
        double ratios[MAX_ROUNDS], own[MAX_ROUNDS];
        for (size_t round = 0; round < rounds; round++) {
          own[round] = ns[ours][round];
          ratios[round] = ns[q][round] / own[round];
        }
        print_row(json, shape->name, queues[ours].name, median(own, rounds), queues[q].name, median(ratios, rounds),
                  ours == 0 ? shape->targets[q] : 0);
      }
    }
  }
  burst.queue = NULL;
  atomic_fetch_add(&burst.turn, 1);
  pthread_join(thread, NULL);
  return 0;
}
