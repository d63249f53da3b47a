from collections.abc import Callable
from pathlib import Path

import pytest
from tests.soak import soak


@pytest.mark.slow
def test_load_of_every_kind_leaves_no_hold_connection_task_or_descriptor(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Twenty seconds of what `python -m tests.soak` does for ten minutes."""
    soaked = soak(20, tmp_path, round_seconds=10)

    record_property("soak", f"{soaked.requests} requests, {soaked.rests}")
    assert soaked.complaints == []
    assert len(soaked.rests) == 2
    assert soaked.requests > 100  # it looked at something
    assert {"whole", "stream", "stream that broke off", "left"} <= set(soaked.ends)
