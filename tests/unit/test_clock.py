import time

import pytest

from tollway.clock import SystemClock, first_id_since, iso, moment_of, new_id


def test_ids_sort_by_their_time() -> None:
    ids = [new_id("req", now) for now in (0.001, 1.0, 1_795_420_800.0, 1_795_420_800.001, 9e9)]
    assert ids == sorted(ids)


def test_ids_of_one_moment_differ() -> None:
    assert len({new_id("req", 1.0) for _ in range(1000)}) == 1000


def test_an_id_has_its_prefix_and_32_hex_digits() -> None:
    prefix, _, rest = new_id("tok", 1_795_420_800.0).partition("_")
    assert prefix == "tok"
    assert len(rest) == 32
    assert int(rest, 16) > 0


def test_the_first_id_since_a_moment_is_before_all_of_it() -> None:
    assert new_id("req", 4.999) < first_id_since("req", 5.0) <= new_id("req", 5.0)


def test_an_id_tells_when_it_was_made() -> None:
    assert moment_of(new_id("req", 1_784_102_400.5)) == 1_784_102_400.5
    assert moment_of(first_id_since("req", 5.0)) == 5.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_418_447.123, "2026-11-23T07:20:47.123Z"),
    ],
)
def test_times_are_written_in_utc(seconds: float, text: str) -> None:
    assert iso(seconds) == text


def test_the_systems_clock_is_the_systems() -> None:
    clock = SystemClock()
    assert abs(clock.now() - time.time()) < 5
    assert abs(clock.monotonic() - time.monotonic()) < 5
