/* Bytes that a client sends to the example server: each request that reaches the handler keeps the promises of http.h, and what is answered
 * does not depend on how the bytes were cut into packets.  No thread and no network: a pair of sockets, the worker's steps by hand. */
#include "../examples/server/http.c"
#include "fuzz.h"

enum { BODY = 40, ANSWER = 64, SENT_MAX = 3 * HEAD_MAX, GOT_MAX = 1 << 16 };

static const char *const words[] = {
    "GET ",
    "POST ",
    "/",
    "/path?query",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    " HTTP/2\r\n",
    "\r\n",
    "Host: h\r\n",
    "Host: ",
    "Content-Length: ",
    "0",
    "7",
    "40",
    "41",
    "4611686018427387904",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: x, close , y\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nHELLO",
    "A: b\r\n",
    " ",
    "\t",
    ":",
    ",",
    "\n",
    "\r",
};

typedef struct seen {
  size_t requests, got;
  uint64_t digest; /* of all that the handler was given */
  char bytes[GOT_MAX];
} seen;

static void note(seen *s, const void *bytes, size_t size) {
  const unsigned char *at = bytes;
  for (size_t i = 0; i <= size; i++) s->digest = (s->digest ^ (i < size ? at[i] : 256)) * 1099511628211u;
}

static void note_text(seen *s, const char *text) {
  const size_t size = strlen(text);
  PROMISE(!memchr(text, '\r', size) && !memchr(text, '\n', size));
  note(s, text, size);
}

static void handle(void *context, size_t number, const http_request *r, http_answer *a) {
  seen *const s = context;
  PROMISE(number == 0 && r->size <= BODY && *r->method && *r->path == '/' && !strchr(r->path, '?'));
  note_text(s, r->method), note_text(s, r->path), note_text(s, r->query), note(s, r->body, r->size);
  s->requests++;
  PROMISE(a->status == 200 && a->size == 0 && (uintptr_t)a->body % 64 == 0);
  a->size = r->size;
  memset(a->body, 'b', r->size);
}

/* All that waits at this end; 1 when the other end has said that nothing more comes. */
static int drain(int fd, seen *s) {
  for (;;) {
    PROMISE(s->got < GOT_MAX);
    const ssize_t n = recv(fd, s->bytes + s->got, GOT_MAX - s->got, MSG_DONTWAIT);
    if (n == 0) return 1;
    if (n < 0) return 0;
    s->got += (size_t)n;
  }
}

/* Sends in pieces of `cut` bytes, then ends; 0 when it could not be set up. */
static void serve_bytes(const char *sent, size_t size, size_t cut, seen *s) {
  http_server server = {
      .o = {.connections = 1, .workers = 1, .max_body = BODY, .max_answer = ANSWER, .timeout_ms = 1000, .handler = handle, .context = s}};
  worker w = {.server = &server};
  int ends[2];
  void *body = NULL;
  server.in_room = HEAD_MAX + BODY;
  server.out_room = PIPELINED * answer_room(&server);
  PROMISE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && posix_memalign(&body, 64, ANSWER) == 0);
  PROMISE(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
  w.body = body;
  connection c = {.fd = ends[1], .deadline = 1000, .in = malloc(server.in_room), .out = malloc(server.out_room)};
  PROMISE(c.in && c.out);

  int open = 1, ended = 0;
  for (size_t at = 0; open;) {
    if (at < size) {
      const size_t piece = size - at < cut ? size - at : cut;
      const ssize_t n = send(ends[0], sent + at, piece, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) at += (size_t)n;
      if (n < 0 && errno == EPIPE) at = size;
    } else if (!ended) {
      ended = shutdown(ends[0], SHUT_WR) == 0;
    }
    struct pollfd p = {.fd = c.fd, .events = wanted(&server, &c)};
    if (poll(&p, 1, 0) > 0) open = step(&w, &c, p.revents, 0);
    PROMISE(c.in_size <= server.in_room && c.out_start + c.out_size <= server.out_room);
    (void)drain(ends[0], s);
  }
  close(ends[1]);
  PROMISE(drain(ends[0], s));
  close(ends[0]);
  free(c.in), free(c.out), free(body);
}

static size_t times(const seen *s, const char *what) {
  size_t n = 0;
  const size_t size = strlen(what);
  for (size_t i = 0; i + size <= s->got; i++) n += memcmp(s->bytes + i, what, size) == 0;
  return n;
}

static void run(input *in) {
  static char sent[SENT_MAX];
  static seen whole, cut;
  size_t size = 0;
  const size_t piece = 1 + choose(in, 64), padding = choose(in, 4) ? 0 : (size_t)take(in, 2) % (HEAD_MAX + 64);
  for (size_t i = 0; i < padding && size < SENT_MAX / 2; i++) sent[size++] = i == 0 ? 'G' : 'x';
  while (in->left && size + 128 < SENT_MAX) {
    const uint64_t byte = take(in, 1);
    if (byte >= 128) {
      const char *const word = words[byte % (sizeof words / sizeof *words)];
      memcpy(sent + size, word, strlen(word)), size += strlen(word);
    } else {
      sent[size++] = (char)(byte == 1 ? take(in, 1) : byte);
    }
  }
  whole = cut = (seen){0};
  serve_bytes(sent, size, SENT_MAX, &whole);
  serve_bytes(sent, size, piece, &cut);
  PROMISE(whole.requests == cut.requests && whole.digest == cut.digest);
  PROMISE(whole.got == cut.got && memcmp(whole.bytes, cut.bytes, whole.got) == 0);
  const size_t answers = times(&whole, "HTTP/1.1 "), closing = times(&whole, "Connection: close\r\n");
  PROMISE(answers == whole.requests || answers == whole.requests + 1); /* the last one may be a refusal */
  PROMISE(closing <= 1 && (answers == whole.requests || closing == 1));
}
