"""An HTTP/1.1 client on a bare socket, for what the SDKs hide: exact bytes, repeated headers,
trailers, arrival times.

    with RawClient("127.0.0.1", port) as client:
        client.request("POST", "/v1/chat/completions", chat_bytes(stream=True), bearer)
        head = client.read_head()
        events = client.read_events(2)      # the first two, as they arrive
        client.reset()                      # leaves in the middle

It blocks: where the server runs in the test's own loop, call it through `asyncio.to_thread`.
"""

import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

Header = tuple[str, str]
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    reason: str
    version: str
    headers: list[Header]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a body, as one chunk or one read brought them."""

    data: bytes
    at: float


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream: its data, or the text of a comment. `at` is `time.monotonic()` when
    its end arrived."""

    data: str | None
    comment: str | None
    at: float

    def json(self) -> Any:
        assert self.data is not None
        return json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Reply:
    head: Head
    pieces: list[Piece]
    trailers: list[Header] = field(default_factory=list[Header])

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def body(self) -> bytes:
        return b"".join(piece.data for piece in self.pieces)

    def header(self, name: str) -> str | None:
        return self.head.header(name)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[StreamEvent]:
        return list(_events(iter(self.pieces)))


class BodyCutError(Exception):
    """The connection ended before the body did."""


class RawClient:
    def __init__(self, host: str, port: int, *, timeout_seconds: float = 10.0) -> None:
        self._socket = socket.create_connection((host, port), timeout_seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"{host}:{port}"
        self._buffer = bytearray()
        self._pieces: Iterator[Piece] = iter(())
        self._events: Iterator[StreamEvent] = iter(())
        self._trailers: list[Header] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # --- sending ---

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def request(self, method: str, path: str, body: bytes | None = None, *headers: Header) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}"]
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def end_sending(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    # --- reading ---

    def read_reply(self, *, bodyless: bool = False) -> Reply:
        """The whole of the next reply; `bodyless` after a HEAD request. Raises BodyCutError, or
        TimeoutError."""
        head = self.read_head(bodyless=bodyless)
        return Reply(head, list(self._pieces), self._trailers)

    def read_head(self, *, bodyless: bool = False) -> Head:
        """The head alone; the body is then read with `read_events` or `read_pieces`. Raises
        BodyCutError at an early end."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, reason = (*lines[0].split(" ", 2), "")[:3]
        head = Head(int(status), reason, version, [_header(line) for line in lines[1:]])
        self._trailers = []
        self._pieces = iter(()) if bodyless else self._body(head)
        self._events = _events(self._pieces)
        return head

    def read_pieces(self) -> list[Piece]:
        return list(self._pieces)

    def read_events(self, count: int | None = None) -> list[StreamEvent]:
        """The next so many events, or all that are left."""
        if count is None:
            return list(self._events)
        return [next(self._events) for _ in range(count)]

    @property
    def trailers(self) -> list[Header]:
        return self._trailers

    def at_end(self) -> bool:
        """Waits for the server to end the connection; False if it sends something instead. A reset
        counts as an end."""
        if self._buffer:
            return False
        try:
            return self._receive() == b""
        except ConnectionResetError:
            return True

    def _body(self, head: Head) -> Iterator[Piece]:
        if head.status in (204, 304) or head.status < 200:
            return iter(())
        if (head.header("transfer-encoding") or "").lower() == "chunked":
            return self._chunks()
        length = head.header("content-length")
        return self._exactly(int(length)) if length is not None else self._until_end()

    def _chunks(self) -> Iterator[Piece]:
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            yield Piece(self._take(size), time.monotonic())
            assert self._take(2) == b"\r\n", "a chunk does not end where it said"
        while line := self._until(b"\r\n"):
            self._trailers.append(_header(line.decode("latin-1")))

    def _exactly(self, length: int) -> Iterator[Piece]:
        yield Piece(self._take(length), time.monotonic())

    def _until_end(self) -> Iterator[Piece]:
        while data := bytes(self._buffer) or self._receive():
            self._buffer.clear()
            yield Piece(data, time.monotonic())

    def _until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            self._more()
        found = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return found

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _more(self) -> None:
        try:
            data = self._receive()
        except ConnectionResetError as gone:
            raise BodyCutError(f"reset after {bytes(self._buffer[:200])!r}") from gone
        if not data:
            raise BodyCutError(f"ended after {bytes(self._buffer[:200])!r}")
        self._buffer += data

    def _receive(self) -> bytes:
        return self._socket.recv(READ_BYTES)


def _header(line: str) -> Header:
    name, _, value = line.partition(":")
    return name, value.strip()


def _events(pieces: Iterator[Piece]) -> Iterator[StreamEvent]:
    """By the standard: lines end in CRLF or LF; an event ends at an empty line; an unfinished
    last one is dropped."""
    data: list[str] = []
    for line, at in _lines(pieces):
        if line.startswith(":"):
            yield StreamEvent(None, line[1:].removeprefix(" "), at)
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield StreamEvent("\n".join(data), None, at)
            data = []


def _lines(pieces: Iterator[Piece]) -> Iterator[tuple[str, float]]:
    rest = b""
    for piece in pieces:
        lines = (rest + piece.data).replace(b"\r\n", b"\n").split(b"\n")
        rest = lines.pop()
        for line in lines:
            yield line.decode(), piece.at
