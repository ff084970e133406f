/* The ring of ring.c: records of different sizes, the skip at the end, free-running indices that wrap, full and empty.
 *
 * Memory is CELLS cells, an index is a byte that wraps at 256.  A record is a header (its size and number, or SKIP) and 0 to 3 cells that
 * hold its number.  Each statement is one step of one side; both keep what they last saw of the other's index, as the code does.
 *
 * Holds: the consumer gets every accepted record, whole, in order, once; a cell is written only while the producer owns it; both sides end.
 * Broken twins, each of which has to fail:
 *   -DEARLY_TAIL      tail is published before the record is written
 *   -DEARLY_HEAD      the record is released before it has been read
 *   -DSKIP_IS_FREE    cells that are skipped at the end do not count
 *   -DONE_TOO_MANY    full is seen one cell too late */
#ifndef RECORDS
#define RECORDS 4
#endif
#define CELLS 8
#define MOST 3 /* cells of a record without its header: half of the ring, less the header */
#define SKIP 99
#define START 250 /* six steps before the indices wrap */
#define AT(index) ((index) & (CELLS - 1))

byte cell[CELLS];  /* a header's size, SKIP, or the number of the record */
bool busy[CELLS];  /* ghost: holds what the consumer has not released */
byte number[CELLS]; /* in a header: number of its record */
byte tail = START, head = START;
byte accepted, given, dropped; /* ghost */
bool done;

#ifdef ONE_TOO_MANY
#define SLACK 1
#else
#define SLACK 0
#endif

inline write(index, value) {
  assert(!busy[AT(index)]);
  cell[AT(index)] = value;
}

active proctype producer() {
  byte limit = (START + CELLS) & 255, need, gap, size, i, at, n = 1;
  do
    :: n > RECORDS -> break
    :: else ->
      select(size : 0 .. MOST);
      need = size + 1;
      gap = 0;
      if
        :: need > CELLS - AT(tail) -> gap = CELLS - AT(tail)
        :: else
      fi;
#ifdef SKIP_IS_FREE
#define WANTED need
#else
#define WANTED (need + gap)
#endif
      if
        :: ((limit - tail) & 255) + SLACK < WANTED -> limit = head + CELLS
        :: else
      fi;
      if
        :: ((limit - tail) & 255) + SLACK < WANTED -> dropped++
        :: else ->
#ifdef EARLY_TAIL
          at = tail + gap;
          if
            :: gap -> write(tail, SKIP)
            :: else
          fi;
          tail = tail + gap + need;
#else
          if
            :: gap -> write(tail, SKIP)
            :: else
          fi;
          at = tail + gap;
#endif
          for (i : 1 .. size) {
            write(at + i, accepted + 1)
          }
          write(at, size);
          d_step {
            number[AT(at)] = accepted + 1;
            accepted++;
            i = 0;
            do
              :: i < need -> busy[AT(at + i)] = true; i++
              :: else -> break
            od
          };
#ifndef EARLY_TAIL
          tail = tail + gap + need;
#endif
      fi;
      n++
  od;
  done = true
}

active proctype consumer() {
  byte seen = START, front, size, i;
  bool last;
  do
    :: last = done; /* before the look: what came before it is seen */
      if
        :: head == seen -> seen = tail
        :: else
      fi;
      if
        :: head == seen ->
          if
            :: last -> break
            :: else
          fi
        :: else ->
          front = head;
          size = cell[AT(front)];
          if
            :: size == SKIP ->
              front = front + (CELLS - AT(front));
              size = cell[AT(front)]
            :: else
          fi;
          assert(size <= MOST);
          assert(number[AT(front)] == given + 1);
#ifdef EARLY_HEAD
          d_step {
            i = 0;
            do
              :: i <= size -> busy[AT(front + i)] = false; i++
              :: else -> break
            od
          };
          head = front + 1 + size;
#endif
          for (i : 1 .. size) {
            assert(cell[AT(front + i)] == given + 1)
          }
          given++;
#ifndef EARLY_HEAD
          d_step {
            i = 0;
            do
              :: i <= size -> busy[AT(front + i)] = false; i++
              :: else -> break
            od
          };
          head = front + 1 + size
#endif
      fi
  od;
  assert(given == accepted && accepted + dropped == RECORDS)
}
