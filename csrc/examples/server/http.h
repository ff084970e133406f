/* A small HTTP/1.1 server: a few threads that poll non-blocking sockets, keep-alive, pipelining, requests of bounded size and time.
 * It knows nothing of what it serves: server.c hands it one function.  No TLS: put it behind something that has it. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <stddef.h>

typedef struct http_server http_server;

/* Valid during the call of the handler. */
typedef struct http_request {
  const char *method, *path, *query; /* NUL-terminated, not decoded; query: what follows the '?', or "" */
  const char *body;                  /* (size) bytes, at any alignment */
  size_t size;
} http_request;

/* What the handler fills in; the call begins with 200, application/json and no bytes. */
typedef struct http_answer {
  int status;
  const char *type;
  const char *allow; /* with 405: the methods that the path has */
  char *body;        /* room for max_answer bytes, aligned to 64 */
  size_t size;
} http_answer;

/* worker: the number of the calling thread, so that it may have things of its own. */
typedef void http_handler(void *context, size_t worker, const http_request *request, http_answer *answer);

typedef struct http_options {
  const char *host;            /* an IPv4 address */
  int port;                    /* 0: any free one, see http_port */
  size_t workers, connections; /* threads; connections that each of them keeps, further ones wait */
  size_t max_body, max_answer; /* bytes */
  int timeout_ms;              /* for a whole request to arrive, and for its answer to be taken */
  http_handler *handler;       /* must not block for long: other connections of its thread wait */
  void *context;
} http_options;

/* Listens and serves until http_stop.  0, or an errno; *out is untouched on failure. */
int http_start(const http_options *options, http_server **out);

int http_port(const http_server *server);

/* Requests that have arrived whole are answered, all connections closed, the threads joined.  Accepts NULL. */
void http_stop(http_server *server);

#endif
