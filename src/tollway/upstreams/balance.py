"""Which upstream next: the one with the least to do for its weight, and of equals the quickest.

"To do" is the requests in flight, with this one counted in: so an idle server of weight 3 goes
before an idle one of weight 1, and takes three requests at a time to the other's one.

A server that fails does so faster than the others answer, so by that rule alone it would get nearly
all requests. Each failure therefore makes its load count several times, until it has answered again
or has had no failure for a while. That is no verdict on whether it may be asked (`health.py`): it
keeps one that fails now and then from costing more tries than the retry budget has.
"""

from collections.abc import Collection, Iterable

from tollway.catalogue import Serving
from tollway.upstreams.base import Upstream
from tollway.upstreams.health import Health
from tollway.upstreams.places import Places

FLAKINESS_SECONDS = 10.0
_LATENCY_SHARE = 0.2
_FLAKINESS_SHARE = 0.2
_FLAKINESS_WEIGHT = 10.0
_FLAKINESS_LEAST = 0.02


class Watched:
    """An upstream and what is known of it. `latency` is the seconds to the first byte lately, of
    whole replies and of streams; 0 where there was none yet."""

    __slots__ = ("health", "latency", "name", "places", "upstream")

    def __init__(self, upstream: Upstream, health: Health, places: Places) -> None:
        self.name = upstream.name
        self.upstream = upstream
        self.health = health
        self.places = places
        self.latency = [0.0, 0.0]

    def answered_after(self, seconds: float, *, streamed: bool) -> None:
        before = self.latency[streamed]
        self.latency[streamed] = before + (seconds - before) * _LATENCY_SHARE if before else seconds

    def may_be_asked(self) -> bool:
        return self.health.may_be_asked() and self.upstream.ready()


class Choice:
    """An upstream as one of those that serve a model."""

    __slots__ = (
        "_flaky_until",
        "burden",
        "flakiness",
        "health",
        "places",
        "serving",
        "upstream",
        "watched",
    )

    def __init__(self, watched: Watched, serving: Serving) -> None:
        self.watched = watched
        self.upstream = watched.upstream
        self.health = watched.health
        self.places = watched.places
        self.serving = serving
        self.burden = 1.0 / serving.weight
        """What one request in flight counts for."""
        self.flakiness = 0.0
        """The share of its last requests that failed."""
        self._flaky_until = 0.0

    def failed(self, now: float) -> None:
        self._flaky_until = now + FLAKINESS_SECONDS
        self._set_flakiness(self.flakiness + (1.0 - self.flakiness) * _FLAKINESS_SHARE)

    def served(self) -> None:
        """Only to be called where `flakiness` is not 0."""
        self._set_flakiness(self.flakiness * (1.0 - _FLAKINESS_SHARE))

    def forgive(self, now: float) -> None:
        if self.flakiness and now >= self._flaky_until:
            self._set_flakiness(0.0)

    def _set_flakiness(self, flakiness: float) -> None:
        self.flakiness = flakiness if flakiness >= _FLAKINESS_LEAST else 0.0
        self.burden = (1.0 + _FLAKINESS_WEIGHT * self.flakiness) ** 2 / self.serving.weight


def least_loaded(
    choices: Iterable[Choice], tried: Collection[Choice], *, streamed: bool
) -> Choice | None:
    """None where none can be asked at once. One whose circuit waits for a probe goes before all
    others: without one it never comes back."""
    best: Choice | None = None
    best_load = 0.0
    for choice in choices:
        if choice in tried or not choice.watched.may_be_asked():
            continue
        places = choice.places
        if places.in_flight >= places.limit:
            continue
        if not choice.health.clear:
            return choice
        load = (places.in_flight + 1) * choice.burden
        if (
            best is None
            or load < best_load
            or (
                load == best_load
                and choice.watched.latency[streamed] < best.watched.latency[streamed]
            )
        ):
            best, best_load = choice, load
    return best
