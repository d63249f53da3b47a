import json
from typing import Any

import pytest
from tests.support.api import MODEL, PLAIN_MODEL, Api

PAT = "/v1/auth/pat"
EVERYTHING = {"name": "all", "scopes": ["llm-all", "account"]}


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
