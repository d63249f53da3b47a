"""Most requests are read the short way, and what comes of it is what the full way makes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import a_tool, chat_bytes, image_part

from tollway.errors import InvalidRequest
from tollway.gateway.prompt import prompt_bound, text_tokens_bound
from tollway.wire import requests
from tollway.wire.chat import ChatRequest, RewrittenFields
from tollway.wire.requests import ParsedRequest, parse_chat_request

read_short, read_fully = requests._read_short, requests._read_fully  # pyright: ignore[reportPrivateUsage]


def a_schema_of(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"": schema}
    return schema


texts = st.text(max_size=30) | st.sampled_from(['"', '\\"', "\\u0022", '","role":"system', "é\n\t"])
parts = st.lists(
    st.fixed_dictionaries({"text": texts}, optional={"type": st.just("text")})
    | texts.map(image_part),
    min_size=1,
    max_size=2,
)
signatures: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {}, optional={"thought_signature": texts, "unknown": texts}
)
extra_contents: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {}, optional={"google": signatures, "vertex": signatures, "unknown": texts}
)
calls = st.fixed_dictionaries(
    {"id": st.just("c"), "function": st.just({"name": "f", "arguments": "{}"})},
    optional={"type": st.just("function"), "extra_content": extra_contents | texts | st.none()},
)
schemas: st.SearchStrategy[Any] = st.recursive(
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts | st.none(),
    lambda inner: st.dictionaries(texts, inner, max_size=2) | st.lists(inner, max_size=2),
    max_leaves=4,
)
deep: st.SearchStrategy[Any] = st.integers(27, 31).map(a_schema_of)
details = st.lists(st.dictionaries(texts, schemas, max_size=2) | deep, max_size=2)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant"]),
        "content": texts | parts | st.none(),
    },
    optional={
        "name": texts,
        "refusal": texts,
        "reasoning_content": texts,
        "reasoning_details": details,
        "extra_content": extra_contents,
        "unknown": texts,
        "tool_calls": st.lists(calls, max_size=2),
    },
) | st.fixed_dictionaries(
    {"role": st.just("tool"), "content": texts | parts, "tool_call_id": st.just("c")}
)
tools: st.SearchStrategy[Any] = st.lists(
    st.fixed_dictionaries(
        {
            "function": st.fixed_dictionaries(
                {"name": st.sampled_from(["f", "g"])},
                optional={"parameters": st.dictionaries(texts, schemas, max_size=2) | deep},
            )
        },
        optional={"type": st.sampled_from(["function", "custom"])},
    ),
    max_size=2,
)
formats: st.SearchStrategy[Any] = st.sampled_from(
    [{"type": "text"}, {"type": "json_object"}, {}]
) | st.fixed_dictionaries(
    {
        "type": st.just("json_schema"),
        "json_schema": st.fixed_dictionaries(
            {"name": st.just("s")},
            optional={"schema": st.dictionaries(texts, schemas, max_size=2) | deep | st.none()},
        ),
    }
)
bodies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"model": texts, "messages": st.lists(messages, min_size=1, max_size=4)},
    optional={
        "max_tokens": st.integers(0, 9),
        "max_completion_tokens": st.none() | st.integers(1, 9),
        "temperature": st.sampled_from([0, 1, 0.5, 1e-7, 2.5, None]),
        "stop": texts | st.lists(texts, min_size=1, max_size=5),
        "stream": st.booleans(),
        "stream_options": st.sampled_from([{"include_usage": True}, {"x": 1}, {}, None]),
        "metadata": st.dictionaries(texts, texts, max_size=3),
        "logit_bias": st.dictionaries(texts, st.integers(-100, 100), max_size=3),
        "tools": tools | st.none(),
        "tool_choice": st.sampled_from(["auto", "none", "required", "f", "h", None])
        | st.sampled_from([{"type": "function", "function": {"name": "f"}}, {"function": {}}]),
        "response_format": formats,
        "modalities": st.sampled_from([["text"], ["audio"], []]),
        "top_logprobs": st.integers(-1, 2),
        "logprobs": st.booleans(),
        "prediction": st.sampled_from([{"type": "content", "content": "x"}, {"content": "x"}]),
        "unknown": texts,
    },
)


def same(one: ParsedRequest, other: ParsedRequest) -> bool:
    return (
        one.request == other.request
        and one.unknown == other.unknown
        and one.images == other.images
        and one.fields.json == other.fields.json
        and one.fields.extras == other.fields.extras
        and dict(one.fields) == dict(other.fields)
        and (
            one.text_bytes is None
            or text_tokens_bound(len(one.request.messages), one.text_bytes)
            == prompt_bound(
                other.request.messages, other.request.tools, other.request.response_format
            ).tokens
        )
    )


def refusal_of(read: Callable[[bytes], object], body: bytes) -> tuple[object, ...]:
    with pytest.raises(InvalidRequest) as refused:
        read(body)
    return refused.value.message, refused.value.code, refused.value.param


@settings(max_examples=600)
@given(bodies, st.booleans(), st.booleans())
def test_both_ways_make_the_same_of_a_request(
    fields: dict[str, Any], ascii_only: bool, spaces: bool
) -> None:
    body = json.dumps(
        fields, ensure_ascii=ascii_only, separators=(", ", ": ") if spaces else (",", ":")
    ).encode("utf-8", "surrogatepass")

    try:
        short = read_short(body)
    except InvalidRequest:
        assert refusal_of(read_short, body) == refusal_of(read_fully, body)
    else:
        assert short is None or same(short, read_fully(body))


@settings(max_examples=300)
@given(
    st.sampled_from(
        [
            ',"model":"m"',
            ',"model":"\\u0022\\u0022\\u0022\\u0022"',
            ',"user":"u"',
            ',"unknown":1',
            ',"seed":null',
        ]
    ),
    st.sampled_from(["", "\\u0022", "\\u0022\\u0022\\u0022\\u0022", '\\"\\"\\"\\"', "\\\\u0022"]),
)
def test_nothing_that_was_left_out_is_made_up_for_by_another_quote(extra: str, text: str) -> None:
    body = f'{{"model":"m","user":"u","messages":[{{"role":"user","content":"{text}"}}]{extra}}}'

    assert read_short(body.encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        chat_bytes(),
        chat_bytes(temperature=1, max_tokens=5, seed=7, stop=["a"], user="u", metadata={"a": "b"}),
        chat_bytes(stream=True, stream_options={"include_usage": True}),
        chat_bytes(max_completion_tokens=9, n=2, logprobs=True),
        chat_bytes(messages=[{"role": "user", "content": 'é "quoted" \\ \n'}] * 40),
        json.dumps(json.loads(chat_bytes()), indent=2).encode(),
        chat_bytes(tools=[a_tool("f"), a_tool("g")], tool_choice="required"),
        chat_bytes(response_format={"type": "json_object"}),
        chat_bytes(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "s", "schema": a_schema_of(5)},
            }
        ),
        chat_bytes(messages=[{"role": "user", "content": [image_part()]}]),
        chat_bytes(logprobs=True, top_logprobs=2, modalities=["text"]),
    ],
)
def test_a_usual_request_is_read_the_short_way(body: bytes) -> None:
    short = read_short(body)
    assert short is not None
    assert same(short, read_fully(body))


@pytest.mark.parametrize("twice", ['"model":"m"', '"max_tokens":3', '"messages":[]'])
def test_a_key_that_comes_twice_is_not_read_the_short_way_and_is_refused(twice: str) -> None:
    body = chat_bytes(max_tokens=3)[:-1] + b"," + twice.encode() + b"}"

    assert read_short(body) is None
    with pytest.raises(InvalidRequest) as refused:
        read_fully(body)
    assert refused.value.code == "invalid_json"


def test_details_of_reasoning_may_not_be_too_deep_either() -> None:
    said = {"role": "assistant", "content": "4", "reasoning_details": [a_schema_of(29)]}

    with pytest.raises(InvalidRequest, match="more than 32 deep"):
        parse_chat_request(chat_bytes(messages=[said]))


def test_the_rewritten_fields_are_the_last_of_a_chat_request() -> None:
    rewritten = RewrittenFields.__struct_fields__
    assert ChatRequest.__struct_fields__[-len(rewritten) :] == rewritten


def test_a_request_with_calls_is_not_read_the_short_way_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    step = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = chat_bytes(messages=[step] * 5, tools=[a_tool()])
    monkeypatch.delattr(requests, "_decode_request")

    assert set(parse_chat_request(body).fields) == {"messages", "tools"}
