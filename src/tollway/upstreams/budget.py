"""How many more tries are allowed: a tenth of the requests, and a few in any case.

Without it an outage triples the load on what is left of a model's servers, in the very moment when
they can bear it least. A bucket of tokens: each request puts a tenth of one in, each further try
takes one out. A model with little traffic would earn none, so a small reserve refills with time.
"""

from collections.abc import Callable

SHARE = 0.1
TOKENS_MAX = 100.0
RESERVE = 20.0
RESERVE_PER_SECOND = 2.0


class RetryBudget:
    """Of one model."""

    __slots__ = ("_monotonic", "_refilled_at", "refused", "tokens")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.tokens = RESERVE
        self.refused = 0
        self._monotonic = monotonic
        self._refilled_at = monotonic()

    def deposit(self) -> None:
        """A request came."""
        if self.tokens < TOKENS_MAX:
            self.tokens += SHARE

    def withdraw(self) -> bool:
        """Whether it may be tried once more."""
        if self.remaining() < 1:
            self.refused += 1
            return False
        self.tokens -= 1
        return True

    def remaining(self) -> float:
        now = self._monotonic()
        if self.tokens < RESERVE:
            refilled = self.tokens + (now - self._refilled_at) * RESERVE_PER_SECOND
            self.tokens = min(RESERVE, refilled)
        self._refilled_at = now
        return self.tokens
