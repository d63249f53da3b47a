import pytest
from tests.support.api import MODEL, PLAIN_MODEL, Api
from tests.support.builders import chat_body

QUOTE = "/api/v1/chat/completions/quote"


async def test_a_quote_is_the_most_that_the_request_could_cost(api: Api) -> None:
    api.exact_tokens = 61
    body = chat_body(model=MODEL, max_tokens=300, n=2)
    reply = await api.post(QUOTE, api.secret, body)
    assert reply.json() == {
        "object": "quote",
        "model": MODEL,
        "promptTokensMax": 61,
        "completionTokensMax": 600,
        "creditsMax": 61 + 2 * 600,
        "creditsAvailable": 100_000,
        "affordable": True,
    }


async def test_a_quote_holds_and_charges_nothing_and_counts_among_the_other_requests(
    api: Api,
) -> None:
    reply = await api.post(QUOTE, api.secret, chat_body(model=MODEL))
    assert reply.header("x-ratelimit-limit-requests") == "100"
    assert reply.header("x-ratelimit-remaining-requests") == "99"
    assert api.ledger.open_holds() == []
    assert api.ledger.available(api.account.id) == 100_000


async def test_what_is_held_for_others_is_not_available(api: Api) -> None:
    await api.hold(99_999)
    reply = await api.post(QUOTE, api.secret, chat_body(model=MODEL))
    assert reply.json()["creditsAvailable"] == 1
    assert reply.json()["affordable"] is False


async def test_what_is_refused_as_a_request_is_refused_as_a_quote(api: Api) -> None:
    wrong = await api.post(QUOTE, api.secret, chat_body(model=MODEL, temperature=3))
    unknown = await api.post(QUOTE, api.secret, chat_body(model="acme/nothing"))
    _, strict = await api.issue(strict=True)
    ignored = await api.post(QUOTE, strict, chat_body(model=PLAIN_MODEL, seed=1))
    assert (wrong.status, wrong.param) == (400, "temperature")
    assert (unknown.status, unknown.code) == (404, "model_not_found")
    assert (ignored.status, ignored.param) == (400, "seed")


async def test_a_prompt_that_does_not_fit_costs_no_place(api: Api) -> None:
    api.exact_tokens = 1000
    reply = await api.post(QUOTE, api.secret, chat_body(model=MODEL))
    assert (reply.status, reply.code) == (400, "context_length_exceeded")
    assert reply.header("x-ratelimit-remaining-requests") == "100"


async def test_a_frozen_account_gets_no_quote(api: Api) -> None:
    await api.accounts.freeze("default")
    reply = await api.post(QUOTE, api.secret, chat_body(model=MODEL))
    assert (reply.status, reply.code) == (403, "account_frozen")


async def test_what_a_tokens_spend_cap_leaves_is_what_it_may_spend(api: Api) -> None:
    api.exact_tokens = 100
    _, secret = await api.issue(spend_cap=299)
    body = chat_body(model=MODEL, max_tokens=100)
    reply = (await api.post(QUOTE, secret, body)).json()
    assert (reply["creditsMax"], reply["creditsAvailable"]) == (300, 299)
    assert reply["affordable"] is False
    assert (await api.post(QUOTE, api.secret, body)).json()["affordable"] is True


@pytest.mark.parametrize(("cap", "available"), [(0, 0), (100_001, 100_000)])
async def test_a_spend_cap_of_nothing_leaves_nothing_and_one_beyond_the_account_its_credit(
    api: Api, cap: int, available: int
) -> None:
    _, secret = await api.issue(spend_cap=cap)
    reply = await api.post(QUOTE, secret, chat_body(model=MODEL))
    assert reply.json()["creditsAvailable"] == available


async def test_what_a_request_costs_exactly_is_enough(api: Api) -> None:
    api.exact_tokens = 100
    await api.hold(100_000 - 300)
    quoted = (await api.post(QUOTE, api.secret, chat_body(model=MODEL, max_tokens=100))).json()
    assert quoted["creditsMax"] == quoted["creditsAvailable"] == 300
    assert quoted["affordable"] is True


async def test_a_model_that_a_token_may_not_use_is_not_quoted(api: Api) -> None:
    _, secret = await api.issue(models=[PLAIN_MODEL])
    reply = await api.post(QUOTE, secret, chat_body(model=MODEL))
    assert (reply.status, reply.code) == (404, "model_not_found")
