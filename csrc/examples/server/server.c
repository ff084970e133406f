/* An HTTP server that adapts embeddings in its request path.
 *
 *   server ARMS K DIM [options]          ARMS: a file of K * DIM little-endian float32, one vector for each arm
 *
 *   POST /embed                          DIM float32 in, DIM float32 out: x + delta(x)
 *   POST /route                          DIM float32 in, {"id": ..., "arm": ..., "probability": ..., "propensity": ...} out
 *   POST /feedback?id=ID&reward=R        R in [0, 1] for a decision of /route: taken, and learned soon
 *   POST /save                           writes the state
 *   GET  /stats
 *
 * Vectors are raw bytes, errors {"error": "..."}.  SIGTERM and SIGINT end it. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arms.h"
#include "http.h"
#include "model.h"
#include "sona/adapter.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "vectors are taken from files and bodies as they are, which are little-endian"
#endif

enum { TEXT = 1024 }; /* bytes of an answer that is text */

typedef enum endpoint { EMBED, ROUTE, FEEDBACK, SAVE, STATS, ENDPOINTS } endpoint;

typedef struct service {
  arms arms;
  model *model;
  float *x;                           /* (workers, ld) */
  size_t ld;                          /* floats, whole cache lines */
  _Atomic uint64_t counts[ENDPOINTS]; /* requests; relaxed: nothing is ordered by them */
} service;

/* ---- answers ---- */

static void fail(http_answer *a, int status, const char *what) {
  a->status = status;
  a->size = (size_t)snprintf(a->body, TEXT, "{\"error\":\"%s\"}\n", what);
}

static void done(http_answer *a) { a->size = (size_t)snprintf(a->body, TEXT, "{}\n"); }

static void fail_with(http_answer *a, sona_status status) {
  fail(a, status == SONA_EFULL ? 503 : status == SONA_ENONFINITE ? 400 : 500, sona_status_str(status));
}

/* The body as a vector; |x|^2, or 0 after an answer that says what was wrong. */
static float take_vector(const service *s, const http_request *r, http_answer *a, float *x) {
  const size_t size = s->arms.dim * sizeof *x;
  if (r->size != size) {
    char text[80];
    snprintf(text, sizeof text, "body: expected %zu bytes of float32, got %zu", size, r->size);
    fail(a, 400, text);
    return 0;
  }
  memcpy(x, r->body, size);
  const float square = sona_kernels_get(NULL)->dot(x, x, s->arms.dim);
  if (square > 1e-30f && square < INFINITY) return square; /* NaN is neither */
  fail(a, 400, "body: expected finite numbers of a norm between 1e-15 and 1e19");
  return 0;
}

static void embed(service *s, size_t worker, const http_request *r, http_answer *a) {
  float *const x = s->x + worker * s->ld;
  if (!(take_vector(s, r, a, x) > 0)) return;
  const sona_status status = s->model->embed(s->model, worker, x, (float *)a->body);
  if (status) {
    fail_with(a, status);
    return;
  }
  a->type = "application/octet-stream";
  a->size = s->arms.dim * sizeof *x;
}

static void choose(service *s, size_t worker, const http_request *r, http_answer *a) {
  float *const x = s->x + worker * s->ld;
  const float square = take_vector(s, r, a, x);
  if (!(square > 0)) return;
  const float scale = 1 / sqrtf(square);
  for (size_t i = 0; i < s->arms.dim; i++) x[i] *= scale;
  route chosen;
  const sona_status status = s->model->route(s->model, worker, x, &chosen);
  if (status) {
    fail_with(a, status);
    return;
  }
  a->size = (size_t)snprintf(a->body, TEXT, "{\"id\":%llu,\"arm\":%zu,\"probability\":%.9g,\"propensity\":%.9g}\n",
                             (unsigned long long)chosen.id, chosen.arm, chosen.probability, chosen.propensity);
}

/* Where the value of a name stands in "a=1&b=2", NULL when it does not. */
static const char *value_of(const char *query, const char *name) {
  const size_t size = strlen(name);
  for (const char *at = query; at; at = strchr(at, '&')) {
    at += *at == '&';
    if (strncmp(at, name, size) == 0 && at[size] == '=') return at + size + 1;
  }
  return NULL;
}

static void feedback(service *s, const http_request *r, http_answer *a) {
  const char *const id = value_of(r->query, "id"), *const reward = value_of(r->query, "reward");
  char *id_end = NULL, *reward_end = NULL;
  const unsigned long long number = id && *id >= '0' && *id <= '9' ? strtoull(id, &id_end, 10) : 0;
  const float value = reward ? strtof(reward, &reward_end) : NAN;
  if (!id_end || (*id_end && *id_end != '&')) {
    fail(a, 400, "id: expected the number that /route answered with");
  } else if (!reward_end || reward_end == reward || (*reward_end && *reward_end != '&') || !(value >= 0 && value <= 1)) {
    fail(a, 400, "reward: expected a number in [0, 1]");
  } else {
    const sona_status status = s->model->feedback(s->model, number, value);
    if (status == SONA_EINVAL)
      fail(a, 404, "id: unknown, or forgotten");
    else if (status)
      fail_with(a, status);
    else
      done(a);
  }
}

static void save(service *s, http_answer *a) {
  const int error = s->model->save ? s->model->save(s->model) : 0;
  if (!s->model->save)
    fail(a, 409, "nothing to save: this server was started without --state FILE");
  else if (error)
    fail(a, 500, strerror(error));
  else
    done(a);
}

static void stats(service *s, http_answer *a) {
  static const char *const names[ENDPOINTS] = {"embed", "route", "feedback", "save", "stats"};
  int n = snprintf(a->body, TEXT, "{\"mode\":\"%s\",\"arms\":%zu,\"dim\":%zu", s->model->mode, s->arms.count, s->arms.dim);
  for (int i = 0; i < ENDPOINTS; i++) {
    const unsigned long long count = atomic_load_explicit(&s->counts[i], memory_order_relaxed);
    n += snprintf(a->body + n, TEXT - (size_t)n, ",\"%s\":%llu", names[i], count);
  }
  n += s->model->stats(s->model, a->body + n, TEXT - (size_t)n);
  a->size = (size_t)(n + snprintf(a->body + n, TEXT - (size_t)n, "}\n"));
}

static void handle(void *context, size_t worker, const http_request *r, http_answer *a) {
  static const struct {
    const char *path, *method;
  } known[ENDPOINTS] = {{"/embed", "POST"}, {"/route", "POST"}, {"/feedback", "POST"}, {"/save", "POST"}, {"/stats", "GET"}};
  service *const s = context;
  int i = 0;
  while (i < ENDPOINTS && strcmp(r->path, known[i].path) != 0) i++;
  if (i == ENDPOINTS) {
    fail(a, 404, "no such path");
    return;
  }
  if (strcmp(r->method, known[i].method) != 0) {
    fail(a, 405, "no such method here");
    a->allow = known[i].method;
    return;
  }
  atomic_fetch_add_explicit(&s->counts[i], 1, memory_order_relaxed);
  switch ((endpoint)i) {
    case EMBED: embed(s, worker, r, a); break;
    case ROUTE: choose(s, worker, r, a); break;
    case FEEDBACK: feedback(s, r, a); break;
    case SAVE: save(s, a); break;
    default: stats(s, a); break;
  }
}

/* ---- options ---- */

typedef struct settings {
  const char *arms, *host, *state, *ring, *weights;
  long count, dim, port, workers, timeout_ms;
  int plain;
} settings;

static int usage(void) {
  fputs(
      "usage: server ARMS K DIM [--host 127.0.0.1] [--port 8080] [--threads 2] [--timeout-ms 5000]\n"
      "              [--state FILE | --ring FILE --weights FILE | --plain]\n"
      "ARMS holds K * DIM little-endian float32; port 0 takes a free one\n",
      stderr);
  return 2;
}

static int take_number(const char *text, long least, long most, long *out) {
  char *end;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (errno || end == text || *end || value < least || value > most) return 0;
  *out = value;
  return 1;
}

static int take_options(int argc, char **argv, settings *s) {
  *s = (settings){.host = "127.0.0.1", .port = 8080, .workers = 2, .timeout_ms = 5000};
  if (argc < 4) return 0;
  if (!take_number(argv[2], 1, 1 << 20, &s->count) || !take_number(argv[3], 1, 1 << 16, &s->dim)) {
    fprintf(stderr, "expected K in 1..%d and DIM in 1..%d, got %s and %s\n", 1 << 20, 1 << 16, argv[2], argv[3]);
    return 0;
  }
  s->arms = argv[1];
  for (int i = 4; i < argc; i++) {
    const char *const name = argv[i], *const value = i + 1 < argc ? argv[i + 1] : "";
    int takes = 1, good = 1;
    if (strcmp(name, "--plain") == 0) {
      s->plain = 1;
      takes = 0;
    } else if (strcmp(name, "--host") == 0) {
      s->host = value;
    } else if (strcmp(name, "--state") == 0) {
      s->state = value;
    } else if (strcmp(name, "--ring") == 0) {
      s->ring = value;
    } else if (strcmp(name, "--weights") == 0) {
      s->weights = value;
    } else if (strcmp(name, "--port") == 0) {
      good = take_number(value, 0, 65535, &s->port);
    } else if (strcmp(name, "--threads") == 0) {
      good = take_number(value, 1, SONA_MAX_READERS, &s->workers);
    } else if (strcmp(name, "--timeout-ms") == 0) {
      good = take_number(value, 1, 1 << 24, &s->timeout_ms);
    } else {
      good = 0;
    }
    if (!good || i + takes >= argc) {
      fprintf(stderr, "expected one of the options below with its value, got %s %s\n", name, value);
      return 0;
    }
    i += takes;
  }
  if (!s->ring == !s->weights && (s->plain != 0) + (s->state != NULL) + (s->ring != NULL) <= 1) return 1;
  fputs("expected --ring with --weights, and one of --state, --ring and --plain at most\n", stderr);
  return 0;
}

/* ---- the process ---- */

static int open_service(const settings *o, service *s) {
  int error = arms_read(o->arms, (size_t)o->count, (size_t)o->dim, &s->arms);
  if (error) {
    fprintf(stderr, "%s: expected %ld * %ld finite float32: %s\n", o->arms, o->count, o->dim, strerror(error));
    return error;
  }
  const size_t workers = (size_t)o->workers;
  s->ld = (s->arms.dim + 15) / 16 * 16;
  s->x = sona_calloc(workers * s->ld, sizeof *s->x);
  if (!s->x) return ENOMEM;
  if (o->plain) return plain_create(&s->arms, workers, &s->model);
  if (o->ring) return sidecar_create(&s->arms, workers, o->ring, o->weights, &s->model);
  return learner_create(&s->arms, workers, o->state, &s->model);
}

static void close_service(service *s) {
  if (s->model) s->model->destroy(s->model);
  sona_free(s->x);
  arms_free(&s->arms);
}

/* Serves until a signal says stop, then saves. */
static int run(const settings *o, service *s, const sigset_t *ends) {
  const size_t vector = s->arms.dim * sizeof(float);
  const http_options http = {.host = o->host,
                             .port = (int)o->port,
                             .workers = (size_t)o->workers,
                             .connections = 256,
                             .max_body = vector,
                             .max_answer = vector > TEXT ? vector : TEXT,
                             .timeout_ms = (int)o->timeout_ms,
                             .handler = handle,
                             .context = s};
  http_server *server = NULL;
  int error = http_start(&http, &server), signal_number;
  if (error) {
    fprintf(stderr, "%s:%ld: expected an IPv4 address of this machine and a free port: %s\n", o->host, o->port, strerror(error));
    return error;
  }
  printf("listening on %s:%d\n", o->host, http_port(server));
  fflush(stdout);
  error = sigwait(ends, &signal_number);
  http_stop(server);
  const int unsaved = s->model->save ? s->model->save(s->model) : 0;
  if (unsaved) fprintf(stderr, "%s: %s\n", o->state, strerror(unsaved));
  return error ? error : unsaved;
}

int main(int argc, char **argv) {
  settings o;
  service s = {0};
  sigset_t ends;
  if (!take_options(argc, argv, &o)) return usage();
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, NULL); /* inherited by every thread: only sigwait takes them */
  signal(SIGPIPE, SIG_IGN);
  int error = open_service(&o, &s);
  if (error == ENOMEM) fputs("out of memory\n", stderr);
  if (!error) error = run(&o, &s, &ends);
  close_service(&s);
  return error != 0;
}
