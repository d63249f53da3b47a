"""Which upstream is next."""

from collections import Counter

from tests.support.clock import FixedClock
from tests.support.upstream import an_upstream

from tollway.catalogue import Serving
from tollway.errors import UpstreamFailed
from tollway.upstreams.balance import (
    FLAKINESS_SECONDS,
    STICKY_REQUESTS_MIN,
    Candidate,
    by_key,
    least_loaded,
)
from tollway.upstreams.health import Health
from tollway.upstreams.places import Places
from tollway.upstreams.watched import Watched


class Yard:
    def __init__(self, *weights: int, limit: int | None = None) -> None:
        self.clock = FixedClock()
        self.upstreams = [an_upstream(f"gpu-{number}") for number in range(len(weights))]
        self.candidates = [
            Candidate(
                Watched(
                    upstream,
                    Health(upstream.name, self.clock.monotonic, lambda: 0.5),
                    Places(limit),
                ),
                Serving(upstream.name, "m", weight),
            )
            for upstream, weight in zip(self.upstreams, weights, strict=True)
        ]

    def next(self, *tried: int, streamed: bool = False) -> int | None:
        candidate = least_loaded(
            self.candidates, [self.candidates[index] for index in tried], streamed=streamed
        )
        return None if candidate is None else self.candidates.index(candidate)

    def fill(self, requests: int) -> Counter[int]:
        """So many requests at a time: how many each has."""
        taken: Counter[int] = Counter()
        for _ in range(requests):
            index = self.next()
            assert index is not None
            self.candidates[index].places.in_flight += 1
            taken[index] += 1
        return taken

    def open_circuit(self, index: int) -> None:
        for _ in range(5):
            self.candidates[index].health.failed(UpstreamFailed("It failed."))


def test_the_one_with_the_least_in_flight_is_next() -> None:
    yard = Yard(1, 1, 1)
    for candidate, in_flight in zip(yard.candidates, (3, 1, 2), strict=True):
        candidate.places.in_flight = in_flight
    assert yard.next() == 1


def test_requests_in_flight_are_shared_by_weight() -> None:
    assert Yard(3, 1).fill(40) == {0: 30, 1: 10}
    assert Yard(1, 1, 2).fill(40) == {0: 10, 1: 10, 2: 20}


def test_of_equals_the_quickest_is_next() -> None:
    yard = Yard(1, 1, 1)
    for candidate, seconds in zip(yard.candidates, (0.3, 0.1, 0.2), strict=True):
        candidate.watched.answered_after(seconds, streamed=False)
    assert yard.next() == 1


def test_whole_replies_and_streams_have_latencies_of_their_own() -> None:
    yard = Yard(1, 1)
    for candidate, seconds in zip(yard.candidates, (9.0, 1.0), strict=True):
        candidate.watched.answered_after(seconds, streamed=False)
        candidate.watched.answered_after(1 / seconds, streamed=True)
    assert (yard.next(streamed=False), yard.next(streamed=True)) == (1, 0)


def test_one_whose_latency_is_not_known_is_found_out() -> None:
    yard = Yard(1, 1)
    yard.candidates[0].watched.answered_after(0.1, streamed=False)
    assert yard.next() == 1


def test_the_latency_follows_the_last_replies() -> None:
    yard = Yard(1)
    watched = yard.candidates[0].watched
    watched.answered_after(1.0, streamed=True)
    for _ in range(20):
        watched.answered_after(0.1, streamed=True)
    assert 0.1 < watched.latency[True] < 0.12


def test_one_that_was_tried_or_is_full_or_does_not_run_is_left_out() -> None:
    yard = Yard(1, 1, 1, 1, limit=1)
    yard.candidates[1].places.in_flight = 1
    yard.upstreams[2].runs = False
    assert yard.next(0) == 3
    assert yard.next(0, 3) is None


def test_one_with_an_open_circuit_is_left_out_until_it_may_be_probed_and_then_comes_first() -> None:
    yard = Yard(1, 1)
    yard.open_circuit(0)
    yard.candidates[0].places.in_flight = 5
    assert yard.next() == 1
    yard.clock.advance(1.1)
    assert yard.next() == 0
    yard.candidates[0].health.begin_probe()
    assert yard.next() == 1


def test_one_that_fails_fast_does_not_draw_all_requests_to_itself() -> None:
    yard = Yard(1, 1)
    yard.candidates[1].places.in_flight = 5
    yard.candidates[0].failed(yard.clock.monotonic())
    assert yard.next() == 1


def test_one_that_fails_some_of_its_requests_gets_few() -> None:
    yard = Yard(1, 1)
    for _ in range(10):
        yard.candidates[0].failed(yard.clock.monotonic())
        yard.candidates[0].served()
        yard.candidates[0].served()
    assert yard.fill(30)[0] <= 3


def test_one_that_answers_again_is_forgiven_and_so_is_one_that_was_not_asked_for_a_while() -> None:
    yard = Yard(1, 1)
    answering, idle = yard.candidates
    for candidate in yard.candidates:
        candidate.failed(yard.clock.monotonic())
    for _ in range(20):
        answering.served()
    assert (answering.flakiness, answering.burden) == (0.0, 1.0)

    idle.forgive(yard.clock.monotonic() + FLAKINESS_SECONDS - 1)
    assert idle.flakiness > 0
    idle.forgive(yard.clock.monotonic() + FLAKINESS_SECONDS)
    assert (idle.flakiness, idle.burden) == (0.0, 1.0)


# --- requests that belong together ----------------------------------------------------------------

KEYS = [f"conversation {number}".encode() for number in range(3000)]


def kept(yard: Yard, key: bytes, *tried: int) -> int | None:
    candidate = by_key(yard.candidates, [yard.candidates[index] for index in tried], key)
    return None if candidate is None else yard.candidates.index(candidate)


def test_a_key_leads_to_the_same_one_each_time_and_keys_are_shared_by_weight() -> None:
    yard = Yard(1, 1, 4)
    first = [kept(yard, key) for key in KEYS]
    assert [kept(yard, key) for key in KEYS] == first
    counts = Counter(first)
    assert 400 < counts[0] < 600
    assert 400 < counts[1] < 600


def test_the_keys_of_one_that_goes_are_shared_out_and_the_others_stay() -> None:
    yard = Yard(1, 1, 1)
    before = {key: kept(yard, key) for key in KEYS}
    yard.upstreams[1].runs = False
    after = {key: kept(yard, key) for key in KEYS}
    assert all(after[key] == index for key, index in before.items() if index != 1)
    moved = Counter(after[key] for key, index in before.items() if index == 1)
    assert min(moved[0], moved[2]) > 400
    yard.upstreams[1].runs = True
    assert {key: kept(yard, key) for key in KEYS} == before


def test_a_key_whose_server_has_far_more_than_its_share_goes_to_the_next() -> None:
    yard = Yard(1, 1, 1)
    home = kept(yard, KEYS[0])
    assert home is not None
    places = yard.candidates[home].places
    places.in_flight = STICKY_REQUESTS_MIN - 1
    assert kept(yard, KEYS[0]) == home
    places.in_flight = STICKY_REQUESTS_MIN
    second = kept(yard, KEYS[0])
    assert second not in (home, None)
    for candidate in yard.candidates:
        candidate.places.in_flight = 100
    assert kept(yard, KEYS[0]) == home


def test_however_many_requests_have_one_key_none_has_far_more_than_its_share() -> None:
    yard = Yard(1, 1, 1, 1)
    for _ in range(200):
        index = kept(yard, KEYS[0])
        if index is None:
            index = yard.next()
        assert index is not None
        yard.candidates[index].places.in_flight += 1
    assert max(candidate.places.in_flight for candidate in yard.candidates) <= 64


def test_a_key_whose_server_fails_is_full_or_was_tried_goes_to_the_next() -> None:
    yard = Yard(1, 1, 1, limit=8)
    home = kept(yard, KEYS[0])
    assert home is not None
    second = kept(yard, KEYS[0], home)
    yard.candidates[home].failed(yard.clock.monotonic())
    assert kept(yard, KEYS[0]) == second
    yard.candidates[home].forgive(yard.clock.monotonic() + FLAKINESS_SECONDS)
    assert kept(yard, KEYS[0]) == home
    yard.candidates[home].places.in_flight = 8
    assert kept(yard, KEYS[0]) == second
    assert kept(yard, KEYS[0], 0, 1, 2) is None


def test_one_that_waits_for_a_probe_gets_it_from_any_key() -> None:
    yard = Yard(1, 1)
    yard.open_circuit(0)
    assert {kept(yard, key) for key in KEYS[:20]} == {1}
    yard.clock.advance(1.1)
    assert {kept(yard, key) for key in KEYS[:20]} == {0}
