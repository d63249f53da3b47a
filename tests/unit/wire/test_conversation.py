"""A conversation is found and known without making its messages, and what is no such is not.

Whatever is found, `test_hollow.py` compares with what its whole makes."""

import json
from typing import Any

import jiter
import pytest
from tests.support.builders import a_tool, chat_bytes, message
from tests.support.long_requests import (
    LONG,
    WAYS,
    Searched,
    comparable,
    outcome,
    read_fully,
    read_long,
)

from tollway.gateway.prompt import prompt_bound, text_tokens_bound
from tollway.wire import conversation
from tollway.wire.chat import Message
from tollway.wire.conversation import MESSAGES_MAX, Conversation, find_conversation
from tollway.wire.hollow import hollow
from tollway.wire.quotes import QUOTES_APART
from tollway.wire.requests import parse_chat_request
from tollway.wire.strict_json import VALUES_MAX
from tollway.wire.text import texts_bytes

CODE = 'x = f("y", 1)\n' * 500


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(conversation, "QUOTES_APART", request.param)
    return request.param


def find(body: bytes) -> Conversation | None:
    return find_conversation(body, has_escapes=b"\\" in body)


def test_more_messages_than_there_may_be_are_not_stepped_over() -> None:
    most = chat_bytes(messages=[message("")] * MESSAGES_MAX)
    assert find_conversation(most, has_escapes=False) is not None
    body = Searched(chat_bytes(messages=[message("")] * 5000))
    assert find_conversation(body, has_escapes=False) is None
    assert MESSAGES_MAX < body.times < MESSAGES_MAX + 10


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


@pytest.mark.parametrize("count", [1, 3, 1024])
def test_a_conversation_without_escapes_is_only_read_if_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    messages = [message(LONG * 20), *[message("Why?", role="assistant")] * (count - 1)]
    body = chat_bytes(messages=messages)
    whole = read_fully(body).request.messages
    decoded: list[memoryview] = []
    decode = conversation._decode_messages  # pyright: ignore[reportPrivateUsage]

    def counted(array: memoryview) -> list[Message]:
        decoded.append(array)
        return decode(array)

    monkeypatch.setattr(conversation, "_decode_messages", counted)
    parsed = parse_chat_request(body)

    assert parsed.text_bytes is not None
    assert text_tokens_bound(len(whole), parsed.text_bytes) == prompt_bound(whole).tokens
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


@pytest.mark.parametrize("count", [1, 31, 32, 33, 511, 512, 513, 20_000])
@pytest.mark.parametrize("after", ["", '"', 'a"'])
def test_backslashes_escape_a_quote_by_their_number(count: int, after: str) -> None:
    text = "\\" * count + after
    for end in ("", LONG):
        body = chat_bytes(messages=[message(text + end), message(LONG * 3)])
        parsed = read_long(body)
        assert parsed is not None
        assert comparable(parsed) == comparable(read_fully(body))


def test_a_text_with_many_quotes_is_not_stepped_over() -> None:
    plain = Searched(chat_bytes(messages=[message(CODE * 20)]))
    named = Searched(chat_bytes(messages=[message(CODE * 20, name="n")]))

    assert find(plain) is not None
    assert hollow(named) is None
    assert plain.times + named.times < 10


def test_quotes_that_become_many_are_not_stepped_over_any_further() -> None:
    body = chat_bytes(messages=[message(LONG * 200 + "\n"), message('"' * 20_000)])
    searched = Searched(body)

    assert find(searched) is not None
    assert searched.times < len(body) // QUOTES_APART + 10


@pytest.mark.parametrize("text", [LONG, CODE, "é\n" * 99, LONG + "\\", '}]"}]', '"', ""])
@pytest.mark.parametrize("after", [{}, {"stop": ["]", '"}]']}, {"metadata": {"k": LONG[:500]}}])
def test_a_conversation_with_escapes_is_found_either_way(
    way: int, text: str, after: dict[str, Any]
) -> None:
    for count in (1, 2, 5):
        messages = [message(text + "\n", role="system"), message(text, role="assistant")] * count
        body = chat_bytes(messages=messages, **after)
        found = find(body)

        assert found is not None
        assert list(found.messages) == read_fully(body).request.messages
        assert found.text_bytes == sum(len(one["content"].encode()) for one in messages)
        assert outcome(body, long=True) == outcome(body, long=False)


NOT_ASCII = {
    "German": "Die Brücke stürzte ein. ",
    "quotes": "“Don\u2019t,” she said… ",
    "Chinese": "大桥倒塌\uff0c请说明\uff01",
    "Japanese": "ガラスの橋が落ちた。",
    "emoji": "🌉🇩🇪",
    "longer in NFKC": "½ \ufdfa ",
    "marks": "e\u0301 קָ ",
}


@pytest.mark.parametrize("text", NOT_ASCII.values(), ids=NOT_ASCII)
@pytest.mark.parametrize("others", ["", "\n", '"\n', "\\" * 999])
@pytest.mark.parametrize("escaped", ["", "é", "\u0301", "\ufdfa"])
def test_texts_that_are_not_ascii_are_counted_as_what_they_are(
    way: int, text: str, others: str, escaped: str
) -> None:
    """Also where some of them is written as escapes."""
    contents = [text * 200 + others, "MARK" + others, text]
    messages = [message(content) for content in contents]
    body = json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()
    body = body.replace(b"MARK", json.dumps(escaped)[1:-1].encode())
    contents[1] = escaped + others

    found = find(body)

    assert found is not None
    assert found.text_bytes == texts_bytes(contents)
    assert [one.content for one in found.messages] == contents
    assert outcome(body, long=True) == outcome(body, long=False)


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xc3",
        b"\xa9",
        b"\xc3x\xa9",
        b"\xe5\xa4 \xa7",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
    ],
)
@pytest.mark.parametrize("others", ["", "\n", '"\n'])
def test_what_is_no_utf_8_is_no_conversation(way: int, wrong: bytes, others: str) -> None:
    messages = [message("Brücke" + others), message("HERE" + others), message("桥")]
    body = json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()

    assert find(body) is not None
    assert find(body.replace(b"HERE", wrong)) is None


def test_a_name_that_is_not_ascii_is_none_of_ours(way: int) -> None:
    role = json.dumps({"messages": [message("\n", role="aéistant")]}, ensure_ascii=False)
    assert find(role.encode()) is None
    for name in ("röle", "contént", "rol\u00e9"):
        body = json.dumps(
            {"messages": [message("\n") | {name: "n"}, message("")]}, ensure_ascii=False
        )
        assert find(body.encode()) is None
        body = body.replace('"role"', f'"{name}"', 1).replace(f', "{name}": "n"', "")
        assert find(body.encode()) is None


OTHERS: list[Any] = [
    0,
    None,
    "text",
    [],
    {},
    {"role": "user"},
    {"role": "tool", "content": "\n"},
    {"role": "user", "content": None},
    {"role": ["user"], "content": "\n"},
    {"role": "user", "content": "\n", "name": "n"},
    {"role": "user", "content": [{"type": "text", "text": "\n"}]},
    {"role": "user", "text": "\n"},
]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("ends", [True, False])
def test_an_array_of_anything_else_is_no_conversation(way: int, other: Any, ends: bool) -> None:
    messages = [message("\n"), other, *[message("end")] * ends]
    assert find(chat_bytes(messages=messages)) is None


def test_a_key_that_comes_twice_makes_it_no_conversation(way: int) -> None:
    twice = b'{"role": "user", "content": "\\n", "content": "m"}'
    escaped = b'{"role": "user", "content": "\\n", "cont\\u0065nt": "m"}'
    for one in (twice, escaped):
        body = chat_bytes(messages=[message("\n"), message("HERE")])
        assert find(body.replace(b'{"role": "user", "content": "HERE"}', one)) is None


def always(*_: object) -> bool:
    return True


@pytest.mark.parametrize("sign", ["[", "{", ":"])
def test_what_would_take_long_to_read_is_not_read(
    monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    many = {
        "[": ",".join(["[]"] * (VALUES_MAX + 1)),
        "{": ",".join(["{}"] * (VALUES_MAX + 1)),
        ":": "{" + ",".join(f'"{key}":0' for key in range(VALUES_MAX + 1)) + "}",
    }[sign]
    monkeypatch.setattr(conversation, "are_close", always)
    monkeypatch.delattr(conversation, "_read_any")
    body = chat_bytes(messages=[message("\n"), "MANY", message("end")])

    assert find(body.replace(b'"MANY"', many.encode())) is None


def test_where_a_conversation_ends_is_not_looked_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many brackets may come behind one quote, and much space."""
    looked: list[int] = []
    match = conversation._match_last  # pyright: ignore[reportPrivateUsage]

    def counted(body: bytes, at: int) -> object:
        looked.append(at)
        return match(body, at)

    monkeypatch.setattr(conversation, "are_close", always)
    monkeypatch.setattr(conversation, "_match_last", counted)
    others: list[object] = ["a", " ", *[[]] * 40]
    body = chat_bytes(messages=[message("\n")], x=others)

    assert find(body) is not None
    assert len(looked) == len(set(looked)) == 2


@pytest.mark.parametrize("where", ["tools", "metadata", "response_format"])
def test_a_conversation_elsewhere_is_not_the_requests(way: int, where: str) -> None:
    elsewhere = {"messages": [message("cheap \n" * 3000)]}
    fields: dict[str, Any] = {
        "tools": [a_tool("add", parameters=elsewhere)],
        "metadata": elsewhere,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": elsewhere},
        },
    }
    body = json.dumps({"model": "m", where: fields[where], "messages": [message("real \n")]})

    assert outcome(body.encode(), long=True) == outcome(body.encode(), long=False)


def test_more_messages_than_there_may_be_are_no_conversation(way: int) -> None:
    for count, is_found in ((MESSAGES_MAX, True), (MESSAGES_MAX + 1, False)):
        found = find(chat_bytes(messages=[message("\n")] * count))
        assert (found is not None) == is_found


def test_nothing_that_a_client_sent_is_kept(way: int) -> None:
    """jiter would keep short texts and keys, unless it is told not to."""
    jiter.cache_clear()
    assert find(chat_bytes(messages=[message("secret"), message("\n")])) is not None
    assert parse_chat_request(chat_bytes(unknown={"secret": "secret"})).unknown == ("unknown",)

    assert jiter.cache_usage() == 0
