/* Load at a fixed rate, an open loop: a request is due every 1/RATE s whether or not those before it were
 * answered, so every gateway gets the same. Its time counts from when it was due, not from when a
 * connection was free: one that falls behind shows it.
 *   cc -O2 -o rate_load rate_load.c
 *   ./rate_load PORT PATH TOKEN MODEL CONNS SECS RATE MESSAGES MESSAGE_BYTES STREAM
 * MESSAGES messages of MESSAGE_BYTES each; STREAM 1 asks for a stream of 8 chunks. EXTRA_HEADERS ("Name:
 * value|...") from the environment. Prints one JSON line: requests, errors, late (sent over 1 ms after they
 * were due) and, in ms, percentiles of the time to the first byte of the body and to the end of the reply. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#define CAP 65536
typedef struct { int fd, n, sent, head, body, chunked, first; double due; char *b; } conn;
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }
static int cmp(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }
static double pc(double *v, long n, double p) { return n ? v[(long)(p * (n - 1))] : -1; }
static char *req; static int rn, ep, port, stream; static long errors, late, count, nfirst; static double *firsts, *wholes;
static conn *cs, **idle; static int nidle;
static void watch(conn *c, int op, int events) { struct epoll_event e = {.events = events, .data.ptr = c}; epoll_ctl(ep, op, c->fd, &e); }
static void dial(conn *c) {
  int one = 1; c->fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (connect(c->fd, (void *)&a, sizeof a)) { perror("connect"); exit(1); }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); watch(c, EPOLL_CTL_ADD, EPOLLIN); c->due = 0; idle[nidle++] = c;
}
static void fail(conn *c) { if (errors++ < 3) fprintf(stderr, "%.300s\n", c->b); if (errors > 1000) { fprintf(stderr, "too many errors\n"); exit(1); } close(c->fd); c->n = 0; dial(c); }
static void more(conn *c) { /* sends what is left of the request: a large one takes more than one turn */
  ssize_t w = send(c->fd, req + c->sent, rn - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (w > 0) c->sent += w; else if (errno != EAGAIN) { fail(c); return; }
  watch(c, EPOLL_CTL_MOD, c->sent < rn ? EPOLLIN | EPOLLOUT : EPOLLIN);
}
static void start(conn *c, double due) { c->n = c->sent = c->head = c->first = 0; c->due = due; if (rn > 16384) { more(c); return; } if (send(c->fd, req, rn, MSG_NOSIGNAL) != rn) fail(c); else c->sent = rn; }
static void finish(conn *c) { wholes[count++] = now() - c->due; c->due = 0; c->n = 0; idle[nidle++] = c; }
static void readable(conn *c) {
  ssize_t r = recv(c->fd, c->b + c->n, CAP - c->n, 0);
  if (r <= 0) { if (c->due || r == 0) { /* an idle connection may be closed */ if (!c->due) for (int i = 0; i < nidle; i++) if (idle[i] == c) { idle[i] = idle[--nidle]; break; } if (c->due) fail(c); else { close(c->fd); dial(c); } } return; }
  c->n += r; c->b[c->n] = 0;
  if (!c->head) {
    char *h = memmem(c->b, c->n, "\r\n\r\n", 4); if (!h) return;
    if (memcmp(c->b + 9, "200", 3)) { fail(c); return; }
    *h = 0; char *l = strcasestr(c->b, "\ncontent-length:"); c->body = l ? atoi(l + 16) : -1; *h = '\r'; c->head = h - c->b + 4;
  }
  if (!c->first && c->n > c->head) { c->first = 1; firsts[nfirst++] = now() - c->due; }
  if (c->body >= 0 ? c->n >= c->head + c->body : !memcmp(c->b + c->n - 5, "0\r\n\r\n", 5)) finish(c);
  else if (c->n == CAP) fail(c);
}
int main(int argc, char **argv) {
  if (argc < 11) { fprintf(stderr, "usage\n"); return 2; }
  port = atoi(argv[1]); int n = atoi(argv[5]), messages = atoi(argv[8]), bytes = atoi(argv[9]); double secs = atof(argv[6]), rate = atof(argv[7]); stream = atoi(argv[10]); signal(SIGPIPE, SIG_IGN);
  const char *text = "Explain in three sentences why the Tay Bridge fell. "; int tl = strlen(text);
  char *body = malloc((long)messages * (bytes + 64) + 4096); int bn = sprintf(body, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a careful assistant.\"}", argv[4]);
  for (int i = 0; i < messages; i++) { bn += sprintf(body + bn, ",{\"role\":\"%s\",\"content\":\"", i % 2 ? "assistant" : "user"); for (int k = 0; k < bytes; k++) body[bn++] = text[k % tl]; bn += sprintf(body + bn, "\"}"); }
  bn += sprintf(body + bn, "],\"temperature\":0.7,\"top_p\":0.95,\"max_tokens\":%d,\"stream\":%s,\"user\":\"u-1029\"}", stream ? 8 : 64, stream ? "true" : "false");
  req = malloc(bn + 8192); rn = sprintf(req, "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer %s\r\ncontent-type: application/json\r\naccept: application/json\r\nuser-agent: OpenAI/Python 2.8.0\r\n", argv[2], port, argv[3]);
  char *extra = getenv("EXTRA_HEADERS"); if (extra) for (char *p = strtok(strdup(extra), "|"); p; p = strtok(0, "|")) rn += sprintf(req + rn, "%s\r\n", p);
  rn += sprintf(req + rn, "content-length: %d\r\n\r\n", bn); memcpy(req + rn, body, bn); rn += bn;
  long most = (long)(rate * secs) + n + 16; firsts = malloc(most * 8); wholes = malloc(most * 8); ep = epoll_create1(0); cs = calloc(n, sizeof(conn)); idle = calloc(n + 1, sizeof *idle);
  for (int i = 0; i < n; i++) { cs[i].b = malloc(CAP + 1); dial(&cs[i]); }
  double begin = now(), step = 1e3 / rate, due = begin, end = begin + secs * 1e3; struct epoll_event ev[512];
  for (;;) {
    double t = now();
    while (due <= t && due < end && nidle) { if (t - due > 1) late++; start(idle[--nidle], due); due += step; }
    if (due >= end && (nidle == n || t > end + 10e3)) break;
    double wait = due < end ? (nidle ? due - t : 100) : 100; if (wait < 0) wait = 0;
    struct timespec ts = {wait / 1e3, (long)(wait * 1e6) % 1000000000L};
    int k = epoll_pwait2(ep, ev, 512, &ts, 0);
    for (int i = 0; i < k; i++) { conn *c = ev[i].data.ptr; if (ev[i].events & EPOLLOUT && c->sent < rn) more(c); if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c); }
  }
  double el = (now() - begin) / 1e3; errors += n - nidle; qsort(firsts, nfirst, 8, cmp); qsort(wholes, count, 8, cmp);
  printf("{\"secs\": %.2f, \"requests\": %ld, \"errors\": %ld, \"late\": %ld, \"first_p50\": %.3f, \"first_p99\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}\n", el, count, errors, late, pc(firsts, nfirst, .5), pc(firsts, nfirst, .99), pc(wholes, count, .5), pc(wholes, count, .99), count ? wholes[count - 1] : -1);
}
