import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from typing import Any

import pytest
from tests.support.answers import Answer, comment, error, openai_error, raw, reply, reset, stream
from tests.support.fake_upstream import FakeUpstream

from tollway.deadlines import Deadlines
from tollway.errors import (
    ConfigurationError,
    InvalidRequest,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from tollway.upstreams import openai as openai_module
from tollway.upstreams.base import Ask, Source
from tollway.upstreams.openai import OpenAICompatible
from tollway.wire import events as events_module

KEY = "sk-upstream-secret-1234"
FIELDS: dict[str, object] = {
    "messages": [{"role": "user", "content": "Hello there"}],
    "temperature": 0.5,
}


class Sink:
    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.sources: list[Source] = []
        self.flushed = 0

    def opened(self, source: Source) -> None:
        self.sources.append(source)

    def event(self, payload: bytes) -> None:
        self.events.append(payload)

    def passed_on(self, frames: bytes) -> bool:
        return False

    def flush(self) -> None:
        self.flushed = len(self.events)


@pytest.fixture
def server() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.fixture
async def upstream(server: FakeUpstream) -> AsyncIterator[OpenAICompatible]:
    upstream = OpenAICompatible("gpu-1", server.base_url, KEY)
    await upstream.start()
    yield upstream
    await upstream.stop()


def an_ask(**changes: Any) -> Ask:
    values: dict[str, Any] = {
        "request_id": "req_1",
        "model": "their/model",
        "fields": FIELDS,
        "output_tokens_max": 77,
    }
    return Ask(**(values | changes))


async def refusal(upstream: OpenAICompatible, *, streamed: bool = False) -> RequestError:
    asked = upstream.stream(an_ask(), Sink()) if streamed else upstream.complete(an_ask())
    with pytest.raises(RequestError) as refused:
        await asked
    return refused.value


# --- what is asked ----------------------------------------------------------------------------


async def test_a_whole_reply_is_asked_for(server: FakeUpstream, upstream: OpenAICompatible) -> None:
    server.answer(reply("Hi there", input_tokens=5, output_tokens=2))
    completion = await upstream.complete(an_ask())

    assert completion.choices[0].message.content == "Hi there"
    assert completion.usage["completion_tokens"] == 2
    asked = server.last
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.body == {**FIELDS, "model": "their/model", "max_tokens": 77, "stream": False}
    assert asked.header("authorization") == f"Bearer {KEY}"
    assert asked.header("x-request-id") == "req_1"
    assert asked.header("accept-encoding") == "identity"
    assert asked.header("host") == f"127.0.0.1:{server.port}"


async def test_a_stream_is_asked_for_with_its_usage(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(stream(["Hi", " there"], input_tokens=5))
    await upstream.stream(an_ask(), Sink())

    assert server.last.body == {
        **FIELDS,
        "model": "their/model",
        "max_tokens": 77,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_what_the_gateway_decides_cannot_be_overruled(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    smuggled = {**FIELDS, "model": "dear", "max_tokens": 10**6, "stream": True}
    await upstream.complete(an_ask(fields=smuggled))
    assert server.last.body["model"] == "their/model"
    assert server.last.body["max_tokens"] == 77
    assert server.last.body["stream"] is False


async def test_an_upstream_without_a_key_is_sent_none(server: FakeUpstream) -> None:
    upstream = OpenAICompatible("gpu-1", server.base_url)
    await upstream.complete(an_ask())
    assert server.last.header("authorization") is None
    await upstream.stop()


async def test_a_path_with_percent_signs_stays(server: FakeUpstream) -> None:
    upstream = OpenAICompatible("gpu-1", f"http://127.0.0.1:{server.port}/a%2Fb%b5%d/v1/", KEY)
    await upstream.complete(an_ask())
    assert server.last.path == "/a%2Fb%b5%d/v1/chat/completions"
    await upstream.stop()


async def test_a_key_with_percent_signs_stays(server: FakeUpstream) -> None:
    upstream = OpenAICompatible("gpu-1", server.base_url, "sk-100%d%b")
    await upstream.complete(an_ask())
    assert server.last.header("authorization") == "Bearer sk-100%d%b"
    await upstream.stop()


async def test_each_model_is_asked_for_by_its_own_name(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    for model in ("one", "two", "one"):
        await upstream.complete(an_ask(model=model))
    assert [exchange.body["model"] for exchange in server.exchanges] == ["one", "two", "one"]


@pytest.mark.parametrize("key", ["a\r\nx: y", "schlüssel", "a\0"])
def test_a_key_that_no_header_may_have_is_refused_without_an_echo(key: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OpenAICompatible("gpu-1", "http://gpu-1/v1", key)
    assert key not in refused.value.message


def test_the_key_is_in_no_repr() -> None:
    upstream = OpenAICompatible("gpu-1", "http://gpu-1/v1", KEY)
    assert KEY not in repr(upstream)


async def test_a_servers_own_routes_can_be_asked(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(error(200, {"tokens": 3}), path="/tokenize")
    assert await upstream.post_json("/tokenize", b"{}") == (200, b'{"tokens":3}')


# --- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_the_events_of_a_stream_reach_the_sink(
    server: FakeUpstream, upstream: OpenAICompatible, size: int
) -> None:
    sink = Sink()
    server.answer(stream(["Hel", comment("x"), "lo"]).in_pieces(size, pause_seconds=0))
    await upstream.stream(an_ask(), sink)

    assert len(sink.sources) == 1
    assert sink.flushed == len(sink.events)
    assert any(b"Hel" in event for event in sink.events)
    assert not any(b"[DONE]" in event or event.startswith(b":") for event in sink.events)


async def test_a_stream_without_a_last_blank_line_is_whole(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    server.answer(raw(head + b'data: {"a":1}\n\ndata: {"b":2}\n'))
    sink = Sink()
    await upstream.stream(an_ask(), sink)
    assert sink.events == [b'{"a":1}', b'{"b":2}']
    assert sink.flushed == 2


async def test_a_stream_that_breaks_off_has_failed(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    sink = Sink()
    server.answer(stream(["a", "b", reset()]))
    with pytest.raises(UpstreamFailed):
        await upstream.stream(an_ask(), sink)
    assert sink.flushed == len(sink.events)


async def test_a_stream_that_is_none_has_failed(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(reply("Hello"))
    refused = await refusal(upstream, streamed=True)
    assert isinstance(refused, UpstreamFailed)
    assert refused.upstream_status == 200


@pytest.mark.parametrize("length", [b"", b"content-length: 5006\r\n"], ids=["to its end", "known"])
async def test_an_event_that_does_not_end_ends_the_stream(
    server: FakeUpstream,
    upstream: OpenAICompatible,
    monkeypatch: pytest.MonkeyPatch,
    length: bytes,
) -> None:
    monkeypatch.setattr(events_module, "EVENT_BYTES_MAX", 1000)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + length + b"\r\n"
    server.answer(raw(head + b"data: " + b"x" * 5000))
    refused = await refusal(upstream, streamed=True)
    assert isinstance(refused, UpstreamFailed)
    assert "does not end" in refused.message


async def test_cancelling_a_stream_tells_its_server(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(stream(["a"] * 10_000).in_pieces(200, pause_seconds=0.002))
    sink = Sink()
    task = asyncio.create_task(upstream.stream(an_ask(), sink))
    await server.until(lambda: sink.flushed > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda: server.last.peer_left_at is not None, 1.0)


# --- whole replies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        error(200, {"error": {"message": KEY}}),
        error(200, "<html>"),
        error(200, {"choices": KEY}),
        error(200, {"choices": [{"index": 0, "message": {"role": KEY, "content": "x"}}]}),
        reply("Hello").cut_at(200),
    ],
    ids=["an error", "html", "choices", "a role", "cut"],
)
async def test_a_reply_that_is_none_has_failed_and_is_not_told(
    server: FakeUpstream,
    upstream: OpenAICompatible,
    answer: Answer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.answer(answer)
    refused = await refusal(upstream)
    assert isinstance(refused, UpstreamFailed)
    assert KEY not in refused.message + caplog.text


async def test_a_reply_without_an_id_is_one(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(reply("Hello", extra={"id": None, "object": "text_completion", "created": 1.5}))
    assert (await upstream.complete(an_ask())).choices[0].message.content == "Hello"


async def test_a_reply_of_megabytes_is_read_whole(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    said = "x" * 5_000_000
    server.answer(reply(said))
    assert (await upstream.complete(an_ask())).choices[0].message.content == said


async def test_a_reply_that_is_too_large_is_left(
    server: FakeUpstream, upstream: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_module, "REPLY_BYTES_MAX", 1_000_000)
    server.answer(reply("x" * 2_000_000))  # no single read is as large as the bound
    refused = await refusal(upstream)
    assert isinstance(refused, UpstreamFailed)
    assert "larger than 1000000" in refused.message


async def test_an_answer_of_a_servers_own_route_that_is_too_large_is_left(
    server: FakeUpstream, upstream: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_module, "REPLY_BYTES_MAX", 1000)
    server.answer(error(200, "x" * 50_000), path="/tokenize")
    with pytest.raises(UpstreamFailed, match="larger than 1000"):
        await upstream.post_json("/tokenize", b"{}")


# --- errors -----------------------------------------------------------------------------------


async def test_what_an_upstream_refuses_is_logged_once_a_minute(
    server: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer(refused_with(429, code=KEY), times=3)
    upstream = OpenAICompatible("often-refuses", server.base_url)

    for _ in range(3):
        await refusal(upstream)
    await upstream.stop()

    told = [record.getMessage() for record in caplog.records]
    assert told == ["upstream often-refuses answered 429"]


def refused_with(status: int, **facts: object) -> Answer:
    return error(status, {"error": {"message": f"no: {KEY}", "type": "x", **facts}})


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (refused_with(400), InvalidRequest, "invalid_value"),
        (refused_with(422), InvalidRequest, "invalid_value"),
        (refused_with(413), InvalidRequest, "invalid_value"),
        (refused_with(401), Unavailable, "unavailable"),
        (refused_with(402), Unavailable, "unavailable"),
        (refused_with(403), Unavailable, "unavailable"),
        (refused_with(404), Unavailable, "unavailable"),
        (refused_with(408), UpstreamTimeout, "upstream_timeout"),
        (refused_with(504), UpstreamTimeout, "upstream_timeout"),
        (refused_with(429), Unavailable, "overloaded"),
        (refused_with(503), Unavailable, "overloaded"),
        (refused_with(529), Unavailable, "overloaded"),
        (refused_with(500), UpstreamFailed, "upstream_error"),
        (refused_with(502), UpstreamFailed, "upstream_error"),
        (refused_with(302), UpstreamFailed, "upstream_error"),
        (refused_with(418), UpstreamFailed, "upstream_error"),
        (error(400, f"<h1>{KEY}</h1>"), InvalidRequest, "invalid_value"),
        (error(400, [KEY]), InvalidRequest, "invalid_value"),
        (error(400, {"error": KEY}), InvalidRequest, "invalid_value"),
        (error(500, "x" * 200_000), UpstreamFailed, "upstream_error"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_upstreams_error_is_told_in_our_words(
    server: FakeUpstream,
    upstream: OpenAICompatible,
    caplog: pytest.LogCaptureFixture,
    answer: Answer,
    kind: type[RequestError],
    code: str,
    streamed: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer(answer)
    refused = await refusal(upstream, streamed=streamed)

    assert type(refused) is kind
    assert refused.code == code
    assert refused.upstream_status == answer.status
    assert KEY not in refused.message + str(refused.param) + caplog.text


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_is_known_in_a_200_behind_what_else_it_says(
    server: FakeUpstream, upstream: OpenAICompatible, streamed: bool
) -> None:
    server.answer(error(200, {"id": "gen-1", "error": {"code": 429, "message": "Slow down."}}))
    refused = await refusal(upstream, streamed=streamed)
    assert (refused.code, refused.upstream_status) == ("overloaded", 429)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_redirect_has_failed_and_is_not_followed(
    server: FakeUpstream, upstream: OpenAICompatible, status: int, streamed: bool
) -> None:
    with FakeUpstream() as elsewhere:
        location = f"{elsewhere.base_url}/chat/completions"
        server.answer(error(status, "", ("Location", location)))
        refused = await refusal(upstream, streamed=streamed)

        assert isinstance(refused, UpstreamFailed)
        assert refused.upstream_status == status
        assert len(server.exchanges) == 1
        assert elsewhere.connections_opened == 0


@pytest.mark.parametrize(
    "facts",
    [
        {"code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 4096 tokens"},
        {"message": "the request exceeds the available context size"},
        {"message": "prompt is too long: 5000 tokens > 4096"},
        {"type": "exceed_context_size_error"},
        {"message": "Too many tokens: 5000"},
        {"message": "Input is too long for this model"},
    ],
)
async def test_a_context_that_is_too_short_is_known(
    server: FakeUpstream, upstream: OpenAICompatible, facts: dict[str, str]
) -> None:
    server.answer(refused_with(400, **facts))
    refused = await refusal(upstream)
    assert (refused.code, refused.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    "said",
    [
        "messages.0.content.1.image.source.base64.data: Image does not match the provided media "
        "type image/jpeg",
        "messages.2.content.0.image.source.base64: The image was specified using the image/png "
        "media type, but the image appears to be a image/jpeg image",
    ],
)
async def test_an_image_that_is_named_as_another_kind_than_it_is_is_told_so(
    server: FakeUpstream, upstream: OpenAICompatible, said: str
) -> None:
    server.answer(refused_with(400, message=said))
    refused = await refusal(upstream)
    assert (refused.code, refused.param) == ("invalid_value", "messages")
    assert "data:image/png;base64," in refused.message


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("temperature", "temperature"),
        ("messages[0].content", "messages"),
        ("tools.0.function", "tools"),
        ("sk_live_secret", None),
        (KEY, None),
        (5, None),
        (10**30, None),
    ],
)
async def test_only_a_field_of_the_request_is_named(
    server: FakeUpstream, upstream: OpenAICompatible, theirs: object, ours: str | None
) -> None:
    server.answer(refused_with(400, param=theirs))
    refused = await refusal(upstream)
    assert refused.param == ours
    assert (str(ours) in refused.message) == (ours is not None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 5.0),
        ("7", 7.0),
        ("0", 1.0),
        ("0.5", 1.0),
        ("-3", 1.0),
        ("3600", 60.0),
        ("nan", 5.0),
        ("inf", 60.0),
        ("soon", 5.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0),
        ("Sun, 06-Nov-94 08:49:37 GMT", 1.0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", 60.0),
        ("Wed, 21 Oct , 07:28:00 GMT", 5.0),
    ],
)
async def test_how_long_to_wait_is_passed_on_within_reason(
    server: FakeUpstream, upstream: OpenAICompatible, header: str | None, seconds: float
) -> None:
    headers = [] if header is None else [("Retry-After", header)]
    server.answer(error(429, {}, *headers))
    refused = await refusal(upstream)
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_seconds == seconds


async def test_a_stream_that_is_refused_tells_how_long_to_wait_too(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(error(429, {}, ("Retry-After", "7")))
    refused = await refusal(upstream, streamed=True)
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_seconds == 7.0


async def test_a_date_to_come_back_at_is_read(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(error(429, {}, ("Retry-After", formatdate(time.time() + 40, usegmt=True))))
    refused = await refusal(upstream)
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_seconds == refused.upstream_rest_seconds
    assert 30 <= (refused.retry_after_seconds or 0) <= 40


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([("Retry-After-Ms", "1500"), ("Retry-After", "30")], 1.5),
        ([("Retry-After", "30"), ("Retry-After-Ms", "1500")], 1.5),
        ([("Retry-After", "30"), ("Retry-After-Ms", "soon")], 30.0),
        ([("Retry-After-Ms", "3600000")], 60.0),
        ([("x-ratelimit-reset-requests", "6m0s")], 5.0),  # all of it, and not the next
    ],
)
async def test_milliseconds_go_before_seconds(
    server: FakeUpstream,
    upstream: OpenAICompatible,
    headers: list[tuple[str, str]],
    seconds: float,
) -> None:
    server.answer(error(429, {}, *headers))
    refused = await refusal(upstream)
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_seconds == seconds


async def test_a_silent_server_is_left(server: FakeUpstream) -> None:
    upstream = OpenAICompatible(
        "gpu-1",
        server.base_url,
        deadlines=Deadlines(first_byte_seconds=0.1, between_chunks_seconds=0.1),
    )
    server.answer(reply("Hello").delayed(5.0))
    assert isinstance(await refusal(upstream), UpstreamTimeout)
    server.answer(stream(["a", "b"]).hang_at(400))
    assert isinstance(await refusal(upstream, streamed=True), UpstreamTimeout)
    await upstream.stop()


# --- what a failure says of the upstream ----------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "7", 7),
        (503, "0.5", 0.5),
        (429, "1000000", 3600),
        (429, "0", None),
        (429, "-3", None),
        (429, "nan", None),
        (429, "Sun, 29 Nov 2015 08:00:00 GMT", None),
        (429, "Mon, 29 Nov 9999 08:00:00 GMT", 3600),
        (429, None, None),
    ],
)
async def test_how_long_it_asks_to_be_left_alone_is_known(
    server: FakeUpstream,
    upstream: OpenAICompatible,
    status: int,
    header: str | None,
    seconds: float | None,
) -> None:
    headers = [] if header is None else [("Retry-After", header)]
    server.answer(openai_error(status, "Slow down.", *headers))
    refused = await refusal(upstream)
    assert (refused.upstream_status, refused.upstream_rest_seconds) == (status, seconds)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reply_that_had_begun_is_told_from_one_that_had_not(
    server: FakeUpstream, upstream: OpenAICompatible, streamed: bool
) -> None:
    server.answer((stream(["a"]) if streamed else reply("a")).cut_at(130))
    begun = await refusal(upstream, streamed=streamed)
    server.answer(reply("a").cut_at(0))
    not_begun = await refusal(upstream, streamed=streamed)
    assert (begun.upstream_status, not_begun.upstream_status) == (200, None)
    assert begun.was_sent
    assert not_begun.was_sent


async def test_a_request_that_found_no_server_was_not_sent() -> None:
    upstream = OpenAICompatible("gpu-1", "http://127.0.0.1:1/v1")
    refused = await refusal(upstream)
    await upstream.stop()
    assert not refused.was_sent


async def test_a_request_has_the_deadlines_that_it_names(
    server: FakeUpstream, upstream: OpenAICompatible
) -> None:
    server.answer(reply("a").delayed(30), times=2)
    ask = an_ask(deadlines=Deadlines(first_byte_seconds=0.1))
    for asked in (upstream.complete(ask), upstream.stream(ask, Sink())):
        with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.1 s"):
            await asked


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "passes"), [(200, True), (204, True), (302, False), (404, False), (503, False)]
)
async def test_a_2xx_is_well(
    server: FakeUpstream, upstream: OpenAICompatible, status: int, passes: bool
) -> None:
    server.answer(error(status, {}), path="/health")
    assert await upstream.check("/health") is passes
    assert (server.last.method, server.last.path) == ("GET", "/health")
    assert server.last.header("authorization") == f"Bearer {KEY}"
    assert server.last.header("content-length") is None


async def test_one_that_is_not_there_or_does_not_answer_is_not_well(
    server: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_module, "CHECK_SECONDS_MAX", 0.1)
    gone = OpenAICompatible("gpu-1", "http://127.0.0.1:1/v1")
    silent = OpenAICompatible("gpu-1", server.base_url)
    server.answer(error(200, {}).delayed(30), path="/health")
    assert not await gone.check("/health")
    assert not await silent.check("/health")
    await gone.stop()
    await silent.stop()
