"""Any server that speaks OpenAI's chat completions API over HTTP."""

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import cast

import msgspec

from tollway.errors import (
    ConfigurationError,
    InvalidRequest,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from tollway.upstreams.base import Ask, EventSink
from tollway.upstreams.connection import Connection, ConnectionPool, Deadlines, ResponseHead
from tollway.wire.chat import ChatCompletion
from tollway.wire.events import DONE, EventTooLarge, Frames
from tollway.wire.requests import KNOWN_FIELDS, REWRITTEN_FIELDS, Fields

REPLY_BYTES_MAX = 32 * 1024 * 1024
CHECK_SECONDS_MAX = 5.0
_ERROR_BYTES_READ = 64 * 1024
_RETRY_AFTER_SECONDS_MAX = 60.0
_REST_SECONDS_MAX = 3600.0

log = logging.getLogger("tollway.upstreams")

_encode = msgspec.json.Encoder().encode
_decode_completion = msgspec.json.Decoder(ChatCompletion).decode


class OpenAICompatible:
    """Implements `Upstream`. `api_key` never appears in a log, an error or a `repr`."""

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (frozen)
        allow_link_local: bool = False,
    ) -> None:
        self.name = name
        self._pool = ConnectionPool(base_url, deadlines, allow_link_local=allow_link_local)
        self._head, self._check_head = self._request_heads(api_key)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        await self._pool.close()

    def ready(self) -> bool:
        return True

    async def complete(self, ask: Ask) -> ChatCompletion:
        body = b'{%b,"model":%b,"max_tokens":%d,"stream":false}' % (
            _fields_json(ask),
            _encode(ask.model),
            ask.output_tokens_max,
        )
        reply = _WholeReply()
        await self._post("/chat/completions", body, reply, ask.request_id)
        if reply.status != 200:
            raise self._refusal(reply)
        try:
            return _decode_completion(reply.content())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # The place alone: the words may have some of the reply in them.
            place = str(error).rpartition(" - at ")[2] if " - at " in str(error) else "its JSON"
            log.error("upstream %s: no chat completion, wrong at %s", self.name, place)
            raise _failed(
                "The model's server answered with what is no chat completion.", 200
            ) from None

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        body = (
            b'{%b,"model":%b,"max_tokens":%d,"stream":true,"stream_options":{"include_usage":true}}'
            % (_fields_json(ask), _encode(ask.model), ask.output_tokens_max)
        )
        reply = _EventStream(sink)
        await self._post("/chat/completions", body, reply, ask.request_id)
        if reply.status != 200:
            raise self._refusal(reply)
        if not reply.is_events:
            raise _failed("The model's server answered a stream with something else.", 200)
        reply.end()

    async def count_input_tokens(self, ask: Ask) -> int | None:
        return None

    async def post_json(self, path: str, body: bytes) -> tuple[int, bytes]:
        """For a server's own routes, `path` relative to the base URL: status and body."""
        reply = _WholeReply()
        await self._post(path, body, reply, "")
        return reply.status, reply.content()

    async def check(self, path: str) -> bool:
        """Whether it answers a GET of `path`, from its root, with a 2xx in time."""
        reply = _WholeReply()
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                await self._pool.request(self._check_head % path.encode(), reply)
        except (RequestError, TimeoutError):
            return False
        return 200 <= reply.status < 300

    async def _post(
        self, path: str, body: bytes, reply: "_WholeReply | _EventStream", request_id: str
    ) -> None:
        head = self._head % (path.encode(), len(body), request_id.encode())
        try:
            await self._pool.request(head + body, reply)
        except RequestError as error:
            error.upstream_status = reply.status or None  # it had begun to answer
            raise
        if reply.excess is not None:  # it was there whole before it could be abandoned
            raise reply.excess

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
        if api_key is not None:
            lines.append(f"authorization: Bearer {api_key}")
        common = "\r\n".join(lines).replace("%", "%%").encode()
        post = f"POST {pool.path}".replace("%", "%%").encode() + b"%b HTTP/1.1\r\n" + common
        post += b"\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b"
        return post + b"\r\n\r\n", b"GET %b HTTP/1.1\r\n" + common + b"\r\n\r\n"

    def _refusal(self, reply: "_WholeReply | _EventStream") -> RequestError:
        """The client is told what it can do something about; the rest is the operator's trouble and
        goes to the log."""
        status = reply.status
        facts = _error_facts(reply.content())
        error: RequestError
        if status in (400, 413, 422):
            error = _refused_as_invalid(facts)
        elif status in (408, 504):
            error = UpstreamTimeout("The model's server gave up waiting for the model. Try again.")
        elif status in (429, 503, 529):
            wait = _retry_after_seconds(reply.retry_after)
            error = Unavailable(
                f"The model is at its capacity. Try again in {wait:g} s.",
                code="overloaded",
                retry_after_seconds=wait,
            )
        elif status in (401, 402, 403, 404):
            log.error(
                "upstream %s answered %d: its key, its credit or its model name is wrong",
                self.name,
                status,
            )
            error = Unavailable("The model is not available: its operator has been told.")
        else:
            log.error("upstream %s answered %d", self.name, status)
            error = UpstreamFailed(f"The model's server failed with status {status}. Try again.")
        error.upstream_status = status
        error.upstream_rest_seconds = _rest_seconds(reply.retry_after)
        return error


def _fields_json(ask: Ask) -> bytes:
    """The inside of a JSON object. A client's own fields were written when they were checked."""
    fields = ask.fields
    if isinstance(fields, Fields):
        return fields.json
    sent = {name: value for name, value in fields.items() if name not in REWRITTEN_FIELDS}
    return _encode(sent)[1:-1]


class _WholeReply:
    """A `Receiver` that keeps the body."""

    def __init__(self) -> None:
        self.status = 0
        self.retry_after: bytes | None = None
        self.excess: RequestError | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._connection: Connection | None = None

    def head(self, head: ResponseHead, connection: Connection) -> None:
        self._connection = connection
        self.status = head.status
        self.retry_after = head.retry_after

    def body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= REPLY_BYTES_MAX:
            self._parts.append(data)
        elif self._connection is not None:
            self._parts.clear()
            message = f"The model's reply is larger than {REPLY_BYTES_MAX} bytes."
            self.excess = _failed(message, self.status)
            self._connection.abandon(self.excess)
            self._connection = None

    def flush(self) -> None:
        pass

    def content(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class _EventStream:
    """A `Receiver` that hands events on as they come, or keeps the body of an error."""

    def __init__(self, sink: EventSink) -> None:
        self.status = 0
        self.retry_after: bytes | None = None
        self.is_events = False
        self.excess: RequestError | None = None
        self.flush = sink.flush
        self._sink = sink
        self._frames = Frames(self._event)
        self._connection: Connection | None = None
        self._error = b""

    def head(self, head: ResponseHead, connection: Connection) -> None:
        self.status = head.status
        self.retry_after = head.retry_after
        self.is_events = head.status == 200 and head.content_type.startswith(b"text/event-stream")
        if self.is_events:
            self._connection = connection
            self._sink.opened(connection)

    def body(self, data: bytes) -> None:
        if not self.is_events:
            if len(self._error) < _ERROR_BYTES_READ:
                self._error += data
        elif self._connection is not None:
            try:
                self._frames.feed(data)
            except EventTooLarge:
                message = "The model's server sent an event that does not end."
                self.excess = _failed(message, 200)
                self._connection.abandon(self.excess)
                self._connection = None

    def end(self) -> None:
        self._frames.end()
        self._sink.flush()

    def content(self) -> bytes:
        return self._error

    def _event(self, data: bytes) -> None:
        if data != DONE:
            self._sink.event(data)


# --- what a server's error says -------------------------------------------------------------------


class _ErrorFacts(msgspec.Struct):
    """OpenAI's shape, or the same fields at the top (older vLLM, SGLang). Read, never passed on."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""


_CONTEXT_WORDS = re.compile(
    r"context.{0,20}(length|size|window)|maximum context|too many tokens|prompt is too long"
    r"|max_model_len|input is too long|longer than the model",
    re.IGNORECASE,
)


def _error_facts(body: bytes) -> _ErrorFacts:
    try:
        value: object = msgspec.json.decode(body[:_ERROR_BYTES_READ])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ErrorFacts()
    if isinstance(value, dict):
        document = cast("Mapping[str, object]", value)
        value = document.get("error", document)
    if isinstance(value, str):
        return _ErrorFacts(message=value)
    if not isinstance(value, dict):
        return _ErrorFacts()
    facts = cast("Mapping[str, object]", value)
    texts = {name: facts.get(name) for name in _ErrorFacts.__struct_fields__}
    return _ErrorFacts(**{name: text for name, text in texts.items() if isinstance(text, str)})


def _refused_as_invalid(facts: _ErrorFacts) -> InvalidRequest:
    if "context" in facts.code + facts.type or _CONTEXT_WORDS.search(facts.message) is not None:
        return InvalidRequest(
            "The conversation is longer than the model's context. Send fewer or shorter messages, "
            "or lower max_tokens.",
            code="context_length_exceeded",
            param="messages",
        )
    named = re.split(r"[.\[]", facts.param, maxsplit=1)[0]
    param = named if named in KNOWN_FIELDS else None  # nothing else: it may be anything
    about = f" because of {param}" if param else ""
    return InvalidRequest(
        f"The model's server refused this request as invalid{about}. It may not support one of its "
        "fields.",
        param=param,
    )


def _rest_seconds(header: bytes | None) -> float | None:
    try:
        seconds = float(header or b"0")
    except ValueError:
        return None
    return min(seconds, _REST_SECONDS_MAX) if seconds > 0 else None  # NaN too


def _retry_after_seconds(header: bytes | None) -> float:
    try:
        seconds = float(header or b"5")
    except ValueError:  # a date: rare, and not worth a parser
        seconds = 5.0
    return min(seconds, _RETRY_AFTER_SECONDS_MAX) if seconds > 1 else 1.0  # NaN too


def _failed(message: str, status: int) -> UpstreamFailed:
    error = UpstreamFailed(message)
    error.upstream_status = status
    return error
