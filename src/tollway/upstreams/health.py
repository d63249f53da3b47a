"""May an upstream be asked? One answer from all that is known of it.

Four things speak against asking one:

- **its circuit is open**: it failed several times in a row, or half of its requests. After a
  cool-down one request may try it, and that one decides: it closes the circuit, or opens it again
  for twice as long;
- **it rests**: it asked for it itself, by a Retry-After;
- **it is set aside**: three times in a row it reported more usage than its cap allowed. What a
  request costs beyond its hold is the operator's (its `shortfall`), so this goes before all else;
- **its checks fail**, where the operator has it checked.

    closed ── failures in a row, or too many of them ──► open ── cool-down ──► may be probed
       ▲                                                  ▲                         │
       └──────────────── the probe was answered ──────────┼─────── one request ◄────┘
                                                          └─ failed: twice as long

Nothing here does I/O or waits; time and chance are arguments. The usual request costs one look at
`clear` and one call of `served`.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from tollway.errors import InvalidRequest, RequestError
from tollway.upstreams.dialects import TOO_BUSY

CIRCUIT_FAILURES = 5
COOL_DOWN_SECONDS_FIRST = 1.0
COOL_DOWN_SECONDS_MAX = 60.0
WINDOW_SECONDS = 30.0
WINDOW_REQUESTS_MIN = 20
WINDOW_FAILURES_MAX = 0.5
SHORTFALLS_MAX = 3
SET_ASIDE_SECONDS = 60.0
CHECKS_FAILED_MAX = 2

Verdict = Literal["served", "rest", "overloaded", "fault", "down", "nothing"]
"""What an error says of the upstream that it came from. `served`: the fault was the request's;
`overloaded` and `down` count in a row, `fault` and `down` as a share; `nothing`: it was not
asked."""

Condition = Literal[
    "serving", "open", "probing", "resting", "set aside", "unhealthy", "not running"
]

log = logging.getLogger("tollway.upstreams")


def verdict(error: RequestError) -> Verdict:
    status = error.upstream_status
    if isinstance(error, InvalidRequest):
        return "served"
    if status is None:
        return "nothing" if error.code == "overloaded" else "down"
    if status in TOO_BUSY:
        return "overloaded" if error.upstream_rest_seconds is None else "rest"
    if status in (400, 404, 500):
        # One client's request alone may cause each, and must not cut off all others'.
        return "fault" if status == 500 else "served"
    return "down"


class HealthStatus(Struct, frozen=True):
    """What an operator is shown. `seconds` is how long it has been so, `again_seconds` when it may
    be asked again, where that is known."""

    condition: Condition
    seconds: float
    again_seconds: float
    why: str


class Health:
    """Of one upstream. `failures_max` 0 keeps its circuit closed whatever happens."""

    __slots__ = (
        "_aside_until",
        "_checks_failed",
        "_closed_at",
        "_cool_down",
        "_failed_at",
        "_failures_max",
        "_in_a_row",
        "_monotonic",
        "_open",
        "_open_until",
        "_probing",
        "_random",
        "_rest_until",
        "_shortfalls",
        "_since",
        "_why",
        "clear",
        "failures",
        "name",
        "requests",
        "times_opened",
        "times_set_aside",
    )

    def __init__(
        self,
        name: str,
        monotonic: Callable[[], float],
        random: Callable[[], float],
        failures_max: int = CIRCUIT_FAILURES,
    ) -> None:
        self.name = name
        self.clear = True
        """Nothing speaks against it; where it is False, `may_be_asked` may still be True."""
        self.requests = 0  # that have ended
        self.failures = 0
        self.times_opened = 0
        self.times_set_aside = 0
        self._monotonic = monotonic
        self._random = random
        self._failures_max = failures_max
        self._in_a_row = 0
        # When each of the last failures was, and how many requests there had been by then.
        self._failed_at: deque[tuple[float, int]] = deque(maxlen=1000)
        self._open = self._probing = False
        self._open_until = self._rest_until = self._aside_until = 0.0
        self._cool_down = 0.0
        self._closed_at = 0.0
        self._shortfalls = 0
        self._checks_failed = 0
        self._since = monotonic()
        self._why = ""

    # --- before a request -------------------------------------------------------------------------

    def may_be_asked(self) -> bool:
        return self.clear or self._may_be_asked_again()

    def begin_probe(self) -> bool:
        """Whether this request is the probe of an open circuit: no other goes until it is known how
        it went."""
        if self.clear or not self._open:
            return False
        self._probing = True
        self._since = self._monotonic()
        return True

    def seconds_until_asked(self) -> float:
        """0 where it may be asked, or nobody knows when."""
        if self.may_be_asked():
            return 0.0
        return max(0.0, self._blocked_until() - self._monotonic())

    # --- after it ---------------------------------------------------------------------------------

    def served(self, *, probe: bool = False) -> None:
        """It answered in good order, or refused what no upstream would take."""
        self.requests += 1
        if self._in_a_row and not self._open:
            self._in_a_row = 0
        if probe:
            self._close()

    def answered(self) -> None:
        """The first byte of the answer to a probe is there, and the rest may take minutes: others
        are asked now, and one failure opens the circuit again."""
        self._close()
        self._in_a_row = max(0, self._failures_max - 1)

    def abandoned(self, *, probe: bool = False) -> None:
        """Nobody waited for how it went: the next request is the probe."""
        if probe:
            self._probing = False

    def failed(self, error: RequestError, *, probe: bool = False) -> None:
        said = verdict(error)
        if said in ("served", "nothing"):
            if said == "served":
                self.served(probe=probe)
            else:
                self.abandoned(probe=probe)
            return
        now = self._monotonic()
        self.requests += 1
        self.failures += 1
        if said == "rest":
            assert error.upstream_rest_seconds is not None
            self.abandoned(probe=probe)
            self._rest(now, error.upstream_rest_seconds)
            return
        if said != "fault":
            self._in_a_row += 1
        if said != "overloaded":
            self._failed_at.append((now, self.requests))
        if probe:
            self._probing = False
            self._open_circuit(now, "it failed the request that tried it")
        elif not self._open and (why := self._too_many(now)) is not None:
            self._open_circuit(now, why)

    def reported(self, shortfall: int) -> None:
        """Its own report of a request's usage was `shortfall` credits above the hold."""
        if shortfall == 0:
            self._shortfalls = 0
            return
        self._shortfalls += 1
        now = self._monotonic()
        # Requests that were in flight when it was set aside may come to their end meanwhile.
        if self._shortfalls < SHORTFALLS_MAX or now < self._aside_until:
            return
        self._aside_until = now + SET_ASIDE_SECONDS
        self.times_set_aside += 1
        self._block(now, "it reported more than it was allowed to use")
        log.error(
            "upstream %s reported more than its cap %d times in a row, the last %d credits more "
            "than was held: it is set aside for %d s. Does it keep to max_tokens, and count as its "
            "model does?",
            self.name,
            self._shortfalls,
            shortfall,
            SET_ASIDE_SECONDS,
        )

    def checked(self, *, passed: bool) -> None:
        """The result of an active check. A check that passes ends an open circuit's cool-down."""
        now = self._monotonic()
        if not passed:
            self._checks_failed += 1
            if self._checks_failed == CHECKS_FAILED_MAX:
                self._block(now, "its health checks fail")
                log.error("upstream %s fails its health checks: it is not asked", self.name)
            return
        if self._checks_failed >= CHECKS_FAILED_MAX:
            log.warning("upstream %s passes its health checks again", self.name)
        self._checks_failed = 0
        self._open_until = min(self._open_until, now)

    # --- for operators ----------------------------------------------------------------------------

    def status(self) -> HealthStatus:
        clear = self.may_be_asked() and not self._open
        now = self._monotonic()
        condition: Condition = "serving"
        if clear:
            pass
        elif now < self._aside_until:
            condition = "set aside"
        elif self._checks_failed >= CHECKS_FAILED_MAX:
            condition = "unhealthy"
        elif self._probing:
            condition = "probing"
        elif self._open:
            condition = "open"
        else:
            condition = "resting"
        why = "" if clear else self._why
        again = max(0.0, self._blocked_until() - now)
        return HealthStatus(condition, now - self._since, again, why)

    # --- parts ------------------------------------------------------------------------------------

    def _may_be_asked_again(self) -> bool:
        if self._checks_failed >= CHECKS_FAILED_MAX or self._monotonic() < self._blocked_until():
            return False
        if self._open:
            return not self._probing
        self.clear = True
        self._since = self._monotonic()
        return True

    def _blocked_until(self) -> float:
        until = max(self._rest_until, self._aside_until)
        return max(until, self._open_until) if self._open else until

    def _too_many(self, now: float) -> str | None:
        if self._failures_max == 0:
            return None
        if self._in_a_row >= self._failures_max:
            return f"it failed {self._in_a_row} times in a row"
        failed_at = self._failed_at
        while failed_at and now - failed_at[0][0] > WINDOW_SECONDS:
            failed_at.popleft()
        if not failed_at:
            return None
        requests = self.requests - failed_at[0][1] + 1
        if requests < WINDOW_REQUESTS_MIN or len(failed_at) < requests * WINDOW_FAILURES_MAX:
            return None
        return f"it failed {len(failed_at)} of its last {requests} requests"

    def _open_circuit(self, now: float, why: str) -> None:
        healed = not self._open and now - self._closed_at > COOL_DOWN_SECONDS_MAX
        cool_down = COOL_DOWN_SECONDS_FIRST if healed else self._cool_down * 2
        self._cool_down = min(max(cool_down, COOL_DOWN_SECONDS_FIRST), COOL_DOWN_SECONDS_MAX)
        # So that the gateways of a cluster do not all come back in the same moment.
        seconds = self._cool_down * (0.75 + self._random() / 2)
        was_open, self._open = self._open, True
        self._open_until = now + seconds
        self._failed_at.clear()
        self._block(now, why)
        if not was_open:
            self.times_opened += 1
            log.error("upstream %s: %s. It is tried again in %.1f s", self.name, why, seconds)

    def _close(self) -> None:
        if self._open:
            log.warning("upstream %s answers again", self.name)
            self._open = False
            self._closed_at = self._monotonic()
            self._in_a_row = 0
        self._probing = False
        self._may_be_asked_again()

    def _rest(self, now: float, seconds: float) -> None:
        self._rest_until = max(self._rest_until, now + seconds)
        self._block(now, f"it asked to be left alone for {seconds:g} s")
        log.warning("upstream %s asked to be left alone for %g s", self.name, seconds)

    def _block(self, now: float, why: str) -> None:
        if self.clear:
            self._since = now
        self.clear = False
        self._why = why
