/* The swap of versions of adapter.c: readers pin a block by a hazard pointer, the writer fills a block that is neither current nor pinned
 * and makes it current.  READERS + 2 blocks.
 *
 * Holds: the writer always finds a block; it never writes into one that a reader reads; a reader sees one version, and never an older one
 * than before.
 * Broken twins, each of which has to fail:
 *   -DNO_LOOK_AGAIN   the reader does not load `current` again after it has pinned
 *   -DBUFFERED        the pin waits in a store buffer while `current` is loaded: what seq_cst between the two forbids
 *   -DNO_SCAN         the writer does not look at the pins
 *   -DMOVING_PINS     it looks at them once for each block: a reader that moves on meanwhile may then keep two blocks from it
 *   -DFEW_BLOCKS      one block less */
#define READERS 2
#ifdef FEW_BLOCKS
#define BLOCKS (READERS + 1)
#else
#define BLOCKS (READERS + 2)
#endif
#ifndef VERSIONS
#define VERSIONS 4
#endif
#ifndef LOOKS
#define LOOKS 2
#endif
#define NONE 255
#if defined(NO_SCAN)
#define PIN(i) NONE
#elif defined(MOVING_PINS)
#define PIN(i) held[i]
#else
#define PIN(i) pins[i]
#endif

byte down[BLOCKS], up[BLOCKS]; /* two rows of each block: a version is whole when they are equal */
byte current = 0;
byte held[READERS] = NONE;
byte reading[BLOCKS]; /* ghost: readers that believe they may read */

active proctype writer() {
  byte v = 1, b, i, pins[READERS];
  bool pinned;
  do
    :: v > VERSIONS -> break
    :: else ->
#ifndef MOVING_PINS
      for (i : 0 .. READERS - 1) {
        pins[i] = held[i]
      }
#endif
      b = 0;
      do /* the first block that is free */
        :: b == BLOCKS -> break
        :: else ->
          pinned = (b == current);
          i = 0;
          do
            :: i == READERS || pinned -> break
            :: else ->
              pinned = (PIN(i) == b);
              i++
          od;
          if
            :: pinned -> b++
            :: else -> break
          fi
      od;
      assert(b < BLOCKS);
      assert(reading[b] == 0);
      down[b] = v;
      assert(reading[b] == 0);
      up[b] = v;
      assert(reading[b] == 0);
      current = b;
      v++
  od
}

active [READERS] proctype reader() {
  byte me = _pid - 1, seen, pin = NONE, newest = 0, v, looks = 0;
  do
    :: looks == LOOKS -> break
    :: else ->
      seen = current;
      do
        :: pin == seen -> break
        :: else ->
          pin = seen;
#ifdef BUFFERED
          if
            :: held[me] = pin; seen = current
            :: seen = current; held[me] = pin
          fi
#else
          held[me] = pin;
#ifndef NO_LOOK_AGAIN
          seen = current
#endif
#endif
      od;
      reading[pin]++;
      v = down[pin];
      assert(up[pin] == v);
      assert(v >= newest);
      newest = v;
      reading[pin]--;
      looks++;
      if
        :: pin = NONE; held[me] = NONE /* let go */
        :: true
      fi
  od
}
