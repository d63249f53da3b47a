"""How a server that is told to stop ends what it has."""

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
import uvloop
from tests.support.edge import (
    CHAT,
    METERED,
    App,
    Door,
    EdgeServer,
    PatientEdge,
    a_body,
    a_config,
    become_known,
    raw_request,
    until,
)

from tollway.api.server import TICK_SECONDS, HttpServer


class BriefEdge(PatientEdge):
    last_idle_seconds = 0.2


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


def test_a_stop_lets_a_slow_client_read_what_was_written_before() -> None:
    with EdgeServer(BriefEdge) as server, server.client() as client:
        client.send(raw_request(a_body("flood", chunks=200)))
        until(lambda: server.door.calls)
        server.stop()
        time.sleep(0.2)
        server.do(server.door.release.set)
        until(lambda: server.door.finished)
        time.sleep(3 * BriefEdge.last_idle_seconds)
        assert len(client.read_reply().body) == 200 * 65536


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


def test_a_stop_lets_a_long_request_come_to_its_end(edge: EdgeServer) -> None:
    request = raw_request(a_body(pad="x" * 300_000))
    with edge.client() as client:
        become_known(client)
        client.send(request[:200_000])
        until(lambda: any(one._missing for one in list(edge.door.connections)))
        edge.stop()
        time.sleep(0.2)
        client.send(request[200_000:])
        reply = client.read_reply()
        assert (reply.status, reply.header("connection")) == (200, "close")


def test_a_stop_is_not_waited_for_by_the_tick() -> None:
    async def stop_seconds() -> float:
        door: Any = Door()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = HttpServer(a_config(App(), PatientEdge, door), door)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)  # it waits for the next tick
            began = time.monotonic()
            await server.stop(serving)
            return time.monotonic() - began

    assert uvloop.run(stop_seconds()) < TICK_SECONDS - 0.1
