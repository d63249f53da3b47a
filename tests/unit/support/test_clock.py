from tests.support.clock import FixedClock

from tollway.clock import Clock


def test_a_fixed_clock_moves_only_when_it_is_moved() -> None:
    fixed = FixedClock(now=100.0, monotonic=5.0)
    clock: Clock = fixed
    assert (clock.now(), clock.monotonic()) == (100.0, 5.0)

    fixed.advance(2.5)
    fixed.step(-86_400)

    assert (clock.now(), clock.monotonic()) == (-86_297.5, 7.5)
