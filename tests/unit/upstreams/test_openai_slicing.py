"""However a server's reply is sliced on its way, a client gets the same bytes and pays the same.

Slices are reads of a real socket: the server writes one, and lets the client read it before the
next. Chunks of the HTTP framing are drawn apart from events, and events apart from characters.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from tests.support.builders import a_tool
from tests.unit.gateway.parts import ReplyLog, an_admission
from tests.unit.upstreams.playback import SETTLEMENT, OneTry, sse
from tests.unit.upstreams.servers import SERVERS
from tests.unit.upstreams.servers.shapes import chunk, counts, usage_chunk

from tollway.errors import RequestError
from tollway.gateway import relay as relay_module
from tollway.gateway.relay import Silences, relay
from tollway.gateway.settle import outcome_of
from tollway.gateway.template import Template
from tollway.gateway.types import Meter
from tollway.upstreams.base import Ask
from tollway.upstreams.dialects import DIALECTS, Dialect
from tollway.upstreams.openai import OpenAICompatible

Framing = Literal["chunked", "content-length", "until-close"]
FRAMINGS: tuple[Framing, ...] = ("chunked", "content-length", "until-close")


class Told(Struct, frozen=True):
    """All that a client sees, and what it pays."""

    written: bytes
    body: bytes | None
    usage_event: bytes | None
    error: str | None
    status: str
    cost: int
    tokens: tuple[int, int, int, int, str]
    output_pieces: int
    reasoning_pieces: int
    upstream_id: str | None


class SlicingServer:
    """Answers each request with the next reply, in the slices that it was given."""

    def __init__(self) -> None:
        self.replies: list[list[bytes]] = []
        self.port = 0
        self._serving: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["SlicingServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._serving)  # the client has closed its connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.append(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        slices = self.replies.pop(0)
        for piece in slices:
            writer.write(piece)
            await writer.drain()
            for _ in range(3):  # the client's turn to read it
                await asyncio.sleep(0)
        return b"connection: close" not in b"".join(slices)


def reply_of(body: bytes, media_type: str, framing: Framing, chunks: Sequence[int]) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\n"
    if framing == "content-length":
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    if framing == "until-close":
        return f"{head}connection: close\r\n\r\n".encode() + body
    # A size may have zeros before it: a read that ends between them has half of it.
    size = b"%06x" if len(chunks) % 2 else b"%x"
    parts = [(size + b"\r\n%b\r\n") % (len(part), part) for part in cut(body, chunks) if part]
    return f"{head}transfer-encoding: chunked\r\n\r\n".encode() + b"".join(parts) + b"0\r\n\r\n"


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


async def told(upstream: OpenAICompatible, *, streamed: bool, **request: Any) -> Told:
    admission = an_admission(stream=streamed, tools=[a_tool("add")], **request)
    route = OneTry(upstream, Ask("req_1", "their/model", admission.parsed.fields, 500))
    meter, reply, error = Meter(), ReplyLog(), None
    try:
        answer = await relay(route, admission, reply, meter, Silences())
    except RequestError as raised:
        error = f"{type(raised).__name__} {raised.code}: {raised.message}"
        outcome = outcome_of(admission, meter, 1001.0)
    else:
        outcome = outcome_of(admission, meter, 1001.0)
        answer.finish(reply, outcome, SETTLEMENT)
    return Told(
        reply.written,
        reply.body,
        reply.usage_event,
        error,
        outcome.status,
        outcome.cost,
        (
            outcome.input_tokens,
            outcome.output_tokens,
            outcome.cached_tokens,
            outcome.reasoning_tokens,
            outcome.source,
        ),
        meter.output_pieces,
        meter.reasoning_pieces,
        meter.upstream_id,
    )


async def both_told(
    dialect: Dialect, raw: bytes, slices: Sequence[int], *, streamed: bool
) -> tuple[Told, list[Told]]:
    """As it is told in one read; then again twice, on the same connection where there is one, with
    the slices between: what a connection remembers of the last reply must change nothing."""
    async with SlicingServer().running() as server:
        upstream = OpenAICompatible("gpu-1", f"http://127.0.0.1:{server.port}/v1", dialect=dialect)
        server.replies = [[raw], cut(raw, slices), [raw], cut(raw, slices)]
        try:
            first = await told(upstream, streamed=streamed)
            return first, [await told(upstream, streamed=streamed) for _ in range(3)]
        finally:
            await upstream.stop()


texts = st.lists(
    st.sampled_from(
        ["a", "Hello", " wor", "ü", "世界", "👋🏽", '"', "\\", "\n", "\r\n", "data: x"]
    ),
    max_size=3,
).map("".join)


@st.composite
def event_streams(draw: st.DrawFn) -> bytes:
    """Of a server of its own kind: events, comments, ends of lines and of the stream as drawn."""
    events: list[object] = [chunk({"role": "assistant", "content": ""})]
    for kind in draw(
        st.lists(st.sampled_from(["text", "reasoning", "comment", "call"]), max_size=8)
    ):
        text = draw(texts)
        if kind == "comment":
            events.append(": " + text.replace("\n", "").replace("\r", ""))
        elif kind == "text":
            events.append(chunk({"content": text}))
        elif kind == "reasoning":
            events.append(chunk({"reasoning": text}))
        else:
            function = {"name": "add", "arguments": text}
            events.append(chunk({"tool_calls": [{"index": 0, "id": "c", "function": function}]}))
    if draw(st.booleans()):
        events.append(chunk({}, "stop"))
    if draw(st.booleans()):
        events.append(usage_chunk(counts(12, draw(st.integers(0, 40)))))
    end = draw(st.sampled_from(["\n\n", "\r\n\r\n", "\r\r"]))
    space = draw(st.sampled_from([" ", ""]))
    if draw(st.booleans()):
        events = [_in_lines(event, end[: len(end) // 2], space) for event in events]
    return sse(*events, done=draw(st.booleans()), end=end, space=space)


def _in_lines(event: object, end: str, space: str) -> object:
    """An event may be in several lines, and JSON be broken between any two of its tokens."""
    if isinstance(event, str):
        return event
    lines = json.dumps(event, ensure_ascii=False, indent=0).split("\n")
    return end.join(f"data:{space}{line}" for line in lines)


places = st.lists(st.integers(0, 1 << 14), max_size=12)
sliced = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=120)


@sliced
@given(event_streams(), st.sampled_from(FRAMINGS), places, places)
async def test_a_stream_is_the_same_however_it_is_sliced(
    body: bytes, framing: Framing, chunks: list[int], slices: list[int]
) -> None:
    raw = reply_of(body, "text/event-stream", framing, chunks)
    whole, again = await both_told(DIALECTS["generic"], raw, slices, streamed=True)
    assert again == [whole] * 3


@sliced
@given(
    st.sampled_from(sorted(SERVERS)),
    st.sampled_from(["answer", "call", "broken"]),
    st.sampled_from(FRAMINGS),
    places,
    places,
)
async def test_every_servers_stream_is_the_same_however_it_is_sliced(
    name: str, which: str, framing: Framing, chunks: list[int], slices: list[int]
) -> None:
    raw = reply_of(getattr(SERVERS[name], which), "text/event-stream", framing, chunks)
    whole, again = await both_told(DIALECTS[name], raw, slices, streamed=True)
    assert again == [whole] * 3


@sliced
@given(
    st.sampled_from(sorted(SERVERS)),
    st.sampled_from(["whole", "whole_call"]),
    texts,
    st.sampled_from(FRAMINGS),
    places,
    places,
)
async def test_a_whole_reply_is_the_same_however_it_is_sliced(
    name: str, which: str, text: str, framing: Framing, chunks: list[int], slices: list[int]
) -> None:
    document = json.loads(json.dumps(getattr(SERVERS[name], which)))
    document["system_fingerprint"] = text
    body = json.dumps(document, ensure_ascii=False).encode()
    raw = reply_of(body, "application/json", framing, chunks)
    whole, again = await both_told(DIALECTS[name], raw, slices, streamed=False)
    assert again == [whole] * 3


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_stream_is_the_same_byte_by_byte(name: str, framing: Framing) -> None:
    raw = reply_of(SERVERS[name].answer, "text/event-stream", framing, [100, 101, 250])
    whole, again = await both_told(DIALECTS[name], raw, range(len(raw)), streamed=True)
    assert whole.error is None
    assert again == [whole] * 3


@pytest.mark.parametrize("offset", range(-4, 9))
async def test_a_read_may_end_anywhere_around_a_chunk_of_the_framing(offset: int) -> None:
    chunks = range(0, 4000, 97)
    for zeros in (list(chunks), [0, *chunks]):  # sizes without zeros before them, and with
        raw = reply_of(SERVERS["vllm"].answer, "text/event-stream", "chunked", zeros)
        heads = [match.start() + 2 for match in re.finditer(rb"\r\n[0-9a-f]+\r\n", raw)]
        slices = [head + offset * (number % 2) for number, head in enumerate(heads)]
        whole, again = await both_told(DIALECTS["vllm"], raw, slices, streamed=True)
        assert whole.error is None
        assert again == [whole] * 3


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_read_or_a_chunk_may_end_around_each_line_of_an_event(
    framing: Framing, end: str, offset: int
) -> None:
    said = [chunk({"role": "assistant", "content": ""}), chunk({"content": "4"}), chunk({}, "stop")]
    body = sse(*(_in_lines(event, end, " ") for event in said), end=end * 2)
    # Not between the last line of an event and its blank one: together they look like an event.
    ends = [match.end() + offset for match in re.finditer(f"{end}(?!{end})".encode(), body)]
    raw = reply_of(body, "text/event-stream", framing, ends)
    start = raw.index(b"\r\n\r\n") + 4
    slices = [start + place for place in ends] if framing != "chunked" else []
    at_once = reply_of(body, "text/event-stream", "chunked", [])

    whole, again = await both_told(DIALECTS["generic"], raw, slices, streamed=True)
    plain, _ = await both_told(DIALECTS["generic"], at_once, [], streamed=True)

    assert whole.error is None
    assert again == [whole] * 3 == [plain] * 3


# --- the short way of the relay -------------------------------------------------------------------

_NO_FILTER = {"hate": {"filtered": False, "severity": "safe"}}
TEXT_EVENTS: dict[str, Callable[[str], object]] = {
    "plain": lambda text: chunk({"content": text}),
    "vllm": lambda text: chunk({"content": text}, of={"logprobs": None, "token_ids": None}),
    "vllm running usage": lambda text: chunk({"content": text}, usage=counts(12, len(text))),
    "sglang": lambda text: chunk(
        {"role": None, "content": text, "reasoning_content": None, "tool_calls": None}
    ),
    "ollama": lambda text: chunk({"role": "assistant", "content": text}),
    "ollama thinks": lambda text: chunk({"role": "assistant", "content": "", "reasoning": text}),
    "openai": lambda text: chunk(
        {"content": text}, of={"logprobs": None}, service_tier="default", obfuscation=text
    ),
    "azure": lambda text: chunk({"content": text}, of={"content_filter_results": _NO_FILTER}),
    "openrouter": lambda text: chunk(
        {"role": "assistant", "content": text, "reasoning": None, "reasoning_details": []},
        of={"native_finish_reason": None},
        provider="x",
    ),
    "deepseek": lambda text: chunk({"content": text, "reasoning_content": None}),
    "deepseek thinks": lambda text: chunk({"content": None, "reasoning_content": text}),
    "mistral thinks": lambda text: chunk(
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}
    ),
    "groq": lambda text: chunk({"content": text}, of={"logprobs": None}, x_groq=None),
    "together": lambda text: chunk(
        {"token_id": len(text), "role": "assistant", "content": text, "tool_calls": None},
        of={"text": text},
        usage=None,
    ),
    "gemini": lambda text: chunk({"role": "assistant", "content": text}, usage=counts(12, 3)),
    "text and a call": lambda text: chunk(
        {
            "content": text,
            "tool_calls": [{"index": 0, "id": "c", "function": {"name": "add", "arguments": "x"}}],
        }
    ),
    "call": lambda text: chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}),
}


plain_texts = st.sampled_from(["a", "Hello", " wor", "m1", "x", "12", "世界", "ü", '{"', "\n"])


def call_begins(call_id: str | None, index: int, name: str | None) -> object:
    said = {} if call_id is None else {"id": call_id, "type": "function"}
    part = {"index": index, "function": {"name": name, "arguments": ""}} | said
    return chunk({"tool_calls": [part]})


def call_goes_on(call_id: str | None, index: int, arguments: str) -> object:
    said = {} if call_id is None else {"id": call_id}
    return chunk(
        {"tool_calls": [{"index": index, "function": {"arguments": arguments}, **said}]},
    )


calls = st.lists(
    st.builds(
        call_begins,
        st.sampled_from(["c1", "c2", None]),
        st.sampled_from([0, 0, 1]),
        st.sampled_from(["add", "look", None]),
    )
    | st.builds(
        call_goes_on,
        st.sampled_from([None, None, None, "c1", "c2"]),
        st.sampled_from([0, 0, 0, 1]),
        plain_texts,
    )
    | st.builds(call_goes_on, st.none(), st.just(0), plain_texts)
    | plain_texts.map(lambda text: chunk({"content": text}))
    | plain_texts.map(lambda text: chunk({"content": None, "reasoning_content": text})),
    max_size=14,
)


@settings(sliced, max_examples=400)
@given(calls, st.integers(1, 4), st.integers(1, 3))
async def test_calls_that_begin_and_go_on_are_the_same_either_way(
    events: list[object], chunks_a_read: int, events_a_chunk: int
) -> None:
    """Calls may begin anew under the same index, with an id or without."""
    body = sse(*events, chunk({}, "stop"))
    in_chunks, reads = whole_events_a_chunk(body, events_a_chunk)

    _, shortest = await both_told(
        DIALECTS["generic"], in_chunks, [reads[0], *reads[1::chunks_a_read]], streamed=True
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Template, "learn", lambda *_: None)  # pyright: ignore
        plain, _ = await both_told(DIALECTS["generic"], in_chunks, [], streamed=True)

    assert shortest == [plain] * 3


@pytest.mark.parametrize("kind", TEXT_EVENTS)
@settings(sliced, max_examples=20)
@given(
    st.lists(plain_texts | plain_texts | texts, min_size=4, max_size=12),
    st.sampled_from([None, *sorted(TEXT_EVENTS)]),
    st.integers(0, 12),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 3),
)
async def test_the_short_way_of_the_relay_gives_what_the_plain_way_gives(
    kind: str,
    said: list[str],
    before: str | None,
    how_many: int,
    finishes: bool,
    chunks_a_read: int,
    events_a_chunk: int,
) -> None:
    """A server keeps to a shape, or to two, as one that thinks first."""
    first = TEXT_EVENTS[kind if before is None else before]
    events = [first(text) for text in said[:how_many]]
    events += [TEXT_EVENTS[kind](text) for text in said[how_many:]]
    ends = [chunk({}, "stop")] if finishes else []
    raw = reply_of(sse(*events, *ends), "text/event-stream", "chunked", [])
    in_chunks, reads = whole_events_a_chunk(sse(*events, *ends), events_a_chunk)

    short, _ = await both_told(DIALECTS["generic"], raw, [], streamed=True)
    _, shortest = await both_told(
        DIALECTS["generic"], in_chunks, [reads[0], *reads[1::chunks_a_read]], streamed=True
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Template, "learn", lambda *_: None)  # pyright: ignore
        plain, _ = await both_told(DIALECTS["generic"], raw, [], streamed=True)

    assert short == plain
    assert shortest == [plain] * 3


def whole_events_a_chunk(body: bytes, events: int = 1) -> tuple[bytes, list[int]]:
    """A reply with so many events in a chunk, and where its head and each chunk of it ends."""
    ends = [match.end() for match in re.finditer(b"\n\n", body)]
    parts = [body[a:b] for a, b in itertools.pairwise([0, *ends[:-1:events], ends[-1]])]
    pieces = [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"]
    pieces[0] += b"transfer-encoding: chunked\r\n\r\n"
    pieces += [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"".join(pieces) + b"0\r\n\r\n", list(itertools.accumulate(map(len, pieces)))


@pytest.mark.parametrize("events_a_read", [1, 3])
async def test_events_that_make_up_a_read_are_not_even_looked_for(
    monkeypatch: pytest.MonkeyPatch, events_a_read: int
) -> None:
    """The shortest way is taken, and left when the cap of the hold is reached."""
    taken: list[bool] = []
    passed_on = relay_module.StreamRelay.passed_on

    def counting(self: relay_module.StreamRelay, frames: bytes) -> bool:
        taken.append(passed_on(self, frames))
        return taken[-1]

    monkeypatch.setattr(relay_module.StreamRelay, "passed_on", counting)
    events = [chunk({"content": "Hi"}) for _ in range(503)]  # the cap is 500
    raw, ends = whole_events_a_chunk(sse(*events))
    reads = [ends[0], *ends[1::events_a_read]]
    whole, again = await both_told(DIALECTS["generic"], raw, reads, streamed=True)
    assert (whole.output_pieces, whole.error, taken[:3]) == (500, None, [False, True, True])
    assert again == [whole] * 3
    assert taken.count(True) >= 499 // events_a_read


@pytest.mark.parametrize("begun", [b'data: {"x": 1', b'data: {"x": 1\n', b": a comment"])
async def test_what_looks_like_an_event_alone_may_be_the_end_of_one(begun: bytes) -> None:
    said = [chunk({"content": "Hi"}), chunk({"content": "you"})]
    events = [sse(event, done=False) for event in said]
    pieces = [events[0], events[0], begun, events[1], sse(chunk({}, "stop"))]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    reads = [head + b"transfer-encoding: chunked\r\n\r\n"]
    reads += [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    raw = b"".join(reads) + b"0\r\n\r\n"
    ends = list(itertools.accumulate(map(len, reads)))
    whole, again = await both_told(DIALECTS["generic"], raw, ends, streamed=True)
    assert again == [whole] * 3


async def test_an_event_of_several_lines_is_no_template_for_one_that_has_lost_a_field() -> None:
    first, second = sse(chunk({"content": "Hi"}), done=False).split(b' "choices"', 1)
    good = first + b'\ndata: "choices"' + second
    assert good.replace(b"\ndata: ", b" ") == sse(chunk({"content": "Hi"}), done=False)
    bad = first + b'\n"choices"' + second
    raw, ends = whole_events_a_chunk(good + good + bad)
    whole, again = await both_told(DIALECTS["generic"], raw, ends, streamed=True)
    assert (whole.output_pieces, again) == (2, [whole] * 3)
    assert whole.error is not None
