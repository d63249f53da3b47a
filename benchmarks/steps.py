"""What each step of a request costs: the real parts of a running server, called one by one.

    python -m benchmarks.steps [--rounds 7] [--times 1000] [--no-page]

The server is started as ever, with its data in memory; in its own event loop each step is then
called many times over, with the values that the step before it made. A figure is CPU of that thread
and the lowest of the rounds; `writer` is that of the writer's thread. Alone in a loop everything a
step needs is at hand: within a request it costs more, and the event loop and the kernel come on
top. The table goes into docs/performance.md.
"""

import argparse
import asyncio
import contextlib
import functools
import http.client
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.counting import (
    BODY,
    REPLY,
    STREAM_HEAD,
    Model,
    chunk_of_a_stream,
    compact,
    head_of_a_reply,
    request_of,
    serve_here,
)
from tests.support.server import START_SECONDS_MAX

from benchmarks.gateways import MEMORY, MODEL, PATH, tollway_settings
from benchmarks.machine import machine
from benchmarks.marked import write_between_marks
from benchmarks.processes import free_port, take_priority
from tollway.api.admin.control import ask
from tollway.api.completions import ChatReply
from tollway.api.edge import EdgeProtocol
from tollway.api.exchange import Exchange
from tollway.api.idleness import Idleness
from tollway.clock import new_id
from tollway.gateway.authenticate import require_active_account, require_scope
from tollway.gateway.pipeline import CHAT_SCOPE, Pipeline
from tollway.gateway.relay import Silences, relay
from tollway.gateway.settle import outcome_of
from tollway.gateway.types import Call, Meter
from tollway.process import spare_sqlite_its_statistics
from tollway.upstreams.connection import Connection
from tollway.wire.requests import parse_chat_request

PAGE = Path("docs/performance.md")
WRITER = "tollway-write"
FILED_SECONDS = 0.6
"""Charges are filed when nothing has come for a while, which is part of their cost."""


@dataclass
class Server:
    """What is caught of the running server as it is put together."""

    pipelines: list[Pipeline] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    edges: list[EdgeProtocol] = field(default_factory=list)


_SOCKET = socket.socket()  # its options may be set


class Wire(asyncio.Transport):
    """Takes what is written and answers nothing, or `answer` at the loop's next turn."""

    def __init__(self, answer: Callable[[], None] | None = None) -> None:
        addresses = {"peername": ("127.0.0.1", 4000), "sockname": ("127.0.0.1", 8080)}
        super().__init__({**addresses, "socket": _SOCKET})
        self._answer = answer

    def write(self, data: Any) -> None:
        del data
        if self._answer is not None:
            asyncio.get_running_loop().call_soon(self._answer)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Door:
    """Answers at once: what is left is the edge."""

    trusted_proxies = ()
    winding_down = False

    async def serve(self, call: Call, exchange: Exchange) -> None:
        del call
        exchange.answer(200, b"content-length: 0\r\n", b"")

    def refuse_unparsed(self, error: Exception, exchange: Exchange) -> None:
        raise error


class SilentDoor(Door):
    async def serve(self, call: Call, exchange: Exchange) -> None: ...


class Steps:
    def __init__(self, server: Server, secret: str, times: int) -> None:
        self.pipeline = server.pipelines[-1]
        self.connections = server.connections
        self.edge = server.edges[-1]
        self.times = times
        self.request = request_of(secret, {**BODY, "model": MODEL})
        self.whole_reply = head_of_a_reply(len(compact(REPLY))) + compact(REPLY)
        self.authorization = b"Bearer " + secret.encode()

    async def round(self) -> dict[str, float]:
        """Microseconds of each step."""
        took = {"edge": await self._edge()}
        pipeline, times = self.pipeline, range(self.times)
        await pipeline._authenticator.authenticate(self.authorization, "127.0.0.1")
        body = compact({**BODY, "model": MODEL})
        with _timed(took, "authenticate", self.times):
            for _ in times:
                caller = pipeline._authenticator.cached_caller(self.authorization)
                require_scope(caller, CHAT_SCOPE)
                require_active_account(caller)
        with _timed(took, "parse", self.times):
            for _ in times:
                parsed = parse_chat_request(body)
        calls = [self._call(body) for _ in times]
        admissions: list[Any] = []
        with _timed(took, "admit", self.times):
            for call in calls:
                admissions.append(await pipeline._gate.admit(caller, call, parsed))
        with _timed(took, "route", self.times):
            for admission in admissions:
                pipeline._router.route(admission)
        self._connect(self._whole_reply)
        answers: list[Any] = []
        meters = [Meter() for _ in times]
        turn = await self._turn_us()
        with _timed(took, "relay", self.times):
            for admission, meter in zip(admissions, meters, strict=True):
                route = pipeline._router.route(admission)
                answers.append(await relay(route, admission, None, meter, Silences()))
        took["relay"] -= turn + took["route"]
        outcomes: list[Any] = []
        with _timed(took, "outcome", self.times):
            for admission, meter in zip(admissions, meters, strict=True):
                outcomes.append(outcome_of(admission, meter, time.monotonic()))
        writer = next(thread for thread in threading.enumerate() if thread.name == WRITER)
        before = time.clock_gettime_ns(time.pthread_getcpuclockid(writer.ident))
        settling: list[Any] = []
        with _timed(took, "settle", self.times):
            for admission, outcome in zip(admissions, outcomes, strict=True):
                settling.append(pipeline._ledger.settle(admission.hold, outcome, None))
        settlements = [await future for future in settling]
        await asyncio.sleep(FILED_SECONDS)
        after = time.clock_gettime_ns(time.pthread_getcpuclockid(writer.ident))
        took["writer"] = (after - before) / 1000 / self.times
        replies = [ChatReply(exchange) for exchange in self._open_exchanges(self.times)]
        with _timed(took, "observe", self.times):
            for done in zip(admissions, outcomes, settlements, replies, strict=True):
                admission, outcome, settlement, reply = done
                pipeline._observer.settled(admission, outcome, settlement, None, reply)
        with _timed(took, "reply", self.times):
            for answer, reply, outcome, settlement in zip(
                answers, replies, outcomes, settlements, strict=True
            ):
                answer.finish(reply, outcome, settlement)
        await asyncio.sleep(0)
        took["chunk"] = await self._chunk(caller)
        for admission in admissions:
            pipeline._gate.leave(admission)
        return took

    def _call(self, body: bytes) -> Call:
        now = time.time()
        request_id = new_id("req", now)
        return Call(request_id, now, time.monotonic(), "127.0.0.1", self.authorization, body)

    # --- the edge ---

    async def _edge(self) -> float:
        """A request's bytes in, its task, and a reply's bytes out."""
        protocol = self._protocol(Door())
        took: dict[str, float] = {}
        turn = await self._turn_us()
        with _timed(took, "edge", self.times):
            for _ in range(self.times):
                protocol.data_received(self.request)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        return took["edge"] - 2 * turn

    def _protocol(self, door: Door) -> EdgeProtocol:
        state = self.edge.server_state
        protocol = EdgeProtocol(self.edge.config, state, {}, door=door, idleness=Idleness())
        protocol.connection_made(Wire())
        state.connections.discard(protocol)
        return protocol

    def _open_exchanges(self, count: int) -> list[Exchange]:
        """None of them answered yet."""
        protocols = [self._protocol(SilentDoor()) for _ in range(count)]
        for protocol in protocols:
            protocol.data_received(self.request)
        return [protocol.cycle for protocol in protocols]

    async def _turn_us(self) -> float:
        """What one turn of the loop costs by itself."""
        took: dict[str, float] = {}
        with _timed(took, "turn", self.times):
            for _ in range(self.times):
                await asyncio.sleep(0)
        return took["turn"]

    # --- the upstream ---

    def _connect(self, answer: Callable[[Connection], None]) -> Connection:
        """The connection that a real request has left in the pool, with a wire of ours."""
        connection = self.connections[-1]
        connection.connection_made(Wire(functools.partial(answer, connection)))
        return connection

    def _whole_reply(self, connection: Connection) -> None:
        connection.data_received(self.whole_reply)

    async def _chunk(self, caller: Any) -> float:
        """One chunk of a stream, from the upstream's bytes to the client's."""
        connection = self._connect(lambda _: None)
        pipeline = self.pipeline
        parsed = parse_chat_request(
            compact({**BODY, "model": MODEL, "stream": True, "max_tokens": 4000})
        )
        admission = await pipeline._gate.admit(caller, self._call(b""), parsed)
        (exchange,) = self._open_exchanges(1)
        relaying = asyncio.ensure_future(
            relay(
                pipeline._router.route(admission),
                admission,
                ChatReply(exchange),
                Meter(),
                Silences(),
            )
        )
        await asyncio.sleep(0.01)
        first = chunk_of_a_stream({"role": "assistant", "content": ""})
        connection.data_received(STREAM_HEAD + first)
        chunk = chunk_of_a_stream({"content": " bridge"})
        connection.data_received(chunk)
        took: dict[str, float] = {}
        with _timed(took, "chunk", self.times):
            for _ in range(self.times):
                connection.data_received(chunk)
        relaying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await relaying
        outcome = outcome_of(admission, Meter(), time.monotonic())
        await pipeline._ledger.settle(admission.hold, outcome, None)
        pipeline._gate.leave(admission)
        exchange.end()
        return took["chunk"]


@contextlib.contextmanager
def _timed(took: dict[str, float], name: str, times: int):
    began = time.thread_time_ns()
    yield
    took[name] = (time.thread_time_ns() - began) / 1000 / times


# --- the run --------------------------------------------------------------------------------------

ROWS = {
    "edge": "The edge: a request's bytes in, its task, a reply's bytes out",
    "authenticate": "The token, its scope and its account",
    "parse": "The body, parsed and validated, and written for the upstream",
    "admit": "Admission: model, price, places in flight and in the rate, hold",
    "route": "Route: the upstream, and what it is asked",
    "relay": "Relay of a whole reply: the request out, the reply parsed",
    "outcome": "Usage to charge",
    "settle": "Settlement on the event loop",
    "observe": "Metrics and the access log's line",
    "reply": "The reply: its body written anew with the credits, its head",
    "writer": "The charge on the writer's thread (SQLite, in memory: no fsync), full batches",
}


def measure(rounds: int, times: int) -> dict[str, float]:
    """The lowest of the rounds. Runs the server on this thread, and can so only run once in a
    process."""
    server, best = Server(), dict[str, float]()
    with (
        tempfile.TemporaryDirectory(prefix="tollway-steps-", dir=MEMORY) as name,
        _caught(server),
    ):
        folder, port = Path(name), free_port()
        config = tollway_settings(folder, Model().port)
        driver = threading.Thread(
            target=_drive, args=(server, folder / "data", port, rounds, times, best)
        )
        driver.start()
        serve_here(config, folder / "data", port)
        driver.join()
    return best


@contextlib.contextmanager
def _caught(server: Server):
    """The parts, as the program makes them."""
    with contextlib.ExitStack() as stack:
        for kind, into in (
            (Pipeline, server.pipelines),
            (Connection, server.connections),
            (EdgeProtocol, server.edges),
        ):
            make = _noting(kind.__init__, into.append)
            stack.enter_context(mock.patch.object(kind, "__init__", make))
        yield


def _noting(make: Callable[..., None], note: Callable[[Any], None]) -> Callable[..., None]:
    @functools.wraps(make)
    def noting(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        note(self)

    return noting


def _drive(
    server: Server, data: Path, port: int, rounds: int, times: int, best: dict[str, float]
) -> None:
    try:
        secret = _token(data)
        _ask(port, secret)
        loop = server.edges[0].loop
        steps = Steps(server, secret, times)
        for _ in range(rounds):
            _ask(port, secret)  # so that there is a connection to the upstream
            took = asyncio.run_coroutine_threadsafe(steps.round(), loop).result()
            for name, us in took.items():
                best[name] = min(us, best.get(name, us))
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _ask(port: int, secret: str) -> None:
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("POST", PATH, compact({**BODY, "model": MODEL}), headers)
        assert connection.getresponse().status == 200


def _token(data: Path) -> str:
    deadline = time.monotonic() + START_SECONDS_MAX
    while (issued := ask(data, "token issue", {"account": "default"})) is None:
        if time.monotonic() > deadline:
            raise SystemExit("the server did not come up")
        time.sleep(0.02)
    return issued["personal_access_token"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--no-page", action="store_true", help="print the table alone")
    parser.add_argument("--nice", type=int, default=0, help="-20: the neighbours wait (root)")
    chosen = parser.parse_args()
    take_priority(chosen.nice)
    spare_sqlite_its_statistics()
    best = measure(chosen.rounds, chosen.times)
    table = _table(best)
    print(table)
    if not chosen.no_page:
        day = time.strftime("%Y-%m-%d")
        head = f"{day}, {machine()}; the lowest of {chosen.rounds} rounds of {chosen.times:,}.\n\n"
        write_between_marks(PAGE, "steps", head + table)


def _table(best: dict[str, float]) -> str:
    lines = ["| step | us |", "|---|--:|"]
    lines += [f"| {title} | {best[key]:.1f} |" for key, title in ROWS.items()]
    lines.append(f"| **Together** | **{sum(best[key] for key in ROWS):.1f}** |")
    chunk = "One chunk of a stream, from the upstream's bytes to the client's"
    lines.append(f"| {chunk} | {best['chunk']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
