/* Private: the rows of an adapter as bytes; see sona/adapter.h for the layout. */
#ifndef SONA_CODEC_H
#define SONA_CODEC_H

#include "adapter_rows.h"

enum { SONA_FACTORS_HEAD = 16 }; /* bytes in front of the numbers */

/* Rows in bytes that were not made here. */
typedef struct sona_factors {
  const unsigned char *numbers; /* float32, little-endian, at any address: down (rank, dim), up (rank, dim), offset (rank) */
  size_t rank, dim, size;       /* size: all bytes, with the head */
} sona_factors;

/* Bytes of `rank` rows of `dim`; 0 when that overflows. */
size_t sona_factors_size(size_t rank, size_t dim);

/* Finds the rows at the start of `room` bytes.  SONA_ECORRUPT: they are not there, or not whole. */
sona_status sona_factors_find(const void *from, size_t room, sona_factors *out);

/* Whether no number is NaN or infinity. */
int sona_factors_are_finite(const sona_factors *factors);

/* Stages the rows in an adapter of their dim.  SONA_ENONFINITE as sona_adapter_decode says it, SONA_ENOMEM. */
sona_status sona_factors_stage(const sona_factors *factors, sona_adapter *adapter, sona_adapter_rows *rows);

#endif
