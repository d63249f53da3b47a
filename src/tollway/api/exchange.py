"""One request on the short way and its reply: what the edge's connection hands to a `Door`.

An exchange stands where uvicorn keeps its `RequestResponseCycle`, with the four attributes that
uvicorn looks at there, so that pipelining and a graceful stop treat both alike.
"""

import asyncio
import http
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from msgspec import Struct

from tollway.api.address import Network
from tollway.api.body import BODY_BYTES_MAX, too_large
from tollway.errors import RequestError
from tollway.gateway.types import Call

if TYPE_CHECKING:
    from tollway.api.edge import EdgeProtocol

WAITING_EVENTS_MAX = 32
"""Of all streams, until they are written: the first of them waits while the other streams are read,
some 20 us each."""

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode())
    for status in http.HTTPStatus
}


class Door(Protocol):
    """What the edge hands requests to."""

    trusted_proxies: Sequence[Network]
    winding_down: bool

    async def serve(self, call: Call, exchange: "Exchange") -> None:
        """Answers on the exchange, whatever happens. Cancelled when the client leaves."""
        ...

    def refuse_unparsed(self, error: RequestError, exchange: "Exchange") -> None:
        """Answers what is not an HTTP request."""
        ...


class _NoEvent:
    def set(self) -> None:
        """uvicorn wakes an ASGI app with this; an exchange's task is cancelled instead."""


class Head(Struct, frozen=True, gc=False):
    """What is used of a request's head. `length` is its Content-Length, None where it has none."""

    address: str
    authorization: bytes | None
    client_request_id: str | None
    credits_max: bytes | None
    idempotency_key: bytes | None
    timeout_ms: bytes | None
    session: bytes | None
    length: int | None
    expects_100: bool
    accepts_trailers: bool
    http_1_1: bool
    keep_alive: bool


@dataclass(slots=True, eq=False)
class Exchange:
    """One request on the short way, and what its reply is written to. No struct, for it is written
    to (docs/decisions/0002)."""

    message_event: ClassVar[_NoEvent] = _NoEvent()

    protocol: "EdgeProtocol"
    head: Head
    began: float
    """By the monotonic clock."""
    keep_alive: bool
    body_complete: bool = False
    waits: bool = False
    """Behind the reply to a request before it."""
    response_complete: bool = False
    disconnected: bool = False
    response_started: bool = False
    """Of a stream: what its head says cannot be changed any more."""
    refusal: RequestError | None = None
    task: asyncio.Task[None] | None = None
    parts: list[bytes | memoryview] | None = None
    """Of the body, as far as it has come."""
    size: int = 0
    unsent_head: bytes = b""
    listener: Callable[[bool], None] | None = None

    # --- the reply --------------------------------------------------------------------------------

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """A whole reply, sent at the end of the event loop's turn together with what else was
        written. `lines` end in CRLF, each of them."""
        if not self.disconnected:
            protocol = self.protocol
            data = _reply(protocol, status, lines, self.keep_alive, body)
            protocol.outbox.write(protocol.loop, protocol.transport, data)
        self.end()

    def send_head(self, status: int, lines: bytes) -> None:
        """Goes out together with the first `write_now`. `lines` end in CRLF, each of them."""
        self.response_started = True
        self.unsent_head = _reply(self.protocol, status, lines, self.keep_alive)

    def write_soon(self, data: bytes, sent: Callable[[], None]) -> None:
        """For a stream, after its head: at the end of the turn, or before where much waits. `sent`
        is called when it is written, and not at all where the client has left by then."""
        if not self.disconnected:
            protocol = self.protocol
            outbox = protocol.outbox
            outbox.write(protocol.loop, protocol.transport, data, sent)
            if len(outbox.waiting) >= WAITING_EVENTS_MAX:
                outbox.flush()

    def flush(self) -> None:
        """Whatever waits to be written is written now."""
        self.protocol.outbox.flush()

    def write_now(self, data: bytes) -> None:
        """For a stream: what is counted as delivered must not wait while its client leaves."""
        if not self.disconnected:
            if self.unsent_head:
                data, self.unsent_head = self.unsent_head + data, b""
            protocol = self.protocol
            if protocol.outbox.waiting:
                protocol.outbox.flush()
            protocol.transport.write(data)

    def end(self) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        self.listener = None
        protocol = self.protocol
        protocol.tasks.discard(self.task)  # all that is left of it is to return
        if self.disconnected:
            return
        if self.keep_alive:
            protocol.on_response_complete()
        else:
            protocol.last_exchange_ended(self)

    def cut(self) -> None:
        """Closes without an end: what was sent so far is all there is."""
        self.keep_alive = False
        self.end()

    def on_pressure(self, listener: Callable[[bool], None]) -> None:
        self.listener = listener

    # --- the edge's side --------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        if self.refusal is not None:
            return
        self.size += len(data)
        if self.size > BODY_BYTES_MAX:
            self.refuse_body(too_large())
        elif self.parts is None:
            self.parts = [data]
        else:
            self.parts.append(data)

    def refuse_body(self, refusal: RequestError) -> None:
        self.refusal = refusal
        self.parts = None

    def take_body(self) -> bytes:
        """All of it, which is not kept here any longer."""
        parts, self.parts = self.parts or (), None
        return b"".join(parts)  # a single one is not copied

    def leave(self) -> None:
        """The client has gone: whoever serves this must know within a second, so at once."""
        self.press(True)  # nothing more is read for it, nor counted, until its task has ended
        self.disconnected = True
        self.listener = None
        if self.task is not None:
            self.task.cancel()

    def press(self, slow: bool) -> None:
        if self.listener is not None:
            self.listener(slow)


def _reply(
    protocol: "EdgeProtocol", status: int, lines: bytes, keep_alive: bool, body: bytes = b""
) -> bytes:
    end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
    # uvicorn renews the date once a second; it is not there before the server has started.
    default = protocol.server_state.default_headers
    if not default:
        return b"".join((_STATUS_LINES[status], lines, end, body))
    return b"".join((_STATUS_LINES[status], lines, b"date: ", default[0][1], b"\r\n", end, body))
