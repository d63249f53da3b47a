"""The child's events, made into OpenAI's chunks, and those of n choices into one stream.

`ChoiceMerger` belongs to one request and has a `ChoiceSink` for each choice, which is what the
child's stream is pushed into. Each chunk carries a running `usage` of the whole request, from the
token counts that the child puts on every event: what was received is then known whenever a stream
ends. The prompt counts once, the completions of all choices are summed, and a last chunk without
choices has the final figures.
"""

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tollway.errors import UpstreamFailed
from tollway.upstreams.base import EventSink, Source
from tollway.wire.events import ChunkChoice


class CachedTokens(Struct):
    cached_tokens: int = 0


class ChildUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | UnsetType = UNSET


class Timings(Struct):
    """What the child did so far; a prompt's tokens are those it read and those it still had from an
    earlier one."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class ChildEvent(Struct):
    """What of an event is used. The rest, such as the token ids among the log probabilities, goes
    no further."""

    id: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str | None = None
    choices: list[ChunkChoice] = []
    usage: ChildUsage | None = None
    timings: Timings | None = None
    error: msgspec.Raw | None = None


class ChoiceMerger:
    def __init__(
        self, sink: EventSink, choices: int, *, call_is_forced: bool, top_logprobs: int
    ) -> None:
        self.sink = sink
        self.call_is_forced = call_is_forced
        self.top_logprobs = top_logprobs
        self.choices = [ChoiceSink(self, index) for index in range(choices)]
        self._first = ChildEvent()
        self._input_tokens = 0
        self._details: CachedTokens | UnsetType = UNSET

    def saw(self, event: ChildEvent) -> None:
        """Takes from an event what the whole reply has in common."""
        if not self._first.id:
            self._first = event
        if event.timings is not None:
            self._input_tokens = event.timings.cache_n + event.timings.prompt_n
        if event.usage is not None:
            self._input_tokens = event.usage.prompt_tokens
            if self._details is UNSET:
                self._details = event.usage.prompt_tokens_details

    def emit(self, choices: list[ChunkChoice]) -> None:
        chunk = {
            "id": self._first.id,
            "object": "chat.completion.chunk",
            "created": self._first.created,
            "model": self._first.model,
            "system_fingerprint": self._first.system_fingerprint,
            "choices": choices,
            "usage": self._usage(),
        }
        self.sink.event(msgspec.json.encode(chunk))

    def finish(self) -> None:
        """The last chunk: no choices, the final usage."""
        self.emit([])
        self.sink.flush()

    def _usage(self) -> ChildUsage:
        output_tokens = sum(choice.output_tokens for choice in self.choices)
        total_tokens = self._input_tokens + output_tokens
        return ChildUsage(self._input_tokens, output_tokens, total_tokens, self._details)


class ChoiceSink:
    """Takes the child's stream for one choice."""

    def __init__(self, merger: ChoiceMerger, index: int) -> None:
        self._merger = merger
        self._index = index
        self._calls_seen = False
        self._finished = False
        self._broken = False
        self.opened_once = False
        self.output_tokens = 0

    def opened(self, source: Source) -> None:
        self.opened_once = True
        self._merger.sink.opened(source)

    def event(self, payload: bytes) -> None:
        if self._broken:
            return
        try:
            event = _decode(payload)
        except msgspec.DecodeError:
            self._broken = True
            return
        if event.error is not None:
            self._broken = True
            return
        if event.timings is not None:
            self.output_tokens = event.timings.predicted_n
        if event.usage is not None:
            self.output_tokens = event.usage.completion_tokens
        self._merger.saw(event)
        if event.choices:
            self._merger.emit([self._mend(event.choices[0])])

    def passed_on(self, frames: bytes) -> bool:
        return False  # each has a count of its own

    def flush(self) -> None:
        self._merger.sink.flush()

    def check_complete(self) -> None:
        """Raises `UpstreamFailed` unless the child said how the choice ended: a cut stream looks
        like a short one."""
        if self._broken or not self._finished:
            raise UpstreamFailed(
                "The embedded model stopped in the middle of its reply. Try again."
            )

    def _mend(self, choice: ChunkChoice) -> ChunkChoice:
        choice.index = self._index
        delta = choice.delta
        if self._merger.call_is_forced and delta.content:
            delta.content = ""  # a call cut off before its name ends comes out as text
        if delta.content is None:
            delta.content = ""
        for call in delta.tool_calls or ():
            self._calls_seen = True
            if call.id:
                call.id = f"call_{call.id}"
        if choice.logprobs is not None:
            for token in choice.logprobs.content or ():
                token.top_logprobs = token.top_logprobs[: self._merger.top_logprobs]
        if choice.finish_reason is not None:
            self._finished = True
            if self._calls_seen and choice.finish_reason == "stop":
                choice.finish_reason = "tool_calls"
        return choice


_decode = msgspec.json.Decoder(ChildEvent).decode
