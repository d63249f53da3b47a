"""What goes wrong at an upstream is logged once a minute, with how often it did since: a busy one
may fail hundreds of requests in a second."""

import logging
import time
from collections.abc import Callable, Hashable

COMPLAINT_SECONDS = 60.0

log = logging.getLogger("tollway.upstreams")


class Complaints:
    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._told: dict[Hashable, tuple[float, int]] = {}

    def tell(self, level: int, about: Hashable, said: str) -> None:
        """`about` tells one complaint from another: of each the first one in a minute is logged,
        whatever it says."""
        now = self._monotonic()
        told_at, untold = self._told.get(about, (-COMPLAINT_SECONDS, 0))
        if now - told_at < COMPLAINT_SECONDS:
            self._told[about] = told_at, untold + 1
            return
        self._told[about] = now, 0
        more = f" (and {untold} times more since this was last told)" if untold else ""
        log.log(level, "%s%s", said, more)
