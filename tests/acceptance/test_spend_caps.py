"""What a request may cost at most, and a token in all, is kept exactly, and who is refused is told
by which limit."""

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.conftest import MODELS, UPSTREAM_KEY
from tests.support.answers import reply
from tests.support.builders import message
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import Reply
from tests.support.server import TollwayServer

HELLO = [message("Hello!")]
INPUT_BOUND = 6 + 16 + 256


def held_for(max_tokens: int) -> int:
    return INPUT_BOUND + 2 * max_tokens


def at_once(number: int, customer: Customer, **fields: object) -> list[Reply]:
    replies: list[Reply] = []

    def ask() -> None:
        replies.append(customer.chat(messages=HELLO, **fields))

    threads = [threading.Thread(target=ask) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def why(refused: Reply) -> dict[str, object]:
    return refused.json()["error"]["why"]


def test_requests_at_once_never_take_a_token_above_its_cap(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    # Each costs all that was held for it, so that what is held becomes what is spent.
    customer = a_customer(server, spend_cap=5 * held_for(20) + 100)
    answer = reply("a", input_tokens=INPUT_BOUND, output_tokens=20)
    upstream.answer(answer.delayed(0.2), times=None)

    replies = at_once(20, customer, max_tokens=20)

    statuses = [one.status for one in replies]
    assert (statuses.count(200), statuses.count(402)) == (5, 15)
    assert {why(one)["limit"] for one in replies if one.status == 402} == {"spend_cap"}
    assert customer.balance == 100_000 - 5 * held_for(20)


def test_a_402_tells_what_the_cap_is_and_what_requests_in_flight_hold(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    cap = 2 * held_for(20) + 30
    customer = a_customer(server, spend_cap=cap)
    upstream.answer(reply("a", input_tokens=9, output_tokens=20))
    upstream.answer(reply("a", input_tokens=9, output_tokens=20).delayed(0.5))
    customer.chat(messages=HELLO, max_tokens=20)  # spends 49

    with customer.begin_chat(messages=HELLO, max_tokens=20) as running:
        upstream.wait_until(lambda: len(upstream.exchanges) > 0 and not upstream.last.finished)
        refused = customer.chat(messages=HELLO, max_tokens=200)
        running.read_reply()

    assert refused.status == 402
    held = held_for(20)
    available = cap - 49 - held
    assert why(refused) == {
        "limit": "spend_cap",
        "value": cap,
        "held": held,
        "available": available,
    }
    assert refused.json()["error"]["available"] == available


def test_a_402_tells_the_balance_and_what_is_held_of_it(server: TollwayServer) -> None:
    customer = a_customer(server, credits=40)

    refused = customer.chat(messages=HELLO, max_tokens=20)

    assert why(refused) == {"limit": "balance", "value": 40, "held": 0, "available": 40}


def test_who_names_no_length_gets_what_the_cap_leaves(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, spend_cap=held_for(30))

    first = customer.chat(messages=HELLO)

    assert first.status == 200
    assert upstream.last.body["max_tokens"] == 30


@pytest.mark.parametrize("limit", ["0", "277", str(held_for(16) - 1)])
def test_x_credits_max_refuses_what_could_cost_more(customer: Customer, limit: str) -> None:
    refused = customer.chat(("X-Credits-Max", limit), messages=HELLO)

    assert refused.status == 402
    most = int(limit)
    assert why(refused) == {"limit": "credits_max", "value": most, "held": 0, "available": most}
    assert customer.available == 100_000


@pytest.mark.parametrize("header", ["", "-1", "1.5", "a few", "1e3", "9" * 16])
def test_x_credits_max_that_is_no_number_is_refused(customer: Customer, header: str) -> None:
    refused = customer.chat(("X-Credits-Max", header), messages=HELLO)

    assert refused.status == 400
    assert "X-Credits-Max" in refused.json()["error"]["message"]


def test_x_credits_max_caps_what_the_model_may_say(
    upstream: FakeUpstream, customer: Customer
) -> None:
    answered = customer.chat(("X-Credits-Max", str(held_for(33) + 1)), messages=HELLO)

    assert answered.status == 200
    assert upstream.last.body["max_tokens"] == 33
    assert customer.receipt_of(answered)["credits"]["reserved"] == held_for(33) + 1


def test_a_spend_cap_outlives_a_kill_and_a_refund_does_not_raise_it(
    running_upstream: FakeUpstream, tmp_path: Path
) -> None:
    config = MODELS.format(upstream=running_upstream.base_url)
    server = TollwayServer(tmp_path / "data", config, env={"GPU_1_KEY": UPSTREAM_KEY})
    cap = held_for(20)
    with server:
        customer = a_customer(server, spend_cap=cap)
        spent = int(customer.chat(messages=HELLO, max_tokens=20).header("X-Credits-Consumed") or 0)
        server.kill()
        server.start()
        refused = customer.chat(messages=HELLO, max_tokens=20)
        request_id = customer.get("/credit-transactions").json()["data"][0]["requestId"]
        server.operate("credit refund", request_id=request_id)
        limits = customer.get("/accounts/me").json()["limits"]
        still = customer.chat(messages=HELLO, max_tokens=20)

        assert spent > 0
        left = cap - spent
        expected = {"limit": "spend_cap", "value": cap, "held": 0, "available": left}
        assert why(refused) == why(still) == expected
        assert (limits["tokenSpendCap"], limits["tokenSpendCapLeft"]) == (cap, left)


def test_a_quote_knows_what_the_cap_leaves(server: TollwayServer) -> None:
    customer = a_customer(server, spend_cap=held_for(20) - 1)

    quote = customer.post(
        "/chat/completions/quote", customer.chat_fields(messages=HELLO, max_tokens=20)
    ).json()

    assert (quote["creditsMax"], quote["creditsAvailable"]) == (held_for(20), held_for(20) - 1)
    assert quote["affordable"] is False


@pytest.mark.parametrize(
    ("limits", "token", "limit"),
    [
        ({"requests_per_minute": 1}, {}, "requests_per_minute"),
        ({}, {"requests_per_minute": 1}, "token_requests_per_minute"),
    ],
)
def test_a_429_tells_which_rate_it_was_and_when_a_place_is_free(
    server: TollwayServer, limits: dict[str, int], token: dict[str, Any], limit: str
) -> None:
    customer = a_customer(server, limits=limits, **token)
    customer.chat(messages=HELLO)

    refused = customer.chat(messages=HELLO)

    told = refused.json()["error"]["why"]
    assert (refused.status, told["limit"], told["value"]) == (429, limit, 1)
    assert 50 < told["freeAfterSeconds"] <= 60


def test_a_429_tells_that_too_many_run_at_a_time(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, limits={"concurrent_requests": 2})
    upstream.answer(reply("a").delayed(0.3), times=None)

    refused = [one for one in at_once(4, customer, max_tokens=16) if one.status == 429]

    expected = {"limit": "concurrent_requests", "value": 2, "freeAfterSeconds": 1.0}
    assert [why(one) for one in refused] == [expected] * 2


def test_a_429_of_another_route_tells_its_limit(customer: Customer) -> None:
    for _ in range(100):
        customer.get("/accounts/me")

    told = customer.get("/models").json()["error"]["why"]

    assert (told["limit"], told["value"]) == ("other_requests_per_minute", 100)
    assert 0 < told["freeAfterSeconds"] <= 60
