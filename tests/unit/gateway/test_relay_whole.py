import json
import time
from typing import Any

import msgspec
import pytest
from tests.unit.gateway.parts import NOW, ReplyLog, a_meter, an_admission
from tests.unit.gateway.relayed import COMPLETION_ID, SETTLEMENT, Upstream, route_to

from tollway.errors import UpstreamFailed
from tollway.gateway import relay as relay_module
from tollway.gateway.relay import Silences, relay
from tollway.gateway.settle import outcome_of
from tollway.gateway.types import Meter
from tollway.wire.chat import ChatCompletion, Choice


def completion(message: dict[str, Any] | None = None, **changes: Any) -> ChatCompletion:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello", **(message or {})},
        "finish_reason": changes.pop("finish", "stop"),
    }
    body: dict[str, Any] = {
        "id": "chatcmpl-theirs",
        "object": "chat.completion",
        "created": 5,
        "model": "theirs",
        "choices": [choice],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
        "timings": {"x": 1},
        **changes,
    }
    return msgspec.json.decode(json.dumps(body), type=ChatCompletion)


async def whole(reply_: ChatCompletion) -> tuple[dict[str, Any], Meter]:
    admission, meter, reply = an_admission(), Meter(), ReplyLog()
    answer = await relay(
        route_to(Upstream(whole=reply_), admission), admission, reply, meter, Silences()
    )
    answer.finish(reply, outcome_of(admission, meter, 1001.0), SETTLEMENT)
    assert reply.body is not None
    return json.loads(reply.body), meter


async def test_a_whole_reply_is_the_contracts() -> None:
    body, meter = await whole(completion())
    assert body == {
        "id": COMPLETION_ID,
        "object": "chat.completion",
        "created": int(NOW),
        "model": "m1",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "total_tokens": 11,
            "credits_consumed": 17,
            "credits_remaining": 83,
        },
    }
    assert meter.status == "completed"
    assert meter.upstream_id == "chatcmpl-theirs"
    assert meter.text_bytes == 5


async def test_null_fields_of_a_whole_reply_are_no_fault() -> None:
    body, meter = await whole(
        completion(id=None, created=None, model=None, object=None, usage=None)
    )
    assert body["id"] == COMPLETION_ID
    assert meter.upstream_id is None
    assert body["usage"]["completion_tokens"] == 2  # counted: five bytes


async def test_calls_end_a_whole_reply_as_tool_calls() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body, meter = await whole(completion({"content": "", "tool_calls": [call]}))
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [call]
    assert meter.text_bytes == 3


async def test_no_calls_are_no_field() -> None:
    body, _ = await whole(completion({"tool_calls": []}, finish=None))
    assert "tool_calls" not in body["choices"][0]["message"]
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "message",
    [
        {"refusal": None, "tool_calls": []},
        {"tool_calls": None},
        {"reasoning_content": None},
        {"reasoning_content": ""},
        {"content": ""},
        {"content": None},
        {"content": "é"},
    ],
)
async def test_a_plain_choice_is_given_as_the_full_way_gives_it(
    monkeypatch: pytest.MonkeyPatch, message: dict[str, Any]
) -> None:
    def no_short_way(choice: Choice) -> None:
        pass

    shortly, of_short = await whole(completion({"content": "Five.", **message}))
    monkeypatch.setattr(relay_module, "_plain_text", no_short_way)
    fully, of_full = await whole(completion({"content": "Five.", **message}))
    assert shortly == fully
    assert (of_short.text_bytes, of_short.finished) == (of_full.text_bytes, of_full.finished)


async def test_a_whole_reply_without_output_and_with_a_blank_finish_costs_nothing() -> None:
    _, meter = await whole(completion({"content": ""}, finish=None))
    assert outcome_of(an_admission(), meter, 1001.0).cost == 0


@pytest.mark.parametrize("message", [{}, {"content": "", "reasoning_content": "Hm."}])
async def test_the_first_token_of_a_whole_reply_is_there_when_the_reply_is(
    message: dict[str, Any],
) -> None:
    before = time.monotonic()
    _, meter = await whole(completion(message))
    assert meter.first_output_at is not None
    assert before <= meter.first_output_at <= time.monotonic()


@pytest.mark.parametrize("reply_", [completion(finish="abort"), completion(choices=[])])
async def test_a_whole_reply_that_is_none_has_failed(reply_: ChatCompletion) -> None:
    admission, meter = an_admission(), a_meter()
    with pytest.raises(UpstreamFailed):
        await relay(
            route_to(Upstream(whole=reply_), admission), admission, ReplyLog(), meter, Silences()
        )
    assert meter.status == "failed"
