"""Time and ids: the two things that differ at every run, behind one small interface so that a test
can fix them."""

import datetime
import os
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Wall-clock seconds since the Unix epoch, UTC: for what is written down."""
        ...

    def monotonic(self) -> float:
        """Seconds that never step: for limits, deadlines and durations."""
        ...


class SystemClock:
    # The functions themselves, not methods that call them: a request reads the clock several times.
    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


def new_id(prefix: str, now: float) -> str:
    """`prefix_` and 32 hex digits: 12 of the time in milliseconds, then 80 random bits.

    The time comes first so that new rows land at the end of every index, however large the table
    has grown.
    """
    return f"{prefix}_{int(now * 1000):012x}{_random_digits.take()}"


class _RandomDigits:
    """20 hex digits at a time, made of the system's random bytes 4,000 at a time: each call of the
    system costs 2 us. A forked child must not hand out its parent's, so it begins anew."""

    def __init__(self) -> None:
        self._digits: list[str] = []
        os.register_at_fork(after_in_child=self._digits.clear)

    def take(self) -> str:
        if not self._digits:
            all_digits = os.urandom(4000).hex()
            self._digits += [all_digits[at : at + 20] for at in range(0, 8000, 20)]
        return self._digits.pop()


_random_digits = _RandomDigits()


def first_id_since(prefix: str, then: float) -> str:
    """The smallest id that `new_id` could have made at `then`, in seconds since the epoch."""
    return f"{prefix}_{int(then * 1000):012x}"


def moment_of(id: str) -> float:
    """The other way round: of an id, or the beginning of one, the first moment that it may be
    of."""
    _, _, digits = id.partition("_")
    return int(digits[:12].ljust(12, "0"), 16) / 1000


def iso(seconds: float) -> str:
    """`2026-11-23T07:20:47.123Z`, as the API writes times."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
