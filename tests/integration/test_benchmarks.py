"""What the benchmarks reach into is still there. They measure nothing here."""

import subprocess
import sys
from pathlib import Path

from benchmarks.gateways import Upstream
from benchmarks.replicas import installation, one_at_a_time, report
from tests.support.fake_upstream import FakeUpstreamProcess

STEPS = 12


def test_every_step_of_a_request_can_still_be_measured_by_itself() -> None:
    few = ["--rounds", "1", "--times", "20", "--no-page"]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.steps", *few], capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n| ") >= STEPS, ran.stdout


def test_what_two_replicas_spend_and_ask_can_still_be_told_apart(tmp_path: Path) -> None:
    with FakeUpstreamProcess(tmp_path / "upstream.log") as running:
        model = Upstream(running.port, running.pid)
        program = [sys.executable, "-m", "tollway"]
        with installation(tmp_path, 2, model, program, accounts=3) as of:
            figures = one_at_a_time(of, 1.0)

    assert figures["errors"] == 0
    # A hold and its charge, a place and its end, and what replicas ask by themselves.
    assert 1 <= figures["database_calls"] < 4
    assert 1 <= figures["rate_calls"] < 4
    for spent in ("replica_us", "postgres_us", "redis_us", "log_bytes"):
        assert figures[spent] > 0, spent
    written = report({"2 replicas": [figures]}, seconds=1)
    assert f"| calls of Redis a request | {figures['rate_calls']:.3f} |" in written
