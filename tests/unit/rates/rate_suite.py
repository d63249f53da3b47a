"""What `rates/base.py` promises, as tests that every implementation runs."""

from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from tollway.rates.base import WINDOW_SECONDS, RateLimiter, RateState

LIMIT = 30
# In units that are whole both for a clock of floats and for one of microseconds.
SECOND = 64
GAPS = [0, 2 * SECOND, 60 * SECOND - 1, 60 * SECOND, 60 * SECOND + 1]


class Rates:
    """A limiter, and a clock that stands still until a test moves it."""

    def __init__(self, limiter: RateLimiter, advance: Callable[[float], None]) -> None:
        self.limiter = limiter
        self.advance = advance
        self._keys = 0

    async def admitted(self, times: int = 1, key: str = "a") -> int:
        return sum([(await self.limiter.take(key, LIMIT)).admitted for _ in range(times)])

    async def state(self, limit: int = LIMIT) -> RateState:
        state = await self.limiter.state("a", limit)
        return RateState(state.limit, state.remaining, round(state.reset_seconds, 3))

    def new_key(self) -> str:
        self._keys += 1
        return f"key {self._keys}"


gaps = st.lists(st.integers(0, 25 * SECOND) | st.sampled_from(GAPS), max_size=100)


async def check_every_minute(rates: Rates, gaps: list[int]) -> None:
    """Takes a place after each gap, in units of SECOND: no minute has more than the limit, and none
    is refused with fewer."""
    key, limit, now, window = rates.new_key(), 5, 0, WINDOW_SECONDS * SECOND
    taken: list[int] = []
    for gap in gaps:
        rates.advance(gap / SECOND)
        now += gap
        in_window = [at for at in taken if now - at <= window]
        take = await rates.limiter.take(key, limit)
        assert take.admitted == (len(in_window) < limit)
        taken += [now] if take.admitted else []

    for at in taken:
        assert sum(at <= other <= at + window for other in taken) <= limit


class RateSuite:
    """A subclass gives the fixture `rates`."""

    async def test_thirty_are_admitted_at_once_and_no_more(self, rates: Rates) -> None:
        assert await rates.admitted(50) == LIMIT

    async def test_a_minute_later_thirty_more_are(self, rates: Rates) -> None:
        await rates.admitted(LIMIT)
        rates.advance(59.999)
        assert await rates.admitted() == 0
        rates.advance(0.002)
        assert await rates.admitted(50) == LIMIT

    async def test_a_span_of_60_seconds_has_both_its_ends(self, rates: Rates) -> None:
        await rates.admitted(LIMIT)
        rates.advance(60)
        assert await rates.admitted() == 0

    async def test_one_every_two_seconds_is_always_admitted(self, rates: Rates) -> None:
        for _ in range(200):
            assert await rates.admitted() == 1
            rates.advance(2.001)

    async def test_no_burst_is_saved_up(self, rates: Rates) -> None:
        """A bucket that refills would admit 59 in this minute."""
        total = await rates.admitted(LIMIT)
        for _ in range(29):
            rates.advance(2)
            total += await rates.admitted(2)
        assert total == LIMIT

    async def test_keys_do_not_share_places(self, rates: Rates) -> None:
        assert await rates.admitted(50, "a") == LIMIT
        assert await rates.admitted(50, "b") == LIMIT

    async def test_a_place_that_was_given_back_can_be_taken(self, rates: Rates) -> None:
        take = await rates.limiter.take("a", LIMIT)
        await rates.limiter.give_back("a", take.admitted_at)
        assert await rates.admitted(50) == LIMIT

    async def test_a_place_is_given_back_once(self, rates: Rates) -> None:
        take = await rates.limiter.take("a", LIMIT)
        rates.advance(1)
        await rates.admitted(LIMIT - 1)
        for _ in range(3):
            await rates.limiter.give_back("a", take.admitted_at)
        await rates.limiter.give_back("unheard of", 1.0)
        assert await rates.admitted(5) == 1

    async def test_the_state_says_what_is_left_and_when_a_place_is_free(self, rates: Rates) -> None:
        assert await rates.state() == RateState(LIMIT, LIMIT, 0.0)
        await rates.admitted(10)
        assert await rates.state() == RateState(LIMIT, 20, 0.0)
        rates.advance(10)
        await rates.admitted(20)
        assert await rates.state() == RateState(LIMIT, 0, 50.0)
        rates.advance(45)
        take = await rates.limiter.take("a", LIMIT)
        assert (take.admitted, take.state.remaining) == (False, 0)
        assert take.state.reset_seconds == pytest.approx(5.0, abs=1e-3)  # pyright: ignore[reportUnknownMemberType]
        rates.advance(5.001)
        assert await rates.state() == RateState(LIMIT, 10, 0.0)

    async def test_looking_takes_nothing(self, rates: Rates) -> None:
        for _ in range(100):
            await rates.state()
        assert await rates.admitted(50) == LIMIT

    async def test_a_limit_that_was_lowered_waits_for_enough_to_pass(self, rates: Rates) -> None:
        await rates.admitted(5)
        rates.advance(20)
        await rates.admitted(5)
        assert (await rates.state(3)).reset_seconds == 60.0
        assert (await rates.state(8)).reset_seconds == 40.0

    async def test_a_limit_of_zero_admits_nothing(self, rates: Rates) -> None:
        take = await rates.limiter.take("a", 0)
        assert (take.admitted, take.state.remaining) == (False, 0)
