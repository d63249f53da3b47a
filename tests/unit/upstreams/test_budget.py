from hypothesis import given
from hypothesis import strategies as st
from tests.support.clock import FixedClock

from tollway.upstreams.budget import RESERVE, RESERVE_PER_SECOND, TOKENS_MAX, RetryBudget


def withdrawn(budget: RetryBudget, most: int = 1000) -> int:
    return next((n for n in range(most) if not budget.withdraw()), most)


def test_a_model_without_traffic_has_a_few_tries() -> None:
    assert withdrawn(RetryBudget(FixedClock().monotonic)) == RESERVE


def test_ten_requests_allow_one_more_try() -> None:
    budget = RetryBudget(FixedClock().monotonic)
    withdrawn(budget)
    for _ in range(51):
        budget.deposit()
    assert withdrawn(budget) == 5


def test_what_was_not_used_is_kept_up_to_a_bound() -> None:
    budget = RetryBudget(FixedClock().monotonic)
    for _ in range(100_000):
        budget.deposit()
    assert withdrawn(budget) == TOKENS_MAX


def test_time_refills_the_reserve_and_no_more() -> None:
    clock = FixedClock()
    budget = RetryBudget(clock.monotonic)
    withdrawn(budget)
    clock.advance(3)
    assert withdrawn(budget) == 3 * RESERVE_PER_SECOND
    clock.advance(1000)
    assert withdrawn(budget) == RESERVE


def test_what_is_refused_is_counted() -> None:
    budget = RetryBudget(FixedClock().monotonic)
    withdrawn(budget)
    budget.withdraw()
    assert budget.refused == 2


@given(st.integers(0, 2000), st.lists(st.floats(0.001, 1.0), max_size=50))
def test_more_tries_are_never_above_a_tenth_and_the_reserve(
    requests: int, pauses: list[float]
) -> None:
    clock = FixedClock()
    budget = RetryBudget(clock.monotonic)
    for _ in range(requests):
        budget.deposit()
    tries = withdrawn(budget)
    for pause in pauses:
        clock.advance(pause)
        tries += withdrawn(budget)
    assert tries <= RESERVE + requests / 10 + sum(pauses) * RESERVE_PER_SECOND + 1
