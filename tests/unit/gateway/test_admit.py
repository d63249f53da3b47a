"""Prices here are one credit a token in and two a token out: the sums can be read."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import a_tool, chat_bytes, image_part, message
from tests.support.clock import FixedClock
from tests.unit.gateway.parts import PRICE, a_call, a_caller, a_model
from tests.unit.ledger.books import Books

from tollway.catalogue import Catalogue, Model, Policy, Price
from tollway.errors import (
    CreditsWhy,
    InsufficientCredits,
    InvalidRequest,
    NotFound,
    RateLimited,
    RateWhy,
    RequestError,
    Unavailable,
)
from tollway.gateway.admit import Gate, Limits
from tollway.gateway.types import Admission, Caller
from tollway.ledger.base import Hold, HoldAsk, Ledger
from tollway.ledger.sqlite import SqliteLedger
from tollway.rates.base import Take
from tollway.rates.concurrency import Concurrency
from tollway.rates.memory import MemoryRateLimiter
from tollway.wire.requests import ParsedRequest, parse_chat_request

LIMITS = Limits(requests_per_minute=30, other_requests_per_minute=100, concurrent_requests=64)
INPUT = 100  # what the tokenizer counts


class OneModel(Catalogue):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self._models[model.id] = model


class Door:
    """A gate with a real ledger, and what it was asked."""

    def __init__(self, books: Books, model: Model, counted: int | None = INPUT) -> None:
        self.books = books
        self.clock: FixedClock = books.clock
        self.concurrency = Concurrency()
        self.limiter = MemoryRateLimiter(books.clock)
        self.ledger = books.ledger
        self.counted = counted
        self.gate = Gate(
            OneModel(model), self._count, self.limiter, self.concurrency, self.ledger, LIMITS
        )
        self._calls = 0

    async def _count(
        self, model: Model, parsed: ParsedRequest, output_tokens_max: int
    ) -> int | None:
        return self.counted

    async def admit(
        self,
        caller: Caller | None = None,
        credits_max: bytes | None = None,
        timeout_ms: bytes | None = None,
        idempotency_key: bytes | None = None,
        **fields: Any,
    ) -> Admission:
        self._calls += 1
        body = chat_bytes(**fields)
        call = a_call(
            body,
            request_id=f"req_{self._calls:032x}",
            credits_max=credits_max,
            timeout_ms=timeout_ms,
            idempotency_key=idempotency_key,
        )
        return await self.gate.admit(caller or a_caller(), call, parse_chat_request(body))

    async def refusal(self, caller: Caller | None = None, **fields: Any) -> RequestError:
        with pytest.raises(RequestError) as refused:
            await self.admit(caller, **fields)
        return refused.value

    async def places_left(self) -> int:
        return (await self.limiter.state("chat:acc_1", 30)).remaining


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    books = await Books(tmp_path).open()
    await books.account(10_000)
    await books.token("acc_1", None, "tok_1")
    yield books
    await books.close()


@pytest.fixture
def door(books: Books) -> Door:
    return Door(books, a_model())


async def has_taken_nothing(door: Door) -> bool:
    return (
        door.concurrency.running("acc_1") == 0
        and await door.places_left() == 30
        and door.ledger.available("acc_1") == 10_000
    )


# --- what is held -----------------------------------------------------------------------------


async def test_the_most_it_can_cost_is_held(door: Door) -> None:
    admission = await door.admit(max_tokens=50)

    assert admission.hold.amount == INPUT + 2 * 50
    assert admission.hold.available == 10_000 - 200
    assert admission.cost.output_tokens_max == 50
    assert admission.rate.remaining == 29
    assert door.concurrency.running("acc_1") == 1
    door.gate.leave(admission)
    assert door.concurrency.running("acc_1") == 0


@pytest.mark.parametrize(
    ("fields", "output_tokens"),
    [
        ({}, 500),
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 50}, 50),
        ({"max_tokens": 10**9}, 1000),
        ({"max_tokens": 1}, 1),
    ],
    ids=["default", "named", "the new name", "capped at the model's", "one"],
)
async def test_the_upstream_always_gets_a_cap(
    door: Door, fields: dict[str, Any], output_tokens: int
) -> None:
    assert (await door.admit(**fields)).cost.output_tokens_max == output_tokens


async def test_a_hold_covers_the_dearest_that_its_tokens_could_be(books: Books) -> None:
    price = Price(PRICE.id, 1_000_000, 2_000_000, 500_000, 3_000_000)
    door = Door(books, a_model(price=price))
    admission = await door.admit(max_tokens=40)
    clamped = await door.admit(credits_max=b"160")

    assert admission.hold.amount == INPUT + 3 * 40
    assert clamped.cost.output_tokens_max == 20
    refused = await door.refusal(max_tokens=1000, credits_max=b"2999")
    assert isinstance(refused, InsufficientCredits)
    assert refused.required == INPUT + 3 * 1000


async def test_n_multiplies_the_completions_part(door: Door) -> None:
    assert (await door.admit(max_tokens=50, n=3)).hold.amount == INPUT + 3 * 2 * 50


async def test_the_context_caps_the_reply_where_the_prompt_was_counted(door: Door) -> None:
    door.counted = 9_900
    admission = await door.admit(n=1)
    assert admission.cost.output_tokens_max <= 100


@pytest.mark.parametrize("counted", [10_000, 10_001, 10**9])
async def test_a_prompt_that_fills_the_context_is_refused(door: Door, counted: int) -> None:
    door.counted = counted
    refused = await door.refusal()
    assert isinstance(refused, InvalidRequest)
    assert (refused.code, refused.param) == ("context_length_exceeded", "messages")
    assert str(counted) in refused.message
    assert await has_taken_nothing(door)


async def test_the_byte_bound_prices_and_does_not_limit_context(books: Books) -> None:
    door = Door(books, a_model(context_length=10), counted=None)
    admission = await door.admit(max_tokens=50)
    assert admission.cost.input_tokens_assumed == -(-len("Why did the Tay Bridge fall?") // 4)
    assert admission.cost.output_tokens_max == 50
    assert admission.cost.input_tokens_max == 256 + 16 + len("Why did the Tay Bridge fall?")


async def test_an_image_that_nobody_counted_counts_as_its_bound(books: Books) -> None:
    text: dict[str, object] = {"type": "text", "text": "What is this?"}
    sees = a_model(policy=Policy(image_tokens=1000, image_bytes_max=100))
    admission = await Door(books, sees, counted=None).admit(
        messages=[message([text, image_part()])], max_tokens=50
    )
    text_bytes = admission.cost.input_tokens_max - 1000 - 256 - 16
    assert admission.cost.input_tokens_assumed == 1000 + -(-text_bytes // 4)


async def test_tools_and_a_schema_count_as_prompt(books: Books) -> None:
    door = Door(books, a_model(), counted=None)
    plain = (await door.admit(max_tokens=1)).cost.input_tokens_max
    tools = (await door.admit(max_tokens=1, tools=[a_tool()])).cost.input_tokens_max
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"x": "y" * 100}}}
    formatted = (await door.admit(max_tokens=1, response_format=schema)).cost.input_tokens_max
    assert tools > plain + 50
    assert formatted > plain + 100


# --- what is affordable -----------------------------------------------------------------------


async def test_a_named_length_that_is_not_covered_is_402_with_the_numbers(door: Door) -> None:
    await door.ledger.hold(hold_ask(9_000))
    refused = await door.refusal(max_tokens=1000)

    assert isinstance(refused, InsufficientCredits)
    assert refused.required == INPUT + 2 * 1000
    assert refused.available == 1000
    assert refused.affordable_output_tokens == 450
    assert refused.why == CreditsWhy("balance", value=10_000, held=9_000, available=1_000)
    for number in ("2100", "1000", "450", "9000"):
        assert number in refused.message


async def test_what_it_said_is_affordable_is(door: Door) -> None:
    await door.ledger.hold(hold_ask(9_000))
    admission = await door.admit(max_tokens=450)
    assert admission.hold.amount == 1000
    assert admission.hold.available == 0


@pytest.mark.parametrize(("available", "affordable"), [(132, 16), (131, None), (99, None)])
async def test_fewer_than_16_tokens_are_not_offered(
    door: Door, available: int, affordable: int | None
) -> None:
    await door.ledger.hold(hold_ask(10_000 - available))
    refused = await door.refusal(max_tokens=1000)
    assert isinstance(refused, InsufficientCredits)
    assert refused.affordable_output_tokens == affordable


@pytest.mark.parametrize(("available", "output_tokens"), [(132, 16), (133, 16), (600, 250)])
async def test_who_names_no_length_gets_what_is_affordable(
    door: Door, available: int, output_tokens: int
) -> None:
    await door.ledger.hold(hold_ask(10_000 - available))
    admission = await door.admit()

    assert admission.hold.amount == available
    assert admission.cost.output_tokens_max == output_tokens
    assert admission.cost.credits_max == available


async def test_who_names_no_length_is_refused_under_16_tokens(door: Door) -> None:
    await door.ledger.hold(hold_ask(10_000 - 131))
    refused = await door.refusal()
    assert isinstance(refused, InsufficientCredits)
    assert refused.required == INPUT + 2 * 16


async def test_a_named_length_is_for_each_choice(door: Door) -> None:
    await door.ledger.hold(hold_ask(10_000 - 300))
    refused = await door.refusal(max_tokens=50, n=4)
    assert isinstance(refused, InsufficientCredits)
    assert refused.required == INPUT + 4 * 2 * 50
    assert refused.affordable_output_tokens == 25


async def test_the_clamp_is_for_each_choice(door: Door) -> None:
    await door.ledger.hold(hold_ask(10_000 - 500))
    admission = await door.admit(n=4)
    assert admission.cost.output_tokens_max == 50


async def test_a_402_gives_the_place_back(door: Door) -> None:
    await door.ledger.hold(hold_ask(10_000))
    for _ in range(40):
        assert isinstance(await door.refusal(max_tokens=5), InsufficientCredits)
    assert await door.places_left() == 30
    assert door.concurrency.running("acc_1") == 0


@pytest.mark.parametrize(
    ("header", "fields", "held"),
    [(b"250", {}, 250), (b"132", {}, 132), (b"5000", {}, 1100), (b"200", {"max_tokens": 50}, 200)],
)
async def test_x_credits_max_caps_what_is_held(
    door: Door, header: bytes, fields: dict[str, Any], held: int
) -> None:
    admission = await door.admit(credits_max=header, **fields)
    assert admission.hold.amount == held


@pytest.mark.parametrize(
    ("header", "fields"), [(b"0", {}), (b"131", {}), (b"199", {"max_tokens": 50})]
)
async def test_x_credits_max_refuses_what_costs_more(
    door: Door, header: bytes, fields: dict[str, Any]
) -> None:
    refused = await door.refusal(credits_max=header, **fields)
    assert isinstance(refused, InsufficientCredits)
    allowed = int(header)
    assert refused.why == CreditsWhy("credits_max", value=allowed, held=0, available=allowed)
    assert f"X-Credits-Max allows {allowed}" in refused.message
    assert await has_taken_nothing(door)


@pytest.mark.parametrize("header", [b"", b"-1", b"1.5", b"many", b"1" * 16, b"\xb2"])
async def test_x_credits_max_is_a_whole_number(door: Door, header: bytes) -> None:
    assert isinstance(await door.refusal(credits_max=header), InvalidRequest)
    assert await has_taken_nothing(door)


async def test_the_clients_deadline_counts_from_the_requests_arrival(door: Door) -> None:
    assert (await door.admit(timeout_ms=b"1500")).deadline == 1001.5  # it came at 1000
    assert (await door.admit()).deadline is None


@pytest.mark.parametrize("header", [b"", b"0", b"-1", b"1.5", b"30s", b"1" * 16, b"\xb2"])
async def test_a_deadline_is_a_whole_number_of_milliseconds(door: Door, header: bytes) -> None:
    assert isinstance(await door.refusal(timeout_ms=header), InvalidRequest)
    assert await has_taken_nothing(door)


async def test_a_spend_cap_of_zero_is_a_cap(door: Door) -> None:
    assert isinstance(await door.refusal(a_caller(spend_cap=0)), InsufficientCredits)
    assert await has_taken_nothing(door)


async def test_a_tokens_spend_cap_limits_the_hold(door: Door) -> None:
    refused = await door.refusal(a_caller(spend_cap=150), max_tokens=50)
    assert isinstance(refused, InsufficientCredits)
    assert refused.why == CreditsWhy("spend_cap", value=150, held=0, available=150)
    assert "the token's spend cap of 150 leaves 150. Lower max_tokens to 25 or" in refused.message


async def test_who_names_no_length_gets_what_the_spend_cap_leaves(door: Door) -> None:
    caller = a_caller(spend_cap=250)
    admission = await door.admit(caller)
    assert (admission.hold.amount, admission.cost.output_tokens_max) == (250, 75)
    assert isinstance(await door.refusal(caller), InsufficientCredits)


async def test_the_lowest_of_cap_balance_and_x_credits_max_is_held(door: Door) -> None:
    await door.ledger.hold(hold_ask(9_200))
    assert (await door.admit(a_caller(spend_cap=300), b"400")).hold.amount == 300
    assert (await door.admit(a_caller(spend_cap=700), b"250")).hold.amount == 250
    assert (await door.admit(a_caller(spend_cap=9_000), b"900")).hold.amount == 250


async def test_of_many_at_once_no_more_run_than_the_spend_cap_pays_for(door: Door) -> None:
    caller = a_caller(spend_cap=1_050)
    answers = await asyncio.gather(
        *(door.admit(caller, max_tokens=50) for _ in range(20)), return_exceptions=True
    )
    admitted = [answer for answer in answers if isinstance(answer, Admission)]
    refused = [answer for answer in answers if isinstance(answer, InsufficientCredits)]
    assert (len(admitted), len(refused)) == (5, 15)
    assert {error.why for error in refused} == {CreditsWhy("spend_cap", 1_050, 1_000, 50)}
    assert await door.places_left() == 25


# --- limits -----------------------------------------------------------------------------------


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


# --- the order of the checks, and what is given back ------------------------------------------


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


# --- fields that a model does not support -----------------------------------------------------


async def test_fields_that_are_not_supported_are_named(books: Books) -> None:
    door = Door(books, a_model(supported_parameters=frozenset({"temperature"})))
    admission = await door.admit(temperature=1, seed=5, top_k=3, n=1, stream=False)
    assert set(admission.ignored) == {"seed", "top_k"}


async def test_all_fields_are_supported_unless_the_model_says_which(door: Door) -> None:
    assert (await door.admit(temperature=1, seed=5, top_k=3)).ignored == ("top_k",)


@pytest.mark.parametrize("fields", [{"top_k": 3}, {"seed": 5}])
async def test_a_strict_token_is_refused_instead(books: Books, fields: dict[str, Any]) -> None:
    door = Door(books, a_model(supported_parameters=frozenset({"temperature"})))
    refused = await door.refusal(a_caller(strict=True), **fields)
    assert (refused.code, refused.param) == ("unsupported_parameter", next(iter(fields)))
    await door.admit(a_caller(strict=True), temperature=1)


async def test_the_standing_is_the_accounts(door: Door) -> None:
    await door.admit(max_tokens=50)
    standing = await door.gate.standing(a_caller())
    assert standing.rate.remaining == 29
    assert standing.credits_available == 9_800


def hold_ask(amount: int) -> HoldAsk:
    return HoldAsk(f"req_other{amount}", "acc_1", "tok_1", PRICE.id, amount, amount, None, 0.0)


# --- the bound on the prompt ----------------------------------------------------------------------

_texts = st.text(max_size=20) | st.text(max_size=3).map(lambda text: text * 700)
_named = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user"]), "content": _texts},
    optional={"name": _texts},
)
_replies = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": _texts}, optional={"name": _texts, "refusal": _texts}
)
_calls = st.tuples(_texts, _texts, _texts, st.integers(0, 40)).map(
    lambda of: [
        {
            "role": "assistant",
            "content": of[2],
            "tool_calls": [
                {"id": of[0], "type": "function", "function": {"name": of[1], "arguments": of[2]}}
            ],
        },
        *[{"role": "tool", "tool_call_id": of[0], "content": of[2]}] * of[3],
    ]
)
_conversations = st.lists(_named | _replies, min_size=1, max_size=20) | _calls


def _as_a_template_writes_it(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Each text, a result as JSON (Llama 3.1, TGI) behind the name of what was called (gpt-oss)."""
    called = ""
    for one in messages:
        for call in one.get("tool_calls", ()):
            called = call["function"]["name"]
            yield call["id"] + called + call["function"]["arguments"]
        texts = {name: text for name, text in one.items() if isinstance(text, str)}
        yield from (texts.get(name, "") for name in ("name", "refusal", "tool_call_id"))
        if one["role"] == "tool":
            written = json.dumps(one["content"], ensure_ascii=False)
            yield called + re.sub("[<>&']", "\\\\u0000", written)
        else:
            yield texts["content"]


@settings(max_examples=300, deadline=None)
@given(_conversations)
def test_the_bound_covers_every_text_that_a_template_may_write(
    messages: list[dict[str, Any]],
) -> None:
    parsed = parse_chat_request(chat_bytes(messages=messages))
    gate = Gate(
        OneModel(a_model()),
        lambda model, parsed, output_tokens: None,
        MemoryRateLimiter(FixedClock()),
        Concurrency(),
        cast("Ledger", None),
        LIMITS,
    )

    cost = asyncio.run(gate.cost(a_model(), parsed))

    written = "".join(_as_a_template_writes_it(messages))
    assert cost.input_tokens_max >= len(written.encode())


async def test_the_room_for_a_template_is_not_charged_where_nobody_counted(door: Door) -> None:
    door.counted = None
    tools = [a_tool("add")]
    compact = json.dumps(tools, separators=(",", ":"))

    admission = await door.admit(messages=[message("x" * 100)], tools=tools, max_tokens=1)

    assert admission.cost.input_tokens_assumed == -(-(100 + len(compact)) // 4)
