"""Whether an upstream may be asked, whatever was known of it, by a clock that the tests move."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.clock import FixedClock

from tollway.errors import (
    InvalidRequest,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from tollway.upstreams.health import (
    COOL_DOWN_SECONDS_MAX,
    WINDOW_SECONDS,
    Health,
    Verdict,
    verdict,
)


def an_error(status: int | None = None, rest_seconds: float | None = None) -> RequestError:
    error = UpstreamFailed("It failed.")
    error.upstream_status = status
    error.upstream_rest_seconds = rest_seconds
    return error


class House:
    """`random` 0.5 makes each cool-down as long as it is meant."""

    def __init__(self, failures_max: int = 5) -> None:
        self.clock = FixedClock()
        self.chance = 0.5
        self.health = Health("gpu-1", self.clock.monotonic, lambda: self.chance, failures_max)

    def fail(self, times: int = 1, error: Callable[[], RequestError] = an_error) -> None:
        for _ in range(times):
            self.health.failed(error())

    def serve(self, times: int = 1) -> None:
        for _ in range(times):
            self.health.served()

    def open(self) -> None:
        self.fail(5)
        assert not self.health.may_be_asked()


@pytest.fixture
def house() -> House:
    return House()


# --- what an error says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidRequest("No."), "served"),
        (an_error(404), "served"),
        (an_error(500), "fault"),
        (an_error(200), "down"),
        (an_error(502), "down"),
        (an_error(504), "down"),
        (an_error(401), "down"),
        (an_error(429), "overloaded"),
        (an_error(503), "overloaded"),
        (an_error(529), "overloaded"),
        (an_error(429, 7), "rest"),
        (an_error(503, 7), "rest"),
        (an_error(500, 7), "fault"),
        (UpstreamTimeout("Late."), "down"),
        (Unavailable("Not there."), "down"),
        (Unavailable("Its own queue is full.", code="overloaded"), "nothing"),
    ],
)
def test_an_error_says_something_of_its_upstream(error: RequestError, said: Verdict) -> None:
    assert verdict(error) == said


# --- the circuit ----------------------------------------------------------------------------------


def test_five_failures_in_a_row_open_the_circuit(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.fail(4)
    assert house.health.may_be_asked()

    house.fail()

    assert not house.health.may_be_asked()
    assert house.health.seconds_until_asked() == 1.0
    assert house.health.times_opened == 1
    assert "gpu-1: it failed 5 times in a row" in caplog.text
    standing = house.health.status()
    assert (standing.condition, standing.why) == ("open", "it failed 5 times in a row")


def test_a_success_between_them_keeps_it_closed(house: House) -> None:
    for _ in range(10):
        house.fail(4)
        house.serve()
        house.clock.advance(WINDOW_SECONDS)
    assert house.health.may_be_asked()


def test_overload_counts_in_a_row_and_not_as_a_share(house: House) -> None:
    for _ in range(50):
        house.fail(4, lambda: an_error(503))
        house.serve()
    assert house.health.may_be_asked()
    house.fail(5, lambda: an_error(503))
    assert not house.health.may_be_asked()


def test_half_of_twenty_requests_failing_opens_it(house: House) -> None:
    for _ in range(10):
        house.fail(1, lambda: an_error(500))
        assert house.health.may_be_asked()
        house.serve()
    house.fail(1, lambda: an_error(500))
    assert not house.health.may_be_asked()
    assert house.health.status().why == "it failed 11 of its last 21 requests"


def test_a_share_below_half_keeps_it_closed(house: House) -> None:
    for _ in range(100):
        house.fail(1, lambda: an_error(500))
        house.serve(2)
    assert house.health.may_be_asked()


def test_failures_older_than_the_window_do_not_count(house: House) -> None:
    for _ in range(100):
        house.fail(1, lambda: an_error(500))
        house.clock.advance(WINDOW_SECONDS / 9)
    assert house.health.may_be_asked()


def test_one_500_after_another_is_not_a_reason_by_itself(house: House) -> None:
    house.fail(19, lambda: an_error(500))
    assert house.health.may_be_asked()
    house.fail(1, lambda: an_error(500))
    assert not house.health.may_be_asked()


def test_what_the_client_did_wrong_counts_as_served(house: House) -> None:
    house.fail(4)
    house.fail(1, lambda: InvalidRequest("No."))
    house.fail(4)
    assert house.health.may_be_asked()


def test_without_a_number_of_failures_it_stays_closed() -> None:
    house = House(failures_max=0)
    house.fail(1000)
    assert house.health.may_be_asked()


def test_after_the_cool_down_exactly_one_request_may_try_it(house: House) -> None:
    house.open()
    house.clock.advance(0.99)
    assert not house.health.may_be_asked()
    house.clock.advance(0.02)

    assert house.health.may_be_asked()
    assert not house.health.clear
    assert house.health.begin_probe()
    assert not house.health.may_be_asked()
    assert house.health.status().condition == "probing"


def test_a_probe_that_is_served_closes_it(house: House) -> None:
    house.open()
    house.clock.advance(1.1)
    house.health.begin_probe()
    house.health.served(probe=True)
    assert house.health.clear
    assert house.health.status().condition == "serving"
    house.fail(4)
    assert house.health.may_be_asked()


def test_a_probe_that_fails_opens_it_for_twice_as_long(house: House) -> None:
    house.open()
    waits: list[float] = []
    for _ in range(8):
        waits.append(house.health.seconds_until_asked())
        house.clock.advance(waits[-1])
        assert house.health.begin_probe()
        house.health.failed(an_error(), probe=True)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert house.health.times_opened == 1


def test_a_probe_whose_client_left_leaves_the_next_one_to_try(house: House) -> None:
    house.open()
    house.clock.advance(1.1)
    house.health.begin_probe()
    house.health.abandoned(probe=True)
    assert house.health.may_be_asked()
    assert house.health.begin_probe()


def test_the_first_byte_of_a_probe_lets_others_in_and_one_failure_shuts_them_out(
    house: House,
) -> None:
    house.open()
    house.clock.advance(1.1)
    house.health.begin_probe()
    house.health.answered()
    assert house.health.clear
    house.fail()
    assert not house.health.may_be_asked()
    assert house.health.seconds_until_asked() == 2.0


def test_after_the_probe_was_served_it_has_all_its_failures_again(house: House) -> None:
    house.open()
    house.clock.advance(1.1)
    house.health.begin_probe()
    house.health.answered()
    house.serve()
    house.fail(4)
    assert house.health.may_be_asked()


def test_what_was_in_flight_when_it_opened_neither_closes_nor_prolongs_it(house: House) -> None:
    house.open()
    house.serve(10)
    assert not house.health.may_be_asked()
    house.fail(10)
    assert house.health.seconds_until_asked() == 1.0


def test_one_that_opens_again_soon_cools_down_for_longer(house: House) -> None:
    waits: list[float] = []
    for _ in range(3):
        house.open()
        waits.append(house.health.seconds_until_asked())
        house.clock.advance(waits[-1])
        house.health.begin_probe()
        house.health.served(probe=True)
    assert waits == [1, 2, 4]
    house.clock.advance(COOL_DOWN_SECONDS_MAX + 1)
    house.open()
    assert house.health.seconds_until_asked() == 1.0


@given(st.floats(0, 1, exclude_max=True))
def test_the_cool_down_is_jittered_by_a_quarter_either_way(chance: float) -> None:
    house = House()
    house.chance = chance
    house.open()
    assert 0.75 <= house.health.seconds_until_asked() <= 1.25


# --- rest -----------------------------------------------------------------------------------------


def test_a_retry_after_rests_it_that_long_and_is_no_failure(house: House) -> None:
    house.fail(1, lambda: an_error(429, 7))
    assert house.health.seconds_until_asked() == 7.0
    assert house.health.status().condition == "resting"
    assert house.health.status().why == "it asked to be left alone for 7 s"
    house.clock.advance(7)
    assert house.health.may_be_asked()
    assert house.health.clear
    assert not house.health.begin_probe()


def test_the_longest_of_several_rests_counts(house: House) -> None:
    house.fail(1, lambda: an_error(429, 7))
    house.fail(1, lambda: an_error(429, 2))
    assert house.health.seconds_until_asked() == 7.0


def test_a_probe_that_is_told_to_come_back_later_does(house: House) -> None:
    house.open()
    house.clock.advance(1.1)
    house.health.begin_probe()
    house.health.failed(an_error(503, 9), probe=True)
    assert house.health.seconds_until_asked() == 9.0
    house.clock.advance(9)
    assert house.health.begin_probe()


# --- set aside ------------------------------------------------------------------------------------


def report(house: House, *shortfalls: int) -> None:
    for shortfall in shortfalls:
        house.health.reported(shortfall)


def test_three_shortfalls_in_a_row_set_it_aside_for_a_minute(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    report(house, 5, 5)
    assert house.health.may_be_asked()

    report(house, 7)

    assert house.health.seconds_until_asked() == 60.0
    assert house.health.times_set_aside == 1
    assert house.health.status().condition == "set aside"
    assert "gpu-1" in caplog.text
    assert caplog.records[0].levelname == "ERROR"
    house.clock.advance(60)
    assert house.health.may_be_asked()


def test_an_honest_report_between_them_clears_it(house: House) -> None:
    report(house, 5, 5, 0, 5, 5)
    assert house.health.may_be_asked()


def test_what_was_in_flight_does_not_set_it_aside_again(house: House) -> None:
    report(house, 5, 5, 5)
    house.clock.advance(50)
    report(house, 5, 5)
    assert (house.health.seconds_until_asked(), house.health.times_set_aside) == (10.0, 1)


def test_afterwards_one_more_shortfall_sets_it_aside_again(house: House) -> None:
    report(house, 5, 5, 5)
    house.clock.advance(61)
    report(house, 5)
    assert (house.health.seconds_until_asked(), house.health.times_set_aside) == (60.0, 2)


def test_afterwards_an_honest_report_gives_it_three_again(house: House) -> None:
    report(house, 5, 5, 5)
    house.clock.advance(61)
    report(house, 0, 5, 5)
    assert house.health.may_be_asked()


def test_a_circuit_that_closes_does_not_bring_back_one_that_is_set_aside(house: House) -> None:
    house.open()
    house.clock.advance(1.1)
    house.health.begin_probe()
    report(house, 5, 5, 5)
    house.health.served(probe=True)
    assert house.health.seconds_until_asked() == pytest.approx(60)


# --- active checks --------------------------------------------------------------------------------


def test_two_checks_that_fail_keep_it_from_being_asked_until_one_passes(house: House) -> None:
    house.health.checked(passed=False)
    assert house.health.may_be_asked()
    house.health.checked(passed=False)
    assert not house.health.may_be_asked()
    assert house.health.status().condition == "unhealthy"
    house.health.checked(passed=True)
    assert house.health.may_be_asked()
    assert house.health.clear


def test_checks_that_fail_now_and_then_keep_nobody_from_asking(house: House) -> None:
    for passed in (False, True, False, True, False):
        house.health.checked(passed=passed)
    assert house.health.may_be_asked()


def test_a_check_that_passes_ends_the_cool_down_and_not_the_circuit(house: House) -> None:
    house.open()
    house.health.checked(passed=True)
    assert house.health.may_be_asked()
    assert house.health.begin_probe()
    assert not house.health.may_be_asked()


def test_how_long_it_has_been_so_is_known(house: House) -> None:
    house.clock.advance(30)
    assert (house.health.status().seconds, house.health.status().again_seconds) == (30, 0)
    house.open()
    house.clock.advance(0.5)
    assert house.health.status().seconds == 0.5
    assert house.health.status().again_seconds == 0.5
