"""How often the log says that something is wrong at an upstream."""

import logging

import pytest
from tests.support.clock import FixedClock

from tollway.upstreams.complaints import Complaints


def test_what_was_not_logged_meanwhile_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = FixedClock()
    complaints = Complaints(clock.monotonic)

    for seconds in (0, 1, 58, 1):
        clock.advance(seconds)
        complaints.tell(logging.WARNING, "gpu-1", "gpu-1 is late")

    assert [record.getMessage() for record in caplog.records] == [
        "gpu-1 is late",
        "gpu-1 is late (and 2 times more since this was last told)",
    ]


def test_each_complaint_is_logged_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(FixedClock().monotonic)

    complaints.tell(logging.WARNING, "gpu-1", "gpu-1 is late")
    complaints.tell(logging.ERROR, "gpu-2", "gpu-2 is away")

    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert told == [(logging.WARNING, "gpu-1 is late"), (logging.ERROR, "gpu-2 is away")]
