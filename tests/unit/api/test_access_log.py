import asyncio
import datetime
import json
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tollway.api import access_log
from tollway.api.access_log import AccessLine, AccessLog
from tollway.metrics.counters import Metrics

NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)


def a_line(number: int = 1) -> AccessLine:
    return AccessLine(NOON, f"req_{number}", "chat", 200, "192.0.2.1", 1.5)


def numbers(path: Path) -> list[str]:
    return [json.loads(line)["request_id"] for line in path.read_text().splitlines()]


async def until_written(path: Path) -> None:
    await asyncio.to_thread(_look_until_written, path)


def _look_until_written(path: Path) -> None:
    deadline = time.monotonic() + 5
    while not path.exists():
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.01)


async def test_what_was_appended_is_written_by_the_stop(tmp_path: Path) -> None:
    log = AccessLog("access.log", tmp_path, Metrics())
    await log.start()
    log.append(a_line(1))
    log.append(a_line(2))
    await log.stop()
    assert numbers(tmp_path / "access.log") == ["req_1", "req_2"]
    assert stat.S_IMODE((tmp_path / "access.log").stat().st_mode) == 0o600


async def test_lines_are_written_soon_without_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_SECONDS", 0.01)
    log = AccessLog("access.log", tmp_path, Metrics())
    await log.start()
    log.append(a_line())
    await until_written(tmp_path / "access.log")
    await log.stop()
    assert numbers(tmp_path / "access.log") == ["req_1"]


async def test_many_lines_do_not_wait_for_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_SECONDS", 60.0)
    log = AccessLog("access.log", tmp_path, Metrics())
    await log.start()
    for number in range(access_log.LINES_AT_ONCE):
        log.append(a_line(number))
    await until_written(tmp_path / "access.log")
    await log.stop()
    assert len(numbers(tmp_path / "access.log")) == access_log.LINES_AT_ONCE


async def test_a_file_that_has_grown_is_begun_anew_and_the_one_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "FILE_BYTES_MAX", 150)
    for number in (1, 2, 3):
        log = AccessLog("access.log", tmp_path, Metrics())
        await log.start()
        log.append(a_line(number))
        await log.stop()
    assert numbers(tmp_path / "access.log") == ["req_3"]
    assert numbers(tmp_path / "access.log.1") == ["req_2"]


async def test_a_dash_is_the_standard_output(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = AccessLog("-", tmp_path, Metrics())
    await log.start()
    log.append(a_line())
    await log.stop()
    assert json.loads(capfdbinary.readouterr().out)["request_id"] == "req_1"
    assert os.listdir(tmp_path) == []


async def test_without_a_target_there_is_no_log(tmp_path: Path) -> None:
    log = AccessLog("", tmp_path, Metrics())
    await log.start()
    await log.stop()
    assert not log.enabled
    assert os.listdir(tmp_path) == []


async def test_lines_that_cannot_be_written_are_counted_and_the_next_ones_tried(
    tmp_path: Path,
) -> None:
    metrics = Metrics()
    (tmp_path / "access.log").mkdir()
    log = AccessLog("access.log", tmp_path, metrics)
    await log.start()
    log.append(a_line(1))
    await log.stop()
    (tmp_path / "access.log").rmdir()
    log.append(a_line(2))
    await log.stop()
    assert metrics.access_lines_lost == 1
    assert numbers(tmp_path / "access.log") == ["req_2"]


async def test_lines_that_nobody_takes_away_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "LINES_WAITING_MAX", 10)
    metrics = Metrics()
    log = AccessLog("access.log", tmp_path, metrics)
    for number in range(12):
        log.append(a_line(number))
    await log.stop()
    assert metrics.access_lines_lost == 11
    assert numbers(tmp_path / "access.log") == ["req_11"]


@pytest.fixture
def file_bytes_max() -> Iterator[Callable[[int], None]]:
    """A disk on which files cannot grow beyond so many bytes, for the rest of the test or until
    told otherwise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else it ends the process
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


async def test_a_full_disk_leaves_no_half_line_for_the_next_one_to_join(
    tmp_path: Path, file_bytes_max: Callable[[int], None]
) -> None:
    metrics = Metrics()
    log = AccessLog("access.log", tmp_path, metrics)
    log.append(a_line(1))
    await log.stop()

    file_bytes_max((tmp_path / "access.log").stat().st_size * 5 // 2)
    log.extend([a_line(2), a_line(3)])
    await log.stop()
    file_bytes_max(resource.RLIM_INFINITY)
    log.append(a_line(4))
    await log.stop()

    assert numbers(tmp_path / "access.log") == ["req_1", "req_4"]
    assert metrics.access_lines_lost == 2
