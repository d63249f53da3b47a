"""What is counted: plain integers, well under 1 us each.

Requests count on the event loop alone; only `committed` is called by the database's writer thread,
and nobody else writes what it writes.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import get_args

from tollway.errors import RateLimit

_FIRST_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DURATION_BOUNDS = (
    0.01,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_RATE_STORE_BOUNDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
_VELOCITY_SECONDS = 60


class Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class ModelCounts:
    """Of one model: its settled requests."""

    __slots__ = (
        "counted",
        "credits",
        "duration",
        "ended",
        "first_token",
        "input_tokens",
        "output_tokens",
        "shortfall_credits",
        "shortfalls",
        "tries_again",
    )

    def __init__(self) -> None:
        self.ended = {"completed": 0, "interrupted": 0, "failed": 0}
        self.input_tokens = 0
        self.output_tokens = 0
        self.credits = 0
        self.shortfall_credits = 0
        self.shortfalls = 0
        self.counted = 0
        self.tries_again = 0
        self.first_token = Histogram(_FIRST_TOKEN_BOUNDS)
        self.duration = Histogram(_DURATION_BOUNDS)


class Velocity:
    """Credits charged in the last 60 seconds, by whole seconds: of all, and of each account that
    was charged any."""

    __slots__ = ("_accounts", "_seconds", "_total")

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, dict[str, int]]] = deque()
        self._accounts: dict[str, int] = {}
        self._total = 0

    def charged(self, account_id: str, credits: int, monotonic: float) -> None:
        second = int(monotonic)
        seconds = self._seconds
        # Never back, although requests are told a little out of order.
        if not seconds or seconds[-1][0] < second:
            self._forget(monotonic)
            seconds.append((second, {}))
        of_second = seconds[-1][1]
        of_second[account_id] = of_second.get(account_id, 0) + credits
        self._accounts[account_id] = self._accounts.get(account_id, 0) + credits
        self._total += credits

    def last_minute(self, monotonic: float) -> tuple[int, int]:
        """Of all, and of the account with the most."""
        self._forget(monotonic)
        return self._total, max(self._accounts.values(), default=0)

    def _forget(self, monotonic: float) -> None:
        seconds = self._seconds
        while seconds and monotonic - seconds[0][0] > _VELOCITY_SECONDS:
            _, of_second = seconds.popleft()
            for account_id, credits in of_second.items():
                self._total -= credits
                left = self._accounts[account_id] - credits
                if left:
                    self._accounts[account_id] = left
                else:
                    del self._accounts[account_id]


class Metrics:
    """The counters. Their keys are what we configured or wrote, never what a client sent."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.refusals: dict[str, int] = {}
        self.rate_refusals: dict[RateLimit, int] = dict.fromkeys(get_args(RateLimit), 0)
        self.authentication_failures = 0
        self.models: dict[str, ModelCounts] = {}
        self.upstream_attempts: dict[str, int] = {}
        self.upstream_failures: dict[tuple[str, str], int] = {}
        self.upstream_refusals: dict[tuple[str, int], int] = {}
        self.velocity = Velocity()
        self.access_lines_lost = 0
        self.before_reading: list[Callable[[], None]] = []
        """Called before a scrape: whoever has something that is not counted yet counts it."""
        self.rates_exact = True
        self.replicas_live = 1
        self.rate_store_falls = 0
        self.rate_store_seconds = Histogram(_RATE_STORE_BOUNDS)
        self.reloads = {"ok": 0, "refused": 0}
        self.configured_at = time.time()
        self.commit_batch = Histogram(_BATCH_BOUNDS)
        self.commit_seconds = Histogram(_COMMIT_BOUNDS)

    def catch_up(self) -> None:
        for count in self.before_reading:
            count()

    def of(self, model: str) -> ModelCounts:
        counts = self.models.get(model)
        if counts is None:
            counts = self.models[model] = ModelCounts()
        return counts

    def request(self, kind: str, model: str, status: int) -> None:
        key = (kind, model, status)
        requests = self.requests
        requests[key] = requests.get(key, 0) + 1

    def refused(self, code: str) -> None:
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def attempted(self, upstream: str, status: int | None, error: str | None) -> None:
        attempts = self.upstream_attempts
        attempts[upstream] = attempts.get(upstream, 0) + 1
        if error is None:
            return
        failure = (upstream, error)
        self.upstream_failures[failure] = self.upstream_failures.get(failure, 0) + 1
        if status in (401, 402, 403, 404, 429):
            refusal = (upstream, status)
            self.upstream_refusals[refusal] = self.upstream_refusals.get(refusal, 0) + 1

    def reloaded(self, *, ok: bool) -> None:
        self.reloads["ok" if ok else "refused"] += 1
        if ok:
            self.configured_at = time.time()

    def committed(self, pieces: int, seconds: float) -> None:
        """Called by the database's writer thread, and by nobody else."""
        self.commit_batch.observe(pieces)
        self.commit_seconds.observe(seconds)
