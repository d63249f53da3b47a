"""Idempotency-Key: a client that tries again does not pay again, whatever became of the first try.

Each test has an account of its own, and a key is its account's."""

import json
import threading

import pytest
from tests.support.answers import error, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import Reply
from tests.support.server import TollwayServer

HELLO = [message("Hello!")]


@pytest.fixture(scope="module")
def settings() -> str:
    return "[server]\nstore_replies = true\n"


def ask(customer: Customer, key: str, **fields: object) -> Reply:
    body: dict[str, object] = {"messages": HELLO, "max_tokens": 50, **fields}
    return customer.chat(("Idempotency-Key", key), **body)


def test_the_same_request_again_gets_the_stored_reply_and_is_not_charged_again(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Once", input_tokens=9, output_tokens=3))
    key = "order-7"

    first = ask(customer, key)
    asked_before = len(upstream.exchanges)
    again = ask(customer, key)

    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    assert first.header("idempotent-replayed") is None
    assert again.header("idempotent-replayed") == "true"
    for name in ("x-credits-consumed", "x-credits-remaining", "x-request-id"):
        assert again.header(name) == first.header(name)
    assert len(upstream.exchanges) == asked_before
    assert customer.balance == 100_000 - 15


def test_a_key_with_another_body_is_refused(upstream: FakeUpstream, customer: Customer) -> None:
    key = "order-7"
    ask(customer, key)

    other = ask(customer, key, max_tokens=51)

    assert other.status == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert other.header("x-should-retry") == "false"
    assert other.header("x-credits-consumed") == "0"


def test_a_key_is_the_accounts_own(
    upstream: FakeUpstream, customer: Customer, server: TollwayServer
) -> None:
    key = "order-7"
    ask(customer, key)

    of_another = ask(a_customer(server), key)

    assert of_another.status == 200
    assert of_another.header("idempotent-replayed") is None


def test_a_key_is_that_of_all_tokens_of_the_account(
    upstream: FakeUpstream, customer: Customer
) -> None:
    key = "order-7"
    ask(customer, key)

    with_another_token = ask(customer.with_token(), key)

    assert with_another_token.header("idempotent-replayed") == "true"


def test_a_body_is_another_by_a_single_byte(upstream: FakeUpstream, customer: Customer) -> None:
    key = ("Idempotency-Key", "order-7")
    body = json.dumps(customer.chat_fields(max_tokens=50)).encode()
    customer.ask("POST", "/chat/completions", body, key)

    other = customer.ask("POST", "/chat/completions", body + b"\n", key)

    assert other.status == 422


def test_while_the_first_runs_the_second_is_told_to_come_back(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("late").delayed(1.0))
    key = "order-7"
    before = len(upstream.exchanges)
    replies: list[Reply] = []
    first = threading.Thread(target=lambda: replies.append(ask(customer, key)))
    first.start()
    upstream.wait_until(lambda: len(upstream.exchanges) > before)

    second = ask(customer, key)
    first.join()

    assert second.status == 409
    assert second.json()["error"]["code"] == "idempotency_in_progress"
    assert second.header("retry-after") is not None
    assert second.header("x-should-retry") == "true"
    assert replies[0].status == 200


def test_repetitions_take_no_place_in_the_rate(upstream: FakeUpstream, customer: Customer) -> None:
    key = "order-7"
    first = ask(customer, key)

    ask(customer, key)
    mismatch = ask(customer, key, max_tokens=51)

    left = mismatch.header("x-ratelimit-remaining-requests")
    assert left == first.header("x-ratelimit-remaining-requests")


def test_an_attempt_that_charged_nothing_frees_its_key(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(error(500, {"error": {"message": "no"}}))
    key = "order-7"

    failed = ask(customer, key)
    again = ask(customer, key)

    assert failed.status == 502
    assert again.status == 200
    assert again.header("idempotent-replayed") is None


def test_a_refused_request_frees_its_key(upstream: FakeUpstream, customer: Customer) -> None:
    key = "order-7"

    unknown = ask(customer, key, model="acme/unknown")
    again = ask(customer, key)

    assert unknown.status == 404
    assert again.status == 200


def test_a_stream_is_not_stored(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(stream(["a", "b"], input_tokens=4))
    key = "order-7"
    ask(customer, key, stream=True)

    again = ask(customer, key, stream=True)

    assert again.status == 409
    assert again.json()["error"]["code"] == "idempotency_completed"
    assert again.header("x-should-retry") == "false"


def test_a_confidential_models_reply_is_not_stored(
    upstream: FakeUpstream, customer: Customer
) -> None:
    key = "order-7"
    ask(customer, key, model="acme/plain")

    again = ask(customer, key, model="acme/plain")

    assert again.status == 409
    assert again.json()["error"]["code"] == "idempotency_completed"


def test_a_key_may_have_255_characters(upstream: FakeUpstream, customer: Customer) -> None:
    assert ask(customer, "k" * 255).status == 200


@pytest.mark.parametrize(
    "key",
    ["", "k" * 256, "caf\u00e9", "order\t7"],
    ids=["empty", "long", "not ascii", "not printable"],
)
def test_an_unusable_key_is_refused(customer: Customer, key: str) -> None:
    refused = ask(customer, key)

    assert refused.status == 400
    assert "Idempotency-Key" in refused.json()["error"]["message"]


def test_replies_are_not_stored_unless_the_operator_wants_it(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)  # which has the default
    key = "order-7"
    first = ask(customer, key)

    again = ask(customer, key)

    assert again.status == 409
    assert again.json()["error"]["code"] == "idempotency_completed"
    assert f"/receipts/{first.header('x-request-id')}" in again.json()["error"]["message"]


def test_after_a_crash_a_charged_key_is_completed_and_another_is_free(
    upstream: FakeUpstream, own_server: TollwayServer
) -> None:
    customer = a_customer(own_server)
    charged, running = "charged", "running"
    ask(customer, charged)
    upstream.answer(reply("late").delayed(5))
    before = len(upstream.exchanges)
    client = customer.begin_chat(("Idempotency-Key", running), messages=HELLO, max_tokens=50)
    upstream.wait_until(lambda: len(upstream.exchanges) > before)

    own_server.kill()
    client.close()
    own_server.start()

    assert ask(customer, charged).status == 409
    assert ask(customer, running).status == 200
    entries = customer.get("/credit-transactions").json()["data"]
    assert [entry["type"] for entry in entries] == ["charge", "charge", "grant"]
