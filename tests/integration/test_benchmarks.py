"""What the benchmarks reach into is still there. They measure nothing here."""

import subprocess
import sys

STEPS = 12


def test_every_step_of_a_request_can_still_be_measured_by_itself() -> None:
    few = ["--rounds", "1", "--times", "20", "--no-page"]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.steps", *few], capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n| ") >= STEPS, ran.stdout
