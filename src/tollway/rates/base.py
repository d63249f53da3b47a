"""Limits: so many requests in any minute, and so many at a time.

The minute is exact: no span of 60 seconds holds more than the limit, wherever it starts. That takes
a log of admission times; a bucket that refills (GCRA) lets through 59 at a limit of 30, half of
them in the burst.
"""

from typing import Protocol

from msgspec import Struct

WINDOW_SECONDS = 60.0
CHAT = "chat:"
"""What the key of an account's chat requests begins with; the account's id follows."""


class RateState(Struct, frozen=True, gc=False):
    """What the x-ratelimit headers say. `reset_seconds`: until the next place is free, 0 if one
    is."""

    limit: int
    remaining: int
    reset_seconds: float


class Take(Struct, frozen=True, gc=False):
    """The answer to `take`. `admitted_at` names the place, so that it can be given back.

    `crowded`: not the rate refuses, but the number of the account's requests at a time over all
    replicas, which is looked at together with a place for chat.
    """

    admitted: bool
    admitted_at: float
    state: RateState
    crowded: bool = False


class RateLimiter(Protocol):
    def take_at_once(self, key: str, limit: int) -> Take | None:
        """As `take`; None where it cannot be said without asking somebody."""
        ...

    async def take(self, key: str, limit: int) -> Take:
        """Takes a place of `key` if fewer than `limit` were taken in the last 60 seconds."""
        ...

    async def give_back(self, key: str, admitted_at: float) -> None: ...

    async def state(self, key: str, limit: int) -> RateState:
        """Looks without taking."""
        ...
