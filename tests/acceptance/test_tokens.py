"""Personal access tokens: issued, listed and revoked over the API, and never more than their
issuer has."""

import re
import time
from pathlib import Path

import pytest
from tests.support.customer import Customer, a_customer
from tests.support.http import Reply
from tests.support.server import TollwayServer

SHAPE = re.compile(r"tw_[0-9A-Za-z]{49}")


def issue(customer: Customer, **fields: object) -> Reply:
    return customer.post("/auth/pat", {"name": "ci", "scopes": ["llm-all"], **fields})


def using(customer: Customer, secret: str) -> Customer:
    return Customer(customer.server, customer.account_id, "", secret)


@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
def test_a_token_is_issued_and_works(customer: Customer, base: str) -> None:
    issued = issue(customer.over(base), expires_in=3600)

    assert issued.status == 201
    body = issued.json()
    assert set(body) == {"id", "name", "personal_access_token", "scopes", "expires_in"}
    assert SHAPE.fullmatch(body["personal_access_token"])
    assert body["name"] == "ci"
    assert body["scopes"] == ["llm-all"]
    assert body["expires_in"] == 3600
    assert issued.header("cache-control") == "no-store"
    used = using(customer, body["personal_access_token"])
    assert used.chat().status == 200
    assert used.get("/accounts/me").json()["id"] == customer.account_id


def test_a_secret_is_shown_once_and_kept_nowhere(customer: Customer, server: TollwayServer) -> None:
    secret = issue(customer).json()["personal_access_token"]
    using(customer, secret).chat()

    assert secret not in customer.get("/auth/pat").body.decode()
    for file in kept_files(server.data_dir):
        assert secret.encode() not in file.read_bytes(), file
        assert customer.token.encode() not in file.read_bytes(), file
    assert secret not in server.stdout + server.stderr


def kept_files(data_dir: Path) -> list[Path]:
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    assert files
    return files


def test_tokens_are_listed(customer: Customer) -> None:
    issued = issue(customer, name="second").json()

    listed = customer.get("/auth/pat").json()["data"]

    assert {token["id"] for token in listed} == {customer.token_id, issued["id"]}
    (second,) = (token for token in listed if token["id"] == issued["id"])
    assert second["name"] == "second"
    assert second["scopes"] == ["llm-all"]
    assert second["revokedAt"] is None


def test_a_revoked_token_is_refused_from_the_next_request_on(customer: Customer) -> None:
    issued = issue(customer).json()
    used = using(customer, issued["personal_access_token"])
    before = used.chat().status

    revoked = customer.ask("DELETE", f"/auth/pat/{issued['id']}")
    again = customer.ask("DELETE", f"/auth/pat/{issued['id']}")

    assert before == 200
    assert revoked.status == again.status == 200
    assert revoked.json()["revokedAt"] == again.json()["revokedAt"] is not None
    assert used.chat().status == 401


def test_a_token_that_has_expired_is_refused(customer: Customer) -> None:
    used = using(customer, issue(customer, expires_in=1).json()["personal_access_token"])
    before = used.chat().status
    time.sleep(1.1)

    refused = used.chat()

    assert before == 200
    assert refused.status == 401
    assert refused.json()["error"]["code"] == "token_expired"


def test_a_token_never_grants_what_its_issuer_lacks(customer: Customer) -> None:
    only_account = customer.with_token(scopes=["account"])
    one_model = customer.with_token(models=["acme/plain"])
    short_lived = customer.with_token(expires_in_seconds=100)
    capped = customer.with_token(spend_cap=10)

    assert issue(only_account).json()["error"]["code"] == "insufficient_scope"
    assert issue(only_account, scopes=["account"]).status == 201
    child = using(customer, issue(one_model).json()["personal_access_token"])
    assert [model["id"] for model in child.get("/models").json()["data"]] == ["acme/plain"]
    assert issue(short_lived, expires_in=101).json()["error"]["param"] == "expires_in"
    assert issue(short_lived).json()["expires_in"] <= 100
    assert issue(capped).status == 403


def test_another_accounts_token_cannot_be_revoked(
    customer: Customer, server: TollwayServer
) -> None:
    stranger = a_customer(server)

    refused = stranger.ask("DELETE", f"/auth/pat/{customer.token_id}")

    assert refused.status == 404
    assert customer.get("/accounts/me").status == 200
    assert customer.token_id not in stranger.get("/auth/pat").body.decode()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"scopes": None}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"scopes": "llm-all"}, "scopes"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": "1d"}, "expires_in"),
        ({"models": ["acme/plain"]}, "models"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    customer: Customer, fields: dict[str, object], param: str
) -> None:
    refused = issue(customer, **fields)

    assert refused.status == 400
    assert refused.json()["error"]["param"] == param
