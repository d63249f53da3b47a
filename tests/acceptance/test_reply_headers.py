"""What every reply of the API has: its request id, the rate of its route, and the credits."""

import re

import pytest
from tests.support.answers import reply
from tests.support.builders import chat_bytes
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient, Reply
from tests.support.server import TollwayServer

RATE = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
PATHS = ("/models", "/models/acme/parrot", "/accounts/me", "/credit-transactions", "/auth/pat")


def assert_rate_is_told(answered: Reply, limit: int, remaining: int) -> None:
    assert answered.header("x-ratelimit-limit-requests") == str(limit)
    assert answered.header("x-ratelimit-remaining-requests") == str(remaining)
    assert re.fullmatch(r"(\d+m)?\d+s", answered.header("x-ratelimit-reset-requests") or "")


@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
@pytest.mark.parametrize("path", PATHS)
def test_every_other_route_tells_its_id_and_rate(customer: Customer, base: str, path: str) -> None:
    first, second = customer.over(base).get(path), customer.over(base).get(path)

    assert first.status == 200
    assert re.fullmatch(r"req_[0-9a-f]{32}", first.header("x-request-id") or "")
    assert first.header("x-request-id") != second.header("x-request-id")
    assert_rate_is_told(first, 100, 99)
    assert_rate_is_told(second, 100, 98)


@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
def test_the_metered_route_has_a_rate_of_its_own(customer: Customer, base: str) -> None:
    customer.get("/models")

    assert_rate_is_told(customer.over(base).chat(), 30, 29)
    assert_rate_is_told(customer.over(base).chat(stream=True), 30, 28)
    assert_rate_is_told(customer.over(base).chat(temperature=3), 30, 28)


def test_both_bases_count_together(customer: Customer) -> None:
    assert_rate_is_told(customer.over("/api/v1").chat(), 30, 29)
    assert_rate_is_told(customer.over("/v1").chat(), 30, 28)


def test_a_replys_id_is_its_request_id(customer: Customer) -> None:
    answered = customer.chat()

    request_id = answered.header("x-request-id") or ""
    assert answered.json()["id"] == "chatcmpl-" + request_id.removeprefix("req_")


def test_the_request_id_is_ours_and_goes_upstream(
    upstream: FakeUpstream, customer: Customer
) -> None:
    answered = customer.chat(("X-Request-Id", "req_mine"))

    assert answered.header("x-request-id") != "req_mine"
    assert upstream.last.header("x-request-id") == answered.header("x-request-id")
    assert customer.receipt_of(answered)["clientRequestId"] == "req_mine"


def test_a_clients_request_id_is_no_key(customer: Customer) -> None:
    first = customer.chat(("X-Request-Id", "req_mine"))
    second = customer.chat(("X-Request-Id", "req_mine"))

    assert customer.receipt_of(first)["id"] != customer.receipt_of(second)["id"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_pages_outside_the_base_need_no_token(server: TollwayServer, path: str) -> None:
    with RawClient("127.0.0.1", server.port) as client:
        client.request("GET", path)
        shown = client.read_reply()
        client.request("HEAD", path)
        head = client.read_reply(bodyless=True)
        client.request("POST", path, b"{}")
        refused = client.read_reply()

    assert shown.status == head.status == 200
    assert shown.header("x-request-id")
    assert refused.status == 405
    assert refused.header("Allow") == "GET, HEAD"
    assert refused.json()["error"]["code"] == "method_not_allowed"


def test_credits_are_told_on_errors_once_the_account_is_known(server: TollwayServer) -> None:
    customer = a_customer(server, credits=50)

    for refused in (customer.chat(temperature=3), customer.chat(), customer.get("/receipts/x")):
        assert refused.header("X-Credits-Consumed") == "0"
        assert refused.header("X-Credits-Remaining") == "50"


def test_a_plain_reply_is_openais_and_no_more(upstream: FakeUpstream, customer: Customer) -> None:
    extra = {"timings": {"n": 1}, "prompt_logprobs": None, "kv_transfer_params": {}}
    upstream.answer(
        reply(
            "Hello",
            input_tokens=9,
            output_tokens=3,
            message={"reasoning_content": "hm", "secret_field": 1},
            extra=extra,
        )
    )

    body = customer.chat().json()

    assert set(body) == {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "system_fingerprint",
        "usage",
    }
    assert body["object"] == "chat.completion"
    assert body["model"] == "acme/parrot"
    assert body["system_fingerprint"] == "fp_fake"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello",
                "refusal": None,
                "reasoning_content": "hm",
            },
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]


def test_usage_details_pass(upstream: FakeUpstream, customer: Customer) -> None:
    told = {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    upstream.answer(reply("Hello", usage=told))

    usage = customer.chat().json()["usage"]

    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_a_reply_with_calls_finishes_with_tool_calls(
    upstream: FakeUpstream, customer: Customer
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    upstream.answer(reply(None, output_tokens=5, message={"tool_calls": [call]}), times=1)
    upstream.answer(reply("Hi", finish_reason="tool_calls", message={"tool_calls": []}), times=1)

    with_call = customer.chat().json()["choices"][0]
    without = customer.chat().json()["choices"][0]

    assert with_call["finish_reason"] == "tool_calls"
    assert with_call["message"]["content"] is None
    assert with_call["message"]["tool_calls"] == [call]
    assert without["finish_reason"] == "stop"
    assert "tool_calls" not in without["message"]


# --- what goes upstream ---------------------------------------------------------------------------


def test_an_upstream_gets_its_own_key_and_model_name_and_a_cap(
    upstream: FakeUpstream, customer: Customer
) -> None:
    customer.chat(max_completion_tokens=7, seed=3, temperature=0)

    sent = upstream.last
    assert sent.header("authorization") == "Bearer sk-upstream-9f2c71"
    assert customer.token not in str(sent.headers)
    assert sent.body["model"] == "parrot-upstream"
    assert sent.body["max_tokens"] == 7
    assert "max_completion_tokens" not in sent.body
    assert sent.body["seed"] == 3
    assert sent.body["temperature"] == 0


def test_connections_to_an_upstream_are_used_again(
    upstream: FakeUpstream, customer: Customer
) -> None:
    customer.chat()
    before = upstream.connections_opened

    for _ in range(5):
        customer.chat()

    assert upstream.connections_opened == before


def test_an_expectation_is_met(customer: Customer) -> None:
    body = chat_bytes(model="acme/parrot")
    headers = (*customer.authorization, ("Expect", "100-continue"))
    length = ("Content-Length", str(len(body)))

    with customer.client() as client:
        client.request("POST", "/v1/chat/completions", None, *headers, length)
        told = client.read_head()
        client.send(body)
        answered = client.read_reply()

    assert told.status == 100
    assert answered.status == 200
