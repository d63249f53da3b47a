"""A long request with tools is read in two passes, and what comes of it is what the full way makes
of it."""

import json
import sys
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import MODEL, a_tool, image_part, message
from tests.support.long_requests import outcome

from tollway.wire import agents
from tollway.wire.agents import read_messages_apart
from tollway.wire.strict_json import VALUES_MAX

RESULT = 'if span.load > LIMIT:\n    raise Fallen("the bridge", span[0])\n' * 4
A_CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ASKED = {"role": "assistant", "content": "I add.", "tool_calls": [A_CALL]}
TOLD = {"role": "tool", "tool_call_id": "c", "content": RESULT}
NOTHING: list[object] = []
SIGNED = {"extra_content": {"google": {"thought_signature": "CiQB0e2Kb/+="}}}
FROM_AN_SDK = {"content": None, "refusal": None, "annotations": NOTHING, "audio": None}


class Written(list[tuple[str, Any]]):
    """An object by its members, of which one may come twice."""


def compact(value: object) -> bytes:
    return _compact(value).encode()


def _compact(value: Any) -> str:
    if isinstance(value, dict):
        value = Written(value.items())  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, Written):
        return "{" + ",".join(f"{json.dumps(k)}:{_compact(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_compact, cast("list[object]", value))) + "]"
    return json.dumps(value, ensure_ascii=False)


def a_body(*steps: object, **fields: object) -> bytes:
    body = {"messages": [message(), *steps], "model": MODEL, "tools": [a_tool()], **fields}
    return compact(body)


texts = st.sampled_from(["", "abcde", "é\u3000\n", '","content":null,"', RESULT, "type"])
signatures = st.lists(
    st.tuples(st.sampled_from(["thought_signature", "x"]), texts | st.sampled_from([None, 1])),
    max_size=2,
).map(Written)
extra_contents = (
    st.lists(
        st.tuples(st.sampled_from(["google", "vertex", "x"]), signatures | st.none()), max_size=2
    ).map(Written)
    | texts
    | st.none()
)
some_fields = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "content",
                "refusal",
                "reasoning_content",
                "reasoning",
                "reasoning_details",
                "extra_content",
                "name",
                "tool_calls",
                "audio",
                "function_call",
                "annotations",
                "type",
                "x",
            ]
        ),
        texts
        | st.sampled_from([None, NOTHING, {}, 1, {"content": None}, [{"text": "\\", "n": 1e5}]])
        | extra_contents,
    ),
    max_size=3,
)


@st.composite
def calls(draw: st.DrawFn) -> Written:
    members: list[tuple[str, Any]] = draw(st.permutations([*A_CALL.items()]))
    if draw(st.booleans()):
        return Written(member for member in members if member[0] != "type")
    signed = [("extra_content", extra) for extra in draw(st.lists(extra_contents, max_size=2))]
    return Written([*members, *signed, *draw(some_fields)])


@st.composite
def asked(draw: st.DrawFn) -> Written:
    members: list[tuple[str, Any]] = [("role", "assistant"), ("content", draw(texts | st.none()))]
    return Written(
        [*members, ("tool_calls", draw(st.lists(calls(), max_size=2))), *draw(some_fields)]
    )


@st.composite
def told(draw: st.DrawFn) -> Written:
    content: Any = draw(texts)
    if draw(st.booleans()):
        content = [{"type": "text", "text": content}, {"text": content}]
    return Written(
        [("role", "tool"), ("tool_call_id", "c"), ("content", content), *draw(some_fields)]
    )


outside = st.lists(
    st.tuples(
        st.sampled_from(["model", "messages", "temperature", "user", "zz", "stop"]),
        st.sampled_from(["m2", None, [TOLD], 1, 1.0, {"content": None}, [message("a")]]),
    ),
    max_size=2,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    steps = draw(st.lists(asked() | told(), max_size=3))
    members: list[tuple[str, Any]] = [("messages", [message(RESULT), ASKED, *steps])]
    return compact(Written([*members, ("model", MODEL), ("tools", [a_tool()]), *draw(outside)]))


@settings(max_examples=1500)
@given(bodies())
def test_both_ways_make_the_same_of_a_request(body: bytes) -> None:
    assert outcome(body, long=True) == outcome(body, long=False)


@pytest.mark.parametrize(
    "step",
    [
        ASKED,
        ASKED | FROM_AN_SDK | {"function_call": None, "name": None},
        ASKED | {"audio": None, "reasoning_details": None},
        ASKED | SIGNED,
        ASKED | FROM_AN_SDK | {"annotations": None, "reasoning": "I thought."},
        ASKED | {"content": "/é"},
        {"role": "assistant", "content": "No call.", "tool_calls": None},
        ASKED | {"tool_calls": [A_CALL | SIGNED, A_CALL]},
        message([{"type": "text", "text": RESULT}, image_part()]),
    ],
)
def test_what_agents_send_is_read_in_two_passes(step: dict[str, Any]) -> None:
    body = a_body(ASKED, TOLD, step)

    assert read_messages_apart(body) is not None
    assert outcome(body, long=True) == outcome(body, long=False)


@pytest.mark.parametrize(
    "body",
    [
        a_body(message(RESULT, x=1)),
        a_body(ASKED | {"x": {"content": 1.0}}),
        a_body(ASKED | {"annotations": [{"type": "url_citation"}]}),
        a_body(ASKED | {"audio": {"id": "a"}}),
        a_body(ASKED | {"reasoning_details": [{"type": "reasoning.text"}]}),
        a_body(message(RESULT, name=None), ASKED),
        a_body(Written([*ASKED.items(), ("content", "I add.")])),
        a_body(ASKED, TOLD | {"content": [{"type": "text", "text": RESULT}]}),
        a_body(ASKED | {"tool_calls": []}),
        a_body(ASKED, {"role": "assistant", "reasoning_content": RESULT}),
        a_body(message(RESULT)).replace(b"if", b"\\u0069f"),
        a_body(ASKED).replace(b'"model"', b' "model"'),
        json.dumps({"messages": [ASKED], "model": MODEL}).encode(),
        a_body(ASKED, zz=1),
        a_body(ASKED).replace(b'"model"', b'"model":"m2","model"'),
        a_body(ASKED)[:-1],
    ],
    ids=[
        "a field that is not ours",
        "of an assistant",
        "annotations",
        "audio",
        "what may be anything",
        "a null that is no assistant's",
        "a key twice",
        "a part whose type may be missing",
        "no calls",
        "no content",
        "an escape",
        "a space",
        "spaces",
        "a field that is not ours, outside",
        "a key twice, outside",
        "cut off",
    ],
)
def test_where_something_was_left_out_it_is_read_the_full_way(body: bytes) -> None:
    assert read_messages_apart(body) is None


def test_a_type_that_is_missing_does_not_hide_what_was_left_out() -> None:
    untyped = {name: value for name, value in A_CALL.items() if name != "type"}
    as_long = '"content":"abcde",'
    assert len(as_long) == len('"type":"function",')
    body = a_body(ASKED | {"tool_calls": [untyped]}, TOLD).replace(
        b'"cont', b'"content":"abcde","cont', 1
    )

    assert read_messages_apart(body) is None
    assert outcome(body, long=True) == outcome(body, long=False)


def test_a_null_that_comes_first_does_not_hide_a_key_that_comes_twice() -> None:
    twice = Written([("content", None), *ASKED.items()])
    body = a_body(twice, TOLD, ASKED | {"content": None})

    assert read_messages_apart(body) is None
    assert outcome(body, long=True) == outcome(body, long=False)


@pytest.mark.parametrize(("parts", "is_read"), [(VALUES_MAX // 4, True), (VALUES_MAX // 3, False)])
def test_it_has_no_more_values_than_are_allowed(parts: int, is_read: bool) -> None:
    body = a_body(message([{"type": "text", "text": ""}] * parts), ASKED, TOLD)

    assert (read_messages_apart(body) is not None) == is_read
    assert outcome(body, long=True) == outcome(body, long=False)


def test_the_values_beside_the_messages_count_too() -> None:
    tool = a_tool() | {"function": {"name": "f", "parameters": {"x": [NOTHING] * 20_000}}}
    body = a_body(message([{"type": "text", "text": ""}] * 10_700), ASKED, TOLD, tools=[tool])

    assert read_messages_apart(body) is None
    assert outcome(body, long=True) == outcome(body, long=False)


@pytest.mark.parametrize("unknown", [b'"\xff"', b'"\\ud800"', b"1e999", b"9" * 5000])
def test_what_nobody_reads_of_an_assistant_is_no_less_json(unknown: bytes) -> None:
    body = a_body(ASKED | {"x": "here"}, TOLD).replace(b'"here"', unknown)

    assert read_messages_apart(body) is None
    assert outcome(body, long=True) == outcome(body, long=False)


def test_what_is_just_not_too_deep_for_the_first_look_may_be_for_the_others() -> None:
    """Python's limit counts the functions, of which there are more."""
    limit = sys.getrecursionlimit()
    for levels in range(limit - 300, limit):
        unknown = b"[" * levels + b"]" * levels
        body = a_body(ASKED | {"x": "here"}, TOLD).replace(b'"here"', unknown)
        assert read_messages_apart(body) is None


def test_no_message_has_a_number_or_a_field_of_any_type() -> None:
    """Written anew a number may be longer than it came, and only a type bounds how long reading
    takes."""
    found: list[msgspec.inspect.Type] = []
    _collect(msgspec.inspect.type_info(agents._Sent), found)  # pyright: ignore[reportPrivateUsage]

    assert {type(info) for info in found} == {
        msgspec.inspect.UnionType,
        msgspec.inspect.StructType,
        msgspec.inspect.StrType,
        msgspec.inspect.ListType,
        msgspec.inspect.DictType,
        msgspec.inspect.LiteralType,
        msgspec.inspect.NoneType,
    }


def test_no_object_of_a_message_has_more_values_than_are_counted_for_it() -> None:
    found: list[msgspec.inspect.Type] = []
    _collect(msgspec.inspect.type_info(agents._Sent), found)  # pyright: ignore[reportPrivateUsage]
    structs = [info for info in found if isinstance(info, msgspec.inspect.StructType)]

    most = max(len(info.fields) + (info.tag is not None) for info in structs)

    assert most + 1 <= agents._VALUES_PER_OBJECT_MAX  # pyright: ignore[reportPrivateUsage]


def _collect(info: Any, found: list[msgspec.inspect.Type]) -> None:
    if hasattr(info, "__len__"):
        for one in info:
            _collect(one, found)
        return
    if isinstance(info, msgspec.inspect.Type):
        found.append(info)
    for name in ("fields", "type", "types", "item_type", "key_type", "value_type"):
        _collect(getattr(info, name, ()), found)
