/* The weight file of weights_core.h and weights.c: slots under sequence locks, an epoch that says which is the newest, a writer that may die
 * at any step and be started again, readers that never wait.
 *
 * Holds: what a reader takes is one whole publication, never older than one that it took or saw published before; a reader that does not
 * get one finds that the epoch has moved on, so an epoch that stays means damage; publications of a dead writer hold nobody up.
 * Broken twins, each of which has to fail:
 *   -DNO_ODD          the slot is not marked while it is written
 *   -DNO_SECOND_LOOK  the reader does not look at the sequence again
 *   -DEPOCH_FIRST     the epoch is published before its slot is written
 *   -DONE_SLOT        the slot that readers need is written again
 *   -DEVEN_AGAIN      a writer that goes on after a death takes the sequence as it is */
#define READERS 1 /* it stores nothing, so more of them meet nothing else */
#define WORDS 2
#ifdef ONE_SLOT
#define SLOTS 1
#else
#define SLOTS 2
#endif
#ifndef EPOCHS
#define EPOCHS 4
#endif
#define DEATHS 2
#define LOOKS 2

typedef slot {
  byte sequence;
  byte word[WORDS]
};
slot slots[SLOTS];
byte epoch;
byte deaths = DEATHS;

/* A step, unless it dies in front of it. */
#define STEP(action)                           \
  if                                           \
    :: action                                  \
    :: deaths > 0 -> deaths--; goto born_again \
  fi

active proctype writer() {
  byte now, odd, i, value;
born_again:
  now = epoch;
  do
    :: now == EPOCHS -> break
    :: else ->
      now++;
      value = now + 16 * deaths; /* no two publications are alike, nor two attempts at one */
#ifdef EPOCH_FIRST
      STEP(epoch = now);
#endif
#ifdef EVEN_AGAIN
      odd = slots[now % SLOTS].sequence + 1;
#else
      odd = slots[now % SLOTS].sequence | 1;
#endif
#ifndef NO_ODD
      STEP(slots[now % SLOTS].sequence = odd);
#endif
      i = 0;
      do
        :: i == WORDS -> break
        :: else -> STEP(slots[now % SLOTS].word[i] = value); i++
      od;
      STEP(slots[now % SLOTS].sequence = odd + 1);
#ifndef EPOCH_FIRST
      STEP(epoch = now)
#endif
  od
}

active [READERS] proctype reader() {
  byte came_for, before, i, newest, looks, word[WORDS];
  bool overtaken;
  do
    :: looks == LOOKS -> break
    :: else ->
      looks++;
      came_for = epoch;
      if
        :: came_for == 0
        :: else ->
          before = slots[came_for % SLOTS].sequence;
          overtaken = (before & 1);
          i = 0;
          do
            :: i == WORDS || overtaken -> break
            :: else -> word[i] = slots[came_for % SLOTS].word[i]; i++
          od;
#ifndef NO_SECOND_LOOK
          overtaken = overtaken || slots[came_for % SLOTS].sequence != before;
#endif
          if
            :: !overtaken ->
              assert(word[0] == word[1]);
              overtaken = (word[0] % 16 != came_for);
              if
                :: !overtaken -> assert(came_for >= newest); newest = came_for
                :: else
              fi
            :: else
          fi;
          if
            :: overtaken -> assert(epoch > came_for)
            :: else
          fi
      fi
  od
}
