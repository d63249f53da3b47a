"""What a fake upstream says.

An `Answer` is made of plain values (`reply`, `stream`, `error`, `raw`) and turned into
misbehaviour by its methods (`.delayed`, `.cut_at`, `.reset_at`, `.hang_at`, `.in_pieces`,
`.closing`, `.framed`). Played, it becomes steps: a `Write` with `Mark`s that say which bytes make
up an event and what that event carries, a `Pause`, or a `Fault`. The marks are what lets the
server that plays it say afterwards what it truly sent, whatever the byte at which it stopped.

    stream(["Hel", "lo"], input_tokens=9)        truthful, with usage if the request asked for it
    stream(["a", pause(1), "b", reset()])        a fault after the second chunk
    stream(["a"] * 40, usage=usage(0, 0))        a lie
    reply("Hello", input_tokens=9, output_tokens=3).cut_at(120)
    error(429, {"error": {...}}, ("Retry-After", "7"))

A request can also say itself what it wants: see `Directives`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

FaultKind = Literal["cut", "reset", "hang"]
Framing = Literal["chunked", "content-length", "until-close", "raw"]
Header = tuple[str, str]

CREATED = 1_763_800_000  # fixed, so that an answer has the same length each time it is given
DEFAULT_CHUNKS = 12
HUGE = 10**9


# --- steps -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """One event (or one whole plain reply) within a write: where it begins and ends, and what it
    carries."""

    start: int
    end: int
    tokens: int = 0
    usage: object = None
    terminal: bool = False  # it has a finish_reason, or is a whole plain reply

    def moved(self, offset: int) -> "Mark":
        return dataclasses.replace(self, start=self.start + offset, end=self.end + offset)


@dataclass(frozen=True, slots=True)
class Write:
    """`at_once`: follows the write before it with no chance for the peer to leave in between."""

    data: bytes
    marks: tuple[Mark, ...] = ()
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Fault:
    """`cut` ends the connection in good order (FIN), `reset` does not (RST), `hang` sends nothing
    more, ever."""

    kind: FaultKind


Step = Write | Pause | Fault


# --- what was asked ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer depends on. `number` counts the server's requests from 1; `body` is None
    where it is not JSON."""

    number: int
    body: dict[str, Any] | None

    @property
    def fields(self) -> dict[str, Any]:
        return self.body or {}

    @property
    def model(self) -> str:
        return str(self.fields.get("model", ""))

    @property
    def streamed(self) -> bool:
        return self.fields.get("stream") is True

    @property
    def include_usage(self) -> bool:
        return self._stream_options.get("include_usage") is True

    @property
    def running_usage(self) -> bool:
        """As vLLM and SGLang name it: usage so far, in every chunk."""
        return self._stream_options.get("continuous_usage_stats") is True

    @property
    def output_tokens_max(self) -> int | None:
        for name in ("max_completion_tokens", "max_tokens"):
            if self.fields.get(name) is not None:
                return int(self.fields[name])
        return None

    @property
    def choices(self) -> int:
        return int(self.fields.get("n") or 1)

    @property
    def input_tokens(self) -> int:
        """This server's own tokenizer: one for each word of the messages."""
        return max(1, sum(len(text.split()) for text in self._texts()))

    @property
    def _stream_options(self) -> Mapping[str, Any]:
        return self.fields.get("stream_options") or {}

    def _texts(self) -> Iterator[str]:
        for message in self.fields.get("messages") or ():
            content: Any = message.get("content")
            if isinstance(content, str):
                yield content
            elif content is not None:
                yield from (str(part.get("text", "")) for part in content)

    def directives(self) -> "Directives":
        """Those in `user`, else those in the last message, else none. Raises msgspec.DecodeError
        on a wrong one."""
        for text in (self.fields.get("user"), *list(self._texts())[-1:]):
            if isinstance(text, str) and text.lstrip().startswith("{"):
                return msgspec.json.decode(text, type=Directives)
        return Directives()


# --- answers -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` gives the steps after the head. Every method returns a changed copy."""

    body: Callable[[Asked], Iterable[Step]]
    status: int = 200
    headers: tuple[Header, ...] = ()
    framing: Framing = "chunked"
    delay_seconds: float = 0.0
    fault_at_byte: tuple[int, FaultKind] | None = None
    piece_sizes: tuple[int, ...] = ()
    piece_pause_seconds: float = 0.0
    closes: bool = False

    def delayed(self, seconds: float) -> "Answer":
        """Nothing is sent, not even the head, for so long."""
        return dataclasses.replace(self, delay_seconds=seconds)

    def cut_at(self, byte: int) -> "Answer":
        """FIN once `byte` bytes of the response, head included, were sent; a byte past its end
        changes nothing."""
        return dataclasses.replace(self, fault_at_byte=(byte, "cut"))

    def reset_at(self, byte: int) -> "Answer":
        return dataclasses.replace(self, fault_at_byte=(byte, "reset"))

    def hang_at(self, byte: int) -> "Answer":
        return dataclasses.replace(self, fault_at_byte=(byte, "hang"))

    def in_pieces(self, *sizes: int, pause_seconds: float = 0.0005) -> "Answer":
        """Sends the response in TCP pieces of these sizes, over and over, with pauses."""
        return dataclasses.replace(self, piece_sizes=sizes, piece_pause_seconds=pause_seconds)

    def closing(self, *, announced: bool = True) -> "Answer":
        """Ends the connection after this answer; unannounced, the client is not told and may use
        it again."""
        headers = (*self.headers, ("connection", "close")) if announced else self.headers
        return dataclasses.replace(self, closes=True, headers=headers)

    def framed(self, framing: Framing) -> "Answer":
        """How the end of the body is told. `content-length` needs a body that ends."""
        return dataclasses.replace(self, framing=framing)

    def with_headers(self, *headers: Header) -> "Answer":
        return dataclasses.replace(self, headers=(*self.headers, *headers))

    def steps(self, asked: Asked) -> Iterator[Step]:
        if self.delay_seconds:
            yield Pause(self.delay_seconds)
        body = self.body(asked)
        if self.framing == "content-length":
            body = list(body)
        if self.framing != "raw":
            yield Write(self._head(body))
        for step in body:
            yield _chunked(step) if self.framing == "chunked" else step
        if self.framing == "chunked":
            # A client that has seen `[DONE]` may close at once: that is not leaving early.
            yield Write(b"0\r\n\r\n", at_once=True)

    def _head(self, body: Iterable[Step]) -> bytes:
        headers = list(self.headers)
        if self.framing == "chunked":
            headers.append(("transfer-encoding", "chunked"))
        if self.framing == "content-length":
            length = sum(len(step.data) for step in body if isinstance(step, Write))
            headers.append(("content-length", str(length)))
        lines = [f"HTTP/1.1 {self.status} Fake", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _chunked(step: Step) -> Step:
    if not isinstance(step, Write) or not step.data:
        return step
    size = b"%x\r\n" % len(step.data)
    marks = tuple(mark.moved(len(size)) for mark in step.marks)
    return Write(size + step.data + b"\r\n", marks)


def raw(data: bytes) -> Answer:
    """These bytes and no others, then the connection ends: for replies that are not HTTP, or not
    quite."""
    return Answer(lambda _: [Write(data)], framing="raw", closes=True)


def error(status: int, body: object, *headers: Header) -> Answer:
    """`body` is sent as JSON, unless it is text, which is sent as HTML."""
    if isinstance(body, str):
        data, media_type = body.encode(), "text/html; charset=utf-8"
    else:
        data, media_type = msgspec.json.encode(body), "application/json"
    return Answer(
        lambda _: [Write(data)],
        status=status,
        headers=(("content-type", media_type), *headers),
        framing="content-length",
    )


def openai_error(status: int, message: str, *headers: Header) -> Answer:
    body = {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    }
    return error(status, body, *headers)


# --- usage -------------------------------------------------------------------


class _Truthful:
    """Sent where a good server sends it: in a plain reply always, in a stream if `include_usage`
    was asked for."""


TRUTHFUL = _Truthful()


def usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


# --- plain replies -----------------------------------------------------------


def reply(
    text: str | None,
    *,
    input_tokens: int = 9,
    output_tokens: int | None = None,
    finish_reason: str | None = "stop",
    usage: object = TRUTHFUL,
    message: Mapping[str, object] | None = None,
    choices: int = 1,
    extra: Mapping[str, object] | None = None,
) -> Answer:
    """A whole `chat.completion`. Without `output_tokens` each word is one. `message` and `extra`
    add or replace fields."""
    spent = output_tokens if output_tokens is not None else choices * len((text or "").split())

    def body(asked: Asked) -> Iterable[Step]:
        content = {"role": "assistant", "content": text, "refusal": None, **(message or {})}
        completion: dict[str, object] = {
            "id": f"chatcmpl-fake{asked.number:08d}",
            "object": "chat.completion",
            "created": CREATED,
            "model": asked.model,
            "system_fingerprint": "fp_fake",
            "choices": [
                {
                    "index": index,
                    "message": content,
                    "logprobs": None,
                    "finish_reason": finish_reason,
                }
                for index in range(choices)
            ],
        }
        told = _usage(input_tokens, spent) if usage is TRUTHFUL else usage
        if told is not None:
            completion["usage"] = told
        data = msgspec.json.encode({**completion, **(extra or {})})
        return [Write(data, (Mark(0, len(data), spent, told, terminal=True),))]

    return Answer(body, headers=(("content-type", "application/json"),), framing="content-length")


_usage = usage  # `reply` and `stream` have a parameter of this name


# --- streams -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delta:
    """One chunk with any delta, for any choice, that stands for so many output tokens."""

    fields: Mapping[str, object]
    index: int = 0
    finish_reason: str | None = None
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Event:
    """One event whose data is this object (or this text), as it is."""

    data: object


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Bytes between the events: comments, blank lines, other fields, rubbish."""

    data: bytes


Chunk = str | Delta | Event | Verbatim | Pause | Fault


def pause(seconds: float) -> Pause:
    return Pause(seconds)


def cut() -> Fault:
    return Fault("cut")


def reset() -> Fault:
    return Fault("reset")


def hang() -> Fault:
    return Fault("hang")


def comment(text: str = "") -> Verbatim:
    return Verbatim(f": {text}\n\n".encode())


def error_event(message: str = "The engine died.") -> Event:
    return Event(
        {"error": {"message": message, "type": "server_error", "param": None, "code": 500}}
    )


def reasoning(text: str, field: str = "reasoning_content") -> Delta:
    return Delta({field: text})


def tool_call(name: str, *arguments: str, id: str = "call_fake1", index: int = 0) -> list[Delta]:
    """A call as servers stream it: the name first, then its arguments in fragments."""
    function = {"name": name, "arguments": ""}
    first = {"index": index, "id": id, "type": "function", "function": function}
    rest = ({"index": index, "function": {"arguments": fragment}} for fragment in arguments)
    return [Delta({"tool_calls": [call]}) for call in (first, *rest)]


@dataclass(frozen=True, slots=True)
class EventStyle:
    """How this server writes an event: all of these are within the standard."""

    line_end: str = "\n"
    data_prefix: str = "data: "

    def event(self, data: bytes) -> bytes:
        return self.data_prefix.encode() + data + self.line_end.encode() * 2


def stream(
    chunks: Iterable[Chunk],
    *,
    input_tokens: int = 9,
    output_tokens: int | None = None,
    pace_seconds: float = 0.0,
    finish_reason: str | None = "stop",
    usage: object = TRUTHFUL,
    running_usage: bool | Callable[[int], object] | None = None,
    role: bool = True,
    done: bool = True,
    after: Iterable[Pause | Fault | Verbatim | Event] = (),
    style: EventStyle | None = None,
    events_per_write: int = 1,
) -> Answer:
    """A `chat.completion.chunk` stream: a role chunk, one for each of `chunks`, a finish, usage,
    `[DONE]`, and what comes `after` it.

    Each text is one output token. `usage` is TRUTHFUL, None, an object to send whatever was asked,
    or a list of objects to send one after another. `running_usage` puts usage into each chunk: as
    asked for (None), truthfully (True), or what a function makes of the tokens sent so far.
    `pace_seconds` passes before each chunk. `chunks` may be endless.
    """
    writer = style or EventStyle()

    def body(asked: Asked) -> Iterator[Step]:
        telling = _RunningUsage(asked, input_tokens, running_usage)
        sent = 0
        if role:
            yield _chunk(
                writer, asked, Delta({"role": "assistant", "content": ""}, tokens=0), telling.at(0)
            )
        for chunk in chunks:
            if pace_seconds and not isinstance(chunk, Pause | Fault):
                yield Pause(pace_seconds)
            if isinstance(chunk, Pause | Fault | Verbatim | Event):
                yield _as_told(writer, chunk)
            else:
                delta = Delta({"content": chunk}) if isinstance(chunk, str) else chunk
                sent += delta.tokens
                yield _chunk(writer, asked, delta, telling.at(sent))
        spent = output_tokens if output_tokens is not None else sent
        if finish_reason is not None:
            for index in range(asked.choices):
                finish = Delta({}, index=index, finish_reason=finish_reason, tokens=0)
                yield _chunk(writer, asked, finish, telling.at(sent))
        for told in _last_usages(asked, usage, input_tokens, spent):
            yield _event(writer, {**_envelope(asked), "choices": [], "usage": told}, told=told)
        if done:
            yield _event(writer, "[DONE]")
        for told in after:
            yield _as_told(writer, told)

    return Answer(
        lambda asked: _together(body(asked), events_per_write),
        headers=(
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
        ),
    )


def _as_told(writer: EventStyle, told: Pause | Fault | Verbatim | Event) -> Step:
    if isinstance(told, Verbatim):
        return Write(told.data)
    return _event(writer, told.data) if isinstance(told, Event) else told


class _RunningUsage:
    def __init__(
        self, asked: Asked, input_tokens: int, telling: bool | Callable[[int], object] | None
    ) -> None:
        self._input_tokens = input_tokens
        self._telling = asked.running_usage if telling is None else telling

    def at(self, output_tokens: int) -> object:
        if callable(self._telling):
            return self._telling(output_tokens)
        return _usage(self._input_tokens, output_tokens) if self._telling else None


def _last_usages(
    asked: Asked, told: object, input_tokens: int, output_tokens: int
) -> Sequence[object]:
    if told is TRUTHFUL:
        return [_usage(input_tokens, output_tokens)] if asked.include_usage else []
    if told is None:
        return []
    return cast(list[object], told) if isinstance(told, list) else [told]


def _envelope(asked: Asked) -> dict[str, object]:
    return {
        "id": f"chatcmpl-fake{asked.number:08d}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": asked.model,
        "system_fingerprint": "fp_fake",
    }


def _chunk(writer: EventStyle, asked: Asked, delta: Delta, told: object) -> Write:
    choice = {
        "index": delta.index,
        "delta": delta.fields,
        "logprobs": None,
        "finish_reason": delta.finish_reason,
    }
    body = {**_envelope(asked), "choices": [choice]}
    if told is not None or asked.include_usage:
        body["usage"] = told
    terminal = delta.finish_reason is not None
    return _event(writer, body, tokens=delta.tokens, told=told, terminal=terminal)


def _event(
    writer: EventStyle,
    data: object,
    *,
    tokens: int = 0,
    told: object = None,
    terminal: bool = False,
) -> Write:
    payload = data.encode() if isinstance(data, str) else msgspec.json.encode(data)
    written = writer.event(payload)
    return Write(written, (Mark(0, len(written), tokens, told, terminal),))


def _together(steps: Iterable[Step], events_per_write: int) -> Iterator[Step]:
    """Joins so many neighbouring writes into one, as a server under load does."""
    waiting: list[Write] = []
    for step in steps:
        if isinstance(step, Write):
            waiting.append(step)
        if waiting and (not isinstance(step, Write) or len(waiting) >= events_per_write):
            yield _joined(waiting)
            waiting = []
        if not isinstance(step, Write):
            yield step
    if waiting:
        yield _joined(waiting)


def _joined(writes: Sequence[Write]) -> Write:
    offsets = itertools.accumulate((len(write.data) for write in writes), initial=0)
    marks = [
        mark.moved(offset)
        for write, offset in zip(writes, offsets, strict=False)
        for mark in write.marks
    ]
    return Write(b"".join(write.data for write in writes), tuple(marks))


# --- what a request asks for itself ------------------------------------------


Lie = Literal["truthful", "none", "zero", "negative", "huge", "text", "falling", "twice", "running"]


class Directives(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON object in the request's `user` field, or as its last message.

    For example `{"chunks": 40, "pace_ms": 20, "usage": "none"}`. It lets a client that cannot reach
    the script (another process, a load test) choose its answer. `chunks` is the output tokens there
    would be without a cap; `pace_ms` passes before each, `delay_ms` before the head. `usage` is the
    truth or a lie. `*_after` stop after so many chunks (in a plain reply, before the first byte),
    `*_at` after so many bytes of the response. `status` other than 200 answers with an error. `tag`
    only finds the request in the log.
    """

    tag: str = ""
    chunks: int = DEFAULT_CHUNKS
    pace_ms: float = 0
    delay_ms: float = 0
    usage: Lie = "truthful"
    input_tokens: int | None = None
    ignore_max_tokens: bool = False
    finish: bool = True
    done: bool = True
    status: int = 200
    cut_after: int | None = None
    reset_after: int | None = None
    hang_after: int | None = None
    cut_at: int | None = None
    reset_at: int | None = None
    hang_at: int | None = None

    def answer(self, asked: Asked) -> Answer:
        if self.status != 200:
            return openai_error(self.status, "As directed.").delayed(self.delay_ms / 1000)
        made = self._stream(asked) if asked.streamed else self._reply(asked)
        return self._faulty(made).delayed(self.delay_ms / 1000)

    def _stream(self, asked: Asked) -> Answer:
        tokens, finish_reason = self._length(asked)
        words = list(itertools.islice(_words(), tokens))
        spoken = [
            Delta({"content": word}, index=index)
            for word in words
            for index in range(asked.choices)
        ]
        input_tokens = self._input_tokens(asked)
        return stream(
            self._stopped(spoken),
            input_tokens=input_tokens,
            pace_seconds=self.pace_ms / 1000,
            finish_reason=finish_reason if self.finish else None,
            usage=_told(self.usage, input_tokens, len(spoken)),
            running_usage=_told_running(self.usage, input_tokens),
            done=self.done,
        )

    def _reply(self, asked: Asked) -> Answer:
        tokens, finish_reason = self._length(asked)
        input_tokens, output_tokens = self._input_tokens(asked), tokens * asked.choices
        told = _told(self.usage, input_tokens, output_tokens)
        last = cast(list[object], told)[-1] if isinstance(told, list) else told
        whole = reply(
            "".join(itertools.islice(_words(), tokens)),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            finish_reason=finish_reason if self.finish else None,
            usage=last,
            choices=asked.choices,
        )
        if not self._stop_after():
            return whole
        kind, _ = self._stop_after()[0]
        return dataclasses.replace(whole, fault_at_byte=(0, kind))

    def _length(self, asked: Asked) -> tuple[int, str]:
        cap = asked.output_tokens_max
        if cap is None or cap >= self.chunks or self.ignore_max_tokens:
            return self.chunks, "stop"
        return cap, "length"

    def _input_tokens(self, asked: Asked) -> int:
        return asked.input_tokens if self.input_tokens is None else self.input_tokens

    def _stop_after(self) -> list[tuple[FaultKind, int]]:
        asked: list[tuple[FaultKind, int | None]] = [
            ("cut", self.cut_after),
            ("reset", self.reset_after),
            ("hang", self.hang_after),
        ]
        return [(kind, chunks) for kind, chunks in asked if chunks is not None]

    def _stopped(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        if not self._stop_after():
            return list(chunks)
        kind, count = self._stop_after()[0]
        return [*chunks[:count], Fault(kind)]

    def _faulty(self, answer: Answer) -> Answer:
        if self.cut_at is not None:
            return answer.cut_at(self.cut_at)
        if self.reset_at is not None:
            return answer.reset_at(self.reset_at)
        if self.hang_at is not None:
            return answer.hang_at(self.hang_at)
        return answer


def _words() -> Iterator[str]:
    return itertools.cycle(["Hello", " from", " the", " fake", " upstream", "."])


def _told(lie: Lie, input_tokens: int, output_tokens: int) -> object:
    told: dict[Lie, object] = {
        "none": None,
        "zero": usage(0, 0),
        "negative": usage(-input_tokens, -output_tokens),
        "huge": usage(HUGE, HUGE),
        "text": {"prompt_tokens": "some", "completion_tokens": "many", "total_tokens": "lots"},
        "falling": usage(input_tokens, 1),
        "twice": [usage(input_tokens, output_tokens)] * 2,
    }
    return told.get(lie, TRUTHFUL)


def _told_running(lie: Lie, input_tokens: int) -> bool | Callable[[int], object] | None:
    if lie == "falling":
        return lambda sent: usage(input_tokens, max(0, 1000 - sent))
    return True if lie == "running" else None
