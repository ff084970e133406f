/* A learner's own things, for learner.c, teacher.c and state.c. */
#ifndef SERVER_LEARNER_H
#define SERVER_LEARNER_H

#include <pthread.h>

#include "model.h"
#include "sona/pending.h"
#include "sona/policy.h"

enum { WAITING = 64 }; /* rewards that have been taken and not yet learned; further ones wait for room.  Few beside REMEMBERED */

/* A policy with what it stands on. */
typedef struct mind {
  sona_adapter *adapter;
  sona_instant *instant;
  sona_policy *policy;
} mind;

/* A mind that answers requests and never learns. */
typedef struct server_mind {
  mind mind;
  uint64_t generation, refreshed; /* of the teacher's rows and anchor that are in it */
  size_t rows;
  sona_adapter_info info; /* of the teacher's adapter */
} server_mind;

typedef struct lesson {
  uint64_t id;
  float reward;
} lesson;

typedef struct learner {
  model base;
  const arms *arms;
  const char *path;
  size_t workers;
  sona_reader *readers[SONA_MAX_READERS]; /* one a worker, of the teacher's adapter */
  pthread_mutex_t saving;                 /* one file at a time; taken before the lock */

  mind teacher; /* belongs to the thread while begun > shown, and to who has the lock otherwise */
  server_mind *back;
  sona_record *copy;        /* of the decision that is being learned */
  uint64_t learned, failed; /* rewards; failed: taken, but forgotten before their turn or refused by the policy */
  pthread_t thread;
  int runs;

  pthread_mutex_t lock; /* for all that follows */
  pthread_cond_t come;  /* a lesson, or the end */
  pthread_cond_t room;  /* lessons have been learned */
  server_mind minds[2], *front;
  sona_pending *pending;
  float *probability; /* (arms) */
  uint64_t next_id;
  lesson waiting[WAITING];
  uint64_t taken, begun, shown; /* lessons so far: in `waiting`, begun with, and seen by requests */
  uint64_t until;               /* lessons from this one on have to wait */
  uint64_t learned_shown, failed_shown;
  int ends;
} learner;

/* Shows what the teacher knows to requests, and starts the thread that it learns on.  0, or an errno. */
int teacher_start(learner *l);

/* After the last request.  All that has been taken is learned. */
void teacher_stop(learner *l);

/* Writes all that has been taken to `path`.  Any thread.  0, or an errno. */
int learner_save(learner *l);

/* Reads it back, before the first request; a file that is not there is a first start.  0, or an errno after a line on standard error. */
int learner_load(learner *l);

#endif
