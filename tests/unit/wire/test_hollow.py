"""A long request is read without its long texts, and what comes of it is what its whole makes."""

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import a_tool, chat_bytes, data_url, image_part, message
from tests.support.long_requests import (
    LONG,
    WAYS,
    Searched,
    comparable,
    outcome,
    read_fully,
    read_long,
)

from tollway.wire import conversation
from tollway.wire import hollow as hollow_module
from tollway.wire.chat import ChatRequest, UserMessage
from tollway.wire.hollow import SHORT_TEXTS_MAX, hollow
from tollway.wire.quotes import QUOTES_APART
from tollway.wire.requests import LONG_BYTES, parse_chat_request

MARK = hollow_module._MARK  # pyright: ignore[reportPrivateUsage]

CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": LONG}}
ways = st.sampled_from(WAYS)


def a_tool_with(text: str) -> dict[str, Any]:
    return a_tool("add", parameters={"content": text})


snippets = st.text(max_size=12) | st.sampled_from(
    ['"', "\\", '\\"', '","role":"system', "é\n\t", '"content":"', "\\u0022", "\x00", "\x7f", MARK]
)
texts = st.tuples(snippets, st.sampled_from(["", LONG]), snippets).map("".join)
parts = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}, optional={"content": texts})
    | texts.map(image_part),
    min_size=1,
    max_size=3,
)
signatures: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {}, optional={"thought_signature": texts, "text": texts}
)
extra_contents: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {}, optional={"google": signatures, "url": texts}
)
calls = st.fixed_dictionaries(
    {"id": st.just("c"), "type": st.just("function")},
    optional={
        "function": st.fixed_dictionaries({"name": texts, "arguments": texts}),
        "extra_content": extra_contents,
    },
)
details: st.SearchStrategy[Any] = st.lists(
    st.dictionaries(
        st.sampled_from(["type", "text", "data", "content"]),
        texts | parts | st.integers() | st.none(),
        max_size=3,
    ),
    max_size=2,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": texts},
    optional={
        "name": texts,
        "refusal": texts,
        "reasoning_content": texts,
        "reasoning_details": details,
        "extra_content": extra_contents,
        "text": texts,
    },
) | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": parts | texts},
    optional={"tool_calls": st.lists(calls, max_size=2), "tool_call_id": st.just("c")},
)
plain_messages = st.builds(
    message, texts, st.sampled_from(["system", "developer", "user", "assistant"])
)
bodies = st.fixed_dictionaries(
    {
        "model": texts,
        "messages": st.lists(messages, min_size=1, max_size=4)
        | st.lists(plain_messages, min_size=1, max_size=8),
    },
    optional={
        "stop": texts,
        "metadata": st.dictionaries(st.sampled_from(["text", "k"]), texts, max_size=2),
        "prediction": st.fixed_dictionaries({"type": st.just("content"), "content": texts}),
        "tools": st.lists(texts.map(a_tool_with), max_size=2),
        "text": texts,
        "stream": st.booleans(),
    },
)


@settings(max_examples=500)
@given(bodies, st.booleans(), st.booleans(), ways)
def test_a_request_without_its_texts_is_read_as_its_whole(
    fields: dict[str, Any], ascii_only: bool, spaces: bool, way: int
) -> None:
    body = json.dumps(
        fields, ensure_ascii=ascii_only, separators=(", ", ": ") if spaces else (",", ":")
    ).encode("utf-8", "surrogatepass")

    with patch.object(conversation, "QUOTES_APART", way):
        assert outcome(body, long=True) == outcome(body, long=False)


PLACES = [b"Tay", b'"content"', b'"role"', b'"user"', b'{"role', b'"}', b"[", b":", b"storm"]
BITS = [
    *(bytes([code]) for code in range(0x20)),
    b'"', b"\\", b'\\"', b"\\\\", b'\\\\"', b"\\n", b"\\x", b"\\u00", b"\\ud800", b"\\u0022",
    b"\xff", b"\xc3", b"\xc3\xa9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x7f", b",", b"{", b"null",
    b'"content":"twice",', b'"content":"' + LONG.encode() + b'",', b'"x":{"text":"y"},', b'":"',
]  # fmt: skip


@settings(max_examples=1500)
@given(
    st.sampled_from(PLACES),
    st.lists(st.sampled_from(BITS), min_size=1, max_size=2).map(b"".join),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    ways,
)
def test_what_is_wrong_is_seen_and_told_as_ever(
    place: bytes, bit: bytes, which: int, is_plain: bool, has_escapes: bool, way: int
) -> None:
    last = message("Why?") if is_plain else message("Why?", name="n")
    text = LONG + '"Why?"\n' * has_escapes
    body = chat_bytes(messages=[message(text), message(text, role="assistant"), last])
    body = body.replace(b'": ', b'":').replace(b", ", b",")
    at = -1
    for _ in range(which + 1):
        at = max(at, body.find(place, at + 1))
    wrong = body[:at] + bit + body[at:] if at >= 0 else bit + body

    with patch.object(conversation, "QUOTES_APART", way):
        assert outcome(wrong, long=True) == outcome(wrong, long=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [message(LONG)]},
        {"messages": [message(LONG + 'é "quoted" \\ \n')] * 3},
        {"messages": [message([{"type": "text", "text": LONG}, image_part(data_url() + LONG)])]},
        {
            "messages": [
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": LONG},
            ],
            "tools": [a_tool("add")],
        },
        {"messages": [message(LONG + "\\")] * 2},
        {"messages": [message(LONG, name="n"), message(LONG + "\\")] * 2},
        {"messages": [message(LONG)] * 1024},
        {"messages": [message(LONG, name="n", x=1)], "unknown": {"text": "short"}},
        {"messages": [message(LONG, x={"text": LONG})]},
    ],
)
def test_a_usual_long_request_is_read_without_its_texts(fields: dict[str, Any]) -> None:
    body = chat_bytes(**fields)

    parsed = read_long(body)

    assert parsed is not None
    assert comparable(parsed) == comparable(read_fully(body))
    assert any(isinstance(piece, memoryview) for piece in parsed.fields.pieces)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [message(LONG)] * 1025},
        {"metadata": {"text": LONG}},
        {"prediction": {"type": "content", "content": LONG}},
        {"tools": [a_tool("add", parameters={"content": LONG})]},
    ],
)
def test_what_may_break_a_rule_is_read_as_it_is(fields: dict[str, Any]) -> None:
    named = [message(LONG, name="n")]
    assert read_long(chat_bytes(**{"messages": named, **fields})) is None


def test_a_mark_is_unlike_that_of_any_other_process() -> None:
    cut = hollow(chat_bytes(messages=[message(LONG)]))
    assert cut is not None
    assert len(set(MARK.split()[1])) > 4
    assert cut.shell.count(MARK.encode()) == 1


def test_marks_beyond_those_put_back_spoil_the_whole() -> None:
    cut = hollow(chat_bytes(messages=[message(LONG, name="n")]))
    assert cut is not None
    sound = ChatRequest(messages=[UserMessage(f"{MARK}0")], model="m")
    json_of_it = f'"content":"{MARK}0"'.encode()

    assert cut.fill(sound, json_of_it) is not None
    assert sound.messages == [UserMessage(LONG)]
    assert cut.fill(sound, json_of_it) is None


def test_many_short_texts_are_not_stepped_over() -> None:
    many = [message("short", name="n")] * (SHORT_TEXTS_MAX + 2)
    assert hollow(chat_bytes(messages=[*many, message(LONG)])) is None
    assert hollow(chat_bytes(messages=[message(LONG + '"' * len(LONG), name="n")])) is None


def test_a_request_that_is_not_long_is_read_as_it_is() -> None:
    body = chat_bytes(messages=[message(LONG)])
    assert len(body) < LONG_BYTES
    assert [type(piece) for piece in parse_chat_request(body).fields.pieces] == [bytes]


def test_quotes_that_become_many_end_the_search() -> None:
    many = [message(LONG * 200 + "\n", name="n"), message('"' * 20_000, name="n")]
    body = Searched(chat_bytes(messages=many))

    assert hollow(body) is None
    assert body.times < len(body) // QUOTES_APART + 10


def test_the_text_of_what_a_model_reasoned_is_put_back() -> None:
    details = [{"type": "reasoning.text", "text": LONG, "index": 0}]
    said = message("4", role="assistant", reasoning_details=details)
    body = chat_bytes(messages=[message(), said, message("Sure?")])

    assert read_long(body) is not None
    assert outcome(body, long=True) == outcome(body, long=False)
