/* kill -9 of either side at random moments: every record whose commit has returned arrives exactly once and whole, in order, and the other
 * side goes on.  Both sides note what they did in memory that outlives them.  SONA_TEST_ROUNDS=50 kills fifty times as often. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "../src/random.h"
#include "check.h"
#include "scratch.h"
#include "sona/shared_ring.h"

enum { CAPACITY = 16384 };

static size_t records; /* room in what is noted by number */
static struct notes {
  _Atomic uint64_t *committed; /* the seed of a record whose commit has returned */
  _Atomic uint64_t *arrived;   /* and of one that the consumer has taken */
  _Atomic uint64_t taken;      /* what a learner keeps with its state: the number up to which it has taken them */
  _Atomic uint64_t twice, torn, disordered, refused;
} *notes;

static void *lasting(size_t size) {
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) exit(1);
  return memory;
}

/* Size and bytes of a record are decided by its seed, which stands in front. */
static size_t size_of(uint64_t seed) { return 8 + (seed * 0x9e3779b97f4a7c15u >> 54) % 700; }
static unsigned char byte_of(uint64_t seed, size_t i) { return (unsigned char)(seed * 31 + i * 7); }

static void produce(const char *path, uint64_t life, uint64_t most) {
  sona_shared_ring *ring = NULL;
  while (sona_shared_ring_open(path, SONA_PRODUCER, CAPACITY, &ring) != SONA_OK) atomic_fetch_add(&notes->refused, 1);
  for (uint64_t i = 1; i <= most; i++) {
    const uint64_t seed = life << 32 | i;
    const size_t size = size_of(seed);
    void *record;
    uint64_t sequence = 0;
    while (sona_shared_ring_reserve(ring, size, &record) != SONA_OK) sched_yield();
    memcpy(record, &seed, 8);
    for (size_t k = 8; k < size; k++) ((unsigned char *)record)[k] = byte_of(seed, k);
    if (sona_shared_ring_commit(ring, size, &sequence) != SONA_OK || sequence >= records) break;
    atomic_store(&notes->committed[sequence], seed);
  }
  sona_shared_ring_close(ring);
}

/* Takes what is there, `idle` rounds of nothing long. */
static void consume(const char *path, uint64_t idle) {
  sona_shared_ring *ring = NULL;
  while (sona_shared_ring_open(path, SONA_CONSUMER, CAPACITY, &ring) != SONA_OK) atomic_fetch_add(&notes->refused, 1);
  uint64_t last = 0, sequence = 0;
  for (uint64_t waited = 0, held = 0; waited < idle;) {
    size_t size;
    const unsigned char *record = sona_shared_ring_next(ring, &size, &sequence);
    if (!record) {
      sona_shared_ring_release(ring);
      waited++;
      sched_yield();
      continue;
    }
    waited = 0;
    uint64_t seed = 0;
    int whole = size >= 8;
    if (whole) memcpy(&seed, record, 8);
    whole = whole && size == size_of(seed);
    for (size_t k = 8; whole && k < size; k++) whole = record[k] == byte_of(seed, k);
    if (!whole) atomic_fetch_add(&notes->torn, 1);
    if (sequence <= last || sequence >= records) atomic_fetch_add(&notes->disordered, 1);
    last = sequence;
    if (sequence > atomic_load(&notes->taken) && sequence < records) { /* else a consumer before this one had it */
      if (atomic_load(&notes->arrived[sequence])) atomic_fetch_add(&notes->twice, 1);
      /* Two stores are no transaction: one that was killed between them is made up for.  A learner has one. */
      atomic_store(&notes->taken, sequence);
      atomic_store(&notes->arrived[sequence], seed);
    } else if (sequence < records) {
      atomic_store(&notes->arrived[sequence], seed);
    }
    if (++held % 8 == 0) sona_shared_ring_release(ring);
  }
  sona_shared_ring_close(ring);
}

static pid_t start(int side, const char *path, uint64_t life) {
  const pid_t child = fork();
  if (child) return child;
  if (side == SONA_PRODUCER)
    produce(path, life, UINT32_MAX);
  else
    consume(path, UINT64_MAX);
  _exit(0);
}

int main(void) {
  records = (size_t)scratch_rounds(1 << 20);
  notes = lasting(sizeof *notes);
  notes->committed = lasting(records * sizeof(uint64_t));
  notes->arrived = lasting(records * sizeof(uint64_t));
  const char *path = scratch_path();
  sona_random rng;
  sona_random_seed(&rng, (uint64_t)time(NULL));
  pid_t sides[2];
  uint64_t life = 1;
  for (int side = 0; side < 2; side++) sides[side] = start(side, path, life++);
  const int rounds = scratch_rounds(60);
  for (int round = 0; round < rounds; round++) {
    const struct timespec moment = {0, (long)(sona_random_next(&rng) % 3000000)};
    nanosleep(&moment, NULL);
    const int side = (int)(sona_random_next(&rng) % 2);
    kill(sides[side], SIGKILL);
    waitpid(sides[side], NULL, 0);
    sides[side] = start(side, path, life++);
  }
  const struct timespec a_while = {0, 20000000};
  nanosleep(&a_while, NULL);
  for (int side = 0; side < 2; side++) {
    kill(sides[side], SIGKILL);
    waitpid(sides[side], NULL, 0);
  }
  consume(path, 2); /* the rest, through a handle that finds what they left */
  uint64_t committed = 0, lost = 0, changed = 0;
  for (size_t i = 0; i < records; i++) {
    const uint64_t want = atomic_load(&notes->committed[i]), got = atomic_load(&notes->arrived[i]);
    committed += want != 0;
    lost += want && !got;
    changed += want && got && want != got;
  }
  CHECK(committed > (uint64_t)rounds);
  CHECK_EQ(lost, 0);
  CHECK_EQ(changed, 0);
  CHECK_EQ(atomic_load(&notes->twice), 0);
  CHECK_EQ(atomic_load(&notes->torn), 0);
  CHECK_EQ(atomic_load(&notes->disordered), 0);
  sona_shared_ring *ring = NULL;
  CHECK_EQ(sona_shared_ring_open(path, SONA_CONSUMER, 0, &ring), SONA_OK);
  CHECK_EQ(sona_shared_ring_damaged(ring), 0);
  CHECK_EQ(sona_shared_ring_used(ring), 0);
  sona_shared_ring_close(ring);
  return check_done("shared_ring_kill");
}
