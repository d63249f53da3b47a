import json
from typing import Any

import pytest
from tests.support.api import MODEL, PLAIN_MODEL, Api

PAT = "/v1/auth/pat"
EVERYTHING = {"name": "all", "scopes": ["llm-all", "account"]}

# --- the account ----------------------------------------------------------------------------------


async def test_the_account_shows_its_credit_with_what_is_held(api: Api) -> None:
    await api.hold(400)
    reply = await api.get("/v1/accounts/me", api.secret)
    assert reply.json() == {
        "id": api.account.id,
        "name": "default",
        "creditBalance": 100_000,
        "creditsHeld": 400,
        "createdAt": "2026-11-23T08:00:00.000Z",
        "limits": {
            "requestsPerMinute": 30,
            "otherRequestsPerMinute": 100,
            "concurrentRequests": 64,
            "tokenRequestsPerMinute": None,
            "tokenSpendCap": None,
            "tokenSpendCapLeft": None,
        },
    }


async def test_an_accounts_own_limits_are_shown(api: Api) -> None:
    await api.accounts.set_limits("default", requests_per_minute=7, concurrent_requests=2)
    limits = (await api.get("/v1/accounts/me", api.secret)).json()["limits"]
    assert (limits["requestsPerMinute"], limits["concurrentRequests"]) == (7, 2)


async def test_a_frozen_account_can_be_read(api: Api) -> None:
    await api.accounts.freeze("default")
    assert (await api.get("/v1/accounts/me", api.secret)).status == 200


# --- transactions ---------------------------------------------------------------------------------


async def test_transactions_come_newest_first_with_the_balance_each_left(api: Api) -> None:
    request_id, _ = await api.charged_request(30)
    await api.ledger.add(
        api.account.id, 30, kind="refund", ref=request_id, description="Slow answer"
    )
    refund, charge, grant = (await api.get("/v1/credit-transactions", api.secret)).json()["data"]
    suffix = api.account.id.removeprefix("acc_")
    assert charge == {
        "id": f"txn_{suffix}_2",
        "amount": -30,
        "balance": 99_970,
        "type": "charge",
        "description": f"{MODEL}: 10 + 10 tokens",
        "requestId": request_id,
        "createdAt": "2026-11-23T08:00:00.000Z",
    }
    assert (refund["type"], refund["amount"], refund["requestId"]) == ("refund", 30, request_id)
    assert (grant["type"], grant["balance"], grant["requestId"]) == ("grant", 100_000, None)


async def test_pages_cover_every_transaction_once(api: Api) -> None:
    for _ in range(4):
        await api.charged_request(1)
    pages = [
        (await api.get(f"/v1/credit-transactions?page={page}&limit=2", api.secret)).json()
        for page in (1, 2, 3, 4)
    ]
    ids = [row["id"] for page in pages for row in page["data"]]
    assert len(ids) == len(set(ids)) == 5
    assert pages[1]["pagination"] == {"page": 2, "limit": 2, "total": 5, "hasMore": True}
    assert [page["pagination"]["hasMore"] for page in pages] == [True, True, False, False]


async def test_without_a_limit_twenty_are_shown(api: Api) -> None:
    pagination = (await api.get("/v1/credit-transactions", api.secret)).json()["pagination"]
    assert pagination == {"page": 1, "limit": 20, "total": 1, "hasMore": False}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=", "limit"),
        ("limit=ten", "limit"),
        ("limit=-1", "limit"),
        ("limit=1&limit=2", "limit"),
        ("page=0", "page"),
        ("page=1.5", "page"),
        ("page=%D9%A1", "page"),
        ("page=1000000001", "page"),
        ("page=99999999999999999999999", "page"),
    ],
)
async def test_a_page_or_limit_out_of_range_is_named(api: Api, query: str, param: str) -> None:
    reply = await api.get(f"/v1/credit-transactions?{query}", api.secret)
    assert (reply.status, reply.code, reply.param) == (400, "invalid_value", param)


async def test_the_last_page_there_can_be_is_empty(api: Api) -> None:
    reply = await api.get("/v1/credit-transactions?page=1000000000&limit=100", api.secret)
    assert (reply.status, reply.json()["data"]) == (200, [])


async def test_transactions_are_the_accounts_own(api: Api) -> None:
    _, secret = await api.another_account()
    reply = await api.get("/v1/credit-transactions", secret)
    assert reply.json()["data"] == []


# --- receipts -------------------------------------------------------------------------------------


async def test_a_receipt_has_all_that_a_charge_can_be_checked_with(api: Api) -> None:
    request_id, _ = await api.charged_request(30)
    reply = await api.get(f"/v1/receipts/{request_id}", api.secret)
    assert reply.json() == {
        "id": request_id,
        "object": "receipt",
        "accountId": api.account.id,
        "tokenId": api.tokens.authenticate(api.secret).id,
        "model": MODEL,
        "upstream": "gpu-1",
        "upstreamId": "chatcmpl-theirs",
        "clientRequestId": "mine-1",
        "status": "completed",
        "createdAt": "2026-11-23T08:00:00.000Z",
        "finishedAt": "2026-11-23T08:00:00.940Z",
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 10,
            "total_tokens": 20,
            "source": "upstream",
            "cached_tokens": 0,
            "reasoning_tokens": 0,
        },
        "priceId": api.model().price.id,
        "rates": {
            "prompt": 1_000_000,
            "completion": 2_000_000,
            "cached_prompt": 1_000_000,
            "reasoning": 2_000_000,
        },
        "credits": {"reserved": 100, "consumed": 30, "shortfall": 0, "remaining": 99_970},
        "ledger": {"seq": 2, "hash": api.hash_of_entry(2)},
        "timings": {"firstTokenMs": 180, "totalMs": 940},
        "attempts": [{"upstream": "gpu-1", "status": 200}],
    }


async def test_a_request_that_cost_nothing_has_a_receipt(api: Api) -> None:
    request_id, _ = await api.charged_request(0, status="failed", first_token_seconds=None)
    receipt = (await api.get(f"/v1/receipts/{request_id}", api.secret)).json()
    assert (receipt["status"], receipt["credits"]["consumed"]) == ("failed", 0)
    assert receipt["timings"]["firstTokenMs"] is None


async def test_what_an_upstream_used_beyond_the_hold_is_shown_and_not_charged(api: Api) -> None:
    request_id, _ = await api.charged_request(130)
    credits = (await api.get(f"/v1/receipts/{request_id}", api.secret)).json()["credits"]
    assert (credits["consumed"], credits["shortfall"]) == (100, 30)


@pytest.mark.parametrize("wrong", ["req_1", "req_%00", "%F0%9F%8E%AB", "chatcmpl-1", "' OR 1=1 --"])
async def test_there_is_no_receipt_of_an_unknown_request(api: Api, wrong: str) -> None:
    reply = await api.get("/v1/receipts/" + wrong.replace(" ", "%20"), api.secret)
    assert (reply.status, reply.code) == (404, "not_found")


async def test_anothers_receipt_is_as_unknown_as_one_that_is_not_there(api: Api) -> None:
    request_id, _ = await api.charged_request()
    _, secret = await api.another_account()
    theirs = await api.get(f"/v1/receipts/{request_id}", secret)
    none = await api.get("/v1/receipts/req_0", secret)
    assert theirs.status == none.status == 404
    message = theirs.json()["message"]
    assert message.replace(request_id, "X") == none.json()["message"].replace("req_0", "X")


# --- tokens ---------------------------------------------------------------------------------------


async def test_a_token_that_was_issued_works_and_its_secret_is_shown_once(api: Api) -> None:
    body = {"name": "laptop", "scopes": ["llm-all"], "expires_in": 3600}
    reply = await api.post(PAT, api.secret, body)
    issued = reply.json()
    secret = issued.pop("personal_access_token")
    assert reply.status == 201
    assert reply.header("cache-control") == "no-store"
    assert issued == {"id": issued["id"], **body}
    assert (await api.get("/v1/models", secret)).status == 200
    assert secret not in (await api.get(PAT, api.secret)).body.decode()


async def test_a_token_without_an_end_says_so(api: Api) -> None:
    reply = await api.post(PAT, api.secret, EVERYTHING)
    assert reply.json()["expires_in"] is None


async def test_an_issued_token_ends_when_it_said(api: Api) -> None:
    body = {"name": "brief", "scopes": ["llm-all"], "expires_in": 60}
    secret = (await api.post(PAT, api.secret, body)).json()["personal_access_token"]
    api.clock.advance(60)
    reply = await api.get("/v1/models", secret)
    assert (reply.status, reply.code) == (401, "token_expired")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"scopes": ["llm-all"]}, "missing_required_parameter", "name"),
        ({"name": "a", "scopes": None}, "missing_required_parameter", "scopes"),
        ({"name": "", "scopes": ["llm-all"]}, "invalid_value", "name"),
        ({"name": "a\n", "scopes": ["llm-all"]}, "invalid_value", "name"),
        ({"name": "a" * 101, "scopes": ["llm-all"]}, "invalid_value", "name"),
        ({"name": 1, "scopes": ["llm-all"]}, "invalid_value", "name"),
        ({"name": "a", "scopes": []}, "invalid_value", "scopes"),
        ({"name": "a", "scopes": ["root"]}, "invalid_value", "scopes[0]"),
        ({"name": "a", "scopes": "llm-all"}, "invalid_value", "scopes"),
        ({**EVERYTHING, "expires_in": 0}, "invalid_value", "expires_in"),
        ({**EVERYTHING, "expires_in": True}, "invalid_value", "expires_in"),
        ({**EVERYTHING, "expires_in": 10**10}, "invalid_value", "expires_in"),
        ({**EVERYTHING, "models": [MODEL]}, "unsupported_parameter", "models"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_issued(
    api: Api, body: object, code: str, param: str
) -> None:
    before = api.tokens.list()
    reply = await api.post(PAT, api.secret, body)
    assert (reply.status, reply.code) == (400, code)
    # msgspec names an element of an array without its number.
    assert (reply.param or "").replace("[...]", "[0]") == param
    assert api.tokens.list() == before
    assert reply.header("x-ratelimit-remaining-requests") == "100"


async def test_a_scope_that_there_is_not_is_told_which_there_are(api: Api) -> None:
    reply = await api.post(PAT, api.secret, {"name": "a", "scopes": ["llm"]})

    message = reply.json()["error"]["message"]
    assert message.endswith(": invalid enum value 'llm'. It may be llm-all, account.")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"name":"a","name":"b"}', b"\xff"])
async def test_a_body_that_is_no_json_object_is_refused(api: Api, body: bytes) -> None:
    reply = await api.ask("POST", PAT, api.secret, body)
    assert (reply.status, reply.code) == (400, "invalid_json")


async def test_a_token_never_grants_a_scope_that_it_lacks(api: Api) -> None:
    _, secret = await api.issue(scopes=["account"])
    reply = await api.post(PAT, secret, EVERYTHING)
    assert (reply.status, reply.code) == (403, "insufficient_scope")
    assert "llm-all" in reply.json()["message"]
    assert len(api.tokens.list()) == 2


async def test_what_a_token_is_limited_to_limits_what_it_issues(api: Api) -> None:
    _, secret = await api.issue(models=[PLAIN_MODEL], strict=True, expires_in_seconds=100)
    api.clock.advance(30)
    issued = (await api.post(PAT, secret, EVERYTHING)).json()
    token = api.tokens.get(issued["id"])
    assert token is not None
    assert issued["expires_in"] == 70
    assert token.expires_at == api.clock.now() + 70
    assert token.models == {PLAIN_MODEL}
    assert token.strict


async def test_a_token_issues_none_that_outlives_it(api: Api) -> None:
    _, secret = await api.issue(expires_in_seconds=100)
    longer = await api.post(PAT, secret, {**EVERYTHING, "expires_in": 101})
    as_long = await api.post(PAT, secret, {**EVERYTHING, "expires_in": 100})
    assert (longer.status, longer.param) == (400, "expires_in")
    assert as_long.status == 201


@pytest.mark.parametrize("limit", [{"spend_cap": 10}, {"requests_per_minute": 1}])
async def test_a_limit_that_counts_is_not_escaped_through_more_tokens(
    api: Api, limit: dict[str, Any]
) -> None:
    _, secret = await api.issue(**limit)
    reply = await api.post(PAT, secret, EVERYTHING)
    assert (reply.status, reply.code) == (403, "insufficient_scope")
    assert (await api.get(PAT, secret)).status == 200


async def test_a_frozen_account_issues_no_token_and_may_revoke_one(api: Api) -> None:
    token, _ = await api.issue()
    await api.accounts.freeze("default")
    issue = await api.post(PAT, api.secret, EVERYTHING)
    revoke = await api.ask("DELETE", f"{PAT}/{token.id}", api.secret)
    assert (issue.status, issue.code) == (403, "account_frozen")
    assert revoke.status == 200


async def test_the_list_has_the_accounts_tokens_without_secrets(api: Api) -> None:
    await api.another_account()
    token, secret = await api.issue(name="second", spend_cap=5, expires_in_seconds=60)
    reply = await api.get(PAT, api.secret)
    first, second = reply.json()["data"]
    assert first["name"] == "first"
    assert second == {
        "id": token.id,
        "name": "second",
        "accountId": api.account.id,
        "scopes": ["account", "llm-all"],
        "models": None,
        "requestsPerMinute": None,
        "spendCap": 5,
        "strict": False,
        "createdAt": "2026-11-23T08:00:00.000Z",
        "expiresAt": "2026-11-23T08:01:00.000Z",
        "revokedAt": None,
    }
    assert secret not in json.dumps(reply.json())


async def test_a_revoked_token_is_refused_from_the_next_request_on(api: Api) -> None:
    token, secret = await api.issue()
    assert (await api.get("/v1/models", secret)).status == 200
    reply = await api.ask("DELETE", f"{PAT}/{token.id}", api.secret)
    again = await api.ask("DELETE", f"{PAT}/{token.id}", api.secret)
    assert reply.json()["revokedAt"] == "2026-11-23T08:00:00.000Z"
    assert again.json() == reply.json()
    assert (await api.get("/v1/models", secret)).status == 401


async def test_anothers_token_cannot_be_revoked(api: Api) -> None:
    _, others_secret = await api.another_account()
    theirs = api.tokens.authenticate(others_secret)
    reply = await api.ask("DELETE", f"{PAT}/{theirs.id}", api.secret)
    assert (reply.status, reply.code) == (404, "not_found")
    assert (await api.get("/v1/models", others_secret)).status == 200
