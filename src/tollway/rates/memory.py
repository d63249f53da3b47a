"""Rates in this process's memory."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

from tollway.clock import Clock
from tollway.rates.base import WINDOW_SECONDS, RateState, Take

_SWEEP_EVERY_TAKES = 4096


class MemoryRateLimiter:
    """A deque of admission times for each key; what is older than the window falls off at the next
    look."""

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._times: dict[str, deque[float]] = {}
        self._takes = 0

    async def take(self, key: str, limit: int) -> Take:
        return self.take_at_once(key, limit)

    def take_at_once(self, key: str, limit: int) -> Take:
        now = self._monotonic()
        times = self._times.get(key)
        if times is None or (times and now - times[0] > WINDOW_SECONDS):
            times = self._recent(key, now)
        remaining = limit - len(times) - 1
        if remaining < 0:
            return Take(False, now, _state(times, limit, now))
        times.append(now)
        self._takes += 1
        if self._takes % _SWEEP_EVERY_TAKES == 0:
            self._forget_idle(now)
        state = RateState(limit, remaining, 0.0) if remaining else _state(times, limit, now)
        return Take(True, now, state)

    async def give_back(self, key: str, admitted_at: float) -> None:
        times = self._times.get(key)
        if times is not None and admitted_at in times:
            times.remove(admitted_at)

    async def state(self, key: str, limit: int) -> RateState:
        now = self._monotonic()
        return _state(self._recent(key, now), limit, now)

    def refill(self, key: str, ages_seconds: Iterable[float]) -> None:
        """After a restart: the requests of the last minute still count."""
        now = self._monotonic()
        times = self._recent(key, now)
        for age in ages_seconds:
            if 0 <= age <= WINDOW_SECONDS:
                times.insert(bisect_left(times, now - age), now - age)

    def _recent(self, key: str, now: float) -> deque[float]:
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = deque()
        # Exactly 60 seconds ago still counts: a span that has both its ends must not hold one more.
        while times and now - times[0] > WINDOW_SECONDS:
            times.popleft()
        return times

    def _forget_idle(self, now: float) -> None:
        """Amortised over thousands of takes, so that keys seen once do not stay for ever."""
        idle = [
            k for k, times in self._times.items() if not times or now - times[-1] > WINDOW_SECONDS
        ]
        for key in idle:
            del self._times[key]


def _state(times: deque[float], limit: int, now: float) -> RateState:
    if len(times) < limit:
        return RateState(limit, limit - len(times), 0.0)
    # The place that frees first may be behind others when the limit was lowered meanwhile.
    frees = times[len(times) - limit] if limit > 0 else now
    return RateState(limit, 0, max(0.0, frees + WINDOW_SECONDS - now))
