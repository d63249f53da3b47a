"""What the upstream does around the child, with a scripted client in the child's place."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import a_tool

from tollway.errors import InvalidRequest, RequestError, Unavailable, UpstreamFailed
from tollway.upstreams.base import Ask, EventSink, Source
from tollway.upstreams.embedded.progress import Progress
from tollway.upstreams.embedded.upstream import (
    EmbeddedSettings,
    EmbeddedUpstream,
    child_of,
    find_model,
)
from tollway.wire.chat import ChatCompletion

RUNNER = (
    sys.executable,
    "-c",
    'import sys; sys.stdin.readline(); print(\'{"address": "http://127.0.0.1:1"}\', flush=True);'
    "sys.stdin.read()",
)
SETTINGS = EmbeddedSettings(context_length=100, parallel=2)
CHILD = partial(child_of, SETTINGS, Path("m.gguf"), runner=RUNNER)
Script = Callable[[Ask, EventSink], Awaitable[None]]


class Wire:
    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abandon(self, error: RequestError) -> None: ...


def events(text: str, output_tokens: int) -> list[dict[str, object]]:
    usage = {"prompt_tokens": 5, "completion_tokens": output_tokens, "total_tokens": 0}
    return [
        {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"id": "c", "choices": [], "usage": usage},
    ]


async def says_its_seed(ask: Ask, sink: EventSink) -> None:
    sink.opened(Wire())
    for event in events(f"seed {ask.fields.get('seed')}", 3):
        sink.event(json.dumps(event).encode())
    sink.flush()


class Client:
    """`ChildClient` after a script; keeps what it was asked."""

    name = "embedded"

    counts_input_tokens = False

    def __init__(self) -> None:
        self.script: Script = says_its_seed
        self.answer: tuple[int, bytes] | RequestError = (200, b'{"input_tokens": 5}')
        self.asks: list[Ask] = []
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.stopped = asyncio.Event()

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped.set()

    def ready(self) -> bool:
        return True

    async def complete(self, ask: Ask) -> ChatCompletion:
        raise AssertionError("the child is only ever asked for streams")

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        self.asks.append(ask)
        await self.script(ask, sink)

    async def count_input_tokens(self, ask: Ask) -> int | None:
        return None

    async def post_json(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.posts.append((path, json.loads(body)))
        if isinstance(self.answer, RequestError):
            raise self.answer
        return self.answer


class Sink:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.sources: list[Source] = []

    def opened(self, source: Source) -> None:
        self.sources.append(source)

    def event(self, payload: bytes) -> None:
        self.events.append(json.loads(payload))

    def passed_on(self, frames: bytes) -> bool:
        return False

    def flush(self) -> None: ...


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
async def upstream(client: Client) -> AsyncIterator[EmbeddedUpstream]:
    upstream = EmbeddedUpstream("embedded", SETTINGS, CHILD, lambda _url, _key: client)
    await upstream.start()
    yield upstream
    await upstream.stop()


def an_ask(**fields: object) -> Ask:
    messages = [{"role": "user", "content": "Hello"}]
    return Ask("req_1", "smollm2", {"messages": messages, **fields}, 10)


async def test_a_whole_reply_is_put_together_from_a_stream(upstream: EmbeddedUpstream) -> None:
    completion = await upstream.complete(an_ask(seed=7))

    assert completion.choices[0].message.content == "seed 7"
    assert completion.usage["completion_tokens"] == 3


async def test_the_childs_own_name_and_the_cap_go_to_it(
    upstream: EmbeddedUpstream, client: Client
) -> None:
    await upstream.complete(an_ask())

    (ask,) = client.asks
    assert (ask.model, ask.output_tokens_max, ask.request_id) == ("embedded", 10, "req_1")


async def test_n_is_n_requests_with_a_seed_each(upstream: EmbeddedUpstream, client: Client) -> None:
    completion = await upstream.complete(an_ask(n=4, seed=7))

    contents = [choice.message.content for choice in completion.choices]
    assert contents == ["seed 7", "seed 8", "seed 9", "seed 10"]
    assert "n" not in client.asks[0].fields
    assert completion.usage == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


async def test_n_takes_no_more_slots_than_there_are(
    upstream: EmbeddedUpstream, client: Client
) -> None:
    running: list[int] = []
    most = 0

    async def counts(ask: Ask, sink: EventSink) -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.pop()
        await says_its_seed(ask, sink)

    client.script = counts
    await upstream.complete(an_ask(n=4))

    assert most == SETTINGS.parallel


async def test_every_connection_of_a_stream_can_be_made_to_wait(
    upstream: EmbeddedUpstream,
) -> None:
    sink = Sink()
    await upstream.stream(an_ask(n=2), sink)

    assert len(sink.sources) == 2
    assert sink.events[-1]["choices"] == []


async def test_a_choice_that_fails_ends_the_others(
    upstream: EmbeddedUpstream, client: Client
) -> None:
    left = asyncio.Event()

    async def first_fails(ask: Ask, sink: EventSink) -> None:
        sink.opened(Wire())
        if len(client.asks) > 1:
            raise UpstreamFailed("It died.")
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    client.script = first_fails

    with pytest.raises(UpstreamFailed, match="It died"):
        await upstream.complete(an_ask(n=2))
    assert left.is_set()


async def test_a_stream_without_an_end_has_failed(
    upstream: EmbeddedUpstream, client: Client
) -> None:
    async def stops(ask: Ask, sink: EventSink) -> None:
        sink.opened(Wire())
        sink.event(json.dumps(events("Hel", 1)[1]).encode())

    client.script = stops

    with pytest.raises(UpstreamFailed, match="stopped in the middle"):
        await upstream.complete(an_ask())


async def refuses(_ask: Ask, _sink: EventSink) -> None:
    raise InvalidRequest("[json.exception.type_error.302]")


async def fails(_ask: Ask, _sink: EventSink) -> None:
    raise UpstreamFailed("status 500")


@pytest.mark.parametrize("script", [refuses, fails])
async def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(
    upstream: EmbeddedUpstream, client: Client, script: Script
) -> None:
    client.script = script
    client.answer = (200, b'{"input_tokens": 100}')

    with pytest.raises(InvalidRequest, match=r"is 100 tokens.*in 100 tokens") as refusal:
        await upstream.complete(an_ask())

    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "tools": [a_tool()]}, "response_format"),
        ({"tools": [a_tool()]}, "tools"),
        ({}, "messages"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_refusal_names_the_field_and_has_none_of_the_childs_words(
    upstream: EmbeddedUpstream, client: Client, fields: dict[str, object], param: str, status: int
) -> None:
    client.script = refuses
    client.answer = (status, b'{"input_tokens": 5, "error": {"message": "[json.exception]"}}')

    with pytest.raises(InvalidRequest) as refusal:
        await upstream.complete(an_ask(**fields))

    assert refusal.value.param == param
    assert "exception" not in refusal.value.message


async def test_a_failure_for_no_reason_of_the_request_stays_one(
    upstream: EmbeddedUpstream, client: Client
) -> None:
    client.script = fails

    with pytest.raises(UpstreamFailed, match="status 500"):
        await upstream.complete(an_ask())


async def test_a_death_before_the_reply_is_a_failure_of_the_upstream(
    upstream: EmbeddedUpstream, client: Client
) -> None:
    client.script = fails
    client.answer = Unavailable("cannot be reached")

    with pytest.raises(UpstreamFailed, match="status 500"):
        await upstream.complete(an_ask())


async def test_the_prompt_is_counted_as_it_will_be_sent(
    upstream: EmbeddedUpstream, client: Client
) -> None:
    ask = an_ask(tools=[a_tool()], tool_choice="required")

    assert await upstream.count_input_tokens(ask) == 5

    await upstream.complete(ask)
    ((path, fields),) = client.posts
    assert path == "/chat/completions/input_tokens"
    assert fields == client.asks[0].fields


@pytest.mark.parametrize("answer", [(500, b""), UpstreamFailed("gone")])
async def test_a_prompt_that_cannot_be_counted_is_not(
    upstream: EmbeddedUpstream, client: Client, answer: tuple[int, bytes] | RequestError
) -> None:
    client.answer = answer
    assert await upstream.count_input_tokens(an_ask()) is None


async def test_what_is_not_up_is_unavailable_and_counts_nothing(client: Client) -> None:
    upstream = EmbeddedUpstream("e", SETTINGS, CHILD, lambda _u, _k: client)

    with pytest.raises(Unavailable) as refusal:
        await upstream.complete(an_ask())

    assert refusal.value.retry_after_seconds
    assert await upstream.count_input_tokens(an_ask()) is None
    assert not upstream.ready()


async def test_a_stop_closes_the_connections(upstream: EmbeddedUpstream, client: Client) -> None:
    assert upstream.ready()

    await upstream.stop()

    assert client.stopped.is_set()
    assert not upstream.ready()


class NoProgress:
    def start(self, total_bytes: int, label: str) -> None: ...

    def advance_to(self, count: int) -> None: ...

    def done(self) -> None: ...


def test_an_own_file_is_the_model(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF")
    progress: Progress = NoProgress()

    found = find_model(EmbeddedSettings(model_path=file), tmp_path, progress=progress)

    assert found == file
