"""A quote is the most that a request could cost. It runs nothing and charges nothing."""

import pytest
from tests.support.builders import message
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import Reply
from tests.support.server import TollwayServer

HELLO = [message("Hello!")]
INPUT_BOUND = 6 + 16 + 256


def quote(customer: Customer, **fields: object) -> Reply:
    return customer.post(
        "/chat/completions/quote", customer.chat_fields(**{"messages": HELLO, **fields})
    )


@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
def test_a_quote_says_the_most_a_request_could_cost(customer: Customer, base: str) -> None:
    quoted = quote(customer.over(base), max_tokens=500)

    assert quoted.status == 200
    assert quoted.json() == {
        "object": "quote",
        "model": "acme/parrot",
        "promptTokensMax": INPUT_BOUND,
        "completionTokensMax": 500,
        "creditsMax": INPUT_BOUND + 1000,
        "creditsAvailable": 100_000,
        "affordable": True,
    }


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 9}, {"n": 3, "max_tokens": 9}])
def test_a_request_reserves_exactly_its_quote(
    customer: Customer, fields: dict[str, object]
) -> None:
    quoted = quote(customer, **fields).json()

    reserved = customer.receipt_of(customer.chat(messages=HELLO, **fields))["credits"]["reserved"]

    assert reserved == quoted["creditsMax"]


def test_a_quote_runs_and_charges_nothing(upstream: FakeUpstream, customer: Customer) -> None:
    before = len(upstream.exchanges)

    quoted = quote(customer)

    assert len(upstream.exchanges) == before
    assert customer.balance == 100_000
    assert customer.get(f"/receipts/{quoted.header('x-request-id')}").status == 404


def test_a_quote_says_when_it_is_not_affordable(server: TollwayServer) -> None:
    customer = a_customer(server, credits=INPUT_BOUND + 100)

    assert quote(customer, max_tokens=50).json()["affordable"] is True
    assert quote(customer, max_tokens=51).json()["affordable"] is False


def test_a_quote_takes_no_place_of_the_metered_route(server: TollwayServer) -> None:
    customer = a_customer(server, limits={"requests_per_minute": 1})

    quoted = [quote(customer) for _ in range(3)]

    assert [one.header("x-ratelimit-limit-requests") for one in quoted] == ["100"] * 3
    assert customer.chat().status == 200


def test_a_quote_is_refused_as_the_request_would_be(customer: Customer) -> None:
    assert quote(customer, temperature=3).json()["error"]["param"] == "temperature"
    assert quote(customer, model="acme/none").json()["error"]["code"] == "model_not_found"
    assert quote(customer.with_token(scopes=["account"])).status == 403
    assert quote(customer.with_token(strict=True), top_k=1).status == 400
