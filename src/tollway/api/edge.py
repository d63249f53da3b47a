"""Where bytes become requests: uvicorn's HTTP protocol, with deadlines for receiving and a short
way to the metered route.

uvicorn carries the sockets: listening, TLS, signals, keep-alive, and every other route as ASGI.
`EdgeProtocol` differs in two respects. A client must keep up: its heads must arrive within 10 s and
bodies within 30 (uvicorn waits for ever), what it sends is bounded, and it must read. And a POST to
`.../chat/completions` is handed to the pipeline as a `Call`, and answered on the transport, without
an ASGI scope and its messages, which saves about 15 us a request (docs/decisions/0001).

A client that keeps its connection sends nearly the same head with every request. So one that was
parsed is learned (`heads.py`), and the next request's is only compared with it. Then the body of a
long one is counted down to its end, and the parser sees nothing of it.

One request on the short way and its reply is an `Exchange` (`exchange.py`). Only these two files
and `server.py`, which starts and stops uvicorn, know its insides; its version is pinned and
`tests/integration/test_edge.py` holds it to what is used here.

Reading is never paused while a metered request runs: that would hide that its client has left. For
the same reason a client that closes its sending side alone has left (docs/explanation/money.md):
uvloop reads nothing more of one that is kept, not even a reset.
"""

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tollway.api.address import client_address, client_request_id
from tollway.api.body import BODY_BYTES_MAX, refusal_of_head, refusal_of_repeated
from tollway.api.exchange import Door, Exchange, Head
from tollway.api.idleness import Idleness
from tollway.clock import new_id
from tollway.errors import (
    HeadTooLarge,
    InvalidRequest,
    PayloadTooLarge,
    RequestError,
)
from tollway.gateway.types import Call
from tollway.heads import LearnedHead
from tollway.outbox import Outbox

HEAD_SECONDS_MAX = 10.0
BODY_SECONDS_MAX = 30.0
IDLE_SECONDS_MAX = 75.0
STALLED_SECONDS_MAX = 30.0
LINGER_SECONDS = 2.0
LAST_IDLE_SECONDS = 1.0
HEAD_BYTES_MAX = 32 * 1024
PIPELINED_MAX = 16
UNSENT_BYTES_MAX = 32 * 1024

METERED_PATHS = frozenset({b"/api/v1/chat/completions", b"/v1/chat/completions"})

LEARNING_TRIES_MAX = 4
LONG_READ_BYTES = 32 * 1024
"""A request's first read of more than that is mostly not its last."""

log = logging.getLogger("tollway.edge")


class _Flow(FlowControl):
    """uvicorn's, without an event (0.7 KB) until one is waited for: exchanges never do."""

    def __init__(self, transport: asyncio.Transport) -> None:
        # Not the base's, which makes the event.
        self._transport = transport
        self.read_paused = self.write_paused = False

    @functools.cached_property
    def _is_writable_event(self) -> asyncio.Event:  # pyright: ignore[reportIncompatibleVariableOverride]
        event = asyncio.Event()
        if not self.write_paused:
            event.set()
        return event


_NONE_WAITS: deque[Any] = deque(maxlen=0)
"""The pipeline of a connection that has none, as hardly any has: an empty deque takes 0.7 KB."""


# What uvicorn's protocol sets on itself: slots here, as ours are. Objects share the names of 30
# attributes, and these and ours are more: in a dictionary they would take 0.6 to 1.1 KB more.
_UVICORN_ATTRIBUTES = (
    "access_log",
    "access_logger",
    "app",
    "app_state",
    "asgi_version",
    "client",
    "config",
    "connections",
    "cycle",
    "expect_100_continue",
    "flow",
    "headers",
    "limit_concurrency",
    "logger",
    "loop",
    "parser",
    "pipeline",
    "root_path",
    "scheme",
    "scope",
    "server",
    "server_state",
    "tasks",
    "timeout_keep_alive",
    "timeout_keep_alive_task",
    "transport",
    "url",
    "ws_protocol_class",
)


class EdgeProtocol(HttpToolsProtocol):
    """One connection of a client. `door` answers metered requests; `outbox` sends what one turn of
    the event loop writes; `idleness` asks when to close, one for all of a server's."""

    __slots__ = (
        *_UVICORN_ATTRIBUTES,
        "_deaf",
        "_door",
        "_head_bytes",
        "_head_bytes_since",
        "_idle_since",
        "_idleness",
        "_in_head",
        "_learned",
        "_learning_tries",
        "_missing",
        "_receive_timer",
        "_receiving",
        "_running",
        "_serving",
        "_stall_timer",
        "_took_at",
        "_unsent_bytes",
        "_winding_down",
        "outbox",
    )

    head_seconds_max = HEAD_SECONDS_MAX
    body_seconds_max = BODY_SECONDS_MAX
    idle_seconds_max = IDLE_SECONDS_MAX
    stalled_seconds_max = STALLED_SECONDS_MAX
    linger_seconds = LINGER_SECONDS
    last_idle_seconds = LAST_IDLE_SECONDS

    # uvicorn declares neither None.
    parser: Any
    cycle: Any

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        door: Door,
        idleness: Idleness,
        outbox: Outbox | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door = door
        self.outbox = outbox or Outbox()
        self._receiving = False  # between the first byte of a request and its last
        self._in_head = False
        self._head_bytes = 0  # of the lines that are complete
        self._head_bytes_since: int | None = None  # all of them, after the read that began the head
        self._receive_timer: asyncio.TimerHandle | None = None
        self._idleness = idleness
        self._idle_since = 0.0
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._took_at = 0.0  # when the client was last seen to read
        self._deaf = False  # what still comes is not read
        self._serving: Exchange | None = None
        self._running: RequestResponseCycle | None = None  # the same on uvicorn's way
        self._learned: tuple[LearnedHead, Head] | None = None
        self._learning_tries = 1 + LEARNING_TRIES_MAX
        self._missing = 0  # of a body that the parser does not see
        self._winding_down = False
        self.url = b""
        self.headers = []
        self.pipeline = _NONE_WAITS

    # --- the connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server = _shared(self.server)
        self.flow = _Flow(transport)
        transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        self._idle_since = self.loop.time()
        self._idleness.watch(self.loop, self.connections)
        if self._door.winding_down:
            self.wind_down()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._receive_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self.pipeline.clear()
        serving, self._serving = self._serving, None
        super().connection_lost(exc)
        if serving is not None:
            serving.leave()
        if self._running is not None:  # uvicorn tells the last request alone
            _tell_disconnected(self._running)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        between_requests = not self._receiving
        if between_requests and self._learned is not None and self.cycle.response_complete:
            learned, head = self._learned
            body = learned.body_in(data)
            if body is not None:
                exchange = Exchange(self, head, time.monotonic(), head.keep_alive, True)
                self.cycle = exchange
                self._serve(exchange, body)
                return
            if len(data) > LONG_READ_BYTES and self._begin_long(learned, head, data):
                return
        elif self._missing:
            self._take_part(data)
            return
        parser = self.parser or self._begin_parser()
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLarge):
                self._refuse_head()
            elif isinstance(error.__context__, _NotOneHost):
                self._refuse_bytes("A request has one Host header (RFC 9112, 3.2). Send it once.")
            else:
                self._refuse_bytes("This is not an HTTP/1.1 request.")
            return
        if self._receiving:
            self._await_the_rest(len(data))
        if between_requests and self._learning_tries and not self._in_head:
            self._learn_head(data)

    def _learn_head(self, data: bytes) -> None:
        """Not of a connection's first request, which is the only one of many: 0.6 KB."""
        self._learning_tries -= 1
        exchange = self.cycle
        if not isinstance(exchange, Exchange) or exchange.refusal is not None:
            return
        if not self._receiving:
            self.parser = None  # it is between two messages, as a new one would be; 0.9 KB
        if self._learning_tries == LEARNING_TRIES_MAX:
            return
        head = exchange.head
        is_usual = head.keep_alive and not head.expects_100 and data.startswith(b"POST ")
        learned = LearnedHead.of(data, head.length) if is_usual and head.length else None
        if learned is not None:
            self._learned = (learned, head)

    def _begin_long(self, learned: LearnedHead, head: Head, data: bytes) -> bool:
        """Whether `data` is the first part of a long request whose head is known."""
        found = learned.long_body_in(data)
        if found is None:
            return False
        body, missing = found
        if len(body) + missing > BODY_BYTES_MAX:
            return False
        self._missing = missing
        self._receiving = True
        self.cycle = exchange = Exchange(self, head, time.monotonic(), head.keep_alive)
        exchange.parts = [body]
        self._await_the_rest(len(data))
        return True

    def _take_part(self, data: bytes) -> None:
        """Of a body that the parser does not see."""
        exchange: Exchange = self.cycle
        parts = exchange.parts
        assert parts is not None
        more = len(data) - self._missing
        parts.append(memoryview(data)[: self._missing] if more > 0 else data)
        self._missing = max(0, -more)
        if self._missing:
            return
        self.on_message_complete()
        if more > 0:
            self.data_received(data[-more:])

    def _ignore_upgrade(self, rest: bytes) -> None:
        """An offer may be ignored (RFC 9110, 7.8), and clients send it with any request (Java's
        asks for h2c). The parser has skipped the body, so it reads the request again, without."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            self._refuse_bytes("This server is no proxy. Send the request to it directly.")
            return
        head = b"%b %b HTTP/%b\r\n" % (method, self.url, version.encode())
        for name, value in self.headers:
            if name != b"upgrade":
                head += b"%b: %b\r\n" % (name, value)
        self._begin_parser()
        self.data_received(head + b"\r\n" + rest)

    def _begin_parser(self) -> Any:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return self.parser

    def wind_down(self) -> None:
        """The next reply that can still say so is the last on this connection, and says so: whoever
        reads that sends nothing more here. A connection that closes without a word takes along the
        request that is on its way, and no proxy may send a POST a second time."""
        self._winding_down = True
        self._learned, self._learning_tries = None, 0
        for cycle in (self._serving, self._running, self.cycle):
            if cycle is not None and not cycle.response_started:
                cycle.keep_alive = False

    def shutdown(self) -> None:
        """A graceful stop: what is on its way or runs may end, then the connection closes."""
        self.outbox.flush()
        if self._serving is None and not self._receiving:
            super().shutdown()
            return
        self.wind_down()
        self.idle_seconds_max = self.last_idle_seconds

    # --- httptools' callbacks ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._receiving = self._in_head = True
        self._head_bytes = 0
        self._head_bytes_since = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _HeadTooLarge
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._head_bytes + len(self.url) > HEAD_BYTES_MAX:
            raise _HeadTooLarge
        if self.parser.should_upgrade():  # data_received is told next
            return
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise _NotOneHost
        self._in_head = False
        url = self.url
        path = url.partition(b"?")[0] if url.startswith(b"/") else httptools.parse_url(url).path
        if path in METERED_PATHS and self.parser.get_method() == b"POST":
            self._begin_exchange()
        else:
            self._begin_asgi()

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_body(body)
            if self._serving is not None and self.flow.read_paused:
                # A large body behind a metered request: waiting for room would hide that the
                # client leaves, and reading on has no bound.
                self._stop_listening()
        elif cycle.refusal is None:
            cycle.feed(body)
            if cycle.refusal is not None:
                self._refuse_early(cycle)

    def on_message_complete(self) -> None:
        if self._in_head:  # an offer to upgrade: it comes again without
            return
        self._receiving = False
        self._stop_receive_timer()
        cycle = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_message_complete()
            return
        cycle.body_complete = True
        if not cycle.waits and cycle.task is None:
            self._serve(cycle, cycle.take_body())

    # --- the short way ----------------------------------------------------------------------------

    def _begin_exchange(self) -> None:
        before = self.cycle
        headers = dict(self.headers)
        refusal = refusal_of_head(headers)
        if refusal is None and len(headers) < len(self.headers):
            refusal = refusal_of_repeated(self.headers)
        self.headers.clear()
        head = self._head_of(headers)
        exchange = Exchange(self, head, time.monotonic(), head.keep_alive)
        self.cycle = exchange
        if before is not None and not before.response_complete:
            exchange.waits = True
            self._enqueue(exchange)
        if refusal is not None:
            exchange.refuse_body(refusal)
            if isinstance(refusal, PayloadTooLarge) or b"expect" in headers:
                self._refuse_early(exchange)
        elif not exchange.waits:
            self._invite_body(exchange)

    def _head_of(self, headers: Mapping[bytes, bytes]) -> Head:
        http_1_1 = self.parser.get_http_version() == "1.1"
        length = headers.get(b"content-length")
        return Head(
            client_address(
                self.client[0] if self.client else "",
                headers.get(b"x-forwarded-for"),
                self._door.trusted_proxies,
            ),
            headers.get(b"authorization"),
            client_request_id(headers.get(b"x-request-id")),
            headers.get(b"x-credits-max"),
            headers.get(b"idempotency-key"),
            headers.get(b"x-tollway-timeout-ms"),
            headers.get(b"x-session-id"),
            None if length is None else int(length),
            http_1_1 and headers.get(b"expect", b"").lower() == b"100-continue",
            b"trailers" in headers.get(b"te", b"").lower(),
            http_1_1,
            http_1_1 and not self._winding_down and self.parser.should_keep_alive(),
        )

    def _invite_body(self, exchange: Exchange) -> None:
        if exchange.head.expects_100:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_early(self, exchange: Exchange) -> None:
        """The body is too large to wait for its end: the answer goes out now, and the connection
        with it."""
        exchange.keep_alive = False
        if not exchange.waits and exchange.task is None:
            self._serve(exchange, exchange.take_body())

    def _serve(self, exchange: Exchange, body: bytes) -> None:
        now = time.time()
        head = exchange.head
        call = Call(
            new_id("req", now),
            now,
            exchange.began,
            head.address,
            head.authorization,
            body,
            exchange.refusal,
            head.client_request_id,
            head.credits_max,
            head.idempotency_key,
            head.timeout_ms,
            head.session,
        )
        self._serving = exchange
        # Not by loop.create_task(), which has Python make up a name each time.
        serving = self._door.serve(call, exchange)
        exchange.task = task = asyncio.Task(serving, loop=self.loop, name=call.request_id)
        self.tasks.add(task)

    def last_exchange_ended(self, exchange: Exchange) -> None:
        self._serving = None
        self._idle_since = self.loop.time()  # what is not sent yet has its time, too
        if exchange.body_complete and not self._deaf:
            self._close()
        else:
            self._linger()

    def send(self, data: bytes) -> None:
        self.outbox.write(self.loop, self.transport, data)

    def _close(self) -> None:
        self.outbox.flush()
        self.transport.close()

    # --- every other route ------------------------------------------------------------------------

    def _begin_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers += headers
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        self._make_room()
        waiting = len(self.pipeline)
        super().on_headers_complete()
        if self._winding_down:
            self.cycle.keep_alive = False
        if len(self.pipeline) > waiting:
            cycle, app = self.pipeline.popleft()
            self._enqueue(cycle, app)
            if self._serving is not None:
                self.flow.resume_reading()

    def _enqueue(self, cycle: Any, app: Any = None) -> None:
        """Pipelined behind a request that still runs."""
        if len(self.pipeline) >= PIPELINED_MAX:
            log.warning("a client pipelined more than %d requests: closed", PIPELINED_MAX)
            self._stop_listening()
            return
        self._make_room()
        self.pipeline.appendleft((cycle, app))

    def _make_room(self) -> None:
        if self.pipeline is _NONE_WAITS:
            self.pipeline = deque()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if not isinstance(cycle, Exchange):
            self._running = cycle
            super()._start_asgi_task(cycle, app)
            return
        cycle.waits = False
        if cycle.body_complete or cycle.refusal is not None:
            self._serve(cycle, cycle.take_body())
        else:
            self._invite_body(cycle)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._running = self._serving = None
        self._idle_since = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    # --- deadlines --------------------------------------------------------------------------------

    def _await_the_rest(self, received: int) -> None:
        if self._in_head:
            # The first read may hold the end of the request before, and is bounded by itself.
            since = self._head_bytes_since
            self._head_bytes_since = 0 if since is None else since + received
            if self._head_bytes_since > HEAD_BYTES_MAX:
                self._refuse_head()
                return
        if self._receive_timer is None:
            seconds = self.head_seconds_max if self._in_head else self.body_seconds_max
            self._receive_timer = self.loop.call_later(seconds, self._too_slow, self._in_head)

    def _too_slow(self, in_head: bool) -> None:
        self._receive_timer = None
        if in_head and not self._in_head:  # the head came in time; the body has its own deadline
            self._receive_timer = self.loop.call_later(
                self.body_seconds_max - self.head_seconds_max, self._too_slow, False
            )
        elif self._serving is None:
            self._close()
        else:
            self._stop_listening()

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def close_if_idle(self, now: float) -> None:
        """`Idleness` asks for it again and again."""
        if self._receiving or (self.cycle is not None and not self.cycle.response_complete):
            return
        allowed = self.head_seconds_max if self.cycle is None else self.idle_seconds_max
        if now - self._idle_since < allowed:
            return
        if self._stall_timer is not None:  # a reply is still being sent, and its client watched
            return
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()  # closing would wait for a client that does not read
        else:
            self._close()

    # --- a client that does not read --------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._took_at = self.loop.time()
        self._watch_unsent()
        if self._serving is not None:
            self._serving.press(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._serving is not None:
            self._serving.press(False)

    def _watch_unsent(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.stalled_seconds_max / 6, self._look_at_stall)

    def _look_at_stall(self) -> None:
        """More may be written meanwhile, so each look compares with the one before it."""
        now = self.loop.time()
        if self.transport.get_write_buffer_size() < self._unsent_bytes:  # slow, and still reading
            self._took_at = now
        if now - self._took_at >= self.stalled_seconds_max:
            self.transport.abort()
        else:
            self._watch_unsent()

    # --- what is no request -----------------------------------------------------------------------

    def _refuse_head(self) -> None:
        self._refuse(
            HeadTooLarge(f"The request's head is larger than {HEAD_BYTES_MAX} bytes. Send less.")
        )

    def _refuse_bytes(self, message: str) -> None:
        self._refuse(InvalidRequest(message, code="invalid_http"))

    def _refuse(self, error: RequestError) -> None:
        """Nothing that follows can be understood any more."""
        running = self._running
        in_body_of = self.cycle if self._receiving and not self._in_head else None
        if self._serving is not None or (running is not None and running is not in_body_of):
            self._stop_listening()  # what is wrong comes behind a request that is sound
            return
        if in_body_of is not None and in_body_of.response_complete:
            self._close()
            return
        if running is not None:
            if running.response_started:
                self.transport.abort()
                return
            _tell_disconnected(running)
        if self.transport.is_closing():
            return
        exchange = Exchange(self, _NO_HEAD, time.monotonic(), False)
        self._serving = exchange
        self._receiving = False
        self._door.refuse_unparsed(error, exchange)

    def _stop_listening(self) -> None:
        """The reply that is under way is the connection's last; that the client leaves is still
        noticed."""
        self._deaf = True
        self._receiving = False
        self._stop_receive_timer()
        self.pipeline.clear()
        self.flow.resume_reading()
        answering = self._serving or self._running
        if answering is None:
            self._close()
        else:
            answering.keep_alive = False

    def _linger(self) -> None:
        """Closing with unread bytes would reset the connection and could take the reply with it."""
        self._deaf = True
        self._stop_receive_timer()
        self.outbox.flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._receive_timer = self.loop.call_later(self.linger_seconds, self.transport.abort)


@functools.lru_cache(maxsize=64)
def _shared(address: tuple[str, int | None] | None) -> tuple[str, int | None] | None:
    """The same object for all connections to one address of ours: 0.2 KB each."""
    return address


def _tell_disconnected(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()


class _HeadTooLarge(Exception):
    pass


class _NotOneHost(Exception):
    """Proxies may take such a request for different hosts'; HTTP/1.0 has none."""


_NO_HEAD = Head(
    address="",
    authorization=None,
    client_request_id=None,
    credits_max=None,
    idempotency_key=None,
    timeout_ms=None,
    session=None,
    length=None,
    expects_100=False,
    accepts_trailers=False,
    http_1_1=True,
    keep_alive=False,
)
