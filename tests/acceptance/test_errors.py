"""Every error of the contract's table: its status, its body, its headers, and the typed exception
that the SDK makes of it. What an upstream says in an error is never passed on."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.support.answers import Answer, error, hang, openai_error, raw, reply, stream
from tests.support.builders import message
from tests.support.customer import Customer, a_customer
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import RawClient, Reply
from tests.support.server import TollwayServer

SECRET = "sk-a-secret-of-the-provider"


def sdk(customer: Customer) -> openai.OpenAI:
    return openai.OpenAI(
        api_key=customer.token, base_url=customer.server.base_url, max_retries=0, timeout=30
    )


def assert_is_an_error(answered: Reply, status: int, type_: str, code: str) -> dict[str, Any]:
    assert answered.status == status
    assert answered.header("content-type") == "application/json"
    body = answered.json()
    assert set(body) == {"error", "message", "statusCode"}
    assert body["statusCode"] == status
    fact = body["error"]
    assert {"message", "type", "param", "code", "request_id"} <= set(fact)
    assert body["message"] == fact["message"]
    assert len(fact["message"]) > 15
    assert fact["type"] == type_
    assert fact["code"] == code
    assert fact["request_id"] == answered.header("x-request-id")
    assert fact["request_id"].startswith("req_")
    return fact


@pytest.fixture
def upstream_customer(server: TollwayServer) -> Customer:
    return a_customer(server, limits={"requests_per_minute": 1000})


# --- what a client did ----------------------------------------------------------------------------


def test_400(customer: Customer) -> None:
    fact = assert_is_an_error(
        customer.chat(temperature=3), 400, "invalid_request_error", "invalid_value"
    )
    assert fact["param"] == "temperature"
    assert "3" in fact["message"]

    with sdk(customer) as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model="acme/parrot", messages=[{"role": "user", "content": "Hi"}], temperature=3
        )
    assert raised.value.code == "invalid_value"
    assert raised.value.param == "temperature"
    assert (raised.value.request_id or "").startswith("req_")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer",
        "Bearer ",
        "Bearer tw_wrong",
        "Bearer sk-1234",
        "Basic dXNlcjpwYXNz",
        "Bearer tw_" + "A" * 49,
        "Bearer \xff\xfe",
        "Bearer " + "x" * 10_000,
    ],
)
def test_401(server: TollwayServer, authorization: str | None) -> None:
    headers = () if authorization is None else (("Authorization", authorization),)

    for path in ("/api/v1/models", "/api/v1/accounts/me", "/api/v1/auth/pat"):
        with RawClient("127.0.0.1", server.port) as client:
            client.request("GET", path, None, *headers)
            refused = client.read_reply()
        assert_is_an_error(refused, 401, "authentication_error", "invalid_api_key")
        assert refused.header("WWW-Authenticate") == "Bearer"
        assert refused.header("x-ratelimit-limit-requests") is None
        assert refused.header("X-Credits-Remaining") is None
        assert refused.header("X-Credits-Consumed") == "0"


def test_401_of_the_metered_route_is_the_same(server: TollwayServer) -> None:
    customer = a_customer(server)
    customer.server.operate("token revoke", token_id=customer.token_id)

    refused = customer.chat()
    elsewhere = customer.get("/models")

    assert_is_an_error(refused, 401, "authentication_error", "invalid_api_key")
    assert refused.header("WWW-Authenticate") == "Bearer"
    assert refused.header("X-Credits-Remaining") is None
    assert elsewhere.json()["message"] == refused.json()["message"]
    assert customer.token not in refused.body.decode()
    with sdk(customer) as client, pytest.raises(openai.AuthenticationError) as raised:
        client.models.list()
    assert raised.value.code == "invalid_api_key"


def test_402(server: TollwayServer) -> None:
    customer = a_customer(server, credits=10)

    fact = assert_is_an_error(
        customer.chat(max_tokens=50), 402, "insufficient_credits", "insufficient_credits"
    )
    assert fact["required"] > fact["available"] == 10
    assert fact["affordable_max_tokens"] is None

    with sdk(customer) as client, pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(
            model="acme/parrot", messages=[{"role": "user", "content": "Hi"}], max_tokens=50
        )
    assert raised.value.status_code == 402
    assert raised.value.code == "insufficient_credits"


def test_403_for_a_scope(customer: Customer) -> None:
    reader = customer.with_token(scopes=["account"])
    speaker = customer.with_token(scopes=["llm-all"])

    for refused, scope in ((reader.chat(), "llm-all"), (reader.get("/models"), "llm-all")):
        fact = assert_is_an_error(refused, 403, "permission_error", "insufficient_scope")
        assert scope in fact["message"]
    fact = assert_is_an_error(
        speaker.get("/auth/pat"), 403, "permission_error", "insufficient_scope"
    )
    assert "account" in fact["message"]
    assert reader.get("/accounts/me").status == speaker.get("/accounts/me").status == 200

    with sdk(reader) as client, pytest.raises(openai.PermissionDeniedError) as raised:
        client.models.list()
    assert raised.value.code == "insufficient_scope"


def test_403_for_a_frozen_account(customer: Customer) -> None:
    customer.server.operate("account freeze", name=customer.account_id)

    assert_is_an_error(customer.chat(), 403, "permission_error", "account_frozen")


def test_404(customer: Customer) -> None:
    fact = assert_is_an_error(
        customer.of("acme/none").chat(), 404, "invalid_request_error", "model_not_found"
    )
    assert fact["param"] == "model"
    for path in ("/nothing", "/chat", "/chat/completions/x", "/receipts/req_1", "/auth/pat/1/2"):
        assert_is_an_error(customer.get(path), 404, "invalid_request_error", "not_found")

    with sdk(customer) as client, pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(
            model="acme/none", messages=[{"role": "user", "content": "Hi"}]
        )
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"


@pytest.mark.parametrize("ending", ["", "/api", "/api/v1/chat/completions"])
def test_a_wrong_base_url_is_told_what_it_ends_in(customer: Customer, ending: str) -> None:
    root = customer.server.base_url.removesuffix("/api/v1")
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]

    with (
        sdk(customer).with_options(base_url=root + ending) as client,
        pytest.raises(openai.NotFoundError, match="base URL of clients ends in /api/v1"),
    ):
        client.chat.completions.create(model="acme/parrot", messages=messages)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/chat/completions", "POST"),
        ("PUT", "/chat/completions", "POST"),
        ("GET", "/chat/completions/quote", "POST"),
        ("POST", "/models", "GET, HEAD"),
        ("DELETE", "/accounts/me", "GET, HEAD"),
        ("PATCH", "/credit-transactions", "GET, HEAD"),
        ("POST", "/receipts/req_1", "GET, HEAD"),
        ("PUT", "/auth/pat", "POST, GET, HEAD"),
        ("GET", "/auth/pat/tok_1", "DELETE"),
    ],
)
@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
def test_405(customer: Customer, base: str, method: str, path: str, allowed: str) -> None:
    refused = customer.over(base).ask(method, path)

    assert_is_an_error(refused, 405, "invalid_request_error", "method_not_allowed")
    assert set((refused.header("Allow") or "").split(", ")) == set(allowed.split(", "))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Credits-Max", "5000"),
        ("Idempotency-Key", "k"),
        ("X-Tollway-Timeout-Ms", "5000"),
        ("X-Session-Id", "s"),
        ("Content-Type", "application/json"),
    ],
)
def test_a_header_that_says_two_things_is_refused(
    customer: Customer, name: str, value: str
) -> None:
    refused = customer.chat((name, value + "x"), (name, value))
    same = customer.chat((name, value), (name, value))

    assert_is_an_error(refused, 400, "invalid_request_error", "invalid_value")
    assert f"{name.lower()} is there more than once" in refused.json()["message"]
    assert same.status == 200


def test_two_tokens_are_none(customer: Customer) -> None:
    other = ("Authorization", f"Bearer {customer.token} ")

    assert customer.chat(("Authorization", "Bearer tw_other")).status == 401
    assert customer.chat(("Authorization", "Bearer tw_other"), other).status == 400


def test_413(customer: Customer) -> None:
    refused = customer.ask("POST", "/chat/completions", b"x" * (4 * 1024 * 1024 + 1))

    assert_is_an_error(refused, 413, "invalid_request_error", "payload_too_large")


@pytest.mark.parametrize(
    "header",
    [("Content-Encoding", "gzip"), ("Content-Type", "text/plain")],
    ids=["encoding", "type"],
)
def test_415(customer: Customer, header: tuple[str, str]) -> None:
    body = json.dumps(customer.chat_fields()).encode()
    headers = [*customer.authorization, ("Content-Length", str(len(body))), header]

    with customer.client() as client:
        client.request("POST", "/api/v1/chat/completions", None, *headers)
        client.send(body)
        refused = client.read_reply()

    assert_is_an_error(refused, 415, "invalid_request_error", "unsupported_media_type")


def test_431(customer: Customer) -> None:
    refused = customer.get("/models", ("X-Long", "x" * 40_000))

    assert_is_an_error(refused, 431, "invalid_request_error", "request_header_fields_too_large")


def test_429(server: TollwayServer) -> None:
    customer = a_customer(server, limits={"requests_per_minute": 1})
    customer.chat()

    refused = customer.chat()

    assert_is_an_error(refused, 429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(refused.header("Retry-After") or "") <= 60
    assert 1 <= int(refused.header("retry-after-ms") or "") <= 60_000
    with sdk(customer) as client, pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(
            model="acme/parrot", messages=[{"role": "user", "content": "Hi"}]
        )
    assert raised.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nbroken header\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/auth/pat HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["nonsense", "header", "both lengths", "both lengths elsewhere"],
)
def test_what_is_not_http_is_refused(server: TollwayServer, data: bytes) -> None:
    with RawClient("127.0.0.1", server.port) as client:
        client.send(data)
        refused = client.read_reply()
        assert client.at_end()

    assert refused.status == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"


# --- what an upstream did -------------------------------------------------------------------------

UPSTREAM_ERRORS: list[tuple[str, Answer, int, str]] = [
    ("500", openai_error(500, SECRET), 502, "upstream_error"),
    ("html", error(502, f"<html>{SECRET}</html>"), 502, "upstream_error"),
    ("teapot", openai_error(418, SECRET), 502, "upstream_error"),
    ("redirect", error(302, "", ("Location", "http://example.com")), 502, "upstream_error"),
    ("not json", error(200, "<html>"), 502, "upstream_error"),
    ("not a completion", error(200, {"id": 1}), 502, "upstream_error"),
    ("no choice", reply("a", extra={"choices": []}), 502, "upstream_error"),
    ("not http", raw(b"SSH-2.0-OpenSSH\r\n"), 502, "upstream_error"),
    ("cut", reply("Hello there").cut_at(60), 502, "upstream_error"),
    ("reset", reply("Hello there").reset_at(60), 502, "upstream_error"),
    ("hang", stream([hang()]).hang_at(0), 504, "upstream_timeout"),
    ("504", openai_error(504, SECRET), 504, "upstream_timeout"),
    ("408", openai_error(408, SECRET), 504, "upstream_timeout"),
    ("429", openai_error(429, SECRET), 503, "overloaded"),
    ("503", openai_error(503, SECRET), 503, "overloaded"),
    ("401", openai_error(401, SECRET), 503, "unavailable"),
    ("402", openai_error(402, SECRET), 503, "unavailable"),
    ("403", openai_error(403, SECRET), 503, "unavailable"),
    ("404", openai_error(404, SECRET), 503, "unavailable"),
    ("400", openai_error(400, SECRET), 400, "invalid_value"),
    ("422", error(422, {"detail": [{"msg": SECRET}]}), 400, "invalid_value"),
    (
        "context",
        openai_error(400, f"This model's maximum context length is 8192 tokens {SECRET}"),
        400,
        "context_length_exceeded",
    ),
    (
        "older vLLM",
        error(400, {"object": "error", "message": "prompt is too long", "code": 400}),
        400,
        "context_length_exceeded",
    ),
]
TYPES = {400: "invalid_request_error"}


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [one[1:] for one in UPSTREAM_ERRORS],
    ids=[one[0] for one in UPSTREAM_ERRORS],
)
def test_an_upstreams_failure_has_a_code_of_ours_costs_nothing_and_tells_nothing(
    upstream: FakeUpstream,
    upstream_customer: Customer,
    answer: Answer,
    status: int,
    code: str,
    streamed: bool,
) -> None:
    upstream.answer(answer, times=None)

    refused = upstream_customer.chat(stream=streamed)

    assert_is_an_error(refused, status, TYPES.get(status, "api_error"), code)
    assert SECRET not in refused.body.decode()
    assert refused.header("X-Credits-Consumed") == "0"
    assert upstream_customer.balance == upstream_customer.available == 100_000


# What clients look for in the text, which makes them shorten a conversation and try again. OpenAI's
# SDK leaves the code out of it.
TOO_LONG = (
    "this model's maximum context length is",  # LiteLLM, and CrewAI, Strands and others
    "prompt is too long",  # LangChain
    "reduce the length of the messages",  # Pydantic AI
)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("words", TOO_LONG)
def test_a_conversation_that_is_too_long_is_refused_in_words_that_clients_know(
    upstream: FakeUpstream, customer: Customer, words: str, streamed: bool
) -> None:
    upstream.answer(openai_error(400, "prompt is too long: 9000 tokens > 8192 maximum"))

    refused = customer.chat(stream=streamed)

    assert words in refused.json()["error"]["message"].lower()


def test_503_says_when_to_come_back(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(openai_error(429, "Slow down.", ("Retry-After", "7")))

    refused = customer.of("acme/limited").chat()

    assert refused.header("Retry-After") == "7"
    assert refused.header("retry-after-ms") == "7000"


def test_an_upstream_that_is_not_there_is_unavailable(customer: Customer) -> None:
    refused = customer.of("acme/gone").chat()

    assert_is_an_error(refused, 503, "api_error", "unavailable")
    assert customer.balance == 100_000


def test_the_sdk_makes_a_server_error_of_a_502(upstream: FakeUpstream, customer: Customer) -> None:
    upstream.answer(openai_error(500, SECRET))

    with sdk(customer) as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(
            model="acme/parrot", messages=[{"role": "user", "content": "Hi"}]
        )

    assert raised.value.status_code == 502
    assert raised.value.code == "upstream_error"
    assert (raised.value.request_id or "").startswith("req_")


def test_no_error_echoes_a_secret(upstream: FakeUpstream, customer: Customer) -> None:
    wrong = customer.chat(messages=[message("my password is hunter2", "robot")])
    elsewhere = customer.get("/models?token=" + customer.token)
    missing = customer.get("/" + customer.token[:10])

    assert "hunter2" not in wrong.body.decode()
    assert customer.token not in elsewhere.body.decode() + missing.body.decode()


# --- which comes first ----------------------------------------------------------------------------


def test_the_checks_come_in_their_order(server: TollwayServer) -> None:
    """Route, authentication, scope, body, model, rate, credits: each answer hides those after."""
    poor = a_customer(server, credits=0, limits={"requests_per_minute": 1})
    reader = poor.with_token(scopes=["account"])
    rich = a_customer(server, limits={"requests_per_minute": 1})
    rich.chat()
    rich_and_poor = a_customer(server, credits=350, limits={"requests_per_minute": 1})
    rich_and_poor.chat(messages=[message("Hi")], max_tokens=20)
    stranger = Customer(server, "", "", "tw_wrong")

    assert stranger.get("/nothing").status == 404
    assert stranger.ask("POST", "/chat/completions", b"not json").status == 401
    assert reader.ask("POST", "/chat/completions", b"not json").status == 403
    assert rich.of("acme/none").chat(temperature=3).status == 400
    assert rich.of("acme/none").chat().status == 404
    assert rich.chat().status == 429
    assert rich_and_poor.chat(max_tokens=4000).status == 429
    assert poor.chat().status == 402


def test_a_refusal_for_credits_gives_the_place_back(server: TollwayServer) -> None:
    customer = a_customer(server, credits=400, limits={"requests_per_minute": 1})

    refused = [customer.chat(max_tokens=4000) for _ in range(3)]
    taken = customer.chat(messages=[message("Hi")], max_tokens=20)

    assert [reply.status for reply in refused] == [402] * 3
    assert taken.status == 200


def test_an_upstreams_failure_keeps_its_place(
    upstream: FakeUpstream, server: TollwayServer
) -> None:
    customer = a_customer(server, limits={"requests_per_minute": 1})
    upstream.answer(openai_error(500, "No."))

    assert customer.chat().status == 502
    assert customer.chat().status == 429
