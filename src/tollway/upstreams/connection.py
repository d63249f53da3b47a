"""One connection to a model's server: HTTP/1.1, one request at a time, its reply pushed into a
`Receiver` from the network's own callbacks.

It is ours because it is the largest single cost of a gateway: aiohttp's client adds 155 us a
request, httpx's over 2,000, this one about 12 (docs/decisions/0001). It does what talking to a
known model server takes and no more: no redirects, no cookies, no proxies, no compression. Which
connection a request gets, and when a server is too late, is `pool.py`'s.
"""

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, cast

import httptools
from msgspec import Struct

from tollway.deadlines import Deadlines
from tollway.errors import RequestError, UpstreamFailed
from tollway.heads import LearnedHead
from tollway.outbox import Outbox

HEAD_BYTES_MAX = 64 * 1024
# What has arrived is read at once, and all of it written on: so much, and what waits already for a
# client that does not read (`edge.UNSENT_BYTES_MAX`), is the most that one makes the process keep.
# Left to the kernel it may grow to some MiB. A window of this size brings 1 MB/s over 60 ms, and no
# model writes that fast.
RECEIVE_BUFFER_BYTES = 64 * 1024
END_SECONDS_MAX = 0.25
"""From all that matters of a reply to the end of its message, which some servers never send."""
MISSES_MAX = 32

Request: TypeAlias = bytes | Sequence[bytes | memoryview]
"""In pieces it is not put together before it is sent, which takes 0.1 to 0.3 ms a MiB."""

RetryAfter: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""The header lines that say when to ask again: `retry-after` and `retry-after-ms`."""


class ResponseHead(Struct, frozen=True, gc=False):
    status: int
    content_type: bytes
    retry_after: RetryAfter


class Receiver(Protocol):
    """Takes a reply in the network's callbacks. None of these may raise. `status` is 0 until the
    head is there."""

    @property
    def status(self) -> int: ...

    def head(self, head: ResponseHead, connection: "Connection") -> None: ...

    def body(self, data: bytes) -> None: ...

    def whole(self, head: ResponseHead, body: bytes, connection: "Connection") -> None:
        """All of a reply at once, instead of the other three."""
        ...

    def flush(self) -> None:
        """All that arrived with one read was passed to `body`."""
        ...

    def chunks(self, data: bytes) -> None:
        """All that arrived with one read, which was whole chunks of the body: instead of `body` and
        `flush`."""
        ...


class LearnedHeads:
    """The head that this server's last whole reply came with (`heads.py`). A Date may be in it, so
    it is learned anew each second; from a server whose heads do not repeat, only now and then."""

    __slots__ = ("_last", "_misses")

    def __init__(self) -> None:
        self._last: tuple[LearnedHead, ResponseHead] | None = None
        self._misses = 0

    def read(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Head and body, if `data` is a whole reply like the last."""
        if self._last is None:
            return None
        learned, head = self._last
        body = learned.body_in(data)
        if body is None:
            return None
        self._misses = 0
        return head, body

    def learn(self, data: bytes, head: ResponseHead, length: int) -> None:
        self._misses += 1
        self._last = None
        if self._misses > MISSES_MAX and self._misses % MISSES_MAX:
            return
        if head.status == 200 and (learned := LearnedHead.of(data, length)) is not None:
            self._last = (learned, head)


_SIZE_DIGITS_MAX = 6
_size_line = re.compile(rb"([1-9a-f][0-9a-f]{0,5})\r\n").match


def _in_whole_chunks(data: bytes) -> bytes | None:
    """The content of the chunks that `data` is made of, mostly a single one. The parser would say
    the same, with three callbacks for each: between two chunks it need not see these. One whose
    size is not written as most write it is the parser's, and so is the last, which is empty."""
    end = data.find(b"\r\n", 1, _SIZE_DIGITS_MAX + 2)
    if end > 0 and data[:end] == b"%x" % (len(data) - end - 4) and data.endswith(b"\r\n"):
        return data[end + 2 : -2] or None
    contents: list[bytes] = []
    at = 0
    while at < len(data):
        line = _size_line(data, at)
        if line is None:
            return None
        start = line.end()
        at = start + int(line[1], 16)
        if data[at : at + 2] != b"\r\n":
            return None
        contents.append(data[start:at])
        at += 2
    return b"".join(contents)


class StaleConnection(Exception):
    """The server closed a kept connection before anything of this reply came."""


class _Ending(NamedTuple):
    """Of a message that is awaited for the connection's sake alone."""

    timer: asyncio.TimerHandle
    ended: Callable[["Connection"], None]


class Connection(asyncio.Protocol):
    """One socket. httptools calls the `on_...` methods."""

    __slots__ = (
        "_answered",
        "_between_chunks",
        "_closed",
        "_content_type",
        "_deadlines",
        "_ending",
        "_framed",
        "_head_bytes",
        "_heads",
        "_length",
        "_loop",
        "_outbox",
        "_parser",
        "_receiver",
        "_retry_after",
        "_sent_at",
        "_transport",
        "_used",
        "done",
        "heard_at",
        "is_open",
        "paused_at",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        heads: LearnedHeads,
        on_close: Callable[["Connection"], None] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._heads = heads
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self.done: asyncio.Future[None] | None = None
        """None between two messages. It may be done while its message has not ended."""
        self._ending: _Ending | None = None
        self._closed = on_close
        self._used = False
        self.is_open = False
        self.paused_at = 0.0
        self.heard_at = self._sent_at = 0.0
        self._begin_anew()

    def _begin_anew(self) -> None:
        """What is known of a reply is forgotten: the next is another."""
        self._answered = self._framed = self._between_chunks = False
        self._length = self._head_bytes = 0
        self._content_type = b""
        self._retry_after: RetryAfter = ()

    def exchange(
        self, request: Request, receiver: Receiver, deadlines: Deadlines
    ) -> asyncio.Future[None]:
        """The future ends with the reply, or with all that matters of it: its result says nothing,
        its exception is a `RequestError`."""
        assert self._transport is not None
        loop = self._loop
        self._receiver = receiver
        self._deadlines = deadlines
        self.done = done = loop.create_future()
        if not self.is_open:  # it was closed as soon as it was made
            done.set_exception(StaleConnection())
            return done
        self._sent_at = self.heard_at = loop.time()
        if isinstance(request, bytes):
            self._outbox.write(loop, self._transport, request)
        elif not self._transport.is_closing():
            self._transport.writelines(request)
        return done

    def await_end(self, ended: Callable[["Connection"], None]) -> None:
        """Of a message whose reply is over already. `ended` is called with it; where it does not
        come within `END_SECONDS_MAX`, this connection is closed instead."""
        timer = self._loop.call_later(END_SECONDS_MAX, self.abort)
        self._ending = _Ending(timer, ended)

    def abort(self) -> None:
        self._receiver = None
        self._shut()
        if self._transport is not None:
            self._transport.abort()

    def _shut(self) -> None:
        """It takes no further request, whenever the transport will have closed."""
        if self.is_open:
            self.is_open = False
            self._closed(self)

    def overdue(self, now: float) -> str | None:
        """What to tell the client if this exchange has taken too long."""
        if self.done is None:
            return None
        deadlines = self._deadlines
        if now - self._sent_at > deadlines.total_seconds:
            return f"The model's server did not finish within {deadlines.total_seconds:g} s."
        if self.paused_at:  # it is the client that is slow
            return None
        if not self._answered and now - self._sent_at > deadlines.first_byte_seconds:
            return f"The model's server did not answer within {deadlines.first_byte_seconds:g} s."
        if self._answered and now - self.heard_at > deadlines.between_chunks_seconds:
            return f"The model's server fell silent for {deadlines.between_chunks_seconds:g} s."
        return None

    def fail(self, error: RequestError | StaleConnection) -> None:
        done, self.done = self.done, None
        if done is not None and not done.done():
            done.set_exception(error)
        self.abort()

    # The relay's side: `Source`.

    def abandon(self, error: RequestError) -> None:
        # Not from within the parser's own callback: it would go on with what is closed.
        self._loop.call_soon(self.fail, error)

    def end_early(self) -> None:
        """All of the reply that matters is here: who asked need not wait for its message to end."""
        if self.done is not None:
            # Mostly it has ended when all of this read has been looked at.
            self._loop.call_soon(self._end_early, self.done)

    def _end_early(self, done: "asyncio.Future[None]") -> None:
        if not done.done():
            self._receiver = None  # what follows is nobody's
            done.set_result(None)

    def pause_reading(self) -> None:
        if self._receiver is None:  # the reply is over, and the next is another client's
            return
        if self._transport is not None and not self.paused_at:
            self.paused_at = self._loop.time()
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self.paused_at:
            self.heard_at = self._loop.time()
            self.paused_at = 0.0
            self._transport.resume_reading()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True
        peer: socket.socket = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        done, receiver = self.done, self._receiver
        if done is None:  # nobody asked: not a server to go on with
            self.abort()
            return
        self.heard_at = self._loop.time()
        if receiver is None:
            pass
        elif self._between_chunks:
            content = _in_whole_chunks(data)
            if content is not None:
                receiver.chunks(content)
                return
        elif not self._answered and (whole := self._heads.read(data)) is not None:
            self.done = self._receiver = None
            self._used = True
            receiver.whole(*whole, self)
            if not done.done():
                done.set_result(None)
            return
        self._parse(data, receiver, done)

    def _parse(self, data: bytes, receiver: Receiver | None, done: "asyncio.Future[None]") -> None:
        begins, self._answered = not self._answered, True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(UpstreamFailed("The model's server sent what is not HTTP."))
            return
        if self._head_bytes >= 0:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.fail(UpstreamFailed("The model's server sent a head that does not end."))
                return
        if self._between_chunks and not data.endswith(b"\r\n"):
            self._between_chunks = False  # it has some of the next one's size
        if receiver is not None:
            receiver.flush()
        if self.done is None:
            if begins and self._length and self.is_open:
                status = self._parser.get_status_code()
                head = ResponseHead(status, self._content_type, self._retry_after)
                self._heads.learn(data, head, self._length)
            self._begin_anew()

    def eof_received(self) -> bool:
        self._shut()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._shut()
        if self._ending is not None:
            self._ending.timer.cancel()
        done = self.done
        if done is None or done.done():
            self.done = None
        elif exc is None and self._answered and self._head_bytes == -1 and not self._framed:
            self.done = None
            done.set_result(None)  # a reply without a length ends with its connection
        elif self._used and not self._answered:
            self.fail(StaleConnection())
        else:
            self.fail(
                UpstreamFailed(
                    "The model's server closed the connection in the middle of its reply."
                )
            )
        self._receiver = None

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._receiver is None and self._transport is not None:  # an answer too many
            self._shut()
            self._transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._content_type = value.lower()
        elif name == b"content-length":
            self._framed = True
            self._length = int(value)
        elif name == b"transfer-encoding":
            self._framed = True
        elif name == b"retry-after" or name == b"retry-after-ms":
            self._retry_after += ((name, value),)

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._head_bytes = -1
        if status >= 200 and self._receiver is not None:
            head = ResponseHead(status, self._content_type, self._retry_after)
            self._receiver.head(head, self)

    def on_body(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.body(data)

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        self._between_chunks = False
        # 100 Continue, 103 Early Hints: the reply is still to come.
        if self._parser.get_status_code() < 200:
            self._head_bytes = 0
            self._framed = False
            return
        self._used = True
        self._receiver = None  # what follows is nobody's
        if not self._parser.should_keep_alive():
            self._shut()
            if self._transport is not None:
                self._transport.close()
        done, self.done = self.done, None
        if done is not None and not done.done():
            done.set_result(None)
        if self._ending is not None:
            ending, self._ending = self._ending, None
            ending.timer.cancel()
            ending.ended(self)
