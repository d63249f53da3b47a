"""Every request that held credit has a receipt, written with its settlement, from which its charge
can be computed again."""

import re

import pytest
from tests.support.answers import openai_error, reply, stream
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.server import TollwayServer

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_a_receipt_says_what_was_asked_used_and_charged(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(reply("Hello there.", input_tokens=25, output_tokens=80).delayed(0.05))

    answered = customer.chat(("X-Request-Id", "mine-7"), max_tokens=500)

    receipt = customer.receipt_of(answered)
    assert receipt["id"] == answered.header("x-request-id")
    assert receipt["object"] == "receipt"
    assert receipt["accountId"] == customer.account_id
    assert receipt["tokenId"] == customer.token_id
    assert receipt["model"] == "acme/parrot"
    assert receipt["upstream"] == "gpu-1"
    assert receipt["upstreamId"] == f"chatcmpl-fake{upstream.last.number:08d}"
    assert receipt["clientRequestId"] == "mine-7"
    assert receipt["status"] == "completed"
    assert TIME.fullmatch(receipt["createdAt"])
    assert TIME.fullmatch(receipt["finishedAt"])
    assert receipt["createdAt"] <= receipt["finishedAt"]
    assert receipt["usage"] == {
        "prompt_tokens": 25,
        "completion_tokens": 80,
        "total_tokens": 105,
        "source": "upstream",
    }
    assert receipt["rates"] == {"prompt": 1_000_000, "completion": 2_000_000}
    assert receipt["credits"]["consumed"] == 25 + 2 * 80
    assert receipt["credits"]["shortfall"] == 0
    assert receipt["credits"]["remaining"] == 100_000 - 185
    assert receipt["credits"]["reserved"] > 2 * 500
    assert 50 <= receipt["timings"]["firstTokenMs"] <= receipt["timings"]["totalMs"] < 5000
    assert receipt["attempts"][0]["upstream"] == "gpu-1"
    assert receipt["attempts"][0]["status"] == 200


def test_a_receipt_can_be_read_when_a_stream_shows_its_end(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(stream(["a", "b", "c"], input_tokens=9))

    with customer.begin_chat(stream=True) as client:
        head = client.read_head()
        events = client.read_events(7)  # role, three texts, finish, credits and the end
        receipt = customer.receipt(head.header("x-request-id") or "")

    assert events[-1].data == "[DONE]"
    assert receipt["credits"]["consumed"] == 15


def test_a_request_that_failed_has_a_receipt_of_nothing(
    upstream: FakeUpstream, customer: Customer
) -> None:
    upstream.answer(openai_error(500, "No."))

    receipt = customer.receipt_of(customer.chat())

    assert receipt["status"] == "failed"
    assert receipt["credits"]["consumed"] == 0
    assert receipt["attempts"][0]["status"] == 500


def test_a_refused_request_has_none(server: TollwayServer) -> None:
    customer = a_customer(server, credits=0)

    refused = customer.chat()

    assert refused.status == 402
    assert customer.get(f"/receipts/{refused.header('x-request-id')}").status == 404


@pytest.mark.parametrize("scopes", [["llm-all"], ["account"]])
def test_a_receipt_is_its_accounts_alone(
    customer: Customer, server: TollwayServer, scopes: list[str]
) -> None:
    request_id = customer.chat().header("x-request-id")

    owner = customer.with_token(scopes=scopes)
    stranger = a_customer(server, scopes=scopes)

    assert owner.get(f"/receipts/{request_id}").status == 200
    theirs = stranger.get(f"/receipts/{request_id}")
    unknown = stranger.get("/receipts/req_00000000000000000000000000000000")
    assert theirs.status == unknown.status == 404
    assert theirs.json()["error"]["code"] == "not_found"
