"""Any server that speaks OpenAI's chat completions API over HTTP, in its dialect."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from tollway.deadlines import Deadlines
from tollway.errors import ConfigurationError, InvalidRequest, RequestError, UpstreamFailed
from tollway.upstreams.base import Ask, EventSink
from tollway.upstreams.connection import Connection, Request, ResponseHead, RetryAfter
from tollway.upstreams.dialects import GENERIC, Dialect, fields_for
from tollway.upstreams.normalise import mended_completion
from tollway.upstreams.pool import ConnectionPool
from tollway.upstreams.refusals import ERROR_BYTES_READ, refusal
from tollway.wire.chat import ChatCompletion
from tollway.wire.events import EventTooLarge, Frames
from tollway.wire.requests import Fields
from tollway.wire.usage import with_reasoning_apart

REPLY_BYTES_MAX = 32 * 1024 * 1024
CHECK_SECONDS_MAX = 5.0
SENT_IN_PIECES_BYTES = 64 * 1024
"""A shorter request is put together, and its write is shared with others (`Outbox`)."""
_PATH = b"/chat/completions"

log = logging.getLogger("tollway.upstreams")

_encode = msgspec.json.Encoder().encode
_decode_completion = msgspec.json.Decoder(ChatCompletion).decode


class OpenAICompatible:
    """Implements `Upstream`. `api_key` never appears in a log, an error or a `repr`. With an
    `api_version` a model is asked by its deployment's own address, as Azure has it."""

    counts_input_tokens = False

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (frozen)
        allow_link_local: bool = False,
        dialect: Dialect = GENERIC,
        api_version: str | None = None,
    ) -> None:
        self.name = name
        self._dialect = dialect
        self._rewrites = dialect.rewrites
        self._extras_taken = dialect.extras_taken
        self._api_version = api_version
        self._pool = ConnectionPool(base_url, deadlines, allow_link_local=allow_link_local)
        self._head, self._check_head = self._request_heads(api_key)
        self._models_json: dict[str, bytes] = {}  # as many as the configuration has
        cap = dialect.cap.encode()
        self._whole_tail = b',"model":%b,"' + cap + b'":%d,"stream":false}'
        usage = b',"stream_options":{"include_usage":true}' if dialect.asks_for_usage else b""
        self._stream_tail = b',"model":%b,"' + cap + b'":%d,"stream":true' + usage + b"}"

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        await self._pool.close()

    def ready(self) -> bool:
        return True

    async def complete(self, ask: Ask) -> ChatCompletion:
        if self._rewrites:
            self._refuse_too_many_choices(ask)
        reply = _WholeReply()
        request = partial(self._request, ask, self._whole_tail)
        await self._pool.request(request, reply, ask.deadlines)
        if reply.status != 200 or reply.excess is not None:
            raise reply.excess or self._refusal(ask, reply)
        try:
            completion = _decode_completion(reply.content())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            completion = self._mended(ask, reply, error)
        if self._dialect.counts_reasoning_apart:
            completion.usage = with_reasoning_apart(completion.usage)
        return completion

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        if self._rewrites:
            self._refuse_too_many_choices(ask)
        reply = _EventStream(sink, self._dialect)
        request = partial(self._request, ask, self._stream_tail)
        try:
            await self._pool.request(request, reply, ask.deadlines)
        except RequestError:
            if not reply.is_done:
                raise
        if reply.status != 200 or reply.excess is not None:
            raise reply.excess or self._refusal(ask, reply)
        if not reply.is_events:
            self._refuse_if_error(ask, reply)
            raise UpstreamFailed("The model's server answered a stream with something else.", 200)
        reply.end()

    async def count_input_tokens(self, ask: Ask) -> int | None:
        return None

    async def post_json(self, path: str, body: bytes) -> tuple[int, bytes]:
        """For a server's own routes, `path` relative to the base URL: status and body."""
        reply = _WholeReply()
        head = self._head % (path.encode(), len(body), b"")
        await self._pool.request(lambda: head + body, reply)
        if reply.excess is not None:
            raise reply.excess
        return reply.status, reply.content()

    async def check(self, path: str) -> bool:
        """Whether it answers a GET of `path`, from its root, with a 2xx in time."""
        reply = _WholeReply()
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                await self._pool.request(lambda: self._check_head % path.encode(), reply)
        except (RequestError, TimeoutError):
            return False
        return 200 <= reply.status < 300

    def _deployment_path(self, ask: Ask) -> bytes:
        assert self._api_version is not None
        deployment, version = quote(ask.model, safe=""), quote(self._api_version, safe="")
        return f"/deployments/{deployment}/chat/completions?api-version={version}".encode()

    def _fields_json(self, ask: Ask) -> Sequence[bytes | memoryview]:
        """The inside of a JSON object, in pieces. A client's own fields were written when they were
        checked."""
        fields = ask.fields
        if (
            self._rewrites
            or not isinstance(fields, Fields)
            or not fields.extras <= self._extras_taken
        ):
            return (_encode(fields_for(self._dialect, fields))[1:-1],)
        return fields.pieces

    def _refuse_too_many_choices(self, ask: Ask) -> None:
        wanted = ask.fields.get("n")
        most = self._dialect.choices_max
        if most is not None and isinstance(wanted, int) and wanted > most:
            raise InvalidRequest(
                f"n is {wanted} and this model gives {most} choice a request. Send the request "
                f"{wanted} times, or leave n out.",
                code="unsupported_parameter",
                param="n",
            )

    def _mended(self, ask: Ask, reply: "_WholeReply", error: Exception) -> ChatCompletion:
        mended = mended_completion(reply.content())
        if mended is not None:
            return mended
        self._refuse_if_error(ask, reply)
        # The place alone: the words may have some of the reply in them.
        place = str(error).rpartition(" - at ")[2] if " - at " in str(error) else "its JSON"
        log.error("upstream %s: no chat completion, wrong at %s", self.name, place)
        raise UpstreamFailed("The model's server answered with what is no chat completion.", 200)

    def _refuse_if_error(self, ask: Ask, reply: "_WholeReply | _EventStream") -> None:
        """OpenRouter tells an error with a 200, in JSON where a stream was asked for too."""
        if b'"error"' in reply.content()[:ERROR_BYTES_READ]:
            raise self._refusal(ask, reply)

    def _request(self, ask: Ask, tail: bytes) -> Request:
        path = _PATH if self._api_version is None else self._deployment_path(ask)
        model = self._models_json.get(ask.model)
        if model is None:
            model = self._models_json[ask.model] = _encode(ask.model)
        tail %= (model, ask.output_tokens_max)
        pieces = self._fields_json(ask)
        size = 1 + len(tail)
        for piece in pieces:
            size += len(piece)
        head = self._head % (path, size, ask.request_id.encode())
        request = (head, b"{", *pieces, tail)
        return b"".join(request) if size < SENT_IN_PIECES_BYTES else request

    def _request_heads(self, api_key: str | None) -> tuple[bytes, bytes]:
        """Of a POST, without its path, length and request id; and of a GET without its path."""
        pool = self._pool
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigurationError(
                f"The key of upstream {self.name} has characters that no header may have. "
                "Set the one that its operator gave you."
            )
        lines = [
            f"host: {pool.host_header}",
            "user-agent: tollway",
            "accept: application/json, text/event-stream",
            "accept-encoding: identity",
        ]
        if api_key is not None and self._dialect.key_header == "api-key":
            lines.append(f"api-key: {api_key}")
        elif api_key is not None:
            lines.append(f"authorization: Bearer {api_key}")
        common = "\r\n".join(lines).replace("%", "%%").encode()
        post = f"POST {pool.path}".replace("%", "%%").encode() + b"%b HTTP/1.1\r\n" + common
        post += b"\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b"
        return post + b"\r\n\r\n", b"GET %b HTTP/1.1\r\n" + common + b"\r\n\r\n"

    def _refusal(self, ask: Ask, reply: "_WholeReply | _EventStream") -> RequestError:
        return refusal(self.name, ask.model, reply.status, reply.content(), reply.retry_after)


@dataclass(slots=True, eq=False)
class _WholeReply:
    """A `Receiver` that keeps the body. `excess` is what to tell of one that was too large; it may
    be there whole before the connection was abandoned."""

    status: int = 0
    retry_after: RetryAfter = ()
    excess: RequestError | None = None
    at_once: bytes = b""
    size: int = 0
    parts: list[bytes] | None = None
    connection: Connection | None = None

    def whole(self, head: ResponseHead, body: bytes, connection: Connection) -> None:
        del connection  # it comes from one read, which has a bound of its own
        self.status = head.status
        self.retry_after = head.retry_after
        self.at_once = body

    def head(self, head: ResponseHead, connection: Connection) -> None:
        self.connection = connection
        self.status = head.status
        self.retry_after = head.retry_after

    def body(self, data: bytes) -> None:
        self.size += len(data)
        if self.parts is None:
            self.parts = []
        if self.size <= REPLY_BYTES_MAX:
            self.parts.append(data)
        elif self.connection is not None:
            self.parts.clear()
            message = f"The model's reply is larger than {REPLY_BYTES_MAX} bytes."
            self.excess = UpstreamFailed(message, self.status)
            self.connection.abandon(self.excess)
            self.connection = None

    def flush(self) -> None:
        pass

    def chunks(self, data: bytes) -> None:
        self.body(data)

    def content(self) -> bytes:
        return self.at_once if self.parts is None else b"".join(self.parts)


class _EventStream:
    """A `Receiver` that hands events on as they come, or keeps the body of an error."""

    def __init__(self, sink: EventSink, dialect: Dialect) -> None:
        self.status = 0
        self.retry_after: RetryAfter = ()
        self.is_events = False
        self.excess: RequestError | None = None
        self.flush = sink.flush
        self._sink = sink
        self._frames = Frames(
            self._event_with_reasoning_apart if dialect.counts_reasoning_apart else sink.event
        )
        self._connection: Connection | None = None
        """None before the head, and when no more of the body counts."""
        self._error = b""

    @property
    def is_done(self) -> bool:
        """It has said so: how its connection ends is no matter of the answer's."""
        return self._frames.done

    def head(self, head: ResponseHead, connection: Connection) -> None:
        self.status = head.status
        self.retry_after = head.retry_after
        self.is_events = head.status == 200 and head.content_type.startswith(b"text/event-stream")
        if self.is_events:
            self._connection = connection
            self._sink.opened(connection)

    def whole(self, head: ResponseHead, body: bytes, connection: Connection) -> None:
        self.head(head, connection)
        self.body(body)
        self.flush()

    def body(self, data: bytes) -> None:
        if not self.is_events:
            if len(self._error) < ERROR_BYTES_READ:
                self._error += data
        elif self._connection is not None:
            try:
                self._frames.feed(data)
            except EventTooLarge:
                message = "The model's server sent an event that does not end."
                self.excess = UpstreamFailed(message, 200)
                self._connection.abandon(self.excess)
                self._connection = None
            else:
                if self._frames.done:
                    self._connection.end_early()
                    self._connection = None

    def chunks(self, data: bytes) -> None:
        if (
            self._connection is None
            or self._frames.is_within_event()
            or not self._sink.passed_on(data)
        ):
            self.body(data)
            self.flush()

    def end(self) -> None:
        self._frames.end()
        self._sink.flush()

    def content(self) -> bytes:
        return self._error

    def _event_with_reasoning_apart(self, data: bytes) -> None:
        """Gemini's: the usage is brought into the form of the others before anybody reads it."""
        if b'"usage"' in data:
            try:
                chunk: Any = msgspec.json.decode(data)
                chunk["usage"] = with_reasoning_apart(chunk["usage"])
                data = _encode(chunk)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, KeyError):
                pass  # whoever reads it says what it is
        self._sink.event(data)
