"""The OpenAI SDK for Python as its users use it, with the embedded model.

What is promised of text holds for any model: shapes, counts and ends, never wording.
"""

import json
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from pydantic import BaseModel
from tests.support.customer import Customer

pytestmark = pytest.mark.model

MODEL = "tollway/smollm2-135m"
PARIS: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ADD: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "add",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


class Capital(BaseModel):
    capital: str
    population: int


@pytest.fixture
def client(embedded_customer: Customer) -> Iterator[openai.OpenAI]:
    base_url = embedded_customer.server.base_url
    with openai.OpenAI(
        api_key=embedded_customer.token, base_url=base_url, max_retries=0
    ) as running:
        yield running


@pytest_asyncio.fixture
async def async_client(embedded_customer: Customer) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = embedded_customer.server.base_url
    async with openai.AsyncOpenAI(
        api_key=embedded_customer.token, base_url=base_url, max_retries=0
    ) as running:
        yield running


# --- plain and streamed ---------------------------------------------------------------------------


def test_a_plain_reply(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_tokens=12
    )

    assert reply.model == MODEL
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content
    assert reply.choices[0].message.tool_calls is None
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 12
    told = reply._request_id  # pyright: ignore[reportPrivateUsage] (public, the SDK's README says)
    assert told == "req_" + reply.id.removeprefix("chatcmpl-")


def test_the_headers_of_a_raw_response(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=PARIS, max_tokens=4
    )

    usage = raw.parse().usage
    assert usage is not None
    assert usage.model_extra is not None
    assert raw.headers["X-Credits-Consumed"] == str(usage.model_extra["credits_consumed"])
    assert raw.headers["X-Credits-Remaining"] == str(usage.model_extra["credits_remaining"])
    assert raw.headers["x-ratelimit-limit-requests"] == "30"
    assert raw.headers["x-ratelimit-remaining-requests"] == "29"


def test_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_tokens=12, stream=True
    ) as stream:
        chunks = list(stream)

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_with_its_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=PARIS,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = list(stream)

    assert last.choices == []
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= 12
    assert last.usage.model_extra is not None
    assert last.usage.model_extra["credits_consumed"] > 0
    assert all(chunk.usage is None for chunk in chunks)


def test_the_same_seed_gives_the_same_stream_and_reply(client: openai.OpenAI) -> None:
    def ask() -> str | None:
        reply = client.chat.completions.create(
            model=MODEL, messages=PARIS, temperature=1, seed=7, max_tokens=16
        )
        return reply.choices[0].message.content

    with client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=1, seed=7, max_tokens=16, stream=True
    ) as stream:
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert ask() == ask() == streamed


async def test_asynchronous_replies_and_streams(async_client: openai.AsyncOpenAI) -> None:
    reply = await async_client.chat.completions.create(model=MODEL, messages=PARIS, max_tokens=8)
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=PARIS, max_tokens=8, stream=True
    )
    chunks = [chunk async for chunk in stream]

    assert reply.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


async def test_the_asynchronous_helper_of_streams(async_client: openai.AsyncOpenAI) -> None:
    async with async_client.chat.completions.stream(
        model=MODEL, messages=PARIS, response_format=Capital, temperature=0, max_tokens=100
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        reply = await stream.get_final_completion()

    assert "".join(deltas) == reply.choices[0].message.content
    assert isinstance(reply.choices[0].message.parsed, Capital)


# --- what changes a reply -------------------------------------------------------------------------


def test_several_choices(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, n=3, max_tokens=6, temperature=1
    )
    alone = client.chat.completions.create(model=MODEL, messages=PARIS, max_tokens=6)

    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert reply.usage is not None
    assert alone.usage is not None
    assert reply.usage.prompt_tokens == alone.usage.prompt_tokens
    assert 3 <= reply.usage.completion_tokens <= 18


def test_several_choices_in_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=PARIS, n=2, max_tokens=6, temperature=1, stream=True
    ) as stream:
        choices = [choice for chunk in stream for choice in chunk.choices]

    ended = [choice.index for choice in choices if choice.finish_reason]
    assert sorted(ended) == [0, 1]


def test_max_tokens_ends_a_reply(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me a long story about a bridge."}],
        max_tokens=5,
    )

    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5
    assert reply.choices[0].finish_reason == "length"


def test_a_stop_sequence_ends_a_reply(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_tokens=20
    )
    text = whole.choices[0].message.content or ""
    word = text.split()[2]

    stopped = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_tokens=20, stop=[word]
    )

    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.index(word)]


def test_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, max_tokens=3, logprobs=True, top_logprobs=2
    )

    told = reply.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert 1 <= len(told.content) <= 3
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told.content)


# --- structured output ----------------------------------------------------------------------------


def test_a_json_object(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": 'Reply with {"capital": "Paris"} as JSON.'}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=40,
    )

    # A model this small may go on for ever within the object, so that it is cut.
    assert (reply.choices[0].message.content or "").startswith("{")


def test_a_json_schema(client: openai.OpenAI) -> None:
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=MODEL,
        messages=PARIS,
        response_format={"type": "json_schema", "json_schema": {"name": "sure", "schema": schema}},
        max_tokens=40,
    )

    assert list(json.loads(reply.choices[0].message.content or "")) == ["sure"]


def test_a_reply_parsed_into_a_pydantic_model(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=MODEL,
        messages=PARIS,
        response_format=Capital,
        temperature=0,
        max_tokens=100,
    )

    assert isinstance(reply.choices[0].message.parsed, Capital)


def test_a_stream_parsed_into_a_pydantic_model(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=PARIS, response_format=Capital, temperature=0, max_tokens=100
    ) as stream:
        reply = stream.get_final_completion()

    assert isinstance(reply.choices[0].message.parsed, Capital)


# --- tools ----------------------------------------------------------------------------------------


def test_a_required_tool_call(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, tools=[WEATHER], tool_choice="required", max_tokens=60
    )

    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].id.startswith("call_")
    assert calls[0].function.name == "get_weather"
    assert list(json.loads(calls[0].function.arguments)) == ["city"]


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=PARIS,
        tools=[WEATHER, ADD],
        tool_choice={"type": "function", "function": {"name": "add"}},
        max_tokens=60,
    )

    calls = reply.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "add"
    assert sorted(json.loads(calls[0].function.arguments)) == ["a", "b"]


def test_no_tool_is_called_where_none_may_be(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, tools=[WEATHER], tool_choice="none", max_tokens=12
    )

    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("stop", "length")


def test_the_model_decides_whether_to_call(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, tools=[WEATHER], tool_choice="auto", max_tokens=30
    )

    message = reply.choices[0].message
    assert bool(message.content) != bool(message.tool_calls)


def test_a_tool_call_in_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=PARIS, tools=[WEATHER, ADD], tool_choice="required", max_tokens=60
    ) as stream:
        events = list(stream)
        reply = stream.get_final_completion()

    fragments = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    calls = reply.choices[0].message.tool_calls
    assert calls is not None
    assert len(fragments) > 1
    assert "".join(e.arguments_delta for e in fragments) == done[0].arguments
    assert calls[0].function.arguments == done[0].arguments
    assert reply.choices[0].finish_reason == "tool_calls"


def test_a_tools_result_is_taken(client: openai.OpenAI) -> None:
    called = client.chat.completions.create(
        model=MODEL, messages=PARIS, tools=[WEATHER], tool_choice="required", max_tokens=60
    )
    calls = called.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"

    reply = client.chat.completions.create(
        model=MODEL,
        messages=[
            *PARIS,
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": calls[0].id,
                        "type": "function",
                        "function": {
                            "name": calls[0].function.name,
                            "arguments": calls[0].function.arguments,
                        },
                    }
                ],
            },
            {"role": "tool", "tool_call_id": calls[0].id, "content": "It is sunny."},
        ],
        tools=[WEATHER],
        max_tokens=12,
    )

    assert reply.choices[0].finish_reason in ("stop", "length", "tool_calls")


# --- the rest -------------------------------------------------------------------------------------


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    retrieved = client.models.retrieve(MODEL)

    assert listed == [MODEL]
    assert retrieved.id == MODEL
    assert retrieved.owned_by == "tollway"


def test_more_than_the_context_is_refused_before_it_costs(
    client: openai.OpenAI, embedded_customer: Customer
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 5000}]
        )

    assert refused.value.code == "context_length_exceeded"
    assert "maximum context length is 4096 tokens" in str(refused.value)
    assert embedded_customer.balance == 100_000
