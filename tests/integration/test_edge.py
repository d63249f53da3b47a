"""What the edge relies on in uvicorn, and what a connection costs.

What a client may do to a connection is in `test_edge_<part>.py`, part by part.
"""

import asyncio
import contextlib
import socket
from typing import Any

import pytest
import uvicorn
import uvloop
from tests.support.edge import (
    App,
    Door,
    EdgeServer,
    PatientEdge,
    a_body,
    a_config,
    raw_request,
)
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tollway.api.exchange import Exchange
from tollway.api.server import ACCEPTED_A_TURN, HttpServer


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


def test_what_a_connection_keeps_is_all_in_slots(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body()))
        client.read_reply()
        client.request("GET", "/v1/models")
        client.read_reply()
        (connection,) = edge.door.connections

        assert vars(connection) == {}


def test_a_turn_of_the_event_loop_takes_several_new_connections() -> None:
    """A turn may last 0.1 s, and a crowd that was let in one by one would queue for seconds."""
    clients = 4 * ACCEPTED_A_TURN

    async def connect_many() -> int:
        door: Any = Door()
        with socket.create_server(("127.0.0.1", 0), backlog=clients) as listener:
            server = HttpServer(a_config(App(), PatientEdge, door), door)
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


def test_what_is_written_now_comes_behind_what_was_to_be_written_soon(edge: EdgeServer) -> None:
    with edge.client() as client:
        client.send(raw_request(a_body("soon")))
        assert client.read_reply().body == b"firstsoonnow"
