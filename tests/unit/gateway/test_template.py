"""A stream is rewritten event by event, or like the event before: both ways give the same bytes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.gateway.relayed import STOP, Upstream, chunk, relayed, text

from tollway.gateway import relay as relay_module
from tollway.gateway.template import Template

shapes: list[Callable[[str], bytes]] = [
    text,
    lambda t: json.dumps(json.loads(text(t)), separators=(",", ":")).encode(),
    lambda t: json.dumps(json.loads(text(t)), ensure_ascii=False).encode(),
    lambda t: text(t, id=None, model=None, created=None, usage=None, system_fingerprint="fp"),
    lambda t: text(t, id=t, model=t),
    lambda t: chunk({"content": t, "reasoning_content": None, "tool_calls": []}),
    lambda t: chunk({"content": t, "role": "assistant"}),
    lambda t: chunk({"reasoning_content": t}),
    lambda t: chunk({"content": t, "extra": {"content": t}}, service_tier="default"),
    lambda t: text(t, usage={"prompt_tokens": 3, "completion_tokens": 4}),
    lambda t: text(t, id=...).replace(b'"content"', b'"\\u0063ontent"'),
    lambda t: text(t).replace(b"l", b"\\u006c"),
    lambda t: (
        b'{"id":%b,"choices":[{"index":0,"delta":{"content":"\\u0061"}}]}' % json.dumps(t).encode()
    ),
    lambda t: chunk({"tool_calls": [{"index": 0, "function": {"arguments": t}}]}),
    lambda t: chunk({"tool_calls": [{"index": 0, "id": t, "function": {"name": "f"}}]}),
    lambda t: chunk({"content": None, "reasoning": t}),
    lambda _: chunk(choices=[]),
    lambda t: text(t, created=len(t)),
    lambda t: text(t, index=1),
]
pieces = st.sampled_from(
    [
        "a",
        "m1",
        "id",
        "Hello",
        " wor",
        "",
        "é",
        "世",
        "👋",
        '"',
        "\\",
        "\n",
        "\x00",
        "\x7f",
        "<",
        "l",
        "/",
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """A server keeps to its shape, or to two."""
    its_shapes = draw(st.lists(st.sampled_from(shapes), min_size=1, max_size=2))

    def event() -> bytes:
        shape = draw(st.sampled_from(its_shapes))
        return shape("".join(draw(st.lists(pieces, max_size=2))))

    return [event() for _ in range(draw(st.integers(0, 12)))]


async def both_ways_give_the_same(events: list[bytes], reads: int, wants_usage: bool) -> None:
    fields = {"stream_options": {"include_usage": wants_usage}, "n": 2}
    short = await relayed(Upstream([*events, STOP], reads=reads), **fields)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Template, "learn", lambda *_: None)  # pyright: ignore
        long = await relayed(Upstream([*events, STOP], reads=reads), **fields)

    assert short.reply.written == long.reply.written
    assert short.meter.output_pieces == long.meter.output_pieces
    assert short.meter.reported_pieces == long.meter.reported_pieces
    assert short.meter.reasoning_pieces == long.meter.reasoning_pieces
    assert type(short.error) is type(long.error)


@given(streams(), st.integers(1, 4), st.booleans())
async def test_the_short_way_of_rewriting_gives_the_bytes_of_the_long_way(
    events: list[bytes], reads: int, wants_usage: bool
) -> None:
    await both_ways_give_the_same(events, reads, wants_usage)


@pytest.mark.parametrize("shape", shapes)
async def test_the_two_ways_agree_on_every_servers_shape(shape: Callable[[str], bytes]) -> None:
    texts = ["a", "a", "m1", "b c", "é", "l", "", '"', "id", "id", "z"]
    await both_ways_give_the_same([shape(t) for t in texts], 1, wants_usage=True)


GENERATED = ["w", "世", '"', "\\", "\n", "\t", "é", "👋🏽"]


generating: list[Callable[[str], bytes]] = [
    text,
    lambda t: chunk({"content": None, "reasoning_content": t}),
    lambda t: chunk({"reasoning": t}),
    lambda t: chunk({"tool_calls": [{"index": 0, "function": {"arguments": t}}]}),
]


@pytest.mark.parametrize("event", generating)
async def test_the_short_way_is_taken(
    monkeypatch: pytest.MonkeyPatch, event: Callable[[str], bytes]
) -> None:
    read = 0
    decode = relay_module._decode_chunk  # pyright: ignore[reportPrivateUsage]

    def counting(payload: bytes) -> Any:
        nonlocal read
        read += 1
        return decode(payload)

    monkeypatch.setattr(relay_module, "_decode_chunk", counting)
    begins = chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]})
    events = [as_written(event(t)) for t in ("a", *GENERATED, "z")]
    got = await relayed(Upstream([begins, *events, STOP]))
    assert got.meter.output_pieces == 11
    assert read == 3


def part_of_call(arguments: str, **said: Any) -> bytes:
    name = said.pop("name", None)
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return chunk({"tool_calls": [{"index": 0, "function": function, **said}]})


@pytest.mark.parametrize(
    "said",
    [
        [{"id": "c1", "name": "f"}, {}, {"id": "c2", "name": "g"}, {}, {}],
        [{"name": "f"}, {}, {}, {"id": "c2", "name": "f"}, {}],
        [{"id": "c1"}, {}, {"name": "f"}, {"name": "f"}, {}, {"name": "g"}, {"name": "g"}],
        [{"id": "c1", "name": "f"}, {"id": "c1"}, {"id": "c2"}, {"id": "c1"}, {}, {"id": "c2"}, {}],
        [{}, {}, {"id": "c1", "name": "f"}, {}, {"id": "c1", "name": "f"}, {}],
    ],
)
async def test_a_call_may_begin_under_the_index_of_another(said: list[dict[str, str]]) -> None:
    events = [part_of_call(f"a{number}", **of) for number, of in enumerate(said)]
    await both_ways_give_the_same(events, 1, wants_usage=False)


async def test_a_fingerprint_that_was_said_is_in_all_that_follows() -> None:
    got = await relayed(Upstream([text("a", system_fingerprint="fp"), text("b"), STOP]))
    assert [c["system_fingerprint"] for c in got.chunks] == ["fp"] * 3


async def test_a_fingerprint_that_comes_late_is_in_all_that_follows() -> None:
    late = text("\n", system_fingerprint="fp")
    await both_ways_give_the_same([text("a"), text("b"), late, text("c")], 1, wants_usage=False)


async def test_a_call_that_begins_beside_another_begins_once() -> None:
    first = {"index": 0, "function": {"arguments": "a"}}
    second = {"index": 1, "id": "c2", "function": {"name": "g", "arguments": ""}}
    events = [part_of_call("", id="c1", name="f"), *[chunk({"tool_calls": [first, second]})] * 3]
    await both_ways_give_the_same(events, 1, wants_usage=False)


async def test_an_escape_that_we_would_not_write_is_not_passed_on() -> None:
    events = [text("a"), text("b"), text("c/d").replace(b"/", rb"\/"), text("e")]
    await both_ways_give_the_same(events, 1, wants_usage=False)


def as_written(event: bytes) -> bytes:
    """As most servers write: what is not ASCII stands for itself."""
    return json.dumps(json.loads(event), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "code",
    [0x00, 0x1F, 0x22, 0x2F, 0x5C, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF],
)
async def test_any_character_is_rewritten_as_it_would_be_written(code: int) -> None:
    texts = ["a", chr(code), f"b{chr(code)}", chr(code) * 2]
    for ascii_only in (True, False):
        events = [json.dumps(json.loads(text(t)), ensure_ascii=ascii_only).encode() for t in texts]
        await both_ways_give_the_same(events, 1, wants_usage=False)


@pytest.mark.parametrize(
    "wrong", [rb"\x", rb"\u00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\xe4"]
)
async def test_what_is_no_text_fails_as_ever(wrong: bytes) -> None:
    events = [text("a"), text("b"), text("HERE").replace(b"HERE", wrong), text("c")]
    await both_ways_give_the_same(events, 1, wants_usage=False)
