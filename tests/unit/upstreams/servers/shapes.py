"""What is told of a server, and the words that most of them have in common."""

from dataclasses import dataclass
from typing import Any

from tests.unit.upstreams.playback import sse

Usage = tuple[int, int, int, int, str]  # input, output, cached, reasoning, and who counted


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reply that is an error, and what the client is told."""

    status: int
    body: Any
    error: str
    code: str
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Shapes:
    """`answer` thinks, then says "4"; `call` calls add(2, 2). `usage` is of the answer, streamed or
    whole, with its own dialect."""

    answer: bytes
    whole: Any
    call: bytes
    whole_call: Any
    usage: Usage
    broken: bytes
    refusals: tuple[Refusal, ...]
    reasoning: str = ""


def chunk(delta: Any, finish: str | None = None, *, of: Any = None, **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish, **(of or {})}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
        "choices": [choice],
        **more,
    }


def usage_chunk(usage: Any, **more: Any) -> dict[str, Any]:
    return {**chunk({}), "choices": [], "usage": usage, **more}


def whole(message: Any, finish: str, usage: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        ],
        "usage": usage,
        **more,
    }


def counts(input_tokens: int, output_tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        **more,
    }


def part(index: int | None = 0, **call: Any) -> dict[str, Any]:
    return {"tool_calls": [{**({} if index is None else {"index": index}), **call}]}


ADD = {"name": "add", "arguments": ""}
ARGUMENTS = '{"a": 2, "b": 2}'
OPENAI_CALL_STREAM = sse(
    chunk({"role": "assistant", "content": None}),
    chunk(part(id="call_1", type="function", function=ADD)),
    chunk(part(function={"arguments": '{"a": 2,'})),
    chunk(part(function={"arguments": ' "b": 2}'})),
    chunk({}, "tool_calls"),
    usage_chunk(counts(20, 9)),
)


def a_call(**changes: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": ARGUMENTS}
    return {"id": "call_1", "type": "function", "function": function, **changes}


WHOLE_CALL = whole({"content": None, "tool_calls": [a_call()]}, "tool_calls", counts(20, 9))
CACHED = {"prompt_tokens_details": {"cached_tokens": 8}}
THOUGHT = {"completion_tokens_details": {"reasoning_tokens": 2}}
ROLE = chunk({"role": "assistant", "content": ""})
