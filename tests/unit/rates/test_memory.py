import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.clock import FixedClock

from tollway.rates.base import WINDOW_SECONDS, RateState
from tollway.rates.memory import MemoryRateLimiter

LIMIT = 30


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def limiter(clock: FixedClock) -> MemoryRateLimiter:
    return MemoryRateLimiter(clock)


async def admitted(limiter: MemoryRateLimiter, times: int = 1, key: str = "a") -> int:
    return sum([(await limiter.take(key, LIMIT)).admitted for _ in range(times)])


async def test_thirty_are_admitted_at_once_and_no_more(limiter: MemoryRateLimiter) -> None:
    assert await admitted(limiter, 50) == LIMIT


async def test_a_minute_later_thirty_more_are(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    await admitted(limiter, LIMIT)
    clock.advance(59.999)
    assert await admitted(limiter) == 0
    clock.advance(0.002)
    assert await admitted(limiter, 50) == LIMIT


async def test_a_span_of_60_seconds_has_both_its_ends(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    await admitted(limiter, LIMIT)
    clock.advance(60)
    assert await admitted(limiter) == 0


async def test_one_every_two_seconds_is_always_admitted(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    for _ in range(200):
        assert await admitted(limiter) == 1
        clock.advance(2.001)


async def test_no_burst_is_saved_up(limiter: MemoryRateLimiter, clock: FixedClock) -> None:
    """A bucket that refills would admit 59 in this minute."""
    total = await admitted(limiter, LIMIT)
    for _ in range(29):
        clock.advance(2)
        total += await admitted(limiter, 2)
    assert total == LIMIT


@given(st.lists(st.floats(0, 25) | st.sampled_from([0.0, 2.0, 59.9, 60.0, 60.1]), max_size=150))
async def test_no_minute_has_more_than_the_limit_and_none_is_refused_with_fewer(
    gaps: list[float],
) -> None:
    clock = FixedClock(monotonic=0.0)
    limiter = MemoryRateLimiter(clock)
    limit = 5
    taken: list[float] = []
    for gap in gaps:
        clock.advance(gap)
        now = clock.monotonic()
        in_window = [at for at in taken if now - at <= WINDOW_SECONDS]
        take = await limiter.take("a", limit)
        assert take.admitted == (len(in_window) < limit)
        taken += [now] if take.admitted else []

    for at in taken:
        assert sum(at <= other <= at + WINDOW_SECONDS for other in taken) <= limit


async def test_keys_do_not_share_places(limiter: MemoryRateLimiter) -> None:
    assert await admitted(limiter, 50, "a") == LIMIT
    assert await admitted(limiter, 50, "b") == LIMIT


async def test_a_place_that_was_given_back_can_be_taken(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    take = await limiter.take("a", LIMIT)
    await limiter.give_back("a", take.admitted_at)
    assert await admitted(limiter, 50) == LIMIT


async def test_a_place_is_given_back_once(limiter: MemoryRateLimiter, clock: FixedClock) -> None:
    take = await limiter.take("a", LIMIT)
    clock.advance(1)
    await admitted(limiter, LIMIT - 1)
    for _ in range(3):
        await limiter.give_back("a", take.admitted_at)
    await limiter.give_back("unheard of", 1.0)
    assert await admitted(limiter, 5) == 1


async def test_the_state_says_what_is_left_and_when_a_place_is_free(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    assert await limiter.state("a", LIMIT) == RateState(LIMIT, LIMIT, 0.0)
    await admitted(limiter, 10)
    assert await limiter.state("a", LIMIT) == RateState(LIMIT, 20, 0.0)
    clock.advance(10)
    await admitted(limiter, 20)
    assert await limiter.state("a", LIMIT) == RateState(LIMIT, 0, 50.0)
    clock.advance(45)
    take = await limiter.take("a", LIMIT)
    assert take.state == RateState(LIMIT, 0, 5.0)
    clock.advance(5.001)
    assert await limiter.state("a", LIMIT) == RateState(LIMIT, 10, 0.0)


async def test_looking_takes_nothing(limiter: MemoryRateLimiter) -> None:
    for _ in range(100):
        await limiter.state("a", LIMIT)
    assert await admitted(limiter, 50) == LIMIT


async def test_a_limit_that_was_lowered_waits_for_enough_to_pass(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    await admitted(limiter, 5)
    clock.advance(20)
    await admitted(limiter, 5)
    assert (await limiter.state("a", 3)).reset_seconds == 60.0
    assert (await limiter.state("a", 8)).reset_seconds == 40.0


async def test_a_limit_of_zero_admits_nothing(limiter: MemoryRateLimiter) -> None:
    take = await limiter.take("a", 0)
    assert (take.admitted, take.state.remaining) == (False, 0)


async def test_after_a_restart_the_last_minute_still_counts(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    limiter.refill("a", [50.0, 1.0, 30.0, 61.0, -5.0])
    assert await admitted(limiter, 50) == LIMIT - 3
    clock.advance(10.001)
    assert await admitted(limiter, 5) == 1


async def test_a_step_of_the_wall_clock_changes_nothing(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    await admitted(limiter, LIMIT)
    clock.step(86_400)
    assert await admitted(limiter) == 0
    clock.step(-172_800)
    assert await admitted(limiter) == 0


async def test_keys_that_were_seen_once_are_forgotten(
    limiter: MemoryRateLimiter, clock: FixedClock
) -> None:
    for number in range(3000):
        await limiter.take(f"old {number}", LIMIT)
    clock.advance(61)
    for number in range(1200):
        await limiter.take(f"new {number}", LIMIT)
    assert len(vars(limiter)["_times"]) < 2000
