import json
import sys
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollway.errors import InvalidRequest
from tollway.process import refuse_long_numbers
from tollway.wire import strict_json
from tollway.wire.strict_json import (
    DEPTH_MAX,
    VALUES_MAX,
    Json,
    parse_object,
)


def nested(depth: int) -> bytes:
    """An object and, in it, so many arrays and objects by turns that all are `depth` deep."""
    opening = "".join('{"a":' if level % 2 == 0 else "[" for level in range(depth))
    closing = "".join("}" if level % 2 == 0 else "]" for level in reversed(range(depth)))
    return f"{opening}1{closing}".encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"1",
        b'"a"',
        b"null",
        b"{}x",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"{'a':1}",
    ],
)
def test_a_body_must_be_one_json_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_object(body)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "01", "+1", ".5"])
def test_a_number_must_be_one(number: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_object(b'{"a": %b}' % number.encode())


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00", rb"a\ud83dz", b"\xff", b"\xed\xa0\x80"])
@pytest.mark.parametrize("body", [b'{"a": "%b"}', b'{"%b": 1}', b'{"a": [{"b": "%b"}]}'])
def test_text_must_be_unicode(body: bytes, text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_object(body % text)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a":1,"a":2}',
        rb'{"a" :1,"a":2}',
        rb'{"a"  : 1, "a" : 2}',
        b'{"a"\n:1,"a"\t:2}',
        b'{"a"\r:1,"a":2}',
        rb'{"a":1,"\u0061":2}',
        rb'{"a":{"b":1,"c":2,"b":3}}',
        rb'{"a":[1,{"b":1,"b":1}]}',
        rb'{"x":"\"","a":1,"a":2}',
        rb'{"x":"\":","a":1,"a":2}',
        rb'{"model":"a","messages":[],"model":"b"}',
        rb'{"":1,"":2}',
    ],
)
def test_a_key_twice_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        parse_object(body)


@pytest.mark.parametrize(
    "body", [rb'{"a":"\":\":"}', rb'{"a":{"a":{"a":1}}}', rb'{"a":[{"b":1},{"b":2}]}', b'{"a" : 1}']
)
def test_what_only_looks_like_a_key_twice_is_taken(body: bytes) -> None:
    assert parse_object(body) == json.loads(body)


@pytest.mark.parametrize("beside", [b"", b"," + b",".join(b'"%d":{}' % n for n in range(40))])
def test_32_deep_is_taken(beside: bytes) -> None:
    assert parse_object(nested(DEPTH_MAX)[:-1] + beside + b"}")


@pytest.mark.parametrize("depth", [DEPTH_MAX + 1, 500, 50_000])
def test_more_than_32_deep_is_refused(depth: int) -> None:
    with pytest.raises(InvalidRequest, match="more than 32 deep"):
        parse_object(nested(depth))


def of_values(count: int, value: str = "1") -> bytes:
    return f'{{"a":[{",".join([value] * (count - 1))}]}}'.encode()


@pytest.mark.parametrize("separator", [b",", b" ,\n"])
def test_65536_values_are_taken(separator: bytes) -> None:
    assert parse_object(of_values(VALUES_MAX).replace(b",", separator))


@pytest.mark.parametrize(
    "body",
    [
        of_values(VALUES_MAX + 1),
        of_values(VALUES_MAX // 2 + 1, "[]"),
        of_values(VALUES_MAX // 2 + 1, "{}"),
        of_values(VALUES_MAX // 2 + 1, '{"":0}'),
        of_values(VALUES_MAX // 2 + 1, '["\\\\\\"]"]'),
        of_values(VALUES_MAX + 1, '""'),
        of_values(5 * VALUES_MAX, '""'),
        b'{"a":' + of_values(VALUES_MAX + 1) + b"x",
        b"[" * (VALUES_MAX + 1),
        b'{"a":[' + b'""' * (2 * VALUES_MAX + 1) + b",1" * (VALUES_MAX + 1),
    ],
)
def test_more_than_65536_values_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    def never(body: bytes) -> Json:
        raise AssertionError("it is read")

    monkeypatch.setattr(strict_json, "_decode", never)

    with pytest.raises(InvalidRequest, match="more than 65536 values") as refused:
        parse_object(body)

    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("text", [",", "[{,", r"\",", r"\\,", r",\\\","])
def test_what_is_in_a_text_is_no_value(text: str) -> None:
    body = b'{"a":"%b","b":"%b"}' % (text.encode() * VALUES_MAX, text.encode() * VALUES_MAX)

    assert parse_object(body)


def test_a_number_that_would_take_msgspec_long_is_read_by_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def read_it(written: str) -> float:
        read.append(written)
        return 0.0

    monkeypatch.setattr(strict_json, "float", read_it, raising=False)
    parse_object(b'{"a":[5e-324]}')

    assert read == ["5e-324"]


def test_an_integer_of_any_length_is_no_fault() -> None:
    for body in (b'{"a":%b}' % (b"1" * 9000), b'{"a" :%b,"b":1}' % (b"1" * 9000)):
        with pytest.raises(InvalidRequest):
            parse_object(body)


def test_an_integer_of_more_digits_than_a_server_reads_is_refused() -> None:
    digits_before = sys.get_int_max_str_digits()
    refuse_long_numbers()
    try:
        assert parse_object(b'{"a":%b}' % (b"1" * 640))
        with pytest.raises(InvalidRequest) as refused:
            parse_object(b'{"a":%b}' % (b"1" * 641))
    finally:
        sys.set_int_max_str_digits(digits_before)

    assert refused.value.code == "invalid_json"


# --- against a plain reference ----------------------------------------------------------------


class NotTakenError(Exception):
    pass


def reference(body: bytes) -> Any:
    """The same rules, each written down the plain way."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise NotTakenError
        return dict(pairs)

    def refuse(_: str) -> None:
        raise NotTakenError

    try:
        value = json.loads(body.decode(), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise NotTakenError from None
    if not isinstance(value, dict) or depth_of(cast("object", value)) > DEPTH_MAX:
        raise NotTakenError
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NotTakenError from None
    return cast("Any", value)


def depth_of(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    within = cast("dict[str, object] | list[object]", value)
    inner = within.values() if isinstance(within, dict) else within
    return 1 + max(map(depth_of, inner), default=0)


def agrees(body: bytes) -> None:
    try:
        expected = reference(body)
    except NotTakenError:
        with pytest.raises(InvalidRequest):
            parse_object(body)
    else:
        assert parse_object(body) == expected


keys = st.sampled_from(["a", "b", "model", 'a":', "a\\", "é", ""])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(-1e9, 1e9)
    | st.text(max_size=8)
    | keys
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(keys, inner), max_size=4),
    max_leaves=12,
)


def written(value: Any, draw: st.DrawFn) -> str:
    """As JSON, where lists of pairs are objects: keys may repeat, white space may be anywhere."""
    space = draw(st.sampled_from(["", " ", "\n", "\t\r"]))
    if not isinstance(value, list):
        return json.dumps(value)
    items = cast("list[Any]", value)
    if not items or not isinstance(items[0], tuple):
        return "[" + ",".join(written(item, draw) for item in items) + "]"
    ascii_only = draw(st.booleans())
    members = (
        f"{json.dumps(key, ensure_ascii=ascii_only)}{space}:{written(of, draw)}"
        for key, of in items
    )
    return "{" + f",{space}".join(members) + "}"


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    pairs = draw(st.lists(st.tuples(keys, values), min_size=1, max_size=4))
    return written(pairs, draw).encode()


@given(documents())
@example(rb'{"a":"\":","a":1}')
def test_it_agrees_with_a_plain_reference(body: bytes) -> None:
    agrees(body)


def members_of(value: Any) -> int:
    """All that is in it, and an empty object or array once more."""
    if not isinstance(value, dict | list):
        return 0
    inner = cast("dict[str, Any] | list[Any]", value)
    within = list(inner.values()) if isinstance(inner, dict) else inner
    return len(within) + sum(map(members_of, within)) if within else 1


@given(documents())
def test_values_are_counted_as_a_plain_reference_does(body: bytes) -> None:
    try:
        members = members_of(reference(body))
    except NotTakenError:
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strict_json, "VALUES_MAX", members)
        assert parse_object(body)
        patched.setattr(strict_json, "VALUES_MAX", members - 1)
        with pytest.raises(InvalidRequest, match="more than"):
            parse_object(body)


@given(documents(), st.integers(0, 200), st.binary(max_size=2), st.integers(0, 2))
def test_it_agrees_on_what_is_nearly_json(
    body: bytes, at: int, inserted: bytes, removed: int
) -> None:
    at %= len(body) + 1
    agrees(body[:at] + inserted + body[at + removed :])
