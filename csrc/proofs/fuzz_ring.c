/* The ring against a plain queue: what comes out, what is counted, and what each call answers. */
#include "fuzz.h"
#include "sona/ring.h"

enum { MOST = 600, LONGEST = 64 };

typedef struct record {
  size_t size;
  uint8_t first; /* byte i of the record is first + i */
} record;

static record queue[MOST];
static size_t from, to; /* of the queue */

static void fill(void *room, size_t size, uint8_t first) {
  for (size_t i = 0; i < size; i++) ((uint8_t *)room)[i] = (uint8_t)(first + i);
}

static void check_oldest(const void *data, size_t size) {
  PROMISE(from < to && queue[from].size == size);
  for (size_t i = 0; i < size; i++) PROMISE(((const uint8_t *)data)[i] == (uint8_t)(queue[from].first + i));
}

static void run(input *in) {
  const sona_ring_options options = {.capacity = (size_t)take(in, 2),
                                     .max_records = choose(in, 4),
                                     .first = (size_t)0 - 8 * choose(in, 8),
                                     .own_producer = (int)choose(in, 2)};
  const size_t fixed = choose(in, LONGEST);
  sona_ring *ring = NULL;
  const sona_status made = fixed ? sona_ring_create_fixed(&options, fixed, &ring) : sona_ring_create(&options, &ring);
  if (made != SONA_OK) {
    PROMISE(made == SONA_EINVAL && ring == NULL);
    return;
  }
  uint64_t dropped = 0;
  size_t reserved = SIZE_MAX; /* bytes */
  void *room = NULL;
  int peeked = 0;
  from = to = 0;
  while (in->left && to < MOST) {
    const size_t size = choose(in, 5) ? (fixed ? fixed : choose(in, LONGEST)) : (size_t)take(in, 2);
    const int fits = fixed ? size == fixed : size <= sona_ring_max_record(ring);
    const uint8_t first = (uint8_t)take(in, 1);
    uint8_t data[LONGEST + 1];
    size_t got = 99;
    sona_status status;
    switch (choose(in, 7)) {
      case 0: {
        if (size > LONGEST) break;
        fill(data, size, first);
        status = sona_ring_push(ring, data, size);
        PROMISE(status == (fits ? status : SONA_EINVAL) && (status == SONA_OK || status == SONA_EFULL || status == SONA_EINVAL));
        PROMISE(!fits || status != SONA_EINVAL);
        if (status == SONA_OK) queue[to++] = (record){size, first};
        if (status == SONA_OK) reserved = SIZE_MAX;
        if (status == SONA_EFULL) {
          PROMISE(from < to); /* whatever fits fits into an empty ring */
          dropped++;
        }
        break;
      }
      case 1: {
        void *const before = room;
        status = sona_ring_reserve(ring, size, &room);
        PROMISE(fits ? status == SONA_OK || status == SONA_EFULL : status == SONA_EINVAL);
        if (status == SONA_OK) {
          PROMISE((uintptr_t)room % 8 == 0);
          memset(room, 0xEE, size);
          reserved = size;
        } else {
          PROMISE(room == before);
        }
        if (status == SONA_EFULL) {
          PROMISE(from < to); /* whatever fits fits into an empty ring */
          dropped++;
        }
        break;
      }
      case 2: {
        const size_t less = fixed || !size ? size : size - choose(in, 3) % (size + 1);
        if (reserved != SIZE_MAX && less <= reserved) fill(room, less, first);
        status = sona_ring_commit(ring, less);
        if (reserved == SIZE_MAX) PROMISE(status == SONA_EINVAL);
        if (reserved != SIZE_MAX && less <= reserved && (!fixed || less == fixed)) PROMISE(status == SONA_OK);
        if (status == SONA_OK && less > reserved) fill((uint8_t *)room, less, first); /* within what was rounded up; nobody else looks */
        if (status == SONA_OK) {
          PROMISE(less <= (reserved + 7) / 8 * 8);
          queue[to++] = (record){less, first};
          reserved = SIZE_MAX;
        }
        break;
      }
      case 3: {
        const void *oldest = sona_ring_peek(ring, &got);
        PROMISE((oldest != NULL) == (from < to));
        if (oldest) check_oldest(oldest, got);
        peeked = oldest != NULL;
        break;
      }
      case 4: {
        sona_ring_release(ring);
        from += (size_t)peeked;
        peeked = 0;
        break;
      }
      case 5: {
        const size_t want = from < to ? queue[from].size : 0;
        const int popped = sona_ring_pop(ring, data, LONGEST, &got);
        PROMISE(got == want && popped == (from < to && want <= LONGEST));
        if (popped) check_oldest(data, got);
        from += (size_t)popped;
        peeked = !popped && from < to;
        break;
      }
      case 6: PROMISE(sona_ring_used(ring) <= sona_ring_capacity(ring)); break;
    }
    PROMISE(sona_ring_records(ring) == to - from);
    PROMISE(sona_ring_dropped(ring) == dropped);
  }
  sona_ring_destroy(ring);
}
