"""An upstream that reports more than its cap three times in a row is set aside for a minute."""

import pytest
from tests.support.clock import FixedClock

from tollway.upstreams.trust import Trust


class House:
    def __init__(self) -> None:
        self.clock = FixedClock()
        self.told: list[str] = []
        self.trust = Trust(self.clock.monotonic, self.told.append)

    def report(self, *shortfalls: int, upstream: str = "gpu-1") -> None:
        for shortfall in shortfalls:
            self.trust.reported(upstream, shortfall)

    def aside(self, upstream: str = "gpu-1") -> float:
        return self.trust.seconds_aside(upstream)


@pytest.fixture
def house() -> House:
    return House()


def test_three_in_a_row_set_it_aside_for_a_minute(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.report(5, 5)
    assert (house.aside(), house.told) == (0, [])

    house.report(7)

    assert (house.aside(), house.told) == (60.0, ["gpu-1"])
    assert "gpu-1" in caplog.text
    assert caplog.records[0].levelname == "ERROR"
    house.clock.advance(60)
    assert house.aside() == 0


def test_an_honest_report_between_them_clears_it(house: House) -> None:
    house.report(5, 5, 0, 5, 5)
    assert house.aside() == 0


def test_each_upstream_answers_for_itself(house: House) -> None:
    house.report(5, 5)
    house.report(5, upstream="gpu-2")
    assert (house.aside(), house.aside("gpu-2")) == (0, 0)


def test_what_was_in_flight_does_not_set_it_aside_again(house: House) -> None:
    house.report(5, 5, 5)
    house.clock.advance(50)
    house.report(5, 5)
    assert (house.aside(), house.told) == (10.0, ["gpu-1"])


def test_afterwards_one_more_sets_it_aside_again(house: House) -> None:
    house.report(5, 5, 5)
    house.clock.advance(61)
    house.report(5)
    assert (house.aside(), house.told) == (60.0, ["gpu-1", "gpu-1"])


def test_afterwards_an_honest_report_gives_it_three_again(house: House) -> None:
    house.report(5, 5, 5)
    house.clock.advance(61)
    house.report(0, 5, 5)
    assert house.aside() == 0
