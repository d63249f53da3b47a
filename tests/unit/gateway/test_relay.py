import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.gateway.parts import NOW, ReplyLog, an_admission
from tests.unit.gateway.relayed import (
    COMPLETION_ID,
    STOP,
    Relayed,
    Upstream,
    chunk,
    relayed,
    route_to,
    text,
)

from tollway.errors import Unavailable, UpstreamFailed
from tollway.gateway.relay import Silences, StreamRelay, relay
from tollway.gateway.settle import outcome_of
from tollway.gateway.types import Meter
from tollway.ledger.base import Attempt
from tollway.upstreams.normalise import finish_reason


def usage(input_tokens: object, output_tokens: object) -> bytes:
    told = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return chunk(choices=[], usage=told)


async def test_a_stream_is_the_contracts() -> None:
    got = await relayed(
        Upstream([chunk({"role": "assistant", "content": ""}), text("Hel"), text("lo"), STOP])
    )

    first, *_, last = got.chunks
    assert first == {
        "id": COMPLETION_ID,
        "object": "chat.completion.chunk",
        "created": int(NOW),
        "model": "m1",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "finish_reason": None,
                "logprobs": None,
            }
        ],
    }
    assert got.texts == ["", "Hel", "lo", None]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert all(c["id"] == COMPLETION_ID and c["model"] == "m1" for c in got.chunks)
    assert b"theirs" not in got.reply.written
    assert got.meter.status == "completed"
    assert got.meter.finished
    assert got.meter.output_pieces == 2
    assert got.meter.upstream_id == "chatcmpl-theirs"
    assert got.meter.attempts == (Attempt("gpu-1", 200),)


async def test_the_request_of_a_stream_that_has_begun_is_let_go() -> None:
    admission = an_admission(stream=True)
    kept: list[bool] = []

    async def look() -> None:
        assert upstream.asked is not None
        request, fields = admission.parsed.request, admission.parsed.fields
        kept.append(bool(request.messages or fields.pieces or upstream.asked.fields))

    for events in ([], [text("Hel")]):
        upstream = Upstream(events, then=look)
        reply = ReplyLog()
        with pytest.raises(UpstreamFailed):
            await relay(route_to(upstream, admission), admission, reply, Meter(), Silences())
    assert kept == [True, False]
    assert admission.parsed.wants_stream


async def test_the_role_comes_first_even_where_the_upstream_sends_none() -> None:
    got = await relayed(Upstream([text("Hi"), STOP]))
    assert got.chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "Hi"}
    assert "role" not in got.chunks[1]["choices"][0]["delta"]


async def test_each_choice_has_its_role_and_its_end() -> None:
    events = [
        text("a", index=0),
        text("x", index=1),
        text("b", index=0),
        text("y", index=1),
        chunk(finish="stop", index=1),
        text("c", index=0),
        chunk(finish="length", index=0),
    ]
    got = await relayed(Upstream(events), n=2)

    said = ["", ""]
    for c in got.chunks:
        choice = c["choices"][0]
        said[choice["index"]] += choice["delta"].get("content") or ""
    assert said == ["abc", "xy"]
    assert got.finishes == ["stop", "length"]
    roles = [c["choices"][0]["delta"].get("role") for c in got.chunks]
    assert roles == ["assistant", "assistant", *[None] * 5]
    assert got.meter.output_pieces == 5


async def test_two_choices_in_one_event_are_two_pieces() -> None:
    both = [{"index": i, "delta": {"content": "a"}, "finish_reason": None} for i in (0, 1)]
    ends = [{"index": i, "finish_reason": "stop"} for i in (0, 1)]
    got = await relayed(Upstream([chunk(choices=both), chunk(choices=ends)]), n=2)
    assert got.meter.output_pieces == 2


@pytest.mark.parametrize("index", [1, -1, 10**30])
async def test_a_choice_that_was_not_asked_for_fails_the_stream(index: int) -> None:
    got = await relayed(Upstream([text("a"), text("b", index=index), STOP]))
    assert isinstance(got.error, UpstreamFailed)
    assert got.texts == ["a"]


# --- usage ------------------------------------------------------------------------------------


async def test_usage_is_hidden_from_who_did_not_ask() -> None:
    got = await relayed(Upstream([text("a"), STOP, usage(9, 1)]))
    assert b"usage" not in got.reply.written
    assert got.reply.usage_event == b""
    assert got.meter.report is not None
    assert (got.meter.report.input_tokens, got.meter.report.output_tokens) == (9, 1)


async def test_usage_comes_last_with_its_credits_for_who_asked() -> None:
    told = {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    events = [text("a"), text("b", usage=None), STOP, chunk(choices=[], usage=told)]
    got = await relayed(Upstream(events), stream_options={"include_usage": True})

    assert [c["usage"] for c in got.chunks] == [None] * 3
    assert got.reply.usage_event is not None
    event = json.loads(got.reply.usage_event.removeprefix(b"data: "))
    assert event["choices"] == []
    assert event["id"] == COMPLETION_ID
    assert event["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
        "credits_consumed": 17,
        "credits_remaining": 83,
    }


async def test_running_usage_is_read_and_hidden() -> None:
    told = [{"prompt_tokens": 9, "completion_tokens": count} for count in (1, 2)]
    events = [text("a", usage=told[0]), text("b", usage=told[1]), STOP]
    got = await relayed(Upstream(events))
    assert b"prompt_tokens" not in got.reply.written
    assert got.meter.report is not None
    assert got.meter.report.output_tokens == 2
    assert got.meter.reported_pieces == got.meter.output_pieces == 2


async def test_a_usage_from_before_the_last_output_is_known_as_such() -> None:
    told = {"prompt_tokens": 9, "completion_tokens": 1}
    events = [text("a", usage=told), text("b"), text("c")]
    got = await relayed(Upstream(events, error=UpstreamFailed("died")))
    assert (got.meter.reported_pieces, got.meter.output_pieces) == (1, 3)


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "has_calls", "ours"),
    [
        ("stop", False, "stop"),
        ("stop", True, "tool_calls"),
        ("length", True, "length"),
        ("tool_calls", True, "tool_calls"),
        ("tool_calls", False, "stop"),
        ("function_call", True, "tool_calls"),
        ("content_filter", False, "content_filter"),
        ("content_filter: SAFETY", False, "content_filter"),
        ("eos", False, "stop"),
        ("end_turn", False, "stop"),
        ("max_tokens", False, "length"),
        ("tool_use", True, "tool_calls"),
        ("abort", False, None),
        ("error", True, None),
        ("anything", False, None),
    ],
)
def test_an_end_has_one_of_openais_names(theirs: str, has_calls: bool, ours: str | None) -> None:
    assert finish_reason(theirs, has_calls=has_calls) == ours


def call_delta(**fields: Any) -> bytes:
    return chunk({"tool_calls": [{"index": 0, **fields}]})


async def test_tool_calls_pass_and_end_as_tool_calls() -> None:
    events = [
        chunk({"role": "assistant", "content": None}),
        call_delta(id="call_1", type="function", function={"name": "add", "arguments": ""}),
        call_delta(id=None, type=None, function={"name": None, "arguments": '{"a"'}),
        call_delta(function={"arguments": ":1}"}),
        chunk(finish="stop"),
    ]
    got = await relayed(Upstream(events))

    calls = [c["choices"][0]["delta"]["tool_calls"][0] for c in got.chunks[1:4]]
    assert calls[0]["function"] == {"name": "add", "arguments": ""}
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a":1}'
    assert got.finishes == ["tool_calls"]
    assert got.meter.output_pieces == 3


@pytest.mark.parametrize(
    "last",
    [
        pytest.param([], id="no end"),
        pytest.param([chunk(finish="abort")], id="an error's end"),
        pytest.param([b'{"error": {"message": "sk-secret died"}}'], id="an error event"),
        pytest.param([b'{"choices": 5}'], id="no chunk"),
        pytest.param([b"<html>"], id="no JSON"),
        pytest.param([b"[" * 5000], id="too deep"),
        pytest.param([b'{"id": "\xff"}'], id="no UTF-8"),
    ],
)
async def test_a_stream_that_breaks_off_has_failed(last: list[bytes]) -> None:
    got = await relayed(Upstream([text("a"), text("b"), *last]))

    assert isinstance(got.error, UpstreamFailed)
    assert "sk-secret" not in got.error.message
    assert got.reply.begun
    assert got.texts == ["a", "b"]
    assert got.meter.status == "failed"
    assert not got.meter.finished
    assert got.meter.output_pieces == 2


async def test_a_blank_end_is_none() -> None:
    got = await relayed(Upstream([text("a"), chunk(finish="")]))
    assert isinstance(got.error, UpstreamFailed)
    assert got.finishes == []
    assert not got.meter.finished


async def test_what_follows_a_failure_is_not_passed_on() -> None:
    got = await relayed(Upstream([text("a"), b"<html>", text("b"), STOP], reads=4))
    assert got.texts == ["a"]


@pytest.mark.parametrize(
    "first", [b"<html>", b'{"error": {}}', chunk(finish="error"), b'{"error": "busy"}']
)
async def test_a_failure_with_the_first_event_can_still_be_a_status(first: bytes) -> None:
    got = await relayed(Upstream([first, STOP]))
    assert isinstance(got.error, UpstreamFailed)
    assert not got.reply.begun
    assert got.meter.output_pieces == 0


async def test_a_stream_without_a_choice_has_failed() -> None:
    got = await relayed(Upstream([usage(9, 1)]))
    assert isinstance(got.error, UpstreamFailed)
    assert not got.reply.begun


async def test_an_upstreams_refusal_passes_and_is_an_attempt() -> None:
    busy = Unavailable("busy", code="overloaded")
    busy.upstream_status = 429
    got = await relayed(Upstream(error=busy))
    assert got.error is busy
    assert got.meter.attempts == (Attempt("gpu-1", 429, "overloaded"),)
    assert not got.reply.begun


# --- the cap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [1, 100])
async def test_an_upstream_that_ignores_its_cap_is_cut_at_it(reads: int) -> None:
    upstream = Upstream([text(str(number)) for number in range(50)], reads=reads)
    got = await relayed(upstream, output_tokens_max=10)

    assert got.error is None
    assert got.texts == [*map(str, range(10)), None]
    assert got.finishes == ["length"]
    assert got.meter.output_pieces == 10
    assert got.meter.status == "completed"
    assert upstream.source.abandoned is not None


async def test_what_is_cut_off_is_not_paid_for_by_its_running_usage() -> None:
    events = [
        chunk({"content": "a"}, usage={"prompt_tokens": 9, "completion_tokens": sent})
        for sent in range(1, 9)
    ]
    got = await relayed(Upstream(events), output_tokens_max=5)
    assert got.meter.output_pieces == 5
    assert outcome_of(got.admission, got.meter, 1001.0).output_tokens == 5


async def test_the_cap_is_for_each_choice() -> None:
    events = [text(str(number), index=number % 2) for number in range(50)]
    got = await relayed(Upstream(events), output_tokens_max=5, n=2)
    assert got.meter.output_pieces == 10
    assert got.finishes == ["length", "length"]


async def test_exactly_the_cap_is_not_cut() -> None:
    upstream = Upstream([*(text("a") for _ in range(10)), chunk(finish="length")])
    got = await relayed(upstream, output_tokens_max=10)
    assert upstream.source.abandoned is None
    assert got.meter.output_pieces == 10


# --- the client -------------------------------------------------------------------------------


async def test_a_slow_client_holds_the_upstream() -> None:
    async def press() -> None:
        reply.listener(True)
        reply.listener(False)

    reply, meter = ReplyLog(), Meter()
    admission = an_admission(stream=True)
    upstream = Upstream([text("a"), STOP], then=press)
    await relay(route_to(upstream, admission), admission, reply, meter, Silences())
    assert upstream.source.paused == [True, False]

    reply.listener(True)  # the connection serves another request by now
    assert upstream.source.paused == [True, False]


async def test_silence_is_filled_with_comments() -> None:
    silences, replies = Silences(0.02), [ReplyLog() for _ in range(3)]

    def comments() -> list[int]:
        return [reply.written.count(b": keep-alive\n\n") for reply in replies]

    async def stream(reply: ReplyLog, seconds: float) -> None:
        admission = an_admission(stream=True)
        upstream = Upstream([text("a"), STOP], then=lambda: asyncio.sleep(seconds))
        await relay(route_to(upstream, admission), admission, reply, Meter(), silences)

    await asyncio.gather(*(map(stream, replies, (0.0, 0.07, 0.07))))
    at_the_end = comments()
    assert at_the_end[0] == 0
    assert all(1 <= number <= 4 for number in at_the_end[1:])

    await asyncio.sleep(0.05)
    assert comments() == at_the_end

    await stream(replies[0], 0.07)  # one that begins when nobody was left
    assert comments()[0] >= 1


async def test_what_one_read_brought_is_one_write() -> None:
    writes: list[bytes] = []

    class Counting(ReplyLog):
        def write(self, events: bytes) -> None:
            writes.append(events)
            super().write(events)

    admission = an_admission(stream=True)
    upstream = Upstream([text(str(i)) for i in range(8)] + [STOP], reads=3)
    await relay(route_to(upstream, admission), admission, Counting(), Meter(), Silences())
    assert len(writes) == 3


# --- what waits for the end of the turn -------------------------------------------------------


class Outboxed(ReplyLog):
    """A reply whose events wait, until they are written or its client has left."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[bytes, Callable[[], None]]] = []

    def write(self, events: bytes) -> None:
        self.flush()
        super().write(events)

    def write_soon(self, events: bytes, sent: Callable[[], None]) -> None:
        self.waiting.append((events, sent))

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for events, sent in waiting:
            if not self.gone:
                super().write(events)
                sent()


def frame(event: bytes) -> bytes:
    return b"data: " + event + b"\n\n"


def begun_stream(**request: Any) -> tuple[StreamRelay, Outboxed, Meter]:
    admission, meter, reply = an_admission(stream=True, **request), Meter(), Outboxed()
    route = route_to(Upstream(), admission)
    route.enter()
    stream = StreamRelay(admission, reply, meter, route, Silences())
    stream.event(chunk({"role": "assistant", "content": ""}))
    assert not stream.passed_on(frame(text("a")))
    stream.event(text("a"))
    stream.flush()
    return stream, reply, meter


async def test_an_event_counts_when_it_is_written() -> None:
    stream, reply, meter = begun_stream()
    assert stream.passed_on(frame(text("b")) + frame(text("c")))
    assert (meter.output_pieces, len(reply.waiting)) == (1, 1)
    reply.flush()
    assert meter.output_pieces == 3
    stream.close()
    assert meter.output_pieces == 3


async def test_what_waits_is_written_and_counted_before_what_comes_after_it() -> None:
    stream, reply, meter = begun_stream()
    assert stream.passed_on(frame(text("b")))
    assert not stream.passed_on(frame(text("c")))  # one at a time
    stream.event(text("c"))
    stream.flush()
    assert stream.passed_on(frame(text("d")))
    stream.event(usage(5, 4))  # it is of all that came before it
    assert (meter.output_pieces, meter.reported_pieces) == (4, 4)
    assert stream.passed_on(frame(text("e")))
    stream.close()
    assert meter.output_pieces == 5
    assert Relayed(an_admission(), meter, reply).texts == ["", "a", "b", "c", "d", "e"]


async def test_what_waits_while_its_client_leaves_does_not_count() -> None:
    stream, reply, meter = begun_stream()
    assert stream.passed_on(frame(text("b")))
    reply.gone = True
    reply.flush()
    stream.close()
    assert meter.output_pieces == 1
    assert Relayed(an_admission(), meter, reply).texts == ["", "a"]


async def test_what_waits_counts_towards_the_cap() -> None:
    stream, reply, meter = begun_stream(output_tokens_max=3)
    assert stream.passed_on(frame(text("b")))
    stream.event(text("c"))
    stream.flush()
    assert not stream.passed_on(frame(text("d")))
    stream.event(text("d"))
    assert (meter.output_pieces, stream.cut_off) == (3, True)
    assert Relayed(an_admission(), meter, reply).finishes == ["length"]
