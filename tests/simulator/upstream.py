"""The hostile model server in memory. It plays the answers of `tests.support.answers`, as the
request's own directives say, and is the oracle of what it truly sent: an event has started once its
first byte was handed to the gateway, and was sent once its last was."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from tests.simulator.loop import VirtualLoop
from tests.simulator.network import Transport, join
from tests.support.answers import Answer, Asked, Directives, Fault, Mark, Pause


class Served(Struct):
    """One request that reached the upstream, and what it was sent. Marks are bytes of its
    connection."""

    request_id: str
    asked: Asked
    transport: Transport
    marks: list[Mark]
    answered_at: float | None = None  # to its end

    @property
    def started_tokens(self) -> int:
        return sum(m.tokens for m in self.marks if m.start < self.transport.delivered)

    @property
    def whole(self) -> list[Mark]:
        return [m for m in self.marks if m.end <= self.transport.delivered]


class HostileUpstream:
    """Implements the loop's `Network`. `served` is the record, over all lives of the gateway."""

    def __init__(self, random: Random, refuses: float, drops_idle: float) -> None:
        self._random = random
        self._refuses = refuses
        self.drops_idle = drops_idle
        self.served: list[Served] = []
        self._open: set[_Server] = set()

    def connect(self, factory: Callable[[], Any], loop: VirtualLoop) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = loop.create_future()
        dice = self._random.random()
        if dice < self._refuses / 2:
            loop.call_later(0.001, _fail, future)
        elif dice >= self._refuses:  # between the two: never answered
            loop.call_later(self._random.choice((0.0, 0.002, 0.2)), self._accept, future, factory)
        return future

    def _accept(self, future: "asyncio.Future[Any]", factory: Callable[[], Any]) -> None:
        if future.done():
            return
        protocol, server = factory(), _Server(self, self._random)
        ours, _ = join(future.get_loop(), self._random, protocol, server)
        self._open.add(server)
        future.set_result((ours, protocol))

    def forget(self, server: "_Server") -> None:
        self._open.discard(server)

    def forget_all(self) -> None:
        """After a kill: their loop is gone."""
        self._open.clear()

    @property
    def open_connections(self) -> int:
        return len(self._open)


def _fail(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(ConnectionRefusedError())


class _Server(asyncio.Protocol):
    """One accepted connection: requests one after another."""

    def __init__(self, upstream: HostileUpstream, random: Random) -> None:
        self._upstream = upstream
        self._random = random
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._transport: Transport | None = None
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.forget(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not separator:
            return
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(headers[b"content-length"])
        if len(rest) < length:
            return
        self._received = bytearray(rest[length:])
        assert self._transport is not None
        body = msgspec.json.decode(rest[:length], type=dict[str, Any])
        asked = Asked(len(self._upstream.served) + 1, body)
        served = Served(headers[b"x-request-id"].decode(), asked, self._transport, [])
        self._upstream.served.append(served)
        directives = msgspec.json.decode(body["user"], type=Directives)
        answer = directives.answer(asked)
        self._task = asyncio.get_running_loop().create_task(self._play(answer, served))

    async def _play(self, answer: Answer, served: Served) -> None:
        transport = served.transport
        begin = len(transport.written)
        stop = None
        if answer.fault_at_byte is not None:
            stop = begin + answer.fault_at_byte[0]
        for step in answer.steps(served.asked):
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Fault):
                await self._fail(step.kind)
                return
            else:
                await self._room.wait()
                here = len(transport.written)
                data = step.data if stop is None else step.data[: max(0, stop - here)]
                served.marks += [mark.moved(here) for mark in step.marks]
                transport.write(data)
                if len(data) < len(step.data):
                    assert answer.fault_at_byte is not None
                    await self._fail(answer.fault_at_byte[1])
                    return
        served.answered_at = asyncio.get_running_loop().time()
        if self._random.random() < self._upstream.drops_idle:
            await asyncio.sleep(self._random.choice((0.0, 0.01, 1.0)))
            transport.close()  # while the gateway may be sending the next request

    async def _fail(self, kind: str) -> None:
        assert self._transport is not None
        if kind == "cut":
            self._transport.close()
        elif kind == "reset":
            await asyncio.sleep(self._random.choice((0.0, 0.05)))
            self._transport.abort()
