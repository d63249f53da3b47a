"""Asks the upstream and gives its answer to the client, counting what was given.

A stream passes through in the network's own callbacks: the upstream's connection calls `event` for
each event it has read and `flush` once a read, and what was rewritten goes out with one write. A
read that is whole events like the last is offered to `passed_on` before all that.
Three things are rewritten in each event: the reply's id, the model's name, and the usage, which the
client sees only at the end, with its credits.

Nearly all events differ in one string from the one before: those are rewritten by what was learned
of it (`template.py`).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tollway.errors import RequestError, UpstreamFailed
from tollway.gateway.template import Template, is_text
from tollway.gateway.types import Admission, Meter, Reply, Route
from tollway.ledger.base import Attempt, Outcome, Settlement
from tollway.upstreams.base import Ask, Source, Upstream
from tollway.upstreams.normalise import (
    ChoiceState,
    finish_reason,
    mended_chunk,
    normalise_choice,
    normalise_delta,
)
from tollway.wire.chat import ChatCompletion, Choice
from tollway.wire.events import Chunk, ChunkChoice
from tollway.wire.usage import Details, UsageReport, read_usage

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"

T = TypeVar("T")

log = logging.getLogger("tollway.relay")

_encode = msgspec.json.Encoder().encode
_decode_chunk = msgspec.json.Decoder(Chunk).decode


async def relay(
    route: Route,
    admission: Admission,
    reply: Reply,
    meter: Meter,
    silences: "Silences",
) -> "Answer":
    """The answer of the first upstream that gives one; each that was tried is on the receipt. Ends
    when that upstream has ended in good order; `finish` then gives the client the end of it, with
    its credits. `silences` fill those of a stream.

    Raises `RequestError`; where the reply has begun by then, the client can only be told within the
    stream.
    """
    asker: Asker[Any]
    if admission.parsed.request.stream is True:
        asker = StreamRelay(admission, reply, meter, route, silences)
    else:
        asker = _WHOLE
    try:
        while True:
            upstream = route.enter() or await route.wait()
            meter.upstream = upstream.name
            try:
                answer: Any = await asker.ask(upstream, route.ask)
                asker.check(answer)
            except RequestError as error:
                meter.attempts += (Attempt(upstream.name, error.upstream_status, error.code),)
                route.failed(error)
                if not (asker.may_start_over() and await route.may_try_again(error)):
                    raise
            except BaseException:
                route.abandoned()
                raise
            else:
                meter.attempts += (Attempt(upstream.name, 200),)
                route.served()
                return asker.taken(answer, admission, meter)
    finally:
        asker.close()


class Answer(Protocol):
    def finish(self, reply: Reply, outcome: Outcome, settlement: Settlement) -> None: ...


class Asker(Protocol[T]):
    """Asks one upstream, and is asked again where it may be another's turn."""

    def ask(self, upstream: Upstream, ask: Ask) -> Awaitable[T]: ...

    def check(self, answer: T) -> None:
        """Raises `UpstreamFailed` where it is none that a client could be given."""
        ...

    def may_start_over(self) -> bool:
        """Whether the client has been given nothing of an answer. If so, all that came of the last
        one is forgotten."""
        ...

    def taken(self, answer: T, admission: Admission, meter: Meter) -> Answer:
        """This one is the client's: what it says of itself is on the meter afterwards."""
        ...

    def close(self) -> None:
        """Nobody is asked any more."""
        ...


class _Whole:
    """An `Asker`. Nothing of a whole reply reaches the client before all of it is there, so another
    upstream may be asked however far this one came."""

    def ask(self, upstream: Upstream, ask: Ask) -> Awaitable[ChatCompletion]:
        return upstream.complete(ask)

    def check(self, answer: ChatCompletion) -> None:
        if not answer.choices:
            raise _failed("The model's server answered without a choice. Try again.")
        for choice in answer.choices:
            reason = choice.finish_reason
            if reason and reason != "stop" and finish_reason(reason) is None:
                raise _failed("The model's server gave up in the middle of its reply. Try again.")

    def may_start_over(self) -> bool:
        return True

    def taken(self, answer: ChatCompletion, admission: Admission, meter: Meter) -> "WholeAnswer":
        meter.upstream_id = answer.id or None
        meter.report = read_usage(answer.usage)
        meter.finished = True
        for choice in answer.choices:
            text = _plain_text(choice)
            if text is not None:
                meter.text_bytes += len(text) if text.isascii() else len(text.encode())
                continue
            meter.finished = meter.finished and bool(choice.finish_reason)
            ids = _call_ids(admission, choice.index) if choice.message.tool_calls else ""
            normalise_choice(choice, ids)
            reasoning_bytes = _reasoning_bytes(choice)
            meter.reasoning_bytes += reasoning_bytes
            meter.text_bytes += reasoning_bytes + _text_bytes(choice)
        if meter.text_bytes:
            meter.first_output_at = time.monotonic()
        meter.status = "completed"
        return WholeAnswer(admission, answer, meter.report)

    def close(self) -> None:
        pass


_WHOLE = _Whole()


class WholeAnswer(Struct, frozen=True):
    admission: Admission
    completion: ChatCompletion
    report: UsageReport | None

    def finish(self, reply: Reply, outcome: Outcome, settlement: Settlement) -> None:
        reply.complete(self.admission, settlement, self.body(outcome, settlement))

    def body(self, outcome: Outcome, settlement: Settlement) -> bytes:
        theirs, call = self.completion, self.admission.call
        ours = ChatCompletion(
            theirs.choices,
            call.completion_id(),
            int(call.now),
            self.admission.model.id,
            "chat.completion",
            theirs.system_fingerprint,
            theirs.service_tier,
            _usage_object(self.report, outcome, settlement),
        )
        return _encode(ours)


class Silences:
    """Fills those of streams with comments, so that nobody between closes the connection. One timer
    looks after all streams: a timer for each would take 0.5 KB a stream."""

    def __init__(self, seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._look_seconds = seconds / 15
        self._seconds = seconds - self._look_seconds  # it may be silent until the next look
        self._streams: set[StreamRelay] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, stream: "StreamRelay") -> None:
        self._streams.add(stream)
        if self._timer is None:
            self._begin()

    def forget(self, stream: "StreamRelay") -> None:
        self._streams.discard(stream)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._look_seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        long_ago = asyncio.get_running_loop().time() - self._seconds
        for stream in list(self._streams):
            if stream.wrote_at <= long_ago:
                stream.keep_alive()
        if self._streams:
            self._begin()


class StreamRelay:
    """Implements `EventSink` for one stream to one client, and is its `Asker`."""

    def __init__(
        self,
        admission: Admission,
        reply: Reply,
        meter: Meter,
        route: Route,
        silences: Silences,
    ) -> None:
        self._route = route
        self._silences = silences
        self._keeps_request = True
        self._admission = admission
        self._reply = reply
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._output_tokens_max = admission.cost.output_tokens_max * admission.cost.choices
        self._wants_usage = admission.parsed.wants_usage
        self._template: Template | None = None
        self._sources: list[Source] = []
        self._out: list[bytes] = []
        self._unsent_pieces = 0
        """Of what waits to be written, and counts when it is."""
        self._unsent_is_reasoning = False
        self._choices: dict[int, ChoiceState] = {}
        self._created = int(admission.call.now)
        self._fingerprint: str | None = None
        self._failure: RequestError | None = None
        self.cut_off = False
        reply.on_pressure(self._on_pressure)
        self.wrote_at = self._loop.time()
        silences.watch(self)

    # --- Asker ------------------------------------------------------------------------------------

    async def ask(self, upstream: Upstream, ask: Ask) -> None:
        try:
            await upstream.stream(ask, self)
        except RequestError:
            if not self.cut_off:  # it was not us who ended it
                raise

    def check(self, answer: None) -> None:
        del answer  # it was passed on as it came
        if self._failure is not None:
            raise self._failure
        if not self._choices or not all(state.finished for state in self._choices.values()):
            raise _failed("The model's server ended the stream before the model did.")
        self._meter.finished = True

    def may_start_over(self) -> bool:
        # A comment that kept the connection is no part of an answer; all else that was written is.
        if self._out or (self._reply.begun and self._choices):
            return False
        self._failure = self._fingerprint = self._template = None
        self._choices.clear()
        self._sources.clear()
        self._meter.upstream_id = self._meter.report = None
        return True

    def taken(self, answer: None, admission: Admission, meter: Meter) -> "StreamRelay":
        del answer, admission  # all of it is with the client
        meter.status = "completed"
        return self

    def close(self) -> None:
        self._silences.forget(self)
        if self._unsent_pieces:
            self._reply.flush()
        self.flush()
        self._sources.clear()  # their connections serve others now: this client must not stop them

    # --- EventSink --------------------------------------------------------------------------------

    def opened(self, source: Source) -> None:
        self._sources.append(source)
        self._route.answered()

    def event(self, payload: bytes) -> None:
        if self._unsent_pieces:
            self._reply.flush()
        template = self._template
        frame = b"data: " + payload + b"\n\n"  # as the template has it, however it was written
        if (
            template is not None
            and frame.startswith(template.before)
            and frame.endswith(template.after)
            and (text := is_text(frame, template.start, len(frame) - template.tail))
        ):
            self._out.append(template.our_before + text[0] + template.our_after)
            self._count_pieces(1)
            if template.is_reasoning and not self.cut_off:
                self._meter.reasoning_pieces += 1
        elif self._failure is None and not self.cut_off:
            self._read(payload)

    def passed_on(self, frames: bytes) -> bool:
        template, meter = self._template, self._meter
        if (
            template is None
            or not frames.startswith(template.before)
            or not frames.endswith(template.after)
            or self._out  # that goes first
            or self._unsent_pieces
        ):
            return False
        text = is_text(frames, template.start, len(frames) - template.tail)
        if text is not None:
            ours, pieces = text[0], 1
        elif frames.find(b"\n\n") < len(frames) - 2:
            ours, pieces = template.several(frames)
        else:
            return False
        if not pieces or meter.output_pieces + pieces > self._output_tokens_max:  # to be cut off
            return False
        self._unsent_pieces = pieces
        self._unsent_is_reasoning = template.is_reasoning
        self.wrote_at = self._loop.time()
        self._reply.write_soon(template.our_before + ours + template.our_after, self._sent)
        return True

    def _sent(self) -> None:
        self._meter.output_pieces += self._unsent_pieces
        if self._unsent_is_reasoning:
            self._meter.reasoning_pieces += self._unsent_pieces
        self._unsent_pieces = 0

    def flush(self) -> None:
        out = self._out
        if out:
            self._write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, reply: Reply, outcome: Outcome, settlement: Settlement) -> None:
        usage_event = b""
        if self._wants_usage:
            chunk = self._head()
            chunk["choices"] = []
            chunk["usage"] = _usage_object(self._meter.report, outcome, settlement)
            usage_event = b"data: " + _encode(chunk) + b"\n\n"
        reply.end_stream(settlement, usage_event)

    # --- the plain way ----------------------------------------------------------------------------

    def _read(self, payload: bytes) -> None:
        if not payload:  # some servers keep a connection with these
            return
        chunk = _chunk(payload)
        if chunk is None:
            self._fail("The model's server sent an event that is no chat completion chunk.")
            return
        if chunk.error is not None and chunk.error is not False:
            self._fail("The model's server failed in the middle of its reply.")
            return
        self._meter.upstream_id = self._meter.upstream_id or chunk.id or None
        if chunk.system_fingerprint and chunk.system_fingerprint != self._fingerprint:
            self._fingerprint = chunk.system_fingerprint
            self._template = None  # it has the one before
        pieces = reasoning = 0
        for choice in chunk.choices:
            if not self._normalise(choice):
                return
            pieces += choice.delta.carries_output()
            reasoning += choice.delta.is_reasoning()
        if chunk.choices:  # else usage alone, or a content filter's word on the prompt
            rewritten = self._rewrite(chunk)
            self._out.append(b"data: " + rewritten + b"\n\n")
            if self._keeps_request:
                self._let_go()
            if pieces:
                learned = Template.learn(payload, rewritten, chunk)
                # A call that begins may change what an index stands for.
                if learned is not None or any(one.delta.tool_calls for one in chunk.choices):
                    self._template = learned
                self._count_pieces(pieces)
                if not self.cut_off:
                    self._meter.reasoning_pieces += reasoning
        report = read_usage(chunk.usage)
        if report is not None and not self.cut_off:  # what was cut off is not the client's to pay
            self._meter.report = report
            self._meter.reported_pieces = self._meter.output_pieces

    def _let_go(self) -> None:
        """Something goes out, so no other upstream is asked any more."""
        self._keeps_request = False
        self._route.let_go()
        self._admission.parsed.let_go()

    def _normalise(self, choice: ChunkChoice) -> bool:
        """Brings one choice into our API's form; False where the stream has failed with it."""
        state = self._choices.get(choice.index)
        if state is None:
            if not 0 <= choice.index < self._admission.cost.choices:
                self._fail("The model's server sent a choice that was not asked for.")
                return False
            state = ChoiceState(_call_ids(self._admission, choice.index))
            self._choices[choice.index] = state
        if normalise_delta(choice, state):
            return True
        self._fail("The model's server gave up in the middle of its reply.")
        return False

    def _rewrite(self, chunk: Chunk) -> bytes:
        ours = self._head()
        if chunk.service_tier is not UNSET:
            ours["service_tier"] = chunk.service_tier
        ours["choices"] = chunk.choices
        if self._wants_usage:
            ours["usage"] = None
        return _encode(ours)

    def _head(self) -> dict[str, object]:
        return {
            "id": self._admission.call.completion_id(),
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._admission.model.id,
            "system_fingerprint": self._fingerprint,
        }

    # --- what goes out ----------------------------------------------------------------------------

    def _count_pieces(self, count: int) -> None:
        """Of the event that is the last in `_out`."""
        meter = self._meter
        meter.output_pieces += count
        if meter.first_output_at is None:
            meter.first_output_at = time.monotonic()
        if meter.output_pieces > self._output_tokens_max:
            meter.output_pieces -= count
            self._cut()

    def _cut(self) -> None:
        """The upstream ignores its cap. The hold pays for no more: the reply ends as one that
        reached its length."""
        self.cut_off = True
        self._template = None
        self._out.pop()
        log.error(
            "upstream %s went on beyond its cap of %d tokens",
            self._meter.upstream,
            self._output_tokens_max,
        )
        for index, state in self._choices.items():
            if not state.finished:
                state.finished = True
                ours = self._head()
                ours["choices"] = [{"index": index, "delta": {}, "finish_reason": "length"}]
                self._out.append(b"data: " + _encode(ours) + b"\n\n")
        self.flush()
        self._abandon(UpstreamFailed("The model's server ignored its cap."))

    def _fail(self, message: str) -> None:
        """Remembered until the connection has been left: callbacks must not raise."""
        if self._failure is not None:
            return
        self._failure = _failed(message)
        self._template = None
        self._abandon(self._failure)

    def _abandon(self, error: RequestError) -> None:
        for source in self._sources:
            source.abandon(error)

    def _write(self, events: bytes) -> None:
        if not self._reply.begun:
            self._reply.begin(self._admission)
        self.wrote_at = self._loop.time()
        self._reply.write(events)

    def _on_pressure(self, slow: bool) -> None:
        """The next chunk is read only when the client has taken the last."""
        for source in self._sources:
            if slow:
                source.pause_reading()
            else:
                source.resume_reading()

    def keep_alive(self) -> None:
        self._write(KEEP_ALIVE_COMMENT)


def _chunk(payload: bytes) -> Chunk | None:
    try:
        return _decode_chunk(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return mended_chunk(payload)


def _call_ids(admission: Admission, choice: int) -> str:
    """What the ids of calls begin with that the upstream gave none."""
    return f"call_{admission.call.request_id[4:]}_{choice}_"


class _UsageObject(Struct):
    """The `usage` that a client gets: what was charged for, the upstream's details, and the
    credits."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details | UnsetType
    completion_tokens_details: Details | UnsetType
    credits_consumed: int
    credits_remaining: int


def _usage_object(
    report: UsageReport | None, outcome: Outcome, settlement: Settlement
) -> _UsageObject:
    of_input = None if report is None else report.input_details
    of_output = None if report is None else report.output_details
    return _UsageObject(
        outcome.input_tokens,
        outcome.output_tokens,
        outcome.input_tokens + outcome.output_tokens,
        UNSET if of_input is None else of_input,
        UNSET if of_output is None else of_output,
        settlement.charged,
        settlement.available,
    )


def _plain_text(choice: Choice) -> str | None:
    """Of one that is text alone: by far the most are. It is then as our API has it."""
    message = choice.message
    content = message.content
    if (
        (choice.finish_reason == "stop" or choice.finish_reason == "length")
        and not message.tool_calls
        and not message.reasoning_content
        and message.reasoning is UNSET
        and message.refusal is None
        and content is not None
    ):
        if message.tool_calls is not UNSET:  # vLLM sends an empty list
            message.tool_calls = UNSET
        return content
    return None


def _failed(message: str) -> UpstreamFailed:
    """Of an upstream that had accepted the request."""
    return UpstreamFailed(message, 200)


def _text_bytes(choice: Choice) -> int:
    message = choice.message
    total = 0
    for text in (message.content, message.refusal):
        if text:
            total += len(text) if text.isascii() else len(text.encode())
    for call in message.tool_calls or ():
        total += len(call.function.name.encode()) + len(call.function.arguments.encode())
    return total


def _reasoning_bytes(choice: Choice) -> int:
    text = choice.message.reasoning_content
    return len(text.encode()) if text else 0
