"""A plain request is read the short way, and what comes of it is what the full way makes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import a_tool, chat_bytes

from tollway.errors import InvalidRequest
from tollway.pricing import prompt_bound, text_tokens_bound
from tollway.wire import requests
from tollway.wire.chat import ChatRequest, RewrittenFields
from tollway.wire.requests import ParsedRequest, parse_chat_request

read_plain, read_fully = requests._read_plain, requests._read_fully  # pyright: ignore[reportPrivateUsage]

texts = st.text(max_size=30) | st.sampled_from(['"', '\\"', "\\u0022", '","role":"system', "é\n\t"])
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": texts},
    optional={"name": texts, "refusal": texts, "unknown": texts, "tool_calls": st.just([])},
)
bodies = st.fixed_dictionaries(
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
        "tools": st.sampled_from([[], [{"function": {"name": "f"}}], None]),
        "tool_choice": st.sampled_from(["auto", "none"]),
        "prediction": st.sampled_from([{"type": "content", "content": "x"}, {"content": "x"}]),
        "unknown": texts,
    },
)


def same(one: ParsedRequest, other: ParsedRequest) -> bool:
    return (
        one.request == other.request
        and one.unknown == other.unknown
        and one.fields.json == other.fields.json
        and dict(one.fields) == dict(other.fields)
        and one.text_bytes is not None
        and text_tokens_bound(len(one.request.messages), one.text_bytes)
        == prompt_bound(
            other.request.messages, other.request.tools, other.request.response_format
        ).tokens
    )


@settings(max_examples=600, deadline=None)
@given(bodies, st.booleans(), st.booleans())
def test_both_ways_make_the_same_of_a_request(
    fields: dict[str, Any], ascii_only: bool, spaces: bool
) -> None:
    body = json.dumps(
        fields, ensure_ascii=ascii_only, separators=(", ", ": ") if spaces else (",", ":")
    ).encode("utf-8", "surrogatepass")

    plain = read_plain(body)

    if plain is not None:
        assert same(plain, read_fully(body))


@settings(max_examples=300, deadline=None)
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

    assert read_plain(body.encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        chat_bytes(),
        chat_bytes(temperature=1, max_tokens=5, seed=7, stop=["a"], user="u", metadata={"a": "b"}),
        chat_bytes(stream=True, stream_options={"include_usage": True}),
        chat_bytes(max_completion_tokens=9, n=2, logprobs=True),
        chat_bytes(messages=[{"role": "user", "content": 'é "quoted" \\ \n'}] * 40),
        json.dumps(json.loads(chat_bytes()), indent=2).encode(),
    ],
)
def test_a_usual_request_is_plain(body: bytes) -> None:
    plain = read_plain(body)
    assert plain is not None
    assert same(plain, read_fully(body))


@pytest.mark.parametrize("twice", ['"model":"m"', '"max_tokens":3', '"messages":[]'])
def test_a_key_that_comes_twice_is_not_plain_and_is_refused(twice: str) -> None:
    body = chat_bytes(max_tokens=3)[:-1] + b"," + twice.encode() + b"}"

    assert read_plain(body) is None
    with pytest.raises(InvalidRequest) as refused:
        read_fully(body)
    assert refused.value.code == "invalid_json"


def test_the_rewritten_fields_are_the_last_of_a_chat_request() -> None:
    rewritten = RewrittenFields.__struct_fields__
    assert ChatRequest.__struct_fields__[-len(rewritten) :] == rewritten


def test_a_request_with_several_tools_is_not_read_the_short_way_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parameters = {"type": "object", "properties": {"path": {"type": "string"}}}
    body = chat_bytes(tools=[a_tool(f"tool_{n}", parameters=parameters) for n in range(5)])
    monkeypatch.delattr(requests, "_decode_request")

    assert set(parse_chat_request(body).fields) == {"messages", "tools"}
