"""A token that is changed stays the same secret, and its next request finds what was set."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.acceptance.test_spend_caps import HELLO, INPUT_BOUND, held_for, why
from tests.support.answers import reply
from tests.support.customer import Customer, a_customer, eventually
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import TollwayServer

from tollway.errors import Refused


def change(customer: Customer, *options: str) -> None:
    done = customer.server.command("token", "set", customer.token_id, *options)
    assert done.status == 0, done.stderr


def limits(customer: Customer) -> dict[str, object]:
    return customer.get("/accounts/me").json()["limits"]


def test_a_model_is_replaced(server: TollwayServer) -> None:
    customer = a_customer(server, models=["acme/parrot"])
    before = customer.of("acme/free").chat()

    change(customer, "--model", "acme/free")

    assert (before.status, before.json()["error"]["code"]) == (404, "model_not_found")
    assert customer.of("acme/free").chat().status == 200
    assert customer.chat().status == 404
    assert [model["id"] for model in customer.get("/models").json()["data"]] == ["acme/free"]
    (listed,) = customer.get("/auth/pat").json()["data"]
    assert listed["models"] == ["acme/free"]


def test_a_cap_that_was_reached_is_raised_and_lowered_again(
    server: TollwayServer, upstream: FakeUpstream
) -> None:
    customer = a_customer(server, spend_cap=held_for(20))
    upstream.answer(reply("a", input_tokens=INPUT_BOUND, output_tokens=20), times=None)
    asked = {"messages": HELLO, "max_tokens": 20}
    spends_it_all = customer.chat(**asked)
    refused = customer.chat(**asked)

    change(customer, "--spend-cap", str(2 * held_for(20)))
    quote = customer.post("/chat/completions/quote", customer.chat_fields(**asked)).json()
    left = limits(customer)
    admitted = customer.chat(**asked)
    change(customer, "--spend-cap", "1")
    after = customer.chat(**asked)

    assert [spends_it_all.status, refused.status, admitted.status] == [200, 402, 200]
    assert (quote["creditsAvailable"], quote["affordable"]) == (held_for(20), True)
    assert (left["tokenSpendCap"], left["tokenSpendCapLeft"]) == (2 * held_for(20), held_for(20))
    assert after.status == 402
    assert why(after) == {"limit": "spend_cap", "value": 1, "held": 0, "available": 0}
    assert limits(customer)["tokenSpendCapLeft"] == 0


def test_a_request_in_flight_ends_as_it_was_admitted(
    server: TollwayServer, upstream: FakeUpstream
) -> None:
    customer = a_customer(server, spend_cap=held_for(20), models=["acme/parrot"])
    upstream.answer(reply("a", input_tokens=INPUT_BOUND, output_tokens=20).delayed(0.5))

    with customer.begin_chat(messages=HELLO, max_tokens=20) as running:
        upstream.wait_until(lambda: len(upstream.exchanges) > 0 and not upstream.last.finished)
        server.operate(
            "token set",
            token_id=customer.token_id,
            spend_cap=1,
            models=["acme/free"],
            expires_in_seconds=1,
        )
        ended = running.read_reply()

    assert ended.status == 200
    assert ended.header("X-Credits-Consumed") == str(held_for(20))
    assert server.operate("ledger verify") == {"data": []}


def test_a_rate_is_given_changed_and_taken_away(server: TollwayServer) -> None:
    customer = a_customer(server)

    change(customer, "--requests-per-minute", "1")
    limited = [customer.chat().status for _ in range(2)]
    change(customer, "--requests-per-minute", "2")
    raised = [customer.chat().status for _ in range(2)]
    change(customer, "--requests-per-minute", "default")

    assert (limited, raised) == ([200, 429], [200, 429])
    assert customer.chat().status == 200
    assert limits(customer)["tokenRequestsPerMinute"] is None


def test_a_token_is_given_an_end_and_one_that_has_expired_another(server: TollwayServer) -> None:
    customer = a_customer(server, expires_in_seconds=1)
    eventually(lambda: customer.get("/models").status == 401, 5.0)
    expired = customer.chat()

    change(customer, "--expires-in", "never")

    assert (expired.status, expired.json()["error"]["code"]) == (401, "token_expired")
    assert customer.chat().status == 200
    change(customer, "--expires-in", "60")
    (listed,) = customer.get("/auth/pat").json()["data"]
    assert listed["expiresAt"] is not None


def test_a_token_is_made_strict_and_no_longer(server: TollwayServer) -> None:
    customer = a_customer(server)
    lax = customer.chat(unheard_of=1)

    change(customer, "--strict")
    strict = customer.chat(unheard_of=1)
    change(customer, "--no-strict")

    assert (lax.status, strict.status) == (200, 400)
    assert customer.chat(unheard_of=1).status == 200


def test_changes_at_once_are_all_made_and_a_revocation_among_them_is_for_good(
    server: TollwayServer,
) -> None:
    customer = a_customer(server, spend_cap=100_000)
    changes = {
        "name": ("--name", "new"),
        "spendCap": ("--spend-cap", "200000"),
        "requestsPerMinute": ("--requests-per-minute", "9"),
        "strict": ("--strict",),
    }

    with ThreadPoolExecutor(5) as threads:
        made = {
            limit: threads.submit(server.command, "token", "set", customer.token_id, *options)
            for limit, options in changes.items()
        }
        revoked = threads.submit(server.command, "token", "revoke", customer.token_id, "--json")

    assert revoked.result().status == 0
    (token,) = (
        one for one in server.operate("token list")["data"] if one["id"] == customer.token_id
    )
    told = {"name": "new", "spendCap": 200_000, "requestsPerMinute": 9, "strict": True}
    before = {"name": "test", "spendCap": 100_000, "requestsPerMinute": None, "strict": False}
    for limit, done in made.items():
        is_made = done.result().status == 0
        assert is_made or "was revoked, for good" in done.result().stderr
        assert token[limit] == (told if is_made else before)[limit]
    assert token["revokedAt"] is not None
    assert customer.chat().status == 401
    with pytest.raises(Refused, match="was revoked, for good"):
        server.operate("token set", token_id=customer.token_id, name="newer")
