"""What every route has in common: where it is, who may ask, how often, and how it refuses."""

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.support.api import Api, an_api, ask

READABLE = [
    "/models",
    "/models/acme/parrot",
    "/models/acme%2Fparrot",
    "/accounts/me",
    "/credit-transactions",
    "/auth/pat",
]


@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
@pytest.mark.parametrize("path", READABLE)
async def test_each_route_is_at_both_bases(api: Api, base: str, path: str) -> None:
    reply = await api.get(base + path, api.secret)
    assert reply.status == 200
    assert reply.header("content-type") == "application/json"
    assert reply.header("content-length") == str(len(reply.body))


@pytest.mark.parametrize("path", READABLE)
async def test_every_reply_has_an_id_and_the_state_of_its_rate(api: Api, path: str) -> None:
    reply = await api.get("/api/v1" + path, api.secret)
    assert re.fullmatch("req_[0-9a-f]{32}", reply.header("x-request-id") or "")
    assert reply.header("x-ratelimit-limit-requests") == "100"
    assert reply.header("x-ratelimit-remaining-requests") == "99"
    assert reply.header("x-ratelimit-reset-requests") == "0s"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/receipts/{request_id}", b""),
        ("POST", "/auth/pat", b'{"name":"laptop","scopes":["llm-all"]}'),
        ("DELETE", "/auth/pat/{token_id}", b""),
    ],
)
async def test_what_belongs_to_somebody_costs_a_place_too(
    api: Api, method: str, path: str, body: bytes
) -> None:
    request_id, _ = await api.charged_request()
    token, _ = await api.issue()
    path = path.format(request_id=request_id, token_id=token.id)
    reply = await api.ask(method, "/v1" + path, api.secret, body)
    assert reply.status in (200, 201)
    assert reply.header("x-ratelimit-remaining-requests") == "99"


@pytest.mark.parametrize("path", ["/", "/api/v1", "/v1/nothing", "/v2/models", "/v1/accounts/me/"])
async def test_an_unknown_route_is_404_in_the_errors_form(api: Api, path: str) -> None:
    reply = await api.get(path, api.secret)
    assert (reply.status, reply.code) == (404, "not_found")
    assert reply.json()["statusCode"] == 404
    assert reply.json()["error"]["request_id"] == reply.header("x-request-id")
    assert reply.header("x-credits-consumed") == "0"
    assert reply.header("x-credits-remaining") is None


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/chat/completions"])
async def test_who_asks_for_another_route_of_openai_is_told_which_there_are(
    api: Api, path: str
) -> None:
    reply = await api.post(path, api.secret, {})

    assert reply.status == 404
    message = reply.json()["error"]["message"]
    assert repr(path) in message
    assert "ends in /api/v1, and of OpenAI's API there are /chat/completions and /models" in message


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/auth/pat", "POST, GET, HEAD"),
        ("GET", "/v1/auth/pat/tok_1", "DELETE"),
        ("GET", "/api/v1/chat/completions", "POST"),
        ("HEAD", "/v1/chat/completions/quote", "POST"),
        ("OPTIONS", "/v1/accounts/me", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
async def test_another_method_is_405_and_says_which_are_taken(
    api: Api, method: str, path: str, allow: str
) -> None:
    reply = await api.ask(method, path, api.secret)
    assert reply.status == 405
    assert reply.header("allow") == allow


async def test_the_metered_route_is_not_answered_under_another_spelling(api: Api) -> None:
    reply = await api.post("/v1/chat%2Fcompletions", api.secret, {})
    assert (reply.status, reply.code) == (404, "not_found")


@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/v1/nothing"])
async def test_head_has_the_head_of_get_and_no_body(api: Api, path: str) -> None:
    get = await api.get(path, api.secret)
    head = await api.ask("HEAD", path, api.secret)
    assert head.status == get.status
    assert head.body == b""
    assert int(head.header("content-length") or 0) > 0


@pytest.mark.parametrize("path", [*READABLE, "/receipts/req_1"])
async def test_without_a_token_nothing_is_told(api: Api, path: str) -> None:
    reply = await api.get("/v1" + path)
    assert (reply.status, reply.code) == (401, "invalid_api_key")
    assert reply.header("www-authenticate") == "Bearer"
    assert reply.header("x-ratelimit-limit-requests") is None
    assert reply.header("x-credits-remaining") is None


async def test_failed_authentication_is_limited_by_address_and_a_valid_token_never(
    api: Api,
) -> None:
    statuses = [(await api.get("/v1/models", "tw_wrong")).status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert (await api.get("/v1/models", api.secret)).status == 200
    assert (await api.ask("GET", "/v1/models", "tw_wrong", peer="192.0.2.2")).status == 401


async def test_a_trusted_proxys_clients_are_told_apart(tmp_path: Path) -> None:
    proxies = (ip_network("10.0.0.0/8"),)
    async with an_api(tmp_path, failures_per_minute=1, trusted_proxies=proxies) as api:
        statuses = [
            (await api.ask("GET", "/v1/models", peer="10.0.0.1", x_forwarded_for=client)).status
            for client in ("192.0.2.7", "192.0.2.8", "192.0.2.7")
        ]
    assert statuses == [401, 401, 429]


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/models", ["account"]),
        ("GET", "/models/acme/parrot", ["account"]),
        ("POST", "/chat/completions/quote", ["account"]),
        ("POST", "/auth/pat", ["llm-all"]),
        ("GET", "/auth/pat", ["llm-all"]),
        ("DELETE", "/auth/pat/tok_1", ["llm-all"]),
    ],
)
async def test_a_token_without_the_scope_is_refused_before_its_body_is_read(
    api: Api, method: str, path: str, scopes: list[str]
) -> None:
    _, secret = await api.issue(scopes=scopes)
    reply = await api.ask(method, "/v1" + path, secret, b"not json")
    assert (reply.status, reply.code) == (403, "insufficient_scope")
    assert reply.header("x-credits-consumed") == "0"
    assert reply.header("x-credits-remaining") == "100000"
    assert reply.header("x-ratelimit-remaining-requests") == "100"


@pytest.mark.parametrize("path", ["/accounts/me", "/credit-transactions"])
@pytest.mark.parametrize("scopes", [["account"], ["llm-all"]])
async def test_an_account_is_read_with_any_scope(api: Api, path: str, scopes: list[str]) -> None:
    _, secret = await api.issue(scopes=scopes)
    assert (await api.get("/v1" + path, secret)).status == 200


async def test_a_minute_admits_the_limit_and_a_place_frees_when_the_oldest_leaves_it(
    tmp_path: Path,
) -> None:
    async with an_api(tmp_path, other_requests_per_minute=2) as api:
        assert (await api.get("/v1/models", api.secret)).status == 200
        api.clock.advance(20)
        assert (await api.get("/v1/accounts/me", api.secret)).status == 200
        refused = await api.get("/v1/models", api.secret)
        api.clock.advance(40.5)
        admitted = await api.get("/v1/models", api.secret)
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert refused.header("retry-after") == "40"
    assert refused.header("x-ratelimit-reset-requests") == "40s"
    assert refused.header("x-credits-remaining") == "100000"
    assert admitted.status == 200


async def test_the_limit_is_the_accounts_own(tmp_path: Path) -> None:
    async with an_api(tmp_path, other_requests_per_minute=1) as api:
        _, others_secret = await api.another_account()
        assert (await api.get("/v1/models", api.secret)).status == 200
        assert (await api.get("/v1/models", api.secret)).status == 429
        assert (await api.get("/v1/models", others_secret)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/credit-transactions?limit=0", b""),
        ("GET", "/models/acme/unknown", b""),
        ("POST", "/auth/pat", b"{}"),
        ("POST", "/chat/completions/quote", b"{"),
    ],
)
async def test_what_is_malformed_costs_no_place(
    api: Api, method: str, path: str, body: bytes
) -> None:
    reply = await api.ask(method, "/v1" + path, api.secret, body)
    assert reply.status in (400, 404)
    assert reply.header("x-ratelimit-remaining-requests") == "100"


@pytest.mark.parametrize("path", ["/v1/auth/pat", "/v1/chat/completions/quote"])
async def test_a_body_that_is_not_json_or_too_large_is_refused(api: Api, path: str) -> None:
    form = await api.ask("POST", path, api.secret, b"a=1", content_type="text/plain")
    zipped = await api.ask("POST", path, api.secret, b"{}", content_encoding="gzip")
    declared = await api.ask("POST", path, api.secret, content_length=str(5 * 2**20))
    head = [(b"authorization", f"Bearer {api.secret}".encode())]
    chunked = await ask(api.app, "POST", path, head, [b" " * 2**20] * 5)
    assert [r.status for r in (form, zipped, declared, chunked)] == [415, 415, 413, 413]
    assert (form.code, declared.code) == ("unsupported_media_type", "payload_too_large")


async def test_a_client_that_leaves_in_its_body_is_not_answered(api: Api) -> None:
    head = [(b"authorization", f"Bearer {api.secret}".encode())]
    reply = await ask(api.app, "POST", "/v1/auth/pat", head, [])
    assert reply.status == 0


async def test_a_database_that_cannot_be_read_is_503_and_gives_the_place_back(api: Api) -> None:
    api.break_database()
    reply = await api.get("/v1/receipts/req_1", api.secret)
    assert (reply.status, reply.code) == (503, "unavailable")
    assert reply.header("x-ratelimit-remaining-requests") == "100"
