"""The edge over real sockets: what a client may do to a connection, and what uvicorn is to do.

The door is a small one that does what a request's body says; the deadlines are short ones.
"""

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Self

import pytest
import uvicorn
import uvloop
from tests.support.http import BodyCutError, RawClient
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tollway.api.address import Network
from tollway.api.body import BODY_BYTES_MAX
from tollway.api.edge import HEAD_BYTES_MAX, PIPELINED_MAX, EdgeProtocol
from tollway.api.exchange import Exchange
from tollway.api.replies import error_reply, send
from tollway.api.server import ACCEPTED_A_TURN, TICK_SECONDS, HttpServer
from tollway.errors import RequestError
from tollway.gateway.types import Call

CHAT = "/v1/chat/completions"
REQUEST_ID = "req_" + "0" * 32


class QuickEdge(EdgeProtocol):
    head_seconds_max = 0.3
    body_seconds_max = 0.6
    idle_seconds_max = 0.5
    stalled_seconds_max = 0.4
    linger_seconds = 0.3


class PatientEdge(EdgeProtocol):
    """Nothing is cut for being slow: a busy machine must not fail a test of something else."""


class Door:
    """Does what the body's `do` says."""

    trusted_proxies: Sequence[Network] = ()

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.finished: list[Call] = []
        self.winding_down = False
        self.pressures: list[bool] = []
        self.release = asyncio.Event()
        self.connections: set[Any] = set()

    async def serve(self, call: Call, exchange: Exchange) -> None:
        self.calls.append(call)
        try:
            await self._serve(call, exchange)
        except asyncio.CancelledError:
            self.cancelled.append(call)
            raise
        finally:
            if not exchange.response_complete:
                exchange.cut()
        self.finished.append(call)

    def refuse_unparsed(self, error: RequestError, exchange: Exchange) -> None:
        send(exchange, error_reply(error, REQUEST_ID, None))

    async def _serve(self, call: Call, exchange: Exchange) -> None:
        if call.refusal is not None:
            send(exchange, error_reply(call.refusal, call.request_id, None))
            return
        what = json.loads(call.body)
        match what["do"]:
            case "wait":
                await self.release.wait()
                _reply(exchange, b"waited")
            case "stream":
                exchange.send_head(200, b"transfer-encoding: chunked\r\n")
                exchange.write_now(b"5\r\nfirst\r\n")
                await self.release.wait()
                exchange.write_now(b"4\r\nlast\r\n0\r\n\r\n")
                exchange.end()
            case "flood":
                exchange.on_pressure(self.pressures.append)
                exchange.send_head(200, b"transfer-encoding: chunked\r\n")
                for _ in range(what["chunks"]):
                    exchange.write_now(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await self.release.wait()
                exchange.write_now(b"0\r\n\r\n")
                exchange.end()
            case "fill":  # the kernel takes no more, and less is left than would press
                exchange.send_head(200, b"transfer-encoding: chunked\r\n")
                (connection,) = self.connections
                while connection.transport.get_write_buffer_size() == 0:
                    exchange.write_now(b"4000\r\n" + b"x" * 16384 + b"\r\n")
                    await asyncio.sleep(0)
                exchange.write_now(b"0\r\n\r\n")
                exchange.end()
            case "cut":
                exchange.send_head(200, b"transfer-encoding: chunked\r\n")
                exchange.write_now(b"5\r\nfirst\r\n")
            case _:
                _reply(exchange, b"%d" % len(call.body))


def _reply(exchange: Exchange, body: bytes) -> None:
    exchange.answer(200, b"content-length: %d\r\n" % len(body), body)


class App:
    """Every other route: `/wait` answers when released, `/gone` says when its client has left,
    `/large` does not end soon; anything else tells what it was."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.left = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        body = b""
        message = await receive()
        while message["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
            message = await receive()
        if path == "/wait":
            await self.release.wait()
        if path == "/gone":
            while message["type"] != "http.disconnect":
                message = await receive()
            self.left.set()
            return
        told = f"{scope['method']} {path}?{scope['query_string'].decode()} {len(body)}".encode()
        if path == "/large":
            told = b"x" * 8_000_000
        length = str(len(told)).encode()
        headers = [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": told})


class EdgeServer:
    """uvicorn with our protocol, in a thread with a loop of its own."""

    def __init__(self, edge: type[EdgeProtocol]) -> None:
        self._edge = edge
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=uvloop.run, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(5)
        return self

    def __exit__(self, *raised: object) -> None:
        self.do(self.door.release.set)
        self.do(self.app.release.set)
        self.stop()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server did not stop"

    async def _serve(self) -> None:
        self.door, self.app = Door(), App()
        self._loop = asyncio.get_running_loop()

        self.server = uvicorn.Server(_config(self.app, self._edge, self.door))
        self.door.connections = self.server.server_state.connections
        self._loop.call_soon(self._started.set)
        await self.server.serve(sockets=[self._listener])

    def do(self, act: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # it has stopped, and its loop is closed
            self._loop.call_soon_threadsafe(act)

    def stop(self) -> None:
        self.server.should_exit = True

    def client(self) -> RawClient:
        return RawClient("127.0.0.1", self.port, timeout_seconds=4)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


def _config(app: App, edge: type[EdgeProtocol], door: Door) -> uvicorn.Config:
    protocol = functools.partial(edge, door=door)
    return uvicorn.Config(
        app,
        http=protocol,  # pyright: ignore[reportArgumentType] -- a factory is all it needs
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


@pytest.fixture
def edge() -> Iterator[EdgeServer]:
    with EdgeServer(PatientEdge) as server:
        yield server


@pytest.fixture
def quick() -> Iterator[EdgeServer]:
    with EdgeServer(QuickEdge) as server:
        yield server


def a_body(do: str = "reply", **more: object) -> bytes:
    return json.dumps({"do": do, **more}).encode()


def raw_request(body: bytes, *lines: str, path: str = CHAT, version: str = "1.1") -> bytes:
    head = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def test_what_a_connection_keeps_is_all_in_slots(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body()))
        client.read_reply()
        client.request("GET", "/v1/models")
        client.read_reply()
        (connection,) = edge.door.connections

        assert vars(connection) == {}


# --- winding down -----------------------------------------------------------------------------


def wind_down(edge: EdgeServer) -> None:
    """As the app does when it is told to stop."""
    done = threading.Event()

    def act() -> None:
        edge.door.winding_down = True
        for connection in list(edge.door.connections):
            connection.wind_down()
        done.set()

    edge.do(act)
    assert done.wait(5)


@pytest.mark.parametrize("before", [0, 1, 5], ids=["new", "used", "known"])
def test_when_winding_down_the_next_reply_is_the_connections_last_and_says_so(
    edge: EdgeServer, before: int
) -> None:
    with edge.client() as client:
        for _ in range(before):
            client.send(raw_request(a_body()))
            assert client.read_reply().header("connection") is None
        until(lambda: edge.connections == 1)
        wind_down(edge)
        client.send(raw_request(a_body()))
        reply = client.read_reply()

        assert (reply.status, reply.header("connection")) == (200, "close")
        assert client.at_end()


def test_when_winding_down_other_routes_say_it_too(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.request("GET", "/v1/models")
        assert client.read_reply().header("connection") is None
        wind_down(edge)
        client.request("GET", "/v1/models")
        assert client.read_reply().header("connection") == "close"


def test_a_connection_made_while_winding_down_is_served_once(edge: EdgeServer) -> None:
    wind_down(edge)
    with edge.client() as client:
        client.send(raw_request(a_body()))
        assert client.read_reply().header("connection") == "close"
        assert client.at_end()


@pytest.mark.parametrize(("path", "do"), [(CHAT, "wait"), ("/wait", "wait")], ids=["chat", "app"])
def test_a_reply_that_has_not_begun_can_still_say_it(edge: EdgeServer, path: str, do: str) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(do), path=path))
        until(lambda: edge.connections == 1)
        time.sleep(0.05)
        wind_down(edge)
        edge.do(edge.door.release.set)
        edge.do(edge.app.release.set)
        assert client.read_reply().header("connection") == "close"


def test_a_stream_that_has_begun_leaves_its_connection_for_one_more_request(
    edge: EdgeServer,
) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("stream")))
        assert client.read_head().header("connection") is None
        wind_down(edge)
        edge.do(edge.door.release.set)
        assert client.read_pieces()[-1].data == b"last"
        client.send(raw_request(a_body()))
        assert client.read_reply().header("connection") == "close"


def test_a_stop_lets_a_request_that_is_still_arriving_come_to_its_end(edge: EdgeServer) -> None:
    request = raw_request(a_body())
    with edge.client() as client:
        client.send(request[:-5])
        until(lambda: edge.connections == 1)
        time.sleep(0.05)
        edge.stop()
        time.sleep(0.3)
        client.send(request[-5:])
        reply = client.read_reply()

        assert (reply.status, reply.header("connection")) == (200, "close")


def test_a_stop_closes_a_connection_that_a_stream_has_left_idle(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("stream")))
        client.read_head()
        edge.stop()
        time.sleep(0.2)
        edge.do(edge.door.release.set)
        assert client.read_pieces()[-1].data == b"last"
        assert client.at_end()
        until(lambda: edge.connections == 0)


# --- what is a request ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/api/v1/chat/completions",
        "/v1/chat/completions?api-version=2024",
        "http://tollway.example/v1/chat/completions",
        "http://tollway.example/api/v1/chat/completions?x=/v1/models",
    ],
)
def test_the_metered_route_is_found_however_it_is_addressed(edge: EdgeServer, path: str) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), path=path))
        reply = client.read_reply()

    assert reply.body == b"%d" % len(a_body())
    assert len(edge.door.calls) == 1


@pytest.mark.parametrize("path", ["/v1/models?x=y", "/v1/chat/completions/quote", "/?/v1/chat"])
def test_other_routes_are_the_apps(edge: EdgeServer, path: str) -> None:
    with edge.client() as client:
        client.request("POST", path, b"{}")
        reply = client.read_reply()

    route, _, query = path.partition("?")
    assert reply.body == f"POST {route}?{query} 2".encode()
    assert edge.door.calls == []


def test_another_method_on_the_metered_route_is_the_apps(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.request("GET", CHAT)
        assert client.read_reply().body.startswith(b"GET /v1/chat/completions")


def test_a_call_has_what_the_gateway_asks_for(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(
            raw_request(
                a_body(),
                "Authorization: Bearer tw_x",
                "X-Request-Id: mine",
                "X-Credits-Max: 5",
                "Idempotency-Key: k",
                "X-Tollway-Timeout-Ms: 900",
            )
        )
        client.read_reply()

    call = edge.door.calls[0]
    assert call.authorization == b"Bearer tw_x"
    assert call.client_request_id == "mine"
    assert (call.credits_max, call.idempotency_key) == (b"5", b"k")
    assert call.timeout_ms == b"900"
    assert call.address == "127.0.0.1"
    assert call.body == a_body()
    assert call.request_id.startswith("req_")


def test_a_connection_is_kept_for_the_next_request(edge: EdgeServer) -> None:
    with edge.client() as client:
        for _ in range(3):
            client.send(raw_request(a_body()))
            assert client.read_reply().header("connection") is None
            client.request("GET", "/plain")
            client.read_reply()
    assert len(edge.door.calls) == 3


def test_requests_with_the_same_head_are_each_their_own(edge: EdgeServer) -> None:
    bodies = [a_body(pad="x" * size) for size in (1, 9, 400, 9, 70_000, 3)]
    with edge.client() as client:
        for body in bodies:
            client.send(raw_request(body, "Authorization: Bearer tw_x"))
            assert client.read_reply().body == b"%d" % len(body)
        client.request("GET", "/plain")
        assert client.read_reply().body == b"GET /plain? 0"
        client.send(raw_request(bodies[0], "Authorization: Bearer tw_other"))
        client.read_reply()

    calls = edge.door.calls
    assert [call.body for call in calls] == [*bodies, bodies[0]]
    assert [call.authorization for call in calls] == [b"Bearer tw_x"] * 6 + [b"Bearer tw_other"]
    assert len({call.request_id for call in calls}) == 7


def test_a_learned_head_may_come_in_pieces_or_behind_another_request(edge: EdgeServer) -> None:
    request = raw_request(a_body())
    with edge.client() as client:
        for _ in range(2):
            client.send(request)
            assert client.read_reply().status == 200
        client.send(request[:30])
        until(lambda: len(edge.door.finished) == 2)
        client.send(request[30:])
        assert client.read_reply().status == 200
        client.send(request + request)
        assert [client.read_reply().status for _ in range(2)] == [200, 200]
        client.send(raw_request(a_body("wait")))
        until(lambda: len(edge.door.calls) == 6)
        client.send(request)  # its head is known, and a request before it still runs
        edge.do(edge.door.release.set)
        assert client.read_reply().body == b"waited"
        assert client.read_reply().body == b"%d" % len(a_body())


SIZES = (70_000, 300_000, 1_048_576, 70_001, BODY_BYTES_MAX)


def test_long_requests_with_the_same_head_are_each_their_own(edge: EdgeServer) -> None:
    bodies = [a_body(pad=str(size % 10) * (size - 26)) for size in SIZES]
    with edge.client() as client:
        client.send(raw_request(a_body()))
        client.read_reply()
        for body in bodies:
            client.send(raw_request(body))
            assert client.read_reply().body == b"%d" % len(body)
        assert not parsers(edge)
        client.send(raw_request(a_body(pad="x" * BODY_BYTES_MAX)))
        assert client.read_reply().status == 413

    assert [call.body for call in edge.door.calls[1:-1]] == bodies


def parsers(edge: EdgeServer) -> list[object]:
    """Those that connections have: one whose requests are all like the first has none."""
    return [one.parser for one in edge.door.connections if one.parser is not None]


@pytest.mark.parametrize("size", SIZES)
def test_what_follows_a_long_request_is_the_next(edge: EdgeServer, size: int) -> None:
    long = raw_request(a_body(pad="x" * (size - 26)))
    short = raw_request(a_body())
    with edge.client() as client:
        client.send(short)
        client.read_reply()
        for follows in (short, short + long, b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n"):
            client.send(long[: size // 2])
            client.send(long[size // 2 : -10])
            client.send(long[-10:] + follows)
            assert client.read_reply().body == b"%d" % size
            for _ in range(1 + follows.count(b'"pad"')):
                assert client.read_reply().status == 200


def test_a_head_is_learned_from_a_long_request_too(edge: EdgeServer) -> None:
    body = a_body(pad="x" * 600_000)
    with edge.client() as client:
        client.send(raw_request(body))
        assert client.read_reply().body == b"%d" % len(body)
        client.send(raw_request(body)[:500_000])
        until(lambda: any(one._missing for one in list(edge.door.connections)))
        client.send(raw_request(body)[500_000:])
        assert client.read_reply().body == b"%d" % len(body)


@pytest.mark.parametrize("first", [CHAT, "/plain"])
def test_a_head_is_not_learned_for_what_comes_behind_it(edge: EdgeServer, first: str) -> None:
    """A read with one request, and the head of the next with a part of its long body."""
    alice = raw_request(a_body(pad="x" * 300), "authorization: Bearer alice", path=first)
    bob = raw_request(a_body(pad="y" * 200_000), "authorization: Bearer bob")
    with edge.client() as client:
        client.send(alice + bob[:400])
        time.sleep(0.1)
        client.send(bob[400:])
        for _ in range(2):
            assert client.read_reply().status == 200
        client.send(alice)
        assert client.read_reply().status == 200

    who = [call.authorization for call in edge.door.calls]
    if first == CHAT:
        assert who == [b"Bearer alice", b"Bearer bob", b"Bearer alice"]
    else:
        assert who == [b"Bearer bob"]


def test_a_stop_lets_a_long_request_come_to_its_end(edge: EdgeServer) -> None:
    request = raw_request(a_body(pad="x" * 300_000))
    with edge.client() as client:
        client.send(raw_request(a_body()))
        client.read_reply()
        client.send(request[:200_000])
        until(lambda: any(one._missing for one in list(edge.door.connections)))
        edge.stop()
        time.sleep(0.2)
        client.send(request[200_000:])
        reply = client.read_reply()
        assert (reply.status, reply.header("connection")) == (200, "close")


def test_a_connection_with_a_stream_keeps_little_of_the_edge(edge: EdgeServer) -> None:
    streams = 40
    lines = ["authorization: Bearer tw_x", *(f"x-{number}: {'y' * 90}" for number in range(10))]
    request = raw_request(a_body("stream"), *lines)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_tracing())
        for _ in range(streams):
            client = stack.enter_context(edge.client())
            client.send(request)
            client.read_head()
        taken = tracemalloc.take_snapshot()

    files = ("*/tollway/api/*", "*/uvicorn/*", "*/asyncio/locks.py")
    of_the_edge = taken.filter_traces([tracemalloc.Filter(True, file) for file in files])
    held = sum(trace.size for trace in of_the_edge.statistics("filename"))
    assert held / streams < 5000


@contextlib.contextmanager
def _tracing() -> Generator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def test_http_1_0_is_answered_and_closed(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), version="1.0"))
        assert client.read_reply().header("connection") == "close"
        assert client.at_end()


def test_connection_close_is_obeyed(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), "Connection: close"))
        assert client.read_reply().header("connection") == "close"
        assert client.at_end()


@pytest.mark.parametrize("size", [1, 7])
def test_a_request_may_come_in_pieces(edge: EdgeServer, size: int) -> None:
    data = raw_request(a_body(), "x-padding: " + "p" * 300)
    with edge.client() as client:
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
        assert client.read_reply().status == 200


def test_a_chunked_body_is_put_together(edge: EdgeServer) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with edge.client() as client:
        client.send(head.encode() + b'5\r\n{"do"\r\n8;x=y\r\n:"echo"}\r\n0\r\nx: y\r\n\r\n')
        assert client.read_reply().body == b"13"


@pytest.mark.parametrize("te", ["trailers", "gzip, Trailers;q=0.5"])
def test_te_trailers_is_seen(edge: EdgeServer, te: str) -> None:
    seen: list[bool] = []

    async def note(call: Call, exchange: Exchange) -> None:
        seen.append(exchange.head.accepts_trailers)
        _reply(exchange, b"")

    edge.door.serve = note
    with edge.client() as client:
        client.send(raw_request(a_body(), f"TE: {te}"))
        client.read_reply()
        client.send(raw_request(a_body()))
        client.read_reply()

    assert seen == [True, False]


@pytest.mark.parametrize("path", [CHAT, "/plain"])
@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_an_offer_to_upgrade_is_ignored(edge: EdgeServer, path: str, upgrade: str) -> None:
    """Java's HTTP client offers h2c with every request."""
    lines = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: AAAA")
    with edge.client() as client:
        for _ in range(2):
            client.send(raw_request(a_body(), *lines, path=path))
            reply = client.read_reply()
            assert reply.status == 200
            assert reply.body.endswith(b"%d" % len(a_body()))


def test_the_offer_may_come_in_pieces(edge: EdgeServer) -> None:
    data = raw_request(a_body(), "Connection: Upgrade", "Upgrade: h2c")
    with edge.client() as client:
        for byte in data:
            client.send(bytes([byte]))
        assert client.read_reply().body == b"%d" % len(a_body())


# --- what is none -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HELLO\r\n\r\n",
        b"GET / HTTP/7.3\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        raw_request(a_body(), "Transfer-Encoding: chunked"),
        raw_request(a_body(), f"Content-Length: {len(a_body())}"),
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /plain HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_gets_the_contracts_error(edge: EdgeServer, data: bytes) -> None:
    with edge.client() as client:
        client.send(data)
        reply = client.read_reply()
        client.end_sending()
        assert client.at_end()

    assert reply.status == 400
    assert reply.json()["error"]["code"] == "invalid_http"
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.header("x-request-id") == REQUEST_ID
    assert reply.header("connection") == "close"
    assert edge.door.calls == []


@pytest.mark.parametrize(
    "head",
    [
        "x: " + "y" * HEAD_BYTES_MAX,
        "x: " + "y" * 20 * HEAD_BYTES_MAX,
        "\r\n".join(f"x-{i}: " + "y" * 1000 for i in range(40)),
        "\r\n".join("a:" for _ in range(HEAD_BYTES_MAX // 5)),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/plain"])
def test_a_head_over_32_kib_is_refused(edge: EdgeServer, head: str, path: str) -> None:
    with edge.client() as client:
        client.send(f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
        reply = client.read_reply()

    assert reply.status == 431
    assert reply.json()["error"]["code"] == "request_header_fields_too_large"


def test_a_url_counts_as_head(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.request("GET", "/" + "x" * HEAD_BYTES_MAX)
        assert client.read_reply().status == 431


def test_a_head_that_never_ends_is_refused(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(5):
            client.send(b"y" * 16_000)
            time.sleep(0.01)
        assert client.read_reply().status == 431


@pytest.mark.parametrize("pieces", [1, 8, 60])
def test_a_head_under_32_kib_is_taken_in_any_pieces(edge: EdgeServer, pieces: int) -> None:
    lines = [f"x-{i}: " + "y" * 990 for i in range(30)]
    data = raw_request(a_body(), *lines)
    with edge.client() as client:
        size = len(data) // pieces
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
            time.sleep(0.001)
        assert client.read_reply().status == 200


def test_a_body_over_4_mib_is_refused_by_its_length(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\ncontent-length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode()
        )
        reply = client.read_reply()
        assert reply.status == 413
        assert reply.header("connection") == "close"


def test_the_refusal_of_a_body_arrives_while_the_body_is_still_sent(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\ncontent-length: {2 * BODY_BYTES_MAX}\r\n\r\n".encode()
        )
        for _ in range(64):
            client.send(b"x" * 65536)
        assert client.read_reply().status == 413


def test_a_chunked_body_is_refused_once_it_has_grown_over_4_mib(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(70):
            client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        reply = client.read_reply()
        assert reply.status == 413
        assert reply.json()["error"]["code"] == "payload_too_large"
    assert len(edge.door.calls) == 1
    assert edge.door.calls[0].body == b""


def test_a_body_of_exactly_4_mib_is_taken(edge: EdgeServer) -> None:
    body = a_body() + b" " * (BODY_BYTES_MAX - len(a_body()))
    with edge.client() as client:
        client.send(raw_request(body))
        assert client.read_reply().body == b"%d" % BODY_BYTES_MAX


@pytest.mark.parametrize(
    "line",
    ["Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=x"],
)
def test_a_body_of_another_type_is_refused(edge: EdgeServer, line: str) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), line))
        assert client.read_reply().status == 415
        client.send(raw_request(a_body(), "Content-Type: application/json; charset=utf-8"))
        assert client.read_reply().status == 200


def test_a_compressed_body_is_refused(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body(), "Content-Encoding: gzip"))
        assert client.read_reply().status == 415


# --- 100-continue -------------------------------------------------------------------------------


def expecting(body: bytes, *lines: str, version: str = "1.1") -> tuple[bytes, bytes]:
    request = raw_request(body, "Expect: 100-continue", *lines, version=version)
    return request[: -len(body)], body


@pytest.mark.parametrize("path", [CHAT, "/plain"])
def test_a_client_that_waits_for_100_continue_gets_it(edge: EdgeServer, path: str) -> None:
    head, body = expecting(a_body())
    with edge.client() as client:
        client.send(head.replace(CHAT.encode(), path.encode()))
        assert client.read_head().status == 100
        client.send(body)
        assert client.read_reply().status == 200


@pytest.mark.parametrize("line", ["Content-Type: text/plain", "Content-Encoding: gzip"])
def test_a_client_that_waits_is_refused_without_its_body(edge: EdgeServer, line: str) -> None:
    head, _ = expecting(a_body(), line)
    with edge.client() as client:
        client.send(head)
        assert client.read_reply().status == 415


def test_http_1_0_gets_no_100_continue(edge: EdgeServer) -> None:
    head, body = expecting(a_body(), version="1.0")
    with edge.client() as client:
        client.send(head)
        client.send(body)
        assert client.read_reply().status == 200


def test_100_continue_waits_for_the_reply_before_it(edge: EdgeServer) -> None:
    head, body = expecting(a_body())
    with edge.client() as client:
        client.send(raw_request(a_body("stream")) + head)
        first = client.read_head()
        until(lambda: edge.door.calls)
        edge.do(edge.door.release.set)
        assert b"".join(piece.data for piece in client.read_pieces()) == b"firstlast"
        assert first.status == 200
        assert client.read_head().status == 100
        client.send(body)
        assert client.read_reply().status == 200


# --- pipelining ---------------------------------------------------------------------------------


METERED = raw_request(a_body())
PLAIN = b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "requests",
    [
        [METERED] * 3,
        [METERED, PLAIN],
        [PLAIN, METERED],
        [PLAIN, METERED, PLAIN, PLAIN, METERED, METERED],
        # Over 64 KiB behind a metered request that still runs, the connection ends with its reply.
        [raw_request(b"x" * 100, path="/a"), METERED, raw_request(b"y" * 60_000, path="/b")],
    ],
    ids=["metered", "metered-app", "app-metered", "mixed", "bodies"],
)
def test_pipelined_requests_are_answered_in_order(edge: EdgeServer, requests: list[bytes]) -> None:
    with edge.client() as client:
        client.send(b"".join(requests))
        bodies = [client.read_reply().body for _ in requests]

    for request, body in zip(requests, bodies, strict=True):
        assert (body == b"%d" % len(a_body())) == (request == METERED)


def test_a_pipelined_request_waits_for_the_reply_before_it(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("wait")) + PLAIN + METERED)
        until(lambda: edge.door.calls)
        time.sleep(0.02)
        assert len(edge.door.calls) == 1
        edge.do(edge.door.release.set)
        assert client.read_reply().body == b"waited"
        assert client.read_reply().body.startswith(b"GET /plain")
        assert client.read_reply().status == 200


def test_a_metered_request_waits_for_the_app(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(b"GET /wait HTTP/1.1\r\n\r\n" + METERED)
        time.sleep(0.05)
        assert edge.door.calls == []
        edge.do(edge.app.release.set)
        assert client.read_reply().body.startswith(b"GET /wait")
        assert client.read_reply().status == 200


@pytest.mark.parametrize("behind", [METERED, PLAIN, METERED[:-3], METERED[:30]])
def test_a_client_that_leaves_is_noticed_behind_what_it_pipelined(
    edge: EdgeServer, behind: bytes
) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("wait")) + behind)
        until(lambda: edge.door.calls)

    until(lambda: edge.door.cancelled, 1.0)
    assert len(edge.door.calls) == 1


def test_a_client_that_leaves_is_noticed_behind_a_large_body(edge: EdgeServer) -> None:
    large = b"POST /plain HTTP/1.1\r\ncontent-length: 9000000\r\n\r\n"
    with edge.client() as client:
        client.send(raw_request(a_body("wait")) + large)
        for _ in range(40):
            client.send(b"x" * 65536)
        until(lambda: edge.door.calls)

    until(lambda: edge.door.cancelled, 1.0)


def test_the_reply_before_a_large_body_is_the_last(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("wait")) + raw_request(b"y" * 70_000, path="/plain"))
        until(lambda: edge.door.calls)
        time.sleep(0.05)
        edge.do(edge.door.release.set)
        reply = client.read_reply()
        assert (reply.status, reply.body) == (200, b"waited")
        assert reply.header("connection") == "close"
        client.end_sending()
        assert client.at_end()


def test_an_app_is_told_that_its_client_left_behind_what_it_pipelined(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(b"GET /gone HTTP/1.1\r\n\r\n" + METERED)
        time.sleep(0.05)

    assert edge.app.left.wait(1.0)


@pytest.mark.parametrize("first", [raw_request(a_body("wait")), b"GET /wait HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize(
    "behind", [b"\x00garbage", b"GET / HTTP/1.1\r\nx: " + b"y" * 2 * HEAD_BYTES_MAX + b"\r\n\r\n"]
)
def test_garbage_behind_a_sound_request_does_not_take_its_reply(
    edge: EdgeServer, first: bytes, behind: bytes
) -> None:
    with edge.client() as client:
        client.send(first + behind)
        time.sleep(0.05)
        edge.do(edge.door.release.set)
        edge.do(edge.app.release.set)
        assert client.read_reply().status == 200
        client.end_sending()
        assert client.at_end()


def test_too_many_pipelined_requests_end_the_connection_after_the_reply(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("wait")) + METERED * (PIPELINED_MAX + 5))
        until(lambda: edge.door.calls)
        edge.do(edge.door.release.set)
        assert client.read_reply().body == b"waited"
        client.end_sending()
        assert client.at_end()
    assert len(edge.door.calls) == 1


# --- a client that leaves -----------------------------------------------------------------------


@pytest.mark.parametrize("do", ["wait", "stream"])
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_client_that_leaves_ends_its_request_at_once(
    edge: EdgeServer, do: str, leave: str
) -> None:
    client = edge.client()
    client.send(raw_request(a_body(do)))
    until(lambda: edge.door.calls)
    getattr(client, leave)()

    until(lambda: edge.door.cancelled, 1.0)


def test_a_client_that_leaves_half_a_long_body_is_forgotten(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body()))
        client.read_reply()
        client.send(raw_request(a_body(pad="x" * 300_000))[:200_000])
        until(lambda: any(one._missing for one in list(edge.door.connections)))
    until(lambda: not edge.connections)
    assert len(edge.door.calls) == 1


def test_a_client_that_leaves_half_a_body_is_forgotten(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(METERED[:-3])
        until(lambda: edge.connections == 1)

    until(lambda: edge.connections == 0)
    assert edge.door.calls == []


def test_a_reply_that_is_cut_has_no_end(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("cut")))
        with pytest.raises(BodyCutError):
            client.read_reply()


# --- deadlines ----------------------------------------------------------------------------------


def closed_within(client: RawClient, seconds: float) -> bool:
    began = time.monotonic()
    return client.at_end() and time.monotonic() - began < seconds


@pytest.mark.parametrize(
    "pieces",
    [[b""], [b"P"], [METERED[:40]], [METERED[:-1]], [PLAIN[:-2]]],
    ids=["nothing", "a-byte", "half-a-head", "half-a-body", "half-an-app-head"],
)
def test_a_request_that_stops_is_closed(quick: EdgeServer, pieces: list[bytes]) -> None:
    with quick.client() as client:
        for piece in pieces:
            client.send(piece)
        assert closed_within(client, 2.0)
    assert quick.door.calls == []


def trickle(client: RawClient, data: bytes) -> None:
    """The last 480 bytes one by one, until the other side has had enough."""
    client.send(data[:-480])
    with contextlib.suppress(OSError):
        for byte in data[-480:]:
            client.send(bytes([byte]))
            time.sleep(0.01)


@pytest.mark.parametrize("body", [False, True], ids=["head", "body"])
def test_a_trickled_request_is_closed_however_it_trickles(quick: EdgeServer, body: bool) -> None:
    data = raw_request(b"x" * 500) if body else raw_request(b"", "x: " + "y" * 500)
    began = time.monotonic()
    with quick.client() as client:
        trickle(client, data)
    assert time.monotonic() - began < 2.0
    assert quick.door.calls == []


def test_a_long_request_that_stops_or_trickles_is_closed(quick: EdgeServer) -> None:
    data = raw_request(a_body(pad="x" * 300_000))
    with quick.client() as client:
        client.send(METERED)
        client.read_reply()
        client.send(data[:-80])
        assert closed_within(client, 2.0)
    began = time.monotonic()
    with quick.client() as client:
        client.send(METERED)
        client.read_reply()
        trickle(client, data)
    assert time.monotonic() - began < 2.0
    assert len(quick.door.calls) == 2


def test_each_request_has_its_whole_time(quick: EdgeServer) -> None:
    """The end of one body and the beginning of the next head come in one read."""
    with quick.client() as client:
        client.send(METERED[:-5])
        time.sleep(0.4)
        client.send(METERED[-5:] + METERED[:20])
        client.read_reply()
        time.sleep(0.25)
        client.send(METERED[20:])
        assert client.read_reply().status == 200


def test_an_idle_connection_is_closed(quick: EdgeServer) -> None:
    with quick.client() as client:
        client.send(METERED)
        client.read_reply()
        assert closed_within(client, 2.0)


def test_empty_lines_do_not_keep_a_connection(quick: EdgeServer) -> None:
    began = time.monotonic()
    with quick.client() as client, contextlib.suppress(OSError):
        for _ in range(400):
            client.send(b"\r\n")
            time.sleep(0.01)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("do", ["wait", "stream"])
def test_a_reply_may_take_longer_than_any_deadline(quick: EdgeServer, do: str) -> None:
    with quick.client() as client:
        client.send(raw_request(a_body(do)))
        time.sleep(1.0)
        quick.do(quick.door.release.set)
        assert client.read_reply().status == 200


def test_a_trickle_behind_a_running_request_does_not_take_its_reply(quick: EdgeServer) -> None:
    with quick.client() as client:
        client.send(raw_request(a_body("wait")) + b"PO")
        time.sleep(0.8)
        quick.do(quick.door.release.set)
        assert client.read_reply().body == b"waited"


# --- a client that does not read ----------------------------------------------------------------


def small_window(port: int, size: int = 4096) -> socket.socket:
    client = socket.socket()
    client.settimeout(5)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    client.connect(("127.0.0.1", port))
    return client


def test_a_slow_reader_presses_and_releases(edge: EdgeServer) -> None:
    with small_window(edge.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100)))
        until(lambda: edge.door.pressures == [True])
        edge.do(edge.door.release.set)
        received = 0
        while received < 100 * 65536:
            received += len(client.recv(65536))
        until(lambda: edge.door.finished)


def test_a_slow_reader_that_catches_up_releases(edge: EdgeServer) -> None:
    with small_window(edge.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100)))
        until(lambda: edge.door.pressures == [True])
        received = 0
        while received < 100 * 65536:
            received += len(client.recv(65536))
        until(lambda: edge.door.pressures == [True, False])


def test_a_client_that_never_reads_is_cut_and_its_request_cancelled(quick: EdgeServer) -> None:
    with small_window(quick.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100)))
        until(lambda: quick.door.cancelled, 3.0)
        until(lambda: quick.connections == 0)


def test_a_client_that_reads_slowly_is_not_cut(quick: EdgeServer) -> None:
    with small_window(quick.port, 256 * 1024) as client:
        client.sendall(raw_request(a_body("flood", chunks=300)))
        reader = client.makefile("rb")
        for _ in range(12):
            time.sleep(0.1)
            assert len(reader.read(1_000_000)) == 1_000_000
        reader.close()
        assert quick.door.cancelled == []


@pytest.mark.parametrize("closing", [False, True])
def test_a_finished_reply_that_nobody_reads_does_not_keep_its_connection(
    quick: EdgeServer, closing: bool
) -> None:
    lines = ["Connection: close"] if closing else []
    quick.do(quick.door.release.set)
    with small_window(quick.port) as client:
        client.sendall(raw_request(a_body("flood", chunks=100), *lines))
        until(lambda: quick.door.finished)
        until(lambda: quick.connections == 0, 4.0)


@pytest.mark.parametrize("closing", [False, True])
def test_the_rest_of_a_reply_that_nobody_reads_does_not_keep_its_connection(
    quick: EdgeServer, closing: bool
) -> None:
    lines = ["Connection: close"] if closing else []
    with small_window(quick.port) as client:
        client.sendall(raw_request(a_body("fill"), *lines))
        until(lambda: quick.door.finished)
        assert quick.connections == 1
        until(lambda: quick.connections == 0, 4.0)


def test_an_apps_reply_that_nobody_reads_does_not_keep_its_connection(quick: EdgeServer) -> None:
    with small_window(quick.port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        until(lambda: quick.connections == 1)
        until(lambda: quick.connections == 0, 4.0)


# --- a graceful stop ----------------------------------------------------------------------------


def test_a_graceful_stop_lets_a_stream_end_and_closes_what_is_idle(edge: EdgeServer) -> None:
    with edge.client() as idle, edge.client() as busy, edge.client() as behind:
        idle.send(METERED)
        idle.read_reply()
        busy.send(raw_request(a_body("stream")))
        behind.send(raw_request(a_body("stream")) + METERED)
        busy.read_head()
        until(lambda: len(edge.door.calls) == 3)
        edge.stop()
        assert idle.at_end()
        edge.do(edge.door.release.set)
        assert b"".join(piece.data for piece in busy.read_pieces()) == b"firstlast"
        assert busy.at_end()
        assert behind.read_reply().body == b"firstlast"
        assert behind.read_reply().header("connection") == "close"
        assert behind.at_end()
    assert edge.door.cancelled == []


def test_a_graceful_stop_lets_a_request_be_received(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(METERED[:-4])
        until(lambda: edge.connections == 1)
        time.sleep(0.05)
        edge.stop()
        time.sleep(0.2)
        client.send(METERED[-4:])
        reply = client.read_reply()
        assert reply.status == 200
        assert reply.header("connection") == "close"


# --- many at once -------------------------------------------------------------------------------


def test_a_turn_of_the_event_loop_takes_several_new_connections() -> None:
    """A turn may last 0.1 s, and a crowd that was let in one by one would queue for seconds."""
    clients = 4 * ACCEPTED_A_TURN

    async def connect_many() -> int:
        door: Any = Door()
        with socket.create_server(("127.0.0.1", 0), backlog=clients) as listener:
            server = HttpServer(_config(App(), PatientEdge, door), door)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
                await asyncio.sleep(0.001)
            with contextlib.ExitStack() as stack:
                for _ in range(clients):  # the loop does not turn meanwhile
                    client = socket.create_connection(listener.getsockname())
                    stack.callback(client.close)
                turns = 0
                while len(server.server_state.connections) < clients:
                    await asyncio.sleep(0)
                    turns += 1
            address = listener.getsockname()
            await server.stop(serving)
        with pytest.raises(ConnectionRefusedError):  # none of them listens any more
            socket.create_connection(address)
        return turns

    assert uvloop.run(connect_many()) < clients / 2


def test_a_stop_is_not_waited_for_by_the_tick() -> None:
    async def stop_seconds() -> float:
        door: Any = Door()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = HttpServer(_config(App(), PatientEdge, door), door)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)  # it waits for the next tick
            began = time.monotonic()
            await server.stop(serving)
            return time.monotonic() - began

    assert uvloop.run(stop_seconds()) < TICK_SECONDS - 0.1


# --- what the edge relies on --------------------------------------------------------------------


def test_uvicorn_is_the_one_whose_insides_the_edge_knows() -> None:
    """Another version: read `httptools_impl.py` anew beside `edge.py`, then change this."""
    assert uvicorn.__version__ == "0.54.0"
    config = uvicorn.Config(App(), log_config=None)
    loop = asyncio.new_event_loop()
    protocol = HttpToolsProtocol(config, ServerState(), {}, loop)
    loop.close()
    for name in (
        "parser",
        "cycle",
        "pipeline",
        "headers",
        "expect_100_continue",
        "timeout_keep_alive_task",
        "server_state",
        "tasks",
        "transport",
        "flow",
        "client",
        "_unset_keepalive_if_required",
        "_start_asgi_task",
        "on_response_complete",
        "shutdown",
    ):
        assert hasattr(protocol, name), name
    used = {"response_complete", "keep_alive", "disconnected", "message_event"}
    assert used <= set(RequestResponseCycle.__init__.__code__.co_names)
    assert used <= set(dir(Exchange))
    assert ServerState().default_headers == []
    # What `_Flow` has of its own, or makes when it is asked for.
    names = {"_transport", "read_paused", "write_paused", "_is_writable_event"}
    assert vars(FlowControl(asyncio.Transport())).keys() == names
