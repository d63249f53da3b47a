from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.catalogue import Price
from tollway.pricing import affordable_output_tokens, charge

_tokens = st.integers(0, 2**32)
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
