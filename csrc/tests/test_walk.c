/* Walks: draws in proportion to what the options leave of the weights, the same ones however they are shared out, and nothing read or
 * written beside the arrays. */
#include <stdlib.h>

#include "check.h"
#include "sona/walk.h"

enum { N = 6, WALKS = 40000 };

/* Node 0 is joined to 1, 2, 3 (by two entries) and 4; 5 is alone.  Rows stand in another order, with gaps. */
static const int64_t START[N] = {10, 0, 2, 4, 6, 8}, STOP[N] = {15, 1, 3, 6, 7, 8};
static const int32_t COLUMN[16] = {0, -7, 0, -7, 0, 0, 0, -7, -7, -7, 1, 2, 3, 3, 4, -7};
static const float WEIGHT[16] = {1, 99, 2, 99, 1, 2, 4, 99, 99, 99, 1, 2, 1, 2, 4, 99};
static float cumulative[16];

static sona_walk_graph graph(void) {
  sona_walk_cumulate(START, STOP, N, WEIGHT, cumulative);
  return (sona_walk_graph){
      .nodes = N, .entries = 16, .start = START, .stop = STOP, .column = COLUMN, .weight = WEIGHT, .cumulative = cumulative};
}

static sona_walk_options plain(size_t length, uint64_t seed) {
  return (sona_walk_options){.length = length, .seed = seed, .temperature = 1, .revisit = 1};
}

/* Chi-square of the last positions of WALKS walks from node 0 against chances that add up to 1: 5 degrees of freedom at most, of which
 * 25.7 is passed once in 10,000. */
static double chi_square(sona_walk_options options, const double *chance) {
  static int32_t starts[WALKS];
  const sona_walk_graph g = graph();
  int32_t *out = malloc(WALKS * options.length * sizeof *out);
  CHECK_EQ(sona_walk(&g, &options, starts, 0, WALKS, out), SONA_OK);
  double count[N] = {0}, sum = 0;
  for (int i = 0; i < WALKS; i++) {
    const int32_t node = out[((size_t)i + 1) * options.length - 1];
    CHECK(node >= 0 && node < N);
    count[node]++;
  }
  for (int i = 0; i < N; i++) {
    if (chance[i] == 0) CHECK_EQ(count[i], 0);
    if (chance[i] > 0) sum += pow(count[i] - WALKS * chance[i], 2) / (WALKS * chance[i]);
  }
  free(out);
  return sum;
}

static void test_steps_are_drawn_by_weight(void) {
  const double by_weight[N] = {0, 0.1, 0.2, 0.3, 0.4, 0};
  CHECK(chi_square(plain(2, 1), by_weight) < 25.7);
  const double uniform[N] = {0, 0.25, 0.25, 0.25, 0.25, 0};
  CHECK(chi_square(plain(2, 1), uniform) > 1000);
}

static void test_temperature_is_an_exponent_of_the_weight_of_an_edge(void) {
  static const double temperatures[] = {0.25, 0.5, 0.9, 2, 7, INFINITY};
  for (size_t t = 0; t < sizeof temperatures / sizeof *temperatures; t++) {
    sona_walk_options options = plain(2, 2 + t);
    options.temperature = temperatures[t];
    double chance[N] = {0}, sum = 0;
    for (int i = 1; i <= 4; i++) sum += chance[i] = pow(i, 1 / temperatures[t]);
    for (int i = 1; i <= 4; i++) chance[i] /= sum;
    CHECK(chi_square(options, chance) < 25.7);
  }
}

static void test_restarts_and_jumps_come_as_often_as_asked_for(void) {
  sona_walk_options options = plain(2, 3);
  options.restart = 0.2;
  options.jump = 0.3;
  const double chance[N] = {0.25, 0.05 + 0.05, 0.1 + 0.05, 0.15 + 0.05, 0.2 + 0.05, 0.05};
  CHECK(chi_square(options, chance) < 25.7);
}

/* 0 -> i -> 0 always; the third step avoids i. */
static void test_visited_nodes_are_drawn_by_a_share_of_their_weight(void) {
  for (int heat = 0; heat < 2; heat++) {
    sona_walk_options options = plain(4, 4);
    options.revisit = 0.1;
    options.temperature = heat ? 2 : 1;
    double weight[N] = {0}, chance[N] = {0}, sum = 0;
    for (int i = 1; i <= 4; i++) sum += weight[i] = pow(i, heat ? 0.5 : 1);
    for (int i = 1; i <= 4; i++)
      for (int j = 1; j <= 4; j++) chance[j] += weight[i] / sum * weight[j] * (i == j ? 0.1 : 1) / (sum - 0.9 * weight[i]);
    CHECK(chi_square(options, chance) < 25.7);
  }
}

static void test_running_sums_beyond_float_are_not_asked(void) {
  const int64_t begin[3] = {0, 2, 3}, end[3] = {2, 3, 4};
  const int32_t column[4] = {1, 2, 0, 0}, starts[64] = {0};
  const float weight[4] = {3e38f, 3e38f, 3e38f, 3e38f};
  float sums[4];
  int32_t out[128];
  sona_walk_cumulate(begin, end, 3, weight, sums);
  CHECK(isinf(sums[1]));
  const sona_walk_graph g = {3, 4, begin, end, column, weight, sums};
  const sona_walk_options options = plain(2, 1);
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 64, out), SONA_OK);
  int first = 0;
  for (int i = 0; i < 64; i++) first += out[2 * i + 1] == 1;
  CHECK(first > 12 && first < 52); /* six standard deviations of 64 coins are 24 */
}

static void test_a_walk_that_may_not_go_back_ends(void) {
  const sona_walk_graph g = graph();
  sona_walk_options options = plain(4, 5);
  options.revisit = 0;
  const int32_t starts[3] = {1, 5, 0};
  int32_t out[12];
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 3, out), SONA_OK);
  CHECK_EQ(out[0], 1);
  CHECK_EQ(out[1], 0);
  CHECK(out[2] > 1);
  CHECK_EQ(out[3], -1);
  for (int t = 1; t < 4; t++) CHECK_EQ(out[4 + t], -1); /* nothing is joined to 5 */
  CHECK_EQ(out[10], -1);
  options.jump = 1e-9;
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 3, out), SONA_OK);
  for (int i = 0; i < 12; i++) CHECK(out[i] >= 0);
  options.jump = 0;
  options.restart = 1e-9;
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 3, out), SONA_OK);
  CHECK_EQ(out[3], 1);
  CHECK_EQ(out[5], -1); /* it is at its start */
}

static void test_walks_do_not_depend_on_how_they_are_shared_out(void) {
  const sona_walk_graph g = graph();
  sona_walk_options options = plain(9, 6);
  options.temperature = 1.5;
  options.revisit = 0.5;
  options.restart = options.jump = 0.1;
  int32_t starts[37], together[37 * 9], apart[37 * 9];
  for (int i = 0; i < 37; i++) starts[i] = i % N;
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 37, together), SONA_OK);
  for (size_t i = 0; i < 37; i += 5) CHECK_EQ(sona_walk(&g, &options, starts + i, i, i + 5 <= 37 ? 5 : 37 - i, apart + i * 9), SONA_OK);
  CHECK(memcmp(together, apart, sizeof apart) == 0);
  options.seed = 7;
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 37, apart), SONA_OK);
  CHECK(memcmp(together, apart, sizeof apart) != 0);
}

static void test_the_coldest_walk_takes_the_heaviest_edge(void) {
  const sona_walk_graph g = graph();
  sona_walk_options options = plain(2, 8);
  const int32_t starts[1] = {0};
  int32_t out[2];
  for (double t = 0.01; t > 0; t /= 1e3) { /* down to the smallest number there is */
    options.temperature = t;
    CHECK_EQ(sona_walk(&g, &options, starts, 0, 1, out), SONA_OK);
    CHECK_EQ(out[1], 4);
  }
}

/* These are what every machine has to print. */
static void test_walks_are_the_same_on_every_machine(void) {
  const sona_walk_graph g = graph();
  sona_walk_options options = plain(8, 20);
  const int32_t starts[2] = {0, 3};
  int32_t out[16];
  uint64_t hash = 14695981039346656037u;
  for (int i = 0; i < 200; i++) {
    options.seed = (uint64_t)i;
    options.temperature = i % 4 ? 0.3 + i % 7 : 1;
    options.revisit = i % 3 / 2.0;
    options.restart = i % 5 / 40.0;
    options.jump = i % 2 / 20.0;
    CHECK_EQ(sona_walk(&g, &options, starts, 0, 2, out), SONA_OK);
    for (int j = 0; j < 16; j++) hash = (hash ^ (uint32_t)out[j]) * 1099511628211u;
  }
  CHECK_EQ(hash, UINT64_C(8249031301120064769));
}

static void test_what_does_not_fit_the_graph_is_refused(void) {
  const sona_walk_graph sound = graph();
  const int32_t starts[2] = {0, 1}, outside[2] = {0, N}, negative[2] = {0, -1};
  int32_t out[16];
  const sona_walk_options options = plain(8, 1);
  CHECK_EQ(sona_walk(&sound, &options, outside, 0, 2, out), SONA_EINVAL);
  CHECK_EQ(sona_walk(&sound, &options, negative, 0, 2, out), SONA_EINVAL);
  sona_walk_graph g = sound;
  g.nodes = 1; /* all neighbours are outside */
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 1, out), SONA_EINVAL);
  g = sound;
  g.entries = 14; /* the row of node 0 ends behind */
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 2, out), SONA_EINVAL);
  int32_t column[16];
  for (int32_t wrong = -4; wrong < 0; wrong++) {
    for (int i = 0; i < 16; i++) column[i] = wrong;
    g = sound;
    g.column = column;
    sona_walk_options o = options;
    for (int heat = 0; heat < 3; heat++) {
      o.temperature = heat ? heat : 0.5;
      o.revisit = heat / 2.0;
      CHECK_EQ(sona_walk(&g, &o, starts, 0, 2, out), SONA_EINVAL);
    }
  }
  /* A neighbour that is outside and too light to be drawn, until the one beside it has been visited. */
  const int64_t begin[2] = {0, 2}, end[2] = {2, 3};
  const int32_t to[3] = {1, 1 << 20, 0};
  const float weight[3] = {1e9f, 1, 1};
  float sums[3];
  sona_walk_cumulate(begin, end, 2, weight, sums);
  g = (sona_walk_graph){.nodes = 2, .entries = 3, .start = begin, .stop = end, .column = to, .weight = weight, .cumulative = sums};
  sona_walk_options once = plain(3, 1);
  once.revisit = 0;
  CHECK_EQ(sona_walk(&g, &once, starts + 1, 0, 1, out), SONA_EINVAL);
  const int64_t before[N] = {-1, 0, 2, 4, 6, 8};
  g = sound;
  g.start = before;
  CHECK_EQ(sona_walk(&g, &options, starts, 0, 2, out), SONA_EINVAL);
  static const double bad[][4] = {{0, 1, 0, 0},   {-1, 1, 0, 0},    {NAN, 1, 0, 0}, {1, -0.1, 0, 0}, {1, 1.1, 0, 0},
                                  {1, NAN, 0, 0}, {1, 1, 0.6, 0.5}, {1, 1, NAN, 0}, {1, 1, -0.1, 0}, {1, 1, 0, -0.1}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    sona_walk_options o = plain(8, 1);
    o.temperature = bad[i][0];
    o.revisit = bad[i][1];
    o.restart = bad[i][2];
    o.jump = bad[i][3];
    CHECK_EQ(sona_walk(&sound, &o, starts, 0, 2, out), SONA_EINVAL);
  }
  sona_walk_options o = plain(0, 1);
  CHECK_EQ(sona_walk(&sound, &o, starts, 0, 2, out), SONA_EINVAL);
  o.length = SONA_WALK_LONGEST + 1;
  CHECK_EQ(sona_walk(&sound, &o, starts, 0, 2, out), SONA_EINVAL);
  CHECK_EQ(sona_walk(&sound, &options, starts, 0, 0, out), SONA_OK);
}

int main(void) {
  test_steps_are_drawn_by_weight();
  test_temperature_is_an_exponent_of_the_weight_of_an_edge();
  test_restarts_and_jumps_come_as_often_as_asked_for();
  test_visited_nodes_are_drawn_by_a_share_of_their_weight();
  test_running_sums_beyond_float_are_not_asked();
  test_a_walk_that_may_not_go_back_ends();
  test_walks_do_not_depend_on_how_they_are_shared_out();
  test_the_coldest_walk_takes_the_heaviest_edge();
  test_walks_are_the_same_on_every_machine();
  test_what_does_not_fit_the_graph_is_refused();
  return check_done("walk");
}
