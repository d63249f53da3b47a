"""Each server's own shapes, played back over real HTTP: whichever of them answers, a client sees
the same."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.answers import Answer
from tests.support.builders import a_tool
from tests.support.fake_upstream import FakeUpstream
from tests.unit.gateway.parts import REQUEST_ID
from tests.unit.upstreams.playback import Played, bytes_of, json_of, play, sse
from tests.unit.upstreams.servers import SERVERS
from tests.unit.upstreams.servers.shapes import (
    ARGUMENTS,
    Refusal,
    Shapes,
    a_call,
    chunk,
    counts,
    part,
    usage_chunk,
    whole,
)

from tollway.errors import RequestError, Unavailable, UpstreamFailed
from tollway.upstreams.dialects import DIALECTS, GENERIC, Dialect
from tollway.wire.events import EVENT_BYTES_MAX

ADD = a_tool("add")
ROWS = [(DIALECTS[name], shapes) for name, shapes in SERVERS.items()]
each_server = pytest.mark.parametrize(("dialect", "shapes"), ROWS, ids=SERVERS.keys())
# A server of which nothing is said is read all the same.
asked_as = pytest.mark.parametrize("generic", [False, True], ids=["its own row", "generic"])


@pytest.fixture(scope="module")
def server() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left_over(server: FakeUpstream) -> Iterator[None]:
    yield
    server.forget_answers()


def test_every_row_has_its_server_here() -> None:
    assert SERVERS.keys() == DIALECTS.keys()


# --- what it says ---------------------------------------------------------------------------------


@each_server
@asked_as
@pytest.mark.parametrize("size", [1 << 16, 7, 1])
async def test_a_stream_is_the_same_whoever_sends_it(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes, generic: bool, size: int
) -> None:
    answer = bytes_of(shapes.answer).in_pieces(size, pause_seconds=0)
    got = await play(server, answer, GENERIC if generic else dialect, streamed=True)

    assert got.error is None
    assert (got.content, got.reasoning, got.finish) == ("4", shapes.reasoning, "stop")
    assert b'"reasoning":' not in got.written
    roles = [c["choices"][0]["delta"].get("role") for c in got.chunks]
    assert roles == ["assistant", *[None] * (len(roles) - 1)]
    assert isinstance(got.chunks[0]["choices"][0]["delta"]["content"], str)
    assert got.tokens == usage_read_as(dialect, shapes, generic)


@each_server
@asked_as
async def test_a_whole_reply_is_the_same_whoever_sends_it(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes, generic: bool
) -> None:
    answer = json_of(shapes.whole)
    got = await play(server, answer, GENERIC if generic else dialect, streamed=False)

    assert got.error is None
    assert (got.content, got.reasoning, got.finish) == ("4", shapes.reasoning, "stop")
    assert got.body is not None
    assert b'"reasoning":' not in got.body
    assert got.tokens == usage_read_as(dialect, shapes, generic)


def usage_read_as(dialect: Dialect, shapes: Shapes, generic: bool) -> tuple[Any, ...]:
    """What Gemini has only in its total is not looked for elsewhere."""
    if generic and dialect.counts_reasoning_apart:
        return (12, 4, 0, 0, "upstream")
    return shapes.usage


@each_server
@asked_as
@pytest.mark.parametrize("size", [1 << 16, 1])
async def test_a_tool_call_is_the_same_whoever_makes_it(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes, generic: bool, size: int
) -> None:
    answer = bytes_of(shapes.call).in_pieces(size, pause_seconds=0)
    row = GENERIC if generic else dialect
    got = await play(server, answer, row, streamed=True, tools=[ADD])

    assert got.error is None
    assert_one_call(got)


@each_server
@asked_as
async def test_a_tool_call_of_a_whole_reply_is_the_same_whoever_makes_it(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes, generic: bool
) -> None:
    answer = json_of(shapes.whole_call)
    row = GENERIC if generic else dialect
    got = await play(server, answer, row, streamed=False, tools=[ADD])

    assert got.error is None
    assert_one_call(got)


@pytest.mark.parametrize(("said", "told"), [("I'll add.", "I'll add."), ("", None), (None, None)])
async def test_what_is_said_beside_a_tool_call_is_kept(
    server: FakeUpstream, said: str | None, told: str | None
) -> None:
    answer = json_of(whole({"content": said, "tool_calls": [a_call()]}, "tool_calls", None))
    got = await play(server, answer, GENERIC, streamed=False, tools=[ADD])
    assert_one_call(got)
    assert got.chunks[0]["choices"][0]["message"]["content"] == told


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("odd", "told"), [({"a": 1}, '{"a":1}'), ([1], "[1]"), (None, "")])
async def test_a_call_whose_type_and_arguments_are_no_text_is_a_call(
    server: FakeUpstream, streamed: bool, odd: object, told: str
) -> None:
    call = {"id": "a", "type": 5, "function": {"name": "add", "arguments": odd}}
    if streamed:
        answer = bytes_of(sse(chunk({"tool_calls": [call]}), chunk({}, "stop")))
    else:
        answer = json_of(whole({"tool_calls": [call]}, "stop", None))
    got = await play(server, answer, GENERIC, streamed=streamed, tools=[ADD])
    assert got.error is None
    assert (got.calls, got.types) == ([("a", "add", told)], ["function"])


_SIGNATURE = {"thought_signature": "CiQB0e2Kb/+="}


@asked_as
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"google": _SIGNATURE}, {"google": _SIGNATURE}),
        ({"vertex": _SIGNATURE}, {"vertex": _SIGNATURE}),
        ({"google": _SIGNATURE | {"x": 1}, "x": 1}, {"google": _SIGNATURE}),
        (None, None),
        ("x", None),
        ({"google": "x"}, None),
        ({"google": {"thought_signature": 5}}, None),
    ],
)
async def test_the_signature_of_a_call_is_told(
    server: FakeUpstream,
    generic: bool,
    streamed: bool,
    index: int | None,
    extra: object,
    told: object,
) -> None:
    signed = a_call(extra_content=extra)
    if streamed:
        answer = bytes_of(sse(chunk(part(index, **signed)), chunk({}, "stop")))
    else:
        answer = json_of(whole({"tool_calls": [signed, a_call(id="call_2")]}, "stop", None))

    row = GENERIC if generic else DIALECTS["gemini"]
    got = await play(server, answer, row, streamed=streamed, tools=[ADD])

    assert got.error is None
    assert got.calls[0] == ("call_1", "add", ARGUMENTS)
    assert got.extra_contents == [told, None][: 1 if streamed else 2]


@asked_as
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("extra", "told"),
    [({"google": _SIGNATURE}, {"google": _SIGNATURE}), (None, None), ("x", None)],
)
async def test_the_signature_of_a_text_is_told(
    server: FakeUpstream, generic: bool, streamed: bool, extra: object, told: object
) -> None:
    signed = {"extra_content": extra}
    if streamed:
        events = chunk({"role": "assistant", "content": "4"}), chunk(signed, "stop")
        answer = bytes_of(sse(*events))
    else:
        answer = json_of(whole({"content": "4", **signed}, "stop", None))

    row = GENERIC if generic else DIALECTS["gemini"]
    got = await play(server, answer, row, streamed=streamed)

    assert (got.error, got.content) == (None, "4")
    assert got.messages[-1].get("extra_content") == told


_DETAILS = [
    {"type": "reasoning.text", "text": "Hm.", "signature": None, "index": 0},
    {"type": "reasoning.encrypted", "data": "gAAAAA==", "id": "call_1", "index": 1},
]


@asked_as
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("details", "told"), [(_DETAILS, _DETAILS), (None, None), ("x", None)])
async def test_the_details_of_reasoning_are_told_as_they_came(
    server: FakeUpstream, generic: bool, streamed: bool, details: object, told: object
) -> None:
    thought = {"content": "", "reasoning_details": details}
    if streamed:
        answer = bytes_of(sse(chunk(thought), chunk(part(0, **a_call())), chunk({}, "stop")))
    else:
        answer = json_of(whole({**thought, "tool_calls": [a_call()]}, "stop", None))

    row = GENERIC if generic else DIALECTS["openrouter"]
    got = await play(server, answer, row, streamed=streamed, tools=[ADD])

    assert got.error is None
    assert got.calls == [("call_1", "add", ARGUMENTS)]
    assert got.messages[0].get("reasoning_details") == told


def assert_one_call(got: Played) -> None:
    ((id_, name, arguments),) = got.calls
    assert (name, arguments.replace(" ", "")) == ("add", ARGUMENTS.replace(" ", ""))
    assert id_
    assert got.finish == "tool_calls"


# --- what goes wrong ------------------------------------------------------------------------------


@each_server
@asked_as
async def test_a_stream_that_fails_in_the_middle_is_no_end(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes, generic: bool
) -> None:
    row = GENERIC if generic else dialect
    got = await play(server, bytes_of(shapes.broken), row, streamed=True)

    assert isinstance(got.error, UpstreamFailed)
    assert got.content == "4"
    assert got.finish is None
    assert got.outcome.status == "failed"
    assert got.tokens[1] == 1  # what was received, counted
    assert got.tokens[4] == "counted"


REFUSALS = [
    pytest.param(DIALECTS[name], refusal, id=f"{name} {refusal.status} {refusal.code}")
    for name, shapes in SERVERS.items()
    for refusal in shapes.refusals
]


@pytest.mark.parametrize(("dialect", "refusal"), REFUSALS)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@asked_as
async def test_an_error_is_told_as_what_it_is_for_the_client(
    server: FakeUpstream, dialect: Dialect, refusal: Refusal, streamed: bool, generic: bool
) -> None:
    answer = error_of(refusal)
    row = GENERIC if generic else dialect
    got = await play(server, answer, row, streamed=streamed)

    error = got.error
    assert isinstance(error, RequestError)
    assert (type(error).__name__, error.code, error.param) == (
        refusal.error,
        refusal.code,
        refusal.param,
    )
    assert got.outcome.cost == 0
    assert error.upstream_status == (502 if refusal.status == 200 else refusal.status)


def error_of(refusal: Refusal) -> Answer:
    if isinstance(refusal.body, str):
        return bytes_of(refusal.body.encode(), status=refusal.status, media_type="text/html")
    return json_of(refusal.body, status=refusal.status, **dict(refusal.headers))


@pytest.mark.parametrize(
    ("name", "status", "seconds"), [("openai", 429, 7), ("azure", 429, 26), ("gemini", 429, 34.07)]
)
async def test_when_to_come_back_is_read_where_the_server_says_it(
    server: FakeUpstream, name: str, status: int, seconds: float
) -> None:
    refusal = next(
        r for r in SERVERS[name].refusals if r.status == status and r.code == "overloaded"
    )
    got = await play(server, error_of(refusal), DIALECTS[name], streamed=False)

    assert isinstance(got.error, Unavailable)
    assert got.error.retry_after_seconds == seconds


@each_server
async def test_the_end_of_the_body_without_an_end_of_the_model_is_a_failure(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes
) -> None:
    said = sse(chunk({"role": "assistant", "content": "4"}), done=False)
    for body in (said, said + b"data: [DONE]\n\n"):
        got = await play(server, bytes_of(body), dialect, streamed=True)
        assert isinstance(got.error, UpstreamFailed)


@each_server
async def test_an_end_without_usage_is_counted(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes
) -> None:
    body = sse(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "a"}),
        chunk({"reasoning_content": "b"}),
        chunk({"reasoning": "c"}),
        chunk({}, "stop"),
    )
    got = await play(server, bytes_of(body), dialect, streamed=True)

    assert got.error is None
    assert got.tokens[1:] == (3, 0, 2, "counted")


# --- how it is put on the wire --------------------------------------------------------------------

_SAID: tuple[object, ...] = (
    ": a comment",
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Grüße, "}),
    ": another",
    chunk({"content": "世界 👋🏽"}),
    chunk({}, "stop"),
    usage_chunk(counts(12, 4)),
)
WIRES = {
    "as most": sse(*_SAID),
    "CRLF": sse(*_SAID, end="\r\n\r\n"),
    "CR": sse(*_SAID, end="\r\r"),
    "no space": sse(*_SAID, space=""),
    "no blank line at the end": sse(*_SAID, done=False)[:-1],
    "no [DONE]": sse(*_SAID, done=False),
    "no index": sse(*_SAID).replace(b'"index": 0', b'"index": null'),
    "other fields": sse("event: message\nid: 7\nretry: 5", *_SAID),
    "a byte order mark's worth of nothing": b"\n\n" + sse(*_SAID),
    "a byte order mark": b"\xef\xbb\xbf" + sse(*_SAID),
    "a byte order mark before data": b"\xef\xbb\xbf" + sse(*_SAID[2:]),
}


@each_server
@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES.keys())
@pytest.mark.parametrize("size", [1 << 16, 3, 1])
async def test_events_are_read_however_they_are_put_on_the_wire(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes, wire: bytes, size: int
) -> None:
    answer = bytes_of(wire).in_pieces(size, pause_seconds=0)
    got = await play(server, answer, dialect, streamed=True)

    assert got.error is None
    assert got.content == "Grüße, 世界 👋🏽"
    assert got.finish == "stop"
    assert got.tokens[:2] == (12, 4)


@each_server
async def test_a_line_of_a_mebibyte_passes(
    server: FakeUpstream, dialect: Dialect, shapes: Shapes
) -> None:
    text = "x" * (1 << 20)
    body = sse(chunk({"role": "assistant", "content": text}), chunk({}, "stop"))
    got = await play(server, bytes_of(body), dialect, streamed=True)

    assert got.error is None
    assert got.content == text


async def test_a_line_that_does_not_end_is_a_failure(server: FakeUpstream) -> None:
    body = b"data: " + b"x" * (EVENT_BYTES_MAX + 1)
    got = await play(server, bytes_of(body), GENERIC, streamed=True)
    assert isinstance(got.error, UpstreamFailed)


async def test_a_byte_order_mark_before_a_whole_reply_is_nothing(server: FakeUpstream) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(SERVERS["generic"].whole).encode()
    answer = bytes_of(body, media_type="application/json")
    got = await play(server, answer, GENERIC, streamed=False)
    assert got.content == "4"


NUMBERED: list[tuple[dict[str, Any], str | None]] = [
    ({"id": 7, "created": "1763800000"}, "7"),
    ({"id": 7.5, "created": 1763800000.25}, "7.5"),
    ({"id": None, "created": None}, None),
    ({"id": True, "system_fingerprint": 3, "service_tier": {}}, None),
    ({"id": ["x"]}, None),
]


@pytest.mark.parametrize("index", [0, 0.0, "0"])
@pytest.mark.parametrize(("names", "upstream_id"), NUMBERED)
async def test_a_reply_that_is_numbered_and_not_named_is_a_reply(
    server: FakeUpstream, names: dict[str, Any], upstream_id: str | None, index: object
) -> None:
    texts = [names | {"choices": [{"index": index, "delta": {"content": text}}]} for text in "abcd"]
    end: dict[str, Any] = names | {
        "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]
    }
    body = sse(*texts, end, usage_chunk(counts(12, 4)) | names)
    got = await play(server, bytes_of(body), GENERIC, streamed=True)
    assert (got.error, got.content, got.finish) == (None, "abcd", "stop")
    assert (got.tokens[:2], got.meter.upstream_id) == ((12, 4), upstream_id)

    choice = {"index": index, "message": {"content": "abcd"}, "finish_reason": "stop"}
    whole = names | {"choices": [choice], "usage": counts(12, 4)}
    got = await play(server, json_of(whole), GENERIC, streamed=False)
    assert (got.error, got.content, got.finish) == (None, "abcd", "stop")
    assert (got.tokens[:2], got.meter.upstream_id) == ((12, 4), upstream_id)
    (ours,) = got.chunks
    assert (type(ours["id"]), type(ours["created"])) == (str, int)
    assert ours["choices"][0]["index"] == 0


async def test_empty_lines_before_a_whole_reply_are_nothing(server: FakeUpstream) -> None:
    """DeepSeek sends them while a request waits."""
    body = b"\n\n\n" + json.dumps(SERVERS["deepseek"].whole).encode()
    answer = bytes_of(body, media_type="application/json")
    got = await play(server, answer, DIALECTS["deepseek"], streamed=False)
    assert got.content == "4"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("thoughts", "reasoning"), [([], None), (["2 + "], "2 + "), (["2 + ", "2"], "2 + 2")]
)
async def test_content_in_parts_is_put_together(
    server: FakeUpstream, streamed: bool, thoughts: list[str], reasoning: str | None
) -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "It is "}]
    parts += [{"type": "thinking", "thinking": [{"text": text}]} for text in thoughts]
    parts += [{"type": "output_text", "text": "4"}]
    if streamed:
        answer = bytes_of(sse(chunk({"content": parts}), chunk({}, "stop")))
    else:
        answer = json_of(whole({"content": parts}, "stop", None))
    got = await play(server, answer, GENERIC, streamed=streamed)
    assert (got.error, got.content, got.finish) == (None, "It is 4", "stop")
    choice = got.chunks[0]["choices"][0]
    said = choice["delta"] if streamed else choice["message"]
    assert said.get("reasoning_content") == reasoning


async def test_a_chunk_whose_choices_are_null_tells_its_usage(server: FakeUpstream) -> None:
    usage = usage_chunk(counts(12, 4)) | {"choices": None}
    body = sse(chunk({"content": "4"}), chunk({}, "stop"), usage)
    got = await play(server, bytes_of(body), GENERIC, streamed=True)
    assert got.error is None
    assert got.tokens == (12, 4, 0, 0, "upstream")


# --- calls that are oddly numbered ----------------------------------------------------------------


MADE = f"call_{REQUEST_ID[4:]}_0_"


def calls(*parts: dict[str, Any]) -> bytes:
    return sse(*(chunk({"tool_calls": [part]}) for part in parts), chunk({}, "stop"))


def named(name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, "type": "function", **more}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (  # Gemini: one after the other, no index
            calls(named("add", id="a"), named("sub", id="b")),
            [("a", "add", "{}"), ("b", "sub", "{}")],
        ),
        (  # Gemini: the arguments of one in several parts, still no index
            calls(named("add", '{"a"', id="a"), {"function": {"arguments": ":1}"}}),
            [("a", "add", '{"a":1}')],
        ),
        (  # older Gemini: no ids either
            calls(named("add", index=None, id=""), named("sub", index=None, id="")),
            [
                (f"{MADE}0", "add", "{}"),
                (f"{MADE}1", "sub", "{}"),
            ],
        ),
        (  # older Ollama: every call is the first
            calls(named("add", index=0, id="a"), named("sub", index=0, id="b")),
            [("a", "add", "{}"), ("b", "sub", "{}")],
        ),
        (  # numbered from 1
            calls(named("add", index=1, id="a"), {"index": 1, "function": {"arguments": "x"}}),
            [("a", "add", "{}x")],
        ),
        (  # id and name with every part
            calls(named("add", '{"a"', index=0, id="a"), named("add", ":1}", index=0, id="a")),
            [("a", "add", '{"a":1}')],
        ),
        (  # the name with every part, and no id
            calls(named("add", '{"a"', index=0), named("add", ":1}", index=0)),
            [(f"{MADE}0", "add", '{"a":1}')],
        ),
        (  # the name after the id, and then with every part
            calls(
                {"index": 0, "id": "a", "function": {"arguments": ""}},
                named("add", '{"a"', index=0),
                named("add", ":1}", index=0),
            ),
            [("a", "add", '{"a":1}')],
        ),
        (  # the name in pieces
            calls(*(named(name, "", index=0, id="a") for name in ("ra", "ta", "ta"))),
            [("a", "ratata", "")],
        ),
        (  # every call is the first, and the first of them goes on
            calls(
                named("add", "", index=0, id="a"),
                named("sub", "2", index=0, id="b"),
                {"index": 0, "id": "a", "function": {"arguments": "1"}},
                {"index": 0, "function": {"arguments": "+1"}},
            ),
            [("a", "add", "1+1"), ("b", "sub", "2")],
        ),
        (  # two at once, in turns
            calls(
                named("add", "", index=0, id="a"),
                named("sub", "", index=1, id="b"),
                {"index": 0, "function": {"arguments": "1"}},
                {"index": 1, "function": {"arguments": "2"}},
            ),
            [("a", "add", "1"), ("b", "sub", "2")],
        ),
    ],
)
async def test_calls_are_numbered_and_named_once(
    server: FakeUpstream, body: bytes, expected: list[tuple[str, str, str]]
) -> None:
    got = await play(server, bytes_of(body), GENERIC, streamed=True, tools=[ADD])
    assert got.error is None
    assert got.calls == expected
    assert got.finish == "tool_calls"
    assert got.types == ["function"] * len(expected)


@pytest.mark.parametrize("none", [[], None])
async def test_no_calls_are_not_told(server: FakeUpstream, none: object) -> None:
    body = sse(chunk({"content": "4", "tool_calls": none}), chunk({"tool_calls": none}, "stop"))
    got = await play(server, bytes_of(body), GENERIC, streamed=True, tools=[ADD])
    assert (got.error, got.content, got.finish) == (None, "4", "stop")
    assert b'"tool_calls"' not in got.written


@pytest.mark.parametrize(
    "odd",
    [
        b"[]",
        b'"text"',
        b'{"choices": 5}',
        b'{"choices": [5]}',
        b'{"choices": [{"delta": 5}]}',
        b'{"choices": [{"index": "first", "delta": {}}]}',
        b'{"choices": [{"index": 0.5, "delta": {}}]}',
        b'{"choices": [{"index": {}, "delta": {}}]}',
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"choices": [{"delta": {"tool_calls": 5}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": {}, "function": 5}]}}]}',
        b'{"choices": [{"delta": {"content": [{"type": "thinking", "thinking": 5}, 5]}, '
        b'"finish_reason": 5}]}',
        b"{" * 100_000,
        b'{"choices": ' * 100_000,
        b'{"id": "\xff"}',
    ],
)
async def test_what_cannot_be_mended_is_a_failure(server: FakeUpstream, odd: bytes) -> None:
    body = b"data: " + odd + b"\n\n"
    got = await play(server, bytes_of(body), GENERIC, streamed=True)
    assert isinstance(got.error, UpstreamFailed)
    got = await play(server, bytes_of(odd), GENERIC, streamed=False)
    assert isinstance(got.error, UpstreamFailed)
