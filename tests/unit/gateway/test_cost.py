"""Prices here are one credit a token in and two a token out: the sums can be read."""

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import a_tool, chat_bytes, image_part, message
from tests.unit.gateway.door import INPUT, Door, has_taken_nothing, hold_ask
from tests.unit.gateway.parts import PRICE, a_caller, a_model
from tests.unit.ledger.books import Books

from tollway.catalogue import Policy, Price
from tollway.errors import CreditsWhy, InsufficientCredits, InvalidRequest
from tollway.gateway.cost import cost_of
from tollway.gateway.types import Admission
from tollway.wire.requests import parse_chat_request

# --- what is held ---------------------------------------------------------------------------------


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
    assert refused.message == (
        "This model's maximum context length is 10000 tokens. However, your messages resulted in "
        f"{counted} tokens, and the reply must fit too. The prompt is too long: reduce the length "
        "of the messages."
    )
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


# --- what is affordable ---------------------------------------------------------------------------


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


@settings(max_examples=300)
@given(_conversations)
def test_the_bound_covers_every_text_that_a_template_may_write(
    messages: list[dict[str, Any]],
) -> None:
    parsed = parse_chat_request(chat_bytes(messages=messages))

    cost = cost_of(a_model(), parsed, 1, None)

    written = "".join(_as_a_template_writes_it(messages))
    assert cost.input_tokens_max >= len(written.encode())


async def test_the_room_for_a_template_is_not_charged_where_nobody_counted(door: Door) -> None:
    door.counted = None
    tools = [a_tool("add")]
    compact = json.dumps(tools, separators=(",", ":"))

    admission = await door.admit(messages=[message("x" * 100)], tools=tools, max_tokens=1)

    assert admission.cost.input_tokens_assumed == -(-(100 + len(compact)) // 4)
