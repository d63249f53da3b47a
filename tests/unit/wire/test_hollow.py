"""A long request is read without its long texts, and what comes of it is what its whole makes."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import a_tool, chat_bytes, data_url, image_part, message

from tollway.errors import InvalidRequest
from tollway.pricing import input_tokens_bound, text_tokens_bound
from tollway.wire import hollow as hollow_module
from tollway.wire import requests
from tollway.wire.chat import ChatRequest, Message, UserMessage
from tollway.wire.hollow import LONG_TEXT_BYTES, MESSAGES_MAX, SHORT_TEXTS_MAX, hollow
from tollway.wire.requests import LONG_BYTES, ParsedRequest, parse_chat_request

read_plain, read_fully = requests._read_plain, requests._read_fully  # pyright: ignore[reportPrivateUsage]
read_long = requests._read_long  # pyright: ignore[reportPrivateUsage]
MARK = hollow_module._MARK  # pyright: ignore[reportPrivateUsage]

LONG = "The Tay Bridge fell in a storm. " * (LONG_TEXT_BYTES // 30)
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": LONG}}


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
calls = st.fixed_dictionaries(
    {"id": st.just("c"), "type": st.just("function")},
    optional={"function": st.fixed_dictionaries({"name": texts, "arguments": texts})},
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": texts},
    optional={"name": texts, "refusal": texts, "text": texts},
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


def outcome(body: bytes, *, long: bool) -> object:
    """What is read of it, or what is told that is wrong."""
    try:
        parsed = (read_long(body) if long else None) or read_plain(body) or read_fully(body)
    except InvalidRequest as refused:
        return refused.message, refused.code, refused.param
    return comparable(parsed)


def comparable(parsed: ParsedRequest) -> object:
    sent = json.loads(b"{" + parsed.fields.json + b"}")
    by_name = msgspec.to_builtins(dict(parsed.fields))
    parsed.request.messages = list(parsed.request.messages)
    return parsed.request, parsed.unknown, parsed.images, sent, by_name


@settings(max_examples=500, deadline=None)
@given(bodies, st.booleans(), st.booleans())
def test_a_request_without_its_texts_is_read_as_its_whole(
    fields: dict[str, Any], ascii_only: bool, spaces: bool
) -> None:
    body = json.dumps(
        fields, ensure_ascii=ascii_only, separators=(", ", ": ") if spaces else (",", ":")
    ).encode("utf-8", "surrogatepass")

    assert outcome(body, long=True) == outcome(body, long=False)


PLACES = [b"Tay", b'"content"', b'"role"', b'"user"', b'{"role', b'"}', b"[", b":", b"storm"]
BITS = [
    *(bytes([code]) for code in range(0x20)),
    b'"', b"\\", b'\\"', b"\\\\", b'\\\\"', b"\\n", b"\\x", b"\\u00", b"\\ud800", b"\\u0022",
    b"\xff", b"\xc3", b"\xc3\xa9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x7f", b",", b"{", b"null",
    b'"content":"twice",', b'"content":"' + LONG.encode() + b'",', b'"x":{"text":"y"},', b'":"',
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from(PLACES),
    st.lists(st.sampled_from(BITS), min_size=1, max_size=2).map(b"".join),
    st.integers(0, 3),
    st.booleans(),
)
def test_what_is_wrong_is_seen_and_told_as_ever(
    place: bytes, bit: bytes, which: int, is_plain: bool
) -> None:
    last = message("Why?") if is_plain else message("Why?", name="n")
    body = chat_bytes(messages=[message(LONG), message(LONG, role="assistant"), last])
    body = body.replace(b'": ', b'":').replace(b", ", b",")
    at = -1
    for _ in range(which + 1):
        at = max(at, body.find(place, at + 1))
    wrong = body[:at] + bit + body[at:] if at >= 0 else bit + body

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


@pytest.mark.parametrize("count", [1, 31, 32, 33, 511, 512, 513, 20_000])
@pytest.mark.parametrize("after", ["", '"', 'a"'])
def test_backslashes_escape_a_quote_by_their_number(count: int, after: str) -> None:
    text = "\\" * count + after
    for end in ("", LONG):
        body = chat_bytes(messages=[message(text + end), message(LONG * 3)])
        parsed = read_long(body)
        assert parsed is not None
        assert comparable(parsed) == comparable(read_fully(body))


class Searched(bytes):
    """Counts how often something is looked for in it."""

    times = 0

    def find(self, *looked_for: Any) -> int:
        self.times += 1
        return super().find(*looked_for)


def test_more_messages_than_there_may_be_are_not_stepped_over() -> None:
    assert hollow(chat_bytes(messages=[message("")] * MESSAGES_MAX)) is not None
    body = Searched(chat_bytes(messages=[message("")] * 5000))
    assert hollow(body) is None
    assert MESSAGES_MAX < body.times < MESSAGES_MAX + SHORT_TEXTS_MAX + 10


@pytest.mark.parametrize("spaces", ["", " ", "\n\t"])
def test_roles_may_take_turns_in_any_way(spaces: str) -> None:
    """What stood between two messages is compared with before it is matched."""
    patterns = ("uaua", "uuaa", "suauau", "uuuuuu", "auaauuaau", "usuasdua")
    names = {"u": "user", "a": "assistant", "s": "system", "d": "developer"}
    for pattern in patterns:
        messages = [{"role": names[letter], "content": letter + LONG} for letter in pattern]
        body = json.dumps(
            {"model": "m", "messages": messages}, separators=("," + spaces, ":" + spaces)
        ).encode()
        parsed = read_long(body)
        assert parsed is not None
        assert comparable(parsed) == comparable(read_fully(body))
        assert [type(one) for one in parsed.request.messages] == [
            type(one) for one in read_fully(body).request.messages
        ]


def test_what_follows_a_text_in_place_of_the_next_is_seen() -> None:
    """After messages that all went on in the same way, one that does not."""
    messages = [message(LONG)] * 6
    body = chat_bytes(messages=messages)
    end = body.rindex(LONG.encode()) + len(LONG)
    for wrong in (b'", "name": "x', b'x"', b'"}, {"role": "user", "content": "', b'"}, '):
        spoilt = body[:end] + wrong + body[end:]
        parsed = read_long(spoilt)
        assert parsed is None or comparable(parsed) == comparable(read_fully(spoilt))


def test_many_short_texts_are_not_stepped_over() -> None:
    many = [message("short", name="n")] * (SHORT_TEXTS_MAX + 2)
    assert hollow(chat_bytes(messages=[*many, message(LONG)])) is None
    assert hollow(chat_bytes(messages=[message(LONG + '"' * len(LONG))])) is None


def test_a_text_with_many_quotes_is_not_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hollow_module, "_is_escaped")

    assert hollow(chat_bytes(messages=[message('x = f("y", 1)\n' * 10_000)])) is None


@pytest.mark.parametrize("count", [1, 3, 1024])
def test_a_conversation_without_escapes_is_only_read_if_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    messages = [message(LONG * 20), *[message("Why?", role="assistant")] * (count - 1)]
    body = chat_bytes(messages=messages)
    whole = read_fully(body).request.messages
    decoded: list[memoryview] = []
    decode = hollow_module._decode_messages  # pyright: ignore[reportPrivateUsage]

    def counted(array: memoryview) -> list[Message]:
        decoded.append(array)
        return decode(array)

    monkeypatch.setattr(hollow_module, "_decode_messages", counted)
    parsed = parse_chat_request(body)

    assert parsed.text_bytes is not None
    assert text_tokens_bound(len(whole), parsed.text_bytes) == input_tokens_bound(whole)
    assert len(parsed.request.messages) == count
    assert decoded == []
    assert list(parsed.request.messages) == whole
    assert parsed.request.messages[-1:] == whole[-1:]
    assert len(decoded) == 1


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_conversation_is_put_back_only_where_it_was(role: str) -> None:
    elsewhere = {"messages": [message(LONG, role=role)]}
    body = chat_bytes(unknown=elsewhere)[:-1] + b"," + chat_bytes(metadata=elsewhere)[1:]
    before = json.dumps({"unknown": elsewhere} | json.loads(chat_bytes())).encode()

    assert outcome(before, long=True) == outcome(before, long=False)
    assert outcome(body, long=True) == outcome(body, long=False)


def test_a_request_that_is_not_long_is_read_as_it_is() -> None:
    body = chat_bytes(messages=[message(LONG)])
    assert len(body) < LONG_BYTES
    assert [type(piece) for piece in parse_chat_request(body).fields.pieces] == [bytes]
