/* Private: replacing all rows of an adapter in two parts, so that several adapters change together or not at all; and their number. */
#ifndef SONA_ADAPTER_ROWS_H
#define SONA_ADAPTER_ROWS_H

#include "sona/adapter.h"

typedef struct sona_adapter_rows {
  float *down, *up; /* (total, ld) */
  float *offset;    /* (total) */
  size_t ld;
  void *block;
} sona_adapter_rows;

/* Room for `total` rows that no reader sees, until the writer's next call.  SONA_EINVAL, SONA_ENOMEM. */
sona_status sona_adapter_stage(sona_adapter *adapter, size_t total, sona_adapter_rows *rows);

/* Puts them, filled, in the place of all rows in one publication.  base <= total, and total is what was staged. */
void sona_adapter_show(sona_adapter *adapter, const sona_adapter_rows *rows, size_t base, size_t total);

/* sona_adapter_describe(adapter).generation alone, for the request path. */
uint64_t sona_adapter_generation(const sona_adapter *adapter);

#endif
