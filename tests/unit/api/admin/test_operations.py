"""What the operator's commands do to the books, and what they refuse."""

import asyncio
import json
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.clock import FixedClock
from tests.support.upstream import an_upstream
from tests.unit.api.admin.conftest import STARTING_CREDITS, Office, open_office

from tollway.accounts import Account
from tollway.errors import NotFound, Refused, TollwayError, UpstreamFailed
from tollway.ledger.base import NotEnough
from tollway.upstreams.health import Health
from tollway.upstreams.places import Places
from tollway.upstreams.watched import Watched


@pytest.fixture
async def acme(office: Office) -> Account:
    await office.do("account create", name="acme")
    return office.accounts.named("acme")


# --- accounts -------------------------------------------------------------------------------------


async def test_a_new_account_has_the_starting_credits(office: Office) -> None:
    created = await office.do("account create", name="acme")

    assert created["creditBalance"] == STARTING_CREDITS
    assert created["creditsHeld"] == 0
    assert created["status"] == "active"
    assert created["limits"] == {"requestsPerMinute": None, "concurrentRequests": None}
    assert await office.do("account list") == {"data": [created]}


@pytest.mark.parametrize("credits", [0, 7])
async def test_a_new_account_has_the_credits_that_were_named(office: Office, credits: int) -> None:
    created = await office.do("account create", name="acme", credits=credits)

    assert created["creditBalance"] == credits


async def test_a_name_is_taken_once(office: Office, acme: Account) -> None:
    with pytest.raises(Refused, match="There is an account 'acme' already"):
        await office.do("account create", name="acme")


async def test_the_balance_of_an_account_includes_what_is_held(
    office: Office, acme: Account
) -> None:
    await office.charged_request(acme.id, 100)

    shown = await office.do("account show", name="acme")

    assert shown["creditBalance"] == STARTING_CREDITS - 100


async def test_a_limit_that_is_not_named_stays(office: Office, acme: Account) -> None:
    await office.do("account set", name="acme", requests_per_minute=5)
    changed = await office.do("account set", name="acme", concurrent_requests=2)

    assert changed["limits"] == {"requestsPerMinute": 5, "concurrentRequests": 2}


async def test_the_word_default_gives_a_limit_back_to_the_configuration(
    office: Office, acme: Account
) -> None:
    await office.do("account set", name="acme", requests_per_minute=5, concurrent_requests=2)
    first = await office.do("account set", name="acme", requests_per_minute="default")
    second = await office.do("account set", name="acme", concurrent_requests="default")

    assert first["limits"] == {"requestsPerMinute": None, "concurrentRequests": 2}
    assert second["limits"] == {"requestsPerMinute": None, "concurrentRequests": None}
    await office.accounts.read_again([acme.id])
    assert office.accounts.named("acme").requests_per_minute is None


async def test_freezing_and_unfreezing_leave_a_trace_of_who_did_it(
    office: Office, acme: Account
) -> None:
    frozen = await office.do("account freeze", name="acme")
    active = await office.do("account unfreeze", name="acme")

    assert (frozen["status"], active["status"]) == ("frozen", "active")
    assert await office.audit() == [
        ("alice", "account freeze", acme.id, ""),
        ("alice", "account unfreeze", acme.id, ""),
    ]


async def test_making_an_account_and_setting_its_limits_leave_a_trace(
    office: Office, acme: Account
) -> None:
    await office.do("account set", name="acme", requests_per_minute=7)

    made = f'{{"credits": {STARTING_CREDITS}}}'
    assert await office.audit_of("account create") == [("alice", acme.id, made)]
    limits = '{"requests_per_minute": 7, "concurrent_requests": null}'
    assert await office.audit_of("account set") == [("alice", acme.id, limits)]


async def test_issuing_a_token_leaves_a_trace_without_its_secret(
    office: Office, acme: Account
) -> None:
    issued = await office.do("token issue", account="acme")

    details = f'{{"account": "{acme.id}", "scopes": ["llm-all"]}}'
    assert await office.audit_of("token issue") == [("alice", issued["id"], details)]


async def test_an_account_and_its_first_credits_come_together_or_not_at_all(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same transaction: where the entry cannot be written, there is no account either.
    def torn(*_: object) -> NoReturn:
        raise Refused("torn")

    with monkeypatch.context() as patch:
        patch.setattr("tollway.ledger.sqlite.insert_rows", torn)
        with pytest.raises(Refused, match="torn"):
            await office.do("account create", name="new")

    assert await office.database.fetch("SELECT name FROM accounts WHERE name = 'new'") == []
    assert await office.audit_of("account create") == []
    again = await office.do("account create", name="new")
    assert again["creditBalance"] == STARTING_CREDITS


async def test_an_account_may_begin_with_nothing(office: Office) -> None:
    account = await office.do("account create", name="poor", credits=0)

    assert account["creditBalance"] == 0
    assert len(await office.audit_of("account create")) == 1


# --- credit ---------------------------------------------------------------------------------------


async def test_the_same_reference_adds_once(office: Office, acme: Account) -> None:
    first = await office.do("credit top-up", account="acme", amount=50, reference="invoice-17")
    again = await office.do("credit top-up", account="acme", amount=50, reference="invoice-17")

    assert again == {**first, "isNew": False}
    assert (first["amount"], first["isNew"]) == (50, True)
    assert office.ledger.available(acme.id) == STARTING_CREDITS + 50
    assert await office.audit() == [("alice", "credit top-up", acme.id, "")]


async def test_without_a_reference_each_top_up_adds(office: Office, acme: Account) -> None:
    await office.do("credit top-up", account="acme", amount=50)
    await office.do("credit top-up", account="acme", amount=50)

    assert office.ledger.available(acme.id) == STARTING_CREDITS + 100


@pytest.mark.parametrize(("account", "amount"), [("acme", 51), ("other", 50)])
async def test_a_reference_means_one_amount_of_one_account(
    office: Office, acme: Account, account: str, amount: int
) -> None:
    await office.do("account create", name="other")
    await office.do("credit top-up", account="acme", amount=50, reference="invoice-17")

    with pytest.raises(Refused, match=r"The reference invoice-17 was used .* add 50 .* to acme"):
        await office.do("credit top-up", account=account, amount=amount, reference="invoice-17")

    assert office.ledger.available(acme.id) == STARTING_CREDITS + 50
    assert len(await office.audit()) == 1


async def test_a_refund_gives_back_all_that_was_charged(office: Office, acme: Account) -> None:
    request_id = await office.charged_request(acme.id, 100)

    entry = await office.do("credit refund", request_id=request_id, reason="it was garbled")

    assert (entry["amount"], entry["balance"]) == (100, STARTING_CREDITS)
    assert (entry["type"], entry["requestId"]) == ("refund", request_id)
    assert await office.audit() == [("alice", "credit refund", request_id, "it was garbled")]


async def test_a_request_is_refunded_once(office: Office, acme: Account) -> None:
    request_id = await office.charged_request(acme.id, 100)
    await office.do("credit refund", request_id=request_id, amount=40)

    with pytest.raises(Refused, match="was refunded 40 credits on"):
        await office.do("credit refund", request_id=request_id, amount=60)

    assert office.ledger.available(acme.id) == STARTING_CREDITS - 60
    assert len(await office.audit()) == 1


async def test_of_two_refunds_at_once_one_is_made(office: Office, acme: Account) -> None:
    request_id = await office.charged_request(acme.id, 100)

    outcomes = await asyncio.gather(
        office.do("credit refund", request_id=request_id),
        office.do("credit refund", request_id=request_id),
        return_exceptions=True,
    )

    assert sorted(isinstance(outcome, Refused) for outcome in outcomes) == [False, True]
    assert office.ledger.available(acme.id) == STARTING_CREDITS


async def test_a_refund_is_at_most_what_was_charged(office: Office, acme: Account) -> None:
    request_id = await office.charged_request(acme.id, 100)

    with pytest.raises(Refused, match="was charged 100 credits: 101 cannot be refunded"):
        await office.do("credit refund", request_id=request_id, amount=101)


async def test_a_request_that_cost_nothing_has_nothing_to_refund(
    office: Office, acme: Account
) -> None:
    request_id = await office.charged_request(acme.id, 0)

    with pytest.raises(Refused, match="cost nothing"):
        await office.do("credit refund", request_id=request_id)


async def test_a_request_without_a_receipt_is_not_refunded(office: Office) -> None:
    with pytest.raises(Refused, match="There is no receipt of a request 'req_1'"):
        await office.do("credit refund", request_id="req_1")


async def test_an_adjustment_moves_credit_either_way(office: Office, acme: Account) -> None:
    await office.do("credit adjust", account="acme", amount=50, reason="goodwill")
    entry = await office.do("credit adjust", account="acme", amount=-80, reason="typo")

    assert (entry["amount"], entry["balance"]) == (-80, STARTING_CREDITS - 30)
    assert entry["description"] == "adjustment: typo"
    assert await office.audit() == [
        ("alice", "credit adjust", acme.id, "goodwill"),
        ("alice", "credit adjust", acme.id, "typo"),
    ]


async def test_an_adjustment_never_takes_more_than_is_available(
    office: Office, acme: Account
) -> None:
    with pytest.raises(Refused, match=f"has {STARTING_CREDITS} credits available"):
        await office.do("credit adjust", account="acme", amount=-STARTING_CREDITS - 1, reason="x")

    assert office.ledger.available(acme.id) == STARTING_CREDITS
    assert await office.audit() == []


async def test_an_adjustment_by_nothing_is_refused(office: Office, acme: Account) -> None:
    with pytest.raises(Refused, match="changes nothing"):
        await office.do("credit adjust", account="acme", amount=0, reason="x")


# --- tokens, models, ledger -----------------------------------------------------------------------


async def test_an_issued_token_is_what_was_asked_for(office: Office, acme: Account) -> None:
    issued = await office.do(
        "token issue",
        account="acme",
        scopes=["account", "llm-all"],
        name="ci",
        expires_in_seconds=60,
        models=["m1"],
        requests_per_minute=3,
        spend_cap=9,
        strict=True,
    )

    token = office.tokens.authenticate(str(issued["personal_access_token"]))
    assert (token.account_id, token.name, token.scopes) == (acme.id, "ci", {"account", "llm-all"})
    assert (token.models, token.requests_per_minute) == ({"m1"}, 3)
    assert (token.spend_cap, token.strict) == (9, True)
    assert token.expires_at == token.created_at + 60


async def test_a_token_is_for_models_alone_unless_more_is_asked_for(
    office: Office, acme: Account
) -> None:
    issued = await office.do("token issue", account="acme")

    assert issued["scopes"] == ["llm-all"]


async def test_a_token_for_a_model_that_is_not_there_is_refused(
    office: Office, acme: Account
) -> None:
    with pytest.raises(Refused, match=r"There is no model 'm2'. The models are m1\."):
        await office.do("token issue", account="acme", models=["m2"])


async def test_a_token_with_a_scope_that_is_not_there_is_refused(
    office: Office, acme: Account
) -> None:
    with pytest.raises(TollwayError, match="one or more of llm-all, account"):
        await office.do("token issue", account="acme", scopes=["admin"])


async def test_the_list_of_tokens_has_no_secret(office: Office, acme: Account) -> None:
    issued = await office.do("token issue", account="acme")

    listed = await office.do("token list")

    assert str(issued["id"]) in str(listed)
    assert str(issued["personal_access_token"]) not in str(listed)


async def test_a_revoked_token_says_since_when_and_by_whom(office: Office, acme: Account) -> None:
    issued = await office.do("token issue", account="acme")

    revoked = await office.do("token revoke", token_id=issued["id"])

    assert revoked["revokedAt"] == "2026-11-23T08:00:00.000Z"
    assert await office.audit() == [("alice", "token revoke", issued["id"], "")]


async def test_a_token_is_changed_and_the_audit_has_what_was_before(
    office: Office, acme: Account
) -> None:
    issued = await office.do("token issue", account="acme", spend_cap=9, models=["m1"])

    changed = await office.do(
        "token set",
        token_id=issued["id"],
        name="ci",
        models="all",
        requests_per_minute=3,
        expires_in_seconds=60,
        spend_cap=20,
        strict=False,
    )

    assert (changed["name"], changed["models"], changed["requestsPerMinute"]) == ("ci", None, 3)
    assert (changed["spendCap"], changed["spendCapLeft"], changed["strict"]) == (20, 20, False)
    assert (changed["account"], changed["expiresAt"]) == ("acme", "2026-11-23T08:01:00.000Z")
    assert await office.do("token list") == {"data": [changed]}
    limits = ("name", "models", "requestsPerMinute", "spendCap", "expiresAt")
    before = dict(zip(limits, ("token", ["m1"], None, 9, None), strict=True))
    after = {limit: changed[limit] for limit in limits}
    ((actor, subject, details),) = await office.audit_of("token set")
    assert (actor, subject) == ("alice", issued["id"])
    assert json.loads(str(details)) == {"before": before, "after": after}


async def test_changes_of_a_token_at_the_same_time_are_each_made_and_noted_once(
    office: Office, acme: Account
) -> None:
    token_id = (await office.do("token issue", account="acme"))["id"]

    await asyncio.gather(
        *(office.do("token set", token_id=token_id, name=name) for name in ("a", "b", "c"))
    )

    entries = [json.loads(str(details)) for *_, details in await office.audit_of("token set")]
    followed = {entry["before"]["name"]: entry["after"]["name"] for entry in entries}
    assert len(entries) == 3
    last = followed[followed[followed["token"]]]
    assert [token.name for token in office.tokens.list()] == [last]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"models": ["m1", "m2"]}, "There is no model 'm2'. The models are m1."),
        ({"models": []}, "The models cannot be"),
        ({"models": "m1"}, "The models cannot be"),
        ({"name": "a\n"}, "A token's name has 1 to 100 printable characters."),
        ({"spend_cap": 0}, "The spend cap 0 cannot be"),
        ({"spend_cap": 5}, "was issued without a spend cap"),
        ({"requests_per_minute": 0}, "The requests per minute 0 cannot be"),
        ({"requests_per_minute": "never"}, "The requests per minute cannot be"),
        ({"expires_in_seconds": 0}, "The expires in seconds 0 cannot be"),
        ({"strict": 1}, "The strict 1 cannot be"),
    ],
)
async def test_what_no_token_may_have_is_not_set(
    office: Office, acme: Account, arguments: dict[str, object], why: str
) -> None:
    issued = await office.do("token issue", account="acme")
    before = office.tokens.list()

    with pytest.raises(TollwayError) as refused:
        await office.do("token set", token_id=issued["id"], **arguments)

    assert why in refused.value.message
    assert office.tokens.list() == before
    assert await office.audit() == []


async def test_a_spend_cap_is_raised_and_lowered_and_its_books_stay_whole(
    office: Office, acme: Account
) -> None:
    token_id = str((await office.do("token issue", account="acme", spend_cap=100))["id"])
    await office.charged_request(acme.id, 60, token_id=token_id, spend_cap=100)

    raised = await office.do("token set", token_id=token_id, spend_cap=200)
    await office.charged_request(acme.id, 90, 2, token_id=token_id, spend_cap=200)
    lowered = await office.do("token set", token_id=token_id, spend_cap=149)

    assert (raised["spendCapLeft"], lowered["spendCapLeft"]) == (140, 0)
    with pytest.raises(NotEnough):
        await office.charged_request(acme.id, 1, 3, token_id=token_id, spend_cap=149)
    assert await office.do("ledger verify") == {"data": []}


async def test_the_models_are_listed_as_the_api_lists_them(office: Office) -> None:
    listed = await office.do("model list")

    assert isinstance(listed["data"], list)
    assert listed["data"][0]["pricing"] == {
        "prompt": 700,
        "completion": 4000,
        "cached_prompt": 700,
        "reasoning": 4000,
    }


async def test_the_upstreams_are_listed_as_they_are_now(office: Office) -> None:
    clock = FixedClock()
    health = Health("gpu-1", clock.monotonic, lambda: 0.5)
    watched = Watched(an_upstream("gpu-1"), health, Places(limit=8))
    watched.places.in_flight = 3
    watched.answered_after(0.21, streamed=True)
    office.operations.watch(lambda: [watched])
    for _ in range(5):
        health.failed(UpstreamFailed("It failed."))
    clock.advance(0.25)

    listed = await office.do("upstream list")

    assert listed["data"] == [
        {
            "object": "upstream",
            "name": "gpu-1",
            "condition": "open",
            "since": "2026-11-23T07:59:59.750Z",
            "why": "it failed 5 times in a row",
            "askedAgainSeconds": 0.8,
            "ready": False,
            "inFlight": 3,
            "concurrentRequests": 8,
            "waiting": 0,
            "requests": 5,
            "failures": 5,
            "circuitOpened": 1,
            "setAside": 0,
            "firstByteMs": {"chat": None, "chat_stream": 210},
        }
    ]


async def test_one_that_does_not_run_is_listed_as_such(office: Office) -> None:
    health = Health("embedded", FixedClock().monotonic, lambda: 0.5)
    watched = Watched(an_upstream("embedded", runs=False), health, Places())
    office.operations.watch(lambda: [watched])
    listed = await office.do("upstream list")
    assert isinstance(listed["data"], list)
    assert listed["data"][0]["condition"] == "not running"
    assert listed["data"][0]["concurrentRequests"] is None


async def test_only_a_running_server_knows_its_upstreams(office: Office) -> None:
    with pytest.raises(Refused, match="No server runs here"):
        await office.do("upstream list")


async def test_a_ledger_of_every_kind_of_entry_is_whole(office: Office, acme: Account) -> None:
    request_id = await office.charged_request(acme.id, 100)
    await office.charged_request(acme.id, 50, number=2)
    await office.do("credit refund", request_id=request_id, amount=10)
    await office.do("credit top-up", account="acme", amount=50)
    await office.do("credit adjust", account="acme", amount=-5, reason="x")

    assert await office.do("ledger verify") == {"data": []}


# --- the first start ------------------------------------------------------------------------------


async def test_the_first_start_makes_an_account_and_a_token(office: Office) -> None:
    secret = await office.operations.ensure_default_account()

    assert secret is not None
    token = office.tokens.authenticate(secret)
    assert token.scopes == {"llm-all", "account"}
    default = office.accounts.named("default")
    assert token.account_id == default.id
    assert office.ledger.available(default.id) == STARTING_CREDITS


async def test_the_second_start_makes_nothing(office: Office) -> None:
    await office.operations.ensure_default_account()

    assert await office.operations.ensure_default_account() is None
    assert len(office.tokens.list()) == 1
    default = office.accounts.named("default")
    assert office.ledger.available(default.id) == STARTING_CREDITS


async def test_a_first_start_that_died_before_its_token_is_made_good_by_the_next(
    tmp_path: Path,
) -> None:
    died = await open_office(tmp_path / "tollway.db")
    await died.do("account create", name="default")
    await died.database.close()

    office = await open_office(tmp_path / "tollway.db")
    secret = await office.operations.ensure_default_account()

    assert secret is not None
    default = office.accounts.named("default")
    assert office.ledger.available(default.id) == STARTING_CREDITS
    await office.database.close()


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "why"),
    [
        ("account delete", {}, "There is no command 'account delete' here"),
        ("account show", {}, "name is missing"),
        ("account show", {"name": 1}, "The name 1 cannot be: expected str, got int"),
        ("account show", {"name": "acme", "x": 1}, "'x' is no argument of this command"),
        ("credit top-up", {"account": "acme", "amount": 0}, "The amount 0 cannot be: expected int"),
        (
            "credit top-up",
            {"account": "acme", "amount": True},
            "The amount cannot be: expected int",
        ),
        ("credit top-up", {"account": "acme", "amount": 2**63}, "The amount 9223372036854775808"),
        ("account set", {"name": "acme", "requests_per_minute": 0}, "The requests per minute 0"),
        ("account set", {"name": "acme", "concurrent_requests": "x"}, "The concurrent requests"),
        ("account create", {"name": "b", "credits": -1}, "The credits -1 cannot be"),
        ("credit adjust", {"account": "acme", "amount": 1, "reason": ""}, "The reason cannot be"),
    ],
)
async def test_arguments_that_no_command_takes_are_refused(
    office: Office, acme: Account, command: str, arguments: dict[str, object], why: str
) -> None:
    with pytest.raises(Refused) as refused:
        await office.do(command, **arguments)

    assert why in refused.value.message
    assert office.ledger.available(acme.id) == STARTING_CREDITS


async def test_nobody_can_say_that_he_is_another(office: Office, acme: Account) -> None:
    await office.do("credit top-up", account="acme", amount=1, actor="bob")

    assert await office.audit() == [("alice", "credit top-up", acme.id, "")]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("account show", {"name": "x"}),
        ("account freeze", {"name": "x"}),
        ("credit top-up", {"account": "x", "amount": 1}),
        ("token issue", {"account": "x"}),
        ("token revoke", {"token_id": "x"}),
        ("token set", {"token_id": "x", "name": "new"}),
    ],
)
async def test_what_is_not_there_is_said_to_be_missing(
    office: Office, command: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(NotFound, match="There is no"):
        await office.do(command, **arguments)

    assert await office.audit() == []
