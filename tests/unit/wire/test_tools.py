"""Tools that were read before are not read again, and what comes of a request with them is what the
full way makes of it."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import a_tool, chat_body
from tests.support.long_requests import LONG, comparable, outcome, read_fully
from tests.unit.wire.test_requests_short import bodies

from tollway.errors import InvalidRequest
from tollway.wire import requests
from tollway.wire.requests import parse_chat_request
from tollway.wire.strict_json import VALUES_MAX
from tollway.wire.tools import BODY_BYTES_MAX, BYTES_KEPT_MAX, cut_out_tools

read_without_tools = requests._read_without_tools  # pyright: ignore[reportPrivateUsage]

NOTHING: list[object] = []
TOOLS = [a_tool(), a_tool("subtract", text={"type": "string", "description": "é <&'"})]


def compact(**fields: object) -> bytes:
    return json.dumps(chat_body(**fields), separators=(",", ":"), ensure_ascii=False).encode()


@settings(max_examples=1500)
@given(bodies, st.sampled_from([TOOLS, TOOLS[:1]]) | st.none())
def test_both_ways_make_the_same_of_a_request(fields: dict[str, Any], tools: Any) -> None:
    if tools is not None:
        fields = fields | {"tools": tools}
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )

    apart = read_without_tools(body)

    if apart is not None:
        fully = read_fully(body)
        assert apart.fields.json == fully.fields.json
        assert comparable(apart) == comparable(fully)


@pytest.mark.parametrize("choice", [None, "auto", "none", "required"])
@pytest.mark.parametrize("content", ["Add 1 and 2.", LONG * 20])
def test_tools_that_come_again_are_not_read_again(choice: str | None, content: str) -> None:
    fields: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
    messages = [{"role": "user", "content": content}]
    first = parse_chat_request(compact(tools=TOOLS, messages=messages, **fields))

    again = parse_chat_request(compact(tools=TOOLS, temperature=1, **fields))

    assert again.request.tools is first.request.tools is not None
    assert again.request.tool_choice == first.request.tool_choice == choice


def test_in_a_long_request_with_calls_too() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    asked = {"role": "assistant", "content": "I add.", "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "c", "content": LONG}
    body = compact(tools=TOOLS, messages=[*chat_body()["messages"], *[asked, told] * 20])

    parsed = parse_chat_request(body)

    assert parsed.request.tools is parse_chat_request(compact(tools=TOOLS)).request.tools
    assert outcome(body, long=True) == outcome(body, long=False)


@pytest.mark.parametrize(
    "body",
    [
        compact(),
        compact(tools=[]),
        compact(tools=[a_tool(), a_tool()]),
        compact(tools=[a_tool("a name with spaces")]),
        compact(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "add"}}),
        compact(tools=TOOLS, tool_choice="add"),
        compact(tools=TOOLS, unknown=1),
        compact(tools=TOOLS)[:-1] + b',"model":"m2"}',
        compact(tools=TOOLS)[:-1] + b',"tools":[]}',
        compact(tools=TOOLS).replace(b'"name":"add"', b'"name":"x","name":"add"'),
        compact(tools=TOOLS).replace(b'"tools"', b' "tools"'),
        compact(tools=TOOLS).replace(b'"model"', b'"\\u006dodel"'),
        compact(tools=TOOLS, top_logprobs=1),
        compact(tools=TOOLS)[:-1],
        json.dumps(chat_body(tools=TOOLS)).encode(),
    ],
    ids=[
        "none",
        "an empty list",
        "a name twice",
        "a wrong name",
        "a choice by name",
        "a choice by name alone",
        "a field that is not ours",
        "a key twice",
        "tools twice",
        "a key twice, in a tool",
        "a space",
        "an escape",
        "another rule",
        "cut off",
        "spaces",
    ],
)
def test_what_is_not_as_always_is_read_the_full_way(body: bytes) -> None:
    assert read_without_tools(body) is None


def test_a_key_that_comes_twice_is_refused_beside_tools_that_are_known() -> None:
    parse_chat_request(compact(tools=TOOLS))

    with pytest.raises(InvalidRequest, match="twice"):
        parse_chat_request(compact(tools=TOOLS)[:-1] + b',"model":"other"}')


def test_long_tools_are_not_kept() -> None:
    long_tools = [a_tool(text={"type": "string", "description": "d" * BODY_BYTES_MAX})]

    assert cut_out_tools(compact(tools=long_tools)) is None


@pytest.mark.parametrize(
    ("dense", "programs"), [([[NOTHING]], 6), ({"a": "b1"}, 8), ("a1", 16), ("😀" + "d" * 999, 40)]
)
def test_what_is_kept_of_tools_is_bounded_whatever_they_are(dense: object, programs: int) -> None:
    one = len(json.dumps(dense, separators=(",", ":"), ensure_ascii=False).encode())
    many = {"enum": [dense] * (56_000 // (one + 1))}
    kept: list[int] = []
    tracemalloc.start()
    try:
        for number in range(programs):
            parse_chat_request(compact(tools=[a_tool(f"f{number}", x=many)]))
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()

    assert max(kept) <= BYTES_KEPT_MAX


def test_no_more_values_are_taken_than_are_allowed() -> None:
    known = [a_tool(x={"enum": [NOTHING] * 9_000})]
    body = compact(tools=known, response_format={"type": "text", "x": [NOTHING] * 25_000})
    assert len(body) > VALUES_MAX

    assert read_without_tools(body) is None
    with pytest.raises(InvalidRequest, match=str(VALUES_MAX)):
        parse_chat_request(body)
