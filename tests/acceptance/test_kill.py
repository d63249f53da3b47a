from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kill import kill_under_load

KILLS = 6


@pytest.mark.slow
def test_a_kill_at_any_instant_loses_no_charge_and_makes_none_twice(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    killed = kill_under_load(KILLS, seed=6, directory=tmp_path)

    record_property("kills", str(killed.figures))
    assert killed.complaints == []
    assert killed.figures.finished > 50  # it looked at something
    assert killed.figures.settled >= killed.figures.finished
