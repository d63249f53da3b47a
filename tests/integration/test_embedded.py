"""The embedded model for real: llama.cpp, the 98 MB file, and the client that the gateway uses.

What is promised of text here holds for any model: shapes, counts and ends, never wording.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import psutil
import pytest
import pytest_asyncio
from tests.support.model import the_model

from tollway.errors import InvalidRequest, RequestError, Unavailable, UpstreamFailed
from tollway.upstreams.base import Ask, Source
from tollway.upstreams.embedded.upstream import EmbeddedSettings, EmbeddedUpstream, child_of
from tollway.upstreams.openai import OpenAICompatible
from tollway.wire.chat import ChatCompletion, ReplyToolCall

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

SETTINGS = EmbeddedSettings(context_length=512, parallel=4)
PARIS = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def an_upstream(settings: EmbeddedSettings = SETTINGS) -> EmbeddedUpstream:
    return EmbeddedUpstream(
        "embedded",
        settings,
        partial(child_of, settings, the_model()),
        lambda base_url, api_key: OpenAICompatible("embedded", base_url, api_key),
    )


def an_ask(output_tokens_max: int = 12, /, **fields: object) -> Ask:
    return Ask(
        "req_1", "smollm2", {"messages": PARIS, "temperature": 0, **fields}, output_tokens_max
    )


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "tollway.upstreams.embedded.runner" in child.cmdline()
    ]


def the_call(completion: ChatCompletion) -> ReplyToolCall:
    calls = completion.choices[0].message.tool_calls
    assert isinstance(calls, list)
    return calls[0]


class Sink:
    """Keeps the events; `first` is set by the first of them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.first = asyncio.Event()
        self.sources: list[Source] = []

    def opened(self, source: Source) -> None:
        self.sources.append(source)

    def event(self, payload: bytes) -> None:
        self.events.append(json.loads(payload))
        self.first.set()

    def passed_on(self, frames: bytes) -> bool:
        return False

    def flush(self) -> None:
        pass

    def choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event["choices"]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[EmbeddedUpstream]:
    upstream = an_upstream()
    await upstream.start()
    yield upstream
    await upstream.stop()


async def test_a_reply_is_whole(upstream: EmbeddedUpstream) -> None:
    completion = await upstream.complete(an_ask())

    assert "Paris" in (completion.choices[0].message.content or "")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage["prompt_tokens"] == 27
    assert 1 < completion.usage["completion_tokens"] <= 12


async def test_every_chunk_says_what_was_used_so_far(upstream: EmbeddedUpstream) -> None:
    sink = Sink()
    await upstream.stream(an_ask(), sink)

    assert sink.events[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "finish_reason": None,
            "logprobs": None,
        }
    ]
    counts = [event["usage"]["completion_tokens"] for event in sink.events[1:]]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert sink.events[-1]["choices"] == []
    assert sink.events[-1]["usage"]["prompt_tokens"] == 27


async def test_the_count_of_a_prompt_is_exact(upstream: EmbeddedUpstream) -> None:
    ask = an_ask(tools=[WEATHER], tool_choice="required")

    counted = await upstream.count_input_tokens(ask)

    assert counted == (await upstream.complete(ask)).usage["prompt_tokens"]


@pytest.mark.parametrize("name", ["get_weather", "add"])
async def test_a_named_tool_is_called(upstream: EmbeddedUpstream, name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}

    completion = await upstream.complete(
        an_ask(60, tools=[WEATHER, ADD], tool_choice=choice, stop=["a"])
    )

    call = the_call(completion)
    assert call.function.name == name
    assert call.id.startswith("call_")
    assert isinstance(json.loads(call.function.arguments), dict)
    assert completion.choices[0].message.content is None
    assert completion.choices[0].finish_reason == "tool_calls"


async def test_a_required_tool_is_called_in_a_stream(upstream: EmbeddedUpstream) -> None:
    sink = Sink()
    await upstream.stream(an_ask(60, tools=[WEATHER, ADD], tool_choice="required"), sink)

    assert sink.choices()[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("output_tokens_max", [1, 3, 5, 7])
async def test_a_call_that_is_cut_off_never_comes_out_as_text(
    upstream: EmbeddedUpstream, output_tokens_max: int
) -> None:
    completion = await upstream.complete(
        an_ask(output_tokens_max, tools=[WEATHER], tool_choice="required")
    )

    assert not completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "length"


async def test_a_required_tool_goes_before_a_response_format(upstream: EmbeddedUpstream) -> None:
    completion = await upstream.complete(
        an_ask(60, tools=[ADD], tool_choice="required", response_format={"type": "json_object"})
    )

    assert the_call(completion).function.name == "add"


async def test_arguments_that_are_no_json_can_be_sent_back(upstream: EmbeddedUpstream) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": '}}
    messages = [
        *PARIS,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "42"}]},
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]

    completion = await upstream.complete(an_ask(3, messages=messages))

    assert completion.usage["completion_tokens"] <= 3


async def test_a_schema_is_kept_to(upstream: EmbeddedUpstream) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}

    completion = await upstream.complete(an_ask(30, response_format=wanted))

    assert json.loads(completion.choices[0].message.content or "")["city"] in ("Paris", "Rome")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}},
                }
            },
            "response_format",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}
                ]
            },
            "tools",
        ),
    ],
)
async def test_a_schema_that_cannot_be_used_is_refused_in_our_words(
    upstream: EmbeddedUpstream, fields: dict[str, object], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await upstream.complete(an_ask(**fields))

    assert refusal.value.param == param
    assert refusal.value.message.startswith("The embedded model cannot use this request's")


@pytest.mark.parametrize("top_logprobs", [None, 0, 2])
async def test_log_probabilities_are_there_with_as_many_alternatives_as_were_asked_for(
    upstream: EmbeddedUpstream, top_logprobs: int | None
) -> None:
    completion = await upstream.complete(an_ask(3, logprobs=True, top_logprobs=top_logprobs))

    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert [len(token.top_logprobs) for token in logprobs.content or ()] == [top_logprobs or 0] * 3


async def test_n_choices_pay_for_one_prompt_and_every_completion(
    upstream: EmbeddedUpstream,
) -> None:
    sink = Sink()
    await upstream.stream(an_ask(4, n=3, temperature=1, seed=1, stop=None), sink)

    ended = [c["index"] for c in sink.choices() if c["finish_reason"] is not None]
    assert sorted(ended) == [0, 1, 2]
    usage = sink.events[-1]["usage"]
    assert usage["prompt_tokens"] == 27
    assert usage["completion_tokens"] == 12
    assert len({event["id"] for event in sink.events}) == 1


async def test_a_seed_does_not_make_the_n_choices_equal(upstream: EmbeddedUpstream) -> None:
    completion = await upstream.complete(an_ask(8, n=2, temperature=1.5, seed=-(2**60)))

    first, second = (choice.message.content for choice in completion.choices)
    assert first != second


async def test_a_conversation_beyond_the_context_is_refused_with_the_numbers(
    upstream: EmbeddedUpstream,
) -> None:
    messages = [{"role": "user", "content": "word " * 600}]

    with pytest.raises(InvalidRequest, match=r"is 512 tokens.*in 621 tokens") as refusal:
        await upstream.stream(an_ask(messages=messages), Sink())

    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "messages")


async def test_an_answer_ends_with_the_context(upstream: EmbeddedUpstream) -> None:
    messages = [{"role": "user", "content": "word " * 470}]

    completion = await upstream.complete(an_ask(1000, messages=messages))

    assert completion.usage["total_tokens"] <= 512


async def test_more_requests_than_slots_are_all_answered(upstream: EmbeddedUpstream) -> None:
    completions = await asyncio.gather(*(upstream.complete(an_ask(4)) for _ in range(10)))

    assert [c.usage["completion_tokens"] for c in completions] == [4] * 10


async def test_a_client_that_leaves_gives_its_slot_back(upstream: EmbeddedUpstream) -> None:
    sink = Sink()
    stream = asyncio.create_task(upstream.stream(an_ask(900), sink))
    await sink.first.wait()

    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)

    async with asyncio.timeout(20):
        await upstream.complete(an_ask(1, n=4))  # needs every slot


async def test_a_death_fails_what_runs_and_the_next_child_serves() -> None:
    upstream = an_upstream(EmbeddedSettings(context_length=1024, parallel=1))
    await upstream.start()
    known = children()
    sink = Sink()
    stream = asyncio.create_task(upstream.stream(an_ask(900), sink))
    await sink.first.wait()

    known[-1].kill()

    with pytest.raises(UpstreamFailed):
        await stream
    with pytest.raises(Unavailable):
        await _refusal_while_down(upstream)
    async with asyncio.timeout(30):
        completion = await _served(upstream)
    assert completion.choices[0].finish_reason == "length"
    await upstream.stop()
    assert not upstream.ready()


async def _refusal_while_down(upstream: EmbeddedUpstream) -> None:
    while True:
        await upstream.complete(an_ask(1))


async def _served(upstream: EmbeddedUpstream) -> ChatCompletion:
    while True:
        try:
            return await upstream.complete(an_ask(1))
        except RequestError:
            await asyncio.sleep(0.05)


async def test_stopping_ends_the_process() -> None:
    upstream = an_upstream()
    before = set(children())
    await upstream.start()
    (child,) = set(children()) - before

    await upstream.stop()

    assert not child.is_running()


PARENT = """
import asyncio, sys
from pathlib import Path
from functools import partial

from tollway.upstreams.embedded.upstream import EmbeddedSettings, EmbeddedUpstream, child_of
from tollway.upstreams.openai import OpenAICompatible

async def main():
    settings = EmbeddedSettings(context_length=256, parallel=1)
    upstream = EmbeddedUpstream(
        "embedded", settings, partial(child_of, settings, Path(sys.argv[1])),
        lambda url, key: OpenAICompatible("embedded", url, key),
    )
    await upstream.start()
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_model_goes_when_the_gateway_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(the_model()), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"up\n"
    (child,) = psutil.Process(parent.pid).children()

    parent.send_signal(signal.SIGKILL)
    await parent.wait()

    assert await asyncio.to_thread(_gone, child)


def _gone(process: psutil.Process) -> bool:
    _, alive = psutil.wait_procs([process], timeout=5)
    return not alive
