#include "sona/pending.h"

#include <string.h>

typedef struct slot {
  uint64_t id, position; /* position: bytes ever written before the record */
} slot;

struct sona_pending {
  slot *slots;
  unsigned char *bytes;
  size_t slot_count, byte_count, dim;
  uint64_t head; /* bytes ever written */
};

static size_t record_size(size_t dim, size_t count) { return (sizeof(sona_record) + (dim + count) * sizeof(float) + 63) / 64 * 64; }

sona_status sona_pending_create(size_t capacity, size_t dim, size_t bytes, sona_pending **out) {
  if (capacity < 1 || capacity > UINT32_MAX || dim < 1 || dim > UINT32_MAX) return SONA_EINVAL;
  size_t slots = 1;
  while (slots < capacity) slots *= 2;
  const size_t one = record_size(dim, 0);
  if (slots > SIZE_MAX / one) return SONA_ENOMEM;
  if (!bytes) bytes = slots * one;
  bytes = (bytes + 63) / 64 * 64;
  if (bytes < one) return SONA_EINVAL;
  sona_pending *p = sona_calloc(1, sizeof *p);
  if (!p) return SONA_ENOMEM;
  p->slots = sona_calloc(slots, sizeof *p->slots);
  p->bytes = sona_calloc(bytes, 1);
  if (!p->slots || !p->bytes) {
    sona_pending_destroy(p);
    return SONA_ENOMEM;
  }
  p->slot_count = slots;
  p->byte_count = bytes;
  p->dim = dim;
  *out = p;
  return SONA_OK;
}

void sona_pending_destroy(sona_pending *p) {
  if (!p) return;
  sona_free(p->slots);
  sona_free(p->bytes);
  sona_free(p);
}

sona_record *sona_pending_put(sona_pending *p, uint64_t id, uint32_t count) {
  const size_t size = record_size(p->dim, count);
  if (size > p->byte_count) return NULL;
  const size_t to_end = p->byte_count - p->head % p->byte_count;
  if (to_end < size) p->head += to_end; /* records are contiguous: skip the rest of the ring */
  sona_record *record = (sona_record *)(p->bytes + p->head % p->byte_count);
  memset(record, 0, sizeof *record);
  record->id = id;
  record->size = sizeof *record + (p->dim + count) * sizeof(float);
  record->dim = (uint32_t)p->dim;
  record->count = count;
  p->slots[id & (p->slot_count - 1)] = (slot){.id = id, .position = p->head};
  p->head += size;
  return record;
}

sona_record *sona_pending_get(sona_pending *p, uint64_t id) {
  const slot s = p->slots[id & (p->slot_count - 1)];
  if (s.id != id || p->head - s.position > p->byte_count || p->head == s.position) return NULL;
  sona_record *record = (sona_record *)(p->bytes + s.position % p->byte_count);
  return record->id == id ? record : NULL; /* an unused slot names id 0 at position 0 */
}

size_t sona_pending_bytes(const sona_pending *p) { return sizeof *p + p->byte_count + p->slot_count * sizeof *p->slots; }
