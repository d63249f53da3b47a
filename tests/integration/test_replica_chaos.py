from collections.abc import Callable
from pathlib import Path

import pytest
from tests.replicas import break_replicas


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whatever_breaks_under_three_replicas_no_charge_is_lost_or_made_twice(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report, complaints = break_replicas(600, seed=3, directory=tmp_path, stops=0)

    record_property("replicas", str(report))
    assert complaints == []
    assert (report.lost, report.double, report.overspent, report.violations) == (0, 0, 0, 0)
    assert report.open_holds_left == 0
    assert report.finished >= 600  # it looked at something
