"""Requests that a client sends before it has the reply to the one before."""

import time

import pytest
from tests.support.edge import METERED, PLAIN, EdgeServer, a_body, raw_request, until

from tollway.api.edge import HEAD_BYTES_MAX, PIPELINED_MAX


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
        client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n" + METERED)
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
    large = b"POST /plain HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n"
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
        client.send(b"GET /gone HTTP/1.1\r\nhost: x\r\n\r\n" + METERED)
        time.sleep(0.05)

    assert edge.app.left.wait(1.0)


@pytest.mark.parametrize(
    "first", [raw_request(a_body("wait")), b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n"]
)
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
