import json

from msgspec import UNSET

from tollway.upstreams.embedded.assemble import Assembler
from tollway.wire.chat import ReplyFunction, ReplyToolCall


def assembled(*choices: dict[str, object], count: int = 1) -> Assembler:
    assembler = Assembler(count)
    for choice in choices:
        event: dict[str, object] = {
            "id": "chatcmpl-A",
            "choices": [{"index": 0, "delta": {}, **choice}],
        }
        assembler.event(json.dumps(event).encode())
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assembler.event(
        json.dumps(
            {
                "id": "chatcmpl-A",
                "created": 5,
                "model": "m",
                "system_fingerprint": "fp",
                "choices": [],
                "usage": usage,
            }
        ).encode()
    )
    return assembler


def test_text_and_reasoning_are_joined() -> None:
    completion = assembled(
        {"delta": {"role": "assistant", "content": "", "reasoning_content": "Hm"}},
        {"delta": {"reasoning_content": "m."}},
        {"delta": {"content": "He"}},
        {"delta": {"content": "llo"}},
        {"finish_reason": "stop"},
    ).completion()

    message = completion.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello", "Hmm.")
    assert message.tool_calls is UNSET
    assert completion.choices[0].finish_reason == "stop"


def test_the_last_chunk_has_what_is_common() -> None:
    completion = assembled({"finish_reason": "stop"}).completion()

    assert (completion.id, completion.created, completion.model) == ("chatcmpl-A", 5, "m")
    assert completion.system_fingerprint == "fp"
    assert completion.usage["total_tokens"] == 3
    assert completion.choices[0].message.reasoning_content is UNSET


def test_calls_are_joined_by_their_index_and_leave_no_content() -> None:
    def part(index: int, call_id: str | None = None, **function: str) -> dict[str, object]:
        call = {"index": index, "function": function, **({"id": call_id} if call_id else {})}
        return {"delta": {"tool_calls": [call]}}

    completion = assembled(
        {"delta": {"role": "assistant", "content": ""}},
        part(1, "call_b", name="g", arguments="{"),
        part(0, "call_a", name="f", arguments='{"a'),
        part(0, arguments='": 1}'),
        part(1, arguments="}"),
        {"finish_reason": "tool_calls"},
    ).completion()

    message = completion.choices[0].message
    assert message.content is None
    assert message.tool_calls == [
        ReplyToolCall("call_a", ReplyFunction("f", '{"a": 1}')),
        ReplyToolCall("call_b", ReplyFunction("g", "{}")),
    ]


def test_log_probabilities_are_collected() -> None:
    def token(text: str) -> dict[str, object]:
        return {"logprobs": {"content": [{"token": text, "logprob": -1.0, "top_logprobs": []}]}}

    completion = assembled(token("a"), token("b"), {"finish_reason": "stop"}).completion()

    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert [t.token for t in logprobs.content or ()] == ["a", "b"]


def test_choices_stay_apart() -> None:
    completion = assembled(
        {"index": 1, "delta": {"content": "b"}},
        {"delta": {"content": "a"}},
        {"finish_reason": "stop"},
        {"index": 1, "finish_reason": "length"},
        count=2,
    ).completion()

    assert [c.message.content for c in completion.choices] == ["a", "b"]
    assert [c.finish_reason for c in completion.choices] == ["stop", "length"]
