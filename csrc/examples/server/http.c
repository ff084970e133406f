#define _POSIX_C_SOURCE 200809L
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  HEAD_MAX = 8192,   /* bytes of a request line with its headers */
  ANSWER_HEAD = 256, /* room for those of an answer */
  PIPELINED = 4,     /* answers that wait for a slow reader before its next request is looked at */
  LINGER_MS = 1000,  /* for the other side to close after an error, so that it can read what was wrong */
  TICK_MS = 100,     /* how late a deadline may be noticed */
};

enum { MORE = -1 }; /* parse: the rest of the request has not arrived */

typedef enum phase { OPEN, CLOSING, CLOSED } phase; /* CLOSING: after the answers in `out`; CLOSED: what still comes is thrown away */

typedef struct connection {
  int fd;
  phase phase;
  int64_t deadline; /* ms */
  char *in, *out;
  size_t in_size, out_start, out_size;
} connection;

typedef struct worker {
  http_server *server;
  size_t number;
  pthread_t thread;
  connection *connections;
  struct pollfd *polled; /* the pipe that says stop, the listener, then the connections */
  size_t count;
  char *body; /* of the answer being made */
} worker;

struct http_server {
  http_options o;
  size_t in_room, out_room;
  int listener, stop[2];
  worker *workers;
  size_t started;
};

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- requests ---- */

typedef struct span {
  char *at;
  size_t size;
} span;

static int is(span s, const char *word) { return s.size == strlen(word) && strncasecmp(s.at, word, s.size) == 0; }

/* What names of methods and headers are made of: a name with anything else in it may be another name to a proxy in front. */
static int is_token(span s) {
  static const char others[] = "!#$%&'*+-.^_`|~";
  for (size_t i = 0; i < s.size; i++) {
    const char c = s.at[i];
    if (!(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z') && !memchr(others, c, sizeof others - 1)) return 0;
  }
  return s.size > 0;
}

/* Cuts off what stands before the first `end`, which is dropped; 0 when there is none. */
static int cut(span *rest, char end, span *before) {
  char *const found = memchr(rest->at, end, rest->size);
  if (!found) return 0;
  *before = (span){rest->at, (size_t)(found - rest->at)};
  *rest = (span){found + 1, rest->size - before->size - 1};
  return 1;
}

/* A line, without the CR LF that ends it; 0 when it does not, or when it has a CR inside, which others may take for an end. */
static int cut_line(span *rest, span *line) {
  return cut(rest, '\n', line) && line->size > 0 && line->at[--line->size] == '\r' && !memchr(line->at, '\r', line->size);
}

static span trimmed(span s) {
  while (s.size && (*s.at == ' ' || *s.at == '\t')) s = (span){s.at + 1, s.size - 1};
  while (s.size && (s.at[s.size - 1] == ' ' || s.at[s.size - 1] == '\t')) s.size--;
  return s;
}

/* One of the words between commas. */
static int lists(span value, const char *word) {
  for (span one; cut(&value, ',', &one);)
    if (is(trimmed(one), word)) return 1;
  return is(trimmed(value), word);
}

/* Bytes up to and with the empty line, 0 when it has not arrived. */
static size_t head_size(const char *at, size_t size) {
  const char *line = at, *end;
  while ((end = memchr(line, '\n', size - (size_t)(line - at)))) {
    if (end - line == 1 && *line == '\r' && line != at) return (size_t)(end + 1 - at);
    line = end + 1;
  }
  return 0;
}

/* Digits only, and few enough not to overflow; -1 for anything else. */
static int64_t length_of(span digits) {
  int64_t n = 0;
  if (digits.size == 0 || digits.size > 18) return -1;
  for (size_t i = 0; i < digits.size; i++) {
    if (digits.at[i] < '0' || digits.at[i] > '9') return -1;
    n = 10 * n + (digits.at[i] - '0');
  }
  return n;
}

/* Reads the request at the start of `all`, and how many bytes it takes.  0, MORE, or the status to refuse it with; then nobody knows where
 * the next one starts. */
static int parse(span all, size_t max_body, http_request *request, size_t *taken, int *keep) {
  const size_t head = head_size(all.at, all.size);
  if (head > HEAD_MAX || (!head && all.size >= HEAD_MAX)) return 431;
  if (!head) return MORE;
  if (memchr(all.at, '\0', head)) return 400;

  span rest = {all.at, head - 2}, line, method, target, version;
  if (!cut_line(&rest, &line) || !cut(&line, ' ', &method) || !cut(&line, ' ', &target)) return 400;
  if (!is_token(method) || target.size == 0) return 400;
  version = line;
  const int modern = is(version, "HTTP/1.1");
  if (!modern && !is(version, "HTTP/1.0")) return 505;
  if (*target.at != '/') return 400;

  int64_t length = -1;
  int hosts = 0;
  *keep = modern;
  while (rest.size > 0) {
    span name;
    if (!cut_line(&rest, &line) || !cut(&line, ':', &name) || !is_token(name)) return 400;
    const span value = trimmed(line);
    if (is(name, "host")) {
      hosts++;
    } else if (is(name, "content-length")) {
      if (length >= 0) return 400;
      length = length_of(value);
      if (length < 0) return value.size > 18 ? 413 : 400;
      if ((uint64_t)length > max_body) return 413;
    } else if (is(name, "transfer-encoding")) {
      return 501;
    } else if (is(name, "expect")) {
      return 417;
    } else if (is(name, "connection")) {
      if (lists(value, "close")) *keep = 0;
      if (lists(value, "keep-alive") && !modern) *keep = 1;
    }
  }
  if (hosts > 1 || (modern && !hosts)) return 400;
  const size_t body = length < 0 ? 0 : (size_t)length;
  if (all.size - head < body) return MORE;

  method.at[method.size] = target.at[target.size] = '\0'; /* there stood spaces */
  char *const question = memchr(target.at, '?', target.size);
  if (question) *question = '\0';
  *request = (http_request){method.at, target.at, question ? question + 1 : "", all.at + head, body};
  *taken = head + body;
  return 0;
}

/* ---- answers ---- */

static const char *reason(int status) {
  static const struct {
    int status;
    const char *text;
  } known[] = {{200, "OK"},
               {400, "Bad Request"},
               {404, "Not Found"},
               {405, "Method Not Allowed"},
               {408, "Request Timeout"},
               {409, "Conflict"},
               {413, "Content Too Large"},
               {417, "Expectation Failed"},
               {431, "Request Header Fields Too Large"},
               {500, "Internal Server Error"},
               {501, "Not Implemented"},
               {503, "Service Unavailable"},
               {505, "HTTP Version Not Supported"}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i].status == status) return known[i].text;
  return "Other";
}

static size_t answer_room(const http_server *s) { return ANSWER_HEAD + s->o.max_answer; }

static int has_room(const http_server *s, const connection *c) { return s->out_room - c->out_size >= answer_room(s); }

static void append(const http_server *s, connection *c, const http_answer *a, int keep) {
  if (c->out_start) {
    memmove(c->out, c->out + c->out_start, c->out_size);
    c->out_start = 0;
  }
  char *const to = c->out + c->out_size;
  int n = snprintf(to, ANSWER_HEAD, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s%s%s%s\r\n", a->status,
                   reason(a->status), a->type, a->size, a->allow ? "Allow: " : "", a->allow ? a->allow : "", a->allow ? "\r\n" : "",
                   keep ? "" : "Connection: close\r\n");
  if (n < 0 || n >= ANSWER_HEAD || a->size > s->o.max_answer) { /* a handler that keeps no bounds: nothing sensible can be said */
    c->phase = CLOSING;
    return;
  }
  if (a->size) memcpy(to + n, a->body, a->size);
  c->out_size += (size_t)n + a->size;
  if (!keep) c->phase = CLOSING;
}

static void refuse(const http_server *s, connection *c, int status) {
  const http_answer a = {.status = status, .type = "text/plain"};
  append(s, c, &a, 0);
}

/* Answers the requests that have arrived whole, as far as there is room for answers. */
static void answer_all(worker *w, connection *c, int64_t now) {
  http_server *const s = w->server;
  size_t used = 0;
  while (c->phase == OPEN && has_room(s, c)) {
    http_request request;
    http_answer answer = {.status = 200, .type = "application/json", .body = w->body};
    size_t taken = 0;
    int keep = 0;
    const int status = parse((span){c->in + used, c->in_size - used}, s->o.max_body, &request, &taken, &keep);
    if (status == MORE) break;
    if (status) {
      refuse(s, c, status);
      break;
    }
    s->o.handler(s->o.context, w->number, &request, &answer);
    append(s, c, &answer, keep);
    used += taken;
    c->deadline = now + s->o.timeout_ms;
  }
  c->in_size -= used;
  if (used && c->in_size) memmove(c->in, c->in + used, c->in_size);
}

/* ---- connections ---- */

static int again(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

/* Reads, answers, writes, as far as that goes without waiting; 0 when the connection is over. */
static int step(worker *w, connection *c, short ready, int64_t now) {
  http_server *const s = w->server;
  if (ready & (POLLIN | POLLHUP | POLLERR | POLLNVAL)) {
    if (c->phase == CLOSED) c->in_size = 0;
    const ssize_t n = recv(c->fd, c->in + c->in_size, s->in_room - c->in_size, 0);
    if (n < 0 && !again()) return 0;
    if (n == 0 && (c->phase == CLOSED || c->out_size == 0)) return 0;
    if (n == 0) c->phase = CLOSING; /* it may still be reading */
    if (n > 0) c->in_size += (size_t)n;
  }
  answer_all(w, c, now);
  while (c->out_size) {
    const ssize_t n = send(c->fd, c->out + c->out_start, c->out_size, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return again();
    c->out_start += (size_t)n;
    c->out_size -= (size_t)n;
    if (c->out_size == 0) c->out_start = 0;
    if (c->out_size == 0) answer_all(w, c, now);
  }
  if (c->phase == CLOSING) {
    if (shutdown(c->fd, SHUT_WR)) return 0;
    c->phase = CLOSED;
    c->deadline = now + LINGER_MS;
  }
  return 1;
}

/* Half a request gets an answer, an idle connection does not; 0 when it is over. */
static int expire(worker *w, connection *c, int64_t now) {
  if (c->phase != OPEN || c->in_size == 0 || c->out_size) return 0;
  refuse(w->server, c, 408);
  return step(w, c, 0, now);
}

static short wanted(const http_server *s, const connection *c) {
  const int reads = c->phase == CLOSED || (c->phase == OPEN && has_room(s, c));
  return (short)((reads ? POLLIN : 0) | (c->out_size ? POLLOUT : 0));
}

static void take_in(worker *w, int64_t now) {
  const http_server *const s = w->server;
  const int fd = accept(s->listener, NULL, NULL), on = 1;
  if (fd < 0) {
    if (!again() && errno != ECONNABORTED) (void)poll(NULL, 0, 10); /* out of descriptors: the listener stays ready, do not spin */
    return;
  }
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)) {
    close(fd);
    return;
  }
  connection *const c = &w->connections[w->count++];
  *c = (connection){.fd = fd, .deadline = now + s->o.timeout_ms, .in = c->in, .out = c->out};
}

/* The last connection takes the place of one that is over. */
static void drop(worker *w, size_t i) {
  close(w->connections[i].fd);
  const connection over = w->connections[i];
  w->connections[i] = w->connections[--w->count];
  w->connections[w->count] = over; /* its buffers wait for the next one */
}

static void *serve(void *argument) {
  worker *const w = argument;
  http_server *const s = w->server;
  for (;;) {
    struct pollfd *const p = w->polled;
    p[0] = (struct pollfd){.fd = s->stop[0], .events = POLLIN};
    p[1] = (struct pollfd){.fd = w->count < s->o.connections ? s->listener : -1, .events = POLLIN};
    for (size_t i = 0; i < w->count; i++) p[2 + i] = (struct pollfd){.fd = w->connections[i].fd, .events = wanted(s, &w->connections[i])};
    if (poll(p, (nfds_t)(2 + w->count), w->count ? TICK_MS : -1) < 0 && errno != EINTR) break;
    if (p[0].revents) break;
    const int64_t now = now_ms();
    for (size_t i = w->count; i-- > 0;) { /* backwards: drop moves the last one, which has had its turn */
      connection *const c = &w->connections[i];
      int goes_on = !p[2 + i].revents || step(w, c, p[2 + i].revents, now);
      if (goes_on && now >= c->deadline) goes_on = expire(w, c, now);
      if (!goes_on) drop(w, i);
    }
    if (p[1].revents) take_in(w, now);
  }
  for (const int64_t now = now_ms(); w->count; drop(w, w->count - 1)) (void)step(w, &w->connections[w->count - 1], POLLIN, now);
  return NULL;
}

/* ---- the server ---- */

static int listen_on(http_server *s) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)s->o.port)};
  const int on = 1;
  if (inet_pton(AF_INET, s->o.host, &address.sin_addr) != 1) return EINVAL;
  s->listener = socket(AF_INET, SOCK_STREAM, 0);
  if (s->listener < 0 || setsockopt(s->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
      bind(s->listener, (const struct sockaddr *)&address, sizeof address) || listen(s->listener, 128))
    return errno;
  const int flags = fcntl(s->listener, F_GETFL);
  return flags < 0 || fcntl(s->listener, F_SETFL, flags | O_NONBLOCK) || pipe(s->stop) ? errno : 0;
}

static int prepare(http_server *s, worker *w, size_t number) {
  *w = (worker){.server = s, .number = number};
  w->connections = calloc(s->o.connections, sizeof *w->connections);
  w->polled = calloc(2 + s->o.connections, sizeof *w->polled);
  void *body = NULL;
  if (!w->connections || !w->polled || posix_memalign(&body, 64, s->o.max_answer + 64)) return ENOMEM;
  w->body = body;
  for (size_t i = 0; i < s->o.connections; i++) {
    w->connections[i].in = malloc(s->in_room);
    w->connections[i].out = malloc(s->out_room);
    if (!w->connections[i].in || !w->connections[i].out) return ENOMEM;
  }
  return pthread_create(&w->thread, NULL, serve, w);
}

static void release(const http_server *s, worker *w) {
  for (size_t i = 0; w->connections && i < s->o.connections; i++) {
    free(w->connections[i].in);
    free(w->connections[i].out);
  }
  free(w->connections);
  free(w->polled);
  free(w->body);
}

int http_start(const http_options *options, http_server **out) {
  http_server *const s = calloc(1, sizeof *s);
  if (!s) return ENOMEM;
  s->o = *options;
  s->in_room = HEAD_MAX + s->o.max_body;
  s->out_room = PIPELINED * answer_room(s);
  s->listener = s->stop[0] = s->stop[1] = -1;
  s->workers = calloc(s->o.workers, sizeof *s->workers);
  int error = s->workers ? listen_on(s) : ENOMEM;
  for (; !error && s->started < s->o.workers; s->started += !error) error = prepare(s, &s->workers[s->started], s->started);
  if (error) {
    http_stop(s);
    return error;
  }
  *out = s;
  return 0;
}

int http_port(const http_server *s) {
  struct sockaddr_in address = {0};
  socklen_t size = sizeof address;
  return getsockname(s->listener, (struct sockaddr *)&address, &size) ? -1 : ntohs(address.sin_port);
}

void http_stop(http_server *s) {
  if (!s) return;
  if (s->stop[1] >= 0) close(s->stop[1]); /* the other end hangs up, which every worker sees */
  for (size_t i = 0; i < s->started; i++) pthread_join(s->workers[i].thread, NULL);
  for (size_t i = 0; s->workers && i < s->o.workers; i++) release(s, &s->workers[i]);
  if (s->stop[0] >= 0) close(s->stop[0]);
  if (s->listener >= 0) close(s->listener);
  free(s->workers);
  free(s);
}
