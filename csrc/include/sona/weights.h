/* Weights: one process publishes the rows of its adapters in a file, any number of processes take them up without waiting.
 *
 * The file holds the latest publications, each under a sequence lock: a reader copies one, and knows afterwards whether the writer came
 * between.  A writer that is killed while it publishes leaves the publication before it current, and the next writer goes on from there.
 *
 *   Epochs count publications over the life of the file and only grow.
 *   Trust.  Nothing in the file is believed: a publication is copied, its checksum and every number in it are checked, and only then does
 *     an adapter change.  A damaged file is an error status and the adapters stay as they are.  One thing cannot be fended off: a file that
 *     is cut while it is mapped raises SIGBUS, so nothing but this library may write to it.
 *   Death.  What is published survives the writer, not a power loss: the file is not flushed to the disk.
 *
 * One process at a time writes; a lock on the file, which ends with the process, sees to that.  Readers take no lock and leave no trace,
 * so they cannot hold up the writer.  A child of fork may read through its parent's handle but not write.  For low latency put the file
 * where files live in memory (/dev/shm).  POSIX only; all processes must be of one machine.
 *
 * Threads.  One thread at a time uses a handle; [any] functions may run beside. */
#ifndef SONA_WEIGHTS_H
#define SONA_WEIGHTS_H

#include "sona/adapter.h"
#include "sona/sona.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sona_weights sona_weights;

/* Zero-initialise, then set what is needed. */
typedef struct sona_weights_options {
  size_t layers;        /* adapters, >= 1 */
  size_t dim;           /* of all of them, >= 1 */
  size_t max_rank;      /* the largest that can be published, >= 1; a reader's is ignored */
  uint64_t fingerprint; /* of the frozen model: weights of another one do not fit, whatever their shape.  0: not said */
} sona_weights_options;

typedef struct sona_weights_info {
  uint64_t epoch;
  uint64_t version;      /* of the store that the writer keeps its weights in; 0: none */
  uint64_t published_ns; /* CLOCK_MONOTONIC */
} sona_weights_info;

/* The writer: makes the file, for its owner only (mode 0600) and with all of its room on the disk, or takes up one with equal options.
 *   SONA_EINVAL    options out of range
 *   SONA_EIO       errno says why.  A symbolic link is not followed (ELOOP).
 *   SONA_EBUSY     another writer has it
 *   SONA_ECORRUPT  not such a file, or a damaged one: it stays so until it is removed
 *   SONA_EVERSION  other options, or another format
 *   SONA_ENOMEM    also when a size overflows
 * *out is untouched on failure. */
SONA_API sona_status sona_weights_create(const char *path, const sona_weights_options *options, sona_weights **out);

/* A reader.  The same errors; SONA_EIO with ENOENT: nobody has made the file yet; SONA_EVERSION: other layers, another dim, or another
 * fingerprint where both say one. */
SONA_API sona_status sona_weights_open(const char *path, const sona_weights_options *options, sona_weights **out);

/* The file stays.  Accepts NULL. */
SONA_API void sona_weights_close(sona_weights *weights);

/* [writer] Publishes factors[layer], sizes[layer] bytes as sona_adapter_encode writes them, for every layer at once.  version: see
 * sona_weights_info.  SONA_EINVAL: a reader's handle, or a child of fork; SONA_ECORRUPT: not such bytes; SONA_EVERSION: another width;
 * SONA_EFULL: more than max_rank rows; SONA_ENONFINITE.  Nothing is published on failure. */
SONA_API sona_status sona_weights_publish(sona_weights *weights, const void *const *factors, const size_t *sizes, uint64_t version);

/* [any] The epoch of the latest publication, with one acquire load: whether it has changed is cheap to ask before every request.  0:
 * nothing is published; also when the number is damaged, which sona_weights_adopt tells apart. */
SONA_API uint64_t sona_weights_epoch(const sona_weights *weights);

/* [reader] Replaces the rows of adapters[layer], for all layers or for none, by the latest publication, and describes it in *info, which
 * may be NULL.  Each adapter changes in one publication of its own; the caller is the writer of all of them.
 * Allocates nothing but for adapters that grow.
 *   SONA_EAGAIN     nothing is published yet, or the writer came between again and again
 *   SONA_ECORRUPT   the file is damaged
 *   SONA_EINVAL     an adapter of another dim, one of two layers, or a writer's handle
 *   SONA_ENONFINITE, SONA_ENOMEM
 * The adapters are as they were on failure. */
SONA_API sona_status sona_weights_adopt(sona_weights *weights, sona_adapter *const *adapters, sona_weights_info *info);

#ifdef __cplusplus
}
#endif
#endif
