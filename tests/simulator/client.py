"""Hostile clients, and what they make of the bytes that the gateway wrote to them."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from msgspec import Struct
from tests.simulator.network import Transport

Manner = Literal["stays", "leaves", "never reads", "reads in fits"]


class Plan(Struct, frozen=True):
    """One client: when it comes, what it asks, how it behaves. `requests` of them go over one
    connection, all at once where `pipelined`; after a failure it tries again `retries` times."""

    at: float
    account: int
    token: int
    streams: bool
    wants_usage: bool
    trailers: bool
    max_tokens: int | None
    choices: int
    credits_max: int | None
    text_bytes: int
    directives: dict[str, Any]
    manner: Manner
    leaves_after_seconds: float
    leaves_after_bytes: int
    requests: int
    pipelined: bool
    retries: int

    @property
    def keyed(self) -> bool:
        """Whether its tries share an Idempotency-Key: a third of the clients."""
        return int(self.at * 1_000_000) % 3 == 0

    @property
    def timeout_ms(self) -> int | None:
        """A seventh of the clients have a deadline of their own."""
        which, chance = divmod(int(self.at * 1_000_000), 7)
        return (1, 40, 300, 2500)[which % 4] if chance == 0 else None

    def body(self) -> bytes:
        fields: dict[str, Any] = {
            "model": "acme/m1",
            "messages": [{"role": "user", "content": "x" * self.text_bytes}],
            "user": json.dumps(self.directives),
            "stream": self.streams,
        }
        if self.max_tokens is not None:
            fields["max_tokens"] = self.max_tokens
        if self.choices > 1:
            fields["n"] = self.choices
        if self.wants_usage:
            fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields).encode()


@dataclass(slots=True)
class Talk:
    """One connection: the gateway's end of it, and the requests in their order, by their ids."""

    plan: Plan
    life: int
    gateways: Transport
    tags: list[str] = field(default_factory=list[str])
    left_at: float | None = None

    def written_by(self, time: float) -> bytes:
        length = 0
        for at, total in self.gateways.written_at:
            if at > time:
                break
            length = total
        return bytes(self.gateways.written[:length])


class HostileClient(asyncio.Protocol):
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stirred = asyncio.Event()
        self.transport: Transport | None = None
        self.received = bytearray()
        self.lost = False

    async def run(
        self,
        accept: Callable[["HostileClient"], Transport],
        secret: str,
        tag: str,
        life: int,
        note: Callable[[Talk], None],
    ) -> None:
        """`note` gets the talk at once: a kill may come before its end."""
        plan = self._plan
        talk = Talk(plan, life, accept(self))
        note(talk)
        assert self.transport is not None
        behaving = asyncio.get_running_loop().create_task(self._misbehave(talk))
        for number in range(plan.requests):
            name = f"{tag}.{number}"
            talk.tags.append(name)
            self.transport.write(self._request(secret, name))
            if not plan.pipelined:
                await self._until_answered(number + 1)
            if self.lost:
                break
        await self._until_answered(plan.requests)
        behaving.cancel()
        if not self.lost:
            self._leave(talk)

    def _request(self, secret: str, tag: str) -> bytes:
        body = self._plan.body()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            "host: tollway",
            f"authorization: Bearer {secret}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {tag}",
        ]
        if self._plan.trailers:
            lines.append("te: trailers")
        if self._plan.keyed:
            lines.append(f"idempotency-key: {key_of(tag)}")
        if self._plan.credits_max is not None:
            lines.append(f"x-credits-max: {self._plan.credits_max}")
        if self._plan.timeout_ms is not None:
            lines.append(f"x-tollway-timeout-ms: {self._plan.timeout_ms}")
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def _misbehave(self, talk: Talk) -> None:
        plan = self._plan
        assert self.transport is not None
        if plan.manner == "leaves":
            await asyncio.sleep(plan.leaves_after_seconds)
            while len(self.received) < plan.leaves_after_bytes:
                self._stirred.clear()
                await self._stirred.wait()
            self._leave(talk)
        elif plan.manner == "never reads":
            self.transport.pause_reading()
        elif plan.manner == "reads in fits":
            while True:
                self.transport.pause_reading()
                await asyncio.sleep(plan.leaves_after_seconds)
                self.transport.resume_reading()
                await asyncio.sleep(0.01)

    def _leave(self, talk: Talk) -> None:
        assert self.transport is not None
        self.lost = True
        if talk.left_at is None:
            talk.left_at = asyncio.get_running_loop().time()
        self.transport.abort()
        self._stirred.set()

    async def _until_answered(self, count: int) -> None:
        while not self.lost and not self._has(count):
            self._stirred.clear()
            await self._stirred.wait()

    def _has(self, count: int) -> bool:
        return sum(response.complete for response in responses(self.received)) >= count

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._stirred.set()

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._stirred.set()


def key_of(tag: str) -> str:
    """`c1.2.0.5` is the first try of the sixth request of client 2 in life 1."""
    client, _, number = tag.rsplit(".", 2)
    return f"{client}.{number}"


class Response(Struct):
    """As far as it was written."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool
    trailers: dict[str, str]

    @property
    def events(self) -> list[bytes]:
        """Whole ones."""
        return self.body.split(b"\n\n")[:-1]

    @property
    def pieces(self) -> int:
        """Deltas with output."""
        return sum(_pieces(event) for event in self.events if b'"content":"' in event)

    @property
    def done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")


def _pieces(event: bytes) -> int:
    fields = json.loads(event.removeprefix(b"data: "))
    return sum(bool(choice["delta"].get("content")) for choice in fields.get("choices", ()))


def responses(data: bytes | bytearray) -> list[Response]:
    found: list[Response] = []
    at = 0
    while (end := data.find(b"\r\n\r\n", at)) >= 0:
        first, *lines = data[at:end].decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        response = Response(int(first.split(" ")[1]), headers, b"", False, {})
        found.append(response)
        at = end + 4
        if "content-length" in headers:
            length = int(headers["content-length"])
            response.body = bytes(data[at : at + length])
            response.complete = len(response.body) == length
            at += length
        elif "transfer-encoding" in headers:
            at = _chunks(response, data, at)
        if not response.complete:
            break
    return found


def _chunks(response: Response, data: bytes | bytearray, at: int) -> int:
    parts: list[bytes] = []
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end], 16)
        at = end + 2
        if size == 0:
            stop = data.find(b"\r\n", at)
            while stop > at:
                name, _, value = data[at:stop].decode().partition(": ")
                response.trailers[name.lower()] = value
                at = stop + 2
                stop = data.find(b"\r\n", at)
            response.complete = stop == at
            at = stop + 2
            break
        parts.append(bytes(data[at : at + size]))
        at += size + 2
    response.body = b"".join(parts)
    return at
