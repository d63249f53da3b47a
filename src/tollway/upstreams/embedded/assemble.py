"""Puts a stream together into one reply.

Non-stream replies are made this way because the child often does not notice that nobody waits for a
plain one any more.
"""

from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from tollway.upstreams.base import Source
from tollway.wire.chat import (
    ChatCompletion,
    Choice,
    Logprobs,
    ReplyFunction,
    ReplyMessage,
    ReplyToolCall,
    TokenLogprob,
)
from tollway.wire.events import Chunk, ChunkChoice, DeltaToolCall


class Assembler:
    """An `EventSink` for what `ChoiceMerger` emits."""

    def __init__(self, choices: int) -> None:
        self._drafts = [_Draft() for _ in range(choices)]
        self._last = Chunk()

    def opened(self, source: Source) -> None:
        pass

    def event(self, payload: bytes) -> None:
        self._last = chunk = _decode(payload)
        for choice in chunk.choices:
            self._drafts[choice.index].add(choice)

    def passed_on(self, frames: bytes) -> bool:
        return False

    def flush(self) -> None:
        pass

    def completion(self) -> ChatCompletion:
        last = self._last
        return ChatCompletion(
            id=last.id,
            created=last.created,
            model=last.model,
            system_fingerprint=last.system_fingerprint,
            choices=[draft.choice(index) for index, draft in enumerate(self._drafts)],
            usage=last.usage,
        )


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class _Draft:
    content: list[str] = field(default_factory=list[str])
    reasoning: list[str] = field(default_factory=list[str])
    calls: dict[int, _Call] = field(default_factory=dict[int, _Call])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish_reason: str | None = None

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if delta.content:
            self.content.append(delta.content)
        if delta.reasoning_content:
            self.reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            self._add_call(call)
        if choice.logprobs is not None and choice.logprobs.content:
            self.logprobs.extend(choice.logprobs.content)
        self.finish_reason = choice.finish_reason or self.finish_reason

    def _add_call(self, part: DeltaToolCall) -> None:
        call = self.calls.setdefault(part.index, _Call())
        call.id = part.id or call.id
        if part.function:
            call.name = part.function.name or call.name
            call.arguments.append(part.function.arguments or "")

    def choice(self, index: int) -> Choice:
        content = "".join(self.content)
        calls = [
            ReplyToolCall(call.id, ReplyFunction(call.name, "".join(call.arguments)))
            for _, call in sorted(self.calls.items())
        ]
        message = ReplyMessage(
            content=None if calls and not content else content,
            tool_calls=calls or UNSET,
            reasoning_content="".join(self.reasoning) or UNSET,
        )
        logprobs = Logprobs(content=self.logprobs) if self.logprobs else None
        return Choice(index, message, self.finish_reason, logprobs)


_decode = msgspec.json.Decoder(Chunk).decode
