"""A receipt has all that a charge can be checked with. It can be signed, and whoever has the public
key can check it without us."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.api import MODEL, Api

from tollway.api.receipts import faults_of
from tollway.ledger.signing import SigningKey, read_public_key


async def signed(api: Api, cost: int = 30, **outcome: Any) -> dict[str, Any]:
    request_id, _ = await api.charged_request(cost, **outcome)
    return (await api.get(f"/v1/receipts/{request_id}?signed=true", api.secret)).json()


async def public_key(api: Api) -> Any:
    return read_public_key((await api.get("/v1/receipts/public-key")).body)


def another_key(folder: Path) -> SigningKey:
    (folder / "other").mkdir()
    return SigningKey.load(folder / "other")


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


async def test_a_receipt_tells_cached_and_reasoning_tokens_apart(api: Api) -> None:
    request_id, _ = await api.charged_request(30, cached_tokens=4, reasoning_tokens=3)
    usage = (await api.get(f"/v1/receipts/{request_id}", api.secret)).json()["usage"]
    assert (usage["cached_tokens"], usage["reasoning_tokens"]) == (4, 3)


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


async def test_a_signed_receipt_is_the_receipt_and_its_signature(api: Api) -> None:
    request_id, _ = await api.charged_request()
    plain = (await api.get(f"/v1/receipts/{request_id}?signed=false", api.secret)).json()
    document = (await api.get(f"/v1/receipts/{request_id}?signed=true", api.secret)).json()

    signature = document.pop("signature")

    assert document == plain
    assert signature["algorithm"] == "Ed25519"
    assert signature["keyId"] == (await api.get("/v1/receipts/public-key")).json()["id"]


@pytest.mark.parametrize("base", ["/api/v1", "/v1"])
async def test_the_public_key_is_shown_without_a_token_in_both_forms(api: Api, base: str) -> None:
    reply = await api.get(f"{base}/receipts/public-key")

    shown = reply.json()
    assert reply.status == 200
    keys = [shown["pem"].encode(), json.dumps(shown["jwk"]).encode(), reply.body]
    document = await signed(api)
    assert [faults_of(document, read_public_key(key)) for key in keys] == [[], [], []]


@pytest.mark.parametrize("query", ["signed=1", "signed=", "signed=true&signed=true"])
async def test_signed_is_true_or_false(api: Api, query: str) -> None:
    reply = await api.get(f"/v1/receipts/req_1?{query}", api.secret)
    assert (reply.status, reply.param) == (400, "signed")


@pytest.mark.parametrize(
    ("cost", "outcome"),
    [
        (30, {}),
        (0, {"input_tokens": 0, "output_tokens": 0, "status": "failed"}),
        (1010, {"output_tokens": 500}),
    ],
    ids=["charged", "of nothing", "short"],
)
async def test_a_receipt_of_ours_has_no_faults(
    api: Api, cost: int, outcome: dict[str, Any]
) -> None:
    document = await signed(api, cost, **outcome)
    assert faults_of(document, await public_key(api)) == []
    assert (document["ledger"] is None) == (cost == 0)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "fewer tokens": ({"usage": {"completion_tokens": 9}}, "do not add up"),
    "another rate": ({"rates": {"prompt": 5}}, "costs 21 credits at its rates, and it says 30"),
    "another rate of cached tokens": (
        {"rates": {"cached_prompt": 5}, "usage": {"cached_tokens": 10}},
        "costs 21 credits at its rates, and it says 30",
    ),
    "another rate of reasoning": (
        {"rates": {"reasoning": 5}, "usage": {"reasoning_tokens": 10}},
        "costs 11 credits at its rates, and it says 30",
    ),
    "more cached than there is": ({"usage": {"cached_tokens": 11}}, "Cached tokens are part of"),
    "less cached than none": ({"usage": {"cached_tokens": -1}}, "Cached tokens are part of"),
    "more reasoning than there is": (
        {"usage": {"reasoning_tokens": 11}},
        "Cached tokens are part of",
    ),
    "less reasoning than none": ({"usage": {"reasoning_tokens": -1}}, "Cached tokens are part of"),
    "a lower charge": ({"credits": {"consumed": 29}}, "it says 29 consumed and 0 short"),
    "more than reserved": ({"credits": {"reserved": 29}}, "more than the 29 reserved"),
    "no entry": ({"ledger": None}, "A charge has one entry"),
    "an entry of nothing": ({"credits": {"consumed": 0}}, "A charge has one entry"),
    "no number": ({"credits": {"consumed": "30"}}, "It is not a receipt"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_changed_is_found(api: Api, change: str) -> None:
    changes, fault = CHANGES[change]
    document = await signed(api)
    for name, value in changes.items():
        document[name] = value if value is None else {**document[name], **value}

    faults = faults_of(document, await public_key(api))

    assert "Its signature does not fit" in faults[0]
    assert any(fault in told for told in faults)


async def test_a_wrong_sum_is_found_under_a_right_signature(api: Api, tmp_path: Path) -> None:
    key = another_key(tmp_path)
    document = await signed(api)
    document["credits"]["consumed"] = 31

    faults = faults_of(key.sign(document), read_public_key(key.public_pem().encode()))

    assert faults == [
        "Its usage costs 30 credits at its rates, and it says 31 consumed and 0 short."
    ]


async def test_another_key_is_told_by_its_id(api: Api, tmp_path: Path) -> None:
    other = another_key(tmp_path)
    faults = faults_of(await signed(api), read_public_key(other.public_pem().encode()))
    assert len(faults) == 1
    assert f"the key given is {other.id}" in faults[0]


async def test_without_a_signature_there_is_nothing_to_believe(api: Api) -> None:
    document = await signed(api)
    del document["signature"]
    assert "It has no signature" in faults_of(document, await public_key(api))[0]
    document["signature"] = "yes"
    assert "cannot be read" in faults_of(document, await public_key(api))[0]
