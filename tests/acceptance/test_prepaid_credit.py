"""Credit is prepaid: what a request can cost is held before it runs, what it did cost is charged,
and no balance goes below zero."""

import threading

import pytest
from tests.support.answers import reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import Reply
from tests.support.server import TollwayServer

HELLO = [message("Hello!")]
# Without a tokenizer to ask, a prompt is bounded by its bytes, 16 a message and 256.
INPUT_BOUND = 6 + 16 + 256


def held_for(max_tokens: int) -> int:
    return INPUT_BOUND + 2 * max_tokens


def test_a_reply_costs_its_usage_at_the_models_price(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Hello there.", input_tokens=9, output_tokens=3))

    answered = customer.chat()

    assert answered.header("X-Credits-Consumed") == "15"
    assert answered.header("X-Credits-Remaining") == str(100_000 - 15)
    assert answered.json()["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "credits_consumed": 15,
        "credits_remaining": 100_000 - 15,
    }
    assert customer.balance == 100_000 - 15


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "credits"),
    [(25, 80, 1), (40, 243, 1), (41, 243, 2), (40, 493, 2), (40, 494, 3)],
)
def test_a_charge_is_rounded_up_once(
    upstream: FakeUpstream, customer: Customer, input_tokens: int, output_tokens: int, credits: int
) -> None:
    # 700 credits a million input tokens and 4000 a million output tokens.
    upstream.answer(reply("Yes.", input_tokens=input_tokens, output_tokens=output_tokens))

    answered = customer.of("acme/plain").chat(max_tokens=512)

    assert answered.header("X-Credits-Consumed") == str(credits)


def test_a_model_with_a_price_of_zero_costs_nothing(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, credits=0, model="acme/free")
    upstream.answer(reply("Yes.", input_tokens=9, output_tokens=1))

    answered = customer.chat()

    assert answered.status == 200
    assert answered.header("X-Credits-Consumed") == "0"
    assert customer.receipt_of(answered)["credits"]["consumed"] == 0


def test_a_request_that_cannot_be_paid_for_is_refused_with_the_numbers(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, credits=500)
    requests = len(upstream.exchanges)

    refused = customer.chat(messages=HELLO, max_tokens=400)

    assert refused.status == 402
    error = refused.json()["error"]
    assert error["type"] == error["code"] == "insufficient_credits"
    assert error["required"] == held_for(400)
    assert error["available"] == 500
    assert error["affordable_max_tokens"] == (500 - INPUT_BOUND) // 2
    assert str(held_for(400)) in error["message"]
    assert "500" in error["message"]
    assert "Lower max_tokens to 111" in error["message"]
    assert refused.header("X-Credits-Consumed") == "0"
    assert refused.header("X-Credits-Remaining") == "500"
    assert len(upstream.exchanges) == requests


def test_what_a_refusal_says_is_affordable_is(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, credits=500)
    refused = customer.chat(messages=HELLO, max_tokens=400)

    admitted = customer.chat(
        messages=HELLO, max_tokens=refused.json()["error"]["affordable_max_tokens"]
    )

    assert admitted.status == 200


@pytest.mark.parametrize("credits", [held_for(15), INPUT_BOUND, 1, 0])
def test_fewer_than_sixteen_affordable_tokens_are_not_offered(
    server: TollwayServer, credits: int
) -> None:
    customer = a_customer(server, credits=credits)

    named = customer.chat(messages=HELLO, max_tokens=16)
    unnamed = customer.chat(messages=HELLO)

    assert [named.status, unnamed.status] == [402, 402]
    assert named.json()["error"]["affordable_max_tokens"] is None
    assert unnamed.json()["error"]["affordable_max_tokens"] is None


def test_without_max_tokens_the_reply_is_as_long_as_the_balance_affords(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, credits=held_for(16))

    answered = customer.chat(messages=HELLO)

    assert answered.status == 200
    assert upstream.last.body["max_tokens"] == 16
    assert customer.receipt_of(answered)["credits"]["reserved"] == held_for(16)


def test_without_max_tokens_the_models_default_is_held(
    upstream: FakeUpstream, customer: Customer
) -> None:
    answered = customer.chat(messages=HELLO)

    assert upstream.last.body["max_tokens"] == 1000
    assert customer.receipt_of(answered)["credits"]["reserved"] == held_for(1000)


def test_max_tokens_above_the_models_limit_is_capped_there(
    upstream: FakeUpstream, customer: Customer
) -> None:
    answered = customer.chat(messages=HELLO, max_completion_tokens=1_000_000)

    assert answered.status == 200
    assert upstream.last.body["max_tokens"] == 4096
    assert customer.receipt_of(answered)["credits"]["reserved"] == held_for(4096)


def test_several_choices_multiply_the_output_that_is_held_and_not_the_input(
    customer: Customer,
) -> None:
    answered = customer.chat(messages=HELLO, max_tokens=20, n=3)

    assert customer.receipt_of(answered)["credits"]["reserved"] == INPUT_BOUND + 2 * 60


def test_what_is_held_cannot_be_spent_and_comes_back(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", "b"], input_tokens=9, pace_seconds=0.5))

    with customer.begin_chat(messages=HELLO, stream=True, max_tokens=100) as running:
        head = running.read_head()
        during = customer.get("/accounts/me").json()
        other = customer.chat(messages=HELLO, max_tokens=10)
        running.read_events()

    assert head.header("X-Credits-Reserved") == str(held_for(100))
    assert head.header("X-Credits-Remaining") == str(100_000 - held_for(100))
    assert during["creditsHeld"] == held_for(100)
    assert during["creditBalance"] == 100_000
    consumed = int(other.header("X-Credits-Consumed") or "")
    assert other.header("X-Credits-Remaining") == str(100_000 - held_for(100) - consumed)
    after = customer.get("/accounts/me").json()
    assert after["creditsHeld"] == 0
    assert after["creditBalance"] == 100_000 - 13 - consumed


def test_of_many_requests_at_once_exactly_those_that_are_paid_for_run(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    affordable = 7
    customer = a_customer(
        server,
        credits=affordable * held_for(20) + 5,
        limits={"requests_per_minute": 1000},
    )
    upstream.answer(reply("a b c", input_tokens=9, output_tokens=20).delayed(1.0), times=None)
    replies: list[Reply] = []

    def ask() -> None:
        replies.append(customer.chat(messages=HELLO, max_tokens=20))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    statuses = [answered.status for answered in replies]
    assert statuses.count(200) == affordable
    assert statuses.count(402) == 40 - affordable
    assert customer.balance == affordable * held_for(20) + 5 - affordable * 49


def test_a_reply_costs_at_most_what_a_client_allows(
    upstream: FakeUpstream, customer: Customer
) -> None:
    allowed = held_for(50)

    capped = customer.chat(("X-Credits-Max", str(allowed)), messages=HELLO)
    refused = customer.chat(("X-Credits-Max", str(allowed)), messages=HELLO, max_tokens=51)
    wrong = customer.chat(("X-Credits-Max", "a few"), messages=HELLO)

    assert capped.status == 200
    assert upstream.last.body["max_tokens"] == 50
    assert refused.status == 402
    assert refused.json()["error"]["available"] == allowed
    assert wrong.status == 400


def test_a_tokens_spend_cap_is_kept(upstream: FakeUpstream, server: TollwayServer) -> None:
    customer = a_customer(server, spend_cap=held_for(20))
    upstream.answer(reply("a", input_tokens=9, output_tokens=20))

    first = customer.chat(messages=HELLO, max_tokens=20)
    second = customer.chat(messages=HELLO, max_tokens=20)

    assert first.status == 200
    assert second.status == 402
    assert second.json()["error"]["available"] == held_for(20) - 49
    assert customer.available == 100_000 - 49


def test_a_top_up_counts_from_the_next_request_on(server: TollwayServer) -> None:
    customer = a_customer(server, credits=0)
    before = customer.chat(messages=HELLO, max_tokens=20)

    server.operate("credit top-up", account=customer.account_id, amount=500)
    after = customer.chat(messages=HELLO, max_tokens=20)

    assert before.status == 402
    assert after.status == 200


def test_a_refund_is_a_transaction_of_its_own(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(reply("Hello", input_tokens=9, output_tokens=3))
    answered = customer.chat()
    request_id = answered.header("x-request-id")

    customer.server.operate("credit refund", request_id=request_id, reason="it was wrong")

    newest, charge, grant = customer.get("/credit-transactions").json()["data"]
    assert [newest["type"], charge["type"], grant["type"]] == ["refund", "charge", "grant"]
    assert newest["amount"] == -charge["amount"] == 15
    assert newest["requestId"] == charge["requestId"] == request_id
    assert newest["balance"] == customer.balance == 100_000


def test_transactions_are_paged_newest_first(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(reply("a", input_tokens=9, output_tokens=3), times=4)
    asked = [customer.chat().header("x-request-id") for _ in range(4)]

    first = customer.get("/credit-transactions?limit=2").json()
    last = customer.get("/credit-transactions?limit=2&page=3").json()
    beyond = customer.get("/credit-transactions?limit=2&page=4").json()

    assert [entry["requestId"] for entry in first["data"]] == asked[:1:-1]
    assert [entry["amount"] for entry in first["data"]] == [-15, -15]
    assert [entry["balance"] for entry in first["data"]] == [100_000 - 60, 100_000 - 45]
    assert first["pagination"] == {"page": 1, "limit": 2, "total": 5, "hasMore": True}
    assert [entry["type"] for entry in last["data"]] == ["grant"]
    assert last["data"][0]["requestId"] is None
    assert set(last["data"][0]) == {
        "id",
        "amount",
        "balance",
        "type",
        "description",
        "requestId",
        "createdAt",
    }
    assert last["pagination"]["hasMore"] is False
    assert beyond["data"] == []


@pytest.mark.parametrize("query", ["page=0", "limit=0", "limit=101", "page=x", "limit=-1"])
def test_a_wrong_page_is_refused_by_name(customer: Customer, query: str) -> None:
    refused = customer.get(f"/credit-transactions?{query}")

    assert refused.status == 400
    assert refused.json()["error"]["param"] == query.partition("=")[0]


def test_an_account_sees_only_its_own_transactions(
    upstream: FakeUpstream, server: TollwayServer, customer: Customer
) -> None:
    customer.chat()
    stranger = a_customer(server)

    assert [e["type"] for e in stranger.get("/credit-transactions").json()["data"]] == ["grant"]
    assert stranger.balance == 100_000


def test_an_account_is_shown_with_its_limits(server: TollwayServer) -> None:
    customer = a_customer(server, limits={"requests_per_minute": 7, "concurrent_requests": 3})

    me = customer.get("/accounts/me").json()

    assert set(me) == {"id", "name", "creditBalance", "creditsHeld", "createdAt", "limits"}
    assert me["id"] == customer.account_id
    assert me["limits"] == {
        "requestsPerMinute": 7,
        "otherRequestsPerMinute": 100,
        "concurrentRequests": 3,
        "tokenRequestsPerMinute": None,
        "tokenSpendCap": None,
        "tokenSpendCapLeft": None,
    }


def test_a_frozen_account_spends_nothing_and_can_still_be_read(customer: Customer) -> None:
    customer.server.operate("account freeze", name=customer.account_id)

    refused = customer.chat()

    assert refused.status == 403
    assert refused.json()["error"]["code"] == "account_frozen"
    assert customer.balance == 100_000
    customer.server.operate("account unfreeze", name=customer.account_id)
    assert customer.chat().status == 200
