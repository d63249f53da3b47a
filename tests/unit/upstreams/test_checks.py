import asyncio
import contextlib

import pytest
from tests.support.clock import FixedClock

from tollway.upstreams import checks
from tollway.upstreams.checks import keep_checking
from tollway.upstreams.health import Health


class Checked:
    """Passes and fails in turn as it is told, then waits for ever."""

    def __init__(self, *results: bool | Exception) -> None:
        self._results = list(results)
        self.paths: list[str] = []

    async def check(self, path: str) -> bool:
        self.paths.append(path)
        if not self._results:
            await asyncio.Event().wait()
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


async def run_out(
    upstream: Checked, health: Health, monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(checks.asyncio, "sleep", sleep)
    checking = keep_checking(upstream, health, "/health", 10.0, lambda: 0.9)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await checking
    return pauses


async def test_what_fails_its_checks_is_not_asked_until_one_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    health = Health("gpu-1", FixedClock().monotonic, lambda: 0.5)
    upstream = Checked(True, False, False)
    pauses = await run_out(upstream, health, monkeypatch)
    assert not health.may_be_asked()
    assert upstream.paths == ["/health"] * 4
    assert pauses == [pytest.approx(12)] * 3

    await run_out(Checked(True), health, monkeypatch)
    assert health.may_be_asked()


async def test_a_fault_of_the_program_does_not_end_the_checks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    health = Health("gpu-1", FixedClock().monotonic, lambda: 0.5)
    upstream = Checked(ZeroDivisionError(), True)
    await run_out(upstream, health, monkeypatch)
    assert len(upstream.paths) == 3
    assert "the check of upstream gpu-1 failed on a fault of the program" in caplog.text
