#include "sona/adwin.h"

#include <math.h>
#include <string.h>

void sona_adwin_init(sona_adwin *a, double delta) { *a = (sona_adwin){.delta = delta}; }

double sona_adwin_mean(const sona_adwin *a) { return a->width ? a->total / (double)a->width : 0; }

static double values(int size) { return (double)(SONA_ADWIN_BUCKET << size); }

static int oldest(const sona_adwin *a) {
  int size = SONA_ADWIN_SIZES - 1;
  while (size >= 0 && !a->count[size]) size--;
  return size;
}

uint64_t sona_adwin_first(const sona_adwin *a) {
  const int size = oldest(a);
  return size < 0 ? a->open.id : a->bucket[size][0].id;
}

static void remove_first(sona_adwin *a, int size, uint32_t n) {
  a->count[size] -= n;
  memmove(a->bucket[size], a->bucket[size] + n, a->count[size] * sizeof a->bucket[size][0]);
}

static void drop_oldest(sona_adwin *a) {
  const int size = oldest(a);
  const sona_adwin_bucket old = a->bucket[size][0];
  remove_first(a, size, 1);
  const double n0 = values(size), n1 = (double)a->width - n0;
  a->width -= (uint64_t)n0;
  a->total -= old.sum;
  const double gap = old.sum / n0 - sona_adwin_mean(a);
  a->squares -= old.squares + n0 * n1 / (n0 + n1) * (gap * gap);
}

/* A sixth bucket of one size: the two oldest become one of twice the size. */
static void compress(sona_adwin *a) {
  for (int size = 0; size + 1 < SONA_ADWIN_SIZES && a->count[size] > SONA_ADWIN_LIKE; size++) {
    const sona_adwin_bucket one = a->bucket[size][0], two = a->bucket[size][1];
    remove_first(a, size, 2);
    const double gap = one.sum - two.sum;
    a->bucket[size + 1][a->count[size + 1]++] =
        (sona_adwin_bucket){.sum = one.sum + two.sum, .squares = one.squares + two.squares + gap * gap / (2 * values(size)), .id = one.id};
  }
}

/* Where two sides differ the most, by the difference of means over its bound: the first value after it, and their mean. */
typedef struct cut {
  double ratio, mean;
  uint64_t id;
} cut;

static cut strongest_cut(const sona_adwin *a) {
  const double n = (double)a->width;
  const double scale = log(2 * log(n) / a->delta), variance = fmax(a->squares, 0) / n;
  double n0 = 0, sum = 0;
  cut found = {0};
  for (int size = SONA_ADWIN_SIZES - 1; size >= 0; size--)
    for (uint32_t i = 0; i < a->count[size]; i++) {
      if (n0 > 0) {
        const double share = scale * (1 / n0 + 1 / (n - n0)), mean = (a->total - sum) / (n - n0);
        const double ratio = fabs(sum / n0 - mean) / (sqrt(2 * variance * share) + 2.0 / 3 * share);
        if (ratio > found.ratio) found = (cut){.ratio = ratio, .mean = mean, .id = a->bucket[size][i].id};
      }
      n0 += values(size);
      sum += a->bucket[size][i].sum;
    }
  return found;
}

int sona_adwin_add(sona_adwin *a, uint64_t id, double value) {
  sona_adwin_bucket *open = &a->open;
  if (!a->waiting) {
    *open = (sona_adwin_bucket){.id = id};
  } else {
    const double n = (double)a->waiting, gap = value - open->sum / n;
    open->squares += n / (n + 1) * (gap * gap);
  }
  open->sum += value;
  a->added++;
  if (++a->waiting < SONA_ADWIN_BUCKET) return 0;
  a->waiting = 0;
  const double n0 = (double)a->width, n1 = SONA_ADWIN_BUCKET, gap = open->sum / n1 - sona_adwin_mean(a);
  a->squares += open->squares + n0 * n1 / (n0 + n1) * (gap * gap);
  a->total += open->sum;
  a->width += SONA_ADWIN_BUCKET;
  a->bucket[0][a->count[0]++] = *open;
  *open = (sona_adwin_bucket){0};
  compress(a);
  while (a->width > SONA_ADWIN_MEMORY) drop_oldest(a);
  cut found = strongest_cut(a);
  if (!(found.ratio > 1)) return 0;
  a->changed = found.id;
  a->level = found.mean;
  const double before = sona_adwin_mean(a);
  for (; found.ratio > 1; found = strongest_cut(a)) drop_oldest(a);
  const double after = sona_adwin_mean(a);
  return after > before ? 1 : after + before < 0 ? -1 : 0;
}
