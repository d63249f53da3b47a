"""`X-Tollway-Timeout-Ms`: a client shortens how long its request may take, and never lengthens it.
What is not there in time costs what had come by then, and the upstream is told at once."""

import json
import time

import openai
import pytest
from tests.support.answers import hang, pause, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer
from tests.support.fake_upstream import FakeUpstream

HELLO = [message("Hello!")]
COUNTED_INPUT = 2


def within(milliseconds: int) -> tuple[str, str]:
    return ("X-Tollway-Timeout-Ms", str(milliseconds))


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
def test_a_reply_that_has_not_begun_in_time_is_a_504_and_costs_nothing(
    upstream: FakeUpstream, customer: Customer, streamed: bool
) -> None:
    slow = customer.of("acme/slow")  # its upstream may take 120 s
    upstream.answer(stream([hang()]).hang_at(0) if streamed else reply("late").delayed(60))

    began = time.monotonic()
    refused = slow.chat(within(300), messages=HELLO, max_tokens=50, stream=streamed)
    took = time.monotonic() - began
    sent = upstream.ended()

    assert refused.status == 504
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("upstream_timeout", "api_error")
    assert "300 ms" in error["message"]
    assert refused.header("x-should-retry") == "false"
    assert refused.header("x-credits-consumed") == "0"
    assert 0.3 <= took < 10
    assert sent.ended == "peer left"
    assert customer.receipt_of(refused)["status"] == "failed"
    assert customer.available == customer.balance == 100_000


def test_a_stream_that_is_not_over_in_time_is_told_and_pays_for_what_it_received(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", "b", "c", pause(60), "d"], usage=None), model="slow-upstream")

    with customer.of("acme/slow").begin_chat(
        within(500), messages=HELLO, stream=True, max_tokens=50
    ) as client:
        head = client.read_head()
        *texts, credits, error = client.read_events()
    receipt = customer.receipt(head.header("x-request-id") or "")

    assert head.status == 200
    assert len(texts) == 4  # the role, and three of content
    assert error.json()["error"]["code"] == "upstream_timeout"
    assert (credits.comment or "").startswith(f"credits consumed={COUNTED_INPUT + 2 * 3} ")
    assert (receipt["status"], receipt["usage"]["completion_tokens"]) == ("failed", 3)
    assert customer.available == customer.balance == 100_000 - COUNTED_INPUT - 2 * 3


def test_a_reply_that_is_there_in_time_is_as_without_the_header(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Hi", input_tokens=9, output_tokens=2), times=2)

    answers = [customer.chat(*headers) for headers in ((), (within(60_000),))]

    assert [answer.status for answer in answers] == [200, 200]
    assert [answer.header("x-credits-consumed") for answer in answers] == ["13", "13"]


def test_the_upstreams_own_deadline_stays_where_the_client_allows_more(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("late").delayed(60))

    began = time.monotonic()
    refused = customer.chat(within(50_000))  # the upstream's first byte must be there in 2 s

    assert refused.status == 504
    assert "within 2 s" in refused.json()["error"]["message"]
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("value", ["0", "000", "-1", "1.5", "30s", "", "1" * 16, "\xb2"])
def test_what_is_no_number_of_milliseconds_is_refused_and_costs_nothing(
    upstream: FakeUpstream, customer: Customer, value: str
) -> None:
    before = len(upstream.exchanges)
    limited = customer.get("/accounts/me").json()["creditsHeld"]

    refused = customer.chat(("X-Tollway-Timeout-Ms", value), ("Idempotency-Key", "k"))

    assert refused.status == 400
    assert "X-Tollway-Timeout-Ms" in refused.json()["error"]["message"]
    assert refused.header("x-ratelimit-remaining-requests") == "30"
    assert len(upstream.exchanges) == before
    assert customer.get("/accounts/me").json()["creditsHeld"] == limited == 0
    # Its key is free again.
    assert customer.chat(("Idempotency-Key", "k")).status == 200


def test_a_deadline_that_has_passed_before_anything_was_sent_sends_nothing(
    upstream: FakeUpstream, customer: Customer
) -> None:
    before = len(upstream.exchanges)
    body = json.dumps(customer.chat_fields(messages=HELLO)).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nauthorization: Bearer {customer.token}\r\n"
        "x-tollway-timeout-ms: 50\r\n\r\n"
    )

    with customer.client() as client:
        client.send(head.encode())
        time.sleep(0.2)  # the body takes longer than the whole request may
        client.send(body)
        refused = client.read_reply()

    assert refused.status == 504
    assert len(upstream.exchanges) == before
    assert customer.available == customer.balance == 100_000


def test_what_openais_sdk_says_of_its_own_timeout_is_no_limit(
    upstream: FakeUpstream, customer: Customer
) -> None:
    """It gives up by itself, and is noticed as it leaves; its header says how long it waits for a
    read, which a stream of many may outlast."""
    upstream.answer(stream(["a"] * 10, pace_seconds=0.15, input_tokens=9))

    with openai.OpenAI(
        api_key=customer.token, base_url=customer.server.base_url, max_retries=0, timeout=1
    ) as client:
        chunks = list(
            client.chat.completions.create(
                model="acme/slow",
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
                max_tokens=50,
            )
        )

    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) == 10
