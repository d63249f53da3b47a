"""Which upstream next: the one with the least to do for its weight, and of equals the quickest.

"To do" is the requests in flight, with this one counted in: so an idle server of weight 3 goes
before an idle one of weight 1, and takes three requests at a time to the other's one.

A server that fails does so faster than the others answer, so by that rule alone it would get nearly
all requests. Each failure therefore makes its load count several times, until it has answered again
or has had no failure for a while. That is no verdict on whether it may be asked (`health.py`): it
keeps one that fails now and then from costing more tries than the retry budget has.

A server that keeps the prefixes of prompts does better with requests that begin alike. Those have a
key, and each key its own order of the servers: the first in it takes the request, unless it has far
more to do than its share, as one that everybody's long prompt leads to would have.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence

from tollway.catalogue import Serving
from tollway.upstreams.watched import Watched

FLAKINESS_SECONDS = 10.0
STICKY_LOAD_FACTOR = 1.25
STICKY_REQUESTS_MIN = 4
_FLAKINESS_SHARE = 0.2
_FLAKINESS_WEIGHT = 10.0
_FLAKINESS_LEAST = 0.02


class Candidate:
    """An upstream as one of those that serve a model."""

    __slots__ = (
        "_flaky_until",
        "_salt",
        "burden",
        "deadlines",
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
        self.deadlines = serving.deadlines or watched.deadlines
        self.burden = 1.0 / serving.weight
        """What one request in flight counts for."""
        self.flakiness = 0.0
        """The share of its last requests that failed."""
        self._flaky_until = 0.0
        self._salt = f"{serving.upstream} {serving.model}".encode()

    def rank(self, key: bytes) -> float:
        """By rendezvous: for each key another order of the candidates, which stays as it is where
        one goes or comes. A heavier one is the first of more keys."""
        digest = hashlib.blake2b(key, digest_size=8, key=self._salt[:64]).digest()
        chance = (int.from_bytes(digest) + 1) / (2**64 + 1)
        return -self.serving.weight / math.log(chance)

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
    candidates: Iterable[Candidate], tried: Collection[Candidate], *, streamed: bool
) -> Candidate | None:
    """None where none can be asked at once. One whose circuit waits for a probe goes before all
    others: without one it never comes back."""
    best: Candidate | None = None
    best_load = 0.0
    for candidate in candidates:
        if candidate in tried or not candidate.watched.may_be_asked():
            continue
        places = candidate.places
        if places.in_flight >= places.limit:
            continue
        if not candidate.health.clear:
            return candidate
        load = (places.in_flight + 1) * candidate.burden
        if (
            best is None
            or load < best_load
            or (
                load == best_load
                and candidate.watched.latency[streamed] < best.watched.latency[streamed]
            )
        ):
            best, best_load = candidate, load
    return best


def by_key(
    candidates: Sequence[Candidate], tried: Collection[Candidate], key: bytes
) -> Candidate | None:
    """The first in the key's order that is not overloaded; None where none can be asked at once."""
    free = [
        candidate
        for candidate in candidates
        if candidate not in tried
        and candidate.watched.may_be_asked()
        and candidate.places.in_flight < candidate.places.limit
    ]
    for candidate in free:
        if not candidate.health.clear:  # it waits for a probe
            return candidate
    in_flight = 1 + sum(candidate.places.in_flight for candidate in free)
    weights = sum(candidate.serving.weight for candidate in free)
    for candidate in sorted(free, key=lambda one: one.rank(key), reverse=True):
        share = in_flight * candidate.serving.weight / weights
        if candidate.flakiness < _FLAKINESS_SHARE and candidate.places.in_flight < max(
            STICKY_REQUESTS_MIN, share * STICKY_LOAD_FACTOR
        ):
            return candidate
    return None
