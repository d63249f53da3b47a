import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.replicas import SLOW_LIMIT, break_replicas, fullest_minutes, times_of_shares

WALL = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))


def test_a_minute_counts_what_surely_was_admitted_in_it() -> None:
    admitted = [(float(at), at + 0.01) for at in range(0, 100, 2)]

    assert fullest_minutes(admitted, []) == (30, 30)
    assert fullest_minutes([*admitted, (10.0, 10.1), (10.0, 99.0)], []) == (31, 31)
    assert fullest_minutes([*admitted, (10.0, 10.1)], [(5.0, 11.0)]) == (30, 31)
    assert fullest_minutes([*admitted, (10.0, 10.1)], [(0.0, 200.0)]) == (0, 31)


def test_when_a_replica_kept_to_its_share_is_read_from_what_it_wrote() -> None:
    lines = [
        "2026-11-29 12:00:00,100 INFO tollway.rates: rates are counted over all 3 replicas",
        "2026-11-29 12:00:01,250 WARNING tollway.rates: rates are not counted over all replicas",
        "2026-11-29 12:00:03,000 INFO tollway.rates: rates are counted over all 3 replicas",
        "2026-11-29 12:00:09,000 WARNING tollway.rates: rates are not counted over all replicas",
    ]

    assert times_of_shares(lines, WALL + 20, behind=WALL) == [(1.25, 3.0), (9.0, 20.0)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whatever_breaks_under_three_replicas_no_charge_is_lost_or_made_twice(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report, complaints = break_replicas(600, seed=24, directory=tmp_path, stops=0)

    record_property("replicas", str(report))
    assert complaints == []
    assert (report.lost, report.double, report.overspent, report.violations) == (0, 0, 0, 0)
    assert report.open_holds_left == 0
    assert report.finished >= 600  # it looked at something
    assert "rate store killed" in report.faults
    assert SLOW_LIMIT / 2 < report.minute_max <= 2 * SLOW_LIMIT
