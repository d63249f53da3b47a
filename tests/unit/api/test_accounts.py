import pytest
from tests.support.api import MODEL, Api

from tollway.api.accounts import transaction_object
from tollway.ledger.base import Entry, EntryKind

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


async def test_a_tokens_own_limits_are_shown(api: Api) -> None:
    _, secret = await api.issue(requests_per_minute=5, spend_cap=0)
    limits = (await api.get("/v1/accounts/me", secret)).json()["limits"]
    assert (limits["requestsPerMinute"], limits["tokenRequestsPerMinute"]) == (30, 5)
    assert (limits["tokenSpendCap"], limits["tokenSpendCapLeft"]) == (0, 0)


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


@pytest.mark.parametrize(
    ("kind", "request_id"),
    [
        ("charge", "req_1"),
        ("late_charge", "req_1"),
        ("refund", "req_1"),
        ("top_up", None),
        ("adjustment", None),
    ],
)
def test_a_transaction_names_the_request_that_it_is_of_and_no_reference_that_looks_like_one(
    kind: EntryKind, request_id: str | None
) -> None:
    entry = Entry("acc_1", 2, kind, -1, 99, "req_1", "", 0.0)
    assert transaction_object(entry).request_id == request_id


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


async def test_a_page_that_ends_with_the_last_one_has_no_more_after_it(api: Api) -> None:
    pagination = (await api.get("/v1/credit-transactions?limit=1", api.secret)).json()["pagination"]
    assert pagination == {"page": 1, "limit": 1, "total": 1, "hasMore": False}


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
