/* The shared ring of shared_ring_core.h between two processes that may both die at any step and be started again.
 *
 * Memory is CELLS units, an index is a byte that wraps at 256.  A record is a header (size, or SKIP, and sequence) and 0 to 1 units that hold
 * its sequence.  What a process knew is gone when it dies; what it had stored stays.
 *
 * Holds: the consumer gets every committed record whole and in order, again only when it died before it released it; no number is given
 * twice; neither side writes or reads what is the other's; both end.
 * Broken twins, each of which has to fail:
 *   -DTAIL_FIRST       tail is published before the record is written
 *   -DNUMBER_LATE      the sequence is stored after tail: a producer that dies between gives a number twice
 *   -DRELEASE_FIRST    records are released before they have been read
 *   -DSTART_AT_TAIL    a consumer that starts again begins at tail
 *   -DTRUST_OLD_HEAD   a producer that starts again believes that the ring is empty */
#ifndef RECORDS
#define RECORDS 3
#endif
#define CELLS 4
#define SKIP 99
#define START 253
#define DEATHS 1
#define AT(index) ((index) & (CELLS - 1))
#define AHEAD(a, b) (((b) - (a)) & 255)

/* The file. */
byte size[CELLS], number[CELLS]; /* of a header; in a unit behind it `number` is the content */
byte tail = START, head = START, sequence;

/* Ghosts. */
byte tried;              /* records that a producer has set about */
byte committed;          /* largest sequence whose commit is over */
byte published;          /* largest that is behind tail */
byte released;           /* largest that is before head */
bool taken[CELLS];       /* holds what is not released */
bool stopped;            /* no producer any more */
byte producer_deaths = DEATHS, consumer_deaths = DEATHS;

#define STEP(action, deaths)                   \
  if                                           \
    :: action                                  \
    :: deaths > 0 -> deaths--; goto born_again \
  fi

inline take_back(from, to) { /* units from .. to are free */
  byte unit = from;
  do
    :: unit == to -> break
    :: else -> taken[AT(unit)] = false; unit = (unit + 1) & 255
  od
}

active proctype producer() {
  byte end, mine, seen, gap, need, at;
born_again:
  end = tail;
  mine = sequence;
#ifdef TRUST_OLD_HEAD
  seen = end;
#else
  seen = head;
#endif
  do
    :: tried == RECORDS -> break
    :: else ->
      tried++;
      select(need : 1 .. 2);
      gap = (need > CELLS - AT(end) -> CELLS - AT(end) : 0);
      if
        :: CELLS - AHEAD(seen, end) < gap + need -> seen = head
        :: else
      fi;
      if
        :: CELLS - AHEAD(seen, end) < gap + need
        :: else ->
          mine++;
#ifdef TAIL_FIRST
          STEP(tail = (end + gap + need) & 255, producer_deaths);
#endif
          at = end + gap;
          if
            :: gap > 0 -> assert(!taken[AT(end)]); STEP(size[AT(end)] = SKIP, producer_deaths)
            :: else
          fi;
          if
            :: need == 2 -> assert(!taken[AT(at + 1)]); STEP(number[AT(at + 1)] = mine, producer_deaths)
            :: else
          fi;
          assert(!taken[AT(at)]);
          STEP(size[AT(at)] = need, producer_deaths);
          STEP(number[AT(at)] = mine, producer_deaths);
#ifndef NUMBER_LATE
          STEP(sequence = mine, producer_deaths);
#endif
          end = (at + need) & 255;
          if
            :: d_step {
                 assert(mine > published);
                 tail = end;
                 published = mine;
                 taken[AT(at)] = true;
                 if
                   :: need == 2 -> taken[AT(at + 1)] = true
                   :: else
                 fi;
                 if
                   :: gap > 0 -> taken[AT(at - gap)] = true
                   :: else
                 fi
               }
            :: producer_deaths > 0 -> producer_deaths--; goto born_again
          fi;
#ifdef NUMBER_LATE
          STEP(sequence = mine, producer_deaths);
#endif
          committed = mine
      fi
  od;
  stopped = true
}

active proctype consumer() {
  byte here, read, end, last, got, units;
  bool no_more;
born_again:
#ifdef START_AT_TAIL
  here = tail;
#else
  here = head;
#endif
  read = here;
  end = here;
  last = 0;
  do
    :: no_more = stopped;
      if
        :: read == end -> end = tail
        :: else
      fi;
      if
        :: read == end ->
          if
            :: no_more -> break
            :: else
          fi
        :: else ->
#ifdef RELEASE_FIRST
          d_step { head = end; take_back(here, end); here = end };
#endif
          units = size[AT(read)];
          if
            :: units == SKIP ->
              read = (read + CELLS - AT(read)) & 255;
              units = size[AT(read)]
            :: else
          fi;
          assert(units == 1 || units == 2);
          got = number[AT(read)];
          assert(got > last && got > released);
          if
            :: units == 2 -> assert(number[AT(read + 1)] == got)
            :: else
          fi;
          last = got;
          read = (read + units) & 255
      fi;
      if
        :: read != here -> /* release */
          if
            :: d_step {
                 head = read;
                 take_back(here, read);
                 here = read;
                 released = last
               }
            :: consumer_deaths > 0 -> consumer_deaths--; goto born_again
            :: true
          fi
        :: else
      fi
  od;
  if
    :: read != here -> d_step { head = read; take_back(here, read); here = read; released = last }
    :: else
  fi;
  assert(released == published && committed <= published && head == tail)
}
