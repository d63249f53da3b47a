import json
from typing import Any

import pytest

from tollway.errors import UpstreamFailed
from tollway.upstreams.base import Source
from tollway.upstreams.embedded.chunks import ChoiceMerger


class Sink:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def opened(self, source: Source) -> None: ...

    def event(self, payload: bytes) -> None:
        self.events.append(json.loads(payload))

    def passed_on(self, frames: bytes) -> bool:
        return False

    def flush(self) -> None: ...


def merger(
    sink: Sink, choices: int = 1, *, call_is_forced: bool = False, top_logprobs: int = 0
) -> ChoiceMerger:
    return ChoiceMerger(sink, choices, call_is_forced=call_is_forced, top_logprobs=top_logprobs)


def an_event(
    delta: dict[str, Any] | None = None,
    *,
    finish_reason: str | None = None,
    output_tokens: int | None = None,
    **extra: object,
) -> bytes:
    """As the child writes it."""
    choice = {"finish_reason": finish_reason, "index": 0, "delta": delta or {}}
    event: dict[str, object] = {
        "choices": [choice],
        "created": 1,
        "id": "chatcmpl-A",
        "model": "embedded",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion.chunk",
    }
    if output_tokens is not None:
        event["timings"] = {"cache_n": 20, "prompt_n": 7, "predicted_n": output_tokens}
    return json.dumps({**event, **extra}).encode()


def a_usage_event(output_tokens: int, cached: int = 0) -> bytes:
    usage = {
        "completion_tokens": output_tokens,
        "prompt_tokens": 27,
        "total_tokens": 27 + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return an_event(choices=[], usage=usage)


def a_call(**function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "id": "abc", "type": "function", "function": function}]}


def test_a_stream_has_openais_shapes_and_a_running_usage() -> None:
    sink = Sink()
    merged = merger(sink)
    choice = merged.choices[0]

    choice.event(an_event({"role": "assistant", "content": None}))
    choice.event(an_event({"content": "Hi"}, output_tokens=1))
    choice.event(an_event(finish_reason="stop"))
    choice.event(a_usage_event(2))
    choice.check_complete()
    merged.finish()

    assert [event["choices"] for event in sink.events] == [
        [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "finish_reason": None,
                "logprobs": None,
            }
        ],
        [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None, "logprobs": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}],
        [],
    ]
    assert [event["usage"]["completion_tokens"] for event in sink.events] == [0, 1, 1, 2]
    assert sink.events[1]["usage"] == {
        "prompt_tokens": 27,
        "completion_tokens": 1,
        "total_tokens": 28,
    }
    assert set(sink.events[0]) == {
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "choices",
        "usage",
    }


def test_choices_are_merged_with_one_prompt_and_all_completions() -> None:
    sink = Sink()
    merged = merger(sink, 2)
    first, second = merged.choices

    first.event(an_event({"content": "a"}, output_tokens=1))
    second.event(an_event({"content": "b"}, output_tokens=1, id="chatcmpl-B", created=2))
    first.event(an_event(finish_reason="stop"))
    first.event(a_usage_event(2, cached=5))
    second.event(an_event(finish_reason="length"))
    second.event(a_usage_event(3, cached=26))
    merged.finish()

    indexes = [choice["index"] for event in sink.events for choice in event["choices"]]
    assert indexes == [0, 1, 0, 1]
    assert {(event["id"], event["created"]) for event in sink.events} == {("chatcmpl-A", 1)}
    assert sink.events[-1]["usage"] == {
        "prompt_tokens": 27,
        "completion_tokens": 5,
        "total_tokens": 32,
        "prompt_tokens_details": {"cached_tokens": 5},
    }


def test_calls_have_openais_ids_and_end_a_reply() -> None:
    sink = Sink()
    choice = merger(sink).choices[0]

    choice.event(an_event(a_call(name="add", arguments="{")))
    choice.event(an_event({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}))
    choice.event(an_event(finish_reason="stop"))

    deltas = [event["choices"][0]["delta"] for event in sink.events]
    assert deltas[0]["tool_calls"][0]["id"] == "call_abc"
    assert deltas[1] == {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}
    assert sink.events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_was_cut_off_says_so() -> None:
    sink = Sink()
    choice = merger(sink).choices[0]

    choice.event(an_event(a_call(name="add", arguments="{")))
    choice.event(an_event(finish_reason="length"))

    assert sink.events[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("forced", "content"), [(True, ""), (False, '{"name": "get_')])
def test_text_in_a_forced_call_is_the_leaked_beginning_of_it(forced: bool, content: str) -> None:
    sink = Sink()
    choice = merger(sink, call_is_forced=forced).choices[0]

    choice.event(an_event({"content": '{"name": "get_'}))

    assert sink.events[0]["choices"][0]["delta"] == {"content": content}


def test_log_probabilities_have_no_ids_and_as_many_alternatives_as_were_asked_for() -> None:
    sink = Sink()
    choice = merger(sink, top_logprobs=1).choices[0]
    token = {"id": 1, "token": "a", "bytes": [97], "logprob": -1.0}
    logprobs = {"content": [{**token, "top_logprobs": [token, token]}]}
    wanted = {"token": "a", "logprob": -1.0, "bytes": [97]}

    choice.event(
        an_event(choices=[{"index": 0, "delta": {}, "finish_reason": None, "logprobs": logprobs}])
    )

    assert sink.events[0]["choices"][0]["logprobs"]["content"] == [
        {**wanted, "top_logprobs": [wanted]}
    ]


@pytest.mark.parametrize(
    "last", [b"{", b'{"error": {"message": "secret"}}', an_event({"content": "Hi"})]
)
def test_a_stream_that_does_not_end_in_order_has_failed(last: bytes) -> None:
    sink = Sink()
    choice = merger(sink).choices[0]

    choice.event(an_event({"content": "Hi"}))
    choice.event(last)

    with pytest.raises(UpstreamFailed, match="stopped in the middle"):
        choice.check_complete()


def test_after_an_error_nothing_more_is_passed_on() -> None:
    sink = Sink()
    choice = merger(sink).choices[0]

    choice.event(b'{"error": {}}')
    choice.event(an_event(finish_reason="stop"))

    assert sink.events == []
    with pytest.raises(UpstreamFailed):
        choice.check_complete()
