/* A learner's own things, for learner.c and state.c. */
#ifndef SERVER_LEARNER_H
#define SERVER_LEARNER_H

#include <pthread.h>

#include "model.h"
#include "sona/pending.h"
#include "sona/policy.h"

typedef struct learner {
  model base;
  const arms *arms;
  const char *path;
  size_t workers;
  sona_adapter *adapter;
  sona_reader *readers[SONA_MAX_READERS]; /* one a worker */
  pthread_mutex_t saving;                 /* one file at a time; taken before the lock */
  pthread_mutex_t lock;                   /* for all that follows, and for writing to the adapter */
  sona_instant *instant;
  sona_policy *policy;
  sona_pending *pending;
  float *probability; /* (arms) */
  uint64_t next_id, learned;
} learner;

/* Writes all that has been learned to `path`.  Any thread.  0, or an errno. */
int learner_save(learner *l);

/* Reads it back, before the first request; a file that is not there is a first start.  0, or an errno after a line on standard error. */
int learner_load(learner *l);

#endif
