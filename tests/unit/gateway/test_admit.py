import asyncio

import pytest
from tests.unit.gateway.door import INPUT, Door, has_taken_nothing, hold_ask
from tests.unit.gateway.parts import a_caller

from tollway.errors import InvalidRequest, NotFound, RateLimited, RateWhy, Unavailable
from tollway.ledger.base import Hold, HoldAsk
from tollway.ledger.sqlite import SqliteLedger
from tollway.rates.base import Take
from tollway.rates.memory import MemoryRateLimiter

# --- limits ---------------------------------------------------------------------------------------


async def test_thirty_a_minute_are_admitted_and_the_next_is_told_when(door: Door) -> None:
    for _ in range(30):
        door.gate.leave(await door.admit(max_tokens=1))
        door.clock.advance(1)
    refused = await door.refusal(max_tokens=1)

    assert isinstance(refused, RateLimited)
    assert refused.code == "rate_limit_exceeded"
    assert refused.why == RateWhy("requests_per_minute", value=30, free_after_seconds=30.0)
    assert door.concurrency.running("acc_1") == 0
    door.clock.advance(30.001)
    await door.admit(max_tokens=1)


async def test_an_account_and_a_token_can_have_their_own_rate(door: Door) -> None:
    caller = a_caller(requests_per_minute=5, token_requests_per_minute=2)
    admissions = [await door.admit(caller, max_tokens=1) for _ in range(2)]
    assert [a.rate.remaining for a in admissions] == [1, 0]
    refused = await door.refusal(caller, max_tokens=1)
    assert "token may make 2" in refused.message
    assert isinstance(refused, RateLimited)
    assert refused.why == RateWhy("token_requests_per_minute", value=2, free_after_seconds=60.0)

    other = a_caller(requests_per_minute=5)
    assert (await door.admit(other, max_tokens=1)).rate.remaining == 2


async def test_a_limit_of_zero_is_a_limit(door: Door) -> None:
    assert isinstance(await door.refusal(a_caller(requests_per_minute=0)), RateLimited)
    assert isinstance(await door.refusal(a_caller(token_requests_per_minute=0)), RateLimited)
    assert isinstance(await door.refusal(a_caller(concurrent_requests=0)), RateLimited)
    assert await has_taken_nothing(door)


async def test_so_many_at_a_time_and_no_more(door: Door) -> None:
    caller = a_caller(concurrent_requests=2)
    first = await door.admit(caller, max_tokens=1)
    await door.admit(caller, max_tokens=1)
    refused = await door.refusal(caller, max_tokens=1)

    assert isinstance(refused, RateLimited)
    assert refused.code == "concurrency_limit_exceeded"
    assert refused.why == RateWhy("concurrent_requests", value=2, free_after_seconds=1.0)
    assert await door.places_left() == 28
    door.gate.leave(first)
    await door.admit(caller, max_tokens=1)


# --- the client's deadline ------------------------------------------------------------------------


async def test_the_clients_deadline_counts_from_the_requests_arrival(door: Door) -> None:
    assert (await door.admit(timeout_ms=b"1500")).deadline == 1001.5  # it came at 1000
    assert (await door.admit()).deadline is None


@pytest.mark.parametrize("header", [b"", b"0", b"-1", b"1.5", b"30s", b"1" * 16, b"\xb2"])
async def test_a_deadline_is_a_whole_number_of_milliseconds(door: Door, header: bytes) -> None:
    assert isinstance(await door.refusal(timeout_ms=header), InvalidRequest)
    assert await has_taken_nothing(door)


# --- the order of the checks, and what is given back ----------------------------------------------


async def test_the_checks_come_in_the_contracts_order(door: Door) -> None:
    """Each caller fails all the checks from one on: the first of them is told."""
    await door.ledger.hold(hold_ask(10_000))
    nothing_goes = {"concurrent_requests": 0, "requests_per_minute": 0, "strict": True}
    codes = [
        (await door.refusal(a_caller(**nothing_goes), model="none", odd=1)).code,  # pyright: ignore[reportArgumentType]
        (await door.refusal(a_caller(**nothing_goes), odd=1)).code,  # pyright: ignore[reportArgumentType]
        (await door.refusal(a_caller(concurrent_requests=0, requests_per_minute=0))).code,
        (await door.refusal(a_caller(requests_per_minute=0))).code,
        (await door.refusal(a_caller())).code,
    ]
    assert codes == [
        "model_not_found",
        "unsupported_parameter",
        "concurrency_limit_exceeded",
        "rate_limit_exceeded",
        "insufficient_credits",
    ]


async def test_a_model_that_the_token_may_not_use_is_not_found(door: Door) -> None:
    refused = await door.refusal(a_caller(models=frozenset({"other"})))
    assert isinstance(refused, NotFound)
    assert await has_taken_nothing(door)


async def test_a_ledger_that_cannot_be_reached_takes_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(self: SqliteLedger, ask: HoldAsk) -> Hold:
        raise Unavailable("The ledger cannot be reached.")

    def not_at_once(self: SqliteLedger, ask: HoldAsk) -> None:
        pass

    monkeypatch.setattr(SqliteLedger, "hold_at_once", not_at_once)
    monkeypatch.setattr(SqliteLedger, "hold", down)
    assert isinstance(await door.refusal(), Unavailable)
    assert await has_taken_nothing(door)


async def test_a_client_that_leaves_while_its_prompt_is_counted_has_taken_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(door.gate, "_count_input_tokens", for_ever)
    task = asyncio.create_task(door.admit())
    await asyncio.sleep(0)
    assert door.concurrency.running("acc_1") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await has_taken_nothing(door)


@pytest.mark.parametrize("waits_for", ["the rate", "the token's rate", "the count", "its key"])
async def test_an_account_that_is_frozen_while_its_request_waits_pays_for_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    async def take(self: MemoryRateLimiter, key: str, limit: int) -> Take:
        door.books.frozen.add("acc_1")
        return take_at_once(self, key, limit)

    async def count(*_: object) -> int:
        door.books.frozen.add("acc_1")
        return INPUT

    def nothing(*_: object) -> None:
        pass

    take_at_once = MemoryRateLimiter.take_at_once
    monkeypatch.setattr(door.gate, "_count_input_tokens", nothing)
    caller, key = a_caller(), None
    if waits_for == "the rate":
        monkeypatch.setattr(MemoryRateLimiter, "take_at_once", nothing)
        monkeypatch.setattr(MemoryRateLimiter, "take", take)
    elif waits_for == "the token's rate":
        caller = a_caller(token_requests_per_minute=5)
        monkeypatch.setattr(MemoryRateLimiter, "take", take)
    elif waits_for == "the count":
        monkeypatch.setattr(door.gate, "_count_input_tokens", count)
    else:  # before its admission
        door.books.frozen.add("acc_1")
        key = b"key"
    refused = await door.refusal(caller, idempotency_key=key)
    assert refused.code == "account_frozen"
    assert await has_taken_nothing(door)


# --- the standing ---------------------------------------------------------------------------------


async def test_the_standing_is_the_accounts(door: Door) -> None:
    await door.admit(max_tokens=50)
    standing = await door.gate.standing(a_caller())
    assert standing.rate.remaining == 29
    assert standing.credits_available == 9_800
