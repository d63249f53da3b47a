"""How long a request may take to arrive, and a connection may be idle."""

import contextlib
import time

import pytest
from tests.support.edge import METERED, PLAIN, EdgeServer, a_body, raw_request, until
from tests.support.http import RawClient

from tollway.api.edge import EdgeProtocol


class EarlyIdle(EdgeProtocol):
    idle_seconds_max = 0.5


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


def test_a_connection_is_not_idle_while_a_head_arrives() -> None:
    with EdgeServer(EarlyIdle) as server, server.client() as client:
        client.send(METERED)
        assert client.read_reply().status == 200
        client.send(METERED[:20])
        time.sleep(2 * EarlyIdle.idle_seconds_max)
        client.send(METERED[20:])
        assert client.read_reply().status == 200


def test_what_a_long_last_reply_has_not_sent_yet_is_not_cut_off() -> None:
    """It took longer than a connection may be idle, and its client reads it only afterwards."""
    with EdgeServer(EarlyIdle) as server, server.client() as client:
        client.send(raw_request(a_body("flood", chunks=200), "connection: close"))
        time.sleep(2 * EarlyIdle.idle_seconds_max)
        server.do(server.door.release.set)
        until(lambda: server.door.finished)
        time.sleep(EarlyIdle.idle_seconds_max / 2)
        assert len(client.read_reply().body) == 200 * 65536


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
