"""Streams: what they begin and end with, that they leave as they arrive, and how their credits are
told."""

import time
from collections.abc import Iterator

import openai
import pytest
from tests.support.answers import (
    Delta,
    Event,
    EventStyle,
    Fault,
    Verbatim,
    comment,
    cut,
    error_event,
    hang,
    pause,
    reasoning,
    reset,
    stream,
    tool_call,
)
from tests.support.customer import Customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import Reply, StreamEvent

from tollway.upstreams.connection import END_SECONDS_MAX


def texts(reply: Reply) -> list[str]:
    return [
        choice["delta"]["content"]
        for event in chunk_events(reply)
        for choice in event.json()["choices"]
        if choice["delta"].get("content")
    ]


def chunk_events(reply: Reply) -> list[StreamEvent]:
    return [event for event in reply.events if event.data not in (None, "[DONE]")]


@pytest.fixture
def sdk(customer: Customer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key=customer.token, base_url=customer.server.base_url, max_retries=0
    ) as client:
        yield client


# --- its form -------------------------------------------------------------------------------------


def test_a_stream_has_a_role_its_texts_a_finish_its_credits_and_an_end(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["Hel", "lo"], input_tokens=9))

    reply = customer.chat(stream=True)

    role, *contents, finish, credits, done = reply.events
    assert role.json()["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert texts(reply) == ["Hel", "lo"]
    assert len(contents) == 2
    assert finish.json()["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert credits.comment == f"credits consumed=13 remaining={100_000 - 13}"
    assert done.data == "[DONE]"


def test_every_chunk_has_our_id_and_the_name_that_was_asked_for(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a"] * 5))

    reply = customer.chat(stream=True)

    chunks = [event.json() for event in chunk_events(reply)]
    request_id = reply.header("x-request-id") or ""
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-" + request_id.removeprefix("req_")}
    assert {chunk["model"] for chunk in chunks} == {"acme/parrot"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_fake"}
    assert all(type(chunk["created"]) is int for chunk in chunks)


def test_the_head_of_a_stream_tells_what_is_held_and_never_guesses_the_cost(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a"]))

    reply = customer.chat(stream=True, max_tokens=100)

    receipt = customer.receipt_of(reply)
    assert reply.header("X-Credits-Reserved") == str(receipt["credits"]["reserved"])
    assert reply.header("X-Credits-Remaining") == str(100_000 - receipt["credits"]["reserved"])
    assert reply.header("X-Credits-Consumed") is None
    assert (reply.header("content-type") or "").startswith("text/event-stream")
    assert reply.header("cache-control") == "no-cache"
    assert reply.header("x-accel-buffering") == "no"
    assert reply.header("content-encoding") is None


def test_usage_comes_last_where_it_was_asked_for(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", "b"], input_tokens=9))

    reply = customer.chat(stream=True, stream_options={"include_usage": True})

    *chunks, last = [event.json() for event in chunk_events(reply)]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "credits_consumed": 13,
        "credits_remaining": 100_000 - 13,
    }
    assert all(event.comment is None for event in reply.events)
    assert reply.events[-1].data == "[DONE]"


def test_usage_is_asked_for_always_and_hidden_from_who_did_not_ask(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a"], running_usage=True))

    reply = customer.chat(stream=True)

    assert upstream.last.body["stream_options"] == {"include_usage": True}
    assert all("usage" not in event.json() for event in chunk_events(reply))
    assert customer.receipt_of(reply)["usage"]["source"] == "upstream"


def test_trailers_have_the_credits_for_who_takes_them(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", "b"], input_tokens=9), times=2)

    asked = customer.chat(("TE", "trailers"), stream=True)
    not_asked = customer.chat(stream=True)

    assert asked.header("trailer") == "X-Credits-Consumed, X-Credits-Remaining"
    assert asked.trailers == [
        ("X-Credits-Consumed", "13"),
        ("X-Credits-Remaining", str(100_000 - 13)),
    ]
    assert not_asked.header("trailer") is None
    assert not_asked.trailers == []


def test_http_1_0_gets_a_body_that_ends_with_the_connection(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", "b"], input_tokens=9))
    body = (
        b'{"model": "acme/parrot", "messages": [{"role": "user", "content": "Hi"}], "stream": true}'
    )
    head = (
        "POST /v1/chat/completions HTTP/1.0\r\nTE: trailers\r\nConnection: keep-alive\r\n"
        f"Authorization: Bearer {customer.token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    with customer.client() as client:
        client.send(head.encode() + body)
        reply = client.read_reply()

    assert reply.header("transfer-encoding") is None
    assert reply.header("trailer") is None
    assert texts(reply) == ["a", "b"]
    assert reply.events[-2].comment == f"credits consumed=13 remaining={100_000 - 13}"
    assert reply.events[-1].data == "[DONE]"


# --- what passes through --------------------------------------------------------------------------


def test_bytes_leave_as_they_arrive(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(stream(["a", "b"], pace_seconds=0.3))

    with customer.begin_chat(stream=True) as client:
        client.read_head()
        role, first, second, *_ = client.read_events()

    assert first.at - role.at > 0.2
    assert second.at - first.at > 0.2


@pytest.mark.parametrize(
    "sizes", [(1,), (2, 3), (7,), (64,), (1000,)], ids=lambda sizes: "-".join(map(str, sizes))
)
def test_however_it_is_cut_into_pieces_a_stream_has_the_same_events(
    upstream: FakeUpstream, customer: Customer, sizes: tuple[int, ...]
) -> None:
    said = ["Grüße", " ", "日本語", '"quoted"', "\n", "\\", "🚀", "\u2028", "x"]
    upstream.answer(stream(said).in_pieces(*sizes, pause_seconds=0))

    assert texts(customer.chat(stream=True)) == said


@pytest.mark.parametrize(
    "style",
    [EventStyle(line_end="\r\n"), EventStyle(data_prefix="data:"), EventStyle(line_end="\r")],
    ids=["crlf", "no space", "cr"],
)
def test_every_way_to_write_events_is_understood(
    upstream: FakeUpstream, customer: Customer, style: EventStyle
) -> None:
    upstream.answer(stream(["a", comment("wait"), "b"], style=style))

    assert texts(customer.chat(stream=True)) == ["a", "b"]


def test_reasoning_passes_and_is_charged(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(stream([reasoning("hm"), reasoning("well"), "Yes"], input_tokens=9))

    reply = customer.chat(stream=True)

    deltas = [event.json()["choices"][0]["delta"] for event in chunk_events(reply)]
    assert [d["reasoning_content"] for d in deltas if "reasoning_content" in d] == ["hm", "well"]
    assert customer.receipt_of(reply)["credits"]["consumed"] == 9 + 2 * 3


def test_a_stream_with_tool_calls_finishes_with_tool_calls(
    upstream: FakeUpstream, sdk: openai.OpenAI
) -> None:
    # vLLM says `stop` where the function was named.
    upstream.answer(stream(tool_call("add", '{"a": 1,', ' "b": 2}'), finish_reason="stop"))

    with sdk.chat.completions.create(
        model="acme/parrot",
        messages=[{"role": "user", "content": "1 + 2?"}],
        tools=[{"type": "function", "function": {"name": "add"}}],
        stream=True,
    ) as chunks:
        choices = [chunk.choices[0] for chunk in chunks]

    fragments = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert [call.id for call in fragments if call.id] == ["call_fake1"]
    arguments = "".join((call.function and call.function.arguments) or "" for call in fragments)
    assert arguments == '{"a": 1, "b": 2}'
    assert choices[-1].finish_reason == "tool_calls"


def test_several_choices_each_have_a_role_and_a_finish(
    upstream: FakeUpstream, customer: Customer
) -> None:
    said = [Delta({"content": "a"}, index=0), Delta({"content": "b"}, index=1)]
    upstream.answer(stream(said))

    reply = customer.chat(stream=True, n=2)

    choices = [choice for event in chunk_events(reply) for choice in event.json()["choices"]]
    for index in (0, 1):
        of_this = [choice for choice in choices if choice["index"] == index]
        assert of_this[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in of_this][-1] == "stop"


@pytest.mark.parametrize(
    ("said", "told"),
    [("eos", "stop"), ("max_tokens", "length"), ("tool_use", "stop"), ("length", "length")],
)
def test_the_words_of_other_servers_for_an_end_become_openais(
    upstream: FakeUpstream, customer: Customer, said: str, told: str
) -> None:
    upstream.answer(stream(["a"], finish_reason=said))

    reply = customer.chat(stream=True)

    assert chunk_events(reply)[-1].json()["choices"][0]["finish_reason"] == told


def test_many_streams_on_one_connection(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(stream(["a", "b"]), times=3)

    with customer.client() as client:
        for _ in range(3):
            body = (
                b'{"model":"acme/parrot","messages":[{"role":"user","content":"x"}],"stream":true}'
            )
            client.request("POST", "/v1/chat/completions", body, *customer.authorization)
            assert texts(client.read_reply()) == ["a", "b"]


@pytest.mark.slow
def test_a_silent_stream_is_kept_alive_by_comments(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", pause(16), "b"]), model="slow-upstream")

    reply = customer.of("acme/slow").chat(stream=True)

    assert texts(reply) == ["a", "b"]
    assert "keep-alive" in [event.comment for event in reply.events]


# --- when it breaks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [cut(), error_event("sk-secret of the engine"), hang()],
    ids=["cut", "error event", "hang"],
)
def test_a_stream_that_breaks_tells_its_credits_and_the_error_and_ends_cleanly(
    upstream: FakeUpstream, customer: Customer, fault: object
) -> None:
    upstream.answer(stream(["a", "b", fault]))  # pyright: ignore[reportArgumentType]

    with customer.begin_chat(stream=True) as client:
        head = client.read_head()
        *begun, credits, error = client.read_events()
        client.request("GET", "/v1/models", None, *customer.authorization)
        again = client.read_reply()

    assert len(begun) == 3
    receipt = customer.receipt(head.header("x-request-id") or "")
    assert receipt["status"] == "failed"
    assert receipt["usage"]["completion_tokens"] == 2
    assert credits.comment == (
        f"credits consumed={receipt['credits']['consumed']} "
        f"remaining={receipt['credits']['remaining']}"
    )
    assert error.json()["error"]["type"] == "api_error"
    assert error.json()["error"]["code"] in ("upstream_error", "upstream_timeout")
    assert "sk-secret" not in (error.data or "")
    assert again.status == 200


def test_the_sdk_raises_on_a_stream_that_breaks(upstream: FakeUpstream, sdk: openai.OpenAI) -> None:
    upstream.answer(stream(["a", cut()]))

    with (
        sdk.chat.completions.create(
            model="acme/parrot", messages=[{"role": "user", "content": "Hi"}], stream=True
        ) as chunks,
        pytest.raises(openai.APIError) as raised,
    ):
        list(chunks)

    assert raised.value.code == "upstream_error"


def test_a_stream_that_fails_before_its_first_byte_is_a_plain_error(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream([cut()], role=False))

    reply = customer.chat(stream=True)

    assert reply.status == 502
    assert reply.header("content-type") == "application/json"
    assert reply.header("X-Credits-Consumed") == "0"
    assert reply.json()["error"]["code"] == "upstream_error"


def test_a_stream_without_a_finish_is_an_error(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(stream(["a", "b"], finish_reason=None))

    reply = customer.chat(stream=True)

    assert "error" in chunk_events(reply)[-1].json()
    assert "[DONE]" not in [event.data for event in reply.events]


def test_a_missing_done_is_made_up_for(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(stream(["a"], done=False))

    assert customer.chat(stream=True).events[-1].data == "[DONE]"


@pytest.mark.parametrize(
    "after",
    [
        [hang()],
        [cut()],
        [reset()],
        [error_event()],
        [Verbatim(b"data: junk\n\n")],
        [Event({"choices": [{"index": 0, "delta": {"content": "more"}}]}), cut()],
    ],
    ids=["hang", "cut", "reset", "error", "junk", "more"],
)
def test_what_follows_done_is_no_part_of_the_answer(
    upstream: FakeUpstream, customer: Customer, after: list[Fault | Verbatim | Event]
) -> None:
    upstream.answer(stream(["a"], after=after))
    began = time.monotonic()

    reply = customer.chat(model="acme/slow", stream=True)

    assert reply.events[-1].data == "[DONE]"
    assert texts(reply) == ["a"]
    assert customer.receipt_of(reply)["status"] == "completed"
    assert time.monotonic() - began < 10  # this model's server may be silent for a minute


def test_a_stream_ends_at_its_done_and_not_with_its_upstreams_message(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a"], after=[hang()]), times=None)

    replies = [customer.chat(model="acme/slow", stream=True) for _ in range(5)]

    assert {reply.events[-1].data for reply in replies} == {"[DONE]"}
    waited = [reply.events[-1].at - reply.events[0].at for reply in replies]
    assert min(waited) < END_SECONDS_MAX / 2  # and not each, on a busy machine


def test_a_done_with_a_space_behind_it_and_events_without_data_are_none(
    upstream: FakeUpstream, customer: Customer
) -> None:
    nothing = Verbatim(b'data:\n\ndata: \n\ndata: {"choices":[],"error":false}\n\n')
    done = Verbatim(b"data: [DONE] \n\n")
    upstream.answer(stream([nothing, "a"], done=False, after=[done]))

    reply = customer.chat(stream=True)

    assert reply.events[-1].data == "[DONE]"
    assert texts(reply) == ["a"]


def test_one_slow_client_does_not_hold_up_another(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["x" * 1000] * 4000, usage=None))

    with customer.begin_chat(stream=True, max_tokens=4096) as slow:
        slow.read_head()
        began = time.monotonic()
        assert customer.chat(max_tokens=5).status == 200
        assert time.monotonic() - began < 2
        slow.reset()
