"""Clients that leave, servers that are stopped and killed: the upstream is cancelled within a
second, what was received is paid for, and what a client saw finished was charged."""

import json
import signal
import sqlite3
import threading
import time

import pytest
from tests.acceptance.conftest import assert_ledger_is_whole
from tests.support.answers import pause, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import Reply
from tests.support.server import TollwayServer

HELLO = [message("Hello!")]
COUNTED_INPUT = 2


@pytest.fixture
def own_settings() -> str:
    return "[server]\ndrain_seconds = 2\n"


def wait_for_receipt(customer: Customer, request_id: str) -> None:
    eventually(lambda: customer.get(f"/receipts/{request_id}").status == 200, 2.0)


# --- a client leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("events", [1, 2, 4])
def test_a_client_that_leaves_a_stream_pays_for_what_it_received(
    upstream: FakeUpstream, customer: Customer, events: int, reset: bool
) -> None:
    upstream.answer(stream(["a"] * 400, pace_seconds=0.05, usage=None))

    client = customer.begin_chat(messages=HELLO, stream=True, max_tokens=500)
    request_id = client.read_head().header("x-request-id") or ""
    client.read_events(events)
    (client.reset if reset else client.close)()
    left_at = time.monotonic()
    sent = upstream.ended()
    wait_for_receipt(customer, request_id)

    assert sent.ended == "peer left"
    assert sent.peer_left_at is not None
    assert sent.peer_left_at - left_at < 1.0
    receipt = customer.receipt(request_id)
    assert receipt["status"] == "interrupted"
    tokens = receipt["usage"]["completion_tokens"]
    # The first event is the role. What was on its way when the client left was written to it.
    assert events - 1 <= tokens <= sent.content_tokens_sent
    assert sent.content_tokens_sent - tokens <= 1
    assert receipt["credits"]["consumed"] == (COUNTED_INPUT + 2 * tokens if tokens else 0)
    assert customer.available == customer.balance == 100_000 - receipt["credits"]["consumed"]


def test_a_client_that_leaves_before_the_reply_pays_nothing(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("late").delayed(1.8))
    before = len(upstream.exchanges)

    client = customer.begin_chat(messages=HELLO, max_tokens=50)
    upstream.wait_until(lambda: len(upstream.exchanges) > before)
    left_at = time.monotonic()
    client.close()
    sent = upstream.ended()
    request_id = sent.header("x-request-id") or ""
    wait_for_receipt(customer, request_id)

    assert sent.peer_left_at is not None
    assert sent.peer_left_at - left_at < 1.0
    assert customer.receipt(request_id)["status"] == "interrupted"
    assert customer.receipt(request_id)["credits"]["consumed"] == 0
    assert customer.available == customer.balance == 100_000


def test_a_client_that_leaves_does_not_harm_others(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a"] * 10, pace_seconds=0.05), times=4)
    whole: list[Reply] = []
    threads = [
        threading.Thread(target=lambda: whole.append(customer.chat(stream=True, max_tokens=50)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()

    client = customer.begin_chat(stream=True, max_tokens=50)
    client.read_head()
    client.reset()
    for thread in threads:
        thread.join()

    assert [one.events[-1].data for one in whole] == ["[DONE]"] * 3


# --- the server is stopped ------------------------------------------------------------------------


def test_a_request_that_has_begun_ends_well_when_the_server_is_stopped(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    upstream.answer(stream(["a", pause(0.5), "b"], input_tokens=9))

    with customer.begin_chat(stream=True, max_tokens=50) as client:
        client.read_head()
        own_server.signal(signal.SIGTERM)
        events = client.read_events()
    status = own_server.wait(10)

    assert events[-1].data == "[DONE]"
    assert status == 0
    own_server.start()
    assert customer.balance == 100_000 - 13


def test_a_stream_that_outlasts_the_drain_is_told_and_pays_for_what_it_received(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    upstream.answer(stream(["a"] * 400, pace_seconds=0.1, usage=None))

    with customer.begin_chat(messages=HELLO, stream=True, max_tokens=500) as client:
        request_id = client.read_head().header("x-request-id") or ""
        client.read_events(3)
        own_server.signal(signal.SIGTERM)
        *texts, credits, error = client.read_events()
    status = own_server.wait(15)
    received = 2 + len(texts)

    assert status == 0
    assert error.json()["error"]["code"] == "unavailable"
    own_server.start()
    receipt = customer.receipt(request_id)
    assert receipt["status"] == "interrupted"
    assert receipt["usage"]["completion_tokens"] == received
    assert (credits.comment or "").startswith(f"credits consumed={COUNTED_INPUT + 2 * received} ")
    assert customer.available == 100_000 - COUNTED_INPUT - 2 * received


def test_the_access_log_says_whether_the_client_left_or_the_server_was_stopped(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    upstream.answer(stream(["a"] * 400, pace_seconds=0.1))
    upstream.answer(reply("late").delayed(30), times=2)
    began = len(upstream.exchanges)

    with customer.begin_chat(stream=True, max_tokens=500) as client:
        client.read_head()
    in_stream = upstream.ended(began)
    with customer.begin_chat():
        upstream.wait_until(lambda: len(upstream.exchanges) == began + 2)
    before_reply = upstream.ended(began + 1)
    with customer.begin_chat() as client:
        upstream.wait_until(lambda: len(upstream.exchanges) == began + 3)
        own_server.signal(signal.SIGTERM)
        assert client.read_reply().status == 503
    stopped = upstream.ended(began + 2)
    own_server.wait(15)

    lines = (own_server.data_dir / "access.log").read_text().splitlines()
    told = {line["request_id"]: line for line in map(json.loads, lines)}
    said = [
        (line["status"], line["ended"], line["error"])
        for exchange in (in_stream, before_reply, stopped)
        if (line := told[exchange.header("x-request-id")])
    ]
    assert said == [
        (200, "interrupted", "client_left"),
        (499, "interrupted", "client_left"),
        (503, "interrupted", "unavailable"),
    ]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_who_leaves_while_the_charge_is_written_is_counted_and_logged(
    upstream: FakeUpstream, own_server: TollwayServer, streamed: bool
) -> None:
    customer = a_customer(own_server)
    upstream.answer(stream(["a"] * 3) if streamed else reply("Hello."))
    began = len(upstream.exchanges)
    database = sqlite3.connect(own_server.data_dir / "tollway.db", isolation_level=None)

    database.execute("BEGIN IMMEDIATE")  # the server waits for it up to 5 s
    with customer.begin_chat(stream=streamed):
        request_id = upstream.ended(began).header("x-request-id")
        time.sleep(0.3)  # for the reply to come to the charge
    time.sleep(0.3)  # for the server to see it leave
    database.execute("ROLLBACK")
    database.close()
    assert request_id is not None
    wait_for_receipt(customer, request_id)
    own_server.signal(signal.SIGTERM)
    own_server.wait(15)

    lines = (own_server.data_dir / "access.log").read_text().splitlines()
    (line,) = [line for line in map(json.loads, lines) if line["request_id"] == request_id]
    assert (line["status"], line["ended"]) == (200 if streamed else 499, "completed")
    assert line["error"] == "client_left"
    assert line["credits"] > 0


def test_a_whole_reply_that_outlasts_the_drain_costs_nothing_and_may_be_asked_for_again(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    upstream.answer(reply("late").delayed(30))
    before = len(upstream.exchanges)

    with customer.begin_chat(model="acme/slow", messages=HELLO) as client:
        upstream.wait_until(lambda: len(upstream.exchanges) > before)
        own_server.signal(signal.SIGTERM)
        refused = client.read_reply()

    assert own_server.wait(15) == 0
    assert refused.status == 503
    assert refused.header("x-credits-consumed") == "0"
    assert refused.header("x-should-retry") is None
    assert refused.header("retry-after") == "1"


# --- the server is killed -------------------------------------------------------------------------


def test_who_saw_the_end_was_charged_once_even_if_the_server_is_killed(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    upstream.answer(stream(["a", "b"], input_tokens=9))
    upstream.answer(reply("a b", input_tokens=9, output_tokens=2))

    streamed = customer.chat(stream=True)
    plain = customer.chat()
    own_server.kill()
    own_server.start()

    assert streamed.events[-1].data == "[DONE]"
    assert customer.receipt_of(streamed)["credits"]["consumed"] == 13
    assert customer.receipt_of(plain)["credits"]["consumed"] == 13
    assert customer.balance == customer.available == 100_000 - 26
    assert_ledger_is_whole(own_server)


def test_a_stream_that_a_kill_cut_off_is_charged_at_its_last_checkpoint(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    upstream.answer(stream(["a"] * 400, pace_seconds=0.1, usage=None))

    with customer.begin_chat(messages=HELLO, stream=True, max_tokens=500) as client:
        request_id = client.read_head().header("x-request-id") or ""
        client.read_events(46)  # 4.5 s: a checkpoint is written every 2 s, once it is 2 s old
        own_server.kill()
    sent = upstream.ended()
    own_server.start()

    receipt = customer.receipt(request_id)
    assert receipt["status"] == "interrupted"
    assert receipt["usage"]["source"] == "checkpoint"
    # The operator loses two seconds of tokens at most, and nobody pays for what was not sent.
    assert sent.content_tokens_sent - 25 <= receipt["usage"]["completion_tokens"] <= 45
    assert customer.balance == customer.available == 100_000 - receipt["credits"]["consumed"]
    assert_ledger_is_whole(own_server)


def test_a_young_stream_that_a_kill_cut_off_costs_nothing_and_holds_nothing(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    upstream.answer(stream(["a"] * 400, pace_seconds=0.1))

    with customer.begin_chat(messages=HELLO, stream=True, max_tokens=500) as client:
        client.read_head()
        client.read_events(3)
        own_server.kill()
    own_server.start()

    assert customer.balance == customer.available == 100_000
    assert_ledger_is_whole(own_server)
