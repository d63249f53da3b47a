"""Which upstream is next."""

from collections import Counter

from tests.support.clock import FixedClock

from tollway.catalogue import Serving
from tollway.errors import UpstreamFailed
from tollway.upstreams.balance import FLAKINESS_SECONDS, Choice, Watched, least_loaded
from tollway.upstreams.base import Ask, EventSink
from tollway.upstreams.health import Health
from tollway.upstreams.places import Places
from tollway.wire.chat import ChatCompletion


class Upstream:
    counts_input_tokens = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs = True

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def ready(self) -> bool:
        return self.runs

    async def complete(self, ask: Ask) -> ChatCompletion:
        raise AssertionError

    async def stream(self, ask: Ask, sink: EventSink) -> None:
        raise AssertionError

    async def count_input_tokens(self, ask: Ask) -> int | None:
        raise AssertionError


class Yard:
    def __init__(self, *weights: int, limit: int | None = None) -> None:
        self.clock = FixedClock()
        self.upstreams = [Upstream(f"gpu-{number}") for number in range(len(weights))]
        self.choices = [
            Choice(
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
        choice = least_loaded(
            self.choices, [self.choices[index] for index in tried], streamed=streamed
        )
        return None if choice is None else self.choices.index(choice)

    def fill(self, requests: int) -> Counter[int]:
        """So many requests at a time: how many each has."""
        taken: Counter[int] = Counter()
        for _ in range(requests):
            index = self.next()
            assert index is not None
            self.choices[index].places.in_flight += 1
            taken[index] += 1
        return taken

    def open_circuit(self, index: int) -> None:
        for _ in range(5):
            self.choices[index].health.failed(UpstreamFailed("It failed."))


def test_the_one_with_the_least_in_flight_is_next() -> None:
    yard = Yard(1, 1, 1)
    for choice, in_flight in zip(yard.choices, (3, 1, 2), strict=True):
        choice.places.in_flight = in_flight
    assert yard.next() == 1


def test_requests_in_flight_are_shared_by_weight() -> None:
    assert Yard(3, 1).fill(40) == {0: 30, 1: 10}
    assert Yard(1, 1, 2).fill(40) == {0: 10, 1: 10, 2: 20}


def test_of_equals_the_quickest_is_next() -> None:
    yard = Yard(1, 1, 1)
    for choice, seconds in zip(yard.choices, (0.3, 0.1, 0.2), strict=True):
        choice.watched.answered_after(seconds, streamed=False)
    assert yard.next() == 1


def test_whole_replies_and_streams_have_latencies_of_their_own() -> None:
    yard = Yard(1, 1)
    for choice, seconds in zip(yard.choices, (9.0, 1.0), strict=True):
        choice.watched.answered_after(seconds, streamed=False)
        choice.watched.answered_after(1 / seconds, streamed=True)
    assert (yard.next(streamed=False), yard.next(streamed=True)) == (1, 0)


def test_one_whose_latency_is_not_known_is_found_out() -> None:
    yard = Yard(1, 1)
    yard.choices[0].watched.answered_after(0.1, streamed=False)
    assert yard.next() == 1


def test_the_latency_follows_the_last_replies() -> None:
    yard = Yard(1)
    watched = yard.choices[0].watched
    watched.answered_after(1.0, streamed=True)
    for _ in range(20):
        watched.answered_after(0.1, streamed=True)
    assert 0.1 < watched.latency[True] < 0.12


def test_one_that_was_tried_or_is_full_or_does_not_run_is_left_out() -> None:
    yard = Yard(1, 1, 1, 1, limit=1)
    yard.choices[1].places.in_flight = 1
    yard.upstreams[2].runs = False
    assert yard.next(0) == 3
    assert yard.next(0, 3) is None


def test_one_with_an_open_circuit_is_left_out_until_it_may_be_probed_and_then_comes_first() -> None:
    yard = Yard(1, 1)
    yard.open_circuit(0)
    yard.choices[0].places.in_flight = 5
    assert yard.next() == 1
    yard.clock.advance(1.1)
    assert yard.next() == 0
    yard.choices[0].health.asked()
    assert yard.next() == 1


def test_one_that_fails_fast_does_not_draw_all_requests_to_itself() -> None:
    yard = Yard(1, 1)
    yard.choices[1].places.in_flight = 5
    yard.choices[0].failed(yard.clock.monotonic())
    assert yard.next() == 1


def test_one_that_fails_some_of_its_requests_gets_few() -> None:
    yard = Yard(1, 1)
    for _ in range(10):
        yard.choices[0].failed(yard.clock.monotonic())
        yard.choices[0].served()
        yard.choices[0].served()
    assert yard.fill(30)[0] <= 3


def test_one_that_answers_again_is_forgiven_and_so_is_one_that_was_not_asked_for_a_while() -> None:
    yard = Yard(1, 1)
    answering, idle = yard.choices
    for choice in yard.choices:
        choice.failed(yard.clock.monotonic())
    for _ in range(20):
        answering.served()
    assert (answering.flakiness, answering.burden) == (0.0, 1.0)

    idle.forgive(yard.clock.monotonic() + FLAKINESS_SECONDS - 1)
    assert idle.flakiness > 0
    idle.forgive(yard.clock.monotonic() + FLAKINESS_SECONDS)
    assert (idle.flakiness, idle.burden) == (0.0, 1.0)
