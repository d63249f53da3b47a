"""Which upstreams may be believed: one that reports more than its cap is a loss to the operator.

What a request costs beyond its hold is the operator's (its `shortfall`). It cannot come from a
server that counts rightly and keeps to the cap it was sent, so three of them in a row set the
upstream aside for a minute: its models answer 503 before anything is sent. After that it is on
trial: one more sets it aside again, and one honest report clears it.
"""

import logging
from collections.abc import Callable

SHORTFALLS_MAX = 3
SET_ASIDE_SECONDS = 60.0

log = logging.getLogger("tollway.upstreams")


class Trust:
    """`on_set_aside` is told the upstream's name each time."""

    def __init__(self, monotonic: Callable[[], float], on_set_aside: Callable[[str], None]) -> None:
        self._monotonic = monotonic
        self._on_set_aside = on_set_aside
        self._in_a_row: dict[str, int] = {}
        self._aside_until: dict[str, float] = {}

    def reported(self, upstream: str, shortfall: int) -> None:
        """The upstream's own report of a request's usage was `shortfall` credits above its hold."""
        if shortfall == 0:
            self._in_a_row.pop(upstream, None)
            return
        in_a_row = self._in_a_row.get(upstream, 0) + 1
        self._in_a_row[upstream] = in_a_row
        # Requests that were in flight when it was set aside may come to their end meanwhile.
        if in_a_row < SHORTFALLS_MAX or self.seconds_aside(upstream) > 0:
            return
        self._aside_until[upstream] = self._monotonic() + SET_ASIDE_SECONDS
        self._on_set_aside(upstream)
        log.error(
            "upstream %s reported more than its cap %d times in a row, the last %d credits more "
            "than was held: it is set aside for %d s. Does it keep to max_tokens, and count as its "
            "model does?",
            upstream,
            in_a_row,
            shortfall,
            SET_ASIDE_SECONDS,
        )

    def seconds_aside(self, upstream: str) -> float:
        """For how long it is set aside yet; 0 where it may be asked."""
        until = self._aside_until.get(upstream)
        return 0.0 if until is None else max(0.0, until - self._monotonic())
