import json
import unicodedata
from fractions import Fraction
from math import ceil
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.builders import a_tool, message

from tollway.catalogue import Price
from tollway.pricing import affordable_output_tokens, charge, prompt_bound
from tollway.wire.chat import (
    AssistantMessage,
    CalledFunction,
    Message,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)

_tokens = st.integers(0, 2**40)
_choices = st.integers(1, 4)
_rate = st.integers(0, 10**9)
prices = st.builds(Price, st.just("price_1"), _rate, _rate)
prices_by_part = st.builds(
    Price, st.just("price_1"), _rate, _rate, st.none() | _rate, st.none() | _rate
)
_part = st.fractions(0, 1)
paid_prices = st.builds(Price, st.just("price_1"), _rate, st.integers(1, 10**9))


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "credits"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (25, 80, 1),  # 17,500 + 320,000 of 1,000,000
        (1000, 75, 1),  # exactly one credit
        (1001, 75, 2),
        (10_000_000, 0, 7000),
    ],
)
def test_the_sum_is_rounded_up_once(input_tokens: int, output_tokens: int, credits: int) -> None:
    assert charge(Price("price_1", 700, 4000), input_tokens, output_tokens) == credits


@given(prices, _tokens, _tokens)
def test_a_charge_is_the_exact_sum_rounded_up(price: Price, put_in: int, put_out: int) -> None:
    exact = Fraction(
        put_in * price.input_credits_per_million + put_out * price.output_credits_per_million,
        1_000_000,
    )

    assert charge(price, put_in, put_out) == ceil(exact)


@given(prices, _tokens, _tokens, _tokens, _tokens)
def test_more_tokens_never_cost_less(
    price: Price, put_in: int, put_out: int, more_in: int, more_out: int
) -> None:
    assert charge(price, put_in + more_in, put_out + more_out) >= charge(price, put_in, put_out)


@given(prices, _tokens, _tokens, _tokens)
def test_two_requests_never_cost_less_than_one_with_both(
    price: Price, put_in: int, first: int, second: int
) -> None:
    both = charge(price, put_in, first + second)

    assert both <= charge(price, put_in, first) + charge(price, 0, second) <= both + 1


@given(prices_by_part, _tokens, _tokens, _part, _part)
def test_cached_and_reasoning_tokens_cost_their_own_rates_in_the_one_rounding(
    price: Price, put_in: int, put_out: int, cached_part: Fraction, reasoning_part: Fraction
) -> None:
    cached, reasoning = int(put_in * cached_part), int(put_out * reasoning_part)
    rates = (price.cached_credits_per_million, price.reasoning_credits_per_million)
    exact = Fraction(
        (put_in - cached) * price.input_credits_per_million
        + cached * (price.input_credits_per_million if rates[0] is None else rates[0])
        + (put_out - reasoning) * price.output_credits_per_million
        + reasoning * (price.output_credits_per_million if rates[1] is None else rates[1]),
        1_000_000,
    )

    assert charge(price, put_in, put_out, cached, reasoning) == ceil(exact)


@given(prices_by_part, _tokens, _tokens, _part, _part)
def test_whatever_is_cached_or_reasoning_costs_no_more_than_the_dearest_rates(
    price: Price, put_in: int, put_out: int, cached_part: Fraction, reasoning_part: Fraction
) -> None:
    cached, reasoning = int(put_in * cached_part), int(put_out * reasoning_part)

    most = charge(price.dearest(), put_in, put_out)

    assert charge(price, put_in, put_out, cached, reasoning) <= most
    assert most in {
        charge(price, put_in, put_out, *parts)
        for parts in ((0, 0), (put_in, 0), (0, put_out), (put_in, put_out))
    }


def test_a_rate_of_zero_is_a_rate() -> None:
    assert charge(Price("price_1", 1_000_000, 1_000_000, 0, 0), 9, 7, 8, 7) == 1


@given(prices)
def test_nothing_costs_nothing(price: Price) -> None:
    assert charge(price, 0, 0) == 0


@given(paid_prices, st.integers(0, 10**12), st.integers(0, 10**7), _choices)
def test_the_affordable_output_is_the_longest_that_the_credits_pay_for(
    price: Price, credits: int, put_in: int, choices: int
) -> None:
    affordable = affordable_output_tokens(price, credits, put_in, choices)

    assert charge(price, put_in, choices * (affordable + 1)) > credits
    assert charge(price, put_in, choices * affordable) <= credits or affordable == 0


@given(paid_prices, st.integers(0, 10**9), st.integers(0, 10**7), _choices)
def test_what_a_length_costs_pays_for_that_length(
    price: Price, put_out: int, put_in: int, choices: int
) -> None:
    credits = charge(price, put_in, choices * put_out)

    assert affordable_output_tokens(price, credits, put_in, choices) >= put_out


def test_input_that_cannot_be_paid_leaves_no_output() -> None:
    assert affordable_output_tokens(Price("price_1", 1_000_000, 1), 9, 10, 1) == 0


def test_free_output_is_bounded_by_the_input_alone() -> None:
    price = Price("price_1", 1_000_000, 0)

    assert affordable_output_tokens(price, 10, 10, 1) > 10**9
    assert affordable_output_tokens(price, 9, 10, 1) == 0


# --- the bound on input tokens: a byte-level tokenizer makes at most a token a byte ---------------

_text = st.text(st.characters(codec="utf-8"))


class _Message(msgspec.Struct):
    role: str
    content: object
    tool_calls: object = None


def _byte_tokens(text: str) -> int:
    """Of the worst byte-level tokenizer, which normalises first where that makes it longer."""
    return max(len(form.encode()) for form in (text, unicodedata.normalize("NFKC", text)))


@given(st.lists(_text, max_size=5))
def test_the_bound_covers_every_byte_of_every_message(texts: list[str]) -> None:
    bound = prompt_bound([_Message("user", text) for text in texts]).tokens

    assert bound >= sum(map(_byte_tokens, texts)) + 16 * len(texts) + 256


@given(st.lists(_text, min_size=1, max_size=5))
def test_the_bound_covers_parts_and_tool_calls(texts: list[str]) -> None:
    parts = [{"type": "text", "text": text} for text in texts]
    calls = [{"function": {"name": "f", "arguments": json.dumps(texts)}}]

    bound = prompt_bound([_Message("user", parts), _Message("assistant", None, calls)]).tokens

    assert bound >= 2 * 16 + 256 + sum(map(_byte_tokens, texts)) + len(json.dumps(texts))


@given(_text)
def test_the_bound_covers_tools_and_schemas(description: str) -> None:
    tool = a_tool("add")
    tool["function"]["description"] = description
    schema: dict[str, Any] = {"type": "json_schema", "json_schema": {"description": description}}
    plain = [_Message("user", message()["content"])]

    with_both = prompt_bound(plain, [tool], schema).tokens

    assert with_both >= prompt_bound(plain, None, None).tokens + 2 * _byte_tokens(description)


def test_the_bound_covers_calls_beside_a_text() -> None:
    calls = [{"id": "c1", "function": {"name": "f", "arguments": "x" * 500}}]
    with_calls = prompt_bound([_Message("assistant", "I look.", calls)]).tokens
    assert with_calls >= prompt_bound([_Message("assistant", "I look.")]).tokens + 500


def test_an_assistants_reasoning_counts() -> None:
    thought = AssistantMessage("4", reasoning_content="x" * 500)

    assert prompt_bound([thought]).text_bytes == 501


_ascii = st.text(st.characters(codec="ascii"))
_function = st.builds(CalledFunction, st.just(""), _ascii)
_call = st.builds(ToolCall, type=st.just("function"), id=_ascii, function=_function)
_messages = st.lists(
    st.builds(UserMessage, _ascii)
    | st.builds(UserMessage, st.lists(st.builds(TextPart, _ascii), max_size=2))
    | st.builds(AssistantMessage, _ascii, tool_calls=st.lists(_call, max_size=2))
    | st.builds(ToolMessage, _ascii | st.lists(st.builds(TextPart, _ascii), max_size=2), _ascii)
)


@given(_messages)
def test_messages_that_are_written_at_once_count_as_each_by_itself(
    messages: list[Message],
) -> None:
    nothing = prompt_bound([])
    one_by_one = [prompt_bound([message]) for message in messages]

    text_bytes = sum(bound.text_bytes for bound in one_by_one)
    for_templates = sum(bound.template_tokens - nothing.template_tokens for bound in one_by_one)
    assert prompt_bound(messages) == (text_bytes, nothing.template_tokens + for_templates)


def test_one_character_that_normalises_to_eighteen_counts_as_eighteen() -> None:
    ligature = "\ufdfa"

    assert len(unicodedata.normalize("NFKC", ligature)) == 18
    assert prompt_bound([_Message("user", ligature)]).tokens == _byte_tokens(ligature) + 272
