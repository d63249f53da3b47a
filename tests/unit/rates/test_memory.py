import pytest
from hypothesis import given
from tests.support.clock import FixedClock
from tests.unit.rates.rate_suite import LIMIT, Rates, RateSuite, check_every_minute, gaps

from tollway.rates.memory import MemoryRateLimiter


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def limiter(clock: FixedClock) -> MemoryRateLimiter:
    return MemoryRateLimiter(clock)


@pytest.fixture
def rates(limiter: MemoryRateLimiter, clock: FixedClock) -> Rates:
    return Rates(limiter, clock.advance)


class TestMemoryRateLimiter(RateSuite):
    pass


@given(gaps)
async def test_no_minute_has_more_than_the_limit_and_none_is_refused_with_fewer(
    gaps: list[int],
) -> None:
    clock = FixedClock(monotonic=0.0)
    await check_every_minute(Rates(MemoryRateLimiter(clock), clock.advance), gaps)


async def test_after_a_restart_the_last_minute_still_counts(
    limiter: MemoryRateLimiter, rates: Rates
) -> None:
    limiter.refill("a", [50.0, 1.0, 30.0, 61.0, -5.0])
    assert await rates.admitted(50) == LIMIT - 3
    rates.advance(10.001)
    assert await rates.admitted(5) == 1


async def test_a_step_of_the_wall_clock_changes_nothing(rates: Rates, clock: FixedClock) -> None:
    await rates.admitted(LIMIT)
    clock.step(86_400)
    assert await rates.admitted() == 0
    clock.step(-172_800)
    assert await rates.admitted() == 0


async def test_keys_that_were_seen_once_are_forgotten(
    limiter: MemoryRateLimiter, rates: Rates
) -> None:
    for number in range(3000):
        await limiter.take(f"old {number}", LIMIT)
    rates.advance(61)
    for number in range(1200):
        await limiter.take(f"new {number}", LIMIT)
    assert len(vars(limiter)["_times"]) < 2000
