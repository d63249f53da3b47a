"""The oracle itself: what it says that it sent is what a client received, whatever goes wrong."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from tests.support.answers import (
    Answer,
    Delta,
    Directives,
    EventStyle,
    comment,
    cut,
    error_event,
    hang,
    openai_error,
    pause,
    raw,
    reasoning,
    reply,
    stream,
    tool_call,
    usage,
)
from tests.support.builders import chat_bytes
from tests.support.fake_upstream import Exchange, FakeUpstream, FakeUpstreamProcess
from tests.support.http import BodyCutError, RawClient, Reply

PATH = "/v1/chat/completions"


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


@pytest.fixture
def client(upstream: FakeUpstream) -> Iterator[RawClient]:
    with RawClient("127.0.0.1", upstream.port) as connected:
        yield connected


def ask(client: RawClient, **fields: object) -> Reply:
    client.request("POST", PATH, chat_bytes(**fields))
    return client.read_reply()


def texts(answered: Reply) -> list[str]:
    chunks = [event.json() for event in answered.events if event.data not in (None, "[DONE]")]
    return [
        choice["delta"]["content"]
        for chunk in chunks
        for choice in chunk.get("choices", ())
        if choice["delta"].get("content")
    ]


def test_a_request_is_recorded_as_it_came(upstream: FakeUpstream, client: RawClient) -> None:
    client.request("POST", PATH, chat_bytes(model="m2"), ("X-Request-Id", "req_1"))
    client.read_reply()

    exchange = upstream.ended()
    assert exchange.raw_body == chat_bytes(model="m2")
    assert exchange.body["model"] == "m2"
    assert exchange.header("x-request-id") == "req_1"
    assert exchange.finished


def test_the_default_answer_is_truthful_and_honours_the_cap(
    upstream: FakeUpstream, client: RawClient
) -> None:
    answered = ask(client, max_tokens=5).json()

    assert answered["usage"] == usage(6, 5)
    assert answered["choices"][0]["finish_reason"] == "length"
    assert upstream.last.content_tokens_sent == 5


def test_the_openai_sdk_understands_both_default_answers(upstream: FakeUpstream) -> None:
    with openai.OpenAI(api_key="x", base_url=upstream.base_url, max_retries=0) as sdk:
        ask_sdk = sdk.chat.completions.create
        plain = ask_sdk(model="m1", messages=[{"role": "user", "content": "Hello"}], max_tokens=3)
        streamed = ask_sdk(
            model="m1",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(streamed)

    assert plain.usage is not None
    assert plain.usage.completion_tokens == 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == upstream.last.content_tokens_sent == 12


def test_scripts_are_used_in_order_and_by_model(upstream: FakeUpstream, client: RawClient) -> None:
    upstream.answer(reply("only for m2"), model="m2", times=None)
    upstream.answer(reply("first"))
    upstream.answer_with(lambda exchange: reply(f"request {exchange.number}"))

    said = [
        ask(client, model=model).json()["choices"][0]["message"]["content"]
        for model in ("m1", "m2", "m1", "m2")
    ]

    assert said == ["first", "only for m2", "request 3", "only for m2"]


def test_usage_is_streamed_only_where_it_was_asked_for(
    upstream: FakeUpstream, client: RawClient
) -> None:
    upstream.answer(stream(["Hel", "lo"], input_tokens=9), times=2)

    without = ask(client, stream=True)
    having = ask(client, stream=True, stream_options={"include_usage": True})

    assert b'"usage"' not in without.body
    assert [exchange.usages_sent for exchange in upstream.exchanges] == [[], [usage(9, 2)]]
    assert having.events[-2].json()["usage"] == usage(9, 2)


def test_running_usage_and_lies_are_sent_as_scripted(
    upstream: FakeUpstream, client: RawClient
) -> None:
    falling = stream(
        ["a", "b"], running_usage=lambda sent: usage(9, 100 - sent), usage=["lots", None]
    )
    upstream.answer(falling)

    ask(client, stream=True)

    counts = [usage(9, 100), usage(9, 99), usage(9, 98), usage(9, 98), "lots"]
    assert upstream.last.usages_sent == counts


def test_the_oracle_agrees_with_the_client_at_every_byte(upstream: FakeUpstream) -> None:
    script = stream(["Hé", "llo", " wörld"], input_tokens=9)
    upstream.answer_with(lambda _: script)
    with RawClient("127.0.0.1", upstream.port) as client:
        ask(client, stream=True)
    whole = upstream.ended().bytes_sent

    for byte in range(whole):
        upstream.forget_answers()
        upstream.answer(script.cut_at(byte))
        with RawClient("127.0.0.1", upstream.port) as client:
            received = _received_before_the_cut(client)
        exchange = upstream.ended()
        assert (exchange.ended, exchange.bytes_sent) == ("cut", byte)
        assert exchange.content_tokens_sent <= received <= exchange.content_tokens_started


def _received_before_the_cut(client: RawClient) -> int:
    client.request("POST", PATH, chat_bytes(stream=True))
    received = 0
    try:
        client.read_head()
        while True:
            (event,) = client.read_events(1)
            received += b'"content":"' in (event.data or "").encode() and '""' not in str(
                event.data
            )
    except (BodyCutError, StopIteration):
        return received


def test_a_reset_and_a_fault_between_chunks(upstream: FakeUpstream) -> None:
    upstream.answer(stream(["a"] * 100).reset_at(600))
    upstream.answer(stream(["a", "b", cut(), "c"]))

    for _ in range(2):
        with RawClient("127.0.0.1", upstream.port) as client, pytest.raises(BodyCutError):
            ask(client, stream=True)

    first, second = upstream.ended(0), upstream.ended(1)
    assert (first.ended, first.bytes_sent) == ("reset", 600)
    assert (second.ended, second.content_tokens_sent) == ("cut", 2)


def test_a_client_that_leaves_is_noticed_at_once(upstream: FakeUpstream) -> None:
    upstream.answer(stream(["a", "b", hang()]))
    client = RawClient("127.0.0.1", upstream.port)
    client.request("POST", PATH, chat_bytes(stream=True))
    upstream.wait_until(lambda: bool(upstream.exchanges) and upstream.last.hanging)

    left_at = time.monotonic()
    client.reset()
    upstream.wait_until(
        lambda: upstream.last.ended == "peer left" and not upstream.connections_open
    )

    assert upstream.last.peer_left_at is not None
    assert upstream.last.peer_left_at - left_at < 1
    assert upstream.last.content_tokens_sent == 2


def test_an_endless_answer_ends_when_the_client_leaves(upstream: FakeUpstream) -> None:
    upstream.answer(stream(itertools.repeat("x"), usage=None))
    with RawClient("127.0.0.1", upstream.port) as client:
        client.request("POST", PATH, chat_bytes(stream=True, max_tokens=1))
        client.read_head()
        events = client.read_events(50)

    assert upstream.ended().ended == "peer left"
    assert upstream.last.content_tokens_sent >= len(events) - 1


def test_pieces_pauses_and_quirks_carry_the_same_events(
    upstream: FakeUpstream, client: RawClient
) -> None:
    chunks = ["ä", comment("wait"), Delta({"content": "ö"}), pause(0.01), error_event(), "z" * 5000]
    odd = EventStyle(line_end="\r\n", data_prefix="data:")
    upstream.answer(stream(chunks, style=odd).in_pieces(1, 3, 2000))
    upstream.answer(stream(chunks, events_per_write=4))
    upstream.answer(stream(chunks, done=False, finish_reason=None).framed("until-close"))

    answers = [ask(client, stream=True) for _ in range(3)]

    assert [texts(answered) for answered in answers] == [["ä", "ö", "z" * 5000]] * 3
    assert len(answers[1].pieces) < len(answers[0].pieces)
    assert answers[0].events[2].comment == "wait"
    assert b"[DONE]" not in answers[2].body
    assert [exchange.content_tokens_sent for exchange in upstream.exchanges] == [3, 3, 3]


def test_connections_are_kept_and_counted(upstream: FakeUpstream, client: RawClient) -> None:
    upstream.answer(reply("kept"))
    upstream.answer(reply("closed").closing())
    ask(client)
    assert (upstream.connections_opened, upstream.connections_open) == (1, 1)

    assert ask(client).header("connection") == "close"

    assert client.at_end()
    upstream.wait_until(lambda: upstream.connections_open == 0)


def test_idle_connections_can_be_closed_under_a_client(
    upstream: FakeUpstream, client: RawClient
) -> None:
    ask(client)
    upstream.ended()

    upstream.close_idle_connections()

    assert client.at_end()


def test_errors_delays_and_rubbish(upstream: FakeUpstream) -> None:
    upstream.answer(openai_error(429, "Slow down.", ("Retry-After", "7")).delayed(0.05))
    upstream.answer(raw(b"HTTP/9.9 200 Oh dear\r\n\r\n"))
    with RawClient("127.0.0.1", upstream.port) as client:
        begun = time.monotonic()
        refused = ask(client)
        assert time.monotonic() - begun >= 0.05
        assert (refused.status, refused.header("retry-after")) == (429, "7")

        client.request("POST", PATH, chat_bytes())
        assert client.read_head().version == "HTTP/9.9"
        assert client.at_end()


def test_the_openai_sdk_understands_tool_calls_and_reasoning(upstream: FakeUpstream) -> None:
    chunks = [reasoning("Hm."), *tool_call("add", '{"a": ', "17}")]
    upstream.answer(stream(chunks, finish_reason="tool_calls").with_headers(("x-extra", "1")))
    with openai.OpenAI(api_key="x", base_url=upstream.base_url, max_retries=0) as sdk:
        asked = sdk.chat.completions.stream(model="m1", messages=[{"role": "user", "content": "?"}])
        with asked as events:
            completion = events.get_final_completion()

    (call,) = completion.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 17}')
    assert upstream.ended().content_tokens_sent == 4


def test_a_server_that_stops_listening_keeps_its_connections(
    upstream: FakeUpstream, client: RawClient
) -> None:
    ask(client)

    upstream.stop_listening()

    assert ask(client).status == 200
    with pytest.raises(ConnectionRefusedError):
        RawClient("127.0.0.1", upstream.port)


def test_a_request_that_is_not_http_is_told(upstream: FakeUpstream, client: RawClient) -> None:
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")

    assert client.at_end()
    assert upstream.protocol_errors


def test_a_script_that_fails_fails_the_test() -> None:
    with pytest.raises(ZeroDivisionError):
        _ask_once(lambda exchange: reply(str(exchange.number // 0)))


def _ask_once(choose: Callable[[Exchange], Answer]) -> None:
    with FakeUpstream() as upstream, RawClient("127.0.0.1", upstream.port) as client:
        upstream.answer_with(choose)
        client.request("POST", PATH, chat_bytes())
        assert client.at_end()


async def test_an_asynchronous_test_waits_without_stopping_its_loop(upstream: FakeUpstream) -> None:
    async with openai.AsyncOpenAI(api_key="x", base_url=upstream.base_url) as sdk:
        asking = asyncio.create_task(
            sdk.chat.completions.create(
                model="m1", messages=[{"role": "user", "content": "Hello there"}]
            )
        )
        await upstream.until(lambda: any(exchange.finished for exchange in upstream.exchanges))
        answered = await asking

    assert answered.usage is not None
    assert answered.usage.prompt_tokens == 2


def test_directives_choose_the_answer(upstream: FakeUpstream, client: RawClient) -> None:
    directives = '{"chunks": 30, "usage": "huge", "ignore_max_tokens": true, "done": false}'
    answered = ask(client, user=directives, stream=True, max_tokens=2)
    wrong = ask(client, user='{"chunk": 1}')

    assert len(texts(answered)) == upstream.exchanges[0].content_tokens_sent == 30
    assert b"[DONE]" not in answered.body
    assert wrong.status == 400


def test_directives_can_be_the_last_message() -> None:
    with FakeUpstream() as upstream, RawClient("127.0.0.1", upstream.port) as client:
        messages = [{"role": "user", "content": '{"chunks": 3, "input_tokens": 77}'}]
        assert ask(client, messages=messages).json()["usage"] == usage(77, 3)


def test_every_lie_has_an_answer(upstream: FakeUpstream, client: RawClient) -> None:
    lies = Directives.__annotations__["usage"].__args__

    replies = {
        lie: ask(client, user=f'{{"usage": "{lie}"}}', stream=streamed)
        for lie in lies
        for streamed in (True, False)
    }

    assert {answered.status for answered in replies.values()} == {200}


def test_the_process_writes_a_line_for_each_request(tmp_path: Path) -> None:
    with FakeUpstreamProcess(tmp_path / "log") as upstream:
        with RawClient("127.0.0.1", upstream.port) as client:
            ask(client, max_tokens=4)
            client.request("POST", PATH, chat_bytes(stream=True, user='{"hang_after": 2}'))
            client.read_head()
            client.read_events(3)
        with RawClient("127.0.0.1", upstream.port) as client:
            client.request("POST", PATH, chat_bytes(stream=True, user='{"hang_after": 1}'))
            client.read_head()
            client.read_events(2)
            upstream.stop()

    first, second, third = upstream.records()
    assert (first["ended"], first["content_tokens_sent"]) == ("finished", 4)
    assert (second["ended"], second["content_tokens_sent"]) == ("peer left", 2)
    assert (third["ended"], third["content_tokens_sent"]) == ("stopped", 1)
