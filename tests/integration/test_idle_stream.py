"""A stream that has begun keeps little of the server's memory, and nothing of its request.

`python -m tests.support.holding --lines` says which line of code took how much.
"""

import json
import subprocess
import sys

import pytest

BYTES_A_STREAM_MAX = 13_500
"""12,100 on CPython 3.11, with 200 streams and messages of 700 bytes."""


@pytest.mark.parametrize("message_bytes", [700, 200_000])
def test_what_a_running_stream_keeps_is_small_and_none_of_its_request(message_bytes: int) -> None:
    """In a process of its own: it traces, and so does coverage."""
    numbers = ["--streams", "50", "--message-bytes", str(message_bytes), "--json"]
    command = [sys.executable, "-m", "tests.support.holding", *numbers]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr

    by_file: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    assert 5_000 < sum(by_file.values()) < BYTES_A_STREAM_MAX, by_file
