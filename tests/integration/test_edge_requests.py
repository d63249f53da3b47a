"""What the edge takes for a request, and hands to the metered route or to the app."""

import contextlib
import time
import tracemalloc
from collections.abc import Generator

import pytest
from tests.support.edge import (
    CHAT,
    EdgeServer,
    a_body,
    answer_with,
    become_known,
    raw_request,
    until,
)

from tollway.api.body import BODY_BYTES_MAX
from tollway.api.exchange import Exchange
from tollway.gateway.types import Call


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
        become_known(client)
        for body in bodies:
            client.send(raw_request(body))
            assert client.read_reply().body == b"%d" % len(body)
        assert not parsers(edge)
        client.send(raw_request(a_body(pad="x" * BODY_BYTES_MAX)))
        assert client.read_reply().status == 413

    assert [call.body for call in edge.door.calls[2:-1]] == bodies


def parsers(edge: EdgeServer) -> list[object]:
    """Those that connections have: one whose requests are alike has none."""
    return [one.parser for one in edge.door.connections if one.parser is not None]


@pytest.mark.parametrize("size", SIZES)
def test_what_follows_a_long_request_is_the_next(edge: EdgeServer, size: int) -> None:
    long = raw_request(a_body(pad="x" * (size - 26)))
    short = raw_request(a_body())
    with edge.client() as client:
        become_known(client, short)
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
        become_known(client, raw_request(body))
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
        become_known(client, raw_request(a_body(), "authorization: Bearer carol"), times=1)
        client.send(alice + bob[:400])
        time.sleep(0.1)
        client.send(bob[400:])
        for _ in range(2):
            assert client.read_reply().status == 200
        client.send(alice)
        assert client.read_reply().status == 200

    who = [call.authorization for call in edge.door.calls[1:]]
    if first == CHAT:
        assert who == [b"Bearer alice", b"Bearer bob", b"Bearer alice"]
    else:
        assert who == [b"Bearer bob"]


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

    files = ("*/tollway/api/*", "*/tollway/heads.py", "*/uvicorn/*", "*/asyncio/locks.py")
    of_the_edge = taken.filter_traces([tracemalloc.Filter(True, file) for file in files])
    held = sum(trace.size for trace in of_the_edge.statistics("filename"))
    assert held / streams < 2800


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
        answer_with(exchange, b"")

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
