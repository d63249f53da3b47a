"""The edge over real sockets, for its tests: uvicorn with our protocol in a thread of its own.

The door is a small one that does what a request's body says; `QuickEdge` has short deadlines.
"""

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import uvicorn
import uvloop
from tests.support.http import RawClient

from tollway.api.address import Network
from tollway.api.edge import EdgeProtocol
from tollway.api.exchange import Exchange
from tollway.api.idleness import Idleness
from tollway.api.replies import error_reply, send
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
                answer_with(exchange, b"waited")
            case "stream":
                exchange.on_pressure(self.pressures.append)
                exchange.send_head(200, b"transfer-encoding: chunked\r\n")
                exchange.write_now(b"5\r\nfirst\r\n")
                await self.release.wait()
                exchange.write_now(b"4\r\nlast\r\n0\r\n\r\n")
                exchange.end()
            case "soon":
                exchange.send_head(200, b"transfer-encoding: chunked\r\n")
                exchange.write_now(b"5\r\nfirst\r\n")
                exchange.write_soon(b"4\r\nsoon\r\n", lambda: None)
                exchange.write_now(b"3\r\nnow\r\n0\r\n\r\n")
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
                answer_with(exchange, b"%d" % len(call.body))


def answer_with(exchange: Exchange, body: bytes) -> None:
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

        self.server = uvicorn.Server(a_config(self.app, self._edge, self.door))
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


def a_config(app: App, edge: type[EdgeProtocol], door: Door) -> uvicorn.Config:
    protocol = functools.partial(edge, door=door, idleness=Idleness(0.05))
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


def a_body(do: str = "reply", **more: object) -> bytes:
    return json.dumps({"do": do, **more}).encode()


def raw_request(body: bytes, *lines: str, path: str = CHAT, version: str = "1.1") -> bytes:
    head = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


METERED = raw_request(a_body())


def become_known(client: RawClient, request: bytes = METERED, times: int = 2) -> None:
    """A head is learned from a connection's second request."""
    for _ in range(times):
        client.send(request)
        assert client.read_reply().status == 200


PLAIN = b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n"
